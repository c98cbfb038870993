"""All grids of a Sentinel-2 product at once, as a tree."""

from pathlib import Path

import xarray as xr

from .base import to_scene
from .sentinel2 import GRIDS, open_source, read_metadata
from .sentinel2_safe import locate
from .sentinel2_tile import angle_grids


def open_grids(path: str | Path, *, masks: str = "scene") -> xr.DataTree:
    """A Sentinel-2 SAFE product as a tree, every band once, at its native resolution.

    Args:
        path: the product's folder, its ZIP, or its MTD_MSIL*.xml.
        masks: as for `open_scene`.

    Returns:
        Lazy Scenes `r10m`, `r20m`, `r60m`, and `angles`: the sun's and the detectors' directions at the tile's nodes,
        merged over detectors. Stages take the Scenes: `denoise(tree["r20m"].to_dataset())`.

    Raises:
        InputError: files are missing or damaged, or images and metadata disagree.
    """
    path = Path(path)
    nodes = {f"r{grid}": to_scene(open_source(path, grid=grid, masks=masks)) for grid in GRIDS}
    _, tile = read_metadata(locate(path))
    return xr.DataTree.from_dict({**nodes, "angles": angle_grids(tile)}, name=tile.tile)
