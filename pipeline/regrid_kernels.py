"""Resampling kernels: which source pixels an output pixel is made of, and with which weights.

Every function gives a pixel's value from its own position and its own taps alone, summed in one order, so that it is
the same to the last bit whatever else is computed with it.

`restored` is an estimate where the others interpolate. A pixel of a sensor is a Gaussian mean of the ground, whose
modulation transfer at Nyquist is `mtf`; what is wanted is the plain mean over another pixel, elsewhere. Of ground whose
power along a line falls as frequency^-2, as edges make it, the best linear estimate from some pixels follows from how
they vary with each other and with what is wanted (Wiener 1949; between areas: Kyriakidis 2004, Geographical Analysis
36(3)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from .degrade import NYQUIST, sigma_of
from .encoding import Array

Resampling = Literal["cubic", "bilinear", "average", "nearest", "restored"]
FloatImage = npt.NDArray[np.float32]
Positions = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

STRIP = 32
"""Rows that are resampled at once: the weights of more would leave the processor's cache."""

REACH = 4
"""Source pixels on either side from which a pixel of the same size is restored; larger ones take more."""
FRACTIONS = 64
"""Positions within a pixel at which the weights of `restored` are computed; linear between."""
LARGEST = 100.0
"""Size, px, of the ground's largest structures; its spectrum is flat beyond."""
NOISE = 0.02
"""Standard deviation of the sensor's noise, as a share of that of its images."""

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


def taps(positions: Positions, resampling: Resampling, footprint: float, mtf: float = NYQUIST) -> Taps:
    """Taps of output pixels whose centres lie at `positions`, px of the source, 0 in the middle of its first pixel.

    Args:
        positions: along one axis; NaN where there is no such place.
        resampling: `cubic` (Keys 1981, a = -1/2), `bilinear`, `average` over the output pixel's area, `nearest`, or
            `restored`.
        footprint: length of an output pixel, px of the source.
        mtf: modulation transfer of the source's sensor at its Nyquist frequency, for `restored`.
    """
    placed = np.where(np.isfinite(positions), positions, -1e6)
    if resampling == "restored":
        return _restored(placed, footprint, mtf)
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


def _restored(positions: Positions, footprint: float, mtf: float) -> Taps:
    """Taps of `restored`, from the weights at the two positions within a pixel beside each."""
    table = estimators(round(footprint, 3), mtf)
    first = np.floor(positions)
    share = (positions - first) * FRACTIONS
    before = np.minimum(share.astype(np.intp), FRACTIONS - 1)
    share -= before
    weights = np.empty((table.shape[1], *positions.shape), np.float32)
    for tap, out in zip(table.T, weights, strict=True):
        out[...] = tap[before] + share * (tap[before + 1] - tap[before])
    return Taps(first.astype(np.intp) - (len(weights) // 2 - 1), weights)


@lru_cache(maxsize=8)
def estimators(footprint: float, mtf: float) -> npt.NDArray[np.float64]:
    """Weights, of sum 1, by which a pixel's mean is estimated from those of a sensor around it.

    Args:
        footprint: length of the pixel, px of the sensor.
        mtf: modulation transfer of the sensor at its Nyquist frequency.

    Returns:
        `(FRACTIONS + 1, taps)`: the pixel's centre lies on the last tap of the first half, and then ever further
        towards the next tap.
    """
    reach = math.ceil(REACH + (footprint - 1) / 2)
    frequency = np.arange(0, 3, 0.1 / LARGEST)  # per px; beyond, no optics let anything through
    power = 1 / (frequency**2 + LARGEST**-2)
    seen = np.exp(-2 * (np.pi * sigma_of(mtf, 1) * frequency) ** 2)
    waves = [np.cos(2 * np.pi * frequency * lag) for lag in range(2 * reach)]
    covariance = np.array([power * seen**2 @ wave for wave in waves])
    at = np.arange(2 * reach)
    among = covariance[np.abs(at[:, None] - at)] + NOISE**2 * covariance[0] * np.eye(2 * reach)
    distance = at - (reach - 1) - np.linspace(0, 1, FRACTIONS + 1)[:, None]
    shared = np.cos(2 * np.pi * distance[..., None] * frequency) @ (power * seen * np.sinc(footprint * frequency))
    weights = np.linalg.solve(among, shared.T).T
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


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
