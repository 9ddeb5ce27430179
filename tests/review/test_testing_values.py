"""Tests of shares against enumeration and scipy, and the posterior of a value curve against brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import betabinom, boschloo_exact, fisher_exact

from forkpoint.review.curve import LEVELS, _moves, next_cuts, value_curve
from forkpoint.review.testing_values import (
    chance_of_success,
    difference_interval,
    higher_p_value,
    p_value_table,
    sequential_p_value,
)


@pytest.mark.parametrize(
    ("first", "second"), [((4, 8), (0, 8)), ((6, 16), (1, 16)), ((7, 10), (2, 12)), ((0, 5), (3, 4))]
)
def test_boschloo_agrees_with_scipy(first, second):
    table = [[first[0], second[0]], [first[1] - first[0], second[1] - second[0]]]
    theirs = boschloo_exact(table, alternative="greater", n=256).pvalue
    assert higher_p_value(first, second) == pytest.approx(theirs, abs=2e-4)
    assert higher_p_value(first, second) <= fisher_exact(table, alternative="greater")[1] + 1e-12


@pytest.mark.parametrize(("first", "second"), [(8, 8), (5, 9)])
def test_the_level_holds_at_every_common_share(first, second):
    table = p_value_table(first, second)
    for share, level in itertools.product((0.03, 0.2, 0.5, 0.77), (0.01, 0.05, 0.2)):
        chance = sum(
            math.comb(first, one) * math.comb(second, two) * share ** (one + two)
            * (1 - share) ** (first + second - one - two)
            for one in range(first + 1) for two in range(second + 1) if table[one, two] <= level
        )  # fmt: skip
        assert chance <= level + 1e-6
    # More successes before, or fewer after, never speak less for a drop.
    assert (np.diff(table, axis=0) <= 1e-12).all()
    assert (np.diff(table, axis=1) >= -1e-12).all()


def test_nothing_seen_says_nothing():
    assert higher_p_value((0, 0), (3, 8)) == 1.0
    assert sequential_p_value([], 5) == 1.0
    assert sequential_p_value([0.5, 0.002], 5) == 0.01
    assert sequential_p_value([0.9], 5) == 1.0
    assert difference_interval((0, 0), (0, 0)) == pytest.approx((-math.sqrt(0.5), math.sqrt(0.5)))


def test_newcombe_by_hand():
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    assert difference_interval((56, 70), (48, 80)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval((9, 10), (3, 10)) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    low, high = difference_interval((3, 10), (9, 10))
    assert (-high, -low) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_predictive_chance_by_enumeration():
    first, second, more, threshold = (4, 8), (1, 8), 4, 0.05
    chance = sum(
        betabinom.pmf(one, more, 4.5, 4.5) * betabinom.pmf(two, more, 1.5, 7.5)
        for one in range(more + 1) for two in range(more + 1)
        if higher_p_value((4 + one, 12), (1 + two, 12)) <= threshold
    )  # fmt: skip
    assert 0.05 < chance < 0.95
    assert chance_of_success(first, second, more=more, threshold=threshold) == pytest.approx(chance)


def brute_force(successes, trials, end, drop):
    """Mean, variance, large, loss and first by summing over every path of levels."""
    seen, moves = len(trials), _moves(min(0.5, 3.0 / len(trials)))
    last = len(LEVELS) - 1 if end else 0
    total, means, squares, large, loss, first = 0.0, *(np.zeros(seen) for _ in range(5))
    for path in itertools.product(range(len(LEVELS)), repeat=seen):
        weight = 1.0
        for cut, level in enumerate(path):
            value = LEVELS[level]
            weight *= value ** successes[cut] * (1 - value) ** (trials[cut] - successes[cut])
            weight *= moves[level, path[cut + 1] if cut + 1 < seen else last]
        values = LEVELS[[*path]]
        falls = values - np.append(values[1:], LEVELS[last])
        big = falls >= drop - 1e-9
        total += weight
        means += weight * values
        squares += weight * values**2
        large += weight * big
        loss += weight * big * falls
        if big.any():
            first[np.argmax(big)] += weight
    mean = means / total
    return mean, squares / total - mean**2, large / total, loss / total, first / total


@pytest.mark.parametrize(
    ("successes", "trials", "end"), [([2, 0, 0], [4, 0, 4], 0), ([1, 3, 0], [4, 4, 0], 0), ([3, 0, 2], [4, 3, 4], 1)]
)
def test_the_curve_is_the_sum_over_all_paths(successes, trials, end):
    curve = value_curve(successes, trials, end=end, drop=0.2)
    for mine, theirs in zip(
        (curve.mean, curve.variance, curve.large, curve.loss, curve.first),
        brute_force(successes, trials, end, 0.2),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, abs=1e-9)


def test_values_are_taken_for_a_martingale():
    moves = _moves(0.4)
    assert moves.sum(axis=1) == pytest.approx(1.0)
    # Up to the share of surprises and the coarseness of the grid.
    assert np.abs(moves @ LEVELS - LEVELS).max() < 0.012
    # After a value of 0 nothing is won any more.
    assert moves[0, 0] > 0.99


def test_a_long_curve_stays_finite():
    trials = [64] * 300
    curve = value_curve([32] * 150 + [0] * 150, trials, end=0, drop=0.2)
    assert np.isfinite(curve.first).all()
    assert int(np.argmax(curve.loss)) == 149
    assert curve.large[149] > 0.99
    assert curve.first.sum() == pytest.approx(1.0, abs=0.02)


def test_the_next_cut_lies_where_the_drop_may_be():
    # Known at 0 and 5 only: the drop is somewhere between, so look near the middle.
    curve = value_curve([16, 0, 0, 0, 0, 0, 0, 0], [20, 0, 0, 0, 0, 20, 0, 20], end=0, drop=0.2)
    assert next_cuts(curve, [curve.loss], most=2) in ([2], [3])
    assert next_cuts(curve, [curve.loss, curve.first], most=1) in ([2], [3])
    assert next_cuts(curve, [curve.loss], most=0) == []
    assert next_cuts(curve, [np.zeros(8)], most=2) == []
    two = next_cuts(curve, [curve.loss, curve.first], most=2)
    assert len(set(two)) == len(two) == 2
    # Two known cuts around one step, not surely apart: one of its ends.
    near = value_curve([8, 3, 0], [10, 10, 40], end=0, drop=0.2)
    assert next_cuts(near, [np.array([1.0, 0.0, 0.0])], most=1)[0] in (0, 1)
