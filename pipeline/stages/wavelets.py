"""Undecimated Haar wavelets with firm shrinkage whose thresholds minimise Stein's unbiased risk estimate.

The transform is shift-invariant (Coifman and Donoho, "Translation-invariant de-noising", 1995): the value of a pixel
depends on its `REACH` neighbours alone and not on where the array begins. Everything here is sums, differences and
comparisons of float32 pixels, so a pixel comes out bit-equal whatever array surrounds it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]

LEVELS = 4
REACH: int = 2**LEVELS - 1
"""Pixels on every side that a shrunk pixel depends on."""

ORIENTATIONS = 3
"""Details a level: across rows, across columns, diagonal."""

BINS_PER_SIGMA = 16
RANGE_SIGMA = 24
BINS = BINS_PER_SIGMA * RANGE_SIGMA
"""Histogram of coefficient magnitudes in units of the white-noise standard deviation; one more bin holds the rest."""

_FIRMNESS = (1.5, 2.0, 3.0, 5.0, np.inf)
"""Upper over lower threshold of firm shrinkage; infinity is soft shrinkage."""


def white_sigma(level: int) -> float:
    """Standard deviation of every detail of `level` (0 the finest) where the image is white noise of variance 1."""
    return float(2.0 ** -(level + 1))


def _split(image: FloatImage, step: int, axis: int) -> tuple[FloatImage, FloatImage]:
    """Half sum and half difference of pixels `step` apart; `step` shorter along `axis`."""
    first, second = _pair(image, step, axis)
    return (first + second) * np.float32(0.5), (first - second) * np.float32(0.5)


def _join(low: FloatImage, high: FloatImage, step: int, axis: int) -> FloatImage:
    """Inverse of `_split`: the mean of the two values it gives for each pixel; `step` shorter again."""
    forward, _ = _pair(low - high, step, axis)
    _, backward = _pair(low + high, step, axis)
    return (forward + backward) * np.float32(0.5)


def _pair(image: FloatImage, step: int, axis: int) -> tuple[FloatImage, FloatImage]:
    if axis == 0:
        return image[:-step], image[step:]
    return image[:, :-step], image[:, step:]


def analyse(image: FloatImage) -> tuple[list[list[FloatImage]], FloatImage]:
    """Details by level and orientation, and the coarse rest, of an image `(y, x)` float32.

    The coefficients of a level lie at the upper left of their support, so level `j` (0 the finest) is `2**(j+1) - 1`
    px smaller than the image in both directions.
    """
    details = []
    coarse = image
    for level in range(LEVELS):
        low, high = _split(coarse, 2**level, 0)
        coarse, columns = _split(low, 2**level, 1)
        rows, diagonal = _split(high, 2**level, 1)
        details.append([rows, columns, diagonal])
    return details, coarse


def synthesise(details: list[list[FloatImage]], coarse: FloatImage) -> FloatImage:
    """The image less `REACH` px on every side; inverse of `analyse`."""
    for level in reversed(range(LEVELS)):
        rows, columns, diagonal = (_inset(detail, coarse.shape) for detail in details[level])
        low = _join(coarse, columns, 2**level, 1)
        high = _join(rows, diagonal, 2**level, 1)
        coarse = _join(low, high, 2**level, 0)
    return coarse


def _inset(detail: FloatImage, shape: tuple[int, ...]) -> FloatImage:
    """The part of a detail that goes with what coarser levels left over: as much is gone at either end."""
    top, left = ((have - want) // 2 for have, want in zip(detail.shape, shape, strict=True))
    return detail[top : top + shape[0], left : left + shape[1]]


def firm(detail: FloatImage, lower: float, upper: float) -> FloatImage:
    """Firm shrinkage (Gao and Bruce, "WaveShrink with firm shrinkage", Statistica Sinica 7, 1997).

    Magnitudes up to `lower` become 0, those from `upper` on stay, and between the two the rule is linear. An infinite
    `upper` is soft shrinkage; a `lower` of 0 leaves everything as it is.
    """
    if lower <= 0:
        return detail
    # What is taken off a coefficient x of magnitude between the thresholds is (upper - |x|) * slope, with its sign.
    clipped = np.clip(detail, np.float32(-lower), np.float32(lower))
    if np.isinf(upper):
        return detail - clipped
    slope = np.float32(lower / (upper - lower))
    left = np.maximum(np.float32(upper) - np.abs(detail), 0) * slope
    removed = np.minimum(np.abs(clipped), left)
    return detail - np.copysign(removed, detail)


def shrink(image: FloatImage, lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64]) -> FloatImage:
    """An image with its details shrunk, `REACH` px smaller on every side.

    Args:
        image: `(y, x)` float32.
        lower: lower thresholds, `(LEVELS, ORIENTATIONS)`.
        upper: upper thresholds, the same shape.
    """
    details, coarse = analyse(image)
    for level, bands in enumerate(details):
        for orientation in range(ORIENTATIONS):
            bands[orientation] = firm(
                bands[orientation], float(lower[level, orientation]), float(upper[level, orientation])
            )
    return synthesise(details, coarse)


@dataclass(frozen=True)
class Counted:
    """Which pixels of an image with `REACH` px more on every side a histogram counts: `mask` `(y, x)` without them."""

    mask: npt.NDArray[np.bool_]

    def pick(self, detail: FloatImage, level: int) -> FloatImage:
        """Magnitudes of a level's details at the counted pixels, every `2**level`-th row and column.

        Neighbours that share most of their support say the same thing twice; a coefficient is taken at the middle of
        its support.
        """
        stride = 2**level
        start = REACH - (2 ** (level + 1) - 1) // 2
        height, width = self.mask.shape
        inner = detail[start : start + height : stride, start : start + width : stride]
        return np.abs(inner[self.mask[::stride, ::stride]])


def histograms(image: FloatImage, counted: Counted) -> npt.NDArray[np.int64]:
    """Magnitudes of the details by level, orientation and bin, `(LEVELS, ORIENTATIONS, BINS + 1)`."""
    counts = np.zeros((LEVELS, ORIENTATIONS, BINS + 1), np.int64)
    for level, bands in enumerate(analyse(image)[0]):
        scale = np.float32(BINS_PER_SIGMA / white_sigma(level))
        for orientation, detail in enumerate(bands):
            magnitudes = counted.pick(detail, level) * scale
            index = np.minimum(magnitudes, np.float32(BINS)).astype(np.int32)
            counts[level, orientation] = np.bincount(index, minlength=BINS + 1)
    return counts


def energies(image: FloatImage, counted: Counted) -> npt.NDArray[np.float64]:
    """Sum of squared details by level and orientation in units of white noise's, and their number, `(LEVELS, 3, 2)`."""
    sums = np.zeros((LEVELS, ORIENTATIONS, 2))
    for level, bands in enumerate(analyse(image)[0]):
        for orientation, detail in enumerate(bands):
            values = counted.pick(detail, level).astype(np.float64) / white_sigma(level)
            sums[level, orientation] = values @ values, values.size
    return sums


