"""Files of foreign rollouts: entries in, one at a time, and again by their place.  Sizes are bounded, nothing is run.

A place is a byte offset (JSON lines), a row (Parquet, CSV) or a sample (inspect-ai).
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from forkpoint.integrations.rollout_fields import Raw, RolloutsError
from forkpoint.store import DATABASE

MAX_ENTRY = 64 << 20
"""Bytes of one entry."""
MAX_LOG = 1 << 30
"""Bytes of a log that is one JSON document."""
MAX_FILES = 100_000
Entry: TypeAlias = tuple[int, int, Raw]
"""Place, line from 1, fields."""


@dataclass(frozen=True, slots=True)
class Source:
    """How files with some ending are read."""

    entries: Callable[[Path], Iterator[Entry]]
    """All entries; a last one that is half written is left out and sent as None fields."""
    at: Callable[[Path, Sequence[int]], Iterator[Raw]]
    """The entries at some places, in their order."""


HALF: Raw = {}
"""Stands for an entry that was half written."""


def _parse(line: bytes, path: Path, number: int) -> Raw:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RolloutsError(f"{path}:{number}: no JSON ({str(error).splitlines()[0][:80]}).") from None
    if not isinstance(value, dict):
        raise RolloutsError(f"{path}:{number}: must be an object with fields, is {type(value).__name__}.")
    return value


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise RolloutsError(f"{path}: {error.strerror or error}.") from None


def _lines(path: Path) -> Iterator[Entry]:
    with _open(path) as file:
        number, offset = 0, 0
        while line := file.readline(MAX_ENTRY + 1):
            number += 1
            if len(line) > MAX_ENTRY:
                raise RolloutsError(f"{path}:{number}: a line has more than {MAX_ENTRY >> 20} MiB.")
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                yield start, number, _parse(line, path, number)
            except RolloutsError:
                # The writer may be at it, or was killed: only the last line may be broken.
                if line.endswith(b"\n") and file.read(1):
                    raise
                yield start, number, HALF


def _lines_at(path: Path, places: Sequence[int]) -> Iterator[Raw]:
    with _open(path) as file:
        for place in places:
            file.seek(place)
            yield _parse(file.readline(MAX_ENTRY), path, 0)


def _table(path: Path) -> Any:  # noqa: ANN401
    try:
        import pyarrow  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise RolloutsError(f"{path}: Parquet needs the extra `arrow`: pip install 'forkpoint[arrow]'.") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise RolloutsError(f"{path}: no Parquet file ({str(error).splitlines()[0][:80]}).") from None


def _rows(path: Path) -> Iterator[Entry]:
    place = 0
    with _table(path) as table:
        for batch in table.iter_batches(batch_size=1024):
            for raw in batch.to_pylist():
                yield place, place + 1, raw
                place += 1


def _rows_at(path: Path, places: Sequence[int]) -> Iterator[Raw]:
    with _table(path) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        held: tuple[int, list[Raw]] = (-1, [])
        for place in places:
            group, start = 0, 0
            while place >= start + sizes[group]:
                start += sizes[group]
                group += 1
            if held[0] != group:
                held = (group, table.read_row_group(group).to_pylist())
            yield held[1][place - start]


def _csv(path: Path) -> Iterator[Entry]:
    limit = csv.field_size_limit(MAX_ENTRY)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for place, raw in enumerate(csv.DictReader(file)):
                yield place, place + 2, {name: _number(value) for name, value in raw.items() if name}
    except (OSError, csv.Error) as error:
        raise RolloutsError(f"{path}: {str(error)[:120]}.") from None
    finally:
        csv.field_size_limit(limit)


def _number(value: str | None) -> Any:  # noqa: ANN401
    """A cell of a CSV file: a number where it is one, nothing where it is empty."""
    if not value:
        return None
    try:
        return float(value) if len(value) < 40 else value
    except ValueError:
        return value


def _csv_at(path: Path, places: Sequence[int]) -> Iterator[Raw]:
    wanted = dict.fromkeys(places)
    found = {place: raw for place, _, raw in _csv(path) if place in wanted}
    return (found[place] for place in places)


def _samples(path: Path) -> Iterator[Entry]:
    return ((place, place + 1, raw) for place, raw in enumerate(_log(path)))


def _log(path: Path) -> list[Raw]:
    """The samples of an inspect-ai log in JSON."""
    if path.stat().st_size > MAX_LOG:
        raise RolloutsError(f"{path}: a log of more than {MAX_LOG >> 30} GiB; write it as .eval.")
    with _open(path) as file:
        raw = _parse(file.read(), path, 1)
    samples = raw.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise RolloutsError(f"{path}: no log of inspect-ai: it has no list of samples.")
    return samples


def _samples_at(path: Path, places: Sequence[int]) -> Iterator[Raw]:
    samples = _log(path)
    return (samples[place] for place in places)


def _members(path: Path) -> Iterator[Entry]:
    with _archive(path) as archive:
        for place, member in enumerate(_names(archive, path)):
            yield place, place + 1, _member(archive, member, path)


def _members_at(path: Path, places: Sequence[int]) -> Iterator[Raw]:
    with _archive(path) as archive:
        members = _names(archive, path)
        for place in places:
            yield _member(archive, members[place], path)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise RolloutsError(f"{path}: no log of inspect-ai that can be read ({reason}); write it as JSON.") from None


def _names(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    found = [item for item in archive.infolist() if item.filename.startswith("samples/") and not item.is_dir()]
    if not found:
        raise RolloutsError(f"{path}: no log of inspect-ai: it holds no samples.")
    return sorted(found, key=lambda item: item.filename)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Raw:
    with archive.open(member) as file:
        data = file.read(MAX_ENTRY + 1)
    if len(data) > MAX_ENTRY:
        raise RolloutsError(f"{path}: sample {member.filename} has more than {MAX_ENTRY >> 20} MiB.")
    return _parse(data, path, 1)


SOURCES = {
    ".jsonl": Source(_lines, _lines_at),
    ".parquet": Source(_rows, _rows_at),
    ".csv": Source(_csv, _csv_at),
    ".json": Source(_samples, _samples_at),
    ".eval": Source(_members, _members_at),
}
"""By the ending of a file."""


def rollout_files(path: Path) -> list[Path]:
    """The files of rollouts at a path: itself, or those in the folder, by name, numbers by their value.

    Raises:
        RolloutsError: there are none, or far too many.
    """
    if path.is_file():
        if path.suffix not in SOURCES:
            raise RolloutsError(f"{path}: rollouts end in {', '.join(SOURCES)}.")
        return [path]
    if not path.is_dir():
        raise RolloutsError(f"{path} is neither a run nor a file or folder of rollouts.")
    runs = sorted(path.glob(f"*/{DATABASE}"))
    if runs:
        raise RolloutsError(f"{path} is no run folder, but holds some, such as {runs[0].parent}.")
    if (path / "recipe.toml").is_file():
        raise RolloutsError(f"{path} looks like a run folder, but {DATABASE} is missing.")
    found = [item for item in path.rglob("*") if item.suffix in SOURCES and item.is_file() and not item.is_symlink()]
    if not found or len(found) > MAX_FILES:
        raise RolloutsError(
            f"{path} is no run folder and holds {len(found) or 'no'} files of rollouts ({', '.join(SOURCES)})."
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = "".join(letter if letter.isdigit() else f"\0{letter}\0" for letter in str(path)).split("\0")
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts if part]
