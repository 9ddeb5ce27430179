"""The survivor rule: hand numbers, exact zeros, and its expected gradient over every group of three."""

import itertools

import numpy as np
import pytest
from credit_examples import group

from forkpoint.credit.survivors import survivor_advantages, survivors
from forkpoint.records import Batch

STOP, MAX_TOKENS = 0, 3


def sequences():
    """Every text of at most three tokens over {stop, 1}: ragged lengths."""
    return [(0,), (1, 0), (1, 1, 0), (1, 1, 1)]


def reward(text):
    return {1: 0.3, 2: 1.0, 3: float(text[-1])}[len(text)]


def probability_and_score(logits, text):
    """p(text) and the gradient of each token's log-probability, by the softmax formula; the state is the position."""
    total, scores = 1.0, []
    for place, token in enumerate(text):
        p = np.exp(logits[place]) / np.exp(logits[place]).sum()
        score = np.zeros_like(logits)
        score[place] = np.eye(2)[token] - p
        scores.append(score)
        total *= p[token]
    return total, scores


def expected_gradient(logits, advantages):
    """E over groups of three of sum_it A_it grad log pi_it / 3."""
    known = {text: probability_and_score(logits, text) for text in sequences()}
    total = np.zeros_like(logits)
    for members in itertools.product(sequences(), repeat=3):
        weight = np.prod([known[text][0] for text in members])
        table = advantages(np.array([reward(text) for text in members]), [len(text) for text in members])
        for i, text in enumerate(members):
            total += weight * sum(table[i, t] * known[text][1][t] for t in range(len(text))) / 3
    return total


def true_gradient(logits):
    known = {text: probability_and_score(logits, text) for text in sequences()}
    return sum(p * reward(text) * sum(scores) for text, (p, scores) in known.items())


def including_itself(rewards, lengths):
    """The control: a mean over survivors that counts the rollout's own reward."""
    alive = np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]
    means = (rewards @ alive) / np.maximum(alive.sum(0), 1)
    return (rewards[:, None] - means[None]) * alive


def test_expected_gradient_is_the_true_one():
    logits = np.random.Generator(np.random.Philox(key=3)).normal(size=(MAX_TOKENS, 2))
    truth = true_gradient(logits)
    assert np.allclose(expected_gradient(logits, survivor_advantages), truth, rtol=0, atol=1e-14)
    control = expected_gradient(logits, including_itself)
    assert np.linalg.norm(control - truth) > 0.1 * np.linalg.norm(truth)


def test_by_hand():
    # Position 0: all three live.  Position 1: only the second and third.  Position 2: the third alone, so all others.
    table = survivor_advantages(np.array([1.0, 0.0, 0.5]), [1, 2, 3])
    assert table == pytest.approx(np.array([[0.75, 0, 0], [-0.75, -0.5, 0], [0.0, 0.5, 0.0]]))


def test_equal_rewards_give_exact_zeros():
    assert not survivor_advantages(np.full(7, 0.1), [1, 2, 3, 4, 5, 6, 7]).any()


@pytest.mark.parametrize(("rewards", "lengths"), [([1.0], [1]), ([1.0, np.nan], [1, 1]), ([1.0, 0.0], [1])])
def test_refusals(rewards, lengths):
    with pytest.raises(ValueError, match="survivors: needs"):
        survivor_advantages(np.array(rewards), lengths)


def test_rule_leaves_untrained_tokens_alone():
    batch = Batch(groups=(group([1.0, 0.0, 0.0], [[1, 1], [1, 0, 1], [1]]),), update=1)
    credits = survivors(batch, None)
    assert [credit.advantages.tolist() for credit in credits] == [[1.0, 1.0], [-0.5, 0.0, -0.5], [-0.5]]
    assert [credit.baseline for credit in credits] == [0.0, 0.5, 0.5]
