"""Sentinel-2 SAFE products: simulated ones read in every way, against rasterio and the documents."""

import re
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine

from cubeloom import open_scene
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Packed
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.sentinel2 import find_products, read_metadata
from cubeloom.pipeline.readers.sentinel2_bands import NAMES, NATIVE, band_name, band_numbers
from cubeloom.pipeline.readers.sentinel2_common import cubic
from cubeloom.pipeline.readers.sentinel2_grids import open_grids
from cubeloom.pipeline.readers.sentinel2_guard import OffsetWarning
from cubeloom.pipeline.readers.sentinel2_quality import SCL_FLAGS
from cubeloom.pipeline.readers.sentinel2_safe import locate
from cubeloom.pipeline.scene import QUALITY_FLAGS, validate_scene
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2

GROUND = {"seed": 4, "height": 48, "width": 40, "place": (52.4, 13.1)}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_sentinel2(tmp_path_factory.mktemp("s2"), **GROUND, clouds=0.2).path


@pytest.fixture(scope="module")
def old_product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_sentinel2(tmp_path_factory.mktemp("s2"), **GROUND, clouds=0.2, baseline="02.14").path


@pytest.fixture
def copy(product: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(product, tmp_path / product.name))


def numbers(product: Path, name: str, step: int) -> np.ndarray:
    (path,) = product.glob(f"GRANULE/*/IMG_DATA/R{step}m/*_{name}_{step}m.jp2")
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def reflectance_by_hand(dn: np.ndarray, offset: float = -1000.0) -> np.ndarray:
    return np.where(dn == 0, np.nan, (dn.astype(float) + offset) / 10000)


@pytest.mark.parametrize("grid", ["10m", "20m", "60m"])
def test_reflectance_is_the_files_with_the_offset_once(product, grid):
    scene = open_scene(product, grid=grid)
    validate_scene(scene)
    step = int(grid[:-1])
    names = [name for name in NATIVE[step] if name != "B10"]
    assert scene["band"].values.tolist() == band_numbers(names)
    for at, name in enumerate(names):
        np.testing.assert_allclose(
            scene["reflectance"][at].values, reflectance_by_hand(numbers(product, name, step)), atol=1e-7
        )
    assert scene.odc.geobox.resolution.x == step
    assert (scene.attrs["sensor"], scene.attrs["processing_level"]) == ("Sentinel-2A", "L2A")
    assert "offset -1000" in scene.attrs["history"]


def test_all_bands_of_a_grid_are_there_when_asked_for(product):
    scene = open_scene(product, grid="20m", bands="all")
    assert list(scene.attrs["band_names"].values()) == [
        "B01",
        "B02",
        "B03",
        "B04",
        "B05",
        "B06",
        "B07",
        "B8A",
        "B11",
        "B12",
    ]
    red = scene["reflectance"].sel(band=4).values
    np.testing.assert_allclose(red, reflectance_by_hand(numbers(product, "B04", 20)), atol=1e-7)
    assert (np.diff(scene["wavelength"]) > 0).all()
    assert (scene["fwhm"] > 10).all()


@pytest.mark.parametrize("grid", ["10m", "20m", "60m"])
def test_all_bands_come_on_a_common_grid(product, grid):
    """Averages are those over the pixels inside, and what is repeated has them as its averages."""
    scene = open_scene(product, grid=grid, bands="common")
    validate_scene(scene)
    wanted = [name for name in NAMES if name != "B10"]
    assert list(scene.attrs["band_names"].values()) == wanted
    target = int(grid[:-1])
    assert scene.odc.geobox == open_scene(product, grid=grid).odc.geobox
    for native, names in NATIVE.items():
        for name in set(names) - {"B10"}:
            own = reflectance_by_hand(numbers(product, name, native))
            found = scene["reflectance"].sel(band=band_numbers([name])[0]).values
            fine, coarse = (found, own) if native > target else (own, found)
            factor = max(native, target) // min(native, target)
            means = fine.reshape(coarse.shape[0], factor, coarse.shape[1], factor).mean(axis=(1, 3))
            np.testing.assert_allclose(coarse, means, atol=6e-5)  # half a step of the store
    xr.testing.assert_identical(scene["quality"], open_scene(product, grid=grid)["quality"])


