"""Principal components of the spectra that a training learns from."""

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError

from .locations import Locations

_PLACES = 300
_PIXELS = 200
"""Of a place."""
_STREAM = 12
"""Key of the random streams."""


def principal_components(locations: Locations, count: int, seed: int) -> npt.NDArray[np.float32]:
    """The strongest components of all spectra, from a sample of pixels of a sample of places.

    Args:
        locations: of standardised images.
        count: how many components, K.
        seed: of the sample.

    Returns:
        `(K, D + 1)`: what a spectrum of D bands with a 1 after it is multiplied by for its K components, each of which
        has a mean of 0 and a variance of 1 over the sample.

    Raises:
        ConfigError: more components than bands.
        InputError: spectra that vary in fewer ways.
    """
    rng = np.random.default_rng([seed, _STREAM])
    chosen = rng.permutation(len(locations))[:_PLACES]
    spectra = np.concatenate([_some_pixels(locations, int(place), rng) for place in chosen], axis=1)
    if count > len(spectra):
        raise ConfigError(f"components {count} of spectra of {len(spectra)} bands; take fewer")
    variance, directions = np.linalg.eigh(np.cov(spectra))
    variance, directions = variance[: -count - 1 : -1], directions[:, : -count - 1 : -1]
    if variance[-1] <= np.finfo(np.float32).eps * variance[0]:
        raise InputError(f"the spectra of the images vary in less than {count} ways; take fewer components")
    scaled = (directions / np.sqrt(variance)).T
    return np.column_stack([scaled, -scaled @ spectra.mean(axis=1)]).astype(np.float32)


def _some_pixels(locations: Locations, place: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Spectra `(D, pixel)` of one date of a place."""
    image = locations.read(place, int(rng.integers(locations.dates(place))))
    rows, cols = (rng.integers(size, size=_PIXELS) for size in image.shape[1:])
    return np.asarray(image[:, rows, cols], np.float64)
