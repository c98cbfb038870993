"""Noise has the statistics it is specified by, and the same seed gives the same noise."""

import hashlib

import numpy as np
import pytest

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.simulate.noise import IMPULSE_DENSITIES, NOISES, PROTOCOL, SIGMAS, add_noise, noniid

BANDS, HEIGHT, WIDTH = 31, 96, 80


def clean(bands=BANDS, height=HEIGHT, width=WIDTH, seed=7):
    return np.random.default_rng(seed).uniform(0.2, 0.8, (bands, height, width)).astype(np.float32)


def both(name, cube, seed=0):
    """A noisy cube, and the same with the random noise of every band alone."""
    return add_noise(cube, name, np.random.default_rng(seed)), noniid(cube, np.random.default_rng(seed))


def test_the_names_are_those_of_the_protocol():
    nine = ["gaussian30", "gaussian50", "gaussian70", "blind", "noniid", "stripe", "deadline", "impulse", "mixture"]
    assert list(PROTOCOL) == nine
    assert list(NOISES) == [*nine, "finch", "enmap"]


@pytest.mark.parametrize("name", NOISES)
def test_a_seed_gives_one_cube_and_leaves_the_input_alone(name):
    cube = clean()
    before = cube.copy()
    first, again, other = (add_noise(cube, name, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.cube.dtype == np.float32
    assert first.cube.shape == first.struck.shape == cube.shape
    assert first.sigma.shape == (BANDS,)
    assert hashlib.sha256(first.cube).digest() == hashlib.sha256(again.cube).digest()
    assert np.array_equal(first.struck, again.struck)
    assert not np.array_equal(first.cube, other.cube)
    np.testing.assert_array_equal(cube, before)
    assert np.isfinite(first.cube).all()


@pytest.mark.parametrize("sigma", [30, 50, 70])
def test_gaussian_noise_is_white_normal_and_of_its_sigma(sigma):
    cube = clean()
    noisy = add_noise(cube, f"gaussian{sigma}", np.random.default_rng(0))
    noise = (noisy.cube - cube) / (sigma / 255)
    count = noise[0].size
    np.testing.assert_allclose(noisy.sigma, sigma / 255, rtol=1e-6)
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 1, atol=4 / np.sqrt(2 * count))
    np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0, atol=4 / np.sqrt(count))
    assert np.mean(np.abs(noise) < 1.96) == pytest.approx(0.95, abs=0.002)
    for axis in range(3):
        shifted = np.roll(noise, 1, axis=axis)
        assert abs(np.mean(noise * shifted)) < 4 / np.sqrt(noise.size)
    assert not noisy.struck.any()
    assert 10 * np.log10(1 / np.mean((noisy.cube - cube) ** 2.0)) == pytest.approx(20 * np.log10(255 / sigma), abs=0.05)


def test_blind_noise_has_one_sigma_a_cube_spread_over_the_range():
    cube = clean(4, 8, 8)
    sigmas = [add_noise(cube, "blind", np.random.default_rng(seed)).sigma for seed in range(200)]
    assert all(np.ptp(sigma) == 0 for sigma in sigmas)
    drawn = np.array([sigma[0] for sigma in sigmas]) * 255
    assert drawn.min() >= 10
    assert drawn.max() <= 70
    assert drawn.mean() == pytest.approx(40, abs=4 * 60 / np.sqrt(12 * 200))
    assert drawn.std() == pytest.approx(60 / np.sqrt(12), rel=0.15)


def test_noniid_noise_draws_each_band_from_the_four():
    cube = clean(400, 40, 40)
    noisy = add_noise(cube, "noniid", np.random.default_rng(0))
    levels, counts = np.unique(np.rint(noisy.sigma * 255), return_counts=True)
    assert tuple(levels) == SIGMAS
    assert counts.min() > 60
    np.testing.assert_allclose((noisy.cube - cube).std(axis=(1, 2)) / noisy.sigma, 1, atol=5 / np.sqrt(2 * 1600))


