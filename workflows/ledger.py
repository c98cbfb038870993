"""The ledger of an output directory: which scenes were made, and the finished blocks of those under way.

One SQLite file, written by the runner process alone. A block's row is written after its chunks stand on the disk, so
a run that was killed at any moment goes on at the first block without a row.
"""

import io
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cubeloom.pipeline.chunks import Written, clipped_by_variable
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.journal import TileRecord
from cubeloom.pipeline.stages.base import Stats
from cubeloom.pipeline.tiles import How

SCHEMA = """
CREATE TABLE IF NOT EXISTS scene (
    identity TEXT PRIMARY KEY, item TEXT NOT NULL, workflow TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, cause TEXT, product TEXT, started TEXT, ended TEXT);
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

STATES = ("processing", "succeeded", "failed", "invalid")


@dataclass(frozen=True)
class SceneRow:
    """One scene's state: `processing`, `succeeded`, `failed` or `invalid`, with the cause where there is one."""

    identity: str
    item: str
    workflow: str
    state: str
    attempts: int
    cause: str | None
    product: str | None
    started: str | None
    ended: str | None


class Ledger:
    """The SQLite file under `.cubeloom/`; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def begin(self, identity: str, item: str, workflow: str) -> None:
        """A scene is being worked on, once more or for the first time."""
        self._db.execute(
            "INSERT INTO scene (identity, item, workflow, state, attempts, started) "
            "VALUES (?, ?, ?, 'processing', 1, ?) "
            "ON CONFLICT (identity) DO UPDATE SET state = 'processing', attempts = attempts + 1, cause = NULL, "
            "started = excluded.started, ended = NULL",
            (identity, item, workflow, _now()),
        )

    def end(self, identity: str, state: str, *, cause: str | None = None, product: str | None = None) -> None:
        """A scene came to its end; a product that stands needs its blocks remembered no longer.

        How its networks' tiles were computed stays on record.
        """
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {STATES}")
        self._db.execute(
            "UPDATE scene SET state = ?, cause = ?, product = ?, ended = ? WHERE identity = ?",
            (state, cause, product, _now(), identity),
        )
        if state == "succeeded":
            self._drop(identity, "chunk", "block", "statistics")

    def forget(self, identity: str) -> None:
        """Drop all that was done for a product: its staging is gone."""
        self._drop(identity, "chunk", "block", "statistics", "tile")

    def _drop(self, identity: str, *tables: str) -> None:
        with _transaction(self._db):
            for table in tables:
                self._db.execute(f"DELETE FROM {table} WHERE identity = ?", (identity,))  # noqa: S608 - fixed names

    def supersede(self, identity: str, item: str, workflow: str) -> list[str]:
        """Drop the unfinished attempts at a scene's product under other identities; returns these."""
        rows = self._db.execute(
            "SELECT identity FROM scene WHERE item = ? AND workflow = ? AND identity != ? AND state != 'succeeded'",
            (item, workflow, identity),
        )
        dropped = [str(row[0]) for row in rows]
        for other in dropped:
            self.forget(other)
            self._db.execute("DELETE FROM scene WHERE identity = ?", (other,))
        return dropped

    def scenes(self) -> list[SceneRow]:
        """All scenes, the latest last."""
        columns = "identity, item, workflow, state, attempts, cause, product, started, ended"
        rows = self._db.execute(f"SELECT {columns} FROM scene ORDER BY started")  # noqa: S608 - fixed names
        return [SceneRow(*row) for row in rows]

    def journal(self, identity: str) -> "LedgerJournal":
        """The record of one product's finished blocks."""
        return LedgerJournal(self._db, identity)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All statements of a block of code, or none of them."""
    db.execute("BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise


class LedgerJournal:
    """The finished blocks and statistics of one product, kept over a kill."""

    def __init__(self, db: sqlite3.Connection, identity: str) -> None:
        self._db, self._identity = db, identity

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks that stand in staging."""
        return dict(self._db.execute("SELECT key, sha256 FROM chunk WHERE identity = ?", (self._identity,)))

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        rows = self._db.execute("SELECT key, clipped FROM chunk WHERE identity = ? AND clipped > 0", (self._identity,))
        return clipped_by_variable(dict(rows))

    def add_block(self, window: Window, written: Written) -> None:
        """Record a finished block and its chunks in one transaction."""
        with _transaction(self._db):
            self._db.executemany(
                "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?)",
                [(self._identity, key, sha256, written.clipped.get(key, 0)) for key, sha256 in written.hashes.items()],
            )
            values = (self._identity, window.row, window.col, window.height, window.width, written.nbytes)
            self._db.execute("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?)", values)

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Partial sums recorded for a block of a statistics pass."""
        key = (self._identity, step, number, part)
        row = self._db.execute(
            "SELECT sums FROM statistics WHERE identity = ? AND step = ? AND number = ? AND part = ?", key
        ).fetchone()
        return _unpack(row[0]) if row else None

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Record the partial sums of one block."""
        key = (self._identity, step, number, part)
        self._db.execute("INSERT OR REPLACE INTO statistics VALUES (?, ?, ?, ?, ?)", (*key, _pack(sums)))

    def tiles(self) -> Mapping[tuple[int, int], TileRecord]:
        """The tiles that were computed, by step and number."""
        columns = "step, number, crc32, device, precision, batch, wanted"
        rows = self._db.execute(f"SELECT {columns} FROM tile WHERE identity = ?", (self._identity,))  # noqa: S608
        return {(step, number): TileRecord(number, crc32, How(*how)) for step, number, crc32, *how in rows}

    def add_tiles(self, step: int, records: Sequence[TileRecord]) -> None:
        """Record a group of tiles in one transaction."""
        rows = [(self._identity, step, record.number, record.crc32, *astuple(record.how)) for record in records]
        with _transaction(self._db):
            self._db.executemany("INSERT OR REPLACE INTO tile VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _pack(sums: Stats) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(sums)
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(blob: bytes) -> Stats:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
