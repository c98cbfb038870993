"""Overlapping windows of an image: what a network sees at once where the whole image is too much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class ImageWindow:
    """A part of an image, and the part of that whose pixels count; together these make the image, without overlap.

    Attributes:
        image: which image, by number.
        rows: seen at once.
        cols: seen at once.
        core_rows: whose pixels count, in the image.
        core_cols: likewise.
    """

    image: int
    rows: slice
    cols: slice
    core_rows: slice
    core_cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is seen, px."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def inner(self) -> tuple[slice, slice]:
        """The core in the window."""
        up, left = self.rows.start, self.cols.start
        rows = slice(self.core_rows.start - up, self.core_rows.stop - up)
        return rows, slice(self.core_cols.start - left, self.core_cols.stop - left)


def image_windows(shapes: Sequence[tuple[int, int]], pixels: int, halo: int) -> list[ImageWindow]:
    """Windows of images, each as large as allowed: the image, strips of it, or squares.

    Args:
        shapes: height and width of every image, px.
        pixels: largest number of a window.
        halo: a pixel of a core is this far, px, from all edges of the window that are not the image's. A window has
            sides of four halos at least, whatever `pixels` says: with less, most of it would be halo.
    """
    windows = []
    for number, (height, width) in enumerate(shapes):
        tall, wide = _size(height, width, pixels, 4 * halo)
        windows += [
            ImageWindow(number, rows, cols, core_rows, core_cols)
            for rows, core_rows in _cut(height, tall, halo)
            for cols, core_cols in _cut(width, wide, halo)
        ]
    return windows


def _size(height: int, width: int, pixels: int, least: int) -> tuple[int, int]:
    """Height and width of windows: as square as can be, and as long as can be where the image is narrow."""
    if height > width:
        wide, tall = _size(width, height, pixels, least)
        return tall, wide
    tall = min(height, max(math.isqrt(pixels), least))
    return tall, min(width, max(pixels // tall, least))


def _cut(length: int, size: int, halo: int) -> list[tuple[slice, slice]]:
    """Parts of a side, evenly spread, with their cores; these meet halfway between the edges of neighbours."""
    count = 1 if size >= length else math.ceil((length - 2 * halo) / (size - 2 * halo))
    starts = [at * (length - size) // max(count - 1, 1) for at in range(count)]
    edges = [0, *((before + size + after) // 2 for before, after in pairwise(starts)), length]
    return [
        (slice(start, min(start + size, length)), slice(first, last))
        for start, (first, last) in zip(starts, pairwise(edges), strict=True)
    ]
