"""Estimators out of a file: of the kinds that are trained here, and safe to hand to scikit-learn's compiled code.

That code follows counts and indices without looking: a made-up file could read foreign memory or never end.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

KNOWN = (
    "StandardScaler",
    "PCA",
    "LogisticRegression",
    "LinearDiscriminantAnalysis",
    "CalibratedClassifierCV",
    "RandomForestClassifier",
    "HistGradientBoostingClassifier",
)
"""Classes of scikit-learn that a classifier may consist of."""

OWN = "cubeloom.models.forests.RotatedForests"
"""And the one that is written here."""


def steps_of(estimator: Any) -> list[Any]:  # noqa: ANN401 - scikit-learn has no common type
    """The steps of a pipeline, or the estimator alone."""
    return [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]


def check_estimator(estimator: Any) -> None:  # noqa: ANN401
    """Refuse what scikit-learn would follow into foreign memory.

    Raises:
        ValueError: a step of another kind, or a decision tree or support vector machine that is damaged.
    """
    steps = steps_of(estimator)
    for step in steps:
        found, module = type(step).__name__, type(step).__module__
        if f"{module}.{found}" != OWN and (found not in KNOWN or not module.startswith("sklearn.")):
            raise ValueError(f"it holds a {found}; known are {', '.join(KNOWN)}, {OWN}")
    last = steps[-1]
    kind = type(last).__name__
    if kind == "RandomForestClassifier":
        _check_forest(last)
    elif kind == "RotatedForests":
        _check_rotated(last)
    elif kind == "HistGradientBoostingClassifier":
        _check_boosting(last)
    elif kind == "CalibratedClassifierCV":
        for calibrated in last.calibrated_classifiers_:
            _check_machine(calibrated.estimator)


def _check_forest(forest: Any) -> None:  # noqa: ANN401
    for tree in forest.estimators_:
        nodes = tree.tree_
        inner = nodes.children_left != -1
        _check_tree(nodes.children_left, nodes.children_right, nodes.feature, inner, forest.n_features_in_)


def _check_rotated(ensemble: Any) -> None:  # noqa: ANN401
    """Refuse what is no list of forests, one for each matrix, that tell the ensemble's classes apart."""
    matrices, forests = ensemble.matrices_, ensemble.forests_
    if not (isinstance(forests, list) and forests and len(matrices) == len(forests)):
        raise ValueError("an ensemble of forests in it is damaged")
    for matrix, forest in zip(matrices, forests, strict=True):
        if type(forest).__name__ != "RandomForestClassifier" or not type(forest).__module__.startswith("sklearn."):
            raise ValueError(f"an ensemble of forests in it holds a {type(forest).__name__}")
        if matrix.shape != (ensemble.n_features_in_, forest.n_features_in_) or not np.isfinite(matrix).all():
            raise ValueError("a rotation in it is damaged")
        if not np.array_equal(forest.classes_, ensemble.classes_):
            raise ValueError("an ensemble of forests in it does not agree on its classes")
        _check_forest(forest)


def _check_boosting(boosting: Any) -> None:  # noqa: ANN401
    for stage in boosting._predictors:
        for predictor in stage:
            nodes = predictor.nodes
            inner = nodes["is_leaf"] == 0
            if nodes["is_categorical"].any():  # would index bit sets out of the file; spectra have no such features
                raise ValueError("a decision tree in it splits on categories")
            _check_tree(nodes["left"], nodes["right"], nodes["feature_idx"], inner, boosting.n_features_in_)


def _check_tree(
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    feature: npt.NDArray[Any],
    inner: npt.NDArray[np.bool_],
    features: int,
) -> None:
    """Refuse a tree whose children do not stand after their parents inside it, or that asks for absent features."""
    number = np.arange(left.size)[inner]
    sound = all(
        (child[inner] > number).all() and (child[inner] < left.size).all() for child in (left, right.astype(np.int64))
    )
    if not (left.size and sound and (feature[inner] >= 0).all() and (feature[inner] < features).all()):
        raise ValueError("a decision tree in it is damaged")


def _check_machine(machine: Any) -> None:  # noqa: ANN401
    """Refuse a support vector machine whose arrays do not have the sizes that its counts of vectors say."""
    if type(machine).__name__ != "SVC" or machine._sparse or machine.kernel not in ("linear", "poly", "rbf", "sigmoid"):
        raise ValueError("it calibrates something else than a support vector machine")
    counts, vectors = machine._n_support, machine.support_vectors_
    classes, pairs = counts.size, counts.size * (counts.size - 1) // 2
    sound = (
        (counts >= 0).all()
        and vectors.shape == (counts.sum(), machine.n_features_in_)
        and machine.support_.shape == vectors.shape[:1]
        and machine._dual_coef_.shape == (classes - 1, len(vectors))
        and machine._intercept_.shape == (pairs,)
        and {machine._probA.size, machine._probB.size} <= {0, pairs}
        and classes == machine.classes_.size
    )
    if not sound:
        raise ValueError("a support vector machine in it is damaged")
