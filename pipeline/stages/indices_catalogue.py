"""The catalogue of spectral indices, and where a scene has the bands that their formulas speak of.

The formulas, their constants and their letters for bands (B, G, R, RE1, N, S1, ...) are those of Awesome Spectral
Indices (Montero et al. 2023, Scientific Data 10, 197), as the package `spyndex` brings them. They are Python
expressions that `spyndex` evaluates: no others than those that are installed with it, and never one from a workflow.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.scene import Bands, SceneSpec
from cubeloom.pipeline.srf import Response, weights

REFERENCE_SENSOR = "sentinel2a"
"""Whose bands the letters stand for, where the catalogue gives them for several."""
NARROW = 0.7
"""Share of a standard band's width below which bands count as narrow, so that the standard band is made of several."""
MOST_UNCOVERED = 0.05
"""Share of a standard band's response that may lie outside a scene's usable bands."""


@dataclass(frozen=True)
class Index:
    """An index of the catalogue.

    Attributes:
        name: as in the catalogue, such as `NDVI`.
        title: its name in words.
        formula: as in the catalogue.
        letters: bands that the formula takes.
        constants: further symbols of the formula.
        reference: where it comes from.
    """

    name: str
    title: str
    formula: str
    letters: tuple[str, ...]
    constants: tuple[str, ...]
    reference: str


@dataclass(frozen=True, eq=False)
class Letter:
    """A standard band.

    Attributes:
        name: its letter, such as `RE1`.
        title: in words.
        low: shortest wavelength, nm, at which a band stands for it.
        high: longest such.
        response: centre and width of the band that a scene of narrow ones is integrated to.
    """

    name: str
    title: str
    low: float
    high: float
    response: Response


@cache
def letters() -> Mapping[str, Letter]:
    """The standard bands by letter."""
    import spyndex

    found = {}
    for name, band in spyndex.bands.items():
        low, high = float(band.min_wavelength), float(band.max_wavelength)
        known = getattr(band, REFERENCE_SENSOR, None)
        centre, width = (known.wavelength, known.bandwidth) if known else ((low + high) / 2, high - low)
        found[str(name)] = Letter(
            str(name), band.long_name, low, high, Response(str(name), float(centre), float(width))
        )
    return found


@cache
def catalogue() -> Mapping[str, Index]:
    """All indices that are made of bands and constants, by name; those of radar and of kernels are not."""
    import spyndex

    known = {*letters(), *spyndex.constants}
    return {
        str(name): Index(
            str(name),
            index.long_name,
            index.formula,
            tuple(symbol for symbol in index.bands if symbol in letters()),
            tuple(symbol for symbol in index.bands if symbol not in letters()),
            index.reference,
        )
        for name, index in spyndex.indices.items()
        if known.issuperset(index.bands)
    }


