"""A stage chain over one block: the arrays of a window, and the way they take through the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from cubeloom.errors import InputError

from .clock import Clock
from .encoding import Array, Packed
from .grids import Window, scaled_shape
from .guided import guides_of
from .readers.base import Source, values
from .regrid import RegriddedSource, Shift
from .scene import QUALITY_FLAGS, Bands, SceneSpec

if TYPE_CHECKING:
    from .stages.base import Stage, Stats

PREDICTION = "prediction"
"""Name under which a block holds what the network of the stage at hand gave for it, `(channel, y, x)` float32."""

Predictions = Callable[[int, Window], Array]
"""What the network of a step, by its number, gave for a window of the step's input grid."""


@dataclass(frozen=True)
class Block:
    """The pixels of one window of a Scene, with what a stage needs to know of the whole.

    Attributes:
        spec: the whole Scene, as planned at this point of the chain.
        window: the window that the arrays cover, px of `spec.grid`; it includes the halo, cut at the scene's edges.
        core: the part of the window that this block answers for; statistics count its pixels and no others.
        arrays: variables by name, `(band, y, x)`, `(class, y, x)` or `(y, x)`.
        guides: by name, what the guides that the stage at hand asks for show of the same window, on their own grids.
        origin: for statistics, the core on the grid, or band axis, that the last change of it began from.
    """

    spec: SceneSpec
    window: Window
    core: Window
    arrays: Mapping[str, Array | Packed] = field(default_factory=dict)
    guides: Mapping[str, Block] = field(default_factory=dict)
    origin: Block | None = None

    def __getitem__(self, name: str) -> Array:
        """Values of a variable, decoded."""
        return values(self.arrays[name])

    @property
    def bands(self) -> Bands:
        """The band axis of the cubes."""
        return self.spec.bands

    @property
    def subject(self) -> Array:
        """The cube that a stage works on, `(band, y, x)` float32, NaN where there is no value."""
        return self[self.spec.subject]

    @property
    def valid(self) -> Array:
        """Pixels `(y, x)` that take part: the `valid` layer, else all but background and pixels without any value."""
        if "valid" in self.arrays:
            return self["valid"]
        if "quality" in self.arrays:
            return np.asarray((self["quality"] & QUALITY_FLAGS["background"]) == 0)
        return np.asarray(np.isfinite(self.subject).any(axis=0))

    def inner(self, array: Array) -> Array:
        """The core's part of an array over the window (a view)."""
        return self.core.crop(array, self.window)

    def crop(self, window: Window) -> Block:
        """The part of the block inside `window` (views; packed arrays stay packed)."""
        if window == self.window:
            return self
        cut: dict[str, Array | Packed] = {}
        for name, array in self.arrays.items():
            if isinstance(array, Packed):
                lost = None if array.clipped is None else np.asarray(window.crop(array.clipped, self.window), bool)
                cut[name] = Packed(window.crop(array.data, self.window), array.encoding, lost)
            else:
                cut[name] = window.crop(array, self.window)
        return Block(self.spec, window, self.core, cut)


class _GuideBlocks(Mapping[str, Block]):
    """The guides of a block, each read when it is first looked at."""

    def __init__(self, sources: Mapping[str, RegriddedSource], block: Block) -> None:
        self.sources, self.block = sources, block
        self.read: dict[str, Block] = {}

    def __getitem__(self, name: str) -> Block:
        if name not in self.read:
            spec, block = self.block.spec.guides[name], self.block
            factor = Fraction(spec.scale) / block.spec.scale
            self.read[name] = _guide_block(
                self.sources[name], spec, block.window.scaled(factor), block.core.scaled(factor)
            )
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def _guide_block(source: RegriddedSource, spec: SceneSpec, window: Window, core: Window) -> Block:
    return Block(spec, window, core, {name: source.read(name, window) for name in spec.variables})


def _guides(
    source: Source, names: Sequence[str], stages: Sequence[Stage], stats: Sequence[Stats]
) -> dict[str, RegriddedSource]:
    """The guides of these names, as they are read after stages that may have found out how far they are off."""
    shifts: dict[str, Shift] = {}
    for stage, settled in zip(stages, stats, strict=False):
        shifts |= stage.shifts(settled)
    return {name: guides_of(source)[name].shifted(shifts.get(name, (0.0, 0.0))) for name in names}


def _with_guides(block: Block, stage: Stage, source: Source, stages: Sequence[Stage], stats: Sequence[Stats]) -> Block:
    if not stage.guides:
        return block
    return replace(block, guides=_GuideBlocks(_guides(source, stage.guides, stages, stats), block))


def guide_blocks(
    source: Source, stages: Sequence[Stage], spec: SceneSpec, stats: Sequence[Stats], core: Window
) -> list[Block]:
    """What the guides that are published show of a window, each on its own grid.

    Args:
        source: where the pixels come from.
        stages: the steps.
        spec: the Scene after them.
        stats: what each step's statistics settled to.
        core: the window, px of the source's grid.
    """
    published = [name for name, guide in spec.guides.items() if guide.group]
    windows = {name: core.scaled(spec.guides[name].scale) for name in published}
    return [
        _guide_block(guide, spec.guides[name], windows[name], windows[name])
        for name, guide in _guides(source, published, stages, stats).items()
    ]