def test_cubic_convolution_keeps_planes_and_does_not_see_windows(product):
    source = open_source(product, bands="common", resampling="cubic")
    full = source.read("reflectance", whole(source.spec.shape))
    for window in (Window(17, 31, 40, 29), Window(0, 0, 7, 5), Window(60, 50, 1, 1)):
        np.testing.assert_array_equal(source.read("reflectance", window).data, full.data[(..., *window.slices)])
    y, x = np.mgrid[:20, :16] + 0.5
    plane = (3 * y - 2 * x).astype(np.float32)
    fine = cubic(plane, Window(0, 0, 20, 16), Window(0, 0, 60, 48), 3)
    y, x = (np.mgrid[:60, :48] + 0.5) / 3
    np.testing.assert_allclose(fine[6:-6, 6:-6], (3 * y - 2 * x)[6:-6, 6:-6], atol=1e-4)
    plane[10, 8] = np.nan
    holed = cubic(plane, Window(0, 0, 20, 16), Window(0, 0, 60, 48), 3)
    expected = np.zeros((60, 48), bool)
    expected[30:33, 24:27] = True
    np.testing.assert_array_equal(np.isnan(holed), expected)


def test_a_published_store_holds_the_same(product, tmp_path):
    run_to_store(open_source(product, grid="20m", bands="common"), [], tmp_path / "out.zarr")
    stored, scene = open_scene(tmp_path / "out.zarr"), open_scene(product, grid="20m", bands="common")
    for name in ("reflectance", "quality"):
        np.testing.assert_array_equal(stored[name].values, scene[name].values)
    for name in ("band", "wavelength", "fwhm", "detector", "time"):
        np.testing.assert_array_equal(stored[name].values, scene[name].values)
    assert stored.odc.geobox == scene.odc.geobox
    assert stored.attrs["band_names"] == scene.attrs["band_names"]
    assert stored.attrs["history"] == scene.attrs["history"]


def test_windows_are_parts_of_the_whole_and_come_packed(product):
    source = open_source(product)
    assert source.exact
    full = source.read("reflectance", whole(source.spec.shape))
    assert isinstance(full, Packed)
    window = Window(13, 29, 50, 41)
    part = source.read("reflectance", window, slice(1, 3))
    np.testing.assert_array_equal(part.data, full.data[1:3, 13:63, 29:70])
    quality = source.read("quality", whole(source.spec.shape))
    np.testing.assert_array_equal(source.read("quality", window), quality[window.slices])


@pytest.mark.parametrize(("grid", "repeat", "scl"), [("10m", 2, 20), ("20m", 1, 20), ("60m", 1, 60)])
def test_scene_classes_become_flags(product, grid, repeat, scl):
    quality = open_scene(product, grid=grid)["quality"].values
    classes = numbers(product, "SCL", scl).repeat(repeat, 0).repeat(repeat, 1)
    assert len(np.unique(classes)) > 3
    for value in np.unique(classes):
        flag = QUALITY_FLAGS.get(SCL_FLAGS.get(int(value), ""), 0)
        assert (quality[classes == value] == flag).all()


def test_masks_by_band_become_defects_and_saturation(copy):
    (path,) = copy.glob("GRANULE/*/QI_DATA/MSK_QUALIT_B03.jp2")
    with rasterio.open(path) as dataset:
        profile, layers = dataset.profile, dataset.read()
    layers[4, 10:12, 20:30] = 1  # defective
    layers[7, 50, 60:64] = 1  # saturated
    path.unlink()
    with rasterio.open(path, "w", **{**profile, "QUALITY": 100, "REVERSIBLE": "YES"}) as dataset:
        dataset.write(layers)
    scene = open_scene(copy, masks="bands")
    assert "defect" not in open_scene(copy)
    defect = scene["defect"].values
    assert defect.sum() == 20
    assert defect[1, 10:12, 20:30].all()
    saturated = (scene["quality"].values & QUALITY_FLAGS["saturated"]) > 0
    assert saturated.sum() == 4
    assert saturated[50, 60:64].all()


