"""What the audits that ask models are given: a probe that brings rollouts to examine, and what it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forkpoint.probe import Probe
from forkpoint.records import Floats, Group, Ints, Problem, Rollout, SpanKind, Verdict
from forkpoint.seeds import Key


@runtime_checkable
class Subject(Protocol):
    """A probe of the trained policy that brings rollouts of it, with their problems and verdicts."""

    @property
    def groups(self) -> Sequence[Group]:
        """The rollouts to examine, all of the weights that the probe asks."""
        ...

    @property
    def base(self) -> Probe | None:
        """The model that training began with, for the same task; None where it is not at hand."""
        ...

    @property
    def key(self) -> Key:
        """Names the random numbers of the audits."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """Two models at the same positions of one rollout, read under both; 0 where the token was not sampled."""

    tops: Ints
    """The token that the trained model finds most probable."""
    ranks: Ints
    """Its rank under the base, from 1; tied tokens share the best rank."""
    entropies: Floats
    """Entropy of the base, nats."""
    divergences: Floats
    """Jensen-Shannon divergence of both next-token distributions, nats, at most log 2."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edited:
    """A text that the base wrote, with tokens of the trained model at some positions."""

    rollout: Rollout
    places: tuple[int, ...]
    """Positions that were given to the trained model."""
    unfinished: bool
    """Whether positions were left that should have been given, too."""


@runtime_checkable
class Comparing(Protocol):
    """A probe that can read with two models at once, at temperature 1."""

    def compared(self, rollouts: Sequence[Rollout]) -> list[Compared]:
        """Both models along some rollouts."""
        ...


@runtime_checkable
class Editing(Protocol):
    """A probe that can write with two models at once.  Temperature 1 unless a rollout says otherwise."""

    def edited(self, starts: "Sequence[Attempt]", chosen: Sequence[Ints] | None) -> list[Edited]:
        """Fresh texts of the base for the prompts of some rollouts, at the rollouts' temperatures.

        The most probable token of the trained model is put at the `chosen` positions of each; None: wherever the most
        probable tokens of both differ.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One rollout with its problem and its verdict."""

    problem: Problem
    rollout: Rollout
    verdict: Verdict | None = None


def attempts(groups: Sequence[Group]) -> list[Attempt]:
    """The rollouts of all groups one by one; those without a verdict, too."""
    made = []
    for group in groups:
        known = len(group.verdicts) == len(group.rollouts)
        for place, rollout in enumerate(group.rollouts):
            verdict = group.verdicts[place] if known else None
            made.append(Attempt(problem=group.problem, rollout=rollout, verdict=verdict))
    return made


def spread(found: Sequence[Attempt], limit: int, key: Key) -> list[Attempt]:
    """At most `limit` attempts, as evenly over the problems as can be; which ones the key decides.

    The first of every problem in a drawn order, then the second of every problem, and so on.
    """
    order = key.generator().permutation(len(found))
    seen: dict[str, int] = {}
    turns = np.zeros(len(found), dtype=np.int64)
    for place in order.tolist():
        turns[place] = seen.get(found[place].problem.key, 0)
        seen[found[place].problem.key] = int(turns[place]) + 1
    kept = order[np.argsort(turns[order], kind="stable")][:limit]
    return [found[place] for place in sorted(kept.tolist())]


def problem_numbers(found: Sequence[Attempt]) -> NDArray[np.uint64]:
    """A number for the problem of each attempt, from 0 in order of appearance."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(one.problem.key, len(places)) for one in found], dtype=np.uint64)


def answer_lead(probe: Probe) -> str:
    """What every answer of the probe's task begins with; empty where the task has nothing of the kind."""
    return str(getattr(probe.task, "answer_lead", ""))


def reasoning(probe: Probe, rollout: Rollout) -> tuple[int, int] | None:
    """First and last token (exclusive) of a rollout's chain of thought; None where it has none, or no end of it.

    Its think spans where it has some; else all that is before the last `answer_lead`; else, for a task without one,
    all of it.
    """
    spans = [span for span in rollout.spans if span.kind is SpanKind.THINK]
    if spans:
        return spans[0].start, spans[-1].end
    lead = answer_lead(probe)
    if not lead:
        return (0, len(rollout.tokens)) if len(rollout.tokens) else None
    end = last_place(rollout.tokens, probe.encode(lead))
    return None if end is None or end == 0 else (0, end)


def last_place(tokens: Ints, part: Ints) -> int | None:
    """Where `part` last begins in `tokens`; None where it never does.

    >>> last_place(np.array([1, 2, 3, 1, 2]), np.array([1, 2])), last_place(np.array([1]), np.array([2]))
    (3, None)
    """
    if not len(part) or len(part) > len(tokens):
        return None
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(tokens, len(part)) == part).all(axis=1))
    return int(found[-1]) if len(found) else None


def warmth(rollout: Rollout) -> float:
    """The temperature at which to score a rollout: its own, 1 for greedy ones."""
    return rollout.temperature or 1.0
