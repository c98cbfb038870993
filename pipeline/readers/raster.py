"""GeoTIFF and ENVI rasters whose tags hold wavelengths, as Sources."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import REFLECTANCE, Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import MEASUREMENTS, Bands, SceneSpec, cube_variable
from cubeloom.untrusted import safe_name

from .bands import FloatArray, StrArray, preferred, usable
from .rasters import RasterFile, RasterInfo, block_shape, digest, envi_header, handle, inspect, read_window
from .wavelength_tags import BandTags, read_tags

__all__ = ["RasterSource", "open_source", "recognises"]

_SUFFIXES = (".tif", ".tiff", ".geotiff", ".jp2")
_NO_PIXELS = (".xml", ".txt", ".hdr", ".csv", ".json", ".gpkg", ".png", ".jpg", ".pdf", ".md")
"""Suffixes of files that may stand beside an ENVI header without being its image."""
_HIGHEST_REFLECTANCE = 2.0
"""Reflectance above this is no reflectance but DN: bright snow seen at a slant reaches some 1.5."""
_LARGEST = 1e30
"""Beyond it, products of float32 have no value."""
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for a time that the file does not state; the Scene then carries `time_known: false`."""


def recognises(path: Path) -> bool:
    """Whether `path` is a TIFF or JPEG 2000 file, an ENVI header, or a binary with an ENVI header beside it."""
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in _SUFFIXES or suffix == ".hdr" or envi_header(path) is not None


def open_source(path: Path, *, scale: str | None = None, measurement: str | None = None) -> "RasterSource":
    """The Source over a raster with wavelengths.

    Args:
        path: the image, or its ENVI header.
        scale: factor from the file's numbers to physical values, for a file that states none.
        measurement: `reflectance` (default), `radiance` or `sigma0`, for a file that does not state it.

    Raises:
        InputError: no wavelengths, several with the same number, or damaged.
        ConfigError: the numbers are no physical values and nothing states their scale; or a bad option.
    """
    image = _image(path) if path.suffix.lower() == ".hdr" else path
    file = RasterFile(image)
    info, tags = inspect(file), read_tags(handle(file), str(image))
    _require_physical(tags, image)
    name = measurement or tags.texts.get("measurement", "reflectance")
    if name not in MEASUREMENTS:
        raise ConfigError(f"{image}: measurement {name!r} is unknown; expected one of {', '.join(MEASUREMENTS)}")
    order = np.argsort(tags.wavelength, kind="stable")
    gain = _gain(file, info, tags, scale, name)
    if not (np.abs([gain, tags.offset]) < _LARGEST).all():
        raise InputError(f"{image}: scale or offset of a band is no number below {_LARGEST:g}; the file is damaged")
    spec = _spec(path, image, info, tags, order, name)
    return RasterSource(spec, file, info, tuple(int(at) + 1 for at in order), gain[order], tags.offset[order])


def _require_physical(tags: BandTags, image: Path) -> None:
    """Refuse bands whose wavelength or width cannot be."""
    for what, values in (("wavelength", tags.wavelength), ("fwhm", tags.fwhm)):
        sound = np.ones(1, bool) if values is None else (values > 0) & (values < _LARGEST)
        if not sound.all():
            raise InputError(f"{image}: band {int(np.argmin(sound)) + 1} has no positive {what}")


def _image(header: Path) -> Path:
    """The binary that an ENVI header describes."""
    found = sorted(
        near for near in header.parent.iterdir() if near.is_file() and near != header and envi_header(near) == header
    )
    rasters = [near for near in found if near.suffix.lower() not in _NO_PIXELS]
    if len(rasters) != 1:
        listed = ", ".join(near.name for near in rasters) or "none"
        raise InputError(
            f"{header}: expected one binary file beside this ENVI header, found {listed}; open it directly"
        )
    return rasters[0]


def _gain(file: RasterFile, info: RasterInfo, tags: BandTags, scale: str | None, measurement: str) -> FloatArray:
    """Factor of each band, in the file's order: the option, else what the tags state; never a guess."""
    if scale is not None:
        return np.full(info.count, _positive(file, scale))
    if tags.gain is not None:
        return tags.gain
    if np.issubdtype(np.dtype(info.dtype), np.integer):
        found = f"{info.dtype} numbers"
    elif measurement == "reflectance" and (highest := _highest(file, info)) > _HIGHEST_REFLECTANCE:
        found = f"numbers up to {highest:g}"
    else:
        return np.ones(info.count)
    raise ConfigError(
        f"{file}: the file holds {found} and states no scale, so their unit is unknown. Give it, for example "
        "scale=0.0001 for reflectance stored times 10000, or write it into the file (band scale, or "
        "`reflectance scale factor` in the ENVI header)"
    )


def _positive(file: RasterFile, scale: str) -> float:
    try:
        value = float(scale)
    except ValueError:
        value = 0.0
    if not np.isfinite(value) or value <= 0:
        raise ConfigError(f"{file}: scale={scale!r}; expected a positive number such as 0.0001")
    return value


