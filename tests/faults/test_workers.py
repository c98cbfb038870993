"""Workers of a cluster that die in the middle of a run: the same bytes, nobody sees a part."""

import signal

import psutil

from .driver import Fault


def workers_of(child):
    """The processes that compute, one for each worker."""
    processes = psutil.Process(child.pid).children(recursive=True)
    return [process for process in processes if "spawn_main" in " ".join(process.cmdline())]


def test_workers_that_die_change_no_byte(three, expected, tmp_path):
    out = tmp_path / "out"
    point = Fault(at="cubeloom.workflows.ledger.LedgerJournal.add_block", nth=2, number=signal.SIGSTOP)
    with three.nursery.watching(out):
        child = three.start(out, "--scheduler", "processes", fault=point)
        child.wait_stopped()
        workers = workers_of(child)
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        child.send(signal.SIGCONT)
        assert child.wait(120) == 0, child.said
    assert "3 published" in child.said
    expected.holds(three, out)


def test_a_run_that_is_killed_takes_its_workers_with_it(three, expected, tmp_path):
    out = tmp_path / "out"
    point = Fault(at="cubeloom.workflows.ledger.LedgerJournal.add_block", nth=3, number=signal.SIGSTOP)
    child = three.start(out, "--scheduler", "processes", fault=point)
    child.wait_stopped()
    workers = workers_of(child)
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers without a run"
    again = three.run(out)
    assert again.code == 0, again.said
    expected.holds(three, out)
