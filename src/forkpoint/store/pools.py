"""The texts that a stage's review made, to rows and back: a resume reads them and samples nothing anew."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.records import TextExample
from forkpoint.store.encoding import (
    Row,
    decode_bools,
    decode_ints,
    decode_json,
    decode_text,
    encode_array,
    encode_json,
    encode_text,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPool:
    """What a stage learns from when its texts come from a review."""

    identity: str
    """Hash of all that decides the texts beside the weights."""
    examples: tuple[TextExample, ...]
    beside: tuple[TextExample, ...] = ()
    """Laid beside them in every update."""
    tokens: int
    """Sampled to make them."""
    lessons: tuple[str, ...] = ()
    """Ids of the lessons that lived."""


def write_pool(connection: sqlite3.Connection, stage: str, pool: StoredPool) -> None:
    """Writes the texts of a stage in place of earlier ones, within the caller's transaction."""
    for table in ("pool_texts", "pools"):
        connection.execute(f"DELETE FROM {table} WHERE stage = ?", (stage,))
    row = (stage, pool.identity, pool.tokens, encode_json(pool.lessons))
    connection.execute("INSERT INTO pools VALUES (?, ?, ?, ?)", row)
    listed = [(False, text) for text in pool.examples] + [(True, text) for text in pool.beside]
    rows = [_text_row(stage, place, aside, text) for place, (aside, text) in enumerate(listed)]
    connection.executemany("INSERT INTO pool_texts VALUES (?, ?, ?, ?, ?, ?)", rows)


def _text_row(stage: str, place: int, aside: bool, text: TextExample) -> tuple[Any, ...]:
    arrays = (encode_array(text.tokens), encode_array(text.loss_mask))
    return (stage, place, int(aside), *arrays, encode_text(text.provenance))


def pool_from(row: Row, texts: Sequence[Row]) -> StoredPool:
    """The pool of its row and those of its texts, in order."""
    examples: tuple[list[TextExample], list[TextExample]] = ([], [])
    for each in texts:
        examples[each["beside"]].append(
            TextExample(
                tokens=decode_ints(each["tokens"]), loss_mask=decode_bools(each["loss_mask"]),
                provenance=decode_text(each["provenance"]),
            )
        )  # fmt: skip
    return StoredPool(
        identity=row["identity"], tokens=row["tokens"], lessons=tuple(decode_json(row["lessons"])),
        examples=tuple(examples[0]), beside=tuple(examples[1]),
    )  # fmt: skip
