"""The command in a child of the warmed test process, whose workers are forked too: no import is paid for twice."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

from forkpoint.cli import main as command
from forkpoint.cli import run as running
from forkpoint.cli import worker
from forkpoint.files import fault_from_text, install_fault_hook


class Forked:
    """A stand-in for `subprocess.Popen` that runs the worker in a fork."""

    def __init__(self, arguments, **options):
        assert arguments[1:4] == ["-P", "-m", "forkpoint.cli.worker"]
        assert options["start_new_session"]
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            finish(lambda: worker.main(arguments[4:]))

    def poll(self):
        return self._ended(os.WNOHANG)

    def wait(self):
        return self._ended(0)

    def _ended(self, how):
        if self.returncode is None:
            pid, ended = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(ended)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)


def finish(function):
    """Ends this process with what the function returns or exits with."""
    code = 70
    try:
        code = function()
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


class Launched:
    """A command that runs in a child."""

    def __init__(self, *arguments, folder, fault=None):
        folder.mkdir(exist_ok=True)
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        self.pid = os.fork()
        if self.pid:
            return
        for path, number in ((self._out, 1), (self._err, 2)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        for number in worker.SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        install_fault_hook(fault_from_text(fault) if fault else None)
        running.subprocess = SimpleNamespace(Popen=Forked)
        sys.argv = ["forkpoint", *map(str, arguments)]
        finish(command.main)

    @property
    def out(self):
        return self._out.read_text()

    @property
    def err(self):
        return self._err.read_text()

    def signal(self, number):
        os.kill(self.pid, number)

    def workers(self):
        """The process ids of the workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait(self, seconds=100.0):
        """The exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(ended)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"did not end within {seconds} s: {self.err}")


def eventually(condition, seconds=60.0):
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
