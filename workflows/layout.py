"""Where things lie under an output directory."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cubeloom.errors import LockedError
from cubeloom.untrusted import safe_name


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

    def run(self, run_id: str) -> Path:
        """Folder of one run's report."""
        return self.out / "runs" / run_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; the kernel lets go of it however the process ends.

        Raises:
            LockedError: another run holds it.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise LockedError(
                    f"{self.out}: another run (process {holder}) is writing here; wait for it, or choose another --out"
                ) from None
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
