"""The bands of Sentinel-2's MSI: one name each, whatever a provider calls them.

A band's `number` in a Scene is the provider's `bandId` (0-12) plus 1, so that B8A is 9, B09 is 10 and B12 is 13.
Wavelengths, responses and resolutions come from each product's metadata, not from here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.scene import Bands
from cubeloom.pipeline.srf import SENSORS, Response

from .bands import usable

NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Names by `bandId`, which is the order of wavelength too."""
COMMON_NAMES = (
    *("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "cirrus"),
    *("swir16", "swir22"),
)
"""Names of the STAC extension `eo`, as Earth Search has them for its assets; by `bandId`."""
NATIVE = {10: ("B02", "B03", "B04", "B08"), 20: ("B05", "B06", "B07", "B8A", "B11", "B12"), 60: ("B01", "B09", "B10")}
"""Bands by the resolution, m, they are taken at, for chips without metadata."""
CIRRUS = "B10"
_CIRRUS_WAVELENGTH = {"sentinel2a": (1373.5, 30.0), "sentinel2b": (1376.9, 30.0), "sentinel2c": (1372.2, 33.0)}
"""Centre and width, nm, of B10 where no metadata tell: it is no band of surface reflectance (see `srf.SENSORS`)."""


_UNITS = {"B": "sentinel2b", "C": "sentinel2c", "D": "sentinel2c"}
"""Whose bands a unit's are taken for where no metadata tell. Those of D are not published yet; it is C's twin."""


def unit_sensor(unit: str) -> str:
    """The name in `srf.SENSORS` for a unit's letter; of A where it is unknown."""
    return _UNITS.get(unit.upper(), "sentinel2a")


def band_name(text: str) -> str:
    """The name of a band in this module's spelling: `B1`, `b01`, `coastal` are `B01`.

    Raises:
        ConfigError: no such band; names the nearest ones.
    """
    found = known_band(text)
    if found is None:
        near = get_close_matches(text, (*NAMES, *COMMON_NAMES), 3)
        raise ConfigError(
            f"{text[:40]!r} is no band of Sentinel-2; expected B01 to B12, B8A, or a common name"
            + (f": {', '.join(near)}?" if near else " such as blue")
        )
    return found


def find_band(text: str) -> str | None:
    """The first band that a file's name speaks of, such as `B04` in `T33UUP_B04_10m.jp2`; None where there is none."""
    for part in re.split(r"[^A-Za-z0-9]+", text):
        if re.fullmatch(r"[Bb](\d{1,2}|8[Aa])", part) and (found := known_band(part)):
            return found
    return None


def band_numbers(names: Iterable[str]) -> list[int]:
    """Numbers, as in a Scene's coordinate `band`, of bands by any of their names.

    Raises:
        ConfigError: one is no band of Sentinel-2.
    """
    return [NAMES.index(band_name(name)) + 1 for name in names]


def known_band(text: str) -> str | None:
    """The name of a band by any of its names; None where there is none such."""
    low = text.strip().lower()
    if low in COMMON_NAMES:
        return NAMES[COMMON_NAMES.index(low)]
    found = re.fullmatch(r"b?0*(\d{1,2}a?)", low)
    name = f"B{found[1].upper():0>2}" if found else ""
    return name if name in NAMES else None


@dataclass(frozen=True, eq=False)
class Band:
    """A band as a product's metadata describe it.

    Attributes:
        name: as in `NAMES`.
        resolution: m, native.
        response: centre and width (nm), and the curve where the metadata have one.
    """

    name: str
    resolution: int
    response: Response

    @property
    def number(self) -> int:
        """`bandId` plus 1."""
        return NAMES.index(self.name) + 1


def scene_bands(bands: Sequence[Band]) -> Bands:
    """The band axis of a Scene.

    Raises:
        InputError: the metadata give two bands in another order than their wavelengths.
    """
    wavelength = np.array([band.response.wavelength for band in bands])
    if (np.diff(wavelength) <= 0).any():
        raise InputError(f"the wavelengths of {', '.join(band.name for band in bands)} do not ascend: {wavelength}")
    return Bands(
        number=np.array([band.number for band in bands], np.int32),
        wavelength=wavelength,
        fwhm=np.array([band.response.fwhm for band in bands]),
        detector=np.array(["swir" if band.number > NAMES.index(CIRRUS) else "vnir" for band in bands]),
        good=usable(wavelength, np.zeros(wavelength.size, bool)),
        preferred=np.ones(wavelength.size, bool),
    )


def nominal_bands(names: Iterable[str], sensor: str = "sentinel2a") -> list[Band]:
    """Bands of chips that come without metadata: nominal centres and widths, ascending.

    Args:
        names: in the spelling of `NAMES`, in any order.
        sensor: of `srf.SENSORS`, see `unit_sensor`.
    """
    known = {known_band(response.name): response for response in SENSORS[sensor]}
    known[CIRRUS] = Response(CIRRUS, *_CIRRUS_WAVELENGTH[sensor])
    resolution = {name: step for step, group in NATIVE.items() for name in group}
    return [Band(name, resolution[name], known[name]) for name in sorted(names, key=NAMES.index)]
