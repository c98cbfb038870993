"""Values of an image at positions between its pixels."""

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Samples:
    """Positions in a window of an image, found once for all images of its size.

    Bilinear values are means of the pixels around that have one. Where the nearest pixel has none, or the position lies
    outside the image, there is no value.

    Attributes:
        inside: positions that lie on a pixel of the image.
        closest: the nearest pixel, as its number in the window.
        around: numbers of the four pixels around, and the share of each; none where the nearest pixel is taken.
    """

    inside: npt.NDArray[np.bool_]
    closest: npt.NDArray[np.intp]
    around: tuple[tuple[npt.NDArray[np.intp], FloatArray], ...]

    @classmethod
    def at(cls, line: FloatArray, pixel: FloatArray, window: Window, shape: Shape, *, nearest: bool) -> "Samples":
        """Positions in an image of `shape`, whose pixels in `window` will be given."""
        inside = within(line, pixel, shape)
        row, col = (np.floor(part + 0.5) for part in (line, pixel))
        closest = _placed(row, window.row, window.height) * window.width + _placed(col, window.col, window.width)
        if nearest:
            return cls(inside, closest, ())
        top, left = np.floor(line), np.floor(pixel)
        down, right = line - top, pixel - left
        rows = [(_placed(top + step, window.row, window.height) * window.width) for step in (0, 1)]
        cols = [_placed(left + step, window.col, window.width) for step in (0, 1)]
        high, wide = (1 - down, down), (1 - right, right)
        around = tuple((rows[i] + cols[j], high[i] * wide[j]) for i in (0, 1) for j in (0, 1))
        return cls(inside, closest, around)

    def of(self, image: FloatArray) -> FloatArray:
        """Values of an image's window, NaN where there is none.

        They depend on the pixels around alone, to the bit: where all pixels have a value the sum of the shares is taken
        in the same order.
        """
        flat = np.ascontiguousarray(image).ravel()
        closest = flat.take(self.closest, mode="clip")
        if not self.around:
            return np.where(self.inside, closest, np.nan)
        missing = np.isnan(flat)
        gaps = bool(missing.any())
        filled, known = (np.where(missing, 0, flat), 1.0 - missing) if gaps else (flat, flat)
        total, weight = np.zeros_like(closest), np.zeros_like(closest)
        for number, share in self.around:
            total += share * filled.take(number, mode="clip")
            weight += share * known.take(number, mode="clip") if gaps else share
        with np.errstate(invalid="ignore", divide="ignore"):
            total /= weight
        total[~self.inside | np.isnan(closest)] = np.nan
        return total


def _placed(place: FloatArray, first: int, size: int) -> npt.NDArray[np.intp]:
    """Rows or columns inside a window; those beyond it at its edge."""
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
