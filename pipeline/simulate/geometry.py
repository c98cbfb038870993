"""The swath on the ground: a rotated rectangle of sensor pixels on a UTM grid, and the RPC that describe it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.warp import transform as reproject

from .landscape import PIXEL

FloatArray = npt.NDArray[np.float64]
CORNERS = {"upper_left": (0.0, 0.0), "upper_right": (0.0, 1.0), "lower_right": (1.0, 1.0), "lower_left": (1.0, 0.0),
           "center": (0.5, 0.5)}  # fmt: skip
"""Corners as shares of the swath's lines and columns."""


@dataclass(frozen=True)
class Swath:
    """Sensor lines and columns on the pixels of a UTM grid.

    Attributes:
        shape: height and width of the ground grid, px.
        lines: sensor lines, along track.
        columns: sensor columns, across track.
        angle: rotation of the swath on the grid, rad clockwise.
        epsg: code of the UTM zone.
        easting: left edge of the ground grid, m.
        northing: upper edge of the ground grid, m.
    """

    shape: tuple[int, int]
    lines: int
    columns: int
    angle: float
    epsg: int
    easting: float
    northing: float

    @property
    def transform(self) -> Affine:
        """Affine transform of the ground grid."""
        return Affine(PIXEL, 0, self.easting, 0, -PIXEL, self.northing)

    def to_sensor(self, y: Any, x: Any) -> tuple[Any, Any]:  # noqa: ANN401 - float or array
        """Line and column (0.5 is the middle of the first) of points (y, x) of the ground grid, px."""
        dy, dx = y - self.shape[0] / 2, x - self.shape[1] / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return dy * cos - dx * sin + self.lines / 2, dx * cos + dy * sin + self.columns / 2

    def to_ground(self, line: Any, column: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Points (y, x) of the ground grid, px, of sensor lines and columns."""
        dv, du = line - self.lines / 2, column - self.columns / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return dv * cos + du * sin + self.shape[0] / 2, du * cos - dv * sin + self.shape[1] / 2

    def inside(self) -> npt.NDArray[np.bool_]:
        """Pixels of the ground grid whose centres the swath covers, `(height, width)`."""
        y, x = np.ogrid[: self.shape[0], : self.shape[1]]
        line, column = self.to_sensor(y + 0.5, x + 0.5)
        return np.asarray((line >= 0) & (line < self.lines) & (column >= 0) & (column < self.columns))

    def geographic(self, line: Any, column: Any) -> tuple[FloatArray, FloatArray]:  # noqa: ANN401
        """Latitude and longitude, deg, of sensor lines and columns (arrays of one shape)."""
        y, x = (np.atleast_1d(np.asarray(part, float)) for part in self.to_ground(line, column))
        east, north = self.easting + x.ravel() * PIXEL, self.northing - y.ravel() * PIXEL
        lon, lat = reproject(f"EPSG:{self.epsg}", "EPSG:4326", east.tolist(), north.tolist())
        return np.asarray(lat, float), np.asarray(lon, float)

    @cached_property
    def corners(self) -> dict[str, tuple[float, float]]:
        """Latitude and longitude of each corner and of the centre, deg."""
        line, column = np.array(list(CORNERS.values())).T
        lat, lon = self.geographic(line * self.lines, column * self.columns)
        return {name: (float(a), float(b)) for name, a, b in zip(CORNERS, lat, lon, strict=True)}


def utm_zone(latitude: float, longitude: float) -> int:
    """EPSG code of the UTM zone of a place."""
    return (32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1


def swath_in_raster(shape: tuple[int, int], angle: float, place: tuple[float, float]) -> Swath:
    """The swath whose bounding box is a raster of `shape` (L1C, L2A); the angle shrinks where the raster is narrow."""
    height, width = shape
    angle = min(angle, 0.6 * float(np.arctan(min(height / width, width / height))))
    cos, sin, double = np.cos(angle), np.sin(angle), np.cos(2 * angle)
    lines = max(int((height * cos - width * sin) / double), 1)
    columns = max(int((width * cos - height * sin) / double), 1)
    return Swath(shape, lines, columns, angle, *_anchor(shape, place))


def swath_of_sensor(lines: int, columns: int, angle: float, place: tuple[float, float], margin: int) -> Swath:
    """A swath of given lines and columns (L1B) on a ground grid that holds it with `margin` px on every side."""
    cos, sin = np.cos(angle), np.sin(angle)
    shape = (
        int(np.ceil(lines * cos + columns * sin)) + 2 * margin,
        int(np.ceil(columns * cos + lines * sin)) + 2 * margin,
    )
    return Swath(shape, lines, columns, angle, *_anchor(shape, place))


def _anchor(shape: tuple[int, int], place: tuple[float, float]) -> tuple[int, float, float]:
    """UTM zone and upper left corner that put the grid's middle at a place; pixel edges lie at 15 m + n 30 m."""
    epsg = utm_zone(*place)
    (east,), (north,) = reproject("EPSG:4326", f"EPSG:{epsg}", [place[1]], [place[0]])
    left, top = east - shape[1] * PIXEL / 2, north + shape[0] * PIXEL / 2
    return epsg, round((left - 15) / PIXEL) * PIXEL + 15, round((top - 15) / PIXEL) * PIXEL + 15


Rpc = dict[str, float]


def rational_polynomials(swath: Swath, shift: tuple[float, float], height: float) -> Rpc:
    """RPC00B coefficients, by the names of the product's XML, from latitude and longitude to row and column.

    Row and column 0 are the middle of the first pixel. The ground is a plane at `height`, so the terms in height are
    0; the nine others up to the second order, and four of the third, are fitted.

    Args:
        swath: the swath.
        shift: lines and columns by which the detector looks further along and across track.
        height: mean height of the ground, m.
    """
    line, column = np.meshgrid(np.linspace(0, swath.lines, 25), np.linspace(0, swath.columns, 25), indexing="ij")
    lat, lon = swath.geographic(line + shift[0], column + shift[1])
    row, col = line.ravel() - 0.5, column.ravel() - 0.5
    rpc: Rpc = {}
    for name, values in (("ROW", row), ("COL", col), ("LAT", lat), ("LONG", lon)):
        rpc[f"{name}_OFF"] = float((values.max() + values.min()) / 2)
        rpc[f"{name}_SCALE"] = float((values.max() - values.min()) / 2) or 1.0
    rpc |= {"HEIGHT_OFF": height, "HEIGHT_SCALE": 1000.0}
    p = (lat - rpc["LAT_OFF"]) / rpc["LAT_SCALE"]
    q = (lon - rpc["LONG_OFF"]) / rpc["LONG_SCALE"]
    terms = {1: np.ones_like(p), 2: q, 3: p, 5: q * p, 8: q**2, 9: p**2, 12: q**3, 13: q * p**2, 15: q**2 * p, 16: p**3}
    design = np.stack(list(terms.values()), axis=1)
    for name, values in (("ROW", row), ("COL", col)):
        scaled = (values - rpc[f"{name}_OFF"]) / rpc[f"{name}_SCALE"]
        fitted = dict(zip(terms, np.linalg.lstsq(design, scaled, rcond=None)[0].tolist(), strict=True))
        rpc |= {f"{name}_NUM_{number:02d}": fitted.get(number, 0.0) for number in range(1, 21)}
        rpc |= {f"{name}_DEN_{number:02d}": float(number == 1) for number in range(1, 21)}
    return rpc
