"""`forkpoint run`, from the outside: exit codes, what is printed where, signals, kills, locks, full disks."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from forked_command import Launched, eventually
from tiny_runs import BASE, HEAD, RL, differences, fingerprint, status

from forkpoint.assembly import Assembly
from forkpoint.assembly.checks import check_recipe
from forkpoint.config import load_recipe

QUICK = """
[[stage]]
name = "quick"
kind = "sft"
from = "base"
data = "golden"
updates = 3
batch_size = 4
"""
OTHER = QUICK.replace("quick", "other").replace("golden", "recoveries")
LONG = BASE.replace("updates = 5", "updates = 60").replace("checkpoint_every = 2", "checkpoint_every = 20")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A kill of the process loses nothing that was written, synced or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def warmed(tmp_path_factory):
    """Pays for the imports before the first fork."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("warm")
    write(folder, BASE)
    check_recipe(load_recipe(folder / "r.toml"), folder, folder / "runs")


def write(folder, *stages, head=HEAD):
    (folder / "r.toml").write_text(head + "".join(stages))


def launch(folder, *arguments, recipe="r.toml", fault=None):
    return Launched("run", recipe, *arguments, folder=folder / "console", fault=fault)


def print_of(folder, name="tiny"):
    run = folder / "runs" / name
    return fingerprint(Assembly(recipe=load_recipe(run / "recipe.toml"), origin=folder, run=run))


def updates_done(folder, stage):
    path = folder / "runs" / "tiny" / "run.db"
    if not path.is_file():
        return -1
    try:
        with closing(sqlite3.connect(path)) as connection:
            row = connection.execute("SELECT updates_done FROM stages WHERE name = ?", (stage,)).fetchone()
    except sqlite3.OperationalError:
        return -1
    return row[0] if row else -1


def test_a_run_from_end_to_end(folder):
    write(folder, BASE, RL, QUICK)
    first = launch(folder)
    assert first.wait() == 0, first.err
    assert "solve rate" in first.out
    assert [line.split()[0] for line in first.out.splitlines()[:4]] == ["arm", "base", "rl", "quick"]
    assert "report: runs/tiny/report.html" in first.out
    assert (folder / "runs/tiny/report.html").is_file()
    assert "rl: done 6/6" in first.err
    assert "error" not in first.err
    whole = print_of(folder)

    again = launch(folder)
    assert again.wait() == 2
    assert again.out == ""
    assert again.err == (
        "error: runs/tiny holds a run already: continue it with --resume, or name another with --name.\n"
    )
    for option in ("--resume", "--resume-if-exists"):
        shown = launch(folder, option)
        assert shown.wait() == 0
        assert shown.out == first.out
    assert differences(print_of(folder), whole) == []

    # Two processes, another name, and nothing but JSON on standard output.
    pair = launch(folder, "--set", "processes=2", "--name", "pair", "--json")
    assert pair.wait() == 0, pair.err
    told = json.loads(pair.out)
    assert pair.err == ""
    assert told["done"] is True
    assert told["stages"] == {"base": "done", "rl": "done", "quick": "done"}
    assert {"name", "solve_rate", "interval", "moves", "left_wrong_branch"} <= set(told["arms"][0])
    assert [arm["name"] for arm in told["arms"]] == ["base", "rl", "quick"]
    assert differences(print_of(folder, "pair"), whole) == []


def test_another_recipe_does_not_resume(folder):
    write(folder, BASE)
    assert launch(folder).wait() == 0
    before = print_of(folder)
    changed = launch(folder, "--resume", "--set", "stage.base.learning_rate=0.5", "--set", "seed=3")
    assert changed.wait() == 2
    lines = changed.err.splitlines()
    assert lines[0] == "error: the recipe differs from the one in runs/tiny; a resume needs the same."
    assert {"-learning_rate = 0.0003", "+learning_rate = 0.5", "-seed = 0", "+seed = 3"} <= set(lines)
    assert changed.out == ""
    assert differences(print_of(folder), before) == []
    # The same recipe in other words is the same recipe.
    (folder / "r.toml").write_text("# spelled out\n" + (folder / "runs/tiny/recipe.toml").read_text())
    assert launch(folder, "--resume").wait() == 0


