"""Raster files read window by window: one open handle a thread, checked headers, errors that name the file."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import CHUNK, Shape, Window
from cubeloom.untrusted import DRIVERS, open_raster

from .tiff_blocks import read_blocks
from .tiff_layout import tiff_layout

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

HANDLES = 24
"""Open files a thread: the cube and masks of two scenes."""
BLOCK_CACHE = 8 * 2**20
"""Bytes of GDAL's block cache, which the process shares. Every block is read once, so a larger one only costs memory:
112 bands of 1000 x 1000 int16 on two threads took 0.76 s and 190 MiB with 16 MiB of it, 1.1 s and 395 MiB with 256 MiB.
The environment's `GDAL_CACHEMAX` goes before."""
LARGEST_BLOCK = 512
"""Edge, px, up to which small tiles of a file are gathered into one window."""


@dataclass(frozen=True)
class RasterFile:
    """A raster on disk, or a member of a ZIP that is read in place.

    Attributes:
        path: the file, or the archive that holds it.
        member: name inside the archive; empty for a file of its own.
        size: bytes of the file or member when it was found.
    """

    path: Path
    member: str = ""
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def gdal_name(self) -> str:
        """The name GDAL opens; braces let the archive have any name."""
        return f"/vsizip/{{{self.path.absolute()}}}/{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class RasterInfo:
    """What a raster's header says.

    Attributes:
        count: number of bands.
        shape: height and width, px.
        dtype: NumPy name of the type that holds every band.
        nodata: the file's own nodata value; None where it states none.
        grid: CRS and transform; the CRS is None, and the transform the identity, where the file has no CRS that says
            where on Earth it lies.
        block: height and width, px, of the file's tiles or strips.
    """

    count: int
    shape: Shape
    dtype: str
    nodata: float | None
    grid: GeoBox
    block: Shape


def inspect(file: RasterFile) -> RasterInfo:
    """Read a raster's header.

    Raises:
        InputError: the file cannot be opened, or its header breaks the limits of `cubeloom.untrusted`.
    """
    dataset = handle(file)
    shape = (int(dataset.height), int(dataset.width))
    crs, transform = dataset.crs, dataset.transform
    on_earth = crs and (crs.is_projected or crs.is_geographic)  # and not of a drawing board or a building site
    grid = GeoBox(shape, transform, crs.to_string()) if on_earth else GeoBox(shape, Affine.identity(), None)
    rows, cols = dataset.block_shapes[0]
    dtype = str(np.result_type(*set(dataset.dtypes)))
    return RasterInfo(dataset.count, shape, dtype, dataset.nodata, grid, (int(rows), int(cols)))


