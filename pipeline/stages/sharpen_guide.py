"""What a sharper guide shows of a block, and how its bands go with the scene's: shared by all methods of `sharpen`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.degrade import degrade, kernel
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import BoolArray, SceneSpec

from .base import Stats
from .pair import comparable, shows_ground
from .superres import refine

FloatArray = npt.NDArray[np.float64]
FloatImages = npt.NDArray[np.float32]

RIDGE = 1e-4
"""Share of each band's variance that is added to it: bands of the guide need not be independent."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A block of the scene, and what the guide shows of it.

    Attributes:
        cube: good bands of the scene `(B, y, x)`, NaN where a pixel takes no part.
        valid: its pixels that do.
        fine: comparable bands of the guide on its own grid `(m, y f, x f)`, NaN where it does not show the ground.
        coarse: the same as the scene's sensor would have seen it `(m, y, x)`.
        factor: f, how many times finer the guide is.
    """

    cube: FloatImages
    valid: BoolArray
    fine: FloatImages
    coarse: FloatImages
    factor: int

    @classmethod
    def of(cls, block: Block, guide: Block, mtf: float) -> "Seen":
        """Both, over the block's window."""
        factor = guide.window.height // block.window.height
        valid = np.asarray(block.valid, bool)
        cube = np.where(valid, block.subject[block.bands.good], np.float32(np.nan))
        fine = np.where(shows_ground(guide), guide.subject[comparable(block.spec, guide.spec)], np.float32(np.nan))
        fine[:, ~np.isfinite(fine).all(axis=0)] = np.nan
        return cls(cube, valid, fine, degrade(fine, factor, mtf), factor)

    @property
    def shown(self) -> BoolArray:
        """Fine pixels that the guide shows and the scene has, `(y f, x f)`."""
        known = np.isfinite(self.coarse).all(axis=0) & self.valid
        shown = np.isfinite(self.fine[0]) & known.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
        return np.asarray(shown)

    def smooth(self, images: FloatImages) -> FloatImages:
        """Images of the scene's grid on the guide's, by cubic convolution."""
        return refine(images, np.asarray(np.isfinite(images).all(axis=0)), self.factor)

    def detail(self, fine: FloatImages, coarse: FloatImages) -> FloatImages:
        """What fine images show beyond coarse ones; nothing where the guide does not show the ground."""
        difference = fine - self.smooth(coarse)
        return np.where(self.shown & np.isfinite(difference).all(axis=0), difference, np.float32(0))


@dataclass(frozen=True, eq=False)
class Detail:
    """What a method adds to the cubic interpolation of every band.

    Attributes:
        images: `(q, y f, x f)`, 0 where there is none.
        mixing: each band's share in every image, `(B, q)`.
    """

    images: FloatImages
    mixing: FloatArray


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of the scene's spectra and the guide's, the latter as the scene's sensor sees them.

    Attributes:
        count: pixels with every value.
        mean: `(B + m,)`.
        covariance: `(B + m, B + m)`.
        bands: B.
    """

    count: int
    mean: FloatArray
    covariance: FloatArray
    bands: int

    @property
    def guide_mean(self) -> FloatArray:
        """Of the guide, `(m,)`."""
        return self.mean[self.bands :]

    @property
    def guide_spread(self) -> FloatArray:
        """Standard deviations of the guide's bands, `(m,)`."""
        spread = np.sqrt(np.maximum(np.diag(self.covariance)[self.bands :], 0))
        return np.where(spread > 0, spread, 1.0)

    @property
    def scene(self) -> FloatArray:
        """Covariance of the scene's bands, `(B, B)`."""
        return self.covariance[: self.bands, : self.bands]

    @property
    def cross(self) -> FloatArray:
        """Covariance of the scene's bands with the guide's in units of their spread, `(B, m)`."""
        return self.covariance[: self.bands, self.bands :] / self.guide_spread

    @property
    def guide(self) -> FloatArray:
        """Correlation of the guide's bands, with a ridge, `(m, m)`."""
        spread = self.guide_spread
        inner = self.covariance[self.bands :, self.bands :] / np.outer(spread, spread)
        return inner + RIDGE * np.eye(spread.size)


def moments_of(sums: Stats, spec: SceneSpec, guide: str) -> Moments:
    """The moments that sums over a scene give.

    Raises:
        InputError: too few pixels have a value in all bands of both.
    """
    count, size = int(sums["count"]), sums["total"].size
    if count <= 2 * size:
        raise InputError(
            f"{spec.scene_id}, sharpen with {guide}: {count} pixels have a value in all {size} bands of both scenes, "
            f"and more than {2 * size} are needed; check the mask, the overlap, and bands that are rarely measured"
        )
    mean = sums["total"] / count
    covariance = sums["products"] / count - np.outer(mean, mean)
    return Moments(count, mean, covariance, int(spec.bands.good.sum()))


def sampled(images: FloatImages, window: Window, core: Window, shape: Shape, edge: int) -> FloatArray:
    """Pixels at those points of a lattice over the scene that lie in a block; 0 elsewhere, and where one lacks a value.

    Args:
        images: `(n, y, x)` over a window of the scene.
        window: that one.
        core: the part of it that the block answers for.
        shape: of the scene.
        edge: rows and columns of the lattice.

    Returns:
        `(edge², n)`.
    """
    taken = np.zeros((edge, edge, len(images)))
    inside = []
    for size, part in zip(shape, core.slices, strict=True):
        at, slot = np.unique(np.linspace(0, size - 1, edge).astype(int), return_index=True)
        there = (at >= part.start) & (at < part.stop)
        inside.append((at[there], slot[there]))
    (row, row_slot), (col, col_slot) = inside
    joint = images[(slice(None), *np.ix_(row - window.row, col - window.col))]
    known = np.isfinite(joint).all(axis=0)
    taken[np.ix_(row_slot, col_slot)] = np.where(known, joint, 0).transpose(1, 2, 0)
    return taken.reshape(edge**2, -1)


def degrade_reach(mtf: float, factor: int) -> int:
    """Coarse pixels beyond its own that a degraded pixel depends on."""
    return (len(kernel(mtf, factor)) // factor - 1) // 2


def mix(matrix: FloatArray, images: FloatImages) -> FloatImages:
    """Images `(p, y, x)` as sums of `(q, y, x)` by the rows of a matrix `(p, q)`.

    Image by image in one order, so that what a pixel gets depends on no other one: matrix products of a library sum in
    an order that depends on their shape.
    """
    mixed = np.zeros((len(matrix), *images.shape[1:]), np.float32)
    for row, out in zip(matrix.astype(np.float32), mixed, strict=True):
        add_mix(out, row, images)
    return mixed


def add_mix(out: FloatImages, weights: FloatImages, images: FloatImages) -> None:
    """Add a weighted sum of images to one, in place."""
    scratch = np.empty_like(out)
    for weight, image in zip(weights, images, strict=True):
        if weight:
            out += np.multiply(image, weight, out=scratch)
