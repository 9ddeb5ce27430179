"""The checks for plug-in authors: ours pass, and every kind of fault is found."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from forkpoint.conformance import (
    HOSTILE,
    check_credit_rule,
    check_sampler,
    check_task,
    check_verifier,
    written_rollout,
)
from forkpoint.credit import group_mean_std, leave_one_out, max_rl
from forkpoint.probe import SampleRequest
from forkpoint.records import Batch, Credit, Group, Outcome, Problem, Reward, Verdict, frozen_array
from forkpoint.seeds import Key
from forkpoint.tasks.paths import Settings, build
from forkpoint.tasks.protocol import Demonstration

PROBLEM = Problem(task="t", key="0", prompt="p", answer="a")


class Wrapped:
    """A task with some of its methods replaced."""

    def __init__(self, task, **methods):
        self._task = task
        for name, method in methods.items():
            setattr(self, name, method)

    def __getattr__(self, name):
        return getattr(self._task, name)


PATHS = build(Settings(branches=2, depth=2))


def faults(**methods):
    return check_task(Wrapped(PATHS, **methods), count=4).faults


def test_a_sound_task_has_no_fault():
    result = check_task(PATHS, count=10)
    assert (result.ok, result.faults, result.problems, result.accepted) == (True, (), 10, 10)


def test_a_written_rollout_holds_its_text():
    rollout = written_rollout(PROBLEM, "abc")
    assert rollout.text == "abc"
    assert len(rollout.tokens) == len(rollout.loss_mask) == len(rollout.behavior_logprobs) == 3


def test_the_faults_of_a_task_are_found():
    counter = itertools.count()
    assert any(
        "another problem" in f for f in faults(problem=lambda key, d=None: PATHS.problem(key.child(next(counter))))
    )
    assert any("reference answer" in f for f in faults(solve=lambda problem: problem.answer[:-1]))
    assert any("wrong answer" in f for f in faults(wrong_answers=lambda problem: [problem.answer]))
    yes = Verdict(outcome=Outcome.CORRECT, correct=True)
    assert any(
        "is accepted" in f for f in faults(verify=lambda problem, rollout: yes, wrong_answers=lambda problem: [])
    )
    assert any("holds no text" in f for f in faults(corpus=lambda name, key: iter(())))
    alien = Demonstration(prompt="é", text="a", provenance="x")
    assert any("outside the alphabet" in f for f in faults(corpus=lambda name, key: iter([alien])))
    assert not check_task(Wrapped(PATHS, solve=lambda problem: ""), count=2).ok


def test_the_faults_of_a_verifier_are_found():
    def verifier(**changes):
        verdict = replace(Verdict(outcome=Outcome.WRONG, correct=False), **changes)
        return lambda problem, rollout: verdict

    def raises(problem, rollout):
        return Verdict(outcome=Outcome.WRONG, correct=bool(1 / len(rollout.text.strip())) and False)

    assert check_verifier(verifier(), PROBLEM) == []
    assert len(check_verifier(verifier(outcome=Outcome.CORRECT, correct=True), PROBLEM)) == len(HOSTILE)
    assert "scores 1.5" in check_verifier(verifier(score=1.5), PROBLEM)[0]
    assert "scores nan" in check_verifier(verifier(score=float("nan")), PROBLEM)[0]
    assert "yet correct" in check_verifier(verifier(outcome=Outcome.ERROR), PROBLEM)[0]
    assert "only the guard" in check_verifier(verifier(outcome=Outcome.TRUNCATED), PROBLEM)[0]
    assert [f.split()[-1] for f in check_verifier(raises, PROBLEM)] == ["ZeroDivisionError"] * 2


def batch():
    rollouts = tuple(
        replace(
            written_rollout(PROBLEM, "abcd"), id=str(i), loss_mask=frozen_array([True, True, False, True], np.bool_)
        )
        for i in range(3)
    )
    verdicts = tuple(Verdict(outcome=Outcome.WRONG, correct=False) for _ in rollouts)
    rewards = tuple(Reward(total=float(i == 1)) for i in range(3))
    return Batch(groups=(Group(problem=PROBLEM, rollouts=rollouts, verdicts=verdicts, rewards=rewards),), update=1)


@pytest.mark.parametrize("rule", [leave_one_out, group_mean_std, max_rl])
def test_our_credit_rules_pass(rule):
    assert check_credit_rule(rule, batch()) == []


@pytest.mark.parametrize(
    ("advantages", "fault"),
    [
        ([1, 1, 1, 1], "not trained"),
        ([1, 1, 0], "advantages for"),
        ([1, np.nan, 0, 1], "finite"),
        ([1, np.inf, 0, 1], "finite"),
    ],
)
def test_the_faults_of_a_credit_rule_are_found(advantages, fault):
    def rule(batch, probe):
        return [Credit(advantages=frozen_array(advantages, np.float32), rule="x") for _ in batch.rollouts]

    assert all(fault in found for found in check_credit_rule(rule, batch()))
    assert len(check_credit_rule(rule, batch())) == 3
    assert check_credit_rule(lambda batch, probe: [], batch()) == ["0 credits for 3 rollouts"]


@dataclass
class Engine:
    """A sampler that writes its request's number, with a fault of choice."""

    fault: str = ""
    calls: int = 0

    def stream(self, requests):
        self.calls += 1
        for place, request in enumerate(requests):
            if self.fault == "loses" and place == 0:
                continue
            count = 3 + (self.fault == "forgets" and self.calls == 2)
            rollout = replace(written_rollout(PROBLEM, "x" * count), id=request.key.hex)
            if self.fault == "ragged":
                rollout = replace(rollout, behavior_logprobs=frozen_array([0.0], np.float32))
            yield rollout

    def update_weights(self, version):
        pass


def test_the_faults_of_a_sampler_are_found():
    requests = [
        SampleRequest(
            key=Key.root(0).child(i), problem=PROBLEM, prompt_tokens=frozen_array([0], np.int32),
            group_id="g", stage="s", update=0, index=i, max_new_tokens=3,
        )
        for i in range(3)
    ]  # fmt: skip
    assert check_sampler(Engine(), requests) == []
    assert any("no rollout" in f for f in check_sampler(Engine("loses"), requests))
    assert all("unequal length" in f for f in check_sampler(Engine("ragged"), requests))
    assert len(check_sampler(Engine("forgets"), requests)) == 3
