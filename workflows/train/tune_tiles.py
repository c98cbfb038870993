"""Tiles that a backbone is tuned on: cut from labelled images, changed at random, and drawn into batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from odc.geo.geobox import GeoBox
from torch import Tensor
from torch.nn import functional

from cubeloom.errors import InputError
from cubeloom.models.cards import Card
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.regrid import centre_lonlat

from .labelled import LabelledImage
from .tune_recipe import AugmentPart, TuneRecipe, TuneTask

IGNORE = -100
"""Index of no class, as torch's cross entropy leaves it out."""
_ORDER, _CHANGES = 1, 2

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Tiles(Protocol):
    """Tiles by number."""

    def __len__(self) -> int: ...

    def tile(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """A standardised cube (D, h, w), and class indices (h, w), or the values or labels of the whole tile (K,)."""
        ...


class PlacedTiles(Tiles, Protocol):
    """Tiles that are known to lie somewhere."""

    def lonlat(self, index: int) -> tuple[float, float]:
        """Longitude and latitude of a tile's middle, degrees."""
        ...


@dataclass(frozen=True, eq=False)
class Area:
    """An image as a network sees it.

    Attributes:
        name: for messages.
        cube: (D, y, x), standardised, without NaN.
        target: (y, x) class indices, IGNORE where there is none.
        grid: where it lies; None where that is not known.
    """

    name: str
    cube: FloatArray
    target: npt.NDArray[np.int64]
    grid: GeoBox | None = None

    def within(self, mask: BoolArray) -> "Area":
        """The same with the labels of some pixels alone."""
        return replace(self, target=np.where(mask, self.target, IGNORE))

    def with_date(self, other: "Area") -> "Area":
        """The channels of the same pixels at another date behind these; labels where both dates have some.

        Raises:
            InputError: the other date has another number of pixels.
        """
        if self.target.shape != other.target.shape:
            raise InputError(
                f"{other.name}: {other.target.shape} px, the other date {self.name} has {self.target.shape}; both lie "
                "on one grid"
            )
        known = (self.target != IGNORE) & (other.target != IGNORE)
        return replace(self, cube=np.concatenate([self.cube, other.cube]), target=np.where(known, self.target, IGNORE))

    def lonlat(self, row: int, col: int, px: int) -> tuple[float, float]:
        """Longitude and latitude of the middle of a tile of `px` px, degrees.

        Raises:
            InputError: the area has no map projection.
        """
        found = centre_lonlat(self.grid, Window(row, col, px, px)) if self.grid is not None else None
        if found is None:
            raise InputError(
                f"{self.name}: has no map projection, so where its tiles lie is not known; leave location out"
            )
        return found


def area(image: LabelledImage, card: Card) -> Area:
    """An image in the channels of a card.

    Raises:
        ModelError: the image's bands do not cover the card's.
        InputError: the image says nothing of its bands, and the card names some, or has another number.
    """
    index = np.full(256, IGNORE)
    index[[one.value for one in image.classes]] = np.arange(len(image.classes))
    if image.bands is not None:
        cube, known = BandInput.of(card, image.bands).prepared(image.cube, image.valid)
        return Area(image.name, cube, np.where(known, index[image.labels], IGNORE), image.grid)
    if len(image.cube) != card.bands or card.input_bands is not None:
        raise InputError(
            f"{image.name}: {len(image.cube)} bands of unknown wavelengths; the backbone takes {card.bands} bands of "
            f"{card.sensor}. Take a scene that states its wavelengths, or an untrained backbone"
        )
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    return Area(image.name, np.where(image.valid, (image.cube - mean) / std, 0).astype(np.float32), index[image.labels])


class SceneTiles:
    """All windows of some areas that hold a label and no forbidden pixel; overlapping, for training.

    Args:
        areas: where to cut.
        forbidden: (y, x) for each, pixels that no tile may hold; None for none.
        px: side of a tile.

    Raises:
        InputError: there is no such window.
    """

    def __init__(self, areas: Sequence[Area], forbidden: Sequence[BoolArray | None], px: int) -> None:
        self.areas, self.px = areas, px
        corners = []
        for number, (one, kept_out) in enumerate(zip(areas, forbidden, strict=True)):
            _require_room(one, px)
            fits = _counts(one.target != IGNORE, px) > 0
            if kept_out is not None:
                fits &= _counts(kept_out, px) == 0
            rows, cols = np.nonzero(fits)
            corners.append(np.stack([np.full(rows.size, number), rows, cols], axis=1))
        self.corners = np.concatenate(corners)
        if not len(self.corners):
            raise InputError(
                f"{', '.join(one.name for one in areas)}: no tile of {px} px holds a training label and no pixel that "
                "is kept for validation or test; make tile_px smaller or the squares of the split larger"
            )

    def __len__(self) -> int:
        return len(self.corners)

    def tile(self, index: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Tiles`."""
        number, row, col = self.corners[index]
        one, window = self.areas[number], np.s_[row : row + self.px, col : col + self.px]
        return one.cube[:, *window], one.target[window]

    def lonlat(self, index: int) -> tuple[float, float]:
        """See `PlacedTiles`."""
        number, row, col = self.corners[index]
        return self.areas[int(number)].lonlat(int(row), int(col), self.px)

    def class_counts(self, classes: int) -> npt.NDArray[np.int64]:
        """Labelled pixels of each class, (K,)."""
        found = [one.target[one.target != IGNORE] for one in self.areas]
        return np.bincount(np.concatenate(found), minlength=classes)


class GridTiles:
    """Tiles side by side that cover some areas, each label in one of them; for validation and test.

    Args:
        areas: where to cut; tiles without a label are left out.
        px: side of a tile.

    Raises:
        InputError: an area is smaller than a tile, or has no label.
    """

    def __init__(self, areas: Sequence[Area], px: int) -> None:
        self.px = px
        self._tiles: list[tuple[Area, tuple[int, int], npt.NDArray[np.int64]]] = []
        for one in areas:
            _require_room(one, px)
            left = one.target.copy()
            for row in _starts(left.shape[0], px):
                for col in _starts(left.shape[1], px):
                    window = np.s_[row : row + px, col : col + px]
                    if (left[window] != IGNORE).any():
                        self._tiles.append((one, (row, col), left[window].copy()))
                    left[window] = IGNORE
        if not self._tiles:
            raise InputError(f"{', '.join(one.name for one in areas)}: no label to validate or test with")

    def __len__(self) -> int:
        return len(self._tiles)

    def tile(self, index: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """See `Tiles`."""
        one, (row, col), target = self._tiles[index]
        return one.cube[:, row : row + self.px, col : col + self.px], target

    def lonlat(self, index: int) -> tuple[float, float]:
        """See `PlacedTiles`."""
        one, corner, _ = self._tiles[index]
        return one.lonlat(*corner, self.px)


def target_of(task: TuneTask, found: npt.NDArray[Any], classes: int) -> npt.NDArray[Any]:
    """What a network shall say of a tile.

    Args:
        task: of the network.
        found: class indices (h, w), or what is already of the whole tile (K,) or ().
        classes: K.

    Returns:
        `segment`: the indices; `classify`: the most frequent one, IGNORE where there is none; `multilabel`: 1 for each
        that occurs, (K,) float32; `regress`: the values.
    """
    if task == "segment" or found.ndim != 2:
        return found
    counts = np.bincount(found[found != IGNORE], minlength=classes)
    if task == "classify":
        return np.asarray(counts.argmax() if counts.any() else IGNORE)
    return (counts > 0).astype(np.float32)


class TileBatches:
    """Batches of a training by step: every tile once an epoch, in an order drawn for the epoch.

    Args:
        tiles: to learn from.
        recipe: seed, batch, task and what is changed at random.
        classes: number of classes or values.
    """

    def __init__(self, tiles: Tiles, recipe: TuneRecipe, classes: int) -> None:
        self.tiles, self.recipe, self.classes = tiles, recipe, classes
        self._epoch: tuple[int, npt.NDArray[np.int64]] | None = None

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Cubes (N, D, h, w) and their targets, of a step from 0; a function of seed and step.

        With `location` also longitudes and latitudes, (N, 2).
        """
        size = self.recipe.batch
        draw = np.random.default_rng([self.recipe.seed, _CHANGES, step])
        cubes, targets = [], []
        indices = [self._place(position) for position in range(step * size, (step + 1) * size)]
        for index in indices:
            cube, found = self.tiles.tile(index)
            cube, found = augmented(cube, found, self.recipe.augment, draw)
            cubes.append(torch.from_numpy(cube))
            targets.append(torch.from_numpy(target_of(self.recipe.task, found, self.classes).copy()))
        return torch.stack(cubes), torch.stack(targets), *(places(self.tiles, indices) if self.recipe.location else ())

    def _place(self, position: int) -> int:
        epoch, place = divmod(position, len(self.tiles))
        if self._epoch is None or self._epoch[0] != epoch:
            draw = np.random.default_rng([self.recipe.seed, _ORDER, epoch])
            self._epoch = (epoch, draw.permutation(len(self.tiles)))
        return int(self._epoch[1][place])


def places(tiles: Tiles, indices: Iterable[int]) -> tuple[Tensor]:
    """Longitude and latitude of the middles of some tiles, (N, 2) float64, as the one more input of a network."""
    placed = cast("PlacedTiles", tiles)
    return (torch.tensor([placed.lonlat(index) for index in indices], dtype=torch.float64),)


def augmented(
    cube: npt.NDArray[Any], found: npt.NDArray[Any], part: AugmentPart, draw: np.random.Generator
) -> tuple[FloatArray, npt.NDArray[Any]]:
    """A tile changed at random, and its labels with it.

    Args:
        cube: (D, h, w), standardised; stays as it is.
        found: class indices (h, w), which follow every change of place; other targets stay.
        part: what is changed.
        draw: the random numbers.

    Returns:
        New arrays of the same shapes.
    """
    cube, of_pixels = cube.astype(np.float32), found.ndim == 2
    if part.crop_scale != (1.0, 1.0):
        row, col, height, width = _crop(cube.shape[1:], part.crop_scale, draw)
        window = np.s_[row : row + height, col : col + width]
        cube = _resized(cube[:, *window], cube.shape[1:], "bilinear")
        found = _resized(found[None][:, *window], found.shape, "nearest")[0] if of_pixels else found
    for axis in (1, 2):
        if part.flips and draw.random() < 0.5:
            cube = np.flip(cube, axis)
            found = np.flip(found, axis - 1) if of_pixels else found
    return _disturbed(np.ascontiguousarray(cube), part, draw), np.ascontiguousarray(found)


def _disturbed(cube: FloatArray, part: AugmentPart, draw: np.random.Generator) -> FloatArray:
    """Other values: noise, and channels that are missing."""
    if part.noise:
        cube = cube + np.float32(part.noise * draw.random()) * draw.standard_normal(cube.shape, np.float32)
    if part.drop_bands:
        cube[draw.random(len(cube)) < part.drop_bands * draw.random()] = 0
    return cube


def _crop(shape: tuple[int, ...], scale: tuple[float, float], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Row, column, height and width of a window with a random share of the area and sides between 3:4 and 4:3."""
    area_px = shape[0] * shape[1] * draw.uniform(*scale)
    ratio = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
    height = int(np.clip(round(np.sqrt(area_px / ratio)), 1, shape[0]))
    width = int(np.clip(round(np.sqrt(area_px * ratio)), 1, shape[1]))
    return int(draw.integers(shape[0] - height + 1)), int(draw.integers(shape[1] - width + 1)), height, width


def _resized(array: npt.NDArray[Any], shape: tuple[int, ...], mode: str) -> npt.NDArray[Any]:
    """(C, h, w) → (C, *shape)."""
    exact = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    resized = functional.interpolate(exact, size=shape, mode=mode)
    return resized[0].numpy().astype(array.dtype)


def _counts(mask: BoolArray, px: int) -> npt.NDArray[np.int64]:
    """How many pixels are marked in the window of px × px at each corner where one fits."""
    total = np.pad(mask.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    found: npt.NDArray[np.int64] = total[px:, px:] - total[:-px, px:] - total[px:, :-px] + total[:-px, :-px]
    return found


def _starts(size: int, px: int) -> list[int]:
    return sorted({*range(0, size - px + 1, px), size - px})


def _require_room(one: Area, px: int) -> None:
    if min(one.target.shape) < px:
        raise InputError(f"{one.name}: {one.target.shape} px, smaller than a tile of {px} px; make tile_px smaller")
