"""Hindsight magnitude: signs, the gate, what is told, and the Bayes identity by enumeration."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signal_examples import SignalProbe, batch_of, problem, rewarded_group, written

from forkpoint.credit.group import leave_one_out
from forkpoint.credit.privileged import gate_of, hindsight_advantages, knowledge_of, privileged, told_prompts
from forkpoint.errors import TaskError

V, T = 3, 3
# The smallest numbers that there are lose their sign when they are made smaller.
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda number: number == 0 or abs(number) > 1e-300)


class Told:
    """A task whose prompts can hold knowledge."""

    def privileged_prompt(self, problem, knowledge):
        return f"{problem.prompt}|{knowledge}"

    def solve(self, problem):
        return f"b{problem.answer}"


def scored(gain):
    """Log-probabilities of -1 for each token, raised by `gain` where the prompt holds knowledge."""
    return SignalProbe(Told(), lambda prompt, text: np.full(len(text), -1.0 + gain * ("|" in prompt)))


def group(rewards=(1.0, 0.0, 0.0), texts=("bc", "cd", "de"), **changes):
    return rewarded_group([written(text, logprobs=[-1.0] * len(text)) for text in texts], rewards, **changes)


@given(
    pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8),
    strength=st.floats(0, 1),
    clip=st.floats(0, 0.999),
)
def test_no_sign_ever_flips_and_no_magnitude_leaves_the_clip(pairs, strength, clip):
    advantages, ratios = np.array(pairs).T
    found = hindsight_advantages(advantages, ratios, strength=strength, clip=clip)
    assert np.array_equal(np.sign(found), np.sign(advantages))
    low, high = 1 - strength * clip, 1 + strength * clip
    assert (np.abs(found) >= np.abs(advantages) * low * (1 - 1e-9)).all()
    assert (np.abs(found) <= np.abs(advantages) * high * (1 + 1e-9)).all()


def test_magnitudes_by_hand():
    # exp(0.1) lies inside the clip; a failure is blamed more on a token that the answer makes less likely.
    advantages, ratios = np.array([2.0, 2.0, -2.0, -2.0, 0.0]), np.array([0.1, 9.0, 0.1, -9.0, 9.0])
    expected = [2 * (0.5 + 0.5 * np.exp(0.1)), 2 * 1.1, -2 * (0.5 + 0.5 * np.exp(-0.1)), -2 * 1.1, 0.0]
    assert hindsight_advantages(advantages, ratios) == pytest.approx(expected, rel=1e-12)


def posterior_policy(seed):
    """A random policy over texts of three tokens, success sets, and the policy conditioned on success, by counting."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    texts = list(itertools.product(range(V), repeat=T))
    tables = {prefix: draw.dirichlet(np.ones(V)) for n in range(T) for prefix in itertools.product(range(V), repeat=n)}
    chance = {text: np.prod([tables[text[:t]][text[t]] for t in range(T)]) for text in texts}
    right = {text for text in texts if draw.random() < 0.4} | {texts[5]}
    return tables, chance, right


@pytest.mark.parametrize("seed", range(5))
def test_bayes_identity_on_an_enumerable_problem(seed):
    """exp(Delta) = Q / V: Delta from frequencies among the successes, Q and V by backward induction."""
    tables, chance, right = posterior_policy(seed)
    values = {text: float(text in right) for text in chance}
    for n in reversed(range(T)):
        for prefix in itertools.product(range(V), repeat=n):
            values[prefix] = sum(tables[prefix][a] * values[(*prefix, a)] for a in range(V))

    def mass(prefix):
        return sum(p for text, p in chance.items() if text in right and text[: len(prefix)] == prefix)

    checked = 0
    for text in right:
        deltas = [np.log(mass(text[: t + 1]) / mass(text[:t])) - np.log(tables[text[:t]][text[t]]) for t in range(T)]
        ratios = [values[text[: t + 1]] / values[text[:t]] for t in range(T)]
        assert np.exp(deltas) == pytest.approx(ratios, rel=1e-10)
        # So a whole success gains -log V(s_0) nats: what the gate measures.
        assert sum(deltas) == pytest.approx(-np.log(values[()]), rel=1e-10)
        checked += 1
    assert checked


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_under_a_bayes_teacher_weighs_by_q_over_v(seed):
    tables, chance, right = posterior_policy(seed)
    names = "bcd"

    def mass(prefix):
        return sum(p for text, p in chance.items() if text in right and text[: len(prefix)] == prefix)

    def answer(prompt, text):
        tokens = tuple(names.index(c) for c in text)
        return [np.log(max(mass(tokens[: t + 1]), 1e-30) / max(mass(tokens[:t]), 1e-30)) for t in range(T)]

    chosen = [sorted(right)[0], next(text for text in chance if text not in right)]
    rollouts = [
        written("".join(names[a] for a in text), logprobs=[np.log(tables[text[:t]][text[t]]) for t in range(T)])
        for text in chosen
    ]
    found = privileged(
        batch_of(rewarded_group(rollouts, [1.0, 0.0])), SignalProbe(Told(), answer), strength=1.0, clip=0.99
    )
    ratio = [mass(chosen[0][: t + 1]) / mass(chosen[0][:t]) / tables[chosen[0][:t]][chosen[0][t]] for t in range(T)]
    assert found[0].details["gate_open"] == 1.0
    assert found[0].advantages == pytest.approx(np.clip(ratio, 0.01, 1.99), rel=1e-5)
    assert (found[1].advantages < 0).all()


