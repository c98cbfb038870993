"""Training-free denoising: a scene's spectra in their signal subspace, each component shrunk in wavelets.

The plan of FastHyDe (Zhuang and Bioucas-Dias, IEEE JSTARS 11(3), 2018) and HyRes (Rasti, Ulfarsson and Ghamisi, IEEE
GRSL 14(12), 2017): whiten by each band's noise, project on the subspace of the signal, denoise the component images,
go back. Here the component images go through undecimated Haar wavelets with firm thresholds of least estimated risk.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, SceneSpec

from . import inpaint, wavelets
from .base import Stats
from .components import SignalPasses, components, noise_of, project, require_bands, restored
from .outliers import Outliers
from .subspace import Rank

REACH = wavelets.REACH + inpaint.REACH
"""Reach of the wavelets, and from there of the fill under the mask, px."""

_LEAST_COMPLETE = 0.1
"""Share of the pixels that must miss no band, where outliers are left out, for these to stand for all."""


@dataclass(frozen=True)
class SubspaceMethod:
    """The method `subspace` of the stage `denoise`, which says what its parameters mean."""

    rank: Rank
    strength: float
    outliers: bool

    halo = REACH

    @property
    def passes(self) -> int:
        """Those that find the subspace, and one for the thresholds."""
        return self._signal.count + 1

    @property
    def _signal(self) -> SignalPasses:
        return SignalPasses(self.rank, self.outliers)

    def require(self, spec: SceneSpec) -> None:
        """Check that the scene's bands make a subspace.

        Raises:
            InputError: too few good bands, or a rank that they do not have.
        """
        require_bands(spec, self.rank)

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums that give the subspace, and in the last pass wavelet statistics of the components."""
        signal = self._signal
        return signal.measure(block, stats, number) if number < signal.count else _wavelet_counts(block, stats)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The subspace, and after the last pass the thresholds.

        Raises:
            InputError: too few pixels have a value in every good band.
        """
        signal = self._signal
        if number < signal.count:
            return signal.settle(sums, stats, number, spec)
        spread = _noise_spread(sums["energy"], stats["noise_variance"], sums["counts"].sum(axis=-1)[0])
        lower = np.zeros(sums["counts"].shape[:-1])
        upper = np.zeros_like(lower)
        for at in np.ndindex(lower.shape):
            lower[at], upper[at] = wavelets.best_thresholds(sums["counts"][at], float(spread[at[1:]]))
        return {**stats, "lower": lower, "upper": upper}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `denoised` cube of a block; NaN in the halo as well."""
        window = _dependable(block, REACH)
        images, known, _ = components(block, stats)
        sizes = np.array([wavelets.white_sigma(level) for level in range(wavelets.LEVELS)])[:, None] * self.strength
        with np.errstate(invalid="ignore"):
            lower, upper = stats["lower"] * sizes, stats["upper"] * sizes
        shrunk = np.empty((images.shape[0], *window.shape), np.float32)
        for image, low, high, out in zip(images, lower, upper, shrunk, strict=True):
            out[:] = wavelets.shrink(_around(image, known, block.window, window), low, high)
        return {"denoised": restored(block, stats, shrunk, window, known)}


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
    images, known, counted = components(block, stats)
    counts = np.stack([wavelets.histograms(*_counted(block, image, known, counted)) for image in images])
    noise, known, complete = project(block, noise_of(stats), Outliers.settled(block, stats))
    energy = np.zeros((len(noise), wavelets.LEVELS, wavelets.ORIENTATIONS, 2))
    for row, image in zip(energy, noise, strict=True):
        row[:] = wavelets.energies(*_counted(block, image, known, complete))
    return {"counts": counts, "energy": energy}


def _counted(
    block: Block, image: npt.NDArray[np.float32], known: BoolArray, counted: BoolArray
) -> tuple[npt.NDArray[np.float32], wavelets.Counted]:
    """A component image around the core, and the pixels there that count."""
    return _around(image, known, block.window, block.core), wavelets.Counted(block.inner(counted))


def _noise_spread(
    energy: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], known: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Standard deviation of noise by level and orientation, in units of white noise's, `(LEVELS, ORIENTATIONS)`.

    Taken over directions without signal, each scaled to variance 1: there it is only the spread that counts. That of
    white noise where too few coefficients, of the `known` ones, come from pixels that miss no band.
    """
    if not variance.size:
        return np.ones((wavelets.LEVELS, wavelets.ORIENTATIONS))
    scale = 1 / np.maximum(variance, 0.1)
    complete = energy[..., 1].sum(axis=0)
    enough = (complete > 0) & (complete >= _LEAST_COMPLETE * known * len(energy))
    total = np.tensordot(scale, energy[..., 0], 1)
    return np.asarray(np.sqrt(np.divide(total, complete, out=np.ones_like(total), where=enough)))
