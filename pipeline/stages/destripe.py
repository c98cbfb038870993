"""Column noise of pushbroom sensors: every detector element's own error, estimated from the whole scene."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, FloatArray, SceneSpec, cube_variable

from .base import Stage, Stats, register

_SEGMENT = 64
"""Length, px along track, of the pieces of a column that are taken as independent of each other."""

_LEAST_SEGMENTS = 2

_LEAST_FREEDOM = 2
"""Independent pieces of columns a band, below which how bands go together is not known and the landscape would pass for
errors: in simulated scenes of 150 px and 215 bands that made reflectance wrong by up to 0.03 on average. Such a scene
stays as it is."""

_CLIP = 1.5
"""Pixels whose deviation, over all bands, is larger than this many times the block's usual one count less."""

_DARK = 0.5
"""Pixels darker than this share of the block's usual level tell little of a gain."""

_SHARPENING = 4
"""Times that the stripes which the neighbours' mean holds are given back."""

_ITERATIONS = 30


@register("destripe")
class Destripe(Stage):
    """Take out what sets a detector column apart from its neighbours all along the scene, band by band.

    A pixel's deviation is its value less the mean of pixel pairs on both sides across track. Its mean along a column
    of the detector is the column's error and what the landscape leaves. How large that rest is, and how it goes
    together from band to band, is read off the scatter of pieces of the columns; errors have no such bond, and that
    tells the two apart (`split_errors`). An error is taken out only as far as it exceeds its standard error, so a
    scene without stripes stays as it is. Errors that vary slowly across track are left.

    Columns run along the image's columns in sensor geometry, and along the attribute `along_track_azimuth` (degrees
    clockwise from grid north) on a map grid. `destriped` is NaN at pixels that do not take part and in bands that are
    not good.

    Attributes:
        model: `gain`, an error in proportion to the signal, which is what calibration leaves most of; or `offset`,
            the same at every signal.
        reach: px across track on either side that a pixel is compared with.
        significance: standard errors below which a column's error is left alone.
    """

    work_cubes = 2.5

    model: Literal["gain", "offset"] = "gain"
    reach: int = Field(default=7, ge=2, le=32)
    significance: float = Field(default=1.5, ge=0, allow_inf_nan=False)

    @property
    def passes(self) -> int:
        """One: the sums over every column."""
        return 1

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `destriped` as its subject.

        Raises:
            InputError: `along_track_azimuth` is not a number.
        """
        columns = Columns.of(spec)
        units = str(spec.variables[spec.subject].attrs.get("units", "1"))
        destriped = cube_variable("destriped", long_name=f"destriped {spec.subject}", units=units)
        beyond = f"reach {self.reach} px, beyond {self.significance:g} sigma"
        line = f"destripe: {self.model} of columns along {columns.describe}, {beyond}"
        return spec.with_variables(history=line, subject="destriped", destriped=destriped)

    def halo(self, spec: SceneSpec) -> int:
        """The neighbours that a pixel is compared with."""
        return self.reach

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums of deviations by band and column, and the scatter of a column's segments."""
        columns = Columns.of(block.spec)
        gather = _Gather(columns, block.core)
        deviations, shares = _deviations(block, columns.axis, self.reach, self.model)
        weight = _weights(deviations, shares)
        parts = np.stack([gather(deviation * weight) for deviation in deviations])
        counts = np.stack([gather(share * weight) for share in shares])
        common = counts.max(axis=0)
        flat = parts.reshape(parts.shape[0], -1)
        return {
            "total": parts.sum(axis=1),
            "count": counts.sum(axis=1),
            "products": flat @ flat.T,
            "cross": (parts * common).sum(axis=1),
            "square": (common**2).sum(axis=0),
            "segments": (common > 0).sum(axis=0),
        }

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The errors to take out, `(good band, column)`; none where the scene is too small to tell them."""
        columns = Columns.of(spec)
        mean = _ratio(sums["total"], sums["count"])
        weight = np.where(sums["segments"] >= _LEAST_SEGMENTS, sums["count"].max(axis=0), 0.0)
        pieces = sums["segments"][weight > 0]
        freedom = float((pieces - 1).sum())
        if freedom < _LEAST_FREEDOM * mean.shape[0]:
            return {"stripes": np.zeros_like(mean)}
        cross = (sums["cross"] * (weight > 0)) @ mean.T
        scatter = sums["products"] - cross - cross.T + (mean * sums["square"] * (weight > 0)) @ mean.T
        scatter *= pieces.sum() / freedom / weight.sum()
        errors, uncertainty = split_errors(mean, weight, scatter)
        sharp = np.stack([columns.sharpened(row, self.reach) for row in errors])
        kept = 1 - _ratio(self.significance * uncertainty, np.abs(sharp)) ** 2
        return {"stripes": np.where((weight > 0) & (sums["count"] > 0), sharp * np.maximum(kept, 0), 0.0)}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `destriped` cube of a block."""
        columns = Columns.of(block.spec)
        left, share = columns.between(block.window)
        cube, invalid = block.subject, ~block.valid
        made = np.full(cube.shape, np.nan, np.float32)
        for band, stripes in zip(np.flatnonzero(block.bands.good), stats["stripes"], strict=True):
            error = (stripes[left] + share * (stripes[left + 1] - stripes[left])).astype(np.float32)
            made[band] = cube[band] / (1 + error) if self.model == "gain" else cube[band] - error
            made[band][invalid | ~np.isfinite(made[band])] = np.nan
        return {"destriped": made}


