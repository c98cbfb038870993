"""Texture: how the grey levels of a band lie beside each other, as bands of their own."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.scene import Bands, SceneSpec, Variable

from .base import Stage, Stats, register
from .histograms import quantiles, value_histograms
from .texture_glcm import MAX_LEVELS, MAX_WINDOW, Measure, quantise, texture_images

OUTPUT = "texture"
LINEAR = ("sigma0", "gamma0", "despeckled")
"""Cubes of linear backscatter, whose levels would crowd at the dark end."""

FLOOR = 1e-5
"""Backscatter below this, -50 dB, counts as this."""

Percent = Annotated[float, Field(ge=0, le=100)]
HARALICK: tuple[Measure, ...] = (
    "mean",
    "variance",
    "homogeneity",
    "contrast",
    "dissimilarity",
    "entropy",
    "asm",
    "correlation",
)


@register("texture")
class Texture(Stage):
    """Measures of the grey-level co-occurrence matrix about every pixel, each the mean over four directions.

    The result is a group of its own (`texture`) with one cube, `texture`: for each band taken, by wavelength, its
    measures in their order. Levels are of equal width between two percentiles of the whole scene, so that a level
    means the same everywhere. Pixels that take no part do not count, and are NaN.

    Attributes:
        variable: the cube to take; by default what the stages before made last.
        bands: numbers of the bands to take; by default all good ones.
        measures: which, of `mean`, `variance`, `homogeneity`, `contrast`, `dissimilarity`, `entropy`, `asm`,
            `correlation` and `energy`.
        window: edge of the window, px; odd.
        levels: how many grey levels.
        percentiles: of the scene's values, between which the levels lie.
        decibel: take 10 log10 of the values; by default of linear backscatter alone.
    """

    work_cubes: ClassVar[float] = 6.0

    variable: str | None = None
    bands: tuple[int, ...] | None = None
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)] = HARALICK
    window: int = Field(default=5, ge=3, le=MAX_WINDOW)
    levels: int = Field(default=32, ge=2, le=MAX_LEVELS)
    percentiles: tuple[Percent, Percent] = (1.0, 99.0)
    decibel: bool | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.window % 2 == 0:
            raise ValueError(f"a window of {self.window} px has no middle; give an odd number")
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles {list(self.percentiles)} do not ascend")
        if len(set(self.measures)) != len(self.measures):
            raise ValueError("a measure comes twice")
        return self

    @property
    def passes(self) -> int:
        """One: the percentiles."""
        return 1

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `texture`, in a group of its own.

        Raises:
            InputError: there is no such cube or band.
        """
        taken = self._taken(spec)
        repeated = spec.bands.take(np.repeat(taken, len(self.measures)))
        numbers = np.arange(1, len(repeated) + 1, dtype=np.int32)
        names = [f"{_names(spec)[at]}_{one}" for at in taken for one in self.measures]
        attrs = {"long_name": f"texture of {self._subject(spec)}", "units": "1", "measures": list(self.measures)}
        line = f"texture: {len(self.measures)} measures of {taken.size} bands, {self.window} px, {self.levels} levels"
        return replace(
            spec,
            bands=Bands(numbers, *(getattr(repeated, name) for name in _KEPT)),
            variables={
                OUTPUT: Variable(("band", "y", "x"), FLOAT, attrs),
                **{name: layer for name, layer in spec.variables.items() if "band" not in layer.dims},
            },
            measurement=OUTPUT,
            subject=OUTPUT,
            group="_".join(filter(None, (spec.group, OUTPUT))),
            attrs={**spec.attrs, "band_names": {str(at): name for at, name in enumerate(names, 1)}},
            history=(*spec.history, line),
        )

    def halo(self, spec: SceneSpec) -> int:
        """Half a window."""
        return self.window // 2

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Histograms of the bands."""
        images, valid = self._images(block), block.inner(np.asarray(block.valid, bool)).reshape(1, -1)
        flat = (block.inner(image).reshape(1, -1) for image in images)
        return {"values": np.concatenate([value_histograms([(one, valid & np.isfinite(one))]) for one in flat])}

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The ends of the levels, `(band,)`; 0 and 1 for a band without a value."""
        ends = [quantiles(sums["values"], percent / 100) for percent in self.percentiles]
        return {
            name: np.nan_to_num(end, nan=other) for name, end, other in zip(("low", "high"), ends, (0, 1), strict=True)
        }

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The measures, NaN where the pixel takes no part."""
        count, valid = len(self.measures), np.asarray(block.valid, bool)
        images = self._images(block)
        made = np.empty((len(images) * count, *block.window.shape), np.float32)
        for at, (image, low, high) in enumerate(zip(images, stats["low"], stats["high"], strict=True)):
            levels = quantise(np.where(valid, image, np.nan), low, high, self.levels)
            made[at * count : (at + 1) * count] = texture_images(levels, self.measures, self.window)
        return {OUTPUT: made}

    def _subject(self, spec: SceneSpec) -> str:
        return self.variable or spec.subject

    def _taken(self, spec: SceneSpec) -> npt.NDArray[np.intp]:
        """Positions of the bands to take."""
        subject = self._subject(spec)
        if subject not in spec.variables or not spec.variables[subject].is_cube:
            cubes = [name for name, variable in spec.variables.items() if variable.is_cube]
            raise InputError(f"{spec.scene_id}, texture: no cube {subject!r}; the scene has {', '.join(cubes)}")
        numbers = spec.bands.number
        absent = sorted(set(self.bands or ()) - set(numbers.tolist()))
        if absent:
            raise InputError(f"{spec.scene_id}, texture: no band {absent}; the scene has {numbers.tolist()}")
        taken = np.flatnonzero(spec.bands.good if self.bands is None else np.isin(numbers, self.bands))
        if not taken.size:
            raise InputError(f"{spec.scene_id}, texture: no band is good; name the bands to take")
        return taken

    def _images(self, block: Block) -> list[npt.NDArray[np.float32]]:
        """The bands to take, in decibel where asked for."""
        subject = self._subject(block.spec)
        decibel = subject in LINEAR if self.decibel is None else self.decibel
        images = (block[subject][band] for band in self._taken(block.spec))
        return [in_decibel(image) if decibel else image for image in images]


_KEPT = ("wavelength", "fwhm", "detector", "good", "preferred")


def in_decibel(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """10 log10 of linear backscatter, of at least FLOOR; NaN stays."""
    return np.asarray(10 * np.log10(np.maximum(image, np.float32(FLOOR))), np.float32)


def _names(spec: SceneSpec) -> list[str]:
    """Of the bands: those that the scene gives, else their numbers."""
    given = spec.attrs.get("band_names", {})
    named = given if isinstance(given, dict) else {}
    return [str(named.get(str(number), f"b{number}")) for number in spec.bands.number]
