"""Sentinel-2 as COG (or JPEG 2000) assets of a STAC item that lies beside its files, as Sources, one grid each.

Providers disagree on the offset, and say so in different places. What counts, in this order: the caller's `offset`;
`earthsearch:boa_offset_applied`, by which Earth Search tells that it has shifted the numbers already; the offset that
`raster:bands` states; the processing baseline (Planetary Computer states nothing else, and keeps the provider's
numbers). Items have been wrong about it, so the pixels are asked as well.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import SceneSpec, Variable, cube_variable, quality_variable
from cubeloom.untrusted import load_json, safe_name

from . import sentinel2_guard
from .item_files import ITEM_LIMIT, is_of, item_assets, item_properties, item_time, lies_beside, local_raster, read_item
from .rasters import RasterFile, digest, inspect
from .sentinel2_bands import NAMES, NATIVE, find_band, known_band, nominal_bands, scene_bands, unit_sensor
from .sentinel2_chips import GRIDS, QUANTIFICATION, SPECIAL, Chip, ChipSource
from .sentinel2_common import CommonGridSource, on_common_grid
from .sentinel2_decoding import Decoding
from .sentinel2_quality import CoarseFile, QualityFiles
from .sentinel2_scene import LICENCE, LONG_NAMES, credit, item_attrs

__all__ = ["GRIDS", "CogSource", "lies_beside_files", "open_source", "recognises"]

_OFFSET_SINCE = 4.0
_REPROCESSED = 99.0
"""Baseline 99.99 marks test products, which carry no offset."""


def recognises(path: Path) -> bool:
    """Whether `path` is a STAC item of Sentinel-2 with bands among its assets.

    Raises:
        InputError: a `.json` file that is too large, or damaged.
    """
    item = read_item(path)
    return item is not None and bool(_band_keys(item))


def lies_beside_files(path: Path) -> bool:
    """Whether `path` is such an item, and files of its bands lie in its folder or below."""
    return lies_beside(path, lambda item: [item_assets(item)[key] for key in _band_keys(item)])


def open_source(
    path: Path, *, grid: str = "10m", bands: str = "native", resampling: str = "area", offset: str | None = None
) -> "CogSource | CommonGridSource":
    """The Source over one grid of a STAC item's assets.

    Args:
        path: the item; its assets' hrefs must be files in its folder or below.
        grid: `10m`, `20m` or `60m`.
        bands: `native`, those that Sentinel-2 measures at this grid, or `common`, every one that is here, brought to
            this grid.
        resampling: for `common`, `area` or `cubic`, as for SAFE products.
        offset: DN to be added before the division by 10000, where the item is wrong about it.

    Raises:
        InputError: the item lacks what is needed, or its assets are not here, damaged, or on grids that do not nest.
        ConfigError: no such grid or option, or an offset that cannot be.

    Warns:
        OffsetWarning: the offset does not fit the pixels.
    """
    for name, value, known in (
        ("grid", grid, tuple(GRIDS)),
        ("bands", bands, ("native", "common")),
        ("resampling", resampling, ("area", "cubic")),
    ):
        if value not in known:
            raise ConfigError(f"{path}: {name}={value!r}; expected {' or '.join(map(repr, known))}")
    item = load_json(path, ITEM_LIMIT)
    found = {step: _chips(path, item, step) for step in GRIDS.values()}
    resolution = GRIDS[grid]
    if not found[resolution]:
        listed = ", ".join(chip.name for group in found.values() for chip in group) or "none"
        raise InputError(f"{path}: no file of the bands {', '.join(NATIVE[resolution])} is here; of others: {listed}")
    scaling = _scaling(path, item, offset)
    wrong = _judge(path, [chip for group in found.values() for chip in group], scaling)
    wanted = [step for step in found if found[step]] if bands == "common" else [resolution]
    sources = {step: _native_source(path, item, found[step], scaling, wrong, step) for step in wanted}
    if bands == "native":
        return sources[resolution]
    _require_nested(path, sources, resolution)
    return on_common_grid(sources, resolution, cubic=resampling == "cubic")


def _native_source(
    path: Path, item: Mapping[str, Any], chips: list[Chip], scaling: tuple[float, float, str], wrong: str, step: int
) -> "CogSource":
    """The Source over the bands of one resolution, m."""
    info = inspect(chips[0].file)
    for chip in chips:
        found = inspect(chip.file)
        if found.grid != info.grid:
            raise InputError(f"{chip.file}: lies on another grid than {chips[0].file}; they do not belong together")
        if found.dtype != "uint16" or found.count < chip.number:
            raise InputError(f"{chip.file}: holds {found.count} bands of {found.dtype}; expected one of uint16")
    scale, shift, reason = scaling
    quality = QualityFiles(_classes(path, item, chips[0]))
    history = f"reflectance = (DN + offset) / {scale:g}, offset {shift:g} {reason}"
    spec = _spec(path, item, chips, quality, history, wrong, f"{step}m")
    return CogSource(spec, tuple(chips), Decoding(scale, np.full(len(chips), shift), SPECIAL), info, quality, path)


def _judge(path: Path, chips: list[Chip], scaling: tuple[float, float, str]) -> str:
    """What is wrong about the offset as the pixels have it, which is warned of; empty where nothing is."""
    scale, shift, _ = scaling
    samples = [sentinel2_guard.sample(chip.file) for chip in chips]
    dark = sentinel2_guard.darkest(samples, [chip.name for chip in chips], [shift] * len(chips), SPECIAL)
    wrong = sentinel2_guard.judge(dark, scale, [shift])
    if wrong:
        warnings.warn(f"{path}: {wrong}", sentinel2_guard.OffsetWarning, stacklevel=5)
    return wrong


def _require_nested(path: Path, sources: Mapping[int, "CogSource"], resolution: int) -> None:
    """Refuse grids that do not cover the same ground with the same corner."""
    own = sources[resolution].spec
    for step, source in sources.items():
        a, b = own.grid.transform, source.spec.grid.transform
        sizes = [(side * resolution, other * step) for side, other in zip(own.shape, source.spec.shape, strict=True)]
        near = max(abs(a.c - b.c), abs(a.f - b.f)) <= 1e-3 * abs(a.a)
        if own.grid.crs != source.spec.grid.crs or not near or any(one != other for one, other in sizes):
            raise InputError(
                f"{path}: the bands of {step} m and of {resolution} m cover different ground; open them one grid at a "
                "time (bands='native')"
            )


def _band_keys(item: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
    """Band and resolution (where the key says it) of the assets that hold bands, by key; none of another item."""
    found: dict[str, tuple[str, int | None]] = {}
    if not is_of(item, "sentinel-2"):  # others, such as Landsat's, have a `red`, too
        return found
    for key in item_assets(item):
        name = known_band(key) or find_band(key)
        if name:
            stated = re.search(r"_(10|20|60)m$", key)
            found[key] = (name, int(stated[1]) if stated else None)
    return found


def _chips(path: Path, item: Mapping[str, Any], resolution: int) -> list[Chip]:
    """The native bands of a resolution whose files are here, ascending in wavelength; the first asset of each."""
    files: dict[str, RasterFile] = {}
    for key, (name, stated) in _band_keys(item).items():
        if name in NATIVE[resolution] and stated in (None, resolution) and name not in files:
            file = local_raster(path, item_assets(item)[key]["href"])
            if file is not None:
                files[name] = file
    return [Chip(name, files[name], 1) for name in NAMES if name in files]


def _classes(path: Path, item: Mapping[str, Any], chip: Chip) -> CoarseFile | None:
    for key, asset in item_assets(item).items():
        if key.lower() in ("scl", "scl_20m") and (file := local_raster(path, asset["href"])):
            fine, coarse = (inspect(one).grid.resolution.x for one in (chip.file, file))
            step = round(coarse / fine)
            return CoarseFile(file, step) if step >= 1 and abs(coarse - step * fine) < 1e-6 * coarse else None
    return None


def _scaling(path: Path, item: Mapping[str, Any], told: str | None) -> tuple[float, float, str]:
    """Divisor and offset in DN, and who says so."""
    stated = [_stated(asset) for key, asset in item_assets(item).items() if key in _band_keys(item)]
    scales = {scale for scale, _ in stated if scale is not None}
    offsets = {shift for _, shift in stated if shift is not None}
    if len(scales) > 1 or len(offsets) > 1:
        raise InputError(f"{path}: the bands state different scales {sorted(scales)} or offsets {sorted(offsets)}")
    scale = 1 / scales.pop() if scales else QUANTIFICATION
    scale = float(round(scale)) if abs(scale - round(scale)) < 1e-6 else scale
    properties = item_properties(item)
    if told is not None:
        return scale, sentinel2_guard.told_offset(path, told), "as told"
    if properties.get("earthsearch:boa_offset_applied") is True:
        return scale, 0.0, "since the item says that it is applied already"
    if offsets:
        return scale, float(round(offsets.pop() * scale)), "as raster:bands states"
    baseline = str(properties.get("s2:processing_baseline", properties.get("processing:version", "")))
    if not re.fullmatch(r"\d\d\.\d\d", baseline):
        raise InputError(f"{path}: states neither an offset nor a processing baseline; give offset=-1000 or offset=0")
    carries = _OFFSET_SINCE <= float(baseline) < _REPROCESSED
    return scale, -float(sentinel2_guard.SHIFT) if carries else 0.0, f"by processing baseline {baseline}"


def _stated(asset: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Scale and offset of an asset, where it states them: in `raster:bands`, STAC 1.1's `bands`, or on itself."""
    places = [(asset, "raster:")]
    for key, prefix in (("raster:bands", ""), ("bands", "raster:")):
        listed = asset.get(key)
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            places.append((listed[0], prefix))
    found = []
    for name, least in (("scale", 0.0), ("offset", -1.0)):
        values = [place.get(prefix + name) for place, prefix in places]
        numbers = [float(value) for value in values if isinstance(value, int | float) and least < value <= 1]
        found.append(numbers[0] if numbers else None)
    return found[0], found[1]


