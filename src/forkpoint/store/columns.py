"""A stage of a run as the arrays that audits read: streamed from the database, a few thousand rows at a time."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.rows import BATCH, CONTENT_NAMES, TRAIN, assemble, hashed, joined
from forkpoint.files import connect_database, storage_errors
from forkpoint.records import OUTCOMES, STOPS, Contents, Records, SpanKind
from forkpoint.store.encoding import decode_bools, decode_floats, decode_ints, decode_json, decode_text
from forkpoint.store.reader import RunReader
from forkpoint.store.writer import DATABASE

STORED = tuple(name for name in CONTENT_NAMES if name != "trainer_logprobs")
"""Contents that a run keeps of its rollouts."""
_MARK = f'"{SpanKind.OBSERVATION}"'
_ROUNDS = f"(length(r.spans) - length(replace(r.spans, '{_MARK}', ''))) / {len(_MARK)}"
"""Observations among the spans of a rollout; NULL for one that was not kept."""
_TRAINED = f"""SELECT r.rowid, r.id, r.update_number, ?2, r.problem_key, r.group_id, length(r.tokens) / 4,
    {_ROUNDS}, v.correct, v.outcome, r.stop_reason, c.reward, p.difficulty, v.parts
    FROM rollouts r LEFT JOIN verdicts v ON v.rollout_id = r.id LEFT JOIN credits c ON c.rollout_id = r.id
    LEFT JOIN problems p ON p.key = r.problem_key
    WHERE r.stage = ?1 AND r.purpose = ?2 ORDER BY r.update_number, r.position"""
_EVALUATED = f"""SELECT r.rowid, coalesce(e.rollout_id, ''), e.update_number, e.name, e.problem_key,
    e.name || ' ' || e.update_number || ' ' || e.problem_key, e.length,
    {_ROUNDS}, e.correct, e.outcome, r.stop_reason, NULL, p.difficulty, e.parts
    FROM evaluations e LEFT JOIN rollouts r ON r.id = e.rollout_id LEFT JOIN problems p ON p.key = e.problem_key
    WHERE e.stage = ?1 AND ?2 != '' ORDER BY e.update_number, e.name, e.problem_key, e.idx"""
_CONTENTS = """SELECT r.text, r.tokens, r.behavior_logprobs, r.loss_mask, v.answer, p.prompt, p.answer AS reference
    FROM rollouts r LEFT JOIN verdicts v ON v.rollout_id = r.id LEFT JOIN problems p ON p.key = r.problem_key
    WHERE r.rowid = ?"""
_HEX = "0123456789abcdef"
_OUTCOME = {str(name): place for place, name in enumerate(OUTCOMES)}
_STOP = {str(name): place for place, name in enumerate(STOPS)}


def stage_records(folder: Path, stage: str, *, base: Records | None = None) -> Records:
    """The kept training rollouts of a stage and every sample of its evaluations; texts are read when asked for.

    The rewards of a run are finite or count as unknown.  A run that is still written is read as far as it is.

    Raises:
        StoreError: there is no such run or stage, or it is damaged.
    """
    with RunReader(folder) as reader:
        reader.stage(stage)
        name = reader.name
        metrics = {metric: reader.metrics(stage, metric) for metric in reader.metric_names(stage)}
    path = folder / DATABASE
    purposes = [TRAIN]
    with storage_errors(path), closing(connect_database(path, readonly=True)) as connection:
        blocks = [
            _block(rows, purposes)
            for query in (_TRAINED, _EVALUATED)
            for rows in _batches(connection.execute(query, (stage, TRAIN)))
        ]
    _, columns = joined(blocks or [_block([], purposes)])
    places = columns.pop("place")
    return assemble(
        columns, run=name, stage=stage, purposes=purposes, names=STORED if columns["kept"].any() else (),
        metrics=metrics, base=base, contents=lambda rows: _contents(path, places[rows]),
    )  # fmt: skip


def _batches(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    cursor.row_factory = None
    while rows := cursor.fetchmany(BATCH):
        yield rows


def _block(rows: Sequence[tuple[Any, ...]], purposes: list[str]) -> dict[str, NDArray[Any]]:
    """The columns of some rows of a query."""
    blank: tuple[tuple[Any, ...], ...] = ((),) * 14
    place, ids, update, purpose, problem, group, length, turns, correct, outcome, stop, reward, difficulty, parts = (
        zip(*rows, strict=True) if rows else blank
    )
    for name in purpose:
        if name not in purposes:
            purposes.append(name)
    where = {name: at for at, name in enumerate(purposes)}
    columns: dict[str, NDArray[Any]] = {
        "place": np.array([-1 if number is None else number for number in place], dtype=np.int64),
        "ids": np.array([text.encode() for text in ids], dtype=np.bytes_),
        "update": np.array(update, dtype=np.int32),
        "purpose": np.array([where[name] for name in purpose], dtype=np.int8),
        "problem": np.array([_number(key) for key in problem], dtype=np.uint64),
        "group": np.array([_number(key) for key in group], dtype=np.uint64),
        "tokens": np.ones(len(rows), dtype=np.bool_),
        "length": np.array(length, dtype=np.int32),
        "turns": np.array([-1 if value is None else value for value in turns], dtype=np.int32),
        "correct": np.array([-1 if value is None else value for value in correct], dtype=np.int8),
        "outcome": np.array([_OUTCOME.get(name, -1) for name in outcome], dtype=np.int8),
        "stop": np.array([_STOP.get(name, -1) for name in stop], dtype=np.int8),
        "reward": np.array(reward, dtype=np.float64),
        "difficulty": np.array(difficulty, dtype=np.float32),
    }
    columns["kept"] = columns["place"] >= 0
    return {**columns, **_parts(parts)}


def _number(key: str) -> int:
    """The first 64 bits of a hash in hex, the hash of any other text."""
    head = key[:16]
    return int(head, 16) if len(head) == 16 and not head.strip(_HEX) else hashed(key)


def _parts(texts: Sequence[str | None]) -> dict[str, NDArray[np.float32]]:
    told = [decode_json(text) if text and text != "{}" else {} for text in texts]
    names = {name for part in told for name in part}
    return {f"parts {name}": np.array([part.get(name, np.nan) for part in told], dtype=np.float32) for name in names}


def _contents(path: Path, places: NDArray[np.int64]) -> Iterator[Contents]:
    """What the rollouts of some row numbers of the database said."""
    with storage_errors(path), closing(connect_database(path, readonly=True)) as connection:
        for place in places.tolist():
            row = connection.execute(_CONTENTS, (place,)).fetchone()
            yield Contents() if row is None else _said(row)


def _said(row: sqlite3.Row) -> Contents:
    prompt = None if row["prompt"] is None else decode_json(row["prompt"])
    if isinstance(prompt, list):
        prompt = "\n".join(str(message.get("content", "")) for message in prompt)
    return Contents(
        prompt=prompt, text=decode_text(row["text"]),
        answer=None if row["answer"] is None else decode_text(row["answer"]),
        reference=None if row["reference"] is None else decode_text(row["reference"]),
        tokens=decode_ints(row["tokens"]), behavior_logprobs=decode_floats(row["behavior_logprobs"]),
        loss_mask=decode_bools(row["loss_mask"]),
    )  # fmt: skip
