"""Histograms of any float32 values, in bins that need no range to be known before, and quantiles of them.

A bin is all numbers that share their sign, exponent and first bits of mantissa, so it is narrow where numbers are
small. Counts are whole, hence the same in whatever blocks they are summed.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.scene import BoolArray, FloatArray

_MANTISSA = 5
"""Bits of the mantissa: a bin is at most 3 % of its value wide."""

_SHIFT = 23 - _MANTISSA
_LEAST, _MOST = 2.0**-20, 2.0**20
"""Smaller numbers count as 0, larger ones as this."""

_FIRST = int(np.float32(_LEAST).view(np.int32)) >> _SHIFT
_SIDE = (int(np.float32(_MOST).view(np.int32)) >> _SHIFT) - _FIRST + 1
"""Bins of positive numbers; as many of negative ones, and one for 0 between them."""


def value_histograms(parts: Iterable[tuple[npt.NDArray[np.float32], BoolArray]]) -> npt.NDArray[np.int64]:
    """Counts `(row, bin)` of values `(row, n)` where the mask beside them says so."""
    total = np.zeros((0, 2 * _SIDE + 1), np.int64)
    for values, counted in parts:
        if not len(total):
            total = np.zeros((len(values), 2 * _SIDE + 1), np.int64)
        for counts, row, mask in zip(total, values, counted, strict=True):
            counts += np.bincount(_bins(row[mask]), minlength=counts.size)
    return total


def _bins(values: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    size = np.clip(np.abs(values), 0, np.float32(_MOST))
    steps = (np.ascontiguousarray(size).view(np.int32) >> _SHIFT).astype(np.intp) - _FIRST + 1
    return _SIDE + np.where(values < 0, -1, 1) * np.maximum(steps, 0)


def _edges() -> FloatArray:
    """Lower ends of the bins, and the upper end of the last."""
    bits = (np.arange(_FIRST, _FIRST + _SIDE + 1) << _SHIFT).astype(np.int32)
    ends = bits.view(np.float32).astype(float)
    return np.concatenate([-ends[::-1], ends])


def bin_centres() -> FloatArray:
    """Middles of the bins."""
    edges = _edges()
    return (edges[1:] + edges[:-1]) / 2


def quantiles(histograms: npt.NDArray[np.int64], share: float) -> FloatArray:
    """Values below which `share` of those counted lie, linear within a bin, `(row,)`; NaN for rows without any."""
    edges = _edges()
    found = np.full(len(histograms), np.nan)
    for row, counts in enumerate(histograms):
        if counts.any():
            below = np.concatenate([[0], np.cumsum(counts)])
            found[row] = np.interp(share * below[-1], below, edges)
    return found
