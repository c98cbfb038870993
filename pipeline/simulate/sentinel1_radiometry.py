"""How a simulated radar image turns backscatter into numbers: known gain, noise floor and speckle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .sentinel1_view import RadarGrid

FloatArray = npt.NDArray[np.float64]
POLARISATIONS = ("VV", "VH")
VECTOR_STEP = 40
"""Pixels between the entries of a vector of the tables."""
LINE_STEP = 674
"""Lines between the vectors."""
_SPREAD = 0.8
"""Standard deviation of a reflector's image, px."""
_REACH = 4


@dataclass(frozen=True)
class Instrument:
    """What lies between the ground and the numbers.

    Attributes:
        grid: of the image.
        gain: beta0 amplitude of a number: A of beta0.
        floor: noise-equivalent sigma0 of the middle, linear.
        looks: of the speckle.
        varies: whether the noise also varies along track, as annotated since IPF 2.90.
        seed: keys the speckle.
    """

    grid: RadarGrid
    gain: float
    floor: float
    looks: float
    varies: bool
    seed: int

    def amplitude(self, pixel: FloatArray, quantity: str = "sigma0") -> FloatArray:
        """A of `sigma0`, `beta0` or `gamma0`: beta0 = sigma0 / sin(i), gamma0 = sigma0 / cos(i)."""
        angle = np.radians(self.grid.incidence(pixel))
        area = {"beta0": np.ones_like(angle), "sigma0": np.sin(angle), "gamma0": np.tan(angle)}[quantity]
        return np.asarray(self.gain / np.sqrt(area))

    def range_noise(self, pixel: FloatArray) -> FloatArray:
        """Noise power across the image: more towards its sides."""
        outward = 2 * pixel / self.grid.shape[1] - 1
        return np.asarray(self.floor * (1 + 0.4 * outward**2) * self.amplitude(pixel) ** 2)

    def azimuth_noise(self, line: FloatArray) -> FloatArray:
        """Factor of the noise along track, which scallops a little."""
        return np.asarray(1 + 0.08 * np.sin(line / 60) ** 2) if self.varies else np.ones_like(line)

    def numbers(self, sigma0: FloatArray, first: int, polarisation: int) -> npt.NDArray[np.uint16]:
        """Numbers of lines from `first` on, 0 beyond the ground; a line depends on its place alone."""
        line = np.arange(first, first + sigma0.shape[0], dtype=float)
        pixel = np.arange(sigma0.shape[1], dtype=float)
        power = sigma0 * self.amplitude(pixel) ** 2 + self.range_noise(pixel) * self.azimuth_noise(line)[:, None]
        for row, number in zip(power, line.astype(int), strict=True):
            key = [self.seed, 2 * int(number) + polarisation]
            row *= np.random.Generator(np.random.Philox(key=key)).gamma(self.looks, 1 / self.looks, row.size)
        known = np.isfinite(power)
        return np.where(known, np.clip(np.rint(np.sqrt(np.where(known, power, 1))), 1, 65535), 0).astype(np.uint16)


def add_reflectors(sigma0: FloatArray, first: int, places: FloatArray, strength: float) -> None:
    """Add point targets to lines `(polarisation, line, pixel)` from `first` on.

    Args:
        sigma0: lines of backscatter, changed in place.
        first: number of the first of them.
        places: line and pixel of each target `(n, 2)`.
        strength: sigma0 in the middle of each, linear.
    """
    for line, pixel in places:
        rows = np.arange(max(int(line) - _REACH, first), min(int(line) + _REACH + 2, first + sigma0.shape[1]))
        cols = np.arange(max(int(pixel) - _REACH, 0), min(int(pixel) + _REACH + 2, sigma0.shape[2]))
        if not (rows.size and cols.size):
            continue
        squares = (rows[:, None] - line) ** 2 + (cols - pixel) ** 2
        sigma0[:, rows[:, None] - first, cols] += strength * np.exp(-squares / (2 * _SPREAD**2))
