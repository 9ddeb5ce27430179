"""The beginning and the end of a stage, and how far apart they are.

A window is a quarter of the updates whose rollouts were kept.  Rollouts of one problem are not independent, so errors
are those of a ratio over problems (linearized; Cochran 1977, section 6.4), and Wilson's where every problem agrees.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import SHIFTED, Bools, Records
from forkpoint.theory.intervals import Interval, wilson_interval

Z = 1.959964
"""Normal quantile of a 95 % interval."""
SAMPLE = 4000
"""Rollouts of a window whose texts are read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Which training rollouts are of the first and of the last quarter of the updates."""

    first: Bools
    last: Bools
    updates: tuple[tuple[int, int], tuple[int, int]]
    """First and last update of both."""

    @property
    def text(self) -> str:
        """Both, in words."""
        (a, b), (c, d) = self.updates
        return f"updates {a} to {b} against {c} to {d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over rollouts with its standard error over problems."""

    value: float
    error: float
    problems: int
    rollouts: int
    is_share: bool

    @property
    def interval(self) -> Interval:
        """95 %; of shares never empty and never outside [0, 1]."""
        if self.is_share and self.error == 0:
            return wilson_interval(self.value * self.problems, self.problems)
        low, high = self.value - Z * self.error, self.value + Z * self.error
        return (max(0.0, low), min(1.0, high)) if self.is_share else (low, high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A mean at the end less that at the beginning."""

    before: Estimate
    now: Estimate

    @property
    def value(self) -> float:
        """The difference."""
        return self.now.value - self.before.value

    @property
    def interval(self) -> Interval:
        """Of the difference (Newcombe 1998, method 10: from the intervals of both)."""
        low = self.value - math.hypot(
            self.now.value - self.now.interval[0], self.before.interval[1] - self.before.value
        )
        high = self.value + math.hypot(
            self.now.interval[1] - self.now.value, self.before.value - self.before.interval[0]
        )
        return low, high

    @property
    def rises(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.interval[0] > 0

    @property
    def falls(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.interval[1] < 0


def windows(records: Records) -> Windows | None:
    """The first and the last quarter of the updates; None where there is only one update."""
    updates = np.unique(records.update[records.training])
    if len(updates) < 2:
        return None
    size = max(1, len(updates) // 4)
    early, late = int(updates[size - 1]), int(updates[-size])
    return Windows(
        first=records.training & (records.update <= early),
        last=records.training & (records.update >= late),
        updates=((int(updates[0]), early), (late, int(updates[-1]))),
    )


def latest(records: Records) -> Bools:
    """The training rollouts of the last window, all of one update, or the last evaluation where none was trained on."""
    found = windows(records)
    if found is not None:
        return found.last
    if records.training.any() or not len(records):
        return records.training
    own = ~shifted(records)
    return own & (records.update == records.update[own].max()) if own.any() else own


def shifted(records: Records) -> Bools:
    """The rollouts on other tasks than the stage's own."""
    places = [place for place, name in enumerate(records.purposes) if name.startswith(SHIFTED)]
    return np.isin(records.purpose, places)


def estimate(values: NDArray[np.generic], problems: NDArray[np.uint64]) -> Estimate | None:
    """The mean of `values` [N] with its error over problems; entries that are nan do not count.

        s^2 = C / (C - 1) * sum_c (v_c - m n_c)^2 / n^2

    over C problems with n_c values of sum v_c.  None without a value.
    """
    numbers = np.asarray(values, dtype=np.float64)
    there = np.isfinite(numbers)
    numbers = numbers[there]
    if not len(numbers):
        return None
    _, place = np.unique(problems[there], return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    sums = np.bincount(place, weights=numbers)
    mean, size = float(numbers.mean()), len(counts)
    spread = float(((sums - mean * counts) ** 2).sum())
    error = math.sqrt(spread * size / (size - 1)) / len(numbers) if size > 1 else 0.0
    is_share = bool(((numbers >= 0) & (numbers <= 1)).all())
    return Estimate(
        value=mean, error=error if error > 1e-12 else 0.0, problems=size, rollouts=len(numbers), is_share=is_share
    )


def change(values: NDArray[np.generic], records: Records, found: Windows) -> Change | None:
    """How a number of each rollout [N] moved between the windows; None where one of them has none."""
    before = estimate(values[found.first], records.problem[found.first])
    now = estimate(values[found.last], records.problem[found.last])
    return None if before is None or now is None else Change(before=before, now=now)


def sample(records: Records, mask: Bools, limit: int = SAMPLE) -> NDArray[np.int64]:
    """At most `limit` rows of a mask whose contents were kept, evenly spaced."""
    places = np.flatnonzero(mask & records.kept)
    if len(places) <= limit:
        return places
    return places[np.linspace(0, len(places) - 1, limit).astype(np.int64)]
