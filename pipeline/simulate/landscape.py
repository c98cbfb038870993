"""Where what lies: class and variant of every 15 m cell, terrain and textures, for four kinds of landscape."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cover import Season
from .patterns import Cells, River, Segment, cells, connect, draw_river, fractal, segment_distance

Float32Array = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint16]
Positions = npt.NDArray[np.float32] | npt.NDArray[np.float64]

PIXEL = 30.0
"""Size of a sensor pixel on the ground, m."""
OVERSAMPLING = 2
"""Cells a pixel, along each axis: what lies inside a pixel is mixed from four cells."""
TEXTURES = 14
"""Texture fields, each of which changes abundances and traits in its own direction."""

_CELL = PIXEL / OVERSAMPLING
_CHUNK = 256


@dataclass(frozen=True)
class Style:
    """What sets a kind of landscape apart.

    Attributes:
        classify: fills in class and variant of a strip of cells.
        soils: weights of its soils.
        relief: height of the terrain, m (standard deviation).
        sediment: typical sediment of its waters, g/m3.
        towns: towns a square kilometre.
        sites: places it is found at: latitude, longitude.
    """

    classify: Callable[["Strip"], CodeArray]
    soils: dict[str, float]
    relief: float
    sediment: float
    towns: float
    sites: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of cells, with the fields that classification looks at."""

    y: Float32Array
    x: Float32Array
    height: Float32Array
    wood: Float32Array
    kind: Float32Array
    grain: Float32Array
    river: Float32Array
    town: Float32Array
    road: Float32Array
    extent: tuple[float, float]
    season: Season
    seed: int

    def blocks(self, size: float, salt: int) -> Cells:
        """Cells of `size` m whose borders wind a little."""
        return cells(self.y + 40 * self.wood, self.x + 40 * self.kind, size, self.seed + salt)


@dataclass(frozen=True, eq=False)
class Landscape:
    """The ground of a scene.

    Attributes:
        code: class * VARIANTS + variant of each 15 m cell, `(2 * height, 2 * width)`.
        shading: direct light on the slope over that on flat ground, `(height, width)`.
        texture: independent fields of standard deviation 1, `(TEXTURES, height, width)` float16.
    """

    code: CodeArray
    shading: Float32Array
    texture: npt.NDArray[np.float16]

    def codes(self, y: Positions, x: Positions) -> CodeArray:
        """Codes of the cells under positions, px of the grid."""
        rows, cols = (np.floor(part * OVERSAMPLING).astype(np.intp) for part in (y, x))
        return np.asarray(self.code[rows, cols])


def build(seed: int, shape: tuple[int, int], style: Style, season: Season, sun: tuple[float, float]) -> Landscape:
    """Lay out a landscape of `shape` px; `sun` is its zenith and azimuth, deg."""
    rng = np.random.default_rng([seed, 1])
    fine = (shape[0] * OVERSAMPLING, shape[1] * OVERSAMPLING)
    extent = (shape[0] * PIXEL, shape[1] * PIXEL)
    river = draw_river(rng, extent)
    towns = _towns(rng, extent, style.towns)
    height = fractal(rng, fine, _CELL, slope=2.1, largest=14000)
    wood, kind = (fractal(rng, fine, _CELL, slope=slope, largest=size) for slope, size in ((1.65, 5200), (1.5, 3500)))
    grain = fractal(rng, fine, _CELL, slope=1.35, largest=1500)
    code = np.empty(fine, np.uint16)
    roads = connect(towns[:, :2])
    for start in range(0, fine[0], _CHUNK):
        rows = slice(start, min(start + _CHUNK, fine[0]))
        frame = _Frame(extent, river, towns, roads, season, seed)
        code[rows] = style.classify(_strip(rows, fine[1], (height, wood, kind, grain), frame))
    terrain = style.relief * height.reshape(shape[0], OVERSAMPLING, shape[1], OVERSAMPLING).mean(axis=(1, 3))
    del height, wood, kind, grain
    return Landscape(code, _shading(terrain, *sun), _textures(rng, shape))


@dataclass(frozen=True, eq=False)
class _Frame:
    """What all strips of a scene share."""

    extent: tuple[float, float]
    river: River
    towns: Float32Array
    roads: list[Segment]
    season: Season
    seed: int


def _strip(rows: slice, width: int, fields: tuple[Float32Array, ...], frame: _Frame) -> Strip:
    y, x = np.meshgrid(
        np.arange(rows.start, rows.stop, dtype=np.float32) * np.float32(_CELL),
        np.arange(width, dtype=np.float32) * np.float32(_CELL),
        indexing="ij",
    )
    height, wood, kind, grain = (field[rows] for field in fields)
    bent_y, bent_x = y + 220 * kind, x + 220 * wood
    town, road = np.zeros_like(y), np.full_like(y, np.inf)
    for town_y, town_x, radius in frame.towns:
        town = np.maximum(town, np.exp(-((bent_y - town_y) ** 2 + (bent_x - town_x) ** 2) / radius**2))
    for segment in frame.roads:
        road = np.minimum(road, segment_distance(bent_y, bent_x, segment))
    river = frame.river.distance(y, x)
    return Strip(y, x, height, wood, kind, grain, river, town, road, frame.extent, frame.season, frame.seed)


def _towns(rng: np.random.Generator, extent: tuple[float, float], density: float) -> Float32Array:
    """Centres and radii, m, `(n, 3)`."""
    count = max(2, int(density * extent[0] * extent[1] / 1e6))
    radius = rng.lognormal(np.log(480), 0.55, count)
    return np.stack([rng.uniform(0, extent[0], count), rng.uniform(0, extent[1], count), radius], 1).astype(np.float32)


def _textures(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float16]:
    fields = np.empty((TEXTURES, *shape), np.float16)
    for number in range(TEXTURES):
        slope, largest = ((1.6, 4000.0), (1.4, 900.0), (1.2, 350.0))[number % 3]
        fields[number] = fractal(rng, shape, PIXEL, slope=slope, largest=largest)
    return fields


def _shading(terrain: Float32Array, sun_zenith: float, sun_azimuth: float) -> Float32Array:
    """Cosine of the sun's incidence over that on flat ground."""
    south, east = np.gradient(terrain, PIXEL)
    zenith, azimuth = np.radians([sun_zenith, sun_azimuth])
    toward = np.sin(zenith) * (-np.sin(azimuth) * east + np.cos(azimuth) * south)
    lit = (toward + np.cos(zenith)) / np.sqrt(1 + south**2 + east**2)
    return np.asarray(np.clip(lit / np.cos(zenith), 0.25, 1.6), np.float32)
