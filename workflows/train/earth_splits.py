"""Which tiles of SpectralEarth's downstream sets train, validate and test.

The published lists have no tile twice, but their tiles come from the same scenes: nearly every scene of the test also
trains. `by_scenes` deals whole scenes instead, so that its test says how well a scene is labelled that nobody has seen.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from cubeloom.errors import ConfigError, InputError
from cubeloom.untrusted import safe_name

PARTS = ("train", "val", "test")
FEW, OF_FEW, OF_MANY = 0.5, 0.8, 0.7
"""The authors' subsets: of a share below `FEW`, this part trains, and of larger ones that; the rest validates."""
SUBSET_SEED = 42


@dataclass(frozen=True)
class EarthSplit:
    """The tiles of each part, as `PATCH/SCENE.tif`.

    Attributes:
        kind: `published`, whose parts share scenes, or `scenes`, whose parts do not.
        train: to learn from.
        val: to choose weights by.
        test: for the score.
        remarks: what is odd about the lists, for the report; empty where nothing is.
    """

    kind: Literal["published", "scenes"]
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def shared_scenes(self) -> int:
        """How many scenes of the test also train."""
        return len(_scenes(self.test) & _scenes(self.train))


def read_split(folder: Path, counts: Mapping[str, int] | None = None) -> EarthSplit:
    """The published split.

    Args:
        folder: with `train.txt`, `val.txt` and `test.txt`, a line for each tile.
        counts: published number of tiles of each part; others are remarked on.

    Raises:
        InputError: a list is missing, empty or has a line that is no tile, or a tile stands in two of them.
    """
    lists = {part: _read_list(folder / f"{part}.txt") for part in PARTS}
    _require_apart(lists, folder)
    remarks = tuple(
        f"{folder / part}.txt lists {len(names)} tiles; published are {counts[part]}"
        for part, names in lists.items()
        if counts and len(names) != counts[part]
    )
    return EarthSplit("published", **lists, remarks=remarks)


def by_scenes(published: EarthSplit) -> EarthSplit:
    """A split of the same tiles with no scene in two parts, and about as many tiles in each part as before.

    Scenes come in the order of their names' SHA-256, so the split is the same everywhere; each goes to the part that
    lacks the largest share of its tiles.

    Raises:
        InputError: there are fewer than three scenes.
    """
    scenes: dict[str, list[str]] = {}
    for name in sorted((*published.train, *published.val, *published.test)):
        scenes.setdefault(scene_of(name), []).append(name)
    if len(scenes) < len(PARTS):
        raise InputError(f"{len(scenes)} scenes cannot be dealt to {', '.join(PARTS)}; take the published split")
    wanted = {part: len(getattr(published, part)) for part in PARTS}
    dealt: dict[str, list[str]] = {part: [] for part in PARTS}
    for scene in sorted(scenes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        part = max(PARTS, key=lambda part: 1 - len(dealt[part]) / wanted[part])
        dealt[part] += scenes[scene]
    return replace(published, kind="scenes", **{part: tuple(names) for part, names in dealt.items()})


def low_label(split: EarthSplit, fraction: float) -> EarthSplit:
    """The authors' experiment with fewer labels: a random part of the tiles that train and validate; the test stays.

    Args:
        split: the whole.
        fraction: of the tiles of `train` and `val` together, above 0 to 1. Of less than half, 80 % train; else 70 %.
            No part grows: what the other has too many is left out.

    Raises:
        ConfigError: a fraction that leaves a part without a tile.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; expected above 0 to 1")
    if fraction == 1:
        return split
    total = int((len(split.train) + len(split.val)) * fraction)
    train = int(total * (OF_FEW if fraction < FEW else OF_MANY))
    if not 0 < train < total:
        raise ConfigError(f"a fraction of {fraction} leaves {total} tiles to train and validate; make it larger")
    return replace(split, train=_subset(split.train, train), val=_subset(split.val, total - train))


def scene_of(name: str) -> str:
    """The scene that a tile `PATCH/SCENE.tif` was cut from."""
    return PurePosixPath(name).stem


def _subset(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Some at random, the same always, as the authors draw them."""
    return tuple(random.Random(SUBSET_SEED).sample(names, min(count, len(names))))  # noqa: S311 - no secret


def _scenes(names: Sequence[str]) -> set[str]:
    return {scene_of(name) for name in names}


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a list of tiles") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path}: lists no tile")
    for number, name in enumerate(names, 1):
        parts = name.split("/")
        if len(parts) != 2 or not name.endswith(".tif"):
            raise InputError(f"{path}, tile {number}: found {name[:80]!a}, expected PATCH/SCENE.tif")
        for part in parts:
            safe_name(part, f"{path}, tile {number}:")
    return names


def _require_apart(lists: Mapping[str, Sequence[str]], folder: Path) -> None:
    seen: dict[str, str] = {}
    for part, names in lists.items():
        for name in names:
            if name in seen:
                raise InputError(f"{folder}: {name} stands in {seen[name]}.txt and again in {part}.txt")
            seen[name] = part
