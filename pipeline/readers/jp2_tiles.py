"""Tiles of JPEG 2000 images, each decoded once however many windows it lies in, and whichever threads ask.

To decode a tile of 1024 x 1024 px takes some 0.15 s, a hundred times as long as to look at it. Windows do not follow
tiles: masks of 20 m have tiles of 640 px under blocks of 512, several variables are made of one image, and stages read
blocks of 256 px. So the tiles last used are kept.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.untrusted import DRIVERS

from .rasters import RasterFile, file_state, inspect, read_window
from .tile_cache import TileCache, touched

LARGEST_TILE = 8 * 2**20
"""Bytes above which a tile is not kept: then windows are read as they come."""

CUBES, MASKS = TileCache(32 * 2**20), TileCache(32 * 2**20)
"""Images of bands, and those of masks, whose few tiles the others would push out. 32 MiB are four blocks of four bands,
or the eight masks of each of four bands."""

# Tiles are decoded on the thread that asks: there are as many as the processor has, and all decode. Even where GDAL is
# told to use one thread it has OpenJPEG start one more for every tile, for which the first one waits.
if "GDAL_NUM_THREADS" not in os.environ:
    os.environ.setdefault("OPJ_NUM_THREADS", "0")

for _cache in (CUBES, MASKS):
    os.register_at_fork(after_in_child=_cache.forget)


def read_tiles(file: RasterFile, window: Window, bands: Sequence[int], shape: Shape, cache: TileCache) -> Array:
    """Pixels `(band, y, x)` of a window, as `read_window`; of JPEG 2000 by way of whole tiles, not to be written to.

    Raises:
        InputError: the file is damaged or of another size.
    """
    if DRIVERS.get(Path(file.member or file.path).suffix.lower()) != "JP2OpenJPEG":
        return read_window(file, window, bands, shape)
    info = inspect(file)
    edge = min(info.block[0], info.shape[0]), min(info.block[1], info.shape[1])
    nbytes = edge[0] * edge[1] * info.count * np.dtype(info.dtype).itemsize
    if info.shape != shape or max(bands) > info.count or nbytes > LARGEST_TILE:
        return read_window(file, window, bands, shape)
    every = range(1, info.count + 1)
    picked = slice(None) if tuple(bands) == tuple(every) else [number - 1 for number in bands]
    state, out = file_state(file.path), None
    for tile in touched(window, edge, shape):
        pixels = cache.get((file, state, tile), partial(read_window, file, tile, every, shape))
        shared = tile.overlap(window)
        part = shared.crop(pixels, tile)[picked]
        if shared == window:
            return part
        if out is None:
            out = np.empty((len(bands), *window.shape), pixels.dtype)
        out[(..., *shared.within(window).slices)] = part
    if out is None:
        raise InputError(f"{file}: {window} holds no pixels")
    return out
