"""Fields of foreign rollouts: what is there, with its type checked; a mistake is one line with file and line."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from forkpoint.errors import ForkpointError
from forkpoint.records import Bools, Floats, Ints, frozen_array

Raw: TypeAlias = Mapping[str, Any]
MAX_TOKENS = 4_000_000
"""Of one rollout."""


class RolloutsError(ForkpointError):
    """Foreign rollouts that cannot be read: one line with file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where an entry stands."""

    path: Path
    line: int
    """Line, row or sample, from 1."""
    correct_at: float | None = None
    """Reward from which on a rollout counts as correct where nothing else says."""

    @property
    def id(self) -> str:
        """A name for the rollout: file and line."""
        return f"{Path(self.path.parent.name) / self.path.name}:{self.line}"

    def wrong(self, message: str) -> RolloutsError:
        """The error for this place."""
        return RolloutsError(f"{self.path}:{self.line}: {message}")


def first(raw: Raw, *names: str) -> Any:  # noqa: ANN401
    """The first of the fields that is there and not null."""
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def text(raw: Raw, where: Where, *names: str) -> str | None:
    """A text; of a list of messages the contents, one under the other."""
    value = first(raw, *names)
    if value is None or isinstance(value, str):
        return value
    found = message_text(value)
    if found is None:
        raise where.wrong(f"'{names[0]}' must be a text or a list of messages, is {type(value).__name__}.")
    return found


def message_text(value: object) -> str | None:
    """The contents of messages, or parts of one, one under the other; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        inner = [value.get(name) for name in ("reasoning_content", "reasoning", "content", "text")]
        found = [message_text(part) for part in inner if part]
        return "\n".join(part for part in found if part)
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, bytes):
        parts = [message_text(part) for part in value]
        return None if None in parts else "\n".join(part for part in parts if part)
    return None


def tool_rounds(messages: object) -> int | None:
    """How often tools answered, answers to calls of one message taken together; None for what is no list of messages.

    >>> tool_rounds([{"role": "assistant"}, {"role": "tool"}, {"role": "tool"}, {"role": "assistant"}])
    1
    """
    if not isinstance(messages, Sequence | np.ndarray) or isinstance(messages, str | bytes):
        return None
    roles = [message.get("role") for message in messages if isinstance(message, Mapping)]
    return sum(role == "tool" != before for before, role in zip(["", *roles], roles, strict=False))


def needed(raw: Raw, where: Where, *names: str) -> str:
    """A text that must be there."""
    found = text(raw, where, *names)
    if found is None:
        raise where.wrong(f"'{names[0]}' is missing; there is {', '.join(sorted(map(str, raw))[:12]) or 'nothing'}.")
    return found


def number(raw: Raw, where: Where, *names: str) -> float | None:
    """A number; one that is not finite counts as unknown."""
    value = first(raw, *names)
    if value is None:
        return None
    if not isinstance(value, bool | int | float | np.number | np.bool_):
        raise where.wrong(f"'{names[0]}' must be a number, is {type(value).__name__}.")
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(raw: Raw, where: Where, *names: str) -> int | None:
    """A whole number that fits 32 bits."""
    found = number(raw, where, *names)
    if found is None:
        return None
    if found != int(found) or abs(found) >= 2**31:
        raise where.wrong(f"'{names[0]}' = {found:g} must be a whole number below 2147483648.")
    return int(found)


def truth(raw: Raw, where: Where, *names: str) -> bool | None:
    """True or false, also as 1 or 0."""
    found = number(raw, where, *names)
    if found is None:
        return None
    if found not in (0.0, 1.0):
        raise where.wrong(f"'{names[0]}' = {found:g} must be true or false.")
    return bool(found)


def label(raw: Raw, *names: str) -> str | None:
    """A name: a text or a number."""
    value = first(raw, *names)
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def inner(raw: Raw, name: str) -> Raw:
    """The object in a field; an empty one for anything else."""
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}


def _array(raw: Raw, where: Where, name: str) -> Any:  # noqa: ANN401
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes) or len(value) > MAX_TOKENS:
        raise where.wrong(f"'{name}' must be a list of at most {MAX_TOKENS} numbers.")
    if not all(isinstance(item, bool | int | float | np.number | np.bool_) for item in value):
        raise where.wrong(f"'{name}' must hold numbers only.")
    return value


def ints(raw: Raw, where: Where, name: str) -> Ints | None:
    """A list of token ids."""
    value = _array(raw, where, name)
    try:
        return None if value is None else frozen_array(list(value), np.int32)
    except (OverflowError, ValueError):
        raise where.wrong(f"'{name}' must hold whole numbers below 2147483648.") from None


def floats(raw: Raw, where: Where, name: str) -> Floats | None:
    """A list of numbers."""
    value = _array(raw, where, name)
    try:
        return None if value is None else frozen_array([float(item) for item in value], np.float32)
    except OverflowError:
        raise where.wrong(f"'{name}' holds a number that is too large.") from None


def bools(raw: Raw, where: Where, name: str) -> Bools | None:
    """A mask."""
    value = _array(raw, where, name)
    return None if value is None else frozen_array([bool(item) for item in value], np.bool_)


def by_reward(correct: bool | None, reward: float | None, where: Where) -> bool | None:
    """Whether it is correct: as told, or by the reward where the user gave a bound."""
    if correct is not None or where.correct_at is None or reward is None:
        return correct
    return reward >= where.correct_at
