"""The writing side of a run folder: every change is one transaction."""

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from forkpoint.errors import StoreError
from forkpoint.files import connect_database, fsync_path, make_folder, storage_errors, transaction
from forkpoint.records import Credit, Edit, Finding, Group, Problem, Reward, UpdateRecord
from forkpoint.review.postmortem import Review, Verification
from forkpoint.store.encoding import JSON, encode_json, encode_text
from forkpoint.store.pools import StoredPool, write_pool
from forkpoint.store.reviews import Decision, StoredLesson, edit_row, lesson_row, review_row
from forkpoint.store.rows import (
    Evaluation,
    StageStatus,
    credit_row,
    evaluation_row,
    finding_row,
    metric_rows,
    problem_row,
    rollout_row,
    verdict_row,
)
from forkpoint.store.schema import migrate

DATABASE = "run.db"
"""Name of the database in a run folder."""
_WHOLE_REVIEW = "purpose = 'review' AND update_number = 0 AND stage IN (SELECT stage FROM pools)"


class RunWriter:
    """Writes the database of one run.

    Several processes may write different stages at once: transactions are short, and each waits up to 30 s.
    Every method raises StoreError when the disk is full or the database cannot be used; then nothing was written.
    """

    def __init__(self, connection: sqlite3.Connection, *, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._clock = clock

    @classmethod
    def create(
        cls, folder: Path, *, name: str, identity: Mapping[str, JSON], clock: Callable[[], float] = time.time
    ) -> "RunWriter":
        """A writer on a new run in `folder`; `identity` is what an exact resume depends on: versions, threads, machine.

        Raises:
            StoreError: the folder holds a run already.
        """
        make_folder(folder)
        path = folder / DATABASE
        connection = connect_database(path)
        try:
            migrate(connection, str(path))
            with transaction(connection, "create"):
                if connection.execute("SELECT count(*) FROM meta").fetchone()[0]:
                    raise StoreError(f"{folder} holds a run already: continue it with --resume or choose another name")
                rows = {"name": name, "created": clock(), "identity": identity}
                _insert(connection, "meta", [{"key": key, "value": encode_json(rows[key])} for key in rows])
            with storage_errors(folder):
                fsync_path(folder)
        except BaseException:
            connection.close()
            raise
        return cls(connection, clock=clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> "RunWriter":
        """A writer on the run in `folder`, brought to the newest schema.

        Raises:
            StoreError: there is no run, or a newer version of the library wrote it.
        """
        path = folder / DATABASE
        if not path.is_file():
            raise StoreError(f"{folder} holds no run: {DATABASE} is missing")
        connection = connect_database(path)
        try:
            migrate(connection, str(path))
            if not connection.execute("SELECT count(*) FROM meta").fetchone()[0]:
                raise StoreError(f"{folder} holds no run: it was interrupted while being created; start it again")
        except BaseException:
            connection.close()
            raise
        return cls(connection, clock=clock)

    def __enter__(self) -> "RunWriter":
        """The writer itself; the block's end closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the writer cannot be used again."""
        self._connection.close()

    def set_meta(self, key: str, value: JSON) -> None:
        """Write one entry of `meta`: `identity` after a permitted change, or a key of the caller's."""
        with transaction(self._connection, "meta"):
            query = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            self._connection.execute(query, (key, encode_json(value)))

    def add_stage(self, stage: str, *, kind: str, parent: str | None = None, updates_total: int = 0) -> None:
        """Announce a stage that waits; one that is known keeps its status."""
        with transaction(self._connection, "stage"):
            self._add_stage(stage, kind=kind, parent=parent, updates_total=updates_total)

    def begin_stage(self, stage: str, *, kind: str, parent: str | None = None, updates_total: int = 0) -> None:
        """Mark a stage as running, announced or not; the time of its first start stays."""
        with transaction(self._connection, "stage"):
            self._add_stage(stage, kind=kind, parent=parent, updates_total=updates_total)
            query = "UPDATE stages SET status = 'running', message = '', started = coalesce(started, ?) WHERE name = ?"
            self._connection.execute(query, (self._clock(), stage))

    def claim_stage(self, stage: str) -> bool:
        """Whether this process may run a waiting stage: of several that ask, one gets it."""
        with transaction(self._connection, "stage"):
            query = "UPDATE stages SET status = 'running' WHERE name = ? AND status = 'waiting'"
            return bool(self._connection.execute(query, (stage,)).rowcount)

    def requeue(self) -> None:
        """Let every stage that is not done wait again, for a resume; no process may be running one."""
        with transaction(self._connection, "stage"):
            self._connection.execute("UPDATE stages SET status = 'waiting', message = '' WHERE status != 'done'")

    def _add_stage(self, stage: str, *, kind: str, parent: str | None, updates_total: int) -> None:
        self._connection.execute(
            """INSERT INTO stages (name, position, kind, parent, status, updates_done, updates_total, seconds, message)
            VALUES (?, (SELECT count(*) FROM stages), ?, ?, 'waiting', 0, ?, 0, '')
            ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, parent = excluded.parent,
            updates_total = excluded.updates_total""",
            (stage, kind, parent, updates_total),
        )

    def finish_stage(self, stage: str, *, status: StageStatus = StageStatus.DONE, message: str = "") -> None:
        """Mark how a stage ended."""
        with transaction(self._connection, "stage"):
            query = "UPDATE stages SET status = ?, message = ? WHERE name = ?"
            found = self._connection.execute(query, (str(status), encode_text(message), stage)).rowcount
            self._require_stage(stage, found)

    def record_update(self, update: UpdateRecord) -> None:
        """Write one update and its metrics, without rollouts."""
        self.record(update)

    def record(
        self,
        update: UpdateRecord,
        groups: Sequence[Group] = (),
        credits: Sequence[Credit] = (),
        evaluations: Sequence[Evaluation] = (),
        *,
        purpose: str = "train",
    ) -> None:
        """Write one update with its metrics, the rollouts that are kept, and its evaluations, all or nothing.

        `credits` holds one for each rollout of `groups`, in their order, or none at all.

        Raises:
            ValueError: the credits do not match, or a rollout is of another stage or update.
            StoreError: the stage is unknown, or the update is recorded already.
        """
        with transaction(self._connection, "record"):
            self._insert_update(update)
            self._insert_metrics(update.stage, update.update, update.metrics)
            self._insert_groups(groups, credits, stage=update.stage, update=update.update, purpose=purpose)
            for evaluation in evaluations:
                self._replace_evaluation(update.stage, update.update, evaluation)

    def record_metrics(self, stage: str, update: int, metrics: Mapping[str, float]) -> None:
        """Write more metrics of an update; one of the same name is replaced."""
        with transaction(self._connection, "metrics"):
            self._insert_metrics(stage, update, metrics)

    def record_rollouts(
        self, groups: Sequence[Group], credits: Sequence[Credit] = (), *, stage: str, update: int, purpose: str
    ) -> None:
        """Keep more rollouts of an update, under a purpose of their own."""
        with transaction(self._connection, "rollouts"):
            self._insert_groups(groups, credits, stage=stage, update=update, purpose=purpose)

    def record_evaluation(
        self, stage: str, update: int, evaluation: Evaluation, *, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Write an evaluation of the weights after `update` (0: before training); replaces one of the same name."""
        with transaction(self._connection, "evaluation"):
            self._replace_evaluation(stage, update, evaluation)
            self._insert_metrics(stage, update, metrics or {})

    def record_findings(
        self,
        findings: Sequence[Finding],
        *,
        audits: Iterable[str] = (),
        stage: str | None = None,
        update: int | None = None,
    ) -> None:
        """Write what audits found, in place of what the same audits (and `audits`) found there before."""
        ran = {finding.audit for finding in findings} | set(audits)
        with transaction(self._connection, "findings"):
            query = "DELETE FROM findings WHERE audit = ? AND stage IS ? AND update_number IS ?"
            self._connection.executemany(query, [(audit, stage, update) for audit in sorted(ran)])
            rows = [finding_row(finding, stage=stage, update=update) for finding in findings]
            _insert(self._connection, "findings", rows)

    def record_reviews(self, reviews: Sequence[Review], edits: Sequence[Edit] = ()) -> None:
        """Write postmortems of stored rollouts and what they propose; a second review of a rollout replaces the first.

        An edit that is known already keeps its verification.
        """
        with transaction(self._connection, "reviews"):
            query = "INSERT INTO reviews VALUES (:rollout_id, :document) ON CONFLICT DO UPDATE SET document = :document"
            self._connection.executemany(query, [review_row(review) for review in reviews])
            last = self._connection.execute("SELECT coalesce(max(position), -1) FROM edits").fetchone()[0]
            rows = [edit_row(edit, last + place) for place, edit in enumerate(edits, start=1)]
            _insert(self._connection, "edits", rows, verb="INSERT OR IGNORE")

    def keep_review(
        self, groups: Sequence[Group], reviews: Sequence[Review], edits: Sequence[Edit],
        verifications: Sequence[Verification], *, stage: str,
    ) -> None:  # fmt: skip
        """Write the review that a stage begins with; rollouts that are there already stay."""
        query = "SELECT count(*) FROM rollouts WHERE stage = ? AND purpose = 'review'"
        if not self._connection.execute(query, (stage,)).fetchone()[0]:
            self.record_rollouts(groups, stage=stage, update=0, purpose="review")
        self.record_reviews(reviews, edits)
        self.record_verifications(verifications)

    def record_pool(self, stage: str, pool: StoredPool, lessons: Sequence[StoredLesson] = ()) -> None:
        """Write the texts of a stage's review, and with them that its review is whole: see `rewind`.

        Its lessons are written with them or not at all: a stage that begins again must not count an audit twice.
        """
        with transaction(self._connection, "pool"):
            self._write_lessons(lessons)
            write_pool(self._connection, stage, pool)

    def record_verifications(self, verifications: Sequence[Verification]) -> None:
        """Write what re-rollouts said of stored edits."""
        with transaction(self._connection, "verifications"):
            query = "UPDATE edits SET verification = ? WHERE id = ?"
            rows = [(encode_json(asdict(each)), each.edit_id) for each in verifications]
            self._connection.executemany(query, rows)

    def decide(self, edit: str, decision: Decision | None) -> None:
        """Write a person's word on an edit; None takes it back.

        Raises:
            StoreError: there is no such edit.
        """
        with transaction(self._connection, "decision"):
            found = self._connection.execute("UPDATE edits SET decision = ? WHERE id = ?", (decision, edit)).rowcount
            if not found:
                raise StoreError(f"the run has no edit '{edit}'")

    def record_lessons(self, lessons: Sequence[StoredLesson]) -> None:
        """Write lessons with their audits; a known one is replaced."""
        with transaction(self._connection, "lessons"):
            self._write_lessons(lessons)

    def _write_lessons(self, lessons: Sequence[StoredLesson]) -> None:
        self._connection.executemany("DELETE FROM lessons WHERE id = ?", [(each.lesson.id,) for each in lessons])
        _insert(self._connection, "lessons", [lesson_row(each) for each in lessons])

    def rewind(self, stage: str, update: int, *, message: str = "") -> None:
        """Forget everything of a stage after `update` and record the resume, in one transaction.

        0 keeps an evaluation before training; -1 forgets all, for a stage that left no checkpoint, but for a whole
        review with its texts, which begins the stage and depends on nothing in it.

        Raises:
            StoreError: the stage is unknown, or lacks an update up to this one: then nothing was forgotten.
        """
        with transaction(self._connection, "rewind"):
            # Verdicts and credits go with their rollouts.
            lost = 0
            for table in ("updates", "metrics", "rollouts", "evaluations", "findings"):
                spared = _WHOLE_REVIEW if table == "rollouts" else "FALSE"
                query = f"DELETE FROM {table} WHERE stage = ? AND update_number > ? AND NOT ({spared})"
                lost += self._connection.execute(query, (stage, update)).rowcount
            found = self._connection.execute(
                """UPDATE stages SET status = 'running', message = '', updates_done = max(0, ?), seconds =
                (SELECT coalesce(sum(seconds), 0) FROM updates WHERE stage = name) WHERE name = ?""",
                (update, stage),
            ).rowcount
            self._require_stage(stage, found)
            query = "SELECT count(*) FROM updates WHERE stage = ?"
            kept = self._connection.execute(query, (stage,)).fetchone()[0]
            if kept != max(0, update):
                raise StoreError(
                    f"stage '{stage}' has records of {kept} updates, but a checkpoint of update {update}: "
                    f"{DATABASE} is older than its checkpoints"
                )
            # A stage that begins for the first time resumes nothing.
            kind = "resume" if update >= 0 or lost else "start"
            told = f"resumed after update {update}" if update >= 0 else "began at its first update"
            self._insert_event(kind, message or told, stage=stage)

    def event(self, kind: str, message: str, *, stage: str | None = None) -> None:
        """Write down that something happened; events are never rewound."""
        with transaction(self._connection, "event"):
            self._insert_event(kind, message, stage=stage)

    def _require_stage(self, stage: str, found: int) -> None:
        if not found:
            raise StoreError(f"the run has no stage '{stage}'")

    def _insert_event(self, kind: str, message: str, *, stage: str | None) -> None:
        row = {"time": self._clock(), "stage": stage, "kind": kind, "message": encode_text(message)}
        _insert(self._connection, "events", [row])

    def _insert_update(self, update: UpdateRecord) -> None:
        query = "UPDATE stages SET updates_done = ?, seconds = seconds + ? WHERE name = ?"
        found = self._connection.execute(query, (update.update, update.seconds, update.stage)).rowcount
        self._require_stage(update.stage, found)
        query = "SELECT count(*) FROM updates WHERE stage = ? AND update_number = ?"
        if self._connection.execute(query, (update.stage, update.update)).fetchone()[0]:
            raise StoreError(f"update {update.update} of stage '{update.stage}' is recorded already: rewind first")
        query = "INSERT INTO updates (stage, update_number, seconds, tokens) VALUES (?, ?, ?, ?)"
        self._connection.execute(query, (update.stage, update.update, update.seconds, update.tokens))

    def _insert_metrics(self, stage: str, update: int, metrics: Mapping[str, float]) -> None:
        _insert(self._connection, "metrics", metric_rows(stage, update, metrics), verb="INSERT OR REPLACE")

    def _insert_problems(self, problems: Iterable[Problem]) -> None:
        _insert(self._connection, "problems", (problem_row(problem) for problem in problems), verb="INSERT OR IGNORE")

    def _insert_groups(
        self, groups: Sequence[Group], credit: Sequence[Credit], *, stage: str, update: int, purpose: str
    ) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        if credit and len(credit) != len(rollouts):
            raise ValueError(f"{len(credit)} credits for {len(rollouts)} rollouts")
        # A row under another update would survive a rewind, or vanish in one.
        for rollout in rollouts:
            if (rollout.stage, rollout.update) != (stage, update):
                raise ValueError(f"rollout {rollout.id} is of {rollout.stage} {rollout.update}, not {stage} {update}")
        self._insert_problems(group.problem for group in groups)
        first = self._connection.execute(
            "SELECT count(*) FROM rollouts WHERE stage = ? AND purpose = ? AND update_number = ?",
            (stage, purpose, update),
        ).fetchone()[0]
        rows = (rollout_row(rollout, purpose=purpose, position=i) for i, rollout in enumerate(rollouts, start=first))
        _insert(self._connection, "rollouts", rows)
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        pairs = zip(rollouts, verdicts, strict=True)
        _insert(self._connection, "verdicts", (verdict_row(rollout.id, verdict) for rollout, verdict in pairs))
        self._insert_credits(groups, credit)

    def _insert_credits(self, groups: Sequence[Group], credit: Sequence[Credit]) -> None:
        ids = [rollout.id for group in groups for rollout in group.rollouts]
        rewards: list[Reward | None] = []
        for group in groups:
            if group.rewards and len(group.rewards) != len(group.rollouts):
                raise ValueError(f"{len(group.rewards)} rewards for {len(group.rollouts)} rollouts")
            rewards.extend(group.rewards or [None] * len(group.rollouts))
        known: Sequence[Credit | None] = credit or [None] * len(ids)
        rows = [
            credit_row(rollout_id, reward, given)
            for rollout_id, reward, given in zip(ids, rewards, known, strict=True)
            if reward is not None or given is not None
        ]
        _insert(self._connection, "credits", rows)

    def _replace_evaluation(self, stage: str, update: int, evaluation: Evaluation) -> None:
        place = (stage, update, evaluation.name)
        for table, column in (("evaluations", "name"), ("rollouts", "purpose")):
            query = f"DELETE FROM {table} WHERE stage = ? AND update_number = ? AND {column} = ?"
            self._connection.execute(query, place)
        self._insert_groups(evaluation.groups, (), stage=stage, update=update, purpose=evaluation.name)
        self._insert_problems(evaluation.problems)
        rows = [
            evaluation_row(result, stage=stage, update=update, name=evaluation.name) for result in evaluation.results
        ]
        _insert(self._connection, "evaluations", rows)


def _insert(
    connection: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]], *, verb: str = "INSERT"
) -> None:
    listed = list(rows)
    if not listed:
        return
    # Names of tables and columns are constants of this package, never data.
    names = ", ".join(listed[0])
    values = ", ".join(f":{name}" for name in listed[0])
    connection.executemany(f"{verb} INTO {table} ({names}) VALUES ({values})", listed)
