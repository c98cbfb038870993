"""Fusion is the posterior mean that its model has, at every pixel, in blocks of any size."""

from dataclasses import replace

import numpy as np
import pytest

import cubeloom
from cubeloom.errors import InputError
from cubeloom.pipeline import memory
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import regridded
from cubeloom.pipeline.scene import scene_from, spec_of
from cubeloom.pipeline.stages import Mask
from cubeloom.pipeline.stages.fuse import Fuse
from cubeloom.pipeline.stages.fuse_bayes import RIDGE, fusion_of, joint_moments

BANDS, TEXTURES = 4, 3


def observed(n: int, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True spectra, the same with noise, and what depends on them."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(BANDS, BANDS))
    truth = 0.05 * mixing @ draw.normal(size=(BANDS, n)) + 0.3
    optical = truth + noise * truth.std(axis=1, keepdims=True) * draw.normal(size=truth.shape)
    radar = 20 * np.random.default_rng(98).normal(size=(TEXTURES, BANDS)) @ truth + 7
    radar += 0.5 * radar.std(axis=1, keepdims=True) * draw.normal(size=radar.shape)
    return truth, optical.astype(np.float32), radar.astype(np.float32)


def posterior(o: np.ndarray, s: np.ndarray, pixel: int, balance: float, noise: float) -> np.ndarray:
    """Mean and deviation of one pixel by the formula, in the units of the data, with the same ridge."""
    joint = np.concatenate([o, s]).astype(float)
    covariance = np.cov(joint, bias=True)
    covariance += RIDGE * np.diag(np.diag(covariance))
    mean, inverse = joint.mean(axis=1), np.linalg.inv
    prior, cross = covariance[: len(o), : len(o)], covariance[len(o) :, : len(o)]
    slope = cross @ inverse(prior)
    offset = mean[len(o) :] - slope @ mean[: len(o)]
    variance = joint.var(axis=1)
    rest = covariance[len(o) :, len(o) :] - slope @ cross.T + RIDGE * np.diag(variance[len(o) :])
    error = np.diag(noise**2 * variance[: len(o)])
    w_o, w_s = 2 * (1 - balance), 2 * balance
    precision = inverse(prior) + w_o * inverse(error) + w_s * slope.T @ inverse(rest) @ slope
    told = w_s * slope.T @ inverse(rest) @ (s[:, pixel] - offset)
    return inverse(precision) @ (inverse(prior) @ mean[: len(o)] + w_o * inverse(error) @ o[:, pixel] + told)


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.8, 1.0])
def test_one_matrix_product_is_the_posterior_mean_of_every_pixel(balance):
    _, optical, radar = observed(500)
    fused = fusion_of(joint_moments(optical, radar), BANDS, balance, 0.3).apply(optical, radar)
    for pixel in (0, 17, 499):
        expected = posterior(optical, radar, pixel, balance, 0.3)
        np.testing.assert_allclose(fused[:, pixel], expected, atol=2e-5)


def test_fused_spectra_are_nearer_to_the_truth_than_observed_ones():
    truth, optical, radar = observed(20_000)
    fusion = fusion_of(joint_moments(optical, radar), BANDS, 0.5, 0.3)
    alone = fusion_of(joint_moments(optical, radar), BANDS, 0.0, 0.3)
    error, without, before = (
        np.std(made - truth, axis=1) for made in (fusion.apply(optical, radar), alone.apply(optical, radar), optical)
    )
    assert (error < 0.97 * before).all()
    assert error.mean() < without.mean()
    assert (fusion.deviation < before).all()


def test_an_optical_scene_without_error_stays_as_it_is():
    _, optical, radar = observed(3000)
    fused = fusion_of(joint_moments(optical, radar), BANDS, 0.5, 1e-9).apply(optical, radar)
    np.testing.assert_allclose(fused, optical, atol=1e-4)


def test_the_radar_alone_gives_what_regression_knows():
    """With balance 1 the optical values of a pixel do not count."""
    _, optical, radar = observed(2000)
    fusion = fusion_of(joint_moments(optical, radar), BANDS, 1.0)
    np.testing.assert_array_equal(fusion.apply(optical, radar), fusion.apply(optical * 0 + 9, radar))


