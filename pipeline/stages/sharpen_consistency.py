"""The last step of every method of `sharpen`: bands with their detail, made to agree with what was measured.

Iterative back-projection (Irani and Peleg 1991, CVGIP 53(3)): what the scene's sensor would have seen of the product
is taken from what it saw, and the difference, interpolated, is added. Each round shrinks it at all frequencies, most at
low ones; noise at the highest comes back with it, so a few rounds are best.
"""

import math

import numpy as np

from cubeloom.pipeline.degrade import degrade

from .sharpen_guide import Detail, FloatImages, Seen, add_mix, degrade_reach
from .superres import REACH, refine

SPECTRUM = (0.15, 1.1)
"""How much of a difference interpolation and sensor let through, from the highest frequency to the lowest."""

BANDS_AT_ONCE = 16
"""Bounds the memory for the differences."""


def consistency_halo(mtf: float, factor: int, rounds: int) -> int:
    """Coarse pixels beyond its own that a consistent one depends on, beside what its detail does."""
    return REACH + rounds * (REACH + degrade_reach(mtf, factor))


def steps(rounds: int) -> list[np.float32]:
    """How much of the difference each round adds: the steps by which, together, most of it goes at every frequency.

    Those of Richardson's method with the roots of Chebyshev's polynomial over `SPECTRUM` (Young 1953, J. Math. Phys.
    32); a single one is near 1, as in plain back-projection.
    """
    low, high = SPECTRUM
    angles = (2 * np.arange(rounds) + 1) * math.pi / (2 * max(rounds, 1))
    return [np.float32(2 / (high + low - (high - low) * math.cos(angle))) for angle in angles]


def consistent(seen: Seen, detail: Detail, mtf: float, rounds: int) -> FloatImages:
    """The sharpened cube of a block.

    Args:
        seen: the scene and the guide.
        detail: what the method adds to the interpolated bands.
        mtf: modulation transfer of the scene's sensor at its Nyquist frequency.
        rounds: of back-projection.

    Returns:
        `(B, y f, x f)`, NaN where the scene has no value.
    """
    height, width = seen.valid.shape
    fine = np.empty((len(seen.cube), height * seen.factor, width * seen.factor), np.float32)
    mixing = detail.mixing.astype(np.float32)
    for start in range(0, len(fine), BANDS_AT_ONCE):
        part = slice(start, start + BANDS_AT_ONCE)
        measured, made = seen.cube[part], fine[part]
        made[...] = refine(measured, seen.valid, seen.factor)
        for band, weights in zip(made, mixing[part], strict=True):
            add_mix(band, weights, detail.images)
        for step in steps(rounds):
            missing = step * (measured - degrade(made, seen.factor, mtf))
            made += np.nan_to_num(refine(missing, seen.valid, seen.factor), copy=False)
    return fine
