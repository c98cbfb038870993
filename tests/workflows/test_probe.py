"""Probes against computations of their own, and on features whose answer is known."""

import numpy as np
import pytest

from cubeloom.errors import ConfigError, InputError
from cubeloom.workflows.train.probe import (
    dense_predict,
    dense_probe,
    knn_probe,
    linear_probe,
    pixel_features,
    probe_scores,
)


def clouds(n=90, seed=0, spread=0.3):
    """Three directions with noise, of lengths that differ much."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, n)
    centres = np.random.default_rng(9).normal(size=(3, 12))
    features = centres[labels] + draw.normal(0, spread, (n, 12))
    return features * draw.uniform(0.1, 10, (n, 1)), labels


def test_neighbours_are_those_of_the_largest_cosine():
    (known, labels), (queries, _) = clouds(seed=1, spread=1.5), clouds(20, seed=2, spread=1.5)
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        known / np.linalg.norm(known, axis=1, keepdims=True)
    ).T
    nearest = labels[np.argsort(-cosine, axis=1)[:, :5]]
    expected = [np.bincount(row, minlength=3).argmax() for row in nearest]
    assert knn_probe(known, labels, queries, k=5).tolist() == expected


def test_more_neighbours_than_there_are_are_all():
    known, labels = clouds(9)
    assert set(knn_probe(known, labels, known, k=50)) == {np.bincount(labels).argmax()}


def test_a_linear_probe_does_not_depend_on_the_features_units():
    features, labels = clouds()
    one = linear_probe(features, labels).predict(features)
    other = linear_probe(features * np.geomspace(1e-3, 1e3, 12) + 7, labels).predict(
        features * np.geomspace(1e-3, 1e3, 12) + 7
    )
    assert (one == other).all()


def test_scores_of_features_that_tell_all_and_of_those_that_tell_nothing():
    told = probe_scores(clouds(seed=3), clouds(seed=4))
    assert told["knn"]["overall_accuracy"] > 0.95
    assert told["linear"]["macro_f1"] > 0.7
    draw = np.random.default_rng(0)
    noise = [(draw.normal(size=(200, 5)), np.arange(200) % 2) for _ in range(2)]
    assert all(abs(found["kappa"]) < 0.3 for found in probe_scores(*noise).values())


def test_a_dense_probe_labels_pixels_by_coarse_features():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 2, (3, 10, 12))
    maps = [draw.normal(0, 0.1, (4, 10, 12)) + np.stack([one, 1 - one, one * 0, one * 0]) for one in coarse]
    truth = [np.kron(one, np.ones((4, 4), int)) + 1 for one in coarse]
    partly = [np.where(draw.random(one.shape) < 0.1, one, 0) for one in truth]
    probe = dense_probe(maps[:2], partly[:2])
    found = dense_predict(probe, maps[2], truth[2].shape)
    centres = np.s_[1::4, 1::4]  # where interpolation mixes least
    assert (found[centres] == truth[2][centres]).mean() > 0.9
    assert set(np.unique(found)) == {1, 2}


def test_a_dense_probe_learns_from_so_many_pixels_of_a_class():
    labels = np.ones((20, 20), int)
    labels[:2] = 2
    features = np.stack([labels * 1.0, labels * -1.0])
    few = dense_probe([features], [labels], per_class=10)
    assert few[0].n_samples_seen_ == 20
    assert (dense_predict(few, features, (20, 20)) == labels).all()


def test_features_of_pixels_keep_linear_ramps():
    ramp = np.arange(8.0)[None, :, None] * np.ones((1, 8, 8))
    fine = pixel_features(ramp, (32, 32))[0]
    expected = (np.arange(32) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(fine[2:-2, 5], expected[2:-2], atol=1e-5)
    assert pixel_features(ramp, (8, 8)).dtype == np.float32


def test_what_cannot_be_probed_is_refused():
    features, labels = clouds()
    with pytest.raises(InputError, match=r"expected \(n, C\)"):
        linear_probe(features, labels[:-1])
    with pytest.raises(InputError, match="not finite"):
        knn_probe(np.full((3, 2), np.nan), np.arange(3), np.ones((1, 2)))
    with pytest.raises(InputError, match="alone"):
        linear_probe(features, np.ones_like(labels))
    with pytest.raises(ConfigError, match="k is 0"):
        knn_probe(features, labels, features, k=0)
