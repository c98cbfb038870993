"""A model gets its bands untouched where the scene has them, mixed where it covers them, and never by guess."""

import numpy as np
import pytest

from cubeloom.errors import ModelError
from cubeloom.pipeline.binding import bind
from cubeloom.pipeline.scene import Bands


def bands(wavelength, good=None, preferred=None) -> Bands:
    n = len(wavelength)
    return Bands(
        number=np.arange(1, n + 1),
        wavelength=np.asarray(wavelength, float),
        fwhm=np.full(n, 10.0),
        detector=np.full(n, ""),
        good=np.ones(n, bool) if good is None else good,
        preferred=np.ones(n, bool) if preferred is None else preferred,
    )


SCENE = np.arange(420.0, 2450.0, 8.0)


def test_the_same_bands_are_taken_by_index_and_untouched():
    picked = np.array([3, 50, 51, 200])
    binding = bind(bands(SCENE), SCENE[picked] + 0.9, np.full(4, 10.0))
    assert str(binding) == "by index"
    cube = np.random.default_rng(0).random((SCENE.size, 4, 5), np.float32)
    np.testing.assert_array_equal(binding.apply(cube), cube[picked])


def test_of_two_bands_as_near_the_preferred_one_is_taken():
    preferred = np.array([True, False, True, True])
    binding = bind(bands([900, 910, 910, 920], preferred=preferred), np.array([910.0]), np.array([10.0]))
    assert binding.index.tolist() == [2]


def test_other_bands_are_mixed():
    wanted = np.array([600.0, 1611.0])
    binding = bind(bands(SCENE), wanted, np.array([20.0, 90.0]))
    assert str(binding) == "resampled by response"
    line = np.broadcast_to((SCENE / 5000)[:, None], (SCENE.size, 3)).astype(np.float32)
    np.testing.assert_allclose(binding.apply(line), np.repeat(wanted[:, None] / 5000, 3, axis=1), rtol=1e-5)


def test_two_wanted_bands_never_share_one():
    wanted = np.array([499.6, 500.4])
    assert bind(bands(SCENE), wanted, np.full(2, 10.0)).index is None


def test_a_bad_band_is_replaced_by_its_neighbours_or_refused():
    good = np.ones(SCENE.size, bool)
    good[100] = False
    assert bind(bands(SCENE, good), SCENE[[100]], np.array([10.0])).index is None
    good[95:106] = False
    with pytest.raises(ModelError, match=r"wants 2 bands, of which 1 lie where .* 1220.0 nm.*between 420.0 and 2444.0"):
        bind(bands(SCENE, good), SCENE[[50, 100]], np.full(2, 10.0))


def test_bands_out_of_range_are_refused():
    with pytest.raises(ModelError, match=r"3000\.0, 3100\.0 nm"):
        bind(bands(SCENE), np.array([500.0, 3000.0, 3100.0]), np.full(3, 10.0))
    with pytest.raises(ModelError, match="none can be resampled"):
        bind(bands(SCENE, np.zeros(SCENE.size, bool)), np.array([500.0]), np.array([10.0]))
