"""Training-free denoising: a scene's spectra in their signal subspace, each component shrunk in wavelets.

The plan of FastHyDe (Zhuang and Bioucas-Dias, IEEE JSTARS 11(3), 2018) and HyRes (Rasti, Ulfarsson and Ghamisi, IEEE
GRSL 14(12), 2017): whiten by each band's noise, project on the subspace of the signal, denoise the component images,
go back. Here the component images go through undecimated Haar wavelets with firm thresholds of least estimated risk.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, SceneSpec, cube_variable

from . import inpaint, wavelets
from .base import Stage, Stats, register
from .subspace import Subspace, estimate_subspace

Rank = Literal["auto", "hysime"] | int

_MIN_BANDS = 4
_PIXELS_AT_ONCE = 8192
"""Spectra in one matrix product: bounds the float64 copies."""


@register("denoise")
class Denoise(Stage):
    """Remove noise that is independent from band to band, and keep what bands share.

    Two passes: the mean and covariance of complete spectra, which give each band's noise and the signal subspace; then
    histograms of wavelet coefficients, which give every component, level and orientation its thresholds. How the
    noise spreads over levels and orientations is read off directions that hold no signal, so noise that resampling
    has correlated from pixel to pixel is met as it is.

    `denoised` is NaN at pixels that do not take part and in bands that are not good. A good band that is missing at a
    pixel (no value, or marked in `defect`) is estimated from the pixel's other bands.

    Attributes:
        method: `subspace`, the only one without a trained model.
        rank: number of components, or how it is found: `auto` keeps all that rise above noise, `hysime` those with
            more signal than noise.
        strength: factor on all thresholds; 1 is least expected error, 0 the projection on the subspace alone.
    """

    passes = 2
    work_cubes = 1.2

    method: Literal["subspace"] = "subspace"
    rank: Rank = "auto"
    strength: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `denoised` as its subject.

        Raises:
            InputError: too few good bands, or a rank that they do not have.
        """
        good = int(spec.bands.good.sum())
        least = max(_MIN_BANDS, self.rank if isinstance(self.rank, int) else 1)
        if good < least or (isinstance(self.rank, int) and self.rank < 1):
            raise InputError(
                f"{spec.scene_id}, denoise: {good} good bands and rank {self.rank!r}; a spectral subspace needs at "
                f"least {_MIN_BANDS} bands and a rank from 1 to their number"
            )
        units = str(spec.variables[spec.subject].attrs.get("units", "1"))
        line = f"denoise: {self.method}, rank {self.rank}, strength {self.strength:g}"
        denoised = cube_variable("denoised", long_name=f"denoised {spec.subject}", units=units)
        return spec.with_variables(history=line, subject="denoised", denoised=denoised)

    def halo(self, spec: SceneSpec) -> int:
        """Reach of the wavelets, and from there of the fill under the mask."""
        return wavelets.REACH + inpaint.REACH

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over complete spectra (pass 0), or wavelet statistics of the components (pass 1)."""
        return _spectral_sums(block) if number == 0 else _wavelet_counts(block, stats)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The subspace (pass 0), and the thresholds (pass 1).

        Raises:
            InputError: too few pixels have a value in every good band.
        """
        if number == 0:
            return self._subspaces(sums, spec)
        noise = _noise_spread(sums["energy"], stats["noise_variance"])
        lower = np.zeros(sums["counts"].shape[:-1])
        upper = np.zeros_like(lower)
        for at in np.ndindex(lower.shape):
            lower[at], upper[at] = wavelets.best_thresholds(sums["counts"][at], float(noise[at[1:]]))
        return {**stats, "lower": lower, "upper": upper}

    def _subspaces(self, sums: Stats, spec: SceneSpec) -> Stats:
        good = spec.bands.good
        count = int(sums["count"])
        if count < 2 * int(good.sum()):
            seen = sums["seen"]
            worst = spec.bands.describe(int(np.flatnonzero(good)[int(np.argmin(seen))]))
            raise InputError(
                f"{spec.scene_id}, denoise: {count} pixels have a value in every good band, at least "
                f"{2 * int(good.sum())} are needed for {int(good.sum())} bands. {worst} has the fewest values, "
                f"{int(seen.min())}; drop such bands with select_bands, or check the mask"
            )
        encoding = spec.variables[spec.subject].encoding
        floor = (encoding.scale or 0.0) / np.sqrt(12)
        signal, noise = estimate_subspace(sums["total"], sums["products"], count, floor, self.rank)
        return {
            "mean": signal.mean,
            "sigma": signal.sigma,
            "basis": signal.basis,
            "variance": signal.variance,
            "noise_basis": noise.basis,
            "noise_variance": noise.variance,
        }

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `denoised` cube of a block; NaN in the halo as well."""
        window = _dependable(block, self.halo(block.spec))
        signal = _signal(stats)
        images, known, _ = _components(block, signal)
        sizes = np.array([wavelets.white_sigma(level) for level in range(wavelets.LEVELS)])[:, None] * self.strength
        with np.errstate(invalid="ignore"):
            lower, upper = stats["lower"] * sizes, stats["upper"] * sizes
        shrunk = np.empty((images.shape[0], *window.shape), np.float32)
        for image, low, high, out in zip(images, lower, upper, shrunk, strict=True):
            out[:] = wavelets.shrink(_around(image, known, block.window, window), low, high)
        return {"denoised": _restored(block, signal, shrunk, window, known)}


def _signal(stats: Stats) -> Subspace:
    return Subspace(stats["mean"], stats["sigma"], stats["basis"], stats["variance"])


def _spectra(block: Block, window: Window) -> Iterator[tuple[slice, npt.NDArray[np.float32], BoolArray]]:
    """Good bands of a window, a few rows at a time: which rows, spectra `(B, pixel)`, and which values count."""
    rows, cols = window.within(block.window).slices
    cube, valid = block.subject[:, rows, cols], block.valid[rows, cols]
    defect = block["defect"][:, rows, cols] if "defect" in block.arrays else None
    good = np.flatnonzero(block.bands.good)
    height = max(_PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = slice(top, min(top + height, window.height))
        spectra = cube[good, part].reshape(good.size, -1)
        observed = np.isfinite(spectra) & valid[part].reshape(-1)
        if defect is not None:
            observed &= ~defect[good, part].reshape(good.size, -1)
        yield part, spectra, observed


def _spectral_sums(block: Block) -> Stats:
    """Number, sum and sum of outer products of the spectra without gaps; number of values a band."""
    size = int(block.bands.good.sum())
    count, seen = np.zeros((), np.int64), np.zeros(size, np.int64)
    total, products = np.zeros(size), np.zeros((size, size))
    for _, spectra, observed in _spectra(block, block.core):
        complete = spectra[:, observed.all(axis=0)].astype(np.float64)
        seen += observed.sum(axis=1)
        count += complete.shape[1]
        total += complete.sum(axis=1)
        products += complete @ complete.T
    return {"count": count, "seen": seen, "total": total, "products": products}


def _components(block: Block, subspace: Subspace) -> tuple[npt.NDArray[np.float32], BoolArray, BoolArray]:
    """Component images `(K, y, x)` over the block's window, where they are known, and where no band is missing."""
    height, width = block.window.shape
    images = np.zeros((subspace.basis.shape[1], height, width), np.float32)
    known, complete = np.zeros((2, height, width), bool)
    for part, spectra, observed in _spectra(block, block.window):
        some, every = observed.any(axis=0), observed.all(axis=0)
        coefficients = np.zeros((images.shape[0], some.size))
        coefficients[:, every] = subspace.project(spectra[:, every])
        gaps = some & ~every
        if gaps.any():
            coefficients[:, gaps] = subspace.project(spectra[:, gaps], observed[:, gaps])
        images[:, part] = coefficients.reshape(-1, part.stop - part.start, width)
        known[part], complete[part] = some.reshape(-1, width), every.reshape(-1, width)
    return images, known, complete


