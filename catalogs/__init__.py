"""Catalogs of scenes: STAC in and out."""

if "." not in __name__:
    raise ImportError("import cubeloom.catalogs, not catalogs: a second copy of the package would be made")
