"""Small files in the layout of SpectralEarth's sets: patches of a few areas, three of which are a scene's.

Each class has a smooth spectrum of its own, so that a network can learn the labels.
"""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from cubeloom.models.spectral_earth import DN_OF_ONE, statistics
from cubeloom.workflows.train.earth_sets import EarthSet, earth_set

COLUMNS = "sample_index,company,P,K,Mg,pH,P_class"


def write_patches(root: Path, places: int = 4, side: int = 32, dates: int = 2, seed: int = 0) -> Path:
    """The pretraining set: every second place is seen at one date alone, the others at `dates`."""
    rng = np.random.default_rng(seed)
    mean, spectra = np.array(statistics().mean), class_spectra("enmap", 6)
    for place in range(places):
        areas = _areas(rng, 6, side)
        for date in range(dates if place % 2 == 0 else 1):
            cube = _image(rng, mean, spectra, areas)
            write_tif(root / "enmap" / f"{place:07d}" / f"{10 * place + date:05d}.tif", cube.astype(np.int16))
    return root


def write_set(
    root: Path, name: str, counts: tuple[int, ...] = (6, 3, 3), side: int = 32, classes: int = 4, seed: int = 0
) -> Path:
    """One of the downstream sets, with its lists in `splits`; three tiles are a scene's.

    Args:
        root: its folder.
        name: of the set.
        counts: tiles of each part.
        side: of a tile, px.
        classes: how many of the set's there are, the first ones; code 0, which is none, there is too.
        seed: of all.
    """
    described, rng = earth_set(name), np.random.default_rng(seed)
    if described.task == "regress":
        return _write_soil(root, described, counts, rng)
    mean, spectra = np.array(statistics(described.sensor).mean), class_spectra(described.sensor, classes + 1)
    codes = np.array([0, *(one.codes[0] for one in described.classes[:classes])])
    names = [f"{number:07d}/{number % -(-sum(counts) // 3):05d}.tif" for number in range(sum(counts))]
    for tile in names:
        areas = _areas(rng, classes + 1, side)
        write_tif(root / described.sensor / tile, _image(rng, mean, spectra, areas).astype(np.int16))
        write_tif(root / described.labels / tile, codes[areas][None].astype(np.uint32))
    (root / "splits").mkdir(exist_ok=True)
    for part, first, count in zip(("train", "val", "test"), np.cumsum([0, *counts]), counts, strict=False):
        (root / "splits" / f"{part}.txt").write_text("\n".join(names[first : first + count]) + "\n")
    return root


def class_spectra(sensor: str, classes: int) -> np.ndarray:
    """(classes, band): smooth, in standard deviations of the sensor's bands, in its digital numbers."""
    std = np.array(statistics(sensor).std)
    place = np.linspace(0, 1, std.size)
    phase = 2 * np.pi * np.arange(classes)[:, None] / classes
    return std * np.sin(2 * np.pi * place + phase) * np.cos(3 * place * (1 + phase))


def write_tif(path: Path, values: np.ndarray, nodata: float | None = None) -> Path:
    """A GeoTIFF (band, y, x) of 30 m."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    profile = {"crs": "EPSG:32633", "transform": Affine(30, 0, 4e5, 0, -30, 5.8e6), "nodata": nodata}
    with rasterio.open(
        path, "w", "GTiff", width=width, height=height, count=count, dtype=values.dtype, compress="deflate", **profile
    ) as file:
        file.write(values)
    return path


def _areas(rng: np.random.Generator, classes: int, side: int) -> np.ndarray:
    """(y, x) class indices: each pixel has that of the nearest of six points."""
    points, found = rng.uniform(0, side, (6, 2)), rng.integers(0, classes, 6)
    grid = np.stack(np.mgrid[:side, :side], axis=-1)[..., None, :]
    return found[np.square(grid - points).sum(-1).argmin(-1)]


def _image(rng: np.random.Generator, mean: np.ndarray, spectra: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(band, y, x) digital numbers under a light of its own, with noise."""
    lit = rng.uniform(0.85, 1.15) * (mean + spectra)
    cube = lit[areas].transpose(2, 0, 1)
    return np.clip(cube + rng.normal(0, 0.01 * DN_OF_ONE, cube.shape), 1, 30_000)


def _write_soil(root: Path, described: EarthSet, counts: tuple[int, ...], rng: np.random.Generator) -> Path:
    """HYPERVIEW: the first of its soil values is how much of one spectrum there is in the image."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "splits").mkdir(exist_ok=True)
    mean, spectrum = np.array(statistics("hyperview").mean), class_spectra("hyperview", 2)[1]
    number = 0
    for part, count in zip(described.counts, counts, strict=False):
        lines = [COLUMNS]
        for _ in range(count):
            values, size = rng.normal(size=4), rng.integers(9, 14, 2)
            cube = (mean + 0.3 * values[0] * spectrum)[:, None, None] + rng.normal(0, 5, (mean.size, *size))
            np.savez(root / "images" / f"{number}.npz", data=cube.clip(1), mask=np.zeros(cube.shape, bool))
            lines.append(",".join(map(str, (number, "B", *values.tolist(), 3))))
            number += 1
        (root / "splits" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root
