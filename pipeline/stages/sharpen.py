"""Sharpen: the scene's spectra at the resolution of a guide."""

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.degrade import NYQUIST
from cubeloom.pipeline.scene import QUALITY_FLAGS, SceneSpec

from . import sharpen_cnmf, sharpen_gsa, sharpen_hysure, sharpen_network
from .base import Fact, Stage, Stats, register
from .fuse_bayes import joint_moments
from .pair import comparable
from .sharpen_consistency import consistency_halo, consistent_bands
from .sharpen_guide import Detail, Moments, Seen, degrade_reach, moments_of, sampled
from .spectra import packing_noise
from .superres import REACH

OUTPUT = "sharpened"


@register("sharpen")
class Sharpen(Stage):
    """Bring the subject to the grid of a guide that is a whole number of times finer, such as Sentinel-2 beside EnMAP.

    The result is a group of its own (`x3`) whose one cube, `sharpened`, is both measurement and subject there; corner,
    CRS and band axis stay. Of the guide those bands count that the scene's cover. All methods add detail to cubic
    interpolation, and end alike: rounds of back-projection, so that the product, seen by the scene's sensor, is what
    that measured. Statistics are those of the whole scene, in one pass; a network learns in a second.

    Where the guide does not show the ground the product is interpolated, and `quality` says `reduced_quality`. Pixels
    that take no part are NaN, and so are bands that are not good.

    Attributes:
        guide: name of the guide.
        method: `gsa`, regression on all of the guide's bands (`sharpen_gsa`); `cnmf`, coupled unmixing
            (`sharpen_cnmf`); `hysure`, a fit in the signal subspace (`sharpen_hysure`); or `network`, regression there
            and a small network, learnt on the scene (`sharpen_network`).
        mtf: modulation transfer of the scene's sensor at its Nyquist frequency.
        rounds: of back-projection.
        endmembers: of `cnmf`.
    """

    work_cubes: ClassVar[float] = 4.0

    guide: str = "guide"
    method: Literal["gsa", "cnmf", "hysure", "network"] = "gsa"
    mtf: float = Field(default=NYQUIST, gt=0.02, lt=1)
    rounds: int = Field(default=3, ge=0, le=10)
    endmembers: int = Field(default=16, ge=2, le=64)

    @property
    def guides(self) -> tuple[str, ...]:
        """The finer scene."""
        return (self.guide,)

    @property
    def passes(self) -> int:
        """One, how the scene's bands and the guide's go together; a second, from which a network learns."""
        return 2 if self.method == "network" else 1

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene on the guide's grid, in a group of its own.

        Raises:
            InputError: the guide is not a whole number of times finer, or the scene covers none of its bands.
        """
        guide = spec.guides[self.guide]
        factor = guide.scale / Fraction(spec.scale)
        if factor.denominator > 1 or factor < 2:
            raise InputError(
                f"{spec.scene_id}, sharpen: the guide {guide.scene_id} lies on a grid {factor} times finer; expected a "
                "whole number from 2 on (`refine` of the step pair)"
            )
        bands = comparable(spec, guide)
        if not bands.size:
            raise InputError(
                f"{spec.scene_id}, sharpen: the scene's bands cover none of those of {guide.scene_id} ({guide.sensor})"
            )
        subject = spec.variables[spec.subject]
        long_name = f"{spec.subject.replace('_', ' ')}, sharpened by {guide.sensor}"
        layers = {name: replace(spec.variables[name]) for name in ("quality", "valid") if name in spec.variables}
        line = f"sharpen: {spec.subject} x{factor} by {self.method}, with {bands.size} bands of {guide.scene_id}"
        if self.method == "network":
            line += ", learnt on the scene"
        return replace(
            spec,
            grid=guide.grid,
            variables={OUTPUT: replace(subject, attrs={**subject.attrs, "long_name": long_name}), **layers},
            measurement=OUTPUT,
            subject=OUTPUT,
            group="_".join(filter(None, (spec.group, f"x{factor}"))),
            scale=guide.scale,
            history=(*spec.history, line),
        )

    def halo(self, spec: SceneSpec) -> int:
        """What interpolation, the method and back-projection reach, one after the other."""
        factor = self._factor(spec)
        fit = sharpen_hysure.halo(self.mtf, factor) if self.method == "hysure" else 0
        detail = degrade_reach(self.mtf, factor) + REACH
        made = detail + fit + consistency_halo(self.mtf, factor, self.rounds)
        return max(made, sharpen_network.reach(self.mtf, factor)) if self.method == "network" else made

    def _factor(self, spec: SceneSpec) -> int:
        return int(spec.guides[self.guide].scale / Fraction(spec.scale))

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over spectra of both, and for `cnmf` a sample of them; then what a network learns from."""
        if number:
            return self._lessons(block, stats)
        near = block.crop(block.core.expand(degrade_reach(self.mtf, self._factor(block.spec)), block.spec.shape))
        guide = block.guides[self.guide]
        seen = Seen.of(near, guide.crop(near.window.scaled(self._factor(block.spec))), self.mtf)
        sums = joint_moments(*(near.inner(image).reshape(len(image), -1) for image in (seen.cube, seen.coarse)))
        if self.method != "cnmf":
            return sums
        both = np.concatenate([seen.cube, seen.coarse])
        lattice = near.window, block.core, block.spec.shape, sharpen_cnmf.SAMPLES
        return {**sums, "sample": sampled(both, *lattice)}

    def _lessons(self, block: Block, stats: Stats) -> Stats:
        seen = Seen.of(block, block.guides[self.guide], self.mtf)
        lattice = block.window, block.core, block.spec.shape, sharpen_network.SAMPLES
        return {"sample": sampled(sharpen_network.lesson(seen, stats, self.mtf), *lattice)}

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """What the method needs of the whole scene, and how many pixels told it.

        Raises:
            InputError: too few pixels have a value in all bands of both scenes.
        """
        if number:
            return {**stats, **sharpen_network.learn(sums["sample"], stats)}
        moments = moments_of(sums, spec, self.guide)
        settled = self._settled(moments, sums, spec)
        return {**settled, "guide_spread": moments.guide_spread, "pixels": np.array(moments.count)}

    def _settled(self, moments: Moments, sums: Stats, spec: SceneSpec) -> Stats:
        if self.method == "gsa":
            return sharpen_gsa.settle(moments)
        if self.method == "cnmf":
            return sharpen_cnmf.settle(sums["sample"], moments.bands, self.endmembers)
        return sharpen_hysure.settle(moments, packing_noise(spec))

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `sharpened` cube of a block, and the repeated layers."""
        seen = Seen.of(block, block.guides[self.guide], self.mtf)
        shape = tuple(size * seen.factor for size in block.window.shape)
        cube = np.full((len(block.bands), *shape), np.nan, np.float32)
        good, detail = np.flatnonzero(block.bands.good), self._detail(seen, stats)
        for part, made in consistent_bands(seen, detail, stats["guide_spread"], self.mtf, self.rounds):
            cube[good[part]] = made
        layers = {
            name: block[name].repeat(seen.factor, axis=0).repeat(seen.factor, axis=1)
            for name in ("quality", "valid")
            if name in block.spec.variables
        }
        if "quality" in layers:
            layers["quality"][~seen.shown] |= np.asarray(QUALITY_FLAGS["reduced_quality"], layers["quality"].dtype)
        return {OUTPUT: cube, **layers}

    def _detail(self, seen: Seen, stats: Stats) -> Detail:
        if self.method == "gsa":
            return sharpen_gsa.detail(seen, stats)
        if self.method == "cnmf":
            return sharpen_cnmf.detail(seen, stats)
        if self.method == "network":
            return sharpen_network.detail(seen, stats)
        return sharpen_hysure.detail(seen, stats, self.mtf)

    def facts(self, stats: Stats, spec: SceneSpec) -> Mapping[str, Fact]:
        """The guide, the method, and how much of the scene it has learnt from."""
        guide = spec.guides[self.guide]
        facts: dict[str, Fact] = {
            "guide": guide.scene_id,
            "method": self.method,
            "guide_bands": int(comparable(spec, guide).size),
            "pixels": int(stats["pixels"]),
            "share_of_scene": round(int(stats["pixels"]) / math.prod(spec.shape), 4),
        }
        if self.method == "network":
            facts |= {"learnt_pixels": int(stats["learnt"]), "worth": round(float(stats["worth"].mean()), 4)}
        return facts

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters; the number of endmembers where there are any."""
        described = super().fingerprint()
        if self.method != "cnmf":
            described.pop("endmembers")
        return described
