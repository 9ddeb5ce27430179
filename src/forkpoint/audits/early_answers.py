"""Answers asked for before the reasoning has ended: which cuts, which questions, and their probabilities.

An answer is scored, not sampled: log p(answer | prompt, the chain of thought up to a cut, what every answer begins
with).  The words that lead to the answer are given, so that asking costs no probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.subject import Attempt, answer_lead, attempts, last_place, reasoning, spread, warmth
from forkpoint.probe import Answerable, Probe, ScoreRequest, Stepped
from forkpoint.records import Group, Ints
from forkpoint.seeds import Key

POINTS = 11
"""Most points at which a chain is cut (arXiv 2605.24396)."""
ROLLOUTS = 256
"""Most chains that are asked about."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What the model would answer at the cuts of one chain of thought; arrays over the cuts."""

    shares: Array
    """Share of the chain that was seen, from 0 to 1."""
    given: Array | None
    """Probability of the answer that the rollout gave; None where it gave none."""
    right: Array | None
    """Probability of the right answer; None where the task cannot be asked for it."""


def cut_places(start: int, end: int, steps: Sequence[int]) -> list[int]:
    """At most eleven positions from `start` to `end`, at equal shares: where steps begin, if there are two of them.

    >>> cut_places(0, 9, [0, 3, 6]), cut_places(0, 3, [0])
    ([0, 3, 6, 9], [0, 1, 2, 3])
    """
    inside = sorted({start, end, *(place for place in steps if start < place < end)})
    places = inside if len(inside) > 2 else list(range(start, end + 1))
    last = len(places) - 1
    return sorted({places[round(point * last / (POINTS - 1))] for point in range(POINTS)})


def _asked(probe: Probe, requests: Sequence[ScoreRequest]) -> Array:
    """The probability of each answer; equal questions are asked once."""
    named = [(one.temperature, one.prompt_tokens.tobytes(), one.tokens.tobytes()) for one in requests]
    different = dict(zip(named, requests, strict=True))
    found: dict[tuple[float, bytes, bytes], float] = {}
    for warm in sorted({one.temperature for one in requests}):
        mine = {name: one for name, one in different.items() if one.temperature == warm}
        for name, scores in zip(mine, probe.score(list(mine.values())), strict=True):
            found[name] = float(np.exp(scores.sum(dtype=np.float64)))
    return np.array([found[name] for name in named])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """A rollout with its chain of thought, tokens `start` to `end`."""

    attempt: Attempt
    start: int
    end: int
    asked: int
    """Where the answer begins, after the words that lead to it; 0: it gave none, or nothing leads to one."""
    cuts: tuple[int, ...]

    @property
    def correct(self) -> bool:
        """Whether its verdict says so."""
        return self.attempt.verdict is not None and self.attempt.verdict.correct is True

    @property
    def shares(self) -> Array:
        """Share of the chain before each cut."""
        return (np.array(self.cuts) - self.start) / (self.cuts[-1] - self.start)

    @property
    def answer(self) -> Ints:
        """The tokens of the answer that was given; none where there is none."""
        return self.attempt.rollout.tokens[self.asked :] if self.asked else self.attempt.rollout.tokens[:0]


def chains(groups: Sequence[Group], probe: Probe, key: Key, *, limit: int = ROLLOUTS) -> list[Chain]:
    """At most `limit` rollouts that have a chain of thought, with the points where it is cut."""
    there = [one for one in attempts(groups) if reasoning(probe, one.rollout) is not None]
    made = [_chain(one, probe) for one in spread(there, limit, key)]
    return [chain for chain in made if len(chain.cuts) > 1]


def _chain(one: Attempt, probe: Probe) -> Chain:
    task, lead = probe.task, probe.encode(answer_lead(probe))
    start, end = reasoning(probe, one.rollout) or (0, 0)
    steps = task.cut_points(one.problem, one.rollout) if isinstance(task, Stepped) else ()
    place = last_place(one.rollout.tokens[end:], lead)
    answered = place is not None and end + place + len(lead) < len(one.rollout.tokens)
    cuts = cut_places(start, end, steps)
    # Without such words the answer is part of the chain, which is over at its end.
    return Chain(
        attempt=one, start=start, end=end, asked=end + (place or 0) + len(lead) if answered else 0,
        cuts=tuple(cuts if len(lead) else cuts[:-1]),
    )  # fmt: skip