def block_shape(info: RasterInfo) -> Shape:
    """Height and width, px, of the windows that suit a file: whole tiles, or full-width rows of a strip layout.

    Small tiles are gathered up to `LARGEST_BLOCK`. Rows of strips come in multiples of the stored chunk, because a
    strip read twice at a window's edge costs less than a chunk written in two halves.
    """
    (rows, cols), (height, width) = info.block, info.shape
    if cols >= width:
        return min(height, max(CHUNK, min(-(-rows // CHUNK) * CHUNK, LARGEST_BLOCK))), width
    return min(height, rows * max(1, LARGEST_BLOCK // rows)), min(width, cols * max(1, LARGEST_BLOCK // cols))


def read_window(
    file: RasterFile, window: Window, bands: Sequence[int], shape: Shape, out: Array | None = None
) -> Array:
    """Pixels `(band, y, x)` of a window, in the file's own dtype.

    Args:
        file: what to read.
        window: px of the file; must lie inside it.
        bands: band numbers of the file, 1-based, in the order wanted.
        shape: height and width, px, that the file must have: those of the scene's cube.
        out: where the pixels go, if it has the file's dtype.

    Raises:
        InputError: the file is damaged or of another size; names it. Nodata never stands in for a failed read.
    """
    from rasterio import Env
    from rasterio.errors import RasterioError
    from rasterio.windows import Window as RasterioWindow

    dataset = handle(file)
    if dataset.shape != shape:
        raise InputError(
            f"{file}: has {dataset.height} x {dataset.width} px and {dataset.count} bands, expected the cube's "
            f"{shape[0]} x {shape[1]} px; the files do not belong together"
        )
    if max(bands) > dataset.count:
        raise InputError(
            f"{file}: has {dataset.count} bands where the cube has at least {max(bands)}; the files do not belong "
            "together"
        )
    fits = out is not None and set(dataset.dtypes) == {str(out.dtype)}
    plain = _read_plain(file, dataset, window, bands, out if fits else None)
    if plain is not None:
        return plain
    part = RasterioWindow(window.col, window.row, window.width, window.height)
    try:
        with Env():  # GDAL's own warnings about a damaged file go to Python's logging, not to standard error
            pixels: Array = dataset.read(list(bands), window=part, out=out if fits else None)
    except RasterioError as error:
        raise InputError(
            f"{file}: cannot read rows {window.row}-{window.stop[0] - 1}, columns {window.col}-{window.stop[1] - 1} "
            f"({error.__cause__ or error}); the file is damaged or cut short: fetch it again"
        ) from error
    return pixels


def _read_plain(
    file: RasterFile, dataset: "DatasetReader", window: Window, bands: Sequence[int], out: Array | None
) -> Array | None:
    """The pixels of a file that needs no GDAL to be decoded; None of any other, and of a damaged one."""
    layout = None if file.member or dataset.driver != "GTiff" else tiff_layout(file.path, *file_state(file.path))
    if layout is None or (layout.count, layout.shape) != (dataset.count, dataset.shape):
        return None
    if set(dataset.dtypes) != {str(layout.dtype)}:
        return None
    pixels = np.empty((len(bands), *window.shape), layout.dtype) if out is None else out
    return pixels if read_blocks(file.path, layout, window, bands, pixels) else None


class _Handles(threading.local):
    """Open datasets of one thread, most recently used last."""

    def __init__(self) -> None:
        self.open: OrderedDict[RasterFile, tuple[tuple[int, int], DatasetReader]] = OrderedDict()


_handles = _Handles()


def _forget_after_fork() -> None:
    """A child must not share file offsets with its parent: that mixes up their reads without any error."""
    _handles.open = OrderedDict()


os.register_at_fork(after_in_child=_forget_after_fork)


def handle(file: RasterFile) -> "DatasetReader":
    """This thread's open dataset of a file; opened again where the file has changed since.

    Raises:
        InputError: the file is missing, empty, damaged, of another format, or declares too much.
    """
    state = file_state(file.path)
    known = _handles.open.pop(file, None)
    if known is not None and known[0] != state:
        known[1].close()
        known = None
    if known is None:
        if 0 in (state[0], file.size):
            raise InputError(f"{file}: the file is empty (0 bytes), so it holds metadata at most; fetch it again")
        _limit_block_cache()
        known = state, open_raster(file.gdal_name, str(file))
    _handles.open[file] = known
    while len(_handles.open) > HANDLES:
        _handles.open.popitem(last=False)[1][1].close()
    return known[1]


@cache
def _limit_block_cache() -> None:
    from rasterio.env import set_gdal_config

    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", BLOCK_CACHE)


def close_handles() -> None:
    """Close all files that this thread holds open."""
    while _handles.open:
        _handles.open.popitem()[1][1].close()


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns: what tells that a file is still the same.

    Raises:
        InputError: the file cannot be found.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns


def envi_header(image: Path) -> Path | None:
    """The ENVI header of an image: `x.hdr` or `x.img.hdr`, in either case of letters; None where there is none."""
    if image.suffix.lower() in DRIVERS:
        return None
    names = (f"{image.stem}.hdr", f"{image.name}.hdr", f"{image.stem}.HDR", f"{image.name}.HDR")
    return next((image.with_name(name) for name in names if image.with_name(name).is_file()), None)


def digest(parts: Iterable[tuple[str, Path]], salt: str = "") -> str:
    """sha256 over the content of files and their ENVI headers, each under the part it plays.

    Names and places do not matter, so that a copy has the digest of its original.
    """
    total = hashlib.sha256(salt.encode())
    listed = list(parts)
    headers = [(f"{role} header", header) for role, path in listed if (header := envi_header(path))]
    for role, path in sorted(listed + headers):
        total.update(f"\n{role}:{_file_digest(path, *file_state(path))}".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """sha256 of one file; size and time of change are there to key the cache."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
