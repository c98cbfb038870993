"""A SIGKILL at every named step on the way to a published product: nobody sees a part, and the next run mends it."""

import signal

import pytest

from .driver import Fault

LEDGER = "cubeloom.workflows.ledger.Ledger"
JOURNAL = "cubeloom.workflows.ledger.LedgerJournal"
STORE = "cubeloom.pipeline.store"
TASK = "cubeloom.workflows.scene_task"

BUILDING = [
    ("layout of the store", f"{STORE}.create", 1),
    ("the first chunk", "cubeloom.pipeline.chunks._overwrite", 1),
    ("a chunk", "cubeloom.pipeline.chunks._overwrite", 11),
    ("the first block's row", f"{JOURNAL}.add_block", 1),
    ("a block's row", f"{JOURNAL}.add_block", 6),
    ("statistics", f"{JOURNAL}.add_statistics", 1),
    ("the last statistics", f"{JOURNAL}.add_statistics", 6),
    ("overviews and hashes", f"{STORE}.seal", 1),
    ("an overview", "cubeloom.pipeline.chunks.halve_chunks", 2),
    ("the sync before the commit record", f"{STORE}._sync", 1),
    ("the commit record", f"{STORE}._write_commit", 1),
]
PUBLISHING = [
    ("the store's way into place", f"{STORE}.publish", 1),
    ("the rename", "pathlib.Path.rename", 1),
    ("the sync after the rename", f"{STORE}._sync", 3),
    ("quicklooks", f"{TASK}.write_quicklooks", 1),
    ("the item", f"{TASK}.publish_item", 1),
    ("the item's temporary file", "os.fdopen", 1),
    ("the sync of the item's temporary file", "os.fsync", 1),
    ("the item's replacement", "pathlib.Path.replace", 1),
    ("the sync of the item's folder", "os.fsync", 2),
    ("the scene's end in the ledger", f"{LEDGER}.end", 1),
    ("the forgetting of its blocks", f"{LEDGER}._drop", 1),
    ("the way out of the quarantine", "cubeloom.workflows.layout.Layout.release", 1),
    ("the index", "cubeloom.workflows.run.write_index", 1),
    ("the replacement of the collection", "pathlib.Path.replace", 2),
    ("the replacement of the catalog", "pathlib.Path.replace", 3),
    ("the end of the claims", f"{LEDGER}.release", 1),
    ("the report", "cubeloom.workflows.summary.render_report", 1),
]
AFTER = {
    "the rename",
    "the item's temporary file",
    "the item's replacement",
    "the scene's end in the ledger",
    "the report",
}
"""Steps whose end is no other one's beginning: between them lies what a step makes visible or leaves half-made."""


def steps(named):
    return [
        pytest.param(at, nth, when, id=f"{when} {what}")
        for what, at, nth in named
        for when in ("before", "after")
        if when == "before" or what in AFTER
    ]


@pytest.mark.parametrize(("at", "nth", "when"), steps(BUILDING))
def test_a_kill_at_a_step(at, nth, when, one, expected, tmp_path):
    assert_a_kill_is_mended(tmp_path / "out", at, nth, when, one, expected)


@pytest.mark.parametrize(("at", "nth", "when"), steps(PUBLISHING))
def test_a_kill_at_a_step_on_the_way_out(at, nth, when, one, expected, sealing):
    """The run begins where the blocks stand: it must not compute them for every step."""
    assert_a_kill_is_mended(sealing, at, nth, when, one, expected)


def assert_a_kill_is_mended(out, at, nth, when, one, expected):
    with one.nursery.watching(out):
        killed = one.run(out, fault=Fault(at=at, when=when, nth=nth))
        assert killed.code == -signal.SIGKILL, f"the step was never reached:\n{killed.said}"
        again = one.run(out)
        assert again.code == 0, again.said
    expected.holds(one, out)
