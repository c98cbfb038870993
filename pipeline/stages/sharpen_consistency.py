"""The last step of every method of `sharpen`: bands with their detail, made to agree with what was measured.

Iterative back-projection (Irani and Peleg 1991, CVGIP 53(3)): what the scene's sensor would have seen of the product
is taken from what it saw, and the difference is added. Each round shrinks it at all frequencies, most at low ones;
noise at the highest comes back with it, so a few rounds are best. A fine pixel takes the differences of the nine pixels
around it, most of those that the guide shows alike (joint bilateral upsampling, Kopf et al. 2007, ACM TOG 26(3)), so
that they stay inside edges, and noise is averaged.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from cubeloom.pipeline.degrade import degrade

from .sharpen_guide import Detail, FloatArray, FloatImages, Seen, add_mix, degrade_reach
from .superres import REACH, refine

SPECTRUM = (0.15, 1.1)
"""How much of a difference interpolation and sensor let through, from the highest frequency to the lowest."""

AROUND = [(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
NEAR = 0.5
"""Standard deviation, coarse pixels, of the weight by distance."""
ALIKE = 0.5
"""That of the weight by how unlike the guide is, in units of its spread, root mean square of its bands."""
FLOOR = 1e-6
"""Share of the weight by distance that is left to the most unlike, and where the guide shows nothing."""

BANDS_AT_ONCE = 16
"""Bounds the memory for the differences."""


def consistency_halo(mtf: float, factor: int, rounds: int) -> int:
    """Coarse pixels beyond its own that a consistent one depends on, beside what its detail does."""
    return REACH + rounds * (1 + degrade_reach(mtf, factor))


def steps(rounds: int) -> list[np.float32]:
    """How much of the difference each round adds: the steps by which, together, most of it goes at every frequency.

    Those of Richardson's method with the roots of Chebyshev's polynomial over `SPECTRUM` (Young 1953, J. Math. Phys.
    32); a single one is near 1, as in plain back-projection.
    """
    low, high = SPECTRUM
    angles = (2 * np.arange(rounds) + 1) * math.pi / (2 * max(rounds, 1))
    return [np.float32(2 / (high + low - (high - low) * math.cos(angle))) for angle in angles]


def neighbours(seen: Seen, spread: FloatArray) -> list[FloatImages]:
    """Weights of the nine coarse pixels around every fine pixel, row by row, each `(y, f, x, f)`; their sum is 1.

    Args:
        seen: the scene and the guide.
        spread: of the guide's bands, `(m,)`.
    """
    f, (height, width) = seen.factor, seen.valid.shape
    within = (np.arange(f) + 0.5) / f - 0.5
    fine = (seen.fine / spread.astype(np.float32)[:, None, None]).reshape(-1, height, f, width, f)
    coarse = np.pad(seen.coarse / spread.astype(np.float32)[:, None, None], ((0, 0), (1, 1), (1, 1)))
    valid = np.pad(seen.valid, 1)
    weights = []
    for row, col in AROUND:
        near = np.exp(-((within[:, None] - row) ** 2 + (within - col) ** 2) / (2 * NEAR**2)).astype(np.float32)
        there = slice(1 + row, 1 + row + height), slice(1 + col, 1 + col + width)
        unlike = np.zeros((height, f, width, f), np.float32)
        for sharp, smooth in zip(fine, coarse, strict=True):
            unlike += (sharp - smooth[there][:, None, :, None]) ** 2
        alike = np.nan_to_num(np.exp(unlike / np.float32(-2 * ALIKE**2 * len(fine))))
        weights.append((alike + np.float32(FLOOR)) * near[:, None, :] * valid[there][:, None, :, None])
    total = np.maximum(sum(weights[1:], weights[0]), np.float32(FLOOR**2))
    return [weight / total for weight in weights]


def spread_out(image: FloatImages, weights: Sequence[FloatImages]) -> FloatImages:
    """A coarse image `(y, x)` on the fine grid, by the weights of `neighbours`."""
    height, width = image.shape
    padded = np.pad(image, 1)
    fine: FloatImages = np.zeros(weights[0].shape, np.float32)
    scratch = np.empty_like(fine)
    for (row, col), weight in zip(AROUND, weights, strict=True):
        moved = padded[1 + row : 1 + row + height, 1 + col : 1 + col + width]
        fine += np.multiply(weight, moved[:, None, :, None], out=scratch)
    return fine.reshape(-1, width * fine.shape[-1])


def consistent(seen: Seen, detail: Detail, spread: FloatArray, mtf: float, rounds: int) -> FloatImages:
    """The sharpened cube of a block, `(B, y f, x f)`: what `consistent_bands` yields, put together."""
    fine = np.empty((len(seen.cube), *(size * seen.factor for size in seen.valid.shape)), np.float32)
    for part, made in consistent_bands(seen, detail, spread, mtf, rounds):
        fine[part] = made
    return fine


def consistent_bands(
    seen: Seen, detail: Detail, spread: FloatArray, mtf: float, rounds: int
) -> Iterator[tuple[slice, FloatImages]]:
    """The sharpened cube of a block, some bands at a time.

    Args:
        seen: the scene and the guide.
        detail: what the method adds to the interpolated bands.
        spread: standard deviations of the guide's bands over the scene, `(m,)`.
        mtf: modulation transfer of the scene's sensor at its Nyquist frequency.
        rounds: of back-projection.

    Yields:
        Which of the scene's bands, and these, `(bands, y f, x f)`, NaN where the scene has no value.
    """
    mixing = detail.mixing.astype(np.float32)
    around = neighbours(seen, spread) if rounds else []
    for start in range(0, len(seen.cube), BANDS_AT_ONCE):
        part = slice(start, start + BANDS_AT_ONCE)
        measured = seen.cube[part]
        made = refine(measured, seen.valid, seen.factor)
        for band, weights in zip(made, mixing[part], strict=True):
            add_mix(band, weights, detail.images)
        for step in steps(rounds):
            missing = np.nan_to_num(step * (measured - degrade(made, seen.factor, mtf)), copy=False)
            for band, difference in zip(made, missing, strict=True):
                band += spread_out(difference, around)
        yield part, made
