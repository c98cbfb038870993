"""How much of one scene another one shows, from the outlines in their items."""

from typing import Any

from .items import BBox, CatalogItem


def overlap(scene: CatalogItem, other: CatalogItem) -> float:
    """Share of a scene's footprint that lies in another's, 0-1; 0 where one of the two has none."""
    own, theirs = _footprint(scene), _footprint(other)
    if own is None or theirs is None or not own.area:
        return 0.0
    return float(own.intersection(theirs).area / own.area)


def _footprint(item: CatalogItem) -> Any:  # noqa: ANN401 - shapely is untyped
    """The outline in degrees: the area of one scene against another of the same ground needs no map projection."""
    from shapely import make_valid
    from shapely.errors import GEOSException
    from shapely.geometry import shape

    if item.geometry and item.geometry.get("coordinates"):
        try:
            return make_valid(shape(item.geometry))
        except (GEOSException, ValueError, TypeError, AttributeError):
            pass  # no outline that could be drawn: the box stands for it
    return _box(item.bbox) if item.bbox else None


def _box(bbox: BBox) -> Any:  # noqa: ANN401 - shapely is untyped
    from shapely import box, union_all

    west, south, east, north = bbox
    if west <= east:
        return box(west, south, east, north)
    return union_all([box(west, south, 180, north), box(-180, south, east, north)])
