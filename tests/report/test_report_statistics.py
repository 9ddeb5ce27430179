import math
from itertools import product

import numpy as np
import pytest

from forkpoint.report.statistics import (
    mcnemar_exact,
    mean_interval,
    paired_difference,
    ratio_interval,
    restricted,
    share_interval,
    wilson_interval,
)
from forkpoint.seeds import Key

KEY = Key.root(7)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Worked by hand with z = 1.959964: 0 of 10 gives z² / (10 + z²).
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (1, 1, 0.206549, 1.0), (0, 0, 0, 1)],
)
def test_wilson(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-6)


def test_wilson_solves_the_score_equation():
    """Its ends are the shares p at which the observed count is just z standard errors away."""
    for successes, total in [(3, 17), (512, 1024), (1020, 1024)]:
        for end in wilson_interval(successes, total):
            assert abs(successes / total - end) / math.sqrt(end * (1 - end) / total) == pytest.approx(
                1.959964, abs=1e-5
            )


def test_a_wider_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(30, 100, 0.8), wilson_interval(30, 100, 0.99)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson_interval(11, 10)


def test_the_bootstrap_is_near_the_normal_interval_and_repeats():
    values = Key.root(1).uniforms(400)
    low, high = mean_interval(values, KEY)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)
    assert mean_interval(values, KEY) == (low, high)
    assert mean_interval(values, KEY.child("other")) != (low, high)


def test_the_bootstrap_covers_the_exact_distribution():
    """Two problems, 0 and 1: a quarter of the resamples each has mean 0 and 1, so both ends are reached."""
    assert mean_interval([0.0, 1.0], KEY) == (0.0, 1.0)


def test_a_ratio_weighs_problems_by_their_denominators():
    low, high = ratio_interval([1.0] * 50 + [0.0] * 50, [2.0] * 100, KEY)
    assert low < 0.25 < high
    with pytest.raises(ValueError, match="positive sum"):
        ratio_interval([0.0], [0.0], KEY)
    # A resample without any denominator is left out, not divided by.
    assert ratio_interval([1.0, 0.0], [1.0, 0.0], KEY) == (1.0, 1.0)


def test_shares_of_one_sample_have_the_wilson_interval():
    assert share_interval([1.0, 0.0, 1.0, 1.0], KEY) == wilson_interval(3, 4)
    assert share_interval([0.5, 0.25, 1.0, 0.75], KEY) == mean_interval([0.5, 0.25, 1.0, 0.75], KEY)


def test_unsolved_problems_count_as_the_budget():
    assert restricted([3, 9, 30, 2], [True, False, True, False], 24).tolist() == [3, 24, 24, 24]


@pytest.mark.parametrize(("first", "second"), [(0, 5), (2, 7), (4, 3), (1, 0), (6, 6)])
def test_mcnemar_against_all_coin_flips(first, second):
    total = first + second
    far = abs(first - second)
    flips = [abs(2 * sum(flip) - total) for flip in product((0, 1), repeat=total)]
    assert mcnemar_exact(first, second) == pytest.approx(sum(gap >= far for gap in flips) / len(flips))


def test_mcnemar_with_many_problems():
    assert mcnemar_exact(0, 5000) < 1e-300
    assert mcnemar_exact(25_000, 25_000) == 1.0


def test_a_paired_difference():
    first = np.array([1.0, 1.0, 1.0, 0.0] * 20)
    second = np.array([1.0, 0.0, 0.0, 0.0] * 20)
    gap = paired_difference(first, second, KEY)
    assert (gap.value, gap.problems) == (0.5, 80)
    assert gap.interval[0] == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(80), abs=0.02)
    assert gap.p_value == pytest.approx(2 * 0.5**40)
    opposite = paired_difference(second, first, KEY)
    assert (opposite.value, opposite.p_value) == (-0.5, gap.p_value)
    assert paired_difference(first / 2, second, KEY).p_value is None
    with pytest.raises(ValueError, match="80 problems cannot be paired with 4"):
        paired_difference(first, second[:4], KEY)


def test_pairing_uses_the_pairs():
    """Equal results on equal problems leave nothing uncertain, however much the problems differ."""
    values = np.array([0.0, 1.0] * 30)
    assert paired_difference(values, values, KEY).interval == (0.0, 0.0)
