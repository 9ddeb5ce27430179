"""Filters read `correct`, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.curricula.filters import is_mixed, judged_outcomes, largest_variances, outcome_variance
from forkpoint.records import Group, Outcome, Problem, Reward, Verdict
from forkpoint.verifiers.outside import written_rollout

PROBLEM = Problem(task="t", key="1", prompt="", answer="")
VERDICTS = {
    "+": Verdict(outcome=Outcome.CORRECT, correct=True),
    "-": Verdict(outcome=Outcome.WRONG, correct=False, score=0.7),
    "?": Verdict(outcome=Outcome.ABSTAINED, correct=None),
}


def group(marks, rewards=()):
    return Group(
        problem=PROBLEM, rollouts=tuple(written_rollout(PROBLEM, "x") for _ in marks),
        verdicts=tuple(VERDICTS[mark] for mark in marks), rewards=tuple(Reward(total=each) for each in rewards),
    )  # fmt: skip


def test_the_variance_is_that_of_correct_among_the_judged():
    # 1 of 4: 4/3 * 1/4 * 3/4 = 1/4.
    assert outcome_variance(group("+---")) == pytest.approx(0.25)
    assert outcome_variance(group("+-??")) == pytest.approx(0.5)
    assert outcome_variance(group("+???")) == 0.0
    assert judged_outcomes(group("+-?")) == [True, False]


def test_shaped_rewards_change_nothing():
    # All wrong, although one has a better score and a better reward than the other.
    flat = group("---", rewards=(0.0, 0.4, 0.9))
    assert not is_mixed(flat)
    assert outcome_variance(flat) == 0.0
    assert is_mixed(group("+--", rewards=(0.5, 0.5, 0.5)))
    assert not is_mixed(group("+++"))
    assert not is_mixed(group("+?"))


def test_hand_worked_shares():
    # Sorted .5 .3 .2: .5 is half, .8 is enough for .8, all for more; zeros never stay.
    values = [0.2, 0.0, 0.5, 0.3]
    assert largest_variances(values, 0.5) == [2]
    assert largest_variances(values, 0.51) == [2, 3]
    assert largest_variances(values, 0.8) == [2, 3]
    assert largest_variances(values, 1.0) == [0, 2, 3]
    assert largest_variances([0.1] * 10, 0.9) == list(range(9))
    assert largest_variances([0.0, 0.0], 0.9) == [0, 1]
    assert largest_variances([], 0.9) == []
    with pytest.raises(ValueError, match="share"):
        largest_variances(values, 0.0)


@given(values=st.lists(st.integers(0, 20), min_size=1, max_size=7), percent=st.integers(1, 100))
def test_no_smaller_set_reaches_the_share(values, percent):
    kept = largest_variances(values, percent / 100)
    if sum(values):
        assert 100 * sum(values[i] for i in kept) >= percent * sum(values)
        best = sorted(values, reverse=True)[: len(kept) - 1]
        assert 100 * sum(best) < percent * sum(values)