def _around(image: npt.NDArray[np.float32], known: BoolArray, outer: Window, window: Window) -> npt.NDArray[np.float32]:
    """A component image over `window` and the reach of the wavelets, filled under the mask, mirrored at the edges."""
    reach = wavelets.REACH
    filled = image if known.all() else inpaint.inpaint(image, known)
    inside = window.within(outer)
    grown = inside.expand(reach, outer.shape)
    before = (grown.row - inside.row + reach, grown.col - inside.col + reach)
    after = (inside.stop[0] + reach - grown.stop[0], inside.stop[1] + reach - grown.stop[1])
    return np.pad(filled[grown.slices], tuple(zip(before, after, strict=True)), mode="symmetric")


def _dependable(block: Block, halo: int) -> Window:
    """The part of a block's window that has its halo, or the edge of the scene, on every side."""
    window, (height, width) = block.window, block.spec.shape
    top = window.row + (halo if window.row > 0 else 0)
    left = window.col + (halo if window.col > 0 else 0)
    bottom = window.stop[0] - (halo if window.stop[0] < height else 0)
    right = window.stop[1] - (halo if window.stop[1] < width else 0)
    return Window(top, left, max(bottom - top, 0), max(right - left, 0))


def _wavelet_counts(block: Block, stats: Stats) -> Stats:
    """Histograms of the signal components' wavelet coefficients, and the energy of those of noise."""
    both = np.concatenate([stats["basis"], stats["noise_basis"]], axis=1)
    variance = np.concatenate([stats["variance"], stats["noise_variance"]])
    images, known, complete = _components(block, Subspace(stats["mean"], stats["sigma"], both, variance))
    counted = wavelets.Counted(block.inner(complete))
    around = (_around(image, known, block.window, block.core) for image in images)
    rank = stats["basis"].shape[1]
    counts = np.stack([wavelets.histograms(next(around), counted) for _ in range(rank)])
    energy = np.zeros((both.shape[1] - rank, wavelets.LEVELS, wavelets.ORIENTATIONS, 2))
    for row, image in zip(energy, around, strict=True):
        row[:] = wavelets.energies(image, counted)
    return {"counts": counts, "energy": energy}


