"""Measures of class maps and of labels of whole tiles, as those of scikit-learn with fixed names and no surprises.

Classes are indices 0 to K - 1. What no data can tell (the F1 of a class that is neither in truth nor in the map) is
None, and means leave it out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, jaccard_score, recall_score

from cubeloom.errors import InputError

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]


def confusion_of(truth: IntArray, mapped: IntArray, classes: int) -> npt.NDArray[np.int64]:
    """Counts of (true, mapped) pairs: those of parts of an image may be added.

    Args:
        truth: class indices of any shape; one outside 0 to classes - 1 is no label and is not counted.
        mapped: class indices of the same shape.
        classes: K.

    Returns:
        (K, K), a row for each true class.

    Raises:
        InputError: the shapes differ, or a labelled place is mapped to what is no class.
    """
    if truth.shape != mapped.shape:
        raise InputError(f"truth of shape {truth.shape} and a map of shape {mapped.shape}: give one for each other")
    labelled = (truth >= 0) & (truth < classes)
    rows, columns = truth[labelled].astype(np.int64), mapped[labelled].astype(np.int64)
    if columns.size and not 0 <= columns.min() <= columns.max() < classes:
        raise InputError(f"a map of classes {columns.min()} to {columns.max()}; expected 0 to {classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def class_metrics(confusion: IntArray) -> dict[str, Any]:
    """How well a map agrees with the truth.

    Args:
        confusion: (K, K) counts, a row for each true class, as of `confusion_of`.

    Returns:
        `overall_accuracy`; `average_accuracy`, the mean of `accuracy` over the classes that occur in truth; `kappa`
        (Cohen 1960; None where truth and map are one and the same class); `macro_f1`, the mean of `f1`; `micro_iou`,
        all correct pixels over all in the unions, and `macro_iou`, the mean of `iou`. `accuracy` (recall), `f1` and
        `iou` have an entry for each class, None where it does not occur. `samples`: how many were counted.

    Raises:
        InputError: not a square of counts, or nothing was counted.
    """
    _require_counts(confusion)
    weight = confusion.ravel()
    truth, mapped = (axis.ravel()[weight > 0] for axis in np.indices(confusion.shape))
    counted = {"sample_weight": weight[weight > 0]}
    each: dict[str, Any] = {**counted, "labels": range(len(confusion)), "average": None, "zero_division": np.nan}
    accuracy, f1, iou = (score(truth, mapped, **each) for score in (recall_score, f1_score, _iou))
    one_class = len({*truth.tolist(), *mapped.tolist()}) == 1
    return {
        "overall_accuracy": float(np.trace(confusion) / weight.sum()),
        "average_accuracy": float(np.nanmean(accuracy)),
        "kappa": None if one_class else float(cohen_kappa_score(truth, mapped, **counted)),
        "macro_f1": float(np.nanmean(f1)),
        "micro_iou": float(jaccard_score(truth, mapped, average="micro", **counted)),
        "macro_iou": float(np.nanmean(iou)),
        "accuracy": _known(accuracy),
        "f1": _known(f1),
        "iou": _known(iou),
        "samples": int(weight.sum()),
    }


def multilabel_metrics(scores: FloatArray, truth: npt.NDArray[np.bool_], threshold: float = 0.5) -> dict[str, Any]:
    """How well scores tell which labels a tile has.

    Args:
        scores: (n, K) probabilities, or anything else that grows with them.
        truth: (n, K).
        threshold: a score above it says that the label is there.

    Returns:
        `micro_f1`, over all decisions; `macro_f1`, the mean of `f1`; `micro_accuracy`, the share of right decisions;
        `micro_map`, the average precision of all decisions in one ranking; `macro_map`, the mean of
        `average_precision`. `f1` has None for a label that neither occurs nor was given, `average_precision` for one
        that does not occur. `samples`: n.

    Raises:
        InputError: the shapes differ, a score is not finite, or no tile has any label.
    """
    if scores.shape != truth.shape or scores.ndim != 2 or not np.isfinite(scores).all():
        raise InputError(f"scores {scores.shape} and truth {truth.shape}: expected finite scores, both (n, labels)")
    truth = np.asarray(truth, bool)
    if not truth.any():
        raise InputError("no tile has any of the labels: there is no precision to measure")
    given = scores > threshold
    f1 = f1_score(truth, given, average=None, zero_division=np.nan) if truth.shape[1] > 1 else _single_f1(truth, given)
    precision = [
        float(average_precision_score(column, score)) if column.any() else None
        for column, score in zip(truth.T, scores.T, strict=True)
    ]
    return {
        "micro_f1": float(f1_score(truth.ravel(), given.ravel())),
        "macro_f1": float(np.nanmean(f1)),
        "micro_accuracy": float((truth == given).mean()),
        "micro_map": float(average_precision_score(truth.ravel(), scores.ravel())),
        "macro_map": float(np.mean([one for one in precision if one is not None])),
        "f1": _known(f1),
        "average_precision": precision,
        "samples": len(truth),
    }


def regression_metrics(estimate: FloatArray, truth: FloatArray, names: Sequence[str]) -> dict[str, Any]:
    """How near estimates of several quantities are to the truth.

    Args:
        estimate: (n, K).
        truth: (n, K).
        names: of the K quantities.

    Returns:
        `rmse` over all quantities; `normalised_mse`, the mean over quantities of the mean squared error over that of
        always saying 0 (for standardised truth, 1 is what its mean alone would score); and by name
        `rmse_of` and `r2_of`, the share of the variance that is explained (None where there is none).

    Raises:
        InputError: the shapes differ, or there is nothing to compare.
    """
    if estimate.shape != truth.shape or truth.ndim != 2 or truth.shape[1] != len(names) or not truth.size:
        raise InputError(f"estimates {estimate.shape}, truth {truth.shape}, {len(names)} names: expected (n, names)")
    exact = truth.astype(np.float64)
    errors = ((estimate - exact) ** 2).mean(axis=0)
    variance = exact.var(axis=0)
    explained = [1 - error / spread if spread > 0 else None for error, spread in zip(errors, variance, strict=True)]
    return {
        "rmse": float(np.sqrt(errors.mean())),
        "normalised_mse": float((errors / np.maximum((exact**2).mean(axis=0), np.finfo(np.float64).tiny)).mean()),
        "rmse_of": dict(zip(names, np.sqrt(errors).tolist(), strict=True)),
        "r2_of": {name: None if r2 is None else float(r2) for name, r2 in zip(names, explained, strict=True)},
        "samples": len(truth),
    }


def _require_counts(confusion: IntArray) -> None:
    square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    if not square or not np.issubdtype(confusion.dtype, np.integer) or (confusion.size and confusion.min() < 0):
        raise InputError(f"confusion {confusion.shape} of {confusion.dtype}: expected a square of counts")
    if not confusion.any():
        raise InputError("an empty confusion matrix: no place has both a label and a class")


def _iou(truth: IntArray, mapped: IntArray, *, zero_division: float, **options: Any) -> FloatArray:  # noqa: ANN401 - scikit-learn's
    """Jaccard's index of each class; scikit-learn's own cannot say nan."""
    found: FloatArray = jaccard_score(truth, mapped, zero_division=0, **options)
    occurs = np.isin(np.asarray(options["labels"]), np.concatenate([truth, mapped]))
    return np.where(occurs, found, zero_division)


def _single_f1(truth: npt.NDArray[np.bool_], given: npt.NDArray[np.bool_]) -> FloatArray:
    """F1 of the one label there is, which scikit-learn would take for two classes."""
    return np.array([f1_score(truth[:, 0], given[:, 0], zero_division=np.nan)])


def _known(values: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
