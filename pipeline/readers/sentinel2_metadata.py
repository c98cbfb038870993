"""MTD_MSIL1C.xml and MTD_MSIL2A.xml: scales, offsets, responses and the list of files, as the document states them.

Reflectance is (DN + offset) / quantification. The offset came with processing baseline 04.00; older documents have no
such element, and then it is 0. It is never told from a date or a baseline: reprocessed products of old dates have it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.srf import Response, half_maximum_width

from .sentinel2_bands import NAMES, Band, band_name
from .xml_tree import Node

RESOLUTIONS = (10, 20, 60)
MOST_IMAGES = 200
LARGEST_OFFSET = 30000
_INFO = "{*}General_Info/Product_Info"
_IMAGE = "{*}General_Info/Product_Image_Characteristics"
_PATHS = {
    "L1C": (f"{_IMAGE}/QUANTIFICATION_VALUE", f"{_IMAGE}/Radiometric_Offset_List/RADIO_ADD_OFFSET"),
    "L2A": (
        f"{_IMAGE}/QUANTIFICATION_VALUES_LIST/BOA_QUANTIFICATION_VALUE",
        f"{_IMAGE}/BOA_ADD_OFFSET_VALUES_LIST/BOA_ADD_OFFSET",
    ),
}
"""Where each level keeps its quantification and its offsets."""
_TEXTS = {
    "processing_version": "PROCESSING_BASELINE",
    "processing_time": "GENERATION_TIME",
    "orbit_direction": "Datatake/SENSING_ORBIT_DIRECTION",
    "datatake_type": "Datatake/DATATAKE_TYPE",
}


@dataclass(frozen=True, eq=False)
class ProductMetadata:
    """What the product's document says.

    Attributes:
        name: of the product, without `.SAFE`.
        level: `L1C` or `L2A`.
        sensor: such as `Sentinel-2A`.
        start: first line taken, UTC.
        stop: last line taken, UTC.
        bands: all 13 bands by name, whether or not the product has images of them.
        quantification: divisor of DN + offset.
        offset: DN to be added, by band name; zeros where the document states none.
        offset_stated: whether it states any.
        nodata: DN that stands for "no value".
        saturated: DN that stands for "saturated".
        images: paths of the images inside the product, without suffix, as listed.
        attrs: further JSON-like values, under the names that a Scene carries them by.
    """

    name: str
    level: str
    sensor: str
    start: datetime
    stop: datetime
    bands: Mapping[str, Band]
    quantification: float
    offset: Mapping[str, float]
    offset_stated: bool
    nodata: int
    saturated: int
    images: tuple[str, ...]
    attrs: Mapping[str, Any]


def parse_product(document: bytes, origin: str) -> ProductMetadata:
    """Parse MTD_MSIL1C.xml or MTD_MSIL2A.xml.

    Args:
        document: the XML.
        origin: name of the file, for messages.

    Raises:
        InputError: not such a document, or an element that reflectance depends on is missing, wrong, or there for
            some of the bands only; names element and file.
    """
    root = Node.parse(document, origin)
    level = _level(root)
    info = root.one(_INFO)
    quantification_path, offset_path = _PATHS[level]
    quantification = root.number(quantification_path)
    if not 1 <= quantification <= 1e6:
        raise InputError(f"{origin}: a quantification of {quantification:g} cannot be; expected 10000 or the like")
    offset = _offsets(root, offset_path)
    nodata, saturated = _special_values(root)
    return ProductMetadata(
        name=info.text("PRODUCT_URI").removesuffix(".SAFE"),
        level=level,
        sensor=info.text("Datatake/SPACECRAFT_NAME"),
        start=info.time("PRODUCT_START_TIME"),
        stop=info.time("PRODUCT_STOP_TIME"),
        bands=_bands(root),
        quantification=quantification,
        offset=offset or dict.fromkeys(NAMES, 0.0),
        offset_stated=bool(offset),
        nodata=nodata,
        saturated=saturated,
        images=_images(info),
        attrs=_attrs(root, info),
    )


def _level(root: Node) -> str:
    found = re.fullmatch(r"(\{[^}]*\})?Level-(1C|2A)_User_Product", root.element.tag)
    if found is None:
        raise InputError(
            f"{root.origin}: the root element is <{root.element.tag[:80]}>, expected Level-1C_User_Product or "
            "Level-2A_User_Product of Sentinel-2"
        )
    return f"L{found[2]}"


def _offsets(root: Node, path: str) -> dict[str, float]:
    """Offset by band; empty where the document has none at all."""
    offsets: dict[str, float] = {}
    for node in root.all(path):
        value = node.number(".")
        if abs(value) > LARGEST_OFFSET:
            raise InputError(f"{root.origin}: an offset of {value:g} cannot be; expected -1000 or the like")
        offsets[NAMES[node.index("band_id", len(NAMES))]] = value
    missing = [name for name in NAMES if name not in offsets]
    if offsets and missing:
        raise InputError(f"{root.origin}: {path.rpartition('/')[2]} is stated, but not for {', '.join(missing)}")
    return offsets


def _special_values(root: Node) -> tuple[int, int]:
    """DN of nodata and of saturation; 0 and 65535 where the document does not say."""
    found = {"NODATA": 0, "SATURATED": 65535}
    for node in root.all(f"{_IMAGE}/Special_Values"):
        value = node.number("SPECIAL_VALUE_INDEX")
        if not (value.is_integer() and 0 <= value <= 65535):
            raise InputError(f"{root.origin}: SPECIAL_VALUE_INDEX is {value:g}, expected 0 to 65535")
        found[node.text("SPECIAL_VALUE_TEXT")] = int(value)
    return found["NODATA"], found["SATURATED"]


def _bands(root: Node) -> dict[str, Band]:
    bands = {}
    for node in root.all(f"{_IMAGE}/Spectral_Information_List/Spectral_Information"):
        name = NAMES[node.index("bandId", len(NAMES))]
        called = node.element.get("physicalBand", name)
        if band_name(called) != name:
            raise InputError(f"{root.origin}: bandId {NAMES.index(name)} is called {called!r}, expected {name}")
        resolution = node.whole("RESOLUTION", 60)
        if resolution not in RESOLUTIONS:
            raise InputError(f"{root.origin}: {name} has a resolution of {resolution} m; expected 10, 20 or 60")
        bands[name] = Band(name, resolution, _response(node, name))
    missing = [name for name in NAMES if name not in bands]
    if missing:
        raise InputError(f"{root.origin}: Spectral_Information_List lacks {', '.join(missing)}")
    return bands


def _response(node: Node, name: str) -> Response:
    """Centre, width at half maximum and curve of a band; the curve begins at MIN and goes in steps of STEP."""
    values = node.numbers("Spectral_Response/VALUES")
    start, step = node.number("Wavelength/MIN"), node.number("Spectral_Response/STEP")
    centre = node.number("Wavelength/CENTRAL")
    sound = np.isfinite(values).all() and values.size > 1 and values.max() > 0 and 0.1 <= step <= 100
    wavelength = np.asarray(start + step * np.arange(values.size), np.float64)
    if not (sound and start > 300 and wavelength[0] <= centre <= wavelength[-1] < 3000):
        raise InputError(
            f"{node.origin}: the response of {name} cannot be: {values.size} values from {start:g} nm in steps of "
            f"{step:g} nm about a centre of {centre:g} nm"
        )
    return Response(name, centre, half_maximum_width(wavelength, values), (wavelength, values))


def _images(info: Node) -> tuple[str, ...]:
    path = "Product_Organisation/Granule_List/Granule"
    granules = info.all(path)
    images = tuple(node.text(".") for granule in granules for node in granule.all("IMAGE_FILE"))
    if len(granules) != 1 or not 1 <= len(images) <= MOST_IMAGES:
        raise InputError(
            f"{info.origin}: {path} lists {len(granules)} tiles and {len(images)} IMAGE_FILE; expected one tile with "
            "its images. Products from before December 2016 hold several tiles: fetch the tile's own product"
        )
    return images


def _attrs(root: Node, info: Node) -> dict[str, Any]:
    attrs: dict[str, Any] = {key: info.optional(path) for key, path in _TEXTS.items()}
    attrs["relative_orbit"] = info.whole("Datatake/SENSING_ORBIT_NUMBER", 143)
    attrs["cloud_cover"] = root.optional_number("{*}Quality_Indicators_Info/Cloud_Coverage_Assessment")
    content = "{*}Quality_Indicators_Info/Image_Content_QI"
    for key, path in {
        "snow_cover": "SNOW_ICE_PERCENTAGE",
        "water_cover": "WATER_PERCENTAGE",
        "cloud_shadow_cover": "CLOUD_SHADOW_PERCENTAGE",
        "cirrus_cover": "THIN_CIRRUS_PERCENTAGE",
        "aerosol_optical_thickness": "GRANULE_MEAN_AOT",
        "water_vapour_cm": "GRANULE_MEAN_WV",
    }.items():
        attrs[key] = root.optional_number(f"{content}/{path}")
    footprint = _footprint(root)
    return {key: value for key, value in attrs.items() if value not in (None, "")} | footprint


def _footprint(root: Node) -> dict[str, Any]:
    """Corners as `[longitude, latitude]`; the document lists latitude first, and closes the ring."""
    path = "{*}Geometric_Info/Product_Footprint/Product_Footprint/Global_Footprint/EXT_POS_LIST"
    if not root.optional(path):
        return {}
    values = root.numbers(path)
    if values.size % 2 or values.size < 8 or not np.isfinite(values).all():
        return {}
    latitude, longitude = values.reshape(-1, 2).T
    if np.abs(latitude).max() > 90 or np.abs(longitude).max() > 180:
        raise InputError(f"{root.origin}: Global_Footprint holds coordinates that are no degrees")
    ring = [[float(x), float(y)] for x, y in zip(longitude, latitude, strict=True)]
    return {"footprint": ring[:-1] if ring[0] == ring[-1] else ring}
