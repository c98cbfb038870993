"""Scenes that classification of hyperspectral images is compared on, as their publishers hand them out.

Pavia University (ROSIS), Salinas and Indian Pines (AVIRIS, bands of water absorption left out) are pairs of MATLAB
files of the Computational Intelligence Group of the University of the Basque Country; Houston 2013 (CASI) is the image
of the IEEE GRSS Data Fusion Contest 2013 with rasters of training and test pixels. None of them comes with Cubeloom.
Names, sizes and numbers of labelled pixels are those that the literature states, and are checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.models.cards import CardClass
from cubeloom.untrusted import open_raster
from cubeloom.workflows.evaluate.matfiles import read_map, read_mat

from .labelled import LabelledImage, labelled_image

_COLOURS = (
    "#7f8c8d", "#a2cf6e", "#d8b98e", "#1e8449", "#5dade2", "#9c6b4a", "#4a4f57", "#c0392b", "#1b2631",
    "#e0b13c", "#6fae1f", "#3fa37c", "#8e44ad", "#f2e24a", "#2b6cb0", "#e67e9f",
)  # fmt: skip


@dataclass(frozen=True)
class StandardSet:
    """What is known of a scene.

    Attributes:
        title: its usual name.
        sensor: which took it.
        shape: height, width and bands.
        cube: name of the image's file.
        key: of its array in a MATLAB file.
        labels: name of the file of labels; where there are two, of those to train on.
        labels_key: of its array in a MATLAB file.
        classes: name of class 1, 2, ..., each with the number of its labelled pixels.
        test_labels: name of the file of labels kept for tests.
        test_counts: their numbers of pixels, by class.
    """

    title: str
    sensor: str
    shape: tuple[int, int, int]
    cube: str
    key: str
    labels: str
    labels_key: str
    classes: Mapping[str, int]
    test_labels: str = ""
    test_counts: tuple[int, ...] = ()

    @property
    def card_classes(self) -> tuple[CardClass, ...]:
        """Its classes as cards have them."""
        pairs = zip(self.classes, _COLOURS, strict=False)
        return tuple(CardClass(value=at, name=name, colour=colour) for at, (name, colour) in enumerate(pairs, 1))


STANDARD_SETS = {
    "pavia_university": StandardSet(
        "Pavia University", "ROSIS", (610, 340, 103), "PaviaU.mat", "paviaU", "PaviaU_gt.mat", "paviaU_gt",
        {
            "asphalt": 6631, "meadows": 18649, "gravel": 2099, "trees": 3064, "painted metal sheets": 1345,
            "bare soil": 5029, "bitumen": 1330, "self-blocking bricks": 3682, "shadows": 947,
        },
    ),
    "salinas": StandardSet(
        "Salinas", "AVIRIS", (512, 217, 204), "Salinas_corrected.mat", "salinas_corrected", "Salinas_gt.mat",
        "salinas_gt",
        {
            "broccoli green weeds 1": 2009, "broccoli green weeds 2": 3726, "fallow": 1976, "fallow rough plough": 1394,
            "fallow smooth": 2678, "stubble": 3959, "celery": 3579, "grapes untrained": 11271,
            "soil vineyard develop": 6203, "corn senesced green weeds": 3278, "lettuce romaine 4 weeks": 1068,
            "lettuce romaine 5 weeks": 1927, "lettuce romaine 6 weeks": 916, "lettuce romaine 7 weeks": 1070,
            "vineyard untrained": 7268, "vineyard vertical trellis": 1807,
        },
    ),
    "indian_pines": StandardSet(
        "Indian Pines", "AVIRIS", (145, 145, 200), "Indian_pines_corrected.mat", "indian_pines_corrected",
        "Indian_pines_gt.mat", "indian_pines_gt",
        {
            "alfalfa": 46, "corn no till": 1428, "corn min till": 830, "corn": 237, "grass pasture": 483,
            "grass trees": 730, "grass pasture mowed": 28, "hay windrowed": 478, "oats": 20, "soybean no till": 972,
            "soybean min till": 2455, "soybean clean": 593, "wheat": 205, "woods": 1265,
            "buildings grass trees drives": 386, "stone steel towers": 93,
        },
    ),
    "houston_2013": StandardSet(
        "Houston 2013", "CASI", (349, 1905, 144), "2013_IEEE_GRSS_DF_Contest_CASI.tif", "", "train_roi.tif", "",
        {
            "healthy grass": 198, "stressed grass": 190, "synthetic grass": 192, "trees": 188, "soil": 186,
            "water": 182, "residential": 196, "commercial": 191, "road": 193, "highway": 191, "railway": 181,
            "parking lot 1": 192, "parking lot 2": 184, "tennis court": 181, "running track": 187,
        },
        test_labels="val_roi.tif",
        test_counts=(1053, 1064, 505, 1056, 1056, 143, 1072, 1053, 1059, 1036, 1054, 1041, 285, 247, 473),
    ),
}  # fmt: skip
"""By the names that recipes give."""


def read_standard_scene(name: str, folder: Path) -> LabelledImage:
    """A scene of `STANDARD_SETS` from the files as they are handed out.

    Args:
        name: which.
        folder: where its files lie, by their usual names in any case.

    Raises:
        InputError: a file is missing, damaged, of another size, or its labels are not those of the set.
    """
    known = STANDARD_SETS[name]
    cube = _cube(_file(folder, known.cube, known.title), known)
    labels, given_test = _labels(folder, known)
    return labelled_image(
        known.title,
        cube,
        labels,
        known.card_classes,
        sensor=known.sensor,
        given_test=given_test,
        source={"scene": known.title, "labels": known.labels},
    )


def _file(folder: Path, name: str, title: str) -> Path:
    found = [path for path in sorted(folder.glob("*")) if path.name.lower() == name.lower()]
    if not found:
        there = ", ".join(path.name for path in sorted(folder.glob("*"))[:8]) or "nothing"
        raise InputError(f"{folder}: {title} needs the file {name}, which is not there (found {there})")
    return found[0]


def _cube(path: Path, known: StandardSet) -> npt.NDArray[Any]:
    height, width, bands = known.shape
    if path.suffix.lower() == ".mat":
        cube = read_mat(path, {"key": known.key, "bands": "last"}).cube
    else:
        with open_raster(str(path), str(path)) as raster:
            cube = raster.read()
    if cube.shape != (bands, height, width):
        found = f"{cube.shape[1]} x {cube.shape[2]} px, {cube.shape[0]} bands"
        raise InputError(
            f"{path}: {found}; {known.title} has {height} x {width} px, {bands} bands: use the file as it is published"
        )
    return cube


def _labels(folder: Path, known: StandardSet) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.bool_] | None]:
    """All labels, and which of them are kept for tests."""
    path = _file(folder, known.labels, known.title)
    labels = _map(path, known, tuple(known.classes.values()))
    if not known.test_labels:
        return labels, None
    path = _file(folder, known.test_labels, known.title)
    test = _map(path, known, known.test_counts)
    if ((labels > 0) & (test > 0)).any():
        raise InputError(
            f"{path}: some pixels are labelled in {known.labels} too; they would be both learnt and tested"
        )
    return np.where(test > 0, test, labels), test > 0


def _map(path: Path, known: StandardSet, counts: tuple[int, ...]) -> npt.NDArray[np.integer[Any]]:
    """Class values that are those of the set, pixel by pixel counted."""
    if path.suffix.lower() == ".mat":
        labels = read_map(path, known.labels_key)
    else:
        with open_raster(str(path), str(path)) as raster:
            labels = raster.read(1).astype(np.int64)
    if labels.shape != known.shape[:2] or labels.min() < 0 or labels.max() > len(counts):
        raise InputError(
            f"{path}: {labels.shape} px, values {labels.min()} to {labels.max()}; expected {known.shape[:2]} px, the "
            f"classes 1 to {len(counts)} of {known.title} and 0 for none"
        )
    found = tuple(np.bincount(labels.ravel(), minlength=len(counts) + 1)[1:].tolist())
    wrong = [at for at, (is_there, stated) in enumerate(zip(found, counts, strict=True), 1) if is_there != stated]
    if wrong:
        at = wrong[0]
        raise InputError(
            f"{path}: {found[at - 1]} pixels of class {at}, {list(known.classes)[at - 1]}; {known.title} has "
            f"{counts[at - 1]} (and {len(wrong) - 1} more classes differ): use the file as it is published"
        )
    return labels
