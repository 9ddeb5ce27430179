"""TRL's completion tables: `completions/completions_00010.parquet`, or the same as CSV.

A row is one completion: `step`, `prompt`, `completion`, one column for each reward function, `advantage`.  The
reward is the sum of the reward columns: their weights are not in the table.  A column of 0 and 1 that is named after
accuracy or correctness says what is correct.

TRL writes its last generation batch whenever it logs: with several updates for a batch (`steps_per_generation`,
`num_iterations`) the same table comes again under a later step.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from forkpoint.audits.rows import TRAIN, Row
from forkpoint.integrations.rollout_fields import Raw, Where, by_reward, label, needed, number, text, tool_rounds, whole
from forkpoint.records import Contents

KNOWN = ("step", "prompt", "completion", "advantage", "mode")
REFERENCES = ("solution", "answer", "ground_truth")
MAX_TABLE = 65_536
"""Rows of one step that are held to be compared with the step before; larger tables are taken as they come."""
Entry: TypeAlias = tuple[int, int, int, Raw]
"""File, place, line, fields."""


def matches(raw: Raw) -> bool:
    """Whether an entry looks like one; a reward function may be named like a field of plain rollouts."""
    names = set(raw)
    return {"step", "prompt", "completion"} <= names and ("advantage" in names or not {"correct", "reward"} & names)


def fresh(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries without tables that repeat the one before under another step."""
    before, step, held = b"", None, list[Entry]()
    digest = hashlib.sha256()
    for entry in entries:
        raw = entry[3]
        if held and raw.get("step") != step:
            if digest.digest() != before:
                yield from held
            before, digest, held = digest.digest(), hashlib.sha256(), []
        step = raw.get("step")
        digest.update(repr([(name, value) for name, value in raw.items() if name != "step"]).encode())
        held.append(entry)
        if len(held) > MAX_TABLE:
            yield from held
            before, digest, held = b"", hashlib.sha256(), []
    if digest.digest() != before:
        yield from held


def row(raw: Raw, where: Where) -> Row:
    """The rollout of a row of the table."""
    prompt, completion = needed(raw, where, "prompt"), needed(raw, where, "completion")
    rewards = {
        name: float(value)
        for name, value in raw.items()
        if name not in KNOWN and isinstance(value, int | float) and math.isfinite(value) and name not in REFERENCES
    }
    exact = [value for name, value in rewards.items() if "accura" in name or "correct" in name]
    correct = bool(exact[0]) if exact and exact[0] in (0.0, 1.0) else None
    reward = sum(rewards.values()) if rewards else number(raw, where, "reward")
    return Row(
        id=where.id, problem=prompt, stage="rollouts", purpose=label(raw, "mode") or _mode(where),
        update=whole(raw, where, "step"), turns=tool_rounds(raw.get("completion")),
        correct=by_reward(correct, reward, where), reward=reward,
        said=Contents(prompt=prompt, text=completion, reference=text(_texts(raw), where, *REFERENCES)),
    )  # fmt: skip


def _texts(raw: Raw) -> Raw:
    return {name: str(value) for name, value in raw.items() if name in REFERENCES and isinstance(value, str | float)}


def _mode(where: Where) -> str:
    return "eval" if where.path.parent.name == "eval" else TRAIN
