"""Denoising: what it gains, what it leaves alone, and that neither blocks nor masked numbers show in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import minimum_filter

from cubeloom.errors import InputError
from cubeloom.pipeline import metrics
from cubeloom.pipeline.blocks import measure_block, plan_chain, run_chain
from cubeloom.pipeline.grids import STATISTICS_BLOCK, tile
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import QUALITY_FLAGS, defect_variable, scene_from, spec_of
from cubeloom.pipeline.stages import inpaint, wavelets
from cubeloom.pipeline.stages.base import NO_STATS, add_stats
from cubeloom.pipeline.stages.denoise import Denoise
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.pipeline.stages.subspace import Subspace, estimate_subspace, exact_product, noise_variance

BANDS = 48


def process(scene, *stages, size=STATISTICS_BLOCK):
    """All variables that a chain of stages makes of a scene, in blocks of `size` px, and the stages' statistics."""
    source = SceneSource(scene, spec_of(scene))
    specs, stats = plan_chain(source.spec, stages), [NO_STATS] * len(stages)
    for step, stage in enumerate(stages):
        for number in range(stage.passes):
            total = NO_STATS
            for core in tile(source.spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)):
                total = add_stats(total, measure_block(source, stages, specs, stats, core, step, number))
            stats[step] = stage.settle(total, stats[step], number, specs[step])
    made = {name: np.empty(specs[-1].sizes(name), specs[-1].variables[name].encoding.decoded_dtype)
            for name in specs[-1].variables}  # fmt: skip
    for core in tile(source.spec.shape, (size, size)):
        block = run_chain(source, stages, specs, stats, core)[-1]
        for name, array in made.items():
            array[(..., *core.slices)] = block[name]
    return made, stats


def landscape(shape, bands, seed=0, parts=10):
    """A clean cube in [0, 1]: patches and smooth gradients of `parts` smooth spectra, under uneven light."""
    random = np.random.default_rng(seed)
    at = np.linspace(0, 1, bands)
    knots = np.cumsum(random.normal(0, 0.25, (parts, 9)), axis=1)
    spectra = np.stack([np.interp(at, np.linspace(0, 1, 9), k - k.min() + 0.1) for k in knots])
    spectra -= 0.3 * spectra * np.exp(-(((at - random.uniform(0.1, 0.9, (parts, 1))) / 0.03) ** 2))
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    seeds = random.uniform(0, 1, (60, 2)) * shape
    nearest = np.argmin((rows[..., None] - seeds[:, 0]) ** 2 + (cols[..., None] - seeds[:, 1]) ** 2, axis=-1)
    patches = np.eye(parts)[random.integers(0, parts, 60)][nearest]
    waves = np.stack([np.sin(rows / a + p) * np.cos(cols / b) for a, b, p in random.uniform(6, 40, (parts, 3))], -1)
    share = np.exp(2 * patches + 0.6 * waves)
    share /= share.sum(axis=-1, keepdims=True)
    cube = np.einsum("yxp,pb->byx", share * (1 + 0.2 * np.sin(rows / 25 + cols / 35))[..., None], spectra)
    return (cube - cube.min()) / (cube.max() - cube.min())


@pytest.fixture
def noisy(make_scene):
    """A scene, its clean cube, and band-dependent noise of about 5 % in it; every band good but one."""
    clean = landscape((150, 140), BANDS).astype(np.float32)
    scene = make_scene(height=150, width=140, bands=BANDS)
    sigma = np.random.default_rng(1).uniform(0.02, 0.08, (BANDS, 1, 1))
    noise = sigma * np.random.default_rng(2).standard_normal(clean.shape)
    scene["reflectance"].values[:] = clean + noise
    scene["quality"].values[:] = 0
    return scene, clean, sigma[:, 0, 0]


