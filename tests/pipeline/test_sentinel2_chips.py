"""Sentinel-2 chips without metadata: made ones with known numbers, and real ones of four data sets."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from cubeloom import open_scene
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.readers.sentinel2_bands import NAMES, NATIVE, band_numbers
from cubeloom.pipeline.readers.sentinel2_guard import OffsetWarning
from cubeloom.pipeline.srf import SENSORS

EUROSAT = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"]


def write(path: Path, layers: np.ndarray, step: int = 10) -> Path:
    profile = {"count": layers.shape[0], "height": layers.shape[1], "width": layers.shape[2], "dtype": "uint16"}
    place = {"crs": "EPSG:32633", "transform": from_origin(300000, 5000040, step, step)}
    with rasterio.open(path, "w", driver="GTiff", **profile, **place) as dataset:
        dataset.write(layers)
    return path


def chip_numbers(band: str, size: int, shift: int = 0) -> np.ndarray:
    """Numbers that tell the band: its place among the names, and a gradient."""
    level = 5 if band == "B10" else 300 + 100 * NAMES.index(band)
    return (level + np.arange(size * size).reshape(1, size, size) % 50 + shift).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
    target.mkdir()
    for step, names in NATIVE.items():
        for name in names:
            if name != "B10":
                write(target / f"{name}.tif", chip_numbers(name, 240 // step, 0), step)
    return target


@pytest.mark.parametrize("grid", ["10m", "20m", "60m"])
def test_a_folder_opens_by_native_resolution(folder, grid):
    scene = open_scene(folder, grid=grid, offset="0")
    names = [name for name in NATIVE[int(grid[:-1])] if name != "B10"]
    assert scene["band"].values.tolist() == band_numbers(names)
    for at, name in enumerate(names):
        expected = chip_numbers(name, 240 // int(grid[:-1]))[0] / 10000
        np.testing.assert_allclose(scene["reflectance"][at].values, expected, atol=1e-7)
    assert (scene.attrs["sensor"], scene.attrs["processing_level"]) == ("Sentinel-2B", "L2A")
    assert str(scene["time"].values).startswith("2020-02-23T03:27:39")


@pytest.mark.parametrize(
    ("unit", "sensor"), [(unit, f"sentinel2{unit.lower()}") for unit in "ABC"] + [("D", "sentinel2c")]
)
def test_bands_are_those_of_the_unit(folder, unit, sensor):
    """The unit is in the product's name, which datasets keep for the folder; unit D's responses are not published."""
    named = folder.rename(folder.parent / f"S2{unit}_MSIL2A_20260601T101031_N0511_R022_T33UUP_20260601T150000")
    for grid in ("10m", "20m", "60m"):
        scene = open_scene(named, grid=grid, offset="0")
        known = {response.name: response for response in SENSORS[sensor]}
        for number, wavelength, fwhm in zip(
            *(scene[name].values for name in ("band", "wavelength", "fwhm")), strict=True
        ):
            name = f"B{NAMES[number - 1][1:].lstrip('0')}"
            if name != "B10":
                assert (wavelength, fwhm) == (known[name].wavelength, known[name].fwhm)
        assert scene.attrs["sensor"] == f"Sentinel-2{unit}"
        assert sensor in scene.attrs["wavelength_source"]


def test_the_offset_must_be_told_and_the_pixels_say_which(folder, tmp_path):
    with pytest.raises(ConfigError, match="B02 has numbers up to 400, which suggests offset=0"):
        open_scene(folder)
    lifted = tmp_path / "lifted"
    lifted.mkdir()
    for name in NATIVE[10]:
        write(lifted / f"{name}.tif", chip_numbers(name, 24, 1000))
    with pytest.raises(ConfigError, match="B02 has numbers up to 1400, which suggests offset=-1000"):
        open_scene(lifted)
    with pytest.warns(OffsetWarning, match="forgotten"):
        open_scene(lifted, offset="0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = open_scene(lifted, offset="-1000")
    np.testing.assert_array_equal(same["reflectance"].values, open_scene(folder, offset="0")["reflectance"].values)
    with pytest.warns(OffsetWarning, match="applied twice"):
        open_scene(folder, offset="-1000")


@pytest.mark.parametrize("offset", ["much", "1e9", "nan"])
def test_offsets_that_cannot_be_are_refused(folder, offset):
    with pytest.raises(ConfigError, match="expected -1000 or 0"):
        open_scene(folder, offset=offset)


def test_nodata_and_saturation_are_told_before_the_offset(tmp_path):
    layer = chip_numbers("B04", 24, 1000)
    layer[0, 0, 0], layer[0, 0, 1], layer[0, 0, 2] = 0, 65535, 65534
    scene = open_scene(write(tmp_path / "B04.tif", layer), offset="-1000")
    row = scene["reflectance"][0, 0].values
    assert np.isnan(row[:2]).all()
    assert row[2] == pytest.approx(3.2767)  # what the store holds at most
    assert row[3] == pytest.approx((int(layer[0, 0, 3]) - 1000) / 10000)


def test_bright_bands_alone_tell_nothing(tmp_path):
    path = write(tmp_path / "B08.tif", chip_numbers("B08", 24, 2000))
    with pytest.raises(ConfigError, match="tells nothing"):
        open_scene(path)
    open_scene(path, offset="0")


def test_the_order_of_bands_must_be_told_and_the_pixels_say_which(tmp_path):
    path = write(tmp_path / "Forest_1.tif", np.concatenate([chip_numbers(name, 24) for name in EUROSAT]))
    with pytest.raises(ConfigError, match="band 10 is the darkest, as the cirrus band B10 is in 'eurosat'"):
        open_scene(path, offset="0")
    for bands in ("eurosat", ",".join(EUROSAT)):
        scene = open_scene(path, offset="0", bands=bands)
        assert scene["band"].values.tolist() == list(range(1, 14))
        for at, name in enumerate(NAMES):
            np.testing.assert_allclose(scene["reflectance"][at].values, chip_numbers(name, 24)[0] / 10000, atol=1e-7)
    assert scene.attrs["processing_level"] == "L1C"
    for wrong in ("l2a", "B01,B02", ",".join([*EUROSAT[:-1], "B01"])):
        with pytest.raises(ConfigError, match="the file has 13"):
            open_scene(path, offset="0", bands=wrong)


def test_landsats_bands_are_not_taken_for_sentinels(tmp_path):
    for band in (2, 3, 4, 5):
        write(tmp_path / f"LC08_L2SP_193023_20240601_20240607_02_T1_SR_B{band}.TIF", chip_numbers("B04", 24), 30)
    with pytest.raises(InputError, match="not a product that Cubeloom reads"):
        open_scene(tmp_path)


def test_a_raster_with_wavelengths_is_read_by_them(tmp_path):
    path = write(tmp_path / "cube.tif", np.concatenate([chip_numbers(name, 24) for name in NAMES[:12]]))
    with rasterio.open(path, "r+") as dataset:
        for number in dataset.indexes:
            dataset.update_tags(number, wavelength=str(400 + 30 * number), wavelength_units="nm")
    scene = open_scene(path, scale="0.0001")
    assert scene["wavelength"].values.tolist() == [400 + 30 * number for number in range(1, 13)]


def test_files_of_other_grids_are_refused(folder):
    write(folder / "B08.tif", chip_numbers("B08", 20))
    with pytest.raises(InputError, match="do not belong together"):
        open_scene(folder, offset="0")


def real(shared_data: Path, *parts: str) -> Path:
    path = shared_data.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real chips are not at {path}")
    return path


MAJOR_TOM = {
    "-1000": ("0U", "0U_199R", "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"),
    "0": ("199U", "199U_1099R", "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"),
}


@pytest.mark.parametrize(("right", "wrong", "said"), [("-1000", "0", "forgotten"), ("0", "-1000", "applied twice")])
def test_major_toms_patches_agree_with_their_offset_alone(shared_data, right, wrong, said):
    path = real(shared_data, "majortom_s2l2a", "S2L2A", *MAJOR_TOM[right])
    with pytest.raises(ConfigError, match=f"suggests offset={right}"):
        open_scene(path)
    for grid in ("10m", "20m", "60m"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scene = open_scene(path, grid=grid, offset=right)
        with pytest.warns(OffsetWarning, match=said):
            open_scene(path, grid=grid, offset=wrong)
    with rasterio.open(path / "B09.tif") as dataset:
        by_hand = (dataset.read(1).astype(float) + float(right)) / 10000
    np.testing.assert_allclose(scene["reflectance"][1].values, by_hand, atol=1e-7)
    assert by_hand.min() >= 0


@pytest.mark.parametrize("name", ["AnnualCrop/AnnualCrop_1", "Pasture/Pasture_300", "SeaLake/SeaLake_3000"])
def test_eurosat_opens_with_b8a_in_its_place(shared_data, name):
    path = real(shared_data, "eurosat_ms", f"{name}.tif")
    with pytest.raises(ConfigError, match="in 'eurosat'"):
        open_scene(path, offset="0")
    scene = open_scene(path, offset="0", bands="eurosat")
    with rasterio.open(path) as dataset:
        layers = dataset.read() / 10000
    for position, band in enumerate(EUROSAT):
        values = scene["reflectance"].sel(band=NAMES.index(band) + 1).values
        np.testing.assert_allclose(values, layers[position], atol=1e-7)
    means = scene["reflectance"].mean(("y", "x")).values
    assert np.argmin(means) == NAMES.index("B10")
    assert abs(means[8] - means[7]) < 0.06  # B8A looks where B08 does; B09, beside it, looks into water vapour
    assert means[9] < means[8]


@pytest.mark.parametrize("kind", ["s2a", "s2c"])
def test_ssl4eo_opens_with_the_right_bands(shared_data, kind):
    root = real(shared_data, "ssl4eo_s12", kind, "0000200")
    for path in sorted(root.iterdir()):
        seen = {}
        for grid in ("10m", "20m", "60m"):
            scene = open_scene(path, grid=grid, offset="0")
            names = scene.attrs["band_names"]
            for number, layer in zip(scene["band"].values, scene["reflectance"].values, strict=True):
                name = names[str(number)]
                seen[name] = layer
                with rasterio.open(path / f"B{name[1:].lstrip('0')}.tif") as dataset:
                    np.testing.assert_allclose(layer, dataset.read(1) / 10000, atol=1e-7)
        assert set(seen) == set(NAMES) - ({"B10"} if kind == "s2a" else set())
        assert scene.attrs["sensor"] == "Sentinel-2"
        assert scene["time"].values.astype(str).startswith(f"{path.name[:4]}-{path.name[4:6]}-{path.name[6:8]}")
