"""The rule `counterfactual`: hand-worked swaps, what they cost, and the bias of keeping the rest."""

from functools import partial

import pytest
from enumerated_language import INDEPENDENT, LANGUAGE, ScriptedProbe, batch_of, cosine, difference, rollout_of

from forkpoint.credit.counterfactual import counterfactual
from forkpoint.errors import RecipeError

GROUP = [rollout_of("aab", name="1"), rollout_of("aba", name="2"), rollout_of("bab", name="3")]
RIGHT = {"aab", "abb", "aa"}


class Steps:
    """A step begins after each `b`."""

    def cut_points(self, problem, rollout):
        return [0, *(place + 1 for place, letter in enumerate(rollout.text[:-1]) if letter == "b")]


def run(group=GROUP, judged=lambda text: text in RIGHT, *, price=0.0, continued=None, task=None, **options):
    probe = ScriptedProbe(continued, judged, task)
    batch = batch_of(group, [text.text in RIGHT for text in group], price=price)
    return counterfactual(batch, probe, **({"cuts": "every:1"} | options)), probe


def test_hand_worked_swaps_with_the_rest_kept():
    credits, probe = run()
    # First, right: token 0 as the second (own, right), as the third ("bab", wrong); token 1 as the second ("abb",
    # right) and the third (own); token 2 as the second ("aaa", wrong) and the third (own).
    assert credits[0].details == {"cuts": [0, 1, 2], "values": [0.5, 1.0, 0.5]}
    assert credits[0].advantages.tolist() == [0.5, 0.0, 0.5]
    # Second, wrong: "bba", own; "aaa" twice; "abb" twice, right.
    assert credits[1].advantages.tolist() == [0.0, 0.0, -1.0]
    assert [credit.cost["verifier_calls"] for credit in credits] == [3, 3, 3]
    assert [credit.cost["sampled_tokens"] for credit in credits] == [0, 0, 0]
    assert probe.texts == ["bab", "abb", "aaa", "bba", "aaa", "abb", "aab", "bbb", "baa"]
    assert (probe.branches, probe.verifications) == (0, 1)


def test_only_the_next_ones_are_alternatives():
    credits, _ = run(alternatives=1)
    assert credits[0].details["values"] == [1.0, 1.0, 0.0]
    assert credits[0].cost["verifier_calls"] == 2


def test_an_alphabet_replaces_the_siblings():
    credits, _ = run(alphabet="ab")
    assert credits[0].details["values"] == [0.5, 1.0, 0.5]
    # The other letter of each of three tokens.
    assert credits[0].cost["verifier_calls"] == 3
    masked, _ = run(alphabet="a")
    assert masked[0].details["values"] == [1.0, 1.0, 0.0]
    with pytest.raises(RecipeError, match="steps of one token"):
        run(alphabet="ab", cuts="every:2")


def test_whole_steps_are_swapped_whatever_their_length():
    group = [rollout_of("abaab", name="1"), rollout_of("baa", name="2")]
    credits, probe = run(group, lambda text: text.startswith("b"), task=Steps(), cuts="steps")
    # Steps "ab", "aab" and "b", "aa".
    assert probe.texts == ["baab", "abaa", "abaa", "baab"]
    assert credits[0].details == {"cuts": [0, 2], "values": [1.0, 0.0]}


def test_a_price_is_charged_for_the_edited_length():
    group = [rollout_of("abaab", name="1"), rollout_of("baa", name="2")]
    credits, _ = run(group, lambda text: text.startswith("b"), price=0.1, task=Steps(), cuts="steps")
    assert credits[0].details["values"] == pytest.approx([1 - 0.4, 0 - 0.4])
    assert credits[0].advantages[0] == pytest.approx(-0.5 - 0.6)


def test_without_a_usable_alternative_the_others_are_the_baseline():
    short = [rollout_of("aab", name="1"), rollout_of("aa", name="2")]
    credits, _ = run(short)
    assert credits[0].details["values"] == [1.0, 1.0, 1.0]
    blind, probe = run(judged=lambda text: None)
    # Only its own tokens, which agree with a sibling's, are judged already.
    assert blind[0].details["values"] == [1.0, 1.0, 1.0]
    assert blind[1].details["values"] == [0.0, 0.5, 0.5]
    assert probe.verifications == 1


def test_an_end_of_sequence_token_has_no_text():
    ended = [rollout_of("aab", name="1"), rollout_of("abb", name="2")]
    for rollout in ended:
        object.__setattr__(rollout, "text", rollout.text[:2])
    _, probe = run(ended)
    assert probe.texts == ["ab", "aa"]