@dataclass(frozen=True)
class Columns:
    """Where the detector's columns lie on a grid: `u = row * by_row + col * by_col - origin`, px across track.

    Attributes:
        by_row: how `u` grows from row to row.
        by_col: how `u` grows from column to column.
        shape: height and width of the grid.
        describe: the direction for a message.
    """

    by_row: float
    by_col: float
    shape: tuple[int, int]
    describe: str

    @classmethod
    def of(cls, spec: SceneSpec) -> "Columns":
        """The columns of a scene, along its attribute `along_track_azimuth`, else along image columns."""
        azimuth = spec.attrs.get("along_track_azimuth")
        if azimuth is None or spec.grid.crs is None:
            return cls(0.0, 1.0, spec.shape, "image columns")
        try:
            angle = np.radians(float(azimuth))
        except (TypeError, ValueError):
            angle = np.nan
        if not np.isfinite(angle):
            raise InputError(
                f"{spec.scene_id}, destripe: attribute along_track_azimuth is {azimuth!r}; "
                "expected degrees clockwise from grid north"
            )
        # Across track is (east, north) = (cos, -sin); rows count southwards on a north-up grid.
        east, south = np.sign(spec.grid.transform.a), np.sign(-spec.grid.transform.e)
        by_row, by_col = float(np.sin(angle) * south), float(np.cos(angle) * east)
        return cls(by_row, by_col, spec.shape, f"azimuth {float(azimuth):.2f} degrees")

    @property
    def axis(self) -> int:
        """The image axis nearest to across track, along which neighbours are compared."""
        return 1 if abs(self.by_col) >= abs(self.by_row) else 0

    @property
    def stride(self) -> float:
        """Px across track from one neighbour along `axis` to the next."""
        return abs(self.by_col if self.axis else self.by_row)

    @property
    def bin(self) -> float:
        """Width of a bin, px across track: whole columns where they are the image's, else halves of them."""
        return 1.0 if min(abs(self.by_col), abs(self.by_row)) < 1e-9 else 0.5

    @cached_property
    def _span(self) -> tuple[float, float]:
        height, width = self.shape
        ends = [row * self.by_row + col * self.by_col for row in (0, height - 1) for col in (0, width - 1)]
        return min(ends), max(ends)

    @property
    def count(self) -> int:
        """Number of bins, with one to spare for interpolation."""
        return int((self._span[1] - self._span[0]) / self.bin) + 3

    def _position(self, window: Window) -> FloatArray:
        """Position of every pixel of a window in units of bins, `(y, x)`."""
        rows = np.arange(window.row, window.stop[0])[:, None] * self.by_row
        cols = np.arange(window.col, window.stop[1]) * self.by_col
        return np.asarray((rows + cols - self._span[0]) / self.bin)

    def nearest(self, window: Window) -> npt.NDArray[np.intp]:
        """The bin whose centre is nearest to each pixel, `(y, x)`."""
        return np.rint(self._position(window)).astype(np.intp)

    def between(self, window: Window) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """The bin before each pixel, and the share of the next one, for linear interpolation."""
        position = np.maximum(self._position(window), 0)
        left = np.floor(position + 1e-9).astype(np.intp)
        return left, np.maximum(position - left, 0)

    def sharpened(self, mean: FloatArray, reach: int) -> FloatArray:
        """The stripes whose deviation from their neighbours' mean is `mean`, `(column,)`.

        Deviation is s - B s with B the neighbours' mean; s is its Neumann series, cut where only slow changes lack.
        """
        at = np.arange(self.count)
        steps = np.arange(1, reach + 1) * self.stride / self.bin
        stripes = mean
        for _ in range(_SHARPENING):
            sides = [np.interp(at + side, at, stripes) for step in steps for side in (-step, step)]
            stripes = mean + np.mean(sides, axis=0)
        return stripes


