"""Radar polarisations as a Scene's band axis, and a GRD product as a Scene without pixels.

A band is a polarisation. Its wavelength is that of the radar, some 55 million nm, and its width that of the pulses'
bandwidth: true numbers, by which spectral stages refuse it of themselves. `detector` holds the polarisation in lower
case, so that `select_bands(detector="vv")` picks it, and the attribute `band_names` its name.
"""

from collections.abc import Sequence

import numpy as np

from cubeloom.pipeline.scene import Bands

from .sentinel1_safe import POLARISATIONS

LIGHT = 299_792_458.0
"""Speed of light, m/s."""
FREQUENCY = 5.405000454334350e9
"""Of Sentinel-1's radar, Hz: for files that do not say it."""
BANDWIDTH = 4.92e7
"""Of its pulses in interferometric wide swath, mean of the swaths, Hz: for files that do not say it."""


def radar_bands(polarisations: Sequence[str], frequency: float = FREQUENCY, bandwidth: float = BANDWIDTH) -> Bands:
    """The band axis of polarisations; all have the wavelength of the radar.

    Args:
        polarisations: such as `VV`, in the order of the bands.
        frequency: Hz.
        bandwidth: Hz.
    """
    count = len(polarisations)
    wavelength = LIGHT / frequency * 1e9
    return Bands(
        number=np.array([POLARISATIONS.index(name) + 1 for name in polarisations]),
        wavelength=np.full(count, wavelength),
        fwhm=np.full(count, wavelength * bandwidth / frequency),
        detector=np.array([name.lower() for name in polarisations]),
        good=np.ones(count, bool),
        preferred=np.ones(count, bool),
    )


def band_names(polarisations: Sequence[str]) -> dict[str, str]:
    """Polarisations by band number, as the attribute `band_names` holds them."""
    return {str(POLARISATIONS.index(name) + 1): name for name in polarisations}
