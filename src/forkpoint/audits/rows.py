"""Rollouts one by one in, the arrays that audits read out."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forkpoint.records import OUTCOMES, SHIFTED, STOPS, Contents, Outcome, Records, StopReason, frozen_array
from forkpoint.seeds import content_hash

TRAIN = "train"
ID_BYTES = 96
"""Longest id that is kept."""
CONTENT_NAMES = ("prompt", "text", "answer", "reference", "tokens", "behavior_logprobs", "trainer_logprobs")
BATCH = 4096
"""Rollouts that are held as objects at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rollout of any trainer; None for what it does not tell."""

    id: str
    problem: str
    """Whatever tells problems apart, such as the prompt."""
    group: str | None = None
    """Whatever tells groups apart; None: the rollouts of one problem at one update."""
    stage: str = "rollouts"
    purpose: str = TRAIN
    update: int | None = None
    length: int | None = None
    """Tokens; None: the characters of the text."""
    turns: int | None = None
    """Tool rounds."""
    correct: bool | None = None
    outcome: Outcome | None = None
    stop: StopReason | None = None
    reward: float | None = None
    difficulty: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    said: Contents = field(default_factory=Contents)


Reader: TypeAlias = Callable[[NDArray[np.int64]], Iterator[Contents]]
Metrics: TypeAlias = Mapping[str, tuple[NDArray[np.int32], NDArray[np.float64]]]


def hashed(*parts: str | int) -> int:
    """A 64-bit hash of the parts."""
    return int(content_hash(*parts), 16)


class Builder:
    """Takes the rollouts of one stage and gives their records; holds a few thousand of them as objects at a time."""

    def __init__(self) -> None:
        self._batch: list[Row] = []
        self._blocks: list[dict[str, NDArray[Any]]] = []
        self._places = array("q")
        self._purposes = [TRAIN]
        self._names: set[str] = set()
        self._stage = ""

    def add(self, row: Row, place: int) -> None:
        """Takes a rollout; `place` is where its contents can be read again."""
        self._stage = row.stage
        if row.purpose not in self._purposes:
            self._purposes.append(row.purpose)
        self._names.update(name for name in CONTENT_NAMES if getattr(row.said, name) is not None)
        self._places.append(place)
        self._batch.append(row)
        if len(self._batch) == BATCH:
            self._close()

    def _close(self) -> None:
        self._blocks.append(_block(self._batch, self._purposes))
        self._batch = []

    def records(
        self, contents: Reader, *, run: str = "", metrics: Metrics | None = None, base: Records | None = None,
        skipped: int = 0,
    ) -> Records:  # fmt: skip
        """The records of what was taken; `contents` reads what stands at some places."""
        self._close()
        order, columns = joined(self._blocks)
        places = np.array(self._places, dtype=np.int64)[order]
        return assemble(
            columns, run=run, stage=self._stage, purposes=self._purposes, names=self._names, metrics=metrics or {},
            base=base, skipped=skipped, contents=lambda rows: contents(places[rows]),
        )  # fmt: skip


def records_of(
    rows: Iterable[Row], *, run: str = "", metrics: Metrics | None = None, base: Records | None = None
) -> Records:
    """The records of rollouts that are all of one stage; what they said is held in memory."""
    builder = Builder()
    said: list[Contents] = []
    for place, row in enumerate(rows):
        builder.add(row, place)
        said.append(row.said)
    return builder.records(
        lambda places: (said[place] for place in places.tolist()), run=run, metrics=metrics, base=base
    )


def assemble(
    columns: dict[str, NDArray[Any]],
    *,
    purposes: list[str],
    names: Iterable[str],
    metrics: Metrics,
    **rest: Any,  # noqa: ANN401
) -> Records:
    """The records of a stage's columns, as `joined` gives them; `names` are the contents that are kept of any."""
    values: dict[str, Any] = dict(columns)
    parts = {name.removeprefix("parts "): values.pop(name) for name in columns if name.startswith("parts ")}
    tokens = values.pop("tokens")
    has = frozenset(names) | known_columns(values, purposes=purposes, parts=bool(parts), metrics=bool(metrics))
    unit = "tokens" if tokens.any() or not len(tokens) else "characters"
    return Records(has=has, purposes=tuple(purposes), unit=unit, parts=parts, metrics=metrics, **values, **rest)


