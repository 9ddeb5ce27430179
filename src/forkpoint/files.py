"""Every file and database write of the library, with named fault points.

A file is written beside its place, synced, renamed, and its folder synced: a reader sees the old one or the new one.
A database changes in one transaction.  At each named point a test may kill the process or fail the write:
by `install_fault_hook`, or in a child process by the environment variable FORKPOINT_FAULT.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeAlias
from urllib.parse import quote

from forkpoint.errors import StoreError

FaultHook: TypeAlias = Callable[[str], None]

TEMPORARY_PREFIX = ".tmp-"
"""Names that begin with this are unfinished writes; a restart removes them."""
BUSY_SECONDS = 30.0
"""How long a writer waits for another writer's transaction."""

_NETWORK_TYPES = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "wekafs", "beegfs", "gpfs", "9p", "afs"})
_STORAGE_CODES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)


def fault_from_text(text: str) -> FaultHook:
    """A hook that fails at one named point: `name:kill` or `name:enospc`; `name#3:kill` at its third visit.

    Raises:
        ValueError: the text has another form.
    """
    name, _, action = text.rpartition(":")
    name, _, visit = name.partition("#")
    if not name or action not in ("kill", "enospc") or not (visit or "1").isdecimal():
        raise ValueError(f"FORKPOINT_FAULT = '{text}' must be name:kill, name:enospc or name#3:kill")
    target = int(visit or "1")
    visits: Counter[str] = Counter()

    def hook(point: str) -> None:
        visits[point] += 1
        if point != name or visits[point] != target:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)

    return hook


_hook: FaultHook | None = fault_from_text(os.environ["FORKPOINT_FAULT"]) if "FORKPOINT_FAULT" in os.environ else None


def install_fault_hook(hook: FaultHook | None) -> None:
    """Call `hook` with the name of every fault point from now on; None removes it.  For tests."""
    global _hook
    _hook = hook


def fault_point(name: str) -> None:
    """A place where a test may kill the process or fail the write; otherwise nothing happens."""
    if _hook is not None:
        _hook(name)


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of `path`, or of its nearest parent that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def storage_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """A block whose failures of disk or database become one line that names `path`; `needed` in bytes.

    Raises:
        StoreError: disk full, no permission, input or output error, database busy or damaged.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoreError(_failure(path, error.strerror or str(error), full=full, needed=needed)) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _STORAGE_CODES:
            raise
        raise StoreError(_failure(path, str(error), full=code == sqlite3.SQLITE_FULL, needed=needed)) from error


def _failure(path: Path, what: str, *, full: bool, needed: int | None) -> str:
    size = f", {needed} bytes needed" if needed is not None else ""
    return f"{path}: {what}{f' ({free_bytes(path)} bytes free{size})' if full else ''}"


def fsync_path(path: Path) -> None:
    """Make the content of a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, durably; one that exists is left alone."""
    with storage_errors(folder):
        if folder.is_dir():
            return
        if folder.exists():
            raise StoreError(f"{folder} is not a folder")
        if folder.parent != folder:
            make_folder(folder.parent)
        fault_point("folder.before-make")
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)
        fault_point("folder.after-make")


def temporary_beside(final: Path) -> Path:
    """A fresh name in the folder of `final`, for what is not finished yet."""
    return final.parent / f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}-{secrets.token_hex(4)}"


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers and crashes see the old content or the new one, never a part.

    Raises:
        StoreError: disk full, no permission, or no regular file (a device, a pipe); the old content is untouched.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is no regular file.")
    temporary = temporary_beside(path)
    with storage_errors(path, needed=len(data)):
        fault_point("write.before")
        try:
            _write_synced(temporary, data)
            fault_point("write.before-rename")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        fault_point("write.after-rename")
        fsync_path(path.parent)
        fault_point("write.after")


def _write_synced(path: Path, data: bytes) -> None:
    half = len(data) // 2
    with path.open("xb") as file:
        fault_point("write.opened")
        file.write(data[:half])
        file.flush()
        fault_point("write.torn")
        file.write(data[half:])
        file.flush()
        fault_point("write.before-sync")
        os.fsync(file.fileno())


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, as `write_bytes_atomic` does; a lone surrogate raises UnicodeEncodeError."""
    write_bytes_atomic(path, text.encode("utf-8"))


class _TemporaryFolder:
    def __init__(self, final: Path) -> None:
        self._path = temporary_beside(final)

    def __enter__(self) -> Path:
        with storage_errors(self._path):
            fault_point("folder.before-temporary")
            self._path.mkdir()
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            shutil.rmtree(self._path, ignore_errors=True)


