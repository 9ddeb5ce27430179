import os
import signal
import subprocess
import sys
import time

import pytest

from forkpoint.errors import StoreError
from forkpoint.files import RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from forkpoint.files import RunLock
with RunLock(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        # The child speaks: by then it has dropped what it inherited.
        if os.fork() == 0:
            print(os.getpid(), "held", sep="\\n", flush=True)
            time.sleep(60)
            os._exit(0)
    else:
        print("held", flush=True)
    time.sleep(60)
"""


def hold(folder, *more):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True)
    lines = []
    while not lines or lines[-1] != "held":
        lines.append(holder.stdout.readline().strip())
        assert lines[-1]
    return holder, lines


def test_a_second_process_is_refused_by_name_and_a_dead_one_is_not(tmp_path):
    holder, _ = hold(tmp_path)
    try:
        started = time.monotonic()
        with pytest.raises(StoreError, match=f"process {holder.pid} on {os.uname().nodename}"), RunLock(tmp_path):
            pass
        assert time.monotonic() - started < 1
    finally:
        holder.kill()
        holder.communicate()
    with RunLock(tmp_path):
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    holder, lines = hold(tmp_path, "fork")
    try:
        holder.kill()
        holder.wait()
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(int(lines[0]), signal.SIGKILL)
        holder.communicate()


def test_a_forked_child_that_leaves_the_block_closes_no_file_of_its_own(tmp_path):
    code = f"""
import os
from pathlib import Path
from forkpoint.files import RunLock
with RunLock(Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0:
        own = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
if child == 0:
    try:
        for descriptor in own: os.fstat(descriptor)
    except OSError:
        os._exit(1)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_lock_is_free_after_its_block(tmp_path):
    refused = pytest.raises(StoreError, match=f"process {os.getpid()} ")
    with RunLock(tmp_path / "new"), refused, RunLock(tmp_path / "new"):
        pass
    with RunLock(tmp_path / "new"):
        pass
