"""Progress toward the answer: hand numbers, telescoping, and the chain rule of probability on a real small policy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from signal_examples import SignalProbe, batch_of, rewarded_group, written

from forkpoint.credit.answer_progress import answer_probabilities, answer_progress, progress
from forkpoint.credit.group import leave_one_out
from forkpoint.credit.transcripts import batch_cuts
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.probing.local import BranchPlan, LocalProbe
from forkpoint.records import Group, Outcome, Reward, Rollout, StopReason, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Arithmetic


class Asked:
    """Steps of two characters; the answer is asked for after the mark."""

    answer_lead = "#"

    def cut_points(self, problem, rollout):
        return range(0, len(rollout.tokens), 2)

    def early_answer(self, problem, transcript):
        return "" if "z" in transcript else f"#{problem.answer}"


def chance_grows(prompt, text):
    """The mark costs 3 nats, the answer a tenth of a nat less with each character before it."""
    return [-3.0 if c == "#" else -2.0 + 0.1 * len(prompt) for c in text]


def test_progress_by_hand():
    group = rewarded_group([written("bcdefg"), written("bc")], [1.0, 0.0])
    probe = SignalProbe(Asked(), chance_grows)
    found = answer_progress(batch_of(group), probe, weight=2.0)
    p = np.exp([-1.9, -1.7, -1.5])
    steps = [2 * (p[1] - p[0]), 2 * (p[2] - p[1]), 0.0]
    assert found[0].advantages == pytest.approx(1 + np.repeat(steps, 2), rel=1e-6)
    assert found[1].advantages == pytest.approx([-1.0, -1.0])
    assert found[0].details["cuts"] == [0, 2, 4]
    assert found[0].details["values"] == pytest.approx(p, rel=1e-6)
    assert found[0].details["progress"] == pytest.approx(p[2] - p[0], rel=1e-6)
    # The first question is the same for both, and asked once.
    assert [prompt for prompt, _ in probe.asked] == ["a", "abc", "abcde"]
    assert probe.calls == 1


def test_without_the_outcome_only_progress_is_left():
    group = rewarded_group([written("bcde"), written("bc")], [1.0, 0.0])
    found = answer_progress(batch_of(group), SignalProbe(Asked(), chance_grows), outcome=False)
    assert found[0].advantages == pytest.approx([np.exp(-1.7) - np.exp(-1.9)] * 2 + [0.0, 0.0], rel=1e-5)
    assert not found[1].advantages.any()


def test_no_answer_after_a_transcript_is_a_chance_of_zero():
    group = rewarded_group([written("zcde"), written("bc")], [1.0, 0.0])
    found = answer_progress(batch_of(group), SignalProbe(Asked(), chance_grows))
    assert found[0].details["values"] == [pytest.approx(np.exp(-1.9), rel=1e-6), 0.0]
    assert found[0].details["progress"] < 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_sum_telescopes_and_is_bounded(values):
    found = progress(np.array(values))
    assert found.sum() == pytest.approx(values[-1] - values[0], abs=1e-12)
    assert abs(found.sum()) <= 1 + 1e-12
    assert found[-1] == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.integers(0, 8), st.integers(1, 5))
def test_steps_that_change_nothing_earn_nothing(values, place, copies):
    place = min(place, len(values) - 1)
    longer = values[:place] + [values[place]] * copies + values[place:]
    assert progress(np.array(longer)).sum() == pytest.approx(progress(np.array(values)).sum(), abs=1e-12)


@pytest.mark.parametrize("task", [object(), type("Uncut", (), {"early_answer": lambda self, problem, text: "b"})()])
def test_a_task_that_lacks_a_method_is_refused(task):
    with pytest.raises(ValueError, match=r"early_answer|cut_points"):
        answer_progress(batch_of(rewarded_group([written("b"), written("c")], [1, 0])), SignalProbe(task))
    with pytest.raises(ValueError, match="weight"):
        answer_progress(batch_of(rewarded_group([written("b"), written("c")], [1, 0])), SignalProbe(task), weight=-1.0)


@pytest.fixture(scope="module")
def policy():
    tokenizer = alphabet_tokenizer(Arithmetic().alphabet)
    decoder = build_decoder(
        shape="llama", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=96, key=Key.root(3)
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return CausalPolicy(decoder, Texts(tokenizer))


@pytest.fixture
def walked(policy):
    """A batch of two written scratchpads of the task arithmetic, and a probe of the policy."""
    task = Arithmetic()
    one = task.problem(Key.root(5).child(1))
    right = task.solve(one)
    texts = [right, right.replace("=", "=1")]
    rollouts = tuple(
        Rollout(
            id=text,
            group_id="g",
            stage="rl",
            update=0,
            index=i,
            problem_key=one.key,
            temperature=0.7,
            text=text,
            prompt_tokens=policy.texts.encode_prompt(one.prompt),
            tokens=policy.texts.encode(text),
            seed="0",
            behavior_logprobs=frozen_array(np.zeros(len(text)), np.float32),
            stop_reason=StopReason.STOP,
            loss_mask=frozen_array(np.ones(len(text)), np.bool_),
        )
        for i, text in enumerate(texts)
    )
    verdicts = tuple(Verdict(outcome=Outcome.CORRECT if i == 0 else Outcome.WRONG, correct=i == 0) for i in range(2))
    group = Group(problem=one, rollouts=rollouts, verdicts=verdicts, rewards=(Reward(total=1.0), Reward(total=0.0)))
    plan = BranchPlan(task=task, key=Key.root(0), max_new_tokens=64)
    return batch_of(group), LocalProbe(policy, None, None, plan=plan), task


def next_token_distribution(policy, tokens, temperature):
    """Straight from the model's logits, one forward."""
    with torch.inference_mode():
        logits = policy.model(torch.tensor([tokens.tolist()])).logits[0, -1].double()
    return torch.softmax(logits / temperature, -1).numpy()


def test_probabilities_are_the_models_own_by_the_chain_rule(policy, walked):
    batch, probe, _ = walked
    cuts = batch_cuts(batch, probe)
    found = answer_probabilities(batch, probe, cuts)
    problem = batch.groups[0].problem
    answer = policy.texts.encode(f"{problem.answer}\n")
    for rollout, mine, values in zip(batch.rollouts, cuts, found, strict=True):
        assert len(mine) == rollout.text.count(";") + 1
        for cut, value in zip(mine, values, strict=True):
            tokens = np.concatenate([rollout.prompt_tokens, rollout.tokens[: cut.position], policy.texts.encode("#")])
            chance = 1.0
            for token in answer:
                chance *= next_token_distribution(policy, tokens, 0.7)[token]
                tokens = np.append(tokens, token)
            assert value == pytest.approx(chance, rel=1e-4)
    assert len({float(value) for values in found for value in values}) > 3


def test_progress_telescopes_on_a_real_policy_and_counts_its_cost(policy, walked):
    batch, probe, _ = walked
    found = answer_progress(batch, probe)
    base = leave_one_out(batch, None)
    for rollout, credit, plain in zip(batch.rollouts, found, base, strict=True):
        first = np.array(credit.details["cuts"])
        steps = (credit.advantages - plain.advantages)[first]
        values = credit.details["values"]
        assert steps.sum() == pytest.approx(values[-1] - values[0], abs=1e-6)
        assert (credit.advantages[rollout.loss_mask] != plain.advantages[rollout.loss_mask]).any()
    distinct = 2 * (batch.rollouts[0].text.count(";") + 1) - 1
    answer = len(batch.groups[0].problem.answer) + 2
    assert probe.cost["scored_tokens"] == distinct * answer
