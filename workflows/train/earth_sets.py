"""The downstream sets of SpectralEarth (Braham et al. 2024, arXiv 2408.08447) as their authors hand them out.

A set is a folder, such as `enmap_cdl`, with `enmap/{patch}/{scene}.tif` and, under the same names, label rasters in
`cdl/`; HYPERVIEW's has `images/{number}.npz` and tables of soil values. Lists of tiles come with the authors' code, as
`data/splits/{set}/{train,val,test}.txt`; put them into `splits/` of the set's folder, or name the folder they are in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import CardClass, Task, did_you_mean
from cubeloom.models.spectral_earth import DN_OF_ONE, Statistics, statistics

from . import earth_classes as classes_of
from .earth_classes import EarthClass, card_classes
from .earth_layout import Float32Array, read_codes, read_patch
from .earth_soil import SOIL, read_soil_image, read_soil_table
from .earth_splits import EarthSplit, by_scenes, low_label, read_split


@dataclass(frozen=True)
class EarthSet:
    """What is known of a set.

    Attributes:
        name: short.
        folder: its folder, and that of its lists.
        sensor: of the images, and the folder that they are in.
        labels: folder of the label rasters.
        counts: tiles in the published lists.
        classes: in order; class maps hold 1 for the first.
        task: `segment`, `multilabel` or `regress`.
        outputs: names of the values to regress.
    """

    name: str
    folder: str
    sensor: str
    labels: str
    counts: Mapping[str, int]
    classes: tuple[EarthClass, ...] = ()
    task: Task = "segment"
    outputs: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Factor on the files' numbers: EnMAP's become reflectance, of the others they stay."""
        return 1 / DN_OF_ONE if self.sensor == "enmap" else 1.0

    @property
    def units(self) -> str:
        """Of the cubes."""
        return "1" if self.sensor == "enmap" else "DN"

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each band, in `units`, by which the authors standardise."""
        return Statistics(*(tuple(self.scale * value for value in values) for values in statistics(self.sensor)))

    @property
    def bands(self) -> int:
        """Of the cubes."""
        return len(statistics(self.sensor).mean)

    @property
    def card_classes(self) -> tuple[CardClass, ...]:
        """The classes as a card has them; those of a class map, values from 1."""
        return card_classes(self.classes)


def _enmap(labels: str, classes: tuple[EarthClass, ...], *counts: int, task: Task = "segment") -> EarthSet:
    return EarthSet(labels, f"enmap_{labels}", "enmap", labels, _counts(*counts), classes, task)


def _counts(*counts: int) -> dict[str, int]:
    return dict(zip(("train", "val", "test"), counts, strict=False))


_ALL = (
    _enmap("cdl", classes_of.CDL, 1200, 160, 240),
    _enmap("nlcd", classes_of.NLCD, 10125, 1350, 2025),
    _enmap("eurocrops", classes_of.EUROCROPS, 1260, 180, 360),
    _enmap("bdforet", classes_of.BDFORET, 1912, 255, 383),
    _enmap("treemap", classes_of.TREEMAP, 7500, 1000, 1500),
    _enmap("bnetd", classes_of.BNETD, 1575, 210, 315),
    _enmap("corine", classes_of.CORINE, 8250, 1100, 1650, task="multilabel"),
    EarthSet("desis_cdl", "desis_cdl", "desis", "cdl", _counts(750, 100, 150), classes_of.DESIS_CDL),
    EarthSet("eo1_cdl", "eo1_cdl", "eo1", "cdl", _counts(357, 82, 111), classes_of.EO1_CDL),
    EarthSet("hyperview", "hyperview", "hyperview", "", _counts(1385, 347), task="regress", outputs=SOIL),
)
EARTH_SETS: dict[str, EarthSet] = {one.name: one for one in _ALL}
"""The sets by name; HYPERVIEW's test is not public."""


def earth_set(name: str) -> EarthSet:
    """A set by its name, or that of its folder.

    Raises:
        ConfigError: there is no such set.
    """
    found = EARTH_SETS.get(name.removeprefix("enmap_"))
    if found is None:
        raise ConfigError(f"no set {name!r}{did_you_mean(name, EARTH_SETS) or '.'} Known: {', '.join(EARTH_SETS)}")
    return found


