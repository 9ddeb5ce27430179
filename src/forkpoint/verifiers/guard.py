"""The guard around every verifier: a failure becomes a record, never a reward and never a crash.

Verifiers that run foreign code live in killable children of their own; the guard is the last fence.
"""

from collections.abc import Callable
from typing import TypeAlias

from forkpoint.records import Outcome, Problem, Rollout, StopReason, Verdict

Verifier: TypeAlias = Callable[[Problem, Rollout], Verdict]


def guarded(verifier: Verifier, *, fixed_length: Callable[[Problem], int] | None = None) -> Verifier:
    """The verifier with its failures recorded and its truncated rollouts marked.

    A rollout that ran out of budget is TRUNCATED and not correct, unless `fixed_length` says that rollouts of this
    problem have just this many tokens.  An exception of the verifier, and a verdict that contradicts itself or whose
    score lies outside [0, 1], is ERROR with `correct` None.
    """

    def verify(problem: Problem, rollout: Rollout) -> Verdict:
        try:
            verdict = verifier(problem, rollout)
            flaw = _flaw(verdict)
        except Exception as error:  # noqa: BLE001  (the rollout boundary: the failure is recorded, training goes on)
            return Verdict(outcome=Outcome.ERROR, correct=None, reason=f"{type(error).__name__}: {error}"[:300])
        if flaw:
            return Verdict(outcome=Outcome.ERROR, correct=None, reason=f"the verifier returned {flaw}"[:300])
        if not verdict.usable or not _truncated(problem, rollout, fixed_length):
            return verdict
        return Verdict(
            outcome=Outcome.TRUNCATED,
            correct=False,
            score=verdict.score,
            answer=verdict.answer,
            reason=f"ran out of budget; {verdict.reason}",
            parts=verdict.parts,
        )

    return verify


def _flaw(verdict: object) -> str:
    """What makes a verdict unfit to be recorded; empty for a sound one."""
    if not isinstance(verdict, Verdict):
        return type(verdict).__name__
    right = verdict.correct is True
    if right != (verdict.outcome is Outcome.CORRECT) or (verdict.correct is None) == verdict.usable:
        return f"{verdict.outcome} with correct = {verdict.correct}"
    if verdict.score is not None and not 0 <= verdict.score <= 1:
        return f"score = {verdict.score}"
    return ""


def _truncated(problem: Problem, rollout: Rollout, fixed_length: Callable[[Problem], int] | None) -> bool:
    if rollout.stop_reason is not StopReason.LENGTH:
        return False
    return fixed_length is None or len(rollout.tokens) != fixed_length(problem)
