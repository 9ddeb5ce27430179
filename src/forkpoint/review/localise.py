"""The steps on which rollouts turned: first errors and hinges of failures, decisive steps of successes.

All rollouts are reviewed side by side, in rounds of one `branch` of the probe and one `verify` for each problem.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forkpoint.probe import Probe, Stepped
from forkpoint.records import Group, Problem, Rollout
from forkpoint.review.draws import Draws, Wanted, begins_alike
from forkpoint.review.hinge_search import Ask, Found, Localisation, Search, Steps, hinge_search
from forkpoint.review.postmortem import NO_COST, Estimate, Review, Span
from forkpoint.review.testing_values import Counts
from forkpoint.review.waste import wasted_spans

__all__ = ["Localisation", "localise", "step_cuts"]

USUAL = Localisation()


def localise(
    groups: Sequence[Group], probe: Probe, *, settings: Localisation = USUAL, max_new_tokens: int,
    only: Collection[str] | None = None,
) -> list[Review]:  # fmt: skip
    """The review of each rollout with a usable verdict, in the order of the groups; of those in `only`, where given.

    V(c), the value at a cut c, is the probability that a continuation of the first c tokens ends correct; a step
    from c to c' changes it by V(c') - V(c), and at the end the verdict is the value.  A posterior of the whole value
    curve (`curve`) chooses what to draw next, a sequential exact test on fresh continuations makes each claim
    (`hinge_search`).  Continuations as in Math-Shepherd, arXiv 2312.08935; a search for the first error by bisection,
    arXiv 2406.06592, goes wrong where the value falls and recovers.

    Rollouts of a group that begin alike share the continuations of what they have in common, and each counts the others
    as evidence that costs nothing; so give whole groups, also where `only` asks for some of them.  A review depends on
    its own group, the settings and the probe alone, unless `budget` ends the call: then those that are still under way
    get what they have.  `max_new_tokens` is the budget of a rollout; with it `budget` is never passed.

    Cost: `sampled_tokens` counts trained tokens of continuations.  What is shared is charged to the first that asks.
    """
    work = [
        _Work(group=number, rollout=rollout, correct=verdict.correct is True)
        for number, group in enumerate(groups)
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if verdict.usable and (only is None or rollout.id in only)
    ]
    for mine in work:
        mine.begin(groups[mine.group], probe.task, settings, room=max_new_tokens)
    draws = Draws(groups=groups, probe=probe, budget=settings.budget, max_new_tokens=max_new_tokens)
    while waiting := [mine for mine in work if mine.asks]:
        charges = draws.fulfil([mine.wanted for mine in waiting])
        for mine, charge in zip(waiting, charges, strict=True):
            if charge is not None:
                mine.go_on(draws, charge)
        if all(charge is None for charge in charges):
            # What does not fit though nothing else is under way will never fit.
            for mine in waiting:
                mine.stop()
    return [mine.review for mine in work]


def step_cuts(problem: Problem, rollout: Rollout, task: object, *, stride: int) -> tuple[int, ...]:
    """Where the steps of a rollout begin, ascending, the first 0.

    After every `stride` trained tokens where the task names no step but the first.  A cut on a token that is not
    trained, such as an environment's, moves to the next trained one; a cut at the end is none.
    """
    trained = np.flatnonzero(rollout.loss_mask)
    if not len(trained):
        return (0,)
    named = np.asarray(task.cut_points(problem, rollout) if isinstance(task, Stepped) else (), np.int64)
    places = named if (named > 0).any() else trained[stride::stride]
    moved = np.searchsorted(trained, places)
    cuts = np.unique(trained[moved[moved < len(trained)]])
    return (0, *cuts[cuts > trained[0]].tolist())


@dataclass(slots=True, eq=False)
class _Work:
    """One rollout under review."""

    group: int
    rollout: Rollout
    correct: bool
    cuts: tuple[int, ...] = (0,)
    wasted: tuple[Span, ...] = ()
    asks: tuple[Ask, ...] = ()
    """What it waits for; empty: it is done."""
    search: Search | None = None
    found: Found | None = None
    cost: dict[str, float] = field(default_factory=lambda: dict(NO_COST))

    def begin(self, group: Group, task: object, settings: Localisation, *, room: int) -> None:
        """Asks for the first continuations.  One step is no choice, so nothing is drawn for it."""
        self.wasted = wasted_spans(group.problem, self.rollout, task)
        cuts = step_cuts(group.problem, self.rollout, task, stride=settings.stride)
        self.cuts = (0, *(cut for cut in cuts[1:] if cut < room))
        if len(self.cuts) < 2:
            return
        free = tuple(_siblings(group, self.rollout, cut) for cut in self.cuts)
        steps = Steps(cuts=self.cuts, length=len(self.rollout.tokens), correct=self.correct, free=free)
        self.search = hinge_search(steps, settings)
        self._send(None)

    @property
    def wanted(self) -> list[Wanted]:
        return [
            Wanted(
                group=self.group, rollout=self.rollout, cut=self.cuts[ask.place], purpose=ask.stream, start=ask.start,
                count=ask.count,
            )
            for ask in self.asks
        ]  # fmt: skip

    def go_on(self, draws: Draws, charge: Mapping[str, float]) -> None:
        for name, amount in charge.items():
            self.cost[name] += amount
        self._send([draws.counts(wanted) for wanted in self.wanted])

    def stop(self) -> None:
        """The budget is spent."""
        self._send(None)

    def _send(self, counts: Sequence[Counts] | None) -> None:
        if self.search is not None:
            try:
                self.asks = self.search.send(counts)
            except StopIteration as stop:
                self.asks, self.found = (), stop.value

    @property
    def review(self) -> Review:
        counts = self.found.counts if self.found else ()
        return Review(
            rollout_id=self.rollout.id, correct=self.correct, cuts=self.cuts,
            values=tuple(
                Estimate(cut=cut, successes=successes, trials=trials)
                for cut, (successes, trials) in zip(self.cuts, counts, strict=False)
                if trials
            ),
            hinge=self.found.hinge if self.found else None,
            first_error=self.found.first_error if self.found else None,
            wasted=self.wasted,
            cost=dict(self.cost),
        )  # fmt: skip


def _siblings(group: Group, rollout: Rollout, cut: int) -> Counts:
    """Successes and trials of the other rollouts that began alike and were drawn anew from there at least."""
    found = [
        verdict.correct is True
        for other, verdict in zip(group.rollouts, group.verdicts, strict=True)
        if other is not rollout and other.prefix_length <= cut and verdict.usable and begins_alike(other, rollout, cut)
    ]
    return sum(found), len(found)
