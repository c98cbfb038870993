"""Which splits an evaluation of classification goes through, and what their results may be called."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import did_you_mean
from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.stages import explain
from cubeloom.workflows.train.labelled import LabelledImage
from cubeloom.workflows.train.labels_recipe import PixelSplit
from cubeloom.workflows.train.split import split_pixels, tile_splits
from cubeloom.workflows.train.stratified import PER_CLASS

DRAWN = ("random", "blocks", "tiles", "given")
OPTIMISTIC = "random pixels: optimistic, test pixels touch training pixels"


@dataclass(frozen=True)
class SplitOptions:
    """How splits are made; of a random one `per_class` alone counts.

    Attributes:
        seeds: how often methods are run, each time with another seed and, where it is drawn, on another split.
        block_px: edge of the squares of `blocks` and `tiles`, px.
        test_fraction: share of the labelled pixels that `blocks` tests on.
        buffer_px: training pixels this near to a test square are left out.
        per_class: at most so many training pixels of a class; None takes all, of random pixels 200.
    """

    seeds: int = 3
    block_px: int = 16
    test_fraction: float = 0.3
    buffer_px: int = 1
    per_class: int | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds}: at least 1 is needed")


@dataclass(frozen=True)
class Trial:
    """One division of an image and the seed that methods take on it."""

    name: str
    split: PixelSplit
    seed: int


@dataclass(frozen=True)
class SplitGroup:
    """Divisions of one kind, whose results are averaged.

    Attributes:
        name: short and unique.
        label: what the results on them mean; stands at every table and figure.
        apart: whether test pixels lie in other places than training pixels.
        trials: the divisions.
    """

    name: str
    label: str
    apart: bool
    trials: tuple[Trial, ...]


@dataclass(frozen=True, eq=False)
class Division:
    """The pixels of an image that train and that test, `(y, x)` masks without one in common."""

    trial: Trial
    train: BoolArray
    test: BoolArray

    def describe(self, image: LabelledImage) -> dict[str, Any]:
        """How many pixels of every class there are on both sides, for JSON."""
        counts = {
            side: {one.name: int((image.labels[mask] == one.value).sum()) for one in image.classes}
            for side, mask in (("train", self.train), ("test", self.test))
        }
        split = self.trial.split.model_dump(mode="json", exclude_defaults=True)
        return {"name": self.trial.name, "seed": self.trial.seed, "split": split, **counts}


def parse_splits(text: str, options: SplitOptions) -> list[SplitGroup]:
    """Splits from `random,blocks,tiles,given` and files that list test tiles.

    Raises:
        ConfigError: one that is neither known nor a file, a file that says something else, one that comes twice, none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--splits names none; expected some of {', '.join(DRAWN)}, or a YAML file of test tiles")
    try:
        groups = [_group(name, options) for name in names]
    except ValidationError as error:
        raise ConfigError(f"--splits: {explain(error, PixelSplit)}") from None
    titles = [group.name for group in groups]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ConfigError(f"--splits: {twice[0]!r} comes twice")
    return groups


def divide(image: LabelledImage, groups: Sequence[SplitGroup]) -> dict[str, list[Division]]:
    """All divisions of an image, by group.

    Raises:
        InputError: a class has no pixel on one side; says which and what to change.
    """
    return {group.name: [_division(image, trial) for trial in group.trials] for group in groups}


def _division(image: LabelledImage, trial: Trial) -> Division:
    try:
        parts = split_pixels(image, trial.split)
    except InputError as error:
        raise type(error)(f"{image.name}, {trial.name}: {error}") from None
    return Division(trial, np.asarray(parts.train), np.asarray(parts.test))


def _group(name: str, options: SplitOptions) -> SplitGroup:
    if name in DRAWN:
        seeds = range(options.seeds)
        trials = tuple(Trial(f"seed {seed}", _drawn(name, seed, options), seed) for seed in seeds)
        return SplitGroup(name, _label(name, options), name != "random", trials)
    path = Path(name)
    if not path.suffix and not path.exists():
        near = did_you_mean(name, DRAWN)
        raise ConfigError(f"--splits: {name!r} is not known{near}; expected some of {', '.join(DRAWN)}, or a YAML file")
    return _listed(path, options)


def _drawn(name: str, seed: int, options: SplitOptions) -> PixelSplit:
    fields: dict[str, Any] = {"method": name, "seed": seed, "per_class": options.per_class}
    if name == "random":
        return PixelSplit(**fields, largest_share=0.5)
    squares = {"block_px": options.block_px, "test_fraction": options.test_fraction, "buffer_px": options.buffer_px}
    return PixelSplit(**fields, **squares, swap=name == "tiles" and seed % 2 == 1)


def _listed(path: Path, options: SplitOptions) -> SplitGroup:
    update = {"buffer_px": options.buffer_px, "per_class": options.per_class}
    trials, edges = [], set()
    for title, split in tile_splits(path).items():
        edges.add(split.block_px)
        for seed in range(options.seeds):
            own = split.model_copy(update={**update, "seed": seed})
            trials.append(Trial(title if options.seeds == 1 else f"{title}, seed {seed}", own, seed))
    if not trials:
        raise ConfigError(f"{path}: lists no split")
    label = f"spatially disjoint: tiles of {', '.join(map(str, sorted(edges)))} px listed in {path.name}"
    return SplitGroup(path.stem, f"{label}{_apart(options)}", True, tuple(trials))


def _label(name: str, options: SplitOptions) -> str:
    if name == "random":
        return f"{OPTIMISTIC} (at most {options.per_class or PER_CLASS} of each class train)"
    if name == "given":
        return "test pixels as the publisher keeps them"
    how = "squares drawn at random" if name == "blocks" else "a checkerboard of squares"
    return f"spatially disjoint: {how}, {options.block_px} px{_apart(options)}"


def _apart(options: SplitOptions) -> str:
    return f", no training pixel within {options.buffer_px} px of a test square" if options.buffer_px else ""