def test_noise_falls_and_spectra_keep_their_shape(noisy):
    scene, clean, sigma = noisy
    good = scene["good"].values
    made, (stats,) = process(scene, Denoise(method="subspace"))
    before, after = scene["reflectance"].values[good], made["denoised"][good]
    gain = metrics.psnr(clean[good], after, 1.0) - metrics.psnr(clean[good], before, 1.0)
    assert gain > 10
    assert metrics.sam(clean[good], after) < 0.3 * metrics.sam(clean[good], before)
    np.testing.assert_allclose(stats["sigma"], sigma[good], rtol=0.1)
    assert np.isnan(made["denoised"][~good]).all()
    np.testing.assert_array_equal(made["reflectance"], scene["reflectance"].values)


def test_shrinkage_beats_the_projection_alone(noisy):
    scene, clean, _ = noisy
    good = scene["good"].values
    stages = {s: Denoise(method="subspace", strength=s) for s in (0, 1, 4)}
    error = {s: metrics.rmse(clean[good], process(scene, stage)[0]["denoised"][good]) for s, stage in stages.items()}
    assert error[1] < 0.8 * error[0]
    assert error[1] < error[4]


def test_a_scene_without_noise_stays_as_it_is(noisy):
    scene, clean, _ = noisy
    scene["reflectance"].values[:] = clean
    good = scene["good"].values
    made, _ = process(scene, Denoise(method="subspace"))
    assert np.abs(made["denoised"][good] - clean[good]).max() < 2e-3


def test_block_size_does_not_show(make_scene):
    scene = make_scene(height=300, width=280, bands=12)
    scene["reflectance"].values[2:5, 100:103, 60:200] = np.nan
    expected, _ = process(scene, Mask(), Denoise(method="subspace"))
    for size in (300, 128, 71):
        made, _ = process(scene, Mask(), Denoise(method="subspace"), size=size)
        np.testing.assert_array_equal(made["denoised"], expected["denoised"])


def test_masked_numbers_do_not_show(make_scene):
    scene = make_scene(height=300, width=120, bands=12)
    scene["quality"].values[60:90, 30:90] = QUALITY_FLAGS["cloud"]
    expected, _ = process(scene, Mask(), Denoise(method="subspace"))
    masked = ~expected["valid"]
    assert np.isnan(expected["denoised"][:, masked]).all()
    assert np.isfinite(expected["denoised"][scene["good"].values][:, ~masked]).all()
    for junk in (np.nan, np.inf, -32768.0, 1e30):
        scene["reflectance"].values[:, masked] = junk
        made, _ = process(scene, Mask(), Denoise(method="subspace"))
        np.testing.assert_array_equal(made["denoised"], expected["denoised"])


def test_missing_bands_come_from_the_others(noisy):
    scene, clean, sigma = noisy
    holes = np.random.default_rng(5).random(clean.shape) < 0.002
    holes[10:14, 70:75, 20:60] = True
    with_defects = spec_of(scene).with_variables(defect=defect_variable())
    cube = scene["reflectance"].values.copy()
    cube[holes] = 9.0
    damaged = scene_from(with_defects, {"reflectance": cube, "quality": scene["quality"].values, "defect": holes})
    made, _ = process(damaged, Denoise(method="subspace"))
    at = holes & scene["good"].values[:, None, None]
    error = np.sqrt(np.mean((made["denoised"][at] - clean[at]) ** 2))
    assert error < 0.5 * sigma.mean()
    again = {name: damaged[name].values.copy() for name in damaged.data_vars}
    again["reflectance"][holes] = np.nan
    unmarked = {**again, "defect": np.zeros_like(holes)}
    for arrays in (again, unmarked):
        np.testing.assert_array_equal(
            process(scene_from(with_defects, arrays), Denoise(method="subspace"))[0]["denoised"], made["denoised"]
        )


def test_noise_that_resampling_has_correlated(noisy):
    scene, clean, _ = noisy
    good = scene["good"].values
    noise = np.random.default_rng(7).normal(0, 0.08, (BANDS, 151, 141))
    smooth = (noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]) / 4
    scene["reflectance"].values[:] = clean + smooth
    projected, denoised = (process(scene, Denoise(method="subspace", strength=s))[0]["denoised"][good] for s in (0, 1))
    assert metrics.rmse(clean[good], denoised) < 0.85 * metrics.rmse(clean[good], projected)


