"""Backscatter as GeoTIFFs: units told or read, polarisations in their order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.scene import validate_scene

POWER = np.random.default_rng(5).gamma(5, 0.02, (2, 40, 50)).astype(np.float32)


def write(path: Path, cube: np.ndarray, *, descriptions=(), units=(), nodata=None, tags=None, left=500_000) -> Path:
    cube = np.atleast_3d(cube) if cube.ndim == 3 else cube[None]
    profile = {"driver": "GTiff", "count": len(cube), "height": cube.shape[1], "width": cube.shape[2]}
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, left, 0, -10, 5_800_000), "nodata": nodata}
    with rasterio.open(path, "w", **profile, **place, dtype=cube.dtype.name) as dataset:
        dataset.write(cube)
        for number, text in enumerate(descriptions, 1):
            dataset.set_band_description(number, text)
        for number, text in enumerate(units, 1):
            dataset.set_band_unit(number, text)
        dataset.update_tags(**(tags or {}))
    return path


def decibels(power: np.ndarray) -> np.ndarray:
    return (10 * np.log10(power)).astype(np.float32)


def test_a_folder_of_polarisations_is_brought_to_power_in_their_order(tmp_path):
    folder = tmp_path / "S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457"
    folder.mkdir()
    write(folder / "VH.tif", decibels(POWER[1]))
    write(folder / "VV.tif", decibels(POWER[0]))
    scene = cubeloom.open_scene(folder, units="db", calibration="sigma0")
    validate_scene(scene)
    np.testing.assert_allclose(scene["sigma0"].values, POWER, rtol=1e-5)
    assert scene.attrs["band_names"] == {"1": "VV", "2": "VH"}
    assert (scene.attrs["sensor"], str(scene["time"].values)[:16]) == ("Sentinel-1A", "2020-06-07T01:08")


def test_units_and_polarisations_in_the_file_need_no_telling(tmp_path):
    path = write(
        tmp_path / "tile.tif", decibels(POWER), descriptions=("Sigma0_VH_db", "Sigma0_VV_db"), units=("dB", "dB")
    )
    scene = cubeloom.open_scene(path)
    np.testing.assert_allclose(scene["sigma0"].values, POWER[::-1], rtol=1e-5)
    rtc = write(tmp_path / "iw-vv.rtc.tiff", np.where(POWER[0] < 0.05, np.float32(-32768), POWER[0]), nodata=-32768)
    scene = cubeloom.open_scene(rtc, units="linear")
    np.testing.assert_array_equal(scene["gamma0"].values[0], np.where(POWER[0] < 0.05, np.nan, POWER[0]))
    assert scene.attrs["processing_level"] == "RTC"
    amplitude = write(tmp_path / "x_vv.tif", np.sqrt(POWER[0]), tags={"UNITS": "amplitude", "CALIBRATION": "gamma0"})
    np.testing.assert_allclose(cubeloom.open_scene(amplitude)["gamma0"].values[0], POWER[0], rtol=1e-6)


def test_what_nothing_says_must_be_told_and_the_pixels_are_asked(tmp_path):
    path = write(tmp_path / "Spain_1_S1Hand.tif", decibels(POWER))
    with pytest.raises(ConfigError, match="holds 2 bands and does not say which"):
        cubeloom.open_scene(path)
    with pytest.raises(ConfigError, match=r"give units=.* and calibration=.*look like decibels"):
        cubeloom.open_scene(path, polarisation="VV,VH")
    with pytest.raises(ConfigError, match=r"give calibration='sigma0' or 'gamma0'$"):
        cubeloom.open_scene(path, polarisation="VV,VH", units="db")
    with pytest.raises(ConfigError, match="units='dB'; expected 'db' or"):
        cubeloom.open_scene(path, polarisation="VV,VH", units="dB")
    with pytest.raises(ConfigError, match="does not name 2 of VV"):
        cubeloom.open_scene(path, polarisation="VV,XX", units="db")
    linear = write(tmp_path / "a_vv.tif", POWER[0])
    with pytest.raises(ConfigError, match="look like power or amplitude"):
        cubeloom.open_scene(linear, calibration="sigma0")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path / "a_VV.tif", POWER[0])
    write(tmp_path / "a_VH.tif", POWER[1], left=500_010)
    with pytest.raises(InputError, match="do not belong together"):
        cubeloom.open_scene(tmp_path, units="linear", calibration="sigma0")


def test_a_truncated_chip_is_an_error(tmp_path):
    path = write(tmp_path / "a_VV.tif", np.repeat(np.repeat(POWER[0], 8, 0), 8, 1))
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(InputError, match="a_VV"):
        cubeloom.open_scene(path, units="linear", calibration="sigma0").compute()


def terrain_corrected(folder: Path, **properties: Any) -> Path:
    """An item as Planetary Computer has it of RTC, and its files, whose tags say nothing."""
    folder.mkdir(exist_ok=True)
    assets: dict[str, Any] = {"tilejson": {"href": "https://example.org/tile.json", "roles": ["tiles"]}}
    for power, name in zip(POWER[::-1], ("vh", "vv"), strict=True):
        write(folder / f"{name[::-1]}.tiff", power)
        assets[name] = {"href": f"./{name[::-1]}.tiff", "roles": ["data"], "sar:polarizations": [name.upper()]}
    told = {
        "datetime": "2022-06-21T05:24:05.120Z",
        "platform": "SENTINEL-1A",
        "sat:orbit_state": "descending",
        "sat:relative_orbit": 168,
        "sat:absolute_orbit": 43752,
        "sar:instrument_mode": "IW",
        "sar:looks_range": 5,
        "sar:looks_azimuth": 1,
    }
    ring = [[14, 52.2], [14.5, 52.3], [14.6, 52.1], [14, 52.2]]
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S1A_IW_GRDH_1SDV_20220621T052352_rtc",
        "collection": "sentinel-1-rtc",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {**told, **properties},
        "assets": assets,
    }
    path = folder / "item.json"
    path.write_text(json.dumps(item))
    return path


def test_what_the_files_lack_is_read_from_the_item_beside_them(tmp_path):
    path = terrain_corrected(tmp_path / "x")
    (tmp_path / "x" / "notes.json").write_text("no JSON")
    with pytest.raises(ConfigError, match=r"give units='db', 'linear' or 'amplitude'\. Here the middle number"):
        cubeloom.open_scene(path)
    for place in (path, path.parent):
        scene = cubeloom.open_scene(place, units="linear")
        validate_scene(scene)
        np.testing.assert_array_equal(scene["gamma0"].values, POWER)
        attrs = scene.attrs
        assert attrs["band_names"] == {"1": "VV", "2": "VH"}
        assert (attrs["scene_id"], attrs["sensor"]) == ("S1A_IW_GRDH_1SDV_20220621T052352_rtc", "Sentinel-1A")
        assert (attrs["processing_level"], attrs["orbit_direction"], attrs["relative_orbit"]) == (
            "RTC",
            "descending",
            168,
        )
        assert attrs["looks"] == 5
        assert attrs["footprint"] == [[14, 52.2], [14.5, 52.3], [14.6, 52.1]]
        assert str(scene["time"].values)[:22] == "2022-06-21T05:24:05.12"
        assert "time_known" not in attrs
    cubeloom.despeckle(scene)
    odd = terrain_corrected(tmp_path / "y", **{"sat:relative_orbit": "x", "sar:looks_range": None, "platform": None,
                                               "constellation": "Sentinel-1"})  # fmt: skip
    scene = cubeloom.open_scene(odd, units="linear")
    assert scene.attrs["sensor"] == "Sentinel-1"
    assert not {"looks", "relative_orbit"} & set(scene.attrs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda assets: assets["vv"].update(href="https://example.org/vv.tiff"), None),
        (lambda assets: assets["vv"].update(href="../vv.tiff"), "outside the item's folder"),
        (
            lambda assets: assets.update({"vv": {**assets["vv"], "sar:polarizations": ["VH"]}}),
            "as VH; expected one file",
        ),
        (
            lambda assets: assets["vv"].update({"sar:polarizations": ["VV", "HH"]}),
            "its bands are 1 without names; .* VV, HH",
        ),
        (lambda assets: assets["vv"].update(href="named.tif"), "its bands are HV; the item .* says VV"),
        (lambda assets: assets["vv"].update(href="counts.tif"), "holds uint16 numbers, which mean nothing without"),
        (lambda assets: [asset.update(href="gone.tif") for asset in assets.values()], "no file of the polarisations"),
    ],
)
def test_items_that_do_not_fit_their_files_are_refused(tmp_path, change, message):
    path = terrain_corrected(tmp_path)
    write(tmp_path / "named.tif", POWER[0], descriptions=("HV",))
    write(tmp_path / "counts.tif", np.ones(POWER[0].shape, np.uint16))
    item = json.loads(path.read_text())
    change(item["assets"])
    path.write_text(json.dumps(item))
    if message is None:
        assert cubeloom.open_scene(path, units="linear").attrs["band_names"] == {"2": "VH"}
        return
    with pytest.raises(InputError, match=message):
        cubeloom.open_scene(path, units="linear")


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("sen1floods11_sample/S1/*_S1Hand.tif", {}),
        ("ssl4eo_s12/s1/*/S1A*", {}),
        ("bigearthnet_v2/BigEarthNet-S1/*/S1A*", {}),
    ],
)
def test_real_chips_open_with_the_numbers_in_them(shared_data, pattern, options):
    found = sorted(shared_data.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {shared_data}")
    path = found[0]
    scene = cubeloom.open_scene(path, units="db", calibration="sigma0", **options)
    validate_scene(scene)
    assert scene.attrs["band_names"] == {"1": "VV", "2": "VH"}
    values = scene["sigma0"].values
    for at, name in enumerate(("VV", "VH")):
        file = path if path.is_file() else next(one for one in path.glob("*.tif") if one.stem.endswith(name))
        with rasterio.open(file) as dataset:
            numbers = dataset.read(at + 1 if path.is_file() else 1).astype(float)
        np.testing.assert_allclose(values[at], 10 ** (numbers / 10), rtol=1e-6)
    assert np.nanmedian(values[0]) > np.nanmedian(values[1])
