"""Select bands: the one stage that drops bands."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import Packed
from cubeloom.pipeline.scene import Bands, SceneSpec

from .base import Stage, Stats, register

BAND_SETS: dict[str, tuple[tuple[float, float], ...]] = {"water_vapour": ((1350.0, 1460.0), (1800.0, 1960.0))}
"""Wavelength ranges, nm, known by name; `water_vapour`: where the atmosphere lets almost no light through."""

Range = tuple[float, float]


@register("select_bands")
class SelectBands(Stage):
    """Keep the bands that meet every condition given; the others leave all cubes and per-band masks.

    Attributes:
        wavelengths: ranges `[from, to]`, nm, ends included; a band is kept if its centre lies in one of them.
        bands: the provider's band numbers, or ranges `[first, last]` of them, ends included.
        detector: name of the detector to keep (`vnir`, `swir`).
        good: keep only bands with usable data.
        preferred: keep only one detector's bands where detectors overlap.
        drop: named wavelength ranges to leave out.
    """

    wavelengths: tuple[Range, ...] | None = None
    bands: tuple[int | tuple[int, int], ...] | None = None
    detector: str | None = None
    good: bool = False
    preferred: bool = False
    drop: tuple[Literal["water_vapour"], ...] = ()
    work_cubes: ClassVar[float] = 0.0

    @property
    def skipped(self) -> str:
        """Without a condition every band stays."""
        named = self.wavelengths is not None or self.bands is not None or self.detector is not None
        return "" if named or self.good or self.preferred or self.drop else "no condition on bands is given"

    def keep(self, bands: Bands) -> npt.NDArray[np.bool_]:
        """Which of `bands` meet every condition."""
        kept = np.ones(len(bands), bool)
        if self.wavelengths is not None:
            kept &= _inside(bands.wavelength, self.wavelengths)
        if self.bands is not None:
            kept &= _inside(bands.number, [(b, b) if isinstance(b, int) else b for b in self.bands])
        if self.detector is not None:
            kept &= bands.detector == self.detector.lower()
        if self.good:
            kept &= bands.good
        if self.preferred:
            kept &= bands.preferred
        for name in self.drop:
            kept &= ~_inside(bands.wavelength, BAND_SETS[name])
        return kept

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with fewer bands.

        Raises:
            InputError: no band is left.
        """
        bands = spec.bands
        kept = self.keep(bands)
        if not kept.any():
            asked = ", ".join(f"{key} {value}" for key, value in self.model_dump(exclude_defaults=True).items())
            raise InputError(
                f"{spec.scene_id}, select_bands: no band meets all of: {asked}. The scene has {len(bands)} bands, "
                f"{bands.describe(0)} to {bands.describe(len(bands) - 1)}, of which {int(bands.good.sum())} are good, "
                f"detectors {sorted(set(bands.detector.tolist()))}; widen or drop a condition"
            )
        # A changed variable is a new object: equal objects say that the pixels are carried over.
        cut = {
            name: replace(variable) if "band" in variable.dims else variable
            for name, variable in spec.variables.items()
        }
        line = f"select_bands: {int(kept.sum())} of {len(bands)} bands"
        return replace(spec, bands=bands.take(kept), variables=cut, history=(*spec.history, line))

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any] | Packed]:
        """Every variable that has bands, with those that are kept; packed ones stay so, with what was clipped."""
        index = _as_slice(self.keep(block.bands))
        cut = {name: block.arrays[name] for name, v in block.spec.variables.items() if "band" in v.dims}
        return {name: a.take(index) if isinstance(a, Packed) else a[index] for name, a in cut.items()}


def _inside(values: npt.NDArray[Any], ranges: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401 - pairs of int or float
    """Which values lie in one of the ranges, ends included."""
    inside = np.zeros(values.shape, bool)
    for low, high in ranges:
        inside |= (values >= low) & (values <= high)
    return inside


def _as_slice(kept: npt.NDArray[np.bool_]) -> slice | npt.NDArray[np.intp]:
    """Neighbouring bands as a slice, which copies nothing; others by position."""
    index = np.flatnonzero(kept)
    if index[-1] - index[0] + 1 == index.size:
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
