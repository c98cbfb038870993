"""Where things lie under an output directory."""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from cubeloom.errors import LockedError, Stopped
from cubeloom.pipeline.store import COMMIT
from cubeloom.untrusted import safe_name

LOOKED_S = 0.5
"""How long a run tries for the lock at least: who asks whether it is held, holds it for a moment."""


@dataclass(frozen=True)
class Layout:
    """Paths under `--out`: products for all to read, and the runner's own folder."""

    out: Path

    @property
    def ledger(self) -> Path:
        """SQLite file of scenes and blocks."""
        return self.out / ".cubeloom" / "ledger.sqlite"

    @property
    def lock(self) -> Path:
        """File that the running process holds locked."""
        return self.out / ".cubeloom" / "lock"

    def staging(self, identity: str) -> Path:
        """Where a product is built."""
        return self.out / ".cubeloom" / "staging" / f"{identity[:16]}.zarr"

    def abandon(self, identity: str) -> None:
        """Remove what stands of a product under way; in one step, so that nobody goes on with a part of it."""
        staged = self.staging(identity)
        doomed = staged.with_name(f"dead-{staged.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        with suppress(FileNotFoundError):
            staged.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def stagings(self) -> list[Path]:
        """All products that are being built, or were when a run ended."""
        return sorted((self.out / ".cubeloom" / "staging").glob("*.zarr"))

    def inputs(self, item: str) -> Path:
        """Where the files of a remote scene are kept while it is worked on."""
        return self.out / ".cubeloom" / "inputs" / safe_name(item)

    def all_inputs(self) -> list[Path]:
        """The files of all remote scenes that were being worked on."""
        return sorted((self.out / ".cubeloom" / "inputs").glob("*"))

    @property
    def trash(self) -> Path:
        """Where folders wait for their removal, out of sight."""
        return self.out / ".cubeloom" / "trash"

    @property
    def index_behind(self) -> Path:
        """File that is there while the index may lack a product."""
        return self.out / ".cubeloom" / "index-behind"

    def discard(self, folder: Path) -> None:
        """Remove a folder; readers see all of it or nothing."""
        self.trash.mkdir(parents=True, exist_ok=True)
        doomed = self.trash / f"{folder.name}.{time.time_ns()}"
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def quarantine(self, item: str, workflow: str) -> Path:
        """Why a scene failed, for people and scripts."""
        return self.out / ".cubeloom" / "quarantine" / safe_name(item) / f"{workflow}.json"

    def scene(self, item: str) -> Path:
        """Folder of all products of a scene."""
        return self.out / "scenes" / safe_name(item)

    def product(self, item: str, workflow: str, identity: str) -> Path:
        """The store of one product."""
        return self.scene(item) / f"{workflow}-{identity[:8]}.zarr"

    def item(self, item: str, workflow: str) -> Path:
        """The STAC item whose href points to the current product."""
        return self.scene(item) / f"{workflow}.json"

    def stands(self, item: str, workflow: str, identity: str) -> bool:
        """Whether a product is published and its item points to it."""
        product, pointer = self.product(item, workflow, identity), self.item(item, workflow)
        return (product / COMMIT).is_file() and pointer.is_file() and product.name in pointer.read_text()

    def run(self, run_id: str) -> Path:
        """Folder of one run's report and logs."""
        return self.out / "runs" / run_id

    def new_run(self) -> str:
        """The id of a run that begins now, and its folder."""
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        for number in count(1):
            run_id = begun if number == 1 else f"{begun}-{number}"
            with suppress(FileExistsError):
                self.run(run_id).mkdir(parents=True)
                return run_id
        raise AssertionError("numbers do not end")

    def is_locked(self) -> bool:
        """Whether a run holds the directory at this moment."""
        if not self.lock.is_file():
            return False
        with self.lock.open() as file:
            return not _locks(file.fileno())

    @contextmanager
    def locked(self, wait_s: float = 0.0, stop: threading.Event | None = None) -> Iterator[None]:
        """Hold the directory for this process; the kernel lets go of it however the process ends.

        Args:
            wait_s: how long to wait for another run to end, s.
            stop: once set, waiting ends.

        Raises:
            LockedError: another run holds it.
            Stopped: `stop` was set.
        """
        stop, deadline = stop or threading.Event(), time.monotonic() + max(wait_s, LOOKED_S)
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a+") as file:
            while not _locks(file.fileno()):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise LockedError(
                        f"{self.out}: another run (process {holder}) is writing here; wait for it (--wait SECONDS), or "
                        "choose another --out"
                    )
                if stop.wait(0.2):
                    raise Stopped(f"{self.out}: stopped while it waited for another run")
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def put_aside(self, item: str, workflow: str, cause: Mapping[str, Any]) -> Path:
        """Write the cause of a failure into the quarantine."""
        path = self.quarantine(item, workflow)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cause, indent=1) + "\n")
        return path

    def release(self, item: str, workflow: str) -> None:
        """Take a scene out of the quarantine, if it is there."""
        path = self.quarantine(item, workflow)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or another workflow's cause is in it
            path.parent.rmdir()


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
