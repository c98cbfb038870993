"""What a STAC item is made of, as plain values: the scene's facts, its bands, grid, files and classes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .documents import Document, relative_href

EXTENSIONS = {
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "view": "https://stac-extensions.github.io/view/v1.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "sat": "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "sar": "https://stac-extensions.github.io/sar/v1.0.0/schema.json",
    "grid": "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "sci": "https://stac-extensions.github.io/scientific/v1.0.0/schema.json",
}
"""Schema of each extension by its field prefix."""

SHA256_PREFIX = "1220"
"""Multihash code of sha2-256 (0x12) and its length of 32 bytes (0x20), in hex."""

LonLat = tuple[float, float]


@dataclass(frozen=True)
class BandRecord:
    """A band: its name, centre wavelength and full width at half maximum in nm, and its common name where it has one.

    A radar's bands have no wavelengths (NaN).
    """

    name: str
    wavelength: float
    fwhm: float
    common_name: str = ""

    def document(self) -> Document:
        """The band as STAC has it: wavelengths in micrometres."""
        document: Document = {"name": self.name}
        if self.common_name:
            document["eo:common_name"] = self.common_name
        if math.isfinite(self.wavelength):
            document["eo:center_wavelength"] = round(self.wavelength / 1000, 7)
            document["eo:full_width_half_max"] = round(self.fwhm / 1000, 7)
        return document


@dataclass(frozen=True)
class GridRecord:
    """A georeferenced grid: shape (y, x) in px, affine transform in row-major order.

    The CRS is a code such as `EPSG:32633`, or, where it has none, its WKT 2 description.
    """

    code: str
    shape: tuple[int, int]
    transform: tuple[float, float, float, float, float, float]
    wkt2: str = ""

    def document(self) -> Document:
        """The `proj:` fields."""
        a, b, c, d, e, f = self.transform
        corners = [(a * x + b * y + c, d * x + e * y + f) for y in (0, self.shape[0]) for x in (0, self.shape[1])]
        eastings, northings = zip(*corners, strict=True)
        crs = {"proj:code": self.code} if self.code else {"proj:code": None, "proj:wkt2": self.wkt2}
        return {
            **crs,
            "proj:shape": list(self.shape),
            "proj:transform": list(self.transform),
            "proj:bbox": [min(eastings), min(northings), max(eastings), max(northings)],
        }


@dataclass(frozen=True)
class FileRecord:
    """A file of a scene, or a Zarr store.

    Attributes:
        key: of the asset.
        path: of the file.
        media_type: of the file.
        roles: of STAC.
        sha256: of its content, in hex; of a store, over the names and contents of all its files.
        size: in bytes.
        bands: that it holds.
        grid: of its pixels, where it is not that of the item.
        is_store: whether it is a Zarr store, a folder.
    """

    key: str
    path: Path
    media_type: str
    roles: tuple[str, ...]
    sha256: str
    size: int
    bands: tuple[BandRecord, ...] = ()
    grid: GridRecord | None = None
    is_store: bool = False

    def document(self, item: Path) -> Document:
        """The file as an asset of the item document at `item`."""
        asset: Document = {"href": relative_href(self.path, item), "type": self.media_type, "roles": list(self.roles)}
        checksum = {"cubeloom:content" if self.is_store else "file:checksum": SHA256_PREFIX + self.sha256}
        asset |= {**checksum, "file:size": self.size}
        if self.grid:
            asset |= {key: self.grid.document()[key] for key in ("proj:shape", "proj:transform")}
            asset["gsd"] = abs(self.grid.transform[0])
        if self.bands:
            asset["bands"] = [band.document() for band in self.bands]
        return asset


@dataclass(frozen=True)
class ClassRecord:
    """A class of a map: pixel value, name, colour as six hexadecimal digits, and its title for people.

    A name holds letters, digits, `-` and `_` alone; where there is no title, it stands for it.
    """

    value: int
    name: str
    colour: str
    title: str = ""

    def document(self) -> Document:
        """The class as `classification:classes` lists it."""
        title = self.title or self.name.replace("_", " ")
        return {"value": self.value, "name": self.name, "title": title, "color_hint": self.colour}


@dataclass(frozen=True)
class SceneFacts:
    """What is known of a scene apart from its files; None and empty where it is not known.

    Attributes:
        scene_id: the provider's id, which names the item.
        sensor: such as `EnMAP`.
        level: processing level such as `L2A`.
        time: acquisition, UTC.
        footprint: corners of the imaged area, lon/lat in degrees, in order round it, not closed.
        grid: None in sensor geometry.
        processor: version of the provider's processor.
        cloud_cover: percent of the imaged area.
        sun_elevation, sun_azimuth, off_nadir, azimuth: degrees, as the `view` extension defines them.
        licence: SPDX id, or words of the provider's own licence.
        attribution: credit that goes with every copy.
        constellation: that the satellite is one of, such as `sentinel-2`; empty for one of its own.
        instruments: on it.
        properties: further ones, by their names in STAC.
    """

    scene_id: str
    sensor: str
    level: str
    time: datetime
    footprint: Sequence[LonLat] = ()
    grid: GridRecord | None = None
    processor: str = ""
    cloud_cover: float | None = None
    sun_elevation: float | None = None
    sun_azimuth: float | None = None
    off_nadir: float | None = None
    azimuth: float | None = None
    licence: str = ""
    attribution: str = ""
    constellation: str = ""
    instruments: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)

    def item(self, item_id: str, collection: str) -> Document:
        """A STAC item without assets and links."""
        geometry, bbox = outline(self.footprint)
        item: Document = {"type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "id": item_id}
        item["geometry"] = geometry
        if bbox:
            item["bbox"] = bbox
        return item | {"properties": self._properties(), "links": [], "assets": {}, "collection": collection}

    def _properties(self) -> Document:
        found = {
            "datetime": utc(self.time),
            "platform": self.sensor.lower(),
            "constellation": self.constellation or None,
            "instruments": list(self.instruments) or None,
            "eo:cloud_cover": self.cloud_cover,
            "view:sun_elevation": self.sun_elevation,
            "view:sun_azimuth": None if self.sun_azimuth is None else self.sun_azimuth % 360,
            "view:off_nadir": self.off_nadir,
            "view:azimuth": None if self.azimuth is None else self.azimuth % 360,
            "processing:level": self.level,
            "processing:version": self.processor or None,
            "license": spdx(self.licence),
            "cubeloom:licence": self.licence if spdx(self.licence) == "other" and self.licence else None,
            "attribution": self.attribution or None,
            **self.properties,
        }
        grid = self.grid.document() if self.grid else {}
        return {key: value for key, value in found.items() if value is not None} | grid


def utc(time: datetime) -> str:
    """A time as RFC 3339 in UTC; fractions of a second only where there are any."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def spdx(licence: str) -> str:
    """STAC's `license` field: an SPDX id as it is, `other` for words or nothing."""
    return licence if licence and all(c.isalnum() or c in ".-+" for c in licence) else "other"


