"""Places on Earth with an image of each date, for pretraining: SpectralEarth's files, scenes, and simulated places."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import Card
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.simulate.bands import BandTable

from .both_sensors import brought, cube_of_both
from .earth_layout import EarthPatch, find_patches, read_patch
from .pretrain_recipe import PairedScenes, PretrainData, SimulatedDates
from .simulated_dates import band_table, simulate_dates
from .ssl4eo import find_chips

Float32Array = npt.NDArray[np.float32]
FloatImages = npt.NDArray[np.floating[Any]]

_LEAST_VALID = 0.5
"""Share of a block's pixels that must have values."""
_MAPPED = 4096
"""Files that stay mapped; opening one takes longer than cropping it."""
_BLOCKS = 2
"""Edge of the squares that scenes are cut into, in edges of what views are cropped from."""


class Locations(Protocol):
    """Places by number."""

    def __len__(self) -> int: ...

    def dates(self, index: int) -> int:
        """How many images there are of a place."""
        ...

    def read(self, index: int, date: int) -> FloatImages:
        """One of them as the network takes it: `(band, y, x)`, standardised, finite."""
        ...


@dataclass(frozen=True)
class EarthLocations:
    """SpectralEarth's patches, standardised as they are read.

    Attributes:
        patches: the places.
        card: of the network.
    """

    patches: tuple[EarthPatch, ...]
    card: Card

    def __len__(self) -> int:
        return len(self.patches)

    def dates(self, index: int) -> int:
        """How many images there are of a place."""
        return len(self.patches[index].dates)

    def read(self, index: int, date: int) -> Float32Array:
        """One of them, `(band, y, x)`, finite."""
        return standardised(read_patch(self.patches[index].dates[date], len(self.card.mean)), self.card)


class StoredLocations:
    """Standardised images in files of NumPy, `(y, x, band)` in float16, mapped when they are read.

    All bands of a pixel lie together, so that a small crop is on few pages of the file.

    Args:
        files: of each place, one a date.
    """

    def __init__(self, files: tuple[tuple[Path, ...], ...]) -> None:
        self.files = files
        self._map: Callable[[Path], FloatImages] = lru_cache(_MAPPED)(
            partial(np.load, mmap_mode="r", allow_pickle=False)
        )

    def __len__(self) -> int:
        return len(self.files)

    def dates(self, index: int) -> int:
        """How many images there are of a place."""
        return len(self.files[index])

    def read(self, index: int, date: int) -> FloatImages:
        """One of them, `(band, y, x)`, finite."""
        return self._map(self.files[index][date]).transpose(2, 0, 1)


