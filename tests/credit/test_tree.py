"""The rule `tree`: hand-worked values, leaf weights, and its bias, or none, against an exact gradient."""

from functools import partial

import numpy as np
import pytest
from enumerated_language import LANGUAGE, ScriptedProbe, batch_of, cosine, difference, rollout_of
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.credit.group import leave_one_out
from forkpoint.credit.tree import backed_up, tree
from forkpoint.errors import RecipeError

SCRIPTS = {"aa": ["aab", "aaa"], "aaba": ["aabab", "aabaab"], "ba": ["baa", "baa"]}
GROUP = [rollout_of("aabaa", name="1"), rollout_of("bab", name="2"), rollout_of("b", name="3")]
RIGHT = (False, True, True)


def run(group=GROUP, corrects=RIGHT, judged=lambda text: text.endswith("b"), **options):
    probe = ScriptedProbe(lambda request, start: SCRIPTS[start][request.index], judged)
    options = {"cuts": "every:2", "continuations": 2} | options
    return tree(batch_of(group, corrects), probe, **options), probe


def test_a_hand_worked_group():
    credits, probe = run()
    # The first: at "aaba" two right siblings and itself, 2/3; at "aa" one right, one wrong, and 2/3: 5/9.
    # The second: two wrong siblings and itself, 1/3.  The third has no fork: 1.
    tops = [5 / 9, 1 / 3, 1.0]
    assert credits[0].details == {"cuts": [0, 2, 4], "values": pytest.approx([sum(tops) / 3, 5 / 9, 2 / 3])}
    first = [5 / 9 - 2 / 3] * 2 + [2 / 3 - 1 / 2] * 2 + [0 - 1.0]
    np.testing.assert_allclose(credits[0].advantages, first, atol=1e-7)
    np.testing.assert_allclose(credits[1].advantages, [1 / 3 - 7 / 9] * 2 + [1 - 0], atol=1e-7)
    np.testing.assert_allclose(credits[2].advantages, [1 - 4 / 9], atol=1e-7)
    assert credits[0].cost == {"sampled_tokens": 1 + 1 + 1 + 2, "verifier_calls": 4, "shared_prefix_tokens": 8 + 12}
    assert (probe.branches, probe.verifications) == (1, 1)


def test_an_advantage_is_the_rise_of_the_value_rescaled_at_its_fork():
    (credit, _, _), _ = run()
    rises = np.diff([*credit.details["values"], 0.0])
    assert rises.sum() == pytest.approx(0.0 - credit.details["values"][0])
    # Three children at the root, and at each fork.
    np.testing.assert_allclose(credit.advantages[[0, 2, 4]], rises * 3 / 2, atol=1e-7)


def test_without_cuts_it_is_leave_one_out():
    credits, probe = run(cuts="every:9")
    expected = leave_one_out(batch_of(GROUP, RIGHT), None)
    for found, other in zip(credits, expected, strict=True):
        np.testing.assert_allclose(found.advantages, other.advantages, atol=1e-7)
    assert not probe.asked
    none, _ = run(continuations=0)
    assert [c.advantages.tolist() for c in none] == [c.advantages.tolist() for c in credits]


@given(st.lists(st.integers(1, 5), max_size=6))
def test_leaf_weights_are_products_of_one_over_n_and_sum_to_one_at_every_token(siblings):
    weights = []
    for fork, count in enumerate(siblings):
        above = np.prod([1 / (n + 1) for n in siblings[: fork + 1]])
        for leaf in range(count):
            rewards = [[float((f, k) == (fork, leaf)) for k in range(n)] for f, n in enumerate(siblings)]
            values = backed_up(0.0, rewards)
            assert values[0] == pytest.approx(above)
            assert values[fork + 1 :] == [0.0] * (len(siblings) - fork)
            weights.append(values[: fork + 1])
    own = backed_up(1.0, [[0.0] * n for n in siblings])
    assert own[0] == pytest.approx(np.prod([1 / (n + 1) for n in siblings]))
    for segment in range(len(siblings) + 1):
        total = own[segment] + sum(leaf[segment] for leaf in weights if len(leaf) > segment)
        assert total == pytest.approx(1.0)
    assert backed_up(0.3, [[0.3] * n for n in siblings]) == [0.3] * (len(siblings) + 1)


def test_the_square_root_weighs_tokens_by_their_leaves():
    plain, _ = run()
    rooted, _ = run(weighting="inverse_sqrt")
    leaves = np.array([5, 5, 3, 3, 1])
    np.testing.assert_allclose(rooted[0].advantages, plain[0].advantages * np.sqrt(leaves), rtol=1e-6)
    assert rooted[0].details == plain[0].details


def test_a_fork_without_usable_siblings_is_none():
    credits, _ = run(judged=lambda text: None if text in {"aab", "aaa"} else text.endswith("b"))
    assert credits[0].details["cuts"] == [0, 4]
    np.testing.assert_allclose(credits[0].advantages, [2 / 3 - 2 / 3] * 4 + [-1.0], atol=1e-7)


def test_bad_options_are_refused():
    with pytest.raises(RecipeError, match=r"weighting = 'inverse_sqr' is not known\. Did you mean 'inverse_sqrt'"):
        run(weighting="inverse_sqr")
    with pytest.raises(RecipeError, match="at least 0"):
        run(continuations=-2)
    with pytest.raises(ValueError, match="at least 2 finite rewards"):
        run(GROUP[:1], RIGHT[:1])


@pytest.mark.parametrize("cuts", ["every:1", "every:2", "unlikely:0.65"])
@pytest.mark.parametrize("price", [0.0, 0.1])
def test_the_expected_gradient_is_the_true_one(cuts, price):
    found = LANGUAGE.rule_gradient(partial(tree, cuts=cuts, continuations=1), price=price)
    assert difference(found, LANGUAGE.true_gradient(price)) < 1e-6


def test_larger_groups_and_more_siblings_have_no_bias_either():
    three = partial(tree, cuts="every:1", continuations=1, max_cuts=1)
    assert difference(LANGUAGE.rule_gradient(three, size=3), LANGUAGE.true_gradient()) < 1e-6
    two = partial(tree, cuts="every:1", continuations=2, max_cuts=1)
    assert difference(LANGUAGE.rule_gradient(two), LANGUAGE.true_gradient()) < 1e-6


def test_the_bias_of_the_square_root():
    found = LANGUAGE.rule_gradient(partial(tree, cuts="every:1", continuations=1, weighting="inverse_sqrt"))
    true = LANGUAGE.true_gradient()
    assert (difference(found, true), cosine(found, true)) == pytest.approx((0.326, 0.984), abs=6e-4)
