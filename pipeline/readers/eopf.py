"""Sentinel-2 in EOPF's Zarr layout (format 2 or 3, on disk or remote) as Sources, one of the three grids each.

The layout keeps the provider's numbers and states their scale and offset on every array, so that xarray decodes them
unasked. Here the numbers are read as they are and decoded once.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import SceneSpec, Variable, cube_variable, quality_variable
from cubeloom.pipeline.srf import Response, half_maximum_width
from cubeloom.untrusted import safe_name

from . import sentinel2_guard, zarr_remote
from .rasters import digest
from .sentinel2_bands import NAMES, NATIVE, Band, band_name, nominal_bands, scene_bands, unit_sensor
from .sentinel2_common import CommonGridSource, on_common_grid
from .sentinel2_decoding import Decoding
from .sentinel2_quality import SCL_LOOKUP, spread
from .sentinel2_scene import LICENCE, LONG_NAMES, credit, item_attrs
from .zarr_arrays import ArrayFile, Node, attributes, finite

__all__ = ["EopfSource", "open_source", "recognises"]

GRIDS = {"10m": 10, "20m": 20, "60m": 60}
_REFLECTANCE = "measurements/reflectance"
_CLASSES = "conditions/mask/l2a_classification"
_BAND = re.compile(r"b\d[0-9a]")
_LEAST_SCALE = 1e-6
_WHOLE = 1e-6
"""How far an offset in numbers may lie from a whole one: 0.1 / 0.0001 is not quite 1000."""


def recognises(path: Path) -> bool:
    """Whether `path` is a Zarr group of format 2 or 3 with EOPF's `measurements/reflectance`."""
    marked = any((path / name).is_file() for name in (".zgroup", ".zmetadata", "zarr.json"))
    return path.is_dir() and marked and (path / _REFLECTANCE).is_dir()


def open_source(
    path: Path, *, grid: str = "10m", bands: str = "native", resampling: str = "area"
) -> "EopfSource | CommonGridSource":
    """The Source over one grid of an EOPF product.

    Args:
        path: the product's `.zarr` folder.
        grid: `10m`, `20m` or `60m`.
        bands: `native`, the bands that were measured at this grid, `all` that the product has at it, or `common`,
            every band, brought to this grid here.
        resampling: for `common`, `area` or `cubic`, as for SAFE products.

    Raises:
        InputError: arrays are missing or damaged, state no scale, or nothing states the CRS.
        ConfigError: no such grid or option.

    Warns:
        OffsetWarning: the offset that the arrays state does not fit the pixels.
    """
    return _open(path, grid, bands, resampling)


def open_remote_source(
    url: str, *, grid: str = "10m", bands: str = "native", resampling: str = "area"
) -> "EopfSource | CommonGridSource":
    """The Source over one grid of an EOPF product behind a network; its consolidated metadata are read now.

    Args:
        url: `https://host/….zarr` of a host that may be asked (`CUBELOOM_HOSTS`), or `s3://bucket/….zarr`.
        grid: as for `open_source`.
        bands: as for `open_source`.
        resampling: as for `open_source`.

    Raises:
        InputError: the host may not be asked, or as `open_source`.
        RetryableError: the server does not answer.
        ConfigError: no such grid or option; the `AWS_*` environment or an extra is missing.

    Warns:
        OffsetWarning: as `open_source`.
    """
    return _open(zarr_remote.open_root(url), grid, bands, resampling)


def _open(path: Node, grid: str, bands: str, resampling: str) -> "EopfSource | CommonGridSource":
    if grid not in GRIDS or bands not in ("native", "all", "common") or resampling not in ("area", "cubic"):
        raise ConfigError(
            f"{path}: grid={grid!r}, bands={bands!r}, resampling={resampling!r}; expected {', '.join(GRIDS)}; native, "
            "all or common; area or cubic"
        )
    wrong = _judge(path)
    if wrong:
        warnings.warn(f"{path}: {wrong}", sentinel2_guard.OffsetWarning, stacklevel=5)
    if bands != "common":
        return _one_grid(path, GRIDS[grid], wrong, native=bands == "native")
    there = [step for step in GRIDS.values() if set(_bands_at(path, step)) & set(NATIVE[step])]
    steps = {step: _one_grid(path, step, wrong, native=True) for step in sorted({*there, GRIDS[grid]})}
    return on_common_grid(steps, GRIDS[grid], cubic=resampling == "cubic")


