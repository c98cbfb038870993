"""Which reader opens a path."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import xarray as xr

from cubeloom.errors import ConfigError, InputError

from . import zarr_remote
from .base import Source, to_scene
from .store import open_remote_source

READERS = (
    "eopf",
    "store",
    "sentinel2",
    "sentinel1",
    "enmap",
    "sentinel2_chips",
    "sentinel2_cogs",
    "sentinel1_items",
    "sentinel1_chips",
    "raster",
)
"""Modules that are asked in turn; each has `recognises(path)` and `open_source(path, *, <its options>)`."""


def open_scene(path: str | Path, **options: str) -> xr.Dataset:
    """Open a product, a raster with wavelengths, or a published store as a lazy Scene.

    Args:
        path: an EnMAP product (folder, ZIP, order `.tar.gz`, METADATA.XML or image), a Sentinel-2 product (SAFE folder
            or ZIP, EOPF Zarr, a STAC item beside its COGs) or chips of it, a Sentinel-1 GRD product (SAFE
            folder or ZIP) or backscatter as GeoTIFF (alone, or a STAC item beside it), an ENVI file or GeoTIFF whose
            band tags hold wavelengths, a Zarr store that Cubeloom published, or the URL of one that it pushed
            (`s3://bucket/…/x.zarr`, `icechunk+…://…#…`) or of an EOPF product (`https://host/…/S2A_MSIL2A_….zarr`,
            `s3://…`).
        **options: `detector="vnir" | "swir"` for EnMAP L1B; `grid="10m" | "20m" | "60m"` and `bands="common"` for
            Sentinel-2; `offset=` for its chips without metadata; `calibration=`, `grid=` and `crs=` for Sentinel-1;
            `units=` for backscatter that does not state them; `group=` for a store with several grids; `scale=` and
            `measurement=` for a raster that does not state its units.

    Returns:
        A Scene (see `cubeloom.validate_scene`), lazily decoded with NaN for nodata.

    Raises:
        InputError: nothing at `path` can be opened; says what was found and what is missing.
        ConfigError: an option that such a product does not take, or one that it needs.
    """
    return to_scene(open_source(path, **options))


def open_source(path: str | Path, **options: str) -> Source:
    """The Source that reads `path`; arguments and errors as `open_scene`."""
    if "://" in str(path):
        eopf = zarr_remote.recognises(str(path))
        open_url = import_module(".eopf", __package__).open_remote_source if eopf else open_remote_source
        _check_options(f"{str(path).partition('://')[0]}://…", open_url, options)
        remote: Source = open_url(str(path), **options)
        return remote
    reader = reader_of(Path(path))
    _check_options(path, reader.open_source, options)
    source: Source = reader.open_source(Path(path), **options)
    return source


def open_every_grid(path: str | Path) -> dict[str, Source]:
    """A Source for each grid that a product of several has, by the grid's name; `{"/": ...}` for one of a single grid.

    Raises:
        InputError, ConfigError: as `open_scene`.
    """
    if "://" in str(path):
        reader = import_module(".eopf" if zarr_remote.recognises(str(path)) else ".store", __package__)
    else:
        reader = reader_of(Path(path))
    grids = list(getattr(reader, "GRIDS", ()))
    if not grids:
        return {"/": open_source(path)}
    found, causes = {}, []
    for grid in grids:
        try:
            found[grid] = open_source(path, grid=grid)
        except InputError as error:  # items and chips often come with the bands of one grid alone
            causes.append(error)
    if not found:
        raise causes[0]
    return found


def reader_of(path: Path) -> ModuleType:
    """The module that reads a path.

    Raises:
        InputError: none does; says what was found and what is expected.
    """
    for reader in (import_module(f".{name}", __package__) for name in READERS):
        if reader.recognises(path):
            return reader
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    raise InputError(
        f"{path}: not a product that Cubeloom reads. Expected an EnMAP product (a folder, ZIP or tar.gz with "
        "METADATA.XML and SPECTRAL_IMAGE), a Sentinel-2 product (a SAFE folder or ZIP with MTD_MSIL*.xml, or EOPF "
        "Zarr), an ENVI or GeoTIFF file with wavelengths, or a published .zarr store"
    )


def _check_options(path: str | Path, reader: Callable[..., Source], options: Mapping[str, str]) -> None:
    known = list(inspect.signature(reader).parameters)[1:]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"{path}: {reader.__module__.rpartition('.')[2]} products take no option {unknown[0]!r}; "
            f"they take {', '.join(known)}"
        )
