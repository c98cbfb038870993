"""Keeping test pixels apart from training pixels in space."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError

from .recipe import Split
from .samples import Samples


@dataclass(frozen=True, eq=False)
class Parts:
    """Which samples train and which test; those of the buffer do neither.

    Attributes:
        train: `(n,)` bool.
        test: `(n,)` bool.
        block: `(n,)` number of the square that each sample lies in.
    """

    train: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]
    block: npt.NDArray[np.int64]


def split_samples(samples: Samples, split: Split) -> Parts:
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
    train = ~test
    if split.method != "random":
        train &= ~_near_test(samples, test, split)
    for name, part in (("training", train), ("test", test)):
        absent = sorted(set(np.unique(samples.labels).tolist()) - set(np.unique(samples.labels[part]).tolist()))
        if absent:
            raise InputError(
                f"no {name} pixel of class {absent} with split {split.method} of {split.block_px} px squares, "
                f"seed {split.seed}: change block_px or seed, or label more places of it"
            )
    return Parts(train, test, block)


def _drawn(labels: npt.NDArray[np.uint8], groups: npt.NDArray[np.int64], split: Split) -> npt.NDArray[np.bool_]:
    """Test samples: whole groups that hold about `test_fraction` of every class."""
    from sklearn.model_selection import StratifiedGroupKFold

    parts = 10
    if np.unique(groups).size < parts:
        raise InputError(
            f"labels fall into {np.unique(groups).size} squares of {split.block_px} px; at least {parts} are needed to "
            "keep test pixels apart: make block_px smaller, or label more places"
        )
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=split.seed).split(labels, labels, groups)
    test = np.zeros(labels.size, bool)
    for _, fold in list(folds)[: max(1, round(split.test_fraction * parts))]:
        test[fold] = True
    return test


def _near_test(samples: Samples, test: npt.NDArray[np.bool_], split: Split) -> npt.NDArray[np.bool_]:
    """Samples within `buffer_px` (in rows and columns) of a square that holds test samples."""
    near = np.zeros(test.size, bool)
    steps = sorted({*range(-split.buffer_px, split.buffer_px, split.block_px), 0, split.buffer_px})
    for scene in np.unique(samples.scene):
        here = samples.scene == scene
        rows, cols = samples.row[here], samples.col[here]
        shape = (int(rows.max()) // split.block_px + 1, int(cols.max()) // split.block_px + 1)
        squares = np.zeros(shape, bool)
        held = here & test
        squares[samples.row[held] // split.block_px, samples.col[held] // split.block_px] = True
        for down, right in product(steps, steps):
            at_row = np.clip((rows + down) // split.block_px, 0, shape[0] - 1)
            at_col = np.clip((cols + right) // split.block_px, 0, shape[1] - 1)
            near[here] |= squares[at_row, at_col]
    return near
