"""The worker: deadlines, crashes, memory, forged answers, and what a child may not have."""

import gc
import os
import subprocess
import sys
import time

import pytest

from forkpoint.errors import VerifierError
from forkpoint.verifiers.worker import Answer, Worker

BEHAVE = "worker_targets:behave"


@pytest.fixture
def worker():
    with Worker(BEHAVE, timeout_seconds=20.0, memory_bytes=1 << 30) as made:
        yield made


def is_running(pid):
    """Whether a process lives; one that waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    for _ in range(200):
        if not is_running(pid):
            return True
        time.sleep(0.02)
    return False


def test_values_go_both_ways_through_one_child():
    with Worker("worker_targets:echo") as echo:
        for value in (None, True, 1, 0.5, "text", "\ud800 \x00 é\n", [1, [2]], {"a": [None]}, "x" * 3_000_000):
            assert echo.call(value) == Answer(kind="ok", value=[value])
        assert echo.call() == Answer(kind="ok", value=[])
    with Worker("worker_targets:count") as counter:
        assert [counter.call().value for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_child_holds_no_secrets_no_torch_and_repeats_the_order_of_sets(monkeypatch):
    monkeypatch.setenv("A_SECRET", "token")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    seen = []
    for _ in range(2):
        with Worker("worker_targets:about_me") as worker:
            seen.append(worker.call().value)
            assert seen[-1]["pid"] == worker.pid != os.getpid()
    assert seen[0]["secret"] is None
    assert seen[0]["torch"] is False
    assert seen[0]["words"] == seen[1]["words"]
    assert seen[0]["pid"] != seen[1]["pid"]


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_the_deadline_is_kept_and_the_child_is_gone(how):
    with Worker(BEHAVE, timeout_seconds=0.5) as worker:
        assert worker.call("fine").value == 42
        pid = worker.pid
        began = time.monotonic()
        answer = worker.call(how)
        assert 0.5 <= time.monotonic() - began < 1.5
        assert answer.kind == "timeout"
        assert "0.5 s" in answer.reason
        assert not is_running(pid)
        assert worker.pid is None


def test_the_deadline_covers_a_request_that_nobody_reads():
    with Worker(BEHAVE, timeout_seconds=0.5) as worker:
        worker.call("fine")
        os.kill(worker.pid, 19)
        assert worker.call("fine", "x" * 10_000_000).kind == "timeout"
        assert worker.pid is None


def test_the_whole_process_group_is_killed(worker):
    grandchild = worker.call("spawn", "").value
    assert is_running(grandchild)
    worker.close()
    assert wait_until_gone(grandchild)


def test_a_crash_says_how(worker):
    assert worker.call("exit", 3) == Answer(kind="crash", reason="the child ended with status 3")
    assert worker.call("exit", 0).kind == "crash"
    assert worker.call("die") == Answer(kind="crash", reason="the child was killed by signal 9")
    assert worker.call("fine").value == 42


def test_a_dead_child_is_replaced_and_asked_once_more(worker, tmp_path):
    worker.call("fine")
    os.kill(worker.pid, 9)
    assert worker.call("fine") == Answer(kind="ok", value=42)
    mark = tmp_path / "mark"
    mark.touch()
    assert worker.call("die once", str(mark)).value == "second"
    assert not mark.exists()
    assert worker.call("exit", 3) == Answer(kind="crash", reason="the child ended with status 3")


def test_a_process_that_left_the_group_is_killed_too(worker):
    runaway = worker.call("escape").value
    assert is_running(runaway)
    worker.close()
    assert wait_until_gone(runaway)


def test_the_child_starts_in_the_folder_it_is_given(tmp_path):
    with Worker("os:getcwd", folder=tmp_path) as worker:
        assert worker.call().value == str(tmp_path)


def test_memory_is_limited(worker):
    assert worker.call("grow") == Answer(kind="oom", reason="out of memory")
    assert worker.call("fine").value == 42


def test_what_earlier_calls_kept_cannot_run_a_later_one_out_of_memory():
    with Worker("worker_targets:hoard", memory_bytes=1 << 30, timeout_seconds=20.0) as worker:
        assert [worker.call(300).kind for _ in range(5)] == ["ok"] * 5
        assert worker.call(2000).kind == "oom"


def test_an_exception_is_reported_and_a_known_one_costs_no_restart(worker):
    worker.call("fine")
    pid = worker.pid
    assert worker.call("raise") == Answer(kind="error", reason="ValueError: no\nnumber")
    assert worker.call("object").kind == "error"
    assert worker.call("no such case").kind == "error"
    assert worker.pid == pid
    assert worker.call("leave") == Answer(kind="error", reason="SystemExit: ")
    assert worker.pid is None
    assert worker.call("fine").value == 42


def test_text_on_the_standard_streams_is_no_answer(worker, capfd):
    assert worker.call("print") == Answer(kind="ok", value="honest")
    assert capfd.readouterr() == ("", "")


def test_an_answer_without_the_nonce_of_its_request_is_refused(worker):
    assert worker.call("write").kind == "crash"
    assert worker.call("fine") == Answer(kind="ok", value=42)


def test_no_file_is_filled(worker, tmp_path):
    answer = worker.call("file", str(tmp_path / "made"))
    assert answer.kind == "error"
    assert not (tmp_path / "made").exists() or (tmp_path / "made").read_text() == ""


def test_no_network_where_the_kernel_allows_it(worker):
    if worker.has_network:
        pytest.skip("this kernel lets an ordinary process make no network of its own")
    # A network of its own has not even a loopback that is up.
    assert worker.call("network").value == "OSError"


def test_twenty_hostile_calls_in_a_row():
    hows = [("sleep",), ("exit", 1), ("raise",), ("write",), ("leave",)] * 4
    with Worker(BEHAVE, timeout_seconds=0.4, memory_bytes=1 << 30) as worker:
        kinds = [worker.call(*how).kind for how in hows]
        assert kinds == ["timeout", "crash", "error", "crash", "error"] * 4
        assert worker.call("fine").value == 42


def test_two_workers_do_not_meet():
    with Worker("worker_targets:count") as first, Worker("worker_targets:count") as second:
        assert [first.call().value, second.call().value, first.call().value] == [1, 1, 2]
        first.close()
        assert [second.call().value, first.call().value] == [2, 1]


@pytest.mark.parametrize("target", ["worker_targets:absent", "no_such_module:function", "worker_targets"])
def test_a_target_that_cannot_be_loaded_is_one_line(target):
    with pytest.raises(VerifierError, match="cannot start") as raised:
        Worker(target).call()
    assert "\n" not in str(raised.value)


def test_an_import_that_is_missing_is_one_line():
    with pytest.raises(VerifierError, match="no_such_module"):
        Worker(BEHAVE, imports=("no_such_module",)).call("fine")


def test_a_start_that_takes_too_long_is_refused():
    with pytest.raises(VerifierError, match=r"no answer within 0\.01 s"):
        Worker(BEHAVE, start_seconds=0.01).call("fine")


def test_the_child_ends_with_its_owner():
    worker = Worker(BEHAVE)
    worker.call("fine")
    pid = worker.pid
    del worker
    gc.collect()
    assert not is_running(pid)


@pytest.mark.parametrize("ending", ["", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_the_child_ends_with_the_process(ending):
    code = (
        "import os, sys\n"
        "from forkpoint.verifiers.worker import Worker\n"
        f"worker = Worker({BEHAVE!r})\n"
        "worker.call('fine')\n"
        "assert 'torch' not in sys.modules\n"
        "print(worker.pid, flush=True)\n"
        f"{ending}\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    assert wait_until_gone(int(done.stdout))


def test_a_fork_of_the_owner_leaves_the_child_alone(worker):
    worker.call("fine")
    pid = worker.pid
    process = os.fork()
    if process == 0:
        fresh = worker.call("fine").value == 42 and worker.pid != pid
        worker.close()
        os._exit(0 if fresh else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert worker.call("fine").value == 42
    assert worker.pid == pid


def test_a_fork_of_the_owner_that_ends_leaves_the_child_alone():
    code = (
        "import os, sys\n"
        "from forkpoint.verifiers.worker import Worker\n"
        "worker = Worker('worker_targets:count')\n"
        "worker.call()\n"
        "process = os.fork()\n"
        "if process == 0:\n"
        "    sys.exit()\n"
        "os.waitpid(process, 0)\n"
        "assert worker.call().value == 2\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