def outline(footprint: Sequence[LonLat]) -> tuple[Document | None, list[float] | None]:
    """GeoJSON geometry and bbox (west, south, east, north) of a footprint in degrees.

    A footprint across the antimeridian becomes two polygons, and its bbox runs from its east to its west end
    (RFC 7946, sections 3.1.9 and 5.2).
    """
    if len(footprint) < 3:
        return None, None
    lons, lats = zip(*footprint, strict=True)
    if max(lons) - min(lons) <= 180:
        return _polygon(footprint), [min(lons), min(lats), max(lons), max(lats)]
    from shapely import Polygon, box

    whole = Polygon([(lon % 360, lat) for lon, lat in footprint])
    east, west = whole.intersection(box(0, -90, 180, 90)), whole.intersection(box(180, -90, 360, 90))
    parts = [list(east.exterior.coords), [(lon - 360, lat) for lon, lat in west.exterior.coords]]
    rings = [_polygon(part[:-1])["coordinates"] for part in parts]
    bbox = [whole.bounds[0], whole.bounds[1], whole.bounds[2] - 360, whole.bounds[3]]
    return {"type": "MultiPolygon", "coordinates": rings}, bbox


def _polygon(corners: Sequence[LonLat]) -> Document:
    """A closed ring, counter-clockwise as GeoJSON wants it."""
    ring = [[float(lon), float(lat)] for lon, lat in corners]
    area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(ring, [*ring[1:], ring[0]], strict=True))
    ring = ring if area > 0 else ring[::-1]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def with_extensions(document: Document) -> Document:
    """The document with `stac_extensions` listing the extensions whose fields it uses."""
    used = {key.partition(":")[0] for key in _keys(document) if ":" in key}
    return document | {"stac_extensions": [uri for prefix, uri in EXTENSIONS.items() if prefix in used]}


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def finite(value: Any) -> float | None:  # noqa: ANN401 - whatever a provider's metadata hold
    """`value` as a float, or None where it is missing, no number or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
