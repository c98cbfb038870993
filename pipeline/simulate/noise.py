"""Noise on clean cubes: the nine cases of the denoising literature, and what two spacecraft do to a scene.

The nine are those of QRNN3D (Wei, Fu and Huang, IEEE TNNLS 32(1), 2020) and HSDT (Lai, Yan and Fu, ICCV 2023), where a
cube has 31 bands of which 10 are struck; here it is a third of any number of bands, rounded. Cubes lie in [0, 1], lists
of standard deviations are in 1/255 of that. Nothing is clipped but where a recipe says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError

from .atmosphere import Sky, transfer
from .bands import BandTable
from .sensor import noise_curve

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SIGMAS = (10, 30, 50, 70)
"""Standard deviations of `noniid`, of 255; `blind` draws between the least and the largest."""

IMPULSE_DENSITIES = (0.1, 0.3, 0.5, 0.7)
COLUMN_SHARES = (0.05, 0.15)
"""Least and largest share of a band's columns that `stripe` and `deadline` strike; both ends rounded up, inclusive."""

STRIPE_OFFSET = 0.25
WAVELENGTHS = (420.0, 2450.0)
"""What the bands of a cube without wavelengths are taken to span evenly, nm."""

_DETECTOR_LIMIT = 950.0
_CLEAR_SKY = Sky(sun_zenith=40, sun_azimuth=150, view_zenith=3, water_vapour=1.5, aerosol=0.12, sun_distance=1)
_LARGEST_SIGMA = 0.1
"""Noise of reflectance where the atmosphere lets no light through, which would otherwise be without bound."""


@dataclass(frozen=True, eq=False)
class Noisy:
    """A cube with noise on it.

    Attributes:
        cube: `(band, y, x)` float32.
        sigma: standard deviation of the random noise of each band, `(band,)`; stripes, dead lines and impulses come
            on top.
        struck: values that stripes, dead lines, impulses or dead elements changed, `(band, y, x)`; not those of the
            gain errors of `enmap`, which every column has.
    """

    cube: Float32Array
    sigma: Float32Array
    struck: BoolArray


Noise = Callable[[npt.NDArray[Any], np.random.Generator, FloatArray | None], Noisy]
"""Adds noise to a clean cube `(band, y, x)` in [0, 1]; wavelengths of its bands in nm where they are known."""


