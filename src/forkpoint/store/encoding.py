"""How values that SQLite and JSON cannot hold are written, so that every record comes back as it was.

JSON: a float that is not finite is `{"$float": "nan"}`, a string with lone surrogates is `{"$text": hex}`, a key that
begins with `$` gets another `$`.  Tuples come back as lists, numpy scalars and arrays as Python numbers and lists.
Text columns: a string with lone surrogates is a BLOB (UTF-8, surrogates passed), any other is TEXT.
Number columns: a value that is not finite is NULL, and the row's `special` says which (SQLite would lose NaN, and an
infinity would spoil every average).
Arrays: little-endian BLOBs, int32 or float32; masks one byte per position.
"""

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from forkpoint.records import Bools, Floats, Ints, frozen_array

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"
Row: TypeAlias = sqlite3.Row | Mapping[str, Any]
"""A row by column name."""


def encode_json(value: Any) -> str:  # noqa: ANN401
    """Compact JSON of `value` with sorted keys; see the module for what JSON cannot hold.

    Raises:
        TypeError: a value that is none of None, bool, number, string, sequence, mapping with string keys, numpy.

    >>> encode_json({"b": (1, float("inf")), "$a": "x"})
    '{"$$a":"x","b":[1,{"$float":"inf"}]}'
    """
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def decode_json(text: str | bytes) -> Any:  # noqa: ANN401
    """The value that `encode_json` wrote.

    >>> decode_json('{"$$a":"x","b":[1,{"$float":"inf"}]}')
    {'$a': 'x', 'b': [1, inf]}
    """
    return _restored(json.loads(text))


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, str):
        # str() turns members of string enums into what they say.
        return str(value) if _is_clean(value) else {"$text": value.encode("utf-8", "surrogatepass").hex()}
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _plain_key(key: Any) -> str:  # noqa: ANN401
    if not isinstance(key, str):
        raise TypeError(f"a key of type {type(key).__name__} cannot be stored as JSON")
    if not _is_clean(key):
        return "$x" + key.encode("utf-8", "surrogatepass").hex()
    return "$" + key if key.startswith("$") else key


def _restored(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$float"}:
        return float(value["$float"])
    if set(value) == {"$text"}:
        return bytes.fromhex(value["$text"]).decode("utf-8", "surrogatepass")
    return {_restored_key(key): _restored(item) for key, item in value.items()}


def _restored_key(key: str) -> str:
    if key.startswith("$x"):
        return bytes.fromhex(key[2:]).decode("utf-8", "surrogatepass")
    return key.removeprefix("$")


def _is_clean(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def encode_text(text: str | None) -> str | bytes | None:
    """What a text column holds: the string itself, or bytes when it has lone surrogates."""
    if text is None or _is_clean(text):
        return text
    return text.encode("utf-8", "surrogatepass")


def decode_text(stored: str | bytes) -> str:
    """The string that `encode_text` wrote."""
    return stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored


def split_numbers(**values: float | None) -> dict[str, float | str | None]:
    """The number columns of a row and its `special`: None, or JSON of the columns that are not finite.

    >>> split_numbers(score=0.5, reward=float("nan"))
    {'score': 0.5, 'reward': None, 'special': '{"reward":"nan"}'}
    """
    numbers = {name: None if value is None else float(value) for name, value in values.items()}
    special = {name: str(value) for name, value in numbers.items() if value is not None and not math.isfinite(value)}
    finite: dict[str, float | str | None] = {
        name: None if name in special else value for name, value in numbers.items()
    }
    return {**finite, "special": encode_json(special) if special else None}


def number(row: Row, name: str) -> float | None:
    """A number column of a row that `split_numbers` wrote.

    >>> number({"score": None, "special": '{"score":"-inf"}'}, "score")
    -inf
    """
    if row[name] is not None or row["special"] is None:
        return row[name]
    special = decode_json(row["special"])
    return float(special[name]) if name in special else None


def encode_array(values: Ints | Floats | Bools) -> bytes:
    """Little-endian bytes of an array of int32, float32 or bool."""
    kind = {"i": "<i4", "f": "<f4", "b": "u1"}[values.dtype.kind]
    return values.astype(kind, copy=False).tobytes()


def decode_ints(stored: bytes) -> Ints:
    """A read-only int32 array."""
    return frozen_array(np.frombuffer(stored, dtype="<i4"), np.int32)


def decode_floats(stored: bytes) -> Floats:
    """A read-only float32 array."""
    return frozen_array(np.frombuffer(stored, dtype="<f4"), np.float32)


def decode_bools(stored: bytes) -> Bools:
    """A read-only bool array."""
    return frozen_array(np.frombuffer(stored, dtype="u1"), np.bool_)
