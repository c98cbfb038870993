"""Despeckle radar backscatter: refined Lee, Lee and boxcar."""

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register
from .despeckle_windows import HALVES, REACH, Image, box_sum, half_sums, pad, shifted

DIRECTIONS = {
    "vertical": ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)),
    "horizontal": ((-1, -1, -1), (0, 0, 0), (1, 1, 1)),
    "falling": ((0, 1, 1), (-1, 0, 1), (-1, -1, 0)),
    "rising": ((-1, -1, 0), (-1, 0, 1), (0, 1, 1)),
}
"""Gradients of the 3 x 3 means, by the edge that they show."""
_SIDES = {
    "vertical": ("left", "right"),
    "horizontal": ("upper", "lower"),
    "falling": ("lower_left", "upper_right"),
    "rising": ("upper_left", "lower_right"),
}
"""Halves of the window on both sides of an edge; the first lies where the gradient's weights are below zero."""
_ACROSS = {"vertical": (0, -1), "horizontal": (-1, 0), "falling": (1, -1), "rising": (-1, -1)}
"""The subwindow in the middle of the first side; that of the second lies opposite."""
_ROWS = 64
"""Rows that are filtered at once: some fifty images of intermediate sums stay in the processor's cache."""
_APART = 2
"""Distance of the nine subwindows' middles, px."""