def _spec(
    path: Path,
    item: Mapping[str, Any],
    chips: list[Chip],
    quality: QualityFiles,
    history: str,
    wrong: str,
    grid: str,
) -> SceneSpec:
    properties = item_properties(item)
    platform = str(properties.get("platform", "")).lower()
    unit = platform[-1:].upper() if re.fullmatch(r"sentinel-2[a-d]", platform) else ""
    bands = nominal_bands([chip.name for chip in chips], unit_sensor(unit))
    time = item_time(path, item)
    level = "L1C" if "l1c" in str(item.get("collection", item.get("id", ""))).lower() else "L2A"
    attrs: dict[str, Any] = {
        "band_names": {str(band.number): band.name for band in bands},
        "wavelength_source": f"nominal, of {unit_sensor(unit)}",
        "license": LICENCE,
        "attribution": credit(time),
        **item_attrs(properties),
        "processing_version": properties.get("s2:processing_baseline"),
        "offset_warning": wrong or None,
    }
    variables: dict[str, Variable] = {"reflectance": cube_variable("reflectance", long_name=LONG_NAMES[level])}
    if quality.scene_classes is not None:
        variables["quality"] = quality_variable()
    return SceneSpec(
        scene_id=safe_name(str(item.get("id", "")) + ("" if grid == "10m" else f"-{grid}"), f"{path}: item id"),
        sensor=f"Sentinel-2{unit}",
        processing_level=level,
        time=time,
        source=path.name,
        bands=scene_bands(bands),
        grid=inspect(chips[0].file).grid,
        variables=variables,
        measurement="reflectance",
        subject="reflectance",
        history=(history,),
        attrs={key: value for key, value in attrs.items() if value is not None},
    )


@dataclass(frozen=True, eq=False)
class CogSource(ChipSource):
    """A Source over the assets of an item.

    Attributes:
        quality: SCL, where it is among the assets.
        item: the item's file.
    """

    quality: QualityFiles
    item: Path

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable, see `Source.read`.

        Raises:
            InputError: a file is damaged.
        """
        if name == "quality":
            return self.quality.flags(window, self.spec.shape)
        return super().read(name, window, bands, out)

    def files(self) -> list[Path]:
        """The item and the files that the scene is read from."""
        return sorted({*super().files(), *(file.path for file in self.quality.files.values()), self.item})

    def fingerprint(self) -> str:
        """sha256 over the content of all files, and how they are read; the item itself does not count."""
        parts = {chip.name: chip.file.path for chip in self.chips}
        parts |= {name: file.path for name, file in self.quality.files.items()}
        return digest(parts.items(), salt=self.spec.history[0])
