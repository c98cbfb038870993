"""Sums over windows around every pixel of an image, in an order that depends on the pixel alone.

Running sums would be faster still, but their rounding depends on where they began, and a stage's numbers must not
depend on the block. So windows are put together from shifted copies: rows first, then rows of rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]
"""float32 `(y, x)`."""


def shifted(padded: Image, down: int, right: int, reach: int) -> Image:
    """The pixel `down` and `right` of each pixel of an image that is padded by `reach` on every side (a view)."""
    rows, cols = padded.shape[0] - 2 * reach, padded.shape[1] - 2 * reach
    return padded[reach + down : reach + down + rows, reach + right : reach + right + cols]


def pad(image: Image, reach: int) -> Image:
    """The image with zeros around it."""
    return np.pad(image, reach)


def box_sum(image: Image, reach: int) -> Image:
    """Sums over squares of `2 * reach + 1` px, zero beyond the image."""
    padded = pad(image, reach)
    across = padded[:, : image.shape[1]].copy()
    for step in range(1, 2 * reach + 1):
        across += padded[:, step : step + image.shape[1]]
    total = across[: image.shape[0]].copy()
    for step in range(1, 2 * reach + 1):
        total += across[step : step + image.shape[0]]
    return total


REACH = 3
"""Of the 7 x 7 windows of the refined Lee filter."""
HALVES = ("left", "right", "upper", "lower", "upper_left", "lower_right", "upper_right", "lower_left")
"""Halves of a 7 x 7 window, each with the row, column or diagonal of the middle: 28 px."""


def half_sums(image: Image) -> dict[str, Image]:
    """Sums over each of `HALVES` around every pixel, zero beyond the image."""
    padded, width = pad(image, REACH), image.shape[1]
    height = image.shape[0]
    from_left = _prefixes(padded, width, start=0, step=1)  # of 1 to 7 px from the window's left side on
    from_right = _prefixes(padded, width, start=2 * REACH, step=-1)

    def stack(parts: list[tuple[Image, int]]) -> Image:
        """Sum of row sums, each taken from the row that stands `at` rows below the window's first."""
        total = parts[0][0][parts[0][1] : parts[0][1] + height].copy()
        for sums, at in parts[1:]:
            total += sums[at : at + height]
        return total

    rows = range(2 * REACH + 1)
    return {
        "left": stack([(from_left[REACH], row) for row in rows]),
        "right": stack([(from_right[REACH], row) for row in rows]),
        "upper": stack([(from_left[-1], row) for row in range(REACH + 1)]),
        "lower": stack([(from_left[-1], row) for row in range(REACH, 2 * REACH + 1)]),
        "upper_left": stack([(from_left[2 * REACH - row], row) for row in rows]),
        "lower_right": stack([(from_right[row], row) for row in rows]),
        "upper_right": stack([(from_right[2 * REACH - row], row) for row in rows]),
        "lower_left": stack([(from_left[row], row) for row in rows]),
    }


def _prefixes(padded: Image, width: int, start: int, step: int) -> list[Image]:
    """Row sums of 1, 2, ... 7 px of each pixel's window, beginning at its column `start`."""
    sums = [padded[:, start : start + width].copy()]
    for count in range(1, 2 * REACH + 1):
        at = start + step * count
        sums.append(sums[-1] + padded[:, at : at + width])
    return sums
