"""An optical scene and a radar scene over the same ground as one cube: what a network of two sensors learns from."""

import dask.array as da
import numpy as np
import xarray as xr

from cubeloom.errors import InputError
from cubeloom.pipeline.band_input import beside
from cubeloom.pipeline.lift import lift_guide
from cubeloom.pipeline.scene import Bands, spec_of
from cubeloom.pipeline.stages import Pair
from cubeloom.pipeline.stages.to_db import decibels, is_linear_backscatter


def brought(scene: xr.Dataset, radar: xr.Dataset) -> xr.Dataset:
    """A radar scene on the grid of another scene, lazily.

    Raises:
        InputError: one of the two lies on no map.
    """
    pair = Pair(guide="radar", refine=1, coregister="off")
    return lift_guide(pair, pair.regridded)(scene, radar)


def cube_of_both(scene: xr.Dataset, name: str, radar: xr.Dataset) -> tuple[xr.DataArray, Bands]:
    """A scene's cube and behind it the radar's subject, in decibels, lazily; and the bands of the two.

    Args:
        scene: the optical scene.
        name: of its cube.
        radar: on the same grid.

    Raises:
        InputError: it lies on another grid, or is no backscatter.
    """
    spec, other = spec_of(scene), spec_of(radar)
    if spec.grid != other.grid:
        raise InputError(
            f"{other.scene_id}: lies on another grid than {spec.scene_id}; bring it there with cubeloom.pair(scene, "
            "radar, refine=1)"
        )
    numbers = da.asarray(radar[other.subject].data)
    if is_linear_backscatter(other, other.subject):
        numbers = da.map_blocks(decibels, numbers, dtype=np.float32)
    elif other.variables[other.subject].attrs.get("units") != "dB":
        raise InputError(f"{other.scene_id}: {other.subject} is no backscatter, linear or in dB")
    cube = da.concatenate([da.asarray(scene[name].data), numbers])
    return xr.DataArray(cube, dims=("band", "y", "x")), beside(spec.bands, other.bands)
