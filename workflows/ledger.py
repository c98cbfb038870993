"""The ledger of an output directory: what became of every scene, and the finished blocks of those under way.

One SQLite file, written by the runner process alone. A block's row is written after its chunks stand on the disk, so
a run that was killed at any moment goes on at the first block without a row.

A run claims its scenes for as long as it gives signs of life. The lock of the output directory already keeps a second
run of this machine out; the leases keep out one of another machine where locks do not reach, on a network file system.
"""

import io
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
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

from .ledger_file import Database

STATES = ("claimed", "processing", "succeeded", "failed", "invalid", "aborted")
"""Claimed: a run has it on its list. Aborted: the run ended before the scene did; the next one takes it up."""

LEASE_S = 120.0
"""How long a claim holds without a sign of life of its run."""

_COLUMNS = (
    "item", "workflow", "state", "identity", "request", "attempts", "cause", "product", "run", "host", "lease",
    "heartbeat", "deaths", "started", "ended", "guides",
)  # fmt: skip


@dataclass(frozen=True)
class SceneRow:
    """What is known of one scene and one workflow.

    Attributes:
        item: id of the scene's item.
        workflow: name of the workflow.
        state: one of `STATES`.
        identity: of the product made or under way; empty before it was planned.
        request: what was asked for, see `Ledger.claim`.
        attempts: how often it was begun.
        cause: why it failed, is invalid or was aborted.
        product: path of the store.
        run: id of the run that claimed it last, on the machine `host`.
        lease: until when the claim holds, seconds since 1970.
        heartbeat: the run's last sign of life, UTC.
        deaths: how often in turn a process died over it and left no more than the one before.
        started: when it was begun last, UTC.
        ended: when it came to its end, UTC.
        guides: ids of the items that it was paired with, by the guides' names.
    """

    item: str
    workflow: str
    state: str
    identity: str
    request: str
    attempts: int
    cause: str | None
    product: str | None
    run: str
    host: str
    lease: float
    heartbeat: str | None
    deaths: int
    started: str | None
    ended: str | None
    guides: Mapping[str, str] = field(default_factory=dict)


