"""A killable child process that answers requests with a deadline and a memory limit, for code that hangs or explodes.

The child is started by spawning an interpreter, never by forking this one.  Requests and answers are lines of JSON on
two private pipes; the standard streams of the child lead nowhere, and an answer counts only with the nonce of its
request.  A child that is late, dies, or runs out of memory is killed with all processes that it started; a fresh one
is asked once more where the fault may have been an earlier call's.  A child gets no environment variables beside those
listed here, writes no file contents, and, where the kernel allows, has no network.  It is no sandbox: it can read
files, so code that runs text as a program must not be let in.
"""

import ctypes
import importlib
import json
import os
import resource
import secrets
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from forkpoint.errors import VerifierError

Kind: TypeAlias = Literal["ok", "timeout", "crash", "oom", "error"]
"""`error`: the function raised; `crash`: the child died or broke the protocol."""
MAX_REPLY_BYTES = 16 << 20
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
FIXED_VARIABLES = {
    "PYTHONHASHSEED": "0",  # sets iterate alike in every child, so what they compute can be repeated
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",  # each thread would reserve address space
    "MKL_NUM_THREADS": "1",
}
RAISED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, NameError, OSError,
    RuntimeError, StopIteration, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What a function may raise and go on living; anything else is reported too, but ends the child."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a request: `value` where `kind` is `ok`, else the reason."""

    kind: Kind
    value: Any = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class _Child:
    process: subprocess.Popen[bytes]
    requests: int
    replies: int
    kill: Callable[[], object]
    has_network: bool = True
    served: int = 0
    buffer: bytearray = field(default_factory=bytearray)


class Worker:
    """Calls `module:function` in a child process; arguments and results must be JSON.

    `timeout_seconds` bounds a call, `start_seconds` the start with the imports of the function and of `imports`,
    `memory_bytes` the address space of the child, which starts in `folder` (this process's own without it).  The child
    lives from the first call to `close`, to the end of this object or of this process, or to the first answer that is
    not `ok` or `error`.  One call at a time.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = 5.0,
        memory_bytes: int = 2 << 30,
        imports: Sequence[str] = (),
        start_seconds: float = 120.0,
        folder: Path | None = None,
    ) -> None:
        self.target = target
        self.timeout_seconds = timeout_seconds
        self.memory_bytes = memory_bytes
        self.imports = tuple(imports)
        self.start_seconds = start_seconds
        self.folder = folder
        self._child: _Child | None = None
        self._owner = os.getpid()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the living child."""
        return None if self._child is None else self._child.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether a child waits for the next call."""
        return self._child is not None

    @property
    def has_network(self) -> bool:
        """Whether the child can reach the network; starts it.  Raises VerifierError when it cannot start."""
        return self._started().has_network

    def call(self, *arguments: object) -> Answer:
        """The function's answer to these arguments.  Raises VerifierError when no child can be started.

        A child that died is replaced and asked once more: it may have been killed from outside, or between two calls.
        So is one that ran out of memory after earlier calls, so that what it had kept from those cannot decide.
        A late one is not: the second wait would be as long as the first.
        """
        served = self._started().served
        answer = self._ask(arguments)
        again = answer.kind == "crash" or (answer.kind == "oom" and served)
        return self._ask(arguments) if again else answer

    def close(self) -> None:
        """Kills the child; the next call starts a fresh one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _started(self) -> _Child:
        if self._owner != os.getpid():  # a fork of the owner: the child is not ours
            self._child, self._owner = None, os.getpid()
        if self._child is None:
            child = _spawn(self)
            self._child = child
            kind, line = _exchange(child, b"", time.monotonic() + self.start_seconds)
            failed = {"failed": _lost(child, kind, self.start_seconds)} if kind != "ok" else None
            ready: dict[str, Any] = failed or json.loads(line)
            if "failed" in ready:
                self.close()
                raise VerifierError(f"the worker of {self.target} cannot start: {ready['failed']}.")
            child.has_network = ready["network"]
        return self._child

    def _ask(self, arguments: tuple[object, ...]) -> Answer:
        child = self._started()
        nonce = secrets.token_hex(16)
        message = json.dumps({"nonce": nonce, "arguments": arguments}).encode() + b"\n"
        kind, line = _exchange(child, message, time.monotonic() + self.timeout_seconds)
        if kind != "ok":
            reason = _lost(child, kind, self.timeout_seconds)
            self.close()
            return Answer(kind=kind, reason=reason)
        reply = _read_reply(line, nonce)
        child.served += 1
        if reply is None or child.buffer:
            self.close()
            return Answer(kind="crash", reason="the child wrote something that is no answer to this request")
        if reply["last"]:
            self.close()
        return Answer(kind=reply["kind"], value=reply["value"], reason=reply["reason"])


