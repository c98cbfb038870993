"""A scene after steps of its own, as a Source: what a guide goes through before it lies on another scene's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from cubeloom.errors import InputError

from .blocks import plan_chain, run_chain
from .encoding import Array, Packed
from .grids import Shape, Window
from .readers.base import Source
from .scene import SceneSpec

if TYPE_CHECKING:
    from .stages.base import Stage


@dataclass(frozen=True, eq=False)
class PreparedSource:
    """A Source and the steps that its pixels go through as they are read, each over the window and what is round it.

    It holds what the steps made last, which counts as the measurement, and the layers beside it.

    Attributes:
        source: what is read.
        stages: the steps.
    """

    source: Source
    stages: tuple[Stage, ...]

    @cached_property
    def specs(self) -> list[SceneSpec]:
        """The Scene before the first step and after each one."""
        return plan_chain(self.source.spec, self.stages)

    @cached_property
    def spec(self) -> SceneSpec:
        """The Scene after the steps."""
        spec = self.specs[-1]
        kept = {name: one for name, one in spec.variables.items() if name == spec.subject or not one.is_cube}
        return replace(spec, variables=kept, measurement=spec.subject)

    @property
    def block_shape(self) -> Shape:
        """That of the source."""
        return self.source.block_shape

    @property
    def exact(self) -> bool:
        """False: steps make any number."""
        return False

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable; the steps run only for what they make."""
        if self.spec.variables[name] is self.source.spec.variables.get(name):
            return self.source.read(name, window, bands, out)
        (block,) = run_chain(self.source, self.stages, self.specs, [{} for _ in self.stages], window)
        return block[name] if bands is None else block[name][bands]

    def fingerprint(self) -> str:
        """That of the source; the steps are for whoever names them to tell."""
        return self.source.fingerprint()


def prepared(source: Source, stages: Sequence[Stage]) -> Source:
    """A Source after steps that need no more of a scene than a window and what is round it.

    Raises:
        InputError: a step cannot take the scene, needs all of it first, or changes its grid or bands.
    """
    if not stages:
        return source
    made = PreparedSource(source, tuple(stages))
    for stage, before, after in zip(stages, made.specs, made.specs[1:], strict=False):
        if stage.passes or stage.guides or after.group != before.group or stage.tiling(before) is not None:
            raise InputError(
                f"{before.scene_id}, {stage.name}: needs the whole scene, a guide or another grid, and a guide is read "
                "window by window on its own; take steps such as despeckle and to_db"
            )
    return made
