"""From a landscape to reflectance: what each pixel is mixed of, and the spectrum of that mixture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from cubeloom.pipeline.degrade import sigma_of

from . import cover
from .bands import BandTable
from .cover import CONTENTS, FILMS, LAI, LEAF, N_GROUNDS, OPEN_WATER, SHADE, TEXTURED, VARIANTS
from .landscape import OVERSAMPLING, TEXTURES, Landscape
from .spectra import WaterOptics, ground_absorption, ground_reflectance, leaf_absorption, water_optics

Float32Array = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]
Layers = npt.NDArray[Any]

GAUSSIAN_REACH = 3.0
"""Standard deviations at which a sensor's response is cut."""


@dataclass(frozen=True, eq=False)
class Materials:
    """Spectra over the bands of one product, see `spectra`."""

    grounds: Float32Array
    leaf: Float32Array
    films: Float32Array
    water: WaterOptics


def materials(table: BandTable) -> Materials:
    """All spectra that a surface needs, over the bands of `table`."""
    return Materials(ground_reflectance(table), leaf_absorption(table), ground_absorption(table), water_optics(table))


@dataclass(frozen=True, eq=False)
class Surface:
    """The ground of a scene with all that makes spectra of it.

    Attributes:
        landscape: where what lies.
        palette: what each variant is made of, see `cover.draw_palette`.
        directions: how the textures change the columns of the palette, `(TEXTURES, columns)`.
    """

    landscape: Landscape
    palette: Float32Array
    directions: Float32Array

    def reflectance(
        self, y: Float32Array, x: Float32Array, spectra: Materials, size: float = 1.0, mtf: float | None = None
    ) -> Float32Array:
        """Reflectance `(n, band)` of pixels centred at (y, x), in px of the landscape's grid (0.5 is a centre).

        Textures and shading are those of the pixel of that grid; smaller pixels lie between the centres of these, and
        see them change from one to the next.

        Args:
            y: down.
            x: right.
            spectra: over the bands.
            size: of the pixels, edge on that grid.
            mtf: modulation transfer at their Nyquist frequency, of a sensor whose response is a Gaussian; when None,
                what is seen is the plain mean over the pixel.
        """
        at = _nearest(y, x) if size >= 1 else _between(y, x, self.landscape.shading.shape)
        traits = self._mixture(y, x, size) if mtf is None else self._blurred(y, x, sigma_of(mtf, 1) * size)
        change = at(self.landscape.texture).T @ self.directions
        traits[:, :TEXTURED] *= np.exp(change)
        grounds = traits[:, :N_GROUNDS]
        grounds /= grounds.sum(axis=1, keepdims=True)
        reflectance = _vegetated(traits, spectra)
        reflectance *= at(self.landscape.shading)[:, None]
        _flood(reflectance, traits, spectra)
        return reflectance

    def classes(self) -> npt.NDArray[np.uint8]:
        """Class of most of each pixel's cells, `(height, width)`; of ties the lowest code."""
        height, width = self.landscape.shading.shape
        code = (self.landscape.code // VARIANTS).astype(np.uint8)
        cells = code.reshape(height, OVERSAMPLING, width, OVERSAMPLING).transpose(1, 3, 0, 2).reshape(-1, height, width)
        votes = (cells[:, None] == cells[None]).sum(axis=0, dtype=np.uint8)
        most = votes == votes.max(axis=0)
        return np.asarray(np.where(most, cells, 255).min(axis=0), np.uint8)

    def _mixture(self, y: Float32Array, x: Float32Array, size: float) -> Float32Array:
        """Mean of the palette rows of the cells inside each pixel, `(n, columns)`."""
        code = self.landscape.code
        total = np.zeros((y.size, cover.COLUMNS), np.float32)
        count = max(OVERSAMPLING, round(OVERSAMPLING * size))
        steps = ((np.arange(count) + 0.5) / count - 0.5) * size
        for step_y in steps:
            rows = np.clip(np.floor((y + step_y) * OVERSAMPLING).astype(np.intp), 0, code.shape[0] - 1)
            for step_x in steps:
                cols = np.clip(np.floor((x + step_x) * OVERSAMPLING).astype(np.intp), 0, code.shape[1] - 1)
                total += self.palette[code[rows, cols]]
        return total / np.float32(count**2)

    def _blurred(self, y: Float32Array, x: Float32Array, sigma: float) -> Float32Array:
        """Mean of the palette rows of the cells around each point, by what a Gaussian has over each, `(n, columns)`."""
        code = self.landscape.code
        total = np.zeros((y.size, cover.COLUMNS), np.float32)
        for rows, down in _under(y * OVERSAMPLING, sigma * OVERSAMPLING, code.shape[0]):
            for cols, right in _under(x * OVERSAMPLING, sigma * OVERSAMPLING, code.shape[1]):
                total += (down * right)[:, None] * self.palette[code[rows, cols]]
        return total


def _under(at: Float32Array, sigma: float, count: int) -> list[tuple[IndexArray, Float32Array]]:
    """Cells of a line around points, and the share of a Gaussian about each point that lies over each; of sum 1."""
    reach = GAUSSIAN_REACH * sigma
    cell = np.floor(at - reach).astype(np.intp)[:, None] + np.arange(math.ceil(2 * reach) + 1)
    edges = np.concatenate([cell, cell[:, -1:] + 1], axis=1) - at[:, None]
    share = np.diff(ndtr(edges / sigma), axis=1)
    share /= share.sum(axis=1, keepdims=True)
    inside = np.clip(cell, 0, count - 1)
    return list(zip(inside.T, share.T.astype(np.float32), strict=True))


def _nearest(y: Float32Array, x: Float32Array) -> Callable[[Layers], Float32Array]:
    """What takes of layers `(..., height, width)` the pixels that hold some points: `(..., n)`."""
    rows, cols = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    return lambda layers: layers[..., rows, cols].astype(np.float32)


def _between(y: Float32Array, x: Float32Array, shape: tuple[int, int]) -> Callable[[Layers], Float32Array]:
    """What takes layers at some points, linear between the centres of their pixels: `(..., n)`."""
    rows, cols = (_centres(at, size) for at, size in zip((y, x), shape, strict=True))

    def taken(layers: Layers) -> Float32Array:
        total = np.zeros((*layers.shape[:-2], y.size), np.float32)
        for row, down in rows:
            for col, right in cols:
                total += layers[..., row, col] * (down * right)
        return total

    return taken


def _centres(at: Float32Array, size: int) -> list[tuple[IndexArray, Float32Array]]:
    """The two pixels of a line between whose centres each point lies, and the share that each has; of sum 1."""
    inside = np.clip(at - np.float32(0.5), 0, size - 1)
    before = np.floor(inside).astype(np.intp)
    share = (inside - before).astype(np.float32)
    return [(before, 1 - share), (np.minimum(before + 1, size - 1), share)]


def _vegetated(traits: Float32Array, spectra: Materials) -> Float32Array:
    """Reflectance of leaves over a wet ground, `(n, band)`.

    A leaf scatters what its absorbers leave (Beer-Lambert). A deep canopy of leaves that scatter sigma reflects
    (1 - g) / (1 + g), g = sqrt(1 - sigma), and a shallow one lets the ground through as exp(-2 k g LAI):
    Goudriaan (1977), Crop Micrometeorology, ch. 2. Leaves and ground so mix nonlinearly.
    """
    ground = traits[:, :N_GROUNDS] @ spectra.grounds
    ground *= np.exp(-traits[:, FILMS] @ spectra.films)
    absorption = traits[:, LEAF] @ spectra.leaf
    np.negative(absorption, out=absorption)
    scatter = np.exp(absorption, out=absorption)
    scatter *= np.float32(-0.90)
    scatter += np.float32(1 - 0.06)
    depth = np.sqrt(scatter, out=scatter)
    canopy = (1 - depth) / (1 + depth)
    canopy *= 1 - traits[:, SHADE, None]
    ground -= canopy
    depth *= np.float32(-1.6) * traits[:, LAI, None]
    ground *= np.exp(depth, out=depth)
    ground += canopy
    return ground


def _flood(reflectance: Float32Array, traits: Float32Array, spectra: Materials) -> None:
    """Mix open water into the pixels that hold some, in place."""
    wet = np.flatnonzero(traits[:, OPEN_WATER] > 0)
    if not wet.size:
        return
    share = traits[wet, OPEN_WATER, None]
    contents = (traits[wet, CONTENTS] / share).T[:, :, None]
    reflectance[wet] += share * (spectra.water.reflectance(*contents) - reflectance[wet])


def draw_directions(rng: np.random.Generator) -> Float32Array:
    """Random directions of the textures: what lies on the ground varies most, leaf area least."""
    spread = np.empty(TEXTURED)
    spread[:N_GROUNDS], spread[LEAF], spread[LAI], spread[FILMS] = 0.12, 0.07, 0.035, 0.12
    return (rng.standard_normal((TEXTURES, TEXTURED)) * spread).astype(np.float32)
