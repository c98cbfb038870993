"""Valid documents of every kind that Cubeloom reads, made by its own simulator and writers."""

import atexit
import io
import json
import re
import shutil
import tarfile
import zipfile
from datetime import UTC, datetime
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from xml.etree import ElementTree  # noqa: TID251 - to cut documents down, not to read foreign ones

import numpy as np
import rasterio

from cubeloom.pipeline.simulate import simulate_scene

SHAPE = {"height": 24, "width": 20, "n_vnir": 3, "n_swir": 4, "seed": 3}


@cache
def workplace() -> Path:
    """The folder that everything is made in, removed when the process ends."""
    folder = Path(mkdtemp(prefix="cubeloom-seeds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def product(level: str) -> Path:
    """The folder of a simulated product."""
    return simulate_scene(workplace() / level, level=level, **SHAPE).path


def metadata(level: str) -> bytes:
    """Its METADATA.XML."""
    (path,) = product(level).glob("*METADATA.XML")
    return path.read_bytes()


@cache
def skeleton(level: str) -> bytes:
    """The same without the elements that the reader never names, so that changes meet what is read."""
    from cubeloom.pipeline.readers import enmap_metadata

    named = set(re.findall(r"\w+", Path(enmap_metadata.__file__).read_text())) - {"name"}
    root = ElementTree.fromstring(metadata(level))
    models = root.find("product/navigation/RPC")
    for band in list(models)[1:] if models is not None else []:
        models.remove(band)
    for parent in list(root.iter()):
        for child in list(parent):
            if not (len(child) or child.tag in named or "_" in child.tag):
                parent.remove(child)
    for parent in list(root.iter()):
        for child in [child for child in parent if not (len(child) or child.text)]:
            parent.remove(child)
    return ElementTree.tostring(root)


@cache
def safe(sensor: str) -> Path:
    """The folder of a simulated product of `sentinel2` or `sentinel1`."""
    from cubeloom.pipeline.simulate.places import simulate_places

    made = simulate_places(workplace() / sensor, 1, sensors=(sensor,), seed=3, height=24, width=20)
    return made[sensor][0].path


def safe_document(sensor: str, place: str) -> bytes:
    """One of its documents."""
    return next(safe(sensor).glob(place)).read_bytes()


@cache
def eopf() -> Path:
    """A store of EOPF's layout, with a band a grid."""
    import zarr

    path = workplace() / "eopf.zarr"
    root = zarr.create_group(path, zarr_format=2)
    root.attrs.update(
        {
            "stac_discovery": {
                "id": "S2A_MSIL2A_20240601T101031_N0511_R022_T33UUP_20240601T150000",
                "properties": {
                    "datetime": "2024-06-01T10:10:31Z",
                    "platform": "sentinel-2a",
                    "proj:code": "EPSG:32633",
                    "eo:cloud_cover": 3.0,
                    "sat:relative_orbit": 22,
                    "grid:code": "MGRS-33UUP",
                    "processing:level": "L2A",
                },
            },
            "other_metadata": {"band_description": {"b04": {"central_wavelength": 664.6, "wavelength_min": 650,
                "spectral_response_step": 1, "spectral_response_values": " ".join(["0.1", "0.9"] * 15)}}},
        }
    )  # fmt: skip
    for name, step in (("b04", 10), ("b11", 20), ("b01", 60)):
        side, group = 240 // step, f"measurements/reflectance/r{step}m"
        _array(root, f"{group}/{name}", np.full((side, side), 1500, np.uint16), scale_factor=0.0001, add_offset=-0.1)
        _array(root, f"{group}/x", 300000 + step // 2 + step * np.arange(side))
        _array(root, f"{group}/y", 5000040 - step // 2 - step * np.arange(side))
    return path


def _array(root: Any, name: str, data: np.ndarray, **attrs: float) -> None:
    made = root.create_array(name, shape=data.shape, chunks=data.shape, dtype=data.dtype)
    made[:] = data
    dims = ["y", "x"] if data.ndim == 2 else [name.rpartition("/")[2]]
    made.attrs.update({"_ARRAY_DIMENSIONS": dims, **attrs})


@cache
def cogs() -> Path:
    """The folder of an item of Sentinel-2 and a file of a band of each grid, as Planetary Computer has it."""
    from rasterio.transform import from_origin

    folder, assets = workplace() / "cogs", {}
    folder.mkdir()
    for name, step in (("B04", 10), ("B11", 20), ("B01", 60), ("SCL", 20)):
        side, kind = 240 // step, "uint8" if name == "SCL" else "uint16"
        profile = {"count": 1, "height": side, "width": side, "dtype": kind, "crs": "EPSG:32633"}
        place = from_origin(300000, 5000040, step, step)
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", transform=place, **profile) as dataset:
            dataset.write(np.full((side, side), 4 if name == "SCL" else 1500, kind), 1)
        stated = {} if name == "SCL" else {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]}
        assets[name] = {"href": f"./{name}.tif", "roles": ["data"], **stated}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2B_33UUP_20240601_0_L2A",
        "collection": "sentinel-2-l2a",
        "geometry": None,
        "properties": {
            "datetime": "2024-06-01T10:10:31.024Z",
            "platform": "sentinel-2b",
            "eo:cloud_cover": 3.0,
            "sat:relative_orbit": 22,
            "s2:mgrs_tile": "33UUP",
            "s2:processing_baseline": "05.11",
        },
        "assets": assets,
    }
    (folder / "item.json").write_text(json.dumps(item))
    return folder


@cache
def radar_cogs() -> Path:
    """The folder of an item of Sentinel-1 and its two files, as Planetary Computer has RTC."""
    from rasterio.transform import from_origin

    folder, assets = workplace() / "radar", {}
    folder.mkdir()
    profile = {"driver": "GTiff", "count": 1, "height": 6, "width": 8, "dtype": "float32", "crs": "EPSG:32633"}
    for name in ("vv", "vh"):
        with rasterio.open(folder / f"{name}.tif", "w", transform=from_origin(3e5, 5e6, 10, 10), **profile) as dataset:
            dataset.write(np.full((6, 8), 0.1, "float32"), 1)
        assets[name] = {"href": f"./{name}.tif", "roles": ["data"], "sar:polarizations": [name.upper()]}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S1A_IW_GRDH_1SDV_20220621T052352_rtc",
        "collection": "sentinel-1-rtc",
        "geometry": {"type": "Polygon", "coordinates": [[[14, 52], [15, 52], [15, 53], [14, 52]]]},
        "properties": {
            "datetime": "2022-06-21T05:24:05.120Z",
            "platform": "SENTINEL-1A",
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 168,
            "sar:instrument_mode": "IW",
            "sar:looks_range": 5,
            "sar:looks_azimuth": 1,
        },
        "assets": assets,
    }
    (folder / "item.json").write_text(json.dumps(item))
    return folder


@cache
def product_zip() -> bytes:
    """A product as ZIP; its rasters are the same in every copy."""
    return simulate_scene(workplace() / "zip", container="zip", **SHAPE).path.read_bytes()


@cache
def order() -> bytes:
    """An order as tar.gz, which holds the ZIP, and one that holds the files of the product itself."""
    return simulate_scene(workplace() / "order", container="tar.gz", **SHAPE).path.read_bytes()


@cache
def plain_order() -> bytes:
    """An order whose product is not in a ZIP, in the other tar format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(product("L2A").iterdir()):
            archive.add(path, f"order/ä/{path.name}")
    return buffer.getvalue()


LIBRARY = Path(__file__).resolve().parents[2] / "workflows" / "library"

EVERY_STEP = b"""name: all_steps
description: "every stage with parameters: \xc3\xa4, 'quoted', and so on"
sensors: [EnMAP]
levels: [L2A, L1C]
open: {detector: vnir}
steps:
  - mask: {dilate: 2}
  - select_bands: {wavelengths: [[400, 1300], [1500, 1780.5]]}
  - destripe
  - denoise: {method: subspace, rank: 5}
  - superres: {method: bicubic, scale: 2}
publish: [reflectance, denoised]
"""

CLASSIFIER = b"""kind: classifier
scenes:
  - {scene: SCENE, labels: LABELS.tif}
  - scene: SCENE_2
    labels: FIELDS.gpkg
    field: landcover
classes:
  1: {name: roof, colour: "#c0392b"}
  2: {name: pavement}
  6: {name: water, colour: "#2471a3"}
variable: denoised
steps: [mask, {denoise: {method: subspace}}]
features: [spectrum, shape, derivative]
estimator: {type: logistic, params: {C: 1.5}, search: {C: [0.3, 1]}, pca: 5}
split: {method: blocks, block_px: 16, test_fraction: 0.3, buffer_px: 1, swap: false, seed: 0}
balance: 0.5
max_per_class: 500
"""

DENOISER = b"""kind: denoiser
model: hsdt_s
settings: {in_channels: 2}
weights: builtin
transform: eigenimages
cubes: [CUBE.mat, {path: SCENE, project: true, key: ssp, shape: [3, 4], options: {scale: "0.1"}, weight: 2}]
scenes: {count: 16, height: 192, width: 192, seed: 1000}
mixtures:
  images: [{files: [A.tif, B.tif], bands: [1, 2]}]
  size_px: [80, 128]
  cube_bands: [16, 32]
noise: {blind: 3, noniid: 3, faint: 2}
strength: [0.5, 2.0]
patch_px: [32, 64]
voxels: 65536
learning_rate: 2.0e-3
validation:
  cubes: [OTHER.mat]
  noise: [gaussian50]
  every: 1000
about: {licence: Apache-2.0, tile: 256, halo: 24}
"""


def workflows() -> list[bytes]:
    """Workflows as YAML."""
    return [EVERY_STEP, *(path.read_bytes() for path in _library(recipes=False))]


def recipes() -> list[bytes]:
    """Recipes as YAML."""
    return [CLASSIFIER, DENOISER, *(path.read_bytes() for path in _library(recipes=True))]


def _library(*, recipes: bool) -> list[Path]:
    """The recipes of the library, which have a kind, or its workflows."""
    return [path for path in sorted(LIBRARY.glob("*.yaml")) if (b"\nkind:" in path.read_bytes()) == recipes]


@cache
def deliveries() -> Path:
    """The folder of two simulated products."""
    simulate_scene(workplace() / "deliveries", **SHAPE)
    simulate_scene(workplace() / "deliveries", **{**SHAPE, "seed": 4}, container="zip")
    return workplace() / "deliveries"


@cache
def catalog() -> Path:
    """The folder of a scanned catalog; in it also the item of a published product, and all items as one document."""
    from cubeloom.catalogs.publish import ProductRecord, product_item
    from cubeloom.catalogs.records import BandRecord, ClassRecord, GridRecord, SceneFacts
    from cubeloom.workflows.scan import scan

    folder = scan(deliveries(), workplace() / "catalog").catalog.parent
    commit = folder / "_COMMIT.json"
    commit.write_text("{}")
    time = datetime(2024, 6, 1, 10, 30, tzinfo=UTC)
    corners = ((13.0, 52.3), (13.1, 52.3), (13.1, 52.4), (13.0, 52.4))
    grid = GridRecord("EPSG:32633", (192, 160), (30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0))
    made = ProductRecord(
        item_id="SCENE",
        workflow="denoise",
        identity="12345678" * 8,
        store=folder / "SCENE.zarr",
        commit=commit,
        commit_sha256="12345678" * 8,
        facts=SceneFacts("SCENE", "EnMAP", "L2A", time, corners, grid, cloud_cover=3.0, sun_elevation=57.2),
        bands=(BandRecord("1", 418.416, 6.99), BandRecord("2", 2445.53, 7.5)),
        created=time,
        history=("mask", "denoise"),
        classes=(ClassRecord(1, "low_vegetation", "00ff00"),),
    )
    made.store.mkdir()
    published = product_item(made, folder / "published.json")
    del published["collection"]
    (folder / "published.json").write_text(json.dumps({**published, "links": []}))
    items = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*/*/*.json"))]
    for item in items:
        item["assets"] = {"metadata": {"href": "_COMMIT.json", "file:checksum": f"1220{'ab' * 32}"}}
    collection = {"type": "FeatureCollection", "features": items}
    (folder / "features.json").write_text(json.dumps(collection))
    return folder


def stac_document(place: str) -> list[bytes]:
    """The document at a place of the catalog."""
    return [next(catalog().glob(place)).read_bytes()]


@cache
def api_items() -> tuple[bytes, ...]:
    """Items as the APIs of the known providers answer with."""
    path = Path(__file__).resolve().parents[1] / "catalogs" / "stac_items.py"
    spec = spec_from_file_location("stac_items", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made = (module.dlr_item(), module.earth_search_item(), module.planetary_item(), module.cdse_item())
    return tuple(json.dumps(item).replace("@server@", "https://example.org").encode() for item in made)


def _network() -> dict[str, object]:
    import torch

    torch.manual_seed(0)
    head = {"head.weight": torch.rand(4, 1, 3), "head.bias": torch.rand(4)}
    return {**head, "n": torch.tensor(3), "h": torch.rand(2).half()}


@cache
def safetensors() -> bytes:
    """Weights as safetensors."""
    from safetensors.torch import save

    return save(_network())


@cache
def torch_checkpoint(legacy: bool) -> bytes:
    """A training's checkpoint as `torch.save` writes it, or as it did before version 1.6."""
    import torch

    buffer = io.BytesIO()
    state = {f"module.{key}": value for key, value in _network().items()}
    content = {"epoch": 3, "optimizer": {"state": {0: torch.rand(3)}, "lr": 1e-3}, "state_dict": state}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def cards() -> list[bytes]:
    """Model cards: one shipped, one with every field."""
    from cubeloom.models.cards import Card
    from cubeloom.models.registry import SHIPPED

    full = Card(
        name="hsdt_s.mine",
        family="hsdt_s",
        tag="mine",
        settings={"in_channels": 2, "num_bands": 31, "deep": {"a": [1, None]}},
        sha256="ab" * 32,
        sensor="EnMAP",
        wavelengths_nm=(420.0, 2450.0),
        variable="reflectance",
        units="1",
        training={"steps": 5},
        log="log.csv",
    )
    shipped = next(SHIPPED.glob("*.card.json")).read_bytes()
    return [json.dumps(full.model_dump(mode="json")).encode(), shipped]


@cache
def classifiers() -> tuple[bytes, ...]:
    """Small classifiers of every kind that is trained, as `.skops`."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from cubeloom.models.classifiers import Classifier, MapClass, spectral_features

    random = np.random.default_rng(0)
    wavelengths, labels = np.linspace(450, 2400, 5), np.repeat([1, 2, 7], 20)
    spectra = (labels[:, None] / 10 + random.normal(0, 0.05, (60, 5))).astype(np.float32)
    features = spectral_features(spectra, wavelengths, ("spectrum", "shape"))
    made = []
    for model in (
        LogisticRegression(),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        CalibratedClassifierCV(SVC(), ensemble=False, cv=3),
        RandomForestClassifier(3, max_depth=3, random_state=0),
        HistGradientBoostingClassifier(max_iter=3, max_depth=3, min_samples_leaf=5, random_state=0),
    ):
        classes = tuple(MapClass(value, f"class {value}", "#112233") for value in (1, 2, 7))
        estimator = make_pipeline(StandardScaler(), model).fit(features, labels)
        path = workplace() / "model.skops"
        widths = np.full(5, 10.0)
        Classifier(estimator, classes, wavelengths, widths, "reflectance", "1", ("spectrum", "shape")).save(path)
        made.append(path.read_bytes())
    return tuple(made)


@cache
def raster(suffix: str) -> tuple[bytes, bytes]:
    """A raster with wavelengths as `.tif`, or as `.bsq` with its ENVI header (the second part)."""
    path = workplace() / f"cube{suffix}"
    profile = {"width": 12, "height": 10, "count": 3, "dtype": "int16"}
    with rasterio.open(path, "w", driver="GTiff" if suffix == ".tif" else "ENVI", **profile) as target:
        target.write(np.arange(360, dtype="int16").reshape(3, 10, 12))
        if suffix == ".tif":
            target.update_tags(acquisition_time="2024-06-01T10:30:00Z", sensor="Test")
            target.scales = [1e-4] * 3
            for number in (1, 2, 3):
                target.update_tags(number, wavelength=f"{400 + number}.5", fwhm="9.5", wavelength_units="nm")
    if suffix == ".tif":
        return path.read_bytes(), b""
    more = (
        b"wavelength units = nanometers\nwavelength = {401.5, 402.5, 403.5}\nfwhm = {9.5, 9.5, 9.5}\nbbl = {1, 0, 1}\n"
        b"reflectance scale factor = 10000\nsensor type = Test\nacquisition time = 2024-06-01T10:30:00Z\n"
    )
    return path.read_bytes(), path.with_suffix(".hdr").read_bytes() + more


def members(archive: bytes) -> dict[str, bytes]:
    """What a ZIP holds."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}