def plan_chain(spec: SceneSpec, stages: Sequence[Stage]) -> list[SceneSpec]:
    """The Scene before the first stage and after each one; `len(stages) + 1` specs."""
    specs = [spec]
    for stage in stages:
        specs.append(plan_stage(stage, specs[-1]))
    return specs


def plan_stage(stage: Stage, spec: SceneSpec) -> SceneSpec:
    """The Scene that a stage makes of a Scene.

    Raises:
        InputError: the stage cannot take it, there is no cube left that a stage could work on, or a guide is missing.
    """
    if missing := [name for name in stage.guides if name not in spec.guides]:
        raise InputError(
            f"{spec.scene_id}, {stage.name}: needs the guide {missing[0]!r}, and the scene has "
            f"{', '.join(spec.guides) or 'none'}; in a workflow put a step `pair: {{guide: {missing[0]}, ...}}` before "
            "it, in Python give the guide after the scene, to commands --guide"
        )
    if not spec.variables[spec.subject].is_cube:
        raise InputError(
            f"{spec.scene_id}, {stage.name}: {spec.subject} is no cube of bands, and on its grid there is no cube that "
            "a stage could take; put embed last"
        )
    return stage.plan(spec)


def halos_before(specs: Sequence[SceneSpec], stages: Sequence[Stage], last: int = 0) -> list[int]:
    """Halo, px of each step's own input grid, that the steps from it onwards need; `last` is what stays at the end."""
    halos = [last]
    for stage, before, after in zip(
        reversed(stages), reversed(specs[: len(stages)]), reversed(specs[1:]), strict=False
    ):
        halos.append(stage.halo(before) + ceil(halos[-1] * Fraction(before.scale) / after.scale))
    return halos[::-1]


def run_chain(
    source: Source,
    stages: Sequence[Stage],
    specs: Sequence[SceneSpec],
    stats: Sequence[Stats],
    core: Window,
    halo: int = 0,
    predictions: Predictions | None = None,
    clock: Clock | None = None,
) -> list[Block]:
    """Read a window with its halo and take it through the stages.

    Args:
        source: where the pixels come from.
        stages: the steps, in order.
        specs: what `plan_chain` gave for them.
        stats: what each step's statistics settled to (empty for steps without any).
        core: the window wanted, px of the source's grid.
        halo: px to keep around the core of the last block.
        predictions: of the steps that run a network, whose tiles must have been computed; None where there is none.
        clock: counts the time of `read` and of every stage.

    Returns:
        One Block a group (grid or band axis) of the chain, the native one first, each cropped to the core.
    """
    clock = clock or Clock()
    halos = halos_before(specs, stages, halo)
    shape = source.spec.shape
    window = core.expand(halos[0], shape)
    with clock("read"):
        block = Block(source.spec, window, core, {name: source.read(name, window) for name in source.spec.variables})
    done = []
    for step, (stage, after, settled, margin) in enumerate(zip(stages, specs[1:], stats, halos[1:], strict=False)):
        with clock(stage.name):
            seen = _with_guides(block, stage, source, stages[:step], stats[:step])
            made = stage.apply(_with_prediction(seen, stage, step, predictions), settled)
        if after.group != block.spec.group:
            done.append(block.crop(block.core))
        carried = {name: array for name, array in block.arrays.items() if name in after.variables}
        factor = Fraction(after.scale) / block.spec.scale
        grown = Block(after, block.window.scaled(factor), core.scaled(after.scale), {**carried, **made})
        block = grown.crop(grown.core.expand(margin, scaled_shape(shape, after.scale)))
    return [*done, block]


def _with_prediction(block: Block, stage: Stage, step: int, predictions: Predictions | None) -> Block:
    if stage.tiling(block.spec) is None:
        return block
    if predictions is None:
        raise ValueError(f"stage {stage.name} runs a network, and no predictions of its tiles were given")
    return replace(block, arrays={**block.arrays, PREDICTION: predictions(step, block.window)})


def read_tile(
    source: Source,
    stages: Sequence[Stage],
    specs: Sequence[SceneSpec],
    stats: Sequence[Stats],
    tile: Window,
    step: int,
    predictions: Predictions,
    clock: Clock | None = None,
) -> Block:
    """A tile of the lattice of stage `step`, on its input grid, as the stages before make it."""
    before = stages[:step], specs[: step + 1], stats[:step]
    block = run_chain(source, *before, tile.coarsened(specs[step].scale), 0, predictions, clock)[-1]
    block = replace(block.crop(tile), core=tile)
    return _with_guides(block, stages[step], source, stages[:step], stats[:step])


def measure_block(
    source: Source,
    stages: Sequence[Stage],
    specs: Sequence[SceneSpec],
    stats: Sequence[Stats],
    core: Window,
    step: int,
    number: int,
    predictions: Predictions | None = None,
    clock: Clock | None = None,
) -> Stats:
    """Partial sums of pass `number` of stage `step` over one window; earlier stages must have settled."""
    clock = clock or Clock()
    stage = stages[step]
    halo = stage.halo(specs[step])
    *before, block = run_chain(source, stages[:step], specs[: step + 1], stats[:step], core, halo, predictions, clock)
    block = replace(block, origin=before[-1] if before else None)
    with clock(stage.name):
        block = _with_guides(block, stage, source, stages[:step], stats[:step])
        return stage.measure(block, stats[step], number)
