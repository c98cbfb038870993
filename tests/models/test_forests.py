"""Turns are what they claim to be, and forests that are turned see what axes hide."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier

from cubeloom.models.forests import ROTATIONS, RotatedForests
from cubeloom.models.rotations import combinations, complete_rotation, principal_axes, rotation_matrix, sparse_rotation

SIZES = (1, 2, 3, 8, 40)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def oblique(n: int, seed: int, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features whose classes a plane parts that lies along no axis."""
    x = draw(seed).normal(size=(n, size))
    return x, (x @ np.tile([1.0, -1.0], size // 2) > 0).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_a_complete_rotation_is_one(size):
    for seed in range(5):
        matrix = complete_rotation(size, draw(seed))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_complete_rotations_favour_no_direction():
    """Haar: every entry has mean 0 and variance 1 / D. Without the signs the diagonal would lean to one side."""
    drawn = np.stack([complete_rotation(4, draw(seed)) for seed in range(3000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=5 * 0.5 / np.sqrt(3000))
    np.testing.assert_allclose((drawn**2).mean(axis=0), 0.25, atol=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_a_sparse_rotation_loses_no_feature(size):
    matrix = sparse_rotation(size, draw())
    assert np.linalg.matrix_rank(matrix) == size
    assert np.unique(np.round(np.abs(matrix[matrix != 0]), 12)).size == 1


def test_sparse_rotations_keep_lengths_on_average_and_are_sparse():
    drawn = np.stack([sparse_rotation(49, draw(seed)) for seed in range(60)])
    assert (drawn != 0).mean() == pytest.approx(1 / 7, rel=0.05)
    assert (drawn**2).sum(axis=(1, 2)).mean() == pytest.approx(49, rel=0.05)


def test_principal_axes_are_those_of_the_covariance():
    axes = draw(1).normal(size=(3, 3))
    x = draw(2).normal(size=(20_000, 3)) * (5, 2, 0.5) @ np.linalg.qr(axes)[0] + 100
    found = principal_axes(x, draw(3))
    expected = np.linalg.eigh(np.cov(x.T))[1][:, ::-1]
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=0)), 1, atol=1e-3)
    assert not np.array_equal(found, principal_axes(x, draw(4)))


def test_combinations_take_as_many_inputs_as_asked_for():
    matrix = combinations(12, 500, 3, draw())
    assert ((matrix != 0).sum(axis=0) == 3).all()
    assert np.abs(matrix).max() <= 1
    assert (matrix != 0).sum(axis=1).min() > 80  # of 125: none is left out
    assert ((combinations(2, 10, 3, draw()) != 0).sum(axis=0) == 2).all()


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_an_ensemble_is_the_mean_of_forests_on_turned_features(rotation):
    x, y = oblique(300, 0)
    fitted = RotatedForests(rotation, forests=3, trees=4, random_state=5).fit(x, y)
    turned = [(x @ matrix).astype(np.float32) for matrix in fitted.matrices_]
    expected = np.mean([f.predict_proba(one) for f, one in zip(fitted.forests_, turned, strict=True)], axis=0)
    np.testing.assert_allclose(fitted.predict_proba(x), expected, atol=1e-12)
    assert (fitted.predict(x) == y).mean() > 0.95
    assert not np.array_equal(fitted.matrices_[0], fitted.matrices_[1])


def test_the_same_seed_gives_the_same_forests_on_any_number_of_cores():
    x, y = oblique(200, 0)
    one, other = (RotatedForests(forests=2, trees=5, n_jobs=jobs).fit(x, y).predict_proba(x) for jobs in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, RotatedForests(forests=2, trees=5, random_state=1).fit(x, y).predict_proba(x))


def test_turned_forests_see_an_oblique_boundary_better_than_a_plain_one():
    x, y = oblique(400, 1)
    test_x, test_y = oblique(2000, 2)
    plain = RandomForestClassifier(60, random_state=0).fit(x, y).score(test_x, test_y)
    for rotation in ("complete", "sparse", "combinations"):
        turned = RotatedForests(rotation, forests=10, trees=6).fit(x, y).score(test_x, test_y)
        assert turned > plain + 0.01, rotation


def test_weights_count():
    x, y = oblique(300, 0)
    weight = np.where(y == 1, 1.0, 0.0)
    assert (RotatedForests(forests=2, trees=5).fit(x, y, weight).predict(x) == 1).all()


def test_it_is_an_estimator_of_scikit_learn():
    made = RotatedForests("pca", trees=3, max_features=0.5)
    assert clone(made).get_params() == made.get_params()


@pytest.mark.parametrize("wrong", [{"rotation": "some"}, {"forests": 0}, {"trees": 0}])
def test_what_makes_no_ensemble_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected one of|at least 1"):
        RotatedForests(**wrong).fit(*oblique(20, 0))


def test_the_default_stock_of_combinations_is_twice_the_features():
    x, _ = oblique(20, 0)
    assert rotation_matrix("combinations", x, draw()).shape == (6, 12)
