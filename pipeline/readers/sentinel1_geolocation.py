"""From the ground to a radar image: the geolocation grid of a GRD product, and its inverse on any map grid.

The annotation says at some 200 points which line and pixel saw which place, at the height of the ground there. Between
them a place is a smooth function of line, pixel and height (polynomials, by least squares) plus what that leaves at the
points, bilinear. So the points are met exactly, and the curvature of the track between them is kept, which a bilinear
grid alone would cut off. There is no elevation model: what stands higher or lower than the heights between the points
lies displaced across the track, by about its height over the tangent of the incidence angle.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError
from cubeloom.pipeline.grids import Shape, Window

FloatArray = npt.NDArray[np.float64]

NODE = 16
"""Distance, px, of the nodes at which the inverse is solved; between them it is bilinear."""
_STEPS = 4
"""Of Newton's method, from an affine start: three reach a thousandth of a pixel in the Alps."""
_SIDE = 200_000
"""Most px along a side of a map grid."""
_DEGREE = 3
_HEIGHT_TERMS = ((0, 0), (1, 0), (0, 1))
"""Powers of line and pixel with which the displacement by height varies."""


@dataclass(frozen=True, eq=False)
class GeolocationGrid:
    """The points of the annotation as layers `(line, pixel)`.

    Attributes:
        lines: of the points, ascending.
        pixels: of the points, ascending.
        latitude: degrees.
        longitude: degrees, without a step where the image lies across the antimeridian.
        height: above the ellipsoid, m.
        incidence: angle of incidence on the ellipsoid, degrees.
        shape: lines and pixels of the image.
    """

    lines: FloatArray
    pixels: FloatArray
    latitude: FloatArray
    longitude: FloatArray
    height: FloatArray
    incidence: FloatArray
    shape: Shape

    @classmethod
    def from_points(cls, points: FloatArray, shape: Shape, origin: str) -> "GeolocationGrid":
        """The grid of points `(n, 6)`: line, pixel, latitude, longitude, height, incidence angle.

        Raises:
            InputError: the points make no grid, or do not lie on the Earth.
        """
        lines, pixels = np.unique(points[:, 0]), np.unique(points[:, 1])
        if min(lines.size, pixels.size) < 2 or lines.size * pixels.size != len(points):
            raise InputError(
                f"{origin}: the {len(points)} points of the geolocation grid are not those of lines x pixels"
            )
        if (
            (np.abs(points[:, 2]) > 90).any()
            or (np.abs(points[:, 3]) > 360).any()
            or (np.abs(points[:, 4]) > 1e5).any()
        ):
            raise InputError(f"{origin}: points of the geolocation grid do not lie on the Earth")
        ordered = points[np.lexsort((points[:, 1], points[:, 0]))].reshape(lines.size, pixels.size, 6)
        if not ((ordered[..., 0] == lines[:, None]) & (ordered[..., 1] == pixels)).all():
            raise InputError(f"{origin}: points of the geolocation grid are there twice, and others are missing")
        latitude, longitude, height, incidence = np.moveaxis(ordered[..., 2:], -1, 0)
        longitude = longitude[0, 0] + (longitude - longitude[0, 0] + 180) % 360 - 180
        return cls(lines, pixels, latitude, longitude, height, incidence, shape)

    @property
    def centre(self) -> tuple[float, float]:
        """Latitude and longitude of the middle, degrees; longitude from -180 to below 180."""
        return float(self.latitude.mean()), float((self.longitude.mean() + 180) % 360 - 180)

    def at(self, layer: FloatArray, line: FloatArray, pixel: FloatArray) -> FloatArray:
        """Bilinear values of a layer; outside the points its border cells go on."""
        row, down = _cell(self.lines, line)
        col, right = _cell(self.pixels, pixel)
        upper = layer[row, col] + (layer[row, col + 1] - layer[row, col]) * right
        lower = layer[row + 1, col] + (layer[row + 1, col + 1] - layer[row + 1, col]) * right
        return np.asarray(upper + (lower - upper) * down)


def _cell(places: FloatArray, wanted: FloatArray) -> tuple[npt.NDArray[np.intp], FloatArray]:
    at = np.clip(np.searchsorted(places, wanted, side="right") - 1, 0, places.size - 2)
    return at, np.asarray((wanted - places[at]) / (places[at + 1] - places[at]))


def map_crs(grid: GeolocationGrid) -> str:
    """The UTM zone of an image's middle; beyond 84 deg north and 80 deg south the polar stereographic of UPS."""
    latitude, longitude = grid.centre
    if latitude > 84 or latitude < -80:
        return "EPSG:32661" if latitude > 0 else "EPSG:32761"
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1}"