@pytest.mark.shared
def test_a_real_scene_keeps_its_features(shared_data):
    """EnMAP over Potsdam: what is taken out is no more than noise, has no bias, and nothing comes out of nodata."""
    from cubeloom.pipeline.readers.base import to_scene
    from cubeloom.pipeline.readers.open import open_source

    products = sorted((shared_data / "enmap_potsdam_product").glob("ENMAP01-*"))
    if not products:
        pytest.skip(f"no EnMAP product in {shared_data / 'enmap_potsdam_product'}")
    scene = to_scene(open_source(products[0])).compute()
    good, wavelength = scene["good"].values, scene["wavelength"].values
    made, (_, stats) = process(scene, Mask(), Denoise(method="subspace"))
    before, after = made["reflectance"][good], made["denoised"][good]
    valid = made["valid"]
    np.testing.assert_array_equal(np.isfinite(after).all(axis=0), valid)
    residual = (before - after) / stats["sigma"][:, None, None]
    assert np.nanmax(np.sqrt(np.nanmean(residual**2, axis=(1, 2)))) < 1.5
    assert np.nanmax(np.abs(np.nanmean(residual, axis=(1, 2)))) < 0.02
    edge = valid & ~minimum_filter(valid, 5)
    inner = valid & ~edge
    assert np.std(residual[:, edge]) < 1.1 * np.std(residual[:, inner])
    red, near = (int(np.argmin(np.abs(wavelength[good] - nm))) for nm in (670, 780))
    rise = [cube[near, valid] - cube[red, valid] for cube in (before, after)]
    assert np.corrcoef(rise)[0, 1] > 0.999


def test_too_few_complete_pixels_name_the_worst_band(make_scene):
    scene = make_scene(height=40, width=40, bands=12, background=5)
    scene["reflectance"].values[3].flat[20:] = np.nan
    with pytest.raises(InputError, match=r"band 4 .* has the fewest values"):
        process(scene, Denoise(method="subspace"))
    with pytest.raises(InputError, match="11 good bands and rank 12"):
        Denoise(method="subspace", rank=12).plan(spec_of(scene))


def test_regression_noise_is_that_of_every_band_on_the_others():
    random = np.random.default_rng(0)
    spectra = random.normal(size=(400, 3)) @ random.normal(size=(3, 9)) + random.normal(0, 0.1, (400, 9))
    spectra -= spectra.mean(axis=0)
    expected = []
    for band in range(9):
        others = np.delete(spectra, band, axis=1)
        solution = np.linalg.lstsq(others, spectra[:, band], rcond=None)[0]
        expected.append(np.sum((spectra[:, band] - others @ solution) ** 2) / (400 - 9))
    np.testing.assert_allclose(noise_variance(spectra.T @ spectra / 400, 400), expected, rtol=1e-6)


def test_rank_and_noise_of_a_known_subspace():
    random = np.random.default_rng(0)
    sigma = random.uniform(0.5, 2, 20)
    spectra = random.normal(0, 10, (20000, 4)) @ random.normal(size=(4, 20)) + 7 + random.normal(0, sigma, (20000, 20))
    for rule in ("auto", "hysime"):
        signal, noise = estimate_subspace(spectra.sum(axis=0), spectra.T @ spectra, 20000, 0.0, rule)
        assert signal.basis.shape == (20, 4)
        np.testing.assert_allclose(signal.sigma, sigma, rtol=0.05)
        np.testing.assert_allclose(noise.variance, 1, atol=0.1)


