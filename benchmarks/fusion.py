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

Beside them the squares are dealt into four folds, each of which tests once, so that every pixel is classified once by
forests that learnt elsewhere. The pooled map gives F1 of each class, and McNemar's test of two maps: by exact binomial
probabilities on every sixteenth pixel of every sixteenth row, and on every second one with the squares as clusters
(Obuchowski 1998), since neighbouring pixels are right or wrong together.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, chi2

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
FOLDS, THINNED = 4, 16
COMPARED = (("S1 + texture", "S1"), ("stacked", "S2"), ("fused", "S2"), ("fused", "stacked"))
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
    scene = _Scene.read(radar, optical, labels)
    methods = _methods(trees)
    kappas = _kappas(scene, methods, repeats)
    pooled = _Pooled.of(scene, methods)
    if repeats:
        _print(kappas)
    pooled.print()
    if arguments.json:
        found = {"repeats": repeats, "trees": trees, "kappa": kappas, **pooled.to_json()}
        arguments.json.write_text(json.dumps(found, indent=1))


@dataclass(frozen=True, eq=False)
class _Scene:
    """The feature sets, all with the same pixels, as images with the same labels."""

    images: dict[str, LabelledImage]

    @classmethod
    def read(cls, radar: Path, optical: Path, labels: Path) -> "_Scene":
        sets, truth = _features(_read(radar), _read(optical)), _read(labels)[0]
        valid = np.isfinite(sets["stacked"]).all(axis=0)
        return cls({name: _image(name, cube, truth, valid) for name, cube in sets.items()})

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        return self.images["S2"].labels


def _kappas(scene: _Scene, methods: dict[str, PixelMethod], repeats: int) -> dict[str, dict[str, list[float]]]:
    """By feature set and classifier, one for each repeat."""
    splits = [_split(scene.labels, seed) for seed in range(repeats)]
    found: dict[str, dict[str, list[float]]] = {}
    for name, image in scene.images.items():
        parts = [split_pixels(image, split) for split in splits]
        found[name] = {
            title: [_kappa(method, image, part, seed) for seed, part in enumerate(parts)]
            for title, method in methods.items()
        }
        print(f"  {name}: {image.cube.shape[0]} features", flush=True)
    return found


