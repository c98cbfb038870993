"""SpectralEarth's downstream sets as tiles that a backbone is tuned on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.cards import Card
from cubeloom.models.spectral_earth import card_fields

from .earth_sets import EarthParts, EarthSet, EarthTiles, open_set
from .tune_data import CHANNELS, TuneData, is_trained
from .tune_recipe import EarthPart, TuneRecipe, TuneTask
from .tune_tiles import IGNORE, target_of

_TASKS: Mapping[str, tuple[TuneTask, ...]] = {
    "segment": ("segment", "classify", "multilabel"),
    "multilabel": ("multilabel",),
    "regress": ("regress",),
}
"""What may be learnt of a set that is made for a task."""


@dataclass(frozen=True, eq=False)
class StandardTiles:
    """Tiles of a set as a network sees them.

    Attributes:
        tiles: of one part of the set.
        mean: of each band, (D, 1, 1).
        std: of each band, (D, 1, 1).
        px: side that they must have.
    """

    tiles: EarthTiles
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    px: int

    def __len__(self) -> int:
        return len(self.tiles)

    def tile(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """See `cubeloom.workflows.train.tune_tiles.Tiles`; what has no data is the mean, without a label.

        Raises:
            InputError: the tile cannot be read, or is of another size.
        """
        cube = (self.tiles.cube(index) - self.mean) / self.std
        if cube.shape[1:] != (self.px, self.px):
            raise InputError(f"{self.tiles.image(index)}: {cube.shape[1:]} px; set tile_px to its side")
        known = np.isfinite(cube).all(axis=0)
        found = self.tiles.target(index)
        if found.ndim == 2:
            return np.where(known, cube, 0), np.where(known & (found > 0), found.astype(np.int64) - 1, IGNORE)
        return np.where(known, cube, 0), found.astype(np.float32)


def earth_data(recipe: TuneRecipe, part: EarthPart, base: Card) -> TuneData:
    """The data of a recipe that names a set.

    Raises:
        ConfigError: the set is not for the recipe's task, or has no such split.
        InputError: its files are missing or cannot be used.
        ModelError: the backbone was trained on other bands.
    """
    parts = open_set(part.set, part.root, part.splits, part.split, part.fraction)
    described = parts.described
    if recipe.task not in _TASKS[described.task]:
        raise ConfigError(f"{part.set} is for task {' or '.join(_TASKS[described.task])}, not {recipe.task}")
    channels = _channels(described, base, trained=is_trained(recipe))
    mean, std = (np.asarray(channels[name], np.float32)[:, None, None] for name in ("mean", "std"))
    train, validation = (StandardTiles(tiles, mean, std, recipe.tile_px) for tiles in (parts.train, parts.val))
    return TuneData(
        train,
        validation,
        None if parts.test is None else StandardTiles(parts.test, mean, std, recipe.tile_px),
        channels,
        classes=described.card_classes,
        outputs=described.outputs,
        counts=_counts(train, recipe, len(described.classes)) if recipe.balance and described.classes else None,
        facts=_facts(parts),
    )


def _facts(parts: EarthParts) -> Mapping[str, Any]:
    tested = None if parts.test is None else len(parts.test)
    tiles = {"train": len(parts.train), "validation": len(parts.val), "test": tested}
    return {"set": parts.described.folder, "split": parts.kind, "tiles": tiles, "remarks": list(parts.remarks)}


def _channels(described: EarthSet, base: Card, *, trained: bool) -> Mapping[str, Any]:
    """Channels of the set, in the backbone's own statistics where it has any for them."""
    fields = dict.fromkeys(CHANNELS) | {"bands": described.bands, "polarisations": ()}
    if described.sensor != "enmap":
        own = {"sensor": described.sensor, "units": described.units}
        return {**fields, **own, **described.statistics._asdict()}
    known = {**fields, **card_fields()}
    if not trained or base.input_bands is None:
        return known
    if base.input_bands.numbers != known["input_bands"].numbers:
        raise ModelError(
            f"backbone {base.name} was trained on {len(base.input_bands)} bands of {base.sensor}, {described.folder} "
            f"has {described.bands} others of EnMAP; take one that was trained on these, or on none"
        )
    return {name: getattr(base, name) for name in CHANNELS}


def _counts(tiles: StandardTiles, recipe: TuneRecipe, classes: int) -> npt.NDArray[np.int64]:
    """Pixels, or tiles, of each class."""
    total = np.zeros(classes, np.int64)
    for index in range(len(tiles)):
        found = tiles.tiles.target(index)
        exact = found.astype(np.int64) - 1 if found.ndim == 2 else found
        target = target_of(recipe.task, np.where(exact == -1, IGNORE, exact), classes)
        if recipe.task == "multilabel":
            total += target.astype(np.int64)
        else:
            total += np.bincount(target[target != IGNORE].ravel(), minlength=classes)
    return total
