"""Sentinel-2 as assets of STAC items in the shapes of the providers."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.transform import from_origin

from cubeloom import open_scene
from cubeloom.catalogs import read_catalog, validate_catalog
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.sentinel2_bands import COMMON_NAMES, NAMES, NATIVE, band_numbers
from cubeloom.pipeline.readers.sentinel2_guard import OffsetWarning
from cubeloom.pipeline.scene import QUALITY_FLAGS
from cubeloom.pipeline.stages import SelectBands
from cubeloom.pipeline.store import read_commit
from cubeloom.workflows.scan import scan

STATED = {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]}


def numbers(name: str, step: int, shift: int) -> np.ndarray:
    side = 240 // step
    return (400 + 50 * NAMES.index(name) + np.arange(side * side).reshape(side, side) % 40 + shift).astype(np.uint16)


def write(path: Path, layer: np.ndarray, step: int) -> None:
    profile = {"count": 1, "height": layer.shape[0], "width": layer.shape[1], "dtype": layer.dtype.name}
    place = from_origin(300000, 5000040, step, step)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=place, **profile) as dataset:
        dataset.write(layer, 1)


def publish(folder: Path, keys: str, shift: int = 1000, asset: dict[str, Any] | None = None, **properties: Any) -> Path:
    """An item and its files; `keys` is the provider's habit of naming assets."""
    assets: dict[str, Any] = {"visual": {"href": "https://example.org/TCI.tif"}}
    for step, names in NATIVE.items():
        for name in names:
            if name == "B10":
                continue
            key = {"earth-search": COMMON_NAMES[NAMES.index(name)], "planetary": name, "cdse": f"{name}_{step}m"}[keys]
            write(folder / f"{name}.tif", numbers(name, step, shift), step)
            assets[key] = {"href": f"./{name}.tif", **(asset or {})}
    if keys == "cdse":  # one band at several resolutions
        write(folder / "B04_20m.tif", numbers("B04", 20, shift), 20)
        assets = {"B04_20m": {"href": "./B04_20m.tif", **(asset or {})}, **assets}
    classes = np.tile(np.array([4, 6, 9, 0], np.uint8), (12, 3))
    write(folder / "SCL.tif", classes, 20)
    assets["SCL_20m" if keys == "cdse" else "scl"] = {"href": "./SCL.tif"}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2B_33UUP_20240601_0_L2A",
        "collection": "sentinel-2-l2a",
        "properties": {"datetime": "2024-06-01T10:10:31.024Z", "platform": "sentinel-2b", **properties},
        "assets": assets,
    }
    path = folder / "item.json"
    path.write_text(json.dumps(item))
    return path


ITEMS = {
    "earth-search, applied": {
        "keys": "earth-search",
        "shift": 0,
        "asset": STATED,
        "earthsearch:boa_offset_applied": True,
    },
    "earth-search, stated": {"keys": "earth-search", "asset": STATED, "s2:processing_baseline": "05.11"},
    "planetary, baseline": {"keys": "planetary", "s2:processing_baseline": "05.11"},
    "planetary, old": {"keys": "planetary", "shift": 0, "s2:processing_baseline": "02.14"},
    "cdse, stated in STAC 1.1": {"keys": "cdse", "asset": {"raster:scale": 0.0001, "raster:offset": -0.1}},
}


