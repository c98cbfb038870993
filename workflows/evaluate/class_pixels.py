"""Classical classifiers of pixels: random forest and support vector machine, tuned on the training pixels alone."""

import itertools
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.ndimage import uniform_filter
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cubeloom.models.classifiers import Feature, spectral_features
from cubeloom.models.forests import RotatedForests
from cubeloom.models.rotations import Rotation
from cubeloom.pipeline.band_input import is_radar
from cubeloom.pipeline.scene import BoolArray
from cubeloom.workflows.train.classifier import class_weights
from cubeloom.workflows.train.labelled import LabelledImage

from .class_methods import ClassMethod, Float32Array, usable_bands

FOLDS = 3
GROUP_PX = 16
"""Edge, px, of the squares that the folds of a search keep whole; halved until there are twice as many as folds."""
SEARCHED = 3000
"""Training pixels that a search looks at, at most; of each class the same share."""
CHUNK = 8192
"""Pixels that are classified at once."""

Parameters = dict[str, Any]
Labels = npt.NDArray[np.uint8]
Fold = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
"""Positions to fit to, and to predict."""


class PixelMethod(ClassMethod):
    """A classifier of single spectra.

    Attributes:
        pca: so many principal components of the standardised features are taken, those of the training pixels.
        derivative: the derivatives of the spectra by wavelength are features too.
        shape: the spectra divided by their length are.
        mean: the same of the mean spectrum of a square of so many px are.
        search: whether parameters are chosen by cross-validation over squares of training pixels.
    """

    pca: int | None = Field(default=None, ge=1)
    derivative: bool = False
    shape: bool = False
    mean: int | None = Field(default=None, ge=2)
    search: bool = True
    threaded: ClassVar[bool] = False
    """Whether one estimator takes all threads by itself."""

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "PixelMapper":
        """Choose the parameters, then fit to all training pixels."""
        features, labels = self.features(image, train), image.labels[train]
        candidates = self.candidates()
        chosen, scores = candidates[0], {}
        if self.search:
            chosen, score = self._best(candidates, features, labels, squares(train), seed)
            scores = {"search_score": score}
        estimator = self._fitted(chosen, features, labels, seed)
        columns = np.searchsorted([one.value for one in image.classes], estimator.classes_)
        return PixelMapper(self, estimator, columns, len(image.classes), {**chosen, **scores})

    @abstractmethod
    def candidates(self) -> list[Parameters]:
        """The parameters to choose among; the first are taken where there is no search."""

    def rough(self) -> "PixelMethod":
        """The method as a search takes it."""
        return self

    @abstractmethod
    def estimator(self, parameters: Parameters, features: Float32Array, seed: int) -> Any:  # noqa: ANN401
        """An unfitted estimator for scaled features `(n, feature)`."""

    @abstractmethod
    def probabilities(self, estimator: Any, features: Float32Array) -> npt.NDArray[Any]:  # noqa: ANN401
        """Of the estimator's classes, `(n, class)`."""

    def features(self, image: LabelledImage, wanted: BoolArray) -> Float32Array:
        """What the estimator gets of the pixels wanted, `(n, feature)`."""
        kept = usable_bands(image)
        wavelengths: npt.NDArray[np.float64] = np.arange(kept.size, dtype=np.float64) * 10
        if image.bands is not None:
            wavelengths = image.bands.wavelength[kept][~is_radar(image.bands.take(kept))]
        asked: dict[Feature, bool] = {"spectrum": True, "shape": self.shape, "derivative": self.derivative}
        kinds = tuple(kind for kind, is_asked in asked.items() if is_asked)
        cube = image.cube[kept]
        cubes = [cube[:, wanted]] + ([box_mean(cube, image.valid, self.mean)[:, wanted]] if self.mean else [])
        return np.concatenate([spectral_features(one.T, wavelengths, kinds) for one in cubes], axis=1)

    def _best(
        self,
        candidates: Sequence[Parameters],
        features: Float32Array,
        labels: Labels,
        groups: npt.NDArray[np.int64],
        seed: int,
    ) -> tuple[Parameters, float]:
        """The candidate that does best on squares it was not fitted to, and how well."""
        some = sample(labels, SEARCHED, seed)
        features, labels, groups = features[some], labels[some], groups[some]
        folds, rough = grouped_folds(labels, groups, seed), self.rough()

        def predict(job: tuple[Parameters, Fold]) -> Labels:
            parameters, (fit, held) = job
            fitted = rough._fitted(parameters, features[fit], labels[fit], seed)
            return np.asarray(fitted.classes_[self.probabilities(fitted, features[held]).argmax(axis=1)])

        with ThreadPoolExecutor(1 if self.threaded else threads()) as pool:
            made = list(pool.map(predict, itertools.product(candidates, folds)))
        truth = np.concatenate([labels[held] for _, held in folds])
        scores = []
        for at in range(len(candidates)):
            mapped = np.concatenate(made[at * len(folds) : (at + 1) * len(folds)])
            macro = f1_score(truth, mapped, labels=np.unique(labels), average="macro", zero_division=0)
            scores.append((float(macro) + float((truth == mapped).mean())) / 2)
        best = int(np.argmax(scores))
        return candidates[best], round(scores[best], 4)

    def _fitted(self, parameters: Parameters, features: Float32Array, labels: Labels, seed: int) -> Any:  # noqa: ANN401
        most = min(features.shape)
        reduce = [("reduce", PCA(min(self.pca, most), random_state=seed))] if self.pca else []
        before = Pipeline([("scale", StandardScaler()), *reduce])
        scaled = before.fit_transform(features)
        model = self.estimator(parameters, scaled, seed)
        model.fit(scaled, labels, sample_weight=class_weights(labels, parameters["balance"]))
        return Pipeline([*before.steps, ("model", model)])