class Ledger:
    """The SQLite file under `.cubeloom/`; use it as a context manager. Threads of one process may share it.

    Args:
        path: the file.
        readonly: only look, also while a run writes.

    Raises:
        StoreError: a newer Cubeloom has written it; or, only looking, one much older.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        if not readonly:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = Database(path, readonly=readonly)
        known = self._db.columns("scene")  # an older ledger that is only looked at lacks the last ones
        self._columns = [name for name in _COLUMNS if name in known]

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def holder(self) -> SceneRow | None:
        """A scene that a run on another machine holds: its lease lasts, and a file lock may not reach that far."""
        now, here = time.time(), platform.node()
        for row in self.scenes():
            # A lease that ends later than any given now was written by a clock that has been set back since.
            if row.state in ("claimed", "processing") and row.host != here and now < row.lease <= now + 2 * LEASE_S:
                return row
        return None

    def take_over(self) -> None:
        """Abort what runs that are gone have left; counts the deaths over scenes that had got no further."""
        lost = [row for row in self.scenes() if row.state in ("claimed", "processing")]
        with self._db.transaction():
            for row in lost:
                died = row.state == "processing"
                reached = self._progress(row.identity)
                self._db.run(
                    "UPDATE scene SET state = 'aborted', cause = ?, ended = ?, "
                    "deaths = CASE WHEN NOT ? THEN deaths WHEN progress = ? THEN deaths + 1 ELSE 1 END, progress = ? "
                    "WHERE item = ? AND workflow = ?",
                    (f"its run {row.run} was killed", _now(), died, reached, reached, row.item, row.workflow),
                )

    def claim(
        self, wanted: Mapping[str, str], workflow: str, run: str, guides: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Put scenes on the list of a run.

        Args:
            wanted: by the items' ids a digest of what is asked for, or nothing where it is not known. Once such a
                scene has succeeded, the same request is known to be done without planning it.
            workflow: name of the workflow.
            run: id of the run.
            guides: by the items' ids, with which items they are paired, see `SceneRow`.
        """
        guides = guides or {}
        with self._db.transaction():
            for item, request in wanted.items():
                paired = json.dumps(dict(guides.get(item, {})))
                self._db.run(
                    "INSERT INTO scene (item, workflow, state, request, run, host, lease, heartbeat, guides) "
                    "VALUES (?, ?, 'claimed', ?, ?, ?, ?, ?, ?) ON CONFLICT (item, workflow) DO UPDATE SET "
                    "state = 'claimed', deaths = CASE WHEN request = excluded.request THEN deaths ELSE 0 END, "
                    "request = excluded.request, run = excluded.run, host = excluded.host, lease = excluded.lease, "
                    "heartbeat = excluded.heartbeat, guides = excluded.guides",
                    (item, workflow, request, run, platform.node(), time.time() + LEASE_S, _now(), paired),
                )

    def beat(self, run: str) -> None:
        """A sign of life: the claims of a run hold on."""
        self._db.run(
            "UPDATE scene SET lease = ?, heartbeat = ? WHERE run = ? AND state IN ('claimed', 'processing')",
            (time.time() + LEASE_S, _now(), run),
        )

    def release(self, run: str) -> None:
        """Let go of what a run has not brought to its end."""
        self._db.run(
            "UPDATE scene SET state = 'aborted', cause = 'the run was stopped', ended = ? "
            "WHERE run = ? AND state IN ('claimed', 'processing')",
            (_now(), run),
        )

    def begin(self, identity: str, item: str, workflow: str) -> list[str]:
        """A product is being worked on, once more or for the first time.

        Returns:
            Identities under which the same scene and workflow were begun before and not finished; what was recorded
            of them is forgotten, and their staging should go.
        """
        row = self.scene(item, workflow)
        left = row.identity if row and row.identity != identity and not row.product else ""
        progress = self._progress(identity)
        with self._db.transaction():
            self._db.run(
                "INSERT INTO scene (item, workflow, identity, state, attempts, started, progress) "
                "VALUES (?, ?, ?, 'processing', 1, ?, ?) "
                "ON CONFLICT (item, workflow) DO UPDATE SET state = 'processing', attempts = 1 + "
                "CASE WHEN identity IN ('', excluded.identity) THEN attempts ELSE 0 END, "
                "identity = excluded.identity, cause = NULL, product = NULL, started = excluded.started, ended = NULL, "
                "progress = excluded.progress",
                (item, workflow, identity, _now(), progress),
            )
            if left:
                self.forget(left)
        return [left] if left else []

    def end(
        self,
        item: str,
        workflow: str,
        state: str,
        *,
        cause: str | None = None,
        product: str | None = None,
        identity: str = "",
    ) -> None:
        """A scene came to its end; a product that stands needs its blocks remembered no longer.

        How its networks' tiles were computed stays on record.

        Args:
            item: id of the scene's item.
            workflow: name of the workflow.
            state: one of `STATES`.
            cause: why it failed or is invalid.
            product: path of the store.
            identity: of the product, where it may be another than the one begun last; that one is forgotten.
        """
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {STATES}")
        with self._db.transaction():
            before = self.scene(item, workflow)
            if identity and before and before.identity != identity and not before.product:
                self.forget(before.identity)
            self._db.run(
                "INSERT INTO scene (item, workflow, state, cause, product, ended, identity) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (item, workflow) DO UPDATE SET state = excluded.state, cause = excluded.cause, "
                "identity = CASE excluded.identity WHEN '' THEN identity ELSE excluded.identity END, "
                "product = excluded.product, ended = excluded.ended, "
                "deaths = CASE WHEN excluded.state != 'failed' OR state IN ('claimed', 'processing') THEN 0 "
                "ELSE deaths END",
                (item, workflow, state, cause, product, _now(), identity),
            )
            row = self.scene(item, workflow)
            if state == "succeeded" and row:
                self._drop(row.identity, "chunk", "block", "statistics")

    def forget(self, identity: str) -> None:
        """Drop all that was done for a product: its staging is gone."""
        self._drop(identity, "chunk", "block", "statistics", "tile")

    def _drop(self, identity: str, *tables: str) -> None:
        with self._db.transaction():
            for table in tables:
                self._db.run(f"DELETE FROM {table} WHERE identity = ?", (identity,))  # noqa: S608 - fixed names

    def _progress(self, identity: str) -> int:
        """How many pieces of a product are on record."""
        tables = ("chunk", "statistics", "tile")
        counts = [self._db.rows(f"SELECT count(*) FROM {name} WHERE identity = ?", (identity,)) for name in tables]  # noqa: S608
        return sum(int(rows[0][0]) for rows in counts)

    def scene(self, item: str, workflow: str) -> SceneRow | None:
        """What is known of one scene."""
        found = self._scenes("WHERE item = ? AND workflow = ?", (item, workflow))
        return found[0] if found else None

    def scenes(self) -> list[SceneRow]:
        """All scenes, the latest last."""
        return self._scenes("ORDER BY started, item", ())

    def _scenes(self, where: str, values: tuple[Any, ...]) -> list[SceneRow]:
        rows = self._db.rows(f"SELECT {', '.join(self._columns)} FROM scene {where}", values)  # noqa: S608 - fixed names
        return [_row(dict(zip(self._columns, row, strict=True))) for row in rows]

    def blocks(self) -> dict[str, int]:
        """How many blocks of every product under way are finished, by identity."""
        return dict(self._db.rows("SELECT identity, count(*) FROM block GROUP BY identity", ()))

    def journal(self, identity: str) -> "LedgerJournal":
        """The record of one product's finished blocks."""
        return LedgerJournal(self._db, identity)


