"""What dead runs have left behind: half-written documents, staging that nobody will go on with, old versions."""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from .layout import Layout
from .ledger import Ledger, SceneRow

STAGING_KEPT_S = 7 * 24 * 3600.0
"""How long an unfinished product waits for a run that goes on with it."""


def sweep(layout: Layout, ledger: Ledger, kept_s: float = STAGING_KEPT_S) -> None:
    """Remove what no run will use; only for the run that holds the output directory.

    Args:
        layout: of the directory.
        ledger: its ledger.
        kept_s: how long unfinished products are kept after their last sign of life, s.
    """
    for partial in [
        *layout.out.glob(".*.partial"),
        *layout.out.glob("*/*/.*.partial"),
        *layout.out.glob("*/.*.partial"),
    ]:
        partial.unlink(missing_ok=True)
    unfinished = {row.identity: row for row in ledger.scenes() if row.identity and not row.product}
    lapsed = {identity for identity, row in unfinished.items() if _age_s(row) >= kept_s}
    for identity in lapsed:
        ledger.forget(identity)
    kept = {layout.staging(identity) for identity in unfinished.keys() - lapsed}
    for folder in layout.stagings():
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    waiting = {layout.inputs(row.item) for row in unfinished.values() if row.identity not in lapsed}
    for folder in layout.all_inputs():
        if folder not in waiting:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(layout.trash, ignore_errors=True)


def _age_s(row: SceneRow) -> float:
    """Seconds since a scene was last worked on; none for a time that lies ahead, written by a clock since set back."""
    last = max(filter(None, (row.started, row.ended, row.heartbeat)), default=None)
    if last is None:
        return 0.0
    return max(time.time() - datetime.fromisoformat(last).astimezone(UTC).timestamp(), 0.0)


def drop_versions(layout: Layout, item: str, workflow: str, current: Path, keep: int) -> None:
    """Remove the oldest versions of a product but for `keep` of them; the current one always stays.

    Each goes out of sight in one step, after its pictures.
    """
    others = [path for path in layout.scene(item).glob(f"{workflow}-????????.zarr") if path != current]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[max(keep - 1, 0) :]:
        shutil.rmtree(old.with_suffix(".quicklooks"), ignore_errors=True)
        layout.discard(old)
