"""A stage over a lazy Scene: the same `apply` that a batch run calls, put over Dask chunks.

The graph holds one task a block and names the stage by its parameters alone; pixels flow only when computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from cubeloom.errors import ConfigError

from .blocks import PREDICTION, Block, plan_stage
from .encoding import Array
from .grids import STATISTICS_BLOCK, Window, tile
from .readers.base import SceneSource, Source, to_scene, values
from .regrid import RegriddedSource, regridded
from .scene import SceneSpec, scene_from, spec_of
from .stages.base import NO_STATS, Stage, Stats, add_stats
from .tiles import FloatImages, Lattice, blend

Layers = Mapping[str, Mapping[str, Array]]
"""Arrays by guide (the Scene itself under no name) and variable."""


class LiftedStage(Protocol):
    """A stage as a function of a Scene and the guides that it asks for, in its order."""

    def __call__(self, scene: xr.Dataset, *guides: xr.Dataset) -> xr.Dataset:
        """The Scene that the stage makes."""
        ...


Regridding = Callable[[Source, SceneSpec], RegriddedSource]
"""Brings a guide onto the grid of a Scene."""


def lift(stage: Stage) -> LiftedStage:
    """The stage as a function of a lazy Scene, and of one more for each guide that it asks for.

    Statistics and results come in blocks of 256 px, so a lifted stage gives the same array as a batch run. Tiles of a
    network are tasks of their own, which the blocks that they touch wait for. A guide that does not lie on the Scene's
    grid, or one a whole number of times finer, is brought there.
    """

    def lifted(scene: xr.Dataset, *guides: xr.Dataset) -> xr.Dataset:
        lazy = _lazy_scene(stage, scene, guides, regridded)
        before = lazy.spec
        after = plan_stage(stage, before)
        stats = _lazy_stats(stage, lazy)
        changed = _changed(before, after)
        tiles = _lazy_tiles(stage, lazy, stats)
        made = _lazy_blocks(stage, lazy, after, stats, tiles, changed)
        return scene_from(after, {name: made.get(name, lazy.arrays.get(name)) for name in after.variables})

    return lifted


def lift_guide(stage: Stage, regrid: Regridding = regridded) -> Callable[[xr.Dataset, xr.Dataset], xr.Dataset]:
    """A stage with one guide as a function of a Scene and that guide; it gives the guide as later steps would see it.

    The guide lies on the Scene's grid, or one a whole number of times finer, and where the stage has found it to be.
    """

    def lifted(scene: xr.Dataset, guide: xr.Dataset) -> xr.Dataset:
        lazy = _lazy_scene(stage, scene, (guide,), regrid)
        (name,) = stage.guides
        source = regrid(SceneSource(guide, spec_of(guide)), lazy.spec)
        spec = replace(plan_stage(stage, lazy.spec).guides[name], group="", scale=1)
        read = _task(_read_shifted, source, stage)
        stats = _lazy_stats(stage, lazy)
        rows: dict[int, list[dict[str, Any]]] = {}
        for window in _windows(spec, source.scale):
            pieces = {
                variable: da.from_delayed(
                    read(stats, variable, window),
                    (*spec.sizes(variable)[:-2], *window.shape),
                    dtype=spec.variables[variable].encoding.decoded_dtype,
                )
                for variable in spec.variables
            }
            rows.setdefault(window.row, []).append(pieces)
        return scene_from(spec, {variable: _assembled(rows, variable) for variable in spec.variables})

    return lifted


@dataclass(frozen=True, eq=False)
class _LazyScene:
    """A Scene and its guides as Dask arrays, by guide (the Scene itself under no name) and variable."""

    spec: SceneSpec
    layers: Mapping[str, Mapping[str, Any]]

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Those of the Scene."""
        return self.layers[""]

    def over(self, window: Window) -> dict[str, dict[str, Any]]:
        """Every variable over a window of the Scene, each as one delayed array."""
        return {name: _cut(arrays, self._seen(name, window)) for name, arrays in self.layers.items()}

    def _seen(self, name: str, window: Window) -> Window:
        return window.scaled(_finer(self.spec, name)) if name else window


def _finer(spec: SceneSpec, guide: str) -> Fraction:
    return Fraction(spec.guides[guide].scale) / spec.scale


