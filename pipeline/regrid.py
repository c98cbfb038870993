"""A scene on the grid of another one, read window by window."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import floor

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError

from .degrade import NYQUIST
from .encoding import Array
from .grids import STATISTICS_BLOCK, Shape, Window, whole
from .readers.base import Source, values
from .regrid_kernels import Indices, Positions, Resampling, Taps, mix, pick, taps
from .scene import QUALITY_FLAGS, SceneSpec

Shift = tuple[float, float]
"""Down and right, px."""

NODE_STEP = 32
"""Px between the nodes at which one map projection is computed from another.

Between them it is taken as linear: over 320 m UTM zones bend by 2 mm against each other, over 1 km by 2 cm.
"""

SNAP = 2.0**20
"""Positions are rounded to this fraction of a pixel, so that pixels which fall together are copied as they are."""


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a target grid lie on a source grid; both have a CRS."""

    target: GeoBox
    source: GeoBox

    @cached_property
    def separable(self) -> bool:
        """Whether rows depend on rows alone and columns on columns."""
        axes = (self.target.affine, self.source.affine)
        return self.target.crs == self.source.crs and all(axis.b == 0 == axis.d for axis in axes)

    @cached_property
    def footprint(self) -> tuple[float, float]:
        """Height and width of a target pixel in the middle of the grid, px of the source."""
        height, width = self.target.shape
        middle = np.array([height / 2, height / 2 + 1, height / 2]), np.array([width / 2, width / 2, width / 2 + 1])
        rows, cols = self._exact(*middle)
        return (
            float(np.hypot(rows[1] - rows[0], cols[1] - cols[0])),
            float(np.hypot(rows[2] - rows[0], cols[2] - cols[0])),
        )

    def positions(self, window: Window, shift: Shift = (0.0, 0.0)) -> tuple[Positions, Positions]:
        """Rows and columns of the source, 0 in the middle of its first pixel, at which a window's pixels lie.

        Both `(y,)` and `(x,)` where the grids are separable, else both `(y, x)`. A pixel's numbers are the same in
        every window.

        Args:
            window: of the target grid.
            shift: how far down and right of each pixel to look, px of the target grid.
        """
        down = np.arange(window.row, window.stop[0], dtype=np.float64) + (0.5 + shift[0])
        right = np.arange(window.col, window.stop[1], dtype=np.float64) + (0.5 + shift[1])
        if self.separable:
            rows, _ = self._exact(down, np.zeros_like(down))
            _, cols = self._exact(np.zeros_like(right), right)
            return _snapped(rows), _snapped(cols)
        return self._between_nodes(down, right)

    def _between_nodes(self, down: Positions, right: Positions) -> tuple[Positions, Positions]:
        row_node, col_node = np.floor(down / NODE_STEP).astype(int), np.floor(right / NODE_STEP).astype(int)
        row_share, col_share = down / NODE_STEP - row_node, right / NODE_STEP - col_node
        y = np.arange(row_node[0], row_node[-1] + 2) * float(NODE_STEP)
        x = np.arange(col_node[0], col_node[-1] + 2) * float(NODE_STEP)
        grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
        at = row_node - row_node[0], col_node - col_node[0]
        rows, cols = (
            _snapped(_bilinear(found.reshape(grid_y.shape), at, row_share, col_share))
            for found in self._exact(grid_y.ravel(), grid_x.ravel())
        )
        return rows, cols

    def _exact(self, y: Positions, x: Positions) -> tuple[Positions, Positions]:
        """Rows and columns of the source at points of the target grid, px from its corner; infinite where off map."""
        east, north = _mapped(self.target.affine, x, y)
        ours, theirs = self.target.crs, self.source.crs
        if ours and theirs and ours != theirs:
            from rasterio.warp import transform

            found = transform(ours.to_wkt(), theirs.to_wkt(), east.tolist(), north.tolist())
            east, north = np.array(found[0]), np.array(found[1])
        cols, rows = _mapped(~self.source.affine, east, north)
        return rows - 0.5, cols - 0.5


