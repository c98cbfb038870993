"""Pair: a scene of another sensor over the same ground, brought onto this one's grid for the steps after it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.coregister import compare, displacement, window_edge
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.prepared import prepared
from cubeloom.pipeline.readers.base import Source
from cubeloom.pipeline.regrid import RegriddedSource, Shift, regridded
from cubeloom.pipeline.regrid_kernels import Resampling
from cubeloom.pipeline.scene import QUALITY_FLAGS, SceneSpec
from cubeloom.pipeline.srf import gaussians, weights

from .base import Fact, Stage, Stats, Step, register, stage_of
from .mask import DROPPED

SURE_PX = 0.15
"""Standard error, px, up to which a displacement is corrected."""

AGREED = 0.1
"""How well, 0-1, the spectra of the two must agree for that."""

_CHOOSING = ("sensors", "levels", "days", "when", "min_overlap")
"""Parameters by which a guide is chosen."""

MSI = 0.26
"""Modulation transfer of Sentinel-2's bands of 10 m at Nyquist: mean of 0.26, 0.28, 0.24 and 0.26 (B02, B03, B04, B08),
which methods that sharpen its own bands take for measured (as Ulfarsson et al. 2019, IEEE TGRS 57(9))."""

UNCOVERED = 0.05
"""Share of a guide band's response that the scene's bands may leave out for the two to be compared."""


@register("pair")
class Pair(Stage):
    """Give the scene a guide: a scene of another sensor on its grid, or on one a whole number of times finer.

    Later steps that need a guide of this name find it, and the product holds it as a group of that name. Which scene
    it is, is settled before: in a workflow the best of the catalog's items (largest overlap, then nearest in time), in
    Python the second one that is given. The scene itself stays as it is.

    Attributes:
        guide: what later steps call it, and its group in the product.
        sensors: of the guide: satellites, such as `Sentinel-2A`, or constellations; any other than the scene's where
            empty.
        levels: its processing levels; any where empty.
        days: how far apart in time the two may be.
        when: which side of the scene's time the guide is of: `any`, `earlier` or `later`.
        min_overlap: share of the scene's footprint that the guide must cover.
        open: options for `open_scene`, such as `{grid: 20m, bands: common}`.
        steps: stages that the guide goes through on its own grid before it is brought onto the scene's, such as
            `[despeckle, to_db]`, written as in a workflow; of those that need no more than a window of it.
        refine: how many times finer than the scene's its grid is; by default as many as its own pixels are smaller.
        resampling: of its cubes; by default `average` where its own pixels are finer than that grid, else `cubic`.
            Flags and classes take the nearest pixel. `restored` undoes its sensor's blur, as far as that can be.
        mtf: modulation transfer of the guide's sensor at its Nyquist frequency, for `restored`; the default is what
            Sentinel-2's bands of 10 m have.
        coregister: `off`; `report` how far the two lie apart; or `correct` it for later steps and the product, where
            the estimate is sure.
        max_shift: how far apart they may lie, px of the scene.
        publish: whether the product holds the guide.
    """

    guide: str = "guide"
    sensors: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    days: float = Field(default=5.0, ge=0)
    when: Literal["any", "earlier", "later"] = "any"
    min_overlap: float = Field(default=0.5, gt=0, le=1)
    open: Mapping[str, str] = {}
    steps: tuple[Step, ...] = ()
    refine: int | None = Field(default=None, ge=1, le=12)
    resampling: Resampling | None = None
    mtf: float = Field(default=MSI, gt=0.02, lt=1)
    coregister: Literal["off", "report", "correct"] = "report"
    max_shift: float = Field(default=3.0, gt=0, le=8)
    publish: bool = True
    work_cubes: ClassVar[float] = 0.5

    @field_validator("guide")
    @classmethod
    def _is_a_group(cls, guide: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", guide) or guide == "overviews":
            raise ValueError("must begin with a letter, and hold letters, digits and _ alone")
        return guide

    @field_validator("coregister", mode="before")
    @classmethod
    def _off_in_yaml(cls, coregister: object) -> object:
        return "off" if coregister is False else coregister  # YAML reads a bare off as False

    @field_validator("steps")
    @classmethod
    def _are_stages(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        _stages(steps)  # refuses what is none
        return steps

    @property
    def guides(self) -> tuple[str, ...]:
        """The one that it gives."""
        return (self.guide,)

    @property
    def passes(self) -> int:
        """One, that compares the two, unless that is off."""
        return int(self.coregister != "off")

    def regridded(self, source: Source, scene: SceneSpec) -> RegriddedSource:
        """A source as this stage brings it onto the grid of a scene, after its own steps.

        Raises:
            InputError: a step cannot take it, or one of the two has no map projection.
        """
        return regridded(prepared(source, _stages(self.steps)), scene, self.refine, self.resampling, self.mtf)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with its guide described.

        Raises:
            InputError: the two have no band in common to compare them by.
        """
        guide = spec.guides[self.guide]
        if (guide.scale / Fraction(spec.scale)).denominator > 1:
            raise InputError(
                f"{spec.scene_id}, pair: on a grid {spec.scale} times finer than the scene's own, a guide on one "
                f"{guide.scale} times finer cannot be compared; put pair before the step that refines the grid"
            )
        if self.passes and not comparable(spec, guide).size:
            raise InputError(
                f"{spec.scene_id}, pair: the scene's bands cover none of those of {guide.scene_id} ({guide.sensor}), "
                "so how far the two lie apart cannot be told; set coregister: off"
            )
        line = f"pair: {self.guide} is {guide.scene_id}, {_apart(guide, spec)}"
        paired = replace(guide, group=self.guide if self.publish else "", history=(*guide.history, _beside(spec)))
        return replace(spec, guides={**spec.guides, self.guide: paired}, history=(*spec.history, line))

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """How the spectra of the two differ, window by window."""
        guide = block.guides[self.guide]
        factor = guide.window.height // block.window.height
        bands = comparable(block.spec, guide.spec)
        seen = weights(gaussians(guide.bands.wavelength[bands], guide.bands.fwhm[bands]), block.bands)
        clear = np.asarray(block.valid, bool) & _in_squares(shows_ground(guide), factor).all(axis=(-3, -1))
        other = _in_squares(guide.subject[bands], factor).mean(axis=(-3, -1))
        edge = window_edge(block.spec.shape)
        return compare(seen.apply(block.subject), other, clear, block.core, edge, self._reach(block.spec))

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The displacement (down, right, px of the native grid), its error and quality, and the windows compared."""
        found = displacement(sums, window_edge(spec.shape), self._reach(spec))
        if found is None:
            return {"windows": np.array(0)}
        return {
            "shift": np.array(found.shift) / float(spec.scale),
            "error": np.array(found.error) / float(spec.scale),
            "quality": np.array(found.quality),
            "windows": np.array(found.windows),
        }

    def _reach(self, spec: SceneSpec) -> float:
        return self.max_shift * float(spec.scale)

    def shifts(self, stats: Stats) -> Mapping[str, Shift]:
        """Where later steps read the guide: as found, where that is to be corrected and sure."""
        if self.coregister != "correct" or self._doubt(stats):
            return {}
        down, right = map(float, stats["shift"])
        return {self.guide: (down, right)}

    def _doubt(self, stats: Stats) -> str:
        """Why a displacement is not to be relied on; empty where it is."""
        if "shift" not in stats:
            return "too little of both is clear"
        if np.abs(stats["shift"]).max() > self.max_shift - 0.5:
            return f"it lies at the edge of what max_shift {self.max_shift:g} lets be found"
        if stats["error"] > SURE_PX or stats["quality"] < AGREED:
            return "the two agree too little"
        return ""

    def facts(self, stats: Stats, spec: SceneSpec) -> Mapping[str, Fact]:
        """The guide, and how far it lies from the scene."""
        guide = spec.guides[self.guide]
        facts: dict[str, Fact] = {"name": self.guide, "guide": guide.scene_id, "sensor": guide.sensor}
        facts["days_apart"] = round((guide.time - spec.time).total_seconds() / 86400, 4)
        if not stats:
            return facts
        if "shift" in stats:
            down, right = map(float, stats["shift"])
            a, b, _, d, e, _ = tuple(spec.grid.affine)[:6]
            scale = float(spec.scale)
            facts |= {
                "shift_down_px": round(down, 4),
                "shift_right_px": round(right, 4),
                "shift_east_m": round((a * right + b * down) * scale, 2),
                "shift_north_m": round((d * right + e * down) * scale, 2),
                "error_px": round(float(stats["error"]), 4),
                "quality": round(float(stats["quality"]), 4),
            }
        doubt = self._doubt(stats)
        corrected = "yes" if self.coregister == "correct" and not doubt else "no"
        return facts | {
            "windows": int(stats["windows"]),
            "corrected": f"no: {doubt}" if doubt else corrected,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters that matter; not those that choose the guide: its content stands for them."""
        unused = _CHOOSING if self.resampling == "restored" else (*_CHOOSING, "mtf")
        described = {key: value for key, value in super().fingerprint().items() if key not in unused}
        return {**described, "steps": [stage.fingerprint() for stage in _stages(self.steps)]}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """Nothing: the scene stays as it is."""
        return {}


