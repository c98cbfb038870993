"""Tiles of a network over a scene: where they lie, and how what they give is blended.

The lattice follows from the scene's size and the network alone, never from blocks or memory, and a tile is computed
once. So a product is the same array whatever the blocks it is made in, also where a network looks at a whole tile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from .encoding import Array
from .grids import Shape, Window, whole

FloatImages = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """How a network wants a scene cut, and what it gives for a tile.

    Attributes:
        edge: largest side of a tile, px.
        overlap: least px that neighbours share, over which they are blended.
        multiple: sides of a tile are multiples of this.
        channels: images that a tile comes back as, at most.
        at_once: tiles that go through the network together. Part of what a product is: some machines sum a batch in
            another order than a single sample.
        stride: px of the scene to one of the images. Tiles begin at multiples of it, and so does their overlap.
        trim: px at a tile's inner edges that take no part in the blend; the overlap is more than twice as wide. What
            a network that looks no farther gives is then the same whatever the tiles.
        exact: tiles have this very edge wherever the scene is as large; else they are as short as their number allows.
    """

    edge: int
    overlap: int
    multiple: int
    channels: int
    at_once: int = 1
    stride: int = 1
    trim: int = 0
    exact: bool = False


@dataclass(frozen=True)
class How:
    """How a group of tiles was computed: the ladder of `cubeloom.pipeline.inference` may end elsewhere than it began.

    Attributes:
        device: `cpu` or `cuda`; empty where no tile of the group held a pixel that takes part.
        precision: floating-point type of the network's arithmetic.
        batch: samples that went through the network at once.
        wanted: the device and batch that were tried first, where memory did not suffice for them; else empty.
    """

    device: str = ""
    precision: str = ""
    batch: int = 0
    wanted: str = ""


@dataclass(frozen=True)
class Inferred:
    """What a network gave for a group of tiles: images `(channel, y, x)` float32 of each, over its window's cells."""

    images: Sequence[FloatImages]
    how: How


