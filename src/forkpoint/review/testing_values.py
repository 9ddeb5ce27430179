"""Tests of two shares: whether the value before a step is above the value after it.

Counts are those of a test alone; nothing that chose the step may be among them.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from forkpoint.theory.intervals import CONFIDENCE, Interval, wilson_interval

Table = NDArray[np.float64]
Counts = tuple[int, int]
"""Successes and trials."""
_GRID = 401
"""Common shares over which the worst case is looked for; the p-value is smooth, so more would not change 3 digits."""


def higher_p_value(first: Counts, second: Counts) -> float:
    """The one-sided p-value of Boschloo's exact test: that the first share is not above the second.

    p = sup over q of P(Fisher's p <= the one seen | both shares are q)    (Boschloo 1970)

    It holds whatever the common share is, and is nowhere above Fisher's.  1 where an arm has no trials.

    >>> round(higher_p_value((4, 8), (0, 8)), 4), higher_p_value((0, 8), (0, 8))
    (0.0139, 1.0)
    """
    if not first[1] or not second[1]:
        return 1.0
    return float(p_value_table(first[1], second[1])[first[0], second[0]])


@cache
def p_value_table(first: int, second: int) -> Table:
    """[first + 1, second + 1]: `higher_p_value` of all counts of successes among so many trials."""
    fisher = _fisher_table(first, second).ravel()
    shares = np.sin(np.linspace(0.0, np.pi / 2, _GRID)) ** 2
    ones, twos = _binomial(first, shares), _binomial(second, shares)
    order = np.argsort(fisher, kind="stable")
    summed = np.zeros(len(order))
    for one, two in zip(ones, twos, strict=True):
        np.maximum(summed, np.cumsum(np.outer(one, two).ravel()[order]), out=summed)
    # Equal p-values of Fisher come in together, however they were rounded.
    last = np.searchsorted(fisher[order], fisher[order] * (1 + 1e-9), side="right") - 1
    found = np.empty_like(fisher)
    found[order] = np.minimum(np.minimum(summed[last], fisher[order]), 1.0)
    table = found.reshape(first + 1, second + 1)
    table.flags.writeable = False
    return table


def _fisher_table(first: int, second: int) -> Table:
    """Fisher's one-sided p-values: the hypergeometric tail given the sum of both counts."""
    ones, twos = _log_choose(first), _log_choose(second)
    alls = _log_choose(first + second)
    table = np.empty((first + 1, second + 1))
    for total in range(first + second + 1):
        low, high = max(0, total - second), min(total, first)
        mine = np.arange(low, high + 1)
        weights = np.exp(ones[mine] + twos[total - mine] - alls[total])
        tails = np.cumsum(weights[::-1])[::-1]
        # The whole distribution is exactly 1.
        tails[0] = 1.0
        table[mine, total - mine] = np.minimum(tails, 1.0)
    return table


def _log_choose(count: int) -> Table:
    logs = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    return logs[-1] - logs - logs[::-1]


def _binomial(count: int, shares: Table) -> Table:
    """[shares, count + 1]: the probability of each number of successes."""
    numbers = np.arange(count + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = shares[:, None] ** numbers * (1 - shares)[:, None] ** (count - numbers)
    return np.asarray(np.exp(_log_choose(count)) * powers)


def difference_interval(first: Counts, second: Counts, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the first share less the second (Newcombe 1998, method 10: from the two Wilson intervals).

    >>> low, high = difference_interval((56, 70), (48, 80))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    one, two = (s / n if n else 0.5 for s, n in (first, second))
    low, high = wilson_interval(*first, confidence)
    below, above = wilson_interval(*second, confidence)
    down, up = math.hypot(one - low, above - two), math.hypot(high - one, two - below)
    return max(-1.0, one - two - down), min(1.0, one - two + up)


def sequential_p_value(p_values: Sequence[float], looks: int) -> float:
    """The p-value after some of at most `looks` looks at growing counts: J times the smallest, at most 1.

    Valid whenever one stops (union bound); each look has an equal part of alpha, as in Pocock's design.

    >>> sequential_p_value([0.2, 0.01], 4)
    0.04
    """
    return min(1.0, looks * min(p_values, default=1.0))


def chance_of_success(first: Counts, second: Counts, *, more: int, threshold: float) -> float:
    """The predictive probability that `more` trials of each arm bring the p-value of all to `threshold` or below.

    Shares have Beta(1/2, 1/2) priors, independent of each other.
    """
    table = p_value_table(first[1] + more, second[1] + more)
    block = table[first[0] : first[0] + more + 1, second[0] : second[0] + more + 1]
    return float(_predictive(first, more) @ (block <= threshold) @ _predictive(second, more))


def _predictive(counts: Counts, more: int) -> Table:
    """[more + 1]: the beta-binomial probability of each number of further successes."""
    successes, trials = counts
    a, b = successes + 0.5, trials - successes + 0.5
    logs = np.array(
        [
            math.lgamma(a + k) + math.lgamma(b + more - k) - math.lgamma(a + b + more)
            + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
            for k in range(more + 1)
        ]
    )  # fmt: skip
    return np.asarray(np.exp(_log_choose(more) + logs))
