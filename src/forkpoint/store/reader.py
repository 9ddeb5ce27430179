"""The reading side of a run folder: needs no lock, writes nothing, never imports torch."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import StoreError
from forkpoint.files import connect_database, storage_errors
from forkpoint.records import Credit, Finding, Group, Ints, Problem, Rollout, Verdict
from forkpoint.review.postmortem import Review
from forkpoint.store.encoding import JSON, decode_json, decode_text
from forkpoint.store.pools import StoredPool, pool_from
from forkpoint.store.reviews import StoredEdit, StoredLesson, edit_from, lesson_from, review_from
from forkpoint.store.rows import (
    EvaluationArrays,
    Event,
    StageRecord,
    credit_from,
    evaluation_from,
    finding_from,
    metric_from,
    problem_from,
    reward_from,
    rollout_from,
    stage_from,
    verdict_from,
)
from forkpoint.store.schema import check_version, schema_version
from forkpoint.store.writer import DATABASE


def find_runs(root: Path) -> list[Path]:
    """The run folders directly in `root`, by name."""
    return sorted(path.parent for path in root.glob(f"*/{DATABASE}"))


def identity_changes(recorded: Mapping[str, JSON], current: Mapping[str, JSON]) -> dict[str, tuple[JSON, JSON]]:
    """What differs between two identities: key to (recorded, current), None where one lacks it.

    >>> identity_changes({"threads": 1, "torch": "2.13"}, {"threads": 2, "torch": "2.13"})
    {'threads': (1, 2)}
    """
    keys = sorted(set(recorded) | set(current))
    return {key: (recorded.get(key), current.get(key)) for key in keys if recorded.get(key) != current.get(key)}


class RunReader:
    """Reads the database of one run, also while it is written.

    `update` None means every update, `stage` None every stage.
    """

    def __init__(self, folder: Path) -> None:
        """Open the run in `folder`.

        Raises:
            StoreError: there is no run, it is damaged, or of a newer schema.
        """
        path = folder / DATABASE
        if not path.is_file():
            raise StoreError(f"{folder} holds no run: {DATABASE} is missing")
        self.folder = folder
        self._path = path
        self._connection = connect_database(path, readonly=True)
        try:
            with storage_errors(path):
                version = schema_version(self._connection)
                check_version(version, str(path))
                # An older schema lacks tables, no more: see `_later_rows`.
                if not version or not self._rows("SELECT key FROM meta"):
                    raise StoreError(f"{folder} holds no run: it was interrupted while being created")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunReader":
        """The reader itself; the block's end closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the reader cannot be used again."""
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A block in which all answers are of one moment, although a writer goes on."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with storage_errors(self._path):
            return self._connection.execute(query, values).fetchall()

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.meta()["name"])

    @property
    def created(self) -> float:
        """When the run was created, unix seconds."""
        return float(self.meta()["created"])

    @property
    def identity(self) -> dict[str, Any]:
        """What an exact resume depends on, as it was recorded."""
        return self.meta()["identity"]

    def meta(self) -> dict[str, Any]:
        """Every entry of `meta`."""
        return {row["key"]: decode_json(row["value"]) for row in self._rows("SELECT key, value FROM meta")}

    def stages(self) -> list[StageRecord]:
        """The stages in the order in which they were announced."""
        return [stage_from(row) for row in self._rows("SELECT * FROM stages ORDER BY position")]

    def stage(self, name: str) -> StageRecord:
        """One stage.

        Raises:
            StoreError: the run has no such stage.
        """
        rows = self._rows("SELECT * FROM stages WHERE name = ?", name)
        if not rows:
            known = ", ".join(stage.name for stage in self.stages())
            raise StoreError(f"{self.folder} has no stage '{name}'. It has: {known or 'none'}.")
        return stage_from(rows[0])

    def events(self, stage: str | None = None) -> list[Event]:
        """What happened, in order."""
        rows = self._rows("SELECT * FROM events WHERE ?1 IS NULL OR stage = ?1 ORDER BY id", stage)
        return [
            Event(time=row["time"], stage=row["stage"], kind=row["kind"], message=decode_text(row["message"]))
            for row in rows
        ]

    def updates(self, stage: str) -> tuple[Ints, NDArray[np.float64], NDArray[np.int64]]:
        """Update numbers, seconds and sampled tokens of each update, ascending."""
        rows = self._rows("SELECT * FROM updates WHERE stage = ? ORDER BY update_number", stage)
        return (
            np.array([row["update_number"] for row in rows], dtype=np.int32),
            np.array([row["seconds"] for row in rows], dtype=np.float64),
            np.array([row["tokens"] for row in rows], dtype=np.int64),
        )

    def metric_names(self, stage: str) -> list[str]:
        """The metrics that the stage has, by name."""
        return [
            row["name"] for row in self._rows("SELECT DISTINCT name FROM metrics WHERE stage = ? ORDER BY 1", stage)
        ]

    def metrics(self, stage: str, name: str) -> tuple[Ints, NDArray[np.float64]]:
        """Update numbers, ascending, and the metric's values, which may be NaN or infinite."""
        query = "SELECT * FROM metrics WHERE stage = ? AND name = ? ORDER BY update_number"
        rows = self._rows(query, stage, name)
        updates = np.array([row["update_number"] for row in rows], dtype=np.int32)
        return updates, np.array([metric_from(row) for row in rows], dtype=np.float64)

    def latest_metrics(self, stage: str) -> dict[str, float]:
        """Each metric's value at the last update that has it."""
        # SQLite takes the bare columns from the row that has the maximum.
        query = "SELECT name, value, special, max(update_number) FROM metrics WHERE stage = ? GROUP BY name"
        return {row["name"]: metric_from(row) for row in self._rows(query, stage)}

    def problem(self, key: str) -> Problem:
        """One problem.

        Raises:
            StoreError: the run did not keep it.
        """
        rows = self._rows("SELECT * FROM problems WHERE key = ?", key)
        if not rows:
            raise StoreError(f"{self.folder} has no problem '{key}'")
        return problem_from(rows[0])

    def problems(self) -> Iterator[Problem]:
        """Every problem that the run kept, by key."""
        return (problem_from(row) for row in self._rows("SELECT * FROM problems ORDER BY key"))

    def kept_updates(self, stage: str, purpose: str = "train") -> list[int]:
        """The updates whose rollouts were kept, ascending."""
        query = "SELECT DISTINCT update_number AS n FROM rollouts WHERE stage = ? AND purpose = ? ORDER BY 1"
        return [row["n"] for row in self._rows(query, stage, purpose)]

    def rollouts(
        self, stage: str | None = None, update: int | None = None, purpose: str | None = "train"
    ) -> Iterator[Rollout]:
        """The rollouts that were kept, in the order in which they were recorded; `purpose` None: any."""
        return (rollout_from(row) for row in self._rollout_rows("SELECT * FROM rollouts", stage, update, purpose))

    def _rollout_rows(
        self, query: str, stage: str | None, update: int | None, purpose: str | None
    ) -> Iterator[sqlite3.Row]:
        conditions = {"stage": stage, "update_number": update, "purpose": purpose}
        chosen = {name: value for name, value in conditions.items() if value is not None}
        where = " AND ".join(f"{name} = :{name}" for name in chosen) or "TRUE"
        with storage_errors(self._path):
            order = "ORDER BY stage, purpose, update_number, position"
            yield from self._connection.execute(f"{query} WHERE {where} {order}", chosen)

    def rollout(self, rollout_id: str) -> Rollout:
        """One rollout.

        Raises:
            StoreError: the run did not keep it.
        """
        rows = self._rows("SELECT * FROM rollouts WHERE id = ?", rollout_id)
        if not rows:
            raise StoreError(f"{self.folder} has no rollout '{rollout_id}'")
        return rollout_from(rows[0])

    def verdict(self, rollout_id: str) -> Verdict | None:
        """The verdict on a rollout, None where it has none."""
        rows = self._rows("SELECT * FROM verdicts WHERE rollout_id = ?", rollout_id)
        return verdict_from(rows[0]) if rows else None

    def credit(self, rollout_id: str) -> Credit | None:
        """The credit of a rollout, None where it has none."""
        rows = self._rows("SELECT * FROM credits WHERE rollout_id = ?", rollout_id)
        return credit_from(rows[0]) if rows else None

    def credits(
        self, stage: str | None = None, update: int | None = None, purpose: str | None = "train"
    ) -> Iterator[tuple[str, Credit]]:
        """The id of each rollout that was kept with credit, and the credit, in the order of `rollouts`."""
        query = "SELECT credits.* FROM credits JOIN rollouts ON rollouts.id = rollout_id"
        for row in self._rollout_rows(query, stage, update, purpose):
            credit = credit_from(row)
            if credit is not None:
                yield row["rollout_id"], credit

    def groups(
        self, stage: str | None = None, update: int | None = None, purpose: str | None = "train"
    ) -> Iterator[Group]:
        """The groups that were kept, as they were recorded."""
        rows = self._rollout_rows("SELECT * FROM rollouts", stage, update, purpose)
        for _, members in groupby(rows, key=lambda row: (row["stage"], row["purpose"], row["group_id"])):
            yield self._group([rollout_from(row) for row in members])

    def group_of(self, rollout_id: str) -> Group:
        """The group that a kept rollout is in; StoreError where it was not kept."""
        one = self.rollout(rollout_id)
        query = """SELECT rollouts.* FROM rollouts JOIN rollouts AS one ON one.id = ? WHERE
            rollouts.group_id = one.group_id AND rollouts.stage = one.stage AND rollouts.purpose = one.purpose
            AND rollouts.update_number = one.update_number ORDER BY rollouts.position"""
        return self._group([rollout_from(row) for row in self._rows(query, one.id)])

    def _group(self, rollouts: list[Rollout]) -> Group:
        verdicts = [self.verdict(rollout.id) for rollout in rollouts]
        query = "SELECT * FROM credits WHERE rollout_id = ?"
        rewards = [reward_from(row) for rollout in rollouts for row in self._rows(query, rollout.id)]
        return Group(
            problem=self.problem(rollouts[0].problem_key),
            rollouts=tuple(rollouts),
            verdicts=tuple(verdict for verdict in verdicts if verdict is not None),
            rewards=tuple(reward for reward in rewards if reward is not None),
        )

    def evaluated(self, stage: str, name: str = "evaluate") -> list[int]:
        """The updates at which the stage was evaluated, ascending."""
        query = "SELECT DISTINCT update_number AS n FROM evaluations WHERE stage = ? AND name = ? ORDER BY 1"
        return [row["n"] for row in self._rows(query, stage, name)]

    def evaluation_names(self, stage: str) -> list[str]:
        """The names of the stage's evaluations."""
        return [
            r["name"] for r in self._rows("SELECT DISTINCT name FROM evaluations WHERE stage = ? ORDER BY 1", stage)
        ]

    def evaluations(self, stage: str, update: int, name: str = "evaluate") -> EvaluationArrays:
        """One evaluation as arrays over its samples, ordered by problem key and index."""
        query = """SELECT * FROM evaluations WHERE stage = ? AND update_number = ? AND name = ?
            ORDER BY problem_key, idx"""
        return evaluation_from(self._rows(query, stage, update, name))

    def findings(self, stage: str | None = None) -> list[Finding]:
        """What audits found, in the order in which it was written."""
        rows = self._rows("SELECT * FROM findings WHERE ?1 IS NULL OR stage = ?1 ORDER BY id", stage)
        return [finding_from(row) for row in rows]

    def reviews(self) -> list[Review]:
        """The postmortems, by the id of their rollout."""
        return [review_from(row) for row in self._later_rows("reviews", "rollout_id")]

    def edits(self) -> list[StoredEdit]:
        """What reviews propose, in the order of proposal."""
        return [edit_from(row) for row in self._later_rows("edits", "position")]

    def lessons(self) -> list[StoredLesson]:
        """Every lesson, deleted ones too, by id."""
        return [lesson_from(row) for row in self._later_rows("lessons", "id")]

    def pool(self, stage: str) -> StoredPool | None:
        """The texts that a stage's review made, None where it made none yet."""
        found = [row for row in self._later_rows("pools", "stage") if row["stage"] == stage]
        query = "SELECT * FROM pool_texts WHERE stage = ? ORDER BY position"
        return pool_from(found[0], self._rows(query, stage)) if found else None

    def _later_rows(self, table: str, order: str) -> list[sqlite3.Row]:
        """The rows of a table that runs of older versions do not have."""
        known = self._rows("SELECT name FROM sqlite_schema WHERE name = ?", table)
        return self._rows(f"SELECT * FROM {table} ORDER BY {order}") if known else []
