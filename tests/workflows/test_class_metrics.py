"""Measures of classes against computations that share nothing with them."""

import numpy as np
import pytest

from cubeloom.errors import InputError
from cubeloom.workflows.evaluate.class_metrics import (
    class_metrics,
    confusion_of,
    multilabel_metrics,
    regression_metrics,
)


def drawn(rng, n=500, classes=5):
    truth = rng.integers(0, classes, n)
    return truth, np.where(rng.random(n) < 0.6, truth, rng.integers(0, classes, n))


def test_a_confusion_counts_pairs_where_there_is_a_label():
    truth = np.array([[0, 1, 2], [255, -1, 2]])
    mapped = np.array([[0, 2, 2], [1, 1, 1]])
    found = confusion_of(truth, mapped, 3)
    assert found.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 1]]


def test_confusions_of_parts_add_up():
    rng = np.random.default_rng(0)
    truth, mapped = drawn(rng)
    parts = confusion_of(truth[:200], mapped[:200], 5) + confusion_of(truth[200:], mapped[200:], 5)
    assert (parts == confusion_of(truth, mapped, 5)).all()
    assert parts.sum() == 500


def test_unsigned_labels_do_not_wrap():
    labels = np.arange(20, dtype=np.uint8)
    assert (confusion_of(labels, labels, 20) == np.eye(20)).all()


@pytest.mark.parametrize("seed", range(3))
def test_measures_follow_their_formulas(seed):
    truth, mapped = drawn(np.random.default_rng(seed))
    c = confusion_of(truth, mapped, 5).astype(float)
    hits, rows, columns, n = np.diag(c), c.sum(1), c.sum(0), c.sum()
    chance = (rows * columns).sum() / n**2
    found = class_metrics(c.astype(int))
    assert found["overall_accuracy"] == pytest.approx(hits.sum() / n)
    assert found["accuracy"] == pytest.approx(list(hits / rows))
    assert found["average_accuracy"] == pytest.approx((hits / rows).mean())
    assert found["kappa"] == pytest.approx((hits.sum() / n - chance) / (1 - chance))
    assert found["f1"] == pytest.approx(list(2 * hits / (rows + columns)))
    assert found["macro_f1"] == pytest.approx((2 * hits / (rows + columns)).mean())
    assert found["iou"] == pytest.approx(list(hits / (rows + columns - hits)))
    assert found["macro_iou"] == pytest.approx((hits / (rows + columns - hits)).mean())
    assert found["micro_iou"] == pytest.approx(hits.sum() / (2 * n - hits.sum()))
    assert found["samples"] == n


