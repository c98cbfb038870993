"""QNR against its formula written out, and by what must hold of it."""

import numpy as np
import pytest

from cubeloom.errors import InputError
from cubeloom.pipeline.metrics_without_truth import qnr, spatial_distortion, spectral_distortion


@pytest.fixture
def scene() -> np.ndarray:
    random = np.random.default_rng(1)
    y, x = np.mgrid[:16, :24] / 5
    smooth = np.stack([np.sin(y + k) * np.cos(x * (1 + k)) + 1.5 for k in range(4)])
    return smooth + random.normal(0, 0.05, smooth.shape)


def repeated(cube: np.ndarray, times: int = 3) -> np.ndarray:
    return cube.repeat(times, axis=1).repeat(times, axis=2)


def likeness(x: np.ndarray, y: np.ndarray) -> float:
    """Wang and Bovik (2002), eq. 1, as it stands there, with population moments."""
    covariance = np.cov(x.ravel(), y.ravel(), ddof=0)
    means = x.mean() * y.mean() / (x.mean() ** 2 + y.mean() ** 2)
    return 4 * covariance[0, 1] * means / (covariance[0, 0] + covariance[1, 1])


def test_they_are_mean_changes_of_the_likeness_over_squares(scene):
    random = np.random.default_rng(2)
    product = repeated(scene) + random.normal(0, 0.1, (4, 48, 72))
    squares = [(row, col) for row in (0, 8) for col in (0, 8, 16)]

    def mean(x, y, times):
        parts = [(slice(row * times, (row + 8) * times), slice(col * times, (col + 8) * times)) for row, col in squares]
        return np.mean([likeness(x[part], y[part]) for part in parts])

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    by_hand = np.mean(
        [abs(mean(product[i], product[j], 3) - mean(scene[i], scene[j], 1)) for i, j in pairs],
    )
    assert spectral_distortion(scene, product, square=8) == pytest.approx(by_hand)

    seen = np.stack([scene[2] + random.normal(0, 0.3, scene[2].shape), scene[0] * 0.7 + 0.2])
    guide = repeated(seen) + random.normal(0, 0.05, (2, 48, 72))
    best = [int(np.argmax([np.corrcoef(band.ravel(), one.ravel())[0, 1] for one in seen])) for band in scene]
    assert set(best) == {0, 1}
    by_hand = np.mean(
        [abs(mean(product[i], guide[b], 3) - mean(scene[i], seen[b], 1)) for i, b in enumerate(best)],
    )
    assert spatial_distortion(scene, product, guide, seen, square=8) == pytest.approx(by_hand)


def test_a_product_that_keeps_all_relations_is_perfect(scene):
    spectral = spectral_distortion(scene, repeated(scene), square=8)
    spatial = spatial_distortion(scene, repeated(scene), repeated(scene[1:3]), scene[1:3], square=8)
    assert (spectral, spatial) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert qnr(spectral, spatial) == pytest.approx(1)
    assert qnr(0.1, 0.2) == pytest.approx(0.72)


def test_what_breaks_relations_counts(scene):
    mixed = repeated(scene)
    mixed[0] = mixed[1]
    assert spectral_distortion(scene, mixed, square=8) > 0.1
    flat = np.broadcast_to(repeated(scene).mean(axis=(1, 2), keepdims=True), mixed.shape)
    assert spatial_distortion(scene, flat, repeated(scene[:1]), scene[:1], square=8) > 0.25  # of the band itself alone
    flat = np.ones_like(mixed)
    assert spectral_distortion(np.ones_like(scene), flat, square=8) == 0


def test_squares_without_all_values_do_not_count(scene):
    product = repeated(scene) + np.random.default_rng(3).normal(0, 0.1, (4, 48, 72))
    expected = spectral_distortion(scene[:, :, 8:], product[:, :, 24:], square=8)
    product[:, :, :20], scene[2, 9, 3] = np.nan, np.nan
    assert spectral_distortion(scene, product, square=8) == pytest.approx(expected)


def test_wrong_calls_say_what_was_found(scene):
    with pytest.raises(InputError, match=r"\(4, 40, 72\) for \(4, 16, 24\)"):
        spectral_distortion(scene, repeated(scene)[:, :40])
    with pytest.raises(InputError, match="one band"):
        spectral_distortion(scene[:1], repeated(scene[:1]))
    with pytest.raises(InputError, match="no square"):
        spectral_distortion(scene, repeated(scene), square=17)
