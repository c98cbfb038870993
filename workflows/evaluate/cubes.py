"""Clean cubes to evaluate on: products, stores, GeoTIFFs and MATLAB files, each cropped and scaled to [0, 1]."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import Bands, BoolArray, FloatArray, SceneSpec, cube_variable, scene_from, spec_of
from cubeloom.pipeline.simulate.noise import WAVELENGTHS
from cubeloom.untrusted import open_raster

from .matfiles import read_mat

Float32Array = npt.NDArray[np.float32]

_RASTERS = (".tif", ".tiff", ".geotiff")
_UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class CleanCube:
    """A cube that counts as clean, in [0, 1].

    Attributes:
        name: unique among those of an evaluation; goes into the seed of its noise.
        source: where it was read from.
        cube: `(band, y, x)`; NaN where not `valid`.
        valid: pixels with a value in every band, `(y, x)`.
        wavelength: centres, nm, ascending.
        band: position of each band in the source, 1-based.
        crop: first row and column, height and width of what was taken, px of the source.
        span: the values that became 0 and 1.
        notes: what had to be decided to read it.
    """

    name: str
    source: str
    cube: Float32Array
    valid: BoolArray
    wavelength: FloatArray
    band: npt.NDArray[np.int32]
    crop: tuple[int, int, int, int]
    span: tuple[float, float]
    notes: tuple[str, ...]

    def scene(self, cube: Float32Array) -> xr.Dataset:
        """A Scene in memory with `cube` as its reflectance, on the bands of this one."""
        size = len(self.band)
        spec = SceneSpec(
            scene_id=self.name,
            sensor="unknown",
            processing_level="L2A",
            time=_UNKNOWN_TIME,
            source=self.source,
            bands=Bands(
                number=self.band,
                wavelength=self.wavelength,
                fwhm=_widths(self.wavelength),
                detector=np.full(size, ""),
                good=np.ones(size, bool),
                preferred=np.ones(size, bool),
            ),
            grid=GeoBox(self.valid.shape, Affine.identity(), None),
            variables={"reflectance": cube_variable("reflectance")},
            measurement="reflectance",
            subject="reflectance",
        )
        return scene_from(spec, {"reflectance": np.where(self.valid, cube, np.float32(np.nan))})

    def describe(self) -> dict[str, Any]:
        """What there is to say of it, for JSON."""
        row, col, height, width = self.crop
        return {
            "name": self.name,
            "source": self.source,
            "bands": len(self.band),
            "wavelengths_nm": [round(float(at), 3) for at in self.wavelength],
            "crop": {"row": row, "column": col, "height": height, "width": width},
            "valid_pixels": int(self.valid.sum()),
            "span": list(self.span),
            "sha256": digest(self.cube),
            "notes": list(self.notes),
        }


def digest(cube: Float32Array) -> str:
    """sha256 of a cube's values: little-endian float32 in the order band, y, x."""
    return hashlib.sha256(np.ascontiguousarray(cube, "<f4").tobytes()).hexdigest()


def read_cubes(sources: list[str], largest: int) -> list[CleanCube]:
    """Every cube of a command line; names that come twice are numbered."""
    cubes: list[CleanCube] = []
    for source in sources:
        taken = [cube.name for cube in cubes]
        cubes.append(read_cube(source, largest, taken))
    return cubes


def read_cube(source: str, largest: int, taken: list[str] | None = None) -> CleanCube:
    """A clean cube, its good bands alone, cropped about its middle and scaled to [0, 1] over the whole cube.

    Args:
        source: path of a product, store, GeoTIFF or MATLAB file; options may follow as `#key=I,bands=last`: those of
            `read_mat`, those of `open_scene`, and for any of them `wavelengths=LOW:HIGH`, nm, evenly spread.
        largest: longest side of the crop, px.
        taken: names that other cubes have.

    Raises:
        InputError: nothing there that can be read, or no values that differ.
        ConfigError: an option that does not fit.
    """
    path, options = parse_source(source)
    span = _span(path, options)
    if path.suffix.lower() == ".mat":
        read = read_mat(path, options)
        cube, wavelength, good, notes = read.cube, read.wavelength, read.good, list(read.notes)
    else:
        cube, wavelength, good, notes = _read_scene(path, options)
    number = np.arange(1, len(cube) + 1, dtype=np.int32)
    wavelength, said = _wavelengths(path, len(cube), wavelength, span)
    kept = np.flatnonzero(good)
    kept = kept[np.argsort(wavelength[kept], kind="stable")]
    if kept.size < len(cube):
        said.append(f"{len(cube) - kept.size} bands left out as not good")
    window = centre(cube.shape[1:], largest)
    rows, cols = (slice(start, start + size) for start, size in zip(window[:2], window[2:], strict=True))
    scaled, valid, limits = _scaled(path, np.asarray(cube[kept, rows, cols], np.float64))
    return CleanCube(
        name=cube_name(path, taken or []),
        source=source,
        cube=scaled,
        valid=valid,
        wavelength=wavelength[kept],
        band=number[kept],
        crop=window,
        span=limits,
        notes=tuple(notes + said),
    )


