"""What SpectralEarth's published weights expect of a cube (Braham et al. 2024, arXiv 2408.08447): bands and statistics.

The figures lie in `tables/`. Means and standard deviations are those of the authors' repository (`data/*statistics` of
AABNassim/spectral_earth), in the digital numbers of its files; of EnMAP's, 10,000 are a reflectance of 1. Centres and
widths are those that EnMAP's L2A metadata state. The authors' own table of them, `data/enmap_bands_remapped.csv`, is
wrong for fifteen bands: it leaves out 127-141 and 146-152 instead of 127-141 and 161-167, which the means contradict.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cubeloom.errors import ModelError

from .cards import InputBands

ENMAP_202 = (*range(1, 127), *range(142, 161), *range(168, 225))
"""The bands that SpectralEarth takes of EnMAP's 224, by ascending wavelength, counted from 1 as in L2A products."""
DN_OF_ONE = 10_000
"""Digital number in EnMAP's files of a reflectance of 1."""
SENSORS = ("enmap", "desis", "eo1", "hyperview")
"""Of which there are statistics."""

_TABLES = Path(__file__).parent / "tables"


class Statistics(NamedTuple):
    """Of each band, in the digital numbers of SpectralEarth's files.

    Attributes:
        mean: of the training images.
        std: standard deviation over them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def statistics(sensor: str = "enmap") -> Statistics:
    """By which the authors standardise a sensor's images: 202 bands of EnMAP, 235 of DESIS, 198 of EO-1's Hyperion.

    Args:
        sensor: one of `SENSORS`; `hyperview` are the 150 bands of the HYPERVIEW challenge.

    Raises:
        ModelError: another sensor.
    """
    if sensor not in SENSORS:
        raise ModelError(f"there are no statistics of {sensor!r}; of {', '.join(SENSORS)} there are")
    columns = _columns(sensor)
    return Statistics(columns["mean"], columns["std"])


def enmap_bands() -> InputBands:
    """The 202 bands, with the centres and widths of a scene of 2022; those of others differ by less than 1 nm."""
    columns = _columns("enmap")
    return InputBands(numbers=ENMAP_202, wavelengths_nm=columns["wavelength_nm"], fwhm_nm=columns["fwhm_nm"])


def card_fields() -> Mapping[str, Any]:
    """Of the card of weights that come without one: EnMAP's reflectance, standardised as the authors do."""
    bands, known = enmap_bands(), statistics()
    return {
        "sensor": "EnMAP",
        "variable": "reflectance",
        "units": "1",
        "wavelengths_nm": (bands.wavelengths_nm[0], bands.wavelengths_nm[-1]),
        "bands": len(bands),
        "input_bands": bands,
        "mean": tuple(value / DN_OF_ONE for value in known.mean),
        "std": tuple(value / DN_OF_ONE for value in known.std),
    }


@cache
def _columns(sensor: str) -> dict[str, tuple[float, ...]]:
    with (_TABLES / f"spectral_earth_{sensor}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: tuple(float(row[name]) for row in rows) for name in rows[0]}
