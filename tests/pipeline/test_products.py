"""Simulated products of every level, container and layout: what is opened is what an independent decoding gives."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - the accessor
from lxml import etree

import cubeloom
from cubeloom.errors import ConfigError
from cubeloom.pipeline.scene import QUALITY_FLAGS, validate_scene
from cubeloom.pipeline.simulate import BandTable, simulate_scene

LEVELS = ("L1B", "L1C", "L2A")
LAYOUTS = ("tiled", "strips")
CONTAINERS = ("folder", "zip", "tar.gz")
SIZE: dict[str, Any] = {"height": 72, "width": 64, "n_vnir": 7, "n_swir": 9, "seed": 3, "clouds": 0.2}
NAMES = {"L1B": "radiance", "L1C": "radiance", "L2A": "reflectance"}
CASES = [(level, detector) for level in LEVELS for detector in (("vnir", "swir") if level == "L1B" else (None,))]


@dataclass(frozen=True)
class Decoded:
    """A product decoded here: GeoTIFF by rasterio, METADATA.XML by lxml, nothing of Cubeloom's."""

    values: Any
    wavelength: Any
    fwhm: Any
    quality: Any
    defect: Any
    crs: Any
    transform: Any


def raster(folder: Path, role: str) -> Any:
    (path,) = folder.glob(f"*-{role}.TIF")
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.crs, dataset.transform


def decode(folder: Path, detector: str | None) -> Decoded:
    (path,) = folder.glob("*-METADATA.XML")
    root = etree.parse(path).getroot()
    bands = [
        {child.tag: float(child.text) for child in band} for band in root.findall(".//bandCharacterisation/bandID")
    ]
    part = f"_{detector.upper()}" if detector else ""
    if detector:  # L1B lists the bands of VNIR, then those of SWIR
        n_vnir = int(root.findtext(".//numberOfVNIRBands"))
        bands = bands[:n_vnir] if detector == "vnir" else bands[n_vnir:]
    numbers, crs, transform = raster(folder, f"SPECTRAL_IMAGE{part}")
    gain = np.array([band["GainOfBand"] for band in bands])[:, None, None]
    offset = np.array([band["OffsetOfBand"] for band in bands])[:, None, None]
    fill = -32768 if root.findtext("./base/level") == "L2A" else 0
    return Decoded(
        values=np.where(numbers == fill, np.nan, numbers * gain + offset),
        wavelength=np.array([band["wavelengthCenterOfBand"] for band in bands]),
        fwhm=np.array([band["FWHMOfBand"] for band in bands]),
        quality={
            name: raster(folder, f"QL_QUALITY_{name}")[0][0]
            for name in ("CLASSES", "CLOUD", "CIRRUS", "HAZE", "SNOW", "CLOUDSHADOW")
        },
        defect=raster(folder, f"QL_PIXELMASK{part}")[0],
        crs=crs,
        transform=transform,
    )


@pytest.fixture(scope="module", autouse=True)
def unpacking_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Orders are unpacked here, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBELOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


Products = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Products:
    """Path of the product of a level, layout and container; each is made once."""
    made: dict[tuple[str, str, str], Path] = {}

    def get(level: str, layout: str, container: str) -> Path:
        key = (level, layout, container)
        if key not in made:
            out = tmp_path_factory.mktemp(f"{level}-{layout}")
            made[key] = simulate_scene(out, level=level, layout=layout, container=container, **SIZE).path
        return made[key]

    return get


@pytest.fixture(scope="module")
def decoded(products: Products) -> Callable[[str, str | None], Decoded]:
    known: dict[tuple[str, str | None], Decoded] = {}

    def get(level: str, detector: str | None) -> Decoded:
        if (level, detector) not in known:
            known[level, detector] = decode(products(level, "tiled", "folder"), detector)
        return known[level, detector]

    return get


def opened(path: Path, detector: str | None) -> Any:
    return cubeloom.open_scene(path, **({"detector": detector} if detector else {}))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("level", "detector"), CASES)
def test_a_product_opens_to_what_its_files_hold(level, detector, layout, container, products, decoded):
    path, expected = products(level, layout, container), decoded(level, detector)
    assert path.is_dir() == (container == "folder")
    scene = opened(path, detector)
    validate_scene(scene)
    cube = scene[NAMES[level]]
    assert cube.dtype == np.float32
    np.testing.assert_allclose(cube.values, expected.values, rtol=2e-6, atol=1e-7)
    assert np.isnan(expected.values).any() == (level != "L1B"), "a map has background"
    assert np.isfinite(expected.values).any()
    wavelength = scene["wavelength"].values
    assert (np.diff(wavelength) > 0).all()
    np.testing.assert_array_equal(wavelength, expected.wavelength)
    np.testing.assert_array_equal(scene["fwhm"].values, expected.fwhm)
    np.testing.assert_array_equal(scene["defect"].values, expected.defect == 1)
    assert_flags(scene["quality"].values, expected.quality)