def gaussian(sigma: float) -> Noise:
    """White noise of the same standard deviation, on the cube's scale, in every band."""

    def add(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
        return _white(cube, np.full(len(cube), sigma, np.float32), rng)

    return add


def blind(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """White noise of one standard deviation a cube, uniform in 10-70 of 255."""
    return gaussian(rng.uniform(SIGMAS[0], SIGMAS[-1]) / 255)(cube, rng, None)


def noniid(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """White noise whose standard deviation each band draws from 10, 30, 50 and 70 of 255."""
    return _white(cube, rng.choice(np.array(SIGMAS, np.float32) / 255, len(cube)), rng)


def stripe(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """`noniid`, and in a third of the bands columns with an offset of their own, uniform in +-0.25."""
    noisy = noniid(cube, rng)
    _add_stripes(noisy, _some_bands(len(cube), rng), rng)
    return noisy


def deadline(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """`noniid`, and in a third of the bands columns that are 0."""
    noisy = noniid(cube, rng)
    _add_dead_lines(noisy, _some_bands(len(cube), rng), rng)
    return noisy


def impulse(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """`noniid`, and in a third of the bands 10, 30, 50 or 70 % of the pixels are 0 or 1, as likely as not."""
    noisy = noniid(cube, rng)
    _add_impulses(noisy, _some_bands(len(cube), rng), rng)
    return noisy


def mixture(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """`noniid`, and a third of the bands each with stripes, dead lines and impulses; no band has two of them."""
    noisy = noniid(cube, rng)
    third = _third(len(cube))
    order = rng.permutation(len(cube))
    _add_stripes(noisy, order[:third], rng)
    _add_dead_lines(noisy, order[third : 2 * third], rng)
    _add_impulses(noisy, order[2 * third : 3 * third], rng)
    return noisy


def finch(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """The FINCH CubeSat's recipe, as published with its settings (utat-ss/FINCH-destriping, 2024, `apply_stripes`).

    Bright stripes in three columns of ten, partly in clusters and the same columns in all bands; random noise with a
    mean of 5 and a standard deviation of 10 % of each band's maximum; clipping to [0, 1]; a hundredth each of the
    values at 0 and at the band's maximum (there, the last band's maximum in every band).
    """
    bands, _height, width = cube.shape
    peak, low = (reduce(cube, axis=(1, 2)).astype(np.float32) for reduce in (np.max, np.min))
    columns = _clustered_columns(width, share=0.3, clusters=3, rng=rng)
    spread = rng.uniform(0.25, 0.35) * (peak - low)
    offset = np.abs(rng.standard_normal((bands, columns.size), np.float32)) * spread[:, None]
    noisy = _white(cube, 0.1 * peak, rng)
    noisy.cube[:] += 0.05 * peak[:, None, None]
    noisy.cube[:, :, columns] += offset[:, None]
    noisy.struck[:, :, columns] = True
    np.clip(noisy.cube, 0, 1, out=noisy.cube)
    chance = rng.random(cube.shape, np.float32)
    for hit, value in ((chance < 0.01, peak), (chance > 0.99, np.zeros_like(peak))):
        np.copyto(noisy.cube, value[:, None, None], where=hit)
        noisy.struck[hit] = True
    return noisy


def enmap(cube: npt.NDArray[Any], rng: np.random.Generator, wavelengths: FloatArray | None = None) -> Noisy:
    """An EnMAP-like sensor, from its usual noise to 16 times that; the cube is taken as reflectance.

    Random noise follows the simulator's signal-to-noise curve under a clear sky, so it grows with the signal, at the
    ends of the detectors and where gases absorb. Columns keep an error of gain that the bands of a detector share in
    part. Up to 0.4 % of the detector elements are defective: three in ten stuck at a value, the others interpolated
    from the bands beside them.
    """
    at = np.linspace(*WAVELENGTHS, len(cube)) if wavelengths is None else np.asarray(wavelengths, float)
    if at.shape != (len(cube),):
        raise InputError(f"noise 'enmap': {at.size} wavelengths for {len(cube)} bands; give one a band, in nm")
    severity = np.float32(np.exp(rng.uniform(0, np.log(16))))
    constant, slope = (part[:, None, None] for part in _reflectance_noise(at.tobytes()))
    deviation = np.sqrt(constant + slope * np.maximum(cube, 0).astype(np.float32)) * severity
    np.minimum(deviation, np.float32(_LARGEST_SIGMA), out=deviation)
    sigma = np.sqrt(np.mean(np.square(deviation, dtype=np.float64), axis=(1, 2))).astype(np.float32)
    noisy = rng.standard_normal(cube.shape, np.float32)
    noisy *= deviation
    noisy += cube * (1 + _column_gains(at, cube.shape[2], rng))[:, None]
    return Noisy(noisy, sigma, _add_defects(noisy, rng))


PROTOCOL: dict[str, Noise] = {
    "gaussian30": gaussian(30 / 255),
    "gaussian50": gaussian(50 / 255),
    "gaussian70": gaussian(70 / 255),
    "blind": blind,
    "noniid": noniid,
    "stripe": stripe,
    "deadline": deadline,
    "impulse": impulse,
    "mixture": mixture,
}
"""The nine cases that denoisers are compared on, in the order of their tables."""

NOISES: dict[str, Noise] = {**PROTOCOL, "finch": finch, "enmap": enmap}
"""Every kind of noise by name."""


def add_noise(
    cube: npt.NDArray[Any], name: str, rng: np.random.Generator, wavelengths: FloatArray | None = None
) -> Noisy:
    """A clean cube with noise on it; the same generator state gives the same noise.

    Args:
        cube: `(band, y, x)` in [0, 1]; stays as it is.
        name: one of `NOISES`.
        rng: source of randomness.
        wavelengths: centres of the bands, nm, which `enmap` looks at; evenly spread over 420-2450 nm where None.

    Raises:
        ConfigError: there is no noise of that name.
        InputError: the cube does not have three axes.
    """
    if name not in NOISES:
        raise ConfigError(f"noise {name!r} is not known; expected one of {', '.join(NOISES)}")
    if cube.ndim != 3 or not cube.size:
        raise InputError(f"noise is added to a cube (band, y, x); got an array of shape {cube.shape}")
    return NOISES[name](cube, rng, wavelengths)


def _white(cube: npt.NDArray[Any], sigma: Float32Array, rng: np.random.Generator) -> Noisy:
    noise = rng.standard_normal(cube.shape, np.float32)
    noise *= sigma[:, None, None]
    noise += cube
    return Noisy(noise, np.asarray(sigma, np.float32), np.zeros(cube.shape, bool))


def _third(bands: int) -> int:
    return max(round(bands / 3), 1)


def _some_bands(bands: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    return rng.permutation(bands)[: _third(bands)]


def _some_columns(bands: int, width: int, rng: np.random.Generator) -> BoolArray:
    """Which columns of each band are struck, `(band, x)`: a number drawn for each band, then that many at random."""
    least, most = (int(np.ceil(share * width)) for share in COLUMN_SHARES)
    count = rng.integers(least, most, bands, endpoint=True)
    rank = rng.random((bands, width)).argsort(axis=1).argsort(axis=1)
    return rank < count[:, None]


def _add_stripes(noisy: Noisy, bands: npt.NDArray[np.intp], rng: np.random.Generator) -> None:
    columns = _some_columns(bands.size, noisy.cube.shape[2], rng)
    offset = np.where(columns, rng.uniform(-STRIPE_OFFSET, STRIPE_OFFSET, columns.shape), 0).astype(np.float32)
    noisy.cube[bands] -= offset[:, None]
    noisy.struck[bands] |= columns[:, None]


def _add_dead_lines(noisy: Noisy, bands: npt.NDArray[np.intp], rng: np.random.Generator) -> None:
    columns = _some_columns(bands.size, noisy.cube.shape[2], rng)
    noisy.cube[bands] = np.where(columns[:, None], np.float32(0), noisy.cube[bands])
    noisy.struck[bands] |= columns[:, None]


def _add_impulses(noisy: Noisy, bands: npt.NDArray[np.intp], rng: np.random.Generator) -> None:
    density = rng.choice(np.array(IMPULSE_DENSITIES, np.float32), bands.size)[:, None, None]
    chance = rng.random((bands.size, *noisy.cube.shape[1:]), np.float32)
    hit = chance < density
    noisy.cube[bands] = np.where(hit, (chance < density / 2).astype(np.float32), noisy.cube[bands])
    noisy.struck[bands] |= hit


def _clustered_columns(width: int, share: float, clusters: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Columns with stripes: up to `clusters` groups, each around a centre, the others anywhere; some fall together."""
    total = round(share * (width - 1))
    size = total // clusters
    centres = rng.integers(0, width, round(rng.uniform(0, clusters)))
    half = size / 2
    grouped = rng.uniform(centres[:, None] - half, centres[:, None] + half, (centres.size, size)).ravel()
    spread = rng.integers(0, width, total - grouped.size)
    return np.unique(np.clip(np.concatenate([np.rint(grouped).astype(np.intp), spread]), 0, width - 1))


@lru_cache(maxsize=1024)
def _reflectance_noise(wavelengths: bytes) -> tuple[Float32Array, Float32Array]:
    """Variance of EnMAP's noise in reflectance: without signal, and what a reflectance of 1 adds, `(band,)` each."""
    at = np.frombuffer(wavelengths)
    width = np.full(at.size, 10.0)
    table = BandTable(np.clip(at, 390, 2580), width, np.where(at < _DETECTOR_LIMIT, "vnir", "swir"))
    light = transfer(_CLEAR_SKY, table)
    read, shot = (part.astype(np.float64) for part in noise_curve(table, light))
    slope, path = np.maximum(light.slope, 1e-6).astype(np.float64), light.path.astype(np.float64)
    ascending = (read + shot * path) / slope**2, shot / slope
    back = np.argsort(np.argsort(np.clip(at, 390, 2580), kind="stable"))  # the table sorts its bands
    return tuple(np.minimum(part[back], 1).astype(np.float32) for part in ascending)  # type: ignore[return-value]


def _column_gains(wavelengths: FloatArray, width: int, rng: np.random.Generator) -> Float32Array:
    """Error of gain of every element, `(band, x)`: 0.2 to 2 %, part of it common to the bands of a detector."""
    common = rng.standard_normal((2, width), np.float32)[(wavelengths >= _DETECTOR_LIMIT).astype(int)]
    own = rng.standard_normal((wavelengths.size, width), np.float32)
    return np.asarray(np.exp(rng.uniform(np.log(0.002), np.log(0.02))) * (0.6 * common + 0.8 * own), np.float32)


def _add_defects(cube: Float32Array, rng: np.random.Generator) -> BoolArray:
    """Strike defective elements, which see the same band of a whole column; returns what they changed."""
    bands, _, width = cube.shape
    dead = rng.random((bands, width)) < rng.uniform(0, 0.004)
    stuck = rng.random((bands, width)) < 0.3
    level = rng.choice(np.array([0.02, 0.9], np.float32), (bands, width))
    band, column = np.nonzero(dead)
    mended = (cube[np.maximum(band - 1, 0), :, column] + cube[np.minimum(band + 1, bands - 1), :, column]) / 2
    cube[band, :, column] = np.where(stuck[band, column, None], level[band, column, None], mended)
    return np.repeat(dead[:, None], cube.shape[1], axis=1)
