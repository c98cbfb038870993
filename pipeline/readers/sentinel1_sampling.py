"""Values of an image at positions between its pixels."""

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.grids import Shape, Window

FloatArray = npt.NDArray[np.float64]
RESAMPLING = ("bilinear", "nearest")


def source_window(line: FloatArray, pixel: FloatArray, shape: Shape) -> Window | None:
    """The part of an image of `shape` that samples at these positions draw on; None where all lie outside."""
    inside = within(line, pixel, shape)
    if not inside.any():
        return None
    lines, pixels = line[inside], pixel[inside]
    top, left = (max(int(np.floor(part.min())), 0) for part in (lines, pixels))
    bottom, right = (
        min(int(np.floor(part.max())) + 2, size) for part, size in zip((lines, pixels), shape, strict=True)
    )
    return Window(top, left, bottom - top, right - left)


def within(line: FloatArray, pixel: FloatArray, shape: Shape) -> npt.NDArray[np.bool_]:
    """Positions that lie on a pixel of the image; pixels reach half a step around their whole numbers."""
    return np.asarray((line >= -0.5) & (line < shape[0] - 0.5) & (pixel >= -0.5) & (pixel < shape[1] - 0.5))


def sample(
    image: FloatArray, window: Window, line: FloatArray, pixel: FloatArray, shape: Shape, *, nearest: bool
) -> FloatArray:
    """Values at positions, from the pixels of `window` of the image.

    Bilinear values are means of the pixels around that have one. Where the nearest pixel has none, or the position lies
    outside the image, there is no value.
    """
    row, col = (np.floor(part + 0.5).astype(np.intp) for part in (line, pixel))
    inside = within(line, pixel, shape)
    row, col = np.where(inside, row - window.row, 0), np.where(inside, col - window.col, 0)
    closest = np.where(inside, image[row, col], np.nan)
    if nearest:
        return closest
    total, weight = np.zeros_like(closest), np.zeros_like(closest)
    top, left = np.floor(line), np.floor(pixel)
    for down in (0, 1):
        rows, high = _clipped(top + down, window.row, window.height), 1 - np.abs(line - top - down)
        for right in (0, 1):
            cols = _clipped(left + right, window.col, window.width)
            value = image[rows, cols]
            share = np.where(np.isnan(value), 0, high * (1 - np.abs(pixel - left - right)))
            total += share * np.where(np.isnan(value), 0, value)
            weight += share
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isnan(closest), np.nan, total / weight)


def _clipped(place: FloatArray, first: int, size: int) -> npt.NDArray[np.intp]:
    return np.clip(place - first, 0, size - 1).astype(np.intp)


def mean_of_blocks(layers: npt.NDArray[np.float32], factor: int) -> npt.NDArray[np.float32]:
    """Means of blocks of `factor` x `factor` values of `(..., y, x)`, of those that there are; NaN where none is."""
    if factor == 1:
        return layers
    height, width = layers.shape[-2] // factor, layers.shape[-1] // factor
    known, total = np.isfinite(layers), np.zeros((*layers.shape[:-2], height, width))
    count = np.zeros_like(total)
    for row in range(factor):
        for col in range(factor):
            part = (..., slice(row, None, factor), slice(col, None, factor))
            total += np.where(known[part], layers[part], 0)
            count += known[part]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), np.float32)
