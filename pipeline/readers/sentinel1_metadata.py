"""What a Sentinel-1 GRD product's manifest and annotations say."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.grids import Shape

from .sentinel1_geolocation import GeolocationGrid
from .xml_tree import Node

LARGEST_SIDE = 100_000
"""Lines or samples of an image; interferometric wide swath has 17 000 x 26 000."""
MOST_POINTS = 100_000
_LEVEL1 = "standAloneProductInformation"


@dataclass(frozen=True, eq=False)
class ImageMetadata:
    """What the annotation of one polarisation says.

    Attributes:
        polarisation: `VV`, `VH`, `HH` or `HV`.
        start: first line's time, UTC.
        stop: last line's time, UTC.
        shape: lines and samples.
        spacing: of lines and samples on the ground, m.
        frequency: of the radar, Hz.
        bandwidth: of its pulses, mean over the swaths, Hz.
        looks: range times azimuth looks, mean over the swaths.
        denoised: whether the processor removed thermal noise already.
        points: the geolocation grid.
        attrs: what else goes into the Scene.
    """

    polarisation: str
    start: datetime
    stop: datetime
    shape: Shape
    spacing: tuple[float, float]
    frequency: float
    bandwidth: float
    looks: float
    denoised: bool
    points: GeolocationGrid
    attrs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ProductMetadata:
    """What the manifest says: `Sentinel-1A` and such, the processor's version (0 where unknown), and more."""

    sensor: str
    version: float
    attrs: Mapping[str, Any]


def parse_manifest(root: Node) -> ProductMetadata:
    """Parse manifest.safe.

    Raises:
        InputError: not of a GRD product of Sentinel-1, or an element is missing.
    """
    family = root.optional(".//{*}platform/{*}familyName").upper()
    if family != "SENTINEL-1":
        raise InputError(f"{root.origin}: platform is {family[:40] or 'not stated'!r}, expected SENTINEL-1")
    kind = root.text(f".//{{*}}{_LEVEL1}/{{*}}productType")
    if kind != "GRD":
        raise InputError(
            f"{root.origin}: a product of type {kind[:20]!r}; of Sentinel-1, GRD is read, so detect it first"
        )
    version = _version(root)
    attrs: dict[str, Any] = {
        "processing_version": f"{version:05.2f}" if version else "",
        "orbit_direction": root.optional(".//{*}orbitProperties/{*}pass").lower(),
        "absolute_orbit": root.optional(".//{*}orbitReference/{*}orbitNumber"),
        "relative_orbit": root.optional(".//{*}orbitReference/{*}relativeOrbitNumber"),
        "license": "Copernicus Sentinel data: free, full and open access",
    }
    unit = root.optional(".//{*}platform/{*}number")
    return ProductMetadata(
        f"Sentinel-1{unit[:1]}", version, {key: value for key, value in attrs.items() if value} | _footprint(root)
    )


def parse_annotation(root: Node) -> ImageMetadata:
    """Parse the annotation of one polarisation.

    Raises:
        InputError: not such a document, or an element is missing or wrong; names element and file.
    """
    image, header = root.one("imageAnnotation/imageInformation"), root.one("adsHeader")
    swaths = root.all("imageAnnotation/processingInformation/swathProcParamsList/swathProcParams")
    general = root.one("generalAnnotation/productInformation")
    if not swaths:
        raise InputError(f"{root.origin}: lists no swathProcParams; the metadata are incomplete")
    looks = [
        node.number("rangeProcessing/numberOfLooks") * node.number("azimuthProcessing/numberOfLooks") for node in swaths
    ]
    shape = image.whole("numberOfLines", LARGEST_SIDE), image.whole("numberOfSamples", LARGEST_SIDE)
    spacing = image.number("azimuthPixelSpacing"), image.number("rangePixelSpacing")
    frequency = general.number("radarFrequency")
    bandwidth = float(np.mean([node.number("rangeProcessing/totalBandwidth") for node in swaths]))
    if min(*spacing, frequency, bandwidth, *looks) <= 0:
        raise InputError(f"{root.origin}: pixel spacing, radar frequency, bandwidth or looks are not above zero")
    return ImageMetadata(
        polarisation=header.text("polarisation"),
        start=header.time("startTime"),
        stop=header.time("stopTime"),
        shape=shape,
        spacing=spacing,
        frequency=frequency,
        bandwidth=bandwidth,
        looks=float(np.mean(looks)),
        denoised=root.optional("imageAnnotation/processingInformation/thermalNoiseCorrectionPerformed") == "true",
        points=_points(root, shape),
        attrs={
            "instrument_mode": header.text("mode"),
            "platform_heading": general.number("platformHeading"),
            "incidence_angle_mid_swath": image.number("incidenceAngleMidSwath"),
        },
    )


def _version(root: Node) -> float:
    """Version of the processor (IPF); 0 where it is not stated."""
    for node in root.all(".//{*}software"):
        if "IPF" in node.element.get("name", ""):
            try:
                return float(node.element.get("version", ""))
            except ValueError:
                break
    return 0.0


def _footprint(root: Node) -> dict[str, Any]:
    """Corners as `[longitude, latitude]`; the manifest lists latitude first."""
    text = root.optional(".//{*}footPrint/{*}coordinates").replace(",", " ").split()
    try:
        values = np.array(text, float).reshape(-1, 2)
    except ValueError:
        return {}
    if len(values) < 4 or not (np.abs(values) <= (90, 180)).all():
        return {}
    ring = [[float(longitude), float(latitude)] for latitude, longitude in values]
    return {"footprint": ring[:-1] if ring[0] == ring[-1] else ring}


def _points(root: Node, shape: Shape) -> GeolocationGrid:
    nodes = root.all("geolocationGrid/geolocationGridPointList/geolocationGridPoint")
    if not 4 <= len(nodes) <= MOST_POINTS:
        raise InputError(f"{root.origin}: the geolocation grid has {len(nodes)} points, expected 4 to {MOST_POINTS:,}")
    names = ("line", "pixel", "latitude", "longitude", "height", "incidenceAngle")
    return GeolocationGrid.from_points(
        np.array([[node.number(name) for name in names] for node in nodes]), shape, root.origin
    )
