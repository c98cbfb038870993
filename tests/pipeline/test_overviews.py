"""Overview values, against a plain computation pixel by pixel."""

import numpy as np
import pytest

from cubeloom.pipeline.encoding import CLASSES, PROBABILITY, REFLECTANCE, Encoding
from cubeloom.pipeline.overviews import AT_ONCE, halve
from cubeloom.pipeline.scene import Variable

INT16 = Variable(("band", "y", "x"), REFLECTANCE)
FILL = -32768


def plain_mean(level: np.ndarray, fill: int) -> np.ndarray:
    """Means of two by two in exact integers, halves rounded up; an odd edge counts its pixels twice."""
    bands, height, width = level.shape
    out = np.empty((bands, -(-height // 2), -(-width // 2)), level.dtype)
    for band, row, col in np.ndindex(out.shape):
        square = [
            int(level[band, min(2 * row + i, height - 1), min(2 * col + j, width - 1)]) for i in (0, 1) for j in (0, 1)
        ]
        known = [value for value in square if value != fill]
        out[band, row, col] = (2 * sum(known) + len(known)) // (2 * len(known)) if known else fill
    return out


def cubes(generator: np.random.Generator, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """What packed cubes may hold: extremes, no fill, fill alone, an edge of fill in all bands, fill here and there."""
    values = generator.integers(-32767, 32768, shape, dtype=np.int16)
    edge = values.copy()
    edge[:, np.add.outer(np.arange(shape[1]), np.arange(shape[2])) < shape[2]] = FILL
    return {
        "values": values,
        "fill": np.full(shape, FILL, np.int16),
        "edge": edge,
        "some": np.where(generator.random(shape) < 0.3, np.int16(FILL), values),
        "extremes": generator.choice(np.array([FILL, -32767, -1, 0, 1, 32767], np.int16), shape),
        "one band": np.where(np.arange(shape[0])[:, None, None] == 1, np.int16(FILL), values),
        "highest": np.full(shape, 32767, np.int16),
        "lowest": np.full(shape, -32767, np.int16),
    }


@pytest.mark.parametrize("size", [(24, 30), (23, 30), (24, 31), (25, 27), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_packed_numbers_are_averaged_without_fill(size, seed):
    for name, cube in cubes(np.random.default_rng(seed), (3, *size)).items():
        assert np.array_equal(halve(cube, INT16), plain_mean(cube, FILL)), name


def test_a_part_of_a_larger_array_is_averaged_as_its_copy():
    """Blocks are cut out of larger ones, at odd columns too, and may lie in any order."""
    cube = cubes(np.random.default_rng(0), (3, 40, 41))["some"]
    for part in (cube[:, 3:27, 5:31], cube[1:, ::2, 1:30], cube[:, :, 1:], cube[..., ::2], cube.transpose(0, 2, 1)):
        assert np.array_equal(halve(part, INT16), plain_mean(part.copy(), FILL))


def test_bands_that_are_taken_in_turns_all_come_out():
    edge = 2 * int(np.sqrt(AT_ONCE / 8))  # two bands fit at once
    cube = np.broadcast_to(np.arange(5, dtype=np.int16)[:, None, None], (5, edge, edge)).copy()
    assert np.array_equal(halve(cube, INT16), cube[:, ::2, ::2])


@pytest.mark.parametrize(
    "encoding", [PROBABILITY, Encoding("uint16", 1e-4, 0), Encoding("int32", 1e-4, -(2**31)), Encoding("int8", 0.1, 7)]
)
def test_every_packed_type_is_averaged_exactly(encoding):
    generator, fill = np.random.default_rng(4), int(encoding.fill)
    info = np.iinfo(encoding.dtype)
    cube = generator.integers(info.min, info.max, (3, 12, 14), encoding.dtype, endpoint=True)
    cube[generator.random(cube.shape) < 0.3] = fill
    assert np.array_equal(halve(cube, Variable(("class", "y", "x"), encoding)), plain_mean(cube, fill))


def test_a_packed_layer_is_averaged_as_a_cube_of_one_band():
    layer = cubes(np.random.default_rng(5), (1, 9, 11))["some"][0]
    assert np.array_equal(halve(layer, Variable(("y", "x"), REFLECTANCE)), plain_mean(layer[None], FILL)[0])


def test_packed_numbers_without_a_fill_are_all_averaged():
    cube = np.random.default_rng(6).integers(0, 256, (2, 8, 8), np.uint8)
    out = halve(cube, Variable(("band", "y", "x"), Encoding("uint8", 0.01)))
    assert np.array_equal(out, plain_mean(cube, -1))


def test_codes_are_never_averaged():
    codes = np.array([[1, 7, 4, 4], [7, 1, 1, 7]], np.uint8)
    assert halve(codes, Variable(("y", "x"), CLASSES)).tolist() == [[1, 4]]


def test_of_four_codes_the_commonest_is_taken_and_the_first_of_equals():
    """All fours of four codes at once."""
    fours = np.indices((4, 4, 4, 4)).reshape(4, -1)
    level = fours.reshape(2, 2, -1).transpose(0, 2, 1).reshape(2, -1).astype(np.uint8)
    expected = [max(four, key=lambda code, four=four: four.count(code)) for four in fours.T.tolist()]
    assert halve(level, Variable(("y", "x"), CLASSES)).tolist() == [expected]