class LedgerJournal:
    """The finished blocks and statistics of one product, kept over a kill."""

    def __init__(self, db: Database, identity: str) -> None:
        self._db, self._identity = db, identity

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks that stand in staging."""
        return dict(self._db.rows("SELECT key, sha256 FROM chunk WHERE identity = ?", (self._identity,)))

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        rows = self._db.rows("SELECT key, clipped FROM chunk WHERE identity = ? AND clipped > 0", (self._identity,))
        return clipped_by_variable(dict(rows))

    def add_block(self, window: Window, written: Written) -> None:
        """Record a finished block and its chunks in one transaction."""
        with self._db.transaction():
            self._db.run_all(
                "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?)",
                [(self._identity, key, sha256, written.clipped.get(key, 0)) for key, sha256 in written.hashes.items()],
            )
            values = (self._identity, window.row, window.col, window.height, window.width, written.nbytes)
            self._db.run("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?)", values)

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Partial sums recorded for a block of a statistics pass."""
        key = (self._identity, step, number, part)
        rows = self._db.rows(
            "SELECT sums FROM statistics WHERE identity = ? AND step = ? AND number = ? AND part = ?", key
        )
        return _unpack(rows[0][0]) if rows else None

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Record the partial sums of one block."""
        key = (self._identity, step, number, part)
        self._db.run("INSERT OR REPLACE INTO statistics VALUES (?, ?, ?, ?, ?)", (*key, _pack(sums)))

    def tiles(self) -> Mapping[tuple[int, int], TileRecord]:
        """The tiles that were computed, by step and number."""
        columns = "step, number, crc32, device, precision, batch, wanted"
        rows = self._db.rows(f"SELECT {columns} FROM tile WHERE identity = ?", (self._identity,))  # noqa: S608
        return {(step, number): TileRecord(number, crc32, How(*how)) for step, number, crc32, *how in rows}

    def add_tiles(self, step: int, records: Sequence[TileRecord]) -> None:
        """Record a group of tiles in one transaction."""
        rows = [(self._identity, step, record.number, record.crc32, *astuple(record.how)) for record in records]
        with self._db.transaction():
            self._db.run_all("INSERT OR REPLACE INTO tile VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _row(values: dict[str, Any]) -> SceneRow:
    return SceneRow(**{**values, "guides": json.loads(values.get("guides", "{}"))})


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
