"""SSL4EO-S12's files on disk (Wang et al. 2023, arXiv 2211.07044): places seen by Sentinel-2 and Sentinel-1.

A chip is a folder of one GeoTIFF a band: `{root}/s2a/{place}/{scene}/B4.tif`, L2A reflectance as digital numbers that
carry no offset, and `{root}/s1/{place}/{scene}/VV.tif`, decibels. Bands of other resolutions, and the radar, lie on
grids of their own, some ten metres apart.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from affine import Affine
from scipy.ndimage import affine_transform

from cubeloom.errors import InputError
from cubeloom.models.cards import Card
from cubeloom.pipeline.band_input import BandInput, beside
from cubeloom.pipeline.readers.sentinel1_scene import radar_bands
from cubeloom.pipeline.readers.sentinel2_bands import CIRRUS, NAMES, nominal_bands, scene_bands
from cubeloom.untrusted import open_raster

OPTICAL, RADAR = "s2a", "s1"
BANDS = tuple(name for name in NAMES if name != CIRRUS)
FINEST = "B04"
"""Whose grid all others are brought onto."""
_QUANTIFICATION = np.float32(10_000)
_TIME = re.compile(r"(?<!\d)(\d{8}T\d{6})(?!\d)")

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chip:
    """One date of a place.

    Attributes:
        optical: folder of Sentinel-2's bands; None where the network sees none.
        radar: folder of the polarisations, of the nearest date that there is; None where the network sees none.
    """

    optical: Path | None
    radar: Path | None


@dataclass(frozen=True)
class ChipLocations:
    """The places of such a folder, read and standardised when they are asked for.

    Attributes:
        places: the dates of each.
        card: of the network.
    """

    places: tuple[tuple[Chip, ...], ...]
    card: Card

    def __len__(self) -> int:
        return len(self.places)

    def dates(self, index: int) -> int:
        """How many images there are of a place."""
        return len(self.places[index])

    def read(self, index: int, date: int) -> Float32Array:
        """One of them, `(band, y, x)`, standardised, 0 where there is no value.

        Raises:
            InputError: a file is missing or damaged.
        """
        chip = self.places[index][date]
        layers = [] if chip.optical is None else [_image(chip.optical, name) for name in BANDS]
        if chip.radar is not None:
            layers += [_image(chip.radar, name) for name in self.card.polarisations]
        values, grid = layers[BANDS.index(FINEST) if chip.optical is not None else 0]
        cube = np.stack([_onto(one, where, values.shape, grid) for one, where in layers])
        image, known = self._bound.prepared(cube, np.asarray(np.isfinite(cube).any(axis=0)))
        return np.where(known, image, np.float32(0))

    @cached_property
    def _bound(self) -> BandInput:
        optical, radar = scene_bands(nominal_bands(BANDS)), radar_bands(self.card.polarisations)
        if self.card.input_bands is None:
            return BandInput.of(self.card, radar)
        return BandInput.of(self.card, beside(optical, radar) if self.card.polarisations else optical)


def find_chips(root: Path, card: Card) -> ChipLocations:
    """The places that a network can learn from: all those that the sensors which it sees have seen.

    Args:
        root: the folder with `s2a` and `s1`.
        card: of the network.

    Raises:
        InputError: there is no such place.
        ModelError: the network does not see Sentinel-2's bands.
    """
    wanted = [name for name, seen in ((OPTICAL, card.input_bands), (RADAR, card.polarisations)) if seen]
    names = [{one.name for one in _folders(root / sensor)} for sensor in wanted]
    places = []
    for name in sorted(set.intersection(*names)):
        scenes = {sensor: _folders(root / sensor / name) for sensor in wanted}
        if all(scenes.values()):
            places.append(_dates(scenes.get(OPTICAL), scenes.get(RADAR)))
    if not places:
        raise InputError(
            f"{root}: holds no place of SSL4EO-S12; expected "
            f"{' and '.join(f'{sensor}/PLACE/SCENE/BAND.tif' for sensor in wanted)}"
        )
    found = ChipLocations(tuple(places), card)
    found.read(0, 0)  # an unfit network or folder shows before training
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def _dates(optical: Sequence[Path] | None, radar: Sequence[Path] | None) -> tuple[Chip, ...]:
    """The dates of a place, each with the radar scene that is nearest in time."""
    if optical is None:
        return tuple(Chip(None, one) for one in radar or ())
    if radar is None:
        return tuple(Chip(one, None) for one in optical)
    times = np.array([_time(one) for one in radar])
    return tuple(Chip(one, radar[int(np.abs(times - _time(one)).argmin())]) for one in optical)


def _time(scene: Path) -> np.datetime64:
    found = _TIME.search(scene.name)
    if found is None:
        raise InputError(f"{scene}: its name has no time, such as 20200604T054639")
    day, clock = found[1].split("T")
    return np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}")


def _image(folder: Path, name: str) -> tuple[Float32Array, Affine]:
    """A band as reflectance, or a polarisation in decibels; and the way from its pixels to the map."""
    from rasterio.errors import RasterioError

    path = folder / f"{name.replace('B0', 'B')}.tif"
    if not path.is_file():
        raise InputError(f"{path}: no such file; a chip has {', '.join(BANDS)} or VV and VH")
    with open_raster(str(path), str(path)) as dataset:
        try:
            numbers, grid = dataset.read(1), dataset.transform
        except RasterioError as error:
            raise InputError(f"{path}: damaged ({error}); fetch it again") from None
    values = numbers.astype(np.float32)
    if name not in BANDS:
        return values, grid
    return np.where(numbers == 0, np.float32(np.nan), values / _QUANTIFICATION), grid


def _onto(image: Float32Array, grid: Affine, shape: tuple[int, ...], other: Affine) -> Float32Array:
    """An image on another grid, bilinearly; NaN beyond its edge."""
    if (image.shape, grid) == (shape, other):
        return image
    centre = Affine.translation(0.5, 0.5)
    way = ~centre * ~grid * other * centre  # from the columns and rows of the other grid to this one's
    matrix, start = np.array([[way.e, way.d], [way.b, way.a]]), (way.f, way.c)
    return np.asarray(affine_transform(image, matrix, start, shape, order=1, mode="constant", cval=np.nan))
