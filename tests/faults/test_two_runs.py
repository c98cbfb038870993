"""Two runs on one output directory, leases of other machines, and clocks that jump."""

import re
import signal
import sqlite3

import pytest

from cubeloom.catalogs.items import read_catalog
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import LEASE_S
from cubeloom.workflows.status import read_status

from .driver import Fault

DAY = 86_400.0
AT_SEALING = "cubeloom.pipeline.store.seal"


@pytest.fixture
def held(one, tmp_path):
    """A run that holds `out`, stopped in the middle."""
    out = tmp_path / "out"
    child = one.start(out, fault=Fault(at=AT_SEALING, number=signal.SIGSTOP))
    child.wait_stopped()
    return out, child


class TestTwoRuns:
    def test_the_second_leaves_and_changes_nothing(self, held, one, expected):
        out, first = held
        second = one.run(out)
        assert second.code == 75
        assert f"another run (process {first.pid})" in second.said
        assert read_status(out).running
        first.send(signal.SIGCONT)
        assert first.wait() == 0, first.said
        expected.holds(one, out)

    def test_a_waiting_one_finds_nothing_to_do(self, held, one, expected):
        out, first = held
        second = one.start(out, "--wait", 60)
        with pytest.raises(AssertionError, match="still at it"):
            one.start(out, "--wait", 60).wait(0.3)
        first.send(signal.SIGCONT)
        assert first.wait() == 0, first.said
        assert second.wait() == 0, second.said
        assert "1 unchanged" in second.said
        expected.holds(one, out)

    def test_a_waiting_one_goes_on_where_the_first_was_killed(self, held, one, expected):
        out, first = held
        second = one.start(out, "--wait", 60)
        first.send(signal.SIGKILL)
        assert second.wait() == 0, second.said
        assert re.search(r"\d of them from an earlier run", second.said)
        expected.holds(one, out)

    def test_many_at_once_make_one_product(self, one, expected, tmp_path):
        out = tmp_path / "out"
        with one.nursery.watching(out):
            children = [one.start(out, "--wait", 60) for _ in range(4)]
            assert [child.wait() for child in children] == [0] * 4
        assert sorted("1 published" in child.said for child in children) == [False, False, False, True]
        expected.holds(one, out)


class TestLeases:
    def test_a_claim_of_another_machine_holds_until_its_lease_ends(self, one, expected, tmp_path):
        out = tmp_path / "out"
        killed = one.run(out, fault=Fault(at=AT_SEALING, host="elsewhere"))
        assert killed.code == -signal.SIGKILL
        refused = one.run(out)
        assert refused.code == 75
        assert "on elsewhere holds" in refused.said
        assert one.run(out, fault=Fault(clock_s=(LEASE_S - 30,))).code == 75
        later = one.run(out, fault=Fault(clock_s=(LEASE_S + 1,)))
        assert later.code == 0, later.said
        expected.holds(one, out)

    def test_a_machine_that_slept_over_its_lease_spoils_nothing(self, one, expected, tmp_path):
        """Its lock reaches nobody (as on a network file system), another one has made the product meanwhile."""
        out = tmp_path / "out"
        asleep = one.start(out, fault=Fault(at=AT_SEALING, number=signal.SIGSTOP, host="elsewhere"))
        asleep.wait_stopped()
        (out / ".cubeloom" / "lock").unlink()
        with one.nursery.watching(out):
            other = one.run(out, fault=Fault(clock_s=(LEASE_S + 1,)))
            assert other.code == 0, other.said
            asleep.send(signal.SIGCONT)
            asleep.wait()
            assert one.run(out).code == 0
        expected.holds(one, out)


class TestClocks:
    @pytest.mark.parametrize("first_s", [-400 * DAY, 400 * DAY])
    def test_a_clock_that_is_set_between_two_runs(self, first_s, one, expected, tmp_path):
        out = tmp_path / "out"
        killed = one.run(out, fault=Fault(at=AT_SEALING, clock_s=(first_s,)))
        assert killed.code == -signal.SIGKILL
        again = one.run(out)
        assert again.code == 0, again.said
        expected.holds(one, out)
        assert "1 unchanged" in one.run(out, fault=Fault(clock_s=(-first_s,))).said

    def test_a_clock_that_jumps_while_a_run_works(self, three, expected, tmp_path):
        out = tmp_path / "out"
        wild = three.run(out, fault=Fault(clock_s=(0.0, -DAY, 3600.0, -5.0, 40 * DAY, -7.0) * 50))
        assert wild.code == 0, wild.said
        expected.holds(three, out)

    def test_unfinished_work_is_dropped_a_week_after_its_run_was_found_dead(self, three, expected, tmp_path):
        out = tmp_path / "out"
        first, *_, last = (item.id for item in read_catalog(three.catalog))
        assert three.run(out, "--items", first, fault=Fault(at=AT_SEALING)).code == -signal.SIGKILL
        for days, stays in ((0, True), (6, True), (8, False)):
            assert three.run(out, "--items", last, fault=Fault(clock_s=(days * DAY,))).code == 0
            assert bool(Layout(out).stagings()) == stays
            assert (rows_of(out, "chunk") > 0) == stays
        assert three.run(out).code == 0
        expected.holds(three, out)


def rows_of(out, table):
    with sqlite3.connect(f"file:{out / '.cubeloom/ledger.sqlite'}?mode=ro", uri=True) as db:
        (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    db.close()
    return count
