import sqlite3
from pathlib import Path

import pytest

from forkpoint.errors import StoreError
from forkpoint.store.schema import MIGRATIONS, migrate, schema_text, schema_version

GOLDEN = Path(__file__).with_name("golden_schema.sql")
NEXT = ("m004_next", ("CREATE TABLE extra (x INTEGER) STRICT", "ALTER TABLE updates ADD COLUMN extra REAL"))
BROKEN = ("m004_broken", ("CREATE TABLE extra (x INTEGER) STRICT", "CREATE TABLE updates (x INTEGER)"))


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    yield connection
    connection.close()


def test_the_schema_is_the_one_on_file(connection):
    migrate(connection, "memory")
    assert schema_text(connection) == GOLDEN.read_text()


def test_every_table_is_strict(connection):
    migrate(connection, "memory")
    loose = [row["name"] for row in connection.execute("PRAGMA table_list") if not row["strict"]]
    assert all(name.startswith("sqlite_") for name in loose)


def test_migrations_are_numbered_and_applied_once(connection):
    assert schema_version(connection) == 0
    migrate(connection, "memory")
    migrate(connection, "memory")
    rows = [tuple(row) for row in connection.execute("SELECT * FROM migrations")]
    assert rows == [(number, name) for number, (name, _) in enumerate(MIGRATIONS, start=1)]
    assert all(name.startswith(f"m{number:03d}_") for number, name in rows)


def test_an_older_database_keeps_its_rows(connection):
    migrate(connection, "memory")
    connection.execute("INSERT INTO events VALUES (1, 0, NULL, 'x', 'y')")
    migrate(connection, "memory", migrations=(*MIGRATIONS, NEXT))
    assert schema_version(connection) == len(MIGRATIONS) + 1
    assert connection.execute("SELECT count(*) FROM events").fetchone()[0] == 1


def test_a_migration_that_fails_leaves_nothing(connection):
    migrate(connection, "memory")
    before = schema_text(connection)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(connection, "memory", migrations=(*MIGRATIONS, BROKEN))
    assert schema_text(connection) == before
    assert schema_version(connection) == len(MIGRATIONS)


def test_a_newer_database_is_refused_in_one_line(connection):
    migrate(connection, "memory", migrations=(*MIGRATIONS, NEXT))
    with pytest.raises(StoreError, match=r"^runs/x/run\.db has schema 4, this forkpoint knows 1 to 3: .*$"):
        migrate(connection, "runs/x/run.db")
