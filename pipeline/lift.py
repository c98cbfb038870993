"""A stage over a lazy Scene: the same `apply` that a batch run calls, put over Dask chunks.

The graph holds one task a block and names the stage by its parameters alone; pixels flow only when computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from .blocks import PREDICTION, Block, plan_stage
from .encoding import Array
from .grids import STATISTICS_BLOCK, Window, tile
from .scene import SceneSpec, scene_from, spec_of
from .stages.base import NO_STATS, Stage, Stats, add_stats
from .tiles import FloatImages, Lattice, blend

LiftedStage = Callable[[xr.Dataset], xr.Dataset]


def lift(stage: Stage) -> LiftedStage:
    """The stage as a function of a lazy Scene.

    Statistics and results come in blocks of 256 px, so a lifted stage gives the same array as a batch run. Tiles of a
    network are tasks of their own, which the blocks that they touch wait for.
    """

    def lifted(scene: xr.Dataset) -> xr.Dataset:
        before = spec_of(scene)
        after = plan_stage(stage, before)
        arrays = {name: _lazy(scene[name]) for name in before.variables}
        stats = _lazy_stats(stage, before, arrays)
        changed = _changed(before, after)
        tiles = _lazy_tiles(stage, before, arrays, stats)
        made = _lazy_blocks(stage, before, after, arrays, stats, tiles, changed)
        return scene_from(after, {name: made.get(name, arrays.get(name)) for name in after.variables})

    return lifted


def _changed(before: SceneSpec, after: SceneSpec) -> list[str]:
    """Variables that the stage makes: new ones, those it says it changes, and all where the grid or bands change."""
    if after.grid != before.grid or not np.array_equal(after.bands.number, before.bands.number):
        return [name for name, variable in after.variables.items() if _reshaped(name, variable.dims, before, after)]
    return [name for name, variable in after.variables.items() if variable is not before.variables.get(name)]


def _reshaped(name: str, dims: tuple[str, ...], before: SceneSpec, after: SceneSpec) -> bool:
    same_layer = after.grid == before.grid and "band" not in dims
    return not (same_layer and after.variables[name] is before.variables.get(name))


def _lazy(variable: xr.DataArray) -> Any:  # noqa: ANN401 - dask is untyped
    """The variable on Dask in blocks of the statistics lattice, every other axis whole."""
    edge = STATISTICS_BLOCK
    chunks = (*(-1,) * (variable.ndim - 2), edge, edge)
    return da.asarray(variable.data).rechunk(chunks)


def _windows(spec: SceneSpec) -> list[Window]:
    return list(tile(spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)))


def _inputs(arrays: dict[str, Any], window: Window) -> dict[str, Any]:
    """Every variable over a window, each as one delayed array."""
    rows, cols = window.slices
    return {name: array[..., rows, cols] for name, array in arrays.items()}


def _lazy_stats(stage: Stage, spec: SceneSpec, arrays: dict[str, Any]) -> Any:  # noqa: ANN401 - a Delayed
    stats: Any = NO_STATS
    halo = stage.halo(spec)
    for number in range(stage.passes):
        parts = []
        for core in _windows(spec):
            window = core.expand(halo, spec.shape)
            parts.append(
                delayed(_measure, pure=False)(stage, spec, window, core, _inputs(arrays, window), stats, number)
            )
        stats = delayed(_settle, pure=False)(stage, spec, parts, stats, number)
    return stats


@dataclass(frozen=True, eq=False)
class _LazyTiles:
    """A network's tiles: where they lie, and each as a Delayed."""

    lattice: Lattice
    images: Sequence[Any]

    def blended(self, window: Window) -> Any:  # noqa: ANN401 - a Delayed
        """The blend of the tiles that touch a window."""
        images = {number: self.images[number] for number in self.lattice.touching(window)}
        return delayed(_blend, pure=False)(self.lattice, window, images)


def _lazy_tiles(stage: Stage, spec: SceneSpec, arrays: dict[str, Any], stats: Any) -> _LazyTiles | None:  # noqa: ANN401
    tiling = stage.tiling(spec)
    if tiling is None:
        return None
    lattice = Lattice.of(spec.shape, tiling)
    images: list[Any] = []
    for group in lattice.groups(tiling.at_once):
        windows = [lattice.window(number) for number in group]
        inputs = [_inputs(arrays, window) for window in windows]
        images += delayed(_infer, pure=False, nout=len(group))(stage, spec, windows, inputs, stats)
    return _LazyTiles(lattice, images)


def _lazy_blocks(
    stage: Stage,
    before: SceneSpec,
    after: SceneSpec,
    arrays: dict[str, Any],
    stats: Any,  # noqa: ANN401 - a Delayed
    tiles: _LazyTiles | None,
    names: Sequence[str],
) -> dict[str, Any]:
    factor = Fraction(after.scale) / before.scale
    halo = stage.halo(before)
    rows: dict[int, list[dict[str, Any]]] = {}
    for core in _windows(before):
        window = core.expand(halo, before.shape)
        inputs = _inputs(arrays, window)
        if tiles is not None:
            inputs[PREDICTION] = tiles.blended(window)
        made = delayed(_apply, pure=False)(stage, before, window, core, inputs, stats, factor, tuple(names))
        pieces = {}
        for name in names:
            leading = after.sizes(name)[:-2]
            shape = (*leading, *core.scaled(factor).shape)
            dtype = after.variables[name].encoding.decoded_dtype
            pieces[name] = da.from_delayed(made[name], shape, dtype=dtype)
        rows.setdefault(core.row, []).append(pieces)
    return {
        name: da.concatenate([da.concatenate([p[name] for p in row], axis=-1) for row in rows.values()], axis=-2)
        for name in names
    }


def _measure(
    stage: Stage, spec: SceneSpec, window: Window, core: Window, arrays: dict[str, Array], stats: Stats, number: int
) -> Stats:
    return stage.measure(Block(spec, window, core, arrays), stats, number)


def _settle(stage: Stage, spec: SceneSpec, parts: Sequence[Stats], stats: Stats, number: int) -> Stats:
    total: Stats = NO_STATS
    for part in parts:
        total = add_stats(total, part)
    return stage.settle(total, stats, number, spec)


def _infer(
    stage: Stage, spec: SceneSpec, windows: Sequence[Window], arrays: Sequence[dict[str, Array]], stats: Stats
) -> list[FloatImages]:
    blocks = [Block(spec, window, window, held) for window, held in zip(windows, arrays, strict=True)]
    return list(stage.infer(blocks, stats).images)


def _blend(lattice: Lattice, window: Window, images: Mapping[int, FloatImages]) -> FloatImages:
    return blend(lattice, window, images.__getitem__)


def _apply(
    stage: Stage,
    spec: SceneSpec,
    window: Window,
    core: Window,
    arrays: dict[str, Array],
    stats: Stats,
    factor: Fraction,
    names: Sequence[str],
) -> dict[str, Array]:
    made = stage.apply(Block(spec, window, core, arrays), stats)
    return {name: core.scaled(factor).crop(made[name], window.scaled(factor)) for name in names}