def test_a_class_that_occurs_nowhere_changes_no_mean():
    truth, mapped = drawn(np.random.default_rng(7), classes=4)
    small, large = (class_metrics(confusion_of(truth, mapped, k)) for k in (4, 6))
    assert large["f1"][4:] == large["iou"][4:] == large["accuracy"][4:] == [None, None]
    for name in ("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "micro_iou", "macro_iou"):
        assert large[name] == pytest.approx(small[name])


def test_a_class_only_in_the_map_has_no_recall_but_costs_f1():
    found = class_metrics(np.array([[3, 1], [0, 0]]))
    assert found["accuracy"] == [0.75, None]
    assert found["average_accuracy"] == 0.75
    assert found["f1"][1] == found["iou"][1] == found["kappa"] == 0


def test_one_class_throughout_leaves_kappa_open():
    found = class_metrics(np.array([[5, 0], [0, 0]]))
    assert found["overall_accuracy"] == found["macro_f1"] == found["macro_iou"] == 1
    assert found["kappa"] is None


def test_measures_are_the_same_in_any_order_of_classes():
    rng = np.random.default_rng(3)
    c = confusion_of(*drawn(rng), 5)
    order = rng.permutation(5)
    one, other = class_metrics(c), class_metrics(c[np.ix_(order, order)])
    assert one["kappa"] == pytest.approx(other["kappa"])
    assert [one["f1"][k] for k in order] == pytest.approx(other["f1"])


@pytest.mark.parametrize(
    "confusion", [np.zeros((2, 2), int), np.ones((2, 3), int), np.eye(2), np.array([[1, -1], [0, 1]])]
)
def test_what_is_no_confusion_is_refused(confusion):
    with pytest.raises(InputError, match="confusion"):
        class_metrics(confusion)


def test_a_map_of_another_shape_or_class_is_refused():
    with pytest.raises(InputError, match="shape"):
        confusion_of(np.zeros(3, int), np.zeros(4, int), 2)
    with pytest.raises(InputError, match="expected 0 to 1"):
        confusion_of(np.zeros(3, int), np.array([0, 1, 2]), 2)


def average_precision(scores, truth):
    """Mean of the precision at each hit, down a ranking without ties."""
    hits = truth[np.argsort(-scores)]
    return float((np.cumsum(hits) / np.arange(1, hits.size + 1))[hits].mean())


def test_multilabel_measures_follow_their_formulas():
    rng = np.random.default_rng(1)
    truth = rng.random((60, 4)) < [0.5, 0.3, 0.2, 0.0]
    scores = np.clip(truth * 0.4 + rng.random(truth.shape) * 0.55, 0, 1)
    scores[:, 3] = rng.random(60) * 0.4
    found = multilabel_metrics(scores, truth)
    given = scores > 0.5
    right = (truth & given).sum(0)
    f1 = 2 * right / np.maximum(truth.sum(0) + given.sum(0), 1)
    precisions = [average_precision(scores[:, k], truth[:, k]) for k in range(3)]
    assert found["f1"][:3] == pytest.approx(list(f1[:3]))
    assert found["f1"][3] is found["average_precision"][3] is None
    assert found["macro_f1"] == pytest.approx(f1[:3].mean())
    assert found["micro_f1"] == pytest.approx(2 * right.sum() / (truth.sum() + given.sum()))
    assert found["average_precision"][:3] == pytest.approx(precisions)
    assert found["macro_map"] == pytest.approx(np.mean(precisions))
    assert found["micro_map"] == pytest.approx(average_precision(scores.ravel(), truth.ravel()))
    assert found["micro_accuracy"] == pytest.approx((truth == given).mean())


def test_perfect_scores_of_a_single_label_are_perfect():
    truth = np.array([[True], [False], [True]])
    found = multilabel_metrics(truth * 0.9, truth)
    assert all(found[name] == 1 for name in ("micro_f1", "macro_f1", "micro_map", "macro_map", "micro_accuracy"))


def test_scores_that_cannot_be_judged_are_refused():
    with pytest.raises(InputError, match="finite"):
        multilabel_metrics(np.full((2, 2), np.nan), np.eye(2, dtype=bool))
    with pytest.raises(InputError, match="no tile"):
        multilabel_metrics(np.ones((2, 2)), np.zeros((2, 2), bool))


def test_regression_measures():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(400, 2)) * [1, 3]
    found = regression_metrics(truth + np.array([0.5, -1]), truth, ("P", "pH"))
    assert found["rmse_of"] == pytest.approx({"P": 0.5, "pH": 1})
    assert found["rmse"] == pytest.approx(np.sqrt((0.25 + 1) / 2))
    assert found["normalised_mse"] == pytest.approx(
        (0.25 / (truth[:, 0] ** 2).mean() + 1 / (truth[:, 1] ** 2).mean()) / 2
    )
    assert found["r2_of"]["P"] == pytest.approx(1 - 0.25 / truth[:, 0].var())
    always_zero = regression_metrics(np.zeros_like(truth), truth, ("P", "pH"))
    assert always_zero["normalised_mse"] == pytest.approx(1)
    assert regression_metrics(np.ones((2, 1)), np.ones((2, 1)), ("P",))["r2_of"] == {"P": None}
