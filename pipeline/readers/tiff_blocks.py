"""Pixels of plain GeoTIFFs, block by block straight to where they are wanted.

GDAL decodes into blocks of its own and copies from there, and undoes the predictor one number after the other: of the
time that a scene's cube takes, that is more than the decompression. What is not plain, damaged files before all, is
left to GDAL, so that there is one way of telling what is wrong.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import imagecodecs
import numpy as np

from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window, whole

from .tiff_layout import NO_COMPRESSION, ZSTD, TiffLayout

_MOST_DECODED = 2
"""Decoded pixels for each one wanted. Beyond, the blocks are wanted in parts, for which GDAL keeps them."""
_AT_ONCE = 2**19
"""Bytes of strips that are decoded before their predictor is undone: what stays in a core's cache."""

_MOST_STORED, _SLACK = 2, 4096
"""Bytes of the file that are read at once for each decoded one, and beside them."""

_SMALL = 8192
"""Bytes that are compared with those before them: a mask's blocks, of one value each, are the same in most bands."""


def read_blocks(path: Path, layout: TiffLayout, window: Window, bands: Sequence[int], out: Array) -> bool:
    """Read a window into `out`, where that can be done and pays.

    Args:
        path: the file.
        layout: its layout.
        window: px of the file; must lie inside it.
        bands: band numbers of the file, 1-based, in the order wanted.
        out: `(band, y, x)`; its rows may lie apart. It may be left half done.

    Returns:
        Whether `out` holds the pixels; else GDAL is to read them, or to say why they cannot be read.
    """
    pieces = list(_pieces(layout, window))
    decoded = sum(prod(piece.inside) for piece in pieces)
    if out.dtype != layout.dtype or decoded > _MOST_DECODED * prod(window.shape):
        return False
    try:
        with path.open("rb", buffering=0) as file:
            reader = _Reader(file, layout, pieces)
            for target, band in zip(out, bands, strict=True):
                for piece in pieces:
                    reader.read(band - 1, piece, piece.target.crop(target, window))
    except (OSError, ValueError, RuntimeError):  # every codec's own error is the last of these
        return False
    return True


@dataclass(frozen=True)
class _Piece:
    """One tile, or strips one below the other, of which a window wants some pixels.

    Attributes:
        rows: their rows in the grid of blocks.
        col: their column.
        shape: their height and width together, px.
        inside: height and width of what of them lies inside the image, px.
        wanted: the part that is wanted, px from their first.
        target: the same part, px of the image.
    """

    rows: range
    col: int
    shape: Shape
    inside: Shape
    wanted: Window
    target: Window


def _pieces(layout: TiffLayout, window: Window) -> Iterator[_Piece]:
    (height, width), (last_row, last_col) = layout.block, (stop - 1 for stop in window.stop)
    step = 1 if layout.tiled else max(1, _AT_ONCE // (height * width * layout.dtype.itemsize))  # strips lie in a row
    rows = range(window.row // height, last_row // height + 1)
    for first in rows[::step]:
        part = range(first, min(first + step, rows.stop))
        for col in range(window.col // width, last_col // width + 1):
            outer = Window(first * height, col * width, len(part) * height, width)
            target = outer.overlap(window)
            inside = outer.overlap(whole(layout.shape)).shape
            yield _Piece(part, col, outer.shape, inside, target.within(outer), target)


class _Reader:
    """Decodes pieces of one open file, in memory that is used again for each of them."""

    def __init__(self, file: FileIO, layout: TiffLayout, pieces: Sequence[_Piece]) -> None:
        self.file, self.layout = file, layout
        decode = imagecodecs.zstd_decode if layout.compression == ZSTD else imagecodecs.deflate_decode
        self.decode: Callable[..., Sized] = decode  # takes arrays, whatever its annotations say
        self.block_bytes = prod(layout.block) * layout.dtype.itemsize
        self.decoded = np.empty(max(len(piece.rows) for piece in pieces) * self.block_bytes, np.uint8)
        self.stored = np.empty(0, np.uint8)
        self.held: tuple[bytes, list[int], list[int], int] | None = None

    def read(self, band: int, piece: _Piece, out: Array) -> None:
        """The wanted pixels of a piece into `out`.

        Raises:
            ValueError: a block is missing, or has not the bytes that it should have.
            RuntimeError: a block cannot be decompressed.
        """
        self._decode(band, piece)
        numbers = self.decoded[: len(piece.rows) * self.block_bytes].view(self.layout.dtype).reshape(piece.shape)
        rows, cols = piece.wanted.slices
        if not self.layout.differences:
            np.copyto(out, numbers[rows, cols])
        elif cols.start == 0:
            imagecodecs.delta_decode(numbers[rows, cols], axis=1, out=out)
        else:
            np.copyto(out, imagecodecs.delta_decode(numbers[rows, : cols.stop], axis=1)[:, cols])

    def _decode(self, band: int, piece: _Piece) -> None:
        """The blocks of a piece, one after the other; what was decoded just before is not decoded again."""
        first, stored = self._stored(band, piece)
        offsets = (self.layout.offsets[band, piece.rows.start : piece.rows.stop, piece.col] - first).tolist()
        sizes = self.layout.sizes[band, piece.rows.start : piece.rows.stop, piece.col].tolist()
        same = (stored.tobytes(), offsets, sizes, self._bytes_of(piece.rows[-1])) if stored.size <= _SMALL else None
        if same is not None and same == self.held:
            return
        for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            start = number * self.block_bytes
            target = self.decoded[start : start + self._bytes_of(piece.rows[number])]
            data = stored[offset : offset + size]
            if self.layout.compression == NO_COMPRESSION:
                target[:] = data  # of another size: a ValueError
            elif len(self.decode(data, out=target)) != target.size:
                raise ValueError("a block has too few numbers")
        self.held = same

    def _bytes_of(self, row: int) -> int:
        """Bytes of a decoded block; the last strip of an image has the rows that are left."""
        rows, width = self.layout.block
        left = self.layout.shape[0] - row * rows
        return self.block_bytes if self.layout.tiled or left >= rows else left * width * self.layout.dtype.itemsize

    def _stored(self, band: int, piece: _Piece) -> tuple[int, Array]:
        """Bytes of the file that hold the blocks of a piece, and where the first of them stands."""
        part = band, slice(piece.rows.start, piece.rows.stop), piece.col
        offsets, sizes = self.layout.offsets[part], self.layout.sizes[part]
        first, size = int(offsets.min()), int((offsets + sizes).max() - offsets.min())
        if sizes.min() < 1 or first < 1 or size > _MOST_STORED * len(piece.rows) * self.block_bytes + _SLACK:
            raise ValueError("blocks are missing, or lie apart")
        if self.stored.size < size:
            self.stored = np.empty(2 * size, np.uint8)
        self.file.seek(first)
        if self.file.readinto(self.stored[:size].data) != size:
            raise ValueError("the file ends before the blocks do")
        return first, self.stored[:size]
