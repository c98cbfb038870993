"""How far two images of the same ground lie apart, to a fraction of a pixel: phase correlation over many windows.

An image that is displaced by s has the other's spectrum, turned by exp(-2πi f·s) at every frequency f. The turn alone
is kept (Kuglin & Hines 1975, IEEE Conf. on Cybernetics and Society), so that gain, haze and the spectral content of a
window do not matter. Turns are averaged over windows and bands before a peak is looked for: what differs between the
images - noise, clouds, fields that were harvested - turns at random and cancels, where a peak per window would be lost
in it. The peak is that of the band-limited correlation itself, evaluated between pixels (Guizar-Sicairos, Thurman &
Fienup 2008, Optics Letters 33, 156), so there is no bias towards whole pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, log2
from typing import Any

import numpy as np
import numpy.typing as npt

from .grids import Shape, Window
from .regrid import Shift

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Turns = npt.NDArray[np.complex64]

LARGEST_WINDOW = 64
SMALLEST_WINDOW = 16
"""Edges, px, of windows; a smaller scene has smaller ones."""

LOWEST, HIGHEST = 0.03, 0.25
"""Frequencies that count, cycles a pixel: below, windows see slopes and haze; above, sensors see noise and aliases."""

CLEAR = 0.9
"""Share of a window's pixels that both images must show."""

GROUPS = 4
"""Parts of the scene that are looked at by themselves as well: how far they disagree tells the error."""

_SEARCH = 4
"""Steps to either side at each level of the search for the peak."""

_FINEST = 1e-4
"""Step, px, at which the search ends."""


