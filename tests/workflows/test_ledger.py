"""The ledger: states of scenes, and the journal that a killed run goes on from."""

import platform
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cubeloom.errors import StoreError
from cubeloom.pipeline.chunks import Written
from cubeloom.pipeline.grids import Window
from cubeloom.workflows.ledger import LEASE_S, Ledger

ONE = Written({"reflectance/c/0/0/0": "aa", "quality/c/0/0": ""}, 100, {"reflectance/c/0/0/0": 3})
TWO = Written(
    {"reflectance/c/0/0/1": "bb", "x2/denoised/c/0/0/0": "cc"},
    50,
    {"reflectance/c/0/0/1": 4, "x2/denoised/c/0/0/0": 1},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".cubeloom" / "ledger.sqlite"


def test_a_scene_goes_from_its_claim_to_its_end_and_counts_attempts(path):
    with Ledger(path) as ledger:
        ledger.claim({"item": "asked"}, "flow", "run1")
        (row,) = ledger.scenes()
        assert (row.state, row.run, row.request, row.attempts) == ("claimed", "run1", "asked", 0)
        ledger.begin("id1", "item", "flow")
        (row,) = ledger.scenes()
        assert (row.state, row.identity, row.attempts, row.ended) == ("processing", "id1", 1, None)
        ledger.end("item", "flow", "failed", cause="because")
        (row,) = ledger.scenes()
        assert (row.state, row.cause) == ("failed", "because")
        assert row.started <= row.ended
        ledger.begin("id1", "item", "flow")
        (row,) = ledger.scenes()
        assert (row.state, row.attempts, row.cause, row.ended) == ("processing", 2, None, None)
        ledger.end("item", "flow", "succeeded", product="p.zarr")
        (row,) = ledger.scenes()
        assert (row.item, row.workflow, row.state, row.product) == ("item", "flow", "succeeded", "p.zarr")


def test_an_unknown_state_is_refused(path):
    with Ledger(path) as ledger, pytest.raises(ValueError, match="'done' is none of"):
        ledger.end("item", "flow", "done")


def test_what_a_run_has_not_finished_is_let_go(path):
    with Ledger(path) as ledger:
        ledger.claim({"a": "", "b": "", "c": ""}, "flow", "run1")
        ledger.begin("ida", "a", "flow")
        ledger.begin("idb", "b", "flow")
        ledger.end("b", "flow", "succeeded", product="p")
        ledger.claim({"d": ""}, "flow", "run2")
        ledger.release("run1")
        assert {row.item: row.state for row in ledger.scenes()} == {
            "a": "aborted", "b": "succeeded", "c": "aborted", "d": "claimed",
        }  # fmt: skip


def test_a_claim_of_another_machine_holds_until_its_lease_ends(path, monkeypatch):
    with Ledger(path) as ledger:
        ledger.claim({"a": ""}, "flow", "run1")
        assert ledger.holder() is None, "a run of this machine is gone if its lock is free"
        monkeypatch.setattr(platform, "node", lambda: "elsewhere")
        assert ledger.holder().item == "a"
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + LEASE_S - 1)
        assert ledger.holder() is not None
        ledger.beat("run1")
        monkeypatch.setattr(time, "time", lambda: now + 2 * LEASE_S - 2)
        assert ledger.holder() is not None
        monkeypatch.setattr(time, "time", lambda: now + 2 * LEASE_S)
        assert ledger.holder() is None
        monkeypatch.setattr(time, "time", lambda: now - 7 * 24 * 3600)
        assert ledger.holder() is None, "the clock was set back: no lease lasts for a week"


def killed(path, progress=None):
    """A run that takes over, begins, gets on or not, and dies."""
    with Ledger(path) as ledger:
        ledger.take_over()
        ledger.claim({"a": "asked"}, "flow", "run")
        ledger.begin("ida", "a", "flow")
        if progress is not None:
            ledger.journal("ida").add_block(Window(0, 0, 1, 1), Written({progress: "aa"}, 1, {}))


def deaths(path):
    with Ledger(path) as ledger:
        ledger.take_over()
        return ledger.scene("a", "flow").deaths


def test_deaths_without_progress_are_counted_in_turn(path):
    for _ in range(2):
        killed(path)
    assert deaths(path) == 2
    killed(path, progress="r/c/0/0/0")
    assert deaths(path) == 1, "it got further, so it died over something else"
    killed(path)
    assert deaths(path) == 2
    with Ledger(path) as ledger:
        ledger.claim({"a": "another request"}, "flow", "run")
        assert ledger.scene("a", "flow").deaths == 0
    killed(path)
    with Ledger(path) as ledger:
        ledger.end("a", "flow", "succeeded", product="p")
        assert ledger.scene("a", "flow").deaths == 0


