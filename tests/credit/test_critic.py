"""GAE against hand-worked numbers and its two limits; the rule on a batch; token rewards that sum to the total."""

import numpy as np
import pytest

from forkpoint.credit.critic import critic, gae_advantages, token_rewards
from forkpoint.records import Batch, Group, Outcome, Problem, Reward, Verdict, frozen_array
from forkpoint.rewards import outcome_reward
from forkpoint.verifiers.outside import written_rollout

PROBLEM = Problem(task="toy", key="1", prompt="", answer="")
RIGHT, WRONG = Verdict(outcome=Outcome.CORRECT, correct=True), Verdict(outcome=Outcome.WRONG, correct=False)


def rollout(length, mask=None):
    made = written_rollout(PROBLEM, "x" * length)
    if mask is not None:
        object.__setattr__(made, "loss_mask", frozen_array(mask, np.bool_))
    return made


class Values:
    """A probe that knows values alone."""

    def __init__(self, *rows):
        self.rows = [frozen_array(row, np.float32) for row in rows]

    def values(self, rollouts):
        assert len(rollouts) == len(self.rows)
        return self.rows


def batch(*members):
    """(rollout, verdict, total) of one group."""
    return Batch(
        groups=(
            Group(
                problem=PROBLEM,
                rollouts=tuple(m[0] for m in members),
                verdicts=tuple(m[1] for m in members),
                rewards=tuple(Reward(total=m[2]) for m in members),
            ),
        ),
        update=1,
    )


def test_by_hand():
    # delta = [0 + .5*4 - 2, 1 + .5*6 - 4, 2 + 0 - 6] = [0, 0, -4]; gamma lam = 0.25: A = [-.25, -1, -4].
    rewards, values = np.array([0.0, 1.0, 2.0]), np.array([2.0, 4.0, 6.0])
    assert gae_advantages(rewards, values, gamma=0.5, lam=0.5).tolist() == [-0.25, -1.0, -4.0]


def test_lambda_one_is_the_reward_to_go_less_the_value():
    draw = np.random.Generator(np.random.Philox(key=0))
    rewards, values = draw.standard_normal((2, 4, 30))
    to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(gae_advantages(rewards, values, lam=1.0), to_go - values, atol=1e-12)
    gamma = 0.9
    discounted = np.array([[sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(30)] for row in rewards])
    np.testing.assert_allclose(gae_advantages(rewards, values, gamma=gamma, lam=1.0), discounted - values, atol=1e-12)


def test_lambda_zero_is_the_error_of_one_step():
    draw = np.random.Generator(np.random.Philox(key=1))
    rewards, values = draw.standard_normal((2, 8))
    expected = rewards + 0.9 * np.append(values[1:], 0.0) - values
    np.testing.assert_allclose(gae_advantages(rewards, values, gamma=0.9, lam=0.0), expected, atol=1e-12)


def test_lambda_between_is_the_weighted_mean_of_the_steps():
    """(1 - lam) sum_n lam^(n-1) A^(n), with A^(n) = r_0 + ... + r_(n-1) + V_n - V_0 (arXiv 1506.02438, equation 16)."""
    draw = np.random.Generator(np.random.Philox(key=2))
    rewards, values = draw.standard_normal((2, 6))
    after, lam = np.append(values[1:], 0.0), 0.7
    steps = rewards.cumsum() + after - values[0]
    weights = (1 - lam) * lam ** np.arange(6)
    weights[-1] = lam**5
    assert gae_advantages(rewards, values, lam=lam)[0] == pytest.approx(weights @ steps, abs=1e-12)


def test_exact_values_leave_nothing_to_say_in_a_chain_without_choice():
    rewards = np.full(5, -0.5)
    assert not gae_advantages(rewards, rewards[::-1].cumsum()[::-1], lam=0.3).any()


def test_rows_of_unequal_length_may_share_an_array():
    draw = np.random.Generator(np.random.Philox(key=3))
    rewards, values = draw.standard_normal((2, 4))
    padded = gae_advantages(np.append(rewards, [0.0, 0.0]), np.append(values, [0.0, 0.0]))
    np.testing.assert_allclose(padded, np.append(gae_advantages(rewards, values), [0.0, 0.0]))
    assert gae_advantages(np.zeros((2, 0)), np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("options", [{"gamma": 1.1}, {"lam": -0.1}, {"lam": 2.0}])
def test_options_out_of_bounds_are_refused(options):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        gae_advantages(np.zeros(2), np.zeros(2), **options)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        critic(batch((rollout(1), RIGHT, 1.0)), Values([0.0]), **options)


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        gae_advantages(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("verdict", [RIGHT, WRONG])
def test_token_rewards_are_a_price_for_each_token_and_the_outcome_at_the_end(verdict):
    written = rollout(4)
    reward = outcome_reward(verdict, written, length_penalty=0.5, max_new_tokens=10)
    price = -0.5 / 10
    expected = [price, price, price, price + float(verdict.correct)]
    assert token_rewards(written, verdict, reward).tolist() == pytest.approx(expected)
    masked = rollout(4, [True, False, False, True])
    reward = outcome_reward(verdict, masked, length_penalty=0.5, max_new_tokens=10)
    assert token_rewards(masked, verdict, reward).tolist() == pytest.approx([price, price + float(verdict.correct)])
    assert token_rewards(rollout(0), verdict, Reward(total=0.0)).tolist() == []


def test_the_rule_on_a_batch():
    members = batch((rollout(2), RIGHT, 1.0), (rollout(3, [True, False, True]), WRONG, -0.5))
    one, two = critic(members, Values([0.5, 0.25], [1.0, 9.0, 2.0]), lam=1.0)
    assert one.advantages.tolist() == [0.5, 0.75]
    assert two.advantages.tolist() == [-1.5, 0.0, -2.25]
    assert (one.baseline, two.baseline, one.rule) == (0.5, 1.0, "critic")


def test_the_rule_bootstraps_over_tokens_that_are_not_trained():
    (one,) = critic(batch((rollout(3, [True, False, True]), RIGHT, 1.0)), Values([1.0, 9.0, 2.0]), lam=0.0)
    assert one.advantages.tolist() == [1.0, 0.0, -1.0]


def test_an_empty_batch_has_no_credit():
    assert critic(Batch(groups=(), update=1), Values()) == []
