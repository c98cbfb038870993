"""Super-resolve: the subject on a grid some times finer."""

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.regrid import refined
from cubeloom.pipeline.scene import SceneSpec

from .base import Stage, Stats, register

OUTPUT = "superresolved"
REACH = 2
"""Source pixels on either side that an output pixel depends on."""

FloatImage = npt.NDArray[np.float32]
Tap = tuple[int, list[np.float32]]


@register("superres")
class Superres(Stage):
    """Refine the subject's grid by a whole number; the ground and its corner stay.

    The result is a group of its own (`x2`) whose one cube, `superresolved`, is both measurement and subject there.
    `quality` and `valid` are repeated; per-band masks and other layers stay with the native grid.

    Attributes:
        method: `bicubic`, the baseline that networks are compared with: cubic convolution with a = -1/2.
        scale: how many times finer.
    """

    method: Literal["bicubic"] = "bicubic"
    scale: Literal[2, 3, 4] = 2
    work_cubes: ClassVar[float] = 0.25

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene on the finer grid, in a group of its own."""
        subject = spec.variables[spec.subject]
        described = {**subject.attrs, "long_name": f"{spec.subject.replace('_', ' ')}, {self.scale} times finer"}
        layers = {name: spec.variables[name] for name in ("quality", "valid") if name in spec.variables}
        return replace(
            spec,
            grid=refined(spec.grid, self.scale),
            variables={
                OUTPUT: replace(subject, attrs=described),
                **{name: replace(variable) for name, variable in layers.items()},
            },
            measurement=OUTPUT,
            subject=OUTPUT,
            group="_".join(filter(None, (spec.group, f"x{self.scale}"))),
            scale=spec.scale * self.scale,
            history=(*spec.history, f"superres: {spec.subject} x{self.scale}, {self.method}"),
        )

    def halo(self, spec: SceneSpec) -> int:
        """Two pixels: the reach of the cubic kernel."""
        return REACH

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The finer cube, NaN where the nearest source pixel has no value, and the repeated layers."""
        layers = {name: block[name] for name in ("quality", "valid") if name in block.spec.variables}
        return {
            OUTPUT: refine(block.subject, np.asarray(block.valid, bool), self.scale),
            **{name: _repeat(layer, self.scale) for name, layer in layers.items()},
        }


def refine(cube: Array, valid: npt.NDArray[np.bool_], scale: int) -> FloatImage:
    """Cubic convolution of `(band, y, x)` to `(band, y * scale, x * scale)`, float32.

    Pixels without a value take no part: the weights of the others are scaled to sum 1. Every output pixel sums the
    same taps in the same order wherever it lies in its block.
    """
    bands, height, width = cube.shape
    fine = np.empty((bands, height * scale, width * scale), np.float32)
    taps = _taps(scale)
    shared = _present(valid, taps)
    for band, out in zip(cube, fine, strict=True):
        known = np.isfinite(band) & valid
        if not known.any():
            out[...] = np.nan
            continue
        present = shared if np.array_equal(known, valid) else _present(known, taps)
        _convolve(np.pad(np.where(known, band, np.float32(0)), REACH), taps, out)
        with np.errstate(divide="ignore", invalid="ignore"):  # pixels that become NaN below
            out /= present
        out[_repeat(~known, scale)] = np.nan
    return fine


def _present(known: npt.NDArray[np.bool_], taps: list[Tap]) -> FloatImage:
    """Sum of the weights of the known taps of every output pixel: exactly 1 where all are known."""
    absent = np.pad((~known).astype(np.float32), REACH, constant_values=1)
    fine = np.empty((known.shape[0] * len(taps), known.shape[1] * len(taps)), np.float32)
    _convolve(absent, taps, fine)
    present: FloatImage = np.float32(1) - fine
    return present


def _taps(scale: int) -> list[Tap]:
    """First tap, px right of the source pixel minus `REACH`, and the four weights, for every sub-pixel position."""
    phases = []
    for phase in range(scale):
        position = (phase + 0.5) / scale - 0.5
        first = math.floor(position) - 1
        phases.append((first + REACH, [np.float32(_keys(position - first - tap)) for tap in range(4)]))
    return phases


def _keys(distance: float) -> float:
    """The cubic convolution kernel at a distance in px: Keys (1981), IEEE TASSP 29(6), eq. 15, a = -1/2."""
    s = abs(distance)
    if s <= 1:
        return 1.5 * s**3 - 2.5 * s**2 + 1
    return -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2 if s < 2 else 0.0


def _convolve(padded: FloatImage, taps: list[Tap], out: FloatImage) -> None:
    """Interpolate rows, then columns, of an image padded by `REACH` into `out`, one sub-pixel position at a time."""
    scale, height, width = len(taps), padded.shape[0] - 2 * REACH, padded.shape[1] - 2 * REACH
    rows = np.empty((height * scale, padded.shape[1]), np.float32)
    for phase, (first, kernel) in enumerate(taps):
        rows[phase::scale] = _mix([padded[first + tap : first + tap + height] for tap in range(4)], kernel)
    for phase, (first, kernel) in enumerate(taps):
        out[:, phase::scale] = _mix([rows[:, first + tap : first + tap + width] for tap in range(4)], kernel)


def _mix(images: list[FloatImage], kernel: list[np.float32]) -> FloatImage:
    """Weighted sum of images, from the first to the last."""
    total: FloatImage = images[0] * kernel[0]
    scratch = np.empty_like(total)
    for image, weight in zip(images[1:], kernel[1:], strict=True):
        total += np.multiply(image, weight, out=scratch)
    return total


def _repeat(layer: Array, scale: int) -> Array:
    """Every pixel `scale` times along both axes."""
    return layer.repeat(scale, axis=-2).repeat(scale, axis=-1)
