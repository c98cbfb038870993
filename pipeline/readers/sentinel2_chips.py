"""Sentinel-2 chips without the provider's metadata: folders of one TIFF a band, or one TIFF of all bands.

Nothing in such files says whether their numbers carry the offset of baseline 04.00, nor, for a TIFF of all bands, in
which order the bands stand. Both must be told; what the pixels suggest is in the message that asks for it.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import SceneSpec, cube_variable
from cubeloom.untrusted import safe_name

from . import sentinel2_guard
from .jp2_tiles import CUBES, read_tiles
from .raster import UNKNOWN_TIME
from .rasters import RasterFile, RasterInfo, block_shape, digest, handle, inspect
from .sentinel2_bands import CIRRUS, NAMES, NATIVE, band_name, find_band, nominal_bands, scene_bands, unit_sensor
from .sentinel2_decoding import Decoding
from .sentinel2_scene import LONG_NAMES

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["ORDERS", "ChipSource", "open_source", "recognises"]

_WITHOUT_CIRRUS = tuple(name for name in NAMES if name != CIRRUS)
ORDERS: Mapping[str, tuple[str, ...]] = {
    "l1c": NAMES,
    "l2a": _WITHOUT_CIRRUS,
    "eurosat": (*(name for name in NAMES if name != "B8A"), "B8A"),
}
"""Orders of bands in files that hold them all: ascending wavelength with and without B10, and EuroSAT's B8A last."""
GRIDS = {"10m": 10, "20m": 20, "60m": 60}
QUANTIFICATION = 10_000.0
SPECIAL = (0, 65535)
"""Numbers that stand for "no value" and saturation in every Sentinel-2 product so far."""
_TIFFS = (".tif", ".tiff")
_NAME = re.compile(r"S2(?P<unit>[A-D])_MSIL(?P<level>1C|2A)_(?P<time>\d{8}T\d{6})")
_OTHERS = re.compile(r"(?i)(L[COTEM]\d\d_|HLS\.)")
_TIME = re.compile(r"(?<!\d)(20[123]\d[01]\d[0-3]\dT\d{6})(?!\d)")


def recognises(path: Path) -> bool:
    """Whether `path` holds chips: a folder of TIFFs named by band, such a TIFF, or a uint16 TIFF of 12 or 13 bands.

    Raises:
        InputError: a TIFF is damaged.
    """
    if path.is_dir():
        return len(_band_files(path)) > 1
    if not path.is_file() or path.suffix.lower() not in _TIFFS:
        return False
    dataset = handle(RasterFile(path))
    all_bands = dataset.count in (12, 13)
    one_band = dataset.count == 1 and _band_of(path) is not None
    return (all_bands or one_band) and set(dataset.dtypes) == {"uint16"} and not _has_wavelengths(dataset)


def open_source(
    path: Path, *, offset: str | None = None, bands: str | None = None, grid: str = "10m", level: str | None = None
) -> "ChipSource":
    """The Source over one grid of chips.

    Args:
        path: a folder with one TIFF a band (`B04.tif`, `..._B04.tif`), one of these, or a TIFF of all bands.
        offset: DN to be added before the division by 10000: `-1000` or `0`.
        bands: of a TIFF of all bands: `l1c`, `l2a`, `eurosat`, or names with commas between them, in its order.
        grid: of a folder: the bands that Sentinel-2 measures at `10m`, `20m` or `60m`.
        level: `L1C` or `L2A`, where neither the names nor the bands tell.

    Raises:
        InputError: a file is damaged, or the files of a grid differ in size or place.
        ConfigError: `offset` or `bands` is missing (says what the pixels suggest), or an option is wrong.

    Warns:
        OffsetWarning: the offset does not fit the pixels.
    """
    if grid not in GRIDS:
        raise ConfigError(f"{path}: grid={grid!r}; expected {', '.join(GRIDS)}")
    chips = _folder_chips(path, GRIDS[grid], bands) if path.is_dir() else _file_chips(path, bands)
    every = _all_chips(path) if path.is_dir() else chips
    shift = _offset(path, every, offset)
    dark = _darkest(every, shift)
    wrong = sentinel2_guard.judge(dark, QUANTIFICATION, [shift])
    if wrong:
        warnings.warn(f"{path}: {wrong}", sentinel2_guard.OffsetWarning, stacklevel=4)
    spec = _spec(path, chips, shift, wrong, _level(path, chips, level), grid if path.is_dir() else "10m")
    decoding = Decoding(QUANTIFICATION, np.full(len(chips), shift), SPECIAL)
    return ChipSource(spec, tuple(chips), decoding, inspect(chips[0].file))


