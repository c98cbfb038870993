"""METADATA.XML against independent reads of DLR's own documents and of SNAP's expectations for real scenes."""

import json
import re
import zipfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.rpc import RPC

from cubeloom.errors import InputError
from cubeloom.pipeline.readers.bands import preferred, split_overlap, usable
from cubeloom.pipeline.readers.enmap_metadata import EnmapMetadata, parse_metadata

LEVELS = ("L1B", "L1C", "L2A")


@cache
def document(shared: Path, level: str) -> str:
    path = shared / "enmap_metadata_xml" / f"enmap_{level}_gtif_qualification.zip"
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA.XML"))
        return archive.read(name).decode()


@cache
def parsed(text: str) -> EnmapMetadata:
    return parse_metadata(text.encode(), "METADATA.XML")


def section(text: str, *tags: str) -> str:
    """What stands between nested tags, found by text search alone: no XML library."""
    for tag in tags:
        found = re.search(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", text, re.DOTALL)
        assert found, tag
        text = found[1]
    return text.strip()


def column(text: str, tag: str) -> list[float]:
    return [float(value) for value in re.findall(rf"<{tag}>([^<]*)</{tag}>", text)]


@pytest.mark.parametrize("level", LEVELS)
def test_band_table_equals_a_text_search(shared_data: Path, level: str) -> None:
    text = document(shared_data, level)
    bands = parsed(text).bands
    table = section(text, "specific", "bandCharacterisation")
    assert bands.wavelength.tolist() == column(table, "wavelengthCenterOfBand")
    assert bands.fwhm.tolist() == column(table, "FWHMOfBand")
    assert bands.gain.tolist() == column(table, "GainOfBand")
    assert bands.offset.tolist() == column(table, "OffsetOfBand")
    assert bands.number.tolist() == [int(n) for n in re.findall(r'bandID number="(\d+)"', table)]
    assert len(bands.wavelength) == 218
    assert not bands.empty.any()


@pytest.mark.parametrize("level", LEVELS)
def test_facts_equal_a_text_search(shared_data: Path, level: str) -> None:
    text = document(shared_data, level)
    metadata = parsed(text)
    specific = text[text.index("<specific>") :]
    assert metadata.level == level
    assert f"<name>{metadata.name}-METADATA.XML</name>" in text
    assert metadata.start == datetime(2017, 6, 26, 10, 20, 20, 999936, UTC)
    assert metadata.stop.isoformat().replace("+00:00", "Z") == section(text, "stopTime")
    assert metadata.attrs["sun_elevation"] == float(section(specific, "sunElevationAngle", "center"))
    assert metadata.attrs["sun_azimuth"] == float(section(specific, "sunAzimuthAngle", "center"))
    assert metadata.attrs["view_azimuth"] == float(section(specific, "sceneAzimuthAngle", "center"))
    assert metadata.attrs["view_off_nadir"] == abs(float(section(specific, "acrossOffNadirAngle", "center")))
    assert metadata.attrs["cloud_cover"] == float(section(specific, "cloudCover"))
    assert metadata.attrs["water_vapour_cm"] == float(section(specific, "sceneWV")) / 1000
    assert metadata.attrs["processing_version"] == section(text, "base", "revision")
    assert metadata.attrs["attribution"] == "(c) DLR EnMAP 2019"
    for corner, (lon, lat) in metadata.corners.items():
        points = section(text, "base", "spatialCoverage", "boundingPolygon").split("</point>")
        stated = [point for point in points if f"<frame>{corner}<" in point]
        assert any(f">{lon:.7f}"[:9] in point and f">{lat:.7f}"[:9] in point for point in stated)
    assert len(metadata.corners) == 4
    options = metadata.attrs.get("atmospheric_correction", {})
    assert options.get("correctionType") == ("Land_Mode" if level == "L2A" else None)


def test_shapes_by_level(shared_data: Path) -> None:
    assert parsed(document(shared_data, "L1B")).shapes == {"vnir": (1024, 1000), "swir": (1024, 1000)}
    for level in ("L1C", "L2A"):
        assert parsed(document(shared_data, level)).shapes == {"merge": (1212, 1128)}


def test_rpc_of_l1b_maps_the_scene_onto_its_corners(shared_data: Path) -> None:
    metadata = parsed(document(shared_data, "L1B"))
    assert sorted(metadata.rpc) == metadata.bands.number.tolist()
    model = RPC(**metadata.rpc[109], err_bias=None, err_rand=None)
    with rasterio.transform.RPCTransformer(model) as transformer:
        for corner, (lon, lat) in metadata.corners.items():
            rows, cols = transformer.rowcol([lon], [lat], zs=[metadata.attrs["mean_ground_elevation"]])
            expected = (0 if "upper" in corner else 1023, 0 if "left" in corner else 999)
            assert abs(rows[0] - expected[0]) < 40
            assert abs(cols[0] - expected[1]) < 40


def test_detectors_of_the_three_levels_agree(shared_data: Path) -> None:
    """L1B tells by the order of its list, the others by channel lists: the same instrument, so the same answer."""
    found = {}
    for level in LEVELS:
        bands = parsed(document(shared_data, level)).bands
        found[level] = {
            (wavelength, fwhm): detector
            for wavelength, fwhm, detector in zip(bands.wavelength, bands.fwhm, bands.detector, strict=True)
        }
    assert found["L1B"] == found["L1C"] == found["L2A"]
    assert list(found["L1B"].values()).count("vnir") == 88


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_detectors_without_channel_lists(shared_data: Path, level: str) -> None:
    text = document(shared_data, level)
    without = re.sub(r"<expectedChannelsList>[^<]*<", "<expectedChannelsList><", text)
    assert parsed(without).bands.detector.tolist() == parsed(text).bands.detector.tolist()
    overlapping = text.replace("<expectedChannelsList>1,2,3", "<expectedChannelsList>1,2,2")
    assert parsed(overlapping).bands.detector.tolist() == parsed(text).bands.detector.tolist()


@pytest.mark.parametrize("scene", ["L1B-DT0000002446", "L1C-DT0000063982", "L2A-DT0000001049"])
def test_overlap_of_real_scenes_is_split_as_their_channel_lists_say(shared_data: Path, scene: str) -> None:
    content = json.loads((shared_data / "enmap_metadata_xml" / f"ENMAP01-____{scene}.json").read_text())
    bands = [band for band in content["expectedContent"]["bands"] if band["name"].startswith("band_")]
    listed = {int(band["name"][5:]): band["description"][:4].lower() for band in bands}
    wavelength = np.sort([float(band["spectralWavelength"]) for band in bands])
    assert wavelength.size == 224
    detector = split_overlap(wavelength)
    assert detector.tolist() == [listed[position] for position in range(1, 225)]
    shown = wavelength[preferred(wavelength, detector)]
    assert np.diff(shown).min() > 4, "no two bands of different detectors stay side by side"
    assert (~preferred(wavelength, detector)).sum() == 12


def test_usable_bands_keep_what_spectralearth_keeps(shared_data: Path) -> None:
    """Bands 1-126, 142-160 and 168-224 of the merged order hold data in the 202-band products."""
    with rasterio.open(sorted((shared_data / "enmap_potsdam" / "images").glob("*.tif"))[0]) as raster:
        wavelength = np.sort([float(raster.tags(number)["wavelength"]) for number in raster.indexes])
    kept = np.r_[0:126, 141:160, 167:224]
    good = usable(wavelength, np.zeros(224, bool))
    assert good[kept].sum() >= 200
    assert not good[(wavelength > 1360) & (wavelength < 1450)].any()


FAULTS = {
    "no bands": (r"<bandCharacterisation>.*?</bandCharacterisation>", "", "bandCharacterisation"),
    "wrong counts": (r"<numberOfSWIRBands>130<", "<numberOfSWIRBands>133<", r"88 \+ 133"),
    "no time": (r"<startTime>[^<]*<", "<startTime><", "startTime"),
    "bad time": (r"<startTime>[^<]*<", "<startTime>yesterday<", "ISO 8601"),
    "bad gain": (r"<GainOfBand>[^<]*<", "<GainOfBand>nan<", "GainOfBand"),
    "other level": (r"<level>L2A<", "<level>L3<", "L1B, L1C, L2A"),
    "other document": (r"level_X", "level_Y", "level_Y"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_element_and_file(shared_data: Path, fault: str) -> None:
    pattern, replacement, message = FAULTS[fault]
    text, count = re.subn(pattern, replacement, document(shared_data, "L2A"), flags=re.DOTALL)
    assert count
    with pytest.raises(InputError, match=rf"METADATA\.XML.*{message}"):
        parsed(text)


def test_values_that_are_not_given_are_absent(shared_data: Path) -> None:
    text = re.sub(r"<(cloudCover|sceneWV)>[^<]*<", r"<\1>-999<", document(shared_data, "L2A"))
    attrs = parsed(text).attrs
    assert {"cloud_cover", "water_vapour_cm"}.isdisjoint(attrs)
    assert "haze_cover" in attrs


def test_bands_without_data_are_known_by_their_statistics(shared_data: Path) -> None:
    product = next((shared_data / "enmap_potsdam_product").glob("ENMAP*"))
    metadata = parse_metadata(next(product.glob("*METADATA.XML")).read_bytes(), "Potsdam")
    with rasterio.open(next(product.glob("*SPECTRAL_IMAGE.TIF"))) as raster:
        dead = [number for number in raster.indexes if (raster.read(number) == raster.nodata).all()]
    assert metadata.bands.number[metadata.bands.empty].tolist() == dead
    assert dead
