"""Windows on a pixel grid: pure functions on small values, y before x everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK = 128
"""Edge of a stored chunk, px. Blocks are whole multiples of it, so that one task owns whole chunks."""

STATISTICS_BLOCK = 256
"""Edge, px, of the blocks over which scene statistics are summed.

It never follows the memory budget: float sums depend on their order, and a product must not.
"""

Shape = tuple[int, int]


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

    def scaled(self, factor: int) -> "Window":
        """The same ground on a grid `factor` times finer."""
        return Window(self.row * factor, self.col * factor, self.height * factor, self.width * factor)

    def coarsened(self, factor: int) -> "Window":
        """The pixels of a grid `factor` times coarser that this window touches."""
        row, col = self.row // factor, self.col // factor
        return Window(row, col, -(-self.stop[0] // factor) - row, -(-self.stop[1] // factor) - col)

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


def tile_covering(window: Window) -> Iterator[Window]:
    """The whole chunks that a window lies in, row by row."""
    for row in range(window.row - window.row % CHUNK, window.stop[0], CHUNK):
        for col in range(window.col - window.col % CHUNK, window.stop[1], CHUNK):
            yield Window(row, col, CHUNK, CHUNK)


def whole(shape: Shape) -> Window:
    """The window of the whole grid."""
    return Window(0, 0, *shape)
