"""Keeping test pixels apart from training pixels in space."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cubeloom.errors import ConfigError, InputError
from cubeloom.untrusted import read_yaml

from .labelled import LabelledImage
from .labels_recipe import PixelSplit, Split
from .stratified import PER_CLASS, draw_split

BoolArray = npt.NDArray[np.bool_]


class Places(Protocol):
    """Labelled pixels of one or more scenes: where they are, and of which class."""

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """`(n,)` class values."""

    @property
    def scene(self) -> npt.NDArray[np.int32]:
        """`(n,)` which scene, by number."""

    @property
    def row(self) -> npt.NDArray[np.int32]:
        """`(n,)` px."""

    @property
    def col(self) -> npt.NDArray[np.int32]:
        """`(n,)` px."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Which samples train and which test; those of the buffer do neither.

    Attributes:
        train: `(n,)` bool.
        test: `(n,)` bool.
        block: `(n,)` number of the square that each sample lies in.
    """

    train: BoolArray
    test: BoolArray
    block: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PixelParts:
    """Which pixels of an image train and which test, two `(y, x)` masks without a pixel in common."""

    train: BoolArray
    test: BoolArray


def split_samples(samples: Places, split: Split) -> Parts:
    """Divide samples as `split` says.

    Raises:
        InputError: a class has no training or no test pixel; says which and what to change.
    """
    row, col = samples.row // split.block_px, samples.col // split.block_px
    columns = int(col.max()) + 1
    per_scene = (int(row.max()) + 1) * columns
    block = samples.scene.astype(np.int64) * per_scene + row * columns + col
    if split.method == "tiles":
        test = (row + col) % 2 == (0 if split.swap else 1)
    else:
        groups = block if split.method == "blocks" else np.arange(block.size)
        test = _drawn(samples.labels, groups, split)
    buffer_px = 0 if split.method == "random" else split.buffer_px
    train = _apart(samples, test, split.block_px, buffer_px)
    how = f"split {split.method} of {split.block_px} px squares, seed {split.seed}: change block_px or seed"
    _require_classes(samples.labels, train, test, how)
    return Parts(train, test, block)


def split_pixels(image: LabelledImage, split: PixelSplit) -> PixelParts:
    """Divide an image's labelled pixels as `split` says.

    Raises:
        ConfigError: the image's publisher keeps no pixels for tests, or a listed square holds no label.
        InputError: a class has no training pixel, or none to test on; says which and what to change. With `random` a
            class may have none to test on: one with no more pixels than train of it.
    """
    if split.method == "random":
        per_class = split.per_class or PER_CLASS
        return PixelParts(*draw_split(image.labels, per_class, split.seed, split.largest_share))
    places = _places(image)
    train, test = _divided(image, places, split)
    if split.per_class is not None:
        train = _limited(places.labels, train, split.per_class, split.seed)
    masks = np.zeros((2, *image.labels.shape), bool)
    masks[:, places.row, places.col] = train, test
    return PixelParts(*masks)


def tile_splits(path: Path) -> dict[str, PixelSplit]:
    """The splits of a file that lists test tiles: `tile_px`, and `splits`, each with a `name` and its `test` tiles.

    Raises:
        ConfigError: the file is missing or says something else.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such list of tiles")
    data = read_yaml(path)
    try:
        return {
            str(one["name"]): PixelSplit(method="listed", block_px=data["tile_px"], test_tiles=one["test"])
            for one in data["splits"]
        }
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{path}: expected tile_px and splits, a list of entries with name and test ({error})"
        ) from None


@dataclass(frozen=True, eq=False)
class _ImagePlaces:
    labels: npt.NDArray[np.uint8]
    scene: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    col: npt.NDArray[np.int32]


def _places(image: LabelledImage) -> _ImagePlaces:
    row, col = (index.astype(np.int32) for index in np.nonzero(image.labels))
    return _ImagePlaces(image.labels[row, col], np.zeros(row.size, np.int32), row, col)


