"""What stands under an output directory, and what is under way: read from the ledger, also while a run writes it."""

import sqlite3
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cubeloom.errors import InputError, StoreError

from .layout import Layout
from .ledger import STATES, Ledger, SceneRow


@dataclass(frozen=True)
class Status:
    """All scenes of an output directory.

    Attributes:
        scenes: what the ledger says of each.
        blocks: finished blocks of those under way, by identity.
        running: whether a run holds the directory now.
    """

    scenes: list[SceneRow]
    blocks: dict[str, int]
    running: bool

    def counts(self) -> dict[str, int]:
        """Number of scenes in every state that occurs."""
        found = Counter(row.state for row in self.scenes)
        return {state: found[state] for state in STATES if found[state]}

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        scenes = [{**asdict(row), "blocks_done": self.blocks.get(row.identity, 0)} for row in self.scenes]
        return {"running": self.running, "counts": self.counts(), "scenes": scenes}

    def table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Heads and rows; the guides that scenes were paired with have a column where there are any."""
        paired = any(row.guides for row in self.scenes)
        heads = ("item", *(["guides"] if paired else []), "workflow", "state", "tries", "blocks", "since (UTC)")
        rows: list[tuple[object, ...]] = [
            (
                row.item,
                *([", ".join(f"{name} {item}" for name, item in row.guides.items())] if paired else []),
                row.workflow,
                row.state,
                row.attempts,
                self.blocks.get(row.identity, ""),
                row.ended or row.started or row.heartbeat or "",
                row.cause or row.product or "",
            )
            for row in self.scenes
        ]
        return (*heads, "cause or product"), rows


def read_status(out: Path, states: tuple[str, ...] = ()) -> Status:
    """The status of an output directory, of the scenes in `states` alone where any are given.

    Raises:
        InputError: nothing was ever run into `out`.
        StoreError: the ledger cannot be read.
    """
    layout = Layout(out)
    if not layout.ledger.is_file():
        raise InputError(f"{out}: has no ledger ({layout.ledger}); expected the --out of a run")
    try:
        with Ledger(layout.ledger, readonly=True) as ledger:
            scenes = [row for row in ledger.scenes() if not states or row.state in states]
            return Status(scenes, ledger.blocks(), layout.is_locked())
    except sqlite3.Error as error:
        raise StoreError(f"{layout.ledger}: the ledger cannot be read: {error}") from error
