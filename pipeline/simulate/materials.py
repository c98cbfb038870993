"""The library of ground materials: continuum levels and absorption features, our own round numbers.

Features stand at the wavelengths that the literature names (Clark 1999, `Spectroscopy of Rocks and Minerals`).
"""

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

FloatArray = npt.NDArray[np.float64]

FINE: FloatArray = np.arange(380.0, 2620.0, 2.0)
"""Fine wavelength grid, nm."""

Feature = tuple[float, float, float]
"""Centre (nm), depth or strength, and standard deviation (nm) of a Gaussian absorption feature."""

_CONTINUA = """
nm            380   450   500   550   600   650   700   800   900  1000  1300  1650  2000  2200  2620
chernozem     3.0   3.6   4.2   5.0   6.0   7.0   8.0  10.0  12.0  14.0  19.0  23.0  23.0  22.0  17.0
loam          5.0   7.0   9.0  12.0  15.5  18.0  20.0  23.5  25.5  28.0  33.0  36.0  34.5  34.0  27.0
sand         10.0  15.0  19.0  24.0  29.0  32.0  34.5  37.5  39.5  42.0  47.0  50.0  48.0  49.0  44.0
red_soil      3.5   4.5   5.5   8.5  16.0  20.0  23.0  26.0  26.0  31.0  38.0  40.0  38.0  37.0  29.0
clay_soil     8.0  11.0  14.0  17.0  20.0  22.0  23.5  26.0  27.5  29.0  33.0  34.0  30.0  29.0  20.0
limestone    20.0  27.0  32.0  37.0  41.0  43.0  45.0  48.0  50.0  51.0  54.0  55.0  53.0  54.0  46.0
gypsum       30.0  36.0  41.0  45.0  48.0  50.0  52.0  54.0  56.0  57.0  58.0  54.0  42.0  40.0  24.0
basalt        4.5   5.0   5.5   6.0   6.5   6.8   7.0   7.3   7.0   7.0   8.0  10.0  11.5  12.0  11.0
granite      14.0  17.0  20.0  22.5  25.0  26.5  27.5  29.0  30.0  30.5  33.0  35.0  35.5  35.0  32.0
straw        10.0  14.0  18.0  22.5  27.0  30.0  33.0  39.5  43.0  46.0  50.0  47.0  40.0  38.0  28.0
litter        2.5   3.5   4.5   6.0   8.5  11.0  14.0  22.0  27.0  31.0  37.0  35.0  26.0  24.0  15.0
bark          5.0   6.0   7.5   9.0  11.0  13.0  15.0  21.0  27.0  32.0  40.0  38.0  29.0  27.0  20.0
asphalt_old   9.0  10.0  11.0  12.0  12.8  13.3  13.7  14.2  14.6  15.0  16.5  18.0  18.5  18.5  17.0
asphalt_new   4.0   4.2   4.4   4.6   4.8   5.0   5.2   5.5   5.8   6.0   6.7   7.3   7.6   7.5   6.8
concrete     16.0  20.0  22.5  25.0  27.0  28.0  29.0  30.5  31.5  32.0  34.0  34.5  32.5  33.0  28.0
red_tile      5.0   5.5   6.5   8.5  16.0  21.0  23.5  27.0  28.0  32.0  39.0  41.0  41.0  40.0  34.0
slate         6.0   6.5   7.0   7.4   7.7   7.9   8.0   8.4   8.8   9.0  10.0  11.5  12.0  11.0   9.0
bitumen       4.5   5.0   5.3   5.6   5.9   6.1   6.3   6.8   7.2   7.6   9.0  10.0  10.5  10.0   8.5
metal_roof   30.0  34.0  35.5  37.0  38.0  38.5  38.5  37.0  38.5  42.0  47.0  50.0  51.0  51.0  50.0
blue_paint   12.0  22.0  20.0  10.0   6.0   6.0  10.0  30.0  36.0  39.0  42.0  41.0  38.0  37.0  32.0
plastic      42.0  50.0  53.0  55.0  56.0  57.0  57.0  57.0  57.0  57.0  56.0  53.0  50.0  47.0  36.0
gravel       13.0  16.0  18.0  20.0  21.5  22.5  23.2  24.0  24.7  25.2  27.0  28.5  28.5  28.0  25.0
beach        19.0  24.0  28.5  33.0  37.0  39.5  41.5  44.5  46.0  47.5  51.0  53.0  50.0  52.0  45.0
peat          2.0   2.4   2.8   3.3   4.0   4.8   5.8   8.5  11.0  13.5  20.0  23.0  17.0  16.0  10.0
solar_panel   5.0   5.5   5.0   4.5   4.2   4.0   4.0   4.0   4.2   6.0  14.0  11.0   9.0   8.5   6.0
snow         96.0  97.0  97.0  96.5  95.5  94.0  92.5  88.0  82.0  72.0  44.0  16.0   6.0  11.0   3.0
ice_cloud    74.0  76.0  77.0  77.5  78.0  78.0  78.0  78.0  77.5  77.0  72.0  56.0  42.0  47.0  28.0
"""
"""Reflectance of each dry material without its absorptions, percent."""

