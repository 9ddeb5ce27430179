"""Intervals of shares, means and ratios over problems.

Every random draw comes from a `Key`, so the same records always give the same numbers.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.seeds import Key

Interval: TypeAlias = tuple[float, float]
Numbers: TypeAlias = Sequence[float] | NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS = 2000
"""Resamples of a bootstrap."""
_CHUNK = 4_000_000
"""Most indices drawn at once; bounds the memory, not the numbers."""


def wilson_interval(successes: float, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a share (Wilson 1927): never empty, never outside [0, 1]; (0, 1) for no trials.

    >>> low, high = wilson_interval(5, 10)
    >>> round(low, 4), round(high, 4)
    (0.2366, 0.7634)
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, shrink = successes / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / shrink
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / shrink
    # Rounding must not push the end off an exact 0 or 1.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    return low, 1.0 if successes == total else min(1.0, center + half)


def ratio_interval(
    numerators: Numbers, denominators: Numbers, key: Key, confidence: float = CONFIDENCE, draws: int = DRAWS
) -> Interval:
    """Percentile bootstrap over problems of sum(numerators) / sum(denominators).

    Resamples whose denominator is 0 are left out.  One problem gives an interval of width 0.

    Raises:
        ValueError: no problem, lengths that differ, or a sum of denominators that is not positive.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(top) == 0 or top.shape != bottom.shape or bottom.sum() <= 0:
        raise ValueError("a ratio needs as many numerators as denominators, and a positive sum of these")
    generator = key.generator()
    rows = max(1, _CHUNK // len(top))
    found: list[NDArray[np.float64]] = []
    for start in range(0, draws, rows):
        chosen = generator.integers(len(top), size=(min(rows, draws - start), len(top)))
        below = bottom[chosen].sum(axis=1)
        found.append(top[chosen].sum(axis=1)[below > 0] / below[below > 0])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: Numbers, key: Key, confidence: float = CONFIDENCE, draws: int = DRAWS) -> Interval:
    """Percentile bootstrap of a mean over problems; see `ratio_interval`."""
    numbers = np.asarray(values, dtype=np.float64)
    return ratio_interval(numbers, np.ones_like(numbers), key, confidence, draws)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: problems that just one of two solved, against a fair coin.

    >>> round(mcnemar_exact(0, 5), 6), mcnemar_exact(3, 3)
    (0.0625, 1.0)
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 2 * fewer:
        return 1.0
    logs = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1))
    tail = math.fsum(math.exp(log - total * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)
