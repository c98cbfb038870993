"""A training-free denoiser for Gaussian noise mixed with impulses, stripes and dead lines: the baseline of networks.

After L1HyMixDe (Zhuang and Ng, "Hyperspectral mixed noise removal by l1-norm-based subspace representation", IEEE
JSTARS 13, 2020): spectra Y are E Z + V + noise, with E a basis of the whitened spectra, eigen-images Z that a Gaussian
denoiser keeps smooth, and sparse outliers V under an l1 norm.

It differs where that brought more PSNR on the simulated cube that its constants were tuned on, which no evaluation
uses: noise and basis are estimated anew as the outliers leave, and the l1 problem keeps its Gaussian term, so that Z
and V are found in turns and without a multiplier. The eigen-images are shrunk in undecimated wavelets, as those of the
`denoise` stage are, where the paper takes BM3D.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.stages import wavelets
from cubeloom.pipeline.stages.inpaint import inpaint

Float32Array = npt.NDArray[np.float32]

_MEDIAN_WINDOW = 21
_LEAST_SIGMA = 1e-4
_GAUSSIAN_MAD = 1.4826
"""Standard deviation over median absolute value of Gaussian noise."""
_GAUSSIAN_MEAN = 1.2533
"""Standard deviation over mean absolute value of Gaussian noise."""


@dataclass(frozen=True)
class Settings:
    """Constants of the method; the defaults were tuned once and hold for every cube.

    Attributes:
        outlier: p, least deviation from the median, on the cube's scale, of a first outlier.
        outlier_sigma: the same in standard deviations of the band.
        rank: k, size of the subspace.
        sparsity: lambda, threshold on the residual in standard deviations of the noise.
        rounds: how often noise and basis are estimated.
        turns: how often Z and V are found in each round.
    """

    outlier: float = 0.05
    outlier_sigma: float = 2.0
    rank: int = 10
    sparsity: float = 0.7
    rounds: int = 6
    turns: int = 4


DEFAULTS = Settings()


def hymixde(cube: npt.NDArray[Any], valid: BoolArray | None = None, settings: Settings = DEFAULTS) -> Float32Array:
    """Remove noise of every kind from a cube.

    Args:
        cube: `(band, y, x)` of one scale in all bands, such as reflectance or [0, 1]; at least 2 bands.
        valid: `(y, x)`, pixels that count; anything may stand elsewhere, and what comes out there means nothing.
        settings: constants of the method.

    Returns:
        The denoised cube, float32.
    """
    images = _filled(np.asarray(cube, np.float32), valid)
    bands, *size = images.shape
    spectra = images.reshape(bands, -1)
    clean = _without_outliers(images, settings).reshape(bands, -1)
    sigma = _fine_noise(images)
    for _ in range(settings.rounds):
        mean, basis = _eigenbasis(clean, sigma, min(settings.rank, bands))
        whitened = (spectra - mean) / sigma
        outliers = (spectra - clean) / sigma
        for _ in range(settings.turns):
            signal = basis @ _shrunk((basis.T @ (whitened - outliers)).reshape(-1, *size)).reshape(basis.shape[1], -1)
            outliers = _soft(whitened - signal, settings.sparsity)
        estimate = signal * sigma + mean
        clean = spectra - outliers * sigma
        spread = _GAUSSIAN_MEAN * np.abs(spectra - estimate).mean(axis=1, keepdims=True)
        sigma = np.maximum(spread, np.float32(_LEAST_SIGMA))
    return np.asarray(estimate.reshape(cube.shape), np.float32)


def _filled(cube: Float32Array, valid: BoolArray | None) -> Float32Array:
    """The cube with values under the mask, so that filters run across its edge."""
    if valid is None or valid.all():
        return cube
    filled = np.empty_like(cube)
    for band, out in zip(cube, filled, strict=True):
        mean = band[valid].mean()
        out[:] = inpaint(band - mean, valid) + mean
    return filled


def _without_outliers(cube: Float32Array, settings: Settings) -> Float32Array:
    """The cube with values far from the median around them replaced by it."""
    kept = np.empty_like(cube)
    for band, out in zip(cube, kept, strict=True):
        median = _median(band)
        deviation = np.abs(band - median)
        limit = max(settings.outlier, settings.outlier_sigma * _GAUSSIAN_MAD * float(np.median(deviation)))
        out[:] = np.where(deviation > limit, median, band)
    return kept


def _median(band: Float32Array) -> Float32Array:
    """Median of the window around every pixel, to 1/255 of the band's range: far below what makes an outlier."""
    from skimage.filters import rank

    windowed: Any = rank.median
    low, high = float(band.min()), float(band.max())
    step = max(high - low, float(np.finfo(np.float32).tiny)) / 255
    levels = np.rint((band - low) / step).astype(np.uint8)
    window = np.ones((_MEDIAN_WINDOW, _MEDIAN_WINDOW), np.uint8)
    return np.asarray(windowed(levels, window) * np.float32(step) + np.float32(low))


def _fine_noise(cube: Float32Array) -> Float32Array:
    """Standard deviation of each band's noise, `(B, 1)`, off its finest diagonal differences."""
    rows = cube[:, 1:] - cube[:, :-1]
    diagonal = (rows[:, :, 1:] - rows[:, :, :-1]).reshape(len(cube), -1) / 2
    sigma = _GAUSSIAN_MAD * np.median(np.abs(diagonal), axis=1, keepdims=True)
    return np.asarray(np.maximum(sigma, _LEAST_SIGMA), np.float32)


def _eigenbasis(spectra: Float32Array, sigma: Float32Array, rank: int) -> tuple[Float32Array, Float32Array]:
    """Mean `(B, 1)` of the spectra and their strongest directions `(B, K)` once whitened."""
    mean = spectra.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    whitened = ((spectra - mean) / sigma).astype(np.float64)
    _, directions = np.linalg.eigh(whitened @ whitened.T)
    return mean, directions[:, ::-1][:, :rank].astype(np.float32)


def _soft(values: Float32Array, threshold: float) -> Float32Array:
    return values - np.clip(values, np.float32(-threshold), np.float32(threshold))


def _shrunk(images: Float32Array) -> Float32Array:
    """Eigen-images `(K, y, x)`, whose noise has variance 1, with wavelet thresholds of least estimated risk."""
    around = np.pad(images, ((0, 0), *((wavelets.REACH, wavelets.REACH),) * 2), mode="symmetric")
    counted = wavelets.Counted(np.ones(images.shape[1:], bool))
    shrunk = np.empty_like(images)
    for image, out in zip(around, shrunk, strict=True):
        counts = wavelets.histograms(image, counted)
        lower, upper = np.zeros((2, *counts.shape[:2]))
        for at in np.ndindex(lower.shape):
            size = wavelets.white_sigma(at[0])
            lower[at], upper[at] = (size * bound for bound in wavelets.best_thresholds(counts[at], 1.0))
        out[:] = wavelets.shrink(image, lower, upper)
    return shrunk
