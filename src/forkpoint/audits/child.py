"""What the killable child of a scorer audit does: call the scorer, and write down what else happened meanwhile.

An audit hook of the interpreter sees files opened for writing, sockets, processes, and code that was compiled from the
attack.  A hook cannot be taken off again, so this module is imported only where a child dies soon after.
"""

import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from signal import SIGKILL
from types import CodeType
from typing import Any

from forkpoint.audits.attacks import MARK
from forkpoint.records import Verdict
from forkpoint.verifiers.outside import ask, decode_problem, encode_result, is_verifier, written_rollout
from forkpoint.verifiers.worker import RAISED, descendants

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
STARTS = "starts a process"
ATTEMPTS = 20
"""Effects of one call that are kept."""


class _Watch:
    """What the hook saw during the call that is under way."""

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []

    def note(self, effect: str) -> None:
        if len(self.seen) < ATTEMPTS and effect not in self.seen:
            self.seen.append(effect)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            if arguments[2] & WRITES and arguments[0] != os.devnull:
                self.note("opens a file for writing")
        elif event in CHANGES:
            self.note("changes files")
        elif event in NETWORK:
            self.note("tries the network")
        elif event in PROCESSES:
            self.note(STARTS)
        elif event == "exec" and arguments and isinstance(arguments[0], CodeType) and _holds_mark(arguments[0]):
            self.note("runs the answer as a program")


def _holds_mark(code: CodeType) -> bool:
    return any(
        (isinstance(item, str) and MARK in item) or (isinstance(item, CodeType) and _holds_mark(item))
        for item in (*code.co_consts, *code.co_names)
    )


@functools.cache
def _watch() -> _Watch:
    watch = _Watch()
    sys.addaudithook(watch.hook)
    return watch


@functools.cache
def _scorer(name: str, settings: str | None) -> Callable[[Any, str | None], object]:
    """A function of a problem and a text; `settings`: the JSON of a task's, which `name` then builds."""
    if settings is None:
        return functools.partial(ask, name)
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    table = json.loads(settings)
    made = getattr(module, "Settings", None)
    build = getattr(module, attribute)
    task = build(made(**table)) if made else build(**table)
    return lambda problem, text: task.verify(problem, written_rollout(problem, text or ""))


def about(name: str, settings: str | None) -> dict[str, Any]:
    """Whether a scorer is a verifier, and the variables that it can read."""
    verifies = settings is not None or is_verifier(name)
    return {"verifier": verifies, "variables": sorted(os.environ)}


def attack(
    name: str, settings: str | None, problem: Mapping[str, Any], text: str | None, own_worker: bool
) -> dict[str, Any]:
    """What came of one text: `score`, `correct`, `raised`, `effects`.

    With `own_worker` the processes that the scorer starts are its own affair.
    """
    scorer, asked, watch = _scorer(name, settings), decode_problem(problem), _watch()
    before = set(descendants(os.getpid()))
    watch.seen, watch.active = [], True
    try:
        result, raised = scorer(asked, text), ""
    except RAISED as error:
        result, raised = None, f"{type(error).__name__}: {error}"[:200]
    finally:
        watch.active = False
    left = set(descendants(os.getpid())) - before
    if own_worker:
        watch.seen = [effect for effect in watch.seen if effect != STARTS]
    elif left:
        watch.note("leaves a process behind")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
    return _graded(result, raised) | {"effects": watch.seen}


def _graded(result: object, raised: str) -> dict[str, Any]:
    """A verdict that could not tell, and a result that is no finite number, count as raised."""
    if raised:
        return {"score": None, "correct": False, "raised": raised}
    if isinstance(result, Verdict):
        failed = "" if result.usable else f"{result.outcome}: {result.reason}"[:200]
        score = 1.0 if result.correct else (result.score or 0.0)
        return {"score": None if failed else score, "correct": result.correct is True, "raised": failed}
    number = encode_result(result).get("score")
    if number is None or not math.isfinite(number):
        return {"score": None, "correct": False, "raised": f"returned {result!r}"[:200]}
    return {"score": number, "correct": number >= 1, "raised": ""}


def serve(job: str, *arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """The entrance of the worker: `about` or `attack`."""
    return about(*arguments) if job == "about" else attack(*arguments)
