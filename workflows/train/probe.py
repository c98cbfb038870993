"""How much a frozen network's embeddings tell: nearest neighbours, a linear layer for tiles, and one for pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from cubeloom.errors import ConfigError, InputError
from cubeloom.workflows.evaluate.class_metrics import class_metrics, confusion_of

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
NEIGHBOURS = 20
"""As in DINO (Caron et al. 2021, arXiv 2104.14294)."""
PER_CLASS = 2000
"""Pixels of a class that a dense probe learns from."""


def knn_probe(features: FloatArray, labels: IntArray, queries: FloatArray, k: int = NEIGHBOURS) -> npt.NDArray[Any]:
    """The most frequent label of the k nearest embeddings by cosine, of as many as there are where there are fewer.

    Args:
        features: (n, C) of known labels.
        labels: (n,).
        queries: (m, C).
        k: neighbours.

    Returns:
        (m,) labels

    Raises:
        InputError: embeddings and labels do not fit, or an embedding is not finite.
        ConfigError: k is not positive.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if k < 1:
        raise ConfigError(f"k is {k}; expected a number of neighbours, 1 or more")
    _require_features(features, labels)
    _require_features(queries)
    known = KNeighborsClassifier(min(k, len(features)), metric="cosine", algorithm="brute")
    found: npt.NDArray[Any] = known.fit(features, labels).predict(queries)
    return found


def linear_probe(features: FloatArray, labels: IntArray, c: float = 1.0, seed: int = 0) -> Any:  # noqa: ANN401 - scikit-learn is untyped
    """A logistic regression on standardised embeddings, fitted.

    Args:
        features: (n, C).
        labels: (n,).
        c: inverse strength of its regularisation.
        seed: of the solver.

    Returns:
        A scikit-learn pipeline with `predict` and `predict_proba`.

    Raises:
        InputError: embeddings and labels do not fit, or there is one class alone.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _require_features(features, labels)
    if np.unique(labels).size < 2:
        raise InputError(f"a probe learns to tell classes apart; found {np.unique(labels).tolist()} alone")
    model = LogisticRegression(C=c, max_iter=2000, random_state=seed)
    return make_pipeline(StandardScaler(), model).fit(features, labels)


def dense_probe(
    maps: Sequence[FloatArray],
    labels: Sequence[IntArray],
    *,
    per_class: int = PER_CLASS,
    c: float = 1.0,
    seed: int = 0,
) -> Any:  # noqa: ANN401 - see `linear_probe`
    """A linear layer that labels every pixel by the dense features there: a logistic regression, fitted.

    Args:
        maps: features of each image, (C, h, w); coarser ones are interpolated to the labels' grid.
        labels: of each image, (y, x), 0 where there is none.
        per_class: at most so many pixels of a class, drawn at random over all images.
        c: inverse strength of its regularisation.
        seed: of the draw.

    Returns:
        As of `linear_probe`, for features of pixels.

    Raises:
        InputError: features and labels do not fit, or there are fewer than two classes.
    """
    values = np.concatenate([one[one > 0] for one in labels])
    draw = np.random.default_rng(seed)
    kept = np.zeros(values.size, bool)
    for value in np.unique(values):
        kept[draw.permutation(np.flatnonzero(values == value))[:per_class]] = True
    spectra, start = [], 0
    for one, where in zip(maps, (one > 0 for one in labels), strict=True):
        count = int(where.sum())
        where = where.copy()
        where[where] = kept[start : start + count]
        spectra.append(pixel_features(one, where.shape)[:, where].T)
        start += count
    return linear_probe(np.concatenate(spectra), values[kept], c, seed)


def dense_predict(probe: Any, features: FloatArray, shape: tuple[int, int]) -> npt.NDArray[Any]:  # noqa: ANN401 - see `linear_probe`
    """The class of every pixel: (y, x) of the shape given, from features (C, h, w)."""
    pixels = pixel_features(features, shape)
    found: npt.NDArray[Any] = probe.predict(pixels.reshape(len(pixels), -1).T).reshape(shape)
    return found


def pixel_features(features: FloatArray, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Features of every pixel, (C, y, x), interpolated from those of a coarser grid, (C, h, w), bilinearly."""
    if features.shape[1:] == shape:
        return features.astype(np.float32)
    coarse = torch.from_numpy(np.ascontiguousarray(features, np.float32))[None]
    fine: npt.NDArray[np.float32] = functional.interpolate(coarse, size=shape, mode="bilinear")[0].numpy()
    return fine


def probe_scores(
    train: tuple[FloatArray, IntArray], test: tuple[FloatArray, IntArray], k: int = NEIGHBOURS, c: float = 1.0
) -> dict[str, dict[str, Any]]:
    """`class_metrics` of nearest neighbours (`knn`) and of a logistic regression (`linear`).

    Args:
        train: embeddings (n, C) and class indices from 0 (n,).
        test: the same of places that `train` does not have.
        k: neighbours.
        c: inverse strength of the regularisation.

    Raises:
        InputError: embeddings and labels do not fit.
    """
    _require_features(*test)
    classes = int(max(train[1].max(), test[1].max())) + 1
    found = {"knn": knn_probe(*train, test[0], k), "linear": linear_probe(*train, c).predict(test[0])}
    return {name: class_metrics(confusion_of(test[1], mapped, classes)) for name, mapped in found.items()}


def _require_features(features: FloatArray, labels: IntArray | None = None) -> None:
    fits = features.ndim == 2 and len(features) > 0 and (labels is None or labels.shape == features.shape[:1])
    if not fits:
        raise InputError(
            f"embeddings {features.shape}{'' if labels is None else f' and labels {labels.shape}'}: expected (n, C)"
            f"{'' if labels is None else ' and (n,)'}, n at least 1"
        )
    if not np.isfinite(features).all():
        raise InputError("an embedding is not finite; leave out the tiles without a valid pixel")
