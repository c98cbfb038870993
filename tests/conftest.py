"""Fixtures for all tests."""

import hashlib
import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.pipeline.scene import (
    QUALITY_FLAGS,
    Bands,
    SceneSpec,
    cube_variable,
    quality_variable,
    scene_from,
    spec_of,
)

ROOT = Path(__file__).resolve().parents[1]

NEVER_SKIPPED = ("tests/faults/", "remotes", "cluster", "prefect", "outlet", "train_denoiser")
"""Parts of the names of tests that need an extra; with CUBELOOM_ALL_EXTRAS=1, as in CI, skipping one is a failure."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session where a test was skipped that must not be."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("CUBELOOM_ALL_EXTRAS") != "1":
        return
    skipped = [one.nodeid for one in reporter.stats.get("skipped", []) if any(p in one.nodeid for p in NEVER_SKIPPED)]
    if skipped:
        reporter.write_line(f"skipped, though all extras should be there: {', '.join(skipped)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Let no test speak with another machine: sockets of Python connect to this one, and other names are not looked up.

    What fails is the test, whatever the code makes of errors. Compiled clients (obstore) do not pass here.
    """
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.type == socket.SOCK_STREAM and self.family != socket.AF_UNIX and not _is_here(address[0]):
            pytest.fail(f"a test connects to {address}; tests may use loopback alone")
        connect(self, address)

    def look_up_here(host: Any, *arguments: Any, **options: Any) -> Any:
        if host is not None and not _is_address(host) and not _is_here(host):
            pytest.fail(f"a test looks up {host!r}; tests may use loopback alone")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", look_up_here)
        yield


