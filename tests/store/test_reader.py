import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from store_examples import LONE, credit, evaluation, finding, group, new_run, problem, record, rollout, update

from forkpoint.errors import StoreError
from forkpoint.store import Evaluation, RunReader, find_runs


@pytest.fixture
def run(tmp_path):
    with new_run(tmp_path, "rl", "other") as writer, RunReader(tmp_path) as reader:
        yield writer, reader


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        RunReader(tmp_path)
    (tmp_path / "run.db").write_bytes(b"")
    with pytest.raises(StoreError):
        RunReader(tmp_path)
    (tmp_path / "run.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        RunReader(tmp_path)


def test_runs_are_found_by_a_scan(tmp_path):
    for name in ("b", "a"):
        new_run(tmp_path / name).close()
    (tmp_path / "c").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs(tmp_path / "none") == []


def test_metrics_are_arrays_by_update(run):
    writer, reader = run
    writer.record_update(update(2, loss=math.nan, reward=0.5))
    writer.record_update(update(1, loss=3.0))
    writer.record_update(update(3, reward=math.inf))
    writer.record_update(update(1, stage="other", loss=9.0))
    updates, values = reader.metrics("rl", "loss")
    assert updates.tolist() == [1, 2]
    assert np.array_equal(values, [3.0, np.nan], equal_nan=True)
    assert reader.metric_names("rl") == ["loss", "reward"]
    latest = reader.latest_metrics("rl")
    assert math.isnan(latest["loss"])
    assert latest["reward"] == math.inf
    assert [column.tolist() for column in reader.updates("rl")] == [[1, 2, 3], [0.5] * 3, [10] * 3]
    assert reader.metrics("rl", "none")[1].shape == (0,)


def test_rollouts_come_in_the_order_in_which_they_were_recorded(run):
    writer, reader = run
    record(writer, 2)
    record(writer, 1)
    ids = [found.id for found in reader.rollouts("rl", 2)]
    assert ids == ["rl-train-2-c3-0", "rl-train-2-c3-1", "rl-train-2-a1-0", "rl-train-2-a1-1"]
    assert [found.update for found in reader.rollouts("rl")] == [1] * 4 + [2] * 4
    assert len(list(reader.rollouts("rl", purpose=None))) == 16
    assert len(list(reader.rollouts())) == 8
    assert next(found.id for found in reader.rollouts("rl", 1, "evaluate")) == "rl-evaluate-1-b2-0"
    assert list(reader.rollouts("other")) == []
    assert reader.kept_updates("rl") == [1, 2]
    assert [rollout_id for rollout_id, _ in reader.credits("rl", 2)] == ids
    values = [given.advantages[0] for _, given in reader.credits("rl", 2)]
    assert values == [np.float32(value) for value in (0.1, 0.2, 0.3, 0.4)]


def test_more_rollouts_of_an_update_follow_the_first(run):
    writer, reader = run
    writer.record(update(1), [group()])
    branch = dataclasses.replace(rollout(key="b2"), parent_id="rl-train-1-a1-0", prefix_length=1)
    more = dataclasses.replace(group(key="b2", size=1), rollouts=(branch,))
    writer.record_rollouts([more], stage="rl", update=1, purpose="train")
    writer.record_rollouts([group(key="c3", purpose="branch")], stage="rl", update=1, purpose="branch")
    assert [found.problem_key for found in reader.rollouts("rl", 1)] == ["a1", "a1", "b2"]
    assert reader.rollout(branch.id).parent_id == "rl-train-1-a1-0"
    assert len(list(reader.rollouts("rl", 1, "branch"))) == 2


def test_groups_come_back_with_problem_verdicts_and_rewards(run):
    writer, reader = run
    originals = [group(key="c3"), group(key="a1", rewards=False)]
    writer.record(update(1), originals, [credit()] * 4)
    found = list(reader.groups("rl", 1))
    assert [one.problem for one in found] == [problem("c3"), problem("a1")]
    for one, original in zip(found, originals, strict=True):
        assert one.verdicts == original.verdicts
        assert one.rewards == original.rewards
        assert [r.id for r in one.rollouts] == [r.id for r in original.rollouts]
    assert reader.credit("rl-train-1-a1-0").details == {"n": 2}
    assert reader.verdict("rl-train-1-c3-1").correct is True
    assert reader.verdict("none") is reader.credit("none") is None


def test_lone_surrogates_do_not_break_the_store(run):
    writer, reader = run
    hostile = dataclasses.replace(group(size=1), rollouts=(rollout(text=LONE),))
    writer.record(update(1), [hostile])
    writer.event("note", LONE, stage="rl")
    assert next(reader.rollouts("rl", 1)).text == LONE
    assert reader.events("rl")[0].message == LONE


def test_what_is_not_there_is_refused_by_name(run):
    _, reader = run
    with pytest.raises(StoreError, match="no rollout 'x'"):
        reader.rollout("x")
    with pytest.raises(StoreError, match="no problem 'x'"):
        reader.problem("x")


def test_evaluations_pair_up_by_problem_and_sample(run):
    writer, reader = run
    writer.record_evaluation("rl", 0, evaluation(number=0, keys=("b2", "a1"), kept=False))
    writer.record_evaluation("other", 0, evaluation(stage="other", number=0, keys=("a1", "b2")))
    first, second = (reader.evaluations(stage, 0) for stage in ("rl", "other"))
    assert first.problem_keys == second.problem_keys == ("a1", "a1", "b2", "b2")
    assert first.index.tolist() == [0, 1, 0, 1]
    assert first.correct.tolist() == [False, True, False, True]
    assert first.length.tolist() == [2] * 4
    assert first.parts["form"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert first.rollout_ids[0] == "rl-evaluate-0-a1-0"
    assert reader.evaluated("rl") == [0]
    assert reader.evaluation_names("rl") == ["evaluate"]
    assert reader.evaluations("rl", 5).correct.shape == (0,)
    assert [known.key for known in reader.problems()] == ["a1", "b2"]


def test_problems_without_rollouts_can_be_kept(run):
    writer, reader = run
    results = evaluation(number=0).results
    writer.record_evaluation("rl", 0, Evaluation(results=results, problems=[problem("a1"), problem("a1")]))
    assert [known.key for known in reader.problems()] == ["a1"]


def test_events_and_findings_are_kept_in_order(run):
    writer, reader = run
    writer.event("start", "one")
    writer.event("note", "two", stage="rl")
    writer.record_findings([finding("z"), finding("a")])
    assert [(event.kind, event.stage, event.time) for event in reader.events()] == [
        ("start", None, 5.0),
        ("note", "rl", 5.0),
    ]
    assert [event.message for event in reader.events("rl")] == ["two"]
    assert reader.findings() == [finding("z"), finding("a")]


def test_meta_can_be_changed(run):
    writer, reader = run
    writer.set_meta("identity", {"threads": 2})
    writer.set_meta("exact", False)
    assert reader.identity == {"threads": 2}
    assert reader.meta()["exact"] is False


def test_a_snapshot_does_not_move(run):
    writer, reader = run
    writer.record_update(update(1))
    with reader.snapshot():
        assert reader.stage("rl").updates_done == 1
        writer.record_update(update(2))
        assert reader.stage("rl").updates_done == 1
    assert reader.stage("rl").updates_done == 2


def test_a_run_on_a_read_only_disk_can_be_read(tmp_path, monkeypatch):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
    monkeypatch.setattr(os, "access", lambda *given: False)
    with RunReader(tmp_path) as reader:
        assert reader.stage("rl").updates_done == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run.db"]


def test_reading_never_imports_torch(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
    code = f"""
import sys
from pathlib import Path
from forkpoint.store import RunReader
with RunReader(Path({str(tmp_path)!r})) as reader:
    assert len(list(reader.groups("rl"))) == 2
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