def _highest(file: RasterFile, info: RasterInfo) -> float:
    """Largest number in the middle of the image, in up to eight bands spread over the spectrum."""
    height, width = (min(64, size) for size in info.shape)
    window = Window((info.shape[0] - height) // 2, (info.shape[1] - width) // 2, height, width)
    bands = np.unique(np.linspace(1, info.count, 8).astype(int)).tolist()
    sample = read_window(file, window, bands, info.shape)
    known = sample[np.isfinite(sample) & (sample != (np.nan if info.nodata is None else info.nodata))]
    return float(known.max()) if known.size else 0.0


def _spec(path: Path, image: Path, info: RasterInfo, tags: BandTags, order: Array, measurement: str) -> SceneSpec:
    wavelength = tags.wavelength[order]
    detector = _detectors(tags)[order]
    numbers = (np.arange(1, info.count + 1) if tags.number is None else tags.number).astype(np.int32)
    attrs: dict[str, Any] = {}
    if tags.fwhm is None:
        attrs["fwhm_source"] = "spacing of the bands"
    if tags.time is None:
        attrs["time_known"] = False
    scene_id = tags.texts.get("scene_id") or re.sub(r"[^A-Za-z0-9_.+=@,()-]", "_", image.stem).lstrip(".-")
    return SceneSpec(
        scene_id=safe_name(scene_id, f"{image}: scene id"),
        sensor=tags.texts.get("sensor", "unknown"),
        processing_level=tags.texts.get("processing_level", "unknown"),
        time=tags.time or UNKNOWN_TIME,
        source=path.name,
        bands=Bands(
            number=numbers[order],
            wavelength=wavelength,
            fwhm=_spacing(wavelength) if tags.fwhm is None else tags.fwhm[order],
            detector=detector,
            good=usable(wavelength, ~tags.good[order]),
            preferred=preferred(wavelength, detector),
        ),
        grid=info.grid,
        variables={measurement: cube_variable(measurement)},
        measurement=measurement,
        subject=measurement,
        attrs=attrs,
    )


def _spacing(wavelength: FloatArray) -> FloatArray:
    """Distance to the neighbours, nm: the width to assume where none is stated."""
    if wavelength.size < 2:
        return np.full(wavelength.shape, 10.0)
    return np.maximum(np.gradient(wavelength), 0.1)


def _detectors(tags: BandTags) -> StrArray:
    """Detector of each band in the file's order: as tagged; else VNIR and SWIR where two ascending runs overlap."""
    if tags.detector is not None:
        return tags.detector
    falls = np.flatnonzero(np.diff(tags.wavelength) < 0) + 1
    if falls.size == 1 and tags.wavelength[0] < 700 < 1100 < tags.wavelength[-1]:
        return np.where(np.arange(tags.wavelength.size) < falls[0], "vnir", "swir")
    return np.full(tags.wavelength.shape, "")


@dataclass(frozen=True, eq=False)
class RasterSource:
    """A Source over one raster.

    Attributes:
        spec: the Scene without pixels.
        file: the image.
        info: its header.
        file_bands: the image's band number, 1-based, of each of the Scene's bands.
        gain: by band of the Scene; value = DN * gain + offset.
        offset: see gain.
    """

    spec: SceneSpec
    file: RasterFile
    info: RasterInfo
    file_bands: tuple[int, ...]
    gain: FloatArray
    offset: FloatArray

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the image's tiles or strips."""
        return block_shape(self.info)

    @property
    def packed(self) -> bool:
        """Whether the numbers lie as the store wants them."""
        stored = self.spec.variables[self.spec.measurement].encoding
        same = stored == REFLECTANCE and self.info.dtype == stored.dtype and self.info.nodata == stored.fill
        return same and bool((self.gain == stored.scale).all() and (self.offset == 0).all())

    @property
    def exact(self) -> bool:
        """Whether the cube's numbers are stored as they lie in the file, or as float32."""
        return self.packed or self.spec.variables[self.spec.measurement].encoding.scale is None

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of the cube, see `Source.read`.

        Raises:
            InputError: the file is damaged.
        """
        if name != self.spec.measurement:
            raise KeyError(name)
        bands = bands or slice(None)
        numbers = read_window(self.file, window, self.file_bands[bands], self.spec.shape, out)
        if self.packed:
            return Packed(numbers, REFLECTANCE)
        values = numbers.astype(np.float32)
        values *= self.gain[bands, None, None].astype(np.float32)
        values += self.offset[bands, None, None].astype(np.float32)
        if self.info.nodata is not None:
            values[numbers == self.info.nodata] = np.nan
        return values

    def files(self) -> list[Path]:
        """The image and, for ENVI, its header."""
        header = envi_header(self.file.path)
        return [self.file.path, *([header] if header else [])]

    def fingerprint(self) -> str:
        """sha256 over the content of the image and its header, and the scale they are read with."""
        return digest([("image", self.file.path)], salt=f"{self.spec.measurement} {self.gain.tolist()}")
