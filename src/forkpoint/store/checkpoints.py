"""Checkpoints: a folder that appears whole, with a SHA-256 manifest; an incomplete or altered one is refused.

Tensors are written by the caller (safetensors), everything else is JSON, nothing is ever pickled.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError

from forkpoint.errors import CheckpointError, StoreError
from forkpoint.files import (
    fault_point,
    fsync_path,
    make_folder,
    publish_folder,
    remove_folder,
    remove_temporaries,
    storage_errors,
    temporary_folder_beside,
    write_text_atomic,
)
from forkpoint.store.encoding import JSON, decode_json, encode_json

Manifest: TypeAlias = dict[str, dict[str, str | int]]
"""File (with / between folders) to its `sha256` and `bytes`."""

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
"""Of `state.json`; a newer one is refused."""
_ASIDE_PREFIX = ".old-"
_STEP = re.compile(r"step-(\d{6,})", re.ASCII)
_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_MANIFEST_BYTES = 1 << 24


def stage_folder(run: Path, stage: str) -> Path:
    """The folder that holds a stage's checkpoints.

    Raises:
        StoreError: the name of the stage cannot be that of a folder.
    """
    if not _STAGE.fullmatch(stage):
        raise StoreError(f"stage = '{stage}' cannot name a folder: use letters, digits, '-', '_' and '.'")
    return run / "stages" / stage


def checkpoint_path(folder: Path, update: int) -> Path:
    """The checkpoint after `update` in the folder of a stage.

    >>> checkpoint_path(Path("stages/rl"), 100).as_posix()
    'stages/rl/step-000100'
    """
    if update < 0:
        raise ValueError(f"update = {update} must be at least 0")
    return folder / f"step-{update:06d}"


def checkpoint_update(path: Path) -> int:
    """The update of a checkpoint's name.

    Raises:
        CheckpointError: it is no name of a checkpoint.
    """
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not named like a checkpoint (step-000100)")
    return int(match[1])


def save_checkpoint(folder: Path, write: Callable[[Path], None], *, state: Mapping[str, JSON]) -> Path:
    """`folder`, now a complete and durable checkpoint: what `write` put there, `state.json` and `manifest.json`.

    One of the same name is replaced.  A failure or a kill at any moment leaves every earlier checkpoint as it was.

    Raises:
        StoreError: disk full or no permission; nothing is left behind.
        ValueError: `write` made a file that is named like ours.
    """
    checkpoint_update(folder)
    make_folder(folder.parent)
    with storage_errors(folder), temporary_folder_beside(folder) as temporary:
        fault_point("checkpoint.before-files")
        _write_files(write, temporary, folder)
        fault_point("checkpoint.after-files")
        for name in (STATE, MANIFEST):
            if (temporary / name).exists():
                raise ValueError(f"{name} is written by save_checkpoint itself")
        # The state says which files belong to it, so that none can vanish together with its line of the manifest.
        wrapped: dict[str, JSON] = {"format": FORMAT, "files": sorted(_files(temporary)), "state": state}
        write_text_atomic(temporary / STATE, encode_json(wrapped))
        write_manifest(temporary)
        # Tensors come out readable by their owner alone, whatever the umask.
        mode = stat.S_IMODE((temporary / STATE).stat().st_mode)
        for path in _files(temporary).values():
            path.chmod(mode)
        _replace(temporary, folder)
    return folder


def _write_files(write: Callable[[Path], None], temporary: Path, folder: Path) -> None:
    try:
        write(temporary)
    except SafetensorError as error:
        raise StoreError(f"{folder}: tensors could not be written: {error}") from error


def _replace(temporary: Path, final: Path) -> None:
    if not final.exists():
        publish_folder(temporary, final)
        return
    aside = final.with_name(_ASIDE_PREFIX + final.name)
    if aside.exists():
        remove_folder(aside)
    final.rename(aside)
    fault_point("checkpoint.aside")
    try:
        publish_folder(temporary, final)
    except StoreError:
        _restore(aside)
        raise
    remove_folder(aside)


def _restore(aside: Path) -> None:
    final = aside.with_name(aside.name.removeprefix(_ASIDE_PREFIX))
    if final.exists():
        remove_folder(aside)
    else:
        aside.rename(final)
        fsync_path(final.parent)


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise CheckpointError(f"{path} is neither a file nor a folder")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path) -> Manifest:
    files = sorted(item for item in _files(folder).items() if item[0] != MANIFEST)
    return {name: {"sha256": _digest(path), "bytes": path.stat().st_size} for name, path in files}


def write_manifest(folder: Path) -> None:
    """Write the manifest of what a folder holds, so that `verify_checkpoint` can tell when it was altered."""
    write_text_atomic(folder / MANIFEST, _manifest_text(_describe(folder)))


def _manifest_text(manifest: Manifest) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def load_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint, not yet compared with its files.

    Raises:
        CheckpointError: it is missing, or not byte for byte in the form in which it is written.
    """
    place = path / MANIFEST
    try:
        if not stat.S_ISREG(place.lstat().st_mode) or place.stat().st_size > _MANIFEST_BYTES:
            raise CheckpointError(f"{place} is not a manifest")
        text = place.read_text("utf-8")
        manifest = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is no complete checkpoint: {MANIFEST} is missing") from error
    except PermissionError as error:
        raise StoreError(f"{place} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
    if not _is_manifest(manifest) or _manifest_text(manifest) != text:
        raise CheckpointError(f"{place} was altered")
    return manifest


def _is_manifest(manifest: object) -> bool:
    if not isinstance(manifest, dict):
        return False
    entries = manifest.values()
    return all(
        isinstance(entry, dict)
        and set(entry) == {"sha256", "bytes"}
        and isinstance(entry["sha256"], str)
        and type(entry["bytes"]) is int
        for entry in entries
    )


def verify_checkpoint(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, unaltered, and nothing else.

    Raises:
        CheckpointError: names the first file that is missing, extra, truncated or altered.
        StoreError: there is no permission to read it.
    """
    manifest = load_manifest(path)
    try:
        found = _files(path)
        found.pop(MANIFEST)
        for name in sorted(set(manifest) - set(found)):
            raise CheckpointError(f"{path / name} is missing")
        for name in sorted(set(found) - set(manifest)):
            way = "" if STATE in manifest else f"; remove it, or {MANIFEST} to have the model unchecked"
            raise CheckpointError(f"{path / name} does not belong to the checkpoint{way}")
        for name, file in sorted(found.items()):
            size = file.stat().st_size
            if size != manifest[name]["bytes"]:
                raise CheckpointError(f"{file} has {size} bytes instead of {manifest[name]['bytes']}")
            if _digest(file) != manifest[name]["sha256"]:
                raise CheckpointError(f"{file} was altered: its SHA-256 is not that of the manifest")
    except PermissionError as error:
        raise StoreError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return manifest


def load_state(path: Path) -> dict[str, Any]:
    """The `state` with which a checkpoint was saved, after its files were verified.

    Raises:
        CheckpointError: the checkpoint is incomplete, altered, or of a newer version; names what is wrong.
    """
    manifest = verify_checkpoint(path)
    if STATE not in manifest:
        raise CheckpointError(f"{path} holds a model but no {STATE}: it was exported, and cannot be resumed")
    wrapped = _decoded_state(path / STATE)
    for name in sorted(set(wrapped["files"]) ^ (set(manifest) - {STATE})):
        what = "is missing" if name in wrapped["files"] else "does not belong to the checkpoint"
        raise CheckpointError(f"{path / name} {what}")
    return wrapped["state"]


def _decoded_state(place: Path) -> dict[str, Any]:
    try:
        wrapped = decode_json(place.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
    kinds = {"format": int, "files": list, "state": dict}
    for key, kind in kinds.items():
        if not isinstance(wrapped, dict) or key not in wrapped:
            raise CheckpointError(f"{place} lacks '{key}'")
        if not isinstance(wrapped[key], kind):
            raise CheckpointError(f"{place} holds {type(wrapped[key]).__name__} as '{key}', not {kind.__name__}")
        if key == "format" and wrapped[key] != FORMAT:
            raise CheckpointError(f"{place} has format {wrapped[key]}, this forkpoint knows {FORMAT}")
    return wrapped


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a stage, oldest first, not verified; temporaries are no checkpoints."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=checkpoint_update)


def latest_checkpoint(
    folder: Path, *, verify: bool = True, damaged: Callable[[CheckpointError], None] | None = None
) -> Path | None:
    """The newest checkpoint of a stage, None where there is none.

    With `verify` a damaged one is passed over and told to `damaged`; without `damaged` it is refused.

    Raises:
        CheckpointError: the newest one is damaged and nobody is told, or all are.
        StoreError: there is no permission to read it.
    """
    found = list_checkpoints(folder)
    last = "unknown"
    for path in reversed(found):
        if not verify:
            return path
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            last = str(error)
            if damaged is None and path != found[0]:
                raise CheckpointError(f"{error}; a resume goes on from the checkpoint before it") from None
            if damaged is not None:
                damaged(error)
        else:
            return path
    if found:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole ({last}); remove that folder to begin the stage again"
        )
    return None


def clean_checkpoints(folder: Path) -> list[Path]:
    """Remove what a killed save left in the folder of a stage, put back what it had moved aside; the paths removed.

    Call it at the start of a stage, before `latest_checkpoint`.
    """
    if folder.is_dir():
        with storage_errors(folder):
            for aside in sorted(folder.glob(f"{_ASIDE_PREFIX}*")):
                _restore(aside)
    return remove_temporaries(folder)


def prune_checkpoints(folder: Path, keep: int, *, newest: Path | None = None) -> list[Path]:
    """Remove all but the newest `keep` checkpoints of a stage; the paths removed.  Call it after a save.

    With `newest`, the one that was just saved, later ones go too: they were damaged, and the stage went on before them.

    Raises:
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} must be at least 1")
    found = list_checkpoints(folder)
    last = checkpoint_update(newest) if newest is not None else None
    kept = [path for path in found if last is None or checkpoint_update(path) <= last][-keep:]
    doomed = [path for path in found if path not in kept]
    for path in doomed:
        remove_folder(path)
    return doomed
