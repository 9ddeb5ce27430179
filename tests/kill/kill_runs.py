"""Runs that a child process begins or goes on with, and how a parent kills it: forked from a warmed process."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_runs import HEAD, Never, digest, fingerprint

from forkpoint.assembly import Assembly
from forkpoint.cli import run as command
from forkpoint.cli.worker import work
from forkpoint.config import Recipe, parse_recipe
from forkpoint.errors import ForkpointError
from forkpoint.files import FaultHook, RunLock, install_fault_hook
from forkpoint.report import write_report
from forkpoint.store import list_checkpoints, stage_folder

DECODER = """
[[stage]]
name = "base"
kind = "pretrain"
data = "walks"
updates = 2
batch_size = 4
checkpoint_every = 1
evaluate_every = 1
schedule = "cosine"
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 4
updates_per_batch = 2
problems_per_update = 4
group_size = 4
max_new_tokens = 4
warmup = 2
weight_decay = 0.1
checkpoint_every = 2
evaluate_every = 2
keep_checkpoints = 1
keep_rollouts = "all"
[stage.loss]
name = "clipped_surrogate"
"""
SMALLER = ("policy.width=16", "evaluation.problems=2", "evaluation.final_problems=2", "evaluation.max_new_tokens=4")
TABULAR = """
name = "tabular"
slots = 64
[policy]
kind = "tabular"
[task]
name = "lab"
branches = 2
depth = 1
lanes = 2
[evaluation]
problems = 2
final_problems = 4
max_new_tokens = 12
[[stage]]
name = "ppo"
kind = "rl"
updates = 6
updates_per_batch = 2
problems_per_update = 4
group_size = 2
max_new_tokens = 12
learning_rate = 0.1
checkpoint_every = 1
evaluate_every = 2
keep_checkpoints = 2
keep_rollouts = "sample:2"
[stage.credit]
rule = "critic"
[stage.loss]
name = "clipped_surrogate"
"""
REVIEWED = """
name = "reviewed"
slots = 64
[policy]
kind = "hf"
path = "package:backtrack"
[task]
name = "paths"
[evaluation]
problems = 2
final_problems = 2
max_new_tokens = 16
[doctor]
before = false
every = 0
[[stage]]
name = "base"
kind = "pretrain"
updates = 0
[[stage]]
name = "learn"
kind = "sft"
from = "base"
data = "edits:base"
updates = 3
batch_size = 4
checkpoint_every = 1
[stage.review]
problems = 6
group_size = 4
edit = "prune"
"""
"""Walks at random; what it solves is reviewed and imitated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended."""

    code: int
    """Its exit code, negative for a signal."""
    message: str
    """The error that it raised; empty for none."""


def recipes() -> dict[str, Recipe]:
    """A decoder that is pretrained and then reinforced, and a table with a critic."""
    return {"decoder": parse_recipe(HEAD + DECODER, SMALLER), "tabular": parse_recipe(TABULAR)}


def swept_recipes() -> dict[str, Recipe]:
    """Those of the tests, and one whose last stage learns from a review; for the sweep alone, since it takes longer."""
    return {**recipes(), "reviewed": parse_recipe(REVIEWED)}


def assembly_of(folder: Path, recipe: Recipe) -> Assembly:
    """The recipe with its run folder."""
    return Assembly(recipe=recipe, origin=folder.parent, run=folder)


def attempt(folder: Path, recipe: Recipe) -> int:
    """What `forkpoint run --resume-if-exists` does, in this one process: lock, prepare, work, report."""
    exists = command._holds_run(folder)
    with RunLock(folder):
        command._prepare(recipe, folder, exists=exists, allow_change=False)
        code = work(assembly_of(folder, recipe), Never())
    write_report(folder)
    return code


def in_child(function: Callable[[], int], *, hook: FaultHook | None = None, kill_after: float | None = None) -> Ended:
    """Calls the function in a fork, which a fault or, after so many seconds, SIGKILL may end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code, message = 99, ""
        try:
            os.fsync = lambda descriptor: None  # a kill of the process loses nothing that was written, synced or not
            install_fault_hook(hook)
            code = function()
        except ForkpointError as error:
            code, message = 2, str(error)
        except BaseException as error:  # noqa: BLE001
            message = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, message.encode()[:4000])
            os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return Ended(code=os.waitstatus_to_exitcode(status), message=pipe.read())


def warm(folder: Path, chosen: dict[str, Recipe] | None = None) -> None:
    """Pays for imports and first calls before the first fork.

    The backward pass runs on the calling thread on a CPU, so no thread is lost in a fork.
    """
    torch.set_num_threads(1)
    for name, recipe in (recipes() if chosen is None else chosen).items():
        assert attempt(folder / name, recipe) == 0


def everything(folder: Path, recipe: Recipe) -> dict[str, object]:
    """All that the same run must give again: each file of each checkpoint that is left, and every row but timings.

    Manifests hold hashes of the other files.
    """
    found = fingerprint(assembly_of(folder, recipe))
    for stage in recipe.stage:
        place = stage_folder(folder, stage.name)
        assert sorted(place.iterdir()) == list_checkpoints(place), f"unfinished writes are left in {place}"
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != "manifest.json")
        found[f"files {stage.name}"] = {path.relative_to(place).as_posix(): digest(path) for path in files}
    found["recipe"] = (folder / "recipe.toml").read_text()
    found["names"] = sorted(path.name for path in folder.iterdir() if path.name not in ("run.db-wal", "run.db-shm"))
    return found


def recorded_visits(folder: Path, recipe: Recipe, log: Path) -> list[tuple[str, int]]:
    """Every fault point that going on with a run reaches, with the number of the visit, in order."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ended = in_child(lambda: attempt(folder, recipe), hook=lambda name: _note(descriptor, name))
    os.close(descriptor)
    assert ended == Ended(code=0, message=""), ended
    visits: dict[str, int] = {}
    found = []
    for line in log.read_text().splitlines():
        name = json.loads(line)
        visits[name] = visits.get(name, 0) + 1
        found.append((name, visits[name]))
    return found


def _note(descriptor: int, name: str) -> None:
    os.write(descriptor, f"{json.dumps(name)}\n".encode())


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