def find_index(name: str) -> Index:
    """The index of a name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    found = catalogue().get(name)
    if found is None:
        by_small_letters = {known.lower(): known for known in catalogue()}
        near = [by_small_letters[one] for one in difflib.get_close_matches(name.lower(), by_small_letters, 3, 0.5)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"unknown index {name[:40]!r}{hint} (names as in Awesome Spectral Indices; those of radar and of kernels "
            "are not offered)"
        )
    return found


def constant_values(index: Index, given: Mapping[str, float], centres: Mapping[str, float]) -> dict[str, float]:
    """What an index's constants stand for: as given, else the catalogue's default, or a band's wavelength (`lambdaN`).

    Args:
        index: the index.
        given: values by symbol.
        centres: wavelength, nm, by letter.

    Raises:
        ValueError: one has no default and is not given.
    """
    import spyndex

    defaults = {symbol: spyndex.constants[symbol].default for symbol in index.constants}
    wavelengths = {f"lambda{letter}": centre for letter, centre in centres.items()}
    found = {symbol: given.get(symbol, wavelengths.get(symbol, default)) for symbol, default in defaults.items()}
    missing = [symbol for symbol, value in found.items() if value is None]
    if missing:
        told = spyndex.constants[missing[0]].description
        raise ValueError(f"{index.name} needs a value for {missing[0]} ({told}): give constants: {{{missing[0]}: ...}}")
    return {symbol: float(value) for symbol, value in found.items() if value is not None}


def index_letters(index: Index) -> tuple[str, ...]:
    """The standard bands that an index takes, also those whose wavelength alone it takes."""
    named = [symbol.removeprefix("lambda") for symbol in index.constants if symbol.startswith("lambda")]
    return (*index.letters, *(letter for letter in named if letter not in index.letters))


@dataclass(frozen=True, eq=False)
class StandardBands:
    """How standard bands are mixed from a scene's.

    Attributes:
        letters: which they are.
        centres: the wavelength, nm, that each comes to stand at.
        matrix: `(letter, band)` weights; each row sums to 1.
        how: of each, for the history: `band 4 (664.6 nm)` or `12 bands`.
    """

    letters: tuple[str, ...]
    centres: tuple[float, ...]
    matrix: npt.NDArray[np.float64]
    how: tuple[str, ...]

    def cubes(self, cube: Array) -> dict[str, Array]:
        """The standard bands `(y, x)`, float32, of a cube `(band, y, x)`; NaN where a band that counts has no value."""
        found = {}
        for letter, row in zip(self.letters, self.matrix, strict=True):
            used = np.flatnonzero(row)
            mixed = cube[used[0]] * np.float32(row[used[0]])
            for band in used[1:]:
                mixed += cube[band] * np.float32(row[band])
            found[letter] = mixed
        return found


def standard_bands(names: Sequence[str], spec: SceneSpec) -> StandardBands:
    """Find standard bands in a scene.

    Where the scene's bands are narrow and cover the standard band, they are integrated over its response (a Gaussian
    of its centre and width, see `cubeloom.pipeline.srf`). Else the nearest of the scene's bands inside the wavelengths
    that the catalogue gives for the letter stands for it.

    Raises:
        InputError: the scene has nothing that could stand for one; names it.
    """
    rows, centres, how = [], [], []
    for name in names:
        letter = letters()[name]
        row, centre = _integrated(letter, spec.bands) or _nearest(letter, spec)
        used = np.flatnonzero(row)
        rows.append(row)
        centres.append(centre)
        how.append(spec.bands.describe(int(used[0])) if used.size == 1 else f"{used.size} bands round {centre:.0f} nm")
    return StandardBands(tuple(names), tuple(centres), np.array(rows), tuple(how))


def _integrated(letter: Letter, bands: Bands) -> tuple[npt.NDArray[np.float64], float] | None:
    """Weights of narrow bands in a standard one; None where they are not narrow, or do not cover it."""
    usable = bands.good & bands.preferred
    near = usable & (np.abs(bands.wavelength - letter.response.wavelength) <= letter.response.fwhm / 2)
    if not near.any() or (bands.fwhm[near] > NARROW * letter.response.fwhm).any():
        return None
    mixing = weights([letter.response], bands)
    if mixing.uncovered[0] > MOST_UNCOVERED:
        return None
    return mixing.matrix[0], letter.response.wavelength


def _nearest(letter: Letter, spec: SceneSpec) -> tuple[npt.NDArray[np.float64], float]:
    bands = spec.bands
    fits = bands.good & bands.preferred & (bands.wavelength >= letter.low) & (bands.wavelength <= letter.high)
    if not fits.any():
        last = len(bands) - 1
        raise InputError(
            f"{spec.scene_id}, indices: the scene has no usable band for {letter.name} ({letter.title}, "
            f"{letter.low:g}-{letter.high:g} nm); it has {len(bands)} bands, {bands.describe(0)} to "
            f"{bands.describe(last)}. Leave out the indices that need it, or open a grid or product that has it"
        )
    at = int(np.argmin(np.where(fits, np.abs(bands.wavelength - letter.response.wavelength), np.inf)))
    row = np.zeros(len(bands))
    row[at] = 1
    return row, float(bands.wavelength[at])


def compute(index: Index, values: Mapping[str, Any]) -> Array:
    """An index `(y, x)`, float32, of its symbols' values; NaN where the formula gives no finite number."""
    import spyndex

    with np.errstate(all="ignore"):
        found = spyndex.computeIndex(index.name, params=dict(values), returnOrigin=False)
    result = np.asarray(found, np.float32)
    return np.where(np.isfinite(result), result, np.float32(np.nan))
