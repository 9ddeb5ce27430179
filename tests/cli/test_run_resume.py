"""`forkpoint run --resume`: what it says of a run that is finished, changed, copied, newer, or short of its records."""

import contextlib
import os
import shutil
import sqlite3

import pytest
import torch
from forked_command import Launched
from tiny_runs import BASE, HEAD, differences, fingerprint, status

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.cli import worker
from forkpoint.config import load_recipe

SHORT = BASE.replace("updates = 5", "updates = 2").replace("checkpoint_every = 2", "checkpoint_every = 1")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(HEAD + SHORT)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def killed(tmp_path_factory):
    """A folder with a run that was killed after its first checkpoint; pays for the imports before the first fork."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("killed")
    (folder / "r.toml").write_text(HEAD + SHORT)
    check_recipe(load_recipe(folder / "r.toml"), folder, folder / "runs")
    with contextlib.chdir(folder):
        assert launch(folder, fault="record.before-commit#2:kill").wait() == 1
    assert [path.name for path in (folder / "runs/tiny/stages/base").iterdir()] == ["step-000001"]
    return folder


def launch(folder, *arguments, fault=None):
    return Launched("run", "r.toml", *arguments, folder=folder / "console", fault=fault)


def print_of(folder, runs="runs"):
    run = folder / runs / "tiny"
    return fingerprint(Assembly(recipe=load_recipe(run / "recipe.toml"), origin=folder, run=run))


def one_line(command):
    assert command.wait() == 2, command.err
    assert command.out == ""
    assert command.err.startswith("error: ")
    assert command.err.count("\n") == 1, command.err
    return command.err


@pytest.mark.parametrize("options", [["--resume"], ["--resume-if-exists"], ["--resume", "--json"]])
def test_a_finished_run_is_said_to_be_finished(folder, options):
    first = launch(folder, *options[1:])
    assert first.wait() == 0
    events = rows(folder, "SELECT count(*) FROM events")
    before = print_of(folder)
    again = launch(folder, *options)
    assert again.wait() == 0
    assert again.err == "runs/tiny is finished: there is nothing left to do.\n"
    assert again.out == first.out
    assert rows(folder, "SELECT count(*) FROM events") == events
    assert differences(print_of(folder), before) == []


def rows(folder, query):
    with contextlib.closing(sqlite3.connect(folder / "runs/tiny/run.db")) as connection, connection:
        return connection.execute(query).fetchall()


def test_a_resume_that_does_nothing_is_no_success(killed, folder, monkeypatch):
    shutil.copytree(killed / "runs", folder / "runs")
    monkeypatch.setattr(worker, "main", lambda arguments: 0)
    error = one_line(launch(folder, "--resume"))
    assert error == "error: runs/tiny: nothing was done, though stage 'base' is not; look at its events.\n"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert launch(folder, "--resume").wait() == 0


def test_a_changed_recipe_is_an_error_and_then_the_difference(killed, folder):
    shutil.copytree(killed / "runs", folder / "runs")
    changed = launch(folder, "--resume", "--set", "stage.base.learning_rate=0.5")
    assert changed.wait() == 2
    first, *difference = changed.err.splitlines()
    assert first == "error: the recipe differs from the one in runs/tiny; a resume needs the same."
    assert [line for line in difference if line[0] not in "@" and line[:3] not in ("---", "+++")] == [
        "-learning_rate = 0.0003",
        "+learning_rate = 0.5",
    ]
    assert status(folder / "runs/tiny") == {"base": "failed"}


def test_a_newer_schema_is_refused(killed, folder):
    shutil.copytree(killed / "runs", folder / "runs")
    rows(folder, "INSERT INTO migrations VALUES (99, 'm099_later')")
    assert "has schema 99, this forkpoint knows 1 to " in one_line(launch(folder, "--resume"))
    assert "install a newer forkpoint" in one_line(launch(folder, "--resume-if-exists"))
    assert status(folder / "runs/tiny") == {"base": "failed"}


def test_a_copied_run_goes_on_where_it_lies(killed, folder):
    assert launch(folder).wait() == 0
    whole = print_of(folder)
    shutil.rmtree(folder / "runs")
    shutil.copytree(killed / "runs", folder / "runs")
    shutil.copytree(folder / "runs", folder / "other place")
    shutil.rmtree(folder / "runs")
    moved = launch(folder, "--runs", "other place", "--resume")
    assert moved.wait() == 0, moved.err
    assert differences(print_of(folder, "other place"), whole) == []


def test_a_copy_under_another_name_is_another_recipe(killed, folder):
    shutil.copytree(killed / "runs", folder / "runs")
    shutil.copytree(folder / "runs/tiny", folder / "runs/copy")
    renamed = launch(folder, "--name", "copy", "--resume")
    assert renamed.wait() == 2
    assert renamed.err.startswith("error: the recipe differs from the one in runs/copy")
    assert '+name = "copy"' in renamed.err


def test_checkpoints_without_records_are_no_start(killed, folder):
    shutil.copytree(killed / "runs", folder / "runs")
    for name in ("run.db", "run.db-wal", "run.db-shm"):
        (folder / "runs/tiny" / name).unlink(missing_ok=True)
    lost = "runs/tiny holds no run to resume: run.db is missing or empty, and metrics would have a hole"
    assert lost in one_line(launch(folder, "--resume"))
    assert "holds checkpoints but no run: run.db is missing" in one_line(launch(folder))
    assert not (folder / "runs/tiny/run.db").exists()


@pytest.mark.parametrize("size", [0, 1, 4096, 20_000])
def test_a_database_cut_short_is_one_line(killed, folder, size):
    shutil.copytree(killed / "runs", folder / "runs")
    path = folder / "runs/tiny/run.db"
    data = path.read_bytes()
    assert len(data) > 20_000
    for name in ("run.db-wal", "run.db-shm"):
        path.with_name(name).unlink(missing_ok=True)
    path.write_bytes(data[:size])
    assert "runs/tiny" in one_line(launch(folder, "--resume"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[", b"name = 3\n"])
def test_a_damaged_recipe_of_the_run_is_one_line_with_its_path(killed, folder, content):
    shutil.copytree(killed / "runs", folder / "runs")
    (folder / "runs/tiny/recipe.toml").write_bytes(content)
    assert "runs/tiny/recipe.toml" in one_line(launch(folder, "--resume"))


def test_what_a_killed_report_left_is_removed(folder):
    killed = launch(folder, fault="write.torn#2:kill")  # the recipe's was the first
    killed.wait()
    broken_off = [path.name for path in (folder / "runs/tiny").iterdir() if path.name.startswith(".tmp-")]
    assert launch(folder, "--resume-if-exists").wait() == 0
    left = [path.name for path in (folder / "runs/tiny").iterdir() if path.name.startswith(".tmp-")]
    assert left == [], broken_off
