"""Bind a scene's bands to those a model was trained on: by number, by response, or not at all."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError, ModelError

from .encoding import Array
from .scene import Bands
from .srf import Weights, gaussians, weights

MAX_UNCOVERED = 0.05
"""Share of a wanted band's response that may lie outside the scene's usable bands."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Binding:
    """How a model's bands come from a scene's: `index` into them, or `weights` that mix them."""

    index: npt.NDArray[np.intp] | None = None
    weights: Weights | None = None

    def apply(self, cube: Array) -> Array:
        """The model's bands `(wanted, ...)` of the scene's `(band, ...)`, NaN where they have no value."""
        if self.index is not None:
            return cube[self.index]
        if self.weights is None:
            raise ValueError("a Binding holds an index or weights")
        return self.weights.apply(cube)

    def __str__(self) -> str:
        return "by index" if self.index is not None else "resampled by response"


def bind(bands: Bands, wanted_wavelength: FloatArray, wanted_fwhm: FloatArray, tolerance_nm: float = 1.0) -> Binding:
    """Find a model's bands in a scene.

    Where every wanted wavelength has a good band of its own within the tolerance, the scene's numbers go to the model
    untouched; otherwise all bands are resampled with Gaussian responses (see `cubeloom.pipeline.srf`).

    Args:
        bands: the scene's bands.
        wanted_wavelength: centres the model was trained on, nm.
        wanted_fwhm: their widths at half maximum, nm.
        tolerance_nm: how far apart two centres may lie and be the same band.

    Raises:
        ModelError: some wanted band lies where the scene has no usable band; names them.
    """
    wanted_wavelength, wanted_fwhm = np.asarray(wanted_wavelength, float), np.asarray(wanted_fwhm, float)
    index = _same_bands(bands, wanted_wavelength, tolerance_nm)
    if index is not None:
        return Binding(index=index)
    try:
        mixing = weights(gaussians(wanted_wavelength, wanted_fwhm), bands)
    except InputError as error:
        raise ModelError(str(error)) from None
    outside = np.flatnonzero(mixing.uncovered > MAX_UNCOVERED)
    if outside.size:
        named = ", ".join(f"{wanted_wavelength[at]:.1f}" for at in outside[:8])
        good = bands.wavelength[bands.good & bands.preferred]
        raise ModelError(
            f"the model wants {wanted_wavelength.size} bands, of which {outside.size} lie where the scene has no good "
            f"band: {named}{', ...' if outside.size > 8 else ''} nm. The scene's {good.size} good bands lie between "
            f"{good[0]:.1f} and {good[-1]:.1f} nm; use a model trained on bands that this sensor has"
        )
    return Binding(weights=mixing)


def _same_bands(bands: Bands, wanted: FloatArray, tolerance: float) -> npt.NDArray[np.intp] | None:
    """The nearest good band of every wanted one, the preferred of two as near; None where one is missing or twice."""
    if not bands.good.any():
        return None
    distance = np.abs(bands.wavelength - wanted[:, None])
    distance[:, ~bands.good] = np.inf
    order = np.lexsort((np.broadcast_to(~bands.preferred, distance.shape), distance), axis=1)
    nearest = order[:, 0]
    near_enough = np.take_along_axis(distance, order[:, :1], axis=1) <= tolerance
    if not near_enough.all() or np.unique(nearest).size != nearest.size:
        return None
    return nearest