def _one_grid(path: Node, resolution: int, wrong: str, *, native: bool) -> "EopfSource":
    """The Source over the bands that a product has at a resolution, m."""
    found = _bands_at(path, resolution)
    chosen = {name: file for name, file in found.items() if not native or name in NATIVE[resolution]}
    if not chosen:
        raise InputError(
            f"{path}: {_REFLECTANCE}/r{resolution}m holds none of the bands measured at {resolution} m; it holds "
            f"{', '.join(found) or 'none'}"
        )
    root = attributes(path)
    decoding = _decoding(list(chosen.values()))
    box = _grid(path, root, next(iter(chosen.values())), resolution)
    for file in chosen.values():
        if file.shape != box.shape or file.dtype != "uint16":
            raise InputError(f"{file.path}: holds {file.dtype} of {file.shape}; expected uint16 of {tuple(box.shape)}")
    classes = _classes(path, resolution, (int(box.shape[0]), int(box.shape[1])))
    spec = _spec(path, root, list(chosen), box, decoding, has_classes=classes is not None, wrong=wrong)
    return EopfSource(spec, path, tuple(chosen.values()), decoding, classes)


def _bands_at(path: Node, resolution: int) -> dict[str, ArrayFile]:
    """Arrays by band, ascending in wavelength."""
    group = path / _REFLECTANCE / f"r{resolution}m"
    names = sorted(entry.name for entry in group.iterdir()) if group.is_dir() else []
    files = {band_name(name): ArrayFile.open(group / name) for name in names if _BAND.fullmatch(name)}
    return dict(sorted(files.items(), key=lambda item: NAMES.index(item[0])))


def _stated(file: ArrayFile, name: str) -> float | None:
    """A number of an array's attributes, or of EOPF's own among them."""
    own = file.attributes.get("_eopf_attrs")
    for attrs in (file.attributes, own if isinstance(own, dict) else {}):
        value = finite(attrs.get(name))
        if value is not None:
            return value
    return None


def _decoding(files: list[ArrayFile]) -> Decoding:
    scales, offsets, special = set(), [], {0, 65535}
    for file in files:
        scale, shift = _stated(file, "scale_factor"), _stated(file, "add_offset")
        if scale is None or not _LEAST_SCALE <= scale <= 1 or abs(shift or 0) > 1:
            raise InputError(
                f"{file.path}: states no scale_factor between {_LEAST_SCALE:g} and 1 with an add_offset of at most 1 "
                "either way, so its unit is unknown"
            )
        scales.add(scale)
        counts = (shift or 0.0) / scale
        offsets.append(float(round(counts)) if abs(counts - round(counts)) < _WHOLE else counts)
        special |= {int(file.fill)} if file.fill is not None and 0 <= file.fill <= 65535 else set()
    if len(scales) > 1:
        raise InputError(f"{files[0].path}: the bands of this grid state different scales: {sorted(scales)}")
    quantification = 1 / scales.pop()
    close = abs(quantification - round(quantification)) < _WHOLE
    return Decoding(
        float(round(quantification)) if close else quantification, np.array(offsets), tuple(sorted(special))
    )


def _grid(path: Node, root: Mapping[str, Any], file: ArrayFile, resolution: int) -> GeoBox:
    """The grid from the coordinates, which are pixel centres, and the CRS from wherever it is stated."""
    axes = {}
    for name, size in zip("yx", file.shape, strict=True):
        axis = ArrayFile.open(file.path.parent / name)
        if axis.shape != (size,):
            raise InputError(f"{axis.path}: has shape {axis.shape}; expected ({size},)")
        values = np.asarray(axis.read(), float)
        step = -resolution if name == "y" else resolution
        if not np.allclose(np.diff(values), step):
            raise InputError(f"{axis.path}: is not evenly spaced by {step} m")
        axes[name] = float(values[0])
    half = resolution / 2
    place = Affine(resolution, 0, axes["x"] - half, 0, -resolution, axes["y"] + half)
    return GeoBox((file.shape[0], file.shape[1]), place, f"EPSG:{_epsg(path, root, file)}")


