"""Variables of a store as cloud-optimised GeoTIFF or ENVI, for tools that read no Zarr 3.

Pixels go window by window from the store to the file in their packed form, so memory does not grow with the scene.
A file appears under its name when it is complete.
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cubeloom.errors import ConfigError, InputError

from .encoding import Array, Packed
from .grids import CHUNK, Shape, Window, tile
from .quicklook import LegendEntry, class_legend
from .readers.base import Source
from .scene import SceneSpec

if TYPE_CHECKING:
    from rasterio.io import DatasetWriter

TILE = 256
"""Edge, px, of the tiles of a GeoTIFF; two chunks of the store."""
WINDOW = (TILE, 2 * TILE)
"""Height and width, px, of what is read at a time for a GeoTIFF: 117 MB for 224 bands of float32."""
SMALLEST_OVERVIEW = 256
CACHE = 128 * 2**20
"""Bytes that GDAL may hold beside the window; by itself it takes a twentieth of the machine."""

_GEOTIFF = (".tif", ".tiff", ".geotiff")
_INTERLEAVES = {".bil": "bil", ".bip": "bip"}
"""ENVI interleave by suffix; band by band (bsq) for all others."""
_HEADER_FIELD = re.compile(r"^([^=\n]+)=\s*(\{[^}]*\}|[^\n]*)", re.MULTILINE)


def export_store(
    store: str | Path, out: str | Path, to: str = "cog", variable: str | None = None, group: str = ""
) -> Path:
    """Write one variable of a store as a GeoTIFF or ENVI file that other tools read.

    Args:
        store: a published store (or anything else that `open_source` opens).
        out: the file: `.tif` for `cog`; for `envi` any other suffix, of which `.bil` and `.bip` set the interleave;
            the header goes beside it. It must not exist.
        to: `cog` or `envi`.
        variable: which one; the latest cube where not given.
        group: group of the store, such as `x2`.

    Returns:
        The path of the file.

    Raises:
        ConfigError: an unknown format or variable, an unfit suffix, or the file exists.
        InputError: the store cannot be read.
    """
    from .readers import open_source

    source = open_source(store, group=group) if group else open_source(store)
    return export_source(source, Path(out), to, variable)


def export_source(source: Source, out: Path, to: str = "cog", variable: str | None = None) -> Path:
    """Write one variable of an open scene; arguments and errors as `export_store`."""
    import rasterio

    spec = source.spec
    name = variable or spec.subject
    if name not in spec.variables:
        raise ConfigError(f"{spec.scene_id}: no variable {name!r}; it has {', '.join(spec.variables)}")
    _check_target(out, to)
    job = _Job(source, name)
    with _staged(out) as folder, rasterio.Env(GDAL_CACHEMAX=CACHE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # sensor geometry has none
        if to == "cog":
            _write_cog(job, folder / out.name)
        else:
            _write_envi(job, folder / out.name)
    return out


@dataclass(frozen=True)
class _Job:
    """A variable on its way into a file."""

    source: Source
    name: str

    @property
    def spec(self) -> SceneSpec:
        return self.source.spec

    @property
    def count(self) -> int:
        sizes = self.spec.sizes(self.name)
        return sizes[0] if len(sizes) == 3 else 1

    @property
    def dtype(self) -> str:
        dtype = self.spec.variables[self.name].encoding.dtype
        return "uint8" if dtype == "bool" else dtype

    @property
    def spectral(self) -> bool:
        """Whether the file's bands are the Scene's."""
        return self.spec.variables[self.name].dims[0] == "band"

    @property
    def legend(self) -> tuple[LegendEntry, ...]:
        """The classes, if this is a class map."""
        variable = self.spec.variables[self.name]
        return class_legend(variable.attrs) if variable.dims == ("y", "x") else ()

    @property
    def is_number(self) -> bool:
        """Whether pixels can be averaged; False for classes, flags and masks."""
        encoding = self.spec.variables[self.name].encoding
        return encoding.scale is not None or np.issubdtype(np.dtype(encoding.dtype), np.floating)

    @property
    def nodata(self) -> float | None:
        """The number that stands for "no value"; 0 in a class map that has no class of that value."""
        if self.legend:
            return None if any(entry.value == 0 for entry in self.legend) else 0
        return self.spec.variables[self.name].encoding.fill

    def profile(self) -> dict[str, Any]:
        """What rasterio creates the file with."""
        height, width = self.spec.shape
        profile = {"width": width, "height": height, "count": self.count, "dtype": self.dtype}
        profile["nodata"] = self.nodata
        grid = self.spec.grid
        if grid.crs is not None:
            profile |= {"crs": grid.crs.to_wkt(), "transform": grid.affine}
        return profile

    def windows(self, size: Shape) -> Iterator[tuple[Window, Array]]:
        """Packed pixels `(band, y, x)` in windows of `size`."""
        encoding = self.spec.variables[self.name].encoding
        for window in tile(self.spec.shape, size):
            read = self.source.read(self.name, window)
            packed = read.data if isinstance(read, Packed) else encoding.encode(read)[0]
            cube = packed if packed.ndim == 3 else packed[None]
            yield window, cube.astype(self.dtype, copy=False)

    def describe(self, position: int) -> str:
        """What a band of the file shows."""
        if self.spectral:
            return self.spec.bands.describe(position)
        names = self.spec.variables[self.name].attrs.get("class_values", ())
        return f"{self.name} of class {names[position]}" if len(names) else self.name

    def short_name(self, position: int) -> str:
        """As `describe` without the wavelength, which ENVI readers add by themselves, and without commas."""
        if not self.spectral:
            return self.describe(position)
        bands = self.spec.bands
        return f"band {bands.number[position]} {bands.detector[position]}".rstrip()

    def file_tags(self) -> dict[str, str]:
        """Tags of the whole file, as the raster reader knows them."""
        spec = self.spec
        tags = {
            "scene_id": spec.scene_id,
            "sensor": spec.sensor,
            "processing_level": spec.processing_level,
            "acquisition_time": spec.time.isoformat(),
            "measurement": spec.measurement,
            "variable": self.name,
            "history": "; ".join(spec.history),
        }
        credit = {key: str(spec.attrs[key]) for key in ("license", "attribution") if key in spec.attrs}
        return {key: value for key, value in (tags | credit).items() if value}

    def band_tags(self, position: int) -> dict[str, str]:
        """Tags of one band; empty unless the file's bands are the Scene's."""
        if not self.spectral:
            return {}
        bands = self.spec.bands
        tags = {
            "wavelength": repr(float(bands.wavelength[position])),
            "wavelength_units": "Nanometers",
            "fwhm": repr(float(bands.fwhm[position])),
            "bbl": str(int(bands.good[position])),
            "band_number": str(bands.number[position]),
            "detector": str(bands.detector[position]),
        }
        return {key: value for key, value in tags.items() if value}


def _write_cog(job: _Job, path: Path) -> None:
    """A tiled GeoTIFF with overviews, all headers at its front: GDAL lays a copy of a finished file out that way.

    GDAL's COG driver would store pixels band by band only from release 3.11 on, so the plain driver makes the copy;
    a viewer that shows three of 224 bands reads three.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.shutil import copy

    layout = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "interleave": "band", "bigtiff": "if_safer"}
    draft = path.with_name(f"draft-{path.name}")
    with rasterio.open(draft, "w", driver="GTiff", **job.profile(), **layout) as dataset:
        _fill(job, dataset, WINDOW)
        _tag(job, dataset)
    factors = _overviews(job.spec.shape)
    with rasterio.open(draft, "r+") as dataset, rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=TILE):
        dataset.build_overviews(factors, Resampling.average if job.is_number else Resampling.mode)
    packing = {"compress": "deflate", "predictor": 3 if job.dtype == "float32" else 2, "num_threads": "all_cpus"}
    copy(draft, path, driver="GTiff", copy_src_overviews=True, **layout, **packing)
    draft.unlink()