def _noise_spread(energy: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation of noise by level and orientation, in units of white noise's, `(LEVELS, ORIENTATIONS)`.

    Taken over directions without signal, each scaled to variance 1: there it is only the spread that counts.
    """
    if not variance.size:
        return np.ones((wavelets.LEVELS, wavelets.ORIENTATIONS))
    scale = 1 / np.maximum(variance, 0.1)
    sums = np.tensordot(scale, energy[..., 0], 1), energy[..., 1].sum(axis=0)
    return np.asarray(np.sqrt(np.divide(*sums, out=np.ones_like(sums[0]), where=sums[1] > 0)))


def _restored(
    block: Block, subspace: Subspace, images: npt.NDArray[np.float32], window: Window, known: BoolArray
) -> npt.NDArray[np.float32]:
    """The cube of component images over `window`, NaN outside it, at unknown pixels, and in bands that are not good."""
    cube = np.full((len(block.bands), *block.window.shape), np.nan, np.float32)
    inside = window.within(block.window)
    good = np.flatnonzero(block.bands.good)
    height = max(_PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = images[:, top : top + height]
        rows = slice(inside.row + top, inside.row + top + part.shape[1])
        spectra = subspace.restore(part.reshape(part.shape[0], -1))
        spectra[:, ~known[rows, inside.slices[1]].reshape(-1)] = np.nan
        cube[good, rows, inside.slices[1]] = spectra.reshape(good.size, part.shape[1], window.width)
    return cube
