"""The search for the step that decided one rollout, as a coroutine: it says what to draw and is sent what came of it.

It knows cuts and counts only.  `localise` runs many of them side by side and asks the probe for all at once.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from forkpoint.errors import RecipeError
from forkpoint.review.curve import Curve, next_cuts, value_curve
from forkpoint.review.postmortem import Claim
from forkpoint.review.testing_values import (
    Counts,
    chance_of_success,
    difference_interval,
    higher_p_value,
    sequential_p_value,
)

ATTEMPTS = (0.8, 0.2)
"""Parts of alpha for the first candidate, and for a second one where the first is not confirmed."""
SURE = 0.8
"""A step that lowers the value with this posterior probability goes to the test."""
WORTH_A_TEST = 0.3
"""The same where nothing more may be spent on the search."""
HOPELESS = 0.05
"""A search ends where all steps together, and a test where its success, is less probable than this."""
UNLIKELY = 0.15
"""An earlier step is not looked for where all steps before the hinge together are less probable than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Localisation:
    """How steps are found.

    Raises:
        RecipeError: a number out of bounds.
    """

    coarse: int = 5
    """Cuts of the first look, spread evenly; at least 2."""
    per_round: int = 4
    """Continuations of a cut in one round of the search; at least 1."""
    batch: int = 8
    """Continuations on each side of the step between two looks of the test; at least 2."""
    looks: int = 5
    """Most looks of a test; at least 1."""
    most: int = 160
    """Continuations of one rollout, shared ones included; 0: nothing is drawn."""
    min_drop: float = 0.3
    """The change of value that is looked for, in (0, 1].  A claim needs an estimate of at least half of it."""
    alpha: float = 0.05
    """Probability of any claim about a rollout whose claimed step does not change the value that way; in (0, 1)."""
    budget: int | None = None
    """Sampled tokens of the whole call, never passed; None: as many as it takes."""
    stride: int = 16
    """Trained tokens of a step, where the task knows no steps; at least 1."""
    direction: Literal["outcome", "down", "up"] = "outcome"
    """`outcome`: drops in failures, rises in successes; `down`, `up`: in both (`down`: what lucky ones got wrong)."""

    def __post_init__(self) -> None:
        least = {"coarse": 2, "per_round": 1, "batch": 2, "looks": 1, "most": 0, "stride": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise RecipeError(f"localise: {name} = {getattr(self, name)} must be at least {bound}.")
        if self.budget is not None and self.budget < 0:
            raise RecipeError(f"localise: budget = {self.budget} must be at least 0.")
        if not 0 < self.min_drop <= 1:
            raise RecipeError(f"localise: min_drop = {self.min_drop} must lie in (0, 1].")
        if not 0 < self.alpha < 1:
            raise RecipeError(f"localise: alpha = {self.alpha} must lie in (0, 1).")
        if self.direction not in ("outcome", "down", "up"):
            raise RecipeError(f"localise: direction = '{self.direction}' must be one of outcome, down, up.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Continuations number `start` to `start + count` of a stream, from the cut at `place`."""

    place: int
    stream: str
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A rollout as the search sees it."""

    cuts: tuple[int, ...]
    """Where its S >= 2 steps begin."""
    length: int
    """Its tokens; the last step ends there."""
    correct: bool
    free: tuple[Counts, ...]
    """At each cut, successes and trials that cost nothing: other rollouts of the group that began alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search found."""

    hinge: Claim | None
    first_error: Claim | None
    counts: tuple[Counts, ...]
    """At each cut, successes and trials of everything that was looked at."""


Search: TypeAlias = Generator[tuple[Ask, ...], Sequence[Counts] | None, Found]
"""Sent the successes and trials of each ask, in order; None: the budget does not allow it."""
Part: TypeAlias = Generator[tuple[Ask, ...], Sequence[Counts] | None, "Claim | None"]


class _Denied(Exception):
    """The budget of the call is spent."""


@dataclass(slots=True)
class _Notes:
    """What is known so far.  `losses` count what gets rarer over the step sought: successes, or failures in a rise."""

    steps: Steps
    settings: Localisation
    falling: bool
    losses: list[int] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    drawn: int = 0
    searched: dict[int, int] = field(default_factory=dict)
    """At each cut, continuations of the search stream."""

    def __post_init__(self) -> None:
        for place, counts in enumerate(self.steps.free):
            self.losses.append(0)
            self.trials.append(0)
            self.note(place, counts)

    def note(self, place: int, counts: Counts) -> int:
        """Adds what was seen at a cut; its losses."""
        losses = counts[0] if self.falling else counts[1] - counts[0]
        self.losses[place] += losses
        self.trials[place] += counts[1]
        return losses

    @property
    def left(self) -> int:
        return self.settings.most - self.drawn

    @property
    def curve(self) -> Curve:
        end = int(self.steps.correct == self.falling)
        # Between the estimate that a claim needs and the change that is looked for.
        return value_curve(self.losses, self.trials, end=end, drop=2 / 3 * self.settings.min_drop)

    @property
    def counts(self) -> tuple[Counts, ...]:
        pairs = zip(self.losses, self.trials, strict=True)
        return tuple((losses if self.falling else trials - losses, trials) for losses, trials in pairs)


def hinge_search(steps: Steps, settings: Localisation) -> Search:
    """The search and its tests; alpha holds for all claims of a rollout together.

    The hinge is tested first, at 0.8 alpha; only after a confirmed one is an earlier candidate for the first error
    tested, at the same level (fixed sequence).  Where the first candidate fails, a second has 0.2 alpha.
    """
    falling = not steps.correct if settings.direction == "outcome" else settings.direction == "down"
    notes = _Notes(steps=steps, settings=settings, falling=falling)
    hinge: Claim | None = None
    first: Claim | None = None
    try:
        yield from _look(notes, _coarse_cuts(notes))
        for number, share in enumerate(ATTEMPTS):
            step = yield from _candidate(notes, reserve=notes.settings.most // 2 if number == 0 else 0)
            if step is None:
                break
            level = share * settings.alpha
            hinge = yield from _tested(notes, step, level=level, stream=f"hinge-{number}")
            if hinge is None:
                continue
            if falling:
                first = hinge
                place = yield from _earlier(notes, step)
                if place is not None:
                    first = (yield from _tested(notes, place, level=level, stream=f"first-{number}")) or hinge
                    hinge = min(hinge, first, key=lambda claim: claim.change)
            break
    except _Denied:
        pass
    return Found(hinge=hinge, first_error=first, counts=notes.counts)


def _coarse_cuts(notes: _Notes) -> list[int]:
    """Evenly spread, those left out about which siblings say as much already."""
    settings, count = notes.settings, len(notes.steps.cuts)
    spread = np.unique(np.linspace(0, count - 1, min(settings.coarse, count)).round().astype(int))
    return [int(place) for place in spread if notes.trials[place] < settings.per_round]


def _look(notes: _Notes, places: Sequence[int]) -> Generator[tuple[Ask, ...], Sequence[Counts] | None, None]:
    """One round of the search at some cuts, as many of them as the rollout's bound allows."""
    each = notes.settings.per_round
    places = places[: max(0, notes.left // each)]
    if not places:
        return
    asks = tuple(Ask(place=place, stream="search", start=notes.searched.get(place, 0), count=each) for place in places)
    found = yield asks
    if found is None:
        raise _Denied
    for ask, counts in zip(asks, found, strict=True):
        notes.note(ask.place, counts)
        notes.searched[ask.place] = ask.start + each
        notes.drawn += each


def _candidate(notes: _Notes, *, reserve: int) -> Generator[tuple[Ask, ...], Sequence[Counts] | None, int | None]:
    """The step to test; None where there is none worth it.  Leaves `reserve` continuations and one look of a test."""
    settings = notes.settings
    reserve = max(reserve, 2 * settings.batch)
    while True:
        curve = notes.curve
        if curve.first.sum() < HOPELESS:
            return None
        step = int(np.argmax(curve.loss))
        earlier = int(np.argmax(curve.first)) if notes.falling else step
        if curve.large[step] >= SURE and (earlier == step or curve.first[earlier] >= SURE):
            return step
        targets = [curve.loss, curve.first] if notes.falling else [curve.loss]
        affordable = (notes.left - reserve) // settings.per_round
        places = next_cuts(curve, targets, most=affordable)
        if not places:
            return step if curve.large[step] >= WORTH_A_TEST and notes.left >= 2 * settings.batch else None
        yield from _look(notes, places)


def _earlier(notes: _Notes, hinge: int) -> Generator[tuple[Ask, ...], Sequence[Counts] | None, int | None]:
    """The step before a confirmed hinge that may be the first error, and is worth a test; None where none is."""
    settings = notes.settings
    while True:
        curve = notes.curve
        chances = np.where(np.arange(len(curve.first)) < hinge, curve.first, 0.0)
        place = int(np.argmax(chances))
        if chances.sum() < UNLIKELY:
            return None
        if curve.large[place] >= SURE:
            return place
        affordable = (notes.left - 2 * settings.batch) // settings.per_round
        places = next_cuts(curve, [chances], most=min(1, affordable))
        if not places:
            return place if curve.large[place] >= WORTH_A_TEST and notes.left >= 2 * settings.batch else None
        yield from _look(notes, places)


def _tested(notes: _Notes, step: int, *, level: float, stream: str) -> Part:
    """The claim about a step, on continuations drawn for it alone; None where it is not confirmed.

    At each look Boschloo's test of the counts so far, with its part of `level`; the claim needs an estimate of at least
    half of `min_drop` too, for a change that explains little is not worth a claim.  The value after the last step is
    known: it counts as if drawn as often, which is cautious.
    Ends early where the change is surely too small, or where the looks that are left will hardly confirm it.
    """
    settings, last = notes.settings, step + 1 == len(notes.steps.cuts)
    places, batch = [step] if last else [step, step + 1], settings.batch
    looks = min(settings.looks, notes.left // (len(places) * batch))
    p_values: list[float] = []
    before, after = (0, 0), (0, 0)
    for look in range(looks):
        asks = tuple(Ask(place=place, stream=stream, start=look * batch, count=batch) for place in places)
        found = yield asks
        if found is None:
            raise _Denied
        notes.drawn += batch * len(places)
        seen = [(notes.note(place, counts), counts[1]) for place, counts in zip(places, found, strict=True)]
        before = (before[0] + seen[0][0], before[1] + seen[0][1])
        if last:
            after = (before[1] * int(notes.steps.correct == notes.falling), before[1])
        else:
            after = (after[0] + seen[1][0], after[1] + seen[1][1])
        p_values.append(higher_p_value(before, after))
        p_value, interval = sequential_p_value(p_values, looks), difference_interval(before, after)
        drop = _share(before) - _share(after)
        if p_value <= level and drop >= settings.min_drop / 2:
            return _claim(notes, step, drop, interval, p_value)
        more = (looks - 1 - look) * batch
        if interval[1] < settings.min_drop / 2 or not more:
            return None
        if not last and p_value > level and min(before[1], after[1]) > 0:
            hope = chance_of_success(before, after, more=more, threshold=level / looks)
            if hope < HOPELESS:
                return None
    return None


def _share(counts: Counts) -> float:
    return counts[0] / counts[1] if counts[1] else 0.5


def _claim(notes: _Notes, step: int, drop: float, interval: tuple[float, float], p_value: float) -> Claim:
    cuts, sign = (*notes.steps.cuts, notes.steps.length), -1 if notes.falling else 1
    low, high = sorted(sign * bound for bound in interval)
    return Claim(
        start=cuts[step], end=cuts[step + 1], change=sign * drop, interval=(low, high), p_value=p_value
    )  # fmt: skip
