"""Radar backscatter as GeoTIFFs, as Sen1Floods11, SSL4EO-S12, BigEarthNet or Planetary Computer's RTC have it.

A folder of one TIFF a polarisation, or one TIFF of all. Such files hardly ever say whether their numbers are decibels,
power or amplitude, nor whether they are sigma0 or gamma0. What neither tags nor names say must be told; what the pixels
suggest is in the message that asks for it. A Scene's backscatter is linear: decibels are brought to power as they are
read, by float64.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import SceneSpec, cube_variable
from cubeloom.untrusted import safe_name

from .raster import UNKNOWN_TIME
from .rasters import RasterFile, RasterInfo, block_shape, digest, handle, inspect, read_window
from .sentinel1_calibration import CALIBRATIONS
from .sentinel1_safe import POLARISATIONS
from .sentinel1_scene import band_names, radar_bands

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["BackscatterSource", "open_source", "recognises"]

UNITS: Mapping[str, Callable[[Array], Array]] = {
    "db": lambda numbers: 10 ** (numbers / 10),
    "linear": lambda numbers: numbers,
    "amplitude": lambda numbers: numbers * numbers,
}
"""How numbers become linear power, by what they are."""
_TIFFS = (".tif", ".tiff")
_POLARISATION = re.compile(r"(?i)(?<![a-z0-9])(vv|vh|hh|hv)(?![a-z0-9])")
_RADAR = re.compile(r"(?i)(?<![a-z0-9])s1([a-d](?![a-z0-9])|hand|_|-|\.|$)")
_MEASUREMENT = re.compile(r"(?i)s1[a-d]-(iw|ew|wv|s[1-6])-grd-")
_PRODUCT = re.compile(r"(S1[A-D])_(?:IW|EW|S[1-6])_(GRD)")
_TIME = re.compile(r"(?<!\d)(20[123]\d[01]\d[0-3]\dT\d{6})(?!\d)")
_SAID = {"db": {"db", "decibel", "decibels"}, "linear": {"linear", "power"}, "amplitude": {"amplitude"}}
"""Words in tags by the units that they mean."""
_TELLING = ("units", "unit", "calibration", "backscatter")
"""Tags that say what numbers are."""
_SAMPLE = 256
"""Edge, px, of the middle of an image that suggestions look at."""


def recognises(path: Path) -> bool:
    """Whether `path` holds radar backscatter: a folder of TIFFs named by polarisation, or such a TIFF.

    A TIFF counts if it holds floating-point numbers without wavelengths, and its bands, their descriptions or its name
    speak of polarisations or of Sentinel-1.

    Raises:
        InputError: a TIFF is damaged.
    """
    if path.is_dir():
        files = _polarisation_files(path)
        return bool(files) and all(is_backscatter(handle(RasterFile(file))) for file in files.values())
    if not path.is_file() or path.suffix.lower() not in _TIFFS:
        return False
    if _MEASUREMENT.match(path.name):
        return True
    dataset = handle(RasterFile(path))
    named = bool(_POLARISATION.search(path.stem) or _RADAR.search(path.stem))
    return is_backscatter(dataset) and (named or described(dataset) is not None)


def open_source(
    path: Path, *, units: str | None = None, calibration: str | None = None, polarisation: str | None = None
) -> "BackscatterSource":
    """The Source over backscatter in GeoTIFFs.

    Args:
        path: a folder with one TIFF a polarisation (`VV.tif`, `..._VV.tif`, `iw-vv.rtc.tiff`), or a TIFF.
        units: `db`, `linear` (power) or `amplitude`, where the file's tags do not say it.
        calibration: `sigma0` or `gamma0`, where tags and names do not say it (`rtc` in a name stands for gamma0).
        polarisation: of a TIFF's bands in their order, such as `VV,VH`, where neither bands nor name say it.

    Raises:
        InputError: a file is damaged, or files differ in size or place.
        ConfigError: an option is missing (says what the pixels suggest) or wrong.
    """
    if _MEASUREMENT.match(path.name):
        raise InputError(
            f"{path}: a measurement of a GRD product, whose numbers mean nothing without its calibration; open the "
            "product's folder or ZIP"
        )
    layers = _folder_layers(path, polarisation) if path.is_dir() else _file_layers(path, polarisation)
    return backscatter(path, layers, units, calibration)


def backscatter(
    path: Path, layers: "Sequence[Layer]", units: str | None, calibration: str | None, said: Sequence[str] = ()
) -> "BackscatterSource":
    """The Source over layers that belong together.

    Args:
        path: what is opened, for messages and the Scene's name.
        layers: one of each polarisation.
        units: as told, see `open_source`.
        calibration: as told.
        said: what stands elsewhere about the numbers, in lower case.

    Raises:
        InputError, ConfigError: as `open_source`.
    """
    layers = sorted(layers, key=lambda layer: POLARISATIONS.index(layer.polarisation))
    info = _common_info(layers)
    unit, quantity = _meaning(path, layers, info, (units, calibration), said)
    return BackscatterSource(_spec(path, layers, info, unit, quantity), tuple(layers), info, unit)


@dataclass(frozen=True)
class Layer:
    """A polarisation and where it lies: a file, and its number in there."""

    polarisation: str
    file: RasterFile
    number: int


def is_backscatter(dataset: "DatasetReader") -> bool:
    """Whether a file can hold backscatter: floating-point numbers without wavelengths, of four bands at most."""
    tags = [dataset.tags(), *(dataset.tags(number) for number in dataset.indexes)]
    spectral = any("wavelength" in key.lower() for part in tags for key in part)
    floats = all(np.issubdtype(np.dtype(dtype), np.floating) for dtype in dataset.dtypes)
    return floats and not spectral and dataset.count <= len(POLARISATIONS)


def described(dataset: "DatasetReader") -> list[str] | None:
    """Polarisations that the bands' descriptions name, one each; None where they do not."""
    found = [_POLARISATION.search(text or "") for text in dataset.descriptions]
    names = [match[1].upper() for match in found if match]
    return names if len(set(names)) == dataset.count else None