def test_gate_opens_only_above_its_threshold():
    assert gate_of([0.2], threshold=0.1).open
    assert not gate_of([0.2, -0.2], threshold=0.1).open
    assert not gate_of([0.1], threshold=0.1).open
    assert gate_of([], threshold=-1.0) == gate_of([], threshold=9.0)


def test_a_policy_that_cannot_read_the_knowledge_gets_leave_one_out():
    batch = batch_of(group())
    for gain in (0.0, 0.04, -3.0):
        found, base = privileged(batch, scored(gain)), leave_one_out(batch, None)
        assert [c.advantages.tolist() for c in found] == [c.advantages.tolist() for c in base]
        assert all(c.details["gate_open"] == 0.0 and c.rule == "privileged" for c in found)
        assert found[0].details["gate_gain"] == pytest.approx(2 * gain)


def test_an_open_gate_changes_magnitudes_and_costs_one_pass():
    batch = batch_of(group())
    probe = scored(0.1)
    found = privileged(batch, probe, strength=1.0)
    assert found[0].advantages == pytest.approx([np.exp(0.1)] * 2)
    assert found[1].advantages == pytest.approx([-0.5 * np.exp(-0.1)] * 2)
    assert found[0].details == {"gate_open": 1.0, "gate_gain": pytest.approx(0.2)}
    assert probe.calls == 1
    assert probe.asked == [("a|1", "bc"), ("a|1", "cd"), ("a|1", "de")]
    assert [credit.cost["scored_tokens"] for credit in found] == [2.0] * 3


def test_groups_without_advantage_are_not_asked_about():
    probe = scored(0.5)
    found = privileged(batch_of(group((1.0, 1.0, 1.0)), group()), probe)
    assert len(probe.asked) == 3
    assert not any(credit.advantages.any() for credit in found[:3])
    assert found[0].cost["scored_tokens"] == 0.0


def test_without_a_correct_rollout_the_gate_stays_shut():
    shaped = rewarded_group([written("bc", logprobs=[-1, -1]), written("c", logprobs=[-1])], [-0.2, -0.1])
    found = privileged(batch_of(shaped), scored(1.0))
    assert found[0].details == {"gate_open": 0.0}
    assert found[0].advantages == pytest.approx([-0.1, -0.1])


def test_untrained_tokens_count_neither_for_the_gate_nor_for_the_credit():
    rollouts = [written("bc", logprobs=[-1.0, 0.0], mask=[1, 0]), written("cd", logprobs=[-1.0, -1.0])]
    found = privileged(batch_of(rewarded_group(rollouts, [1.0, 0.0])), scored(0.3))
    assert found[0].advantages[1] == 0
    assert found[0].details["gate_gain"] == pytest.approx(0.3)


def test_strength_decays_with_the_updates():
    batches = {update: batch_of(group(), update=update) for update in (0, 25, 50, 60)}
    first = {u: privileged(batch, scored(0.5), decay_updates=50)[0].advantages[0] for u, batch in batches.items()}
    assert first == {0: pytest.approx(1.1), 25: pytest.approx(1.05), 50: 1.0, 60: 1.0}
    probe = scored(0.5)
    privileged(batches[60], probe, decay_updates=50)
    assert probe.asked == []


