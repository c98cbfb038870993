"""Simulated catalogs, made once, and a run over one of them."""

import importlib.util
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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
def earth_data() -> ModuleType:
    """Writers of small sets in SpectralEarth's layout; tests are no package, so by its file."""
    spec = importlib.util.spec_from_file_location("earth_data", Path(__file__).with_name("earth_data.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Two L2A scenes of all bands in two landscapes. Not to be changed."""
    folder = tmp_path_factory.mktemp("delivery")
    products = simulate_catalog(folder / "in", 2, height=132, width=48, seed=5)
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """Three scenes of one chunk and few bands: takes the place of `small` in modules that make many runs."""
    folder = tmp_path_factory.mktemp("tiny")
    products = simulate_catalog(folder / "in", 3, height=48, width=40, n_vnir=6, n_swir=8, seed=20)
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


@dataclass
class Archive:
    """A STAC API on loopback with the scenes of the small delivery, laid out as DLR has them.

    Attributes:
        server: a `StacServer`.
        products: folders of the scenes; none is offered before `offer` is called.
    """

    server: Any
    products: list[Path]
    publish: Callable[..., dict[str, Any]]

    def offer(self, number: int, updated: str, **changes: Any) -> dict[str, Any]:
        """List a scene, changed at a moment; in place of what was listed of it before."""
        item = self.publish(self.products[number], self.server.files, cog=False, updated=updated, **changes)
        self.server.items = [known for known in self.server.items if known["id"] != item["id"]] + [item]
        return item

    def file(self, item: dict[str, Any], key: str = "image") -> Path:
        """The served file of an asset, free to be changed."""
        path: Path = self.server.files / item["assets"][key]["href"].removeprefix("@server@/files/")
        data = path.read_bytes()
        path.unlink()  # it is a link to the product's
        path.write_bytes(data)
        return path

    def fetched(self) -> int:
        """How many times a file was asked for."""
        count: int = self.server.count("/files/", "GET")
        return count


@dataclass
class Forked:
    """A process that began as a copy of this one, so that nothing is imported again.

    Attributes:
        process: with its `pid`, and its `exitcode` once it has ended: minus the signal's number if one ended it.
        written: file of what it says on stderr.
    """

    process: Any
    written: Path

    def end(self, limit_s: float = 60) -> int:
        """Wait for its end; its exit code."""
        self.process.join(limit_s)
        assert self.process.exitcode is not None, f"it has not ended within {limit_s} s: {self.errors}"
        code: int = self.process.exitcode
        return code

    @property
    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self.written.read_text()


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Runs a function in a process of its own, `forked(function, *arguments)`, which does not outlive the test."""
    begun: list[Forked] = []

    def run_there(written: Path, work: Callable[..., None], *arguments: object) -> None:
        os.dup2(os.open(written, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = sys.__stderr__
        work(*arguments)

    def begin(work: Callable[..., None], *arguments: object) -> Forked:
        written = tmp_path / f"stderr_{len(begun)}.txt"
        context = multiprocessing.get_context("fork")
        begun.append(Forked(context.Process(target=run_there, args=(written, work, *arguments)), written))
        begun[-1].process.start()
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.join()


@pytest.fixture
def archive(
    small: Delivery, stac_server: Any, stac_items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Archive]:
    """An archive that lists nothing yet; this process may reach it, and does not wait long when it is busy."""
    from cubeloom.catalogs.access import Access

    monkeypatch.setenv("CUBELOOM_HOSTS", "http://127.0.0.1")
    monkeypatch.setenv("CUBELOOM_PRIVATE", "1")
    monkeypatch.setitem(Access.__init__.__kwdefaults__ or {}, "pause", 0.01)
    products = [small.folder / product.scene_id for product in small.products]
    with stac_server.StacServer([], files=tmp_path / "served") as server:
        yield Archive(server, products, stac_items.publish_product)
