"""Spectra of surface materials: leaf pigments, grounds, water and clouds, as smooth formulas over wavelength.

Everything is defined on a fine grid and brought to the bands by Gaussian spectral response functions. Leaf absorbers
are those of PROSPECT (Jacquemoud & Baret 1990); strengths and widths are our own round numbers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from .bands import BandTable
from .materials import FINE, GROUNDS, Feature, material_reflectance

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

LEAF_TRAITS = (
    *("chlorophyll a", "chlorophyll b", "carotenoid", "anthocyanin", "brown", "water"),
    *("cellulose", "lignin", "protein", "starch", "wax"),
)
"""Leaf absorbers; a content of 1 is a typical green leaf (brown pigment: a dead one)."""

MINERALS: tuple[tuple[Feature, ...], ...] = (
    ((535, 0.9, 40), (865, 0.6, 62)),
    ((482, 0.8, 36), (670, 0.25, 40), (925, 0.55, 78)),
    ((400, 1.2, 130),),
    ((650, 0.6, 160),),
    ((1020, 0.6, 130), (1950, 0.4, 220)),
    ((1250, 0.5, 170),),
    ((1412, 0.5, 18), (1915, 0.9, 30), (2206, 0.7, 17)),
    ((2165, 0.5, 14), (2208, 0.5, 12), (2385, 0.3, 20)),
    ((1995, 0.3, 30), (2155, 0.2, 26), (2336, 0.9, 28), (2530, 1.0, 40)),
    ((2255, 0.4, 20), (2335, 0.4, 22), (2390, 0.3, 24)),
    ((1730, 0.5, 24), (2100, 0.6, 46), (2310, 0.7, 30)),
    ((1650, 0.5, 120),),
    ((2440, 0.9, 90),),
)
"""Absorptions that vary the grounds: iron oxides, organic matter, iron silicates, clays, carbonates, hydrocarbons."""


def _gaussians(*features: Feature) -> FloatArray:
    total: FloatArray = np.zeros_like(FINE)
    for centre, strength, width in features:
        total += strength * np.exp(-0.5 * ((FINE - centre) / width) ** 2)
    return total


def _liquid_water() -> FloatArray:
    """Absorption of liquid water, shaped like Kou et al. (1993); 1 is the water of a typical leaf."""
    return _gaussians((975, 0.07, 28), (1195, 0.15, 45), (1452, 1.5, 48), (1560, 0.55, 130), (1940, 2.6, 55),
                      (2080, 1.2, 190), (1780, 0.35, 70), (2600, 3.0, 170))  # fmt: skip


def leaf_absorption(table: BandTable) -> Float32Array:
    """Absorption a unit of each leaf trait, `(trait, band)`."""
    traits = (
        _gaussians((428, 2.4, 26), (555, 0.9, 62), (620, 0.75, 26), (677, 2.9, 16), (706, 0.34, 15)),
        _gaussians((460, 2.2, 24), (565, 0.3, 40), (645, 1.2, 17), (600, 0.3, 20)),
        _gaussians((452, 2.1, 28), (492, 1.3, 19)),
        _gaussians((545, 1.5, 38)),
        2.0 * np.exp(-(FINE - 400) / 190),
        _liquid_water(),
        0.08 + _gaussians((1210, 0.03, 60), (1490, 0.06, 50), (1780, 0.08, 30), (2102, 0.40, 48), (2345, 0.22, 28)),
        0.04 + _gaussians((1120, 0.05, 60), (1420, 0.08, 60), (1680, 0.15, 26), (2272, 0.34, 30), (2500, 0.5, 70)),
        _gaussians((1510, 0.22, 34), (1690, 0.10, 24), (2055, 0.30, 34), (2180, 0.30, 28), (2300, 0.20, 26)),
        _gaussians((990, 0.05, 40), (1450, 0.12, 50), (1580, 0.20, 36), (2100, 0.18, 36), (2320, 0.26, 26)),
        _gaussians((1200, 0.03, 16), (1732, 0.18, 16), (2310, 0.30, 18), (2350, 0.22, 14)),
    )
    return to_bands(np.stack(traits), table)


def ground_reflectance(table: BandTable) -> Float32Array:
    """Reflectance of every material of GROUNDS, `(material, band)`."""
    return to_bands(np.stack([material_reflectance(name) for name in GROUNDS]), table)


def ground_absorption(table: BandTable) -> Float32Array:
    """What water and minerals take out of a ground, `(1 + mineral, band)`.

    The first row is a film of water: darker at all wavelengths, and the water bands.
    """
    water = 0.55 + 0.45 * _liquid_water() / 1.2
    return to_bands(np.stack([water, *(_gaussians(*features) for features in MINERALS)]), table)


def cloud_reflectance(table: BandTable) -> Float32Array:
    """Apparent reflectance of a thick cloud of ice and water, `(band,)`."""
    return np.asarray(to_bands(material_reflectance("ice_cloud")[None], table)[0])


@dataclass(frozen=True, eq=False)
class WaterOptics:
    """Inherent optical properties of natural water over the bands, 1/m (a unit of each constituent)."""

    absorption: Float32Array
    phytoplankton: Float32Array
    dissolved: Float32Array
    backscatter: Float32Array
    particles: Float32Array

    def reflectance(self, chlorophyll: Float32Array, sediment: Float32Array, dissolved: Float32Array) -> Float32Array:
        """Water-leaving reflectance, `(px, band)`, of contents `(px, 1)` in mg/m3, g/m3 and 1/m at 440 nm.

        R = pi * 0.0922 * u + 0.02 * u**2 with u = bb / (a + bb): Lee et al. (1998), Applied Optics 37, eq. 6-8,
        with a constant for the surface.
        """
        backscatter = self.backscatter + sediment * self.particles
        absorption = self.absorption + chlorophyll**0.65 * self.phytoplankton + dissolved * self.dissolved
        ratio = backscatter / (absorption + backscatter)
        return np.asarray(0.003 + ratio * (np.float32(0.29) + np.float32(0.1) * ratio), np.float32)


def water_optics(table: BandTable) -> WaterOptics:
    """Optics of water over the bands; pure water rises from 0.02 1/m in the blue to thousands in the SWIR."""
    knots = (
        380,
        420,
        480,
        550,
        600,
        650,
        700,
        740,
        760,
        810,
        850,
        900,
        975,
        1070,
        1200,
        1300,
        1450,
        1650,
        1940,
        2200,
        2620,
    )
    pure = (
        0.011,
        0.0045,
        0.012,
        0.057,
        0.22,
        0.34,
        0.62,
        2.4,
        2.6,
        2.1,
        4.3,
        6.6,
        45,
        17,
        105,
        115,
        2600,
        560,
        11000,
        1900,
        9000,
    )
    absorption = np.exp(PchipInterpolator(np.array(knots, float), np.log(pure))(FINE))
    pigments = 0.055 * _gaussians((440, 1.0, 32), (490, 0.5, 28), (625, 0.24, 22), (676, 0.5, 12))
    dissolved = np.exp(-0.015 * (FINE - 440))
    molecules = 0.0012 * (550 / FINE) ** 4.3
    particles = 0.008 * (550 / FINE) ** 0.8
    parts = to_bands(np.stack([absorption, pigments, dissolved, molecules, particles]), table)
    return WaterOptics(*parts)


def to_bands(fine: FloatArray, table: BandTable) -> Float32Array:
    """Spectra `(n, fine)` seen through Gaussian responses of the bands, `(n, band)`."""
    sigma = table.fwhm / np.sqrt(8 * np.log(2))
    response = np.exp(-0.5 * ((FINE[:, None] - table.wavelength) / sigma) ** 2)
    return np.asarray(fine @ (response / response.sum(axis=0)), np.float32)
