"""Outliers: what is told from noise and what is gained by it; a rare material is none, nor is a common number."""

import itertools

import numpy as np
import pytest

from cubeloom.pipeline import metrics
from cubeloom.pipeline.functions import denoise
from cubeloom.pipeline.simulate.noise import add_noise
from cubeloom.pipeline.stages.histograms import value_histograms
from cubeloom.pipeline.stages.outliers import (
    _MULTIPLIERS,
    Outliers,
    _buckets,
    _noise_and_limit,
    _numbers,
    median_of_neighbours,
)

BANDS, SHAPE = 40, (96, 90)


@pytest.fixture
def clean():
    """A cube in [0, 1] of five smooth spectra, mixed by smooth and by patchy maps, `(band, y, x)`."""
    random = np.random.default_rng(5)
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    maps = [np.sin(rows / a) * np.cos(cols / b) > c for a, b, c in random.uniform([4, 4, 0], [20, 20, 0.4], (5, 3))]
    maps = np.stack(maps) + 0.3 * np.stack([np.sin((rows + k * cols) / 17) for k in range(5)])
    spectra = np.cumsum(np.cumsum(random.normal(0, 1, (5, BANDS)), axis=1), axis=1)
    cube = np.einsum("pyx,pb->byx", maps, spectra / np.abs(spectra).max(axis=1, keepdims=True))
    return ((cube - cube.min()) / (cube.max() - cube.min())).astype(np.float32)


@pytest.fixture
def denoised(make_scene):
    """What `denoise` with some parameters makes of a cube."""

    def run(cube, **parameters):
        scene = make_scene(height=SHAPE[0], width=SHAPE[1], bands=BANDS)
        scene["good"].values[:] = True
        scene["quality"].values[:] = 0
        scene["reflectance"].values[:] = cube
        return denoise(scene, method="subspace", **parameters)["denoised"].values

    return run


def psnr(clean, cube):
    return metrics.psnr(clean, np.clip(cube, 0, 1), 1.0)


def test_struck_cubes_come_out_nearly_as_those_with_noise_alone(clean, denoised):
    noise_alone = psnr(clean, denoised(add_noise(clean, "noniid", np.random.default_rng(1)).cube))
    for name in ("stripe", "deadline", "impulse", "mixture"):
        noisy = add_noise(clean, name, np.random.default_rng(1)).cube
        plain, told = (psnr(clean, denoised(noisy, outliers=outliers)) for outliers in (False, True))
        assert told > plain + 0.5, name
        assert told > noise_alone - 4, name


def test_gaussian_noise_holds_no_outliers(clean, denoised):
    noisy = add_noise(clean, "gaussian30", np.random.default_rng(1)).cube
    assert abs(psnr(clean, denoised(noisy)) - psnr(clean, denoised(noisy, outliers=True))) < 0.15


def test_a_rare_material_stays(clean, denoised):
    """A few pixels of a spectrum that the rest of the scene does not have are signal."""
    at = (slice(None), slice(40, 44), slice(50, 54))
    clean[at] = (0.5 + 0.4 * np.sin(np.arange(BANDS) / 3))[:, None, None]
    noisy = clean + 0.01 * np.random.default_rng(2).standard_normal(clean.shape).astype(np.float32)
    plain, told = (denoised(noisy, outliers=outliers)[at] - clean[at] for outliers in (False, True))
    assert np.sqrt(np.mean(told**2)) < max(1.2 * np.sqrt(np.mean(plain**2)), 0.01)


def test_the_median_of_neighbours_leaves_out_what_is_not_seen():
    random = np.random.default_rng(3)
    spectra = random.normal(size=(12, 500)).astype(np.float32)
    seen = random.random(spectra.shape) < 0.6
    at = np.pad(np.where(seen, spectra, np.nan), ((3, 3), (0, 0)), constant_values=np.nan)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        expected = np.nanmedian(np.stack([at[k : k + 12] for k in (0, 1, 2, 4, 5, 6)]), axis=0)
    np.testing.assert_allclose(median_of_neighbours(spectra, seen), expected, rtol=1e-6)


def test_six_numbers_in_any_order_have_one_median():
    orders = np.array(list(itertools.permutations(range(6))), np.float32).T
    spectra = np.concatenate([orders[:3], orders[:1], orders[3:]])
    assert (median_of_neighbours(spectra, np.ones(spectra.shape, bool))[3] == 2.5).all()


@pytest.mark.parametrize("step", [None, 1e-4])
def test_numbers_that_a_band_repeats_are_no_measurements(step):
    random = np.random.default_rng(4)
    values = random.normal(0.02, 0.002, (3, 20_000)).astype(np.float32)
    if step:  # as dark water is packed: some thirty numbers, each of them common
        values = np.rint(values / np.float32(step)).astype(np.float32) * np.float32(step)
    struck = random.random(values.shape) < [[0.0], [0.03], [0.3]]
    values[struck] = 0
    tables = np.stack(
        [[np.bincount(_buckets(_numbers(band, step), by), minlength=1024) for band in values] for by in _MULTIPLIERS]
    )
    repeated = Outliers({"repetitions": tables}, step)._repeated(values)
    np.testing.assert_array_equal(repeated[struck], True)
    assert repeated[~struck].mean() < 1e-3


def test_noise_is_measured_beside_outliers():
    random = np.random.default_rng(6)
    sigma = np.array([0.01, 0.05, 0.2])
    residuals = (sigma[:, None] * random.standard_normal((3, 50_000))).astype(np.float32)
    struck = random.random(residuals.shape) < [[0.0], [0.1], [0.3]]
    residuals[struck] = random.uniform(-1, 1, struck.sum())
    seen = np.ones(residuals.shape, bool)
    noise, limit = _noise_and_limit(value_histograms([(residuals, seen)]), 2.0, 0.0)
    np.testing.assert_allclose(noise, sigma, rtol=0.05)
    outside = np.abs(residuals) > limit[:, None]
    assert (outside & ~struck).mean() < 0.01
    assert (outside[1] & struck[1]).sum() > 0.8 * struck[1].sum()
