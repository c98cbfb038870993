"""SpectralEarth's files on disk (Braham et al. 2024, arXiv 2408.08447): patches, a GeoTIFF for each date of a place.

The set for pretraining is `{root}/enmap/{patch}/{scene}.tif`: 128 × 128 px of 30 m, 202 bands of EnMAP's L2A
reflectance as digital numbers. A patch with several files was seen at several dates.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.models.spectral_earth import DN_OF_ONE, ENMAP_202
from cubeloom.untrusted import open_raster

NODATA = -32768
"""Of EnMAP's products, where a file does not name its own."""
SUFFIX = ".tif"

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EarthPatch:
    """A place, seen once or more.

    Attributes:
        name: of its folder.
        dates: a file for each date, by name.
    """

    name: str
    dates: tuple[Path, ...]

    def two_views(self, rng: np.random.Generator) -> tuple[Path, Path]:
        """Two files at random: of different dates where there are two, else the same twice."""
        if len(self.dates) < 2:
            return self.dates[0], self.dates[0]
        first, second = rng.choice(len(self.dates), 2, replace=False)
        return self.dates[first], self.dates[second]


def find_patches(root: Path, sensor: str = "enmap") -> tuple[EarthPatch, ...]:
    """The patches of the pretraining set, by name; folders without a GeoTIFF are left out.

    Args:
        root: the folder that holds the sensor's, or that folder itself.
        sensor: name of the folder with a folder for each patch.

    Raises:
        InputError: there is no such folder, or it holds no patch.
    """
    folder = root / sensor if (root / sensor).is_dir() else root
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder; expected {sensor}/PATCH/SCENE{SUFFIX} in it")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    patches = (EarthPatch(name, tuple(sorted((folder / name).glob(f"*{SUFFIX}")))) for name in names)
    found = tuple(patch for patch in patches if patch.dates)
    if not found:
        raise InputError(f"{folder}: holds no patch; expected PATCH/SCENE{SUFFIX}, as SpectralEarth is handed out")
    return found


def read_patch(path: Path, bands: int = len(ENMAP_202), scale: float = 1 / DN_OF_ONE) -> Float32Array:
    """The cube in a GeoTIFF.

    Args:
        path: the file.
        bands: how many it must have.
        scale: factor on its digital numbers; the default gives EnMAP's reflectance.

    Returns:
        (band, y, x), NaN where the file has no data.

    Raises:
        InputError: it cannot be read, or has another number of bands.
    """
    values, nodata = _read(path)
    if len(values) != bands:
        raise InputError(f"{path}: {len(values)} bands, expected {bands}; is it of another sensor's set?")
    cube = values.astype(np.float32)
    cube *= np.float32(scale)
    cube[values == (NODATA if nodata is None else nodata)] = np.nan
    return cube


def read_codes(path: Path, codes: Sequence[int], values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """A label raster's first band with every code replaced.

    Args:
        path: the file.
        codes: that are known.
        values: what each becomes, 1-255; all other codes become 0.

    Returns:
        (y, x)

    Raises:
        InputError: it cannot be read, or its numbers cannot tell the codes apart.
    """
    found = _read(path)[0][0]
    if found.dtype == np.float32 and max(codes) > 2**24:
        raise InputError(f"{path}: float32 cannot tell codes such as {max(codes)} from others; expected integers")
    order = np.argsort(codes)
    known, made = np.asarray(codes, np.int64)[order], np.asarray(values, np.uint8)[order]
    place = np.searchsorted(known, found).clip(max=len(known) - 1)
    return np.where(known[place] == found, made[place], np.uint8(0))


def _read(path: Path) -> tuple[npt.NDArray[np.generic], float | None]:
    """All bands of a GeoTIFF, (band, y, x), and the number that stands for no data."""
    from rasterio.errors import RasterioError

    with open_raster(str(path), str(path)) as dataset:
        try:
            return dataset.read(), dataset.nodata
        except RasterioError as error:
            raise InputError(f"{path}: damaged ({error}); fetch it again") from None
