"""Texts to imitate from a file of the user's own, or from `forkpoint review export`.

Each line is an object: `prompt` (a text, or chat messages, each with `role` and `content`), `completion`, and where
wanted `ends` (false: the text goes on, no end-of-sequence token follows).  Other keys are not read, but for `edit`,
which becomes part of the provenance.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forkpoint.errors import TaskError
from forkpoint.files import make_folder, write_bytes_atomic
from forkpoint.records import Message
from forkpoint.seeds import content_hash
from forkpoint.tasks.jsonl import json_object, text_value
from forkpoint.tasks.protocol import Demonstration

LONGEST = 1_000_000
"""Characters of a line."""
MOST = 1_000_000
"""Lines of a file."""
KEPT = "texts"
"""The folder of a run that holds its own copies."""


def kept_copy(run: Path, path: str) -> Path:
    """Where a run keeps its own copy of a file that its recipe names."""
    return run / KEPT / f"{content_hash(path)}.jsonl"


def kept_file(run: Path, folder: Path, path: str, *, keep: bool = False) -> Path:
    """The run's own copy of a file, so that a resume reads what the run began with; else the file itself.

    `keep` makes the copy where there is none; `folder` is the recipe's.

    Raises:
        TaskError: there is neither.
    """
    copy, original = kept_copy(run, path), folder / path
    if keep and not copy.is_file():
        try:
            data = original.read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        make_folder(copy.parent)
        write_bytes_atomic(copy, data)
    return copy if copy.is_file() else original


def read_demonstrations(path: Path, *, name: str = "") -> list[Demonstration]:
    """The texts of a file, in its order; `name` is what messages and provenance call it.

    Raises:
        TaskError: it cannot be read, or holds no text; names the line of the first mistake.
    """
    name = name or path.name
    try:
        found = list(_demonstrations(path, name))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    if not found:
        raise TaskError(f"data = 'file:{name}' holds no text.")
    return found


def _unreadable(name: str, error: OSError | ValueError) -> TaskError:
    return TaskError(f"data = 'file:{name}' cannot be read: {getattr(error, 'strerror', None) or error}.")


def _demonstrations(path: Path, name: str) -> Iterator[Demonstration]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(4 * LONGEST + 1):
            number += 1
            if number > MOST:
                raise TaskError(f"{name}:{number}: the file has more than {MOST} lines.")
            if line.strip():
                yield _demonstration(line, f"{name}:{number}")


def _demonstration(line: bytes, where: str) -> Demonstration:
    table = json_object(line, where, LONGEST)
    ends = table.get("ends", True)
    if not isinstance(ends, bool):
        raise TaskError(f"{where}: ends must be true or false, not {type(ends).__name__}.")
    source = f" edit:{_edit(table, where)}" if "edit" in table else ""
    return Demonstration(
        prompt=_prompt(table, where), text=text_value(table, "completion", where), ends=ends,
        provenance=f"file:{where}{source}",
    )  # fmt: skip


def _edit(table: Mapping[str, Any], where: str) -> str:
    edit = text_value(table, "edit", where)
    if len(edit) > 64 or not edit.isalnum():
        raise TaskError(f"{where}: edit must be an id of letters and digits.")
    return edit


def _prompt(table: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    prompt = table.get("prompt")
    if not isinstance(prompt, list):
        return text_value(table, "prompt", where)
    for part in prompt:
        if not isinstance(part, dict) or set(part) != {"role", "content"}:
            raise TaskError(f"{where}: a message of prompt must have a role and a content, and nothing else.")
        text_value(part, "role", where)
        text_value(part, "content", where)
    if not prompt:
        raise TaskError(f"{where}: prompt is empty.")
    return tuple(prompt)