def test_a_zip_reads_as_the_folder(product, tmp_path):
    archive = tmp_path / f"{product.stem}.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(product.rglob("*")):
            if path.is_file():
                target.write(path, Path(product.name) / path.relative_to(product))
    xr.testing.assert_identical(open_scene(archive).load(), open_scene(product).load())
    assert list(find_products(tmp_path)) == [archive]
    assert list(find_products(product.parent)) == [product]


def test_grids_come_as_a_tree_with_the_angles(product):
    tree = open_grids(product)
    assert set(tree.children) == {"r10m", "r20m", "r60m", "angles"}
    found = [name for node in ("r10m", "r20m", "r60m") for name in tree[node].attrs["band_names"].values()]
    assert sorted(found) == sorted(set(NAMES) - {"B10"})
    xr.testing.assert_identical(tree["r20m"].to_dataset().load(), open_scene(product, grid="20m").load())
    assert tree["angles"]["view_zenith"].dims == ("band", "y", "x")
    assert np.isfinite(tree["angles"]["view_zenith"].values).all()  # stripes of both detectors cover the tile


def edit(product: Path, name: str, old: str, new: str) -> None:
    (path,) = product.glob(name)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_wrong_offset_warns_and_is_on_record(copy, old_product, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_scene(copy)
    edit(copy, "MTD_MSIL2A.xml", "BOA_ADD_OFFSET", "SOMETHING_ELSE")
    for image in copy.glob("GRANULE/*/IMG_DATA/R10m/*_B*.jp2"):  # bands are asked by their coarsest images
        image.write_bytes(b"damaged")
    with pytest.warns(OffsetWarning, match="forgotten"):
        scene = open_scene(copy, grid="60m")
    assert "forgotten" in scene.attrs["offset_warning"]
    old = Path(shutil.copytree(old_product, tmp_path / old_product.name))
    open_scene(old)  # has no offset, and needs none
    listed = "".join(f'<BOA_ADD_OFFSET band_id="{band}">-1000</BOA_ADD_OFFSET>' for band in range(13))
    edit(
        old,
        "MTD_MSIL2A.xml",
        "<Reflectance_Conversion>",
        f"<BOA_ADD_OFFSET_VALUES_LIST>{listed}</BOA_ADD_OFFSET_VALUES_LIST><Reflectance_Conversion>",
    )
    with pytest.warns(OffsetWarning, match="applied twice"):
        open_scene(old)


def test_baselines_give_the_same_reflectance(product, old_product):
    old = open_scene(old_product)
    new = open_scene(product)
    difference = np.abs(old["reflectance"].values - new["reflectance"].values)
    assert np.nanmax(difference) <= 0.0011  # numbers below 1 were cut off before the offset came
    assert np.nanquantile(difference, 0.9) < 1e-6


GML = """<?xml version="1.0"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2">
<eop:maskMembers>
<eop:MaskFeature><eop:maskType codeSpace="x">OPAQUE</eop:maskType><eop:extentOf><gml:Polygon>
<gml:exterior><gml:LinearRing><gml:posList srsDimension="2">{outer}</gml:posList></gml:LinearRing></gml:exterior>
<gml:interior><gml:LinearRing><gml:posList srsDimension="3">{hole}</gml:posList></gml:LinearRing></gml:interior>
</gml:Polygon></eop:extentOf></eop:MaskFeature>
</eop:maskMembers></eop:Mask>"""


def add_cloud_polygons(product: Path) -> None:
    """Make the only mask of a product one of the older ones: a box of 40 columns and 30 rows with a hole."""
    tile = next(product.glob("GRANULE/*/MTD_TL.xml"))
    x, y = open_box(product).transform * (10, 20)
    outer = f"{x} {y} {x + 400} {y} {x + 400} {y - 300} {x} {y - 300} {x} {y}"
    hole = " ".join(f"{x + dx} {y - dy} 7" for dx, dy in ((100, 100), (200, 100), (200, 200), (100, 200), (100, 100)))
    clouds = tile.parent / "QI_DATA/MSK_CLOUDS_B00.gml"
    clouds.write_text(GML.format(outer=outer, hole=hole))
    masks = f'<MASK_FILENAME type="MSK_CLOUDS">{clouds.relative_to(product)}</MASK_FILENAME>'
    tile.write_text(re.sub(r"<MASK_FILENAME.*</MASK_FILENAME>", masks, tile.read_text(), flags=re.DOTALL))


def open_box(product: Path):
    return read_metadata(locate(product))[1].grids[10]


def test_level_1c_reads_its_own_elements_and_masks(copy, product, as_l1c):
    as_l1c(copy)
    scene = open_scene(copy, grid="60m")
    assert list(scene.attrs["band_names"].values()) == ["B01", "B09", "B10"]
    assert scene.attrs["processing_level"] == "L1C"
    assert scene["reflectance"].attrs["long_name"] == "top-of-atmosphere reflectance"
    quality = open_scene(copy, grid="20m")["quality"].values
    with rasterio.open(next(copy.glob("GRANULE/*/QI_DATA/MSK_CLASSI_B00.jp2"))) as dataset:
        opaque, cirrus, snow = dataset.read()
    for layer, flag in ((opaque, "cloud"), (cirrus, "cirrus_thin"), (snow, "snow")):
        expected = layer.repeat(3, 0).repeat(3, 1) > 0
        np.testing.assert_array_equal((quality & QUALITY_FLAGS[flag]) > 0, expected)
    theirs = open_scene(product, grid="20m")
    np.testing.assert_array_equal(open_scene(copy, grid="20m")["reflectance"].values, theirs["reflectance"].values)
    background = (quality & QUALITY_FLAGS["background"]) > 0
    np.testing.assert_array_equal(background, np.isnan(theirs["reflectance"].values).all(axis=0))


def test_clouds_of_older_products_are_polygons(copy, as_l1c):
    as_l1c(copy)
    add_cloud_polygons(copy)
    expected = np.zeros(open_box(copy).shape, bool)
    expected[20:50, 10:50] = True
    expected[30:40, 20:30] = False
    source = open_source(copy)
    flags = source.read("quality", whole(source.spec.shape))
    np.testing.assert_array_equal((flags & QUALITY_FLAGS["cloud"]) > 0, expected)
    window = Window(25, 5, 20, 30)
    np.testing.assert_array_equal(source.read("quality", window), flags[window.slices])
    (mask,) = copy.glob("GRANULE/*/QI_DATA/MSK_CLOUDS_B00.gml")
    mask.write_text(mask.read_text().replace('srsDimension="2">', 'srsDimension="2">1 '))
    with pytest.raises(InputError, match="no closed ring"):
        open_scene(copy)


def test_a_missing_image_is_named(copy):
    (path,) = copy.glob("GRANULE/*/IMG_DATA/R10m/*_B08_10m.jp2")
    path.unlink()
    with pytest.raises(InputError, match="B08_10m"):
        open_scene(copy)
    open_scene(copy, grid="20m")


@pytest.mark.parametrize("place", ["/etc/passwd", "GRANULE/../../../../etc/passwd", "GRANULE/x/../.."])
def test_listed_paths_stay_inside_the_product(copy, place):
    document = (copy / "MTD_MSIL2A.xml").read_text()
    first = document.split("<IMAGE_FILE>")[1].split("</IMAGE_FILE>")[0]
    edit(copy, "MTD_MSIL2A.xml", first, f"{place}_B02_10m")
    with pytest.raises(InputError):
        open_scene(copy)


def test_the_fingerprint_is_of_the_content_alone(product, copy):
    assert open_source(copy).fingerprint() == open_source(product).fingerprint()
    assert open_source(copy, grid="20m").fingerprint() != open_source(copy).fingerprint()
    edit(copy, "GRANULE/*/MTD_TL.xml", "</n1:Level-2A_Tile_ID>", "<!-- another --></n1:Level-2A_Tile_ID>")
    assert open_source(copy).fingerprint() != open_source(product).fingerprint()


def test_an_image_of_another_size_is_refused(copy):
    (path,) = copy.glob("GRANULE/*/IMG_DATA/R10m/*_B04_10m.jp2")
    (other,) = copy.glob("GRANULE/*/IMG_DATA/R20m/*_B04_20m.jp2")
    shutil.copy(other, path)
    with pytest.raises(InputError, match="the metadata expect"):
        open_scene(copy)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": "30m"},
        {"bands": "some"},
        {"masks": "none"},
        {"resampling": "sinc"},
        {"bands": "common", "masks": "bands"},
        {"detector": "vnir"},
    ],
)
def test_wrong_options_are_refused(product, options):
    with pytest.raises(ConfigError):
        open_scene(product, **options)


