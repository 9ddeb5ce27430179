"""A run that stopped amid its last stage, and copies of it whose newest checkpoint was changed."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kill_runs import DECODER, SMALLER, TABULAR, assembly_of
from tiny_runs import HEAD, After, make_run, resume, status

from forkpoint.cli.worker import work
from forkpoint.config import Recipe, parse_recipe
from forkpoint.store import list_checkpoints, stage_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A run that stopped after update 4 of 6 of its last stage, with the checkpoints of updates 2 and 4."""

    folder: Path
    recipe: Recipe

    @property
    def stage(self) -> str:
        return self.recipe.stage[-1].name

    def copied(self, to: Path) -> "Stopped":
        """A copy elsewhere."""
        shutil.copytree(self.folder, to)
        return Stopped(folder=to, recipe=self.recipe)

    @property
    def checkpoints(self) -> list[Path]:
        """Of the last stage."""
        return list_checkpoints(stage_folder(self.folder, self.stage))

    def resume(self) -> None:
        """Goes on with the run, as `--resume` does."""
        resume(assembly_of(self.folder, self.recipe))

    def query(self, text: str) -> list[tuple]:
        """Rows of its database."""
        with closing(sqlite3.connect(self.folder / "run.db")) as connection:
            return connection.execute(text).fetchall()


def stopped_run(folder: Path, kind: str) -> Stopped:
    """One of the two recipes, stopped."""
    changed = ("stage.rl.updates=6", "stage.rl.keep_checkpoints=2")
    text, overrides, asked = {"decoder": (HEAD + DECODER, SMALLER + changed, 6), "tabular": (TABULAR, (), 3)}[kind]
    recipe = parse_recipe(text, overrides)
    work(make_run(folder, recipe), After(asked))
    run = Stopped(folder=folder, recipe=recipe)
    assert status(folder)[run.stage] == "stopped", status(folder)
    assert [path.name for path in run.checkpoints] == ["step-000002", "step-000004"]
    return run
