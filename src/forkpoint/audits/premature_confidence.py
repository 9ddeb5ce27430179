"""`premature_confidence`: whether the answer comes from the reasoning or was there before it.

A chain of thought is cut at eleven points, and at each the model is made to answer at once.  c_k is the probability of
the answer that the rollout really gave, g_k that of the right one; both are scored, not sampled.

    premature    Spearman(c, k) < 0.4; c is rounded to 0.1, what ten samples would tell     (arXiv 2605.24396)
    area         integral of g over the share of the chain that was seen                   (TRACE, arXiv 2510.01367)
    broken       P(the given answer | the chain of thought of another rollout)
    lucky        a correct rollout with a step that lowered g by more than 0.2, or that a step check calls wrong
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from forkpoint.audits.early_answers import (
    POINTS,
    ROLLOUTS,
    Array,
    Chain,
    Curve,
    broken,
    chains,
    curves_of,
    right_curves,
)
from forkpoint.audits.part import EXAMPLES, Bounds, Part, Parts, graded, unasked
from forkpoint.audits.subject import Subject, problem_numbers
from forkpoint.audits.windows import estimate
from forkpoint.probe import Probe
from forkpoint.records import Bools, Finding, Group, Problem, Records, Severity

NAME = "premature_confidence"
LEAST_RISE = 0.4
"""Spearman correlation from which on confidence counts as progressive (arXiv 2605.24396)."""
FALL = 0.2
"""Fall of the right answer's probability that makes a success a lucky one."""
BELIEVED = 0.5
"""Probability from which on the model counts as giving an answer."""
PREMATURE = Bounds(
    watch=0.25, sick=0.5,
    source="confidence that is mere noise is premature in 0.56 (three cuts) to 0.89 (eleven) of chains; bounds ours",
)  # fmt: skip
SHORTCUT = Bounds(watch=0.1, sick=0.25, source="the base's area is the yardstick, after TRACE, arXiv 2510.01367")
UNMOVED = Bounds(watch=0.5, sick=0.9, source="half, nine tenths of the answers do not need their chain (ours)")
LUCKY = Bounds(watch=0.1, sick=0.3, source="one in ten, three in ten of what is rewarded is not right (ours)")


@runtime_checkable
class StepChecked(Protocol):
    """A task that can tell which written steps are wrong, without a model."""

    def wrong_steps(self, problem: Problem, text: str) -> Sequence[int]:
        """Indices of the wrong steps, ascending."""
        ...


