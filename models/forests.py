"""Ensembles of random forests, each of which sees the features turned in a way of its own.

A tree splits along the axes of its features. Turned features let a forest cut across them, and make the forests of an
ensemble differ more (Rodriguez, Kuncheva and Alonso, "Rotation forest", IEEE TPAMI 28, 2006; Blaser and Fryzlewicz,
"Random rotation ensembles", JMLR 17, 2016). For maps from radar and optical scenes: Pande, arXiv 2312.10798.
"""

from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier

from .rotations import Rotation, rotation_matrix

Features = npt.NDArray[np.floating[Any]]
ROTATIONS: tuple[Rotation, ...] = get_args(Rotation)


class RotatedForests(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Random forests on features that each forest turns; their mean probabilities.

    Features should be standardised before: a turn mixes them.

    Args:
        rotation: `pca`, `sparse`, `complete` or `combinations`; see `cubeloom.models.rotations`.
        forests: how many, each with its own turn.
        trees: of each forest.
        inputs: how many features a combination takes; of `combinations` alone.
        candidates: combinations that each forest has to choose from; by default twice as many as features; of
            `combinations` alone.
        min_samples_leaf: of the trees.
        max_features: that a split looks at.
        n_jobs: trees that grow, or answer, at a time; -1 for as many as there are cores.
        random_state: of every draw; the same number gives the same forests.

    Attributes:
        classes_: `(class,)`.
        n_features_in_: D.
        matrices_: `(forest, D, turned features)` float64.
        forests_: the fitted forests.
    """

    def __init__(
        self,
        rotation: Rotation = "complete",
        forests: int = 10,
        trees: int = 30,
        inputs: int = 3,
        candidates: int | None = None,
        min_samples_leaf: int = 1,
        max_features: str | float = "sqrt",
        n_jobs: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.rotation = rotation
        self.forests = forests
        self.trees = trees
        self.inputs = inputs
        self.candidates = candidates
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, features: Features, labels: npt.NDArray[Any], sample_weight: Features | None = None) -> Self:
        """Draw the turns and grow the forests.

        Args:
            features: `(n, D)`.
            labels: `(n,)`.
            sample_weight: `(n,)`; None counts all alike.

        Raises:
            ValueError: there is no such rotation, or not one forest, tree or feature.
        """
        self._require_sense()
        features = np.asarray(features, np.float64)
        self.classes_ = np.unique(labels)
        self.n_features_in_ = features.shape[1]
        matrices, self.forests_ = [], []
        for seeds in np.random.SeedSequence(self.random_state).spawn(self.forests):
            of_turn, of_trees = seeds.spawn(2)
            draw = np.random.default_rng(of_turn)
            matrix = rotation_matrix(self.rotation, features, draw, self.inputs, self.candidates)
            forest = self._forest(int(of_trees.generate_state(1)[0]))
            self.forests_.append(forest.fit(_turned(features, matrix), labels, sample_weight))
            matrices.append(matrix)
        self.matrices_ = np.stack(matrices)
        return self

    def predict_proba(self, features: Features) -> npt.NDArray[np.float64]:
        """Mean over the forests of the classes' probabilities, `(n, class)`."""
        features = np.asarray(features, np.float64)
        total = np.zeros((len(features), self.classes_.size))
        for matrix, forest in zip(self.matrices_, self.forests_, strict=True):
            forest.n_jobs = self.n_jobs
            total += forest.predict_proba(_turned(features, matrix))
        return total / len(self.forests_)

    def predict(self, features: Features) -> npt.NDArray[Any]:
        """The most likely class of each row; of two as likely the first."""
        return np.asarray(self.classes_[self.predict_proba(features).argmax(axis=1)])

    def _forest(self, seed: int) -> RandomForestClassifier:
        return RandomForestClassifier(
            self.trees,
            min_samples_leaf=self.min_samples_leaf,
            max_features=self.max_features,
            n_jobs=self.n_jobs,
            random_state=seed,
        )

    def _require_sense(self) -> None:
        if self.rotation not in ROTATIONS:
            raise ValueError(f"rotation {self.rotation!r}; expected one of {', '.join(ROTATIONS)}")
        for name in ("forests", "trees", "inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1 is needed")


def _turned(features: Features, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """What a forest gets: float32, as its trees compare."""
    return (features @ matrix).astype(np.float32)
