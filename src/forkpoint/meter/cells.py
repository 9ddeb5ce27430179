"""Learning curves as cells: each leaves one small JSON, and a finished one is never run again.

A cell's file is named after its arm, rate and seed, and holds what it was asked, so that a change of settings is seen.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from forkpoint.errors import StoreError
from forkpoint.files import make_folder, write_text_atomic
from forkpoint.meter.learning import Arm, Curve, Point, Progress, Race, Watch, learning_curve
from forkpoint.meter.subject import Subject
from forkpoint.seeds import content_hash

VERSIONS = ("forkpoint", "torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCell:
    """One arm at one seed, from the policy that `make` loads."""

    make: Callable[[], Subject]
    """A subject with a policy of its own, since learning changes it."""
    task: Mapping[str, Any]
    """The task's table; with `policy` it says what was measured."""
    policy: str
    arm: Arm
    race: Race
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.arm.learning_rate:g}-{self.seed}"

    @property
    def asked(self) -> dict[str, Any]:
        """All that the curve is a function of, but for versions."""
        arm = self.arm
        given: dict[str, Any] = {"name": arm.name, "options": dict(arm.options), "wrap": list(arm.wrap)}
        given["wrap_options"] = {name: dict(options) for name, options in arm.wrap_options.items()}
        given["learning_rate"] = arm.learning_rate
        given["critic"] = None if arm.critic is None else arm.critic.model_dump()
        if arm.curriculum is not None:
            given["curriculum"] = arm.curriculum.model_dump(mode="json")
        if arm.divergence is not None:
            given["divergence"] = arm.divergence.model_dump(mode="json")
        asked = {"task": dict(self.task), "policy": self.policy, "arm": given}
        return {**asked, "race": asdict(self.race), "seed": self.seed}


def run_cell(
    cell: LearningCell,
    folder: Path | None,
    progress: Progress | None = None,
    *,
    watch: Watch | None = None,
    told: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, Any]:
    """The document of a cell: read where it lies in the folder, else run, and written where there is a folder.

    `told` is asked at the end of a run what else the document shall hold; `watch` has seen every update by then.

    Raises:
        StoreError: the file there is of other settings, or cannot be read.
        ForkpointError: as `learning_curve`.
    """
    place = None if folder is None else folder / f"{cell.name}.json"
    if place is not None and place.is_file():
        return read_cell(place, cell)
    curve = learning_curve(cell.make(), cell.arm, cell.race, seed=cell.seed, progress=progress, watch=watch)
    document = {**cell_document(cell, curve), **told()}
    if place is not None:
        make_folder(place.parent)
        write_text_atomic(place, json.dumps(document) + "\n")
    return document


def cell_document(
    cell: LearningCell, curve: Curve, versions: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What is stored of a cell; `versions` are those of other libraries that took part."""
    found = {**{name: metadata.version(name) for name in VERSIONS}, **versions}
    points = [list(asdict(point).values()) for point in curve.points]
    return {**cell.asked, "asked": cell_digest(cell), "versions": found, "end": curve.end, "points": points}


def read_cell(place: Path, cell: LearningCell) -> dict[str, Any]:
    """The document in a file; raises StoreError for one of other settings."""
    try:
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{place} cannot be read: {error}.") from None
    if not isinstance(found, dict) or found.get("asked") != cell_digest(cell):
        raise StoreError(f"{place} was measured with other settings: move it away, or name another folder.")
    return found


def curve_of(document: Mapping[str, Any]) -> Curve:
    """The curve of a cell's document."""
    names = tuple(Point.__dataclass_fields__)
    points = tuple(Point(**dict(zip(names, row, strict=True))) for row in document["points"])
    return Curve(points=points, end=str(document["end"]))


def missing(cells: Sequence[LearningCell], folder: Path) -> list[LearningCell]:
    """The cells that are still to be run."""
    return [cell for cell in cells if not (folder / f"{cell.name}.json").is_file()]


def cell_digest(cell: LearningCell) -> str:
    """A hash of all that was asked."""
    return content_hash(json.dumps(cell.asked, sort_keys=True))