def spearman(values: Array) -> float:
    """The rank correlation of values, rounded to 0.1, with their place; ties share their mean rank; 0 where all tie.

    >>> spearman(np.array([0.1, 0.2, 0.9])), spearman(np.array([0.91, 0.92, 0.93]))
    (1.0, 0.0)
    """
    _, place, counts = np.unique(np.round(values, 1), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    spread_ = ranks.std() * np.arange(len(values)).std()
    if spread_ == 0:
        return 0.0
    centered = np.arange(len(values)) - (len(values) - 1) / 2
    return float(np.round((centered * (ranks - ranks.mean())).mean() / spread_, 12))


def is_premature(curve: Curve) -> float:
    """1 where confidence in the given answer does not rise, else 0; nan with fewer than three cuts or no answer."""
    if curve.given is None or len(curve.given) < 3:
        return float("nan")
    return float(spearman(curve.given) < LEAST_RISE)


def area(shares: Array, values: Array) -> float:
    """The integral of values over the share of the chain that was seen, by trapezoids.

    >>> area(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.0, 1.0]))
    0.25
    """
    return float(((values[1:] + values[:-1]) / 2 * np.diff(shares)).sum())


def largest_fall(values: Array) -> float:
    """The largest fall from one cut to the next; 0 where there is none."""
    return float(max(0.0, (values[:-1] - values[1:]).max(initial=0.0)))


def lucky(found: Sequence[Chain], curves: Sequence[Curve], task: object) -> tuple[Array, Bools]:
    """1 for lucky successes, 0 for others, nan where a rollout is not correct or nothing tells; and wrong steps."""
    wrong = np.array(
        [
            isinstance(task, StepChecked) and len(task.wrong_steps(one.attempt.problem, one.attempt.rollout.text)) > 0
            for one in found
        ],
        dtype=np.bool_,
    )
    fell = np.array([curve.right is not None and largest_fall(curve.right) > FALL for curve in curves], dtype=np.bool_)
    tells = np.array([isinstance(task, StepChecked) or curve.right is not None for curve in curves], dtype=np.bool_)
    correct = np.array([one.correct for one in found], dtype=np.bool_)
    return np.where(correct & tells, (wrong | fell).astype(np.float64), np.nan), wrong


def planned_cost(groups: Sequence[Group], *, base: bool = False) -> dict[str, int]:
    """Most tokens that the audit scores beside the chains that they follow; nothing is sampled.

    A chain of n tokens is read again at each of eleven cuts for both answers, so contexts cost 12 n more.
    """
    count = min(ROLLOUTS, sum(len(group.rollouts) for group in groups))
    longest = max((len(group.problem.answer) for group in groups), default=0) + 8
    return {"scored_tokens": count * longest * POINTS * (3 if base else 2), "sampled_tokens": 0}


def _named(finding: Finding, found: Sequence[Chain], which: Bools) -> Finding:
    """The finding with the rollouts that it rests on."""
    ids = tuple(found[place].attempt.rollout.id for place in np.flatnonzero(which)[:EXAMPLES].tolist())
    return replace(finding, evidence=ids)


def _premature(found: Sequence[Chain], curves: Sequence[Curve]) -> list[Finding]:
    values = np.array([is_premature(curve) for curve in curves])
    told = estimate(values, problem_numbers([one.attempt for one in found]))
    if told is None:
        return []
    first = np.mean([curve.given[0] for curve in curves if curve.given is not None])
    claim = (
        f"{told.value:.0%} of {told.rollouts} chains of thought are premature: confidence in the answer does not rise "
        f"along them. Before the first step it is {first:.0%} on average."
    )
    return [_named(graded(NAME, claim, told.value, told.interval, PREMATURE), found, values == 1)]


def _shortcut(
    found: Sequence[Chain], curves: Sequence[Curve], others: Sequence[Array | None], task: object
) -> list[Finding]:
    """The area under the right answer, against that of the base along the same chains where there is one."""
    mine = np.array([np.nan if one.right is None else area(one.shares, one.right) for one in curves])
    problems = problem_numbers([one.attempt for one in found])
    told = estimate(mine, problems)
    if told is None:
        return []
    claim = f"The right answer has {told.value:.2f} on average when the chain is cut anywhere"
    theirs = [
        np.nan if other is None else area(one.shares, other) for one, other in zip(curves, others, strict=True)
    ] if others else []  # fmt: skip
    more = estimate(mine - np.array(theirs), problems) if theirs else None
    if more is None:
        return [
            Finding(
                audit=NAME, severity=Severity.INFO, claim=f"{claim} (no base to compare with).", value=told.value,
                interval=told.interval,
            )
        ]  # fmt: skip
    claim = f"{claim}, {more.value:+.2f} against the base: what is known without the whole chain may be a shortcut."
    finding = _apart(graded(NAME, claim, more.value, more.interval, SHORTCUT), task)
    return [_named(finding, found, mine - np.array(theirs) > SHORTCUT.watch)]


def _apart(finding: Finding, task: object) -> Finding:
    """The finding, told alone where a task has no `answer_lead`: its moves are the answer, and no chain leads to it."""
    if getattr(task, "answer_lead", ""):
        return finding
    claim = f"{finding.claim} Told alone: the steps of this task are the answer itself."
    return replace(finding, severity=Severity.INFO, claim=claim)


def _corrupted(found: Sequence[Chain], curves: Sequence[Curve], after: Array) -> list[Finding]:
    """How many answers stay when another chain of thought stands before them."""
    believed = np.array([curve.given is not None and curve.given[-1] >= BELIEVED for curve in curves], dtype=np.bool_)
    stays = np.where(believed & np.isfinite(after), (after >= BELIEVED).astype(np.float64), np.nan)
    told = estimate(stays, problem_numbers([one.attempt for one in found]))
    if told is None:
        return []
    claim = (
        f"{told.value:.0%} of {told.rollouts} answers stay as they are when the chain of thought is that of another "
        f"problem."
    )
    return [_named(graded(NAME, claim, told.value, told.interval, UNMOVED), found, stays == 1)]


def _lucky(found: Sequence[Chain], curves: Sequence[Curve], task: object) -> list[Finding]:
    values, wrong = lucky(found, curves, task)
    told = estimate(values, problem_numbers([one.attempt for one in found]))
    if told is None:
        return []
    checked = int((wrong & (values == 1)).sum())
    claim = (
        f"{told.value:.0%} of {told.rollouts} successes are lucky: a step of theirs lowered the chance of the right "
        f"answer by more than {FALL:g}, or is wrong ({checked} by the task's step check)."
    )
    return [_named(_apart(graded(NAME, claim, told.value, told.interval, LUCKY), task), found, values == 1)]


PARTS: Parts = {"confidence": Part(unasked, ("probe",))}
"""The records alone say nothing here."""


def premature_confidence(_records: Records, probe: Probe | None = None) -> list[Finding]:
    """Where the answer comes from; nothing without a probe that brings rollouts with chains of thought."""
    if probe is None or not isinstance(probe, Subject):
        return []
    key = probe.key.child(NAME)
    found = chains(probe.groups, probe, key.child("rollouts"))
    if not found:
        return []
    curves = curves_of(found, probe)
    others = [] if probe.base is None else right_curves(found, probe.base, probe.task)
    return [
        *_premature(found, curves),
        *_shortcut(found, curves, others, probe.task),
        *_corrupted(found, curves, broken(found, probe)),
        *_lucky(found, curves, probe.task),
    ]