_CLAY: tuple[Feature, ...] = ((1412, 0.16, 18), (1915, 0.24, 28), (2206, 0.15, 17))
_KAOLIN: tuple[Feature, ...] = ((1400, 0.14, 14), (1412, 0.10, 10), (2165, 0.13, 12), (2207, 0.28, 13), (1915, 0.1, 25))
_HYDRATION: tuple[Feature, ...] = ((1430, 0.15, 32), (1925, 0.26, 38))
_HEMATITE: tuple[Feature, ...] = ((535, 0.35, 38), (665, 0.08, 32), (865, 0.22, 62))
_GOETHITE: tuple[Feature, ...] = ((482, 0.28, 34), (670, 0.10, 40), (925, 0.20, 78))
_CARBONATE: tuple[Feature, ...] = (
    *((1880, 0.06, 25), (1995, 0.09, 30), (2160, 0.07, 28)),
    *((2336, 0.30, 28), (2530, 0.35, 38)),
)
_CELLULOSE: tuple[Feature, ...] = (
    *((1200, 0.06, 50), (1475, 0.20, 58), (1732, 0.10, 22), (1780, 0.06, 26), (1930, 0.16, 48)),
    *((2102, 0.24, 44), (2278, 0.15, 26), (2340, 0.22, 30), (2490, 0.30, 55)),
)
_HYDROCARBON: tuple[Feature, ...] = (
    *((1190, 0.08, 14), (1400, 0.08, 25), (1660, 0.18, 18), (1720, 0.32, 22)),
    *((2130, 0.10, 20), (2310, 0.35, 26), (2440, 0.30, 40)),
)

_FEATURES: dict[str, tuple[Feature, ...]] = {
    "chernozem": _CLAY,
    "loam": (*_GOETHITE, *_CLAY),
    "sand": (*_GOETHITE, *_HYDRATION),
    "red_soil": (*_HEMATITE, *_KAOLIN),
    "clay_soil": (*_CLAY, (2345, 0.08, 26), (2206, 0.12, 15)),
    "limestone": (*_CARBONATE, (930, 0.05, 80)),
    "gypsum": (
        *((1000, 0.04, 22), (1200, 0.07, 24), (1448, 0.34, 18), (1490, 0.30, 16), (1535, 0.22, 18)),
        *((1750, 0.16, 16), (1944, 0.45, 26), (2215, 0.14, 28), (2268, 0.10, 18)),
    ),
    "basalt": ((1010, 0.16, 110), (2310, 0.06, 25)),
    "granite": (*_CLAY, (1030, 0.06, 120), (2350, 0.06, 22)),
    "straw": _CELLULOSE,
    "litter": (*_CELLULOSE, (2300, 0.08, 70)),
    "bark": (*_CELLULOSE, (670, 0.05, 20)),
    "asphalt_old": ((2310, 0.05, 30), (2340, 0.05, 22), (870, 0.02, 60)),
    "asphalt_new": ((1720, 0.04, 22), (2310, 0.09, 28)),
    "concrete": (*_HYDRATION, (2336, 0.12, 30), (2205, 0.04, 18)),
    "red_tile": (*_HEMATITE, (2206, 0.04, 18)),
    "slate": ((1400, 0.05, 20), (2206, 0.07, 18), (2250, 0.06, 20), (2340, 0.12, 24)),
    "bitumen": ((1725, 0.08, 22), (2310, 0.14, 24), (2350, 0.10, 20)),
    "metal_roof": ((830, 0.10, 60),),
    "blue_paint": ((1690, 0.08, 30), (1725, 0.12, 20), (2310, 0.14, 28)),
    "plastic": _HYDROCARBON,
    "gravel": (*_CARBONATE[3:], *_CLAY),
    "beach": (*_HYDRATION, (2336, 0.06, 30)),
    "peat": (*_HYDRATION, (1730, 0.05, 25), (2100, 0.10, 45), (2310, 0.09, 35)),
    "solar_panel": ((1680, 0.10, 30), (2130, 0.12, 30)),
    "snow": ((1030, 0.12, 40), (1260, 0.20, 40), (1500, 0.90, 55), (2010, 0.70, 60)),
    "ice_cloud": ((1250, 0.05, 40), (1480, 0.45, 60), (1970, 0.55, 75)),
}

GROUNDS: tuple[str, ...] = tuple(name for name in _FEATURES if name != "ice_cloud")
"""Materials a ground can be made of."""


def _continua() -> tuple[FloatArray, dict[str, FloatArray]]:
    header, *rows = (line.split() for line in _CONTINUA.strip().splitlines())
    return np.array(header[1:], float), {name: np.array(levels, float) / 100 for name, *levels in rows}


def material_reflectance(name: str) -> FloatArray:
    """Reflectance of a dry material on the fine grid: its continuum times its absorptions."""
    knots, levels = _continua()
    reflectance = PchipInterpolator(knots, levels[name])(FINE)
    for centre, depth, width in _FEATURES[name]:
        reflectance = reflectance * (1 - depth * np.exp(-0.5 * ((FINE - centre) / width) ** 2))
    return np.asarray(reflectance)
