"""METADATA.XML in the structure of DLR's products: what readers look for, from facts that the product gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from .bands import BandTable
from .geometry import CORNERS, Rpc, Swath
from .options import LINE_SECONDS, Options, Site

VNIR_QUICKLOOK, SWIR_QUICKLOOK = (847.1, 671.21, 548.06), (2201.0, 1645.3, 1051.3)
"""Red, green and blue of the quicklooks, nm."""

_FRAMES = ("upper_left", "lower_left", "lower_right", "upper_right", "upper_left", "center")
_SUN_ASPECT = {"sunElevationAngle": 0.15, "sunAzimuthAngle": 0.3}


@dataclass(frozen=True)
class BandFacts:
    """One band as the XML lists it; `mean` and `std` are physical, None for a band without data."""

    number: int
    wavelength: float
    fwhm: float
    gain: float
    offset: float
    mean: float | None
    std: float
    rpc: Rpc


@dataclass(frozen=True)
class CubeFacts:
    """One cube: `merge`, `vnir` or `swir`, its file and size."""

    kind: str
    file: str
    shape: tuple[int, int]
    bands: int
    kilobytes: int


@dataclass(frozen=True)
class Facts:
    """All that the XML says about a product."""

    name: str
    options: Options
    site: Site
    swath: Swath
    bands: Sequence[BandFacts]
    cubes: Sequence[CubeFacts]
    covers: Mapping[str, float]
    dead: Mapping[str, int]
    files: Sequence[tuple[str, int]]


class _Element(str):
    """Text that is already XML."""

    __slots__ = ()


def tag(name: str, *content: object, **attributes: object) -> _Element:
    """An element; content that is itself an element stands on its own lines, anything else is escaped text."""
    head = name + "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    if not content:
        return _Element(f"<{head}/>")
    parts = [str(part) if isinstance(part, _Element) else escape(str(part)) for part in content]
    inner = "\n".join(parts)
    return _Element(
        f"<{head}>\n{inner}\n</{name}>" if isinstance(content[0], _Element) else f"<{head}>{inner}</{name}>"
    )


def render(facts: Facts) -> str:
    """The whole document."""
    body = tag(
        "level_X",
        _metadata(facts),
        _processing(facts),
        _base(facts),
        _specific(facts),
        _product(facts),
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _leaves(values: Mapping[str, object]) -> list[str]:
    return [tag(name, value) for name, value in values.items()]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _metadata(facts: Facts) -> str:
    level = facts.options.level
    schema = tag("schema", tag("versionSchema", "00.06.00"), tag("processingLevel", level))
    comment = f"Simulated EnMAP Level {level[1:]} product, seed {facts.options.seed}"
    return tag("metadata", schema, tag("name", f"{facts.name}-METADATA.XML"), tag("comment", comment))


def _processing(facts: Facts) -> str:
    ortho, surface = facts.options.level != "L1B", facts.options.level == "L2A"
    return tag(
        "processing",
        *_leaves(
            {
                "terrainCorrection": "Yes" if surface else "NA",
                "ozoneValue": 300 if surface else "NA",
                "season": "summer" if surface else "NA",
                "productFormat": "GeoTIFF+Metadata",
                "mapProjection": "UTM_Zone_of_Scene_Center" if ortho else "NA",
                "imageResampling": "Nearest_Neighbour" if ortho else "NA",
                "DEMDBVersion": "SRTM_C1ARC" if surface else "NA",
                "correctionType": "Land_Mode" if surface else "NA",
                "cirrusHazeRemoval": "No" if surface else "NA",
                "bandInterpolation": "No" if surface else "NA",
                "waterType": "Turbid" if surface else "NA",
            }
        ),
    )


def _polygon(name: str, corners: Mapping[str, tuple[float, float]], times: Mapping[str, str]) -> str:
    points = [
        tag(
            "point",
            tag("frame", frame),
            tag("latitude", f"{corners[frame][0]:.9f}", unit="DEG"),
            tag("longitude", f"{corners[frame][1]:.9f}", unit="DEG"),
            tag("utcTime", times.get(frame, "NA")),
        )
        for frame in _FRAMES
    ]
    return tag(name, tag("boundingPolygon", *points))


def _base(facts: Facts) -> str:
    site, version = facts.site, facts.options.version
    middle = site.start + (site.stop - site.start) / 2
    moments = {"upper": _time(site.start), "lower": _time(site.stop), "center": _time(middle)}
    times = {frame: moments[frame.split("_")[0]] for frame in CORNERS}
    return tag(
        "base",
        _polygon("spatialCoverage", facts.swath.corners, times),
        tag("temporalCoverage", tag("startTime", _time(site.start)), tag("stopTime", _time(site.stop))),
        *_leaves(
            {
                "revision": version,
                "altitudeCoverage": 651000.0,
                "sphere": "earth",
                "format": f"ENMAP_{facts.options.level}",
                "level": facts.options.level,
                "size": sum(size for _, size in facts.files),
                "archivedVersion": version,
            }
        ),
    )


def _quality(facts: Facts) -> str:
    flags: dict[str, object] = {}
    for detector in ("VNIR", "SWIR"):
        flags |= {f"overallQuality{detector}": 0, f"deadPixels{detector}": facts.dead.get(detector.lower(), 0)}
        flags |= {f"stripingBanding{detector}": 0, f"generalArtifacts{detector}": 0}
    sky = facts.site.sky
    flags |= {"overallQuality": 0, "qualityAtmosphere": 0, "sceneSZA": f"{sky.sun_zenith:.6f}", "sceneSunglint": -999}
    flags |= {name: round(percent) for name, percent in facts.covers.items()}
    surface = facts.options.level == "L2A"
    flags["sceneWV"] = round(1000 * sky.water_vapour) if surface else -999
    flags["sceneAOT"] = round(1000 * sky.aerosol) if surface else -999
    return tag("qualityFlag", *_leaves(flags))


def _channels(detector: str, table: BandTable) -> str:
    positions = table.of(detector) + 1
    return tag(
        f"{detector}ProductQuality",
        *_leaves(
            {
                f"{detector}ProductStatus": "OK",
                "numChannelsExpected": positions.size,
                "expectedChannelsList": ",".join(map(str, positions)),
                "numChannelsMissing": 0,
            }
        ),
        tag("missingChannelsList"),
    )


def _angles(facts: Facts) -> list[_Element]:
    """Angles at the corners: the sun moves a little over the scene, the view angle runs from side to side."""
    sky = facts.site.sky
    north = facts.site.place[0] >= 0
    elements = []
    centre = {
        "sunElevationAngle": 90 - sky.sun_zenith,
        "sunAzimuthAngle": sky.sun_azimuth,
        "acrossOffNadirAngle": sky.view_zenith,
        "alongOffNadirAngle": 0.05,
        "sceneAzimuthAngle": np.degrees(facts.swath.angle),
    }
    for name, middle in centre.items():
        corners = []
        for corner, (line, column) in CORNERS.items():
            value = float(middle)
            if name in _SUN_ASPECT:
                value += (
                    _SUN_ASPECT[name]
                    * ((line - 0.5) * (1 if north else -1) + (column - 0.5))
                    * facts.swath.lines
                    / 1024
                )
            elif name == "acrossOffNadirAngle":
                value -= 2.63 * (column - 0.5) * facts.swath.columns / 1000
            elif name != "sunAzimuthAngle":
                value -= 0.08 * (line - 0.5)
            corners.append(tag(corner, f"{value:.6f}", unit="DEG"))
        elements.append(tag(name, *corners))
    return elements


def _specific(facts: Facts) -> str:
    options, site, swath = facts.options, facts.site, facts.swath
    table = options.bands
    bands = [
        tag(
            "bandID",
            tag("wavelengthCenterOfBand", f"{band.wavelength:.6g}"),
            tag("FWHMOfBand", f"{band.fwhm:.6g}"),
            tag("GainOfBand", f"{band.gain:.12g}"),
            tag("OffsetOfBand", f"{band.offset:.12g}"),
            number=band.number,
        )
        for band in facts.bands
    ]
    fixed = {
        "missionPhase": "nominal",
        "processingCenter": "simulated",
        "processingDateTime": _time(site.processed),
        "mission": "EnMAP",
        "satelliteID": "01",
        "sensor": "HSI",
        "datatakeID": f"{site.datatake:010d}",
        "numberOfSWIRBands": table.of("swir").size,
        "numberOfVNIRBands": table.of("vnir").size,
        "acquisitionType": "EARTH",
        "productType": "STANDARD_ALL",
        "datatakeStart": _time(site.start),
        "datatakeStop": _time(site.stop),
        "backgroundValue": 0,
        "tileID": f"{options.tile_id:03d}",
        "widthOfScene": swath.columns,
        "heightOfScene": swath.lines,
        "status": "NOMINAL",
        "meanGroundElevation": site.ground_height,
        "orbitDirection": "DESCENDING",
        "pixelSize": 30,
        "code": options.level,
    }
    ortho = []
    if options.level != "L1B":
        ortho = [
            _polygon("spatialCoverageOfOrthoScene", _raster_corners(swath), {}),
            *_leaves(
                {"pixelSizeOfOrthoScene": 30, "widthOfOrthoScene": swath.shape[1], "heightOfOrthoScene": swath.shape[0]}
            ),
        ]
    return tag(
        "specific",
        _quality(facts),
        _channels("vnir", table),
        _channels("swir", table),
        *_leaves(fixed),
        *_angles(facts),
        *ortho,
        tag("bandCharacterisation", *bands),
    )


def _raster_corners(swath: Swath) -> dict[str, tuple[float, float]]:
    """Geographic corners of the whole ortho raster."""
    y, x = (np.array(part) * size for part, size in zip(zip(*CORNERS.values(), strict=True), swath.shape, strict=True))
    lat, lon = swath.geographic(*swath.to_sensor(y, x))
    return {name: (float(a), float(b)) for name, a, b in zip(CORNERS, lat, lon, strict=True)}


def _rgb(name: str, channels: Sequence[float]) -> str:
    return tag(name, *_leaves(dict(zip(("red", "green", "blue"), channels, strict=True))))


def _image(facts: Facts) -> str:
    looks = {"vnir": VNIR_QUICKLOOK, "swir": SWIR_QUICKLOOK}
    cubes = []
    for cube in facts.cubes:
        named = {f"qlChannels{d.upper()}": rgb for d, rgb in looks.items()} if cube.kind == "merge" else {}
        named = named or {"qlChannels": looks[cube.kind]}
        cubes.append(
            tag(
                cube.kind,
                tag("channels", cube.bands),
                tag("name", cube.file),
                tag("size", cube.kilobytes, unit="Kbyte"),
                tag("version", facts.options.version),
                tag("format", "binary"),
                tag("dimension", tag("columns", cube.shape[1]), tag("rows", cube.shape[0])),
                *(_rgb(name, rgb) for name, rgb in named.items()),
            )
        )
    return tag("image", *cubes)


def _product(facts: Facts) -> str:
    ortho = facts.options.level != "L1B"
    zone = f"UTM_Zone{facts.swath.epsg % 100}_{'North' if facts.swath.epsg < 32700 else 'South'}"
    projection = (zone, 30, "nearest") if ortho else ("NA", "NA", "NA")
    files = [
        tag(
            "file",
            tag("name", name),
            tag("size", -(-size // 1024), unit="Kbyte"),
            tag("version", facts.options.version),
            tag("format", "xml" if name.endswith("XML") else "binary"),
            number=number,
        )
        for number, (name, size) in enumerate(facts.files, 1)
    ]
    statistics = [
        tag(
            "bandID",
            tag("waveLength", f"{band.wavelength:.6g}"),
            tag("mean", "-1000000" if band.mean is None else f"{band.mean:.9g}"),
            tag("stdDeviation", "0" if band.mean is None else f"{band.std:.9g}"),
            number=band.number,
        )
        for band in facts.bands
    ]
    return tag(
        "product",
        _image(facts),
        tag("navigation", tag("RPC", *_rpcs(facts.bands))),
        tag("time", *_frame_times(facts)),
        tag("ortho", *_leaves(dict(zip(("projection", "resolution", "resampling"), projection, strict=True)))),
        tag("productFileInformation", *files),
        tag("bandStatistics", *statistics),
    )


def _rpcs(bands: Iterable[BandFacts]) -> list[_Element]:
    """One model a band; bands of a detector share theirs, and its text."""
    texts: dict[int, str] = {}
    elements = []
    for band in bands:
        if id(band.rpc) not in texts:
            texts[id(band.rpc)] = _Element("\n".join(tag(name, f"{value:.15e}") for name, value in band.rpc.items()))
        elements.append(tag("bandID", texts[id(band.rpc)], number=band.number))
    return elements


def _frame_times(facts: Facts) -> list[str]:
    start = np.datetime64(facts.site.start.replace(tzinfo=None), "us")
    moments = start + (np.arange(facts.swath.lines) * LINE_SECONDS * 1e6).astype("timedelta64[us]")
    frames = [tag("frameTime", f"{moment}Z", number=number) for number, moment in enumerate(moments, 1)]
    return [tag(detector, *frames) for detector in ("vnir", "swir")]
