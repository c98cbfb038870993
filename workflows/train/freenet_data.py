"""What FreeNet learns from: windows of images, and in each some labelled pixels of every class (GS²)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cubeloom.models.cards import Card
from cubeloom.models.freenet import MULTIPLE
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.stages.inpaint import nearest

from .freenet_recipe import FreenetRecipe
from .labelled import LabelledImage
from .stratified import IndexArray, StratifiedBatches
from .windows import ImageWindow

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as a network sees it.

    Attributes:
        image: what it was made of.
        x: `(band, y, x)` float32, standardised; a pixel that is not valid holds the nearest spectrum that is.
        valid: `(y, x)`
        index: `(y, x)` int64, place of the class among the image's; -1 where there is no label.
        level: `(band,)` mean over standard deviation of every band.
    """

    image: LabelledImage
    x: Tensor
    valid: BoolArray
    index: IndexArray
    level: Tensor


def pictures(images: Sequence[LabelledImage], card: Card) -> list[Picture]:
    """Images standardised with the means and deviations of a card, as the stage `classify` does it."""
    mean, std = (np.asarray(values, np.float32) for values in (card.mean, card.std))
    level = torch.from_numpy(mean / std)
    place = np.full(256, -1, np.int64)
    place[[one.value for one in card.classes]] = range(len(card.classes))
    seen = []
    for image in images:
        x, valid = _standardised(image, card, mean, std)
        seen.append(Picture(image, torch.from_numpy(x), valid, place[image.labels], level))
    return seen


def _standardised(
    image: LabelledImage, card: Card, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    if image.bands is not None:
        return BandInput.of(card, image.bands).prepared(image.cube, image.valid)
    x = (np.where(image.valid, image.cube, 0) - mean[:, None, None]) / std[:, None, None]
    return nearest(np.where(image.valid, x, 0).astype(np.float32), image.valid), image.valid


class FreenetBatches:
    """Mini-batches by step: of one window the authors' own, of several in an order drawn for every epoch.

    An epoch holds each training pixel once.

    Attributes:
        windows: of all images, with labels or without.
    """

    def __init__(
        self,
        seen: Sequence[Picture],
        train: Sequence[BoolArray],
        windows: Sequence[ImageWindow],
        recipe: FreenetRecipe,
    ) -> None:
        self.windows, self._seen, self._recipe = windows, seen, recipe
        labelled = [(window, self._core_labels(window, train[window.image])) for window in windows]
        self._drawn = [
            (window, StratifiedBatches(labels, recipe.quota, recipe.seed))
            for window, labels in labelled
            if labels.any()
        ]
        self._epoch = lru_cache(maxsize=2 * len(self._drawn))(lambda which, number: self._drawn[which][1].epoch(number))
        places = [(which, at) for which, (_, drawn) in enumerate(self._drawn) for at in range(len(drawn))]
        self._places = np.array(places)
        pixels = sum(int((labels > 0).sum()) for _, labels in labelled)
        self._usual = pixels / len(places)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._places)

    def batch(self, step: int) -> dict[str, Any]:
        """What step `step` sees: the window, and where and what it learns there."""
        epoch, at = divmod(step, len(self._places))
        which, one = self._order(epoch)[at]
        window, _ = self._drawn[which]
        pixels = torch.from_numpy(self._epoch(int(which), epoch)[one])
        x, valid = self.seen_in(window)
        picture = self._seen[window.image]
        target = torch.from_numpy(np.ascontiguousarray(picture.index[window.rows, window.cols])).flatten()[pixels]
        batch = {"image": x, "at": pixels, "target": target, "level": picture.level, "divisor": self._divisor(pixels)}
        return batch if valid is None else {**batch, "valid": valid}

    def seen_in(self, window: ImageWindow) -> tuple[Tensor, Tensor | None]:
        """The window `(1, band, y, x)`, and the pixels that its means are over, `(1, y, x)`; None where all count."""
        picture = self._seen[window.image]
        valid = torch.from_numpy(np.ascontiguousarray(picture.valid[window.rows, window.cols]))
        plain = not self._recipe.valid_only or (bool(valid.all()) and all(side % MULTIPLE == 0 for side in valid.shape))
        return picture.x[None, :, window.rows, window.cols], None if plain else valid[None]

    def _core_labels(self, window: ImageWindow, train: BoolArray) -> IndexArray:
        """Classes from 1 of the training pixels of a window's core, on the window; 0 elsewhere."""
        labels = np.zeros(window.shape, np.int64)
        core = (window.core_rows, window.core_cols)
        labels[window.inner] = np.where(train[core], self._seen[window.image].index[core] + 1, 0)
        return labels

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Window and batch of every step of an epoch; one window's batches are in the authors' order already."""
        if len(self._drawn) == 1:
            return self._places
        shuffled: npt.NDArray[np.int64] = np.random.default_rng([self._recipe.seed, epoch]).permutation(self._places)
        return shuffled

    def _divisor(self, pixels: Tensor) -> Tensor:
        """What divides a batch's loss: its pixels, as the authors do; of several windows an average batch's.

        A window may hold few pixels, of one class perhaps, which are not to weigh as much as a whole batch.
        """
        return torch.tensor(float(len(pixels)) if len(self._drawn) == 1 else self._usual)