@pytest.mark.parametrize("bands", [31, 32, 224])
@pytest.mark.parametrize("width", [80, 33])
def test_stripes_are_offsets_of_whole_columns_in_a_third_of_the_bands(bands, width):
    cube = clean(bands, 24, width)
    noisy, random = both("stripe", cube)
    offset = noisy.cube - random.cube
    columns = np.abs(offset).max(axis=1) > 1e-6
    assert np.ptp(offset, axis=1).max() < 1e-6
    assert np.count_nonzero(columns.any(axis=1)) == round(bands / 3)
    counts = columns.sum(axis=1)[columns.any(axis=1)]
    assert counts.min() >= np.ceil(0.05 * width)
    assert counts.max() <= np.ceil(0.15 * width)
    values = offset[:, 0][columns]
    assert np.abs(values).max() <= 0.25 + 1e-6
    assert np.abs(values).max() > 0.2
    assert values.mean() == pytest.approx(0, abs=4 * 0.5 / np.sqrt(12 * values.size))
    np.testing.assert_array_equal(noisy.struck, np.repeat(columns[:, None], 24, axis=1))


def test_numbers_of_columns_reach_both_ends():
    counts = []
    for seed in range(60):
        struck = add_noise(clean(6, 2, 40), "deadline", np.random.default_rng(seed)).struck[:, 0]
        counts += [int(count) for count in struck.sum(axis=1) if count]
    assert {min(counts), max(counts)} == {2, 6}


def test_dead_lines_are_zero_and_nothing_else_changes():
    noisy, random = both("deadline", clean())
    assert (noisy.cube[noisy.struck] == 0).all()
    np.testing.assert_array_equal(noisy.cube[~noisy.struck], random.cube[~noisy.struck])
    whole = noisy.struck.all(axis=1)
    np.testing.assert_array_equal(whole, noisy.struck.any(axis=1))
    assert np.count_nonzero(whole.any(axis=1)) == 10


def test_impulses_are_salt_and_pepper_of_the_four_densities():
    cube = clean(90, 100, 100)
    noisy, random = both("impulse", cube)
    np.testing.assert_array_equal(noisy.cube[~noisy.struck], random.cube[~noisy.struck])
    values = noisy.cube[noisy.struck]
    assert set(np.unique(values)) == {0.0, 1.0}
    share = noisy.struck.mean(axis=(1, 2))
    hit = share[share > 0]
    assert hit.size == 30
    distance = np.abs(hit[:, None] - IMPULSE_DENSITIES)
    assert distance.min(axis=1).max() < 0.025
    assert set(distance.argmin(axis=1)) == {0, 1, 2, 3}
    assert values.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(values.size))
    # Single pixels, not columns: the shares of columns scatter as independent draws do.
    band = int(np.argmax(share))
    assert noisy.struck[band].mean(axis=0).std() < 0.08


@pytest.mark.parametrize("bands", [31, 32, 33, 224])
def test_mixture_strikes_every_band_at_most_once(bands):
    noisy, random = both("mixture", clean(bands, 40, 40))
    offset = np.where(noisy.struck, noisy.cube - random.cube, 0)
    struck = noisy.struck.any(axis=(1, 2))
    columns = noisy.struck.all(axis=1).any(axis=1)
    zero = np.array([(noisy.cube[b][noisy.struck[b]] == 0).all() for b in range(bands)])
    dead = struck & columns & zero
    stripes = struck & columns & ~zero
    impulses = struck & ~columns
    third = round(bands / 3)
    assert dead.sum() == stripes.sum() == third
    assert impulses.sum() == min(third, bands - 2 * third)
    assert np.abs(offset[stripes]).max() <= 0.25 + 1e-6
    assert set(np.unique(noisy.cube[impulses][noisy.struck[impulses]])) == {0.0, 1.0}
    np.testing.assert_array_equal(noisy.cube[~noisy.struck], random.cube[~noisy.struck])


def test_finch_is_bright_biased_and_clipped():
    cube = np.tile(np.linspace(0.2, 0.6, 100, dtype=np.float32), (12, 300, 1))
    noisy = add_noise(cube, "finch", np.random.default_rng(0))
    columns = noisy.struck.all(axis=(0, 1))
    assert 0.15 <= columns.mean() <= 0.3
    assert noisy.cube.min() >= 0
    assert noisy.cube.max() <= 1
    elsewhere = noisy.struck & ~columns
    values = noisy.cube[elsewhere]
    assert elsewhere.mean() / (~columns).mean() == pytest.approx(0.02, rel=0.1)
    assert set(np.unique(values)) == {np.float32(0), cube.max()}
    calm = ~noisy.struck & (cube > 0.45) & (cube < 0.55)  # far from both ends of the clipping
    noise = (noisy.cube - cube)[calm]
    assert noise.mean() == pytest.approx(0.05 * 0.6, abs=0.001)
    assert noise.std() == pytest.approx(0.10 * 0.6, rel=0.02)
    np.testing.assert_allclose(noisy.sigma, 0.06, rtol=1e-5)
    # A stripe raises its column in each band by an amount of its own; on average bright.
    raised = (noisy.cube - cube)[:, :, columns & (cube[0, 0] < 0.4)].mean(axis=1) - 0.03
    assert raised.min() > -0.03
    assert raised.mean() > 0.05


