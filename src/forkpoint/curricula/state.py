"""All that a curriculum remembers, as one file beside the checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from forkpoint.curricula.replay import Waiting
from forkpoint.curricula.staircase import Stairs
from forkpoint.curricula.tracker import Tally
from forkpoint.errors import CheckpointError
from forkpoint.files import write_text_atomic

FILE = "curriculum.json"
"""Beside the model in a checkpoint."""
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumState:
    """What was learned about problems so far."""

    tallies: Mapping[str, Tally] = field(default_factory=dict)
    stairs: Stairs = field(default_factory=Stairs)
    waiting: tuple[Waiting, ...] = ()


_STATE = TypeAdapter(CurriculumState)


def save_state(state: CurriculumState, folder: Path, *, settings: Mapping[str, Any], update: int) -> None:
    """Writes the state after `update`, and the settings that made it."""
    wrapped = {"format": FORMAT, "settings": settings, "update": update, "state": asdict(state)}
    text = json.dumps(wrapped, sort_keys=True, indent=1, allow_nan=False)
    write_text_atomic(folder / FILE, text + "\n")


def load_state(folder: Path, *, settings: Mapping[str, Any], update: int) -> CurriculumState:
    """The state that `save_state` wrote under the same settings after the same update.

    Raises:
        CheckpointError: the file is missing, damaged, or of another curriculum or update; names it.
    """
    place = folder / FILE
    try:
        wrapped = json.loads(place.read_text("utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(wrapped, dict) or set(wrapped) != {"format", "settings", "update", "state"}:
        raise CheckpointError(f"{place}: format, settings, update or state is missing, or there is more.")
    if wrapped["format"] != FORMAT:
        raise CheckpointError(f"{place} has format {wrapped['format']}, this forkpoint knows {FORMAT}.")
    if wrapped["settings"] != json.loads(json.dumps(settings)):
        raise CheckpointError(f"{place} is of a curriculum with other settings.")
    if wrapped["update"] != update:
        raise CheckpointError(f"{place} is of update {wrapped['update']}, not {update}.")
    return _restored(place, wrapped["state"])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _restored(place: Path, saved: object) -> CurriculumState:
    try:
        state = _STATE.validate_python(saved)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "state"
        raise CheckpointError(f"{place}: {where}: {first['msg']}.") from None
    # Defaults that were filled in, names that were passed over and kinds that were converted all show here.
    if json.dumps(asdict(state), sort_keys=True) != json.dumps(saved, sort_keys=True):
        raise CheckpointError(f"{place}: a part of the state is missing or foreign.")
    return state
