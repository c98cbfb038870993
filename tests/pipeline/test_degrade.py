"""degrade: what a coarser sensor would have seen, against the sum written out."""

import numpy as np
import pytest

from cubeloom.errors import ConfigError
from cubeloom.pipeline.degrade import degrade, sigma_of

SCALES = [2, 3, 4]


def written_out(cube, scale, transfers, known):
    """Every coarse pixel as a sum over all fine ones, in float64."""
    bands, height, width = cube.shape
    made = np.full((bands, height // scale, width // scale), np.nan)
    rows, cols = np.arange(height), np.arange(width)
    for band in range(bands):
        sigma = scale / np.pi * np.sqrt(-2 * np.log(transfers[band]))
        there = known & np.isfinite(cube[band])
        values = np.where(there, cube[band], 0).astype(float)
        for y in range(made.shape[1]):
            for x in range(made.shape[2]):
                down = np.exp(-0.5 * ((rows - (scale * y + (scale - 1) / 2)) / sigma) ** 2)
                across = np.exp(-0.5 * ((cols - (scale * x + (scale - 1) / 2)) / sigma) ** 2)
                weight = np.outer(down, across)
                whole = (np.sqrt(2 * np.pi) * sigma) ** 2
                share = weight[there].sum() / whole
                if share >= 0.5 + 2e-3:
                    made[band, y, x] = (weight * values).sum() / weight[there].sum()
                elif share > 0.5 - 2e-3:
                    made[band, y, x] = np.inf  # too near to the bound to tell
    return made


@pytest.mark.parametrize("scale", SCALES)
def test_it_is_the_sum_written_out(scale):
    random = np.random.default_rng(scale)
    cube = random.random((4, 26, 31), np.float32)
    cube[1, random.random((26, 31)) < 0.3] = np.nan
    cube[2, 4:20, 5:22] = np.nan
    known = np.ones((26, 31), bool)
    known[:9, 20:] = False
    transfers = [0.15, 0.3, 0.35, 0.25]
    made, expected = degrade(cube, scale, transfers, known), written_out(cube, scale, transfers, known)
    told = np.isfinite(expected) | np.isnan(expected)
    assert told.mean() > 0.95
    np.testing.assert_allclose(made[told], expected[told], rtol=2e-4, atol=1e-5)
    assert np.isnan(made).any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("mtf", [0.15, 0.3, 0.5])
def test_a_wave_at_nyquist_keeps_its_share(scale, mtf):
    """Sampled so finely that the coarse grid's Nyquist wave has many samples: the blur alone is what is left of it."""
    fine = 8 * scale
    x = np.arange(40 * fine) + 0.5
    wave = np.cos(np.pi * x / fine)  # one period is two coarse pixels
    made = degrade(np.tile(wave, (40 * fine, 1)).astype(np.float32)[None, : 8 * fine], fine, mtf)[0]
    shifted = np.sin(np.pi * x / fine)  # its extremes at the centres of coarse pixels
    peaks = degrade(np.tile(shifted, (8 * fine, 1)).astype(np.float32)[None], fine, mtf)[0]
    np.testing.assert_allclose(np.abs(peaks[2:-2, 5:-5]), mtf, rtol=2e-3)
    np.testing.assert_allclose(made[2:-2, 5:-5], 0, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_corners_agree_and_missing_pixels_never_bleed(scale):
    y, x = np.mgrid[: 16 * scale, : 12 * scale].astype(np.float32)
    ramp = (0.02 * y - 0.01 * x)[None]
    made = degrade(ramp, scale)[0]
    coarse_y, coarse_x = np.mgrid[:16, :12] * scale + (scale - 1) / 2
    inner = (slice(4, -4),) * 2
    np.testing.assert_allclose(made[inner], (0.02 * coarse_y - 0.01 * coarse_x)[inner], rtol=1e-4, atol=1e-5)
    holes = np.random.default_rng(0).random(ramp.shape[1:]) < 0.2
    flat = np.where(holes, np.float32(1e20), np.float32(0.25))[None]
    made = degrade(flat, scale, known=~holes)
    assert np.isfinite(made).mean() > 0.95
    np.testing.assert_allclose(made[np.isfinite(made)], 0.25, rtol=1e-5)


def test_rows_that_fill_no_pixel_are_seen_by_the_blur_alone():
    cube = np.random.default_rng(1).random((1, 11, 14), np.float32)
    made = degrade(cube, 4)
    assert made.shape == (1, 2, 3)
    changed = cube.copy()
    changed[0, 8] += 1
    assert not np.allclose(degrade(changed, 4)[0, 1], made[0, 1])


def test_what_cannot_be_is_told():
    cube = np.zeros((2, 8, 8), np.float32)
    with pytest.raises(ConfigError, match=r"transfer at Nyquist is 1.2; expected a number above 0 and below 1"):
        degrade(cube, 2, 1.2)
    with pytest.raises(ConfigError, match=r"scale 2, 3 modulation transfers for 2 bands"):
        degrade(cube, 2, [0.3, 0.3, 0.3])
    assert sigma_of(0.3, 2) == pytest.approx(0.9878, abs=1e-3)
