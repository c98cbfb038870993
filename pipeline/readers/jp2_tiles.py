"""Tiles of JPEG 2000 images, each decoded once however many windows it lies in, and whichever threads ask.

To decode a tile of 1024 x 1024 px takes some 0.15 s, a hundred times as long as to look at it. Windows do not follow
tiles: masks of 20 m have tiles of 640 px under blocks of 512, several variables are made of one image, and stages read
blocks of 256 px. So the tiles last used are kept.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.untrusted import DRIVERS

from .rasters import RasterFile, file_state, inspect, read_window

LARGEST_TILE = 8 * 2**20
"""Bytes above which a tile is not kept: then windows are read as they come."""

_Key = tuple[RasterFile, tuple[int, int], Window]


class TileCache:
    """The tiles last used, up to so many bytes; may be used by several threads.

    Whoever asks for a tile that another thread is decoding waits for it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forget()

    def forget(self) -> None:
        """Start anew, as a child process must: it may have been forked while the lock was held."""
        self.held = 0
        self._lock = Lock()
        self._tiles: OrderedDict[_Key, Future[Array]] = OrderedDict()

    def get(self, key: _Key, decode: Callable[[], Array]) -> Array:
        """The tile of a key, decoded where it is not kept; read-only."""
        with self._lock:
            known = self._tiles.get(key)
            if known is not None:
                self._tiles.move_to_end(key)
            else:
                made = self._tiles[key] = Future()
        if known is not None:
            return known.result()
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                self._tiles.pop(key, None)
            made.set_exception(error)
            raise
        tile.flags.writeable = False
        made.set_result(tile)
        self._keep(tile.nbytes)
        return tile

    def _keep(self, nbytes: int) -> None:
        """Count a tile in, and let the oldest go; those being decoded stay."""
        with self._lock:
            self.held += nbytes
            for key in list(self._tiles):
                if self.held <= self.limit:
                    break
                if self._tiles[key].done():
                    self.held -= self._tiles.pop(key).result().nbytes


CUBES, MASKS = TileCache(32 * 2**20), TileCache(32 * 2**20)
"""Images of bands, and those of masks, whose few tiles the others would push out. 32 MiB are four blocks of four bands,
or the eight masks of each of four bands."""

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
    for tile in _touched(window, edge, shape):
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


def _touched(window: Window, edge: Shape, shape: Shape) -> list[Window]:
    """The tiles, cut at the image's edge, that a window lies in."""
    rows, cols = (
        range(first - first % step, stop, step)
        for first, stop, step in zip((window.row, window.col), window.stop, edge, strict=True)
    )
    return [
        Window(row, col, min(edge[0], shape[0] - row), min(edge[1], shape[1] - col)) for row in rows for col in cols
    ]