@dataclass(frozen=True, eq=False)
class EarthTiles:
    """Tiles of one part of a set, by number.

    Attributes:
        described: the set.
        folder: where it lies.
        names: of the tiles, as in the lists.
        values: what each has of the set's `outputs`, (tiles, outputs); None for a set with label rasters.
    """

    described: EarthSet
    folder: Path
    names: tuple[str, ...]
    values: Float32Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        files = [path for at in range(len(self)) for path in (self.image(at), self.labels(at)) if path is not None]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise InputError(f"{self.folder}: {len(missing)} of {len(files)} listed files are missing, as {missing[0]}")

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Path:
        """The file of a tile's cube."""
        folder = "images" if self.values is not None else self.described.sensor
        return self.folder / folder / self.names[index]

    def labels(self, index: int) -> Path | None:
        """The file of a tile's labels."""
        return None if self.values is not None else self.folder / self.described.labels / self.names[index]

    def cube(self, index: int) -> Float32Array:
        """(band, y, x) in the set's units, NaN where there is no data.

        Raises:
            InputError: the file cannot be read, or has other bands.
        """
        read = read_soil_image if self.values is not None else read_patch
        return read(self.image(index), self.described.bands, self.described.scale)

    def target(self, index: int) -> npt.NDArray[Any]:
        """What is to be learnt of a tile.

        Returns:
            `segment`: (y, x) uint8, class values from 1, 0 where there is none; `multilabel`: (classes,) uint8, 1 for
            each that is there; `regress`: (outputs,) float32.

        Raises:
            InputError: the file cannot be read.
        """
        path = self.labels(index)
        if path is None:
            values: npt.NDArray[Any] = np.asarray(self.values)[index]
            return values
        pairs = [(code, value) for value, one in enumerate(self.described.classes, 1) for code in one.codes]
        found = read_codes(path, *zip(*pairs, strict=True))
        if self.described.task == "segment":
            return found
        return (np.bincount(found.ravel(), minlength=len(self.described.classes) + 1)[1:] > 0).astype(np.uint8)


@dataclass(frozen=True)
class EarthParts:
    """A set, ready to be read.

    Attributes:
        described: the set.
        train: to learn from.
        val: to choose weights by.
        test: for the score; None where its labels are not public.
        kind: of the split, for the report: `published`, whose parts share scenes, or `scenes`.
        remarks: what is odd about the lists.
    """

    described: EarthSet
    train: EarthTiles
    val: EarthTiles
    test: EarthTiles | None
    kind: str
    remarks: tuple[str, ...] = ()


def open_set(
    name: str, root: Path, splits: Path | None = None, split: str = "published", fraction: float = 1.0
) -> EarthParts:
    """The parts of a set.

    Args:
        name: of the set.
        root: its folder, or the one that holds that.
        splits: folder with the lists, or the one with a folder of lists for each set; None for `splits` of the set's.
        split: `published`, or `scenes` for one with no scene in two parts.
        fraction: of the tiles that train and validate; see `low_label`.

    Raises:
        ConfigError: no such set or split, or a fraction that leaves nothing.
        InputError: folders, lists or tiles are missing; says which.
    """
    described = earth_set(name)
    folder = _inner(root, described.folder)
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder; expected {described.folder} of SpectralEarth's downstream sets")
    lists = _inner(splits or folder / "splits", described.folder)
    if described.task == "regress":
        return _soil_parts(described, folder, lists, split, fraction)
    found = low_label(_split(lists, described, split), fraction)
    train, val, test = (EarthTiles(described, folder, names) for names in (found.train, found.val, found.test))
    return EarthParts(described, train, val, test, found.kind, found.remarks)


def _inner(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _split(lists: Path, described: EarthSet, split: str) -> EarthSplit:
    if split not in ("published", "scenes"):
        raise ConfigError(f"split {split!r} is unknown; expected published or scenes")
    published = read_split(lists, described.counts)
    return by_scenes(published) if split == "scenes" else published


def _soil_parts(described: EarthSet, folder: Path, lists: Path, split: str, fraction: float) -> EarthParts:
    """HYPERVIEW's two parts."""
    if split != "published" or fraction != 1:
        raise ConfigError("hyperview has the published split alone, whole: its tables name no scenes; leave both out")
    parts, remarks = [], []
    for part, count in described.counts.items():
        path = lists / f"{part}.csv"
        numbers, values = read_soil_table(path)
        parts.append(EarthTiles(described, folder, tuple(f"{number}.npz" for number in numbers), values))
        if len(numbers) != count:
            remarks.append(f"{path} lists {len(numbers)} tiles; published are {count}")
    return EarthParts(described, parts[0], parts[1], None, "published", tuple(remarks))
