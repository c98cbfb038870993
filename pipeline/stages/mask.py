"""Which pixels take part: the `valid` layer, from the quality flags and the pixels themselves."""

import difflib
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import QUALITY_FLAGS, SceneSpec, valid_variable

from .base import Stage, Stats, register

DROPPED = ("background", "cloud", "cloud_shadow", "cirrus_thick")


@register("mask")
class Mask(Stage):
    """Mark the pixels that later stages leave out; the measurement itself is never changed.

    A pixel is left out where one of the `drop` flags is set, within `dilate` px of such a pixel, where no good band
    has a finite value, and where an earlier `mask` left it out. Later stages take nothing from these pixels, and what
    they make is "no value" there.

    Attributes:
        drop: quality flags that rule a pixel out; all others are kept.
        dilate: px by which the flagged areas grow, as a disk.
    """

    drop: tuple[str, ...] = DROPPED
    dilate: int = Field(default=0, ge=0, le=64)

    @field_validator("drop")
    @classmethod
    def _known(cls, drop: tuple[str, ...]) -> tuple[str, ...]:
        for flag in drop:
            if flag not in QUALITY_FLAGS:
                near = difflib.get_close_matches(flag, QUALITY_FLAGS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"unknown quality flag {flag!r}: {hint}Known flags: {', '.join(QUALITY_FLAGS)}")
        return drop

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with its `valid` layer.

        Raises:
            InputError: flags were asked for and the scene has no `quality` layer.
        """
        if self.drop and self.drop != DROPPED and "quality" not in spec.variables:
            raise InputError(
                f"{spec.scene_id}: mask was asked to drop {', '.join(self.drop)}, but the scene has no 'quality' "
                "layer; leave `drop` out to mask pixels without values alone"
            )
        flags = ", ".join(self.drop) or "no flag"
        grown = f", grown by {self.dilate} px" if self.dilate else ""
        return spec.with_variables(history=f"mask: dropped {flags}{grown}", valid=valid_variable())

    def halo(self, spec: SceneSpec) -> int:
        """As far as flagged areas grow."""
        return self.dilate

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `valid` layer of a block."""
        good = np.flatnonzero(block.bands.good)
        cube = block.subject
        valid = np.zeros(block.window.shape, bool)
        for band in good:
            valid |= np.isfinite(cube[band])
        if "quality" in block.arrays:
            valid &= ~self._dropped(block["quality"])
        if "valid" in block.arrays:
            valid &= block["valid"]
        return {"valid": valid}

    def _dropped(self, quality: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        bits = np.uint32(sum({QUALITY_FLAGS[flag] for flag in self.drop}))
        dropped = np.asarray((quality & bits) != 0)
        if not self.dilate or not dropped.any():
            return dropped
        from scipy.ndimage import distance_transform_edt

        return np.asarray(distance_transform_edt(~dropped) <= self.dilate)