def test_an_image_of_another_place_is_refused(copy):
    (path,) = copy.glob("GRANULE/*/IMG_DATA/R10m/*_B04_10m.jp2")
    with rasterio.open(path) as dataset:
        profile, layers = dataset.profile, dataset.read()
    path.unlink()
    profile["transform"] = profile["transform"] * Affine.translation(1000, 0)
    with rasterio.open(path, "w", **{**profile, "QUALITY": 100, "REVERSIBLE": "YES"}) as dataset:
        dataset.write(layers)
    with pytest.raises(InputError, match="do not belong together"):
        open_scene(copy)


def test_bands_have_one_name():
    for name, others in {"B01": "B1 b01 coastal", "B08": "b8 nir", "B8A": "b8a 8A nir08", "B12": "swir22"}.items():
        assert {band_name(other) for other in others.split()} == {name}
    assert band_numbers(["blue", "B8A", "B9", "B12"]) == [2, 9, 10, 13]
    with pytest.raises(ConfigError, match="no band of Sentinel-2"):
        band_name("B13")


def test_it_shows_the_ground_of_the_enmap_scene(tmp_path):
    """Means over EnMAP's pixels follow its values, and best where both say that they lie, to a third of a pixel."""
    enmap = open_scene(simulate_scene(tmp_path, **GROUND, n_vnir=40, n_swir=10, clouds=0, noise=0.1, stripes=0).path)
    msi = open_scene(simulate_sentinel2(tmp_path, **GROUND, clouds=0).path)
    for band in (4, 8):
        fine = msi["reflectance"].sel(band=band).drop_vars("spatial_ref")
        means = sum(fine.shift(y=-i, x=-j) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
        wanted = float(msi["wavelength"].sel(band=band))
        theirs = enmap["reflectance"][int(np.argmin(np.abs(enmap["wavelength"].values - wanted)))]

        def agreement(dy, dx, means=means, theirs=theirs):
            ours = means.interp(y=theirs["y"] + dy, x=theirs["x"] + dx).values  # their pixels end halfway into ours
            known = np.isfinite(ours) & np.isfinite(theirs.values)
            return np.corrcoef(ours[known], theirs.values[known])[0, 1]

        assert agreement(0, 0) > 0.88
        assert all(agreement(0, 0) > agreement(*away) for away in ((10, 0), (-10, 0), (0, 10), (0, -10)))


def test_a_shift_moves_the_images_over_the_ground(product, tmp_path):
    moved = simulate_sentinel2(tmp_path, **GROUND, clouds=0.2, shift=(30.0, -20.0)).path
    still, gone = (numbers(path, "B08", 10).astype(float) for path in (product, moved))
    inner = (slice(20, 100), slice(20, 90))
    displaced = np.roll(still, (2, 3), (0, 1))  # 20 m south are 2 rows down, 30 m east 3 columns right
    assert np.abs(gone - displaced)[inner].mean() < 0.2 * np.abs(gone - still)[inner].mean()


def test_a_tile_in_the_next_zone_covers_the_same_place(product, tmp_path):
    there = open_scene(simulate_sentinel2(tmp_path, **GROUND, epsg=32632).path)
    here = open_scene(product)
    assert there.odc.geobox.crs.epsg == 32632
    boxes = [scene.odc.geobox.geographic_extent.boundingbox for scene in (here, there)]
    assert boxes[0].left == pytest.approx(boxes[1].left, abs=0.01)
    assert boxes[0].top == pytest.approx(boxes[1].top, abs=0.01)
    assert "_T32U" in there.attrs["scene_id"]
    edge = there["quality"].values & QUALITY_FLAGS["background"]
    assert 0 < (edge > 0).mean() < 0.3
    assert np.isnan(there["reflectance"].values[:, edge > 0]).mean() > 0.9
