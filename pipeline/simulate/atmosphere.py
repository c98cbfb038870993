"""From reflectance to radiance at the sensor: sun, gases, scattering, and where the sun stands."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from .bands import BandTable
from .materials import FINE
from .spectra import Float32Array, to_bands

FloatArray = npt.NDArray[np.float64]

_FRAUNHOFER = ((430.8, 0.25, 2.5), (486.1, 0.14, 1.5), (517.5, 0.15, 2.5), (589.3, 0.10, 1.0), (656.3, 0.16, 1.5),
               (854.2, 0.12, 1.5))  # fmt: skip
_WATER_VAPOUR = ((720, 0.22, 7), (818, 0.20, 9), (935, 1.1, 18), (965, 0.35, 16), (1130, 1.3, 20), (1160, 0.35, 18),
                 (1268, 0.10, 20), (1385, 5.5, 26), (1425, 2.6, 26), (1480, 0.4, 25), (1785, 0.5, 25), (1870, 6.0, 35),
                 (1930, 2.4, 28), (1985, 0.25, 25), (2450, 0.45, 55), (2600, 2.5, 60))  # fmt: skip
_OXYGEN = ((687.5, 0.32, 2.2), (761, 1.05, 2.6), (765.5, 0.4, 2.5), (1268, 0.22, 7))
_OZONE = ((575, 0.035, 32), (610, 0.035, 30), (660, 0.015, 30))
_CARBON_DIOXIDE = (
    (1435, 0.06, 10),
    (1575, 0.035, 9),
    (1605, 0.035, 9),
    (1960, 0.16, 9),
    (2008, 0.75, 10),
    (2060, 0.5, 10),
)
_METHANE = ((1665, 0.03, 8), (2305, 0.10, 12), (2350, 0.14, 14), (2400, 0.10, 20))


@dataclass(frozen=True)
class Sky:
    """The state of the atmosphere over a scene.

    Attributes:
        sun_zenith: deg.
        sun_azimuth: deg clockwise from north.
        view_zenith: deg.
        water_vapour: column, g cm-2.
        aerosol: optical thickness at 550 nm.
        sun_distance: astronomical units.
    """

    sun_zenith: float
    sun_azimuth: float
    view_zenith: float
    water_vapour: float
    aerosol: float
    sun_distance: float


@dataclass(frozen=True, eq=False)
class Transfer:
    """Radiance at the sensor = `slope` * reflectance + `path`, W m-2 sr-1 nm-1, each `(band,)`.

    `continuum` is the slope without gases: what a detector is designed for; `diffuse` the share of skylight in the
    irradiance, which still lights a shadow.
    """

    slope: Float32Array
    path: Float32Array
    continuum: Float32Array
    diffuse: Float32Array


def transfer(sky: Sky, table: BandTable) -> Transfer:
    """Clear-sky radiative transfer, single scattering.

    Rayleigh optical thickness after Leckner (1978), diffuse transmittance after Gordon et al. (1983) (half of the
    Rayleigh and a sixth of the aerosol extinction is lost), gas transmittance with a square-root-like growth for
    unresolved lines, path reflectance tau * P / (4 mu_s mu_v).
    """
    cos_sun, cos_view = np.cos(np.radians([sky.sun_zenith, sky.view_zenith]))
    airmass = 1 / cos_sun + 1 / cos_view
    micron = FINE / 1000
    rayleigh = 0.008735 * micron**-4.08
    aerosol = sky.aerosol * (FINE / 550) ** -1.3
    gas = _gas_transmittance(sky.water_vapour, airmass)
    direct = np.exp(-(rayleigh + aerosol) / cos_sun)
    total = np.exp(-(0.5 * rayleigh + aerosol / 6) / cos_sun)
    scattering = np.exp(-(0.5 * rayleigh + aerosol / 6) * airmass)
    phase = 0.75 * (1 + cos_sun**2)
    irradiance = solar_irradiance() / sky.sun_distance**2
    path = irradiance / np.pi * (rayleigh * phase + 0.25 * aerosol) / (4 * cos_view) * np.sqrt(gas)
    slope = irradiance * cos_sun / np.pi * scattering
    fine = np.stack([slope * gas, path, slope, 1 - direct / total])
    return Transfer(*to_bands(fine, table))


def solar_irradiance() -> FloatArray:
    """Irradiance above the atmosphere at 1 au, W m-2 nm-1, on the fine grid: a black body of 5772 K with lines."""
    metre = FINE * 1e-9
    planck = 1.191042972e-16 / metre**5 / np.expm1(1.438776877e-2 / (metre * 5772))
    disc = np.pi * (6.957e8 / 1.495978707e11) ** 2
    return np.asarray(planck * disc * 1e-9 * (1 - _optical_depth(_FRAUNHOFER)))


def _gas_transmittance(water_vapour: float, airmass: float) -> FloatArray:
    path = airmass / 2
    growth = (water_vapour / 1.5 * path) ** 0.6
    well_mixed = _optical_depth(_OXYGEN + _CARBON_DIOXIDE + _METHANE) * path**0.6 + _optical_depth(_OZONE) * path
    return np.asarray(np.exp(-_optical_depth(_WATER_VAPOUR) * growth - well_mixed))


def _optical_depth(lines: tuple[tuple[float, float, float], ...]) -> FloatArray:
    depth: FloatArray = np.zeros_like(FINE)
    for centre, strength, width in lines:
        depth += strength * np.exp(-0.5 * ((FINE - centre) / width) ** 2)
    return depth


def sun_position(time: datetime, latitude: float, longitude: float) -> tuple[float, float, float]:
    """Zenith and azimuth of the sun (deg) and its distance (au), after Spencer (1971), good to a quarter degree."""
    day = time.timetuple().tm_yday
    hour = time.hour + time.minute / 60 + time.second / 3600
    angle = 2 * np.pi * (day - 1 + (hour - 12) / 24) / 365
    harmonics = np.array([1, *(f(k * angle) for k in (1, 2, 3) for f in (np.cos, np.sin))])
    declination = harmonics @ (0.006918, -0.399912, 0.070257, -0.006758, 0.000907, -0.002697, 0.00148)
    minutes = 229.18 * harmonics[:5] @ (0.000075, 0.001868, -0.032077, -0.014615, -0.040849)
    hour_angle = np.radians((hour * 60 + minutes + 4 * longitude) / 4 - 180)
    lat = np.radians(latitude)
    cos_zenith = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(hour_angle)
    azimuth = np.degrees(
        np.arctan2(np.sin(hour_angle), np.cos(hour_angle) * np.sin(lat) - np.tan(declination) * np.cos(lat))
    )
    distance = 1 - 0.01672 * np.cos(2 * np.pi * (day - 4) / 365.25)
    return float(np.degrees(np.arccos(cos_zenith))), float((azimuth + 180) % 360), float(distance)
