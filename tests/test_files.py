import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from forkpoint.errors import StoreError
from forkpoint.files import (
    TEMPORARY_PREFIX,
    connect_database,
    fault_from_text,
    fault_point,
    free_bytes,
    install_fault_hook,
    make_folder,
    network_file_system,
    publish_folder,
    remove_folder,
    remove_temporaries,
    temporary_folder_beside,
    transaction,
    write_bytes_atomic,
    write_text_atomic,
)


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def no_hook():
    yield
    install_fault_hook(None)


def fail_at(place, error):
    seen = []

    def hook(name):
        seen.append(name)
        if len(seen) - 1 == place:
            raise error

    install_fault_hook(hook)
    return seen


def points_of(action):
    seen = []
    install_fault_hook(seen.append)
    action()
    install_fault_hook(None)
    return seen


def full(name="x"):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_write_replaces_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")
    write_text_atomic(path, "né\u4e2d")
    assert path.read_bytes() == "né\u4e2d".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o077 == (0o666 & ~umask()) & 0o077


def umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_write_that_fails_or_is_killed_anywhere_leaves_the_old_or_the_new(tmp_path):
    points = points_of(lambda: write_bytes_atomic(tmp_path / "probe", b"new content"))
    assert {"write.before", "write.torn", "write.before-sync", "write.before-rename", "write.after-rename"} <= set(
        points
    )
    for place, point in enumerate(points):
        done = points.index("write.after-rename") <= place
        for error in (full(), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            folder.mkdir()
            path = folder / "a"
            write_bytes_atomic(path, b"old")
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)) as caught:
                write_bytes_atomic(path, b"new content")
            install_fault_hook(None)
            assert path.read_bytes() == (b"new content" if done else b"old"), point
            if isinstance(error, OSError):
                assert str(path) in str(caught.value)
                assert "11 bytes needed" in str(caught.value)
                assert left_over(folder) == []
            remove_temporaries(folder)
            assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_torn_write_holds_half_under_a_temporary_name(tmp_path):
    code = f"from forkpoint.files import *; write_bytes_atomic(Path({str(tmp_path / 'a')!r}), b'0123456789')"
    done = run_python(code, FORKPOINT_FAULT="write.torn:kill")
    assert done.returncode == -signal.SIGKILL
    (name,) = left_over(tmp_path)
    assert (tmp_path / name).read_bytes() == b"01234"
    assert not (tmp_path / "a").exists()


def test_the_environment_can_fill_the_disk_at_the_third_visit(tmp_path):
    code = f"""
from forkpoint.files import *
for n in range(4):
    try: write_bytes_atomic(Path({str(tmp_path)!r}) / str(n), b"x")
    except StoreError as error: print(n, error)
"""
    done = run_python(code, FORKPOINT_FAULT="write.before#3:enospc")
    assert done.stdout.startswith("2 "), done.stderr
    assert "No space left" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "3"]


@pytest.mark.parametrize("text", ["", "kill", "a:burn", ":kill", "a#x:kill", "#2:kill"])
def test_a_malformed_fault_is_refused(text):
    with pytest.raises(ValueError, match="FORKPOINT_FAULT"):
        fault_from_text(text)


def test_the_hook_sees_names_until_it_is_removed():
    seen = []
    install_fault_hook(seen.append)
    fault_point("one")
    install_fault_hook(None)
    fault_point("two")
    assert seen == ["one"]


def test_publish_is_all_or_nothing(tmp_path):
    def save(final):
        with temporary_folder_beside(final) as temporary:
            (temporary / "in").mkdir()
            (temporary / "in" / "a").write_bytes(b"1")
            (temporary / "b").write_bytes(b"2")
            publish_folder(temporary, final)

    points = points_of(lambda: save(tmp_path / "first"))
    assert points.count("publish.before-sync") == 2
    for place in range(len(points)):
        for error in (full(), Killed()):
            folder = tmp_path / f"{place}-{type(error).__name__}"
            folder.mkdir()
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)):
                save(folder / "final")
            install_fault_hook(None)
            assert (folder / "final").exists() == (place >= points.index("publish.after-rename"))
            if (folder / "final").exists():
                assert (folder / "final" / "in" / "a").read_bytes() == b"1"
            elif isinstance(error, OSError):
                assert list(folder.iterdir()) == []
            remove_temporaries(folder)
            assert {p.name for p in folder.iterdir()} <= {"final"}


