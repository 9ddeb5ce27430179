"""Credit over identical states: hand numbers, exact zeros, and its expected gradient over every group of three."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signal_examples import SignalProbe, batch_of, rewarded_group, written

from forkpoint.credit.state_group import state_advantages, state_group
from forkpoint.credit.survivors import survivor_advantages
from forkpoint.records import Problem
from forkpoint.tasks.paths import Settings, build

PAPER = 0.9959
"""Cosine of the expected gradient of `sum` with the true one, on this problem."""
TEXTS = list(itertools.product(range(2), repeat=3))


def state(prefix):
    """How many ones were written: prefixes of one length merge, and so do some of different order."""
    return f"{len(prefix)}:{sum(prefix)}"


def reward(text):
    return {0: 0.2, 1: 1.0, 2: 0.0, 3: 0.7}[sum(text)] + 0.1 * text[0]


def chances_and_scores(logits):
    """p(text) and the gradient of each token's log-probability; the policy reads the whole prefix."""
    prefixes = [prefix for n in range(3) for prefix in itertools.product(range(2), repeat=n)]
    rows = {prefix: np.exp(logits[i]) / np.exp(logits[i]).sum() for i, prefix in enumerate(prefixes)}
    found = {}
    for text in TEXTS:
        scores = []
        for t in range(3):
            score = np.zeros_like(logits)
            score[prefixes.index(text[:t])] = np.eye(2)[text[t]] - rows[text[:t]]
            scores.append(score)
        found[text] = (np.prod([rows[text[:t]][text[t]] for t in range(3)]), scores)
    return found


def expected_gradient(known, advantages):
    total = 0.0
    for members in itertools.product(TEXTS, repeat=3):
        weight = np.prod([known[text][0] for text in members])
        table = advantages(
            np.array([reward(text) for text in members]), [[state(text[:t]) for t in range(3)] for text in members]
        )
        for i, text in enumerate(members):
            total = total + weight * sum(table[i][t] * known[text][1][t] for t in range(3)) / 3
    return total


@pytest.fixture(scope="module")
def known():
    return chances_and_scores(np.random.Generator(np.random.Philox(key=1)).normal(size=(7, 2)))


def true_gradient(known):
    return sum(p * reward(text) * sum(scores) for text, (p, scores) in known.items())


def difference(known, advantages):
    truth = true_gradient(known)
    return np.linalg.norm(expected_gradient(known, advantages) - truth) / np.linalg.norm(truth)


def cosine(known, advantages):
    found, truth = expected_gradient(known, advantages), true_gradient(known)
    return (found * truth).sum() / np.linalg.norm(found) / np.linalg.norm(truth)


@pytest.mark.parametrize("prior", [0.0, 1.0, 5.0])
def test_the_baseline_form_has_the_true_gradient(known, prior):
    assert difference(known, lambda r, s: state_advantages(r, s, prior=prior)) < 1e-13


def including_itself(rewards, states):
    """The control: means over all visitors, the rollout itself among them."""
    means = [[np.mean([rewards[j] for j in range(3) if state in states[j]]) for state in mine] for mine in states]
    return [rewards[i] - np.array(mine) for i, mine in enumerate(means)]


def test_the_sum_of_the_paper_and_a_baseline_with_itself_do_not(known):
    assert difference(known, including_itself) > 0.05
    assert cosine(known, including_itself) < 0.98
    # More than a longer step: the direction is off too (docs/credit/state_group.md has the number).
    assert difference(known, lambda r, s: state_advantages(r, s, form="sum")) > 0.5
    assert cosine(known, lambda r, s: state_advantages(r, s, form="sum")) == pytest.approx(PAPER, abs=5e-4)