def test_enmap_noise_follows_signal_and_atmosphere():
    wavelengths = np.array([560.0, 1100.0, 1380.0, 2200.0, 2450.0])
    dark, bright = (np.full((5, 300, 60), value, np.float32) for value in (0.05, 0.5))
    low, high = (add_noise(cube, "enmap", np.random.default_rng(5), wavelengths) for cube in (dark, bright))
    assert (high.sigma[[0, 1, 3, 4]] > 1.2 * low.sigma[[0, 1, 3, 4]]).all()  # one severity: the seeds agree
    assert high.sigma[2] == pytest.approx(0.1)  # no light comes through at 1380 nm
    assert high.sigma[4] > 2 * high.sigma[1]
    # The noise that is in the cube is the noise that is told: down a column nothing else changes.
    spread = high.cube.std(axis=1)
    sound = ~high.struck.any(axis=1)
    for band in range(5):
        assert np.median(spread[band][sound[band]]) == pytest.approx(high.sigma[band], rel=0.05)


def test_enmap_gains_are_shared_in_part_by_the_bands_of_a_detector():
    wavelengths = np.concatenate([np.linspace(500, 800, 6), np.linspace(1050, 1250, 6)])
    noisy = add_noise(np.full((12, 2000, 64), 0.5, np.float32), "enmap", np.random.default_rng(1), wavelengths)
    sound = ~noisy.struck.any(axis=(0, 1))
    gains = noisy.cube.mean(axis=1)[:, sound] / 0.5 - 1
    scatter = gains.std(axis=1)
    assert ((scatter > 0.0015) & (scatter < 0.03)).all()
    together = np.corrcoef(gains)
    within = [*together[:6, :6][np.triu_indices(6, 1)], *together[6:, 6:][np.triu_indices(6, 1)]]
    assert np.mean(within) == pytest.approx(0.36, abs=0.15)
    assert abs(together[:6, 6:].mean()) < 0.15


def test_enmap_defects_are_few_and_whole_columns():
    shares = []
    for seed in range(20):
        noisy = add_noise(np.full((100, 6, 100), 0.5, np.float32), "enmap", np.random.default_rng(seed))
        np.testing.assert_array_equal(noisy.struck.all(axis=1), noisy.struck.any(axis=1))
        shares.append(noisy.struck.mean())
        stuck = np.isin(noisy.cube, np.array([0.02, 0.9], np.float32)).all(axis=1)
        assert not (stuck & ~noisy.struck[:, 0]).any()
    assert max(shares) < 0.006
    assert np.mean(shares) == pytest.approx(0.002, rel=0.5)


def test_enmap_takes_bands_in_any_order():
    wavelengths = np.linspace(420, 2450, 40)
    cube = np.full((40, 8, 8), 0.3, np.float32)
    up = add_noise(cube, "enmap", np.random.default_rng(0), wavelengths).sigma
    down = add_noise(cube, "enmap", np.random.default_rng(0), wavelengths[::-1]).sigma
    np.testing.assert_allclose(up, down[::-1], rtol=1e-6)
    np.testing.assert_array_equal(up, add_noise(cube, "enmap", np.random.default_rng(0)).sigma)


def test_wrong_calls_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"'stripes' is not known; expected one of gaussian30, .*enmap"):
        add_noise(clean(), "stripes", rng)
    with pytest.raises(InputError, match=r"\(band, y, x\); got an array of shape \(5, 5\)"):
        add_noise(np.zeros((5, 5)), "stripe", rng)
    with pytest.raises(InputError, match="3 wavelengths for 31 bands"):
        add_noise(clean(), "enmap", rng, np.array([500.0, 600.0, 700.0]))


def test_one_band_is_enough():
    for name in NOISES:
        assert add_noise(clean(1, 12, 12), name, np.random.default_rng(0)).cube.shape == (1, 12, 12)
