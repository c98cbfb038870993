"""Band metadata of GeoTIFF and ENVI files: wavelengths, widths, scale and time, as their tags state them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from cubeloom.errors import InputError

from .bands import BoolArray, FloatArray, StrArray

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_NANOMETRES = {
    "nanometers": 1.0,
    "nanometer": 1.0,
    "nanometres": 1.0,
    "nm": 1.0,
    "micrometers": 1000.0,
    "micrometer": 1000.0,
    "micrometres": 1000.0,
    "microns": 1000.0,
    "um": 1000.0,
    "µm": 1000.0,
    "μm": 1000.0,
}
_LIMIT_UM = 100.0
"""Wavelengths without a unit are micrometres below this, nanometres above: no optical sensor sees 100 nm or 100 um."""

Tags = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class BandTags:
    """What a raster's tags say, one entry a band in the file's order.

    Attributes:
        wavelength: nm.
        fwhm: nm; None where not stated.
        good: ENVI's bad-band list; all True where not stated.
        detector: names; None where not stated.
        number: the provider's band numbers; None where not stated.
        gain: value = DN * gain + offset; None where nothing states it.
        offset: see gain; zeros where not stated.
        time: acquisition, UTC; None where not stated.
        texts: `sensor`, `scene_id`, `processing_level`, `measurement` where stated.
    """

    wavelength: FloatArray
    fwhm: FloatArray | None
    good: BoolArray
    detector: StrArray | None
    number: FloatArray | None
    gain: FloatArray | None
    offset: FloatArray
    time: datetime | None
    texts: Tags


def read_tags(dataset: "DatasetReader", origin: str) -> BandTags:
    """Collect the band tags of an open raster.

    Per band: tags `wavelength`, `fwhm`, `bbl`, `wavelength_units`, `detector`, `band_number`, or GDAL's IMAGERY domain
    (`CENTRAL_WAVELENGTH_UM`, `FWHM_UM`). Per file: the fields of an ENVI header. Scales: ENVI's data gain values and
    reflectance scale factor, else the scale and offset of the bands.

    Raises:
        InputError: no wavelengths, not one for every band, not a number, or in a unit that is no length.
    """
    reader = _Tags(dataset, origin)
    wavelength = reader.numbers("wavelength")
    if wavelength is None:
        raise InputError(
            f"{origin}: no wavelengths; expected a tag `wavelength` on every band (GeoTIFF), or the field "
            "`wavelength` in the ENVI header"
        )
    factor = reader.nanometres(wavelength)
    fwhm, bad_bands, offset = reader.numbers("fwhm"), reader.numbers("bbl"), reader.offset()
    good = np.ones(len(wavelength), bool) if bad_bands is None else bad_bands != 0
    detector = reader.strings("detector")
    return BandTags(
        wavelength=wavelength * factor,
        fwhm=None if fwhm is None else fwhm * factor,
        good=good,
        detector=None if detector is None else np.char.lower(np.array(detector)),
        number=reader.numbers("band_number"),
        gain=reader.gain(),
        offset=offset,
        time=reader.time(),
        texts=reader.texts(),
    )


class _Tags:
    """Tags of a raster under lower-case names, the lists of an ENVI header taken apart."""

    def __init__(self, dataset: "DatasetReader", origin: str) -> None:
        self.dataset, self.origin, self.count = dataset, origin, int(dataset.count)
        self.bands = [_lower(dataset.tags(number)) for number in dataset.indexes]
        if "wavelength" not in self.bands[0]:
            self.bands = [band | _imagery(dataset, n) for n, band in zip(dataset.indexes, self.bands, strict=True)]
        self.file = _lower(dataset.tags()) | _lower(dataset.tags(ns="ENVI"))

    def strings(self, name: str) -> list[str] | None:
        """One text a band; None where the file has none."""
        listed = [band.get(name) for band in self.bands]
        if any(item is None for item in listed) and name in self.file:
            listed = [item.strip() for item in self.file[name].strip("{} \n").split(",")]
        if all(item is None for item in listed):
            return None
        if len(listed) != self.count or any(item is None for item in listed):
            stated = sum(item is not None for item in listed)
            raise InputError(f"{self.origin}: {name!r} is stated for {stated} bands; the file has {self.count}")
        return [str(item) for item in listed]

    def numbers(self, name: str) -> FloatArray | None:
        """One finite number a band; None where the file has none."""
        listed = self.strings(name)
        if listed is None:
            return None
        try:
            values = np.array([float(item) for item in listed])
        except ValueError as error:
            raise InputError(f"{self.origin}: {name!r} holds something that is not a number ({error})") from None
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.origin}: {name!r} is not finite for band {int(np.argmin(np.isfinite(values))) + 1}"
            )
        return values

    def nanometres(self, wavelength: FloatArray) -> float:
        """Factor from the file's unit to nm: as stated, else by the size of the numbers."""
        unit = self.bands[0].get("wavelength_units", self.file.get("wavelength_units", "")).strip().lower()
        if unit in ("", "unknown"):
            return 1000.0 if wavelength.max() < _LIMIT_UM else 1.0
        if unit not in _NANOMETRES:
            raise InputError(f"{self.origin}: wavelengths are in {unit!r}; expected nanometers or micrometers")
        return _NANOMETRES[unit]

    def gain(self) -> FloatArray | None:
        """Stated factor of each band; None where nothing states one."""
        gains = self.numbers("data_gain_values")
        if gains is not None:
            return gains
        if "reflectance_scale_factor" in self.file:
            factor = self._one("reflectance_scale_factor")
            return np.full(self.count, 1 / factor)
        scales = np.array(self.dataset.scales, float)
        stated = (scales != 1).any() or np.any(np.array(self.dataset.offsets) != 0)
        return scales if stated else None

    def offset(self) -> FloatArray:
        """Stated offset of each band, else zeros."""
        offsets = self.numbers("data_offset_values")
        return np.array(self.dataset.offsets, float) if offsets is None else offsets

    def _one(self, name: str) -> float:
        try:
            value = float(self.file[name])
        except ValueError:
            value = 0.0
        if not np.isfinite(value) or value <= 0:
            raise InputError(f"{self.origin}: {name!r} is {self.file[name]!r}, expected a positive number")
        return value

    def time(self) -> datetime | None:
        """The acquisition time under the names in use."""
        for name in ("acquisition_time", "start_time", "datetime", "tifftag_datetime"):
            text = re.sub(r"^(\d{4}):(\d\d):(\d\d) ", r"\1-\2-\3 ", self.file.get(name, "").strip("{} "))
            if not text:
                continue
            try:
                time = datetime.fromisoformat(text)
                time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
            except (ValueError, OverflowError):
                raise InputError(f"{self.origin}: {name!r} is {text!r}, expected an ISO 8601 time") from None
            if not 1900 <= time.year <= 2261:  # a Scene counts nanoseconds, which end in 2262
                raise InputError(f"{self.origin}: {name!r} is {text!r}, expected a time of our age")
            return time
        return None

    def texts(self) -> dict[str, str]:
        """Texts that describe the whole file."""
        found = {name: self.file.get(name, "") for name in ("sensor", "scene_id", "processing_level", "measurement")}
        found["sensor"] = found["sensor"] or self.file.get("sensor_type", "")
        return {name: text for name, text in found.items() if text and text.lower() != "unknown"}


def _lower(tags: Tags) -> dict[str, str]:
    return {key.lower().replace(" ", "_"): value for key, value in tags.items()}


def _imagery(dataset: "DatasetReader", number: int) -> dict[str, str]:
    """Wavelength and width from GDAL's IMAGERY domain, in micrometres."""
    tags = dataset.tags(number, ns="IMAGERY")
    named = {"wavelength": tags.get("CENTRAL_WAVELENGTH_UM"), "fwhm": tags.get("FWHM_UM")}
    found = {key: value for key, value in named.items() if value}
    return found | {"wavelength_units": "um"} if found else {}
