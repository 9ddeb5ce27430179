import dataclasses
import errno
import os
import sqlite3
import subprocess
import sys

import pytest
from store_examples import (
    LONE,
    Killed,
    credit,
    dump,
    evaluation,
    fail_at,
    finding,
    group,
    new_run,
    points_of,
    record,
    update,
)

from forkpoint.errors import StoreError
from forkpoint.files import connect_database, install_fault_hook, transaction
from forkpoint.store import RunReader, RunWriter, StageStatus

OF_A_STAGE = ("updates", "metrics", "rollouts", "verdicts", "credits", "evaluations", "findings")


def test_a_run_is_created_once(tmp_path):
    new_run(tmp_path / "run").close()
    with pytest.raises(StoreError, match="--resume"):
        new_run(tmp_path / "run")
    with RunWriter.open(tmp_path / "run"), RunReader(tmp_path / "run") as reader:
        assert reader.name == "demo"
        assert reader.identity == {"threads": 1}
        assert reader.created == 5.0


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        RunWriter.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_creation_fails_or_is_killed_anywhere_and_can_be_repeated(tmp_path):
    points = points_of(lambda: new_run(tmp_path / "probe").close())
    assert "create.before-commit" in points
    for place, point in enumerate(points):
        for error in (OSError(errno.ENOSPC, "full"), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)):
                new_run(folder)
            install_fault_hook(None)
            if point == "create.after-commit":
                RunWriter.open(folder).close()
            else:
                if (folder / "run.db").exists():
                    with pytest.raises(StoreError):
                        RunReader(folder)
                    with pytest.raises(StoreError, match="interrupted"):
                        RunWriter.open(folder)
                new_run(folder).close()
            assert dump(folder)["meta"] == dump(tmp_path / "probe")["meta"]


def test_stages_go_from_waiting_to_done(tmp_path):
    with new_run(tmp_path) as writer, RunReader(tmp_path) as reader:
        writer.add_stage("base", kind="pretrain", updates_total=3)
        writer.add_stage("rl", kind="rl", parent="base", updates_total=5)
        assert [stage.status for stage in reader.stages()] == ["waiting", "waiting"]
        writer.begin_stage("rl", kind="rl", parent="base", updates_total=5)
        assert reader.stage("rl").started == 5.0
        writer.record_update(update(1))
        writer.record_update(update(2))
        assert (reader.stage("rl").updates_done, reader.stage("rl").seconds) == (2, 1.0)
        writer.finish_stage("rl", status=StageStatus.FAILED, message=LONE)
        assert (reader.stage("rl").status, reader.stage("rl").message) == ("failed", LONE)
        assert [stage.name for stage in reader.stages()] == ["base", "rl"]
        with pytest.raises(StoreError, match="no stage 'rt'"):
            writer.finish_stage("rt")
        with pytest.raises(StoreError, match=r"no stage 'rt'. It has: base, rl"):
            reader.stage("rt")


