"""Backscatter in decibels."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register


@register("to_db")
class ToDb(Stage):
    """Bring linear backscatter to decibels: adds `<subject>_db(band, y, x)`, 10 log10 of the subject.

    Where noise was subtracted, power may be zero or below; such pixels, and all darker than `floor`, get the floor, so
    that they stay the darkest ones and no infinity arises. Pixels without a value stay without.

    Attributes:
        floor: lowest value, dB.
    """

    work_cubes: ClassVar[float] = 1.0

    floor: float = Field(default=-50.0, ge=-200, le=0, allow_inf_nan=False)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with the subject in dB as its subject.

        Raises:
            InputError: the subject is no linear backscatter.
        """
        units = spec.variables[spec.subject].attrs.get("units")
        if spec.measurement not in ("sigma0", "gamma0") or units != "1":
            raise InputError(
                f"{spec.scene_id}, to_db: {spec.subject} (units {units}) is no linear backscatter; expected sigma0 or "
                "gamma0 of a radar"
            )
        name = f"{spec.subject}_db"
        made = {name: Variable(("band", "y", "x"), FLOAT, {"long_name": f"{spec.subject} in decibels", "units": "dB"})}
        return spec.with_variables(f"to_db: 10 log10, not below {self.floor:g} dB", name, **made)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The cube of a block in dB."""
        least = np.float32(10 ** (self.floor / 10))
        decibels = 10 * np.log10(np.maximum(block.subject, least))  # NaN stays
        return {f"{block.spec.subject}_db": np.maximum(decibels, np.float32(self.floor)).astype(np.float32)}
