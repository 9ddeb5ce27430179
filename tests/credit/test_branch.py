"""The rule `branch`: hand-worked values, telescoping, sharing, and no bias against an exact gradient."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from enumerated_language import LANGUAGE, ScriptedProbe, batch_of, cosine, difference, rollout_of

from forkpoint.credit.branch import branch
from forkpoint.errors import RecipeError
from forkpoint.records import Batch, Reward


def scripted(scripts, judged=lambda text: text.endswith("b"), task=None):
    """A probe whose continuations of a prefix are its scripts, in order."""
    return ScriptedProbe(lambda request, start: scripts[start][request.index], judged, task)


SCRIPTS = {"aa": ["aab", "aaaa", "aaba"], "aaba": ["aabab", "aabaab", "aabaa"], "ba": ["baa", "bab", "bab"]}
"""One of three, two of three, two of three end well."""
GROUP = [rollout_of("aabab", name="1"), rollout_of("bab", name="2"), rollout_of("bbba", name="3")]


def run(group=GROUP, corrects=(True, True, False), *, price=0.0, probe=None, **options):
    probe = probe or scripted(SCRIPTS | {"bb": ["bbb"] * 3})
    options = {"cuts": "every:2", "continuations": 3} | options
    return branch(batch_of(group, corrects, price=price), probe, **options), probe


def test_a_hand_worked_group():
    credits, probe = run()
    # Values of the first: the others at the start, then its continuations.
    assert credits[0].details == {"cuts": [0, 2, 4], "values": pytest.approx([1 / 2, 1 / 3, 2 / 3])}
    np.testing.assert_allclose(credits[0].advantages, [-1 / 6] * 2 + [1 / 3] * 2 + [1 / 3], atol=1e-7)
    np.testing.assert_allclose(credits[1].advantages, [2 / 3 - 1 / 2] * 2 + [1 / 3], atol=1e-7)
    np.testing.assert_allclose(credits[2].advantages, [1 - 1] * 2 + [0 - 1] * 2, atol=1e-7)
    assert [credit.baseline for credit in credits] == [0.5, 0.5, 1.0]
    assert {credit.rule for credit in credits} == {"branch"}
    assert (probe.branches, probe.verifications) == (1, 1)
    # 1 + 2 + 2 tokens after "aa", 1 + 2 + 1 after "aaba"; prompts have two tokens.
    assert credits[0].cost == {"sampled_tokens": 9, "verifier_calls": 6, "shared_prefix_tokens": 3 * (4 + 6)}
    assert {request.purpose for request in probe.asked} == {"branch"}


def test_advantages_telescope():
    credits, _ = run()
    for credit, rollout, reward in zip(credits, GROUP, [1, 1, 0], strict=True):
        ends = [*credit.details["cuts"], len(rollout.tokens)]
        total = sum(float(credit.advantages[start]) for start in ends[:-1])
        assert total == pytest.approx(reward - credit.details["values"][0], abs=1e-6)


def test_equal_prefixes_share_continuations_and_siblings_are_samples():
    group = [rollout_of("aaba", name="1"), rollout_of("aaab", name="2"), rollout_of("bab", name="3")]
    credits, probe = run(group, (False, True, True))
    assert [request.rollout.id for request in probe.asked] == ["1"] * 3 + ["3"] * 3
    # One of three continuations of "aa" is right; the sibling's reward is a fourth sample, its own is none.
    assert credits[0].details["values"] == pytest.approx([1.0, 2 / 4])
    assert credits[1].details["values"] == pytest.approx([0.5, 1 / 4])
    assert credits[0].cost["verifier_calls"] == 3
    assert not any(credits[1].cost.values())
    free, probe = run(group, (False, True, True), continuations=0)
    assert not probe.asked
    assert free[0].details == {"cuts": [0, 2], "values": [1.0, 1.0]}
    assert free[2].details == {"cuts": [0], "values": [0.5]}


def test_a_cut_without_a_usable_verdict_merges_with_the_next():
    unusable = {"aab", "aaaa", "aaba"}
    probe = scripted(SCRIPTS | {"bb": ["bbb"] * 3}, lambda text: None if text in unusable else text.endswith("b"))
    credits, _ = run(probe=probe)
    assert credits[0].details == {"cuts": [0, 4], "values": pytest.approx([0.5, 2 / 3])}
    np.testing.assert_allclose(credits[0].advantages, [1 / 6] * 4 + [1 / 3], atol=1e-7)
    partly = scripted(SCRIPTS | {"bb": ["bbb"] * 3}, lambda text: None if text == "aaaa" else text.endswith("b"))
    assert run(probe=partly)[0][0].details["values"] == pytest.approx([1 / 2, 1 / 2, 2 / 3])


def test_a_price_for_length_is_charged_to_continuations():
    credits, _ = run(price=0.1)
    # Continuations of "aa" have 3, 4, 4 tokens; those of "aaba" 5, 6, 5.
    values = [(0.7 - 0.4) / 2, 1 / 3 - 0.1 * 11 / 3, 2 / 3 - 0.1 * 16 / 3]
    assert credits[0].details["values"] == pytest.approx(values)
    assert credits[0].advantages[-1] == pytest.approx(0.5 - values[2])


def test_another_shaping_is_refused():
    batch = batch_of(GROUP, (True, True, False))
    odd = replace(batch.groups[0], rewards=(Reward(total=0.9), Reward(total=0.5), Reward(total=0.0)))
    with pytest.raises(ValueError, match="less a price for each token"):
        branch(Batch(groups=(odd,), update=1), scripted(SCRIPTS | {"bb": ["bbb"] * 3}), cuts="every:2", continuations=3)


def test_all_groups_are_asked_at_once_and_keep_apart():
    (group,) = batch_of(GROUP, (True, True, False)).groups
    other = batch_of([rollout_of("aab", name="4"), rollout_of("bb", name="5")], (True, True)).groups[0]
    probe = scripted(SCRIPTS | {"bb": ["bbb"] * 3})
    credits = branch(Batch(groups=(group, other), update=1), probe, cuts="every:2", continuations=3)
    assert (probe.branches, probe.verifications, len(credits)) == (1, 2, 5)
    assert [credit.details for credit in credits[:3]] == [credit.details for credit in run()[0]]
    assert credits[3].details["values"] == pytest.approx([1.0, 1 / 3])
    assert branch(Batch(groups=(), update=1), probe) == []


def test_equal_rewards_everywhere_are_exact_zeros():
    same = [rollout_of("aab", name="1"), rollout_of("bab", name="2")]
    scripts = {"aa": ["aab"] * 3, "ba": ["bab"] * 3}
    credits, _ = run(same, (True, True), price=0.4 / 7, probe=scripted(scripts))
    assert not any(credit.advantages.any() for credit in credits)


def test_rounding_is_no_advantage():
    """0.4 x 3 / 11, and three times the price that is found from it, differ in the last bit."""
    (group,) = batch_of([rollout_of("aaa", name="1"), rollout_of("aba", name="2")], (False, False)).groups
    assert 0.4 * 3 / 11 != (0.4 * 3 / 11 / 3) * 3
    group = replace(group, rewards=(Reward(total=-0.4 * 3 / 11),) * 2)
    probe = ScriptedProbe(lambda request, start: start + "a" * (3 - len(start)), lambda text: False)
    credits = branch(Batch(groups=(group,), update=1), probe, cuts="every:1", continuations=1)
    assert credits[0].details["cuts"] == [0, 1, 2]
    assert not any(credit.advantages.any() for credit in credits)


def test_untrained_tokens_have_none():
    group = [rollout_of("aabab", name="1", mask=[1, 1, 0, 1, 1]), rollout_of("bab", name="2")]
    credits, _ = run(group, (True, False), probe=scripted(SCRIPTS | {"aab": ["aabb"] * 3}))
    assert credits[0].details["cuts"] == [0, 3]
    assert credits[0].advantages[2] == 0
    assert credits[0].advantages.dtype == np.float32
    assert not credits[0].advantages.flags.writeable


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 2 finite rewards"):
        run(GROUP[:1], (True,))
    with pytest.raises(RecipeError, match="at least 0"):
        run(continuations=-1)
    unrewarded = replace(batch_of(GROUP, (True, True, False)).groups[0], rewards=())
    with pytest.raises(ValueError, match="3 rollouts but 0 rewards"):
        branch(Batch(groups=(unrewarded,), update=1), scripted({}), cuts="every:9")


@pytest.mark.parametrize("cuts", ["every:1", "every:2", "unlikely:0.65", "unlikely:0.65:2"])
@pytest.mark.parametrize("price", [0.0, 0.1])
def test_the_expected_gradient_is_the_true_one(cuts, price):
    found = LANGUAGE.rule_gradient(partial(branch, cuts=cuts, continuations=1), price=price)
    assert difference(found, LANGUAGE.true_gradient(price)) < 1e-6


def test_siblings_alone_and_larger_groups_have_no_bias_either():
    free = partial(branch, cuts="every:1", continuations=0)
    assert difference(LANGUAGE.rule_gradient(free, size=3), LANGUAGE.true_gradient()) < 1e-6
    two = partial(branch, cuts="every:1", continuations=2, max_cuts=1)
    assert difference(LANGUAGE.rule_gradient(two), LANGUAGE.true_gradient()) < 1e-6


class LastToken:
    """Steps that begin at the last token: where that is, only the future tells."""

    def cut_points(self, problem, rollout):
        return [0, len(rollout.tokens) - 1]


def test_cuts_chosen_from_the_finished_rollout_are_biased():
    language = type(LANGUAGE)(LANGUAGE.chances, LANGUAGE.right, task=LastToken())
    found = language.rule_gradient(partial(branch, cuts="steps", continuations=1))
    true = language.true_gradient()
    assert (difference(found, true), cosine(found, true)) == pytest.approx((0.347, 0.957), abs=6e-4)