def test_publish_refuses_to_overwrite(tmp_path):
    (tmp_path / "final").mkdir()
    with pytest.raises(StoreError, match="exists already"), temporary_folder_beside(tmp_path / "final") as temporary:
        publish_folder(temporary, tmp_path / "final")
    assert left_over(tmp_path) == []


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path, monkeypatch):
    order = []
    real = os.fsync

    def spy(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    install_fault_hook(order.append)
    with temporary_folder_beside(tmp_path / "final") as temporary:
        (temporary / "in").mkdir()
        (temporary / "in" / "a").write_bytes(b"1")
        publish_folder(temporary, tmp_path / "final")
    rename = order.index("publish.before-rename")
    assert {str(temporary), str(temporary / "in"), str(temporary / "in" / "a")} <= set(order[:rename])
    assert order[order.index("publish.after-rename") + 1] == str(tmp_path)
    order.clear()
    write_bytes_atomic(tmp_path / "file", b"data")
    assert TEMPORARY_PREFIX in order[order.index("write.before-sync") + 1]
    assert order[order.index("write.after-rename") + 1] == str(tmp_path)


def test_remove_folder_never_leaves_a_half(tmp_path):
    def fill(folder):
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"1")
        return folder

    points = points_of(lambda: remove_folder(fill(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    for place in range(len(points)):
        folder = fill(tmp_path / str(place) / "x")
        fail_at(place, Killed())
        with pytest.raises(Killed):
            remove_folder(folder)
        install_fault_hook(None)
        assert not folder.exists() or (folder / "a").exists()
        remove_temporaries(folder.parent)
        assert {p.name for p in folder.parent.iterdir()} <= {"x"}


def test_remove_temporaries_spares_what_is_finished(tmp_path):
    (tmp_path / ".tmp-a-1-2").mkdir()
    (tmp_path / ".tmp-a-1-2" / "x").write_bytes(b"")
    (tmp_path / ".tmp-b").write_bytes(b"")
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    assert len(remove_temporaries(tmp_path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert remove_temporaries(tmp_path / "none") == []


def test_make_folder_makes_parents_and_names_what_is_in_the_way(tmp_path):
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        make_folder(tmp_path / "file" / "below")


def test_free_bytes_of_a_path_that_does_not_exist_yet(tmp_path):
    assert free_bytes(tmp_path / "no" / "such") > 0


@pytest.fixture
def database(tmp_path):
    connection = connect_database(tmp_path / "a b?#%.db")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y BLOB) STRICT")
    yield connection
    connection.close()


def test_a_connection_is_durable_and_patient(database, tmp_path):
    pragma = {name: database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragma == {"journal_mode": "wal", "synchronous": 2}
    assert database.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    assert database.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000
    assert database.isolation_level is None
    assert (tmp_path / "a b?#%.db").exists()


def test_a_reader_cannot_write_and_does_not_wait_for_a_writer(database, tmp_path):
    reader = connect_database(tmp_path / "a b?#%.db", readonly=True)
    with transaction(database, "test"):
        database.execute("INSERT INTO t VALUES (1, NULL)")
        assert reader.execute("SELECT count(*) FROM t").fetchone()[0] == 0
    assert reader.execute("SELECT count(*) FROM t").fetchone()[0] == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM t")
    reader.close()


def test_a_missing_or_foreign_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(StoreError, match=r"none\.db does not exist"):
        connect_database(tmp_path / "none.db", readonly=True)
    (tmp_path / "text.db").write_text("not a database, only text " * 100)
    for readonly in (True, False):
        with pytest.raises(StoreError, match=r"text\.db: file is not a database"):
            connect_database(tmp_path / "text.db", readonly=readonly)


def test_a_transaction_is_all_or_nothing_at_every_point(database):
    def insert(key):
        with transaction(database, "test"):
            database.execute("INSERT INTO t VALUES (?, NULL)", (key,))

    assert points_of(lambda: insert(1)) == ["test.before-begin", "test.before-commit", "test.after-commit"]
    for place in range(3):
        for key, error in ((10 + place, full()), (20 + place, Killed())):
            fail_at(place, error)
            with pytest.raises((StoreError, Killed)):
                insert(key)
            install_fault_hook(None)
            assert not database.in_transaction
            found = database.execute("SELECT count(*) FROM t WHERE x = ?", (key,)).fetchone()[0]
            assert found == (place == 2)


def test_a_full_database_rolls_back_and_says_so(database, tmp_path):
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages + 2}")
    refused = pytest.raises(StoreError, match=r"a b\?#%\.db: database or disk is full \(\d+ bytes free\)")
    with refused, transaction(database, "test"):
        database.execute("INSERT INTO t VALUES (1, zeroblob(100000))")
    assert database.execute("SELECT count(*) FROM t").fetchone()[0] == 0
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_our_own_bugs_in_a_transaction_stay_what_they_are(database):
    with pytest.raises(sqlite3.OperationalError, match="no such table"), transaction(database, "test"):
        database.execute("SELECT * FROM nowhere")
    with pytest.raises(sqlite3.IntegrityError), transaction(database, "test"):
        database.execute("INSERT INTO t VALUES (1, NULL), (1, NULL)")
    assert not database.in_transaction


def test_network_file_systems_are_known():
    mounts = (
        "/dev/sda / ext4 rw 0 0\nhost:/x /data nfs4 rw 0 0\nx /data/my\\040disk ext4 rw 0 0\ny /lus lustre rw 0 0\n"
    )
    assert network_file_system(Path("/data/run"), mounts) == "nfs4"
    assert network_file_system(Path("/data/my disk/run"), mounts) is None
    assert network_file_system(Path("/lus"), mounts) == "lustre"
    assert network_file_system(Path("/database/run"), mounts) is None
    assert network_file_system(Path("/data"), "") is None


def test_on_a_network_file_system_the_journal_is_no_wal(tmp_path, monkeypatch):
    monkeypatch.setattr("forkpoint.files._mounts", lambda: f"host:/x {tmp_path} nfs rw 0 0\n")
    connection = connect_database(tmp_path / "x.db")
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "truncate"
    connection.close()


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(StoreError, match="is no regular file"):
            write_text_atomic(path, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
