"""What a reader gives: a Source, which is a Scene's metadata and a way to read its pixels window by window."""

from typing import Any, Protocol, runtime_checkable

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

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

    @property
    def exact(self) -> bool:
        """Whether what is read survives the store's encoding to the last bit: steps may then read it back."""
        ...

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable: `(band, y, x)` or `(y, x)`, of `bands` alone where given.

        A source whose file holds the numbers in the very type of `out` reads into it and gives it back; others leave
        it alone.

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

    def __getitem__(self, key: Any) -> Array:  # noqa: ANN401 - any index that Dask makes
        """Read the window, and of a cube the bands, that the index covers; then cut out what it names."""
        full = key if isinstance(key, tuple) else (key,)
        full = (*full, *(slice(None),) * (self.ndim - len(full)))
        spans, cuts = zip(*(_span(index, size) for index, size in zip(full, self.shape, strict=True)), strict=True)
        (top, bottom), (left, right) = spans[-2:]
        window = Window(top, left, bottom - top, right - left)
        part = slice(*spans[0]) if self.ndim == 3 and spans[0] != (0, self.shape[0]) else None
        if any(start == stop for start, stop in spans):
            array = np.empty([stop - start for start, stop in spans], self.dtype)
        else:
            array = values(self.source.read(self.name, window, part))
        for axis in reversed(range(self.ndim)):
            array = array[(slice(None),) * axis + (cuts[axis],)]
        return np.asarray(array)


def _span(index: Any, size: int) -> tuple[tuple[int, int], Any]:  # noqa: ANN401
    """First and one past the last element that an index of one axis names, and the index within that span."""
    if isinstance(index, slice) and (index.step or 1) == 1:
        start, stop, _ = index.indices(size)
        return (start, max(start, stop)), slice(None)
    picked = np.arange(size)[index]
    first, last = (int(picked.min()), int(picked.max()) + 1) if picked.size else (0, 0)
    return (first, last), picked - first


def to_scene(source: Source) -> xr.Dataset:
    """A lazy Scene over a Source: Dask chunks that follow the file's blocks, all bands in one chunk."""
    height, width = source.block_shape
    arrays = {}
    for name in source.spec.variables:
        lazy = LazyVariable(source, name)
        chunks = (*(-1,) * (lazy.ndim - 2), height, width)
        arrays[name] = da.from_array(lazy, chunks=chunks, name=False, asarray=True)
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

    @property
    def exact(self) -> bool:
        """False: stages make any float, and the store packs them."""
        return False

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array:
        """Compute one window of a variable on the calling thread."""
        rows, cols = window.slices
        part = self.scene[name].isel(y=rows, x=cols)
        if bands is not None:
            part = part.isel(band=bands)
        return np.asarray(part.data.compute(scheduler="synchronous") if part.chunks else part.values)

    def fingerprint(self) -> str:
        """Name of the computation (Dask token) that the scene stands for."""
        return str(tokenize(self.scene))
