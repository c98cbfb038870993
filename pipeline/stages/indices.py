"""Spectral indices: one layer an index, by the formulas of a published catalogue."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register
from .indices_catalogue import (
    Index,
    StandardBands,
    compute,
    constant_values,
    find_index,
    index_letters,
    standard_bands,
)


@register("indices")
class Indices(Stage):
    """Compute spectral indices of the subject: adds one variable `(y, x)` an index, by the index's name.

    The subject must be reflectance. The bands that a formula takes are found by wavelength, see `standard_bands`. An
    index is NaN where the pixel takes no part, a band it needs has no value, or the formula gives no finite number.

    Attributes:
        names: of the indices, as in Awesome Spectral Indices (`NDVI`, `NDWI`, `EVI`, ...).
        constants: values of a formula's constants in place of the catalogue's, such as `{L: 0.5}` for SAVI.
    """

    names: tuple[str, ...] = ()
    constants: Mapping[str, float] = Field(default={})
    work_cubes: ClassVar[float] = 2.0

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            find_index(name)
        if len(set(names)) < len(names):
            raise ValueError("an index is named twice")
        return names

    @field_validator("constants")
    @classmethod
    def _finite(cls, constants: Mapping[str, float]) -> Mapping[str, float]:
        if not all(np.isfinite(value) for value in constants.values()):
            raise ValueError("a constant is no finite number")
        return constants

    @property
    def skipped(self) -> str:
        """Without names there is nothing to compute."""
        return "" if self.names else "no index is named"

    @property
    def _indices(self) -> list[Index]:
        return [find_index(name) for name in self.names]

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with a layer for each index.

        Raises:
            InputError: the subject is no reflectance, has no band that a formula needs, or a constant has no value, or
                is of none of the formulas; or a variable has the name of an index.
        """
        where = f"{spec.scene_id}, indices"
        units = spec.variables[spec.subject].attrs.get("units")
        if units != "1" or not np.isfinite(spec.bands.wavelength).any():
            raise InputError(f"{where}: {spec.subject} (units {units!r}) is no reflectance, which the formulas take")
        self._require_free_names(spec, where)
        self._require_known_constants(where)
        found = self._standard_bands(spec)
        layers = {index.name: self._variable(index, found, where) for index in self._indices}
        used = ", ".join(f"{letter} = {how}" for letter, how in zip(found.letters, found.how, strict=True))
        line = f"indices: {', '.join(self.names)} of {spec.subject}; {used}"
        return replace(spec, variables={**spec.variables, **layers}, history=(*spec.history, line))

    def _require_free_names(self, spec: SceneSpec, where: str) -> None:
        taken = [name for name in self.names if name in spec.variables]
        if taken:
            raise InputError(f"{where}: the scene has a variable {taken[0]!r} already; leave the index out")

    def _require_known_constants(self, where: str) -> None:
        known = {symbol for index in self._indices for symbol in index.constants}
        strange = sorted(set(self.constants) - known)
        if strange:
            raise InputError(
                f"{where}: none of {', '.join(self.names)} has a constant {strange[0]!r}; they have "
                f"{', '.join(sorted(known)) or 'none'}"
            )

    def _standard_bands(self, spec: SceneSpec) -> StandardBands:
        return standard_bands(sorted({letter for index in self._indices for letter in index_letters(index)}), spec)

    def _variable(self, index: Index, found: StandardBands, where: str) -> Variable:
        try:
            constants = constant_values(index, self.constants, dict(zip(found.letters, found.centres, strict=True)))
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        attrs = {"long_name": index.title, "units": "1", "formula": index.formula, "references": index.reference}
        shown = ", ".join(f"{symbol} = {value:g}" for symbol, value in constants.items())
        return Variable(("y", "x"), FLOAT, {**attrs, **({"constants": shown} if shown else {})})

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters, and the formulas, which a newer catalogue may have changed."""
        return super().fingerprint() | {"formulas": {index.name: index.formula for index in self._indices}}

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The indices of a block."""
        found = self._standard_bands(block.spec)
        bands = found.cubes(block.subject)
        centres = dict(zip(found.letters, found.centres, strict=True))
        left_out = ~np.asarray(block.valid, bool)
        made = {}
        for index in self._indices:
            symbols = {letter: bands[letter] for letter in index.letters}
            made[index.name] = compute(index, symbols | constant_values(index, self.constants, centres))
            made[index.name][left_out] = np.nan
        return made
