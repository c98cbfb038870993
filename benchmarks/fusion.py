"""What radar adds to an optical scene for telling water from land: kappa over spatially blocked repeats.

Run: python benchmarks/fusion.py S1.tif S2.tif LABELS.tif [--quick] [--json FILE] [--repeats N] [--trees N]

S1 holds backscatter in dB (VV, VH), S2 the optical bands, LABELS 0 for land, 1 for water and anything else for no
label, all on one grid, as the chips of Sen1Floods11 (Bonafilia et al. 2020) do. Without files there is nothing to do.

Feature sets: `S1`, both bands; `S1 + texture`, with eight co-occurrence measures of each (32 levels, 5 x 5 px); `S2`;
`stacked`, all of these; `fused`, the optical bands after Bayesian fusion with the texture. Levels and fusion are fitted
to the whole chip, which takes no label.

Classifiers: a random forest, and ensembles of ten forests on features turned by principal axes, sparse and complete
random rotations, and on random combinations (Forest-RC), all with as many trees in total and without any tuning.

Every repeat draws 30 % of the squares of 64 px at random to test on, again where one side has less than a tenth of a
class. No training pixel lies within 4 px of a test square, so no window of one overlaps one of a test pixel. At most
1000 pixels of each class train; every second pixel of every second row tests. All feature sets and classifiers have the
same repeats, and differences are taken repeat by repeat.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.models.cards import CardClass
from cubeloom.pipeline.stages.fuse_bayes import fusion_of, joint_moments
from cubeloom.pipeline.stages.texture import HARALICK
from cubeloom.pipeline.stages.texture_glcm import quantise, texture_images
from cubeloom.untrusted import open_raster
from cubeloom.workflows.evaluate.class_methods import parse_columns
from cubeloom.workflows.evaluate.class_metrics import class_metrics, confusion_of
from cubeloom.workflows.evaluate.class_pixels import PixelMethod
from cubeloom.workflows.train.labelled import LabelledImage, labelled_image
from cubeloom.workflows.train.labels_recipe import PixelSplit
from cubeloom.workflows.train.split import PixelParts, split_pixels

Cube = npt.NDArray[np.float32]

LEVELS, WINDOW, PERCENTILES = 32, 5, (1, 99)
SQUARE, TESTED, LEAST = 64, 0.3, 0.1
ROTATIONS = {"PCA": "pca", "sparse": "sparse", "complete": "complete", "Forest-RC": "combinations"}
CLASSES = (
    CardClass(value=1, name="land", colour="#9c6b4a"),
    CardClass(value=2, name="water", colour="#1f77b4"),
)


def main() -> None:
    """Read, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="radar, optical scene and labels")
    parser.add_argument("--quick", action="store_true", help="two repeats of twenty trees")
    parser.add_argument("--json", type=Path, help="write all kappas to this file")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trees", type=int, default=100, help="in total, of every classifier")
    arguments = parser.parse_args()
    if len(arguments.files) != 3:
        print("fusion: give a radar scene, an optical scene and labels of it; there is nothing to measure without")
        return
    repeats, trees = (2, 20) if arguments.quick else (arguments.repeats, arguments.trees)
    radar, optical, labels = arguments.files
    kappas = _kappas(radar, optical, labels, repeats, trees)
    _print(kappas)
    if arguments.json:
        arguments.json.write_text(json.dumps({"repeats": repeats, "trees": trees, "kappa": kappas}, indent=1))


def _kappas(radar: Path, optical: Path, labels: Path, repeats: int, trees: int) -> dict[str, dict[str, list[float]]]:
    """By feature set and classifier, one for each repeat."""
    sets, truth = _features(_read(radar), _read(optical)), _read(labels)[0]
    methods = _methods(trees)
    found: dict[str, dict[str, list[float]]] = {}
    for name, cube in sets.items():
        image = _image(name, cube, truth, np.isfinite(sets["stacked"]).all(axis=0))
        parts = [split_pixels(image, _split(image.labels, seed)) for seed in range(repeats)]
        found[name] = {
            title: [_kappa(method, image, part, seed) for seed, part in enumerate(parts)]
            for title, method in methods.items()
        }
        print(f"  {name}: {cube.shape[0]} features", flush=True)
    return found


