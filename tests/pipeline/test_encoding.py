"""Packing keeps values to half a count, never wraps, and never makes a value of "no value"."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cubeloom.pipeline.encoding import PROBABILITY, REFLECTANCE


@given(hnp.arrays(np.float32, 40, elements=st.floats(-5, 5, width=32) | st.just(float("nan"))))
def test_reflectance_survives_to_half_a_count(values):
    packed, clipped = REFLECTANCE.encode(values)
    back = REFLECTANCE.decode(packed)
    inside = np.abs(np.nan_to_num(values)) <= 3.2767
    assert np.array_equal(np.isnan(values), packed == -32768)
    assert np.nanmax(np.abs(back - values)[inside], initial=0) <= 0.5e-4 * 1.01
    assert clipped == np.count_nonzero(np.abs(np.rint(np.nan_to_num(values).astype(float) * 1e4)) > 32767)


def test_out_of_range_is_clipped_and_counted():
    packed, clipped = REFLECTANCE.encode(np.array([9.0, -9.0, np.inf, -np.inf, 0.1], np.float32))
    assert packed.tolist() == [32767, -32767, 32767, -32767, 1000]
    assert clipped == 4


def test_every_packed_number_comes_back_as_itself():
    counts = np.arange(-32767, 32768, dtype=np.int16)
    assert np.array_equal(REFLECTANCE.encode(REFLECTANCE.decode(counts))[0], counts)
    levels = np.arange(255, dtype=np.uint8)
    assert np.array_equal(PROBABILITY.encode(PROBABILITY.decode(levels))[0], levels)
