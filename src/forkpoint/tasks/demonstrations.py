"""Texts to imitate from a file of the user's own, or from `forkpoint review export`.

Each line is an object: `prompt` (a text, or chat messages, each with `role` and `content`), `completion`, and where
wanted `ends` (false: the text goes on, no end-of-sequence token follows).  Other keys are not read, but for `edit`,
which becomes part of the provenance.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forkpoint.errors import TaskError
from forkpoint.records import Message
from forkpoint.tasks.jsonl import json_object, text_value
from forkpoint.tasks.protocol import Demonstration

LONGEST = 1_000_000
"""Characters of a line."""


def read_demonstrations(path: Path) -> list[Demonstration]:
    """The texts of a file, in its order.

    Raises:
        TaskError: it cannot be read, or holds no text; names the line of the first mistake.
    """
    found = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_demonstration(line, f"{path.name}:{number}"))
    except OSError as error:
        raise TaskError(f"data = 'file:{path}' cannot be read: {error.strerror}.") from None
    if not found:
        raise TaskError(f"data = 'file:{path}' holds no text.")
    return found


def _demonstration(line: bytes, where: str) -> Demonstration:
    table = json_object(line, where, LONGEST)
    ends = table.get("ends", True)
    if not isinstance(ends, bool):
        raise TaskError(f"{where}: ends must be true or false, not {type(ends).__name__}.")
    edit = table.get("edit")
    source = f" edit:{edit}" if isinstance(edit, str) else ""
    return Demonstration(
        prompt=_prompt(table, where), text=text_value(table, "completion", where), ends=ends,
        provenance=f"file:{where}{source}",
    )  # fmt: skip


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