def test_nothing_to_resume(folder):
    write(folder, BASE)
    nothing = launch(folder, "--resume")
    assert nothing.wait() == 2
    assert nothing.err == "error: runs/tiny holds no run to resume.\n"
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_resume_is_exact(number, code, folder):
    write(folder, LONG)
    whole = launch(folder)
    assert whole.wait() == 0
    expected = print_of(folder)
    (folder / "runs/tiny").rename(folder / "whole")

    stopped = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 3)
    asked = time.monotonic()
    stopped.signal(number)
    assert stopped.wait() == code
    assert time.monotonic() - asked < 30
    assert "stopping after this update; once more ends at once" in stopped.err
    assert "continue with: forkpoint run r.toml --runs runs --resume" in stopped.err
    assert status(folder / "runs/tiny") == {"base": "stopped"}
    assert "Traceback" not in stopped.err
    done = updates_done(folder, "base")
    assert 3 <= done < 60

    resumed = launch(folder, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert differences(print_of(folder), expected) == []


def test_a_signal_before_the_workers_listen_is_not_lost(folder):
    write(folder, LONG)
    early = launch(folder)
    eventually(lambda: early.workers())
    early.signal(signal.SIGINT)
    assert early.wait() == 130
    assert "Traceback" not in early.err
    assert set(status(folder / "runs/tiny").values()) <= {"stopped", "waiting"}


def test_a_second_signal_ends_at_once(folder):
    write(folder, LONG.replace("batch_size = 8", "batch_size = 4000"))
    hasty = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 0 and status(folder / "runs/tiny") == {"base": "running"})
    hasty.signal(signal.SIGINT)
    time.sleep(0.3)
    hasty.signal(signal.SIGINT)
    assert hasty.wait(20) == 130
    assert status(folder / "runs/tiny") == {"base": "stopped"}


def test_a_killed_worker_fails_the_stage_and_stops_the_others(folder):
    write(folder, BASE, QUICK.replace("updates = 3", "updates = 4000"), OTHER.replace("updates = 3", "updates = 4000"))
    broken = launch(folder, "--set", "processes=2")
    eventually(lambda: updates_done(folder, "quick") > 0 and updates_done(folder, "other") > 0)
    os.kill(broken.workers()[0], signal.SIGKILL)
    assert broken.wait() == 1
    found = status(folder / "runs/tiny")
    assert found["base"] == "done"
    assert sorted((found["quick"], found["other"])) == ["failed", "stopped"]
    (line,) = [line for line in broken.err.splitlines() if line.startswith("error")]
    assert "its process was killed by signal 9" in line
    assert "continue with: forkpoint run r.toml" in broken.err


def test_a_killed_worker_is_no_loss_after_a_resume(folder):
    write(folder, LONG)
    assert launch(folder).wait() == 0
    expected = print_of(folder)
    (folder / "runs/tiny").rename(folder / "whole")
    broken = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 25)
    os.kill(broken.workers()[0], signal.SIGKILL)
    assert broken.wait() == 1
    assert status(folder / "runs/tiny") == {"base": "failed"}
    resumed = launch(folder, "--resume")
    assert resumed.wait() == 0
    assert differences(print_of(folder), expected) == []


def is_gone(pid):
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_workers_do_not_outlive_a_killed_command(folder):
    write(folder, LONG.replace("updates = 60", "updates = 4000"))
    broken = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 1)
    (worker,) = broken.workers()
    broken.signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    eventually(lambda: is_gone(worker))


def test_a_second_process_on_the_same_run_is_refused(folder):
    write(folder, LONG.replace("updates = 60", "updates = 4000"))
    first = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 1)
    second = Launched("run", "r.toml", "--resume", folder=folder / "second")
    assert second.wait() == 2
    assert second.err.startswith(f"error: runs/tiny is in use by process {first.pid} on ")
    assert second.err.count("\n") == 1
    first.signal(signal.SIGTERM)
    assert first.wait() == 143


@pytest.mark.parametrize("fault", ["checkpoint.before-files#1", "record.before-commit#2"])
def test_a_full_disk_is_one_line_with_the_path(fault, folder):
    write(folder, BASE)
    full = launch(folder, fault=f"{fault}:enospc")
    assert full.wait() == 2
    (line,) = [line for line in full.err.splitlines() if line.startswith("error")]
    assert "stage 'base' failed: " in line
    assert str(folder / "runs/tiny") in line or "runs/tiny/" in line
    assert "No space left on device" in line
    assert "Traceback" not in full.err
    assert status(folder / "runs/tiny") == {"base": "failed"}
    assert launch(folder, "--resume").wait() == 0


@pytest.mark.parametrize("fault", ["write.torn#1", "create.before-commit#1", "folder.before-make#1"])
def test_a_disk_that_is_full_from_the_start(fault, folder):
    write(folder, BASE)
    full = launch(folder, fault=f"{fault}:enospc")
    assert full.wait() == 2
    assert full.err.startswith("error: ")
    assert "runs" in full.err
    assert "No space left on device" in full.err
    assert full.err.count("\n") == 1
    assert launch(folder).wait() == 0