def _stages(steps: Sequence[Step]) -> list[Stage]:
    return [stage_of(step, f"pair, step {number} of the guide") for number, step in enumerate(steps, 1)]


def comparable(scene: SceneSpec, guide: SceneSpec) -> npt.NDArray[np.intp]:
    """Positions of the guide's bands that the scene's cover, so that both can be seen through the same response."""
    bands = guide.bands
    placed = np.flatnonzero(bands.good & bands.preferred & np.isfinite(bands.wavelength) & np.isfinite(bands.fwhm))
    uncovered = weights(gaussians(bands.wavelength[placed], bands.fwhm[placed]), scene.bands).uncovered
    return placed[uncovered <= UNCOVERED]


def shows_ground(guide: Block) -> npt.NDArray[np.bool_]:
    """Pixels that show the ground."""
    valid = np.asarray(guide.valid, bool)
    if "quality" not in guide.arrays:
        return valid
    bits = np.uint32(sum(QUALITY_FLAGS[flag] for flag in DROPPED))
    return np.asarray(valid & ((guide["quality"] & bits) == 0))


def _in_squares(array: Array, factor: int) -> Array:
    """Layers `(..., y, x)` as squares of `factor` px: `(..., y, factor, x, factor)`."""
    rows, cols = array.shape[-2] // factor, array.shape[-1] // factor
    return array.reshape(*array.shape[:-2], rows, factor, cols, factor)


def _apart(guide: SceneSpec, scene: SceneSpec) -> str:
    """How far apart in time two scenes are, in words."""
    hours = (guide.time - scene.time).total_seconds() / 3600
    size = f"{abs(hours) / 24:.1f} days" if abs(hours) >= 48 else f"{abs(hours):.1f} hours"
    return f"{size} {'later' if hours >= 0 else 'earlier'}"


def _beside(scene: SceneSpec) -> str:
    return f"brought onto the grid of {scene.scene_id}"