@register("despeckle")
class Despeckle(Stage):
    """Reduce speckle: adds `despeckled(band, y, x)`, linear like its subject.

    `refined_lee` (Lee, Refined filtering of image noise using local statistics, 1981): in a 7 x 7 window the nine
    overlapping 3 x 3 means give the direction of an edge and the side of it that the pixel is more alike; mean and
    variance are taken on that half of the window, and the pixel moves towards the mean by what the speckle's known
    variance explains (minimum mean square error). Where the whole window varies no more than speckle does, all of it is
    used. `lee` (1980) takes the whole square, `boxcar` its mean.

    Pixels without a value, and those that take no part, are left out of all windows and stay without a value.

    Attributes:
        method: `refined_lee`, `lee` or `boxcar`.
        window: edge of the square, px, odd; the refined filter's is 7.
        looks: equivalent number of looks of the speckle; by default the scene's `looks`. Interpolated scenes have
            more than their metadata say: a larger number smoothes less.
    """

    work_cubes: ClassVar[float] = 1.0

    method: Literal["refined_lee", "lee", "boxcar"] = "refined_lee"
    window: int = Field(default=7, ge=3, le=31)
    looks: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("the window has a middle pixel, so its edge is odd")
        return window

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `despeckled` as its subject.

        Raises:
            InputError: the subject is no linear backscatter, the looks are not known, or the refined filter is asked
                for another window than its own.
        """
        self._require_backscatter(spec)
        if self.method == "refined_lee" and self.window != 2 * REACH + 1:
            raise InputError(
                f"{spec.scene_id}, despeckle: refined_lee has a window of 7 px, not {self.window}; take lee"
            )
        looks = self._looks(spec)
        how = f"despeckle: {self.method}, {self.window} x {self.window} px"
        attrs = {"long_name": f"despeckled {spec.subject}", "units": "1"}
        made = {"despeckled": Variable(("band", "y", "x"), FLOAT, attrs)}
        return spec.with_variables(how if self.method == "boxcar" else f"{how}, {looks:g} looks", "despeckled", **made)

    def halo(self, spec: SceneSpec) -> int:
        """Half a window."""
        return self.window // 2

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `despeckled` cube of a block."""
        cube, valid = block.subject, block.valid
        made, height, halo = np.empty(cube.shape, np.float32), cube.shape[1], self.halo(block.spec)
        for first in range(0, height, _ROWS):
            last = min(first + _ROWS, height)
            top, bottom = max(first - halo, 0), min(last + halo, height)
            for band, image in enumerate(cube[:, top:bottom]):
                known = valid[top:bottom] & np.isfinite(image)
                filtered = self._filtered(np.where(known, image, np.float32(0)), known.astype(np.float32), block.spec)
                made[band, first:last] = np.where(known, filtered, np.nan)[first - top : last - top]
        return {"despeckled": made}

    def _filtered(self, image: Image, weight: Image, spec: SceneSpec) -> Image:
        if self.method == "boxcar":
            reach = self.window // 2
            return box_sum(image, reach) / np.maximum(box_sum(weight, reach), 1)
        if self.method == "lee":
            return lee(image, weight, self.window // 2, self._looks(spec))
        return refined_lee(image, weight, self._looks(spec))

    def _looks(self, spec: SceneSpec) -> float:
        if self.looks is not None or self.method == "boxcar":
            return self.looks or 1.0
        stated = spec.attrs.get("looks")
        if not isinstance(stated, int | float) or not 0 < stated < 1e6:
            raise InputError(
                f"{spec.scene_id}, despeckle: the scene does not say how many looks its speckle has; give looks, such "
                "as 4.4 for Sentinel-1 IW GRDH"
            )
        return float(stated)

    def _require_backscatter(self, spec: SceneSpec) -> None:
        units = spec.variables[spec.subject].attrs.get("units")
        if spec.measurement not in ("sigma0", "gamma0") or units != "1":
            raise InputError(
                f"{spec.scene_id}, despeckle: {spec.subject} (units {units}) is no linear backscatter; expected sigma0 "
                "or gamma0 of a radar, before to_db"
            )


def lee(image: Image, weight: Image, reach: int, looks: float) -> Image:
    """Lee's filter of 1980 over squares.

    Args:
        image: intensity `(y, x)`, 0 where there is none.
        weight: 1 where there is one, else 0.
        reach: half a window, px.
        looks: of the speckle.
    """
    count = np.maximum(box_sum(weight, reach), 1)
    mean = box_sum(image, reach) / count
    return _moved(image, mean, box_sum(image * image, reach) / count - mean * mean, looks)


def refined_lee(image: Image, weight: Image, looks: float) -> Image:
    """Lee's filter of 1981, see `Despeckle`; arguments as `lee`, the window is 7 x 7."""
    count = np.maximum(box_sum(weight, REACH), 1)
    mean = box_sum(image, REACH) / count
    square = image * image
    variance = box_sum(square, REACH) / count - mean * mean
    edged = variance > mean * mean * np.float32(_homogeneous(looks))
    chosen = _sides(image, weight)
    parts = [half_sums(layer) for layer in (weight, image, square)]
    for number, half in enumerate(HALVES):
        here = edged & (chosen == number)
        size = np.maximum(parts[0][half], 1)
        level = parts[1][half] / size
        mean = np.where(here, level, mean)
        variance = np.where(here, parts[2][half] / size - level * level, variance)
    return _moved(image, mean, variance, looks)


def _homogeneous(looks: float) -> float:
    """Squared coefficient of variation up to which a 7 x 7 window may hold nothing but speckle.

    That of speckle is 1 / looks, and estimated from 49 values of a gamma distribution it spreads by about
    sqrt((2 + 6 / looks) / 49) of itself: twice that above.
    """
    return float((1 + 2 * np.sqrt((2 + 6 / looks) / 49)) / looks)


def _moved(image: Image, mean: Image, variance: Image, looks: float) -> Image:
    """The minimum mean square error estimate: mean + b (value - mean).

    b is the share of the signal in the variance, with the signal's variance (variance - mean^2 / looks) /
    (1 + 1 / looks).
    """
    speckle = np.float32(1 / looks)
    signal = np.maximum((variance - mean * mean * speckle) / (1 + speckle), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(variance > 0, np.minimum(signal / variance, 1), 0)
    return np.asarray(mean + share * (image - mean), np.float32)


def _sides(image: Image, weight: Image) -> npt.NDArray[np.uint8]:
    """Which of `HALVES` to take at every pixel: that on the side of the strongest edge which the middle is more alike.

    A subwindow without any value counts as the middle one, so that it shows no edge.
    """
    there = box_sum(pad(weight, _APART), 1)  # subwindows whose middle lies beyond the image still reach into it
    means = box_sum(pad(image, _APART), 1) / np.maximum(there, 1)
    middle = shifted(means, 0, 0, _APART)
    grid = {
        (row, col): np.where(
            shifted(there, row * _APART, col * _APART, _APART) > 0,
            shifted(means, row * _APART, col * _APART, _APART),
            middle,
        )
        for row in (-1, 0, 1)
        for col in (-1, 0, 1)
    }
    strongest = np.full(image.shape, -1.0, np.float32)
    chosen = np.zeros(image.shape, np.uint8)
    for name, weights in DIRECTIONS.items():
        gradient = np.abs(_side(grid, weights, 1) - _side(grid, weights, -1))
        down, right = _ACROSS[name]
        first, second = np.abs(grid[down, right] - middle), np.abs(grid[-down, -right] - middle)
        nearer = np.where(first <= second, *(HALVES.index(side) for side in _SIDES[name]))
        stronger = gradient > strongest
        chosen = np.where(stronger, nearer, chosen).astype(np.uint8)
        strongest = np.where(stronger, gradient, strongest)
    return chosen


def _side(grid: dict[tuple[int, int], Image], weights: tuple[tuple[int, ...], ...], sign: int) -> Image:
    """Sum of the three subwindows whose weight has a sign."""
    parts = [grid[row - 1, col - 1] for row in range(3) for col in range(3) if weights[row][col] == sign]
    return np.asarray(parts[0] + parts[1] + parts[2])