class RandomForest(PixelMethod):
    """Random forest (Breiman 2001).

    Attributes:
        trees: their number; a third of them while parameters are searched.
    """

    trees: int = Field(default=300, ge=1)
    threaded: ClassVar[bool] = True

    @property
    def what(self) -> str:
        """In words."""
        return f"random forest of {self.trees} trees on {_described(self)}"

    def rough(self) -> PixelMethod:
        """Fewer trees."""
        return self.model_copy(update={"trees": math.ceil(self.trees / 3)})

    def candidates(self) -> list[Parameters]:
        """Features a split looks at, least pixels of a leaf, and weights of the classes."""
        grid = itertools.product((0.0, 0.5), ("sqrt", 0.25), (1, 4))
        return [{"balance": b, "max_features": some, "min_samples_leaf": leaf} for b, some, leaf in grid]

    def estimator(self, parameters: Parameters, features: Float32Array, seed: int) -> Any:  # noqa: ANN401
        """A forest."""
        own = {key: value for key, value in parameters.items() if key != "balance"}
        return RandomForestClassifier(self.trees, random_state=seed, n_jobs=threads(), **own)

    def probabilities(self, estimator: Any, features: Float32Array) -> npt.NDArray[Any]:  # noqa: ANN401
        """Shares of the leaves' training pixels."""
        return np.asarray(estimator.predict_proba(features))


class RotatedForest(RandomForest):
    """An ensemble of random forests, each on features that are turned its own way (`cubeloom.models.forests`).

    Attributes:
        rotation: kind of the turns.
        forests: how many; `trees` are shared out among them.
    """

    rotation: Rotation = "complete"
    forests: int = Field(default=10, ge=1)

    @property
    def what(self) -> str:
        """In words."""
        each = self._each
        return f"{self.forests} forests of {each} trees, features turned ({self.rotation}), on {_described(self)}"

    @property
    def _each(self) -> int:
        return math.ceil(self.trees / self.forests)

    def estimator(self, parameters: Parameters, features: Float32Array, seed: int) -> Any:  # noqa: ANN401
        """The ensemble."""
        own = {key: value for key, value in parameters.items() if key != "balance"}
        return RotatedForests(self.rotation, self.forests, self._each, random_state=seed, n_jobs=threads(), **own)


