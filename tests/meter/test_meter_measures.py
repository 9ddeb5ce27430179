"""Agreement of credit and truth: hand-worked numbers, invariances, and a planted correlation that comes back."""

import numpy as np
import pytest

from forkpoint.meter.measures import (
    Sample,
    agreement,
    auroc,
    bootstrap_weights,
    measured,
    midranks,
    pearson,
    reliability,
    spearman,
    straw,
    true_pearson,
)
from forkpoint.seeds import Key

KEY = Key.root(5)
ONE = np.ones((1, 5))
X = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
Y = np.array([2.0, 1.0, 4.0, 3.0, 5.0])


def sample(credit, truth, *, variance=0.0, weights=None, rollout=None) -> Sample:
    count = len(truth)
    return Sample(
        credit=np.asarray(credit, float), truth=np.asarray(truth, float), variance=np.full(count, variance),
        weights=np.ones(count) if weights is None else np.asarray(weights, float),
        rollout=np.arange(count) if rollout is None else rollout,
    )  # fmt: skip


def test_pearson_by_hand():
    # Deviations -2 -1 0 1 2 and -1 -2 1 0 2: products 2 + 2 + 0 + 0 + 4 = 8, both squares 10.
    assert pearson(X, Y, ONE)[0] == pytest.approx(0.8)


def test_spearman_takes_ranks_and_halves_ties():
    assert midranks(np.array([3.0, 1.0, 3.0, 9.0]), np.ones(4)).tolist() == [2.0, 0.5, 2.0, 3.5]
    assert spearman(np.exp(X), Y**3, ONE)[0] == pytest.approx(0.8)
    # Ranks 1 2.5 2.5 4 5 against 1..5: deviations -2 -.5 -.5 1 2, products 9.5, squares 9.5 and 10.
    assert spearman(np.array([1.0, 2, 2, 4, 5]), X, ONE)[0] == pytest.approx(9.5 / np.sqrt(9.5 * 10))


def test_auroc_by_hand_with_ties_half():
    score, positive = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    # Pairs: 3>2, 3>1, 2=2 (half), 2>1.
    assert auroc(score, positive, np.ones((1, 4)))[0] == pytest.approx(3.5 / 4)
    assert auroc(np.zeros(4), positive, np.ones((1, 4)))[0] == 0.5
    assert np.isnan(auroc(score, np.ones(4, np.bool_), np.ones((1, 4)))[0])


def test_a_weight_of_two_is_the_token_twice():
    weights = np.array([[1.0, 2.0, 1.0, 3.0, 1.0]])
    twice = np.repeat(np.arange(5), weights[0].astype(int))
    positive = Y > 2.5
    assert pearson(X, Y, weights)[0] == pytest.approx(pearson(X[twice], Y[twice], np.ones((1, 8)))[0])
    assert auroc(X, positive, weights)[0] == pytest.approx(auroc(X[twice], positive[twice], np.ones((1, 8)))[0])
    assert reliability(Y, X / 10, weights)[0] == pytest.approx(reliability(Y[twice], X[twice] / 10, np.ones((1, 8)))[0])


def test_scale_shift_and_order_change_nothing():
    order = np.array([3, 0, 4, 1, 2])
    for found in (
        agreement(sample(7 * X + 3, Y), KEY),
        agreement(sample(X, 0.01 * Y), KEY),
        agreement(sample(X[order], Y[order]), KEY),
    ):
        for name, value in agreement(sample(X, Y), KEY).items():
            assert found[name].value == pytest.approx(value.value), name


def test_the_truth_scores_one_and_noise_a_half():
    draw = KEY.child("noise").generator()
    truth, noise = draw.standard_normal(4000), draw.standard_normal(4000)
    perfect = agreement(sample(truth, truth), KEY)
    assert [perfect[name].value for name in ("pearson", "spearman", "straw")] == pytest.approx([1.0, 1.0, 1.0])
    empty = agreement(sample(noise, truth), KEY)
    assert empty["pearson"].interval[0] < 0 < empty["pearson"].interval[1]
    assert empty["straw"].value < 0.002
    matter = np.abs(truth) > 1
    assert auroc(np.abs(truth), matter, np.ones((1, 4000)))[0] == 1.0
    assert auroc(np.abs(noise), matter, np.ones((1, 4000)))[0] == pytest.approx(0.5, abs=0.03)


def test_a_wrong_sign_or_no_variation_lets_nothing_through():
    assert straw(sample(-X, Y), ONE)[0] == 0.0
    assert straw(sample(np.full(5, 0.1), Y), ONE)[0] == 0.0
    assert np.isnan(pearson(np.full(5, 0.1), Y, ONE)[0])


def test_straw_by_hand():
    # R^2 = .64 of five tokens: 1 - .36 * 4 / 3 = .52.
    assert straw(sample(X, Y), ONE)[0] == pytest.approx(0.52)


@pytest.mark.parametrize("planted", [0.3, 0.8])
def test_the_correction_recovers_a_planted_correlation(planted):
    draw, count, error = KEY.child("planted").generator(), 20_000, 1.5
    truth = draw.standard_normal(count)
    credit = planted * truth + np.sqrt(1 - planted**2) * draw.standard_normal(count)
    drawn = sample(credit, truth + error * draw.standard_normal(count), variance=error**2)
    weights = np.ones((1, count))
    assert reliability(drawn.truth, drawn.variance, weights)[0] == pytest.approx(1 / (1 + error**2), abs=0.02)
    assert pearson(credit, drawn.truth, weights)[0] < 0.75 * planted
    assert true_pearson(drawn, weights)[0] == pytest.approx(planted, abs=0.03)
    assert straw(drawn, weights)[0] == pytest.approx(planted**2, abs=0.04)


def test_a_truth_that_is_all_error_tells_nothing():
    draw = KEY.child("error").generator()
    found = agreement(sample(draw.standard_normal(200), draw.standard_normal(200), variance=4.0), KEY)
    assert np.isnan(found["pearson"].value)
    assert np.isnan(found["straw"].value)


def test_the_bootstrap_draws_whole_rollouts():
    rollout = np.repeat([0, 1, 2], 4)
    weights = bootstrap_weights(sample(np.arange(12), np.arange(12), rollout=rollout), KEY)
    assert (weights[0] == 1).all()
    rest = weights[1:].reshape(-1, 3, 4)
    assert (rest == rest[:, :, :1]).all()
    assert (weights.sum(axis=1) == 12).all()
    assert rest.std() > 0.5


def test_intervals_are_percentiles_around_the_value():
    found = measured(np.concatenate([[0.5], np.linspace(0, 1, 101), [np.nan]]))
    assert found.value == 0.5
    assert found.interval == pytest.approx((0.025, 0.975))


def test_intervals_cover_the_planted_correlation():
    covered = 0
    for trial in range(60):
        draw = KEY.child("coverage", trial).generator()
        truth = draw.standard_normal(150)
        credit = 0.5 * truth + np.sqrt(0.75) * draw.standard_normal(150)
        low, high = agreement(sample(credit, truth), KEY.child(trial))["pearson"].interval
        covered += low <= 0.5 <= high
    assert covered >= 51
