"""Catalogs of scenes: STAC in and out."""

if "." not in __name__:
    raise ImportError("import cubeloom.catalogs, not catalogs: a second copy of the package would be made")

from .items import Asset, CatalogItem, parse_bbox, read_catalog, select_items
from .validate import validate_catalog

__all__ = ["Asset", "CatalogItem", "parse_bbox", "read_catalog", "select_items", "validate_catalog"]
