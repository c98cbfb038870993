"""Coarser levels of a variable: each pixel stands for two by two of the finer level."""

import math

import numpy as np

from .encoding import Array
from .grids import Shape
from .scene import Variable

SMALLEST = 512
"""A level whose longer side is no more than this, px, gets no coarser one."""

AT_ONCE = 2**19
"""Values halved together, in whole bands: their sums stay in the processor's cache."""

_HALF = 2**14
"""Two int16 below it, and not below its negative, add up to an int16."""


def overview_factors(shape: Shape) -> list[int]:
    """Factors 2, 4, ... of the overviews of a grid, until one is small enough to be looked at whole."""
    factors = []
    factor = 1
    while -(-max(shape) // factor) > SMALLEST:
        factor *= 2
        factors.append(factor)
    return factors


def halve(level: Array, variable: Variable) -> Array:
    """The next coarser level, `(..., ceil(y / 2), ceil(x / 2))`.

    Numbers are averaged over the values that are not fill; flags and classes take the commonest of the four (the
    first among equals), since the mean of two codes means nothing.
    """
    height, width = level.shape[-2:]
    if height % 2 or width % 2:
        level = np.pad(level, [(0, 0)] * (level.ndim - 2) + [(0, height % 2), (0, width % 2)], mode="edge")
    if level.strides[-1] != level.itemsize:  # neighbours in a row must lie side by side
        level = np.ascontiguousarray(level)
    encoding = variable.encoding
    if encoding.scale is None and not np.issubdtype(level.dtype, np.floating):
        return _commonest(level)
    cube = level if level.ndim == 3 else level[None]
    out = np.empty((cube.shape[0], cube.shape[1] // 2, cube.shape[2] // 2), level.dtype)
    average = _mean_of_floats if encoding.scale is None else _mean_of_integers
    step = max(1, AT_ONCE // math.prod(cube.shape[1:]))
    for start in range(0, len(cube), step):
        out[start : start + step] = average(cube[start : start + step], encoding.fill)
    return out if level.ndim == 3 else out[0]


def _quarters(level: Array) -> list[Array]:
    """The four pixels of every two by two, in reading order."""
    return [level[..., ::2, ::2], level[..., ::2, 1::2], level[..., 1::2, ::2], level[..., 1::2, 1::2]]


def _mean_of_integers(level: Array, fill: float | None) -> Array:
    """Rounded mean of packed values, fill left out; halves are rounded up."""
    lowest, highest = level.min(), level.max()
    if lowest == highest == fill:
        return level[:, :1, :1]
    small = level.dtype == np.int16 and lowest >= -_HALF and highest < _HALF
    mean = _sum_of_small_quarters(level) if small else _sum_of_quarters(level)
    mean += 2
    mean >>= 2
    if fill is not None and lowest <= fill <= highest:
        empty = level == fill
        whole, rim = _holes(empty)
        np.copyto(mean, np.asarray(fill, mean.dtype), where=whole)
        edge = np.unravel_index(np.flatnonzero(rim), rim.shape)  # few
        quarters = np.stack([quarter[edge] for quarter in _quarters(level)]).astype(mean.dtype)
        known = quarters != fill
        total, count = np.where(known, quarters, 0).sum(axis=0), known.sum(axis=0)
        mean[edge] = (2 * total + count) // (2 * count)
    return mean


def _holes(empty: Array) -> tuple[Array, Array]:
    """Where all of two by two pixels are empty, and where some are but not all."""
    top, bottom = empty[:, ::2], empty[:, 1::2]
    whole = (top & bottom).view(np.uint16) == 0x0101
    some = (top | bottom).view(np.uint16) != 0
    return whole, some ^ whole


def _sum_of_quarters(level: Array) -> Array:
    """Sum of every two by two pixels, in numbers of twice the width."""
    rows = _sum_of_pairs(level)
    return np.asarray(rows[:, ::2] + rows[:, 1::2])


def _sum_of_small_quarters(level: Array) -> Array:
    """The same of numbers of which two together still are int16: half of the steps are then done on half the bytes."""
    return _sum_of_pairs(level[:, ::2] + level[:, 1::2])


def _sum_of_pairs(level: Array) -> Array:
    """Sum of every two neighbours in a row, in numbers of twice the width.

    Neighbours are taken as one such number and split by shifts, which is faster than picking every second one.
    """
    bits = 8 * level.itemsize
    pairs = level.view(f"{level.dtype.kind}{2 * level.itemsize}")
    total = pairs << bits
    total >>= bits
    total += pairs >> bits
    return np.asarray(total)


def _mean_of_floats(level: Array, _: float | None) -> Array:
    missing = np.isnan(level)
    total = np.sum(_quarters(np.where(missing, 0, level)), axis=0)
    count = 4 - np.sum(_quarters(missing), axis=0, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(count == 0, np.nan, total / count), level.dtype)


def _commonest(level: Array) -> Array:
    """The commonest of each four codes; the first in reading order where several are equally common.

    That is the first of the four, unless it stands alone and two of the others agree.
    """
    first, second, third, fourth = _quarters(level)
    alone = (first != second) & (first != third) & (first != fourth)
    out = first.copy()
    if alone.any():
        np.copyto(out, third, where=alone & (third == fourth))
        np.copyto(out, second, where=alone & ((second == third) | (second == fourth)))
    return out
