"""Resample bands: the scene as a sensor with other bands would have seen it."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import Bands, SceneSpec
from cubeloom.pipeline.srf import SENSORS, Response, gaussians, read_table, weights

from .base import Stage, Stats, register


@register("resample_bands")
class ResampleBands(Stage):
    """Mix the subject's bands into those of another sensor, by its spectral response functions.

    The result is a group of its own that holds the resampled subject, under its own name, and the layers `(y, x)`.
    Only good bands count, and one detector's where two overlap. A target that they do not cover is an error, or NaN.

    Attributes:
        to: a sensor known by name (`sentinel2a`, `sentinel2b`, `sentinel2c`).
        wavelengths: or centres of Gaussian responses, nm.
        fwhm: their widths at half maximum, nm; one number for all, or one each.
        srf: or a table of measured responses: wavelength column (nm), then one column a band.
        group: name of the resulting group; by default that of the sensor or table, or `resampled`.
        uncovered: what becomes of a target band that the scene does not cover: `error`, or `nan` and not `good`.
        max_uncovered: share of a target's response that may lie outside the scene's usable bands.
    """

    to: str | None = None
    wavelengths: tuple[float, ...] | None = None
    fwhm: float | tuple[float, ...] | None = None
    srf: Path | None = None
    group: str = ""
    uncovered: Literal["error", "nan"] = "error"
    max_uncovered: float = Field(default=0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in ("to", "wavelengths", "srf") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of to, wavelengths or srf; found {', '.join(given) or 'none'}")
        if self.to is not None and self.to not in SENSORS:
            raise ValueError(f"unknown sensor {self.to!r}; known: {', '.join(SENSORS)}; or give wavelengths, or srf")
        if (self.wavelengths is None) != (self.fwhm is None):
            raise ValueError("wavelengths and fwhm go together")
        if self.wavelengths is not None and len(self._widths) != len(self.wavelengths):
            raise ValueError(f"{len(self.wavelengths)} wavelengths but {len(self._widths)} fwhm")
        if any(value <= 0 for value in (*(self.wavelengths or ()), *self._widths)):
            raise ValueError("wavelengths and fwhm must be above zero")
        if re.fullmatch(r"[A-Za-z0-9_-]*", self.group) is None:
            raise ValueError(f"group {self.group!r}: letters, digits, - and _ only")
        return self

    @property
    def _widths(self) -> tuple[float, ...]:
        if isinstance(self.fwhm, tuple):
            return self.fwhm
        return (self.fwhm,) * len(self.wavelengths or ()) if self.fwhm is not None else ()

    def responses(self) -> list[Response]:
        """The target's bands, by ascending wavelength."""
        if self.to is not None:
            return SENSORS[self.to]
        targets = read_table(self.srf) if self.srf is not None else gaussians(self.wavelengths or (), self._widths)
        return sorted(targets, key=lambda response: response.wavelength)

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with the target's bands, in a group of its own.

        Raises:
            InputError: the scene does not cover a target band; names them.
        """
        responses = self.responses()
        uncovered = weights(responses, spec.bands).uncovered
        covered = uncovered <= self.max_uncovered
        if not covered.any() or (self.uncovered == "error" and not covered.all()):
            raise InputError(self._not_covered(spec, responses, uncovered))
        name = self.group or self.to or (self.srf.stem if self.srf is not None else "resampled")
        layers = {key: variable for key, variable in spec.variables.items() if "band" not in variable.dims}
        return replace(
            spec,
            bands=_target_bands(responses, covered),
            variables={spec.subject: replace(spec.variables[spec.subject]), **layers},
            measurement=spec.subject,
            group="_".join(filter(None, (spec.group, name))),
            attrs={**spec.attrs, "band_names": {str(number): one.name for number, one in enumerate(responses, 1)}},
            history=(*spec.history, f"resample_bands: {spec.subject} to {len(responses)} bands of {name} by response"),
        )

    def _not_covered(self, spec: SceneSpec, responses: list[Response], uncovered: npt.NDArray[np.float64]) -> str:
        named = [
            f"{response.name} ({response.wavelength:.1f} nm, fwhm {response.fwhm:.1f}): {share:.0%} outside"
            for response, share in zip(responses, uncovered, strict=True)
            if share > self.max_uncovered
        ]
        return (
            f"{spec.scene_id}, resample_bands: the scene's good bands do not cover {len(named)} of {len(responses)} "
            f"target bands: {'; '.join(named[:8])}{'; ...' if len(named) > 8 else ''}. At most "
            f"{self.max_uncovered:.0%} may lie outside: leave these targets out, or set uncovered: nan"
        )

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The subject with the target's bands, NaN where the pixel takes no part."""
        mixing = weights(self.responses(), block.bands)
        cube = mixing.apply(block.subject)
        cube[:, ~np.asarray(block.valid, bool)] = np.nan
        cube[mixing.uncovered > self.max_uncovered] = np.nan
        return {block.spec.subject: cube}

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters; a response table by its content instead of its path."""
        described = super().fingerprint()
        if self.srf is not None:
            try:
                described["srf"] = hashlib.sha256(self.srf.read_bytes()).hexdigest()
            except OSError as error:
                raise ConfigError(f"resample_bands: response table {self.srf}: {error}") from None
        return described


def _target_bands(responses: list[Response], covered: npt.NDArray[np.bool_]) -> Bands:
    count = len(responses)
    return Bands(
        number=np.arange(1, count + 1, dtype=np.int32),
        wavelength=np.array([response.wavelength for response in responses]),
        fwhm=np.array([response.fwhm for response in responses]),
        detector=np.full(count, ""),
        good=covered,
        preferred=np.ones(count, bool),
    )
