"""The signal subspace of a scene's spectra, its noise, and projections that do not depend on the block.

Spectra are whitened, `(y - mean) / sigma` with the standard deviation `sigma` of each band's noise, so that the noise
of every band has variance 1, and then stay so under any rotation.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.scene import BoolArray, FloatArray

FloatSpectra = npt.NDArray[np.float32]

Rank = Literal["auto", "hysime"] | int
"""Number of components, or the rule that gives it (`signal_rank`)."""

_DYNAMIC_RANGE = 1e4
"""Largest ratio of a band's standard deviation to that of its noise; less noise than that cannot be told from none."""

_RIDGE = 1e-12
_REFINEMENTS = 10
_LEAST_SHARE = 0.1
_EDGE_MARGIN = 0.05
"""How far the noise variances' own errors spread their eigenvalues beyond the edge that exact ones would have."""

MAX_RANK = 64
"""Most directions that are kept by themselves: the time of denoising grows with their number."""

_NOISE_DIRECTIONS = 8

_SOLVED_AT_ONCE = 1024
"""Pixels with gaps that are solved together: bounds the memory for their matrices."""

_VALUE_STEP = 2.0**-10
_BASIS_STEP = 2.0**-22
_VALUE_LIMIT = 2.0**20
"""Fixed point of `exact_product`: a sum of products of these steps stays below 2**53 steps, so it is exact."""


@dataclass(frozen=True)
class Subspace:
    """Where the signal of a scene lies. B good bands, K components.

    Attributes:
        mean: mean spectrum, `(B,)`.
        sigma: standard deviation of each band's noise, `(B,)`, positive.
        basis: orthonormal directions of the whitened spectra, strongest first, `(B, K)`.
        variance: variance along each direction, of which the noise is 1, `(K,)`.
    """

    mean: FloatArray
    sigma: FloatArray
    basis: FloatArray
    variance: FloatArray

    def whiten(self, spectra: npt.NDArray[np.floating]) -> FloatArray:
        """Whitened spectra `(B, pixel)`."""
        return (spectra - self.mean[:, None]) / self.sigma[:, None]

    def unwhiten(self, whitened: FloatArray) -> FloatSpectra:
        """Spectra of whitened ones, `(B, pixel)`."""
        return (whitened * self.sigma[:, None] + self.mean[:, None]).astype(np.float32)

    def project(
        self, spectra: npt.NDArray[np.floating], observed: BoolArray | None = None, ridge: float | None = None
    ) -> FloatArray:
        """Coefficients `(K, pixel)` of spectra `(B, pixel)`.

        Args:
            spectra: values; anything may stand where `observed` is False.
            observed: which values count, `(B, pixel)`; all where None.
            ridge: for spectra with gaps. None: their posterior mean under the Gaussian model of scene and noise, that
                is least squares over the bands that were observed, weighted by noise, with the scene's own variance
                as the prior. A number: the same with this for the precision of the prior, where at least half of the
                bands were observed; the coefficients then keep their size, and have a little more noise.
        """
        if observed is None:
            return exact_product(self.basis.T, self.whiten(spectra))
        whitened = np.where(observed, self.whiten(np.where(observed, spectra, 0.0)), 0.0)
        coefficients = exact_product(self.basis.T, whitened)
        gaps = np.flatnonzero(~observed.all(axis=0))
        if gaps.size:
            coefficients[:, gaps] = self._posterior(coefficients[:, gaps], observed[:, gaps], ridge)
        return coefficients

    def fit(self, spectra: npt.NDArray[np.floating], observed: BoolArray, ridge: float | None = None) -> FloatSpectra:
        """The spectra `(B, pixel)` that the subspace expects from the values that were observed (see `project`)."""
        return self.restore(self.project(spectra, observed, ridge))

    def restore(self, coefficients: npt.NDArray[np.floating]) -> FloatSpectra:
        """Spectra `(B, pixel)` of coefficients `(K, pixel)`."""
        return self.unwhiten(exact_product(self.basis, coefficients))

    def _posterior(self, products: FloatArray, observed: BoolArray, ridge: float | None) -> FloatArray:
        """Solve (basis_o' basis_o + prior) z = products for every pixel.

        Each pixel is solved by itself, and its matrix summed without rounding: it must not depend on its neighbours.
        """
        size = self.basis.shape[1]
        steps = np.rint(self.basis / _BASIS_STEP) * _BASIS_STEP
        upper, lower = np.triu_indices(size)
        pairs = steps[:, upper] * steps[:, lower]
        places = np.empty((size, size), np.intp)
        places[upper, lower] = places[lower, upper] = np.arange(upper.size)
        own = 1 / np.maximum(self.variance - 1, 1e-3)
        half = 2 * np.count_nonzero(observed, axis=0) >= len(observed)
        solved = np.empty_like(products)
        for start in range(0, products.shape[1], _SOLVED_AT_ONCE):
            part = slice(start, start + _SOLVED_AT_ONCE)
            sums = observed[:, part].T.astype(np.float64) @ pairs
            matrices = sums.take(places, axis=1)
            prior = own if ridge is None else np.where(half[part, None], ridge, own)
            matrices[:, np.arange(size), np.arange(size)] += prior
            solved[:, part] = np.linalg.solve(matrices, products[:, part].T[..., None])[..., 0].T
        return solved


