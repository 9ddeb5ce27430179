"""A part of `make test-kill`: SIGKILL and full disks, in children forked from the warmed test process."""

import random
import re
from pathlib import Path

import pytest
from kill_runs import recipes, warm
from kill_sweep import Sweep, Tally, broken_runs

import forkpoint.files
import forkpoint.store.checkpoints


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    place = tmp_path_factory.mktemp("kill")
    warm(place / "warm")
    tally = Tally()
    made = {
        name: Sweep(name=name, recipe=recipe, place=place / name, tally=tally) for name, recipe in recipes().items()
    }
    return {name: sweep.prepare() for name, sweep in made.items()}


def test_kills_at_fault_points(swept):
    for name, every in (("decoder", 60), ("tabular", 21)):
        for point, visit in swept[name].visits[::every]:
            swept[name].kill_at(point, visit)
    tally = swept["tabular"].tally
    assert tally.failures == []
    assert tally.counts["kills at fault points"] >= 11


def test_full_disks(swept):
    for point, visit in swept["tabular"].visits[5::30]:
        swept["tabular"].fill_at(point, visit)
    assert swept["tabular"].tally.failures == []
    assert swept["tabular"].tally.counts["full disks"] >= 5


def test_kills_while_resuming(swept):
    for start in broken_runs(swept["tabular"]):
        swept["tabular"].kill_resumes(start, 30)
    assert swept["tabular"].tally.failures == []
    assert swept["tabular"].tally.counts["kills while resuming"] >= 5


def test_kills_at_random_instants(swept):
    swept["tabular"].kill_at_random(random.Random(0), 4)
    assert swept["tabular"].tally.failures == []
    assert swept["tabular"].tally.counts["kills at random instants"] == 4


def test_the_sweep_reaches_every_fault_point_of_files_and_checkpoints(swept):
    sources = [forkpoint.files, forkpoint.store.checkpoints]
    named = {
        name
        for module in sources
        for name in re.findall(r'fault_point\("([\w.-]+)"\)', Path(module.__file__).read_text())
    }
    reached = {point for sweep in swept.values() for point, _ in sweep.visits} | swept["tabular"].resumed
    assert named - reached == set()
    assert {"event.before-commit", "rewind.before-commit", "record.before-commit", "create.before-commit"} <= reached


def test_a_run_that_comes_out_otherwise_is_told(swept, monkeypatch):
    # The sweep itself: a checkpoint that loses its moments must not go unseen.
    sweep = swept["tabular"]
    tally = Tally()
    monkeypatch.setattr(sweep, "tally", tally)
    monkeypatch.setattr("forkpoint.training.optimization.Optimization.load", lambda self, folder, *, weights: None)
    sweep.kill_at("record.before-commit", 5)
    (failure,) = tally.failures
    assert "files ppo" in failure
