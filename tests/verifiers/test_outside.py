"""Functions of the user: every way to call them, every way they fail, and what a child is told."""

import json
from dataclasses import replace

import numpy as np
import pytest

from forkpoint.assembly.tables import build_task
from forkpoint.errors import TaskError, VerifierError
from forkpoint.records import Outcome, Problem, Span, SpanKind, frozen_array
from forkpoint.tasks.jsonl import Settings, build
from forkpoint.verifiers.outside import (
    OutsideTaskVerifier,
    OutsideVerifier,
    decode_problem,
    decode_rollout,
    encode_problem,
    encode_rollout,
    result_verdict,
    written_rollout,
)

PROBLEM = Problem(task="t", key="0a", prompt="What is 40 + 2?", answer="42", metadata={"seed": 3})
C, W, E = Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR


@pytest.fixture(scope="module")
def made():
    """A verifier of a name, made once."""
    known = {}

    def make(name):
        if name not in known:
            known[name] = OutsideVerifier(f"outside_targets:{name}", timeout_seconds=5.0)
        return known[name]

    yield make
    for verifier in known.values():
        verifier.close()


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("last_number", "41? no, 42", "42? no, 41"),
        ("gym_style", "42", "42 "),
        ("verl_style", "42", ""),
        ("verifier", "42", "4"),
    ],
)
def test_every_form_of_function_is_called_in_its_way(made, name, right, wrong):
    verify = made(name)
    verify.check()
    assert [verify(PROBLEM, written_rollout(PROBLEM, text)).outcome for text in (right, wrong)] == [C, W]


def test_every_failure_is_typed_and_the_next_call_is_right(made):
    verify = OutsideVerifier("outside_targets:misbehaving", timeout_seconds=1.0)
    expected = {
        "42": (C, ""), "41": (W, ""), "exit": (E, "crash: the child ended with status 3"),
        "sleep": (E, "timeout: no answer within 1 s"), "raise": (E, "ValueError"), "none": (E, "NoneType"),
        "nan": (E, "nan"), "large": (E, "7"), "negative": (E, "-0.5"), "text": (E, "str"), "half": (W, ""),
        "grow": (E, "oom"),
    }  # fmt: skip
    for text, (outcome, reason) in expected.items():
        verdict = verify(PROBLEM, written_rollout(PROBLEM, text))
        assert (verdict.outcome, verdict.correct) == (outcome, {C: True, W: False, E: None}[outcome]), text
        assert reason in verdict.reason
        assert verdict.score == {"42": 1.0, "41": 0.0, "half": 0.5}.get(text), text
    assert verify(PROBLEM, written_rollout(PROBLEM, "42")).correct
    verify.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside_targets", "must be written package.module:function"),
        (":f", "must be written package.module:function"),
        ("outside_targets:absent", "cannot be used: error: AttributeError"),
        ("no_such_module:f", "cannot be used: error: ModuleNotFoundError"),
        ("outside_targets:strange", "its parameter 'weather' is none of answer, "),
        ("outside_targets:blind", "none of its parameters takes the model's text"),
    ],
)
def test_a_name_that_cannot_be_called_is_one_line(name, message):
    with pytest.raises(VerifierError, match=message) as raised:
        OutsideVerifier(name).check()
    assert "\n" not in str(raised.value)


def test_problems_and_rollouts_come_back_whole():
    chat = replace(PROBLEM, prompt=({"role": "user", "content": "hi"},), difficulty=0.5)
    for problem in (PROBLEM, chat):
        assert decode_problem(encode_problem(problem)) == problem
    span = Span(start=0, end=2, kind=SpanKind.THINK, policy_version=3)
    rollout = replace(
        written_rollout(PROBLEM, "ab"), spans=(span,), behavior_logprobs=frozen_array([-0.1, -2.5], np.float32)
    )
    back = decode_rollout(encode_rollout(rollout))
    for name in ("prompt_tokens", "tokens", "behavior_logprobs", "loss_mask"):
        assert getattr(back, name).tobytes() == getattr(rollout, name).tobytes()
        assert getattr(back, name).dtype == getattr(rollout, name).dtype
    assert (back.spans, back.text, back.stop_reason) == (rollout.spans, "ab", rollout.stop_reason)


def test_only_a_score_of_one_is_correct():
    assert result_verdict({"score": 1.0}, answer="a").outcome is C
    assert result_verdict({"score": 0.999999}, answer="a").correct is False
    assert result_verdict({"other": "list"}, answer="a").correct is None


def asked(folder, name, **first):
    """The task `jsonl` of a file whose verifier is a function of the user."""
    lines = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(40)]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(line | (first if n == 0 else {})) for n, line in enumerate(lines)))
    return build(Settings(path=str(path), verifier=f"outside_targets:{name}"))


def test_a_file_of_questions_may_be_judged_by_the_users_function(tmp_path):
    task = asked(tmp_path, "last_number")
    problem = task.problems()[6]
    for text, outcome in (("1 or 7", C), ("7 or 1", W), ("", W), (task.solve(problem), C)):
        assert task.verify(problem, written_rollout(problem, text)).outcome is outcome
    task.close()


def test_a_solution_that_the_users_function_refuses_is_one_line(tmp_path):
    asked(tmp_path, "last_number", solution="so 1").close()
    with pytest.raises(TaskError, match=r"questions\.jsonl:1: verifier calls the solution wrong"):
        asked(tmp_path, "last_number", solution="so 2")
    with pytest.raises(VerifierError, match="cannot be used"):
        asked(tmp_path, "absent")


def test_a_task_of_the_user_judges_in_a_child():
    task = build_task({"name": "outside_targets:build_sleepy", "seconds": 60})
    assert isinstance(task.verify, OutsideTaskVerifier)
    task.verify = OutsideTaskVerifier("outside_targets:build_sleepy", {"seconds": 60}, timeout_seconds=0.5)
    found = [task.verify(PROBLEM, written_rollout(PROBLEM, text)) for text in ("42", "41", "sleep", "exit", "42")]
    assert [verdict.outcome for verdict in found] == [C, W, E, E, C]
    assert "no answer within 0.5 s" in found[2].reason