@pytest.mark.parametrize(
    "fault", ["write.torn#1", "create.before-commit#1", "database.after-open#1", "stage.before-begin#1"]
)
def test_killed_while_being_created(fault, folder):
    write(folder, BASE, QUICK)
    assert launch(folder, fault=f"{fault}:kill").wait() == -signal.SIGKILL
    again = launch(folder, "--resume-if-exists")
    assert again.wait() == 0, again.err
    assert status(folder / "runs/tiny") == {"base": "done", "quick": "done"}


def test_another_environment_is_no_exact_resume(folder):
    write(folder, LONG)
    stopped = launch(folder)
    eventually(lambda: updates_done(folder, "base") >= 3)
    stopped.signal(signal.SIGINT)
    stopped.wait()
    with closing(sqlite3.connect(folder / "runs/tiny/run.db")) as connection, connection:
        connection.execute("UPDATE meta SET value = replace(value, '2.13', '2.12') WHERE key = 'identity'")
    refused = launch(folder, "--resume")
    assert refused.wait() == 2
    assert "torch: 2.12" in refused.err
    assert "--allow-env-change" in refused.err
    allowed = launch(folder, "--resume", "--allow-env-change")
    assert allowed.wait() == 0, allowed.err
    with closing(sqlite3.connect(folder / "runs/tiny/run.db")) as connection:
        kinds = {kind for (kind,) in connection.execute("SELECT kind FROM events")}
    assert "environment" in kinds


def test_a_bug_in_outside_code_fails_its_stage(folder, monkeypatch):
    (folder / "outside_rule.py").write_text("def rule(batch, probe):\n    return [][1]\n")
    monkeypatch.syspath_prepend(folder)
    write(folder, RL)
    broken = launch(folder, "--set", "stage.rl.from=policy", "--set", "stage.rl.credit.rule=outside_rule:rule")
    assert broken.wait() not in (0, 2)
    assert "error: stage 'rl' failed: IndexError: list index out of range" in broken.err
    assert status(folder / "runs/tiny") == {"rl": "failed"}


def test_a_dry_run_writes_nothing(folder):
    write(folder, BASE, RL)
    dry = launch(folder, "--dry-run")
    assert dry.wait() == 0
    assert dry.out.startswith("tiny: nothing wrong found\n")
    told = launch(folder, "--dry-run", "--json")
    assert told.wait() == 0
    stage = json.loads(told.out)["stages"][1]
    assert stage.pop("credit")["cost_per_token"] == {"sampled": 0.0, "scored": 0.0, "verifier_calls": 0.0}
    assert stage == {
        "name": "rl", "kind": "rl", "from": "base", "updates": 6, "rollouts": 96, "max_sampled_tokens": 576,
    }  # fmt: skip
    assert not (folder / "runs").exists()
    (folder / "taken").touch()
    refused = launch(folder, "--dry-run", "--runs", "taken")
    assert refused.wait() == 2
    assert "taken/tiny cannot be made: " in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", "stage.rl.group_size=1"], "stage.rl.group_size = 1"),
        (["--set", "stage.rl.top_p=0.9"], "top_p is refused"),
        (["--set", "task.branchs=3"], "Did you mean 'branches'?"),
        (["--set", "stage.base.data=walk"], "Did you mean 'walks'?"),
        (["--set", "policy.context=15"], "do not fit the model's context of 15"),
        (["--set", "stage.rl.credit.options.x=1"], "credit.options = 'x'"),
        (["--name", "a/b"], "name = 'a/b'"),
        (["--name", "a\nb"], "name = 'a\\nb'"),
        (["--rsume"], "Did you mean --resume?"),
        (["extra"], "extra"),
        (["--set"], "--set requires an argument"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_users_mistake_is_one_line_and_nothing_is_written(arguments, part, dry, folder):
    write(folder, BASE, RL)
    refused = launch(folder, *dry, *arguments)
    assert refused.wait() == 2
    assert refused.out == ""
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1, refused.err
    assert part in refused.err
    assert not (folder / "runs").exists()


def test_the_real_command_in_processes_of_its_own(folder):
    # Everything above forks a warmed process; this one starts as a user does, and dies where FORKPOINT_FAULT says.
    write(folder, BASE)
    command = [sys.executable, "-c", "from forkpoint.cli.main import main; main()", "run", "r.toml"]
    killed = subprocess.run(
        command, env={**os.environ, "FORKPOINT_FAULT": "publish.before-rename#2:kill"}, capture_output=True, text=True
    )
    assert killed.returncode == 1
    assert "killed by signal 9" in killed.stderr
    done = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"] == {"base": "done"}
    assert done.stderr == ""
    (folder / "runs/tiny").rename(folder / "real")
    assert launch(folder).wait() == 0
    forked = print_of(folder)
    (folder / "runs/tiny").rename(folder / "forked")
    (folder / "real").rename(folder / "runs/tiny")
    assert differences(print_of(folder), forked) == []
