"""Which reader opens a path."""

from pathlib import Path

import xarray as xr

from cubeloom.errors import ConfigError, InputError

from .base import Source, to_scene


def open_scene(path: str | Path, **options: str) -> xr.Dataset:
    """Open a product, a raster with wavelengths, or a published store as a lazy Scene.

    Args:
        path: an EnMAP product (folder, ZIP, order `.tar.gz`, METADATA.XML or image), an ENVI file or GeoTIFF whose
            band tags hold wavelengths, or a Zarr store that Cubeloom published.
        **options: `detector="vnir" | "swir"` for EnMAP L1B; `group=` for a store with several grids.

    Returns:
        A Scene (see `cubeloom.validate_scene`), lazily decoded with NaN for nodata.

    Raises:
        InputError: nothing at `path` can be opened; says what was found and what is missing.
    """
    return to_scene(open_source(path, **options))


def open_source(path: str | Path, **options: str) -> Source:
    """The Source that reads `path`; arguments and errors as `open_scene`."""
    from . import enmap, raster, store

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    for reader in (store, enmap, raster):
        if reader.recognises(path):
            try:
                return reader.open_source(path, **options)
            except TypeError as error:
                if "keyword argument" not in str(error):
                    raise
                raise ConfigError(
                    f"{path}: {reader.__name__.rpartition('.')[2]} products take no option {error}"
                ) from None
    raise InputError(
        f"{path}: not a product that Cubeloom reads. Expected an EnMAP product (a folder, ZIP or tar.gz with METADATA.XML "
        "and SPECTRAL_IMAGE), an ENVI or GeoTIFF file with wavelengths, or a published .zarr store"
    )