def test_one_update_is_recorded_as_a_whole(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
    rows = {table: len(found) for table, found in dump(tmp_path).items()}
    expected = {"updates": 1, "metrics": 1, "problems": 3, "rollouts": 8, "verdicts": 8, "credits": 4, "evaluations": 4}
    assert {table: rows[table] for table in expected} == expected


def test_record_fails_or_is_killed_anywhere_and_can_be_repeated(tmp_path):
    with new_run(tmp_path / "whole", "rl") as writer:
        record(writer, 1)
        before = dump(tmp_path / "whole")
        points = points_of(lambda: record(writer, 2))
        after = dump(tmp_path / "whole")
    assert before != after
    assert points == ["record.before-begin", "record.before-commit", "record.after-commit"]
    for place in range(len(points)):
        for error in (OSError(errno.ENOSPC, "full"), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            with new_run(folder, "rl") as writer:
                record(writer, 1)
                fail_at(place, error)
                with pytest.raises((StoreError, Killed)):
                    record(writer, 2)
                install_fault_hook(None)
                assert dump(folder) == (after if place == 2 else before)
                if place < 2:
                    record(writer, 2)
            assert dump(folder) == after


def test_a_kill_in_another_process_loses_only_the_open_transaction(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        writer.record_update(update(1))
    before = dump(tmp_path)
    code = f"""
from pathlib import Path
from forkpoint.records import UpdateRecord
from forkpoint.store import RunWriter
with RunWriter.open(Path({str(tmp_path)!r})) as writer:
    for n in (2, 3):
        writer.record(UpdateRecord(stage="rl", update=n, metrics={{"loss": 0.5}}, seconds=0.5, tokens=10))
"""
    for fault, done in (("record.before-commit:kill", 1), ("record.after-commit:kill", 2)):
        killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "FORKPOINT_FAULT": fault}, timeout=60)
        assert killed.returncode == -9
        assert len(dump(tmp_path)["updates"]) == len(dump(tmp_path)["metrics"]) == done
    assert dump(tmp_path)["meta"] == before["meta"]


def test_a_full_disk_in_a_record_leaves_the_last_one(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
        before = dump(tmp_path)
        pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
        writer._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        huge = group(update=2)
        rollouts = tuple(dataclasses.replace(rollout, text="x" * 100_000) for rollout in huge.rollouts)
        with pytest.raises(StoreError, match=r"run\.db: database or disk is full"):
            writer.record(update(2), [dataclasses.replace(huge, rollouts=rollouts)])
        assert dump(tmp_path) == before
        writer._connection.execute("PRAGMA max_page_count = 100000")
        record(writer, 2)


def test_an_update_is_recorded_once(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
        before = dump(tmp_path)
        with pytest.raises(StoreError, match=r"update 1 of stage 'rl' is recorded already"):
            writer.record_update(update(1))
        with pytest.raises(StoreError, match="no stage 'other'"):
            writer.record_update(update(1, stage="other"))
        assert dump(tmp_path) == before


def test_what_does_not_belong_to_the_update_is_refused_as_a_whole(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        before = dump(tmp_path)
        with pytest.raises(ValueError, match="1 credits for 2 rollouts"):
            writer.record(update(1), [group()], [credit()])
        with pytest.raises(ValueError, match="is of rl 2, not rl 1"):
            writer.record(update(1), [group(update=2)])
        with pytest.raises(ValueError, match="is of sft 1, not rl 1"):
            writer.record(update(1), [group(stage="sft")])
        short = dataclasses.replace(group(), rewards=group().rewards[:1])
        with pytest.raises(ValueError, match="1 rewards for 2 rollouts"):
            writer.record(update(1), [short])
        with pytest.raises(sqlite3.IntegrityError):
            writer.record(update(1), [dataclasses.replace(group(), rollouts=group().rollouts[:1] * 2)])
        assert dump(tmp_path) == before


def test_rewinding_and_repeating_gives_the_rows_of_an_uninterrupted_run(tmp_path):
    with new_run(tmp_path / "straight", "rl", "other") as writer:
        record(writer, 1, stage="other")
        for number in (1, 2, 3):
            record(writer, number)
    with new_run(tmp_path / "broken", "rl", "other") as writer:
        record(writer, 1, stage="other")
        for number in (1, 2, 3):
            record(writer, number)
        for back in (1, 2, 0, -1):
            writer.rewind("rl", back)
            found = dump(tmp_path / "broken")
            assert [row[1] for row in found["updates"] if row[0] == "rl"] == list(range(1, back + 1))
            for number in range(max(back, 0) + 1, 4):
                record(writer, number)
    straight, broken = dump(tmp_path / "straight"), dump(tmp_path / "broken")
    assert [row[3] for row in broken.pop("events")] == ["resume"] * 4
    assert straight.pop("events") == []
    assert straight == broken


def test_a_rewind_spares_earlier_updates_and_other_stages(tmp_path):
    with new_run(tmp_path, "rl", "other") as writer:
        for stage in ("rl", "other"):
            writer.record_evaluation(stage, 0, evaluation(stage=stage, number=0))
            for number in (1, 2):
                record(writer, number, stage=stage)
                writer.record_findings([finding()], stage=stage, update=number)
        before = dump(tmp_path)
        writer.rewind("rl", 1, message="by hand")
        after = dump(tmp_path)
        for table in ("updates", "metrics", "evaluations", "findings"):
            column = {"findings": (1, 2)}.get(table, (0, 1))
            kept = [row for row in before[table] if row[column[0]] != "rl" or row[column[1]] <= 1]
            assert after[table] == kept
            assert len(kept) < len(before[table])
        assert {row[0] for row in after["verdicts"]} == {row[0] for row in after["rollouts"]}
        assert {row[0] for row in after["credits"]} <= {row[0] for row in after["rollouts"]}
        assert [row[1:] for row in after["events"]] == [(5.0, "rl", "resume", "by hand")]
        with RunReader(tmp_path) as reader:
            assert (reader.stage("rl").updates_done, reader.stage("rl").seconds) == (1, 0.5)
            assert reader.evaluated("rl") == [0, 1]
        with pytest.raises(StoreError, match="no stage 'none'"):
            writer.rewind("none", 0)


def test_a_rewind_to_an_update_whose_records_are_not_there_is_refused(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
        before = dump(tmp_path)
        with pytest.raises(
            StoreError, match=r"'rl' has records of 1 updates, but a checkpoint of update 2: run\.db is older"
        ):
            writer.rewind("rl", 2)
        assert dump(tmp_path) == before


def test_a_rewind_and_its_event_are_one(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        record(writer, 1)
        before = dump(tmp_path)
        for place in range(2):
            fail_at(place, Killed())
            with pytest.raises(Killed):
                writer.rewind("rl", 0)
            install_fault_hook(None)
            assert dump(tmp_path) == before


def test_an_evaluation_is_replaced_by_one_of_the_same_name(tmp_path):
    with new_run(tmp_path, "rl") as writer:
        for _ in range(2):
            writer.record_evaluation("rl", 1, evaluation(), metrics={"pass": 0.5})
            writer.record_evaluation("rl", 1, evaluation(name="hard"))
        assert len(dump(tmp_path)["evaluations"]) == len(dump(tmp_path)["rollouts"]) == 8
        writer.record_evaluation("rl", 1, evaluation(keys=("a1",), kept=False))
        assert len(dump(tmp_path)["evaluations"]) == 6
        assert len(dump(tmp_path)["rollouts"]) == 4


def test_findings_of_an_audit_that_ran_again_are_replaced(tmp_path):
    with new_run(tmp_path, "rl") as writer, RunReader(tmp_path) as reader:
        writer.record_findings([finding("a"), finding("b")], stage="rl")
        writer.record_findings([finding("a", 0.1)], stage="rl")
        writer.record_findings([finding("a", 0.2)])
        assert [(found.audit, found.value) for found in reader.findings("rl")] == [("b", 0.5), ("a", 0.1)]
        writer.record_findings([], audits=["a"], stage="rl")
        assert [(found.audit, found.value) for found in reader.findings()] == [("b", 0.5), ("a", 0.2)]


def test_several_processes_write_different_stages_at_once(tmp_path):
    stages = [f"s{n}" for n in range(3)]
    new_run(tmp_path, *stages).close()
    code = """
import sys
from pathlib import Path
from forkpoint.records import UpdateRecord
from forkpoint.store import RunWriter
with RunWriter.open(Path(sys.argv[1])) as writer:
    for n in range(1, 41):
        writer.record(UpdateRecord(stage=sys.argv[2], update=n, metrics={"loss": 1.0, "b": 2.0}, seconds=0.0, tokens=1))
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), stage]) for stage in stages]
    with RunReader(tmp_path) as reader:
        while any(process.poll() is None for process in running):
            with reader.snapshot():
                # One transaction writes both, so no reader ever sees one alone.
                assert len(reader.metrics("s0", "loss")[0]) == reader.stage("s0").updates_done
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(dump(tmp_path)["metrics"]) == 240


def test_several_processes_may_create_and_one_does(tmp_path):
    code = """
import sys
from pathlib import Path
from forkpoint.errors import StoreError
from forkpoint.store import RunWriter
try:
    RunWriter.create(Path(sys.argv[1]), name="x", identity={}).close()
except StoreError as error:
    sys.exit(3 if "holds a run already" in str(error) else 4)
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert sorted(process.wait() for process in running) == [0, 3, 3]


def test_a_newer_database_is_refused_by_both_sides(tmp_path):
    new_run(tmp_path).close()
    connection = connect_database(tmp_path / "run.db")
    with transaction(connection, "test"):
        connection.execute("INSERT INTO migrations VALUES (99, 'm099_future')")
    connection.close()
    for side in (RunWriter.open, RunReader):
        with pytest.raises(StoreError, match="has schema 99") as caught:
            side(tmp_path)
        assert "\n" not in str(caught.value)