@dataclass(frozen=True, eq=False)
class MapModel:
    """Where the pixels of an image lie on a map.

    Attributes:
        points: the geolocation grid.
        terms: weights of the polynomials `(2, terms)` for x and y.
        powers: of line, pixel and height in each term.
        left: what the polynomials leave at the points `(2, line, pixel)`.
        start: affine from (x - x0, y - y0) to line and pixel, to begin the inverse with.
        origin: x0, y0.
    """

    points: GeolocationGrid
    terms: FloatArray
    powers: tuple[tuple[int, int, int], ...]
    left: FloatArray
    start: FloatArray
    origin: FloatArray

    @classmethod
    def fit(cls, points: GeolocationGrid, crs: str, origin: str) -> "MapModel":
        """Fit a grid's points on a map.

        Raises:
            InputError: the map does not show them, or they lie on a line.
        """
        places = _on_map(points, crs, origin)
        line, pixel = np.meshgrid(points.lines, points.pixels, indexing="ij")
        powers = _powers(line.shape, points.height)
        centre = places.mean(axis=(1, 2))
        design = np.stack(_terms(points.shape, powers, line, pixel, points.height), axis=-1)
        flat, aims = design.reshape(-1, len(powers)), (places - centre[:, None, None]).reshape(2, -1)
        terms = np.linalg.lstsq(flat, aims.T, rcond=1e-12)[0].T
        left = aims - np.stack([(flat * row).sum(axis=1) for row in terms])
        affine = np.stack([*aims, np.ones(aims.shape[1])], axis=1)
        start = np.linalg.lstsq(affine, np.stack([line.ravel(), pixel.ravel()], axis=1), rcond=None)[0]
        if abs(np.linalg.det(start[:2])) == 0 or not np.isfinite(terms).all():
            raise InputError(
                f"{origin}: the points of the geolocation grid lie on a line, so that nothing can be mapped"
            )
        return cls(points, terms, powers, left.reshape(2, *line.shape), start, centre)

    def forward(self, line: FloatArray, pixel: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Map coordinates of image positions; whole numbers are the middles of pixels."""
        height = self.points.at(self.points.height, line, pixel)
        x, y = (self.points.at(left, line, pixel) for left in self.left)
        for number, term in enumerate(_terms(self.points.shape, self.powers, line, pixel, height)):
            x, y = x + self.terms[0, number] * term, y + self.terms[1, number] * term
        return x + self.origin[0], y + self.origin[1]

    def inverse(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Image positions (line, pixel) of map coordinates, by Newton's method; far outside they only say "outside"."""
        dx, dy = x - self.origin[0], y - self.origin[1]
        line, pixel = (self.start[0, at] * dx + self.start[1, at] * dy + self.start[2, at] for at in (0, 1))
        for _ in range(_STEPS):
            line, pixel = self._near(line, pixel)
            found_x, found_y = self.forward(line, pixel)
            down_x, down_y = (b - a for a, b in zip((found_x, found_y), self.forward(line + 1, pixel), strict=True))
            right_x, right_y = (b - a for a, b in zip((found_x, found_y), self.forward(line, pixel + 1), strict=True))
            determinant = down_x * right_y - right_x * down_y
            miss_x, miss_y = x - found_x, y - found_y
            with np.errstate(divide="ignore", invalid="ignore"):
                line = line + (miss_x * right_y - miss_y * right_x) / determinant
                pixel = pixel + (miss_y * down_x - miss_x * down_y) / determinant
        return self._near(line, pixel)

    def _near(self, line: FloatArray, pixel: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions no further outside than half an image: beyond, polynomials make no sense."""
        height, width = self.points.shape
        near = np.clip(np.nan_to_num(line, nan=-height), -height / 2 - 2, 1.5 * height + 2)
        return near, np.clip(np.nan_to_num(pixel, nan=-width), -width / 2 - 2, 1.5 * width + 2)


def _on_map(points: GeolocationGrid, crs: str, origin: str) -> FloatArray:
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        x, y = transform("EPSG:4326", crs, points.longitude.ravel().tolist(), points.latitude.ravel().tolist())
    except RasterioError as error:
        raise InputError(f"{origin}: cannot be brought to {crs} ({error}); choose another crs") from None
    places = np.array([x, y]).reshape(2, *points.latitude.shape)
    if not np.isfinite(places).all():
        raise InputError(f"{origin}: {crs} cannot show the scene at {points.centre}; choose another crs")
    if _is_geographic(crs):  # degrees go on across the antimeridian
        places[0] = places[0, 0, 0] + (places[0] - places[0, 0, 0] + 180) % 360 - 180
    return places


def _is_geographic(crs: str) -> bool:
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(crs).is_geographic)


def _powers(shape: Shape, height: FloatArray) -> tuple[tuple[int, int, int], ...]:
    """Terms that so many points can bear: powers of line and pixel, then of the height with them where it varies."""
    degree = min(_DEGREE, min(shape) - 1)
    powers = [(row, col, 0) for row in range(degree + 1) for col in range(degree + 1 - row)]
    if degree == _DEGREE and shape[0] * shape[1] > 40 and float(np.ptp(height)) > 1:
        powers += [(row, col, 1) for row, col in _HEIGHT_TERMS]
    return tuple(powers)


def _terms(
    shape: Shape, powers: tuple[tuple[int, int, int], ...], line: FloatArray, pixel: FloatArray, height: FloatArray
) -> list[FloatArray]:
    """Terms of the polynomial; line and pixel run from -1 to 1 over the image, height is in km."""
    down, right = _powers_of(2 * line / shape[0] - 1), _powers_of(2 * pixel / shape[1] - 1)
    high = _powers_of(height / 1000)
    return [down[row] * right[col] * high[up] for row, col, up in powers]


def _powers_of(base: FloatArray) -> list[FloatArray]:
    """The powers 0 to `_DEGREE`, each from the one before."""
    found = [np.ones_like(base)]
    for _ in range(_DEGREE):
        found.append(found[-1] * base)
    return found


@dataclass(frozen=True, eq=False)
class Geocoding:
    """A map grid over a radar image.

    Attributes:
        grid: of the map.
        model: where the image's pixels lie on it.
        finer: how many times finer along each side the image is sampled; what lies in a map pixel is averaged.
    """

    grid: GeoBox
    model: MapModel
    finer: int = 1

    def positions(self, window: Window) -> tuple[FloatArray, FloatArray]:
        """Line and pixel `(y, x)` of the middles of the samples of a window of the grid `finer` times finer.

        They depend on the sample alone: the nodes lie on a lattice of the whole grid.
        """
        (row, down), (col, right) = _nodes(window.row, window.height), _nodes(window.col, window.width)
        place, step = self.grid.transform, NODE / self.finer
        x = place.c + place.a * step * np.arange(col[0], col[-1] + 2)
        y = place.f + place.e * step * np.arange(row[0], row[-1] + 2)
        shape = y.size, x.size
        at_nodes = self.model.inverse(
            np.broadcast_to(x, shape).astype(float), np.broadcast_to(y[:, None], shape).astype(float)
        )
        row, col, down = row - row[0], col - col[0], down[:, None]
        found = []
        for nodes in at_nodes:
            along = nodes[:, col] + (nodes[:, col + 1] - nodes[:, col]) * right
            found.append(along[row] + (along[row + 1] - along[row]) * down)
        return found[0], found[1]


def _nodes(first: int, count: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Node before the middle of each sample, and the share of the way to the next."""
    place = (np.arange(first, first + count) + 0.5) / NODE
    before = np.floor(place).astype(np.intp)
    return before, place - before


def map_grid(model: MapModel, crs: str, resolution: float, origin: str) -> GeoBox:
    """The map grid that holds an image: north up, corners on multiples of the resolution.

    Raises:
        InputError: it would have more px than make sense.
    """
    height, width = model.points.shape
    line, pixel = np.linspace(-0.5, height - 0.5, 65), np.linspace(-0.5, width - 0.5, 65)
    lines = np.concatenate([line, line, np.full(65, line[0]), np.full(65, line[-1])])
    pixels = np.concatenate([np.full(65, pixel[0]), np.full(65, pixel[-1]), pixel, pixel])
    x, y = model.forward(lines, pixels)
    left, right = np.floor(x.min() / resolution), np.ceil(x.max() / resolution)
    bottom, top = np.floor(y.min() / resolution), np.ceil(y.max() / resolution)
    rows, cols = top - bottom, right - left
    if not (1 <= rows <= _SIDE and 1 <= cols <= _SIDE):
        raise InputError(
            f"{origin}: the scene would have {rows:.0f} x {cols:.0f} px at a resolution of {resolution:g}; at most "
            f"{_SIDE:,} along a side are read"
        )
    return GeoBox(
        (int(rows), int(cols)), Affine(resolution, 0, left * resolution, 0, -resolution, top * resolution), crs
    )