def exact_product(matrix: FloatArray, values: npt.NDArray[np.floating]) -> FloatArray:
    """`matrix @ values` without rounding in the sums, so that no order of summation and no blocking shows.

    Values are rounded to 1/1024 of the noise and clipped at a million times it, the matrix to 2**-22; then every
    partial sum is a whole number of steps below 2**53, which float64 holds exactly, because the rows of `matrix` are
    not longer than 1 and the spectra not longer than the limit.

    Args:
        matrix: `(m, n)` with rows of length 1 at most.
        values: `(n, pixel)` in units of the noise; finite.
    """
    limit = _VALUE_LIMIT / np.sqrt(values.shape[0])
    counts = np.rint(np.clip(values, -limit, limit, dtype=np.float64) / _VALUE_STEP)
    product: FloatArray = np.rint(matrix / _BASIS_STEP) @ counts
    product *= _VALUE_STEP * _BASIS_STEP
    return product


def estimate_subspace(
    total: FloatArray, products: FloatArray, count: int, floor: float, rank: int | str
) -> tuple[Subspace, Subspace]:
    """Mean, noise, and the directions of signal and of noise, from sums over the complete spectra of a scene.

    Args:
        total: sum of the spectra, `(B,)`.
        products: sum of their outer products, `(B, B)`.
        count: number of spectra, more than there are bands.
        floor: least noise, in the spectra's units (what packing them adds).
        rank: number of signal directions, or `auto` or `hysime` (see `signal_rank`).

    Returns:
        The signal subspace, and some of the directions left, in which there is noise alone.
    """
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    least = np.maximum(np.sqrt(np.maximum(np.diag(covariance), 0)) / _DYNAMIC_RANGE, floor)
    least = np.where(least > 0, least, 1.0)
    sigma = np.maximum(np.sqrt(noise_variance(covariance, count)), least)
    for _ in range(_REFINEMENTS):
        sigma = np.maximum(sigma * _residual_ratio(covariance, sigma, count), least)
    variance, basis = _directions(covariance, sigma)
    kept = rank if isinstance(rank, int) else signal_rank(variance, count, rank)
    kept = min(kept, variance.size)
    rest = np.unique(np.linspace(kept, variance.size - 1, _NOISE_DIRECTIONS + 2).astype(int)[1:-1])
    rest = rest[rest >= kept]
    signal, noise = (Subspace(mean, sigma, basis[:, at], variance[at]) for at in (np.arange(kept), rest))
    return signal, noise


def noise_variance(covariance: FloatArray, count: int) -> FloatArray:
    """Variance of each band's noise, `(B,)`: what a regression on all other bands leaves.

    The residuals of all B regressions at once: the least-squares residual of band i has variance 1 / (R^-1)_ii, where
    R is the covariance (Bioucas-Dias and Nascimento, "Hyperspectral subspace identification", IEEE TGRS 46(8), 2008,
    algorithm 1, summed in closed form), here freed of the B degrees that the regression takes.
    """
    size = covariance.shape[0]
    ridge = _RIDGE * max(float(np.trace(covariance)) / size, np.finfo(float).tiny)
    precision = np.linalg.inv(covariance + ridge * np.eye(size))
    return np.asarray(1 / np.diag(precision) * count / (count - size))


def signal_rank(variance: FloatArray, count: int, rule: str) -> int:
    """How many directions of whitened spectra hold signal.

    `hysime`: those in which signal outweighs noise, which minimises the error of the plain projection (HySime, eq. 20;
    with white noise it comes down to a variance above 2). `auto`: all above what noise alone reaches (the upper edge
    of Marchenko and Pastur's law), at most `MAX_RANK`: weaker ones are worth keeping where each is denoised by itself.

    Args:
        variance: variance along each direction, falling, noise being 1.
        count: number of spectra that it was estimated from.
        rule: `auto` or `hysime`.
    """
    if rule == "hysime":
        return max(int(np.count_nonzero(variance > 2)), 1)
    edge = (1 + np.sqrt(variance.size / count)) ** 2 + _EDGE_MARGIN
    return min(max(int(np.count_nonzero(variance > edge)), 1), MAX_RANK)


def _directions(covariance: FloatArray, sigma: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Variances of whitened spectra, falling, and their directions `(B, B)`."""
    variance, basis = np.linalg.eigh(covariance / np.outer(sigma, sigma))
    return np.maximum(variance[::-1], 0), basis[:, ::-1]


def _residual_ratio(covariance: FloatArray, sigma: FloatArray, count: int) -> FloatArray:
    """By how much the noise outside the signal subspace differs from `sigma`, `(B,)`.

    Regression also calls noise what no other band holds, and what it carries over from their noise. The residual of a
    band outside the subspace, divided by the share of its noise that lies there, has neither; repeated, this is
    principal factor analysis.
    """
    variance, basis = _directions(covariance, sigma)
    signal = basis[:, : signal_rank(variance, count, "auto")]
    share = 1 - np.sum(signal**2, axis=1)
    rest = basis[:, signal.shape[1] :]
    residual = np.sum(rest**2 * variance[signal.shape[1] :], axis=1)
    known = share > _LEAST_SHARE
    return np.asarray(np.sqrt(np.where(known, residual / np.where(known, share, 1.0), 1.0)))
