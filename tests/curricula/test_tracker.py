"""Counts to a Beta posterior, against integrals and hand-worked numbers."""

import numpy as np
import pytest
from scipy import integrate, stats

from forkpoint.curricula.tracker import Posterior, Tally, discounted, posterior, tallied


@pytest.mark.parametrize(("correct", "judged"), [(0, 0), (0, 8), (3, 8), (8, 8), (1.5, 2.25)])
def test_moments_are_the_integrals_of_the_beta_density(correct, judged):
    found = posterior(Tally(correct=correct, judged=judged), update=0)
    density = stats.beta(1 + correct, 1 + judged - correct).pdf
    mean = integrate.quad(lambda p: p * density(p), 0, 1)[0]
    spread = integrate.quad(lambda p: p * (1 - p) * density(p), 0, 1)[0]
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.expected_variance == pytest.approx(spread, abs=1e-9)


def test_hand_worked_posterior():
    # 3 of 8: Beta(4, 6), mean 4/10, E[p(1-p)] = 24 / (10 * 11).
    found = posterior(Tally(correct=3, judged=8), update=0)
    assert found == Posterior(alpha=4, beta=6)
    assert found.expected_variance == pytest.approx(24 / 110)
    assert posterior(None, update=7) == Posterior(alpha=1, beta=1)


def test_counts_halve_every_half_life():
    tally = Tally(correct=4, judged=8, update=10)
    assert discounted(tally, update=20, half_life=10) == Tally(correct=2, judged=4, update=20)
    assert discounted(tally, update=30, half_life=10) == Tally(correct=1, judged=2, update=30)
    assert discounted(tally, update=1000, half_life=0) == Tally(correct=4, judged=8, update=1000)
    assert posterior(tally, update=20, half_life=10) == Posterior(alpha=3, beta=3)
    with pytest.raises(ValueError, match="before"):
        discounted(tally, update=9, half_life=10)


def test_what_was_seen_is_added_to_what_is_left():
    before = {"a": Tally(correct=4, judged=8, update=10)}
    after = tallied(before, [("a", 1, 4), ("b", 0, 2), ("a", 1, 2), ("c", 0, 0)], update=20, half_life=10)
    assert after == {
        "a": Tally(correct=4, judged=10, update=20),
        "b": Tally(correct=0, judged=2, update=20),
    }
    assert before == {"a": Tally(correct=4, judged=8, update=10)}


@pytest.mark.parametrize(("correct", "judged"), [(3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, judged):
    with pytest.raises(ValueError, match="cannot be correct"):
        tallied({}, [("a", correct, judged)], update=1)


def test_the_tally_of_a_bucket_is_unbiased_under_selection_by_its_own_past():
    # Which bucket is sampled depends on all earlier outcomes; the outcomes of the next rollouts do not.
    rates, rng, updates, runs = (0.05, 0.5, 0.9), np.random.Generator(np.random.Philox(key=1)), 40, 400
    errors = np.zeros(3)
    for _ in range(runs):
        tallies: dict[str, Tally] = {}
        surplus = np.zeros(3)
        for update in range(updates):
            weights = np.array([posterior(tallies.get(str(i)), update=update).expected_variance for i in range(3)])
            place = rng.choice(3, p=0.9 * weights / weights.sum() + 0.1 / 3)
            correct = int(rng.binomial(4, rates[place]))
            tallies = tallied(tallies, [(str(place), correct, 4)], update=update)
            surplus[place] += correct - 4 * rates[place]
        errors += surplus
    # A martingale: correct minus expected has mean 0, with a deviation of at most sqrt(updates * 4 p (1 - p) / runs).
    bound = 4 * np.sqrt(updates * 4 * 0.25 / runs)
    assert np.abs(errors / runs).max() < bound