def temporary_folder_beside(final: Path) -> AbstractContextManager[Path]:
    """A block with a new folder beside `final`, to be filled and then published.

    An error removes it.  A kill cannot, and an interrupt does not: names with TEMPORARY_PREFIX go at the next start.
    """
    return _TemporaryFolder(final)


def publish_folder(temporary: Path, final: Path) -> None:
    """Sync everything in `temporary`, rename it to `final` and sync the parent: it appears whole or not at all.

    Raises:
        StoreError: `final` exists, or the disk failed.
    """
    with storage_errors(final):
        if final.exists():
            raise StoreError(f"{final} exists already")
        for folder, _, names in os.walk(temporary):
            for name in sorted(names):
                fault_point("publish.before-sync")
                fsync_path(Path(folder) / name)
            fsync_path(Path(folder))
        fault_point("publish.before-rename")
        temporary.rename(final)
        fault_point("publish.after-rename")
        fsync_path(final.parent)
        fault_point("publish.after")


def remove_folder(folder: Path) -> None:
    """Remove `folder`: first its name, so that no reader meets a half of it, then its content."""
    doomed = temporary_beside(folder)
    with storage_errors(folder):
        fault_point("remove.before-rename")
        folder.rename(doomed)
        fsync_path(folder.parent)
        fault_point("remove.after-rename")
        shutil.rmtree(doomed)
        fault_point("remove.after")


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove what unfinished writes left in `folder` and return their paths.  Only for the owner of the folder."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX))
    with storage_errors(folder):
        for path in found:
            fault_point("clean.before")
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        fault_point("clean.after")
    return found


def network_file_system(path: Path, mounts: str) -> str | None:
    """The type of the network file system that holds `path`, None for a local one; `mounts` as in /proc/self/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        # Of two mounts on one point the later hides the earlier.
        if len(point) >= len(best) and path.absolute().is_relative_to(point):
            best, kind = point, fields[2]
    return kind if kind in _NETWORK_TYPES or kind.startswith("fuse.sshfs") else None


def _mounts() -> str:
    table = Path("/proc/self/mounts")
    return table.read_text(errors="replace") if table.exists() else ""


def connect_database(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection in autocommit: WAL, synchronous=FULL, foreign keys on, 30 s of patience, rows by name.

    A reader needs no lock and writes nothing.  On a network file system, where WAL loses data, the journal is a
    rollback file instead.

    Raises:
        StoreError: the file is missing (readonly), is no database, or cannot be opened.
    """
    if readonly and not path.is_file():
        raise StoreError(f"{path} does not exist")
    options = "mode=ro" if readonly else "mode=rwc"
    if readonly and not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists():
        options += "&immutable=1"
    with storage_errors(path):
        fault_point("database.before-open")
        uri = f"file:{quote(os.fsencode(path.absolute()))}?{options}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            connection.row_factory = sqlite3.Row
            if not readonly:
                journal = "TRUNCATE" if network_file_system(path, _mounts()) else "WAL"
                connection.execute(f"PRAGMA journal_mode = {journal}")
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error:
            connection.close()
            raise
        fault_point("database.after-open")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, name: str) -> Iterator[None]:
    """A block that is committed as a whole, or not at all; `name` begins the names of its fault points.

    Raises:
        StoreError: the disk is full, the database busy for 30 s, or damaged.
    """
    path = Path(connection.execute("PRAGMA database_list").fetchone()["file"])
    with storage_errors(path):
        fault_point(f"{name}.before-begin")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            fault_point(f"{name}.before-commit")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        fault_point(f"{name}.after-commit")


_held_locks: set[int] = set()


def _drop_inherited_locks() -> None:
    # A forked child would keep its parent's lock alive after the parent's death.
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_inherited_locks)


class RunLock:
    """The exclusive right to run in a folder, held while the `with` block lasts.

    The system drops the lock of a dead process, so a killed run blocks nobody.  The file `lock` stays behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            StoreError: another process holds it; the message names its pid and host.
        """
        make_folder(self._folder)
        path = self._folder / "lock"
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            except BlockingIOError as error:
                os.close(descriptor)
                raise StoreError(f"{self._folder} is in use by {_holder(path)}") from error
            except OSError:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        _held_locks.add(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor in _held_locks:
            _held_locks.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None


def _holder(path: Path) -> str:
    try:
        owner = json.loads(path.read_bytes())
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