def _overviews(shape: Shape) -> list[int]:
    factors: list[int] = []
    while max(shape) > SMALLEST_OVERVIEW * 2 ** len(factors):
        factors.append(2 ** (len(factors) + 1))
    return factors


def _write_envi(job: _Job, path: Path) -> None:
    """An ENVI file whose header holds what tools for spectra look for."""
    import rasterio

    interleave = _INTERLEAVES.get(path.suffix.lower(), "bsq")
    profile = job.profile()
    if job.dtype == "float32":
        profile["nodata"] = None  # ENVI tells NaN by itself; `data ignore value = nan` stops other readers
    with rasterio.open(path, "w", driver="ENVI", interleave=interleave, **profile) as dataset:
        _fill(job, dataset, (CHUNK, job.spec.shape[1]))  # whole lines, which GDAL need not piece together
    path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)
    header = path.with_suffix(".hdr")
    header.write_text(_completed(header.read_text(), _envi_fields(job)))


def _fill(job: _Job, dataset: "DatasetWriter", size: Shape) -> None:
    from rasterio.windows import Window as RasterioWindow

    for window, pixels in job.windows(size):
        dataset.write(pixels, window=RasterioWindow(window.col, window.row, window.width, window.height))


def _tag(job: _Job, dataset: "DatasetWriter") -> None:
    """Write descriptions, wavelengths, scale and classes into a GeoTIFF's tags."""
    encoding = job.spec.variables[job.name].encoding
    dataset.update_tags(**job.file_tags())
    dataset.units = [str(job.spec.variables[job.name].attrs.get("units", ""))] * job.count
    if encoding.scale is not None:
        dataset.scales, dataset.offsets = [encoding.scale] * job.count, [0.0] * job.count
    for position in range(job.count):
        dataset.set_band_description(position + 1, job.describe(position))
        tags = job.band_tags(position)
        dataset.update_tags(position + 1, **tags)
        if tags:
            micrometres = {"CENTRAL_WAVELENGTH_UM": "wavelength", "FWHM_UM": "fwhm"}
            named = {key: f"{float(tags[tag]) / 1000:.10g}" for key, tag in micrometres.items()}
            dataset.update_tags(position + 1, ns="IMAGERY", **named)
    if job.legend:
        dataset.write_colormap(1, {entry.value: (*entry.colour, 255) for entry in job.legend})
        dataset.update_tags(1, **{f"class_{entry.value}": entry.name for entry in job.legend})


