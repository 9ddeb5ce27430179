"""The guard: what a verifier does wrong is recorded and trains nothing; truncated is said by the guard alone."""

import math
from dataclasses import replace

import pytest

from forkpoint.records import Outcome, Problem, StopReason, Verdict
from forkpoint.verifiers.guard import guarded
from forkpoint.verifiers.outside import written_rollout

PROBLEM = Problem(task="t", key="0", prompt="p", answer="a")
GOOD = Verdict(outcome=Outcome.CORRECT, correct=True, score=1.0, answer="a", reason="fine", parts={"moves": 1.0})
WRONG = Verdict(outcome=Outcome.WRONG, correct=False)


def judge(verdict, *, stop=StopReason.EOS, text="abcd", fixed=None):
    rollout = replace(written_rollout(PROBLEM, text), stop_reason=stop)
    return guarded(lambda problem, rollout: verdict, fixed_length=fixed)(PROBLEM, rollout)


@pytest.mark.parametrize("stop", [StopReason.EOS, StopReason.STOP, StopReason.DONE])
@pytest.mark.parametrize("verdict", [GOOD, WRONG])
def test_a_sound_verdict_passes_untouched(verdict, stop):
    assert judge(verdict, stop=stop) is verdict


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), KeyError("k"), RecursionError(), MemoryError(), ZeroDivisionError("x" * 999), StopIteration()],
)
def test_an_exception_is_an_error_and_no_wrong_answer(error):
    def verify(problem, rollout):
        raise error

    verdict = guarded(verify)(PROBLEM, written_rollout(PROBLEM, "x"))
    assert (verdict.outcome, verdict.correct, verdict.usable) == (Outcome.ERROR, None, False)
    assert verdict.reason.startswith(type(error).__name__)
    assert len(verdict.reason) <= 300


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_is_no_failure_of_the_verifier(error):
    def verify(problem, rollout):
        raise error

    with pytest.raises(type(error)):
        guarded(verify)(PROBLEM, written_rollout(PROBLEM, "x"))


@pytest.mark.parametrize(
    "flawed",
    [
        None,
        True,
        1.0,
        "correct",
        replace(GOOD, score=1.7),
        replace(GOOD, score=-0.1),
        replace(GOOD, score=math.nan),
        replace(GOOD, score="1"),
        replace(GOOD, correct=False),
        replace(GOOD, correct=None),
        replace(GOOD, correct=1),
        replace(WRONG, correct=True),
        replace(WRONG, correct=None),
        Verdict(outcome=Outcome.ABSTAINED, correct=False),
        Verdict(outcome=Outcome.ERROR, correct=True),
    ],
)
def test_a_verdict_that_contradicts_itself_is_an_error(flawed):
    verdict = judge(flawed)
    assert (verdict.outcome, verdict.correct) == (Outcome.ERROR, None)
    assert verdict.reason.startswith(("the verifier returned", "TypeError"))


@pytest.mark.parametrize("verdict", [GOOD, WRONG])
def test_a_rollout_out_of_budget_is_truncated_and_not_correct(verdict):
    judged = judge(verdict, stop=StopReason.LENGTH)
    assert (judged.outcome, judged.correct, judged.usable) == (Outcome.TRUNCATED, False, True)
    assert judged.parts == verdict.parts
    assert judged.answer == verdict.answer
    assert "ran out of budget" in judged.reason


@pytest.mark.parametrize("outcome", [Outcome.ABSTAINED, Outcome.ERROR])
def test_a_verifier_that_could_not_tell_stays_so_when_the_budget_ran_out(outcome):
    verdict = Verdict(outcome=outcome, correct=None)
    assert judge(verdict, stop=StopReason.LENGTH) is verdict


def test_a_task_of_fixed_length_truncates_only_what_has_another_length():
    assert judge(GOOD, stop=StopReason.LENGTH, fixed=lambda problem: 4) is GOOD
    assert judge(GOOD, stop=StopReason.LENGTH, fixed=lambda problem: 5).outcome is Outcome.TRUNCATED
