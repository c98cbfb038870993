"""Sentinel-2's documents: four real metadata sets, read again by XPath; and what is wrong with damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from lxml import etree

from cubeloom.errors import InputError
from cubeloom.pipeline.readers.sentinel2_bands import NAMES
from cubeloom.pipeline.readers.sentinel2_images import grid_images, listed_images
from cubeloom.pipeline.readers.sentinel2_metadata import parse_product
from cubeloom.pipeline.readers.sentinel2_tile import Angles, merge, parse_tile

PRODUCTS = (
    "S2A_MSIL1C_20200717T221941_R029_T01LAC_20200717T234135",
    "S2A_MSIL1C_20210908T042701_N0301_R133_T46RER_20210908T070248",
    "S2A_MSIL2A_20230821T221941_N0509_R029_T01KAB_20230822T021825",
    "esa_S2B_MSIL2A_20210122T133229_N0214_R081_T22HBD_20210122T155500",
)


@pytest.fixture(params=PRODUCTS, ids=("L1C-02.09", "L1C-03.01", "L2A-05.09", "L2A-02.14"))
def product(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    folder = shared_data / "sentinel2_safe_metadata" / f"{request.param}.SAFE"
    if not folder.is_dir():
        pytest.skip(f"the real metadata are not at {folder}")
    return folder


@pytest.fixture
def documents(product: Path) -> tuple[Path, Path]:
    (main,), (tile,) = product.glob("MTD_MSI*.xml"), product.glob("GRANULE/*/MTD_TL.xml")
    return main, tile


def numbers(tree, path):
    return [float(text) for text in tree.xpath(path)]


def test_scales_and_offsets_are_those_of_the_document(documents):
    found, tree = parse_product(documents[0].read_bytes(), "x"), etree.parse(documents[0])
    (quantification,) = numbers(tree, "//QUANTIFICATION_VALUE/text() | //BOA_QUANTIFICATION_VALUE/text()")
    stated = {
        NAMES[int(node.get("band_id"))]: float(node.text) for node in tree.xpath("//BOA_ADD_OFFSET|//RADIO_ADD_OFFSET")
    }
    assert found.quantification == quantification
    assert found.offset == (stated or dict.fromkeys(NAMES, 0.0))
    assert found.offset_stated == bool(stated)
    special = dict(
        zip(tree.xpath("//SPECIAL_VALUE_TEXT/text()"), numbers(tree, "//SPECIAL_VALUE_INDEX/text()"), strict=True)
    )
    assert (found.nodata, found.saturated) == (special["NODATA"], special["SATURATED"])


def test_bands_carry_the_response_of_the_document(documents):
    found, tree = parse_product(documents[0].read_bytes(), "x"), etree.parse(documents[0])
    nodes = tree.xpath("//Spectral_Information")
    assert len(nodes) == len(found.bands) == 13
    for node in nodes:
        band = found.bands[NAMES[int(node.get("bandId"))]]
        assert band.number == int(node.get("bandId")) + 1
        assert band.name.replace("B0", "B") == node.get("physicalBand")
        assert band.resolution == float(node.findtext("RESOLUTION"))
        assert band.response.wavelength == float(node.findtext("Wavelength/CENTRAL"))
        wavelength, values = band.response.curve
        np.testing.assert_array_equal(values, np.array(node.findtext("Spectral_Response/VALUES").split(), float))
        assert wavelength[0] == float(node.findtext("Wavelength/MIN"))
        half = values >= values.max() / 2
        assert abs(band.response.fwhm - half.sum()) <= 1.5  # samples are 1 nm apart


def test_images_are_those_listed_each_band_once_at_its_native_resolution(documents):
    found, tree = parse_product(documents[0].read_bytes(), "x"), etree.parse(documents[0])
    paths = [text.strip() for text in tree.xpath("//IMAGE_FILE/text()")]
    assert list(found.images) == paths
    native = [image for step in (10, 20, 60) for image in grid_images(found, step, native=True)]
    assert sorted(image.band for image in native) == sorted(set(NAMES) - ({"B10"} if found.level == "L2A" else set()))
    for image in native:
        assert image.resolution == found.bands[image.band].resolution
        assert image.path in paths
        assert image.path.endswith(f"_{image.band}" + (f"_{image.resolution}m" if found.level == "L2A" else ""))
    classes = [image for image in listed_images(found) if image.band == "SCL"]
    assert {image.resolution for image in classes} == ({20, 60} if found.level == "L2A" else set())


def test_grids_and_times_are_those_of_the_tile(documents):
    found, tree = parse_tile(documents[1].read_bytes(), "x"), etree.parse(documents[1])
    assert found.tile in documents[1].parent.name
    assert found.time.isoformat().startswith(tree.xpath("string(//SENSING_TIME)")[:19])
    for step, box in found.grids.items():
        size, place = (f"//{name}[@resolution='{step}']" for name in ("Size", "Geoposition"))
        assert [*box.shape] == numbers(tree, f"{size}/NROWS/text() | {size}/NCOLS/text()")
        corner = numbers(tree, f"{place}/ULX/text() | {place}/ULY/text()")
        assert [box.transform.c, box.transform.f] == corner
        assert (box.transform.a, box.transform.e) == (step, -step)
        assert str(box.crs) == tree.xpath("string(//HORIZONTAL_CS_CODE)")
    assert [float(found.mean_sun.zenith), float(found.mean_sun.azimuth)] == numbers(
        tree, "//Mean_Sun_Angle/ZENITH_ANGLE/text() | //Mean_Sun_Angle/AZIMUTH_ANGLE/text()"
    )
    listed = [(node.get("type"), node.get("bandId"), node.text) for node in tree.xpath("//MASK_FILENAME")]
    assert [
        (mask.kind, str(NAMES.index(mask.band)) if mask.band else None, mask.path) for mask in found.masks
    ] == listed


def test_angles_are_merged_over_detectors(documents):
    found, tree = parse_tile(documents[1].read_bytes(), "x"), etree.parse(documents[1])

    def grid(node, name):
        return np.array([row.text.split() for row in node.findall(f"{name}/Values_List/VALUES")], float)

    sun = tree.xpath("//Sun_Angles_Grid")[0]
    np.testing.assert_array_equal(found.sun.zenith, grid(sun, "Zenith"))
    np.testing.assert_array_equal(found.sun.azimuth, grid(sun, "Azimuth"))
    for number, name in enumerate(NAMES):
        nodes = tree.xpath(f"//Viewing_Incidence_Angles_Grids[@bandId='{number}']")
        zenith, azimuth = (np.stack([grid(node, part) for node in nodes]) for part in ("Zenith", "Azimuth"))
        count = np.isfinite(zenith).sum(axis=0)
        merged = found.view[name]
        np.testing.assert_array_equal(np.isnan(merged.zenith), count == 0)
        single = count == 1
        assert single.any()
        for values, grids in ((merged.zenith, zenith), (merged.azimuth, azimuth)):
            np.testing.assert_array_equal(values[single], np.nansum(grids, axis=0)[single])
        several = count > 1
        if several.any():  # a mean of directions is no more slanted than the most slanted of them
            assert (merged.zenith[several] <= np.nanmax(zenith[:, several], axis=0) + 1e-9).all()


def test_directions_are_averaged_as_vectors():
    """Azimuths of 350 and 10 deg have north between them, not south; opposite ones at equal slants look straight up."""
    one, other = (
        Angles(np.full((1, 2), 5.0), np.array([[350.0, 90]])),
        Angles(np.full((1, 2), 5.0), np.array([[10.0, 270]])),
    )
    merged = merge([one, other])
    assert min(merged.azimuth[0, 0], 360 - merged.azimuth[0, 0]) == pytest.approx(0, abs=1e-9)
    assert merged.zenith[0, 1] == pytest.approx(0, abs=1e-9)


def damaged(text: str, old: str, new: str) -> bytes:
    assert old in text
    return text.replace(old, new).encode()


@pytest.fixture
def document(shared_data: Path) -> str:
    path = shared_data / "sentinel2_safe_metadata" / f"{PRODUCTS[2]}.SAFE/MTD_MSIL2A.xml"
    if not path.is_file():
        pytest.skip(f"the real metadata are not at {path}")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('<BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>', "", "not for B04"),
        ('<BOA_ADD_OFFSET band_id="3">-1000<', '<BOA_ADD_OFFSET band_id="3">nothing<', "holds no numbers"),
        ('<BOA_ADD_OFFSET band_id="3">', '<BOA_ADD_OFFSET band_id="77">', "expected 0 to 12"),
        (">10000</BOA_QUANTIFICATION_VALUE>", ">0</BOA_QUANTIFICATION_VALUE>", "cannot be"),
        ("BOA_QUANTIFICATION_VALUE", "SOME_OTHER_VALUE", "BOA_QUANTIFICATION_VALUE is missing"),
        ('physicalBand="B8A"', 'physicalBand="B9"', "expected B8A"),
        ("<RESOLUTION>60</RESOLUTION>", "<RESOLUTION>30</RESOLUTION>", "expected 10, 20 or 60"),
        ('<STEP unit="nm">1<', '<STEP unit="nm">1e9<', "cannot be"),
        ("Level-2A_User_Product", "Level-9_User_Product", "expected Level-1C_User_Product"),
        ("PRODUCT_START_TIME>2023", "PRODUCT_START_TIME>9999", "of our age"),
    ],
)
def test_damaged_documents_are_refused_with_the_element(document, old, new, message):
    with pytest.raises(InputError, match=message):
        parse_product(damaged(document, old, new), "MTD_MSIL2A.xml")