def _envi_fields(job: _Job) -> dict[str, str]:
    """Header fields that GDAL does not write."""
    spec, encoding = job.spec, job.spec.variables[job.name].encoding
    fields = {
        "description": f"{{{spec.scene_id} {job.name}}}",
        "band names": _listed(job.short_name(position) for position in range(job.count)),
        "sensor type": spec.sensor,
        "acquisition time": spec.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "scene id": spec.scene_id,
        "processing level": spec.processing_level,
        "measurement": spec.measurement,
    }
    if job.spectral:
        tags = [job.band_tags(position) for position in range(job.count)]
        fields["wavelength units"] = "Nanometers"
        fields |= {key: _listed(tag[key] for tag in tags) for key in ("wavelength", "fwhm", "bbl")}
        fields["band number"] = _listed(tag["band_number"] for tag in tags)
        if all("detector" in tag for tag in tags):
            fields["detector"] = _listed(tag["detector"] for tag in tags)
    if encoding.scale is not None:
        fields["reflectance scale factor"] = f"{1 / encoding.scale:.10g}"
    return fields | _envi_classes(job.legend)


def _envi_classes(legend: tuple[LegendEntry, ...]) -> dict[str, str]:
    """Fields of a classification: a name and a colour for every value from 0 to the highest."""
    if not legend:
        return {}
    known = {entry.value: entry for entry in legend}
    entries = [known.get(v, LegendEntry(v, "unclassified", (0, 0, 0))) for v in range(max(known) + 1)]
    return {
        "file type": "ENVI Classification",
        "classes": str(len(entries)),
        "class names": _listed(entry.name.replace(",", " ") for entry in entries),
        "class lookup": _listed(str(channel) for entry in entries for channel in entry.colour),
    }


def _listed(values: Iterable[str]) -> str:
    return "{" + ", ".join(values) + "}"


def _completed(header: str, fields: dict[str, str]) -> str:
    """An ENVI header with these fields, in the place of its own of the same name or at the end."""
    own = {name.strip().lower(): value for name, value in _HEADER_FIELD.findall(header)}
    return "ENVI\n" + "".join(f"{name} = {value}\n" for name, value in (own | fields).items())


def _check_target(out: Path, to: str) -> None:
    if to not in ("cog", "envi"):
        raise ConfigError(f"format {to!r} is unknown; expected cog or envi")
    is_tiff = out.suffix.lower() in _GEOTIFF
    if to == "cog" and not is_tiff:
        raise ConfigError(f"{out}: a cloud-optimised GeoTIFF needs the suffix .tif")
    if to == "envi" and (is_tiff or out.suffix.lower() in (".hdr", ".jp2", ".jpeg2000", "")):
        raise ConfigError(f"{out}: an ENVI file needs a suffix such as .bsq, .bil or .img; its header gets .hdr")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder; make it, or choose another place for {out.name}")
    for path in (out, out.with_suffix(".hdr")) if to == "envi" else (out,):
        if path.exists():
            raise ConfigError(f"{path} exists; remove it, or choose another name")


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in; what it holds moves to its place at the end, `out` itself last."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield folder
        for made in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            made.replace(out.with_name(made.name))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
