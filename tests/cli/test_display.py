"""Progress on a terminal and without one, and the parts of a worker that need no process."""

import io
import os
import signal

import pytest
from rich.console import Console
from tiny_runs import BASE, RL, After, finished, make_run, tiny_recipe

from forkpoint.cli import display as module
from forkpoint.cli.display import Display, clock
from forkpoint.cli.worker import Stopping, descendants, work
from forkpoint.records import UpdateRecord
from forkpoint.store import RunReader, RunWriter

METRICS = {"correct": 0.25, "reward": 0.2, "length": 5.5, "entropy": 1.25, "zero_variance": 0.5, "loss": -0.001}


@pytest.fixture
def run(tmp_path):
    """A run whose second stage is under way."""
    folder = tmp_path / "tiny"
    make_run(folder, tiny_recipe(BASE, RL))
    with RunWriter.open(folder) as writer:
        writer.finish_stage("base")
        writer.begin_stage("rl", kind="rl", parent="base", updates_total=6)
        for update in (1, 2):
            record = UpdateRecord(stage="rl", update=update, metrics=METRICS, seconds=2.0, tokens=100)
            writer.record(record)
    return folder


def test_plain_lines_say_what_changed_and_then_are_quiet(run, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with RunReader(run) as reader, Display(reader, quiet=False) as display:
        display.refresh()
        first = capsys.readouterr()
        assert first.out == ""
        assert first.err.splitlines()[0] == "base: done 0/5"
        assert first.err.splitlines()[1].startswith("rl: running 2/6  0.5 upd/s  0:08 left  correct 0.25  reward 0.20")
        assert "zero var. 0.50" in first.err
        for seconds in (0.1, 1.0, 5.0):
            now[0] += seconds
            display.refresh()
        assert capsys.readouterr().err == ""
        now[0] += 11.0
        display.refresh()
        assert capsys.readouterr().err.startswith("rl: running 2/6")
        display.refresh(last=True)
        assert capsys.readouterr().err.startswith("rl: running 2/6")


def test_quiet_is_quiet(run, capsys):
    with RunReader(run) as reader, Display(reader, quiet=True) as display:
        display.refresh()
        display.refresh(last=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_terminal_shows_a_table_that_fits(width, run, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=20, color_system=None)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    with RunReader(run) as reader, Display(reader, quiet=False) as display:
        display.refresh(last=True)
    lines = [line for line in screen.getvalue().splitlines() if line.strip()]
    head = next(place for place, line in enumerate(lines) if "stage" in line and "update" in line)
    row = next(line for line in lines if line.startswith("rl "))
    assert row.split()[:5] == ["rl", "running", "2/6", "0.5", "0:08"]
    assert "…" not in lines[head] + row
    # What does not fit beside stands below.
    shown = dict(zip(lines[head].split()[-1:], row.split()[-1:], strict=True)) if width == 200 else {}
    assert shown.get("loss", "-0.001") == "-0.001"
    if width < 200:
        assert any(line.startswith("rl: ") for line in lines)
    if width == 80:
        assert "entropy 1.25" in "".join(lines)
        assert "zero var. 0.50" in "".join(lines)


def test_times():
    assert [clock(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 86400)] == [
        "0:00", "0:59", "1:00", "59:59", "1h00", "24h00",
    ]  # fmt: skip


def test_the_stage_that_most_others_wait_for_comes_first():
    text = BASE + RL
    for name, source in (("x", "base"), ("y", "rl"), ("z", "x")):
        text += f"[[stage]]\nname='{name}'\nkind='sft'\nfrom='{source}'\ndata='golden'\nupdates=0\n"
    text += "[[stage]]\nname='w'\nkind='sft'\nfrom='x'\ndata='rollouts:rl'\nupdates=0\n"
    assert descendants(tiny_recipe(text)) == {"base": 5, "rl": 2, "x": 2, "y": 0, "z": 0, "w": 0}


@pytest.fixture
def handlers():
    """The signal handlers of the test process come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_asks_for_the_end(number, code, handlers, monkeypatch):
    monkeypatch.setattr("forkpoint.cli.worker.sys.platform", "elsewhere")
    stop = Stopping(os.getppid()).listen()
    assert not stop()
    os.kill(os.getpid(), number)
    assert stop()
    assert stop.code == code
    assert Stopping(1 << 22)(), "the process that started this one is gone"


def test_a_worker_leaves_a_run_that_failed_or_is_done(tmp_path):
    assembly = finished(tmp_path / "run", tiny_recipe(BASE, overrides=("stage.base.updates=1",)))
    assert work(assembly, After(99)) == 0
    with RunWriter.open(assembly.run) as writer:
        writer.finish_stage("base", status="failed")
    assert work(assembly, After(99)) == 0
