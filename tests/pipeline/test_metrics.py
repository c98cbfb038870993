"""Metrics against independent computations, band by band and pixel by pixel."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cubeloom.errors import InputError
from cubeloom.pipeline import metrics


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    reference = random.uniform(0.1, 0.9, (4, 24, 20))
    return reference, reference + random.normal(0, [[[0.01]], [[0.02]], [[0.05]], [[0.1]]], reference.shape)


def test_psnr_is_the_mean_of_the_bands(pair):
    x, y = pair
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=2.0) for a, b in zip(x, y, strict=True)])
    assert metrics.psnr(x, y, 2.0) == pytest.approx(expected)
    assert metrics.psnr(x, x, 1.0) == math.inf


def test_ssim_follows_the_named_window(pair):
    x, y = pair
    uniform = np.mean([structural_similarity(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)])
    assert metrics.ssim(x, y, 1.0, gaussian=False) == pytest.approx(uniform)
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    gaussian = np.mean([structural_similarity(a, b, data_range=1.0, **paper) for a, b in zip(x, y, strict=True)])
    assert metrics.ssim(x, y, 1.0) == pytest.approx(gaussian)
    assert metrics.ssim(x, x, 1.0) == pytest.approx(1)


def test_sam_in_degrees_one_pixel_at_a_time(pair):
    x, y = pair
    angles = []
    for i, j in np.ndindex(x.shape[1:]):
        a, b = x[:, i, j], y[:, i, j]
        angles.append(math.degrees(math.acos(min(a @ b / math.sqrt((a @ a) * (b @ b)), 1))))
    assert metrics.sam(x, y) == pytest.approx(np.mean(angles), rel=1e-6)
    assert metrics.sam(x, 3 * x) == pytest.approx(0, abs=1e-6)
    axes = np.eye(2)[:, :, None]
    assert metrics.sam(axes, axes[::-1]) == pytest.approx(90)


def test_sam_leaves_out_spectra_without_direction(pair):
    x, y = (cube.copy() for cube in pair)
    expected = metrics.sam(x, y, valid=np.indices((24, 20))[0] > 0)
    y[:, 0] = 0
    assert metrics.sam(x, y) == pytest.approx(expected)
    with pytest.raises(InputError, match="zero"):
        metrics.sam(x, np.zeros_like(x))


def test_ergas_rmse_cc(pair):
    x, y = pair
    terms = [np.mean((a - b) ** 2) / np.mean(a) ** 2 for a, b in zip(x, y, strict=True)]
    assert metrics.ergas(x, y, 4) == pytest.approx(25 * math.sqrt(np.mean(terms)))
    assert metrics.rmse(x, y) == pytest.approx(math.sqrt(sum(((x - y) ** 2).ravel()) / x.size))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x, y, strict=True)]
    assert metrics.cc(x, y) == pytest.approx(np.mean(correlations))


@pytest.mark.parametrize("metric", ["psnr", "ssim", "sam", "ergas", "rmse", "cc"])
def test_masked_pixels_never_count(pair, metric):
    x, y = (cube.copy() for cube in pair)
    valid = np.ones(x.shape[1:], bool)
    valid[:, 15:] = False
    argument = {"psnr": (1.0,), "ssim": (1.0,), "ergas": (2.0,)}.get(metric, ())
    function = getattr(metrics, metric)
    before = function(x, y, *argument, valid=valid)
    y[:, ~valid] = np.nan
    x[:, ~valid] = 1e9
    assert function(x, y, *argument, valid=valid) == before
    with pytest.raises(InputError, match="not finite"):
        function(x, y, *argument)


def test_wrong_calls_say_what_was_found(pair):
    x, y = pair
    with pytest.raises(InputError, match=r"\(4, 24, 20\) and \(3, 24, 20\)"):
        metrics.rmse(x, y[:3])
    with pytest.raises(InputError, match="mask leaves none"):
        metrics.rmse(x, y, valid=np.zeros((24, 20), bool))
    with pytest.raises(InputError, match="mask has shape"):
        metrics.rmse(x, y, valid=np.ones((20, 24), bool))
    with pytest.raises(InputError, match="value_range"):
        metrics.psnr(x, y, 0.0)
    with pytest.raises(InputError, match="11 x 11"):
        metrics.ssim(x[:, :9], y[:, :9], 1.0)
