"""Border noise of GRD products made before IPF 2.90: low numbers between the image's edge and its first real pixel.

Newer processors leave zeros there. A pixel belongs to the border if it and all before it, from one of the four edges
on, hold no more than noise: as SNAP's Remove-GRD-Border-Noise does it, within 500 px and by an amplitude of 0.5.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.grids import Shape, Window

from .sentinel1_calibration import NoiseTable, lines_and_pixels

REACH = 500
"""Pixels from an edge that may be border."""
_THRESHOLD = 0.5
_CLEAN_SINCE = 2.9
Numbers = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]


def needed(version: float) -> bool:
    """Whether products of a version of the processor have border noise; one that is not stated is taken for new."""
    return 0 < version < _CLEAN_SINCE


def border(read: Callable[[Window], Numbers], noise: NoiseTable | None, window: Window, shape: Shape) -> BoolArray:
    """Pixels of a window of the image that are border.

    Args:
        read: gives the numbers of any window of the image.
        noise: of the image; None where there is none to take off.
        window: px of the image.
        shape: of the image.
    """
    found = np.zeros(window.shape, bool)
    for axis in (0, 1):
        for far in (False, True):
            strip = _strip(window, shape, axis, far=far)
            if strip is None:
                continue
            power = read(strip).astype(np.float64) ** 2
            if noise is not None:
                power -= noise.on(*lines_and_pixels(strip))
            low = power < _THRESHOLD**2
            reached = np.logical_and.accumulate(np.flip(low, axis) if far else low, axis=axis)
            shared = strip.overlap(window)
            found[shared.within(window).slices] |= shared.crop(np.flip(reached, axis) if far else reached, strip)
    return found


def _strip(window: Window, shape: Shape, axis: int, *, far: bool) -> Window | None:
    """All from an edge of the image inwards beside a window; None where the window lies out of the edge's reach."""
    reach = min(REACH, shape[axis])
    start = shape[axis] - reach if far else 0
    first, last = (window.row, window.col)[axis], window.stop[axis]
    if first >= start + reach or last <= start:
        return None
    if axis == 0:
        return Window(start, window.col, reach, window.width)
    return Window(window.row, start, window.height, reach)