def test_a_scene_that_waited_has_not_killed_its_run(path):
    with Ledger(path) as ledger:
        ledger.claim({"a": "", "b": ""}, "flow", "run1")
        ledger.begin("ida", "a", "flow")
    with Ledger(path) as ledger:
        ledger.take_over()
        assert {row.item: (row.state, row.deaths) for row in ledger.scenes()} == {
            "a": ("aborted", 1),
            "b": ("aborted", 0),
        }


def test_another_identity_of_an_unfinished_scene_leaves_the_old_one_to_be_dropped(path):
    with Ledger(path) as ledger:
        assert ledger.begin("old", "item", "flow") == []
        ledger.journal("old").add_block(Window(0, 0, 1, 1), ONE)
        ledger.end("item", "flow", "failed", cause="x")
        ledger.begin("beside", "item 2", "flow")
        ledger.journal("beside").add_block(Window(0, 0, 1, 1), ONE)
        assert ledger.begin("new", "item", "flow") == ["old"]
        assert ledger.journal("old").chunks() == {}
        assert ledger.journal("beside").chunks() == ONE.hashes
        ledger.end("item", "flow", "succeeded", product="p")
        ledger.claim({"item": "another"}, "flow", "run")
        assert ledger.begin("newer", "item", "flow") == [], "the one before is published, and stays"


def test_a_ledger_of_the_first_version_is_brought_up_to_date(path):
    path.parent.mkdir(parents=True)
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE scene (identity TEXT PRIMARY KEY, item TEXT NOT NULL, workflow TEXT NOT NULL, "
        "state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, cause TEXT, product TEXT, started TEXT, ended TEXT)"
    )
    rows = [
        ("id1", "a", "flow", "succeeded", 2, None, "p1", "2026-01-01", "2026-01-01"),
        ("id2", "a", "flow", "processing", 1, None, None, "2026-01-02", None),
        ("unplanned:flow:b", "b", "flow", "invalid", 1, "level", None, "2026-01-03", "2026-01-03"),
    ]
    db.executemany("INSERT INTO scene VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="the next run brings it up to date"):
        Ledger(path, readonly=True)
    for _ in range(2):
        with Ledger(path) as ledger:
            found = {row.item: (row.identity, row.state, row.attempts) for row in ledger.scenes()}
            assert found == {"a": ("id2", "processing", 1), "b": ("", "invalid", 1)}
    with Ledger(path, readonly=True) as ledger, pytest.raises(sqlite3.OperationalError, match="readonly"):
        ledger.release("run")


def test_a_ledger_of_the_version_before_is_shown_and_brought_up_to_date(path):
    """It knew no guides; all else stays, and a run that only looks changes nothing."""
    with Ledger(path) as ledger:
        ledger.claim({"a": "asked", "b": ""}, "flow", "run", {"a": {"s2": "S2A_x"}})
        ledger.begin("ida", "a", "flow")
        ledger.end("a", "flow", "succeeded", product="p")
        before = ledger.scenes()
    assert before[-1].guides == {"s2": "S2A_x"}
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE scene DROP COLUMN guides")
    db.execute("PRAGMA user_version = 2")
    db.close()
    without = [replace(row, guides={}) for row in before]
    for readonly in (True, False):
        with Ledger(path, readonly=readonly) as ledger:
            assert ledger.scenes() == without
    with Ledger(path) as ledger:
        ledger.claim({"a": "again"}, "flow", "run", {"a": {"s2": "S2B_y"}})
        assert [row.guides for row in ledger.scenes()] == [{}, {"s2": "S2B_y"}]


def test_a_newer_ledger_is_refused(path):
    with Ledger(path):
        pass
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="upgrade Cubeloom"):
        Ledger(path)


def test_threads_share_it(path):
    with Ledger(path) as ledger, ThreadPoolExecutor(8) as pool:

        def work(number):
            ledger.begin(f"id{number}", f"item{number}", "flow")
            for col in range(20):
                written = Written({f"r/c/0/0/{col}": "aa"}, 1, {})
                ledger.journal(f"id{number}").add_block(Window(0, col, 1, 1), written)
            return len(ledger.journal(f"id{number}").chunks())

        assert list(pool.map(work, range(8))) == [20] * 8
        assert ledger.blocks() == {f"id{number}": 20 for number in range(8)}


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


@pytest.mark.parametrize(
    "forget", [lambda ledger: ledger.forget("id1"), lambda ledger: ledger.end("item", "flow", "succeeded")]
)
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
        ledger.end("item", "flow", "failed", cause="x")
        assert ledger.journal("id1").chunks() == ONE.hashes


def test_a_block_is_recorded_whole_or_not_at_all(path):
    with Ledger(path) as ledger:
        broken = Written({"a": "1", "b": None}, 1, {})
        with pytest.raises(sqlite3.IntegrityError):
            ledger.journal("id1").add_block(Window(0, 0, 1, 1), broken)
        ledger.journal("id2").add_block(Window(0, 0, 1, 1), ONE)
    with Ledger(path) as ledger:
        assert ledger.journal("id1").chunks() == {}
        assert ledger.journal("id2").chunks() == ONE.hashes
