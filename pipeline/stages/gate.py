"""Gate: whether a product still says what was measured; a scene whose product does not is given up."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.degrade import NYQUIST, degrade
from cubeloom.pipeline.scene import Bands, SceneSpec

from .base import Fact, Stage, Stats, register
from .sharpen_guide import degrade_reach

INDICES = {"ndvi": (842.0, 665.0), "ndmi": (865.0, 1610.0), "ndwi": (560.0, 842.0)}
"""Normalised differences (a - b) / (a + b), by the wavelengths, nm, of a and b."""

NEAR_NM = 30.0
"""How far from these a band may lie."""

LEAST_SUM = 0.02
"""Share of the largest sum a + b of a block below which an index is mostly noise."""

FloatImages = npt.NDArray[np.float32]


@register("gate")
class Gate(Stage):
    """Compare the latest cube with what it was made from; above a threshold the scene fails, and the message says why.

    On a finer grid that a step before has made, the cube is first degraded to the grid it came from, as the sensor
    would have seen it, and compared with the cube there; on the scene's own grid it is compared with the measurement.
    Only bands and pixels that both have count. The cubes stay as they are. The numbers are in record, report and STAC
    item.

    Attributes:
        max_sam: mean angle between spectra, degrees.
        max_shift: largest change of a band's mean, as a share of the mean of all bands.
        max_rmse: root mean squared difference, as the same share.
        max_drift: largest mean difference of NDVI, NDMI or NDWI, of those that the bands give.
        mtf: modulation transfer of the scene's sensor at its Nyquist frequency.
        min_share: of the scene's pixels with a value, how many at least must have one in the product.
    """

    max_sam: float = Field(default=1.0, gt=0, le=180)
    max_shift: float = Field(default=0.01, gt=0)
    max_rmse: float = Field(default=0.1, gt=0)
    max_drift: float = Field(default=0.02, gt=0)
    mtf: float = Field(default=NYQUIST, gt=0.02, lt=1)
    min_share: float = Field(default=0.99, ge=0, le=1)

    @property
    def passes(self) -> int:
        """One, that compares."""
        return 1

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene as it is, with a line of history.

        Raises:
            InputError: there is nothing to compare.
        """
        if spec.scale == 1 and spec.subject == spec.measurement:
            raise InputError(
                f"{spec.scene_id}, gate: {spec.subject} is what was measured; put gate after a step that makes a cube "
                "of it"
            )
        limits = f"shift {self.max_shift:g}, RMSE {self.max_rmse:g}, drift {self.max_drift:g}"
        return spec.with_variables(history=f"gate: SAM {self.max_sam:g} deg, {limits}")

    def halo(self, spec: SceneSpec) -> int:
        """What a degraded pixel sees of the finer grid."""
        factor = int(Fraction(spec.scale))
        return factor * degrade_reach(self.mtf, factor) if factor > 1 else 0

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over the pixels that both cubes have.

        Raises:
            InputError: the cube that the product was made from is not at hand.
        """
        made, source, bands = self._both(block)
        known = np.isfinite(source).all(axis=0)
        seen = known & np.isfinite(made).all(axis=0)
        x, y = source[:, seen].astype(np.float64), made[:, seen].astype(np.float64)
        drift = [_drift(bands, name, x, y) for name in INDICES]
        return {
            "known": np.array(int(known.sum())),
            "pixels": np.array(x.shape[1]),
            "angle": np.array(_angles(x, y).sum()),
            "level": x.sum(axis=1),
            "shift": (y - x).sum(axis=1),
            "squares": ((y - x) ** 2).sum(axis=1),
            "drift": np.array([total for total, _ in drift]),
            "drift_pixels": np.array([count for _, count in drift]),
        }

    def _both(self, block: Block) -> tuple[FloatImages, FloatImages, Bands]:
        """Product and source over the block's core on the source's grid, the bands that both have."""
        origin = block.origin
        if origin is None and block.spec.scale != 1:
            raise InputError(
                f"{block.spec.scene_id}, gate: the cube that {block.spec.subject} was made from is not at hand; run "
                "gate in a workflow, after the step that refines the grid"
            )
        if origin is None:
            chosen = _measured_bands(block.bands, block.bands)
            product, source = (
                block.inner(block[name])[chosen] for name in (block.spec.subject, block.spec.measurement)
            )
            return (
                np.where(block.inner(block.valid), product, np.float32(np.nan)),
                _where_valid(block, source),
                block.bands.take(chosen),
            )
        theirs = _measured_bands(origin.bands, block.bands)
        ours = _measured_bands(block.bands, origin.bands)
        if not ours.size:
            raise InputError(f"{block.spec.scene_id}, gate: product and source share no good band to compare them by")
        factor = int(Fraction(block.spec.scale) / origin.spec.scale)
        coarse = degrade(block.subject[ours], factor, self.mtf)
        inside = np.asarray(block.core.coarsened(factor).crop(coarse, block.window.coarsened(factor)), np.float32)
        return inside, _where_valid(origin, origin.inner(origin.subject[theirs])), origin.bands.take(theirs)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The numbers of the scene.

        Raises:
            InputError: one of them is above its threshold; names all that are.
        """
        pixels = int(sums["pixels"])
        if not pixels:
            raise InputError(f"{spec.scene_id}, gate: no pixel has a value in all bands of product and source")
        level = float(np.mean(np.abs(sums["level"]))) / pixels
        drift = np.abs(sums["drift"]) / np.maximum(sums["drift_pixels"], 1)
        found = {
            "sam_deg": float(sums["angle"]) / pixels,
            "shift": float(np.max(np.abs(sums["shift"]))) / pixels / level,
            "rmse": float(np.sqrt(np.mean(sums["squares"]) / pixels)) / level,
            "drift": float(drift.max()),
            "share": pixels / int(sums["known"]),
        }
        if failed := self._failed(found):
            raise InputError(
                f"{spec.scene_id}, gate: {spec.subject} does not say what was measured: {'; '.join(failed)}"
            )
        each = {
            f"drift_{name}": value for name, value, n in zip(INDICES, drift, sums["drift_pixels"], strict=True) if n
        }
        return {name: np.array(value) for name, value in {**found, **each, "pixels": pixels}.items()}

    def _failed(self, found: Mapping[str, float]) -> list[str]:
        most = {"sam_deg": self.max_sam, "shift": self.max_shift, "rmse": self.max_rmse, "drift": self.max_drift}
        told = [
            f"{name} {found[name]:.4g}, at most {limit:g}" for name, limit in most.items() if not found[name] <= limit
        ]
        share = found["share"]
        return told + ([f"share {share:.4g}, at least {self.min_share:g}"] if share < self.min_share else [])

    def facts(self, stats: Stats, spec: SceneSpec) -> Mapping[str, Fact]:
        """The numbers, and the passing of them all."""
        numbers = {name: round(float(value), 6) for name, value in stats.items() if name != "pixels"}
        return {**numbers, "pixels": int(stats["pixels"]), "passed": "yes"}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """Nothing: the scene stays as it is."""
        return {}


