"""The SQLite file of a ledger: its tables, one connection for all threads, and older files brought up to date."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cubeloom.errors import StoreError

VERSION = 3
"""Of the tables; an older file is brought up to it when it is opened to be written."""

READABLE = 2
"""The oldest version that can be looked at as it is."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS scene (
    item TEXT NOT NULL, workflow TEXT NOT NULL, state TEXT NOT NULL, identity TEXT NOT NULL DEFAULT '',
    request TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0, cause TEXT, product TEXT,
    run TEXT NOT NULL DEFAULT '', host TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0,
    heartbeat TEXT, deaths INTEGER NOT NULL DEFAULT 0, progress INTEGER NOT NULL DEFAULT 0, started TEXT, ended TEXT,
    guides TEXT NOT NULL DEFAULT '{}', PRIMARY KEY (item, workflow));
CREATE TABLE IF NOT EXISTS chunk (
    identity TEXT NOT NULL, key TEXT NOT NULL, sha256 TEXT NOT NULL, clipped INTEGER NOT NULL,
    PRIMARY KEY (identity, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (
    identity TEXT NOT NULL, row INTEGER, col INTEGER, height INTEGER, width INTEGER, bytes INTEGER,
    PRIMARY KEY (identity, row, col, height, width)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statistics (
    identity TEXT NOT NULL, step INTEGER, number INTEGER, part INTEGER, sums BLOB NOT NULL,
    PRIMARY KEY (identity, step, number, part));
CREATE TABLE IF NOT EXISTS tile (
    identity TEXT NOT NULL, step INTEGER, number INTEGER, crc32 INTEGER NOT NULL,
    device TEXT NOT NULL, precision TEXT NOT NULL, batch INTEGER NOT NULL, wanted TEXT NOT NULL,
    PRIMARY KEY (identity, step, number)) WITHOUT ROWID;
"""


class Database:
    """One connection for all threads of the process, one statement or transaction at a time.

    Args:
        path: the file.
        readonly: only look, also while a run writes.

    Raises:
        StoreError: a newer Cubeloom has written it; or, only looking, one older than `READABLE`.
    """

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self._lock = threading.RLock()
        name = f"{path.resolve().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        self._connection = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False)
        if not readonly:
            self.run("PRAGMA journal_mode=WAL")
            self.run("PRAGMA synchronous=FULL")
        try:
            with self.transaction():
                _migrate(self, path, readonly=readonly)
        except BaseException:
            self.close()
            raise

    def columns(self, table: str) -> list[str]:
        """The columns that a table has in this file."""
        return [row[1] for row in self.rows(f"PRAGMA table_info({table})")]

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Carry out a statement."""
        with self._lock:
            self._connection.execute(statement, values)

    def run_all(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """Carry out a statement with each of several rows of values."""
        with self._lock:
            self._connection.executemany(statement, values)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements of a block of code, or none of them; within another transaction, a part of that."""
        with self._lock:
            within: bool = self._connection.in_transaction
            if within:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise


def _migrate(db: Database, path: Path, *, readonly: bool) -> None:
    """Bring the tables up to date; the first ones knew a scene by its identity alone."""
    found = db.rows("PRAGMA user_version")[0][0]
    if found > VERSION or (readonly and found < READABLE):
        advice = "upgrade Cubeloom" if found > VERSION else "the next run brings it up to date"
        raise StoreError(f"{path}: the ledger is of version {found}, this Cubeloom knows {VERSION}; {advice}")
    if readonly or found == VERSION:
        return
    kept = db.columns("scene")
    if kept:
        db.run("ALTER TABLE scene RENAME TO scene_before")
    for statement in filter(None, map(str.strip, SCHEMA.split(";"))):
        db.run(statement)
    if kept:
        db.run(
            f"INSERT OR REPLACE INTO scene ({', '.join(kept)}) SELECT {', '.join(kept)} FROM scene_before "  # noqa: S608
            "ORDER BY started"
        )
        db.run("UPDATE scene SET identity = '' WHERE identity LIKE 'unplanned:%'")
        db.run("DROP TABLE scene_before")
    db.run(f"PRAGMA user_version = {VERSION}")
