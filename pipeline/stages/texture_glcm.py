"""Texture of an image by grey-level co-occurrence (Haralick, Shanmugam and Dinstein, IEEE Trans. SMC 3, 1973).

The matrix P of a window and a direction holds how often two neighbours have levels i and j, either way round, divided
by the sum of all. It is never made: all measures but two are sums over the window's pairs, hence box sums of images;
for entropy and ASM it is enough to know, for each pair of a window, how many of its pairs have the same two levels.
Sums are of whole numbers or in a fixed order, so a pixel's measures are the same in whatever part of an image.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
LevelImage = npt.NDArray[np.uint8]
IntImage = npt.NDArray[np.int32]
Number = TypeVar("Number", bound=np.generic)

Measure = Literal[
    "mean", "variance", "homogeneity", "contrast", "dissimilarity", "entropy", "asm", "correlation", "energy"
]
MEASURES: tuple[Measure, ...] = get_args(Measure)

OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns from a pixel to its neighbour: the four directions, at a distance of one pixel."""

MISSING = 255
"""Level of a pixel without a value."""

MAX_LEVELS = 128
MAX_WINDOW = 11
"""px. Within these two bounds sums fit 32 bits, and the products of counts a float64."""

_STRIP = 2**15
"""Pixels at once: what is held for them stays in a processor's cache."""

_OF_COUNTS = ("entropy", "asm", "energy")


def quantise(image: npt.NDArray[np.floating], low: float, high: float, levels: int) -> LevelImage:
    """Levels 0 to `levels` - 1 of equal width between `low` and `high`, the outer ones open; MISSING where NaN."""
    known = np.isfinite(image)
    width = max(high - low, float(np.finfo(np.float32).tiny)) / levels
    steps = np.floor((np.where(known, image, low) - np.float64(low)) / width)
    return np.where(known, np.clip(steps, 0, levels - 1), MISSING).astype(np.uint8)


