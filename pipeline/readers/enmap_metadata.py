"""EnMAP's METADATA.XML as plain values (DLR's schema `level_X`, versions 00.02.00 and later).

Element paths are those of the EnMAP HSI product specification (EN-PCV-ICD-2009-2); `-999` stands for "not given".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.grids import Shape

from .bands import BoolArray, FloatArray, StrArray, split_overlap
from .xml_tree import Node

LEVELS = ("L1B", "L1C", "L2A")
NOT_GIVEN = -999.0
EMPTY_MEAN = -1_000_000.0
"""Mean of a band without any data, in `product/bandStatistics`."""
CORNERS = ("upper_left", "lower_left", "lower_right", "upper_right")

LARGEST_FACTOR = 1e6
"""Gains and offsets are some 1e-4 and 1e-1."""
MOST_BANDS = 9999
LARGEST_SIDE = 1_000_000
"""px."""

Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class BandTable:
    """Bands in the order of the XML; one entry a band in every field.

    Attributes:
        number: band number, 1-based.
        wavelength: centre wavelength, nm.
        fwhm: full width at half maximum, nm.
        gain: physical value = DN * gain + offset: reflectance (L2A) or W m-2 sr-1 nm-1 (L1).
        offset: see gain.
        detector: `vnir` or `swir`.
        empty: True where the product holds no data at all.
    """

    number: Any
    wavelength: FloatArray
    fwhm: FloatArray
    gain: FloatArray
    offset: FloatArray
    detector: StrArray
    empty: BoolArray

    def take(self, index: Any) -> "BandTable":  # noqa: ANN401 - any NumPy index
        """The bands at `index`."""
        names = ("number", "wavelength", "fwhm", "gain", "offset", "detector", "empty")
        return BandTable(*(getattr(self, name)[index] for name in names))


@dataclass(frozen=True)
class EnmapMetadata:
    """What METADATA.XML says about a product.

    Attributes:
        name: product name without suffix, such as `ENMAP01-____L2A-DT..._V010302_...Z`; may be empty.
        level: `L1B`, `L1C` or `L2A`.
        start: first line taken, UTC.
        stop: last line taken, UTC.
        bands: the band table.
        shapes: height and width, px, of each cube: `merge`, or `vnir` and `swir`.
        corners: longitude and latitude of the swath's corners by name; empty where not given.
        rpc: rational polynomial coefficients by band number, as keyword arguments of `rasterio.rpc.RPC`.
        attrs: further JSON-like values, under the names that a Scene carries them by; absent where not given.
    """

    name: str
    level: str
    start: datetime
    stop: datetime
    bands: BandTable
    shapes: Mapping[str, Shape]
    corners: Mapping[str, Point]
    rpc: Mapping[int, Mapping[str, Any]]
    attrs: Mapping[str, Any]


def parse_metadata(document: bytes, origin: str) -> EnmapMetadata:
    """Parse METADATA.XML.

    Args:
        document: the XML.
        origin: name of the file, for messages.

    Raises:
        InputError: not an EnMAP document, or a mandatory element is missing or not a number; names element and file.
    """
    root = _Node.parse(document, origin)
    if root.element.tag != "level_X":
        raise InputError(f"{origin}: the root element is <{root.element.tag}>, expected EnMAP's <level_X>")
    level = root.text("base/level")
    if level not in LEVELS:
        raise InputError(f"{origin}: base/level is {level!r}; EnMAP products are {', '.join(LEVELS)}")
    return EnmapMetadata(
        name=root.optional("metadata/name").removesuffix(".XML").removesuffix(".xml").removesuffix("-METADATA"),
        level=level,
        start=root.time("base/temporalCoverage/startTime"),
        stop=root.time("base/temporalCoverage/stopTime"),
        bands=_band_table(root),
        shapes=_shapes(root),
        corners=_corners(root),
        rpc=_rpc(root) if level == "L1B" else {},
        attrs=_attrs(root),
    )


class _Node(Node):
    """An element of EnMAP's XML, where `NA` and a number of its own stand for what is not given."""

    def optional(self, path: str) -> str:
        text = super().optional(path)
        return "" if text == "NA" else text

    def optional_number(self, path: str) -> float | None:
        value = super().optional_number(path)
        return None if value == NOT_GIVEN else value

    def identity(self) -> int:
        """Number of the band that the element is about."""
        return self.index("number", MOST_BANDS + 1, least=1)