def window_edge(shape: Shape) -> int:
    """Edge, px, of the windows in a scene of this shape: a power of two, of which the scene holds some."""
    return min(LARGEST_WINDOW, 1 << int(log2(max(min(shape) // 4, min(*shape, SMALLEST_WINDOW)))))


def windows(core: Window, edge: int) -> list[Window]:
    """Windows over a block that overlap by half; the last ones end with it. None in a block that is smaller."""
    starts = [_starts(size, edge) for size in core.shape]
    return [Window(core.row + row, core.col + col, edge, edge) for row in starts[0] for col in starts[1]]


def _starts(size: int, edge: int) -> list[int]:
    if size < edge:
        return []
    return sorted({*range(0, size - edge + 1, edge // 2), size - edge})


@dataclass(frozen=True, eq=False)
class Frequencies:
    """The frequencies of a window that count.

    Attributes:
        index: where they stand in the half spectrum, flattened.
        y, x: cycles a pixel.
        weight: 2 where a frequency stands for its mirror image too, else 1; of sum 1 over all.
    """

    index: npt.NDArray[np.intp]
    y: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]


@cache
def frequencies(edge: int) -> Frequencies:
    """The frequencies of windows of an edge, px, that count."""
    y, x = np.meshgrid(np.fft.fftfreq(edge), np.fft.rfftfreq(edge), indexing="ij")
    radius = np.hypot(y, x).ravel()
    (index,) = np.nonzero((radius >= max(LOWEST, 1.5 / edge)) & (radius <= HIGHEST))
    weight = np.where(x.ravel()[index] > 0, 2.0, 1.0)
    return Frequencies(index, y.ravel()[index], x.ravel()[index], weight / weight.sum())


def turns(one: FloatImage, other: FloatImage, clear: Mask) -> Turns | None:
    """Turns of a window, mean of its bands; None where there is nothing to compare.

    Args:
        one: the image, `(band, y, x)`.
        other: the same bands of the other one.
        clear: pixels `(y, x)` that take part; those without a value in a band never do.
    """
    edge = clear.shape[0]
    found = [_turns_of(*pair, clear) for pair in zip(one, other, strict=True)]
    known = [turned for turned in found if turned is not None]
    if not known:
        return None
    mean = np.sum(known, axis=0) / len(known)
    return np.asarray(mean.ravel()[frequencies(edge).index], np.complex64)


def _turns_of(one: FloatImage, other: FloatImage, clear: Mask) -> npt.NDArray[np.complex128] | None:
    known = clear & np.isfinite(one) & np.isfinite(other)
    if known.mean() < CLEAR:
        return None
    taper = np.hanning(clear.shape[0] + 1)[:-1]
    spectra = []
    for image in (one, other):
        level = image[known].mean(dtype=float)
        spectra.append(np.fft.rfft2(np.where(known, image - level, 0) * np.outer(taper, taper)))
    cross = np.conj(spectra[0]) * spectra[1]
    size = np.abs(cross)
    return np.asarray(cross / size) if size.all() else None


def peak(turned: Turns, edge: int, reach: float, near: Shift | None = None) -> tuple[Shift, float]:
    """Where turns agree best, px down and right that the other image is displaced, and how well, 0-1.

    Args:
        turned: as `turns` gives them, or a weighted mean.
        edge: of the windows, px.
        reach: how far to look, px; or half a pixel around `near`, where it is given.
        near: a displacement that is known roughly.
    """
    at, step = near or (0.0, 0.0), 0.125 if near else 0.5
    count = _SEARCH if near else ceil(reach / step)
    while True:
        offsets = np.linspace(-count * step, count * step, 2 * count + 1)
        heights = _agreement(turned, edge, at[0] + offsets, at[1] + offsets)
        row, col = np.unravel_index(np.argmax(heights), heights.shape)
        at = float(at[0] + offsets[row]), float(at[1] + offsets[col])
        if step < _FINEST:
            return at, float(heights[row, col])
        step, count = step / 3, _SEARCH


def _agreement(
    turned: Turns, edge: int, down: npt.NDArray[np.float64], right: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The correlation at every displacement of a grid `(down, right)`: 1 where all turns are its own."""
    known = frequencies(edge)
    rows = np.exp(2j * np.pi * down[:, None] * known.y) * (known.weight * turned)
    cols = np.exp(2j * np.pi * right[:, None] * known.x)
    return np.asarray((rows @ cols.T).real)


@dataclass(frozen=True)
class Displacement:
    """How far the other image lies from the one.

    Attributes:
        shift: down and right, px.
        error: standard error of either, px, from how far parts of the scene disagree.
        quality: how well all turns agree, 0-1.
        windows: how many were compared.
    """

    shift: Shift
    error: float
    quality: float
    windows: int


Sums = Mapping[str, npt.NDArray[Any]]


def compare(one: FloatImage, other: FloatImage, clear: Mask, core: Window, edge: int, reach: float) -> Sums:
    """Sums over the windows of a block, each weighted by how well its own turns agree.

    Args:
        one: the image over `core`, `(band, y, x)`.
        other: the same bands of the other one.
        clear: pixels `(y, x)` that take part.
        core: where the block lies in the scene.
        edge: of the windows, px.
        reach: how far at most the images lie apart, px.
    """
    total = np.zeros((GROUPS, frequencies(edge).index.size), np.complex64)
    weight, count = np.zeros(GROUPS), np.zeros(GROUPS, int)
    for window in windows(core, edge):
        found = _followed(one, other, clear, window.within(core), reach)
        if found is None:
            continue
        height = max(peak(found, edge, reach)[1], 0.0)
        group = (window.row // edge + 2 * (window.col // edge)) % GROUPS
        total[group] += np.float32(height) * found
        weight[group] += height
        count[group] += 1
    return {"turns": total, "weight": weight, "windows": count}


def _followed(one: FloatImage, other: FloatImage, clear: Mask, window: Window, reach: float) -> Turns | None:
    """Turns of a window, whose other image is cut out where it lies, to the pixel.

    Windows that show other ground pull a displacement towards zero, by some 3 % at 32 px.
    """
    here = window.slices
    found = turns(one[(..., *here)], other[(..., *here)], clear[here])
    if found is None:
        return None
    down, right = (round(offset) for offset in peak(found, window.height, reach)[0])
    moved = replace(window, row=window.row + down, col=window.col + right)
    if moved == window or not _inside(moved, clear.shape):
        return found
    there = moved.slices
    closer = turns(one[(..., *here)], other[(..., *there)], clear[here] & clear[there])
    known = frequencies(window.height)
    back = np.exp(-2j * np.pi * (down * known.y + right * known.x)).astype(np.complex64)
    return found if closer is None else closer * back


def _inside(window: Window, shape: tuple[int, ...]) -> bool:
    return min(window.row, window.col) >= 0 and window.stop[0] <= shape[0] and window.stop[1] <= shape[1]


def displacement(sums: Sums, edge: int, reach: float) -> Displacement | None:
    """The displacement that the sums over all blocks tell; None where no window could be compared."""
    weight, count = np.asarray(sums["weight"], float), int(np.sum(sums["windows"]))
    if not weight.any():
        return None
    total = np.asarray(sums["turns"])
    shift, height = peak(total.sum(axis=0) / weight.sum(), edge, reach)
    parts = [peak(total[group] / weight[group], edge, reach, shift)[0] for group in range(GROUPS) if weight[group]]
    spread = np.std(parts, axis=0, ddof=1).max() / np.sqrt(len(parts)) if len(parts) > 1 else np.inf
    return Displacement(shift, float(spread), height, count)
