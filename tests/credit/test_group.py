"""Group credit: hand-worked numbers, exact zeros, alignment with masks and rollouts, refusals.

The expected gradients are in tests/losses/test_expected_gradients.py.
"""

import math

import numpy as np
import pytest
from credit_examples import group

from forkpoint.credit import CREDIT_RULES
from forkpoint.credit.group import group_mean_std_advantages, leave_one_out_advantages, max_rl_advantages
from forkpoint.records import Batch

ADVANTAGES = {
    "leave_one_out": leave_one_out_advantages,
    "group_mean_std": group_mean_std_advantages,
    "max_rl": max_rl_advantages,
}


DENSE = {"branch", "tree", "counterfactual", "privileged", "answer_progress", "state_group"}


def test_table():
    assert set(CREDIT_RULES) == {*ADVANTAGES, "survivors", "critic", "batch_baseline", "with_experts", *DENSE}


def test_leave_one_out_by_hand():
    advantages = leave_one_out_advantages(np.array([1.0, 0.0, 0.0, 0.5]))
    np.testing.assert_allclose(advantages, [1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3], rtol=1e-14)


def test_group_mean_std_by_hand():
    rewards = np.array([1.0, 0.0, 0.0, 0.0])  # mean 1/4; squares sum to 3/4
    root = math.sqrt(1 / 4)
    np.testing.assert_allclose(
        group_mean_std_advantages(rewards, epsilon=0.1),
        np.array([0.75, -0.25, -0.25, -0.25]) / (root + 0.1),
        rtol=1e-14,
    )
    population = math.sqrt(3 / 16)
    np.testing.assert_allclose(
        group_mean_std_advantages(rewards, epsilon=0.0, ddof=0)[0], 0.75 / population, rtol=1e-14
    )


def test_max_rl_by_hand():
    np.testing.assert_allclose(max_rl_advantages(np.array([1.0, 0.0, 0.0, 0.0])), [3, -1, -1, -1], rtol=1e-14)
    np.testing.assert_allclose(max_rl_advantages(np.array([1.0, 0.5, 0.0])), [1, 0, -1], atol=1e-14)


@pytest.mark.parametrize("rule", sorted(ADVANTAGES))
@pytest.mark.parametrize(("value", "size"), [(0.1, 3), (0.1, 7), (1 / 3, 11), (0.0, 2), (1.0, 5), (1e-300, 6)])
def test_equal_rewards_give_exact_zeros(rule, value, size):
    assert ADVANTAGES[rule](np.full(size, value)).tolist() == [0.0] * size


def test_the_mean_of_equal_rewards_can_be_off():
    """Why the zeros need care: the plain formula leaves a rest."""
    rewards = np.full(3, 0.1)
    assert (rewards - rewards.mean()).any()


@pytest.mark.parametrize("rule", sorted(ADVANTAGES))
def test_advantages_sum_to_zero_and_follow_the_rewards(rule):
    rewards = np.random.default_rng(0).random(9)
    advantages = ADVANTAGES[rule](rewards)
    assert abs(advantages.sum()) < 1e-12
    assert (np.argsort(advantages) == np.argsort(rewards)).all()
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_allclose(ADVANTAGES[rule](rewards[order]), advantages[order], rtol=1e-12)


@pytest.mark.parametrize(("rule", "shift", "scale"), [("leave_one_out", 3.0, 1.0), ("max_rl", 0.0, 5.0)])
def test_invariances(rule, shift, scale):
    rewards = np.array([0.2, 0.9, 0.4])
    np.testing.assert_allclose(ADVANTAGES[rule](shift + scale * rewards), ADVANTAGES[rule](rewards), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected", "baselines"),
    [
        ("leave_one_out", [1.0, -0.5, -0.5, 1.0, -1.0], [0.0, 0.5, 0.5, 1.0, 2.0]),
        ("max_rl", [2.0, -1.0, -1.0, 1 / 3, -1 / 3], [1 / 3, 1 / 3, 1 / 3, 1.5, 1.5]),
    ],
)
def test_rule_spreads_each_advantage_over_the_trained_tokens(rule, expected, baselines):
    masks = [[True, False, True], [True], [False, False]], [[True, True], [False, True]]
    batch = Batch(groups=(group([1.0, 0.0, 0.0], masks[0]), group([2.0, 1.0], masks[1])), update=0)
    credits = CREDIT_RULES[rule](batch, None)
    assert len(credits) == len(batch.rollouts)
    for credit, attempt, advantage, baseline in zip(credits, batch.rollouts, expected, baselines, strict=True):
        np.testing.assert_allclose(credit.advantages, np.where(attempt.loss_mask, advantage, 0.0), rtol=1e-6)
        assert credit.advantages.dtype == np.float32
        assert not credit.advantages.flags.writeable
        assert credit.rule == rule
        assert credit.baseline == pytest.approx(baseline, rel=1e-12)


def test_group_mean_std_takes_its_knobs():
    batch = Batch(groups=(group([1.0, 0.0], [[True], [True]]),), update=0)
    rule = CREDIT_RULES["group_mean_std"]
    assert rule(batch, None, epsilon=0.0, ddof=0)[0].advantages.tolist() == [1.0]
    assert rule(batch, None, epsilon=0.0)[0].advantages[0] == pytest.approx(0.5 / math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("rule", sorted(ADVANTAGES))
def test_refusals(rule):
    for rewards in ([], [1.0], [[1.0, 2.0]], [1.0, math.nan], [math.inf, 0.0]):
        with pytest.raises(ValueError, match=rule):
            ADVANTAGES[rule](np.array(rewards))
    for one in (group([1.0], [[True]]), group([], []), group([], [[True], [True]]), group([1.0, 0.0], [[True]])):
        with pytest.raises(ValueError, match=rule):
            CREDIT_RULES[rule](Batch(groups=(one,), update=0), None)


def test_refused_values():
    with pytest.raises(ValueError, match=r"max_rl.*-0\.5"):
        max_rl_advantages(np.array([1.0, -0.5]))
    with pytest.raises(ValueError, match="max_rl"):
        max_rl_advantages(np.array([-1.0, -1.0]))
    with pytest.raises(ValueError, match="ddof"):
        group_mean_std_advantages(np.array([1.0, 0.0]), ddof=2)
    with pytest.raises(ValueError, match="epsilon"):
        group_mean_std_advantages(np.array([1.0, 0.0]), epsilon=-1.0)
