"""A block's spectra in their signal subspace, and back: what the denoisers that work on component images share."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, FloatArray, SceneSpec

from .base import Stats
from .outliers import PASSES as OUTLIER_PASSES
from .outliers import RIDGE, Outliers, measure_outliers, settle_outliers
from .spectra import PIXELS_AT_ONCE, packing_noise, spectra_of
from .subspace import Rank, Subspace, estimate_subspace

MIN_BANDS = 4


def require_bands(spec: SceneSpec, rank: Rank) -> None:
    """Check that a scene has the bands that a subspace needs.

    Raises:
        InputError: too few good bands, or a rank that they do not have.
    """
    good = int(spec.bands.good.sum())
    least = max(MIN_BANDS, rank if isinstance(rank, int) else 1)
    if good < least or (isinstance(rank, int) and rank < 1):
        raise InputError(
            f"{spec.scene_id}, denoise: {good} good bands and rank {rank!r}; a spectral subspace needs at "
            f"least {MIN_BANDS} bands and a rank from 1 to their number"
        )


def spectral_sums(block: Block) -> Stats:
    """Number, sum and sum of outer products of the spectra without gaps; number of values a band."""
    size = int(block.bands.good.sum())
    count, seen = np.zeros((), np.int64), np.zeros(size, np.int64)
    total, products = np.zeros(size), np.zeros((size, size))
    for _, spectra, observed in spectra_of(block, block.core):
        complete = spectra[:, observed.all(axis=0)].astype(np.float64)
        seen += observed.sum(axis=1)
        count += complete.shape[1]
        total += complete.sum(axis=1)
        products += complete @ complete.T
    return {"count": count, "seen": seen, "total": total, "products": products}


def settle_subspaces(sums: Stats, spec: SceneSpec, rank: Rank) -> tuple[Subspace, Subspace]:
    """The scene's signal subspace, and some of the directions left, from `spectral_sums` of all its blocks.

    Raises:
        InputError: too few pixels have a value in every good band.
    """
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
    return estimate_subspace(sums["total"], sums["products"], count, packing_noise(spec), rank)


@dataclass(frozen=True)
class SignalPasses:
    """The passes over a scene that find its signal subspace.

    Attributes:
        rank: of the subspace.
        outliers: tell outliers from noise and leave them out.
    """

    rank: Rank
    outliers: bool

    @property
    def count(self) -> int:
        """How many passes."""
        return OUTLIER_PASSES if self.outliers else 1

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over the core of a block."""
        return measure_outliers(block, stats, number) if self.outliers else spectral_sums(block)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """In the end `mean`, `sigma`, `basis`, `variance`, and `noise_basis`, `noise_variance` of what is left.

        Raises:
            InputError: too few pixels have a value in every good band.
        """
        if self.outliers:
            return settle_outliers(sums, stats, number, spec, self.rank)
        signal, noise = settle_subspaces(sums, spec, self.rank)
        return {
            "mean": signal.mean,
            "sigma": signal.sigma,
            "basis": signal.basis,
            "variance": signal.variance,
            "noise_basis": noise.basis,
            "noise_variance": noise.variance,
        }


def signal_of(stats: Stats) -> Subspace:
    """The signal subspace that a scene's statistics settled to."""
    return Subspace(stats["mean"], stats["sigma"], stats["basis"], stats["variance"])


def noise_of(stats: Stats) -> Subspace:
    """Directions in which a scene has noise alone."""
    return Subspace(stats["mean"], stats["sigma"], stats["noise_basis"], stats["noise_variance"])


def spread_of(stats: Stats) -> FloatArray:
    """Standard deviation of every component image, in units of its noise, `(K,)`."""
    return np.asarray(np.sqrt(stats["variance"]) / _inflation(stats))


def _inflation(stats: Stats) -> FloatArray | float:
    """What component images are divided by, so that their noise has variance 1 without the outliers too."""
    return stats.get("inflation", 1.0)


def components(block: Block, stats: Stats) -> tuple[npt.NDArray[np.float32], BoolArray, BoolArray]:
    """Component images `(K, y, x)` over the block's window, noise having variance 1; where they are known; which count.

    Those count in statistics that miss no band; where outliers are left out, and few such remain, all that are known.
    """
    outliers = Outliers.settled(block, stats)
    if outliers is None:
        return project(block, signal_of(stats))
    images, known, _ = project(block, signal_of(stats), outliers)
    images /= np.asarray(_inflation(stats), np.float32)[:, None, None]
    return images, known, known


def project(
    block: Block, subspace: Subspace, outliers: Outliers | None = None
) -> tuple[npt.NDArray[np.float32], BoolArray, BoolArray]:
    """Coefficients `(K, y, x)` over the block's window, where they are known, and where no band is missing."""
    height, width = block.window.shape
    columns, ridge = np.arange(block.window.col, block.window.col + width), RIDGE if outliers else None
    images = np.zeros((subspace.basis.shape[1], height, width), np.float32)
    known, complete = np.zeros((2, height, width), bool)
    for part, spectra, observed in spectra_of(block, block.window):
        if outliers:
            _, _, observed = outliers.look(spectra, observed, np.tile(columns, part.stop - part.start))
        some, every = observed.any(axis=0), observed.all(axis=0)
        coefficients = np.zeros((images.shape[0], some.size))
        coefficients[:, some] = subspace.project(spectra[:, some], observed[:, some], ridge)
        images[:, part] = coefficients.reshape(-1, part.stop - part.start, width)
        known[part], complete[part] = some.reshape(-1, width), every.reshape(-1, width)
    return images, known, complete


def restored(
    block: Block, stats: Stats, images: npt.NDArray[np.float32], window: Window, known: BoolArray
) -> npt.NDArray[np.float32]:
    """The cube of component images over `window`, NaN outside it, at unknown pixels, and in bands that are not good."""
    subspace, inflation = signal_of(stats), np.reshape(_inflation(stats), (-1, 1))
    cube = np.full((len(block.bands), *block.window.shape), np.nan, np.float32)
    inside = window.within(block.window)
    good = np.flatnonzero(block.bands.good)
    height = max(PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = images[:, top : top + height]
        rows = slice(inside.row + top, inside.row + top + part.shape[1])
        spectra = subspace.restore(part.reshape(part.shape[0], -1) * inflation)
        spectra[:, ~known[rows, inside.slices[1]].reshape(-1)] = np.nan
        cube[good, rows, inside.slices[1]] = spectra.reshape(good.size, part.shape[1], window.width)
    return cube
