"""Selection, enumerated over every value that its one random number can take."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.curricula.selection import mean_of_all, pick_probabilities, systematic_picks


def outcomes(probabilities):
    """Each set of picks with its exact probability: the picks change only at finitely many offsets."""
    uncertain = probabilities[probabilities < 1 - 1e-9]
    edges = np.unique(np.concatenate([[0.0, 1.0], np.cumsum(uncertain) % 1.0]))
    return [
        (systematic_picks(probabilities, (low + high) / 2), high - low)
        for low, high in itertools.pairwise(edges)
        if high - low > 1e-12
    ]


def test_hand_worked_probabilities():
    # v = 0.8 w + 0.2 / 4 with w = (.5, .5, 0, 0): (.45, .45, .05, .05); two picks of them.
    found = pick_probabilities([1, 1, 0, 0], 2, floor=0.2)
    assert found == pytest.approx([0.9, 0.9, 0.1, 0.1])
    # The first would be picked 1.6 times: it is certain, and the others share the one pick that is left.
    found = pick_probabilities([8, 1, 1, 0], 2, floor=0.0)
    assert found == pytest.approx([1, 0.5, 0.5, 0])


def test_no_weight_at_all_is_uniform_and_all_may_be_picked():
    assert pick_probabilities([0, 0, 0, 0], 1, floor=0.1) == pytest.approx([0.25] * 4)
    assert pick_probabilities([3, 0, 1], 3, floor=0.1) == pytest.approx([1, 1, 1])
    assert pick_probabilities([1, 0, 0], 2, floor=0.0) == pytest.approx([1, 0.5, 0.5])
    assert pick_probabilities([], 0, floor=0.1).shape == (0,)


@pytest.mark.parametrize(("weights", "count", "floor"), [([1.0], 2, 0.1), ([-1.0, 2.0], 1, 0.1), ([1.0], 1, 1.5)])
def test_impossible_selections_are_refused(weights, count, floor):
    with pytest.raises(ValueError, match=r"must lie|cannot be picked"):
        pick_probabilities(weights, count, floor=floor)


WEIGHTS = st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=8)


@given(weights=WEIGHTS, data=st.data(), floor=st.floats(0.01, 1))
def test_each_candidate_is_picked_with_exactly_its_probability(weights, data, floor):
    count = data.draw(st.integers(0, len(weights)))
    probabilities = pick_probabilities(weights, count, floor=floor)
    assert probabilities.sum() == pytest.approx(count)
    assert (probabilities >= floor * count / len(weights) - 1e-9).all()
    assert (probabilities <= 1 + 1e-12).all()
    seen = np.zeros(len(weights))
    for picks, chance in outcomes(probabilities):
        assert len(picks) == len(set(picks)) == count
        seen[picks] += chance
    assert seen == pytest.approx(probabilities, abs=1e-6)


@given(rates=st.lists(st.floats(0, 1), min_size=2, max_size=8), data=st.data())
def test_the_mean_over_all_candidates_is_unbiased_whatever_was_expected(rates, data):
    numbers = st.lists(st.floats(0, 1), min_size=len(rates), max_size=len(rates))
    expected, weights = data.draw(numbers), data.draw(numbers)
    probabilities = pick_probabilities(weights, data.draw(st.integers(1, len(rates))), floor=0.1)
    average = sum(
        chance * mean_of_all(expected, probabilities, [(place, rates[place]) for place in picks])
        for picks, chance in outcomes(probabilities)
    )
    assert average == pytest.approx(np.mean(rates), abs=1e-5)


def test_a_perfect_expectation_leaves_no_noise():
    probabilities = pick_probabilities([1, 2, 3], 1, floor=0.1)
    assert {mean_of_all([0.0, 0.5, 1.0], probabilities, [(i, [0.0, 0.5, 1.0][i])]) for i in range(3)} == {0.5}
