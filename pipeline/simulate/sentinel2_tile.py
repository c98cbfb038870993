"""A Sentinel-2 tile over the ground of a simulated scene: its grid, and its pixels as reflectance and classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform

from cubeloom.pipeline.readers.sentinel2_bands import NAMES, nominal_bands

from . import cover
from .atmosphere import Sky, transfer
from .bands import BandTable
from .landscape import PIXEL
from .observation import Ground
from .surface import materials
from .weather import Weather, veil, weather_spectra

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

STEP = 60
"""Edge, m, of what all three grids divide into."""
GROUP = 6
"""Lines of 10 m that are computed at once: one line of 60 m."""
NOISE = {10: 0.0012, 20: 0.0010, 60: 0.0008}
"""Standard deviation of the noise, reflectance, by resolution."""
TRANSFER = 0.26
"""Modulation transfer at the Nyquist frequency of 10 m: the mean of B02, B03, B04 and B08 (0.26, 0.28, 0.24, 0.26, as
methods that sharpen Sentinel-2 take). Means over the pixels would have 0.64, and would alias much more."""
SURFACE_BANDS = tuple(name for name in NAMES if name != "B10")
"""Bands of surface reflectance: the cirrus band sees no surface."""
_SCL_OF_COVER = {
    cover.WATER: 6,
    cover.SNOW: 11,
    **dict.fromkeys((cover.BARE_SOIL, cover.STUBBLE, cover.BUILT_UP, cover.ROAD, cover.SAND, cover.ROCK), 5),
}
"""Class of SCL by what covers the ground; all else is vegetation."""
VEGETATION, SHADOW, CLOUD_MEDIUM, CLOUD_HIGH, CIRRUS, NO_DATA = 4, 3, 8, 9, 10, 0


@dataclass(frozen=True)
class TileGrid:
    """The tile's place: UTM zone, upper left corner (m), and height and width in cells of 60 m."""

    epsg: int
    left: float
    top: float
    cells: tuple[int, int]

    def shape(self, resolution: int) -> tuple[int, int]:
        """Height and width, px, at a resolution in m."""
        step = STEP // resolution
        return self.cells[0] * step, self.cells[1] * step


def tile_over(ground: Ground, epsg: int | None) -> TileGrid:
    """The tile that covers the ground's grid, corners on multiples of 60 m, in the ground's UTM zone or another.

    Its edge may reach a little beyond the ground; there it has no data.
    """
    swath = ground.swath
    rows, columns = swath.shape
    east = swath.easting + PIXEL * np.array([0, columns, columns, 0])
    north = swath.northing - PIXEL * np.array([0, 0, rows, rows])
    code = epsg or swath.epsg
    if code != swath.epsg:
        x, y = transform(f"EPSG:{swath.epsg}", f"EPSG:{code}", east.tolist(), north.tolist())
        east, north = np.array(x), np.array(y)
    left, right = np.floor(east.min() / STEP) * STEP, np.ceil(east.max() / STEP) * STEP
    top, bottom = np.ceil(north.max() / STEP) * STEP, np.floor(north.min() / STEP) * STEP
    return TileGrid(code, float(left), float(top), (int((top - bottom) / STEP), int((right - left) / STEP)))


@dataclass(frozen=True, eq=False)
class Look:
    """All that the instrument's pixels depend on.

    Attributes:
        ground: what lies below.
        weather: at the time of the pass.
        sky: at the time of the pass.
        grid: the tile's.
        shift: east and north, m, by which the images are displaced against the ground.
        seed: keys the noise.
    """

    ground: Ground
    weather: Weather
    sky: Sky
    grid: TileGrid
    shift: tuple[float, float]
    seed: int


@dataclass(frozen=True, eq=False)
class Images:
    """The tile's pixels: reflectance `(band, y, x)`, NaN for no data, of native bands by resolution; SCL at 20 m."""

    reflectance: Mapping[int, Float32Array]
    classes: ByteArray


def native_names(resolution: int) -> tuple[str, ...]:
    """Bands of surface reflectance that are measured at a resolution, m."""
    return tuple(band.name for band in nominal_bands(SURFACE_BANDS) if band.resolution == resolution)


def band_table() -> BandTable:
    """The bands of surface reflectance as a table of the simulator."""
    bands = nominal_bands(SURFACE_BANDS)
    return BandTable(
        wavelength=np.array([band.response.wavelength for band in bands]),
        fwhm=np.array([band.response.fwhm for band in bands]),
        detector=np.array(["swir" if band.name in ("B11", "B12") else "vnir" for band in bands]),
    )


