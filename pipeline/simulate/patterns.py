"""Spatial patterns over a metric grid: fractal fields, cells, parcels, a river, roads. Pure functions of a seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

Float32Array = npt.NDArray[np.float32]
HashArray = npt.NDArray[np.uint32]
Numbers = npt.NDArray[Any]


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], spacing: float, *, slope: float, largest: float
) -> Float32Array:
    """A Gaussian field of mean 0 and standard deviation 1 with a power-law spectrum.

    Args:
        rng: source of the phases.
        shape: height and width, px.
        spacing: size of a pixel, m.
        slope: amplitude falls as frequency ** -slope; 0 is white noise, 2 smooth terrain.
        largest: size of the largest structures, m; the spectrum is flat beyond.

    Returns:
        float32 `(height, width)`.
    """
    padded = [scipy.fft.next_fast_len(size + min(size, int(largest / spacing)) // 4 + 1, real=True) for size in shape]
    spectrum = scipy.fft.rfft2(rng.standard_normal(padded, np.float32))
    rows = scipy.fft.fftfreq(padded[0], spacing).astype(np.float32)[:, None]
    cols = scipy.fft.rfftfreq(padded[1], spacing).astype(np.float32)
    spectrum *= (rows**2 + cols**2 + np.float32(largest) ** -2) ** np.float32(-slope / 2)
    field = scipy.fft.irfft2(spectrum, padded, overwrite_x=True)[: shape[0], : shape[1]]
    return np.asarray((field - field.mean(dtype=np.float64)) / field.std(dtype=np.float64), np.float32)


def mix(*parts: Numbers | int) -> HashArray:
    """A well-mixed 32-bit hash of integers, element by element (finaliser of MurmurHash3)."""
    value: HashArray = np.array(0x9E3779B9, np.uint32)
    with np.errstate(over="ignore"):  # wrapping around is the point
        for part in parts:
            number = np.asarray(part).astype(np.int64).astype(np.uint32)
            value = (value ^ number) * np.uint32(0x85EBCA6B)
            value = (value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            value = value ^ (value >> np.uint32(16))
    return value


def uniform(key: HashArray) -> Float32Array:
    """Numbers in [0, 1) from hashes."""
    return (key >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True, eq=False)
class Cells:
    """Voronoi cells around one random point in each square of a lattice.

    Attributes:
        key: hash that names the cell of each pixel.
        border: distance to the cell's border, m (half the difference of the two nearest points' distances).
        dy: distance from the cell's point southwards, m.
        dx: distance from the cell's point eastwards, m.
    """

    key: HashArray
    border: Float32Array
    dy: Float32Array
    dx: Float32Array


def cells(y: Float32Array, x: Float32Array, size: float, seed: int) -> Cells:
    """Cells of about `size` m at the points (y, x), m, which may be any arrays of one shape."""
    row, col = np.floor(y / size).astype(np.int32), np.floor(x / size).astype(np.int32)
    nearest = np.full(y.shape, np.inf, np.float32)
    second = nearest.copy()
    key = np.zeros(y.shape, np.uint32)
    best_y, best_x = np.zeros_like(nearest), np.zeros_like(nearest)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            candidate = mix(row + step_y, col + step_x, seed)
            dy = y - (row + step_y + 0.08 + 0.84 * uniform(candidate)) * np.float32(size)
            dx = x - (col + step_x + 0.08 + 0.84 * uniform(mix(candidate, 1))) * np.float32(size)
            distance = np.sqrt(dy**2 + dx**2).astype(np.float32)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            key = np.where(closer, candidate, key)
            best_y, best_x = np.where(closer, dy, best_y), np.where(closer, dx, best_x)
    return Cells(key, ((second - nearest) / 2).astype(np.float32), best_y.astype(np.float32), best_x.astype(np.float32))


def parcels(blocks: Cells, width: float, length: float) -> HashArray:
    """Farmland parcels: each block is cut into strips along its own direction, and each strip into fields."""
    angle = uniform(mix(blocks.key, 2)) * np.float32(np.pi)
    along = blocks.dx * np.cos(angle) + blocks.dy * np.sin(angle)
    across = blocks.dy * np.cos(angle) - blocks.dx * np.sin(angle)
    scale = 0.6 + 1.1 * uniform(mix(blocks.key, 3))
    strip = np.floor(across / (width * scale))
    shift = uniform(mix(blocks.key, strip.astype(np.int32), 4))
    field = np.floor(along / (length * scale) + shift)
    return mix(blocks.key, strip.astype(np.int32), field.astype(np.int32))


@dataclass(frozen=True)
class River:
    """A meandering line across the scene: sums of sines along a straight axis.

    Attributes:
        origin: a point of the axis (y, x), m.
        angle: direction of the axis, rad from east towards south.
        waves: amplitude m, wavelength m, phase rad.
    """

    origin: tuple[float, float]
    angle: float
    waves: tuple[tuple[float, float, float], ...]

    def distance(self, y: Float32Array, x: Float32Array) -> Float32Array:
        """Distance of points (y, x), m, from the middle of the river, nearly."""
        dy, dx = y - np.float32(self.origin[0]), x - np.float32(self.origin[1])
        along = dx * np.float32(np.cos(self.angle)) + dy * np.float32(np.sin(self.angle))
        across = dy * np.float32(np.cos(self.angle)) - dx * np.float32(np.sin(self.angle))
        offset, tilt = np.zeros_like(along), np.zeros_like(along)
        for amplitude, wavelength, phase in self.waves:
            turn = along * np.float32(2 * np.pi / wavelength) + np.float32(phase)
            offset += np.float32(amplitude) * np.sin(turn)
            tilt += np.float32(amplitude * 2 * np.pi / wavelength) * np.cos(turn)
        return np.asarray(np.abs(across - offset) / np.sqrt(1 + tilt**2), np.float32)


def draw_river(rng: np.random.Generator, extent: tuple[float, float]) -> River:
    """A river through the middle part of an extent (height, width), m."""
    origin = (extent[0] * rng.uniform(0.35, 0.65), extent[1] * rng.uniform(0.35, 0.65))
    waves = tuple(
        (amplitude * rng.uniform(0.6, 1.2), wavelength * rng.uniform(0.8, 1.25), rng.uniform(0, 2 * np.pi))
        for amplitude, wavelength in ((900.0, 9000.0), (420.0, 3600.0), (130.0, 1400.0), (45.0, 610.0))
    )
    return River(origin, float(rng.uniform(0, np.pi)), waves)


Segment = tuple[float, float, float, float]
"""Start and end of a road, m: y, x, y, x."""


def segment_distance(y: Float32Array, x: Float32Array, segment: Segment) -> Float32Array:
    """Distance of points (y, x) from a straight segment, m."""
    y0, x0, y1, x1 = segment
    length = max((y1 - y0) ** 2 + (x1 - x0) ** 2, 1.0)
    share = np.clip(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / length, 0, 1)
    return np.asarray(np.hypot(y - y0 - share * (y1 - y0), x - x0 - share * (x1 - x0)), np.float32)


def connect(points: Numbers, neighbours: int = 2) -> list[Segment]:
    """Roads from each point `(n, 2)` to its nearest neighbours, each road once."""
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    pairs = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(len(points))
        for j in np.argsort(distance[i], kind="stable")[1 : neighbours + 1]
    }
    ends = points.tolist()
    return [(ends[i][0], ends[i][1], ends[j][0], ends[j][1]) for i, j in sorted(pairs)]
