"""Resampling kernels: which source pixels an output pixel is made of, and with which weights.

Every function gives a pixel's value from its own position and its own taps alone, summed in one order, so that it is
the same to the last bit whatever else is computed with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .encoding import Array

Resampling = Literal["cubic", "bilinear", "average", "nearest"]
FloatImage = npt.NDArray[np.float32]
Positions = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

STRIP = 32
"""Rows that are resampled at once: the weights of more would leave the processor's cache."""

ENOUGH = np.float32(0.5)
"""An output pixel has a value where the source pixels that have none weigh at most this much."""


@dataclass(frozen=True, eq=False)
class Taps:
    """The source pixels that output pixels are made of, along one axis.

    Attributes:
        first: index of each output pixel's first tap.
        weights: `(tap, ...)`, float32; of sum 1 for every output pixel.
    """

    first: Indices
    weights: FloatImage

    def rows(self, part: slice) -> "Taps":
        """Those of some of the output rows."""
        return Taps(self.first[part], self.weights[:, part])


def taps(positions: Positions, resampling: Resampling, footprint: float) -> Taps:
    """Taps of output pixels whose centres lie at `positions`, px of the source, 0 in the middle of its first pixel.

    Args:
        positions: along one axis; NaN where there is no such place.
        resampling: `cubic` (Keys 1981, a = -1/2), `bilinear`, `average` over the output pixel's area, or `nearest`.
        footprint: length of an output pixel, px of the source.
    """
    placed = np.where(np.isfinite(positions), positions, -1e6)
    first, weigh = _kernel(placed, resampling, footprint)
    count = {"nearest": 1, "bilinear": 2, "cubic": 4, "average": math.ceil(footprint) + 1}[resampling]
    weights = np.stack([weigh(first + tap - placed) for tap in range(count)])
    weights /= weights.sum(axis=0)
    return Taps(first.astype(np.intp), weights.astype(np.float32))


def _kernel(
    positions: Positions, resampling: Resampling, footprint: float
) -> tuple[Positions, Callable[[Positions], Positions]]:
    """First tap of every position, and the weight of a tap by its distance from it."""
    if resampling == "nearest":
        return np.floor(positions + 0.5), np.ones_like
    if resampling == "bilinear":
        return np.floor(positions), lambda distance: np.maximum(1 - np.abs(distance), 0)
    if resampling == "cubic":
        return np.floor(positions) - 1, _keys
    half = footprint / 2
    first = np.floor(positions - half + 0.5)
    return first, lambda distance: np.maximum(np.minimum(distance + 0.5, half) - np.maximum(distance - 0.5, -half), 0)


def _keys(distance: Positions) -> Positions:
    """The cubic convolution kernel: Keys (1981), IEEE TASSP 29(6), eq. 15, a = -1/2."""
    s = np.abs(distance)
    near = (1.5 * s - 2.5) * s * s + 1
    far = ((-0.5 * s + 2.5) * s - 4) * s + 2
    return np.where(s <= 1, near, np.where(s < 2, far, 0.0))


def mix(images: FloatImage, rows: Taps, cols: Taps) -> FloatImage:
    """Images resampled: weighted means of taps, of those that have a value; NaN where more than half weighs nothing.

    Args:
        images: `(n, y, x)`, NaN for no value; it holds every tap.
        rows: of the output pixels; one a row `(y,)` where rows and columns are apart, else one a pixel `(y, x)`.
        cols: likewise, `(x,)` or `(y, x)`.
    """
    separable = rows.first.ndim == 1
    shape = (rows.first.size, cols.first.size) if separable else rows.first.shape
    made = np.empty((len(images), *shape), np.float32)
    for image, out in zip(images, made, strict=True):
        absent = ~np.isfinite(image)
        gaps = bool(absent.any())
        filled = np.where(absent, np.float32(0), image) if gaps else image
        for start in range(0, shape[0], STRIP):
            part = slice(start, start + STRIP)
            strip, across = rows.rows(part), cols if separable else cols.rows(part)
            sums = _weighted(filled, strip, across)
            if gaps:
                missing = _weighted(absent.astype(np.float32), strip, across)
                with np.errstate(divide="ignore", invalid="ignore"):  # pixels that become NaN
                    sums /= 1 - missing
                sums[missing > ENOUGH] = np.nan
            out[part] = sums
    return made


def _weighted(image: FloatImage, rows: Taps, cols: Taps) -> FloatImage:
    if rows.first.ndim == 1:
        down = _sum(rows.weights[:, :, None], lambda tap: image[rows.first + tap])
        return _sum(cols.weights[:, None, :], lambda tap: down[:, cols.first + tap])
    width = image.shape[1]
    flat, corner = image.ravel(), rows.first * width + cols.first
    total: FloatImage | None = None
    for row, down_weight in enumerate(rows.weights):
        line = _sum(cols.weights, lambda tap, row=row: flat.take(corner + (row * width + tap)))  # type: ignore[misc]
        line *= down_weight
        total = line if total is None else np.add(total, line, out=total)
    assert total is not None
    return total


def _sum(weights: FloatImage, tapped: Callable[[int], FloatImage]) -> FloatImage:
    """Weighted sum of what lies under every tap, from the first to the last."""
    total: FloatImage = tapped(0) * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        total += tapped(tap) * weight
    return total


def pick(layers: Array, rows: Indices, cols: Indices) -> Array:
    """The pixels `(..., y, x)` of layers at some rows and columns; both `(y,)` and `(x,)`, or both `(y, x)`."""
    return np.asarray(layers[..., rows[:, None], cols] if rows.ndim == 1 else layers[..., rows, cols])