def _epsg(path: Node, root: Mapping[str, Any], file: ArrayFile) -> int:
    properties = _part(root, "stac_discovery", "properties")
    stated = (
        file.attributes.get("proj:epsg"),
        file.attributes.get("proj:code"),
        _part(root, "other_metadata").get("horizontal_CRS_code"),
        properties.get("proj:epsg"),
        properties.get("proj:code"),
    )
    for value in stated:
        found = re.fullmatch(r"(?:EPSG:)?(32[67]\d\d)", str(value))
        if found:
            return int(found[1])
    raise InputError(f"{path}: neither the arrays nor other_metadata state a UTM zone as CRS; fetch the product again")


def _part(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A dictionary inside dictionaries; empty where it is none."""
    for name in names:
        found = tree.get(name)
        tree = found if isinstance(found, dict) else {}
    return tree


def _classes(path: Node, resolution: int, shape: Shape) -> tuple[ArrayFile, int] | None:
    """SCL and how many times wider than the grid's its pixels are; None where the product has none."""
    for step in (max(resolution, 20), 20):
        place = path / _CLASSES / f"r{step}m" / "scl"
        if step % resolution == 0 and place.is_dir():
            file = ArrayFile.open(place)
            expected = tuple(-(-size * resolution // step) for size in shape)
            if file.shape != expected or file.dtype != "uint8":
                raise InputError(f"{place}: holds {file.dtype} of {file.shape}; expected uint8 of {expected}")
            return file, step // resolution
    return None


def _judge(path: Node) -> str:
    """What is wrong with the offset, by the bands at 60 m: the smallest that show the whole scene."""
    found = _bands_at(path, 60)
    if not found:
        return ""
    decoding = _decoding(list(found.values()))
    samples = []
    for file in found.values():
        step = max(1, max(file.shape) // sentinel2_guard.SAMPLE_EDGE)
        samples.append(file.read()[::step, ::step])
    dark = sentinel2_guard.darkest(samples, list(found), decoding.offset.tolist(), decoding.special)
    return sentinel2_guard.judge(dark, decoding.quantification, decoding.offset.tolist())


def _described(root: Mapping[str, Any], names: list[str], sensor: str) -> list[Band]:
    """The bands as `other_metadata` describes them; nominal where it does not."""
    described = {str(key).lower().removeprefix("b"): value for key, value in _bands_of(root).items()}
    bands = []
    for band in nominal_bands(names, sensor):
        facts = described.get(band.name[1:].lower())
        bands.append(
            Band(band.name, band.resolution, _response(band, facts) if isinstance(facts, dict) else band.response)
        )
    return bands


def _bands_of(root: Mapping[str, Any]) -> Mapping[str, Any]:
    return _part(root, "other_metadata", "band_description")


def _response(band: Band, facts: Mapping[str, Any]) -> Response:
    try:
        centre, start = float(facts["central_wavelength"]), float(facts["wavelength_min"])
        step = float(facts.get("spectral_response_step", 1))
        values = np.array(str(facts["spectral_response_values"]).split(), float)
    except (KeyError, TypeError, ValueError):
        return band.response
    wavelength = np.asarray(start + step * np.arange(values.size), np.float64)
    sound = values.size > 1 and np.isfinite(values).all() and values.max() > 0 and 0.1 <= step <= 100
    if not (sound and wavelength[0] <= centre <= wavelength[-1]):
        return band.response
    return Response(band.name, centre, half_maximum_width(wavelength, values), (wavelength, values))


def _spec(
    path: Node,
    root: Mapping[str, Any],
    names: list[str],
    box: GeoBox,
    decoding: Decoding,
    *,
    has_classes: bool,
    wrong: str,
) -> SceneSpec:
    properties = _part(root, "stac_discovery", "properties")
    platform = str(properties.get("platform", "sentinel-2")).lower()
    unit = platform[-1:].upper() if re.fullmatch(r"sentinel-2[a-d]", platform) else ""
    bands = _described(root, names, unit_sensor(unit))
    name = str(_part(root, "stac_discovery").get("id") or path.name).removesuffix(".zarr").removesuffix(".SAFE")
    level = next((key for key in LONG_NAMES if key[1:] in str(properties.get("processing:level", name))), "unknown")
    step, time = round(box.resolution.x), _time(path, properties)
    attrs: dict[str, Any] = {
        "band_names": {str(band.number): band.name for band in bands},
        "license": LICENCE,
        "attribution": credit(time),
        **item_attrs(properties),
        "processing_version": properties.get("processing:version"),
        "offset_warning": wrong or None,
    }
    variables: dict[str, Variable] = {"reflectance": cube_variable("reflectance", long_name=LONG_NAMES.get(level))}
    if has_classes:
        variables["quality"] = quality_variable()
    shown = " or ".join(f"{offset:g}" for offset in sorted(set(decoding.offset.tolist())))
    return SceneSpec(
        scene_id=safe_name(name + ("" if step == 10 else f"-{step}m"), f"{path}: scene id"),
        sensor=f"Sentinel-2{unit}",
        processing_level=level,
        time=time,
        source=path.name,
        bands=scene_bands(bands),
        grid=box,
        variables=variables,
        measurement="reflectance",
        subject="reflectance",
        history=(f"reflectance = (DN + offset) / {decoding.quantification:g}, offset {shown} as the arrays state",),
        attrs={key: value for key, value in attrs.items() if value is not None},
    )


def _time(path: Node, properties: Mapping[str, Any]) -> datetime:
    for key in ("datetime", "start_datetime"):
        text = properties.get(key)
        if isinstance(text, str):
            try:
                time = datetime.fromisoformat(text)
                return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
            except (ValueError, OverflowError):
                break
    raise InputError(f"{path}: stac_discovery states no time in ISO 8601; the product is incomplete")


@dataclass(frozen=True, eq=False)
class EopfSource:
    """A Source over one grid of an EOPF product.

    Attributes:
        spec: the Scene without pixels.
        path: the product.
        cubes: the array of each of the Scene's bands.
        decoding: numbers to reflectance.
        classes: SCL, and how many times wider its pixels are than the Scene's.
    """

    spec: SceneSpec
    path: Node
    cubes: tuple[ArrayFile, ...]
    decoding: Decoding
    classes: tuple[ArrayFile, int] | None

    @property
    def block_shape(self) -> Shape:
        """The arrays' chunks, which are often very large."""
        rows, columns = self.cubes[0].chunks
        return min(rows, self.spec.shape[0]), min(columns, self.spec.shape[1])

    @property
    def exact(self) -> bool:
        """Whether reflectance comes in the store's own steps."""
        return self.decoding.packed

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable, see `Source.read`.

        Raises:
            InputError: a chunk is damaged.
        """
        bands = bands or slice(None)
        if name == self.spec.measurement:
            return self.decoding.decode([cube.read_window(window) for cube in self.cubes[bands]], bands, out)
        if name == "quality" and self.classes is not None:
            file, step = self.classes
            coarse = window.coarsened(step)
            return np.asarray(SCL_LOOKUP[spread(file.read_window(coarse)[None], coarse, window, step)[0]])
        raise KeyError(name)

    def files(self) -> list[Path]:
        """The product's folder, since its arrays are many small files; none of a remote one."""
        return [self.path] if isinstance(self.path, Path) else []

    def fingerprint(self) -> str:
        """sha256 over the content of the arrays that the scene is read from; of a remote one over its metadata.

        Those name the processing, and to fetch all chunks for a digest would take as long as the work itself.
        """
        if not isinstance(self.path, Path):
            return hashlib.sha256(self.spec.scene_id.encode() + self.path.store.root).hexdigest()
        arrays = [*self.cubes, *([self.classes[0]] if self.classes else [])]
        parts = [(f"{array.path.name} {name}", file) for array in arrays for name, file in array.files()]
        headers = [path for name in (".zattrs", "zarr.json") if (path := self.path / name).is_file()]
        return digest([*parts, *((path.name, path) for path in headers)], salt=self.spec.scene_id)
