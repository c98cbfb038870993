"""All bands of a Sentinel-2 product on one of its grids, each brought there from its native one as it is read.

The three grids nest: a pixel of 60 m holds 3 x 3 of 20 m and 6 x 6 of 10 m. So a finer band is averaged over exactly
the pixels that a coarser one holds, and a coarser band is repeated, or interpolated between pixel centres. A pixel
depends on its neighbours alone, never on the window it is read in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from cubeloom.pipeline.encoding import REFLECTANCE, Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import Bands, SceneSpec

from .base import Source, values
from .rasters import digest
from .sentinel2_quality import spread

REACH = 2
"""Pixels to each side that cubic convolution looks at."""


@dataclass(frozen=True)
class _Place:
    """Where a band of the common Scene comes from: resolution, m, and position in that Scene."""

    resolution: int
    position: int


class NativeSource(Source, Protocol):
    """A Source that also names its files."""

    def files(self) -> list[Path]:
        """The files that the scene is read from."""
        ...


@dataclass(frozen=True, eq=False)
class CommonGridSource:
    """A Source over all bands on one grid.

    Attributes:
        spec: the Scene without pixels.
        sources: the native Scenes by resolution, m.
        resolution: of the common grid, m.
        cubic: whether coarser bands are interpolated (cubic convolution) rather than repeated.
        places: of each of the Scene's bands.
    """

    spec: SceneSpec
    sources: Mapping[int, NativeSource]
    resolution: int
    cubic: bool
    places: tuple[_Place, ...]

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the images of the common grid."""
        return self.sources[self.resolution].block_shape

    @property
    def exact(self) -> bool:
        """Whether reflectance comes in the store's own steps: what is averaged is rounded to them."""
        return all(source.exact for source in self.sources.values())

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable, see `Source.read`.

        Raises:
            InputError: a file is empty, damaged, or of another size than the metadata say.
        """
        if name != self.spec.measurement:
            return self.sources[self.resolution].read(name, window, bands, out)
        made = [self._band(place, window) for place in self.places[bands or slice(None)]]
        cube = np.stack([layer for layer, _ in made]) if made else np.empty((0, *window.shape), np.float32)
        if not self.exact:
            return cube
        lost = [np.zeros(window.shape, bool) if pixels is None else pixels for _, pixels in made]
        clipped = np.stack(lost) if any(pixels is not None for _, pixels in made) else None
        return Packed(REFLECTANCE.encode(cube)[0], REFLECTANCE, clipped)

    def _band(self, place: _Place, window: Window) -> tuple[Array, Array | None]:
        """A band, and where it is made of values that were clipped; None where it is nowhere."""
        source, step = self.sources[place.resolution], Fraction(place.resolution, self.resolution)
        part = window.scaled(1 / step)
        wide = part.expand(REACH, source.spec.shape) if step > 1 and self.cubic else part
        one = slice(place.position, place.position + 1)
        array = source.read(self.spec.measurement, wide, one)
        layer = np.asarray(values(array)[0])
        lost = array.clipped[0] if isinstance(array, Packed) and array.clipped is not None else None
        if step == 1:
            return layer, lost
        if step < 1:
            factor = int(1 / step)
            return block_mean(layer, factor), None if lost is None else block_mean(lost, factor) > 0
        resample = cubic if self.cubic else spread
        return resample(layer, wide, window, int(step)), None if lost is None else spread(lost, wide, window, int(step))

    def files(self) -> list[Path]:
        """The files that the scene is read from."""
        return sorted({path for source in self.sources.values() for path in source.files()})

    def fingerprint(self) -> str:
        """sha256 over the content of all files, and how they are read."""
        prints = " ".join(source.fingerprint() for source in self.sources.values())
        return digest([], salt=f"{prints} {self.resolution} {self.cubic}")


def block_mean(layer: Array, factor: int) -> Array:
    """Means of blocks of `factor` x `factor` px of a layer `(y, x)`; NaN where a pixel of the block has no value."""
    height, width = layer.shape
    blocks = layer.reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64), np.float32)


def cubic(layer: Array, wide: Window, window: Window, step: int) -> Array:
    """A layer `(y, x)` of a coarse grid at the pixels of one `step` times finer, by cubic convolution.

    The kernel is that of Keys (1981), IEEE Trans. ASSP 29(6), eq. 15, with a = -1/2, along rows and columns. Beyond the
    edge the outermost pixels stand again. Neighbours without a value are left out and the others weigh more; a pixel
    inside a coarse one without a value has none.

    Args:
        layer: the pixels of `wide`, NaN for no value.
        wide: window of the coarse grid; holds `window` and, where the grid goes on, `REACH` px around it.
        window: of the fine grid.
        step: how many times finer it is.
    """
    known = np.isfinite(layer)
    filled = np.where(known, layer, 0).astype(np.float64)
    (rows, row_weights), (columns, column_weights) = (
        _taps(first, count, origin, size, step)
        for first, count, origin, size in (
            (window.row, window.height, wide.row, wide.height),
            (window.col, window.width, wide.col, wide.width),
        )
    )
    total, weight = np.zeros(window.shape), np.zeros(window.shape)
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            share = row_weight[:, None] * column_weight[None, :]
            total += share * filled[row[:, None], column[None, :]]
            weight += share * known[row[:, None], column[None, :]]
    coarse = Window(wide.row, wide.col, *layer.shape)
    inside = spread(known, coarse, window, step) & (weight > 0.5)
    return np.where(inside, total / np.where(inside, weight, 1), np.nan).astype(np.float32)


def _taps(first: int, count: int, origin: int, size: int, step: int) -> tuple[list[Array], list[Array]]:
    """Indices into the coarse window and weights of the four neighbours of each fine pixel along an axis."""
    at = (np.arange(first, first + count) + 0.5) / step - 0.5
    left = np.floor(at).astype(np.intp)
    indices, weights = [], []
    for offset in (-1, 0, 1, 2):
        distance = np.abs(at - (left + offset))
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        indices.append(np.clip(left + offset - origin, 0, size - 1))
        weights.append(np.where(distance <= 1, near, np.where(distance < 2, far, 0)))
    return indices, weights


def on_common_grid(sources: Mapping[int, NativeSource], resolution: int, *, cubic: bool) -> CommonGridSource:
    """All bands of several native Scenes of one product on the grid of one of them.

    Args:
        sources: by resolution, m.
        resolution: of the grid wanted, one of theirs.
        cubic: whether coarser bands are interpolated rather than repeated.
    """
    listed = [(step, at, source.spec.bands) for step, source in sources.items() for at in range(len(source.spec.bands))]
    listed.sort(key=lambda one: float(one[2].wavelength[one[1]]))
    merged = [bands.take(np.array([at])) for _, at, bands in listed]
    fields = ("number", "wavelength", "fwhm", "detector", "good", "preferred")
    bands = Bands(*(np.concatenate([getattr(band, name) for band in merged]) for name in fields))
    spec = sources[resolution].spec
    names = {key: name for source in sources.values() for key, name in source.spec.attrs["band_names"].items()}
    how = "coarser bands interpolated (cubic convolution)" if cubic else "coarser bands repeated"
    spec = replace(
        spec,
        scene_id=f"{spec.scene_id}-common",
        bands=bands,
        attrs={**spec.attrs, "band_names": dict(sorted(names.items(), key=lambda item: int(item[0])))},
        history=(*spec.history, f"all bands on the {resolution} m grid: finer bands averaged, {how}"),
    )
    return CommonGridSource(spec, sources, resolution, cubic, tuple(_Place(step, at) for step, at, _ in listed))
