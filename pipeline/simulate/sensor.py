"""The detectors: noise after a signal-to-noise curve, column stripes and defective elements."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .atmosphere import Transfer
from .bands import BandTable

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]

# Signal-to-noise ratio without gases over a ground of reflectance 0.3: wavelength nm, ratio.
_SNR = {
    "vnir": (
        *((400, 110), (430, 230), (460, 380), (495, 480), (560, 520)),
        *((650, 460), (750, 410), (850, 330), (930, 220), (1010, 120)),
    ),
    "swir": (
        *((890, 150), (950, 260), (1010, 340), (1100, 360), (1250, 340), (1600, 280)),
        *((1750, 240), (2000, 190), (2200, 185), (2350, 115), (2460, 65)),
    ),
}
_READ_SHARE = 0.3
"""Share of the reference signal's noise variance that does not depend on the signal."""
_STRIPE_GAIN = 0.004
"""Standard deviation of the gain left in the columns, of 1."""


@dataclass(frozen=True, eq=False)
class Sensor:
    """The elements of one cube's detectors; arrays are `(band,)` or `(column, band)`.

    Attributes:
        read: variance of noise without signal, (W m-2 sr-1 nm-1)^2.
        shot: variance a unit of radiance.
        gain: relative error of each element.
        offset: additive error of each element, W m-2 sr-1 nm-1.
        dead: defective elements.
        stuck: those of them that keep a wrong value; the processor interpolates the others from `left` and `right`.
        left: nearest sound band of the same detector below each band.
        right: nearest sound band above.
        level: radiance that a stuck element shows.
    """

    read: Float32Array
    shot: Float32Array
    gain: Float32Array
    offset: Float32Array
    dead: BoolArray
    stuck: BoolArray
    left: IndexArray
    right: IndexArray
    level: Float32Array

    def measure(
        self, radiance: Float32Array, columns: IndexArray, rng: np.random.Generator
    ) -> tuple[Float32Array, BoolArray]:
        """Measured radiance `(n, band)` of pixels seen by the given columns, and which values are defective."""
        noise = rng.standard_normal(radiance.shape, np.float32)
        noise *= np.sqrt(self.read + self.shot * np.maximum(radiance, 0))
        noise += self.offset[columns]
        noise += radiance * (1 + self.gain[columns])
        defective = self.dead[columns]
        pixel, band = np.nonzero(defective)
        element = columns[pixel], band
        mended = (noise[pixel, self.left[element]] + noise[pixel, self.right[element]]) / 2
        noise[pixel, band] = np.where(self.stuck[element], self.level[band], mended)
        return noise, defective


def noise_curve(table: BandTable, transfer: Transfer) -> tuple[Float32Array, Float32Array]:
    """Variance of the noise without signal and a unit of radiance, `(band,)` each."""
    reference = 0.3 * transfer.continuum + transfer.path
    ratio = np.empty(len(table))
    for detector, curve in _SNR.items():
        of = table.of(detector)
        ratio[of] = np.interp(table.wavelength[of], *np.array(curve, float).T)
    variance = (reference / ratio) ** 2
    return (_READ_SHARE * variance).astype(np.float32), ((1 - _READ_SHARE) * variance / reference).astype(np.float32)


def draw_sensor(
    rng: np.random.Generator,
    table: BandTable,
    transfer: Transfer,
    columns: int,
    *,
    noise: float,
    stripes: float,
    dead_pixels: float,
) -> Sensor:
    """Detectors of one cube; `noise` and `stripes` scale what is usual, `dead_pixels` is the share of elements."""
    read, shot = noise_curve(table, transfer)
    size = (columns, len(table))
    common = np.empty(size)
    for detector in ("vnir", "swir"):
        of = table.of(detector)
        common[:, of] = rng.standard_normal((columns, 1)) * np.linspace(1.0, 0.6, of.size)
    gain = stripes * _STRIPE_GAIN * (0.6 * common + 0.8 * rng.standard_normal(size))
    offset = stripes * 0.4 * np.sqrt(read) * rng.standard_normal(size)
    dead = _draw_dead(rng, size, dead_pixels)
    left, right = _sound_neighbours(dead, table)
    return Sensor(
        read=(noise**2 * read).astype(np.float32),
        shot=(noise**2 * shot).astype(np.float32),
        gain=gain.astype(np.float32),
        offset=offset.astype(np.float32),
        dead=dead,
        stuck=dead & (rng.random(size) < 0.3),
        left=left,
        right=right,
        level=(rng.choice([0.02, 0.9], len(table)) * transfer.continuum + transfer.path).astype(np.float32),
    )


def _draw_dead(rng: np.random.Generator, size: tuple[int, int], share: float) -> BoolArray:
    """Single elements, and some short runs of bands in one column, as a faulty column makes them."""
    dead = rng.random(size) < 0.7 * share
    for column in rng.integers(0, size[0], round(0.3 * share * size[0] * size[1] / 4)):
        start = int(rng.integers(0, size[1]))
        dead[column, start : start + 4] = True
    return dead


def _sound_neighbours(dead: BoolArray, table: BandTable) -> tuple[IndexArray, IndexArray]:
    """For every element the nearest sound bands below and above on its detector; one stands for both at an end."""
    left, right = np.zeros(dead.shape, np.intp), np.zeros(dead.shape, np.intp)
    for detector in ("vnir", "swir"):
        of = table.of(detector)
        for column in np.flatnonzero(dead[:, of].any(axis=1)):
            sound = of[~dead[column, of]]
            if not sound.size:
                sound = of
            after = np.searchsorted(sound, of)
            right[column, of] = sound[np.minimum(after, sound.size - 1)]
            left[column, of] = sound[np.maximum(after - 1, 0)]
    return left, right
