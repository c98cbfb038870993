"""Matrices that turn features, `(D, turned)`: applied as `features @ matrix`."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Rotation = Literal["pca", "sparse", "complete", "combinations"]
Matrix = npt.NDArray[np.float64]

ROWS = 0.75
"""Share of the rows whose principal axes are taken."""

REDRAWS = 100
LEAST_SPARSITY = 3.0


def rotation_matrix(
    kind: Rotation,
    features: npt.NDArray[np.floating[Any]],
    draw: np.random.Generator,
    inputs: int = 3,
    candidates: int | None = None,
) -> Matrix:
    """A matrix of a kind, drawn at random.

    `pca`: the principal axes of some rows. `sparse`: `sparse_rotation`. `complete`: `complete_rotation`.
    `combinations`: `combinations`, of which there are `candidates`, by default twice as many as features.

    Args:
        kind: which.
        features: `(n, D)`.
        draw: where chance comes from.
        inputs: features that a combination takes.
        candidates: how many combinations.
    """
    size = features.shape[1]
    if kind == "pca":
        return principal_axes(features, draw)
    if kind == "sparse":
        return sparse_rotation(size, draw)
    if kind == "complete":
        return complete_rotation(size, draw)
    return combinations(size, candidates or 2 * size, inputs, draw)


def principal_axes(features: npt.NDArray[np.floating[Any]], draw: np.random.Generator) -> Matrix:
    """Orthonormal principal axes, `(D, D)`, strongest first, of a sample of the rows drawn with replacement."""
    count = max(round(ROWS * len(features)), 1)
    some = np.asarray(features, np.float64)[draw.integers(len(features), size=count)]
    some = some - some.mean(axis=0)
    return np.asarray(np.linalg.eigh(some.T @ some)[1][:, ::-1].copy())


def sparse_rotation(size: int, draw: np.random.Generator) -> Matrix:
    """A sparse random projection of full rank, `(D, D)` (Li, Hastie and Church, KDD 2006).

    Entries are +a, 0 and -a with probabilities 1/2s, 1 - 1/s and 1/2s, s = sqrt(D) but at least 3, a = sqrt(s / D),
    so that lengths stay as they are on average. A matrix of lower rank is drawn again: features must not get lost.
    """
    sparsity = min(max(np.sqrt(size), LEAST_SPARSITY), float(size))
    for _ in range(REDRAWS):
        signs = draw.choice([1.0, 0.0, -1.0], (size, size), p=[0.5 / sparsity, 1 - 1 / sparsity, 0.5 / sparsity])
        if np.linalg.matrix_rank(signs) == size:
            return np.asarray(signs * np.sqrt(sparsity / size))
    raise ValueError(f"none of {REDRAWS} sparse matrices of {size} features has full rank")


def complete_rotation(size: int, draw: np.random.Generator) -> Matrix:
    """A rotation from all of them, evenly (Haar), `(D, D)` with determinant 1 (Mezzadri, Notices AMS 54, 2007).

    The orthogonal factor of a matrix of normal numbers, with the signs that make the triangular one's diagonal
    positive, and one column turned round where that mirrors.
    """
    orthogonal, triangular = np.linalg.qr(draw.normal(size=(size, size)))
    orthogonal = orthogonal * np.sign(np.diag(triangular))
    if np.linalg.det(orthogonal) < 0:
        orthogonal[:, 0] *= -1
    return np.asarray(orthogonal)


def combinations(size: int, count: int, inputs: int, draw: np.random.Generator) -> Matrix:
    """Linear combinations of a few features, `(D, count)`, as in Forest-RC (Breiman, Machine Learning 45, 2001).

    Each takes `inputs` features at random, with coefficients that are even between -1 and 1. Breiman draws them at
    every node; here a forest draws a stock, of which each node looks at some.
    """
    matrix = np.zeros((size, count))
    order = draw.permuted(np.tile(np.arange(size), (count, 1)), axis=1)[:, : min(inputs, size)]
    matrix[order.T, np.arange(count)] = draw.uniform(-1, 1, order.T.shape)
    return matrix
