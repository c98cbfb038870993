"""What a reader gives: a Source, which is a Scene's metadata and a way to read its pixels window by window."""

from typing import Any, Protocol, runtime_checkable

import dask.array as da
import numpy as np
import xarray as xr

from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.grids import Shape, Window, whole
from cubeloom.pipeline.scene import SceneSpec, scene_from


@runtime_checkable
class Source(Protocol):
    """A scene that can be read. Cheap to make, picklable, safe to read from several threads."""

    @property
    def spec(self) -> SceneSpec:
        """The scene without its pixels."""
        ...

    @property
    def block_shape(self) -> Shape:
        """Height and width, px, of the windows that suit the file's layout."""
        ...

    def read(self, name: str, window: Window, bands: slice | None = None) -> Array | Packed:
        """Pixels of one variable: `(band, y, x)` or `(y, x)`, of `bands` alone where given.

        A cube whose numbers already lie as the store wants them comes as `Packed`; others as float32 with NaN for
        "no value", masks as bool, flags as uint32.
        """
        ...

    def fingerprint(self) -> str:
        """Hex digest of the content of every file the scene is read from."""
        ...


def values(array: Array | Packed) -> Array:
    """The decoded values of what a Source read."""
    return array.values if isinstance(array, Packed) else array


class LazyVariable:
    """One variable of a Source as the array-like that `dask.array.from_array` slices."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        variable = source.spec.variables[name]
        self.shape = source.spec.sizes(name)
        self.ndim = len(self.shape)
        self.dtype = variable.encoding.decoded_dtype

    def __getitem__(self, key: Any) -> Array:  # noqa: ANN401 - any NumPy index
        full = key if isinstance(key, tuple) else (key,)
        full = (*full, *(slice(None),) * (self.ndim - len(full)))
        *leading, rows, cols = full
        window = _covering(rows, cols, (self.shape[-2], self.shape[-1]))
        band = leading[0] if leading and isinstance(leading[0], slice) else None
        plain = band if band is not None and (band.step or 1) == 1 else None
        array = values(self.source.read(self.name, window, plain))
        rest = tuple(slice(None) if plain is not None else index for index in leading)
        return np.asarray(array[(*rest, _shifted(rows, window.row), _shifted(cols, window.col))])


def _covering(rows: Any, cols: Any, shape: Shape) -> Window:  # noqa: ANN401
    """The window that holds every row and column of an index; integers and steps are cut out afterwards."""
    spans = []
    for index, size in zip((rows, cols), shape, strict=True):
        picked = np.arange(size)[index].reshape(-1)
        spans.append((int(picked.min()), int(picked.max()) + 1) if picked.size else (0, 0))
    (top, bottom), (left, right) = spans
    return Window(top, left, bottom - top, right - left)


def _shifted(index: Any, by: int) -> Any:  # noqa: ANN401
    if isinstance(index, slice):
        start = None if index.start is None else index.start - by
        stop = None if index.stop is None else index.stop - by
        return slice(start, stop, index.step)
    return np.asarray(index) - by


def to_scene(source: Source) -> xr.Dataset:
    """A lazy Scene over a Source: Dask chunks that follow the file's blocks, all bands in one chunk."""
    height, width = source.block_shape
    arrays = {}
    for name in source.spec.variables:
        lazy = LazyVariable(source, name)
        chunks = (*(-1,) * (lazy.ndim - 2), height, width)
        arrays[name] = da.from_array(lazy, chunks=chunks, name=f"{name}-{source.fingerprint()[:16]}", asarray=True)
    return scene_from(source.spec, arrays)


class SceneSource:
    """A Source over a Scene in memory or on Dask, so that `write_scene` stores what stages made in Python."""

    def __init__(self, scene: xr.Dataset, spec: SceneSpec) -> None:
        self.scene, self._spec = scene, spec

    @property
    def spec(self) -> SceneSpec:
        """The scene without its pixels."""
        return self._spec

    @property
    def block_shape(self) -> Shape:
        """The Dask chunks of the subject, or the whole grid."""
        chunks = self.scene[self._spec.subject].chunksizes
        return (chunks["y"][0], chunks["x"][0]) if "y" in chunks else whole(self._spec.shape).shape

    def read(self, name: str, window: Window, bands: slice | None = None) -> Array:
        """Compute one window of a variable on the calling thread."""
        rows, cols = window.slices
        part = self.scene[name].isel(y=rows, x=cols)
        if bands is not None:
            part = part.isel(band=bands)
        return np.asarray(part.data.compute(scheduler="synchronous") if part.chunks else part.values)

    def fingerprint(self) -> str:
        """Name of the computation (Dask token) that the scene stands for."""
        from dask.base import tokenize

        return str(tokenize(self.scene))
