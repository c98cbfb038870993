"""Degrade: the cube that a sensor with larger pixels would have given (Wald's protocol).

The sensor's response in space is a Gaussian whose modulation transfer at the Nyquist frequency of the coarse grid is
`mtf`. With pixels `scale` times larger that frequency is 1 / (2 scale) per fine pixel, and

    exp(-2 π² σ² f²) = mtf    gives    σ = (scale / π) √(-2 ln mtf)    fine pixels

(Aiazzi, Alparone, Baronti, Garzelli and Selva 2006, PE&RS 72(5), the MTF-matched filter). It is sampled about the
centre of each coarse pixel, which lies between fine ones where the scale is even: corners of both grids agree.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError

from .encoding import Array

NYQUIST = 0.3
"""Modulation transfer of a sensor that nothing more is known of: what is usual for multispectral ones."""
REACH = 4.0
"""Standard deviations at which the Gaussian is cut; 6e-5 of it lies beyond, on each axis."""
LEAST_KNOWN = 0.5
"""Share of the weight of a coarse pixel that must have a value."""

FloatImage = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]


def sigma_of(mtf: float, scale: int) -> float:
    """Standard deviation, fine pixels, of a Gaussian with this transfer at the coarse grid's Nyquist frequency.

    Raises:
        ConfigError: a transfer that is not above 0 and below 1.
    """
    if not 0 < mtf < 1:
        raise ConfigError(f"modulation transfer at Nyquist is {mtf:g}; expected a number above 0 and below 1")
    return scale / math.pi * math.sqrt(-2 * math.log(mtf))


def degrade(
    cube: Array, scale: int, mtf: float | Sequence[float] = NYQUIST, known: npt.NDArray[np.bool_] | None = None
) -> FloatImage:
    """The cube on a grid `scale` times coarser with the same corner.

    Fine pixels without a value take no part, nor does what lies beyond the edge: the weights of the others are scaled
    to sum 1. Fine rows and columns that fill no coarse pixel are seen by the blur alone.

    Args:
        cube: `(band, y, x)`, NaN where there is no value.
        scale: how many times coarser.
        mtf: modulation transfer at the coarse grid's Nyquist frequency, of all bands or of each.
        known: pixels `(y, x)` that take part; None for all.

    Returns:
        `(band, y // scale, x // scale)`, NaN where less than half of the weight has a value.

    Raises:
        ConfigError: a transfer or scale that cannot be.
    """
    transfers = np.broadcast_to(np.asarray(mtf, float), (len(cube),)) if np.ndim(mtf) == 0 else np.asarray(mtf, float)
    if scale < 1 or len(transfers) != len(cube):
        raise ConfigError(
            f"scale {scale}, {len(transfers)} modulation transfers for {len(cube)} bands; expected a scale of 1 or "
            "more, and one transfer or one for each band"
        )
    coarse = np.empty((len(cube), cube.shape[1] // scale, cube.shape[2] // scale), np.float32)
    if scale == 1:
        coarse[...] = cube if known is None else np.where(known, cube, np.nan)
        return coarse
    shares: dict[float, tuple[Array, FloatImage]] = {}
    for band, transfer, out in zip(cube, transfers.tolist(), coarse, strict=True):
        weights = kernel(transfer, scale)
        there = np.isfinite(band) if known is None else np.isfinite(band) & known
        before = shares.get(transfer)
        if before is None or not np.array_equal(before[0], there):
            shares[transfer] = before = (there, _blurred(there.astype(np.float32), weights, scale))
        share = before[1]
        with np.errstate(divide="ignore", invalid="ignore"):  # pixels that become NaN
            out[...] = _blurred(np.where(there, band, np.float32(0)), weights, scale) / share
        out[share < LEAST_KNOWN] = np.nan
    return coarse


def kernel(mtf: float, scale: int) -> FloatArray:
    """Weights, of sum 1, of the fine pixels about a coarse pixel's centre; as many before it as after it."""
    sigma = sigma_of(mtf, scale)
    reach = math.ceil((REACH * sigma - scale / 2) / scale) * scale + scale / 2  # whole coarse pixels and a half
    distance = np.arange(-reach + 0.5, reach)
    weight: FloatArray = np.exp(-0.5 * (distance / sigma) ** 2)
    weight /= weight.sum()
    return weight


def _blurred(image: npt.NDArray[np.float32], weights: FloatArray, scale: int) -> FloatImage:
    """An image, 0 beyond its edge, weighted about the centres of coarse pixels, by rows and then by columns."""
    for _ in range(2):
        image = _blurred_rows(image, weights, scale).T
    return image


def _blurred_rows(image: npt.NDArray[np.float32], weights: FloatArray, scale: int) -> FloatImage:
    count, beyond = image.shape[0] // scale, (len(weights) - scale) // 2
    padded = np.pad(image, ((beyond, beyond), (0, 0)))
    total = np.zeros((count, image.shape[1]), np.float32)
    for tap, weight in enumerate(weights):
        total += np.float32(weight) * padded[tap : tap + count * scale : scale]
    return total