@dataclass(frozen=True)
class Chip:
    """A band and where it lies: a file, and its number in there."""

    name: str
    file: RasterFile
    number: int


def _has_wavelengths(dataset: "DatasetReader") -> bool:
    """Whether tags of the file or its bands hold wavelengths, so that `raster` reads it."""
    tags = [dataset.tags(), *(dataset.tags(number) for number in dataset.indexes)]
    tags += [dataset.tags(number, ns="IMAGERY") for number in dataset.indexes]
    return any("wavelength" in key.lower() for part in tags for key in part)


def _band_of(path: Path) -> str | None:
    """The band that a file's name speaks of; None for files of Landsat and HLS, which number theirs otherwise."""
    return None if _OTHERS.match(path.name) else find_band(path.stem)


def _band_files(folder: Path) -> dict[str, Path]:
    """TIFFs by the band in their name; several of a band leave none, so that nothing is picked by chance."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _TIFFS and path.is_file() and (name := _band_of(path)):
            found.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _folder_chips(folder: Path, resolution: int, bands: str | None) -> list[Chip]:
    if bands is not None:
        raise ConfigError(f"{folder}: bands={bands!r} is for one TIFF of all bands; these are named by band")
    chips = [chip for chip in _all_chips(folder) if chip.name in NATIVE[resolution]]
    if not chips:
        raise InputError(
            f"{folder}: holds none of the {resolution} m bands {', '.join(NATIVE[resolution])}; it holds "
            f"{', '.join(_band_files(folder))}"
        )
    first = inspect(chips[0].file)
    for chip in chips:
        info = inspect(chip.file)
        if info.grid != first.grid or info.count != 1 or info.dtype != "uint16":
            raise InputError(
                f"{chip.file}: holds {info.count} bands of {info.shape}, {info.dtype}, on another grid than "
                f"{chips[0].file} of {first.shape}; the files of the {resolution} m bands do not belong together"
            )
    return chips


def _all_chips(folder: Path) -> list[Chip]:
    files = _band_files(folder)
    return [Chip(name, RasterFile(files[name]), 1) for name in NAMES if name in files]


def _file_chips(path: Path, bands: str | None) -> list[Chip]:
    file = RasterFile(path)
    count = inspect(file).count
    alone = _band_of(path)
    if count == 1 and alone and bands is None:
        return [Chip(alone, file, 1)]
    if bands is None:
        raise ConfigError(
            f"{path}: holds {count} bands and does not say which; give bands='l1c' (B8A ninth), 'l2a' (the same "
            f"without B10), 'eurosat' (B8A last), or their names in order: {_suggested_order(file, count)}"
        )
    order = ORDERS.get(bands.lower()) or tuple(band_name(name) for name in bands.split(","))
    if len(order) != count or len(set(order)) != count:
        raise ConfigError(f"{path}: bands={bands!r} names {len(set(order))} bands; the file has {count}")
    chips = [Chip(name, file, number) for number, name in enumerate(order, 1)]
    return sorted(chips, key=lambda chip: NAMES.index(chip.name))


def _suggested_order(file: RasterFile, count: int) -> str:
    """What the pixels say: no sunlight reaches the ground in the cirrus band, so that it is by far the darkest."""
    if count != len(NAMES):
        return "12 bands are mostly those of 'l2a'"
    means = [float(sentinel2_guard.sample(file, number).mean()) for number in range(1, count + 1)]
    darkest = int(np.argmin(means))
    fitting = [name for name, order in ORDERS.items() if len(order) == count and order[darkest] == CIRRUS]
    said = f", as the cirrus band B10 is in {fitting[0]!r}" if fitting else ""
    return f"here band {darkest + 1} is the darkest{said}"


def _offset(path: Path, chips: Sequence[Chip], offset: str | None) -> float:
    if offset is None:
        hint = sentinel2_guard.suggestion(_darkest(chips, 0.0), QUANTIFICATION)
        raise ConfigError(
            f"{path}: no metadata say whether the numbers carry Sentinel-2's offset; give offset=-1000 or offset=0. "
            f"Here {hint}"
        )
    return sentinel2_guard.told_offset(path, offset)


def _darkest(chips: Sequence[Chip], offset: float) -> sentinel2_guard.Darkest:
    samples = [sentinel2_guard.sample(chip.file, chip.number) for chip in chips]
    return sentinel2_guard.darkest(samples, [chip.name for chip in chips], [offset] * len(chips), SPECIAL)


def _level(path: Path, chips: Sequence[Chip], level: str | None) -> str:
    if level is not None and level not in LONG_NAMES:
        raise ConfigError(f"{path}: level={level!r}; expected {' or '.join(LONG_NAMES)}")
    named = _named(path)
    cirrus = path.is_dir() and CIRRUS in _band_files(path)
    told = f"L{named['level']}" if named else "L1C" if cirrus or CIRRUS in {chip.name for chip in chips} else ""
    return level or told or "unknown"


def _named(path: Path) -> re.Match[str] | None:
    """The product's name in the path's own, or in that of the folder it lies in."""
    return next((found for name in (path.name, path.parent.name) if (found := _NAME.match(name))), None)


def _time(path: Path) -> datetime | None:
    for name in (path.name, path.parent.name):
        if found := _TIME.search(name):
            try:
                return datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            except ValueError:
                continue
    return None


def _spec(path: Path, chips: Sequence[Chip], offset: float, wrong: str, level: str, grid: str) -> SceneSpec:
    named, time = _named(path), _time(path)
    unit = named["unit"] if named else ""
    sensor = unit_sensor(unit)
    bands = nominal_bands([chip.name for chip in chips], sensor)
    attrs: dict[str, Any] = {
        "band_names": {str(band.number): band.name for band in bands},
        "wavelength_source": f"nominal, of {sensor}",
    }
    if time is None:
        attrs["time_known"] = False
    if wrong:
        attrs["offset_warning"] = wrong
    stem = re.sub(r"[^A-Za-z0-9_.+=@,()-]", "_", path.name if path.is_dir() else path.stem).lstrip(".-")
    return SceneSpec(
        scene_id=safe_name(stem + ("" if grid == "10m" else f"-{grid}"), f"{path}: scene id"),
        sensor=f"Sentinel-2{unit}",
        processing_level=level,
        time=time or UNKNOWN_TIME,
        source=path.name,
        bands=scene_bands(bands),
        grid=inspect(chips[0].file).grid,
        variables={"reflectance": cube_variable("reflectance", long_name=LONG_NAMES.get(level))},
        measurement="reflectance",
        subject="reflectance",
        history=(f"reflectance = (DN + offset) / {QUANTIFICATION:g}, offset {offset:g} as told",),
        attrs=attrs,
    )


@dataclass(frozen=True, eq=False)
class ChipSource:
    """A Source over chips.

    Attributes:
        spec: the Scene without pixels.
        chips: where each of the Scene's bands lies.
        decoding: numbers to reflectance.
        info: header of the first file.
    """

    spec: SceneSpec
    chips: tuple[Chip, ...]
    decoding: Decoding
    info: RasterInfo

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the files' tiles or strips."""
        return block_shape(self.info)

    @property
    def exact(self) -> bool:
        """Whether reflectance comes in the store's own steps."""
        return self.decoding.packed

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of the cube, see `Source.read`.

        Raises:
            InputError: a file is damaged.
        """
        if name != self.spec.measurement:
            raise KeyError(name)
        bands = bands or slice(None)
        shape = self.spec.shape
        layers = [read_tiles(chip.file, window, (chip.number,), shape, CUBES)[0] for chip in self.chips[bands]]
        return self.decoding.decode(layers, bands, out)

    def files(self) -> list[Path]:
        """The files that the scene is read from."""
        return sorted({chip.file.path for chip in self.chips})

    def fingerprint(self) -> str:
        """sha256 over the content of all files, and how they are read."""
        parts = {f"{chip.name} {chip.number}": chip.file.path for chip in self.chips}
        return digest(parts.items(), salt=f"offset {self.decoding.offset.tolist()}")