def _is_here(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if _is_address(name):
        return name == "::1" or name.startswith("::ffff:127.") or (":" not in name and socket.inet_aton(name)[0] == 127)
    return name in ("", "localhost", socket.gethostname())


def _is_address(host: object) -> bool:
    """Whether a host is an address, also in the forms of old such as `127.1`."""
    name = host.decode() if isinstance(host, bytes) else str(host)
    try:
        if ":" in name:
            socket.inet_pton(socket.AF_INET6, name.partition("%")[0])
        else:
            socket.inet_aton(name)
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes beside the checkout; tests that need it skip where it is missing."""
    folder = Path(os.environ.get("CUBELOOM_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the real scenes are not at {folder}; set CUBELOOM_SHARED to the folder that holds data/")
    return folder


def _load(path: Path) -> ModuleType:
    """A module of the tests that is no test; it is not on the import path."""
    spec = importlib.util.spec_from_file_location(f"cubeloom_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stac_server() -> ModuleType:
    """The STAC API on loopback: `with stac_server.StacServer(items, files=folder) as server`."""
    return _load(ROOT / "tests/catalogs/stac_server.py")


@pytest.fixture(scope="session")
def stac_items() -> ModuleType:
    """Items in the providers' shapes: `stac_items.publish_product(folder_of_product, served_folder)` and others."""
    return _load(ROOT / "tests/catalogs/stac_items.py")


@pytest.fixture(scope="session")
def object_server() -> ModuleType:
    """S3 on loopback: `object_server.ObjectServer()`, and `object_server.Link(port)`, a way to it that can fail."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto[server]")
    return _load(ROOT / "tests/object_server.py")


@dataclass(frozen=True)
class Ended:
    """How a call of the command line ended."""

    code: int
    out: str
    err: str


CommandLine = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in this process: call it with its arguments, as strings or paths."""
    from cubeloom.workflows.cli import main

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cubeloom", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return call


SceneMaker = Callable[..., xr.Dataset]


@pytest.fixture(scope="session")
def make_scene() -> SceneMaker:
    """A factory of small Scenes in memory: smooth reflectance with noise, background in one corner."""

    def make(height: int = 300, width: int = 280, bands: int = 12, seed: int = 0, background: int = 40) -> xr.Dataset:
        random = np.random.default_rng(seed)
        spec = SceneSpec(
            scene_id=f"scene-{seed}",
            sensor="EnMAP",
            processing_level="L2A",
            time=datetime(2024, 6, 1, 10, 30, tzinfo=UTC),
            source="memory",
            bands=Bands(
                number=np.arange(1, bands + 1),
                wavelength=np.linspace(420, 2450, bands),
                fwhm=np.full(bands, 2030 / (bands - 1)),
                detector=np.where(np.arange(bands) < bands // 2, "vnir", "swir"),
                good=np.arange(bands) != bands - 2,
                preferred=np.ones(bands, bool),
            ),
            grid=GeoBox((height, width), Affine(30, 0, 500_010, 0, -30, 5_800_020), "EPSG:32633"),
            variables={"reflectance": cube_variable("reflectance"), "quality": quality_variable()},
            measurement="reflectance",
            subject="reflectance",
            attrs={"sun_elevation": 55.0},
        )
        y, x = np.mgrid[:height, :width] / 40
        abundance = np.stack([np.sin(y) ** 2, np.cos(x) ** 2, np.sin(x + y) ** 2])
        spectra = random.uniform(0.05, 0.5, (bands, 3))
        cube = np.tensordot(spectra, abundance, 1) / 2 + random.normal(0, 0.01, (bands, height, width))
        cube[-2] = np.nan
        cube[:, :background, :background] = np.nan
        quality = np.zeros((height, width), np.uint32)
        quality[:background, :background] = QUALITY_FLAGS["background"]
        quality[-20:, -20:] = QUALITY_FLAGS["cloud"]
        return scene_from(spec, {"reflectance": cube.astype(np.float32), "quality": quality})

    return make


@pytest.fixture(scope="session")
def sentinel_scenes(make_scene: SceneMaker) -> Callable[..., tuple[xr.Dataset, xr.Dataset]]:
    """Makes a Sentinel-2 and a Sentinel-1 Scene in memory, on one grid, of their numbers."""
    from cubeloom.pipeline.readers.sentinel1_scene import radar_bands
    from cubeloom.pipeline.readers.sentinel2_bands import NAMES, nominal_bands, scene_bands

    def make(
        reflectance: np.ndarray, sigma0: np.ndarray, quality: np.ndarray | None = None, name: str = ""
    ) -> tuple[xr.Dataset, xr.Dataset]:
        """Of 13 bands (or 12, without cirrus) and VV and VH, `(band, y, x)` each; flags are of Sentinel-2."""
        shape = reflectance.shape[1:]
        names = NAMES if len(reflectance) == len(NAMES) else [band for band in NAMES if band != "B10"]
        clear, like = np.zeros(shape, np.uint32), spec_of(make_scene(*shape, background=0))
        layers = {"S2": clear if quality is None else quality, "S1": clear}
        made = []
        for scene_id, sensor, quantity, bands, cube in (
            ("S2", "Sentinel-2A", "reflectance", scene_bands(nominal_bands(names, "sentinel2a")), reflectance),
            ("S1", "Sentinel-1A", "sigma0", radar_bands(("VV", "VH")), sigma0),
        ):
            spec = replace(
                like,
                scene_id=scene_id + name,
                sensor=sensor,
                bands=bands,
                variables={quantity: cube_variable(quantity), "quality": quality_variable()},
                measurement=quantity,
                subject=quantity,
            )
            made.append(scene_from(spec, {quantity: cube.astype(np.float32), "quality": layers[scene_id]}))
        return made[0], made[1]

    return make


@pytest.fixture(scope="session")
def as_l1c() -> Callable[[Path], None]:
    """Turns a simulated L2A product into one of Level 1C: images flat and native, elements under L1C's names."""
    from cubeloom.pipeline.readers.sentinel2_bands import NATIVE

    def convert(product: Path) -> None:
        document, tile = product / "MTD_MSIL2A.xml", next(product.glob("GRANULE/*/MTD_TL.xml"))
        folder = tile.parent / "IMG_DATA"
        listed = ""
        for step, names in NATIVE.items():
            for name in names:
                (path,) = folder.glob(f"R{step}m/*_{name.replace('B10', 'B09')}_{step}m.jp2")
                stem = f"{path.name[:22]}_{name}"
                shutil.copy(path, folder / f"{stem}.jp2")
                listed += f"<IMAGE_FILE>{folder.relative_to(product) / stem}</IMAGE_FILE>"
        scale = '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
        text = document.read_text(encoding="utf-8").replace("MSIL2A", "MSIL1C")
        text = re.sub(r"<IMAGE_FILE>.*</IMAGE_FILE>", listed, text, flags=re.DOTALL)
        text = re.sub(r"<QUANTIFICATION_VALUES_LIST>.*</QUANTIFICATION_VALUES_LIST>", scale, text, flags=re.DOTALL)
        text = text.replace("BOA_ADD_OFFSET_VALUES_LIST", "Radiometric_Offset_List").replace("BOA_ADD", "RADIO_ADD")
        (product / "MTD_MSIL1C.xml").write_text(text.replace("Level-2A_User", "Level-1C_User"), encoding="utf-8")
        document.unlink()

    return convert


@dataclass(frozen=True)
class SavedModel:
    """Weights on the disk, as the stage `denoise` takes them."""

    model: str
    weights: str


ModelMaker = Callable[..., SavedModel]


@pytest.fixture(scope="session")
def _toy_families() -> None:
    """Networks small enough to reason about; torch is imported for those tests alone that use them."""
    import torch

    from cubeloom.models.network import Network
    from cubeloom.models.registry import register_model

    class Toy(Network):
        """A 3-D convolution, zero beyond the edges, and a share of the tile's mean: local and global context."""

        def __init__(self, in_channels: int, most: int, shared: float) -> None:
            super().__init__()
            self.most, self.shared = most, shared
            self.conv = torch.nn.Conv3d(in_channels, 1, 3, padding=1)

        def forward(self, x, valid=None):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("a batch too large")
            weight = torch.ones_like(x[:, 0, 0]) if valid is None else valid.to(x.dtype)
            assert torch.isfinite(x).all()
            assert (weight.sum((1, 2)) > 0).all()
            mean = (x[:, :1] * weight[:, None, None]).sum((3, 4), keepdim=True) / weight.sum((1, 2))[
                :, None, None, None, None
            ]
            return x[:, :1] - 0.3 * self.conv(x) + self.shared * mean

    class Same(Network):
        """Gives what it gets, and needs a parameter to be saved."""

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor))

        def forward(self, x, valid=None):
            return x[:, :1] * self.factor

    @register_model("toy", defaults=lambda in_channels=1, **_: {"sigma_input": in_channels == 2})
    def toy(in_channels: int = 1, most: int = 99, shared: float = 0.02) -> Network:
        torch.manual_seed(3)
        return Toy(in_channels, most, shared)

    class Labels(Network):
        """Scores of the pixels from a 3 x 3 convolution and the mean spectrum of the tile."""

        def __init__(self, in_channels: int, num_classes: int, shared: float) -> None:
            super().__init__()
            self.shared = shared
            self.conv = torch.nn.Conv2d(in_channels, num_classes, 3, padding=1)

        def forward(self, x, valid=None):
            assert torch.isfinite(x).all()
            weight = torch.ones_like(x[:, 0]) if valid is None else valid.to(x.dtype)
            assert (weight.sum((1, 2)) > 0).all()
            mean = (x * weight[:, None]).sum((2, 3), keepdim=True) / weight.sum((1, 2))[:, None, None, None]
            return self.conv(x + self.shared * mean)

    class Maps(Network):
        """Features of two by two pixels, as a backbone gives them."""

        def __init__(self, in_channels: int) -> None:
            super().__init__()
            self.levels = [SimpleNamespace(channels=size, stride=stride) for size, stride in ((in_channels, 1), (5, 2))]
            self.conv = torch.nn.Conv2d(in_channels, 5, 2, 2)

        def features(self, x, indices):
            return [[x, self.conv(x)][index] for index in indices]

    @register_model("maps", defaults=lambda **_: {"task": "embed"})
    def maps(in_channels: int = 7) -> Network:
        torch.manual_seed(6)
        return Maps(in_channels)

    @register_model("labels", defaults=lambda **_: {"task": "segment"})
    def labels(in_channels: int = 7, num_classes: int = 3, shared: float = 0.2) -> Network:
        torch.manual_seed(5)
        return Labels(in_channels, num_classes, shared)

    @register_model("same")
    def same(factor: float = 1.0) -> Network:
        return Same(factor)


