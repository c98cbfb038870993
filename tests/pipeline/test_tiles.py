"""The lattice covers a scene with equal tiles, and blending them leaves no seam and no trace of the window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.tiles import Axis, Lattice, Tiling, blend, padded

tilings = st.builds(
    lambda multiple, count, overlap: Tiling(multiple * count, min(overlap, multiple * count // 2), multiple, 3),
    st.sampled_from([1, 2, 8]),
    st.integers(3, 12),
    st.integers(0, 20),
)
shapes = st.tuples(st.integers(1, 200), st.integers(1, 200))


@given(shapes, tilings)
@settings(max_examples=200, deadline=None)
def test_equal_tiles_cover_the_scene_and_overlap(shape, tiling):
    lattice = Lattice.of(shape, tiling)
    covered = np.zeros(shape, int)
    for number in range(len(lattice)):
        window = lattice.window(number)
        covered[window.slices] += 1
        assert window == window.overlap(whole(shape)), "a tile reaches beyond the scene"
    assert covered.min() == 1 if len(lattice) == 1 else covered.min() >= 1
    for axis in (lattice.rows, lattice.cols):
        assert axis.edge <= tiling.edge
        assert axis.edge % tiling.multiple == 0
        assert axis.starts[0] == 0
        for before, after in zip(axis.starts, axis.starts[1:], strict=False):
            assert before < after <= before + axis.edge - tiling.overlap
        if len(axis.starts) > 1:
            assert axis.span(len(axis.starts) - 1) == (axis.size - axis.edge, axis.size)


@given(st.integers(40, 3000))
@settings(max_examples=100, deadline=None)
def test_little_is_computed_twice(size):
    """Tiles of 256 px that overlap by 24: never much more than the overlap costs."""
    axis = Axis.fitted(size, 256, 24, 8)
    once = size + 24 * (len(axis.starts) - 1)
    assert len(axis.starts) * axis.edge <= once + 8 * len(axis.starts)


@given(shapes, tilings)
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one_and_none_is_zero(shape, tiling):
    lattice = Lattice.of(shape, tiling)
    total = np.zeros(shape)
    for number in range(len(lattice)):
        weights = lattice.weights(number, lattice.window(number))
        assert weights.min() > 0
        total[lattice.window(number).slices] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_weights_rise_across_the_overlap():
    axis = Axis.of(100, 60, 20)
    first, second = axis.weights
    assert axis.starts == (0, 40)
    np.testing.assert_allclose(first[40:], np.arange(20, 0, -1) / 21, rtol=1e-6)
    np.testing.assert_allclose(second[:20], np.arange(1, 21) / 21, rtol=1e-6)
    assert (first[:40] == 1).all()
    assert (second[20:] == 1).all()


def test_windows_that_overlap_several_times_sum_to_one():
    """Bands: 31 of 40, so that three windows of 31 hold some band."""
    axis = Axis.of(58, 31, 15)
    total = np.zeros(58)
    for number, weights in enumerate(axis.weights):
        total[slice(*axis.span(number))] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert Axis.of(31, 31, 15).starts == (0,)
    assert len(Axis.of(40, 31, 15).starts) == 2


@given(shapes, tilings, st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_of_the_blend_is_that_part_of_the_whole_to_the_last_bit(shape, tiling, data):
    lattice = Lattice.of(shape, tiling)
    random = np.random.default_rng(0)
    tiles = [random.normal(size=(2, *lattice.window(n).shape)).astype(np.float32) for n in range(len(lattice))]
    everything = blend(lattice, whole(shape), tiles.__getitem__)
    row, col = (data.draw(st.integers(0, size - 1)) for size in shape)
    window = Window(
        row, col, *(data.draw(st.integers(1, size - at)) for size, at in zip(shape, (row, col), strict=True))
    )
    touched = set()

    def tile(number):
        touched.add(number)
        return tiles[number]

    part = blend(lattice, window, tile)
    assert part.tobytes() == np.ascontiguousarray(everything[:, *window.slices]).tobytes()
    assert touched == set(lattice.touching(window))


def test_what_all_tiles_agree_on_comes_back():
    shape = (150, 131)
    lattice = Lattice.of(shape, Tiling(64, 16, 8, 1))
    image = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    blended = blend(lattice, whole(shape), lambda number: lattice.window(number).crop(image, whole(shape)))
    np.testing.assert_allclose(blended, image, atol=1e-6)


def test_tiles_that_disagree_meet_without_a_step():
    """Each tile has its own level: neighbours differ by 1, and from pixel to pixel the blend by a ramp's step."""
    shape, overlap = (40, 300), 24
    lattice = Lattice.of(shape, Tiling(64, overlap, 8, 1))
    levels = blend(
        lattice, whole(shape), lambda n: np.full((1, *lattice.window(n).shape), lattice.place(n)[1], np.float32)
    )
    assert levels.max() > 3
    assert np.abs(np.diff(levels, axis=2)).max() < 1.5 / (overlap + 1)


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_groups_hold_every_tile_once(at_once):
    lattice = Lattice.of((150, 131), Tiling(64, 16, 8, 1))
    groups = list(lattice.groups(at_once))
    assert [number for group in groups for number in group] == list(range(len(lattice)))
    assert max(map(len, groups)) == min(at_once, len(lattice))


def test_reflection_adds_below_and_right_and_changes_nothing():
    images = np.arange(2 * 3 * 5.0).reshape(2, 3, 5)
    grown = padded(images, (4, 8))
    np.testing.assert_array_equal(grown[:, :3, :5], images)
    np.testing.assert_array_equal(grown[:, 3, :5], images[:, 1])
    np.testing.assert_array_equal(grown[:, :3, 5:], images[:, :, 3:0:-1])
    assert padded(images, (3, 5)) is images
    assert padded(np.ones((1, 1, 1)), (4, 4)).shape == (1, 4, 4)


@given(shapes, st.sampled_from([2, 4, 16]), st.integers(2, 6), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_tiles_of_cells_begin_at_multiples_of_the_stride(shape, stride, count, overlap):
    """They cover every pixel, a window's blend is that of the whole, and cells are those of a coarser grid."""
    edge = stride * count
    lattice = Lattice.of(shape, Tiling(edge, min(overlap, edge // 2), stride, 1, stride=stride, exact=True))
    cells = tuple(-(-size // stride) for size in shape)
    assert lattice.shape == tuple(min(edge, size * stride) for size in cells)
    random = np.random.default_rng(0)
    images = [random.random((1, *lattice.cells(number).shape), np.float32) for number in range(len(lattice))]
    covered = np.zeros(shape, int)
    for number in range(len(lattice)):
        window = lattice.window(number)
        covered[window.slices] += 1
        assert window.row % stride == window.col % stride == 0
        assert images[number].shape[1:] == tuple(-(-size // stride) for size in window.shape)
    assert covered.min() >= 1
    blended = blend(lattice, whole(shape), images.__getitem__)
    assert blended.shape == (1, *cells)
    part = Window(0, 0, *(min(size, 3 * stride) for size in shape))
    np.testing.assert_array_equal(
        blend(lattice, part, images.__getitem__), part.coarsened(stride).crop(blended, whole(cells))
    )
