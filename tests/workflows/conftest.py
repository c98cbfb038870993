"""Simulated catalogs, made once, and a run over one of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cubeloom.catalogs.items import CatalogItem, read_catalog
from cubeloom.pipeline.simulate import SimulatedProduct, simulate_catalog, simulate_scene
from cubeloom.workflows.run import RunResult, run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import Workflow, load_workflow
from cubeloom.workflows.summary import report_run


@dataclass(frozen=True)
class Delivery:
    """Simulated products in a folder, and the catalog that a scan made of it."""

    folder: Path
    products: list[SimulatedProduct]
    catalog: Path

    @property
    def items(self) -> list[CatalogItem]:
        return read_catalog(self.catalog)


@dataclass(frozen=True)
class Published:
    """A finished run over a delivery, with its report."""

    delivery: Delivery
    out: Path
    result: RunResult
    report: Path


@pytest.fixture(scope="session")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Three L2A scenes of all bands in three landscapes. Not to be changed."""
    folder = tmp_path_factory.mktemp("delivery")
    products = simulate_catalog(folder / "in", 3, height=150, width=140, seed=5)
    return Delivery(folder / "in", products, scan(folder / "in", folder / "catalog").catalog)


@pytest.fixture(scope="session")
def published(delivery: Delivery, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The delivery after a run of enmap_l2a. Its products are not to be changed."""
    out = tmp_path_factory.mktemp("published") / "out"
    result = run(load_workflow("enmap_l2a"), delivery.items, out)
    return Published(delivery, out, result, report_run(result))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Three scenes of few bands, which run in no time. Not to be changed; `copied` gives one that may be."""
    folder = tmp_path_factory.mktemp("small")
    products = simulate_catalog(folder / "in", 3, height=150, width=140, n_vnir=6, n_swir=8, seed=20)
    return Delivery(folder / "in", products, scan(folder / "in", folder / "catalog").catalog)


@pytest.fixture
def copied(small: Delivery, tmp_path: Path) -> Delivery:
    """The small delivery, to do harm to."""
    shutil.copytree(small.folder, tmp_path / "in")
    return Delivery(tmp_path / "in", small.products, scan(tmp_path / "in", tmp_path / "catalog").catalog)


@pytest.fixture(scope="session")
def all_levels(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """The same ground as L1B, L1C and L2A."""
    folder = tmp_path_factory.mktemp("levels")
    size: dict[str, Any] = {"height": 60, "width": 50, "n_vnir": 6, "n_swir": 8}
    products = [simulate_scene(folder / "in", level=level, **size) for level in ("L1B", "L1C", "L2A")]
    return Delivery(folder / "in", products, scan(folder / "in", folder / "catalog").catalog)


WorkflowMaker = Callable[..., Workflow]


@pytest.fixture
def workflow(tmp_path: Path) -> WorkflowMaker:
    """A workflow called `test` with the given steps, in YAML."""

    def make(steps: str = "[mask]", settings: tuple[str, ...] = (), **fields: str) -> Workflow:
        path = tmp_path / "test.yaml"
        lines = [f"{key}: {value}" for key, value in fields.items()]
        path.write_text("\n".join(["name: test", f"steps: {steps}", *lines]))
        return load_workflow(str(path), settings)

    return make


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, time of change and size of every file below a folder."""
    files = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(path.relative_to(folder)): (s.st_ino, s.st_mtime_ns, s.st_size) for path, s in files.items()}


@pytest.fixture(name="snapshot")
def snapshot_function() -> Callable[[Path], dict[str, tuple[int, int, int]]]:
    """`snapshot`, which tells whether anything below a folder was written."""
    return snapshot
