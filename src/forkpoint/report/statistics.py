"""Intervals and paired comparisons of evaluations.

Every random draw comes from a `Key`, so the same records always give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.seeds import Key
from forkpoint.theory.intervals import (
    CONFIDENCE,
    DRAWS,
    Interval,
    Numbers,
    mcnemar_exact,
    mean_interval,
    ratio_interval,
    wilson_interval,
)

__all__ = [
    "CONFIDENCE",
    "DRAWS",
    "Difference",
    "Interval",
    "Numbers",
    "mcnemar_exact",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "restricted",
    "share_interval",
    "wilson_interval",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The mean of first minus second over the same problems."""

    value: float
    interval: Interval
    p_value: float | None
    """Exact two-sided McNemar test; None where the values are not all 0 or 1."""
    problems: int


def share_interval(shares: Numbers, key: Key, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the mean of per-problem shares in [0, 1].

    Wilson where every share is 0 or 1 (one sample of each problem, or none that tells more); else a bootstrap over
    problems, since the samples of one problem are not independent.
    """
    numbers = np.asarray(shares, dtype=np.float64)
    if np.isin(numbers, (0.0, 1.0)).all():
        return wilson_interval(float(numbers.sum()), len(numbers), confidence)
    return mean_interval(numbers, key, confidence)


def restricted(lengths: Numbers, solved: Sequence[bool] | NDArray[np.bool_], budget: int) -> NDArray[np.float64]:
    """Each length cut at the budget, and the budget itself where the problem was not solved.

    Their mean is the restricted mean of survival analysis: the unsolved are censored, not left out.

    >>> restricted([3, 5, 24], [True, False, False], 24).tolist()
    [3.0, 24.0, 24.0]
    """
    return np.where(np.asarray(solved, dtype=np.bool_), np.minimum(lengths, budget), budget).astype(np.float64)


def paired_difference(first: Numbers, second: Numbers, key: Key, confidence: float = CONFIDENCE) -> Difference:
    """First minus second on the same problems in the same order, with a paired bootstrap interval.

    Raises:
        ValueError: no problem, or not the same number of them.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"{len(one)} problems cannot be paired with {len(two)}")
    gap = one - two
    binary = bool(np.isin(np.concatenate([one, two]), (0.0, 1.0)).all())
    return Difference(
        value=float(gap.mean()),
        interval=mean_interval(gap, key, confidence),
        p_value=mcnemar_exact(int((gap > 0).sum()), int((gap < 0).sum())) if binary else None,
        problems=len(gap),
    )