def texture_images(levels: LevelImage, measures: Sequence[Measure] = MEASURES, window: int = 5) -> FloatImage:
    """Measures of the window about every pixel, each the mean over the four directions.

    With P(i, j) the share of a pair of levels, mu the mean level and s2 its variance: `mean` mu; `variance` s2;
    `homogeneity` sum P / (1 + (i - j)^2); `contrast` sum P (i - j)^2; `dissimilarity` sum P |i - j|; `entropy`
    -sum P ln P; `asm` (angular second moment) sum P^2; `energy` its root; `correlation` sum P (i - mu) (j - mu) / s2,
    1 where all levels are one.

    Pairs with a pixel that is missing or beyond the image's edge do not count, and neither does a direction without
    any pair.

    Args:
        levels: `(y, x)`, below MAX_LEVELS, or MISSING.
        measures: which, in the order wanted.
        window: its edge, px; odd, 3 to MAX_WINDOW.

    Returns:
        `(measure, y, x)`; NaN at missing pixels and where there is no pair.

    Raises:
        ValueError: a window or levels that it does not take.
    """
    if window % 2 == 0 or not 3 <= window <= MAX_WINDOW:
        raise ValueError(f"a window of {window} px; expected an odd number, 3 to {MAX_WINDOW}")
    missing = levels == MISSING
    if levels.size and levels[~missing].max(initial=0) >= MAX_LEVELS:
        raise ValueError(f"levels up to {levels[~missing].max()}; expected less than {MAX_LEVELS}")
    height, width = levels.shape
    padded = np.pad(levels, window // 2, constant_values=MISSING)
    made = np.empty((len(measures), height, width), np.float32)
    rows = max(_STRIP // max(width, 1), 1)
    for top in range(0, height, rows):
        strip = padded[top : min(top + rows, height) + window - 1]
        made[:, top : top + rows] = _strip(strip, measures, window)
    made[:, missing] = np.nan
    return made


def _strip(levels: LevelImage, measures: Sequence[Measure], window: int) -> FloatImage:
    """Measures of all whole windows of an image."""
    shape = (levels.shape[0] - window + 1, levels.shape[1] - window + 1)
    total = np.zeros((len(measures), *shape), np.float32)
    directions = np.zeros(shape, np.uint8)
    for offset in OFFSETS:
        found, present = _direction(levels, offset, measures, window)
        directions += present
        for sums, measure in zip(total, measures, strict=True):
            sums += np.where(present, found[measure], np.float32(0))
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is no pair
        return np.asarray(total / directions, np.float32)


def _direction(
    levels: LevelImage, offset: tuple[int, int], measures: Sequence[Measure], window: int
) -> tuple[dict[str, FloatImage], npt.NDArray[np.bool_]]:
    """Measures of the pairs of one direction, and where there are any."""
    first, second = _pairs(levels, offset)
    box = (window - abs(offset[0]), window - abs(offset[1]))
    present = (first != MISSING) & (second != MISSING)
    a, b = (np.where(present, side, 0).astype(np.int32) for side in (first, second))
    count = _box(present.astype(np.int32), box)
    pairs = np.maximum(count, 1)
    found = _moments(a, b, present, pairs, box)
    if set(measures) & set(_OF_COUNTS):
        found |= _of_counts(a, b, present, pairs, box)
    return found, count > 0


def _pairs(levels: LevelImage, offset: tuple[int, int]) -> tuple[LevelImage, LevelImage]:
    """All pixels with a neighbour at `offset` in the image, and those neighbours."""
    (down, right), (height, width) = offset, levels.shape
    rows, cols = slice(0, height - down), slice(max(-right, 0), width - max(right, 0))
    return levels[rows, cols], levels[down:, cols.start + right : cols.stop + right]


def _moments(
    a: IntImage, b: IntImage, present: npt.NDArray[np.bool_], pairs: IntImage, box: tuple[int, int]
) -> dict[str, FloatImage]:
    """The measures that are means over pairs."""
    apart = np.abs(a - b)
    level, square, mixed = (_box(image, box) for image in (a + b, a * a + b * b, a * b))
    spread = 2 * pairs * square - level * level  # 4 n^2 times the variance
    together = 4 * pairs * mixed - level * level
    near = np.where(present, 1 / (1 + apart * apart).astype(np.float32), np.float32(0))
    share = 1 / pairs.astype(np.float64)
    found = {
        "mean": level * share / 2,
        "variance": spread * share * share / 4,
        "homogeneity": _box(near, box) * share,
        "contrast": (square - 2 * mixed) * share,
        "dissimilarity": _box(apart, box) * share,
        "correlation": np.where(spread > 0, together / np.maximum(spread, 1), 1.0),
    }
    return {name: image.astype(np.float32) for name, image in found.items()}


def _of_counts(
    a: IntImage, b: IntImage, present: npt.NDArray[np.bool_], pairs: IntImage, box: tuple[int, int]
) -> dict[str, FloatImage]:
    """Entropy, ASM and energy.

    Two levels that c of n pairs have take P = c / n on the diagonal, and c / 2n at two places off it. Summed over
    pairs instead of places, with c the count of each pair's own levels, ASM is sum c (1 + diagonal) / 2n^2 and entropy
    ln n + (ln 2 (pairs off the diagonal) - sum ln c) / n.
    """
    low, high = np.minimum(a, b), np.maximum(a, b)
    weights = np.where(present, 1 + (a == b), 0).astype(np.uint8)
    keys = np.where(present, high * MAX_LEVELS + low, MAX_LEVELS**2).astype(np.uint16)
    counts, views = _same(keys, box), _views(weights, box)
    squares, products = np.zeros(counts.shape[1:], np.int32), np.ones(counts.shape[1:], np.float64)
    for count, weight in zip(counts, views, strict=True):
        squares += count * weight
        products *= np.where(weight, count, 1)
    off = _box((weights == 1).astype(np.int32), box)
    asm = squares / (2.0 * pairs * pairs)
    entropy = np.log(pairs) + (np.log(2) * off - np.log(products)) / pairs
    found = {"entropy": np.maximum(entropy, 0), "asm": asm, "energy": np.sqrt(asm)}
    return {name: image.astype(np.float32) for name, image in found.items()}


def _same(keys: npt.NDArray[np.uint16], box: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """For every place in a window, in how many of its places the same key stands: `(place, y, x)`."""
    views = _views(keys, box)
    counts = np.ones((len(views), *views[0].shape), np.uint8)
    same = np.empty(views[0].shape, bool)
    for one, other in combinations(range(len(views)), 2):
        np.equal(views[one], views[other], out=same)
        counts[one] += same
        counts[other] += same
    return counts


def _views(image: npt.NDArray[Number], box: tuple[int, int]) -> list[npt.NDArray[Number]]:
    """What stands at each place of the windows of an image."""
    height, width = image.shape[0] - box[0] + 1, image.shape[1] - box[1] + 1
    return [image[row : row + height, col : col + width] for row, col in product(*map(range, box))]


def _box(image: npt.NDArray[Number], box: tuple[int, int]) -> npt.NDArray[Number]:
    """Sums over the windows of an image, along rows and then along columns, always in the same order."""
    for along in ((1, box[1]), (box[0], 1)):
        first, *others = _views(image, along)
        image = first.copy()
        for other in others:
            image += other  # type: ignore[misc]
    return image