def test_the_rest_is_resampled_after_each_swap():
    credits, probe = run(continued=lambda request, start: start + "b" * (3 - len(start)), rest="resample")
    # Prefixes of the first: "a", "b", then "ab", "aa"; the last tokens of siblings are no alternatives.
    assert [(request.rollout.id, request.index) for request in probe.asked[:4]] == [("1", 0), ("1", 1)] * 2
    assert [request.prefix.tolist() for request in probe.asked[:4]] == [[0], [1], [0, 1], [0, 0]]
    assert all(request.prefix_length == len(request.prefix) for request in probe.asked)
    assert probe.texts[:4] == ["abb", "bbb", "abb", "aab"]
    assert credits[0].details["values"] == [0.5, 1.0, 0.0]
    assert credits[0].advantages.tolist() == [0.5, 0.0, 1.0]
    assert credits[0].cost == {"sampled_tokens": 2 + 2 + 1 + 1, "verifier_calls": 4, "shared_prefix_tokens": 14}
    assert (probe.branches, probe.verifications) == (1, 1)


def asked_of(probe, name):
    return [request.prefix.tolist() for request in probe.asked if request.rollout.id == name]


def test_a_sibling_s_last_step_is_not_continued():
    group = [rollout_of("aab", name="1"), rollout_of("ab", name="2"), rollout_of("bab", name="3")]
    _, probe = run(group, continued=lambda request, start: start, rest="resample")
    # The second's "b" ended it.
    assert asked_of(probe, "1") == [[0], [1], [0, 0]]


def test_nothing_is_continued_that_is_longer_than_the_others():
    group = [rollout_of("aababa", name="1"), rollout_of("baaba", name="2")]
    _, probe = run(group, continued=lambda request, start: start, rest="resample", task=Steps(), cuts="steps")
    # Steps "aab", "ab", "a" and "b", "aab", "a": with "aab" as its second step the first would have six tokens.
    assert asked_of(probe, "1") == [[1]]
    _, probe = run(continued=lambda request, start: start, rest="resample", alphabet="ab")
    assert max(len(prefix) for prefix in asked_of(probe, "1")) == 2


def test_alike_alternatives_are_judged_once_and_count_as_often_as_they_occur():
    group = [rollout_of("aab", name="1"), *(rollout_of(text, name=text) for text in ("bbb", "baa", "aba"))]
    credits, probe = run(group)
    # Token 0: "bab" for two siblings, wrong, and its own, right.
    assert credits[0].details["values"][0] == pytest.approx(1 / 3)
    assert probe.texts[:3] == ["bab", "abb", "aaa"]
    assert credits[0].cost["verifier_calls"] == 3


def test_a_price_is_charged_for_the_whole_of_a_resampled_rollout():
    credits, _ = run(continued=lambda request, start: start + "bb", price=0.1, rest="resample")
    # "abb" is right and "bbb" is not; "abbb" and "aabb" have four tokens.
    assert credits[0].details["values"][:2] == pytest.approx([0.5 - 0.3, 0 - 0.4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": "kept"}, "rest = 'kept' is not known. Did you mean 'keep'"),
        ({"alternatives": 0}, "alternatives = 0"),
        ({"cuts": "evry:1"}, "is not known"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        run(**options)


def test_texts_that_cannot_be_edited_are_refused():
    wide = rollout_of("aab", name="1")
    object.__setattr__(wide, "text", "aabaab")
    with pytest.raises(RecipeError, match="one token for each character"):
        run([wide, *GROUP[1:]])
    with pytest.raises(RecipeError, match="environment"):
        run([rollout_of("aab", name="1", mask=[1, 0, 1]), *GROUP[1:]])


@pytest.mark.parametrize("options", [{}, {"alphabet": "ab"}, {"alphabet": "a"}, {"cuts": "every:2"}])
def test_keeping_the_rest_has_no_bias_where_tokens_are_independent(options):
    found = INDEPENDENT.rule_gradient(partial(counterfactual, **({"cuts": "every:1"} | options)))
    assert difference(found, INDEPENDENT.true_gradient()) < 1e-6


def test_what_does_not_matter_gets_nothing():
    first_only = [rollout_of(text, name=text) for text in ("aab", "bbb", "bab")]
    probe = ScriptedProbe(None, lambda text: text.startswith("a"))
    credits = counterfactual(batch_of(first_only, (True, False, False)), probe, cuts="every:1")
    for credit in credits:
        assert credit.advantages[0] != 0
        assert not credit.advantages[1:].any()


@pytest.mark.parametrize(
    ("options", "bias"),
    [({}, (0.333, 0.943)), ({"alphabet": "ab"}, (0.274, 0.966)), ({"alphabet": "a"}, (0.926, 0.780))],
)
def test_the_bias_of_keeping_the_rest_in_an_autoregressive_policy(options, bias):
    found = LANGUAGE.rule_gradient(partial(counterfactual, cuts="every:1", **options))
    true = LANGUAGE.true_gradient()
    assert (difference(found, true), cosine(found, true)) == pytest.approx(bias, abs=6e-4)


@pytest.mark.parametrize("cuts", ["every:1", "every:2"])
def test_resampling_the_rest_has_no_bias(cuts):
    found = LANGUAGE.rule_gradient(partial(counterfactual, cuts=cuts, rest="resample"))
    assert difference(found, LANGUAGE.true_gradient()) < 1e-6