def _spawn(worker: Worker) -> _Child:
    child_requests, requests = os.pipe()
    replies, child_replies = os.pipe()
    settings = {"memory": worker.memory_bytes, "seconds": worker.timeout_seconds, "imports": worker.imports}
    command = [sys.executable, "-P", "-m", __spec__.name, worker.target, str(child_requests), str(child_replies)]
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            [*command, json.dumps(settings)], stdin=quiet, stdout=quiet, stderr=quiet, env=_environment(),
            cwd=worker.folder, pass_fds=(child_requests, child_replies), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(requests)
        os.close(replies)
        raise VerifierError(f"the worker of {worker.target} cannot start: {error}.") from None
    finally:
        os.close(child_requests)
        os.close(child_replies)
    os.set_blocking(requests, False)
    kill = weakref.finalize(worker, _kill, process, (requests, replies), os.getpid())
    return _Child(process=process, requests=requests, replies=replies, kill=kill)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | FIXED_VARIABLES | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _kill(process: subprocess.Popen[bytes], pipes: tuple[int, int], owner: int) -> None:
    if os.getpid() != owner:
        return
    started = descendants(process.pid)
    with suppress(ProcessLookupError, PermissionError):  # it is gone already
        os.killpg(process.pid, signal.SIGKILL)
    for pid in started:  # those that left the group
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for pipe in pipes:
        os.close(pipe)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs in turn, which still run; none where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found, waiting = [], [pid]
    while waiting:
        waiting = [child for one in waiting for child in children.get(one, ())]
        found += waiting
    return found


def _exchange(child: _Child, message: bytes, deadline: float) -> tuple[Kind, bytes]:
    """Writes the message and reads one line, both before the deadline."""
    pending = memoryview(message)
    with selectors.DefaultSelector() as selector:
        selector.register(child.replies, selectors.EVENT_READ)
        if pending:
            selector.register(child.requests, selectors.EVENT_WRITE)
        while b"\n" not in child.buffer:
            wait = deadline - time.monotonic()
            if wait <= 0:
                return "timeout", b""
            for key, _ in selector.select(wait):
                if key.fd == child.requests:
                    try:
                        pending = pending[os.write(child.requests, pending[:65536]) :]
                    except BrokenPipeError:
                        return "crash", b""
                    if not pending:
                        selector.unregister(child.requests)
                    continue
                chunk = os.read(child.replies, 65536)
                if not chunk or len(child.buffer) + len(chunk) > MAX_REPLY_BYTES:
                    return "crash", b""
                child.buffer += chunk
    line, _, rest = bytes(child.buffer).partition(b"\n")
    child.buffer = bytearray(rest)
    return "ok", line


def _lost(child: _Child, kind: Kind, seconds: float) -> str:
    """Why there was no answer."""
    if kind == "timeout":
        return f"no answer within {seconds:g} s"
    try:
        code = child.process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "the child closed its pipe or wrote too much"
    return f"the child was killed by signal {-code}" if code < 0 else f"the child ended with status {code}"


def _read_reply(line: bytes, nonce: str) -> dict[str, Any] | None:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    expected = {"nonce", "kind", "value", "reason", "last"}
    if not isinstance(reply, dict) or set(reply) != expected or reply["nonce"] != nonce:
        return None
    return reply


def _limit(which: int, amount: int) -> None:
    """Lowers a limit of this process; a system that does not know the limit keeps its own."""
    hard = resource.getrlimit(which)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(which, (amount, hard if which == resource.RLIMIT_CPU else amount))


def _leave_network() -> bool:
    """Whether this process is now alone in a network of its own: asked of the kernel as it is, then in a user space."""
    try:
        unshare = ctypes.CDLL(None).unshare
    except (AttributeError, OSError):  # not Linux
        return False
    return unshare(CLONE_NEWNET) == 0 or unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def _adopt_orphans() -> None:
    """What a descendant leaves behind becomes a child of this process, so it can be found and killed."""
    with suppress(AttributeError, OSError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _load(target: str, imports: Sequence[str]) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    for other in imports:
        importlib.import_module(other)
    return getattr(importlib.import_module(module), name)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class _Replies:
    """The child's end of the pipe of answers."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def send(self, reply: Mapping[str, object]) -> None:
        line = memoryview(json.dumps(reply).encode() + b"\n")
        while line:
            line = line[os.write(self.pipe, line) :]

    def answer(self, nonce: str, *, kind: Kind, value: object = None, reason: str = "", last: bool = False) -> None:
        self.send({"nonce": nonce, "kind": kind, "value": value, "reason": reason, "last": last})


def _serve(function: Callable[..., Any], requests: int, replies: _Replies, seconds: float) -> None:
    """Answers requests until their pipe ends.  An unforeseen exception is reported and ends the child."""
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            request = json.loads(line)
            nonce = request["nonce"]
            used = resource.getrusage(resource.RUSAGE_SELF)
            # The parent keeps the deadline; this one ends a child whose parent was killed.
            _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 3)
            try:
                replies.answer(nonce, kind="ok", value=function(*request["arguments"]))
            except MemoryError:
                replies.answer(nonce, kind="oom", reason="out of memory", last=True)
                return
            except RAISED as error:
                replies.answer(nonce, kind="error", reason=_describe(error))
            except BaseException as error:
                replies.answer(nonce, kind="error", reason=_describe(error), last=True)
                raise


def main(arguments: Sequence[str]) -> None:
    """The life of a child: limits, imports, one line that says that it is ready, then requests."""
    target, requests, replies_pipe, text = arguments
    settings = json.loads(text)
    for pipe in (requests, replies_pipe):
        os.set_inheritable(int(pipe), False)
    replies = _Replies(int(replies_pipe))
    _limit(resource.RLIMIT_AS, settings["memory"])
    _limit(resource.RLIMIT_CORE, 0)
    _adopt_orphans()
    try:
        function = _load(target, settings["imports"])
    except (*RAISED, MemoryError) as error:
        replies.send({"failed": _describe(error).partition("\n")[0]})
        return
    _limit(resource.RLIMIT_FSIZE, 0)
    replies.send({"network": not _leave_network()})
    _serve(function, int(requests), replies, settings["seconds"])


if __name__ == "__main__":
    main(sys.argv[1:])
