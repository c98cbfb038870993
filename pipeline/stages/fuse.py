"""Fuse: optical spectra, drawn towards what the texture of a radar scene says of them."""

from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import SceneSpec, cube_variable

from .base import Stage, Stats, register
from .fuse_bayes import Fusion, fusion_of, joint_moments
from .texture import HARALICK, OUTPUT, Percent, Texture
from .texture_glcm import MAX_LEVELS, MAX_WINDOW, Measure

FUSED = "fused"
FloatImages = npt.NDArray[np.float32]


@register("fuse")
class Fuse(Stage):
    """Bayesian fusion of every pixel's spectrum with the texture of a radar scene beside it, in closed form.

    Adds `fused`: the posterior mean of the spectrum, given the optical scene, the textures of all good bands of the
    guide (see `Texture`), and how both go together over the whole scene (see `cubeloom.pipeline.stages.fuse_bayes`).
    Where the radar has no value the spectrum stays; a pixel that lacks a good band, or takes no part, is NaN, and so
    are bands that are not good.

    Attributes:
        guide: name of the radar scene, which must lie on this scene's grid.
        balance: weight of the radar, 0 to 1; 0.5 takes both observations as they are.
        noise: standard deviation of the optical error of a band, as a share of that of the band over the scene.
        measures: of texture.
        window: of texture, px.
        levels: of texture.
        percentiles: between which the levels lie.
    """

    work_cubes: ClassVar[float] = 8.0

    guide: str = "radar"
    balance: float = Field(default=0.5, ge=0, le=1)
    noise: float = Field(default=0.1, gt=0, le=1)
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)] = HARALICK
    window: int = Field(default=5, ge=3, le=MAX_WINDOW)
    levels: int = Field(default=32, ge=2, le=MAX_LEVELS)
    percentiles: tuple[Percent, Percent] = (1.0, 99.0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self._texture  # noqa: B018 - refuses what it does not take
        return self

    @property
    def _texture(self) -> Texture:
        return Texture(measures=self.measures, window=self.window, levels=self.levels, percentiles=self.percentiles)

    @property
    def passes(self) -> int:
        """Two: the percentiles of the radar scene, and how texture and spectra go together."""
        return 2

    @property
    def guides(self) -> tuple[str, ...]:
        """The radar scene."""
        return (self.guide,)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `fused` as its subject.

        Raises:
            InputError: the guide is no scene on the same grid, or one of both has no good band.
        """
        guide = spec.guides[self.guide]
        if guide.scale != spec.scale:
            raise InputError(
                f"{spec.scene_id}, fuse: the guide {self.guide!r} is {guide.scale / spec.scale} times finer; expected "
                "one on the scene's own grid"
            )
        if not spec.bands.good.any():
            raise InputError(f"{spec.scene_id}, fuse: no band is good")
        textures = len(self._texture.plan(guide).bands)
        units = str(spec.variables[spec.subject].attrs.get("units", "1"))
        fused = cube_variable(FUSED, long_name=f"{spec.subject} fused with the texture of {self.guide}", units=units)
        line = f"fuse: {spec.subject} with {textures} textures of {guide.scene_id}, balance {self.balance:g}"
        return spec.with_variables(history=line, subject=FUSED, fused=fused)

    def halo(self, spec: SceneSpec) -> int:
        """Half a window of texture."""
        return self.window // 2

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Histograms of the radar scene, then the moments of spectra and textures."""
        guide = block.guides[self.guide]
        if number == 0:
            return self._texture.measure(guide, stats, 0)
        optical, texture = self._spectra(block), self._texture.apply(guide, stats)[OUTPUT]
        return joint_moments(*(block.inner(image).reshape(len(image), -1) for image in (optical, texture)))

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The ends of the levels, then the fusion.

        Raises:
            InputError: too few pixels have a value in both scenes.
        """
        if number == 0:
            return self._texture.settle(sums, stats, 0, spec.guides[self.guide])
        try:
            fusion = fusion_of(sums, int(spec.bands.good.sum()), self.balance, self.noise)
        except InputError as error:
            raise InputError(f"{spec.scene_id}, fuse with {self.guide}: {error}") from None
        return {**stats, **vars(fusion)}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `fused` cube of a block."""
        fusion = Fusion(*(stats[name] for name in Fusion.__dataclass_fields__))
        optical = self._spectra(block)
        texture = self._texture.apply(block.guides[self.guide], stats)[OUTPUT]
        known, seen = (np.isfinite(cube).all(axis=0) for cube in (optical, texture))
        made = np.where(known, optical, np.float32(np.nan))
        made[:, known & seen] = fusion.apply(optical[:, known & seen], texture[:, known & seen])
        fused = np.full((len(block.bands), *block.window.shape), np.nan, np.float32)
        fused[block.bands.good] = made
        return {FUSED: fused}

    def _spectra(self, block: Block) -> FloatImages:
        """The good bands, NaN where the pixel takes no part."""
        return np.where(block.valid, block.subject[block.bands.good], np.float32(np.nan))