def assert_flags(quality: Any, masks: dict[str, Any]) -> None:
    """Every flag of the folded layer is that of its raster."""
    expected = {
        "background": masks["CLASSES"] == 3,
        "water": masks["CLASSES"] == 2,
        "land": masks["CLASSES"] == 1,
        "cloud": masks["CLOUD"] == 1,
        "cloud_shadow": masks["CLOUDSHADOW"] == 1,
        "haze": masks["HAZE"] == 1,
        "snow": masks["SNOW"] == 1,
        "cirrus_thin": masks["CIRRUS"] == 1,
        "cirrus_medium": masks["CIRRUS"] == 2,
        "cirrus_thick": masks["CIRRUS"] == 3,
    }
    for name, mask in expected.items():
        np.testing.assert_array_equal((quality & QUALITY_FLAGS[name]) != 0, mask, err_msg=name)
    assert expected["cloud"].any()
    assert expected["land"].any()


@pytest.mark.parametrize(("level", "detector"), CASES)
def test_every_container_and_layout_gives_the_same_scene(level, detector, products):
    """Its attributes too: a product is the same wherever it lies and however it is packed."""
    reference = opened(products(level, "tiled", "folder"), detector)
    for layout in LAYOUTS:
        for container in CONTAINERS:
            scene = opened(products(level, layout, container), detector)
            assert scene.identical(reference), (layout, container)


def test_containers_are_what_they_are_called(products):
    assert zipfile.is_zipfile(products("L2A", "tiled", "zip"))
    with tarfile.open(products("L2A", "tiled", "tar.gz")) as order:
        assert any(name.upper().endswith(".ZIP") for name in order.getnames())


def test_layouts_are_what_they_are_called(products):
    for layout, tiled in (("tiled", True), ("strips", False)):
        (image,) = products("L2A", layout, "folder").glob("*-SPECTRAL_IMAGE.TIF")
        with rasterio.open(image) as dataset:
            assert dataset.profile["tiled"] is tiled


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_map_products_lie_where_their_tiff_says(level, products, decoded):
    scene, expected = opened(products(level, "strips", "zip"), None), decoded(level, None)
    assert scene.rio.crs == expected.crs
    corner = expected.transform * (0.5, 0.5)
    assert (scene["x"].values[0], scene["y"].values[0]) == corner
    with pytest.raises(ConfigError, match="holds both detectors"):
        opened(products(level, "tiled", "folder"), "vnir")


def test_l1b_has_sensor_geometry_and_an_rpc_that_hits_the_ground(products):
    path = products("L1B", "tiled", "folder")
    with pytest.raises(ConfigError, match="detector='vnir' or detector='swir'"):
        cubeloom.open_scene(path)
    for detector in ("vnir", "swir"):
        scene = opened(path, detector)
        assert scene.rio.crs is None
        assert set(scene["detector"].values) == {detector}
        rpc = rasterio.rpc.RPC(**scene.attrs["rpc"])
        footprint = np.array(scene.attrs["footprint"])
        with rasterio.transform.RPCTransformer(rpc) as transformer:
            lon, lat = transformer.xy(36, 32)
        low, high = footprint.min(axis=0), footprint.max(axis=0)
        assert (low < [lon, lat]).all()
        assert ([lon, lat] < high).all()


EXPECTED = ("ENMAP01-____L1B-DT0000002446", "ENMAP01-____L1C-DT0000063982", "ENMAP01-____L2A-DT0000001049")


@pytest.mark.shared
@pytest.mark.parametrize("name", EXPECTED)
def test_band_tables_of_real_products_come_back(name, shared_data, tmp_path):
    """Wavelengths, widths and proportions of three real products, as another reader's tests state them."""
    expected = json.loads((shared_data / "enmap_metadata_xml" / f"{name}.json").read_text())["expectedContent"]
    bands = [b for b in expected["bands"] if b.get("description", "")[:4] in ("VNIR", "SWIR")]
    assert len(bands) == 224
    wavelength = np.array([float(band["spectralWavelength"]) for band in bands])
    fwhm = np.array([float(band["spectralBandwidth"]) for band in bands])
    detector = np.array([band["description"][:4].lower() for band in bands])
    level = name.partition("____")[2][:3]
    size = {"height": expected["sceneHeight"] // 24, "width": expected["sceneWidth"] // 24}
    product = simulate_scene(tmp_path, level=level, bands=BandTable(wavelength, fwhm, detector), **size)
    for part in ("vnir", "swir") if level == "L1B" else (None,):
        scene = opened(product.path, part)
        own = detector == part if part else np.ones(224, bool)
        order = np.argsort(wavelength[own])
        np.testing.assert_allclose(scene["wavelength"].values, wavelength[own][order], rtol=1e-7)
        np.testing.assert_allclose(scene["fwhm"].values, fwhm[own][order], rtol=1e-6)
        assert scene["detector"].values.tolist() == detector[own][order].tolist()
        assert scene.sizes["y"] == size["height"]
        assert scene.sizes["x"] == size["width"]
        assert np.isfinite(scene[NAMES[level]].values).any()