def _polarisation_files(folder: Path) -> dict[str, Path]:
    """TIFFs by the polarisation in their name; several of one leave none, so that nothing is picked by chance."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _POLARISATION.search(path.stem)
        if match and path.suffix.lower() in _TIFFS and path.is_file() and not _MEASUREMENT.match(path.name):
            found.setdefault(match[1].upper(), []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _folder_layers(folder: Path, polarisation: str | None) -> list[Layer]:
    if polarisation is not None:
        raise ConfigError(f"{folder}: polarisation={polarisation!r} is for one TIFF; these are named by theirs")
    return [Layer(name, RasterFile(path), 1) for name, path in _polarisation_files(folder).items()]


def _file_layers(path: Path, polarisation: str | None) -> list[Layer]:
    dataset = handle(RasterFile(path))
    alone = _POLARISATION.search(path.stem)
    if polarisation is not None:
        names = [name.strip().upper() for name in polarisation.split(",")]
    elif own := described(dataset):
        names = own
    elif alone and dataset.count == 1:
        names = [alone[1].upper()]
    else:
        raise ConfigError(
            f"{path}: holds {dataset.count} bands and does not say which; give their polarisations in order, such as "
            "polarisation='VV,VH' (that of Sen1Floods11)"
        )
    if len(names) != dataset.count or len(set(names)) != len(names) or not set(names) <= set(POLARISATIONS):
        raise ConfigError(
            f"{path}: polarisation={polarisation!r} does not name {dataset.count} of {', '.join(POLARISATIONS)}"
        )
    return [Layer(name, RasterFile(path), number) for number, name in enumerate(names, 1)]


def _common_info(layers: Sequence[Layer]) -> RasterInfo:
    first = inspect(layers[0].file)
    for layer in layers:
        info = inspect(layer.file)
        if info.grid != first.grid:
            raise InputError(
                f"{layer.file}: has {info.shape[0]} x {info.shape[1]} px on another grid than {layers[0].file} of "
                f"{first.shape[0]} x {first.shape[1]} px; the files do not belong together"
            )
    return first


def _meaning(
    path: Path, layers: Sequence[Layer], info: RasterInfo, told: tuple[str | None, str | None], said: Sequence[str]
) -> tuple[str, str]:
    """Units and quantity: as told, else as tags and names say.

    Raises:
        ConfigError: one is not known, or told wrong.
    """
    units, calibration = told
    for name, value, known in (("units", units, tuple(UNITS)), ("calibration", calibration, tuple(CALIBRATIONS))):
        if value is not None and value not in known:
            raise ConfigError(f"{path}: {name}={value!r}; expected {' or '.join(map(repr, known))}")
    texts = [*_texts(layers), *said]
    unit, quantity = units or _stated_units(texts), calibration or _stated_quantity(path, layers, texts)
    missing = [] if unit else ["units='db', 'linear' or 'amplitude'"]
    missing += [] if quantity else ["calibration='sigma0' or 'gamma0'"]
    if not (unit and quantity):
        hint = "" if unit else f". Here {_suggestion(layers[0], info)}"
        raise ConfigError(f"{path}: nothing says what the numbers are; give {' and '.join(missing)}{hint}")
    return unit, quantity


def _texts(layers: Sequence[Layer]) -> list[str]:
    """Units, descriptions and tags of the layers' bands, in lower case."""
    found = []
    for layer in layers:
        dataset = handle(layer.file)
        at = layer.number - 1
        found += [dataset.units[at] or "", dataset.descriptions[at] or ""]
        for tags in (dataset.tags(), dataset.tags(layer.number)):
            found += [value for key, value in tags.items() if key.lower() in _TELLING]
    return [text.lower() for text in found]