def best_thresholds(counts: npt.NDArray[np.int64], sigma: float) -> tuple[float, float]:
    """Lower and upper threshold of firm shrinkage of least risk, in units of the white-noise standard deviation.

    Stein's unbiased risk estimate (Donoho and Johnstone, JASA 90, 1995, eq. 9, for any weakly differentiable rule) of
    the coefficients in a histogram: sum (d(x) - x)^2 + 2 sigma^2 sum d'(x) - n sigma^2, with magnitudes at the middle
    of their bin. Its last term is the same for every threshold and is left out.

    Args:
        counts: one histogram, `(BINS + 1,)`.
        sigma: standard deviation of the noise in units of white noise's.
    """
    inside = counts[:-1].astype(np.float64)
    moments = np.stack([np.concatenate([[0.0], np.cumsum(inside * _MIDDLES**power)]) for power in range(3)])
    total = float(counts.sum())
    best = (2 * sigma**2 * total, 0.0, float("inf"))
    for firmness in _FIRMNESS:
        lower, upper, risk = _risks(moments, total, sigma, firmness)
        at = int(np.argmin(risk))
        if risk[at] < best[0]:
            best = (float(risk[at]), float(lower[at]), float(upper[at]))
    return best[1], best[2]


_EDGES = np.arange(BINS + 1) / BINS_PER_SIGMA
_MIDDLES = _EDGES[:-1] + 0.5 / BINS_PER_SIGMA


def _risks(
    moments: npt.NDArray[np.float64], total: float, sigma: float, firmness: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lower and upper thresholds of one firmness and their risks; `moments` are cumulative sums over the bins."""
    start = np.arange(1, BINS + 1)
    if np.isinf(firmness):
        lower = _EDGES[start]
        risk = moments[2, start] + (total - moments[0, start]) * (lower**2 + 2 * sigma**2)
        return lower, np.full(BINS, np.inf), risk
    stop = np.rint(start * firmness).astype(int)
    start, stop = start[stop <= BINS], stop[stop <= BINS]
    lower, upper = _EDGES[start], _EDGES[stop]
    slope = lower / (upper - lower)
    count, first, second = moments[:, stop] - moments[:, start]
    removed = slope**2 * (upper**2 * count - 2 * upper * first + second)
    derivative = (1 + slope) * count + total - moments[0, stop]
    return lower, upper, moments[2, start] + removed + 2 * sigma**2 * derivative
