"""Texts of known worth for the verifier, judged in a process of their own: it may hang, raise, or end its process."""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.errors import TaskError
from forkpoint.records import Outcome, Problem, Rollout, Verdict
from forkpoint.tasks.protocol import Task
from forkpoint.verifiers.no_answers import no_answers
from forkpoint.verifiers.outside import written_rollout

FIRST_SECONDS, LATER_SECONDS = 120.0, 20.0
"""How long one verdict may take before its process is killed; the first one may start workers of its own."""
HOPELESS = 4
"""Failures in a row after which no more is asked."""
REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One text and whether the verifier must accept it."""

    name: str
    problem: Problem
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the verifier said of a canary, and how long it took."""

    name: str
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All judgements, and why there are no more where the verifier did not get to the end."""

    judgements: tuple[Judgement, ...] = ()
    ended: str = ""

    @property
    def verdict_seconds(self) -> float:
        """The median time of a verdict, the first one left out: it may start a worker."""
        later = [judgement.seconds for judgement in self.judgements[1:]]
        return float(np.median(later)) if later else 0.0


def canaries(task: Task, problems: Sequence[Problem]) -> list[Canary]:
    """The canaries of some problems; one that may be right by its nature is left out."""
    found = []
    for problem in problems:
        solution = ""
        with suppress(TaskError):  # a dataset without reference answers
            solution = task.solve(problem)
            found.append(Canary(name=REFERENCE, problem=problem, text=solution))
        texts = no_answers(problem, solution)
        found += [Canary(name=name, problem=problem, text=text) for name, text in texts.items()]
    return found


def written(problem: Problem, text: str) -> Rollout:
    """A rollout that holds a text, under a name that shows who asks."""
    return replace(written_rollout(problem, text), id="canary", group_id="canary", stage="doctor")


Verify = Callable[[Problem, Sequence[Rollout]], list[Verdict]]


def judged(verify: Verify, canary: Canary) -> Judgement:
    """The verdict on one canary, in this process."""
    began = time.perf_counter()
    verdict = verify(canary.problem, [written(canary.problem, canary.text)])[0]
    seconds = time.perf_counter() - began
    return Judgement(name=canary.name, outcome=verdict.outcome, reason=verdict.reason[:200], seconds=seconds)


def trial(
    verify: Verify,
    chosen: Sequence[Canary],
    *,
    close: Callable[[], None] = lambda: None,
    first_seconds: float = FIRST_SECONDS,
    later_seconds: float = LATER_SECONDS,
) -> Trial:
    """The judgements on all canaries, made in a fork of this process; `close` ends there what the verifier started.

    The fork sees the verifier as it is here.  A verifier that takes too long is killed with it, and one that ends its
    process ends only the fork.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _judge_all(verify, chosen, close, writing)
    os.close(writing)
    found: list[Judgement] = []
    ended = ""
    try:
        for text in _lines(reading, first_seconds, later_seconds):
            name, outcome, reason, seconds = json.loads(text)
            found.append(Judgement(name=name, outcome=Outcome(outcome), reason=reason, seconds=seconds))
    except TimeoutError as error:
        ended = f"gave no verdict on '{chosen[len(found)].name}' within {error} s"
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    hopeless = [judgement.outcome for judgement in found[-HOPELESS:]] == [Outcome.ERROR] * HOPELESS
    if not ended and len(found) < len(chosen) and not hopeless:
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        ended = f"ended its process on '{chosen[len(found)].name}' ({how})"
    return Trial(judgements=tuple(found), ended=ended)


def _judge_all(verify: Verify, chosen: Sequence[Canary], close: Callable[[], None], writing: int) -> None:
    """Judges in the fork, one line of JSON each, and leaves it without any clean-up of the parent's things."""
    code = 1
    try:
        failures = 0
        for canary in chosen:
            got = judged(verify, canary)
            failures = failures + 1 if got.outcome is Outcome.ERROR else 0
            fields = json.dumps([got.name, str(got.outcome), got.reason, got.seconds])
            os.write(writing, fields.encode("utf-8", "replace") + b"\n")
            if failures == HOPELESS:
                os._exit(0)
        close()
        code = 0
    finally:
        os._exit(code)


def _lines(reading: int, first_seconds: float, later_seconds: float) -> Iterator[bytes]:
    """The lines of a pipe; TimeoutError, with the seconds, when the next one is late."""
    rest, allowed = b"", first_seconds
    while True:
        ready, _, _ = select.select([reading], [], [], allowed)
        if not ready:
            raise TimeoutError(f"{allowed:g}")
        data = os.read(reading, 65536)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        allowed = later_seconds
        yield from whole