@pytest.mark.parametrize("provider", ITEMS)
def test_every_providers_item_gives_the_same_reflectance(tmp_path, provider):
    path = publish(tmp_path, **ITEMS[provider])
    for step, names in NATIVE.items():
        names = [name for name in names if name != "B10"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scene = open_scene(path, grid=f"{step}m")
        assert scene["band"].values.tolist() == band_numbers(names)
        for layer, name in zip(scene["reflectance"].values, names, strict=True):
            np.testing.assert_allclose(layer, numbers(name, step, 0) / 10000, atol=1e-7)
    assert scene.attrs["sensor"] == "Sentinel-2B"
    assert scene["time"].values.astype(str).startswith("2024-06-01T10:10:31")


def test_scene_classes_are_the_quality(tmp_path):
    quality = open_scene(publish(tmp_path, "planetary", **{"s2:processing_baseline": "05.11"}))["quality"].values
    expected = [QUALITY_FLAGS[name] for name in ("land", "water", "cloud", "background")]
    np.testing.assert_array_equal(quality, np.tile(np.repeat(expected, 2), (24, 3)))


def test_a_scan_lists_an_item_beside_its_files(tmp_path):
    """It stands for its bands on all grids, and what it lists opens; other items with such names are left alone."""
    for name in ("here", "gone", "landsat"):
        (tmp_path / "in" / name).mkdir(parents=True)
    path = publish(tmp_path / "in/here", "earth-search", **{"s2:processing_baseline": "05.11"})
    (tmp_path / "in/gone/item.json").write_text(path.read_text())  # as a search leaves it that downloads nothing
    other = publish(tmp_path / "in/landsat", "earth-search", platform="landsat-8")
    other.write_text(other.read_text().replace('"sentinel-2-l2a"', '"landsat-c2-l2"'))
    result = scan(tmp_path / "in", tmp_path / "catalog")
    assert (result.items, result.rejected) == (("S2B_33UUP_20240601_0_L2A",), ())
    assert validate_catalog(result.catalog) == 3
    (item,) = read_catalog(result.catalog, roots=[tmp_path / "in"])
    assert set(item.assets) == {"metadata", "SCL", *NAMES} - {"B10"}
    document = json.loads(next((tmp_path / "catalog").glob("*/*/*.json")).read_text())
    assert document["assets"]["B11"]["proj:shape"] == [12, 12]
    for grid in ("10m", "60m"):
        xr.testing.assert_equal(open_scene(item.product_path, grid=grid), open_scene(path, grid=grid))


def test_an_item_that_is_wrong_about_the_offset_warns_and_can_be_overruled(tmp_path):
    path = publish(tmp_path, "earth-search", 0, STATED, **{"s2:processing_baseline": "05.11"})
    with pytest.warns(OffsetWarning, match="applied twice"):
        open_scene(path)
    scene = open_scene(path, offset="0")
    np.testing.assert_allclose(scene["reflectance"][0].values, numbers("B02", 10, 0) / 10000, atol=1e-7)
    assert "as told" in scene.attrs["history"]
    with pytest.raises(ConfigError, match="expected -1000 or 0"):
        open_scene(path, offset="much")


def test_an_item_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither an offset nor a processing baseline"):
        open_scene(publish(tmp_path, "planetary"))


@pytest.mark.parametrize("href", ["../secret.tif", "/etc/passwd.tif", "file:///etc/passwd.tif"])
def test_hrefs_stay_in_the_items_folder(tmp_path, href):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = publish(folder, "planetary", **{"s2:processing_baseline": "05.11"})
    item = json.loads(path.read_text())
    item["assets"]["B03"]["href"] = href
    path.write_text(json.dumps(item))
    with pytest.raises(InputError, match="outside the item's folder"):
        open_scene(path)


@pytest.mark.parametrize("href", ["é" * 300 + ".tif", "a%00b.tif", "http://[x"])
def test_hrefs_that_are_no_paths_are_refused(tmp_path, href):
    path = publish(tmp_path, "planetary", **{"s2:processing_baseline": "05.11"})
    item = json.loads(path.read_text())
    item["assets"]["B03"]["href"] = href
    path.write_text(json.dumps(item))
    with pytest.raises(InputError, match="is no"):
        open_scene(path)


def test_remote_assets_are_as_if_not_there(tmp_path):
    path = publish(tmp_path, "planetary", **{"s2:processing_baseline": "05.11"})
    item = json.loads(path.read_text())
    for name in ("B02", "B08"):
        item["assets"][name]["href"] = f"https://example.org/{name}.tif"
    path.write_text(json.dumps(item))
    assert open_scene(path)["band"].values.tolist() == [3, 4]


def test_every_band_on_one_grid(tmp_path):
    """Finer bands are the means of the pixels that a coarser one holds; coarser ones are repeated."""
    path = publish(tmp_path, **ITEMS["earth-search, stated"], **{"grid:code": "MGRS-33UUP", "sat:relative_orbit": 22})
    scene = open_scene(path, grid="20m", bands="common")
    assert list(scene.attrs["band_names"].values()) == [name for name in NAMES if name != "B10"]
    assert (scene.attrs["mgrs_tile"], scene.attrs["relative_orbit"]) == ("33UUP", 22)
    assert scene.attrs["attribution"] == "contains modified Copernicus Sentinel data 2024"
    cube = scene["reflectance"].load()
    for name, step in (("B04", 10), ("B11", 20), ("B09", 60)):
        dn = numbers(name, step, 0).astype(float)
        fine = np.kron(dn, np.ones((step // 10, step // 10)))
        expected = fine.reshape(12, 2, 12, 2).mean(axis=(1, 3)) / 10000
        np.testing.assert_allclose(cube.sel(band=band_numbers([name])[0]), expected, atol=6e-5)
    with pytest.raises(ConfigError, match="bands='both'"):
        open_scene(path, bands="both")


def test_grids_that_do_not_nest_are_refused(tmp_path):
    path = publish(tmp_path, **ITEMS["planetary, baseline"])
    for name in ("B01", "B09"):
        write(tmp_path / f"{name}.tif", numbers(name, 60, 1000)[:-1], 60)
    with pytest.raises(InputError, match="60 m and of 10 m cover different ground"):
        open_scene(path, bands="common")


@pytest.mark.parametrize("options", [{}, {"bands": "common"}, {"bands": "common", "resampling": "cubic"}])
def test_what_lies_above_the_stores_range_is_counted_in_the_commit_record(tmp_path, options):
    """Two pixels of 10 m, saturation, and one pixel of 20 m, which stands over four of 10 m."""
    path = publish(tmp_path, "planetary", 0, **{"s2:processing_baseline": "02.14"})
    red, infrared = numbers("B04", 10, 0), numbers("B11", 20, 0)
    red[3, 4], red[20, 23], red[7, 7], red[8, 8] = 32768, 65534, 65535, 32767
    infrared[5, 6] = 40000
    write(tmp_path / "B04.tif", red, 10)
    write(tmp_path / "B11.tif", infrared, 20)
    run_to_store(open_source(path, **options), [], tmp_path / "out.zarr")
    assert read_commit(tmp_path / "out.zarr")["clipped"] == {"reflectance": 6 if options else 2}
    run_to_store(open_source(path, **options), [SelectBands(bands=(4,))], tmp_path / "red.zarr")
    assert read_commit(tmp_path / "red.zarr")["clipped"] == {"reflectance": 2}
    stored = open_scene(tmp_path / "out.zarr")["reflectance"].sel(band=4).values
    np.testing.assert_allclose(stored[[3, 20, 8], [4, 23, 8]], 3.2767, atol=1e-6)
    assert np.isnan(stored[7, 7])


def test_numbers_of_another_type_are_refused(tmp_path):
    path = publish(tmp_path, "planetary", 0, **{"s2:processing_baseline": "02.14"})
    write(tmp_path / "B03.tif", numbers("B03", 10, 0).astype(np.int16), 10)
    with pytest.raises(InputError, match="expected one of uint16"):
        open_scene(path)


def test_bands_in_place_of_classes_are_refused(tmp_path):
    path = publish(tmp_path, "planetary", 0, **{"s2:processing_baseline": "02.14"})
    shutil.copy(tmp_path / "B05.tif", tmp_path / "SCL.tif")
    with pytest.raises(InputError, match=r"SCL.tif: holds uint16 as SCL"):
        open_scene(path).quality.load()