def parse_source(source: str) -> tuple[Path, dict[str, str]]:
    """Path and options of `PATH#key=value,key=value`.

    Raises:
        InputError: there is no such path.
        ConfigError: an option without a value.
    """
    if Path(source).exists():
        return Path(source), {}
    text, options = split_options(source)
    if not Path(text).exists():
        raise InputError(f"{text}: no such file or folder")
    return Path(text), options


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """What stands before the last `#`, and the options behind it."""
    text, mark, tail = source.rpartition("#")
    text, tail = (text, tail) if mark else (source, "")
    options = {}
    for part in filter(None, tail.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"{source}: option {part!r} after '#'; expected NAME=VALUE, such as key=cube,bands=last")
        options[name.strip()] = value.strip()
    return text, options


def _span(path: Path, options: dict[str, str]) -> tuple[float, float] | None:
    """Takes `wavelengths=LOW:HIGH` out of the options."""
    if ":" not in options.get("wavelengths", ""):
        return None
    try:
        low, high = map(float, options.pop("wavelengths").split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not 100 <= low < high:
        raise ConfigError(f"{path}: wavelengths=LOW:HIGH takes two rising numbers in nm, such as 400:2500")
    return low, high


def _read_scene(
    path: Path, options: Mapping[str, str]
) -> tuple[npt.NDArray[Any], FloatArray | None, BoolArray, list[str]]:
    """Cube, wavelengths, good bands and notes of what `open_scene` reads, or of a plain GeoTIFF."""
    try:
        scene = open_scene(path, **options)
    except InputError as error:
        if path.suffix.lower() not in _RASTERS or options:
            raise
        return _read_plain(path, error)
    spec = spec_of(scene)
    return (
        np.asarray(scene[spec.subject].values),
        spec.bands.wavelength,
        spec.bands.good,
        [f"variable {spec.subject!r}"],
    )


def _read_plain(path: Path, error: InputError) -> tuple[npt.NDArray[Any], FloatArray | None, BoolArray, list[str]]:
    """A raster without what a Scene needs: numbers as they are, since the scaling takes any."""
    if isinstance(error, ConfigError):  # the scale alone is missing
        scene = open_scene(path, scale="1")
        spec = spec_of(scene)
        note = "numbers without a scale taken as they are"
        return np.asarray(scene[spec.subject].values), spec.bands.wavelength, spec.bands.good, [note]
    with open_raster(str(path), str(path)) as dataset:
        cube = dataset.read(masked=True).astype(np.float64).filled(np.nan)
    return cube, None, np.ones(len(cube), bool), ["a plain raster, its numbers taken as they are"]


def _wavelengths(
    path: Path, bands: int, found: FloatArray | None, span: tuple[float, float] | None
) -> tuple[FloatArray, list[str]]:
    """Wavelengths in nm, and where they are from."""
    if span is not None:
        return np.linspace(*span, bands), [f"wavelengths stated: evenly {span[0]:g}-{span[1]:g} nm"]
    if found is None:
        low, high = WAVELENGTHS
        return np.linspace(low, high, bands), [f"no wavelengths: evenly spread over {low:g}-{high:g} nm, an assumption"]
    if not np.isfinite(found).all() or (found <= 0).any():
        raise InputError(f"{path}: a band has no positive wavelength; give wavelengths=LOW:HIGH")
    if found.max() < 100:
        return found * 1000, ["wavelengths in micrometres, taken times 1000"]
    return found, []


def centre(shape: tuple[int, ...], largest: int) -> tuple[int, int, int, int]:
    """First row and column, height and width of the middle of an image, no side longer than `largest`."""
    height, width = (min(size, largest) for size in shape)
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def _scaled(path: Path, cube: FloatArray) -> tuple[Float32Array, BoolArray, tuple[float, float]]:
    """The cube with its least value at 0 and its largest at 1, and where it has values."""
    valid: BoolArray = np.asarray(np.isfinite(cube).all(axis=0))
    if not valid.any():
        raise InputError(f"{path}: no pixel has a value in every good band; leave out bands with good= or another crop")
    low, high = float(cube[:, valid].min()), float(cube[:, valid].max())
    if low == high:
        raise InputError(f"{path}: every value is {low:g}, so there is nothing to scale to [0, 1]")
    scaled = ((cube - low) / (high - low)).astype(np.float32)
    scaled[:, ~valid] = np.nan
    return scaled, valid, (low, high)


def _widths(wavelength: FloatArray) -> FloatArray:
    """Widths at half maximum for bands that state none: the distance of neighbours, at least 1 nm."""
    if wavelength.size < 2:
        return np.full(wavelength.size, 10.0)
    return np.maximum(np.abs(np.gradient(wavelength)), 1.0)


def cube_name(path: Path, taken: Sequence[str]) -> str:
    """The path's last part to its first dot; numbered where it is taken."""
    stem = path.name.split(".")[0] or path.name
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}"
    return name