def _band_table(root: _Node) -> BandTable:
    nodes = root.all("specific/bandCharacterisation/bandID")
    if not nodes:
        raise InputError(f"{root.origin}: specific/bandCharacterisation lists no bands; the metadata are incomplete")
    number = np.array([node.identity() for node in nodes])
    if np.unique(number).size != number.size:
        raise InputError(f"{root.origin}: specific/bandCharacterisation lists a band number twice")
    paths = ("wavelengthCenterOfBand", "FWHMOfBand", "GainOfBand", "OffsetOfBand")
    wavelength, fwhm, gain, offset = np.array([[node.number(path) for path in paths] for node in nodes]).T
    for name, values, sound in (
        ("wavelengthCenterOfBand", wavelength, wavelength > 0),
        ("FWHMOfBand", fwhm, fwhm > 0),
        ("GainOfBand", gain, np.abs(gain) < LARGEST_FACTOR),
        ("OffsetOfBand", offset, np.abs(offset) < LARGEST_FACTOR),
    ):
        if not sound.all():
            at = int(np.argmin(sound))
            raise InputError(
                f"{root.origin}: element {name} of band {number[at]} holds {values[at]:g}, which cannot be; "
                "the metadata are damaged: fetch the product again"
            )
    empty = np.isin(number, _empty_bands(root))
    return BandTable(number, wavelength, fwhm, gain, offset, _detectors(root, wavelength), empty)


def _empty_bands(root: _Node) -> list[int]:
    return [
        node.identity()
        for node in root.all("product/bandStatistics/bandID")
        if node.optional_number("mean") == EMPTY_MEAN and node.optional_number("stdDeviation") == 0
    ]


def _detectors(root: _Node, wavelength: FloatArray) -> StrArray:
    """Detector of each band, in the order of the XML.

    L1B lists VNIR, then SWIR. The other levels list all bands by wavelength; there `expectedChannelsList` gives each
    detector's positions, and where the two lists do not share out all bands, the overlap is split by its spacing.
    """
    vnir, swir = (int(root.number(f"specific/numberOf{key}Bands")) for key in ("VNIR", "SWIR"))
    found = len(wavelength)
    if vnir + swir != found:
        raise InputError(
            f"{root.origin}: {found} bands are characterised, but specific/numberOfVNIRBands + numberOfSWIRBands "
            f"is {vnir} + {swir}"
        )
    falls = np.flatnonzero(np.diff(wavelength) < 0) + 1
    if falls.tolist() == [vnir]:
        return np.repeat(["vnir", "swir"], [vnir, swir])
    if falls.size:
        raise InputError(
            f"{root.origin}: the bands are listed neither by wavelength nor VNIR before SWIR; the wavelengths fall at "
            f"bands {falls[:5].tolist()}"
        )
    listed = _channel_lists(root, found)
    return listed if listed is not None else _split(root, wavelength, swir)


def _split(root: _Node, wavelength: FloatArray, swir: int) -> StrArray:
    detector = split_overlap(wavelength)
    if (detector == "swir").sum() != swir:
        raise InputError(
            f"{root.origin}: cannot tell the detectors of the bands in the overlap: specific/vnirProductQuality/"
            "expectedChannelsList and that of swirProductQuality do not share out the bands, and the wavelengths "
            f"suggest {(detector == 'swir').sum()} SWIR bands where {swir} are stated"
        )
    return detector


def _channel_lists(root: _Node, found: int) -> StrArray | None:
    """Detector by position in the order of wavelength; None where the lists do not share out all positions."""
    detector = np.full(found, "", dtype="<U4")
    for key in ("vnir", "swir"):
        listed = root.optional(f"specific/{key}ProductQuality/expectedChannelsList").split(",")
        if not all(item.strip().isdecimal() and len(item.strip()) < 5 for item in listed):
            return None
        position = np.array([int(item) for item in listed]) - 1
        if position.min() < 0 or position.max() >= found or (detector[position] != "").any():
            return None
        detector[position] = key
    return None if (detector == "").any() else detector


