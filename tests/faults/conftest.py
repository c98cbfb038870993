"""A tiny scene in a catalog, its product as an undisturbed run makes it, and children that meet faults."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.workflows.scan import scan

from .driver import NONE, Child, Fault, Nursery
from .reader import breaches, contents, leftovers

CHAIN = """
name: chain
steps:
  - mask
  - destripe
  - denoise: {method: subspace}
"""


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Forks a child for every run."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@dataclass(frozen=True)
class Case:
    """A catalog and a workflow, run by children."""

    nursery: Nursery
    catalog: Path
    workflow: Path

    def arguments(self, out: Path, *more: object) -> tuple[object, ...]:
        """The command that runs all of it."""
        return "run", self.workflow, "--catalog", self.catalog, "--out", out, "--workers", 2, *more

    def run(self, out: Path, *more: object, fault: Fault = NONE) -> Child:
        """Run it to its end."""
        return self.nursery.run(*self.arguments(out, *more), fault=fault)

    def start(self, out: Path, *more: object, fault: Fault = NONE) -> Child:
        """Begin to run it."""
        return self.nursery.start(*self.arguments(out, *more), fault=fault)


def build_case(nursery: Nursery, folder: Path, chain: str = CHAIN, count: int = 1, **options: int) -> Case:
    """Simulated scenes in a catalog below `folder`."""
    size = {"height": 520, "width": 24, "n_vnir": 4, "n_swir": 4} | options
    for seed in range(count):
        simulate_scene(folder / "in", seed=seed, **size)
    workflow = folder / "chain.yaml"
    workflow.write_text(chain)
    return Case(nursery, scan(folder / "in", folder / "catalog").catalog, workflow)


@pytest.fixture(scope="session")
def one(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One scene of five chunks and an overview."""
    return build_case(nursery, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def two(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two scenes of one block."""
    return build_case(nursery, tmp_path_factory.mktemp("two"), count=2, height=40, width=24)


@pytest.fixture(scope="session")
def three(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three scenes of one block."""
    return build_case(nursery, tmp_path_factory.mktemp("three"), count=3, height=40, width=24)


@pytest.fixture
def make_case(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Makes a case whose files a test may harm; options as those of `simulate_scene`."""

    def make(chain: str = CHAIN, count: int = 1, **options: int) -> Case:
        return build_case(nursery, tmp_path_factory.mktemp("case"), chain, count, **options)

    return make


class Expected:
    """What an undisturbed run makes of a case; made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, Path] = {}

    def out(self, case: Case) -> Path:
        """Its output directory; not to be changed."""
        if case.workflow not in self._known:
            out = self.folder / str(len(self._known))
            child = case.run(out)
            assert child.code == 0, child.said
            self._known[case.workflow] = out
        return self._known[case.workflow]

    def copy(self, case: Case, out: Path) -> Path:
        """A copy of it at `out`, to be changed."""
        return Path(shutil.copytree(self.out(case), out))

    def holds(self, case: Case, out: Path) -> None:
        """Assert that an output directory stands as if nothing had ever happened, and that nothing is left over."""
        assert not list(breaches(out))
        assert contents(out) == contents(self.out(case))
        assert not leftovers(out)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The products of undisturbed runs."""
    return Expected(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def _sealing(one: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory whose run was killed when all blocks stood; not to be changed."""
    out = tmp_path_factory.mktemp("sealing") / "out"
    killed = one.run(out, fault=Fault(at="cubeloom.pipeline.store.seal"))
    assert killed.code == -signal.SIGKILL, killed.said
    return out


@pytest.fixture
def sealing(_sealing: Path, tmp_path: Path) -> Path:
    """A copy of it: for a run over `one` that begins here, what is left is to seal and to publish."""
    return Path(shutil.copytree(_sealing, tmp_path / "out"))