def _cut(arrays: Mapping[str, Any], window: Window) -> dict[str, Any]:
    rows, cols = window.slices
    return {name: array[..., rows, cols] for name, array in arrays.items()}


def _lazy_scene(stage: Stage, scene: xr.Dataset, guides: Sequence[xr.Dataset], regrid: Regridding) -> _LazyScene:
    spec = spec_of(scene)
    if len(guides) != len(stage.guides):
        wanted = ", ".join(stage.guides) or "no guide"
        raise ConfigError(f"{stage.name}: takes a Scene and {wanted}; found {len(guides)} Scenes after the first")
    layers = {"": {name: _lazy(scene[name]) for name in spec.variables}}
    known: dict[str, SceneSpec] = {}
    for name, guide in zip(stage.guides, guides, strict=True):
        source = regrid(SceneSource(guide, spec_of(guide)), spec)
        known[name] = replace(source.spec, scale=source.scale * spec.scale)
        layers[name] = _lazy_guide(source, guide)
    return _LazyScene(replace(spec, guides=known), layers)


def _lazy_guide(source: RegriddedSource, guide: xr.Dataset) -> dict[str, Any]:
    """A guide on the Scene's grid; one that lies there already, without steps of its own, is taken as it is."""
    edge = STATISTICS_BLOCK * source.scale
    names = source.spec.variables
    if source.grid == source.source.spec.grid and isinstance(source.source, SceneSource):
        return {name: _lazy(guide[name], edge) for name in names}
    brought = to_scene(source)
    return {name: _lazy(brought[name], edge) for name in names}


def _changed(before: SceneSpec, after: SceneSpec) -> list[str]:
    """Variables that the stage makes: new ones, those it says it changes, and all where the grid or bands change."""
    if after.grid != before.grid or not np.array_equal(after.bands.number, before.bands.number):
        return [name for name, variable in after.variables.items() if _reshaped(name, variable.dims, before, after)]
    return [name for name, variable in after.variables.items() if variable is not before.variables.get(name)]


def _reshaped(name: str, dims: tuple[str, ...], before: SceneSpec, after: SceneSpec) -> bool:
    same_layer = after.grid == before.grid and "band" not in dims
    return not (same_layer and after.variables[name] is before.variables.get(name))


def _lazy(variable: xr.DataArray, edge: int = STATISTICS_BLOCK) -> Any:  # noqa: ANN401 - dask is untyped
    """The variable on Dask in blocks of the statistics lattice, every other axis whole."""
    chunks = (*(-1,) * (variable.ndim - 2), edge, edge)
    return da.asarray(variable.data, name=False).rechunk(chunks)  # named without hashing the pixels


def _task(function: Callable[..., Any], *known: Any, nout: int | None = None) -> Any:  # noqa: ANN401 - dask is untyped
    """A function as a task, with its first arguments, in which Dask would search every field for lazy values."""
    return delayed(partial(function, *known), pure=False, nout=nout)


def _windows(spec: SceneSpec, scale: int = 1) -> list[Window]:
    return list(tile(spec.shape, (scale * STATISTICS_BLOCK, scale * STATISTICS_BLOCK)))


def _lazy_stats(stage: Stage, lazy: _LazyScene) -> Any:  # noqa: ANN401 - a Delayed
    stats: Any = NO_STATS
    spec = lazy.spec
    halo = stage.halo(spec)
    for number in range(stage.passes):
        parts = []
        for core in _windows(spec):
            window = core.expand(halo, spec.shape)
            parts.append(_task(_measure, stage, spec, window, core)(lazy.over(window), stats, number))
        stats = _task(_settle, stage, spec)(parts, stats, number)
    return stats


@dataclass(frozen=True, eq=False)
class _LazyTiles:
    """A network's tiles: where they lie, and each as a Delayed."""

    lattice: Lattice
    images: Sequence[Any]

    def blended(self, window: Window) -> Any:  # noqa: ANN401 - a Delayed
        """The blend of the tiles that touch a window."""
        images = {number: self.images[number] for number in self.lattice.touching(window)}
        return _task(_blend, self.lattice, window)(images)


