"""Backscatter in decibels."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import FLOAT, Array
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register

FLOOR_DB = -50.0


@register("to_db")
class ToDb(Stage):
    """Bring linear backscatter to decibels: adds `<subject>_db(band, y, x)`, 10 log10 of the subject.

    Where noise was subtracted, power may be zero or below; such pixels, and all darker than `floor`, get the floor, so
    that they stay the darkest ones and no infinity arises. Pixels without a value stay without.

    Attributes:
        floor: lowest value, dB.
    """

    work_cubes: ClassVar[float] = 1.0

    floor: float = Field(default=FLOOR_DB, ge=-200, le=0, allow_inf_nan=False)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with the subject in dB as its subject.

        Raises:
            InputError: the subject is no linear backscatter.
        """
        units = spec.variables[spec.subject].attrs.get("units")
        if not is_linear_backscatter(spec, spec.subject):
            raise InputError(
                f"{spec.scene_id}, to_db: {spec.subject} (units {units}) is no linear backscatter; expected sigma0 or "
                "gamma0 of a radar"
            )
        name = f"{spec.subject}_db"
        made = {name: Variable(("band", "y", "x"), FLOAT, {"long_name": f"{spec.subject} in decibels", "units": "dB"})}
        return spec.with_variables(f"to_db: 10 log10, not below {self.floor:g} dB", name, **made)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The cube of a block in dB."""
        return {f"{block.spec.subject}_db": decibels(block.subject, self.floor)}


def is_linear_backscatter(spec: SceneSpec, name: str) -> bool:
    """Whether a cube of a scene is a radar's power."""
    return spec.measurement in ("sigma0", "gamma0") and spec.variables[name].attrs.get("units") == "1"


def decibels(power: Array, floor: float = FLOOR_DB) -> npt.NDArray[np.float32]:
    """10 log10 of power, not below the floor, dB; NaN stays."""
    found = 10 * np.log10(np.maximum(power, np.float32(10 ** (floor / 10))))
    return np.asarray(np.maximum(found, np.float32(floor)), np.float32)
