"""MTD_TL.xml: a tile's grids, angles and masks.

Each detector sees its own stripe of the tile, so each band has a grid of viewing angles a detector, NaN outside its
stripe. Where two stripes meet, their directions are averaged as vectors: azimuths of neighbouring detectors lie up to
180 deg apart, and the mean of two such numbers points where nobody looked from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError

from .sentinel2_bands import NAMES
from .sentinel2_metadata import RESOLUTIONS
from .xml_tree import Node

FloatArray = npt.NDArray[np.float64]
LARGEST_SIDE = 20_000
MOST_MASKS = 500
MOST_NODES = 200
_GEOCODING = "{*}Geometric_Info/Tile_Geocoding"
_ANGLES = "{*}Geometric_Info/Tile_Angles"


@dataclass(frozen=True, eq=False)
class Angles:
    """Zenith and azimuth of directions, degrees; azimuth clockwise from north, 0-360."""

    zenith: FloatArray
    azimuth: FloatArray


@dataclass(frozen=True)
class Mask:
    """A mask file of a tile: its type (`MSK_QUALIT`, ...), the band it is of (empty for all) and its path."""

    kind: str
    band: str
    path: str


@dataclass(frozen=True, eq=False)
class TileMetadata:
    """What a tile's document says.

    Attributes:
        tile: MGRS tile with its T, such as `T33UUP`.
        time: when the tile was taken, UTC.
        grids: grid by resolution, m.
        sun: sun angles `(y, x)` at the nodes.
        view: viewing angles `(y, x)` by band name, merged over detectors.
        step: distance of the nodes, m; the first lies in the tile's upper left corner.
        mean_sun: the tile's mean.
        mean_view: the tile's mean by band name.
        masks: mask files, as listed.
    """

    tile: str
    time: datetime
    grids: Mapping[int, GeoBox]
    sun: Angles
    view: Mapping[str, Angles]
    step: float
    mean_sun: Angles
    mean_view: Mapping[str, Angles]
    masks: tuple[Mask, ...]


def parse_tile(document: bytes, origin: str) -> TileMetadata:
    """Parse MTD_TL.xml.

    Args:
        document: the XML.
        origin: name of the file, for messages.

    Raises:
        InputError: not such a document, or an element is missing or wrong; names element and file.
    """
    root = Node.parse(document, origin)
    if not root.element.tag.endswith(("Level-1C_Tile_ID", "Level-2A_Tile_ID")):
        raise InputError(f"{origin}: the root element is <{root.element.tag[:80]}>, expected Level-2A_Tile_ID")
    identity = root.text("{*}General_Info/TILE_ID").split("_")
    if len(identity) < 3 or not identity[-2].startswith("T"):
        raise InputError(f"{origin}: TILE_ID {'_'.join(identity)[:80]!r} names no MGRS tile")
    angles = root.one(_ANGLES)
    return TileMetadata(
        tile=identity[-2],
        time=root.time("{*}General_Info/SENSING_TIME"),
        grids={resolution: _grid(root, resolution) for resolution in RESOLUTIONS},
        sun=_grid_of_angles(angles.one("Sun_Angles_Grid")),
        view=_view(angles),
        step=angles.number("Sun_Angles_Grid/Zenith/COL_STEP"),
        mean_sun=_mean(angles.one("Mean_Sun_Angle")),
        mean_view={
            NAMES[node.index("bandId", len(NAMES))]: _mean(node)
            for node in angles.all("Mean_Viewing_Incidence_Angle_List/Mean_Viewing_Incidence_Angle")
        },
        masks=_masks(root),
    )


def angle_grids(tile: TileMetadata) -> xr.Dataset:
    """The angles at the tile's nodes, on coordinates of the tile's CRS.

    Returns:
        `sun_zenith`, `sun_azimuth` `(y, x)`, `view_zenith`, `view_azimuth` `(band, y, x)` in degrees, NaN where no
        detector looked; `band` holds names.
    """
    box = tile.grids[10]
    names = list(tile.view)
    dims = {"sun": ("y", "x"), "view": ("band", "y", "x")}
    parts = {"sun": tile.sun, "view": Angles(*(_stack(tile, names, part) for part in ("zenith", "azimuth")))}
    frame = xr.Dataset(
        {
            f"{what}_{part}": (dims[what], getattr(values, part), {"units": "degree"})
            for what, values in parts.items()
            for part in ("zenith", "azimuth")
        },
        attrs={"crs": str(box.crs)},
    )
    left, top = box.transform.c, box.transform.f
    rows, columns = tile.sun.zenith.shape
    return frame.assign_coords(
        band=("band", np.array(names, object)),
        y=("y", top - tile.step * np.arange(rows)),
        x=("x", left + tile.step * np.arange(columns)),
    )


def _stack(tile: TileMetadata, names: list[str], part: str) -> FloatArray:
    grids = [getattr(tile.view[name], part) for name in names]
    return np.stack(grids) if grids else np.empty((0, *tile.sun.zenith.shape))


def _grid(root: Node, resolution: int) -> GeoBox:
    size = root.one(f"{_GEOCODING}/Size[@resolution='{resolution}']")
    place = root.one(f"{_GEOCODING}/Geoposition[@resolution='{resolution}']")
    shape = size.whole("NROWS", LARGEST_SIDE), size.whole("NCOLS", LARGEST_SIDE)
    step = place.number("XDIM"), place.number("YDIM")
    if max(abs(step[0] - resolution), abs(step[1] + resolution)) > 0:
        raise InputError(f"{root.origin}: the {resolution} m grid has steps of {step[0]:g} and {step[1]:g} m")
    code = root.text(f"{_GEOCODING}/HORIZONTAL_CS_CODE")
    if not (code.startswith(("EPSG:326", "EPSG:327")) and code[5:].isdecimal() and len(code) == 10):
        raise InputError(f"{root.origin}: HORIZONTAL_CS_CODE is {code[:40]!r}; expected a UTM zone such as EPSG:32633")
    return GeoBox(shape, Affine(step[0], 0, place.number("ULX"), 0, step[1], place.number("ULY")), code)


def _grid_of_angles(node: Node) -> Angles:
    zenith, azimuth = (node.rows(f"{part}/Values_List/VALUES") for part in ("Zenith", "Azimuth"))
    if zenith.shape != azimuth.shape or max(zenith.shape) > MOST_NODES:
        raise InputError(f"{node.origin}: {node.where} holds grids of {zenith.shape} and {azimuth.shape} nodes")
    return Angles(zenith, azimuth)


def _view(angles: Node) -> dict[str, Angles]:
    seen: dict[str, list[Angles]] = {}
    for node in angles.all("Viewing_Incidence_Angles_Grids"):
        seen.setdefault(NAMES[node.index("bandId", len(NAMES))], []).append(_grid_of_angles(node))
    if len({grid.zenith.shape for grids in seen.values() for grid in grids}) > 1:
        raise InputError(f"{angles.origin}: the grids of viewing angles differ in size")
    return {name: merge(seen[name]) for name in NAMES if name in seen}


def merge(grids: list[Angles]) -> Angles:
    """The mean direction of several grids at every node, as a mean of vectors; NaN where none has a value.

    A node that one grid alone has keeps its numbers as they are.
    """
    zenith, azimuth = (np.stack([getattr(grid, part) for grid in grids]) for part in ("zenith", "azimuth"))
    known = np.isfinite(zenith) & np.isfinite(azimuth)
    count = known.sum(axis=0)
    slant, turn = np.radians(np.where(known, zenith, 0)), np.radians(np.where(known, azimuth, 0))
    east, north = (np.sum(known * np.sin(slant) * along(turn), axis=0) for along in (np.sin, np.cos))
    up = np.sum(known * np.cos(slant), axis=0)
    mean_zenith = np.degrees(np.arctan2(np.hypot(east, north), up))
    mean_azimuth = np.degrees(np.arctan2(east, north)) % 360
    only = [np.sum(np.where(known, part, 0), axis=0) for part in (zenith, azimuth)]
    merged = [
        np.where(count == 1, alone, np.where(count == 0, np.nan, mean))
        for alone, mean in zip(only, (mean_zenith, mean_azimuth), strict=True)
    ]
    return Angles(*merged)


def _mean(node: Node) -> Angles:
    return Angles(np.asarray(node.number("ZENITH_ANGLE")), np.asarray(node.number("AZIMUTH_ANGLE")))


def _masks(root: Node) -> tuple[Mask, ...]:
    nodes = root.all("{*}Quality_Indicators_Info/Pixel_Level_QI/MASK_FILENAME")
    if len(nodes) > MOST_MASKS:
        raise InputError(f"{root.origin}: lists {len(nodes)} masks; at most {MOST_MASKS} are read")
    return tuple(
        Mask(
            node.element.get("type", ""),
            NAMES[node.index("bandId", len(NAMES))] if "bandId" in node.element.keys() else "",  # noqa: SIM118
            node.text("."),
        )
        for node in nodes
    )
