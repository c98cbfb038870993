"""How large the blocks of a run may be, and the memory that it will need: projected before anything is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cubeloom.errors import ConfigError

from .blocks import halos_before
from .grids import STATISTICS_BLOCK, Shape, scaled_shape, tile
from .guided import guides_of
from .readers.base import Source
from .regrid import RegriddedSource
from .scene import SceneSpec
from .stages.base import Stage
from .tiles import Lattice

BASE_BYTES = 350 * 2**20
"""What the process holds beside blocks: the interpreter, the libraries, and GDAL's cache."""

NETWORK_BYTES = 250 * 2**20
"""What the process holds beside that once a network runs: PyTorch and SciPy."""

DEFAULT_MEMORY = 4 * 2**30

Guides = Mapping[str, RegriddedSource]

LARGEST_BLOCK = 512
"""Edge, px, of the largest block that goes through steps; beyond it the halo's share hardly falls any more."""

READ_AHEAD = 2
"""Variables, at least, that ingest reads while it writes one: a scene's cube comes with two smaller ones."""

SMALL_READ_AHEAD = 128 * 2**20
"""Bytes that two blocks may have to be read ahead whole."""


def ingest_shape(source: Source, memory: int, edge: int) -> Shape:
    """The block that suits the file, in squares that an overview chunk is made of, halved until it fits the budget.

    Args:
        source: what is read.
        memory: bytes that may be taken.
        edge: of the store's chunks, px.
    """
    shape = _whole_squares(source.block_shape, 2 * edge)
    while _ingest_bytes(source.spec, shape) > memory and shape != (edge, edge):
        shape = _halved(shape, edge)
    return shape


def _ingest_bytes(spec: SceneSpec, shape: Shape) -> int:
    """Peak memory of ingest: the block of the variable being written and of those read ahead, which go round and round.

    A packed variable counts at its decoded size, which leaves room for its encoding and halving.
    """
    sizes, reach = _ingest_sizes(spec, shape), range(read_ahead(spec, shape) + 1)
    held = (sum(sizes[(first + ahead) % len(sizes)] for ahead in reach) for first in range(len(sizes)))
    return BASE_BYTES + max(held)


def read_ahead(spec: SceneSpec, shape: Shape) -> int:
    """How many variables ingest reads while it writes one of a block of `shape`.

    Those of two blocks where they are small: the last parts of a block that are written then leave no thread without
    work.
    """
    sizes = _ingest_sizes(spec, shape)
    return max(READ_AHEAD, 2 * len(sizes) if 2 * sum(sizes) <= SMALL_READ_AHEAD else 0)


def _ingest_sizes(spec: SceneSpec, shape: Shape) -> list[int]:
    """Bytes of each variable over a block."""
    pixels = _pixels(spec, shape, spec.shape, 0)
    return [_variable_bytes(spec, name, pixels) for name in spec.variables]


@dataclass(frozen=True)
class Fit:
    """How a run keeps to its memory.

    Attributes:
        block_shape: height and width of the blocks that go through the steps, px.
        tile_workers: groups of a network's tiles at a time; their size is the network's, so it is their number that
            gives way.
        projected_bytes: what the run takes at its peak.
    """

    block_shape: Shape
    tile_workers: int
    projected_bytes: int


