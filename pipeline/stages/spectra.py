"""The spectra of a block, a few rows at a time."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.scene import BoolArray, SceneSpec

PIXELS_AT_ONCE = 8192
"""Spectra in one matrix product: bounds the float64 copies."""


def spectra_of(block: Block, window: Window) -> Iterator[tuple[slice, npt.NDArray[np.float32], BoolArray]]:
    """Good bands of a window: which of its rows, their spectra `(B, pixel)`, and which values count."""
    rows, cols = window.within(block.window).slices
    cube, valid = block.subject[:, rows, cols], block.valid[rows, cols]
    defect = block["defect"][:, rows, cols] if "defect" in block.arrays else None
    good = np.flatnonzero(block.bands.good)
    height = max(PIXELS_AT_ONCE // max(window.width, 1), 1)
    for top in range(0, window.height, height):
        part = slice(top, min(top + height, window.height))
        spectra = cube[good, part].reshape(good.size, -1)
        observed = np.isfinite(spectra) & valid[part].reshape(-1)
        if defect is not None:
            observed &= ~defect[good, part].reshape(good.size, -1)
        yield part, spectra, observed


def known_pixels(block: Block) -> BoolArray:
    """Pixels of a block that have a value in some good band, `(y, x)`."""
    known = np.zeros(block.window.shape, bool)
    for part, _, observed in spectra_of(block, block.window):
        known[part] = observed.any(axis=0).reshape(-1, block.window.width)
    return known


def packing_noise(spec: SceneSpec) -> float:
    """Standard deviation of what packing adds to a scene's subject; 0 where it is not packed."""
    return (spec.variables[spec.subject].encoding.scale or 0.0) / float(np.sqrt(12))
