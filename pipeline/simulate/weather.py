"""Clouds, their shadows, cirrus and haze over a scene, and what they do to reflectance."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .bands import BandTable
from .landscape import PIXEL
from .patterns import fractal
from .spectra import cloud_reflectance

Float32Array = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]

_CLOUD_HEIGHT = 900.0
"""Height of the clouds over the ground, m; decides how far shadows fall."""


@dataclass(frozen=True, eq=False)
class Weather:
    """Strength of each effect, 0-1, on the ground grid, `(height, width)` float16."""

    cloud: npt.NDArray[np.float16]
    shadow: npt.NDArray[np.float16]
    cirrus: npt.NDArray[np.float16]
    haze: npt.NDArray[np.float16]

    def masks(self) -> dict[str, MaskArray]:
        """The provider's masks: cloud, cloud shadow and haze as 1, cirrus as 1 (thin) to 3 (thick)."""
        cloud = self.cloud > 0.2
        return {
            "CLOUD": cloud.astype(np.uint8),
            "CLOUDSHADOW": ((self.shadow > 0.3) & ~cloud).astype(np.uint8),
            "CIRRUS": np.ceil(3 * self.cirrus.astype(np.float32)).astype(np.uint8),
            "HAZE": ((self.haze > 0.1) & ~cloud).astype(np.uint8),
        }


def draw_weather(
    rng: np.random.Generator, inside: npt.NDArray[np.bool_], cover: float, sun: tuple[float, float]
) -> Weather:
    """Clouds over `cover` (0-1) of the pixels `inside` the swath; `sun` is its zenith and azimuth, deg."""
    shape = (inside.shape[0], inside.shape[1])
    fields = [fractal(rng, shape, PIXEL, slope=s, largest=m) for s, m in ((1.75, 4500), (2.1, 15000), (2.0, 9000))]
    cloud = _above(fields[0], inside, cover, 0.45, lead=0.11)
    cirrus = _above(fields[1], inside, min(2 * cover, 0.3), 1.5)
    haze = _above(fields[2] + 0.3 * fields[0], inside, min(1.5 * cover, 0.3), 1.5)
    reach = _CLOUD_HEIGHT * np.tan(np.radians(sun[0])) / PIXEL
    away = (reach * np.cos(np.radians(sun[1])), -reach * np.sin(np.radians(sun[1])))
    shadow = ndimage.shift(cloud, away, order=1, mode="constant", cval=0.0) if cover > 0 else cloud
    return Weather(*(layer.astype(np.float16) for layer in (cloud, shadow, cirrus, haze)))


def _above(
    field: Float32Array, inside: npt.NDArray[np.bool_], share: float, ramp: float, lead: float = 0.0
) -> Float32Array:
    """0 below, 1 well above the level that `share` of the inner pixels exceed; `lead` starts the ramp earlier."""
    if share <= 0:
        return np.zeros_like(field)
    level = np.quantile(field[inside], 1 - share)
    return np.asarray(np.clip((field - (level - lead)) / ramp, 0, 1), np.float32)


@dataclass(frozen=True, eq=False)
class WeatherSpectra:
    """Spectra of the effects, each `(band,)`."""

    cloud: Float32Array
    cirrus: Float32Array
    haze: Float32Array
    skylight: Float32Array


def weather_spectra(table: BandTable, diffuse: Float32Array) -> WeatherSpectra:
    """Effects over the bands of `table`; `diffuse` is the share of skylight, which still lights a shadow."""
    cloud = cloud_reflectance(table)
    relative = (table.wavelength / 550).astype(np.float32)
    return WeatherSpectra(cloud, 0.16 * cloud, 0.07 * relative**-1.4, np.clip(0.10 + diffuse, 0, 0.6))


def veil(
    reflectance: Float32Array, weather: Weather, at: tuple[npt.NDArray[np.intp], ...], look: WeatherSpectra
) -> None:
    """Put shadow, haze, cirrus and clouds over reflectance `(n, band)` of the pixels `at` (rows, columns), in place."""
    layers = (weather.shadow, weather.haze, weather.cirrus, weather.cloud)
    for name, layer in zip(("shadow", "haze", "cirrus", "cloud"), layers, strict=True):
        strength = layer[at]
        touched = np.flatnonzero(strength)
        if not touched.size:
            continue
        amount = strength[touched].astype(np.float32)[:, None]
        part = reflectance[touched]
        if name == "shadow":
            part *= 1 - amount * (1 - look.skylight)
        elif name == "haze":
            part += amount * (look.haze - 0.12 * part)
        elif name == "cirrus":
            part += amount * (look.cirrus - 0.2 * part)
        else:
            part += amount * (look.cloud - part)
        reflectance[touched] = part
