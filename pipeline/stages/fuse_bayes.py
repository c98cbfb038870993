"""Bayesian fusion of two observations of a pixel, in closed form: optical bands, and what a radar sees of the same.

After Fasbender, Radoux and Bogaert ("Bayesian data fusion for adaptable image pansharpening", IEEE TGRS 46, 2008), in
the Gaussian case that Pande (arXiv 2312.10798) takes for texture of radar scenes. Hidden is the spectrum z:

    prior     z ~ N(m, S), mean and covariance of the scene's spectra
    optical   o = z + e, e ~ N(0, N)
    radar     s = a + B z + f, f ~ N(0, R), by multivariate least squares over the scene

With weights v = 2 (1 - l) and w = 2 l of the two likelihoods the posterior of z is Gaussian with precision
P = S^-1 + v N^-1 + w B' R^-1 B and mean P^-1 (S^-1 m + v N^-1 o + w B' R^-1 (s - a)). P is the same at every pixel, so
the whole image is one matrix product.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError

from .base import Stats

FloatArray = npt.NDArray[np.float64]
FloatPixels = npt.NDArray[np.float32]

RIDGE = 1e-4
"""Share of each variable's variance that is added to it: neither bands nor measures need be independent."""

CONSTANT = 1e-5
"""A variable whose spread is a smaller share of its size tells nothing; it may be what rounding left."""

BATCH = 4096
"""Pixels in one matrix product, always: its sums depend on its shape."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """The posterior mean as an affine map of what is observed: `constant + by_optical o + by_radar s`.

    Attributes:
        constant: `(B,)`.
        by_optical: `(B, B)`.
        by_radar: `(B, T)`.
        deviation: `(B,)` posterior standard deviation of each band, the same at every pixel.
    """

    constant: FloatArray
    by_optical: FloatArray
    by_radar: FloatArray
    deviation: FloatArray

    def apply(self, optical: FloatPixels, radar: FloatPixels) -> FloatPixels:
        """Fused spectra `(B, n)` of `(B, n)` and `(T, n)`; NaN where one of the values is."""
        weights = np.concatenate([self.by_optical, self.by_radar], axis=1).astype(np.float32)
        constant = self.constant.astype(np.float32)[:, None]
        fused = np.empty(optical.shape, np.float32)
        seen = np.zeros((weights.shape[1], BATCH), np.float32)
        for start in range(0, optical.shape[1], BATCH):
            part = slice(start, min(start + BATCH, optical.shape[1]))
            count = part.stop - part.start
            seen[: len(optical), :count], seen[len(optical) :, :count] = optical[:, part], radar[:, part]
            fused[:, part] = (weights @ seen)[:, :count] + constant
        return fused


def joint_moments(optical: FloatPixels, radar: FloatPixels) -> Stats:
    """Sums over the pixels of `(B, n)` and `(T, n)` that have every value; those of parts of a scene may be added."""
    joint = np.concatenate([optical, radar]).astype(np.float64)
    joint = joint[:, np.isfinite(joint).all(axis=0)]
    return {"count": np.array(float(joint.shape[1])), "total": joint.sum(axis=1), "products": joint @ joint.T}


def fusion_of(sums: Stats, bands: int, balance: float = 0.5, noise: float = 0.1) -> Fusion:
    """The fusion that a scene's moments give.

    Args:
        sums: of `joint_moments`.
        bands: B, the first of the joint variables; the others are the radar's.
        balance: l in [0, 1], weight of the radar: 0 the optical scene alone, 0.5 both alike, 1 the radar alone.
        noise: standard deviation of the optical error in each band, as a share of that of the band.

    Raises:
        InputError: too few pixels have every value.
    """
    count, size = float(sums["count"]), sums["total"].size
    if count <= 2 * size:
        raise InputError(
            f"{count:.0f} pixels have both an optical and a radar value, and {size} variables need more than "
            f"{2 * size}; choose fewer measures, or scenes that overlap"
        )
    mean = sums["total"] / count
    covariance = sums["products"] / count - np.outer(mean, mean)
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    varies = scale > CONSTANT * np.sqrt(np.diag(sums["products"]) / count)
    scale = np.where(varies, scale, 1.0)
    standard = covariance * np.outer(varies, varies) / np.outer(scale, scale) + RIDGE * np.eye(size)
    gain_o, gain_s, spread = _gains(standard, bands, balance, noise)
    by_optical = gain_o * scale[:bands, None] / scale[:bands]
    by_radar = gain_s * scale[:bands, None] / scale[bands:]
    constant = mean[:bands] - by_optical @ mean[:bands] - by_radar @ mean[bands:]
    return Fusion(constant, by_optical, by_radar, spread * scale[:bands])


def _gains(standard: FloatArray, bands: int, balance: float, noise: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What the two observations add to the mean, and the standard deviation that is left, of standardised variables."""
    prior, cross = standard[:bands, :bands], standard[bands:, :bands]
    slope = np.linalg.solve(prior, cross.T).T
    rest = standard[bands:, bands:] - slope @ cross.T + RIDGE * np.eye(len(slope))
    told = np.linalg.solve(rest, slope).T  # B' R^-1
    by_optical = 2 * (1 - balance) / max(noise, RIDGE) ** 2 * np.eye(bands)
    precision = np.linalg.inv(prior) + by_optical + 2 * balance * told @ slope
    gains = np.linalg.solve(precision, np.concatenate([by_optical, 2 * balance * told], axis=1))
    spread = np.sqrt(np.diag(np.linalg.inv(precision)))
    return gains[:, :bands], gains[:, bands:], np.asarray(spread)
