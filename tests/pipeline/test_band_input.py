"""A network gets its card's bands: by number where they are its sensor's, by response else, without gaps."""

import numpy as np
import pytest

from cubeloom.errors import ModelError
from cubeloom.models.cards import Card, InputBands
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.scene import Bands


def axis(wavelengths, fwhm=12.0, numbers=None, good=None) -> Bands:
    size = len(wavelengths)
    return Bands(
        number=np.arange(1, size + 1) if numbers is None else numbers,
        wavelength=wavelengths,
        fwhm=np.full(size, fwhm),
        detector=np.full(size, ""),
        good=np.ones(size, bool) if good is None else good,
        preferred=np.ones(size, bool),
    )


def card(wavelengths, fwhm=12.0, numbers=(), **fields) -> Card:
    size = len(wavelengths)
    told = InputBands(numbers=tuple(numbers), wavelengths_nm=tuple(wavelengths), fwhm_nm=(fwhm,) * size)
    return Card(name="x", family="x", bands=size, input_bands=told, **fields)


def cube_of(size, seed=0, shape=(7, 6)):
    return np.random.default_rng(seed).uniform(0.1, 0.6, (size, *shape)).astype(np.float32)


CENTRES = np.arange(450.0, 1050.0, 10.0)
ALL = np.ones((7, 6), bool)


def test_bands_of_the_cards_sensor_go_in_by_number_untouched():
    """Numbers out of order, wavelengths shifted by a smile: what counts is the number."""
    numbers = np.random.default_rng(0).permutation(60) + 1
    scene, wanted = axis(CENTRES + 1.7, numbers=numbers), numbers[[2, 5, 40, 59]]
    found = BandInput.of(card(CENTRES[[2, 5, 40, 59]], numbers=wanted), scene)
    cube = cube_of(60)
    np.testing.assert_array_equal(found.apply(cube, ALL), cube[[2, 5, 40, 59]])
    assert (found.how, found.filled, found.describe()) == ("by number", (), "by number")


def test_numbers_of_another_sensor_mean_nothing():
    """The same numbers at other wavelengths: bands are found by wavelength where they agree, else by response."""
    wanted = card(CENTRES[10:50], numbers=range(1, 41))
    assert BandInput.of(wanted, axis(CENTRES)).how == "by wavelength"
    cube = cube_of(60)
    np.testing.assert_array_equal(BandInput.of(wanted, axis(CENTRES)).apply(cube, ALL), cube[10:50])
    shifted = BandInput.of(wanted, axis(CENTRES + 4))
    assert shifted.how == "resampled by response"
    ramp = np.broadcast_to((CENTRES + 4).astype(np.float32)[:, None, None], (60, 7, 6))
    np.testing.assert_allclose(shifted.apply(ramp, ALL)[:, 0, 0], CENTRES[10:50], atol=0.6)


def test_channels_are_standardised_by_the_card():
    mean, std = np.linspace(0.1, 0.4, 60), np.linspace(0.05, 0.2, 60)
    told = card(CENTRES, numbers=range(1, 61), mean=tuple(mean), std=tuple(std))
    cube = cube_of(60)
    expected = (cube - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(BandInput.of(told, axis(CENTRES)).apply(cube, ALL), expected, atol=1e-5)


@pytest.mark.parametrize("numbers", [range(1, 61), ()])
def test_bad_and_missing_bands_are_interpolated_and_named(numbers):
    """One is flagged, one left out; their numbers never show. The neighbours stay as they are."""
    good = np.ones(60, bool)
    good[20] = False
    kept = np.delete(np.arange(60), 41)
    scene = axis(CENTRES, good=good).take(kept)
    found = BandInput.of(card(CENTRES, numbers=numbers), scene)
    assert found.filled == (20, 41)
    assert found.describe().endswith("2 interpolated (650.0, 860.0 nm)")
    cube = cube_of(60)
    made = found.apply(cube[kept], ALL)
    other = np.delete(np.arange(60), [20, 41])
    np.testing.assert_allclose(made[other], cube[other], atol=1e-6)
    for channel in (20, 41):
        np.testing.assert_allclose(made[channel], (cube[channel - 1] + cube[channel + 1]) / 2, atol=1e-6)
    cube[20] = np.inf
    np.testing.assert_array_equal(found.apply(cube[kept], ALL), made)


def test_gaps_of_single_pixels_are_interpolated_up_to_a_half():
    told = card(CENTRES, numbers=range(1, 61))
    found = BandInput.of(told, axis(CENTRES))
    cube = cube_of(60)
    ragged = cube.copy()
    rng = np.random.default_rng(1)
    holes = rng.random((60, 7, 6)) < 0.3
    ragged[holes] = rng.choice([np.nan, np.inf, -np.inf], holes.sum())
    made, known = found.prepared(ragged, ALL)
    assert known.all()
    for row, col in np.ndindex(7, 6):
        hole = holes[:, row, col]
        expected = cube[:, row, col].copy()
        expected[hole] = np.interp(CENTRES[hole], CENTRES[~hole], expected[~hole])
        np.testing.assert_allclose(made[:, row, col], expected, atol=1e-6)
    ragged[:31, 3, 3] = np.nan
    assert not found.prepared(ragged, ALL)[1][3, 3]


def test_what_takes_no_part_holds_the_nearest_spectrum_that_does():
    found = BandInput.of(card(CENTRES, numbers=range(1, 61), mean=(0.3,) * 60, std=(0.1,) * 60), axis(CENTRES))
    cube, valid = cube_of(60), ALL.copy()
    valid[:, 3:] = False
    expected = found.apply(cube, valid)
    np.testing.assert_array_equal(expected[:, :, 3:], expected[:, :, 2:3].repeat(3, axis=2))
    for junk in (np.nan, np.inf, -32768.0, 1e30):
        cube[:, ~valid] = junk
        np.testing.assert_array_equal(found.apply(cube, valid), expected)
    assert (found.apply(cube, np.zeros_like(valid)) == 0).all()


@pytest.mark.parametrize("numbers", [range(1, 61), ()])
def test_bands_out_of_range_are_refused_by_name(numbers):
    wanted = card(CENTRES, numbers=numbers)
    with pytest.raises(
        ModelError, match=r"60 bands, of which 10 are out of range.*: 950\.0, .* 1020\.0, \.\.\. nm.*45"
    ):
        BandInput.of(wanted, axis(CENTRES).take(np.arange(45)))
    every_third = axis(CENTRES, fwhm=4.0).take(np.arange(0, 60, 3))
    with pytest.raises(ModelError, match=r"\d+ are out of range.*20 good bands between 450\.0 and 1020\.0 nm"):
        BandInput.of(wanted, every_third)
    with pytest.raises(ModelError, match=r"no good band|can be resampled"):
        BandInput.of(wanted, axis(CENTRES, good=np.zeros(60, bool)))


def test_a_card_that_names_no_bands_is_refused():
    with pytest.raises(ModelError, match="its card has no input_bands"):
        BandInput.of(Card(name="x", family="x"), axis(CENTRES))