def _stated_units(texts: Sequence[str]) -> str:
    words = {word for text in texts for word in re.split(r"[^a-z0-9]+", text)}
    found = [name for name, known in _SAID.items() if words & known]
    return found[0] if len(found) == 1 else ""


def _stated_quantity(path: Path, layers: Sequence[Layer], texts: Sequence[str]) -> str:
    names = [path.name.lower(), *(layer.file.path.name.lower() for layer in layers)]
    said = " ".join([*names, *texts])
    gamma, sigma = bool(re.search(r"gamma_?0|(?<![a-z])rtc(?![a-z])", said)), bool(re.search(r"sigma_?0", said))
    return "" if gamma == sigma else "gamma0" if gamma else "sigma0"


def _suggestion(layer: Layer, info: RasterInfo) -> str:
    """What the middle of an image says: decibels of land and water are mostly below zero, power never is."""
    height, width = (min(_SAMPLE, size) for size in info.shape)
    window = Window((info.shape[0] - height) // 2, (info.shape[1] - width) // 2, height, width)
    numbers = read_window(layer.file, window, (layer.number,), info.shape)[0]
    known = numbers[np.isfinite(numbers) & (numbers != (np.nan if info.nodata is None else info.nodata))]
    if not known.size:
        return "the middle of the image holds no values"
    middle = float(np.median(known))
    what = "decibels" if middle < -1 else "power or amplitude"
    return f"the middle number is {middle:.3g}, so they look like {what}"


def _spec(path: Path, layers: Sequence[Layer], info: RasterInfo, unit: str, quantity: str) -> SceneSpec:
    names = [layer.polarisation for layer in layers]
    said = [path.name, path.parent.name]
    product = next((found for name in said if (found := _PRODUCT.search(name))), None)
    time = next((known for name in said if (known := _time(name)) is not None), None)
    attrs: dict[str, Any] = {"band_names": band_names(names), "wavelength_source": "nominal, of Sentinel-1"}
    if time is None:
        attrs["time_known"] = False
    stem = re.sub(r"[^A-Za-z0-9_.+=@,()-]", "_", path.name if path.is_dir() else path.stem).lstrip(".-")
    rtc = any("rtc" in name.lower() for name in (path.name, layers[0].file.path.name))
    return SceneSpec(
        scene_id=safe_name(stem, f"{path}: scene id"),
        sensor=f"Sentinel-1{product[1][2]}" if product else "Sentinel-1",
        processing_level="RTC" if rtc else "GRD" if product else "unknown",
        time=time or UNKNOWN_TIME,
        source=path.name,
        bands=radar_bands(names),
        grid=info.grid,
        variables={quantity: cube_variable(quantity, long_name=f"{quantity} backscatter, linear")},
        measurement=quantity,
        subject=quantity,
        history=(f"{quantity} as it came{'' if unit == 'linear' else f', brought from {unit} to linear power'}",),
        attrs=attrs,
    )


def _time(name: str) -> datetime | None:
    found = _TIME.search(name)
    if not found:
        return None
    try:
        return datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True, eq=False)
class BackscatterSource:
    """A Source over backscatter in GeoTIFFs.

    Attributes:
        spec: the Scene without pixels.
        layers: where each of the Scene's bands lies.
        info: header of the first file.
        units: of the numbers, see `UNITS`.
    """

    spec: SceneSpec
    layers: tuple[Layer, ...]
    info: RasterInfo
    units: str

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the files' tiles or strips."""
        return block_shape(self.info)

    @property
    def exact(self) -> bool:
        """True: backscatter is stored as the float32 that it is read as."""
        return True

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array:
        """Pixels of the cube, see `Source.read`; linear power, NaN where there is no value.

        Raises:
            InputError: a file is damaged.
        """
        if name != self.spec.measurement:
            raise KeyError(name)
        layers = self.layers[bands or slice(None)]
        found = np.empty((len(layers), *window.shape), np.float32)
        for image, layer in zip(found, layers, strict=True):
            numbers = read_window(layer.file, window, (layer.number,), self.spec.shape)[0].astype(np.float64)
            nodata = inspect(layer.file).nodata
            if nodata is not None:
                numbers[numbers == nodata] = np.nan
            with np.errstate(over="ignore"):
                image[:] = UNITS[self.units](numbers)
        found[np.isinf(found)] = np.nan
        return found

    def files(self) -> list[Path]:
        """The files that the scene is read from."""
        return sorted({layer.file.path for layer in self.layers})

    def fingerprint(self) -> str:
        """sha256 over the content of all files, and how they are read."""
        parts = {f"{layer.polarisation} {layer.number}": layer.file.path for layer in self.layers}
        return digest(parts.items(), salt=f"{self.units} {self.spec.measurement}")
