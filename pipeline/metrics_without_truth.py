"""QNR: quality of a sharpened cube where the truth is not known.

After Alparone, Aiazzi, Baronti, Garzelli, Nencini and Selva (2008), PE&RS 74(2). Its measure of likeness is the
universal image quality index (Wang and Bovik 2002, IEEE Signal Proc. Lett. 9(3)),

    Q(x, y) = 4 cov(x, y) mean(x) mean(y) / ((var(x) + var(y)) (mean(x)² + mean(y)²)),

the mean over squares. The likeness of bands to each other, and of bands to the guide, should be the same on both grids.
Squares cover the same ground on both; only those count in which every pixel has a value.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.scene import BoolArray, FloatArray

Cube = npt.NDArray[Any]

SQUARE = 16
"""Edge of the squares, px of the coarse grid."""


def spectral_distortion(measured: Cube, product: Cube, square: int = SQUARE) -> float:
    """D_lambda: mean over all pairs of bands of how much their Q changes from the scene to its product; 0 is best.

    Args:
        measured: the scene, `(band, y, x)`; NaN where there is no value.
        product: its bands on a grid a whole number of times finer.
        square: edge of the squares, px of the scene.

    Raises:
        InputError: no square lies within what has values, or there is one band only.
    """
    scale = _scale(measured, product)
    if len(measured) < 2:
        raise InputError("the spectral distortion compares pairs of bands, and there is one band")
    squares = _squares((measured, product), (square, square * scale))
    change = _mean(_likeness(fine, fine) - _likeness(coarse, coarse) for coarse, fine in squares)
    pairs = ~np.eye(len(change), dtype=bool)
    return float(np.abs(change[pairs]).mean())


def spatial_distortion(measured: Cube, product: Cube, guide: Cube, seen: Cube, square: int = SQUARE) -> float:
    """D_s: mean over bands of how much their Q with the guide changes from the scene to its product; 0 is best.

    A guide of several bands stands for each band of the scene by the one that it correlates best with where both have
    values (hypersharpening: Selva, Aiazzi, Butera, Chiarantini and Baronti 2015, IEEE JSTARS 8(6)).

    Args:
        measured: the scene, `(band, y, x)`; NaN where there is no value.
        product: its bands on a grid a whole number of times finer.
        guide: `(m, y, x)` on the product's grid.
        seen: the guide on the scene's grid, as the scene's sensor would have seen it.
        square: edge of the squares, px of the scene.

    Raises:
        InputError: no square lies within what has values in all four.
    """
    scale = _scale(measured, product)
    squares = _squares((measured, product, guide, seen), (square, square * scale, square * scale, square))
    change = _mean(_likeness(fine, sharp) - _likeness(coarse, smooth) for coarse, fine, sharp, smooth in squares)
    return float(np.abs(change[np.arange(len(measured)), _most_alike(measured, seen)]).mean())


def qnr(spectral: float, spatial: float) -> float:
    """(1 - D_lambda) (1 - D_s): 1 is best."""
    return (1 - spectral) * (1 - spatial)


def _scale(measured: Cube, product: Cube) -> int:
    """How many times finer the product is."""
    scale = int(product.shape[-1] // measured.shape[-1])
    bands, *edges = measured.shape
    if product.shape != (bands, *(edge * scale for edge in edges)):
        raise InputError(
            f"a product has the bands of its scene and a whole number of pixels for each of its; got {product.shape} "
            f"for {measured.shape}"
        )
    return scale


def _squares(cubes: tuple[Cube, ...], edges: tuple[int, ...]) -> Iterator[tuple[FloatArray, ...]]:
    """Spectra `(band, pixel)` of every cube in every square that has all values."""
    rows, cols = (extent // edges[0] for extent in cubes[0].shape[1:])
    for row, col in np.ndindex(rows, cols):
        parts = []
        for cube, edge in zip(cubes, edges, strict=True):
            part = cube[:, row * edge : (row + 1) * edge, col * edge : (col + 1) * edge]
            parts.append(np.asarray(part, np.float64).reshape(len(cube), -1))
        if all(np.isfinite(part).all() for part in parts):
            yield tuple(parts)


def _mean(changes: Iterator[FloatArray]) -> FloatArray:
    total, count = np.zeros(()), 0
    for change in changes:
        total, count = total + change, count + 1
    if not count:
        raise InputError("no square of the scene has every value; take smaller ones, or a larger scene")
    return np.asarray(total / count)


def _likeness(x: FloatArray, y: FloatArray) -> FloatArray:
    """Q of every band of one with every band of the other, `(bands of x, bands of y)`."""
    means = x.mean(axis=1), y.mean(axis=1)
    x, y = x - means[0][:, None], y - means[1][:, None]
    together = x @ y.T / x.shape[1]
    variances = np.add.outer(np.mean(x**2, axis=1), np.mean(y**2, axis=1))
    level = np.add.outer(means[0] ** 2, means[1] ** 2)
    return _share(2 * together, variances) * _share(2 * np.outer(*means), level)


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """A ratio; 1 where both are 0, as two constants are alike."""
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


def _most_alike(measured: Cube, seen: Cube) -> npt.NDArray[np.intp]:
    """The guide's band that each of the scene's correlates best with."""
    both = [np.asarray(cube, np.float64).reshape(len(cube), -1) for cube in (measured, seen)]
    known: BoolArray = np.asarray(np.isfinite(np.concatenate(both)).all(axis=0))
    x, y = (cube[:, known] - cube[:, known].mean(axis=1, keepdims=True) for cube in both)
    lengths = np.maximum(np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)), 1e-30)
    return np.asarray(np.argmax(x @ y.T / lengths, axis=1))
