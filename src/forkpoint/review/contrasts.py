"""Tests over pairs and over many proposals; `testing_values` holds those of two shares."""

import math
from collections.abc import Sequence

from forkpoint.review.testing_values import Counts

__all__ = ["Counts", "discoveries", "sign_greater"]


def sign_greater(wins: int, losses: int) -> float:
    """The one-sided p-value of McNemar's exact test: wins among the pairs that differ, against a fair coin.

    >>> sign_greater(5, 0), sign_greater(0, 0)
    (0.03125, 1.0)
    """
    total = wins + losses
    return sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total


def discoveries(p_values: Sequence[float], level: float) -> list[bool]:
    """Which nulls are rejected so that the expected share of false ones among them is at most `level`.

    The largest k with p_(k) <= k level / m, and all p-values up to it (Benjamini and Hochberg 1995).  Tests against a
    shared control are positively dependent, which the procedure allows (Benjamini and Yekutieli 2001, section 3).

    >>> discoveries([0.04, 0.01, 0.9, 0.02], 0.05)
    [False, True, False, True]
    """
    count = len(p_values)
    passing = [p for rank, p in enumerate(sorted(p_values), start=1) if p <= rank * level / count]
    return [bool(passing) and p <= passing[-1] for p in p_values]