def _measured_bands(bands: Bands, others: Bands) -> npt.NDArray[np.intp]:
    """Positions of good bands that the others have too."""
    shared = np.isin(bands.wavelength, others.wavelength[others.good])
    return np.flatnonzero(bands.good & shared)


def _where_valid(block: Block, cube: FloatImages) -> FloatImages:
    return np.where(block.inner(block.valid), cube, np.float32(np.nan))


def _angles(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Angle between spectra `(band, pixel)`, degrees, by Kahan's formula; 0 where one is zero."""
    lengths = np.linalg.norm(x, axis=0), np.linalg.norm(y, axis=0)
    x, y = (cube / np.where(length > 0, length, 1) for cube, length in zip((x, y), lengths, strict=True))
    half = np.arctan2(np.linalg.norm(x - y, axis=0), np.linalg.norm(x + y, axis=0))
    return np.where((lengths[0] > 0) & (lengths[1] > 0), np.degrees(2 * half), 0.0)


def _drift(bands: Bands, name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, int]:
    """Sum of an index's differences, and over how many pixels; none where a band is missing."""
    at = [bands.nearest(wavelength) for wavelength in INDICES[name]]
    if not x.size or np.abs(bands.wavelength[at] - INDICES[name]).max() > NEAR_NM:
        return 0.0, 0
    sums = [cube[at[0]] + cube[at[1]] for cube in (x, y)]
    least = LEAST_SUM * float(sums[0].max())
    clear = (sums[0] > least) & (sums[1] > least)
    a, b = ((cube[at[0]] - cube[at[1]])[clear] / total[clear] for cube, total in zip((x, y), sums, strict=True))
    return float((b - a).sum()), int(clear.sum())
