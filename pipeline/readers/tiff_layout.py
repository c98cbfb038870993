"""Where the tiles or strips of a plain GeoTIFF lie, from its first directory (TIFF 6.0 sections 2 and 15, BigTIFF).

Only what `tiff_blocks` decodes is described: little-endian, one band after the other, whole numbers of 8 or 16 bits.
Of any other file, and of any that is not as it should be, nothing is said: GDAL reads it, or tells what is wrong.
"""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape

NO_COMPRESSION, DEFLATE, OLD_DEFLATE, ZSTD = 1, 8, 32946, 50000
LARGEST_BLOCK = 4 * 2**20
"""Bytes of a decoded tile or strip: larger ones are read in parts, for which GDAL keeps them."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_KNOWN = frozenset(range(_WIDTH, _PREDICTOR + 1)) | {*range(_TILE_WIDTH, _TILE_COUNTS + 1), _SAMPLE_FORMAT}
"""Tags that are looked at; those of georeferencing, colours and texts say nothing of how numbers are laid."""

_MOST_TAGS = 1000
_LARGEST_NUMBER = 2**62
"""Two of them add up to an int64."""
_TYPES = {1: "<u1", 3: "<u2", 4: "<u4", 16: "<u8"}
"""TIFF's types of whole numbers: BYTE, SHORT, LONG, and BigTIFF's LONG8."""

_DTYPES = {(8, 1): "uint8", (16, 1): "uint16", (16, 2): "int16"}
"""NumPy's name by bits and sample format."""


@dataclass(frozen=True, eq=False)
class TiffLayout:
    """How a plain GeoTIFF lays its numbers.

    Attributes:
        dtype: of the numbers, little-endian.
        count: number of bands.
        shape: height and width of the image, px.
        block: height and width of a tile or strip, px.
        tiled: tiles are stored whole also at the image's edge; the last strip has the rows that are left.
        compression: TIFF's number of it.
        differences: whether numbers are differences to their left neighbours (predictor 2).
        offsets: first byte in the file of each block, `(band, row of blocks, column of blocks)`.
        sizes: bytes of each block in the file.
    """

    dtype: np.dtype[np.generic]
    count: int
    shape: Shape
    block: Shape
    tiled: bool
    compression: int
    differences: bool
    offsets: Array
    sizes: Array


class _Unusual(Exception):  # noqa: N818 - no error: the file is for GDAL
    """The file is not of the plain kind."""


@lru_cache(maxsize=64)
def tiff_layout(path: Path, size: int, changed: int) -> TiffLayout | None:
    """The layout of a file that is a plain GeoTIFF; None for any other.

    Args:
        path: the file.
        size: its bytes; with the time of its change, the key of what is kept.
        changed: time of its last change, ns.
    """
    if sys.byteorder != "little":
        return None
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            return _layout(_Directory(file, size), size)
    except (OSError, _Unusual):
        return None


class _Directory:
    """The first directory of a TIFF: its tags of whole numbers."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        magic, big = self._bytes(0, 4), b"II\x2b\x00"
        if magic not in (b"II\x2a\x00", big):
            raise _Unusual
        self.big = magic == big
        if self.big and self._bytes(4, 4) != b"\x08\x00\x00\x00":
            raise _Unusual
        self.inline = 8 if self.big else 4  # bytes of a value that stands in the entry itself
        number = f"<u{self.inline}"
        first = self._number(self.inline, number)
        width, head = (20, 8) if self.big else (12, 2)
        length = self._number(first, f"<u{head}")
        if length > _MOST_TAGS:
            raise _Unusual
        fields = [("tag", "<u2"), ("type", "<u2"), ("count", number), ("value", f"V{self.inline}")]
        entries = np.frombuffer(self._bytes(first + head, length * width), np.dtype(fields))
        self.entries = {int(entry["tag"]): entry for entry in entries if entry["tag"] in _KNOWN}
        if len(self.entries) != np.isin(entries["tag"], list(_KNOWN)).sum():
            raise _Unusual

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise _Unusual
        self.file.seek(offset)
        data = self.file.read(count)
        if len(data) != count:
            raise _Unusual
        return data

    def _number(self, offset: int, dtype: str) -> int:
        return int(np.frombuffer(self._bytes(offset, np.dtype(dtype).itemsize), dtype)[0])

    def numbers(self, tag: int, count: int) -> Array:
        """The `count` values of a tag, int64."""
        entry = self.entries.get(tag)
        if entry is None or int(entry["type"]) not in _TYPES or int(entry["count"]) != count:
            raise _Unusual
        dtype = np.dtype(_TYPES[int(entry["type"])])
        value = entry["value"].tobytes()
        nbytes = count * dtype.itemsize
        if nbytes > self.inline:
            value = self._bytes(int.from_bytes(value, "little"), nbytes)
        numbers = np.frombuffer(value[:nbytes], dtype)
        if (numbers > _LARGEST_NUMBER).any():
            raise _Unusual
        return numbers.astype(np.int64)

    def one(self, tag: int, default: int | None = None) -> int:
        """The one value of a tag; the default where the file leaves it out."""
        if tag not in self.entries and default is not None:
            return default
        return int(self.numbers(tag, 1)[0])

    def same(self, tag: int, count: int, default: int) -> int:
        """The value that a tag has for every band."""
        if tag not in self.entries:
            return default
        numbers = self.numbers(tag, count)
        if (numbers != numbers[0]).any():
            raise _Unusual
        return int(numbers[0])


def _layout(tags: _Directory, size: int) -> TiffLayout:
    count, shape = tags.one(_SAMPLES, 1), (tags.one(_HEIGHT), tags.one(_WIDTH))
    if not 0 < count < 2**16 or min(shape) < 1:
        raise _Unusual
    dtype = _DTYPES.get((tags.same(_BITS, count, 1), tags.same(_SAMPLE_FORMAT, count, 1)))
    compression, predictor = tags.one(_COMPRESSION, 1), tags.one(_PREDICTOR, 1)
    plain = tags.one(_FILL_ORDER, 1) == 1 and tags.one(_PHOTOMETRIC) in (1, 2) and predictor in (1, 2)
    plain = plain and (count == 1 or tags.one(_PLANAR, 1) == 2)
    if dtype is None or not plain or compression not in (NO_COMPRESSION, DEFLATE, OLD_DEFLATE, ZSTD):
        raise _Unusual
    tiled = _TILE_WIDTH in tags.entries
    if tiled == (_STRIP_OFFSETS in tags.entries):
        raise _Unusual
    if tiled:
        block = tags.one(_TILE_HEIGHT), tags.one(_TILE_WIDTH)
    else:
        block = min(tags.one(_ROWS_PER_STRIP, shape[0]), shape[0]), shape[1]
    if min(block) < 1 or prod(block) * np.dtype(dtype).itemsize > LARGEST_BLOCK:
        raise _Unusual
    grid = count, -(-shape[0] // block[0]), -(-shape[1] // block[1])
    if prod(grid) > size:  # every block takes some bytes
        raise _Unusual
    offsets = tags.numbers(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, prod(grid)).reshape(grid)
    sizes = tags.numbers(_TILE_COUNTS if tiled else _STRIP_COUNTS, prod(grid)).reshape(grid)
    differences = predictor == 2 and compression != NO_COMPRESSION
    return TiffLayout(np.dtype(dtype), count, shape, block, tiled, compression, differences, offsets, sizes)
