"""SIGTERM in every phase: exit code 143, no claim is kept, the same command goes on."""

import signal

import pytest

from cubeloom.workflows.status import read_status

from .driver import Fault

JOURNAL = "cubeloom.workflows.ledger.LedgerJournal"
PHASES = {
    "opening": ("cubeloom.workflows.scene_task.plan_scene", 1),
    "layout": ("cubeloom.pipeline.store.create", 1),
    "ingest": ("cubeloom.pipeline.chunks._overwrite", 2),
    "statistics": (f"{JOURNAL}.add_statistics", 2),
    "steps": (f"{JOURNAL}.add_block", 3),
    "hashes": ("cubeloom.pipeline.store._verify_chunks", 1),
    "publishing": ("cubeloom.pipeline.store.publish", 1),
    "quicklooks": ("cubeloom.workflows.scene_task.write_quicklooks", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_in_a_phase(phase, two, expected, tmp_path):
    at, nth = PHASES[phase]
    out = tmp_path / "out"
    with two.nursery.watching(out):
        stopped = two.run(out, "--scenes", 1, fault=Fault(at=at, nth=nth, number=signal.SIGTERM))
        assert stopped.code == 143, stopped.said
        assert "stopped by SIGTERM" in stopped.said
        assert "Traceback" not in stopped.said
        found = read_status(out)
        assert set(found.counts()) <= {"aborted", "succeeded"}
        assert found.counts()["aborted"] >= 1
        assert not found.running
        assert two.run(out).code == 0
    expected.holds(two, out)


def test_a_stop_after_the_last_scene_still_makes_the_index(one, expected, tmp_path):
    out = tmp_path / "out"
    stopped = one.run(out, fault=Fault(at="cubeloom.workflows.run.write_index", number=signal.SIGTERM))
    assert stopped.code == 0, stopped.said
    expected.holds(one, out)