def fit(
    source: Source,
    stages: Sequence[Stage],
    specs: Sequence[SceneSpec],
    ingest: Shape,
    edge: int,
    workers: int,
    memory: int,
    *,
    together: bool = True,
) -> Fit:
    """The largest blocks whose way through the steps fits the budget, and what the run takes.

    Blocks have whole chunks, of an `edge` in px. The budget is that of a process. All workers share it where they work
    `together`; else each has one of its own.

    Raises:
        ConfigError: even the smallest block, or one tile of a network, exceeds the budget; shows the arithmetic.
    """
    spec = source.spec
    guides = guides_of(source)
    tiles = [_tile_bytes(stages, specs, guides, step) for step in range(len(stages))]
    weights = [stage.weight_bytes() for stage in stages]
    base = BASE_BYTES + (NETWORK_BYTES if any(tiles) else 0) + sum(weights)
    shape = _shared(spec.shape, workers)
    workers = workers if together else 1
    tile_workers = max(min(workers, (memory - base) // max([1, *tiles])), 1)
    floor = max(_ingest_bytes(spec, ingest), base + tile_workers * max(tiles, default=0))
    floor = max(floor, base + max(weights, default=0))
    if any(stage.passes for stage in stages):
        statistics = (STATISTICS_BLOCK, STATISTICS_BLOCK)
        floor = max(floor, base + workers * _block_bytes(stages, specs, guides, statistics, spec.shape))
    while True:
        steps = workers * _block_bytes(stages, specs, guides, shape, spec.shape) if stages else 0
        projected = max(floor, base + steps)
        if projected <= memory:
            return Fit(shape, tile_workers, projected)
        if shape == (edge, edge) or not stages:
            hint = _smaller_tiles(stages, specs, guides, tiles, memory - base)
            raise ConfigError(_too_much(spec, base, projected, memory, workers, max(tiles, default=0), hint))
        shape = _halved(shape, edge)


def _smaller_tiles(
    stages: Sequence[Stage], specs: Sequence[SceneSpec], guides: Guides, tiles: Sequence[int], budget: int
) -> str:
    """What to do about a network's tiles that take more than the budget: the largest that would fit, where one does."""
    for step, stage in enumerate(stages):
        for smaller in stage.smaller(specs[step]) if tiles[step] > budget else ():
            if _tile_bytes([*stages[:step], smaller], specs, guides, step) <= budget:
                return f"set tile: {smaller.model_dump()['tile']} of {smaller.name}, which fits"
    return "take a smaller network"


def _too_much(spec: SceneSpec, base: int, projected: int, memory: int, workers: int, tile_bytes: int, hint: str) -> str:
    budget = f"the budget is {memory / 2**20:.0f} MiB"
    if tile_bytes and base + tile_bytes > memory:
        return (
            f"{spec.scene_id}: projected memory {(base + tile_bytes) / 2**20:.0f} MiB = {base / 2**20:.0f} MiB base + "
            f"{tile_bytes / 2**20:.0f} MiB for one tile of the network; {budget}. Give more memory, or {hint}"
        )
    return (
        f"{spec.scene_id}: projected memory {projected / 2**20:.0f} MiB = {base / 2**20:.0f} MiB base + "
        f"{workers} workers x {(projected - base) / workers / 2**20:.0f} MiB for a block with its halo; "
        f"{budget}. Give more memory, or fewer workers"
    )


def _tile_bytes(stages: Sequence[Stage], specs: Sequence[SceneSpec], guides: Guides, step: int) -> int:
    """Bytes that one group of tiles of a step takes: its way through the steps before, then the network; 0 without."""
    spec = specs[step]
    tiling = stages[step].tiling(spec)
    if tiling is None:
        return 0
    rows, cols = Lattice.of(spec.shape, tiling).shape
    shape = (math.ceil(rows / Fraction(spec.scale)) + 1, math.ceil(cols / Fraction(spec.scale)) + 1)
    read = _block_bytes(stages[:step], specs[: step + 1], guides, shape, specs[0].shape)
    shown = _guide_bytes(stages[step].guides, guides, _pixels(specs[0], shape, specs[0].shape, 0))
    held = tiling.at_once * (_array_bytes(spec, shape, specs[0].shape, 0) + shown)
    return held + max(read, stages[step].tile_bytes(spec))


def _shared(scene: Shape, workers: int) -> Shape:
    """The largest blocks of which every worker gets two; of small scenes no smaller ones than those of statistics."""
    shape = (LARGEST_BLOCK, LARGEST_BLOCK)
    least = min(STATISTICS_BLOCK, LARGEST_BLOCK)
    while min(shape) > least and len(list(tile(scene, shape))) < 2 * workers:
        shape = (shape[0] // 2, shape[1] // 2)
    return shape


def _halved(shape: Shape, edge: int) -> Shape:
    """A block of half the size, cut across its longer side."""
    rows, cols = shape
    return _whole_squares((rows, cols // 2) if cols >= rows and cols > edge else (rows // 2, cols), edge)


def _whole_squares(shape: Shape, edge: int) -> Shape:
    rows, cols = (max(-(-size // edge), 1) * edge for size in shape)
    return rows, cols


def _block_bytes(
    stages: Sequence[Stage], specs: Sequence[SceneSpec], guides: Guides, block: Shape, scene: Shape
) -> int:
    """Bytes one block task holds at its peak: at some step, the arrays before and after it, and its work space."""
    halos = halos_before(specs, stages)
    published = [name for name, guide in specs[-1].guides.items() if guide.group]
    last = _array_bytes(specs[-1], block, scene, 0) + _guide_bytes(published, guides, math.prod(block))
    peak = max(_array_bytes(specs[0], block, scene, halos[0]), last)
    for stage, before, after, halo in zip(stages, specs[:-1], specs[1:], halos[:-1], strict=True):
        held = _array_bytes(before, block, scene, halo)
        cube = 4 * len(before.bands) * _pixels(before, block, scene, halo)
        factor = Fraction(after.scale) / before.scale
        made = _array_bytes(after, block, scene, math.ceil(halo * factor)) - (
            held if factor == 1 and after.group == before.group else 0
        )
        tiling = stage.tiling(before)
        cells = _pixels(before, block, scene, halo) / tiling.stride**2 if tiling else 0
        images = int(2 * 4 * tiling.channels * cells) if tiling else 0  # the blend, and one part of it
        shown = _guide_bytes(stage.guides, guides, float(_pixels(before, block, scene, halo) / before.scale**2))
        peak = max(peak, held + max(made, 0) + int(stage.work_cubes * cube) + images + shown)
    return peak


def _guide_bytes(names: Sequence[str], guides: Guides, pixels: float) -> int:
    """Bytes that guides take over a window of so many px of the native grid, and while they are read."""
    total = 0
    for guide in (guides[name] for name in names):
        fine = math.ceil(pixels * guide.scale**2)
        total += sum(_variable_bytes(guide.spec, name, fine) for name in guide.spec.variables) + guide.work_bytes(fine)
    return total


def _pixels(spec: SceneSpec, block: Shape, scene: Shape, halo: int) -> int:
    reach = math.ceil(2 * halo / Fraction(spec.scale))
    rows, cols = (min(size + reach, full) for size, full in zip(block, scene, strict=True))
    return math.prod(scaled_shape((rows, cols), spec.scale))


def _array_bytes(spec: SceneSpec, block: Shape, scene: Shape, halo: int) -> int:
    pixels = _pixels(spec, block, scene, halo)
    return sum(_variable_bytes(spec, name, pixels) + _packed_bytes(spec, name, pixels) for name in spec.variables)


def _variable_bytes(spec: SceneSpec, name: str, pixels: int) -> int:
    return math.prod(spec.sizes(name)[:-2]) * pixels * spec.variables[name].encoding.decoded_dtype.itemsize


def _packed_bytes(spec: SceneSpec, name: str, pixels: int) -> int:
    encoding = spec.variables[name].encoding
    return math.prod(spec.sizes(name)[:-2]) * pixels * np.dtype(encoding.dtype).itemsize if encoding.scale else 0
