"""A radar image over the ground of a simulated scene: where its pixels lie, and what the ground scatters back."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform

from . import cover
from .cover import CLASSES, VARIANTS
from .landscape import PIXEL
from .observation import Ground

FloatArray = npt.NDArray[np.float64]
SPACING = 10.0
"""Of lines and pixels on the ground, m."""
REFERENCE_ANGLE = 38.5
"""Angle of incidence, deg, that the table of backscatter is for, and that of an image's middle."""
ANGLE_STEP = 6e-4
"""Change of the angle of incidence from one pixel to the next, deg: 15 deg over 25 000 px."""
_HEADINGS = {"ascending": -12.0, "descending": 192.0}
_BEND = 60.0
"""Metres by which the outer pixels of a line lie further along the track: radar lines are bent on a map."""
_MARGIN = 4
_SPREAD = 1.0
"""Standard deviation of the backscatter of a class's variants, dB."""

BACKSCATTER = {
    cover.WATER: (-20.0, -28.0), cover.DECIDUOUS: (-9.0, -14.5), cover.CONIFEROUS: (-8.5, -14.0),
    cover.MEADOW: (-11.5, -18.0), cover.CEREAL: (-12.0, -18.5), cover.MAIZE: (-9.5, -15.5),
    cover.RAPESEED: (-8.0, -14.0), cover.ROOT_CROP: (-10.0, -16.0), cover.BARE_SOIL: (-12.5, -20.0),
    cover.STUBBLE: (-12.5, -19.5), cover.BUILT_UP: (-3.0, -10.0), cover.ROAD: (-17.0, -24.0),
    cover.SHRUBLAND: (-10.5, -16.0), cover.SAND: (-18.0, -26.0), cover.ROCK: (-11.0, -19.0), cover.SNOW: (-14.0, -20.0),
}  # fmt: skip
"""sigma0 of VV and VH at `REFERENCE_ANGLE`, dB, by class."""


@dataclass(frozen=True)
class RadarGrid:
    """Lines and pixels of an image on the UTM plane of the ground; whole numbers are the middles of pixels.

    Attributes:
        shape: lines and pixels.
        epsg: code of the UTM zone.
        origin: easting and northing of line 0, pixel 0 before the bend.
        along: east and north from one line to the next, m.
        across: east and north from one pixel to the next, m.
        heading: of the platform, deg clockwise from grid north.
    """

    shape: tuple[int, int]
    epsg: int
    origin: tuple[float, float]
    along: tuple[float, float]
    across: tuple[float, float]
    heading: float

    def place(self, line: FloatArray, pixel: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Easting and northing of positions in the image."""
        outward = 2 * pixel / max(self.shape[1] - 1, 1) - 1
        bent = line + _BEND / SPACING * outward**2
        east, north = (self.origin[at] + self.along[at] * bent + self.across[at] * pixel for at in (0, 1))
        return np.asarray(east), np.asarray(north)

    def geographic(self, line: FloatArray, pixel: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Latitude and longitude of positions in the image, deg."""
        east, north = self.place(line, pixel)
        longitude, latitude = transform(f"EPSG:{self.epsg}", "EPSG:4326", east.ravel().tolist(), north.ravel().tolist())
        return np.reshape(latitude, line.shape), np.reshape(longitude, line.shape)

    def incidence(self, pixel: FloatArray) -> FloatArray:
        """Angle of incidence on the ellipsoid, deg."""
        return np.asarray(REFERENCE_ANGLE + ANGLE_STEP * (pixel - self.shape[1] / 2))


def radar_grid(ground: Ground, direction: str) -> RadarGrid:
    """The image that covers the ground's grid on an `ascending` or `descending` pass, looking to the right."""
    swath = ground.swath
    high, wide = swath.shape[0] * PIXEL, swath.shape[1] * PIXEL
    heading = np.radians(_HEADINGS[direction])
    sin, cos = float(np.sin(heading)), float(np.cos(heading))
    lines = int(np.ceil((high * abs(cos) + wide * abs(sin) + 2 * _BEND) / SPACING)) + 2 * _MARGIN
    pixels = int(np.ceil((wide * abs(cos) + high * abs(sin)) / SPACING)) + 2 * _MARGIN
    along, across = (SPACING * sin, SPACING * cos), (SPACING * cos, -SPACING * sin)
    middle = swath.easting + wide / 2, swath.northing - high / 2
    east, north = (middle[at] - along[at] * (lines - 1) / 2 - across[at] * (pixels - 1) / 2 for at in (0, 1))
    return RadarGrid((lines, pixels), swath.epsg, (east, north), along, across, _HEADINGS[direction])


@dataclass(frozen=True, eq=False)
class Scattering:
    """What the ground scatters back.

    Attributes:
        ground: what lies there.
        grid: of the image.
        shift: east and north, m, by which the image is displaced against the ground.
        table: sigma0 at `REFERENCE_ANGLE` by polarisation and code of a cell, linear.
    """

    ground: Ground
    grid: RadarGrid
    shift: tuple[float, float]
    table: FloatArray

    def lines(self, first: int, last: int) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
        """sigma0 `(polarisation, line, pixel)` of lines, linear and without speckle, NaN beyond the ground; classes."""
        swath, landscape = self.ground.swath, self.ground.surface.landscape
        places = np.arange(first, last, dtype=float), np.arange(self.grid.shape[1], dtype=float)
        line, pixel = np.meshgrid(*places, indexing="ij")
        east, north = self.grid.place(line, pixel)
        y = (swath.northing - north + self.shift[1]) / PIXEL
        x = (east - self.shift[0] - swath.easting) / PIXEL
        inside = (y >= 0) & (y < swath.shape[0]) & (x >= 0) & (x < swath.shape[1])
        code = landscape.codes(np.where(inside, y, 0), np.where(inside, x, 0))
        turned = np.cos(np.radians(self.grid.incidence(pixel))) / np.cos(np.radians(REFERENCE_ANGLE))
        return np.where(inside, self.table[:, code] * turned, np.nan), np.where(inside, code // VARIANTS, 0).astype(
            np.uint8
        )


def scattering_table(seed: int) -> FloatArray:
    """sigma0 of VV and VH by code of a cell: that of its class, and a little more or less for each variant."""
    rng = np.random.default_rng([seed, 51])
    decibels = np.full((2, (max(CLASSES) + 1) * VARIANTS), -99.0)
    for code, values in BACKSCATTER.items():
        spread = rng.normal(0, _SPREAD, VARIANTS) * (code != cover.WATER)
        decibels[:, code * VARIANTS : (code + 1) * VARIANTS] = np.array(values)[:, None] + spread
    return np.asarray(10 ** (decibels / 10))
