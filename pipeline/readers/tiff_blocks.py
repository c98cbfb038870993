"""Pixels of plain GeoTIFFs, block by block straight to where they are wanted.

GDAL decodes into blocks of its own and copies from there, and undoes the predictor one number after the other: of the
time that a scene's cube takes, that is more than the decompression. What is not plain, damaged files before all, is
left to GDAL, so that there is one way of telling what is wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import FileIO
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np

from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window, whole

from .tiff_layout import NO_COMPRESSION, ZSTD, TiffLayout

_MOST_DECODED = 2
"""Decoded pixels for each one wanted. Beyond, the blocks are wanted in parts, for which GDAL keeps them."""
_AT_ONCE = 2**19
"""Bytes of blocks that are decoded before their predictor is undone: what stays in a core's cache."""


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
    codecs = _codecs()
    pieces = list(_pieces(layout, window))
    decoded = sum(prod(piece.inside) for piece in pieces)
    if codecs is None or out.dtype != layout.dtype or decoded > _MOST_DECODED * prod(window.shape):
        return False
    try:
        with path.open("rb", buffering=0) as file:
            reader = _Reader(file, layout, pieces, codecs)
            for target, band in zip(out, bands, strict=True):
                for piece in pieces:
                    reader.read(band - 1, piece, piece.target.crop(target, window))
    except (OSError, ValueError, RuntimeError):  # every codec's own error is the last of these
        return False
    return True


@cache
def _codecs() -> ModuleType | None:
    """The compiled codecs; None where they are not installed, and GDAL reads everything."""
    try:
        import imagecodecs
    except ImportError:
        return None
    return imagecodecs


@dataclass(frozen=True)
class _Piece:
    """Some blocks, one below the other, of which a window wants some pixels.

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
    step = max(1, _AT_ONCE // (height * width * layout.dtype.itemsize))
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

    def __init__(self, file: FileIO, layout: TiffLayout, pieces: Sequence[_Piece], codecs: ModuleType) -> None:
        self.file, self.layout, self.codecs = file, layout, codecs
        self.numbers = np.empty(max(piece.shape[0] * piece.shape[1] for piece in pieces), layout.dtype)
        self.stored = np.empty(0, np.uint8)

    def read(self, band: int, piece: _Piece, out: Array) -> None:
        """The wanted pixels of a piece into `out`.

        Raises:
            ValueError: a block is missing, or has not the bytes that it should have.
            RuntimeError: a block cannot be decompressed.
        """
        height, width = self.layout.block
        numbers = self.numbers[: piece.shape[0] * width].reshape(piece.shape)
        for place, row in enumerate(piece.rows):
            self._decode((band, row, piece.col), numbers[place * height : (place + 1) * height])
        rows, cols = piece.wanted.slices
        if not self.layout.differences:
            np.copyto(out, numbers[rows, cols])
        elif cols.start == 0:
            self.codecs.delta_decode(numbers[rows, cols], axis=1, out=out)
        else:
            np.copyto(out, self.codecs.delta_decode(numbers[rows, : cols.stop], axis=1)[:, cols])

    def _decode(self, block: tuple[int, int, int], numbers: Array) -> None:
        """One block into `numbers`, of which the last strip of an image fills only some rows."""
        layout = self.layout
        if not layout.tiled:
            numbers = numbers[: layout.shape[0] - block[1] * layout.block[0]]
        target = numbers.reshape(-1).view(np.uint8)
        size = int(layout.sizes[block])
        if not 0 < size <= 2 * target.nbytes + 1024:
            raise ValueError("no block is so large")
        self.file.seek(int(layout.offsets[block]))
        if layout.compression == NO_COMPRESSION:
            if size != target.nbytes or self.file.readinto(target.data) != size:
                raise ValueError("a block has not its size")
            return
        if self.stored.size < size:
            self.stored = np.empty(2 * size, np.uint8)
        stored = self.stored[:size]
        if self.file.readinto(stored.data) != size:
            raise ValueError("the file ends before the block does")
        decode = self.codecs.zstd_decode if layout.compression == ZSTD else self.codecs.deflate_decode
        if len(decode(stored, out=target)) != target.nbytes:
            raise ValueError("a block has too few numbers")
