"""The band axis of a simulated product: centre wavelengths and widths of the two EnMAP detectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import polynomial

from cubeloom.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

N_VNIR, N_SWIR = 91, 133
"""Bands of each detector in operational products."""

# Powers of t in [-1, 1] over the detector's channels; they follow the operational grid within 0.8 nm.
_VNIR_CENTRE = (653.475, 285.352, 71.808, -4.015, -19.181, 5.815)
_VNIR_FWHM = (7.556, 3.213, 0.191, 0.325, 1.048, -1.556)
_SWIR_CENTRE = (1770.688, 798.111, -152.175, 10.143, 55.01, -36.901)
_SWIR_FWHM = (9.877, -3.7, 0.492, 2.658, -2.255)
_SWIR_CHANNELS = np.r_[0:44, 49:77, 94:155]  # channels inside the two water-vapour gaps are not downlinked

_NODATA_RANGES = {
    False: ((1290.0, 1524.0), (1735.0, 1972.0)),  # processors 01.01 and 01.02
    True: ((1327.0, 1399.0),),  # 01.03 and later
}


@dataclass(frozen=True, eq=False)
class BandTable:
    """Bands in the order of L1C and L2A products: ascending wavelength, both detectors interleaved.

    Attributes:
        wavelength: centres, nm.
        fwhm: full widths at half maximum, nm.
        detector: `vnir` or `swir`.
    """

    wavelength: FloatArray
    fwhm: FloatArray
    detector: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "wavelength", np.asarray(self.wavelength, np.float64))
        object.__setattr__(self, "fwhm", np.asarray(self.fwhm, np.float64))
        object.__setattr__(self, "detector", np.char.lower(np.asarray(self.detector, np.str_)))
        shapes = {self.wavelength.shape, self.fwhm.shape, self.detector.shape}
        if len(shapes) != 1 or self.wavelength.ndim != 1 or not self.wavelength.size:
            raise ConfigError(f"a band table needs three lists of one length, found shapes {sorted(shapes)}")
        if unknown := set(self.detector.tolist()) - {"vnir", "swir"}:
            raise ConfigError(f"detectors must be 'vnir' or 'swir', found {sorted(unknown)}")
        if self.wavelength.min() < 380 or self.wavelength.max() > 2600 or (self.fwhm <= 0).any():
            raise ConfigError("wavelengths must lie in 380-2600 nm and widths above 0 nm; are they in micrometres?")
        order = np.argsort(self.wavelength, kind="stable")
        for name in ("wavelength", "fwhm", "detector"):
            object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return int(self.wavelength.size)

    def of(self, detector: str) -> npt.NDArray[np.intp]:
        """Positions of a detector's bands on the merged axis."""
        return np.flatnonzero(self.detector == detector)

    def take(self, positions: npt.NDArray[np.intp]) -> "BandTable":
        """The bands at the given positions."""
        return BandTable(self.wavelength[positions], self.fwhm[positions], self.detector[positions])

    def nearest(self, wavelength: float) -> int:
        """Position of the band nearest to a wavelength, nm."""
        return int(np.argmin(np.abs(self.wavelength - wavelength)))

    def without_data(self, version: str) -> npt.NDArray[np.bool_]:
        """Bands in water-vapour absorption that the L2A processor of this version (`01.05.02`) fills with nodata."""
        recent = tuple(int(part) for part in version.split(".")[:2]) >= (1, 3)
        empty: npt.NDArray[Any] = np.zeros(len(self), bool)
        for low, high in _NODATA_RANGES[recent]:
            empty |= (self.wavelength > low) & (self.wavelength < high)
        return empty


def operational(n_vnir: int = N_VNIR, n_swir: int = N_SWIR) -> BandTable:
    """EnMAP's grid: 91 + 133 bands of 420-2450 nm, or fewer, spread evenly over each detector.

    Raises:
        ConfigError: a detector is asked for more bands than it has, or for none.
    """
    for name, count, most in (("n_vnir", n_vnir, N_VNIR), ("n_swir", n_swir, N_SWIR)):
        if not 1 <= count <= most:
            raise ConfigError(f"{name} is {count}, expected 1 to {most}; pass `bands` for another grid")
    vnir = np.linspace(-1, 1, N_VNIR)[_spread(n_vnir, N_VNIR)]
    swir = _SWIR_CHANNELS[_spread(n_swir, N_SWIR)] / 77 - 1
    return BandTable(
        wavelength=np.concatenate([_poly(vnir, _VNIR_CENTRE), _poly(swir, _SWIR_CENTRE)]).round(3),
        fwhm=np.concatenate([_poly(vnir, _VNIR_FWHM), _poly(swir, _SWIR_FWHM)]).round(4),
        detector=np.array(["vnir"] * n_vnir + ["swir"] * n_swir),
    )


def _spread(count: int, total: int) -> npt.NDArray[np.intp]:
    return np.rint(np.linspace(0, total - 1, count)).astype(np.intp)


def _poly(t: FloatArray, coefficients: tuple[float, ...]) -> FloatArray:
    return np.asarray(polynomial.polyval(t, np.array(coefficients)))