@dataclass(frozen=True)
class Several:
    """The places of several sources, one after another."""

    parts: tuple[Locations, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def dates(self, index: int) -> int:
        """How many images there are of a place."""
        part, index = self._find(index)
        return part.dates(index)

    def read(self, index: int, date: int) -> FloatImages:
        """One of them, `(band, y, x)`."""
        part, index = self._find(index)
        return part.read(index, date)

    def _find(self, index: int) -> tuple[Locations, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)


def load_locations(data: PretrainData, card: Card, edge: int, folder: Path) -> Locations:
    """The places of a recipe, their images standardised as the card has it.

    Args:
        data: which.
        card: of the network; its bands, mean and std.
        edge: px that an image must have at least.
        folder: where scenes, and simulated places without a folder of their own, are kept for the next time.

    Raises:
        ConfigError: the card does not say what the network sees.
        InputError: an image that cannot be used.
    """
    if card.input_bands is None or not card.mean:
        raise ConfigError(f"model {card.name}: its card does not say which bands it sees, so it cannot be pretrained")
    parts: list[Locations] = []
    if data.earth is not None:
        parts.append(EarthLocations(find_patches(data.earth), card))
    if data.ssl4eo is not None:
        parts.append(find_chips(data.ssl4eo, card))
    places: dict[str, Sequence[Path | PairedScenes]] = {
        f"scene_{number}": dates for number, dates in enumerate(data.scenes)
    }
    places |= {f"pair_{number}": (pair,) for number, pair in enumerate(data.pairs)}
    parts += [_blocks(dates, card, edge, folder / f"{name}_by_pixel") for name, dates in places.items()]
    if data.simulated is not None:
        kept = data.simulated.folder or folder / "simulated"
        parts.append(_simulated(data.simulated, card, band_table(card.input_bands), kept))
    return Several(tuple(parts))


def _simulated(wanted: SimulatedDates, card: Card, bands: BandTable, folder: Path) -> StoredLocations:
    """Simulated places; those that an earlier call made, of this or another training, are taken from their files."""
    seen = hashlib.sha256(repr((card.input_bands, card.mean, card.std)).encode()).hexdigest()[:8]
    folder = folder / f"{wanted.px}px_noise{wanted.noise:g}_{seen}_by_pixel"
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for seed in range(wanted.seed, wanted.seed + wanted.count):
        files = tuple(folder / f"{seed}_{number}of{wanted.dates}.npy" for number in range(wanted.dates))
        if not all(file.exists() for file in files):
            dates = simulate_dates(seed, wanted.px, wanted.dates, bands, wanted.noise)
            for file, date in zip(files, dates, strict=True):
                _write(file, standardised(date.cube, card))
        places.append(files)
    return StoredLocations(tuple(places))


def _blocks(dates: Sequence[Path | PairedScenes], card: Card, edge: int, folder: Path) -> StoredLocations:
    """The squares of a scene, or of the scenes of several dates, that hold enough; each square is a place."""
    if not folder.exists():
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        scenes = [_open_pair(one, card) if isinstance(one, PairedScenes) else _open(one, card) for one in dates]
        for number, (cube, bound, grid) in enumerate(scenes):
            if grid != scenes[0][2]:
                raise InputError(
                    f"{_named(dates[number])}: not on the grid of {_named(dates[0])}, of which it shall be another date"
                )
            _cut(cube, bound, edge, part, number)
        part.rename(folder)
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.npy")):
        found.setdefault(file.stem.rpartition("_")[0], []).append(file)
    if not found:
        raise InputError(f"{_named(dates[0])}: no square of {edge} px has values in at least half of its pixels")
    return StoredLocations(tuple(tuple(files) for files in found.values()))


def _named(source: Path | PairedScenes) -> Path:
    return source.scene if isinstance(source, PairedScenes) else source


def _open(path: Path, card: Card) -> tuple[xr.DataArray, BandInput, GeoBox]:
    """The cube of a scene that a network sees, its way to the network, and its grid."""
    scene = open_scene(path)
    spec = spec_of(scene)
    name = card.variable or spec.subject
    _require_cube(path, scene, name)
    return scene[name], BandInput.of(card, spec.bands), spec.grid


def _open_pair(pair: PairedScenes, card: Card) -> tuple[xr.DataArray, BandInput, GeoBox]:
    """The same of two sensors."""
    scene = open_scene(pair.scene, **pair.options)
    name = card.variable or spec_of(scene).subject
    _require_cube(pair.scene, scene, name)
    radar = brought(scene, open_scene(pair.radar, **pair.radar_options))
    cube, bands = cube_of_both(scene, name, radar)
    return cube, BandInput.of(card, bands), spec_of(scene).grid


def _require_cube(path: Path, scene: xr.Dataset, name: str) -> None:
    if name not in scene:
        raise InputError(f"{path}: holds no {name}, which the network sees; found {', '.join(map(str, scene))}")


def _cut(cube: xr.DataArray, bound: BandInput, edge: int, folder: Path, number: int) -> None:
    """Write the squares of a scene as the network takes them."""
    height, width = cube.shape[1:]
    for row, col in product(_starts(height, edge), _starts(width, edge)):
        values = np.asarray(cube[:, row : row + _BLOCKS * edge, col : col + _BLOCKS * edge], np.float32)
        image, known = bound.prepared(values, np.asarray(np.isfinite(values).any(axis=0)))
        if known.mean() >= _LEAST_VALID:
            _write(folder / f"{row:06d}_{col:06d}_{number}.npy", np.where(known, image, 0))


def _starts(extent: int, edge: int) -> range:
    """Where the squares of an axis begin, so that the last has `edge` px at least."""
    return range(0, extent - edge + 1, _BLOCKS * edge)


def _write(path: Path, image: FloatImages) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")  # another training may write the same place
    with part.open("wb") as file:
        np.save(file, np.ascontiguousarray(image.transpose(1, 2, 0), np.float16), allow_pickle=False)
    part.replace(path)


def standardised(image: FloatImages, card: Card) -> Float32Array:
    """An image of a card's bands and units `(band, y, x)` as the network takes it: 0 where there is no value."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    return np.asarray(np.nan_to_num((image - mean) / std, nan=0.0), np.float32)
