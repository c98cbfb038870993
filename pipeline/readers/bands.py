"""What a list of wavelengths tells about bands: which detector, which are usable, which to show."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
StrArray = npt.NDArray[np.str_]

WATER_VAPOUR = ((1340.0, 1460.0), (1790.0, 1961.0))
"""Absorption bands of water vapour, nm, in which hardly any sunlight reaches the ground: EnPT's `drop_bad_bands`
(1358-1453, 1814-1961 nm) with the steep flanks that atmospheric correction does not recover."""

SWIR_ONLY = 1000.0
"""Wavelength, nm, beyond which EnMAP has the SWIR detector alone; below `VNIR_ONLY` the VNIR alone."""
VNIR_ONLY = 900.0


def usable(wavelength: FloatArray, empty: BoolArray) -> BoolArray:
    """True for bands that hold data and lie outside the water-vapour absorption."""
    good = ~np.asarray(empty, bool)
    for low, high in WATER_VAPOUR:
        good &= (wavelength < low) | (wavelength > high)
    return good


def preferred(wavelength: FloatArray, detector: StrArray) -> BoolArray:
    """True for bands to show: in the overlap of two detectors the SWIR stands for both."""
    swir = detector == "swir"
    if swir.all() or not swir.any():
        return np.ones(wavelength.shape, bool)
    return np.asarray(swir | (wavelength < wavelength[swir].min()))


def split_overlap(wavelength: FloatArray) -> StrArray:
    """Detector of each of EnMAP's merged bands, from the ascending wavelengths alone.

    Each detector's centres follow a smooth curve. So the SWIR is followed downwards from where it stands alone: the
    next band is the one nearest to the quadratic through the last three. What it does not reach is VNIR.
    """
    swir = wavelength > SWIR_ONLY
    followed = list(np.flatnonzero(swir)[:3])
    if len(followed) < 3:
        return np.where(swir, "swir", "vnir")
    while True:
        first, second, third = wavelength[followed[:3]]
        expected = 3 * first - 3 * second + third
        candidates = np.arange(followed[0])
        if expected < VNIR_ONLY or not candidates.size:
            break
        nearest = int(candidates[np.argmin(np.abs(wavelength[candidates] - expected))])
        if abs(wavelength[nearest] - expected) > (second - first) / 4:
            break
        followed.insert(0, nearest)
    swir[followed] = True
    return np.where(swir, "swir", "vnir")
