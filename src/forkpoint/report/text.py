"""What a reader sees of a model's text: every character that would hide, move or break others is spelled out."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from forkpoint.records import Message

MAX_TOKENIZER_BYTES = 64 << 20
"""A larger tokenizer file is not read; texts are then split evenly."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>", re.ASCII)
_INDEX = re.compile(r"step-(\d+)", re.ASCII)


def visible(text: str) -> str:
    r"""The text with control, formatting and direction characters and lone surrogates as escapes.

    Line breaks and tabs stay.  The result can always be written as UTF-8.

    >>> visible("a\x00b\u202ec\ud800")
    'a\\x00b\\u202ec\\ud800'
    """
    if text.isprintable():
        return text
    return "".join(
        _escape(character) if character not in "\n\t" and unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """A prompt as text; chat messages one after the other, each after its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{part.get('role', '?')}: {part.get('content', '')}" for part in prompt)


def shorten(text: str, limit: int) -> str:
    """The text, or its first `limit` characters and how many follow.

    >>> shorten("abcdef", 4)
    'abcd … (2 more characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


def split_evenly(text: str, parts: int) -> list[str]:
    """The text in `parts` pieces of about one length, for tokens whose own texts are unknown.

    >>> split_evenly("abcdef", 3)
    ['ab', 'cd', 'ef']
    """
    edges = [round(place * len(text) / parts) for place in range(parts + 1)] if parts else [0]
    return [text[start:end] for start, end in pairwise(edges)]


def token_texts(run: Path) -> dict[int, str]:
    """The text of each token id, from the tokenizer of the run's newest checkpoint; empty when there is none."""
    for path in tokenizers(run):
        texts = read_tokenizer(path)
        if texts:
            return texts
    return {}


def tokenizers(run: Path) -> list[Path]:
    """The tokenizer files of a run's checkpoints, the newest first."""
    return sorted(run.glob("stages/*/step-*/tokenizer.json"), key=_newest, reverse=True)


def _newest(path: Path) -> tuple[int, str]:
    match = _INDEX.fullmatch(path.parent.name)
    return (int(match[1]) if match else -1, str(path))


def read_tokenizer(path: Path) -> dict[int, str]:
    """The text of each token id in a `tokenizer.json`; empty when it cannot be read or has an unknown form."""
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            return {}
        tree = json.loads(path.read_bytes())
        return _token_texts(tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _token_texts(tree: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: place for place, entry in enumerate(vocabulary)}
    marks = json.dumps([tree.get("decoder"), tree.get("pre_tokenizer")])
    if '"ByteLevel"' in marks:
        table = _byte_table()
        texts = {int(index): _from_bytes(token, table) for token, index in vocabulary.items()}
    elif '"Metaspace"' in marks or '"ByteFallback"' in marks:
        texts = {int(index): _from_pieces(token) for token, index in vocabulary.items()}
    else:
        texts = {int(index): str(token) for token, index in vocabulary.items()}
    return {**texts, **{int(added["id"]): str(added["content"]) for added in tree.get("added_tokens") or ()}}


def _byte_table() -> dict[str, int]:
    """Character to byte in byte-level vocabularies: printable Latin-1 stands for itself, the rest moves up by 256."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(moved)}


def _from_bytes(token: str, table: Mapping[str, int]) -> str:
    if not all(character in table for character in token):
        return token
    return bytes(table[character] for character in token).decode("utf-8", "backslashreplace")


def _from_pieces(token: str) -> str:
    match = _BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]).decode("utf-8", "backslashreplace") if match else token.replace("▁", " ")
