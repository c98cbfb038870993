"""Windows: tiling covers once, halos stay inside, cropping agrees with slicing."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeloom.pipeline.grids import Window, tile, whole

sizes = st.integers(1, 90)


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_tiles_cover_every_pixel_once(height, width, rows, cols):
    count = np.zeros((height, width), int)
    for window in tile((height, width), (rows, cols)):
        count[window.slices] += 1
    assert (count == 1).all()


@settings(deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 20))
def test_a_window_grown_by_its_halo_crops_back(height, width, edge, halo):
    array = np.arange(height * width).reshape(height, width)
    for window in tile((height, width), (edge, edge)):
        grown = window.expand(halo, (height, width))
        assert grown.row >= 0
        assert grown.stop[0] <= height
        assert np.array_equal(window.crop(array[grown.slices], grown), array[window.slices])


def test_cropping_outside_is_refused():
    with pytest.raises(ValueError, match="does not lie inside"):
        Window(0, 0, 5, 5).within(Window(1, 0, 5, 5))


def test_a_finer_grid_covers_the_same_ground():
    assert Window(2, 3, 4, 5).scaled(3) == Window(6, 9, 12, 15)
    assert Window(4, 8, 8, 5).scaled(Fraction(1, 4)) == Window(1, 2, 2, 2), "the last cell reaches beyond"
    assert Window(2, 4, 4, 2).scaled(Fraction(3, 2)) == Window(3, 6, 6, 3)
    assert whole((7, 9)).stop == (7, 9)
