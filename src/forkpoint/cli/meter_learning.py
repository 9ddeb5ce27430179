"""The learning half of `forkpoint meter`: tokens until most problems are solved, rule by rule."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from forkpoint.cli.options import Positive
from forkpoint.errors import ForkpointError

if TYPE_CHECKING:
    from forkpoint.meter.cells import LearningCell
    from forkpoint.meter.learning import Arm, Race
    from forkpoint.meter.subject import Rule, Subject

CELLS = "learning"
"""Folder of the cells inside `--out`."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Whether and how the rules are trained with."""

    learn: Annotated[
        Positive | None,
        Parameter(help="Seeds of learning curves; beside the rules the uniform arm and, on keychain, an oracle."),
    ] = None
    rates: Annotated[str, Parameter(help="Learning rates, commas between; each is an arm of its own.")] = "1e-3"
    learn_tokens: Annotated[Positive, Parameter(help="Generated tokens at which an arm is given up.")] = 400_000
    target: Annotated[
        float, Parameter(validator=Number(gt=0, lte=1), help="Share of held-out problems to be solved.")
    ] = 0.9


NOT_LEARNED = Learning()


def learned(
    make: "Callable[[], Subject]",
    rules: "Sequence[Rule]",
    asked: Learning,
    *,
    head: Mapping[str, Any],
    out: Path | None,
) -> dict[str, Any]:
    """The rows of the comparison; its curves lie in `out`, where a second call finds the finished ones."""
    from forkpoint.meter.cells import run_cell
    from forkpoint.meter.savings import savings
    from forkpoint.seeds import Key

    cells = _cells(make, rules, asked, head)
    most = len(cells) * asked.learn_tokens
    _say(f"learning: {len(cells)} curves, at most {most:,} generated tokens, beside evaluations")
    folder = None if out is None else out / CELLS
    found = [run_cell(cell, folder, _say) for cell in cells]
    rows = savings(found, key=Key.root(0).child("learning"))
    return {"target": asked.target, "rows": [asdict(row) for row in rows]}


def _cells(
    make: "Callable[[], Subject]", rules: "Sequence[Rule]", asked: Learning, head: Mapping[str, Any]
) -> "list[LearningCell]":
    from forkpoint.meter.cells import LearningCell

    return [
        LearningCell(
            make=make,
            task=head["settings"],
            policy=head["policy"],
            arm=arm,
            race=_race(asked),
            seed=head["seed"] + seed,
        )
        for seed in range(asked.learn or 0)
        for arm in _arms(rules, learning_rates(asked.rates), str(head["task"]))
    ]


def _race(asked: Learning) -> "Race":
    from forkpoint.meter.learning import Race

    return Race(max_tokens=asked.learn_tokens, target=asked.target)


def learning_rates(text: str) -> list[float]:
    """The numbers of `--rates`; raises ForkpointError for others than different ones above 0 and at most 1."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate <= 1 for rate in rates) or len(set(rates)) < len(rates):
        raise ForkpointError(f"--rates = '{text}': write different numbers above 0 and at most 1, commas between.")
    return rates


def _arms(rules: "Sequence[Rule]", rates: Sequence[float], task: str) -> "list[Arm]":
    from forkpoint.config.critic import CriticSettings
    from forkpoint.credit import CreditRule, leave_one_out
    from forkpoint.meter.learning import UNIFORM, Arm
    from forkpoint.meter.oracle import RULE, oracle

    always: list[tuple[str, CreditRule, dict[str, Any], bool]] = [(UNIFORM, leave_one_out, {}, False)]
    if task == "keychain":
        always.append((RULE, oracle, {}, False))
    asked = [
        (rule.name, getattr(rule.give, "func", rule.give), dict(getattr(rule.give, "keywords", {})), rule.critic)
        for rule in rules
    ]
    named = {name: (name, rule, options, critic) for name, rule, options, critic in [*always, *asked]}
    return [
        Arm(
            name=name, rule=rule, options=options, learning_rate=rate,
            critic=CriticSettings(warmup_batches=2) if critic else None,
        )
        for name, rule, options, critic in named.values()
        for rate in rates
    ]  # fmt: skip


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
