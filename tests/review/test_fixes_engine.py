"""Repair, leak check and verification through the real probe, engine and task, with weights that know nothing."""

import numpy as np
import pytest

from forkpoint.meter.subject import Subject
from forkpoint.policies.causal import CausalPolicy
from forkpoint.policies.texts import Texts, alphabet_tokenizer
from forkpoint.policies.tiny import build_decoder
from forkpoint.records import EditKind, Group, Rollout, StopReason, frozen_array
from forkpoint.review.gate import hint_gate
from forkpoint.review.postmortem import make_edit
from forkpoint.review.repair import Repair, propose
from forkpoint.review.steps import Blamed
from forkpoint.review.verify import Trials, verify
from forkpoint.seeds import Key
from forkpoint.tasks.arithmetic import Settings, build
from forkpoint.tasks.protocol import split_problems

KEY = Key.root(9)


@pytest.fixture(scope="module")
def subject():
    task = build(Settings(terms=3, operations="+"))
    tokenizer = alphabet_tokenizer(task.alphabet)
    model = build_decoder(
        shape="qwen3", vocabulary=len(tokenizer), layers=1, width=16, heads=2, context=256, key=Key.root(0)
    )
    return Subject(policy=CausalPolicy(model, Texts(tokenizer)), task=task, key=KEY, max_new_tokens=24)


def failed(subject, name="failed", place=0):
    """A rollout whose first step is one too large, and its group."""
    problem = split_problems(subject.task, KEY, 4, evaluation=False)[place]
    first, second = problem.metadata["chain"].split("+")[:2]
    wrong = int(first) + int(second) + 1
    third = problem.metadata["chain"].split("+")[2]
    text = f"{first}+{second}={wrong};{wrong}+{third}={wrong + int(third)};#{wrong + int(third)}\n"
    texts, count = subject.policy.texts, len(text)
    rollout = Rollout(
        id=name, group_id="g", stage="rl", update=0, index=0, problem_key=problem.key,
        prompt_tokens=texts.encode_prompt(problem.prompt), tokens=texts.encode(text), temperature=1.0, text=text,
        stop_reason=StopReason.STOP, seed="0", behavior_logprobs=frozen_array(np.zeros(count), np.float32),
        loss_mask=frozen_array(np.ones(count), np.bool_),
    )  # fmt: skip
    probe = subject.probe("written")
    return Group(problem=problem, rollouts=(rollout,), verdicts=tuple(probe.verify(problem, [rollout]))), rollout


def test_every_source_and_every_kind_of_cut(subject):
    group, rollout = failed(subject)
    assert group.verdicts[0].correct is False
    probe = subject.probe("review")
    first = rollout.text.index(";") + 1
    steps = [Blamed(group=group, rollout=rollout, start=0, end=first)]
    made = propose(steps, probe, settings=Repair(max_new_tokens=24), key=KEY)[0]
    assert [edit.source for edit in made.edits][-1:] == ["solver"]
    assert made.sampled_tokens == probe.cost["sampled_tokens"] > 0
    answer = rollout.text.index("#")
    edits = [
        *made.edits,
        make_edit(rollout.id, EditKind.FIX, first, answer, "1+1=2;", "model"),
        make_edit(rollout.id, EditKind.FIX, answer, len(rollout.text), f"#{group.problem.answer}\n", "model"),
        make_edit(rollout.id, EditKind.FIX, 0, first, f"{group.problem.answer}+0={group.problem.answer};", "model"),
    ]
    probe = subject.probe("review")
    settings = Trials(max_new_tokens=24, looks=(8, 16), fresh=8, check_steps=False)
    found = verify(edits, [group], probe, settings=settings, key=KEY)
    assert sum(each.cost["sampled_tokens"] for each in found) == probe.cost["sampled_tokens"]
    assert sum(each.cost["verifier_calls"] for each in found) == probe.cost["verifier_calls"]
    # Weights that know nothing never get there by themselves, so that the answer in the last step is a leak.
    assert [each.accepted for each in found] == [False] * len(edits)
    assert found[-2].reason == found[-1].reason == "leak: it holds the answer"
    assert all(each.leak is not None and abs(each.leak) < 1.0 for each in found)
    # Without the leak check the right answer is as good as it looks: sure, where a resampled step never is.
    settings = Trials(max_new_tokens=24, leak=None, check_steps=False)
    told = verify(edits[-2:-1], [group], subject.probe("review"), settings=settings, key=KEY)[0]
    assert told.accepted
    assert told.lift == 1.0


def test_a_review_says_the_same_twice_and_in_company(subject):
    pairs = [failed(subject, f"r{place}", place) for place in range(3)]
    edits = [make_edit(rollout.id, EditKind.FIX, 0, rollout.text.index(";") + 1, "1+1=2;", "m") for _, rollout in pairs]
    groups = [group for group, _ in pairs]
    settings = Trials(max_new_tokens=24, looks=(8,), fresh=8, check_steps=False)
    together = verify(edits, groups, subject.probe("review"), settings=settings, key=KEY)
    assert verify(edits, groups, subject.probe("review"), settings=settings, key=KEY) == together
    alone = [verify([edit], groups, subject.probe("review"), settings=settings, key=KEY)[0] for edit in edits]
    assert [each.leak for each in alone] == pytest.approx([each.leak for each in together], abs=1e-5)
    assert [(each.fixed, each.p_value, each.cost) for each in alone] == [
        (each.fixed, each.p_value, each.cost) for each in together
    ]


def test_the_gate_stays_shut_for_weights_that_know_nothing(subject):
    problems = split_problems(subject.task, KEY, 8, evaluation=False)
    found = hint_gate(problems, subject.probe("gate"), key=KEY, max_new_tokens=12)
    assert not found.open
    assert found.hinted[1] == found.plain[1] == 8