def test_gaps_are_filled_by_weighted_least_squares():
    random = np.random.default_rng(4)
    basis = np.linalg.qr(random.normal(size=(12, 3)))[0]
    subspace = Subspace(random.normal(size=12), random.uniform(0.5, 2, 12), basis, np.array([50.0, 20.0, 5.0]))
    spectra, observed = random.normal(0, 4, (12, 30)), random.random((12, 30)) < 0.6
    found = subspace.project(spectra, observed)
    for pixel, seen in enumerate(observed.T):
        part = basis[seen] / 1
        value = ((spectra[:, pixel] - subspace.mean) / subspace.sigma)[seen]
        stacked = np.vstack([part, np.diag(1 / np.sqrt(subspace.variance - 1))])
        expected = np.linalg.lstsq(stacked, np.concatenate([value, np.zeros(3)]), rcond=None)[0]
        np.testing.assert_allclose(found[:, pixel], expected, atol=5e-3)


def test_products_are_exact_in_any_order():
    random = np.random.default_rng(0)
    matrix = np.linalg.qr(random.normal(size=(224, 224)))[0][:40]
    values = random.normal(0, 3000, (224, 500))
    product = exact_product(matrix, values)
    shuffled = random.permutation(224)
    np.testing.assert_array_equal(exact_product(matrix[:, shuffled], values[shuffled]), product)
    for pixel in range(0, 500, 61):
        np.testing.assert_array_equal(exact_product(matrix, values[:, [pixel]])[:, 0], product[:, pixel])
    np.testing.assert_allclose(product, matrix @ values, atol=0.05)


def test_wavelets_invert_and_meet_white_noise_at_its_known_size():
    image = np.random.default_rng(0).standard_normal((200, 180)).astype(np.float32)
    reach = wavelets.REACH
    np.testing.assert_allclose(
        wavelets.synthesise(*wavelets.analyse(image)), image[reach:-reach, reach:-reach], atol=5e-6
    )
    sums = wavelets.energies(image, wavelets.Counted(np.ones((170, 150), bool)))
    np.testing.assert_allclose(sums[:3, :, 0] / sums[:3, :, 1], 1, atol=0.12)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    lower=st.floats(0.1, 5),
    ratio=st.sampled_from([1.5, 3.0, np.inf]),
)
def test_firm_shrinkage_follows_its_formula(values, lower, ratio):
    upper = lower * ratio
    x = np.array(values, np.float32)
    for value, got in zip(x.tolist(), wavelets.firm(x, lower, upper).tolist(), strict=True):
        size = abs(value)
        middle = size - lower if np.isinf(upper) else upper * (size - lower) / (upper - lower)
        expected = 0.0 if size <= lower else value if size >= upper else np.sign(value) * middle
        assert got == pytest.approx(expected, abs=1e-4)


def test_thresholds_have_the_least_true_error():
    random = np.random.default_rng(0)
    truth = np.where(random.random(200_000) < 0.1, random.normal(0, 8, 200_000), 0)
    seen = (truth + random.standard_normal(200_000)).astype(np.float32)
    magnitudes = np.minimum(np.abs(seen) * wavelets.BINS_PER_SIGMA, wavelets.BINS).astype(int)
    counts = np.bincount(magnitudes, minlength=wavelets.BINS + 1)
    chosen = wavelets.best_thresholds(counts, 1.0)

    def error(lower, upper):
        return np.mean((wavelets.firm(seen, lower, upper) - truth) ** 2)

    tried = [error(t, t * r) for t in np.arange(0.25, 6, 0.25) for r in (1.5, 2, 3, 5, np.inf)]
    assert error(*chosen) < 1.01 * min(tried)


def test_fill_follows_its_surroundings_and_ends_at_its_reach():
    image = np.full((60, 60), 5.0, np.float32)
    known = np.zeros((60, 60), bool)
    known[:, :20] = True
    image[~known] = np.nan
    filled = inpaint.inpaint(image, known)
    np.testing.assert_allclose(filled[:, : 20 + inpaint.REACH], 5, rtol=1e-6)
    assert (filled[:, 20 + inpaint.REACH :] == 0).all()
