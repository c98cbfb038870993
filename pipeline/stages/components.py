"""A block's spectra in their signal subspace, and back: what the denoisers that work on component images share."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, SceneSpec

from .base import Stats
from .subspace import Subspace, estimate_subspace

Rank = Literal["auto", "hysime"] | int

MIN_BANDS = 4
PIXELS_AT_ONCE = 8192
"""Spectra in one matrix product: bounds the float64 copies."""


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


def spectra_of(block: Block, window: Window) -> Iterator[tuple[slice, npt.NDArray[np.float32], BoolArray]]:
    """Good bands of a window, a few rows at a time: which rows, spectra `(B, pixel)`, and which values count."""
    rows, cols = window.within(block.window).slices
    cube, valid = block.subject[:, rows, cols], block.valid[rows, cols]
    defect = block["defect"][:, rows, cols] if "defect" in block.arrays else None
    good = np.flatnonzero(block.bands.good)
    height = max(PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = slice(top, min(top + height, window.height))
        spectra = cube[good, part].reshape(good.size, -1)
        observed = np.isfinite(spectra) & valid[part].reshape(-1)
        if defect is not None:
            observed &= ~defect[good, part].reshape(good.size, -1)
        yield part, spectra, observed


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
    encoding = spec.variables[spec.subject].encoding
    floor = (encoding.scale or 0.0) / np.sqrt(12)
    return estimate_subspace(sums["total"], sums["products"], count, floor, rank)


def signal_of(stats: Stats) -> Subspace:
    """The signal subspace that a scene's statistics settled to."""
    return Subspace(stats["mean"], stats["sigma"], stats["basis"], stats["variance"])


def components(block: Block, subspace: Subspace) -> tuple[npt.NDArray[np.float32], BoolArray, BoolArray]:
    """Component images `(K, y, x)` over the block's window, where they are known, and where no band is missing."""
    height, width = block.window.shape
    images = np.zeros((subspace.basis.shape[1], height, width), np.float32)
    known, complete = np.zeros((2, height, width), bool)
    for part, spectra, observed in spectra_of(block, block.window):
        some, every = observed.any(axis=0), observed.all(axis=0)
        coefficients = np.zeros((images.shape[0], some.size))
        coefficients[:, every] = subspace.project(spectra[:, every])
        gaps = some & ~every
        if gaps.any():
            coefficients[:, gaps] = subspace.project(spectra[:, gaps], observed[:, gaps])
        images[:, part] = coefficients.reshape(-1, part.stop - part.start, width)
        known[part], complete[part] = some.reshape(-1, width), every.reshape(-1, width)
    return images, known, complete


def restored(
    block: Block, subspace: Subspace, images: npt.NDArray[np.float32], window: Window, known: BoolArray
) -> npt.NDArray[np.float32]:
    """The cube of component images over `window`, NaN outside it, at unknown pixels, and in bands that are not good."""
    cube = np.full((len(block.bands), *block.window.shape), np.nan, np.float32)
    inside = window.within(block.window)
    good = np.flatnonzero(block.bands.good)
    height = max(PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = images[:, top : top + height]
        rows = slice(inside.row + top, inside.row + top + part.shape[1])
        spectra = subspace.restore(part.reshape(part.shape[0], -1))
        spectra[:, ~known[rows, inside.slices[1]].reshape(-1)] = np.nan
        cube[good, rows, inside.slices[1]] = spectra.reshape(good.size, part.shape[1], window.width)
    return cube


def known_pixels(block: Block) -> BoolArray:
    """Pixels of a block that have a value in some good band, `(y, x)`."""
    known = np.zeros(block.window.shape, bool)
    for part, _, observed in spectra_of(block, block.window):
        known[part] = observed.any(axis=0).reshape(-1, block.window.width)
    return known