def _lazy_tiles(stage: Stage, lazy: _LazyScene, stats: Any) -> _LazyTiles | None:  # noqa: ANN401 - a Delayed
    spec = lazy.spec
    tiling = stage.tiling(spec)
    if tiling is None:
        return None
    lattice = Lattice.of(spec.shape, tiling)
    images: list[Any] = []
    for group in lattice.groups(tiling.at_once):
        windows = [lattice.window(number) for number in group]
        inputs = [lazy.over(window) for window in windows]
        images += _task(_infer, stage, spec, windows, nout=len(group))(inputs, stats)
    return _LazyTiles(lattice, images)


def _lazy_blocks(
    stage: Stage,
    lazy: _LazyScene,
    after: SceneSpec,
    stats: Any,  # noqa: ANN401 - a Delayed
    tiles: _LazyTiles | None,
    names: Sequence[str],
) -> dict[str, Any]:
    before = lazy.spec
    factor = Fraction(after.scale) / before.scale
    halo = stage.halo(before)
    rows: dict[int, list[dict[str, Any]]] = {}
    for core in _windows(before):
        window = core.expand(halo, before.shape)
        inputs = lazy.over(window)
        # An argument of its own: Dask confuses the values of nested dicts that hold both arrays and Delayeds.
        blended = None if tiles is None else tiles.blended(window)
        made = _task(_apply, stage, before, window, core)(inputs, blended, stats, factor, tuple(names))
        pieces = {}
        for name in names:
            leading = after.sizes(name)[:-2]
            shape = (*leading, *core.scaled(factor).shape)
            dtype = after.variables[name].encoding.decoded_dtype
            pieces[name] = da.from_delayed(made[name], shape, dtype=dtype)
        rows.setdefault(core.row, []).append(pieces)
    return {name: _assembled(rows, name) for name in names}


def _assembled(rows: Mapping[int, Sequence[Mapping[str, Any]]], name: str) -> Any:  # noqa: ANN401 - dask is untyped
    """A variable put together from rows of pieces."""
    return da.concatenate([da.concatenate([p[name] for p in row], axis=-1) for row in rows.values()], axis=-2)


def _block(spec: SceneSpec, window: Window, core: Window, layers: Layers) -> Block:
    guides = {
        name: Block(spec.guides[name], window.scaled(_finer(spec, name)), core.scaled(_finer(spec, name)), layers[name])
        for name in layers
        if name
    }
    return Block(spec, window, core, layers[""], guides)


def _read_shifted(source: RegriddedSource, stage: Stage, stats: Stats, variable: str, window: Window) -> Array:
    (name,) = stage.guides
    return source.shifted(stage.shifts(stats).get(name, (0.0, 0.0))).read(variable, window)


def _measure(
    stage: Stage, spec: SceneSpec, window: Window, core: Window, layers: Layers, stats: Stats, number: int
) -> Stats:
    return stage.measure(_block(spec, window, core, layers), stats, number)


def _settle(stage: Stage, spec: SceneSpec, parts: Sequence[Stats], stats: Stats, number: int) -> Stats:
    total: Stats = NO_STATS
    for part in parts:
        total = add_stats(total, part)
    return stage.settle(total, stats, number, spec)


def _infer(
    stage: Stage, spec: SceneSpec, windows: Sequence[Window], layers: Sequence[Layers], stats: Stats
) -> list[FloatImages]:
    blocks = [_block(spec, window, window, held) for window, held in zip(windows, layers, strict=True)]
    return list(stage.infer(blocks, stats).images)


def _blend(lattice: Lattice, window: Window, images: Mapping[int, FloatImages]) -> FloatImages:
    return blend(lattice, window, images.__getitem__)


def _apply(
    stage: Stage,
    spec: SceneSpec,
    window: Window,
    core: Window,
    layers: Layers,
    blended: FloatImages | None,
    stats: Stats,
    factor: Fraction,
    names: Sequence[str],
) -> dict[str, Array]:
    block = _block(spec, window, core, layers)
    if blended is not None:
        block = replace(block, arrays={**block.arrays, PREDICTION: blended})
    made = stage.apply(block, stats)
    return {name: core.scaled(factor).crop(values(made[name]), window.scaled(factor)) for name in names}
