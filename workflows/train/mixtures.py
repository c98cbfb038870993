"""Cubes that nobody measured: the spatial structure of real images, with spectra drawn at random.

Few clean imaging-spectrometer scenes are at hand, many multispectral ones are. Nonlinear features of their bands stand
for the abundances of materials, smooth random curves for their spectra.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d, zoom
from scipy.special import expit

from cubeloom.errors import InputError
from cubeloom.untrusted import open_raster

from .cubes import CleanCube, Float32Array, largest_rectangle, unit_range
from .denoiser_recipe import ImageFiles, MixedImages

_OUTLIER = 6.0
"""Standard deviations at which features of an image are clipped."""
_MAGNIFY = (1.0, 1.0, 0.5, 2.0)
"""Images are shown at these sizes, each as likely as it stands here."""
_SHIFTED = 0.3
"""Share of the features that lie elsewhere than the others, so that structures are not all in the same place."""
_SHIFT_PX = 40


@dataclass(frozen=True, eq=False)
class Mixtures:
    """A source of cubes, each drawn anew.

    Attributes:
        images: `(band, y, x)` float32 each.
        settings: of the recipe.
    """

    images: tuple[Float32Array, ...]
    settings: MixedImages

    @property
    def name(self) -> str:
        """For the card."""
        return f"mixtures over {len(self.images)} images"

    @property
    def weight(self) -> float:
        """How often it is drawn, relative to the other sources."""
        return self.settings.weight

    def draw(self, rng: np.random.Generator, subset: float = 0.0) -> CleanCube:
        """A new cube; its number of bands is random already."""
        settings = self.settings
        size, bands, count = (
            int(rng.integers(*span, endpoint=True))
            for span in (settings.size_px, settings.cube_bands, settings.features)
        )
        image = self.images[int(rng.integers(len(self.images)))]
        maps = _features(_square(image, size, rng), count, rng)
        maps -= maps.min(axis=(1, 2), keepdims=True)
        strength = np.exp(-np.arange(count) * rng.uniform(0.05, 0.6))
        spectra = _smooth_spectra(count, bands, rng) * strength[:, None]
        return CleanCube(self.name, unit_range(np.tensordot(spectra.T, maps, 1)), None)


def load_mixtures(settings: MixedImages, least_px: int) -> Mixtures:
    """Read the images of a recipe.

    Raises:
        InputError: one is missing, has no common grid, or is smaller than a patch.
    """
    return Mixtures(tuple(_read_image(image, least_px) for image in settings.images), settings)


def _read_image(image: ImageFiles, least_px: int) -> Float32Array:
    """All bands of some files on the coarsest of their grids, by averaging; pixels without a value are cut off."""
    bands = [band for path in image.files for band in _read_bands(path, image.bands)]
    height, width = np.min([band.shape for band in bands], axis=0)
    stack = np.stack([_averaged(band, height, width) for band in bands])
    rows, cols = largest_rectangle(np.asarray(np.isfinite(stack).all(axis=0)))
    stack = stack[:, rows, cols]
    if min(stack.shape[1:]) < least_px:
        raise InputError(
            f"{image.files[0]}: {stack.shape[1]} x {stack.shape[2]} px, less than a patch of {least_px} px"
        )
    return stack


def _read_bands(path: object, numbers: Sequence[int]) -> Float32Array:
    with open_raster(str(path), f"{path}") as raster:
        read = raster.read(list(numbers) or None, masked=True)
    return np.asarray(np.ma.filled(read.astype(np.float32), np.nan))


def _averaged(band: Float32Array, height: int, width: int) -> Float32Array:
    factor = max(band.shape[0] // height, 1)
    whole = band[: height * factor, : width * factor]
    return np.asarray(whole.reshape(height, factor, -1, factor).mean(axis=(1, 3)))[:, :width]


def _square(image: Float32Array, size: int, rng: np.random.Generator) -> Float32Array:
    """A random square of an image at a random scale, each band of mean 0 and standard deviation 1."""
    scale = float(rng.choice(_MAGNIFY))
    if scale < 1 and min(image.shape[1:]) < size / scale:
        scale = 1.0
    take = min(int(np.ceil(size / scale)), *image.shape[1:])
    row, col = (int(rng.integers(0, extent - take + 1)) for extent in image.shape[1:])
    part = image[:, row : row + take, col : col + take]
    if scale < 1:
        part = (
            part[:, : take // 2 * 2, : take // 2 * 2].reshape(len(part), take // 2, 2, take // 2, 2).mean(axis=(2, 4))
        )
    elif scale > 1:
        part = zoom(part, (1, scale, scale), order=3)
    part = part - part.mean(axis=(1, 2), keepdims=True)
    spread = part.std(axis=(1, 2), keepdims=True)
    return np.asarray(np.clip(part / np.where(spread > 0, spread, 1), -_OUTLIER, _OUTLIER), np.float32)


def _features(image: Float32Array, count: int, rng: np.random.Generator) -> Float32Array:
    """Random combinations of an image's bands, as they are, saturated, or thresholded: `(count, y, x)`."""
    weights = rng.standard_normal((count, len(image))) * rng.uniform(0.2, 1.5, (count, 1))
    maps = np.tensordot(weights, image, 1).astype(np.float32)
    for number, kind in enumerate(rng.integers(0, 3, count)):
        if kind == 1:
            maps[number] = np.tanh(maps[number])
        elif kind == 2:
            maps[number] = expit(4 * (maps[number] - rng.standard_normal()))
        if rng.random() < _SHIFTED:
            maps[number] = np.roll(maps[number], tuple(rng.integers(-_SHIFT_PX, _SHIFT_PX, 2)), (0, 1))
    return maps


def _smooth_spectra(count: int, bands: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Smoothed random walks between 0 and 1, `(count, bands)`."""
    walks = rng.standard_normal((count, bands)).cumsum(axis=1)
    smooth = np.stack([gaussian_filter1d(walk, rng.uniform(1, 12)) for walk in walks])
    smooth -= smooth.min(axis=1, keepdims=True)
    return np.asarray(smooth / np.maximum(smooth.max(axis=1, keepdims=True), 1e-9))
