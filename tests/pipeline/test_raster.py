"""GeoTIFF and ENVI rasters with wavelengths: units, order, scale, and refusal to guess."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Packed
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.readers import open_scene, open_source
from cubeloom.pipeline.readers.base import values
from cubeloom.pipeline.scene import spec_of, validate_scene

WAVELENGTH = np.array([450.0, 550.0, 650.0, 940.0, 900.0, 960.0, 1600.0, 2200.0])
DETECTORS = ["vnir"] * 4 + ["swir"] * 4
PLACE = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(364095, 5809965, 30, 30)}


@pytest.fixture
def numbers() -> Any:
    pixels = np.random.default_rng(3).integers(-50, 6000, (8, 12, 10)).astype("int16")
    pixels[:, :2, :3] = -32768
    return pixels


def write_tiff(
    path: Path, pixels: Any, tags: dict[str, list[Any]], *, scale: float | None = None, **about: Any
) -> Path:
    profile = {"driver": "GTiff", "width": 10, "height": 12, "count": len(pixels), "dtype": pixels.dtype, **PLACE}
    with rasterio.open(path, "w", nodata=-32768, **profile) as raster:
        raster.write(pixels)
        for name, column in tags.items():
            for band, value in enumerate(column, 1):
                raster.update_tags(band, **{name: value})
        if scale is not None:
            raster.scales = [scale] * len(pixels)
        raster.update_tags(**about)
    return path


def write_envi(path: Path, pixels: Any, **fields: str) -> Path:
    header = {"wavelength": "{" + ", ".join(map(str, WAVELENGTH)) + "}"} | fields
    profile = {"driver": "ENVI", "width": 10, "height": 12, "count": len(pixels), "dtype": pixels.dtype, **PLACE}
    with rasterio.open(path, "w", nodata=-32768, **profile) as raster:
        raster.write(pixels)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    with path.with_suffix(".hdr").open("a") as file:
        file.writelines(f"{name.replace('_', ' ')} = {value}\n" for name, value in header.items() if value)
    return path


def test_bands_are_put_in_order_and_detectors_kept_apart(tmp_path: Path, numbers: Any) -> None:
    path = write_tiff(tmp_path / "a.tif", numbers, {"wavelength": list(WAVELENGTH)}, scale=1e-4)
    scene = open_scene(path)
    validate_scene(scene)
    order = np.argsort(WAVELENGTH)
    assert scene["wavelength"].values.tolist() == sorted(WAVELENGTH)
    assert scene["band"].values.tolist() == (order + 1).tolist()
    assert scene["detector"].values.tolist() == [DETECTORS[at] for at in order]
    assert scene["wavelength"].values[~scene["preferred"].values].tolist() == [940]
    expected = np.where(numbers == -32768, np.nan, numbers * 1e-4)[order]
    np.testing.assert_allclose(scene["reflectance"].values, expected, rtol=1e-6)


def test_packed_only_where_the_file_lies_as_the_store_wants_it(tmp_path: Path, numbers: Any) -> None:
    tags = {"wavelength": list(WAVELENGTH)}
    window = Window(1, 2, 5, 6)
    fast = open_source(write_tiff(tmp_path / "a.tif", numbers, tags, scale=1e-4))
    slow = open_source(write_tiff(tmp_path / "b.tif", numbers.astype("float32"), tags, scale=1e-4))
    other = open_source(write_tiff(tmp_path / "c.tif", numbers, tags, scale=2e-4))
    assert isinstance(fast.read("reflectance", window), Packed)
    assert not isinstance(slow.read("reflectance", window), Packed)
    np.testing.assert_array_equal(values(fast.read("reflectance", window)), slow.read("reflectance", window))
    np.testing.assert_allclose(
        values(other.read("reflectance", window)), 2 * values(slow.read("reflectance", window)), rtol=1e-6
    )
    part = values(fast.read("reflectance", window, slice(3, 5)))
    np.testing.assert_array_equal(part, values(fast.read("reflectance", window))[3:5])


UNITS: list[dict[str, str]] = [
    {"wavelength_units": "Micrometers"},
    {"wavelength_units": "um"},
    {"wavelength_units": ""},
    {"wavelength_units": "Unknown"},
]


@pytest.mark.parametrize("fields", UNITS)
def test_micrometres_become_nanometres(fields: dict[str, str], tmp_path: Path, numbers: Any) -> None:
    listed = "{" + ", ".join(map(str, WAVELENGTH / 1000)) + "}"
    fwhm = "{" + ", ".join(["0.0125"] * 8) + "}"
    path = write_envi(
        tmp_path / "a.img", numbers, reflectance_scale_factor="10000", fwhm=fwhm, **fields | {"wavelength": listed}
    )
    bands = open_source(path).spec.bands
    np.testing.assert_allclose(bands.wavelength, np.sort(WAVELENGTH))
    np.testing.assert_allclose(bands.fwhm, 12.5)


def test_envi_header_fields(tmp_path: Path, numbers: Any) -> None:
    gains, offsets = np.linspace(1e-4, 2e-4, 8), np.linspace(0, 0.01, 8)
    path = write_envi(
        tmp_path / "a.img",
        numbers,
        data_gain_values="{" + ", ".join(f"{gain:.9g}" for gain in gains) + "}",
        data_offset_values="{" + ", ".join(f"{offset:.9g}" for offset in offsets) + "}",
        bbl="{1, 0, 1, 1, 1, 1, 1, 1}",
        acquisition_time="2022-07-24T10:45:26.0Z",
        sensor_type="HyMap",
    )
    for opened in (path, path.with_suffix(".hdr")):
        source = open_source(opened)
        assert source.spec.sensor == "HyMap"
        assert source.spec.time.isoformat() == "2022-07-24T10:45:26+00:00"
        assert source.spec.bands.wavelength[~source.spec.bands.good].tolist() == [550]
        order = np.argsort(WAVELENGTH)
        expected = numbers * gains[:, None, None] + offsets[:, None, None]
        expected[numbers == -32768] = np.nan
        np.testing.assert_allclose(values(source.read("reflectance", whole((12, 10)))), expected[order], rtol=1e-5)


def test_scale_is_never_guessed(tmp_path: Path, numbers: Any) -> None:
    tags = {"wavelength": list(WAVELENGTH)}
    integers = write_tiff(tmp_path / "a.tif", numbers, tags)
    floats = write_tiff(tmp_path / "b.tif", numbers.astype("float32"), tags)
    for path in (integers, floats):
        with pytest.raises(ConfigError, match=r"scale=0\.0001"):
            open_source(path)
        read = values(open_source(path, scale="0.0001").read("reflectance", Window(5, 5, 2, 2)))
        np.testing.assert_allclose(read, numbers[np.argsort(WAVELENGTH), 5:7, 5:7] * 1e-4, rtol=1e-5)
    with pytest.raises(ConfigError, match="positive number"):
        open_source(integers, scale="ten")
    reflectance = np.where(numbers == -32768, np.float32(-32768), numbers * np.float32(1e-4)).astype("float32")
    plain = open_source(write_tiff(tmp_path / "c.tif", reflectance, tags))
    assert np.isnan(values(plain.read("reflectance", Window(0, 0, 2, 2)))).all()
    np.testing.assert_array_equal(
        values(plain.read("reflectance", Window(5, 5, 2, 2))), reflectance[np.argsort(WAVELENGTH), 5:7, 5:7]
    )


def test_tags_of_an_export_come_back(tmp_path: Path, numbers: Any) -> None:
    tags = {
        "wavelength": sorted(WAVELENGTH),
        "fwhm": [8.0] * 8,
        "wavelength_units": ["Nanometers"] * 8,
        "detector": ["vnir", "vnir", "vnir", "swir", "vnir", "swir", "swir", "swir"],
        "band_number": [3, 4, 5, 6, 7, 8, 9, 11],
        "bbl": [1, 1, 1, 1, 1, 1, 0, 1],
    }
    about = {
        "scene_id": "S-1",
        "sensor": "EnMAP",
        "processing_level": "L2A",
        "acquisition_time": "2022-07-24T10:45:26Z",
    }
    spec = open_source(write_tiff(tmp_path / "a.tif", numbers, tags, scale=1e-4, **about)).spec
    assert (spec.scene_id, spec.sensor, spec.processing_level) == ("S-1", "EnMAP", "L2A")
    assert spec.bands.number.tolist() == tags["band_number"]
    assert spec.bands.detector.tolist() == tags["detector"]
    assert spec.bands.good.tolist() == [bool(flag) for flag in tags["bbl"]]
    assert spec.time.year == 2022
    assert "time_known" not in spec.attrs


def test_what_a_file_does_not_say_is_marked(tmp_path: Path, numbers: Any) -> None:
    path = write_tiff(tmp_path / "my scene #1.tif", numbers, {"wavelength": list(WAVELENGTH)}, scale=1e-4)
    spec = open_source(path).spec
    assert spec.attrs["time_known"] is False
    assert spec.attrs["fwhm_source"] == "spacing of the bands"
    assert (spec.bands.fwhm > 0).all()
    assert spec.sensor == "unknown"
    assert spec.scene_id == "my_scene__1"


def test_gdal_imagery_domain(tmp_path: Path, numbers: Any) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=10, height=12, count=8, dtype="int16", **PLACE) as raster:
        raster.write(numbers)
        raster.scales = [1e-4] * 8
        for band, wavelength in enumerate(np.sort(WAVELENGTH), 1):
            raster.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=wavelength / 1000, FWHM_UM=0.01)
    bands = open_source(path).spec.bands
    np.testing.assert_allclose(bands.wavelength, np.sort(WAVELENGTH))
    np.testing.assert_allclose(bands.fwhm, 10)


def test_a_grid_that_is_nowhere_on_earth_counts_as_none(tmp_path: Path, numbers: Any) -> None:
    path = write_tiff(tmp_path / "site.tif", numbers, {"wavelength": list(WAVELENGTH)}, scale=1e-4)
    with rasterio.open(path, "r+") as raster:
        raster.crs = rasterio.CRS.from_wkt('LOCAL_CS["building site",UNIT["metre",1]]')
    with rasterio.open(path) as raster:
        assert raster.crs
        assert not raster.crs.is_projected
    scene = open_scene(path)
    validate_scene(scene)
    assert spec_of(scene).grid.crs is None


def test_radiance_is_named_by_tag_or_option(tmp_path: Path, numbers: Any) -> None:
    path = write_tiff(tmp_path / "a.tif", numbers, {"wavelength": list(WAVELENGTH)}, scale=1e-3)
    source = open_source(path, measurement="radiance")
    assert source.spec.measurement == "radiance"
    assert not isinstance(source.read("radiance", Window(0, 0, 2, 2)), Packed)
    with pytest.raises(ConfigError, match="'brightness'"):
        open_source(path, measurement="brightness")


def test_fingerprint_is_of_content_and_scale(tmp_path: Path, numbers: Any) -> None:
    tags = {"wavelength": list(WAVELENGTH)}
    one = open_source(write_tiff(tmp_path / "a.tif", numbers, tags), scale="0.0001")
    two = open_source(write_tiff(tmp_path / "b.tif", numbers, tags), scale="0.0001")
    other = open_source(tmp_path / "a.tif", scale="0.0002")
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    envi = write_envi(tmp_path / "c.img", numbers, reflectance_scale_factor="10000")
    before = open_source(envi).fingerprint()
    with envi.with_suffix(".hdr").open("a") as header:
        header.write("bbl = {0, 1, 1, 1, 1, 1, 1, 1}\n")
    assert open_source(envi).fingerprint() != before


FAULTS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "none": ({}, "no wavelengths"),
    "some bands": ({"wavelength": [450, 550]}, "stated for 2 bands"),
    "no number": ({"wavelength": ["blue"] * 8}, "not a number"),
    "not finite": ({"wavelength": ["nan"] * 8}, "not finite for band 1"),
    "other unit": ({"wavelength": list(WAVELENGTH), "wavelength_units": ["1/cm"] * 8}, "'1/cm'"),
    "zero": ({"wavelength": [0, *WAVELENGTH[1:]]}, "band 1 has no positive wavelength"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_and_tag(fault: str, tmp_path: Path, numbers: Any) -> None:
    tags, message = FAULTS[fault]
    path = write_tiff(tmp_path / "a.tif", numbers, tags, scale=1e-4)
    with pytest.raises(InputError, match=rf"a\.tif.*{message}"):
        open_source(path)


def test_cut_file_is_an_error_not_nodata(tmp_path: Path, numbers: Any) -> None:
    path = write_tiff(tmp_path / "a.tif", numbers, {"wavelength": list(WAVELENGTH)}, scale=1e-4)
    content = path.read_bytes()
    path.write_bytes(content[:1500])
    with pytest.raises(InputError, match=r"a\.tif"):
        open_source(path).read("reflectance", whole((12, 10)))


def test_real_tiles_in_the_order_of_their_detectors(shared_data: Path) -> None:
    """The tiles list VNIR, then SWIR; the product made of them lists all by wavelength."""
    product = open_scene(shared_data / "enmap_potsdam_product")
    for path in sorted((shared_data / "enmap_potsdam" / "images").glob("*.tif"))[:3]:
        tile = open_scene(path)
        validate_scene(tile)
        assert tile["detector"].values.tolist() == product["detector"].values.tolist()
        assert tile["preferred"].values.tolist() == product["preferred"].values.tolist()
        np.testing.assert_allclose(tile["wavelength"].values, product["wavelength"].values, atol=6e-4)
        there = product["reflectance"].sel(x=tile["x"], y=tile["y"]).values
        np.testing.assert_allclose(tile["reflectance"].values, there, atol=5.1e-5)
