"""Continuations of prefixes, each drawn once for all who ask, within a budget of sampled tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forkpoint.probe import Continuation, Probe
from forkpoint.records import Group, Rollout
from forkpoint.review.testing_values import Counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """Continuations number `start` to `start + count` of a prefix that serve one purpose."""

    group: int
    """Place of the group."""
    rollout: Rollout
    cut: int
    purpose: str
    """Names the random stream."""
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class _Stream:
    """All continuations of one prefix for one purpose."""

    group: int
    temperature: float
    prefix: bytes
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _New:
    """What has to be drawn: for whom, of which stream, from which number to which."""

    payer: int
    wanted: Wanted
    stream: _Stream
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Draws:
    """Every continuation so far."""

    groups: Sequence[Group]
    probe: Probe
    budget: int | None
    """Sampled tokens; None: without bound."""
    max_new_tokens: int
    """Of a rollout: no continuation is longer."""
    spent: int = 0
    _made: dict[_Stream, list[bool | None]] = field(default_factory=dict)
    """Whether each is correct; None where the verifier could not tell."""

    def fulfil(self, waiting: Sequence[Sequence[Wanted]]) -> list[dict[str, float] | None]:
        """What each of those who wait is charged, in one `branch` and one `verify` for each problem; None: not yet.

        In their order, those are served whom the budget allows even if all new continuations are as long as may be.
        """
        news: list[_New] = []
        reached: dict[_Stream, int] = {}
        charges: list[dict[str, float] | None] = []
        left = None if self.budget is None else self.budget - self.spent
        for payer, wishes in enumerate(waiting):
            mine = [new for wanted in wishes if (new := self._new(payer, wanted, reached)) is not None]
            price = sum((new.end - new.start) * max(0, self.max_new_tokens - new.wanted.cut) for new in mine)
            if left is not None and price > left:
                charges.append(None)
                continue
            left = None if left is None else left - price
            reached.update((new.stream, new.end) for new in mine)
            news += mine
            charges.append({"sampled_tokens": 0.0, "verifier_calls": 0.0})
        for new, tokens in self._drawn(news):
            charge = charges[new.payer]
            if charge is not None:
                charge["sampled_tokens"] += tokens
                charge["verifier_calls"] += new.end - new.start
        return charges

    def counts(self, wanted: Wanted) -> Counts:
        """Successes and trials; what no verifier could judge is neither."""
        seen = self._made[_stream(wanted)][wanted.start : wanted.start + wanted.count]
        usable = [correct for correct in seen if correct is not None]
        return sum(usable), len(usable)

    def _new(self, payer: int, wanted: Wanted, reached: dict[_Stream, int]) -> _New | None:
        stream, end = _stream(wanted), wanted.start + wanted.count
        start = reached.get(stream, len(self._made.get(stream, ())))
        return _New(payer=payer, wanted=wanted, stream=stream, start=start, end=end) if end > start else None

    def _drawn(self, news: Sequence[_New]) -> list[tuple[_New, int]]:
        """Draws and judges; the trained tokens of each."""
        requests = [
            Continuation(
                problem=self.groups[new.stream.group].problem, rollout=self._owner(new.wanted),
                prefix_length=new.wanted.cut, index=index, purpose=f"review-{new.stream.purpose}",
            )
            for new in news
            for index in range(new.start, new.end)
        ]  # fmt: skip
        made = iter(self.probe.branch(requests) if requests else ())
        drawn = [(new, [next(made) for _ in range(new.start, new.end)]) for new in news]
        for group in dict.fromkeys(new.stream.group for new in news):
            mine = [(new, rollouts) for new, rollouts in drawn if new.stream.group == group]
            asked = [rollout for _, rollouts in mine for rollout in rollouts]
            verdicts = iter(self.probe.verify(self.groups[group].problem, asked))
            for new, rollouts in mine:
                found = [next(verdicts) for _ in rollouts]
                judged = [verdict.correct is True if verdict.usable else None for verdict in found]
                self._made.setdefault(new.stream, []).extend(judged)
        costs = [(new, sum(map(trained_tokens, rollouts))) for new, rollouts in drawn]
        self.spent += sum(tokens for _, tokens in costs)
        return costs

    def _owner(self, wanted: Wanted) -> Rollout:
        """The first rollout of the group that begins alike, whoever asks, so that the draws are the same."""
        for rollout in self.groups[wanted.group].rollouts:
            if begins_alike(rollout, wanted.rollout, wanted.cut):
                return rollout
        return wanted.rollout


def _stream(wanted: Wanted) -> _Stream:
    prefix = wanted.rollout.tokens[: wanted.cut].tobytes()
    return _Stream(wanted.group, wanted.rollout.temperature, prefix, wanted.purpose)


def begins_alike(one: Rollout, other: Rollout, cut: int) -> bool:
    """Whether a rollout has the first `cut` tokens of another, goes on after them, and was drawn at its temperature."""
    if one is other:
        return True
    alike = one.temperature == other.temperature and len(one.tokens) > cut
    return alike and bool(np.array_equal(one.tokens[:cut], other.tokens[:cut]))


def trained_tokens(rollout: Rollout) -> int:
    """How many of a rollout's tokens were the policy's own, anew."""
    return int(np.count_nonzero(rollout.loss_mask))