@dataclass(frozen=True, eq=False)
class _Pooled:
    """Maps of the whole chip, each pixel by forests that learnt in other squares: by feature set and classifier."""

    truth: npt.NDArray[np.uint8]
    maps: dict[str, dict[str, npt.NDArray[np.int64]]]

    @classmethod
    def of(cls, scene: _Scene, methods: dict[str, PixelMethod]) -> "_Pooled":
        folds = _folds(scene.labels)
        maps = {}
        for name, image in scene.images.items():
            parts = [split_pixels(image, fold) for fold in folds]
            maps[name] = {title: _pooled(method, image, parts) for title, method in methods.items()}
            print(f"  {name}: {len(folds)} folds", flush=True)
        return cls(scene.labels, maps)

    def tested(self, step: int) -> npt.NDArray[np.bool_]:
        """Labelled pixels that every map has, of every `step`th row and column."""
        chosen = np.zeros(self.truth.shape, bool)
        chosen[step // 2 :: step, step // 2 :: step] = True
        for row in self.maps.values():
            for mapped in row.values():
                chosen &= mapped > 0
        return chosen & (self.truth > 0)

    def f1(self, name: str, title: str) -> list[float]:
        """Of land and water."""
        tested = self.tested(2)
        confusion = confusion_of(self.truth[tested] - 1, self.maps[name][title][tested] - 1, len(CLASSES))
        return [float(value) for value in class_metrics(confusion)["f1"]]

    def mcnemar(self, one: str, other: str, title: str) -> dict[str, float]:
        """McNemar's test of two maps: pixels that one alone has right, and how likely so uneven counts are by chance.

        `only_one`, `only_other` and the exact two-sided `p` are of thinned pixels; `p_squares` is that of all tested
        ones, by the chi-square of squares as clusters: (sum d)^2 / sum d^2, d the difference of the counts in each.
        """
        right = [self.maps[name][title] == self.truth for name in (one, other)]
        better = right[0].astype(int) - right[1]
        thinned, all_tested = better[self.tested(THINNED)], np.where(self.tested(2), better, 0)
        gained, lost = int((thinned > 0).sum()), int((thinned < 0).sum())
        rows, cols = (size // SQUARE for size in all_tested.shape)
        squares = all_tested[: rows * SQUARE, : cols * SQUARE].reshape(rows, SQUARE, cols, SQUARE).sum(axis=(1, 3))
        spread = float((squares**2).sum())
        return {
            "only_one": gained,
            "only_other": lost,
            "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
            "share": float(all_tested.sum() / self.tested(2).sum()),
            "p_squares": float(chi2.sf(squares.sum() ** 2 / spread, 1)) if spread else 1.0,
        }

    def alike(self, one: str, other: str, title: str, lag: int) -> float:
        """Correlation of the difference of two maps with itself, `lag` px to the right and below."""
        right = [self.maps[name][title] == self.truth for name in (one, other)]
        better, known = right[0].astype(float) - right[1], self.tested(1)
        pairs = [(np.s_[:, :-lag], np.s_[:, lag:]), (np.s_[:-lag], np.s_[lag:])]
        both = [(better[a][known[a] & known[b]], better[b][known[a] & known[b]]) for a, b in pairs]
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in both]))

    def to_json(self) -> dict[str, Any]:
        titles = list(next(iter(self.maps.values())))
        return {
            "f1": {name: {title: self.f1(name, title) for title in titles} for name in self.maps},
            "mcnemar": {
                f"{one} / {other}": {title: self.mcnemar(one, other, title) for title in titles}
                for one, other in COMPARED
            },
            "alike": {
                f"{one} / {other}": {lag: self.alike(one, other, titles[0], lag) for lag in (2, THINNED, SQUARE // 2)}
                for one, other in COMPARED
            },
        }

    def print(self) -> None:
        found = self.to_json()
        titles = list(found["f1"]["S2"])
        print(f"{'F1 land, water':14}" + "".join(f"{title:>22}" for title in titles))
        for name, row in found["f1"].items():
            print(f"{name:14}" + "".join(f"{f'{row[title][0]:.3f} {row[title][1]:.3f}':>22}" for title in titles))
        print(
            f"McNemar: pixels one alone has right / the other alone, p; p by squares ({self.tested(THINNED).sum()} px)"
        )
        for pair, row in found["mcnemar"].items():
            cells = "".join(f"  {one['only_one']}/{one['only_other']} {one['p']:.2g}; {one['p_squares']:.2g}"
                            for one in row.values())  # fmt: skip
            print(f"{pair:22}{cells}\n{'':22}correlation by lag, px: {found['alike'][pair]}")


def _folds(labels: npt.NDArray[np.uint8]) -> list[PixelSplit]:
    """The squares dealt into folds at random, each to be tested on once."""
    squares = np.argwhere(np.ones(tuple(-(-size // SQUARE) for size in labels.shape), bool))
    dealt = np.array_split(squares[np.random.default_rng(0).permutation(len(squares))], FOLDS)
    return [_listed(fold, seed) for seed, fold in enumerate(dealt)]


def _listed(squares: npt.NDArray[np.int_], seed: int) -> PixelSplit:
    return PixelSplit(
        method="listed", block_px=SQUARE, test_tiles=squares.tolist(), buffer_px=4, per_class=1000, seed=seed
    )


def _pooled(method: PixelMethod, image: LabelledImage, parts: Sequence[PixelParts]) -> npt.NDArray[np.int64]:
    """Class values of all tested pixels, 0 elsewhere."""
    mapped = np.zeros(image.shape, np.int64)
    for seed, part in enumerate(parts):
        mapped[part.test] = _mapped(method, image, part, part.test, seed)
    return mapped


def _mapped(
    method: PixelMethod, image: LabelledImage, parts: PixelParts, test: npt.NDArray[np.bool_], seed: int
) -> npt.NDArray[np.int64]:
    """Class values of some pixels by a classifier that is fitted to the training pixels."""
    mapper = method.fit(image, parts.train, seed)
    likely = method.probabilities(mapper.estimator, method.features(image, test)).argmax(axis=1)
    return np.asarray(mapper.columns[likely] + 1)


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
            return _listed(tested, seed)


def _methods(trees: int) -> dict[str, PixelMethod]:
    names = {"plain": f"random_forest+trees={trees}+search=false"}
    for title, rotation in ROTATIONS.items():
        names[title] = f"rotated_forests+rotation={rotation}+trees={trees}+search=false"
    columns = parse_columns(",".join(names.values()))
    return {title: column.method for title, column in zip(names, columns, strict=True)}  # type: ignore[misc]


def _kappa(method: PixelMethod, image: LabelledImage, parts: PixelParts, seed: int) -> float:
    test = parts.test.copy()
    test[1::2], test[:, 1::2] = False, False
    confusion = confusion_of(image.labels[test] - 1, _mapped(method, image, parts, test, seed) - 1, len(CLASSES))
    return float(class_metrics(confusion)["kappa"])


def _print(kappas: dict[str, dict[str, list[float]]]) -> None:
    titles = list(next(iter(kappas.values())))
    print(f"{'kappa':14}" + "".join(f"{title:>16}" for title in titles))
    for name, row in kappas.items():
        print(f"{name:14}" + "".join(f"{_spread(row[title]):>16}" for title in titles))
    for one, other in COMPARED:
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