def test_moments_of_parts_add_up_and_gaps_do_not_count():
    _, optical, radar = observed(300)
    optical[1, 40:60] = np.nan
    radar[0, 100:120] = np.nan
    whole = joint_moments(optical, radar)
    parts = [joint_moments(optical[:, part], radar[:, part]) for part in (slice(0, 90), slice(90, None))]
    for key, value in whole.items():
        np.testing.assert_allclose(parts[0][key] + parts[1][key], value, rtol=1e-12)
    assert whole["count"] == 260
    fused = fusion_of(whole, BANDS).apply(optical, radar)
    assert np.isnan(fused[:, 40:60]).all()
    assert np.isfinite(fused[:, 60:100]).all()


def test_textures_that_repeat_each_other_do_no_harm():
    _, optical, radar = observed(2000)
    twice = np.concatenate([radar, 2 * radar[:1], np.full((1, 2000), 3, np.float32)])
    fused = fusion_of(joint_moments(optical, twice), BANDS).apply(optical, twice)
    once = fusion_of(joint_moments(optical, radar), BANDS).apply(optical, radar)
    np.testing.assert_allclose(fused, once, atol=0.01)


def test_too_few_pixels_are_refused():
    _, optical, radar = observed(10)
    with pytest.raises(InputError, match="10 pixels have both"):
        fusion_of(joint_moments(optical, radar), BANDS)


# --- the stage


@pytest.fixture(scope="module")
def scene(make_scene):
    return make_scene(height=270, width=140, bands=6, background=20)


@pytest.fixture(scope="module")
def radar(scene):
    """Backscatter of two bands that follows the scene, with a corner missing."""
    draw = np.random.default_rng(4)
    image = np.nan_to_num(scene.reflectance.values[:2], nan=0.1)
    speckled = (0.1 * image * draw.gamma(4, 0.25, image.shape)).astype(np.float32)
    speckled[:, -30:, :30] = np.nan
    spec = spec_of(scene)
    bands = spec.bands.take(np.array([0, 1]))
    variables = {
        "sigma0": replace(spec.variables["reflectance"], attrs={"units": "1"}),
        "quality": spec.variables["quality"],
    }
    spec = replace(spec, scene_id="radar", bands=bands, variables=variables, measurement="sigma0", subject="sigma0")
    return scene_from(spec, {"sigma0": speckled, "quality": np.zeros(spec.shape, np.uint32)})


def stage(**changes) -> Fuse:
    return Fuse(measures=("mean", "entropy"), window=3, **changes)


def test_blocks_of_any_size_and_a_lifted_stage_give_the_same(scene, radar, tmp_path, monkeypatch):
    source = SceneSource(scene, spec_of(scene))
    source = with_guides(source, {"radar": regridded(SceneSource(radar, spec_of(radar)), source.spec)})
    lazy = lift(stage())(lift(Mask())(scene.chunk(y=100, x=90)), radar.chunk(y=64, x=140))
    by_hand = cubeloom.open_scene(cubeloom.write_scene(lazy, tmp_path / "lazy.zarr"))
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(source, [Mask(), stage()], tmp_path / "batch.zarr", overwrite=True)
        made = cubeloom.open_scene(tmp_path / "batch.zarr")
        np.testing.assert_array_equal(made.fused.values, by_hand.fused.values, f"blocks of {edge} px")


def test_the_stage_keeps_what_the_radar_does_not_see_and_masks(scene, radar):
    marked = lift(Mask())(scene)
    fused = cubeloom.fuse(marked, radar, measures=("mean", "entropy"), window=3).compute()
    good = np.flatnonzero(scene.good.values)
    unseen = np.isnan(radar.sigma0.values[0]) & marked.valid.values
    assert unseen.any()
    seen = marked.valid.values & ~np.isnan(radar.sigma0.values[0])
    before, after = scene.reflectance.values[good], fused.fused.values[good]
    np.testing.assert_array_equal(after[:, unseen], before[:, unseen])
    assert 1e-5 < np.abs(after - before)[:, seen].mean() < 0.05
    assert np.isnan(fused.fused.values[:, ~marked.valid.values]).all()
    assert np.isnan(fused.fused.values[~scene.good.values]).all()
    assert fused.attrs["subject"] == "fused"


def test_a_scene_without_its_guide_is_refused(scene):
    with pytest.raises(Exception, match="radar"):
        lift(Fuse())(scene)


def test_windows_without_a_middle_are_refused():
    with pytest.raises(ValueError, match="middle"):
        Fuse(window=4)