def test_what_a_rollout_is_told():
    one = group((1.0, 0.0, 1.0), reasons=["", "off by one", ""], of=problem(answer="1"))
    two = group(of=problem(answer="2"))
    batch = batch_of(one, two)
    told = {kind: knowledge_of(batch, Told(), knowledge=kind) for kind in ("answer", "solution", "sibling", "feedback")}
    assert told["answer"] == ["1", "1", "1", "2", "2", "2"]
    assert told["solution"] == ["b1", "b1", "b1", "b2", "b2", "b2"]
    # Never a rollout's own text; the only success of the second group has no successful sibling.
    assert told["sibling"] == ["de", "de", "bc", None, "bc", "bc"]
    assert told["feedback"] == [None, "off by one", None, None, None, None]
    assert knowledge_of(batch, Told(), knowledge="wrong_answer") == ["2", "2", "2", "1", "1", "1"]
    assert knowledge_of(batch_of(one), Told(), knowledge="wrong_answer") == [None] * 3


class Strict(Told):
    """Its prompts hold no text with a `c` in it."""

    def privileged_prompt(self, problem, knowledge):
        if "c" in knowledge:
            raise TaskError("no c")
        return super().privileged_prompt(problem, knowledge)


class Narrow(SignalProbe):
    """A model of few tokens."""

    context_length = 20


def test_a_sibling_that_cannot_be_told_tells_nothing():
    whole = group((1.0, 0.0, 1.0), texts=("bcdefghijk", "xy", "fg"))
    told = told_prompts(batch_of(whole), Narrow(Told()), "sibling")
    sizes = [len(prompt) for prompt in told if prompt is not None]
    # The first is told "fg", the last the first's ten characters; each with its rollout fits 20 tokens or is not told.
    assert [prompt is None for prompt in told] == [False, False, False]
    Narrow.context_length = max(sizes) + 1
    short = told_prompts(batch_of(whole), Narrow(Told()), "sibling")
    assert [prompt is None for prompt in short] == [True, False, True]
    assert [prompt is None for prompt in told_prompts(batch_of(whole), SignalProbe(Strict()), "sibling")] == [
        False, False, True,
    ]  # fmt: skip


def test_other_knowledge_that_cannot_be_told_is_an_error():
    batch = batch_of(group(of=problem(answer="c")))
    with pytest.raises(TaskError, match="no c"):
        told_prompts(batch, SignalProbe(Strict()), "answer")
    with pytest.raises(ValueError, match="no privileged_prompt"):
        told_prompts(batch, SignalProbe(object()), "sibling")


def test_a_wrong_answer_shuts_the_gate_of_a_policy_that_believes_it():
    def answer(prompt, text):
        return np.full(len(text), -1.0 + (0.5 if prompt.endswith(f"|{'1' if text == 'bc' else '2'}") else -0.5))

    batch = batch_of(
        rewarded_group([written("bc", logprobs=[-1, -1]), written("xy", logprobs=[-1, -1])], [1, 0], of=problem("1")),
        rewarded_group([written("cd", logprobs=[-1, -1]), written("xy", logprobs=[-1, -1])], [1, 0], of=problem("2")),
    )
    right, control = (
        privileged(batch, SignalProbe(Told(), answer), knowledge=kind)[0] for kind in ("answer", "wrong_answer")
    )
    assert (right.details["gate_open"], right.details["gate_gain"]) == (1.0, 1.0)
    assert (control.details["gate_open"], control.details["gate_gain"]) == (0.0, -1.0)


@pytest.mark.parametrize(
    "options",
    [{"strength": 1.1}, {"strength": -0.1}, {"clip": 1.0}, {"clip": -0.1}, {"knowledge": "all"}, {"decay_updates": -1}],
)
def test_options_out_of_bounds_are_refused(options):
    with pytest.raises(ValueError, match="privileged"):
        privileged(batch_of(group()), scored(0.1), **options)


def test_a_task_without_such_prompts_is_refused():
    with pytest.raises(ValueError, match="privileged_prompt"):
        privileged(batch_of(group()), SignalProbe(object(), None))


def test_what_a_stage_tells_of_problems_is_told_by_their_keys():
    one, two = (group(of=replace(problem(), key=key)) for key in "ab")
    batch = batch_of(one, two)
    assert knowledge_of(batch, Told(), knowledge={"b": "e"}) == [None] * 3 + ["e"] * 3
    # Without a stage that says of which problem, nothing is.
    assert knowledge_of(batch, Told(), knowledge="lessons") == [None] * 6
    # An open gate changes the magnitudes of the told problem alone.
    made = privileged(batch, scored(1.0), knowledge={"b": "e"}, strength=1.0)
    assert [credit.cost["scored_tokens"] > 0 for credit in made] == [False] * 3 + [True] * 3
    assert made[0].advantages[0] == 1.0
    assert made[3].advantages[0] == pytest.approx(1.2)
