"""Windows on a pixel grid: pure functions on small values, y before x everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np
import numpy.typing as npt

CHUNK = 128
"""Edge of a stored chunk, px; `cubeloom.pipeline.chunks.laid_out` says where there are wider ones. Blocks are whole
multiples of a store's, so that one task owns whole chunks."""

STATISTICS_BLOCK = 256
"""Edge, px, of the blocks over which scene statistics are summed.

It never follows the memory budget: float sums depend on their order, and a product must not.
"""

Shape = tuple[int, int]
Scale = int | Fraction
"""How many times finer one grid is than another; below 1 where it is coarser."""


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of pixels: first row and column, height and width."""

    row: int
    col: int
    height: int
    width: int

    @property
    def shape(self) -> Shape:
        """Height and width, px."""
        return self.height, self.width

    @property
    def stop(self) -> Shape:
        """Row and column one past the end."""
        return self.row + self.height, self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices into an array of the whole grid."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def expand(self, halo: int, shape: Shape) -> "Window":
        """This window with `halo` px more on every side, cut at the edges of a grid of `shape`."""
        row, col = max(self.row - halo, 0), max(self.col - halo, 0)
        stop_row, stop_col = min(self.stop[0] + halo, shape[0]), min(self.stop[1] + halo, shape[1])
        return Window(row, col, stop_row - row, stop_col - col)

    def scaled(self, factor: Scale) -> "Window":
        """The pixels of a grid `factor` times finer that this window touches; of a coarser one below 1."""
        row, col = floor(self.row * factor), floor(self.col * factor)
        stop_row, stop_col = scaled_shape(self.stop, factor)
        return Window(row, col, stop_row - row, stop_col - col)

    def coarsened(self, factor: Scale) -> "Window":
        """The pixels of a grid `factor` times coarser that this window touches."""
        return self.scaled(Fraction(1) / factor)

    def tiles(self, size: Shape) -> "list[Window]":
        """Windows of `size` that cover this one row by row; the last ones are cut at its edge."""
        return [
            Window(self.row + part.row, self.col + part.col, part.height, part.width) for part in tile(self.shape, size)
        ]

    def within(self, outer: "Window") -> "Window":
        """This window in the pixel coordinates of `outer`, which must hold it."""
        inner = Window(self.row - outer.row, self.col - outer.col, self.height, self.width)
        if min(inner.row, inner.col) < 0 or inner.stop[0] > outer.height or inner.stop[1] > outer.width:
            raise ValueError(f"{self} does not lie inside {outer}")
        return inner

    def overlap(self, other: "Window") -> "Window":
        """The pixels that both windows hold; they must share some."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        return Window(row, col, min(self.stop[0], other.stop[0]) - row, min(self.stop[1], other.stop[1]) - col)

    def crop(self, array: npt.NDArray[np.generic], outer: "Window") -> npt.NDArray[np.generic]:
        """The part of `array`, whose last two axes cover `outer`, that lies in this window (a view)."""
        return array[(..., *self.within(outer).slices)]


def tile(shape: Shape, size: Shape) -> Iterator[Window]:
    """Windows of `size` that cover a grid of `shape` row by row; the last ones are cut at the edge."""
    for row in range(0, shape[0], size[0]):
        for col in range(0, shape[1], size[1]):
            yield Window(row, col, min(size[0], shape[0] - row), min(size[1], shape[1] - col))


def tile_covering(window: Window, edge: int) -> Iterator[Window]:
    """The whole chunks, of `edge` px, that a window lies in, row by row."""
    for row in range(window.row - window.row % edge, window.stop[0], edge):
        for col in range(window.col - window.col % edge, window.stop[1], edge):
            yield Window(row, col, edge, edge)


def scaled_shape(shape: Shape, factor: Scale) -> Shape:
    """Height and width, px, of what covers `shape` on a grid `factor` times finer."""
    return ceil(shape[0] * factor), ceil(shape[1] * factor)


def whole(shape: Shape) -> Window:
    """The window of the whole grid."""
    return Window(0, 0, *shape)