def _mapped(affine: Affine, x: Positions, y: Positions) -> tuple[Positions, Positions]:
    return x * affine.a + y * affine.b + affine.c, x * affine.d + y * affine.e + affine.f


def _snapped(positions: Positions) -> Positions:
    return np.asarray(np.rint(positions * SNAP) / SNAP)


def _bilinear(
    nodes: Positions, at: tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]], row_share: Positions, col_share: Positions
) -> Positions:
    rows, cols = at[0][:, None], at[1]
    low = nodes[rows, cols] * (1 - col_share) + nodes[rows, cols + 1] * col_share
    high = nodes[rows + 1, cols] * (1 - col_share) + nodes[rows + 1, cols + 1] * col_share
    return np.asarray(low * (1 - row_share[:, None]) + high * row_share[:, None])


@dataclass(frozen=True, eq=False)
class RegriddedSource:
    """A Source over another one, on another grid, window by window.

    Cubes of numbers are resampled; of flags, classes and masks the nearest pixel is taken. Beyond the source there is
    no value: NaN, `background`, False, 0. A pixel is the same whatever window it is read in.

    Attributes:
        source: what is read.
        grid: where to.
        resampling: of cubes of numbers.
        scale: how many times finer than its scene's grid `grid` is.
        shift: how far down and right of each pixel the source is looked at, px of `grid`.
        mtf: modulation transfer of the source's sensor at its Nyquist frequency, for `restored`.
    """

    source: Source
    grid: GeoBox
    resampling: Resampling
    scale: int = 1
    shift: Shift = (0.0, 0.0)
    mtf: float = NYQUIST

    def shifted(self, shift: Shift) -> "RegriddedSource":
        """The same, looked at `shift` (down, right; px of the scene's grid) further."""
        down, right = (offset * self.scale for offset in shift)
        return replace(self, shift=(self.shift[0] + down, self.shift[1] + right)) if shift != (0.0, 0.0) else self

    @cached_property
    def placement(self) -> Placement:
        """Where the grid's pixels lie on the source's."""
        return Placement(self.grid, self.source.spec.grid)

    @cached_property
    def spec(self) -> SceneSpec:
        """The source's Scene, on the grid."""
        spec = self.source.spec
        how = f"{self.resampling} from a transfer of {self.mtf:g}" if self.resampling == "restored" else self.resampling
        line = f"regridded to {self.grid.shape[0]} x {self.grid.shape[1]} px, {how}"
        return replace(spec, grid=self.grid, scale=self.scale, history=(*spec.history, line))

    @property
    def block_shape(self) -> Shape:
        """Windows over those in which stages look at a scene."""
        return STATISTICS_BLOCK * self.scale, STATISTICS_BLOCK * self.scale

    @property
    def exact(self) -> bool:
        """False: resampling makes any number."""
        return False

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array:
        """Pixels of one variable over a window of the grid."""
        numbers = np.issubdtype(self.spec.variables[name].encoding.decoded_dtype, np.floating)
        resampling: Resampling = self.resampling if numbers else "nearest"
        positions = self.placement.positions(window, self.shift)
        rows, cols = (
            taps(position, resampling, length, self.mtf)
            for position, length in zip(positions, self.placement.footprint, strict=True)
        )
        held, rows, cols = self._held(name, rows, cols, bands)
        if resampling == "nearest":
            return pick(held, rows.first, cols.first)
        layers = held.reshape(-1, *held.shape[-2:])
        made = mix(layers, rows, cols)
        return made.reshape(*held.shape[:-2], *window.shape)

    def _held(self, name: str, rows: Taps, cols: Taps, bands: slice | None) -> tuple[Array, Taps, Taps]:
        """Every pixel that the taps lie on, "no value" beyond the source, and the taps counted from its corner."""
        (top, bottom, rows), (left, right, cols) = (
            _bounded(axis, size) for axis, size in zip((rows, cols), self.source.spec.shape, strict=True)
        )
        inner = whole(self.source.spec.shape)
        there = Window(max(top, 0), max(left, 0), min(bottom, inner.height), min(right, inner.width))
        there = Window(there.row, there.col, there.height - there.row, there.width - there.col)
        leading = self.source.spec.sizes(name)[:-2]
        if leading and bands is not None:
            leading = (len(range(*bands.indices(leading[0]))), *leading[1:])
        dtype = self.spec.variables[name].encoding.decoded_dtype
        held = np.full((*leading, bottom - top, right - left), self._nothing(name), dtype)
        if there.height > 0 and there.width > 0:
            inside = Window(there.row - top, there.col - left, *there.shape)
            held[(..., *inside.slices)] = values(self.source.read(name, there, bands))
        return held, rows, cols

    def _nothing(self, name: str) -> float | int:
        """What stands for "no value" of a variable."""
        if name == "quality":
            return QUALITY_FLAGS["background"]
        encoding = self.spec.variables[name].encoding
        return float("nan") if np.issubdtype(encoding.decoded_dtype, np.floating) else encoding.fill or 0

    def work_bytes(self, pixels: int) -> int:
        """Memory that reading so many pixels takes beside what it gives: the source's pixels, and one layer's taps."""
        beneath = self.placement.footprint[0] * self.placement.footprint[1] * pixels
        spec = self.source.spec
        most = max(int(np.prod(spec.sizes(name)[:-2])) for name in spec.variables)
        return int(beneath * 4 * 2 * (most + 1) + 16 * 8 * pixels)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