def observe(look: Look) -> Images:
    """The tile's pixels, computed a line of 60 m at a time.

    The ground is sampled at 10 m through the instrument's optics (`TRANSFER`), and coarser bands are means of that, so
    that the three grids agree to their noise.
    """
    table = band_table()
    spectra, light = materials(table), transfer(look.sky, table)
    effects = weather_spectra(table, light.diffuse)
    rows = {name: row for row, name in enumerate(SURFACE_BANDS)}
    chosen = {step: [rows[name] for name in native_names(step)] for step in NOISE}
    cubes = {step: np.empty((len(chosen[step]), *look.grid.shape(step)), np.float32) for step in NOISE}
    for cell in range(look.grid.cells[0]):
        y, x, known = _ground_position(look, cell)
        seen = np.full((known.size, len(table)), np.nan, np.float32)
        clear = look.ground.surface.reflectance(y[known], x[known], spectra, 10 / PIXEL, TRANSFER)
        at = np.floor(y[known]).astype(np.intp), np.floor(x[known]).astype(np.intp)
        veil(clear, look.weather, at, effects)
        seen[known] = clear
        lines = seen.T.reshape(len(table), GROUP, -1)
        rng = np.random.Generator(np.random.Philox(key=[look.seed, cell]))
        for step, cube in cubes.items():
            part = block_mean(lines[chosen[step]], step // 10)
            part += rng.normal(0, NOISE[step], part.shape).astype(np.float32)
            height = STEP // step
            cube[:, cell * height : (cell + 1) * height] = part
    return Images(cubes, _classes(look))


def block_mean(cube: Float32Array, factor: int) -> Float32Array:
    """Means of blocks of `factor` x `factor` px of `(band, y, x)`; NaN where a pixel of the block is."""
    bands, height, width = cube.shape
    blocks = cube.reshape(bands, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(2, 4)), np.float32)


def _ground_position(look: Look, cell: int, resolution: int = 10) -> tuple[Float32Array, Float32Array, BoolArray]:
    """Where the pixels of a line of 60 m lie on the ground's grid, px, and which lie on it."""
    grid, swath = look.grid, look.ground.swath
    per_cell, width = STEP // resolution, grid.shape(resolution)[1]
    north = grid.top - resolution * (np.arange(cell * per_cell, (cell + 1) * per_cell) + 0.5) - look.shift[1]
    east = grid.left + resolution * (np.arange(width) + 0.5) - look.shift[0]
    easts, norths = (axis.ravel() for axis in np.meshgrid(east, north))
    if grid.epsg != swath.epsg:
        found = transform(f"EPSG:{grid.epsg}", f"EPSG:{swath.epsg}", easts.tolist(), norths.tolist())
        easts, norths = np.array(found[0]), np.array(found[1])
    y = ((swath.northing - norths) / PIXEL).astype(np.float32)
    x = ((easts - swath.easting) / PIXEL).astype(np.float32)
    known = (y >= 0) & (y < swath.shape[0]) & (x >= 0) & (x < swath.shape[1])
    return y, x, known


def cover_map(look: Look) -> ByteArray:
    """Class of what lies in the middle of every pixel of 10 m, whatever the weather above it; 0 beyond the ground."""
    classes = np.zeros(look.grid.shape(10), np.uint8)
    for cell in range(look.grid.cells[0]):
        y, x, known = _ground_position(look, cell)
        line = np.zeros(known.size, np.uint8)
        line[known] = look.ground.surface.landscape.codes(y[known], x[known]) // cover.VARIANTS
        classes[cell * GROUP : (cell + 1) * GROUP] = line.reshape(GROUP, -1)
    return classes


def _classes(look: Look) -> ByteArray:
    """SCL at 20 m, from what covers the ground and the weather above it."""
    masks = look.weather.masks()
    ground = look.ground.surface.classes()
    lookup = np.full(256, VEGETATION, np.uint8)
    for code, value in _SCL_OF_COVER.items():
        lookup[code] = value
    truth = lookup[ground]
    truth[masks["CIRRUS"] > 1] = CIRRUS
    truth[masks["CLOUDSHADOW"] > 0] = SHADOW
    truth[masks["CLOUD"] > 0] = CLOUD_HIGH
    classes = np.zeros(look.grid.shape(20), np.uint8)
    for cell in range(look.grid.cells[0]):
        y, x, known = _ground_position(look, cell, 20)
        line = np.full(known.size, NO_DATA, np.uint8)
        line[known] = truth[np.floor(y[known]).astype(np.intp), np.floor(x[known]).astype(np.intp)]
        classes[cell * 3 : cell * 3 + 3] = line.reshape(3, -1)
    return classes
