"""`forkpoint meter`: every credit rule against the truth, and what it costs."""

import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from forkpoint.cli.evaluate import find_model
from forkpoint.cli.meter_learning import NOT_LEARNED, Learning, learned, learning_rates
from forkpoint.cli.meter_predict import (
    NOT_PREDICTED,
    Predicting,
    predicted,
    predicted_recipe,
    print_prediction,
    write_document,
)
from forkpoint.cli.options import Json, Positive, Settings
from forkpoint.cli.output import finite, print_json, print_table
from forkpoint.errors import ForkpointError

if TYPE_CHECKING:
    from forkpoint.meter.reading import Extent
    from forkpoint.meter.subject import Rule, Subject
    from forkpoint.policies.protocol import Policy
    from forkpoint.tasks.protocol import Task

LINE_SECONDS = 10.0
TASK = "keychain"
RULES = "leave_one_out,group_mean_std,survivors,batch_baseline"
CORPORA: Mapping[str, str] = {"keychain": "demonstrator", "paths": "walks", "arithmetic": "noisy"}
"""What a tiny decoder imitates before it is measured."""
BUDGETS: Mapping[str, int] = {"paths": 24, "arithmetic": 48, "lab": 48}
"""Tokens of a rollout, for tasks that have no length of their own."""
NO_TABLE = "--tier exact needs a policy that sees only the task's state: a table of the lab."
Options = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Target = Annotated[
    str | None,
    Parameter(help="With --predict: RECIPE or RECIPE:STAGE instead of a task; without STAGE its first RL stage."),
]
Seed = Annotated[int, Parameter(help="Names every draw.")]
Out = Annotated[Path | None, Parameter(help="A folder for meter.json, and meter.html of a reading.")]
Whole = Annotated[int, Parameter(validator=Number(gte=0))]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    positions: Annotated[Positive, Parameter(help="Tokens of each seed whose truth is drawn; monte-carlo only.")] = 64
    continuations: Annotated[
        int,
        Parameter(validator=Number(gte=2), help="For each of the two values of a true advantage; monte-carlo only."),
    ] = 256
    batches: Annotated[Whole, Parameter(help="For the gradients; 0 leaves them out, else at least 3.")] = 16
    oracle_continuations: Annotated[
        Whole,
        Parameter(help="Of each token for each of two draws of the oracle's gradient; 0: none; monte-carlo only."),
    ] = 4
    problems: Annotated[Positive, Parameter(help="Groups of a batch; a quarter of them for the gradients.")] = 8
    group_size: Annotated[int, Parameter(validator=Number(gte=2), help="Rollouts of a problem.")] = 8
    seeds: Annotated[Positive, Parameter(help="Batches whose tokens are pooled.")] = 1


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the policy under test comes from."""

    run: Annotated[
        str | None,
        Parameter(help="RUN:STAGE, a model folder or package:NAME instead of a tiny decoder trained for this."),
    ] = None
    cache: Annotated[Path | None, Parameter(help="A folder that keeps the tiny decoder for the next time.")] = None
    updates: Annotated[
        Whole | None, Parameter(help="Of the tiny decoder's pretraining; default: the variant's, else 400.")
    ] = None
    threads: Annotated[Positive, Parameter(help="Threads of torch.")] = 1


def meter(
    recipe: Target = None,
    /,
    *,
    task: str = TASK,
    rules: str = RULES,
    variant: str | None = None,
    set_: Settings = (),
    option: Options = (),
    source: Source = Source(),
    tier: Literal["auto", "exact", "enumeration", "monte-carlo"] = "auto",
    sizes: Sizes = Sizes(),
    learning: Learning = NOT_LEARNED,
    predicting: Predicting = NOT_PREDICTED,
    max_new_tokens: Positive | None = None,
    seed: Seed = 0,
    out: Out = None,
    json_: Json = False,
) -> int:
    """Hold credit rules against the true advantage: correlation, bias and noise of the gradient, cost, learning.

    Parameters
    ----------
    task
        keychain, paths, arithmetic or lab; others need --run.
    rules
        Credit rules with commas between: names of a recipe's `credit.rule`, or `package.module:function`.
    variant
        Of keychain: A (32 tokens, filler of its own), B (128), C and D (filler is a look-up, tokens see the prompt
        alone), E and F (in a usual decoder), G and H (guessing shows in the filler).  Default A.
    set_
        key=value: a setting of the task; may be repeated.
    option
        rule.key=value: an option of a credit rule; may be repeated.
    tier
        How the truth is known; auto takes the most exact that policy and task allow.
    max_new_tokens
        Budget of a rollout; without it the task's own.
    json_
        Print as JSON.
    """
    if recipe is not None:
        _check_alone(recipe, (task, rules), variant, option, max_new_tokens)
        found = predicted_recipe(recipe, predicting, settings=set_, run=source.run, seed=seed, said=_Progress())
        return print_prediction(found, as_json=json_, out=out)
    table = _task_table(task, variant, set_)
    built, wanted = _built(table), _rules(rules, option)
    _check(built, source, wanted, tier, sizes, learning.rates)
    budget, said = max_new_tokens or _budget(built, task), _Progress()
    identity, decoder = json.dumps(table, sort_keys=True), _decoder(task, variant)
    policy, origin = _policy(built, source, said, identity=identity, seed=seed, decoder=decoder)
    subject = _subject(policy, built, sizes, budget=budget, seed=seed)
    told = {"task": task, "variant": variant, "settings": table, "policy": origin}
    head = {**told, "max_new_tokens": budget, "seed": seed}
    if predicting.predict:
        return print_prediction(predicted(subject, predicting, head=head, said=said), as_json=json_, out=out)
    found = {**head, **_read(subject, wanted, _extent(subject, tier, sizes), said)}
    if learning.learn is not None:
        found["learning"] = learned(partial(_fresh, subject), wanted, learning, head=head, out=out)
    return _tell(finite(found), out, as_json=json_)


def _check_alone(
    recipe: str, named: tuple[str, str], variant: str | None, option: Sequence[str], max_new_tokens: int | None
) -> None:
    """Refuses options beside a recipe that says these things itself; `named` are the task and the rules."""
    values = {
        "--task": named[0] != TASK, "--rules": named[1] != RULES, "--variant": variant, "--option": option,
        "--max-new-tokens": max_new_tokens,
    }  # fmt: skip
    given = [name for name, value in values.items() if value]
    if given:
        raise ForkpointError(f"{given[0]} does not go with {recipe}, which says it itself.")


def _check(task: "Task", source: Source, rules: "Sequence[Rule]", tier: str, sizes: Sizes, rates: str) -> None:
    """Refuses what cannot be before anything is trained."""
    from forkpoint.assembly import CREDIT_RULES
    from forkpoint.assembly.credit_checks import check_rule_needs, try_rule
    from forkpoint.seeds import Key
    from forkpoint.tasks.lab import Lab

    learning_rates(rates)
    if 0 < sizes.batches < 3:
        raise ForkpointError(f"--batches = {sizes.batches}: gradients need at least 3, or 0 to leave them out.")
    problem = task.problem(Key.root(0))
    for rule in rules:
        check_rule_needs("--rules", rule.name, getattr(rule.give, "keywords", {}), task, problem)
        if rule.name in CREDIT_RULES:
            try_rule("--option", rule.give, task, problem)
    if source.run is not None or isinstance(task, Lab):
        return
    if tier == "exact":
        raise ForkpointError(NO_TABLE)


def _task_table(task: str, variant: str | None, settings: Sequence[str]) -> dict[str, Any]:
    from forkpoint.config.load import override_table
    from forkpoint.meter.variants import variant as find_variant

    if variant is not None and task != "keychain":
        raise ForkpointError(f"--variant = '{variant}' is one of keychain, not of --task {task}.")
    chosen = find_variant(variant or "A").settings if task == "keychain" else {}
    return override_table({"name": task, **chosen}, settings)


def _decoder(task: str, variant: str | None) -> dict[str, Any]:
    """How the decoder of a variant is made, beside what all have in common."""
    from forkpoint.meter.variants import variant as find_variant

    if task != "keychain":
        return {}
    found = find_variant(variant or "A")
    return {
        "updates": found.updates, "batch_size": found.batch_size, "prompt_updates": found.prompt_updates,
        "prompt_corpus": found.prompt_corpus, "outputs_attend": found.outputs_attend,
    }  # fmt: skip


def _built(table: dict[str, Any]) -> "Task":
    from forkpoint.assembly import build_task

    return build_task(table, where="--task", folder=Path())


def _rules(text: str, options: Sequence[str]) -> "list[Rule]":
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name:
            raise ForkpointError(f"--rules = '{text}': write names with commas between, such as {RULES}.")
        if names.count(name) > 1:
            raise ForkpointError(f"--rules = '{text}': {name} is named twice.")
    for option in options:
        if "=" not in option or not any(option.startswith(f"{name}.") for name in names):
            raise ForkpointError(f"--option = '{option}': write rule.key=value with a rule of --rules, {text}.")
    return [_rule(name, options) for name in names]


def _rule(name: str, options: Sequence[str]) -> "Rule":
    from forkpoint.assembly import CREDIT_RULES, check_options, resolve
    from forkpoint.assembly.tables import CRITIC_RULES
    from forkpoint.config.load import override_table
    from forkpoint.meter.subject import Rule

    given = resolve("--rules", name, CREDIT_RULES)
    mine = [text.removeprefix(f"{name}.") for text in options if text.startswith(f"{name}.")]
    bound = override_table({}, mine)
    check_options(f"--option {name}", given, bound)
    return Rule(name=name, give=partial(given, **bound), critic=name in CRITIC_RULES)


def _budget(task: "Task", name: str) -> int:
    from forkpoint.seeds import Key

    fixed = getattr(task, "budget", None)
    if fixed is not None:
        return int(fixed(task.problem(Key.root(0))))
    if name not in BUDGETS:
        raise ForkpointError(f"--task {name} has no length of its own: give --max-new-tokens.")
    return BUDGETS[name]


def _policy(
    task: "Task", source: Source, said: "_Progress", *, identity: str, seed: int, decoder: Mapping[str, Any]
) -> "tuple[Policy, str]":
    """The policy under test and where it comes from; `decoder` is what is known of a tiny one."""
    import torch

    from forkpoint.meter.pretraining import Pretraining, pretrained
    from forkpoint.policies.folder import load_folder
    from forkpoint.policies.tabular import DESCRIPTION, from_theory, load_tabular
    from forkpoint.tasks.lab import Lab
    from forkpoint.theory.classes import uniform_policy
    from forkpoint.theory.tables import spread_policy

    torch.set_num_threads(source.threads)
    if source.run is not None:
        folder = find_model(source.run)
        return (load_tabular(folder) if (folder / DESCRIPTION).is_file() else load_folder(folder)), source.run
    if isinstance(task, Lab):
        return from_theory(spread_policy(uniform_policy(task.graph)), fork=task.settings.fork), "uniform table"
    if task.name not in CORPORA:
        raise ForkpointError(f"--task {task.name} has no demonstrator to learn from: name a policy with --run.")
    how = Pretraining(corpus=CORPORA[task.name], seed=seed, **decoder)
    how = how if source.updates is None else replace(how, updates=source.updates)
    policy = pretrained(
        task, how, identity=identity, cache=source.cache,
        progress=partial(said, "pretraining"),
    )  # fmt: skip
    return policy, f"decoder of {policy.num_parameters} parameters, {how.updates} updates on {how.corpus}"


def _subject(policy: "Policy", task: "Task", sizes: Sizes, *, budget: int, seed: int) -> "Subject":
    from forkpoint.assembly.checks import check_length
    from forkpoint.meter.subject import Subject
    from forkpoint.policies.causal import CausalPolicy
    from forkpoint.seeds import Key

    key = Key.root(seed).child("meter")
    if isinstance(policy, CausalPolicy):
        check_length("--max-new-tokens", task, policy, task.problem(key), budget)
    return Subject(
        policy=policy, task=task, key=key, max_new_tokens=budget, problems=sizes.problems, group_size=sizes.group_size
    )


def _fresh(subject: "Subject") -> "Subject":
    """The subject with a copy of its policy, which learning may change."""
    return replace(subject, policy=copy.deepcopy(subject.policy))


def _extent(subject: "Subject", tier: str, sizes: Sizes) -> "Extent":
    from forkpoint.meter.reading import Extent
    from forkpoint.meter.truth import Tier

    best = subject.best_tier
    chosen = best if tier == "auto" else Tier(tier)
    if chosen is Tier.EXACT and best is not Tier.EXACT:
        raise ForkpointError(NO_TABLE)
    if chosen is Tier.ENUMERATION and best is Tier.MONTE_CARLO:
        raise ForkpointError(f"--tier enumeration: too much can be written in {subject.max_new_tokens} tokens.")
    return Extent(
        tier=chosen, positions=sizes.positions, continuations=sizes.continuations, batches=sizes.batches,
        gradient_problems=max(1, sizes.problems // 4), oracle_continuations=sizes.oracle_continuations,
        seeds=sizes.seeds,
    )  # fmt: skip


def _read(subject: "Subject", rules: "Sequence[Rule]", extent: "Extent", said: "_Progress") -> dict[str, Any]:
    from forkpoint.meter.document import planned_tokens, reading_document
    from forkpoint.meter.reading import take_reading

    planned = planned_tokens(subject, extent, critic=any(rule.critic for rule in rules))
    parts = ", ".join(f"{name} {count:,}" for name, count in planned.items() if count)
    said.line(f"budget: at most {sum(planned.values()):,} sampled tokens ({parts}), beside what rules sample")
    began = time.monotonic()
    document = reading_document(take_reading(subject, rules, extent, said))
    return {**document, "planned_tokens": planned, "seconds": time.monotonic() - began}


class _Progress:
    """Lines on standard error, the first and last of each part and one now and then between."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + LINE_SECONDS
            self.line(f"{what}: {done}/{total}")

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _tell(document: Mapping[str, Any], folder: Path | None, *, as_json: bool) -> int:
    if folder is not None:
        _write(document, folder)
    (print_json if as_json else _print)(document)
    return 0


def _write(document: Mapping[str, Any], folder: Path) -> None:
    from forkpoint.report.meter import write_meter

    write_document(document, folder)
    print(f"page: {write_meter(document, folder)}", file=sys.stderr, flush=True)


def _print(document: Mapping[str, Any]) -> None:
    from forkpoint.report.meter import meter_summary, meter_tables

    title = meter_summary(document)
    for _, (headers, *rows) in meter_tables(document):
        print_table(headers, rows, title=title)
        title = " "