@dataclass(frozen=True)
class Axis:
    """Segments of equal length that cover an axis, each overlapping the next.

    Attributes:
        size: length of the axis.
        edge: length of a segment. Larger than `size` where one segment, rounded up, covers it all.
        starts: where they begin, ascending; the first at 0, the last ending at the axis' end.
        trim: positions at a segment's ends, but for those of the axis, that have no share in the blend.
    """

    size: int
    edge: int
    starts: tuple[int, ...]
    trim: int = 0

    @classmethod
    def of(cls, size: int, edge: int, overlap: int, trim: int = 0) -> "Axis":
        """The fewest segments of length `edge` that overlap by `overlap` at least, spread evenly."""
        if size <= edge:
            return cls(size, edge, (0,))
        count = _count(size, edge, overlap)
        return cls(size, edge, tuple(number * (size - edge) // (count - 1) for number in range(count)), trim)

    @classmethod
    def fitted(cls, size: int, largest: int, overlap: int, multiple: int, trim: int = 0) -> "Axis":
        """Segments as short as that count of them allows, since what they share is computed twice."""
        count = _count(size, largest, overlap)
        edge = -(-(size + (count - 1) * overlap) // count)
        return cls.of(size, -(-edge // multiple) * multiple, overlap, trim)

    def span(self, number: int) -> tuple[int, int]:
        """First and one past the last position of a segment, on the axis."""
        return self.starts[number], min(self.starts[number] + self.edge, self.size)

    def touching(self, start: int, stop: int) -> list[int]:
        """The segments that share a position with `start` to `stop`, in order."""
        return [
            number for number in range(len(self.starts)) if self.starts[number] < stop and self.span(number)[1] > start
        ]

    @cached_property
    def weights(self) -> list[npt.NDArray[np.float32]]:
        """Of every segment the share of its values in the blend, `(length,)`: linear ramps where segments overlap.

        The shares of all segments at a position sum to 1; none is 0 but for those of `trim`.
        """
        ramps = [self._ramp(number) for number in range(len(self.starts))]
        total = np.zeros(self.size)
        for number, ramp in enumerate(ramps):
            total[slice(*self.span(number))] += ramp
        return [(ramp / total[slice(*self.span(number))]).astype(np.float32) for number, ramp in enumerate(ramps)]

    def _ramp(self, number: int) -> npt.NDArray[np.float64]:
        start, stop = self.span(number)
        ramp = np.ones(stop - start)
        at = np.arange(1, stop - start + 1)
        if number > 0:
            ramp = np.minimum(ramp, self._risen(at, self.span(number - 1)[1] - start))
        if number + 1 < len(self.starts):
            ramp = np.minimum(ramp, self._risen(at[::-1], stop - self.starts[number + 1]))
        return ramp

    def _risen(self, at: npt.NDArray[np.int64], shared: int) -> npt.NDArray[np.float64]:
        """A ramp over what is shared with a neighbour, but for the `trim` at both ends of it."""
        risen: npt.NDArray[np.float64] = np.maximum(at - self.trim, 0) / (shared - 2 * self.trim + 1)
        return risen


def _count(size: int, edge: int, overlap: int) -> int:
    return max(-(-(size - overlap) // (edge - overlap)), 1)


@dataclass(frozen=True)
class Lattice:
    """The tiles of a scene, numbered row by row; all are of one shape.

    They lie on a grid of cells, `stride` px of the scene each, of which the last ones may reach beyond it.

    Attributes:
        rows, cols: where they lie, in cells.
        scene: height and width, px.
        stride: px to a cell.
    """

    rows: Axis
    cols: Axis
    scene: Shape
    stride: int = 1

    @classmethod
    def of(cls, shape: Shape, tiling: Tiling) -> "Lattice":
        """The lattice of a network over a scene of `shape`, px."""
        stride = tiling.stride
        edge, multiple, overlap = tiling.edge // stride, tiling.multiple // stride, ceil(tiling.overlap / stride)

        def axis(size: int) -> Axis:
            cells, trim = ceil(size / stride), ceil(tiling.trim / stride)
            if not tiling.exact:
                return Axis.fitted(cells, edge, overlap, multiple, trim)
            return Axis.of(cells, min(edge, ceil(cells / multiple) * multiple), overlap, trim)

        return cls(axis(shape[0]), axis(shape[1]), shape, stride)

    @property
    def shape(self) -> Shape:
        """Height and width that the network sees, px; more than `window` has where the scene is smaller than a tile."""
        return self.rows.edge * self.stride, self.cols.edge * self.stride

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.cols.starts)

    def place(self, number: int) -> tuple[int, int]:
        """Row and column of a tile in the lattice."""
        return divmod(number, len(self.cols.starts))

    def window(self, number: int) -> Window:
        """The pixels of a tile that lie in the scene."""
        return self.cells(number).scaled(self.stride).overlap(whole(self.scene))

    def cells(self, number: int) -> Window:
        """The cells of a tile; its images have a value for each."""
        row, col = self.place(number)
        (top, bottom), (left, right) = self.rows.span(row), self.cols.span(col)
        return Window(top, left, bottom - top, right - left)

    def touching(self, window: Window) -> list[int]:
        """The tiles that share a cell with the pixels of `window`, in order."""
        cells = window.coarsened(self.stride)
        rows = self.rows.touching(cells.row, cells.stop[0])
        cols = self.cols.touching(cells.col, cells.stop[1])
        return [row * len(self.cols.starts) + col for row in rows for col in cols]

    def weights(self, number: int, part: Window) -> FloatImages:
        """Share of a tile in the blend over some of its cells, `(y, x)`."""
        row, col = self.place(number)
        rows, cols = part.within(self.cells(number)).slices
        share: FloatImages = self.rows.weights[row][rows][:, None] * self.cols.weights[col][cols]
        return share

    def groups(self, at_once: int) -> Iterator[tuple[int, ...]]:
        """The tiles in the groups that go through the network together."""
        for first in range(0, len(self), at_once):
            yield tuple(range(first, min(first + at_once, len(self))))


def blend(lattice: Lattice, window: Window, tile: Callable[[int], Array]) -> FloatImages:
    """What the tiles say of a window, `(channel, y, x)`, with a value for each of its cells.

    Every one sums the same tiles in the same order, so it is the same to the last bit in any window.

    Args:
        lattice: where the tiles lie.
        window: pixels wanted.
        tile: gives the images of a tile by its number, over the tile's cells.
    """
    cells = window.coarsened(lattice.stride)
    blended = np.zeros((0, *cells.shape), np.float32)
    for number in lattice.touching(window):
        outer = lattice.cells(number)
        shared = cells.overlap(outer)
        weights = lattice.weights(number, shared)
        images: Array = shared.crop(tile(number), outer)
        if not len(blended):
            blended = np.zeros((len(images), *cells.shape), np.float32)
        target = blended[(..., *shared.within(cells).slices)]
        target += images if (weights == 1).all() else images * weights
    return blended


def padded(images: Array, shape: Shape) -> Array:
    """Images `(..., y, x)` reflected beyond their last row and column up to `shape`: the scene ends there."""
    more = [(0, 0)] * (images.ndim - 2) + [
        (0, full - size) for full, size in zip(shape, images.shape[-2:], strict=True)
    ]
    return np.pad(images, more, mode="reflect") if images.shape[-2:] != shape else images
