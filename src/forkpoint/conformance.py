"""Checks for the authors of tasks, verifiers, credit rules and samplers; our own pass the same ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.probe import Probe, Sampler, SampleRequest
from forkpoint.records import Batch, Credit, Outcome, Problem, Rollout, Verdict
from forkpoint.seeds import Key
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.outside import written_rollout

HOSTILE = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e",
    "9" * 10_000,
    "(" * 5_000,
    "1e999999999",
    "nan",
    "<think>",
    "\\boxed{" * 500,
)
"""Texts that no verifier may accept, hang on, or raise for."""


MAX_FAILURES = 3
"""Reference answers in a row on which a verifier may fail before a task is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheck:
    """What `check_task` found."""

    problems: int
    accepted: int
    wrong: int
    refused: int
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def check_task(task: Task, *, count: int = 200, seed: int = 0) -> TaskCheck:
    """Reference answers verify, wrong and hostile ones do not, problems repeat from their key, corpora give texts."""
    faults: list[str] = []
    accepted = wrong = refused = failures = 0
    for index in range(count):
        key = Key.root(seed).child("conformance", index)
        problem = task.problem(key)
        if task.problem(key) != problem:
            faults.append(f"{problem.key}: the same key gives another problem")
        verdict = task.verify(problem, written_rollout(problem, task.solve(problem)))
        accepted += verdict.correct is True
        failures = failures + 1 if verdict.outcome is Outcome.ERROR else 0
        if failures == MAX_FAILURES:
            faults.append(f"the verifier failed on {failures} reference answers in a row: {verdict.reason}")
            break
        if not verdict.correct:
            answer = task.solve(problem)[:60]
            faults.append(f"{problem.key}: the reference answer {answer!r} is {verdict.outcome}: {verdict.reason}")
        for answer in (*task.wrong_answers(problem), *(HOSTILE if index < 3 else ())):
            wrong += 1
            judged = task.verify(problem, written_rollout(problem, answer))
            refused += not judged.correct
            if judged.correct:
                faults.append(f"{problem.key}: the wrong answer {answer[:60]!r} is accepted")
    faults += _corpus_faults(task, Key.root(seed))
    return TaskCheck(problems=index + 1, accepted=accepted, wrong=wrong, refused=refused, faults=tuple(faults))


def _corpus_faults(task: Task, key: Key) -> Iterable[str]:
    allowed = None if task.alphabet is None else set(task.alphabet)
    for name in task.corpora:
        text = next(iter(task.corpus(name, key.child(name))), None)
        if text is None:
            yield f"corpus {name}: holds no text"
        elif allowed is not None and isinstance(text.prompt, str) and not set(text.prompt + text.text) <= allowed:
            yield f"corpus {name}: {text.text[:60]!r} has a character outside the alphabet"


def check_verifier(verifier: Callable[[Problem, Rollout], Verdict], problem: Problem) -> list[str]:
    """Faults of a verifier on hostile texts: an exception, no verdict, an acceptance, a score outside [0, 1]."""
    faults = []
    for text in HOSTILE:
        try:
            verdict = verifier(problem, written_rollout(problem, text))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            faults.append(f"{text[:20]!r} raises {type(error).__name__}")
            continue
        if verdict.correct:
            faults.append(f"{text[:20]!r} is accepted")
        if verdict.score is not None and not 0 <= verdict.score <= 1:
            faults.append(f"{text[:20]!r} scores {verdict.score}")
        if verdict.correct is not None and not verdict.usable:
            faults.append(f"{text[:20]!r} is {verdict.outcome} and yet correct = {verdict.correct}")
        if verdict.outcome is Outcome.TRUNCATED:
            faults.append(f"{text[:20]!r} is called truncated, which only the guard may do")
    return faults


def check_credit_rule(rule: Callable[[Batch, Probe | None], list[Credit]], batch: Batch) -> list[str]:
    """Faults of a credit rule on a batch: a missing credit, a wrong shape, advantage on untrained tokens, nan."""
    credits = rule(batch, None)
    if len(credits) != len(batch.rollouts):
        return [f"{len(credits)} credits for {len(batch.rollouts)} rollouts"]
    faults = []
    for rollout, credit in zip(batch.rollouts, credits, strict=True):
        if credit.advantages.shape != rollout.tokens.shape:
            faults.append(f"{rollout.id}: {credit.advantages.shape} advantages for {rollout.tokens.shape} tokens")
        elif credit.advantages[~rollout.loss_mask].any():
            faults.append(f"{rollout.id}: advantage on tokens that are not trained")
        elif not np.isfinite(credit.advantages).all():
            faults.append(f"{rollout.id}: an advantage is not finite")
    return faults


def check_sampler(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[str]:
    """Faults of a sampler: a missing or repeated rollout, another one when asked again in another order."""
    first = {rollout.id: rollout for rollout in sampler.stream(requests)}
    again = {rollout.id: rollout for rollout in sampler.stream(list(requests)[::-1])}
    faults = [f"{request.key.hex}: no rollout" for request in requests if request.key.hex not in first]
    for name, rollout in first.items():
        if len(rollout.tokens) != len(rollout.behavior_logprobs) or len(rollout.tokens) != len(rollout.loss_mask):
            faults.append(f"{name}: arrays of unequal length")
        if name not in again or again[name].tokens.tobytes() != rollout.tokens.tobytes():
            faults.append(f"{name}: another rollout when asked again")
    return faults
