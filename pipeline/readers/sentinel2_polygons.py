"""Cloud masks of products before processing baseline 04.00: polygons in GML, burnt onto the Scene's grid."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import QUALITY_FLAGS

from .rasters import RasterFile
from .xml_tree import FloatArray, Node

TYPE_FLAGS = {"OPAQUE": "cloud", "CIRRUS": "cirrus_thin"}
"""Flag by `maskType` of MSK_CLOUDS."""
MOST_POLYGONS = 200_000
_RING = "{*}LinearRing/{*}posList"

Rings = tuple[FloatArray, ...]
"""A polygon: its outer ring, then its holes, `(n, 2)` each, in the tile's CRS."""


@dataclass(frozen=True, eq=False)
class CloudPolygons:
    """The clouds of a tile.

    Attributes:
        file: where they come from.
        grid: of the Scene.
        polygons: by flag.
    """

    file: RasterFile
    grid: GeoBox
    polygons: Mapping[str, tuple[Rings, ...]]

    def add(self, flags: Array, window: Window) -> None:
        """Set the flags of the pixels of a window whose centres lie in a polygon."""
        from rasterio.features import rasterize

        place = self.grid.transform * Affine.translation(window.col, window.row)
        for name, polygons in self.polygons.items():
            shapes = [{"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]} for rings in polygons]
            if shapes:
                inside = rasterize(shapes, out_shape=window.shape, transform=place, dtype="uint8")
                flags[inside != 0] |= np.uint32(QUALITY_FLAGS[name])


def parse_clouds(document: bytes, origin: str, file: RasterFile, grid: GeoBox) -> CloudPolygons:
    """Parse MSK_CLOUDS_B00.gml.

    Args:
        document: the XML.
        origin: its name, for messages.
        file: where it lies.
        grid: of the Scene; polygons are in its CRS.

    Raises:
        InputError: no such document, or a polygon that is none.
    """
    root = Node.parse(document, origin)
    if not root.element.tag.endswith("}Mask"):
        raise InputError(f"{origin}: the root element is <{root.element.tag[:80]}>, expected a Mask of Sentinel-2")
    features = root.all("{*}maskMembers/{*}MaskFeature")
    if len(features) > MOST_POLYGONS:
        raise InputError(f"{origin}: holds {len(features):,} polygons; at most {MOST_POLYGONS:,} are read")
    polygons: dict[str, tuple[Rings, ...]] = dict.fromkeys(TYPE_FLAGS.values(), ())
    for kind, name in TYPE_FLAGS.items():
        own = [feature for feature in features if feature.optional("{*}maskType") == kind]
        polygons[name] = tuple(_rings(node) for one in own for node in one.all("{*}extentOf/{*}Polygon"))
    return CloudPolygons(file, grid, polygons)


def _rings(polygon: Node) -> Rings:
    nodes = [polygon.one(f"{{*}}exterior/{_RING}"), *polygon.all(f"{{*}}interior/{_RING}")]
    return tuple(_ring(node) for node in nodes)


def _ring(node: Node) -> FloatArray:
    values = node.numbers(".")
    dimension = int(node.element.get("srsDimension", "2") in ("3",)) + 2
    if values.size % dimension or values.size < 4 * dimension or not np.isfinite(values).all():
        raise InputError(f"{node.origin}: {node.where} is no closed ring of points of {dimension} numbers")
    return np.asarray(values.reshape(-1, dimension)[:, :2], np.float64)
