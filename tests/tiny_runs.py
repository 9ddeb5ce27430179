"""Runs that take a second: a policy of one narrow layer on two branches of one node."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forkpoint.assembly import Assembly, run_identity
from forkpoint.cli.worker import work
from forkpoint.config import Recipe, parse_recipe, recipe_to_toml
from forkpoint.config.recipe import parent
from forkpoint.store import RunWriter, checkpoint_path, stage_folder

HEAD = """
name = "tiny"
[policy]
kind = "tiny"
layers = 1
width = 32
heads = 2
context = 64
[task]
name = "paths"
branches = 2
depth = 1
walk_length = 6
[evaluation]
problems = 8
final_problems = 12
max_new_tokens = 6
"""
BASE = """
[[stage]]
name = "base"
kind = "pretrain"
data = "walks"
updates = 5
batch_size = 8
warmup = 2
checkpoint_every = 2
evaluate_every = 3
"""
RL = """
[[stage]]
name = "rl"
kind = "rl"
from = "base"
updates = 6
problems_per_update = 4
group_size = 4
max_new_tokens = 6
warmup = 2
checkpoint_every = 2
evaluate_every = 3
keep_rollouts = "all"
[stage.reward]
length_penalty = 0.5
"""
TIMINGS = ("seconds", "sample_seconds")
_TABLES = (
    "updates", "metrics", "problems", "rollouts", "verdicts", "credits", "evaluations", "findings",
    "reviews", "edits", "lessons", "pools", "pool_texts",
)  # fmt: skip


class Never:
    """No stop was asked for."""

    code = 0

    def __call__(self) -> bool:
        return False


class After(Never):
    """A stop that is asked for at the `count`-th question."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def tiny_recipe(*stages: str, overrides: tuple[str, ...] = (), head: str = HEAD) -> Recipe:
    """The recipe of the stages."""
    return parse_recipe(head + "".join(stages), overrides)


def make_run(folder: Path, recipe: Recipe, *, origin: Path | None = None) -> Assembly:
    """A run folder in which nothing was done yet."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe_to_toml(recipe))
    with RunWriter.create(folder, name=recipe.name, identity=run_identity(recipe)) as writer:
        for stage in recipe.stage:
            writer.add_stage(stage.name, kind=stage.kind, parent=parent(stage), updates_total=stage.updates)
    return Assembly(recipe=recipe, origin=origin or folder, run=folder)


def finished(folder: Path, recipe: Recipe, *, origin: Path | None = None) -> Assembly:
    """A run that went from its first update to its last."""
    assembly = make_run(folder, recipe, origin=origin)
    assert work(assembly, Never()) == 0
    return assembly


def resume(assembly: Assembly, stop: Callable[[], bool] | None = None) -> None:
    """Goes on with a run as `--resume` does."""
    with RunWriter.open(assembly.run) as writer:
        writer.requeue()
    work(assembly, stop or Never())


def status(folder: Path) -> dict[str, str]:
    """Where each stage stands."""
    with sqlite3.connect(folder / "run.db") as connection:
        return dict(connection.execute("SELECT name, status FROM stages ORDER BY position"))


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(assembly: Assembly) -> dict[str, Any]:
    """All that the same run must give again: weights, optimizer states, and every row, timings apart."""
    found: dict[str, Any] = {}
    for stage in assembly.recipe.stage:
        folder = stage_folder(assembly.run, stage.name)
        last = checkpoint_path(folder, stage.updates)
        found[f"weights {stage.name}"] = digest(last / "model.safetensors")
        found[f"trainer {stage.name}"] = digest(last / "trainer.safetensors")
    with sqlite3.connect(assembly.run / "run.db") as connection:
        connection.row_factory = sqlite3.Row
        for table in _TABLES:
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
            kept = [
                # Two processes write their findings in any order.
                {k: v for k, v in row.items() if k not in TIMINGS and (table, k) != ("findings", "id")}
                for row in rows
                if row.get("name") not in TIMINGS
            ]
            found[table] = sorted(kept, key=lambda row: [str(value) for value in row.values()])
        query = "SELECT name, kind, parent, status, updates_done, updates_total, message FROM stages ORDER BY position"
        found["stages"] = [dict(row) for row in connection.execute(query)]
    return found


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The parts in which two fingerprints differ."""
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