def _divided(image: LabelledImage, places: Places, split: PixelSplit) -> tuple[BoolArray, BoolArray]:
    """Training and test pixels of every method but `random`."""
    if split.method in ("blocks", "tiles"):
        fields = split.model_dump(include={"method", "block_px", "test_fraction", "buffer_px", "swap", "seed"})
        parts = split_samples(places, Split(**fields))
        return parts.train, parts.test
    if split.method == "given":
        if image.given_test is None:
            raise ConfigError(f"{image.name} comes without pixels kept for tests; use another split than given")
        test = image.given_test[places.row, places.col]
        train, how = ~test, "split given"
    else:
        test = _in_tiles(image.name, places, split)
        train = _apart(places, test, split.block_px, split.buffer_px)
        how = f"split listed of {split.block_px} px squares: list other test_tiles"
    _require_classes(places.labels, train, test, how)
    return train, test


def _in_tiles(name: str, places: Places, split: PixelSplit) -> BoolArray:
    """Samples in the squares listed."""
    row, col = places.row // split.block_px, places.col // split.block_px
    inside = np.zeros(row.size, bool)
    for tile in split.test_tiles:
        here = (row == tile[0]) & (col == tile[1])
        if not here.any():
            raise ConfigError(f"{name}: the test tile {list(tile)} of {split.block_px} px holds no label")
        inside |= here
    return inside


def _limited(labels: npt.NDArray[np.uint8], train: BoolArray, most: int, seed: int) -> BoolArray:
    """At most `most` training pixels of every class, drawn at random."""
    draw, kept = np.random.default_rng(seed), np.zeros_like(train)
    for value in np.unique(labels):
        kept[draw.permutation(np.flatnonzero(train & (labels == value)))[:most]] = True
    return kept


def _require_classes(labels: npt.NDArray[np.uint8], train: BoolArray, test: BoolArray, how: str) -> None:
    for name, part in (("training", train), ("test", test)):
        if absent := _absent(labels, part):
            raise InputError(f"no {name} pixel of class {absent} with {how}, or label more places of it")


def _absent(labels: npt.NDArray[np.uint8], part: BoolArray) -> list[int]:
    """Classes without a sample in a part."""
    return sorted(set(np.unique(labels).tolist()) - set(np.unique(labels[part]).tolist()))


_DRAWS = 20
"""Tries to find test squares so that every class is on both sides."""


def _drawn(labels: npt.NDArray[np.uint8], groups: npt.NDArray[np.int64], split: Split) -> BoolArray:
    """Test samples: whole groups that hold about `test_fraction` of every class."""
    from sklearn.model_selection import StratifiedGroupKFold

    parts = 10
    if np.unique(groups).size < parts:
        raise InputError(
            f"labels fall into {np.unique(groups).size} squares of {split.block_px} px; at least {parts} are needed to "
            "keep test pixels apart: make block_px smaller, or label more places"
        )
    draw = np.random.default_rng(split.seed)
    folder = StratifiedGroupKFold(parts, shuffle=True, random_state=split.seed)
    folds = [fold for _, fold in folder.split(labels, labels, groups)]
    test = np.zeros(labels.size, bool)
    # Where squares are few the folds are nearly the same for every seed: which of them test is drawn as well.
    for _ in range(_DRAWS):
        test[:] = False
        for number in draw.permutation(parts)[: max(1, round(split.test_fraction * parts))]:
            test[folds[number]] = True
        if not (_absent(labels, test) or _absent(labels, ~test)):
            break
    return test


def _apart(places: Places, test: BoolArray, block_px: int, buffer_px: int) -> BoolArray:
    """Samples that neither test nor lie within `buffer_px`, in rows and columns, of a square with test samples."""
    if not buffer_px:
        return ~test
    near = np.zeros(test.size, bool)
    steps = sorted({*range(-buffer_px, buffer_px, block_px), 0, buffer_px})
    for scene in np.unique(places.scene):
        here = places.scene == scene
        rows, cols = places.row[here], places.col[here]
        squares = np.zeros((int(rows.max()) // block_px + 1, int(cols.max()) // block_px + 1), bool)
        held = here & test
        squares[places.row[held] // block_px, places.col[held] // block_px] = True
        for down, right in product(steps, steps):
            at_row = np.clip((rows + down) // block_px, 0, squares.shape[0] - 1)
            at_col = np.clip((cols + right) // block_px, 0, squares.shape[1] - 1)
            near[here] |= squares[at_row, at_col]
    return ~test & ~near