def _question(chain: Chain, probe: Probe, thought: Ints, answer: Ints) -> ScoreRequest:
    """An answer after some thought, with the words between that lead to an answer."""
    rollout, lead = chain.attempt.rollout, probe.encode(answer_lead(probe))
    between = rollout.tokens[chain.end : chain.asked] if chain.asked else lead
    return ScoreRequest(
        prompt_tokens=np.concatenate([rollout.prompt_tokens, thought, between]).astype(np.int32), tokens=answer,
        temperature=warmth(rollout),
    )  # fmt: skip


def _right_answer(chain: Chain, cut: int, probe: Probe, task: Answerable) -> Ints:
    """The tokens of the right answer at a cut, without what leads to it; none where there is none any more."""
    rollout, lead = chain.attempt.rollout, answer_lead(probe)
    # Text and tokens go together where each token is one character; an answer with a lead does not need the text.
    aligned = len(rollout.tokens) - len(rollout.text) in (0, 1)
    text = task.early_answer(chain.attempt.problem, rollout.text[:cut] if aligned else "") if aligned or lead else ""
    return probe.encode(text)[len(probe.encode(lead)) if text.startswith(lead) else 0 :]


def right_curves(found: Sequence[Chain], probe: Probe, task: object) -> list[Array | None]:
    """The probability of the right answer at the cuts of each chain; None where the task cannot be asked, or not by it.

    A chain that could be right at none of its cuts, the first one included, is one whose right answer is not known.
    """
    if not isinstance(task, Answerable):
        return [None] * len(found)
    rows = [[_right_answer(chain, cut, probe, task) for cut in chain.cuts] for chain in found]
    asked = [
        _question(chain, probe, chain.attempt.rollout.tokens[:cut], answer)
        for chain, row in zip(found, rows, strict=True)
        for cut, answer in zip(chain.cuts, row, strict=True)
        if len(answer)
    ]
    values = iter(_asked(probe, asked))
    found_ = [np.array([next(values) if len(answer) else 0.0 for answer in row]) for row in rows]
    return [curve if any(map(len, row)) else None for curve, row in zip(found_, rows, strict=True)]


def given_curves(found: Sequence[Chain], probe: Probe) -> list[Array | None]:
    """The probability of the answer that each rollout gave, at the cuts of its chain; None where it gave none."""
    asked = [
        _question(chain, probe, chain.attempt.rollout.tokens[:cut], chain.answer)
        for chain in found
        if chain.asked
        for cut in chain.cuts
    ]
    values = iter(_asked(probe, asked))
    return [np.array([next(values) for _ in chain.cuts]) if chain.asked else None for chain in found]


def broken(found: Sequence[Chain], probe: Probe) -> Array:
    """The probability of the answer that each rollout gave, after the chain of thought of another one; [rollouts].

    The other one is the next of another problem with another answer; nan where there is none, or no answer.
    """
    values, asked, places = np.full(len(found), np.nan), [], []
    for at, chain in enumerate(found):
        donor = _donor(found, at)
        if chain.asked and donor is not None:
            own, other = chain.attempt.rollout.tokens, donor.attempt.rollout.tokens
            thought = np.concatenate([own[: chain.start], other[donor.start : donor.end]])
            asked.append(_question(chain, probe, thought, chain.answer))
            places.append(at)
    values[places] = _asked(probe, asked)
    return values


def _donor(found: Sequence[Chain], at: int) -> Chain | None:
    """The next chain of another problem that led to another answer."""
    mine = found[at]
    for step in range(1, len(found)):
        other = found[(at + step) % len(found)]
        if other.answer.tobytes() != mine.answer.tobytes() and other.attempt.problem.key != mine.attempt.problem.key:
            return other
    return None


def curves_of(found: Sequence[Chain], probe: Probe) -> list[Curve]:
    """The curves of some chains under the probe's policy."""
    given, right = given_curves(found, probe), right_curves(found, probe, probe.task)
    return [
        Curve(shares=chain.shares, given=mine, right=theirs)
        for chain, mine, theirs in zip(found, given, right, strict=True)
    ]
