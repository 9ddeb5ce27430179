"""A few rollouts with the credit of every rule and the truth, token by token: what the tables are about.

Letters: T tokens of a rollout.  The truth of a token is known exactly, or drawn by nested Monte Carlo with an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.meter.subject import Subject
from forkpoint.meter.truth import Places, Tier, Truth, every_place, key_labels, sampled_truth
from forkpoint.records import Batch, Credit, Group, Message, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many rollouts are shown, and how well their truth is drawn where it is not exact."""

    each: int = 1
    """Rollouts that are correct, and as many that are wrong, of one problem; 0: none."""
    continuations: int = 32
    """For each of the two values of an advantage; 0: only the tokens that the tables are of.  Monte Carlo only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One rollout, all sequences [T]; None where a number is not known."""

    prompt: str | tuple[Message, ...]
    answer: str
    rollout: str
    """Its id."""
    outcome: str
    correct: bool
    solved: int
    """Rollouts of the same problem that are correct."""
    size: int
    """Rollouts of the same problem."""
    tokens: tuple[str, ...]
    """Their texts."""
    trained: tuple[bool, ...]
    keys: tuple[int, ...] | None
    """Positions that decide, where the task knows them."""
    truth: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    """Standard errors of the truth; 0 where it is exact."""
    advantages: Mapping[str, tuple[float, ...]]
    """Of each rule, by its name."""


def chosen_rollouts(batch: Batch, each: int) -> list[int]:
    """Rows of `batch.rollouts`: the first `each` correct and the first `each` wrong ones of one group.

    The group is the one solved most nearly half of the time, the first of equals; where it lacks one kind, there are
    fewer.
    """
    if not each or not batch.groups:
        return []
    flags = [[verdict.correct is True for verdict in group.verdicts] for group in batch.groups]
    shares = [abs(sum(mine) / max(1, len(mine)) - 0.5) for mine in flags]
    chosen = int(np.argmin(shares))
    start = sum(len(mine) for mine in flags[:chosen])
    rows = [[start + i for i, right in enumerate(flags[chosen]) if right is wanted][:each] for wanted in (True, False)]
    return rows[0] + rows[1]


def planned_examples(subject: Subject, plan: Plan) -> int:
    """Tokens sampled at most for the truth of the examples, where it is drawn."""
    # A prefix leaves half of the budget on average.
    budget = subject.max_new_tokens
    return 2 * plan.each * budget * 2 * plan.continuations * (budget + 1) // 2


def take_examples(
    subject: Subject, batch: Batch, truth: Truth, credits: Mapping[str, Sequence[Credit]], plan: Plan
) -> tuple[Example, ...]:
    """The examples of a batch; `credits` are those of every rule, in the order of `batch.rollouts`.

    What `truth` knows stands first; other tokens of a Monte Carlo truth are drawn with `plan.continuations`.
    """
    rows = chosen_rollouts(batch, plan.each)
    known = _known(truth)
    if truth.tier is Tier.MONTE_CARLO and plan.continuations > 1 and rows:
        known = {**_known(_drawn(subject, batch, rows, known, plan.continuations)), **known}
    return tuple(_example(subject, batch, row, known, credits) for row in rows)


def _known(truth: Truth) -> dict[tuple[int, int], tuple[float, float]]:
    """(row, position) to the true advantage and its standard error."""
    places = zip(truth.places.rows.tolist(), truth.places.positions.tolist(), strict=True)
    errors = np.sqrt(truth.variances).tolist()
    return dict(zip(places, zip(truth.advantages.tolist(), errors, strict=True), strict=True))


def _drawn(
    subject: Subject, batch: Batch, rows: Sequence[int], known: Mapping[tuple[int, int], object], count: int
) -> Truth:
    """The truth of the trained tokens of some rollouts that is not known yet, from a probe of its own."""
    whole = every_place(batch)
    wanted = np.array(
        [
            row in rows and (row, position) not in known
            for row, position in zip(whole.rows.tolist(), whole.positions.tolist(), strict=True)
        ],
        dtype=np.bool_,
    )
    places = Places(rows=whole.rows[wanted], positions=whole.positions[wanted], weights=whole.weights[wanted])
    return sampled_truth(batch, subject.probe("examples"), places, continuations=count, purpose="examples")


def _example(
    subject: Subject, batch: Batch, row: int, known: Mapping[tuple[int, int], tuple[float, float]],
    credits: Mapping[str, Sequence[Credit]],
) -> Example:  # fmt: skip
    owners = [(group, i) for group in batch.groups for i in range(len(group.rollouts))]
    group, i = owners[row]
    rollout, verdict, prompt = group.rollouts[i], group.verdicts[i], group.problem.prompt
    pairs = [known.get((row, t), (None, None)) for t in range(len(rollout.tokens))]
    return Example(
        prompt=prompt if isinstance(prompt, str) else tuple(prompt), answer=group.problem.answer, rollout=rollout.id,
        outcome=str(verdict.outcome), correct=verdict.correct is True, size=len(group.rollouts),
        solved=sum(mine.correct is True for mine in group.verdicts),
        tokens=tuple(subject.policy.texts.decode([token]) for token in rollout.tokens.tolist()),
        trained=tuple(rollout.loss_mask.tolist()), keys=_keys(group, rollout),
        truth=tuple(value for value, _ in pairs), errors=tuple(error for _, error in pairs),
        advantages={name: tuple(found[row].advantages.tolist()) for name, found in credits.items()},
    )  # fmt: skip


def _keys(group: Group, rollout: Rollout) -> tuple[int, ...] | None:
    """The positions of a rollout that decide; None where the task does not know them."""
    alone = Batch(groups=(replace(group, rollouts=(rollout,)),), update=0)
    places = every_place(alone)
    flags = key_labels(alone, places)
    return None if flags is None else tuple(places.positions[flags].tolist())