def _shapes(root: _Node) -> dict[str, Shape]:
    shapes = {}
    for key in ("merge", "vnir", "swir"):
        for node in root.all(f"product/image/{key}"):
            shapes[key] = (
                node.whole("dimension/rows", LARGEST_SIDE),
                node.whole("dimension/columns", LARGEST_SIDE),
            )
    return shapes


def _corners(root: _Node) -> dict[str, Point]:
    corners = {}
    for node in root.all("base/spatialCoverage/boundingPolygon/point"):
        frame, lon, lat = node.optional("frame"), node.optional_number("longitude"), node.optional_number("latitude")
        if frame in CORNERS and lon is not None and lat is not None:
            if abs(lon) > 180 or abs(lat) > 90:
                raise InputError(f"{root.origin}: corner {frame} of boundingPolygon lies at {lon:g}, {lat:g} degrees")
            corners[frame] = (lon, lat)
    return corners if len(corners) == len(CORNERS) else {}


_RPC_NUMBERS = {
    f"{ours}_{kind}": f"{theirs}_{kind.upper()}"
    for ours, theirs in {"line": "ROW", "samp": "COL", "lat": "LAT", "long": "LONG", "height": "HEIGHT"}.items()
    for kind in ("off", "scale")
}
_RPC_LISTS = {
    f"{ours}_{kind}_coeff": [f"{theirs}_{kind.upper()}_{n:02}" for n in range(1, 21)]
    for ours, theirs in {"line": "ROW", "samp": "COL"}.items()
    for kind in ("num", "den")
}


def _rpc(root: _Node) -> dict[int, dict[str, Any]]:
    coefficients = {}
    for node in root.all("product/navigation/RPC/bandID"):
        model: dict[str, Any] = {key: node.number(path) for key, path in _RPC_NUMBERS.items()}
        model |= {key: [node.number(path) for path in paths] for key, paths in _RPC_LISTS.items()}
        coefficients[node.identity()] = model
    return coefficients


_NUMBERS = {
    "sun_elevation": "specific/sunElevationAngle/center",
    "sun_azimuth": "specific/sunAzimuthAngle/center",
    "view_azimuth": "specific/sceneAzimuthAngle/center",
    "cloud_cover": "specific/qualityFlag/cloudCover",
    "cloud_shadow_cover": "specific/qualityFlag/cloudShadow",
    "haze_cover": "specific/qualityFlag/hazeCover",
    "cirrus_cover": "specific/qualityFlag/cirrusCover",
    "snow_cover": "specific/qualityFlag/snowCover",
    "water_cover": "specific/qualityFlag/waterCover",
    "mean_ground_elevation": "specific/meanGroundElevation",
}
"""Angles in degrees, covers in percent of the imaged swath, elevation in m."""
_TEXTS = {
    "processing_version": "base/revision",
    "processing_time": "specific/processingDateTime",
    "attribution": "metadata/copyright",
    "citation": "metadata/citation",
}
_L2A_OPTIONS = (
    "correctionType",
    "terrainCorrection",
    "cirrusHazeRemoval",
    "bandInterpolation",
    "waterType",
    "season",
    "ozoneValue",
    "DEMDBVersion",
)


def _attrs(root: _Node) -> dict[str, Any]:
    attrs: dict[str, Any] = {key: root.optional_number(path) for key, path in _NUMBERS.items()}
    attrs |= {key: root.optional(path) for key, path in _TEXTS.items()}
    across = root.optional_number("specific/acrossOffNadirAngle/center")
    attrs["view_off_nadir"] = None if across is None else abs(across)
    for key, path in {"aerosol_optical_thickness": "sceneAOT", "water_vapour_cm": "sceneWV"}.items():
        thousandfold = root.optional_number(f"specific/qualityFlag/{path}")
        attrs[key] = None if thousandfold is None else thousandfold / 1000
    attrs["atmospheric_correction"] = _given({key: root.optional(f"processing/{key}") for key in _L2A_OPTIONS})
    return _given(attrs)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value not in ("", {})}