def test_by_hand():
    rewards, states = np.array([1.0, 0.0, 0.5]), [["a", "b"], ["a", "c"], ["a", "b"]]
    plain = state_advantages(rewards, states, prior=0.0)
    assert [a.tolist() for a in plain] == [[0.75, 0.5], [-0.75, -0.75], [0.0, -0.5]]
    # At b the first is 0.5 above its one companion and 0.75 above all others: (0.5 + 1 * 0.75) / 2.
    assert state_advantages(rewards, states, prior=1.0)[0].tolist() == [0.75, 0.625]
    paper = state_advantages(rewards, states, form="sum", weight=2.0)
    assert [a.tolist() for a in paper] == [[2.25, 1.75], [-2.25, -0.75], [0.0, -1.0]]


def test_a_state_that_comes_twice_counts_its_rollout_once():
    found = state_advantages(np.array([1.0, 0.0, 0.0]), [["a"], ["a", "a", "a"], ["a"]], prior=0.0)
    assert found[0].tolist() == [1.0]
    assert found[1].tolist() == [-0.5] * 3


@given(st.integers(2, 6), st.floats(-10, 10), st.sampled_from(["baseline", "sum"]))
def test_equal_rewards_give_exact_zeros(count, value, form):
    states = [[str(k % 2) for k in range(i + 1)] for i in range(count)]
    assert not any(a.any() for a in state_advantages(np.full(count, value), states, form=form))


def test_states_that_are_only_positions_give_the_survivors():
    rewards, lengths = np.array([1.0, 0.0, 0.5, 0.0]), [1, 3, 2, 3]
    found = state_advantages(rewards, [[str(t) for t in range(n)] for n in lengths], prior=0.0)
    table = survivor_advantages(rewards, lengths)
    assert all(mine == pytest.approx(table[i, : lengths[i]]) for i, mine in enumerate(found))


def test_the_rule_on_walks_that_meet():
    task = build(Settings(branches=2, depth=2))
    star = Problem(
        task="paths", key="ab", prompt="ab bc ad de|a>c:", answer="bc", metadata={"branches": [["b", "c"], ["d", "e"]]}
    )
    walks = [written(text) for text in ("bc", "dabc", "ded")]
    credits = state_group(batch_of(rewarded_group(walks, [1, 1, 0], of=star)), SignalProbe(task), prior=0.0)
    # At a: the third one is compared with both others; at d: the second with the third; at b: successes alike.
    assert [c.advantages.tolist() for c in credits] == [[0.5, 0.0], [0.5, 1.0, 0.5, 0.0], [-1.0, -1.0, -1.0]]
    assert [c.details["shared_states"] for c in credits] == [1.0, 1.0, pytest.approx(2 / 3)]
    assert [c.baseline for c in credits] == [0.5, 0.5, 1.0]


def test_untrained_tokens_get_nothing_and_words_fall_back_to_one_state():
    class Letters:
        def cut_points(self, problem, rollout):
            return range(len(rollout.tokens))

        def state(self, problem, transcript):
            return transcript

    group = rewarded_group([written("bb", mask=[0, 1]), written("bc")], [1.0, 0.0])
    assert state_group(batch_of(group), SignalProbe(Letters()))[0].advantages.tolist() == [0.0, 1.0]
    coarse = [replace(written("bcde"), text="bc"), written("bc")]
    found = state_group(batch_of(rewarded_group(coarse, [1.0, 0.0])), SignalProbe(Letters()))
    assert found[0].advantages.tolist() == [1.0] * 4
    # One step alone, at the beginning, where the other one was too.
    assert found[0].details["shared_states"] == 1.0


@pytest.mark.parametrize(
    ("options", "part"), [({"form": "max"}, "form = 'max'"), ({"prior": -1.0}, "prior"), ({"weight": -1.0}, "weight")]
)
def test_refusals(options, part):
    with pytest.raises(ValueError, match=part):
        state_advantages(np.array([1.0, 0.0]), [["a"], ["a"]], **options)
    with pytest.raises(ValueError, match="at least 2 finite"):
        state_advantages(np.array([1.0]), [["a"]])


def test_a_task_without_states_is_refused():
    with pytest.raises(ValueError, match="no state"):
        state_group(batch_of(rewarded_group([written("b"), written("c")], [1, 0])), SignalProbe(object()))