LabelMaker = Callable[..., str]


@pytest.fixture
def save_labels(_toy_families: None, tmp_path: Path) -> LabelMaker:
    """Save weights of a network that classifies the pixels of a Scene, with a card for its good bands; their path.

    `settings` go to the network, everything else to the card.
    """
    from cubeloom.models.cards import Card, CardClass, InputBands
    from cubeloom.models.registry import create_model, save_model

    classes = (
        CardClass(value=2, name="low vegetation", colour="#00aa00"),
        CardClass(value=5, name="water", colour="#0000aa"),
        CardClass(value=9, name="soil", colour="#aa5500"),
    )

    def save(scene: xr.Dataset, family: str = "labels", settings: dict[str, Any] | None = None, **fields: Any) -> str:
        good = np.flatnonzero(scene.good.values)
        bands = InputBands(
            numbers=tuple(scene.band.values[good].tolist()),
            wavelengths_nm=tuple(scene.wavelength.values[good]),
            fwhm_nm=tuple(scene.fwhm.values[good]),
        )
        shape = {"in_channels": int(good.size), **({} if family == "maps" else {"num_classes": 3}), **(settings or {})}
        told = {"task": "segment", "units": "1", "variable": "reflectance", "tile": 64, "halo": 12, "multiple": 4}
        seen = {"bands": good.size, "input_bands": bands, "mean": (0.2,) * good.size, "std": (0.1,) * good.size}
        card = Card(
            name=f"{family}.x",
            family=family,
            tag="x",
            settings=shape,
            **{**told, **seen, "classes": () if family == "maps" else classes, **fields},
        )
        path = tmp_path / f"{family}.safetensors"
        save_model(create_model(family, **shape), path, card)
        return str(path)

    return save


@pytest.fixture
def save_toy(_toy_families: None, tmp_path: Path) -> ModelMaker:
    """Save a toy network's weights with a card: `settings` go to the network, everything else to the card."""
    from cubeloom.models.cards import Card
    from cubeloom.models.registry import create_model, save_model

    def save(family: str = "toy", settings: dict[str, Any] | None = None, **fields: Any) -> SavedModel:
        settings = settings or {}
        tag = "t" + hashlib.sha256(repr((family, settings, fields)).encode()).hexdigest()[:8]
        told = {"bands": 7, "tile": 64, "halo": 12, "multiple": 4, "sigma_input": settings.get("in_channels") == 2}
        card = Card(name=f"{family}.{tag}", family=family, tag=tag, settings=settings, **{**told, **fields})
        path = tmp_path / f"{tag}.safetensors"
        save_model(create_model(family, **settings), path, card)
        return SavedModel(family, str(path))

    return save