def _read(path: Path) -> Cube:
    with open_raster(str(path), str(path)) as raster:
        return np.asarray(raster.read(), np.float32)


def _features(radar: Cube, optical: Cube) -> dict[str, Cube]:
    """The feature sets, all with the same pixels."""
    texture = np.concatenate([_texture(band) for band in radar])
    flat = optical.reshape(len(optical), -1), texture.reshape(len(texture), -1)
    fused = fusion_of(joint_moments(*flat), len(optical)).apply(*flat).reshape(optical.shape)
    return {
        "S1": radar,
        "S1 + texture": np.concatenate([radar, texture]),
        "S2": optical,
        "stacked": np.concatenate([optical, radar, texture]),
        "fused": fused,
    }


def _texture(band: Cube) -> Cube:
    low, high = np.nanpercentile(band, PERCENTILES)
    return texture_images(quantise(band, low, high, LEVELS), HARALICK, WINDOW)


def _image(name: str, cube: Cube, truth: Cube, valid: npt.NDArray[np.bool_]) -> LabelledImage:
    labels = np.where(truth == 1, 2, np.where(truth == 0, 1, 0))
    return labelled_image(name, cube, np.where(valid, labels, 0), CLASSES, valid=valid)


def _split(labels: npt.NDArray[np.uint8], seed: int) -> PixelSplit:
    """Squares drawn at random, so many that each class keeps a tenth of its pixels on either side."""
    draw = np.random.default_rng(seed)
    rows, cols = (np.arange(size) // SQUARE for size in labels.shape)
    squares = np.argwhere(np.ones((rows[-1] + 1, cols[-1] + 1), bool))
    while True:
        tested = squares[draw.permutation(len(squares))[: round(TESTED * len(squares))]]
        inside = np.isin(rows[:, None] * len(cols) + cols, tested @ (len(cols), 1))
        shares = [inside[labels == one.value].mean() for one in CLASSES]
        if min(shares) > LEAST and max(shares) < 1 - LEAST:
            return PixelSplit(
                method="listed", block_px=SQUARE, test_tiles=tested.tolist(), buffer_px=4, per_class=1000, seed=seed
            )


def _methods(trees: int) -> dict[str, PixelMethod]:
    names = {"plain": f"random_forest+trees={trees}+search=false"}
    for title, rotation in ROTATIONS.items():
        names[title] = f"rotated_forests+rotation={rotation}+trees={trees}+search=false"
    columns = parse_columns(",".join(names.values()))
    return {title: column.method for title, column in zip(names, columns, strict=True)}  # type: ignore[misc]


def _kappa(method: PixelMethod, image: LabelledImage, parts: PixelParts, seed: int) -> float:
    mapper, test = method.fit(image, parts.train, seed), parts.test.copy()
    test[1::2], test[:, 1::2] = False, False
    likely = method.probabilities(mapper.estimator, method.features(image, test)).argmax(axis=1)
    confusion = confusion_of(image.labels[test] - 1, mapper.columns[likely], len(CLASSES))
    return float(class_metrics(confusion)["kappa"])


def _print(kappas: dict[str, dict[str, list[float]]]) -> None:
    titles = list(next(iter(kappas.values())))
    print(f"{'kappa':14}" + "".join(f"{title:>16}" for title in titles))
    for name, row in kappas.items():
        print(f"{name:14}" + "".join(f"{_spread(row[title]):>16}" for title in titles))
    for one, other in (("S1 + texture", "S1"), ("stacked", "S2"), ("fused", "S2"), ("fused", "stacked")):
        cells = "".join(f"{_spread(_less(kappas, one, other, title), '+'):>16}" for title in titles)
        print(f"{one} less {other}:\n{'':14}" + cells)


def _less(kappas: dict[str, dict[str, list[float]]], one: str, other: str, title: str) -> list[float]:
    """Differences on the same repeats."""
    return [a - b for a, b in zip(kappas[one][title], kappas[other][title], strict=True)]


def _spread(values: Sequence[Any], sign: str = "") -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):{sign}.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