class SupportVectorMachine(PixelMethod):
    """Support vector machine with radial basis functions."""

    @property
    def what(self) -> str:
        """In words."""
        return f"support vector machine, radial basis functions, on {_described(self)}"

    def candidates(self) -> list[Parameters]:
        """Penalty, width of the kernel in units of 1 / (features x their variance), and weights of the classes."""
        grid = itertools.product((0.0, 0.5), (10.0, 1.0, 100.0, 1000.0), (1.0, 0.1, 0.3, 3.0))
        return [{"balance": b, "C": c, "gamma_scale": gamma} for b, c, gamma in grid]

    def estimator(self, parameters: Parameters, features: Float32Array, seed: int) -> Any:  # noqa: ANN401
        """A machine."""
        gamma = parameters["gamma_scale"] / max(features.shape[1] * float(features.var()), 1e-12)
        return SVC(C=parameters["C"], gamma=gamma, decision_function_shape="ovr", random_state=seed, cache_size=500)

    def probabilities(self, estimator: Any, features: Float32Array) -> npt.NDArray[Any]:  # noqa: ANN401
        """Softmax of the decision values: their order is the machine's own, their size is not calibrated."""
        values = np.asarray(estimator.decision_function(features))
        if values.ndim == 1:
            values = np.stack([-values, values], axis=1)
        return np.asarray(softmax(values, axis=1))


METHODS = {"random_forest": RandomForest, "rotated_forests": RotatedForest, "svm": SupportVectorMachine}


@dataclass(frozen=True, eq=False)
class PixelMapper:
    """A fitted estimator.

    Attributes:
        method: what gives its features.
        estimator: scaling, components and model.
        columns: place of each of its classes among the image's.
        classes: how many the image has.
        details: its parameters, and the score that had them chosen.
    """

    method: PixelMethod
    estimator: Any
    columns: npt.NDArray[np.intp]
    classes: int
    details: Mapping[str, Any]

    def map(self, image: LabelledImage) -> Float32Array:
        """Probabilities `(K, y, x)`, 0 where not valid."""
        features = self.method.features(image, image.valid)
        made = np.zeros((self.classes, len(features)), np.float32)
        for start in range(0, len(features), CHUNK):
            part = slice(start, start + CHUNK)
            made[self.columns, part] = self.method.probabilities(self.estimator, features[part]).T
        mapped = np.zeros((self.classes, *image.shape), np.float32)
        mapped[:, image.valid] = made
        return mapped


def box_mean(cube: Float32Array, valid: BoolArray, size: int) -> Float32Array:
    """Mean of the valid pixels of the square of `size` px about each pixel, `(band, y, x)`; 0 where there is none."""
    weight = uniform_filter(valid.astype(np.float32), size, mode="constant")
    present = weight > 0.5 / size**2
    share = np.where(present, 1 / np.maximum(weight, np.float32(1e-6)), 0)
    sums = [uniform_filter(np.where(valid, band, np.float32(0)), size, mode="constant") for band in cube]
    return np.stack(sums) * share.astype(np.float32)


def squares(train: BoolArray) -> npt.NDArray[np.int64]:
    """Number of the square that each training pixel lies in."""
    row, col = np.nonzero(train)
    edge = GROUP_PX
    while True:
        groups: npt.NDArray[np.int64] = row // edge * train.shape[1] + col // edge
        if edge == 1 or np.unique(groups).size >= 2 * FOLDS:
            return groups
        edge //= 2


def sample(labels: Labels, most: int, seed: int) -> npt.NDArray[np.intp]:
    """At most about `most` positions, the same share of every class, though one at least, in their order."""
    share = min(1.0, most / labels.size)
    draw = np.random.default_rng(seed)
    kept = []
    for value in np.unique(labels):
        members = np.flatnonzero(labels == value)
        kept.append(draw.permutation(members)[: max(1, round(share * members.size))])
    return np.sort(np.concatenate(kept))


def grouped_folds(labels: Labels, groups: npt.NDArray[np.int64], seed: int) -> list[Fold]:
    """What to fit to and what to predict: whole groups, each class spread over the folds as far as they let."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer pixels than folds
        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups))
    return [(fit, held) for fit, held in folds if held.size and np.unique(labels[fit]).size > 1]


def threads() -> int:
    """Threads that scikit-learn may use, as those of other libraries are limited."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


def _described(method: PixelMethod) -> str:
    parts = ["spectra", *(["their shapes"] if method.shape else [])]
    parts += ["their derivatives"] if method.derivative else []
    text = " and ".join(parts)
    text += f" of the pixel and of the mean of {method.mean} x {method.mean} px" if method.mean else ""
    text += f", {method.pca} principal components" if method.pca else ""
    return text + (", parameters by grouped cross-validation" if method.search else "")
