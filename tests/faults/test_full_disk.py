"""A disk that takes no more, stood for by a limit on the size of files: a clear error, and nothing half-published."""

import pytest

from cubeloom.workflows.status import read_status

from .driver import Fault

BUILDING = {
    "at once": ("", 1),
    "layout": ("cubeloom.pipeline.store.create", 1),
    "first chunk": ("cubeloom.pipeline.chunks._overwrite", 1),
    "a chunk": ("cubeloom.pipeline.chunks._overwrite", 9),
    "a block's row": ("cubeloom.workflows.ledger.LedgerJournal.add_block", 4),
    "statistics": ("cubeloom.workflows.ledger.LedgerJournal.add_statistics", 3),
    "overview": ("cubeloom.pipeline.chunks.halve_chunks", 1),
}
PUBLISHING = {
    "commit record": ("cubeloom.pipeline.store._write_commit", 1),
    "rename": ("cubeloom.pipeline.store.publish", 1),
    "pictures": ("cubeloom.workflows.scene_task.write_quicklooks", 1),
    "item": ("cubeloom.workflows.scene_task.publish_item", 1),
    "ledger": ("cubeloom.workflows.ledger.Ledger.end", 1),
    "index": ("cubeloom.workflows.run.write_index", 1),
    "report": ("cubeloom.workflows.summary.render_report", 1),
}


@pytest.mark.parametrize("point", BUILDING)
def test_no_file_takes_anything_from_a_point_on(point, one, expected, tmp_path):
    assert_it_is_told_and_mended(tmp_path / "out", *BUILDING[point], one, expected)


@pytest.mark.parametrize("point", PUBLISHING)
def test_no_file_takes_anything_on_the_way_out(point, one, expected, sealing):
    assert_it_is_told_and_mended(sealing, *PUBLISHING[point], one, expected)


def assert_it_is_told_and_mended(out, at, nth, one, expected):
    with one.nursery.watching(out):
        full = one.run(out, fault=Fault(at=at, nth=nth, largest_file=1))
        assert full.code in (1, 3), full.said
        assert "Traceback" not in full.said
        assert any(words in full.said for words in ("File too large", "disk", "full")), full.said
        again = one.run(out)
        assert again.code == 0, again.said
    expected.holds(one, out)


@pytest.fixture
def large(make_case):
    """A scene whose chunks are larger than all that else is written."""
    return make_case(height=128, width=128, n_vnir=15, n_swir=15)


def test_a_chunk_that_does_not_fit_fails_its_scene_and_gives_the_space_back(large, expected, tmp_path):
    out = tmp_path / "out"
    full = large.run(out, fault=Fault(largest_file=300_000))
    assert full.code == 3, full.said
    assert "cannot write a chunk" in full.said
    assert "File too large" in full.said
    assert read_status(out).counts() == {"failed": 1}
    assert not (out / "scenes").exists()
    assert not list((out / ".cubeloom" / "staging").iterdir())
    assert large.run(out).code == 0
    expected.holds(large, out)
