"""A SIGKILL at moments that nobody has named: before changes of files, at random times, in the middle of a write."""

import random
import re
import signal
import time

import pytest

from .conftest import build_case
from .driver import Fault, Nursery

NETWORK = """
name: tiled
steps:
  - mask
  - denoise: {method: network, model: hsdt_s.enmap}
"""


def rerun(case, expected, out):
    again = case.run(out, "--again")
    assert again.code == 0, again.said
    expected.holds(case, out)


@pytest.fixture(scope="module")
def operations(one, tmp_path_factory):
    """How many changes of files an undisturbed run makes."""
    out = tmp_path_factory.mktemp("counted") / "out"
    said = one.run(out, fault=Fault(operation=-1, below=str(out))).said
    (number,) = re.findall(r"file operations: (\d+)", said)
    assert int(number) > 100
    return int(number)


@pytest.mark.parametrize("share", [(n + 0.5) / 10 for n in range(10)], ids="{:.2f}".format)
def test_a_kill_before_a_change_of_a_file(share, operations, one, expected, tmp_path):
    out = tmp_path / "out"
    fault = Fault(operation=1 + round(share * (operations - 2)), below=str(out))
    with one.nursery.watching(out):
        assert one.run(out, fault=fault).code == -signal.SIGKILL
        rerun(one, expected, out)


@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_moments_one_after_the_other(seed, two, expected, tmp_path):
    """Up to three kills; a run that was quicker has nothing left to lose."""
    chance, out = random.Random(seed), tmp_path / "out"
    with two.nursery.watching(out):
        for _ in range(3):
            child = two.start(out, "--again")
            time.sleep(chance.uniform(0.02, 0.7))
            child.send(signal.SIGKILL)
            child.wait()
        rerun(two, expected, out)


@pytest.mark.parametrize("largest_file", [20, 700, 3_000, 9_000, 40_000])
def test_a_death_in_the_middle_of_a_write(largest_file, one, expected, tmp_path):
    """The first file that gets longer than so many bytes ends there: a chunk, a document, the ledger's."""
    out = tmp_path / "out"
    with one.nursery.watching(out):
        torn = one.run(out, fault=Fault(largest_file=largest_file, torn=True))
        assert torn.code == -signal.SIGXFSZ
        rerun(one, expected, out)


@pytest.fixture
def with_torch(tmp_path_factory):
    """Children that need not import PyTorch each by itself; not all have it, for it makes a process large."""
    with Nursery(tmp_path_factory.mktemp("torch"), "torch", "cubeloom.models.registry") as started:
        yield started


def test_a_kill_among_the_tiles_of_a_network(with_torch, expected, tmp_path_factory, tmp_path):
    case = build_case(with_torch, tmp_path_factory.mktemp("case"), NETWORK, height=100, width=40)
    out = tmp_path / "out"
    at = "cubeloom.workflows.ledger.LedgerJournal.add_tiles"
    assert case.run(out, fault=Fault(at=at, when="after")).code == -signal.SIGKILL
    rerun(case, expected, out)