def _bounded(axis: Taps, size: int) -> tuple[int, int, Taps]:
    """First and one past the last pixel that taps lie on, and the taps from there; far ones are brought close."""
    count = len(axis.weights)
    first: Indices = np.clip(axis.first, -count, size)
    low, high = int(first.min()), int(first.max()) + count
    return low, high, Taps(first - low, axis.weights)


def regridded(
    source: Source,
    scene: SceneSpec,
    refine: int | None = None,
    resampling: Resampling | None = None,
    mtf: float = NYQUIST,
) -> RegriddedSource:
    """A source on the grid of a scene.

    Args:
        source: what is regridded.
        scene: whose grid is taken.
        refine: how many times finer than the scene's the grid shall be; by default as many as the source's pixels are
            smaller, rounded, at least 1.
        resampling: of cubes of numbers; by default `average` where the grid is coarser than the source, else `cubic`.
        mtf: modulation transfer of the source's sensor at its Nyquist frequency, for `restored`.

    Raises:
        InputError: one of the two has no map projection.
    """
    for spec in (scene, source.spec):
        if spec.grid.crs is None:
            raise InputError(
                f"{spec.scene_id}: is in sensor geometry, without a map projection, so nothing can be put on its grid "
                "or brought from it to another; take a geocoded level"
            )
    finer = Placement(scene.grid, source.spec.grid).footprint
    per_pixel = (finer[0] * finer[1]) ** 0.5
    refine = refine or max(floor(per_pixel + 0.5), 1)
    coarser = per_pixel / refine > COARSER
    return RegriddedSource(
        source, refined(scene.grid, refine), resampling or ("average" if coarser else "cubic"), refine, mtf=mtf
    )


COARSER = 1.25
"""From so many source pixels along the edge of a target pixel on, these are averaged."""


def centre_lonlat(grid: GeoBox, window: Window) -> tuple[float, float] | None:
    """Longitude and latitude, degrees, of the middle of a window of a grid; None where it has no map projection."""
    if grid.crs is None:
        return None
    from rasterio.warp import transform

    east, north = grid.affine * (window.col + window.width / 2, window.row + window.height / 2)
    lon, lat = transform(grid.crs.to_wkt(), "EPSG:4326", [east], [north])
    return float(lon[0]), float(lat[0])


def refined(grid: GeoBox, scale: int) -> GeoBox:
    """The grid with pixels `scale` times smaller and the same corner; pixel numbers where there is no CRS."""
    shape = (grid.shape[0] * scale, grid.shape[1] * scale)
    if grid.crs is None:
        return GeoBox(shape, Affine.identity(), None)
    a, b, c, d, e, f = tuple(grid.affine)[:6]
    return GeoBox(shape, Affine(a / scale, b / scale, c, d / scale, e / scale, f), grid.crs)
