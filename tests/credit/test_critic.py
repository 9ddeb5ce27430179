"""GAE against hand-worked numbers and its two limits; the rule on a batch; token rewards that sum to the total."""

import numpy as np
import pytest
from enumerated_language import LANGUAGE, LETTERS, difference

from forkpoint.credit.critic import adaptive_lambda, critic, gae_advantages, rewards_to_go, token_rewards
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


def test_lambda_is_one_unless_told():
    members = batch((rollout(3), RIGHT, 0.7))
    (one,) = critic(members, Values([0.5, 0.25, 0.125]))
    assert one.advantages.tolist() == pytest.approx([0.7 - 0.5, 0.8 - 0.25, 0.9 - 0.125])
    assert gae_advantages(np.array([0.0, 1.0]), np.array([0.5, 0.25])).tolist() == [0.5, 0.75]


def test_each_rollout_may_have_its_own_lambda():
    draw = np.random.Generator(np.random.Philox(key=4))
    rewards, values = draw.standard_normal((2, 3, 7))
    lambdas = np.array([0.0, 0.4, 1.0])
    whole = gae_advantages(rewards, values, gamma=0.9, lam=lambdas)
    for row, lam in enumerate(lambdas):
        alone = gae_advantages(rewards[row], values[row], gamma=0.9, lam=float(lam))
        np.testing.assert_allclose(whole[row], alone, atol=1e-12)


def test_adaptive_lambda_by_hand():
    # 1 - 1 / (.05 x 2000) = .99; 1 - 1 / (.05 x 400) = .95; below 400 tokens the floor.
    lengths = np.array([0.0, 1.0, 19.0, 20.0, 21.0, 399.0, 400.0, 800.0, 2000.0])
    expected = [0.95] * 7 + [0.975, 0.99]
    assert adaptive_lambda(lengths, alpha=0.05).tolist() == pytest.approx(expected)
    # Without a floor 20 tokens mean one-step errors and 10 would mean lambda = -1.
    assert adaptive_lambda(np.array([20.0, 10.0, 40.0]), alpha=0.05, floor=0.0).tolist() == [0.0, 0.0, 0.5]
    assert adaptive_lambda(np.array([4.0]), alpha=0.5, floor=0.2).tolist() == [0.5]


def test_adaptive_lambda_grows_with_the_length_and_never_leaves_its_bounds():
    found = adaptive_lambda(np.arange(5000.0), alpha=0.05, floor=0.9)
    assert (np.diff(found) >= 0).all()
    assert (found[0], found.max() < 1) == (0.9, True)


def test_the_rule_takes_the_lambda_of_the_trained_length():
    mask = [True, False, True, True, True]
    members = batch((rollout(5, mask), RIGHT, 1.0), (rollout(2), WRONG, 0.0))
    rows = [0.2, 9.0, 0.4, 0.6, 0.8], [0.5, 0.25]
    one, two = critic(members, Values(*rows), alpha=0.5, floor=0.0)
    # lambda = 1 - 1 / (.5 x 4) = .5; deltas .2, .2, .2, .2.
    assert one.advantages.tolist() == pytest.approx([0.375, 0.0, 0.35, 0.3, 0.2])
    # lambda = 1 - 1 / (.5 x 2) = 0: errors of one step, -.25 and -.25.
    assert two.advantages.tolist() == pytest.approx([-0.25, -0.25])
    plain = critic(members, Values(*rows), lam=0.9)
    floored = critic(members, Values(*rows), alpha=1e-6, floor=0.9)
    for one, two in zip(plain, floored, strict=True):
        assert one.advantages.tolist() == two.advantages.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.05, "lam": 0.9}, "give one"),
        ({"alpha": 0.0}, "alpha = 0.0 must be above 0"),
        ({"alpha": -1.0}, "above 0"),
        ({"alpha": 0.05, "floor": 1.1}, "floor = 1.1 must lie"),
        ({"gamma": 2.0, "alpha": 0.05}, "gamma = 2.0"),
    ],
)
def test_options_of_lambda_are_refused_together_or_out_of_bounds(options, said):
    with pytest.raises(ValueError, match=said):
        critic(batch((rollout(1), RIGHT, 1.0)), Values([0.0]), **options)


def test_rewards_to_go_by_hand():
    members = batch((rollout(3, [True, False, True]), RIGHT, 0.8), (rollout(1), WRONG, 0.0))
    one, two = rewards_to_go(members, gamma=0.5)
    # A price of .1 for each of the two trained tokens, and 1 at the end.
    assert one.tolist() == pytest.approx([-0.1 + 0.5 * 0.9, 0.9])
    assert two.tolist() == [0.0]


class Told:
    """A probe whose values are a function of the text before each token."""

    def __init__(self, value):
        self.value = value

    def values(self, rollouts):
        texts = ["".join(LETTERS[token] for token in each.tokens) for each in rollouts]
        return [frozen_array([self.value(text[:t]) for t in range(len(text))], np.float32) for text in texts]


def wrong_values(prefix):
    return 0.1 + 0.3 * prefix.count("b") - 0.4 * len(prefix)


def gradient(value, price=0.0, **options):
    """The enumerated mean gradient of the rule with these values."""
    return LANGUAGE.rule_gradient(lambda members, probe: critic(members, Told(value), **options), price=price)


@pytest.mark.parametrize("price", [0.0, 0.1])
@pytest.mark.parametrize("value", [wrong_values, LANGUAGE.value, lambda prefix: 5.0 - len(prefix)])
def test_with_lambda_one_any_values_leave_the_gradient_exact(value, price):
    assert difference(gradient(value, price), LANGUAGE.true_gradient(price)) < 1e-6


def test_with_lambda_below_one_the_values_must_be_exact():
    true = LANGUAGE.true_gradient()
    assert difference(gradient(LANGUAGE.value, lam=0.5), true) < 1e-6
    assert difference(gradient(wrong_values, lam=0.5), true) > 0.05
    assert difference(gradient(LANGUAGE.value, gamma=0.9), true) > 0.05


def test_a_lambda_that_follows_the_length_is_biased_even_with_exact_values():
    # The length is known at the end only, and so is how much a later error counts.
    assert difference(gradient(LANGUAGE.value, alpha=0.6, floor=0.0), LANGUAGE.true_gradient()) > 0.01
    assert difference(gradient(wrong_values, alpha=0.6, floor=1.0), LANGUAGE.true_gradient()) < 1e-6