class _Gather:
    """Sums of an image over a window by segment and detector column."""

    def __init__(self, columns: Columns, window: Window) -> None:
        from scipy.sparse import csr_array

        along = np.indices(window.shape)[1 - columns.axis] // _SEGMENT
        self.bins, self.segments = columns.count, int(along.max()) + 1
        cell = (along * self.bins + columns.nearest(window)).reshape(-1)
        shape = (self.segments * self.bins, cell.size)
        self._matrix = csr_array((np.ones(cell.size), (cell, np.arange(cell.size))), shape=shape)

    def __call__(self, image: npt.NDArray[Any]) -> FloatArray:
        """Sums `(segment, column)`."""
        return np.asarray(self._matrix @ image.reshape(-1).astype(np.float64)).reshape(self.segments, self.bins)


def split_errors(mean: FloatArray, weight: FloatArray, scatter: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Tell the columns' errors from what the landscape leaves in their mean deviation.

    Model: mean[:, u] = error + landscape with error ~ N(0, diag(t)) and landscape ~ N(0, scatter / weight[u]). The
    variances t, one a band, are those of greatest likelihood, by expectation and maximisation (Dempster, Laird and
    Rubin, J. R. Stat. Soc. B 39, 1977). The landscape's spectra span few dimensions, so most of an error lies outside.

    Args:
        mean: mean deviation by band and column, `(B, U)`.
        weight: number of pixels behind it, `(U,)`; 0 where there is none.
        scatter: covariance of the landscape's deviation of one pixel as it adds up along a column, `(B, B)`.

    Returns:
        The errors' posterior mean and standard deviation, both `(B, U)`.
    """
    used = weight > 0
    least = np.maximum(np.diag(scatter), np.finfo(float).tiny) / weight.max()
    variance = np.maximum(np.mean(mean[:, used] ** 2, axis=1), least)
    floor = 1e-6 * variance
    for _ in range(_ITERATIONS):
        errors, spread = _posterior(mean, weight, scatter, variance)
        variance = np.maximum(np.mean(errors[:, used] ** 2 + spread[:, used] ** 2, axis=1), floor)
    return _posterior(mean, weight, scatter, variance)


def _posterior(
    mean: FloatArray, weight: FloatArray, scatter: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and standard deviation of the errors, given their variance: all columns in one basis."""
    scale = np.sqrt(variance)
    noise, basis = np.linalg.eigh(scatter / np.outer(scale, scale))
    noise = np.maximum(noise, 1e-12 * max(float(noise[-1]), 1.0))[:, None]
    gain = weight / (weight + noise)
    errors = basis @ (gain * (basis.T @ (mean / scale[:, None])))
    return errors * scale[:, None], np.sqrt(basis**2 @ (1 - gain)) * scale[:, None]


def _deviations(
    block: Block, axis: int, reach: int, model: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the core's good bands say of their columns' errors, `(B, y, x)`, and each pixel's share in the mean.

    The sum of the first over that of the second is the error. For a gain that is the slope of the deviation on the
    neighbours' mean, by least squares in which bright pixels count as much as they tell and dark ones hardly.
    """
    good = np.flatnonzero(block.bands.good)
    cube, valid = block.subject, block.valid
    defect = block["defect"] if "defect" in block.arrays else None
    deviations, shares = np.zeros((2, good.size, *block.core.shape), np.float32)
    for row, band in enumerate(good):
        known = valid & np.isfinite(cube[band])
        if defect is not None:
            known &= ~defect[band]
        image = np.where(known, cube[band], 0)
        deviation, level, counted = _deviation(image, known, block, axis, reach)
        if model == "offset":
            deviations[row], shares[row] = deviation, counted
            continue
        usual = float(np.abs(level).sum()) / max(int(counted.sum()), 1)
        if usual > 0:
            pull = level / (level**2 + (_DARK * usual) ** 2)
            deviations[row], shares[row] = deviation * pull, level * pull
    return deviations, shares


def _deviation(
    image: npt.NDArray[np.float32], known: BoolArray, block: Block, axis: int, reach: int
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Value less the mean of the pairs at equal distance on both sides, that mean, and where there is one.

    Pairs leave out any linear trend. Both are 0 where there is none.
    """
    total, pairs = np.zeros((2, *block.core.shape))
    padding = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
    images, masks = (list(_shifts(np.pad(array, padding), block, axis, reach)) for array in (image, known))
    for step in range(1, reach + 1):
        both = masks[reach - step] & masks[reach + step]
        total += np.where(both, images[reach - step] + images[reach + step], 0)
        pairs += both
    counted = masks[reach] & (pairs > 0)
    level = np.where(counted, total / np.maximum(2 * pairs, 1), 0)
    return np.where(counted, images[reach] - level, 0), level, counted


def _shifts(padded: npt.NDArray[Any], block: Block, axis: int, reach: int) -> Iterator[npt.NDArray[Any]]:
    """The core's pixels and their neighbours along `axis`, from `reach` px before to `reach` px after."""
    rows, cols = block.core.within(block.window).slices
    for by in range(2 * reach + 1):
        if axis:
            yield padded[rows, cols.start + by : cols.stop + by]
        else:
            yield padded[rows.start + by : rows.stop + by, cols]


def _weights(deviations: npt.NDArray[np.float32], shares: npt.NDArray[np.float32]) -> FloatArray:
    """Huber's weights of pixels `(y, x)`, alike for all bands, so that spectra keep their shape in the sums."""
    squares, bands = np.zeros((2, *deviations.shape[1:]))
    for deviation, share in zip(deviations, shares, strict=True):
        some = share > 0
        usual = float(np.abs(deviation).sum(dtype=np.float64)) / max(int(some.sum()), 1)
        if usual > 0:
            squares += (deviation / usual) ** 2
            bands += some
    distance = np.sqrt(squares / np.maximum(bands, 1))
    return np.asarray(1 / np.maximum(distance / _CLIP, 1))


def _ratio(top: npt.NDArray[Any], bottom: npt.NDArray[Any]) -> FloatArray:
    """Quotient, 0 where there is nothing to divide by."""
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 0))
