"""GS², global stochastic stratified sampling (FPGA: Zheng, Zhong, Ma and Zhang, TGRS 2020), as its authors draw.

A network that sees the whole image at each step is judged there at a few labelled pixels of every class. Legacy random
numbers of NumPy, the same in all its versions, make the authors' batches of the authors' seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError

IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SEED = 2333
"""The authors'."""
QUOTA = 20
"""Pixels of a class in a mini-batch, as the authors'."""
PER_CLASS = 200
"""Training pixels of a class, as the authors'."""
_SEEDS = 9999
"""Length of the list that seeds of epochs are taken from; the last one is never used."""


def draw_split(
    labels: npt.NDArray[np.integer], per_class: int = PER_CLASS, seed: int = SEED, largest_share: float = 1.0
) -> tuple[BoolArray, BoolArray]:
    """Training and test pixels, drawn from all labelled ones: `per_class` of each class train, the rest test.

    Test pixels stand among training pixels, so what a network with a large view scores there says little of other
    places: judge it on a split by area too.

    Args:
        labels: `(y, x)`, classes from 1; 0 is no label.
        per_class: a class with no more pixels than this has all of them in training, and none to test it.
        seed: of the draw.
        largest_share: at most this share of a class trains, though one pixel at least; 1, as the authors have it.

    Returns:
        Two `(y, x)` masks, without a pixel in common.

    Raises:
        ConfigError: `per_class` is not positive.
        InputError: the labels are of another kind, or there are none.
    """
    _require_positive("per_class", per_class)
    train = np.zeros(_flat(labels).size, bool)
    for pixels in _shuffled_classes(labels, seed):
        train[pixels[: min(per_class, max(1, int(largest_share * pixels.size)))]] = True
    drawn = train.reshape(labels.shape)
    return drawn, (labels > 0) & ~drawn


def minibatches(labels: npt.NDArray[np.integer], quota: int, seed: int) -> list[IndexArray]:
    """All labelled pixels, each in one of the mini-batches of an epoch.

    Batch b holds the pixels b · quota to (b + 1) · quota of each class in an order drawn at random. So a class takes
    part as long as it has pixels left, the last time perhaps with fewer than the quota: every class is in the first
    batch, a class of n pixels in the first ⌈n / quota⌉, and there are as many batches as the largest class needs.

    Args:
        labels: `(y, x)`, classes from 1 of the pixels that train; 0 elsewhere.
        quota: pixels of a class in a batch.
        seed: of the order.

    Returns:
        Flat indices into `labels`, by class.

    Raises:
        ConfigError: the quota is not positive.
        InputError: the labels are of another kind, or there are none.
    """
    _require_positive("quota", quota)
    classes = _shuffled_classes(labels, seed)
    largest = max(pixels.size for pixels in classes)
    return [np.concatenate([pixels[at : at + quota] for pixels in classes]) for at in range(0, largest, quota)]


def epoch_seed(epoch: int, seed: int = SEED) -> int:
    """Seed of an epoch's mini-batches, `epoch` from 0: of a list drawn with `seed`, from its end.

    The authors' loader takes the last one when it is made, for batches that it never gives. Past the list's first
    seed, after 9,998 epochs, it starts over.
    """
    seeds = np.random.RandomState(seed).randint(2**31, size=_SEEDS, dtype=np.int64)
    return int(seeds[-2 - epoch % (_SEEDS - 1)])


@dataclass(frozen=True, eq=False)
class StratifiedBatches:
    """The mini-batches of a training, by epoch and by step; each depends on labels, quota and seed alone.

    Attributes:
        labels: `(y, x)`, classes from 1 of the pixels that train; 0 elsewhere.
        quota: pixels of a class in a batch.
        seed: of everything that is drawn.
    """

    labels: npt.NDArray[np.integer]
    quota: int = QUOTA
    seed: int = SEED

    def __post_init__(self) -> None:
        minibatches(self.labels, self.quota, self.seed)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-int(np.bincount(_flat(self.labels))[1:].max()) // self.quota)

    def epoch(self, number: int) -> list[IndexArray]:
        """The batches of epoch `number`, from 0, in the order of training: flat indices into the labels each."""
        import torch  # alone here: recipes and splits take this module's seed and draws without it

        batches = minibatches(self.labels, self.quota, epoch_seed(number, self.seed))
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(number + 1):  # one generator orders all epochs, so those before must be drawn
            order = torch.randperm(len(batches), generator=generator)
        return [batches[index] for index in order.tolist()]

    def steps(self, start: int = 0) -> Iterator[IndexArray]:
        """The batches of optimiser steps `start`, `start` + 1, and so on without end."""
        first, skipped = divmod(start, len(self))
        for number in count(first):
            yield from self.epoch(number)[skipped if number == first else 0 :]


def _shuffled_classes(labels: npt.NDArray[np.integer], seed: int) -> list[IndexArray]:
    """Flat indices of each class's pixels in an order drawn at random, class by class from one stream.

    They are in reading order before, so rows and columns without labels at the end, such as padding, change nothing.
    """
    flat = _flat(labels)
    random = np.random.RandomState(seed)
    classes = [np.flatnonzero(flat == value) for value in np.unique(flat[flat > 0])]
    for pixels in classes:
        random.shuffle(pixels)
    return classes


def _flat(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Labels row by row, checked."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are integers (y, x), 0 for none; found {labels.dtype} {labels.shape}")
    if labels.size == 0 or labels.min() < 0 or labels.max() == 0:
        found = f"values {labels.min()} to {labels.max()}" if labels.size else f"{labels.shape} pixels"
        raise InputError(f"labels need classes from 1 at some pixels and 0 elsewhere; found {found}")
    return labels.ravel()


def _require_positive(name: str, number: int) -> None:
    if number < 1:
        raise ConfigError(f"{name} is at least 1; found {number}")
