"""The ledger: states of scenes, and the journal that a killed run goes on from."""

import sqlite3

import numpy as np
import pytest

from cubeloom.pipeline.chunks import Written
from cubeloom.pipeline.grids import Window
from cubeloom.workflows.ledger import Ledger

ONE = Written({"reflectance/c/0/0/0": "aa", "quality/c/0/0": ""}, 100, {"reflectance/c/0/0/0": 3})
TWO = Written(
    {"reflectance/c/0/0/1": "bb", "x2/denoised/c/0/0/0": "cc"},
    50,
    {"reflectance/c/0/0/1": 4, "x2/denoised/c/0/0/0": 1},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cubeloom" / "ledger.sqlite"


def test_a_scene_goes_from_processing_to_its_end_and_counts_attempts(path):
    with Ledger(path) as ledger:
        ledger.begin("id1", "item", "flow")
        (row,) = ledger.scenes()
        assert (row.state, row.attempts, row.ended) == ("processing", 1, None)
        ledger.end("id1", "failed", cause="because")
        (row,) = ledger.scenes()
        assert (row.state, row.cause) == ("failed", "because")
        assert row.started <= row.ended
        ledger.begin("id1", "item", "flow")
        (row,) = ledger.scenes()
        assert (row.state, row.attempts, row.cause, row.ended) == ("processing", 2, None, None)
        ledger.end("id1", "succeeded", product="p.zarr")
        (row,) = ledger.scenes()
        assert (row.item, row.workflow, row.state, row.product) == ("item", "flow", "succeeded", "p.zarr")


def test_an_unknown_state_is_refused(path):
    with Ledger(path) as ledger, pytest.raises(ValueError, match="'done' is none of"):
        ledger.end("id1", "done")


def test_the_journal_outlives_the_process_that_wrote_it(path):
    with Ledger(path) as ledger:
        journal = ledger.journal("id1")
        journal.add_block(Window(0, 0, 128, 128), ONE)
        journal.add_block(Window(0, 128, 128, 12), TWO)
        ledger.journal("id2").add_block(Window(0, 0, 128, 128), TWO)
    with Ledger(path) as ledger:
        journal = ledger.journal("id1")
        assert journal.chunks() == ONE.hashes | TWO.hashes
        assert journal.clipped() == {"reflectance": 7, "x2/denoised": 1}


def test_a_block_done_again_is_counted_once(path):
    with Ledger(path) as ledger:
        journal = ledger.journal("id1")
        for _ in range(2):
            journal.add_block(Window(0, 0, 128, 128), ONE)
        assert journal.chunks() == ONE.hashes
        assert journal.clipped() == {"reflectance": 3}


def test_blocks_of_other_sizes_over_the_same_chunks_count_their_clipped_values_once(path):
    """A rerun with another memory budget makes other blocks; those that a kill cut through are done again."""
    with Ledger(path) as ledger:
        journal = ledger.journal("id1")
        one = Written({"r/c/0/0/0": "a"}, 1, {"r/c/0/0/0": 3})
        both = Written({"r/c/0/0/0": "a", "r/c/0/0/1": "b"}, 2, {"r/c/0/0/0": 3, "r/c/0/0/1": 7})
        journal.add_block(Window(0, 0, 128, 128), one)
        journal.add_block(Window(0, 0, 128, 256), both)
        assert journal.clipped() == {"r": 10}


def test_statistics_come_back_to_the_last_bit(path):
    rng = np.random.default_rng(0)
    sums = {"matrix": rng.normal(size=(5, 5)), "count": np.array(7), "flags": np.array([True, False])}
    with Ledger(path) as ledger:
        ledger.journal("id1").add_statistics(2, 0, 3, sums)
    with Ledger(path) as ledger:
        journal = ledger.journal("id1")
        found = journal.statistics(2, 0, 3)
        assert found.keys() == sums.keys()
        for name, array in sums.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        assert journal.statistics(2, 0, 4) is None
        assert journal.statistics(2, 1, 3) is None
        assert ledger.journal("id2").statistics(2, 0, 3) is None


@pytest.mark.parametrize("forget", [lambda ledger: ledger.forget("id1"), lambda ledger: ledger.end("id1", "succeeded")])
def test_what_stands_is_remembered_no_longer(path, forget):
    with Ledger(path) as ledger:
        ledger.begin("id1", "item", "flow")
        for identity in ("id1", "id2"):
            ledger.journal(identity).add_block(Window(0, 0, 1, 1), ONE)
            ledger.journal(identity).add_statistics(0, 0, 0, {"n": np.array(1)})
        forget(ledger)
        assert ledger.journal("id1").chunks() == {}
        assert ledger.journal("id1").clipped() == {}
        assert ledger.journal("id1").statistics(0, 0, 0) is None
        assert ledger.journal("id2").chunks() == ONE.hashes
        assert ledger.journal("id2").statistics(0, 0, 0) is not None


def test_failure_keeps_the_blocks(path):
    with Ledger(path) as ledger:
        ledger.begin("id1", "item", "flow")
        ledger.journal("id1").add_block(Window(0, 0, 1, 1), ONE)
        ledger.end("id1", "failed", cause="x")
        assert ledger.journal("id1").chunks() == ONE.hashes


def test_success_supersedes_unfinished_attempts_at_the_same_product_alone(path):
    with Ledger(path) as ledger:
        for identity, item, flow in (
            ("old", "item", "flow"),
            ("killed", "item", "flow"),
            ("new", "item", "flow"),
            ("other item", "item 2", "flow"),
            ("other flow", "item", "flow 2"),
        ):
            ledger.begin(identity, item, flow)
            ledger.journal(identity).add_block(Window(0, 0, 1, 1), ONE)
        ledger.end("old", "succeeded")
        ledger.end("new", "succeeded")
        assert ledger.supersede("new", "item", "flow") == ["killed"]
        assert {row.identity for row in ledger.scenes()} == {"old", "new", "other item", "other flow"}
        assert ledger.journal("killed").chunks() == {}
        assert ledger.journal("other item").chunks() == ONE.hashes


def test_a_block_is_recorded_whole_or_not_at_all(path):
    with Ledger(path) as ledger:
        broken = Written({"a": "1", "b": None}, 1, {})
        with pytest.raises(sqlite3.IntegrityError):
            ledger.journal("id1").add_block(Window(0, 0, 1, 1), broken)
        ledger.journal("id2").add_block(Window(0, 0, 1, 1), ONE)
    with Ledger(path) as ledger:
        assert ledger.journal("id1").chunks() == {}
        assert ledger.journal("id2").chunks() == ONE.hashes
