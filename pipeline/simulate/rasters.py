"""GeoTIFFs as DLR writes them: deflated, band interleaved, without wavelengths or scales."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from .cover import CLASSES

AnyArray = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Grid:
    """Where a raster lies; `crs` is None for sensor geometry."""

    shape: tuple[int, int]
    crs: str | None
    transform: Affine | None


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a band's valid counts, and how many there are."""

    mean: float
    std: float
    count: int


def profile(grid: Grid, dtype: str, count: int, layout: str) -> dict[str, Any]:
    """Creation options; tiles are 512 px, or the least multiple of 16 that holds a small raster."""
    side = min(512, -(-max(grid.shape) // 16) * 16)
    blocks = {"tiled": True, "blockxsize": side, "blockysize": side} if layout == "tiled" else {"blockysize": 8}
    place = {"crs": grid.crs, "transform": grid.transform} if grid.crs else {}
    return {
        "driver": "GTiff",
        "height": grid.shape[0],
        "width": grid.shape[1],
        "count": count,
        "dtype": dtype,
        "interleave": "band",
        "compress": "deflate",
        "zlevel": 1,
        "num_threads": 2,
        "bigtiff": "if_safer",
        **blocks,
        **place,
    }


def write_bands(
    path: Path,
    bands: Iterable[AnyArray],
    options: Mapping[str, Any],
    tags: Iterable[Mapping[str, str]] = (),
) -> None:
    """Write bands `(y, x)` in turn; `tags` are those of each band."""
    with _created(path, options) as dataset:
        for number, plane in enumerate(bands, 1):
            dataset.write(plane, number)
        for number, items in enumerate(tags, 1):
            dataset.update_tags(number, **items)


@contextmanager
def _created(path: Path, options: Mapping[str, Any]) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # L1B and thumbnails lie on no grid
        with rasterio.open(path, "w", **options) as dataset:
            yield dataset


def statistics(plane: AnyArray, nodata: int) -> Statistics:
    """Exact statistics of a band; a mean of 0 where there is no valid pixel."""
    valid = plane[plane != nodata].astype(np.int64)
    if not valid.size:
        return Statistics(0.0, 0.0, 0)
    mean = int(valid.sum()) / valid.size
    return Statistics(mean, float(np.sqrt(np.square(valid - mean).mean())), int(valid.size))


def composite(planes: Iterable[AnyArray], nodata: int) -> npt.NDArray[np.uint8]:
    """A quicklook `(4, y, x)`: three bands stretched between their 2nd and 98th percentiles, and alpha."""
    channels = []
    valid: npt.NDArray[np.bool_] | None = None
    for plane in planes:
        held = plane != nodata
        valid = held if valid is None else valid | held
        low, high = np.percentile(plane[held], (2, 98)) if held.any() else (0, 1)
        stretched = (plane.astype(np.float32) - low) / max(high - low, 1) * 254 + 1
        channels.append(np.where(held, np.clip(stretched, 1, 255), 0).astype(np.uint8))
    assert valid is not None
    return np.stack([*channels, np.where(valid, 255, 0).astype(np.uint8)])


def write_class_map(folder: Path, codes: AnyArray, layout: Mapping[str, Any]) -> None:
    """The class of every pixel, CLASSES.TIF (0 for none), and the names of those that occur, CLASSES.json."""
    write_bands(folder / "CLASSES.TIF", codes[None], {**layout, "nodata": 0})
    names = {str(code): CLASSES[code] for code in np.unique(codes).tolist() if code}
    (folder / "CLASSES.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def write_thumbnail(path: Path, rgba: npt.NDArray[np.uint8]) -> None:
    """A small JPEG of a quicklook."""
    step = max(1, max(rgba.shape[1:]) // 256)
    small = np.ascontiguousarray(rgba[:3, ::step, ::step])
    options = {"driver": "JPEG", "height": small.shape[1], "width": small.shape[2], "count": 3, "dtype": "uint8"}
    with _created(path, options) as dataset:
        dataset.write(small)
