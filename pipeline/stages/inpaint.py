"""Values for pixels that have none, so that a filter can run across the edge of a mask."""

import numpy as np
import numpy.typing as npt

STEPS = (1, 2, 4, 8)
REACH = sum(STEPS)
"""Pixels on every side that a filled value depends on."""


def inpaint(image: npt.NDArray[np.float32], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """An image whose unknown pixels hold a weighted mean of the known ones around them, and 0 beyond `REACH` px.

    Normalised convolution (Knutsson and Westin, CVPR 1993) with B-spline weights that widen in four steps; a pixel
    takes the narrowest in which it sees a known one. Local and in a fixed order of sums, hence the same in any block.

    Args:
        image: `(y, x)` float32; anything may stand where `known` is False.
        known: `(y, x)`, which pixels have a value.
    """
    filled = np.where(known, image, np.float32(0))
    done = known
    sums, weights = filled, known.astype(np.float32)
    for step in STEPS:
        sums, weights = _smooth(sums, step), _smooth(weights, step)
        reached = (weights > 0) & ~done
        filled[reached] = sums[reached] / weights[reached]
        done = done | reached
    return filled


def _smooth(image: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
    """Weights 1/4, 1/2, 1/4 at distance `step` along both axes; nothing lies beyond the edges."""
    for axis in (0, 1):
        padding = [(step, step) if axis == a else (0, 0) for a in (0, 1)]
        padded = np.pad(image, padding)
        ends = padded[: -2 * step] + padded[2 * step :] if axis == 0 else padded[:, : -2 * step] + padded[:, 2 * step :]
        image = (ends + image + image) * np.float32(0.25)
    return image


def nearest(images: npt.NDArray[np.float32], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Images `(..., y, x)` whose unknown pixels hold the values of the nearest known one, of which there is one."""
    if known.all():
        return images
    from scipy.ndimage import distance_transform_edt

    rows, cols = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return images[..., rows, cols]
