"""One scene as its detectors see it: pure functions from a line of a product to the values of its pixels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import cover, landscape
from .atmosphere import Transfer, transfer
from .bands import BandTable
from .geometry import Swath, swath_in_raster, swath_of_sensor
from .options import Options, Site
from .sensor import Sensor, draw_sensor
from .styles import STYLES
from .surface import Materials, Surface, draw_directions, materials
from .weather import Weather, WeatherSpectra, draw_weather, veil, weather_spectra

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
Any2D = npt.NDArray[np.generic]

SWIR_SHIFT = (20.3, 0.4)
"""Lines along and columns across track by which the SWIR detector looks ahead of the VNIR detector in L1B."""
_L1B_MARGIN = 26
_LEAST_SLOPE = 0.03
"""Least gas transmittance by which atmospheric correction divides; below, noise would be all there is."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What all cubes of a product look at."""

    swath: Swath
    surface: Surface
    weather: Weather


def build_ground(options: Options, site: Site) -> Ground:
    """Lay out swath, landscape and weather of a scene."""
    if options.level == "L1B":
        swath = swath_of_sensor(options.height, options.width, site.angle, site.place, _L1B_MARGIN)
    else:
        swath = swath_in_raster((options.height, options.width), site.angle, site.place)
    style = STYLES[options.landscape]
    sun = site.sky.sun_zenith, site.sky.sun_azimuth
    rng = np.random.default_rng([options.seed, 3])
    palette = cover.draw_palette(rng, site.season, style.soils, style.sediment)
    surface = Surface(
        landscape.build(options.seed, swath.shape, style, site.season, sun), palette, draw_directions(rng)
    )
    weather = draw_weather(np.random.default_rng([options.seed, 4]), swath.inside(), options.clouds, sun)
    return Ground(swath, surface, weather)


@dataclass(frozen=True, eq=False)
class Line:
    """The pixels of one raster line that the swath covers.

    Attributes:
        at: their columns in the raster.
        y: position on the ground grid, px.
        x: position on the ground grid, px.
        element: sensor column that saw each.
    """

    at: IndexArray
    y: Float32Array
    x: Float32Array
    element: IndexArray


@dataclass(frozen=True, eq=False)
class Cube:
    """One spectral cube of a product, ready to be computed line by line.

    Attributes:
        suffix: of its files: empty, `_VNIR` or `_SWIR`.
        positions: of its bands on the merged axis.
        table: its bands.
        reflectance: whether its values are reflectance (L2A) or radiance.
        sensor_geometry: whether its raster is lines and columns of the detector (L1B).
        shift: lines and columns by which it looks ahead.
        seed: keys the noise.
    """

    suffix: str
    positions: IndexArray
    table: BandTable
    ground: Ground
    reflectance: bool
    sensor_geometry: bool
    shift: tuple[float, float]
    transfer: Transfer
    sensor: Sensor
    spectra: Materials
    look: WeatherSpectra
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the raster, px."""
        swath = self.ground.swath
        return (swath.lines, swath.columns) if self.sensor_geometry else swath.shape

    def line(self, number: int) -> Line:
        """Where the pixels of a raster line lie."""
        swath = self.ground.swath
        columns = np.arange(self.shape[1])
        if self.sensor_geometry:
            y, x = swath.to_ground(number + 0.5 + self.shift[0], columns + 0.5 + self.shift[1])
            return Line(columns, y.astype(np.float32), x.astype(np.float32), columns)
        line, element = swath.to_sensor(number + 0.5, columns + 0.5)
        at = np.flatnonzero((line >= 0) & (line < swath.lines) & (element >= 0) & (element < swath.columns))
        y = np.full(at.size, number + 0.5, np.float32)
        return Line(at, y, (at + 0.5).astype(np.float32), np.floor(element[at]).astype(np.intp))

    def values(self, number: int) -> tuple[Line, Float32Array, Float32Array, BoolArray]:
        """A raster line: its pixels, measured and clean values `(n, band)`, and which are defective.

        A line depends on its number alone: the noise is keyed by it, so lines may be computed in any order and in
        blocks of any height.
        """
        line = self.line(number)
        reflectance = self.ground.surface.reflectance(line.y, line.x, self.spectra)
        at = np.floor(line.y).astype(np.intp), np.floor(line.x).astype(np.intp)
        veil(reflectance, self.ground.weather, at, self.look)
        radiance = reflectance * self.transfer.slope + self.transfer.path
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        measured, defective = self.sensor.measure(radiance, line.element, rng)
        if self.reflectance:
            measured -= self.transfer.path
            measured /= self.transfer.slope
            return line, measured, reflectance, defective
        return line, measured, radiance, defective

    def map(self, layer: Any2D, background: int) -> Any2D:
        """A layer of the ground grid on this cube's raster, `background` outside the swath."""
        mapped = np.full(self.shape, background, layer.dtype)
        for number in range(self.shape[0]):
            line = self.line(number)
            mapped[number, line.at] = layer[np.floor(line.y).astype(np.intp), np.floor(line.x).astype(np.intp)]
        return mapped

    def flags(self) -> npt.NDArray[np.uint8]:
        """The test flags: interpolated (bit 2 SWIR, 3 VNIR) and wrong (6, 7) elements of each pixel's column."""
        column = np.zeros(self.sensor.dead.shape[0], np.uint8)
        for detector, mended, wrong in (("swir", 1 << 2, 1 << 6), ("vnir", 1 << 3, 1 << 7)):
            of = self.table.of(detector)
            dead, stuck = self.sensor.dead[:, of], self.sensor.stuck[:, of]
            column[(dead & ~stuck).any(axis=1)] |= mended
            column[stuck.any(axis=1)] |= wrong
        flags = np.zeros(self.shape, np.uint8)
        for number in range(self.shape[0]):
            line = self.line(number)
            flags[number, line.at] = column[line.element]
        return flags


def build_cubes(options: Options, site: Site, ground: Ground) -> list[Cube]:
    """The cubes of a product: one for L1C and L2A, one a detector for L1B."""
    table = options.bands
    if options.level != "L1B":
        return [_cube(options, site, ground, "", np.arange(len(table)), (0.0, 0.0))]
    shifts = {"vnir": (0.0, 0.0), "swir": SWIR_SHIFT}
    return [
        _cube(options, site, ground, f"_{detector.upper()}", table.of(detector), shift)
        for detector, shift in shifts.items()
        if table.of(detector).size
    ]


def _cube(
    options: Options, site: Site, ground: Ground, suffix: str, positions: IndexArray, shift: tuple[float, float]
) -> Cube:
    table = options.bands.take(positions)
    light = transfer(site.sky, table)
    if options.level == "L2A":
        slope = np.maximum(light.slope, _LEAST_SLOPE * light.continuum)
        light = Transfer(slope, light.path, light.continuum, light.diffuse)
    salt = 5 + int(positions[0])
    scale = {"noise": options.noise, "stripes": options.stripes, "dead_pixels": options.dead_pixels}
    return Cube(
        suffix=suffix,
        positions=positions,
        table=table,
        ground=ground,
        reflectance=options.level == "L2A",
        sensor_geometry=options.level == "L1B",
        shift=shift,
        transfer=light,
        sensor=draw_sensor(np.random.default_rng([options.seed, salt]), table, light, ground.swath.columns, **scale),
        spectra=materials(table),
        look=weather_spectra(table, light.diffuse),
        seed=int(np.random.default_rng([options.seed, salt, 1]).integers(2**63)),
    )