def _block(rows: list[Row], purposes: list[str]) -> dict[str, NDArray[Any]]:
    """The columns of some rows."""
    nan = float("nan")
    text = [len(row.said.text or "") for row in rows]
    updates = [0 if row.update is None else row.update for row in rows]
    columns = {
        "ids": np.array([row.id.encode("utf-8", "replace")[:ID_BYTES] for row in rows], dtype=np.bytes_),
        "update": np.array(updates, dtype=np.int32),
        "purpose": np.array([purposes.index(row.purpose) for row in rows], dtype=np.int8),
        "problem": np.array([hashed(row.problem) for row in rows], dtype=np.uint64),
        "group": np.array([_group(row) for row in rows], dtype=np.uint64),
        "kept": np.ones(len(rows), dtype=np.bool_),
        "tokens": np.array([row.length is not None for row in rows], dtype=np.bool_),
        "length": np.array(
            [size if row.length is None else row.length for row, size in zip(rows, text, strict=True)], dtype=np.int32
        ),
        "turns": np.array([-1 if row.turns is None else row.turns for row in rows], dtype=np.int32),
        "correct": np.array([-1 if row.correct is None else int(row.correct) for row in rows], dtype=np.int8),
        "outcome": np.array([_place(OUTCOMES, row.outcome) for row in rows], dtype=np.int8),
        "stop": np.array([_place(STOPS, row.stop) for row in rows], dtype=np.int8),
        "reward": np.array([nan if row.reward is None else row.reward for row in rows], dtype=np.float64),
        "difficulty": np.array([nan if row.difficulty is None else row.difficulty for row in rows], dtype=np.float32),
    }
    for name in {name for row in rows for name in row.parts}:
        columns[f"parts {name}"] = np.array([row.parts.get(name, nan) for row in rows], dtype=np.float32)
    return columns


def _group(row: Row) -> int:
    if row.group is not None:
        return hashed(row.stage, row.purpose, row.update or 0, row.group)
    return hashed(row.stage, row.purpose, row.update or 0, "problem", row.problem)


def _place(names: tuple[Outcome, ...] | tuple[StopReason, ...], name: Outcome | StopReason | None) -> int:
    return -1 if name is None else [str(known) for known in names].index(str(name))


def joined(blocks: list[dict[str, NDArray[Any]]]) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Where each row was, and the columns of all blocks, ordered by update."""
    sizes = [len(block["update"]) for block in blocks]
    names = list(dict.fromkeys(name for block in blocks for name in block))
    columns: dict[str, NDArray[Any]] = {}
    for name in names:
        filled = [
            block.get(name, np.full(size, np.nan, dtype=np.float32))
            for block, size in zip(blocks, sizes, strict=True)
            if size
        ]
        columns[name] = np.concatenate(filled) if filled else blocks[0][name]
    order = np.argsort(columns["update"], kind="stable")
    return order, {name: frozen_array(column[order], column.dtype.type) for name, column in columns.items()}


def known_columns(
    columns: Mapping[str, NDArray[Any]], *, purposes: list[str], parts: bool, metrics: bool
) -> frozenset[str]:
    """What the columns of a stage tell, by the names of `Records.has`."""
    train = columns["purpose"] == 0
    updates = columns["update"][train]
    told = {
        "updates": bool(len(updates)) and bool((updates != updates[0]).any()),
        "groups": len(np.unique(columns["group"])) < len(train),
        "correct": bool((columns["correct"] >= 0).any()),
        "outcomes": bool((columns["outcome"] >= 0).any()),
        "stops": bool((columns["stop"] >= 0).any()),
        "length": bool((columns["length"] > 0).any()),
        "turns": bool((columns["turns"] >= 0).any()),
        "reward": bool(np.isfinite(columns["reward"]).any()),
        "difficulty": bool(np.isfinite(columns["difficulty"]).any()),
        "evaluations": len(purposes) > 1,
        "shifted": any(name.startswith(SHIFTED) for name in purposes),
        "parts": parts,
        "metrics": metrics,
    }
    return frozenset(name for name, there in told.items() if there)
