"""Rollouts of another trainer in, the records that audits read out: arrays, and texts that are read when asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from forkpoint.audits.rows import Builder, Row
from forkpoint.errors import unknown_name
from forkpoint.integrations import (
    rollouts_inspect,
    rollouts_plain,
    rollouts_prime_rl,
    rollouts_trl,
    rollouts_verl,
)
from forkpoint.integrations.rollout_fields import Raw, RolloutsError, Where
from forkpoint.integrations.rollout_files import HALF, SOURCES, rollout_files
from forkpoint.integrations.rollouts_trl import Entry
from forkpoint.records import Contents, Records

FILE_BITS = 40
"""Of a place in a folder: the place in a file has so many bits, the file the rest."""


@dataclass(frozen=True, slots=True)
class Format:
    """How the entries of another trainer are read."""

    matches: Callable[[Raw], bool]
    row: Callable[[Raw, Where], Row]
    fresh: Callable[[Iterable[Entry]], Iterator[Entry]] = iter
    """The entries without what the trainer wrote again."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "inspect": Format(rollouts_inspect.matches, rollouts_inspect.row),
        "prime-rl": Format(rollouts_prime_rl.matches, rollouts_prime_rl.row),
        "verl": Format(rollouts_verl.matches, rollouts_verl.row),
        "trl": Format(rollouts_trl.matches, rollouts_trl.row, rollouts_trl.fresh),
        "plain": Format(rollouts_plain.matches, rollouts_plain.row),
    }
)
"""In the order in which they are tried on the first entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Files of rollouts of one format."""

    files: tuple[Path, ...]
    name: str
    """Of the format."""
    correct_at: float | None = None

    def entries(self) -> Iterator[Entry]:
        """All entries of all files, without those that are there twice."""
        every = (
            (file, place, line, raw)
            for file, path in enumerate(self.files)
            for place, line, raw in SOURCES[path.suffix].entries(path)
        )
        return FORMATS[self.name].fresh(every)

    def row(self, raw: Raw, file: int, line: int) -> Row:
        """The rollout of an entry."""
        return FORMATS[self.name].row(raw, Where(path=self.files[file], line=line, correct_at=self.correct_at))

    def contents(self, places: NDArray[np.int64]) -> Iterator[Contents]:
        """What the rollouts at some places said, in their order; each file is opened once for a run of places."""
        files = places >> FILE_BITS
        edges = np.flatnonzero(np.diff(files)) + 1
        for part in np.split(places, edges):
            if len(part):
                file = int(part[0] >> FILE_BITS)
                path = self.files[file]
                inside = (part & ((1 << FILE_BITS) - 1)).tolist()
                yield from (self.row(raw, file, 0).said for raw in SOURCES[path.suffix].at(path, inside))


def detect(files: tuple[Path, ...], name: str | None = None) -> str:
    """The format of the first entry of some files, or the one that is named.

    Raises:
        RolloutsError: no entry, none that is known, or no such format.
    """
    if name is not None:
        if name not in FORMATS:
            raise RolloutsError(unknown_name("--format", name, FORMATS))
        return name
    for path in files:
        for _, line, raw in SOURCES[path.suffix].entries(path):
            if raw is HALF:
                continue
            for known, entry in FORMATS.items():
                if entry.matches(raw):
                    return known
            fields = ", ".join(sorted(map(str, raw))[:12])
            raise RolloutsError(
                f"{path}:{line}: rollouts of no known trainer (fields: {fields}); name one with --format "
                f"({', '.join(FORMATS)}) or write the fields of docs/import.md."
            )
    raise RolloutsError(f"{files[0].parent if len(files) > 1 else files[0]}: no rollouts in it.")


def foreign_records(
    path: Path, *, format: str | None = None, correct_at: float | None = None,
    told: Callable[[int], None] | None = None,
) -> list[Records]:  # fmt: skip
    """The records of each stage at a path, most often one; `told` hears how many rollouts were read.

    Raises:
        RolloutsError: what cannot be read, with its file and line.
    """
    files = tuple(rollout_files(path))
    source = Foreign(files=files, name=detect(files, format), correct_at=correct_at)
    builders: dict[str, Builder] = {}
    skipped = count = 0
    for file, place, line, raw in source.entries():
        if raw is HALF:
            skipped += 1
            continue
        row = source.row(raw, file, line)
        builders.setdefault(row.stage, Builder()).add(row, (file << FILE_BITS) | place)
        count += 1
        if told is not None and count % 10_000 == 0:
            told(count)
    made = [builder.records(source.contents, run=str(path)) for builder in builders.values()]
    # The half-written entries are of the last stage.
    return [*made[:-1], *(replace(records, skipped=skipped) for records in made[-1:])]
