"""A chain of stages over one source, into a store: the plan with its memory, the statistics, the blocks.

This is the one way a product is made from files: the batch runner calls it with a ledger that outlives the process,
the single-scene commands with a journal in memory.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed

from cubeloom.errors import ConfigError, StoreError

from . import store
from .blocks import Block, halos_before, measure_block, plan_chain, run_chain
from .chunks import Written, block_keys, clipped_by_variable, write_block
from .encoding import Array, Packed
from .executor import Executor
from .grids import CHUNK, STATISTICS_BLOCK, Shape, Window, tile
from .readers.base import Source
from .readers.store import StoreSource
from .scene import SceneSpec, spec_of
from .stages.base import NO_STATS, Stage, Stats, add_stats

BASE_BYTES = 350 * 2**20
"""What the process holds beside blocks: the interpreter, the libraries, and GDAL's cache."""

DEFAULT_MEMORY = 4 * 2**30

LARGEST_BLOCK = 512
"""Edge, px, of the largest block that goes through steps; beyond it the halo's share hardly falls any more."""

UNHASHED = "not hashed"
"""The content of an input that nobody needs to tell from another: hashing a product takes as long as reading it."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Journal(Protocol):
    """What is already done of a product, and the record of what gets done."""

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks that stand in staging."""
        ...

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        ...

    def add_block(self, window: Window, written: Written) -> None:
        """Record a finished block."""
        ...

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Partial sums recorded for a block of a statistics pass."""
        ...

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Record the partial sums of one block."""
        ...


class MemoryJournal:
    """A journal that ends with the process."""

    def __init__(self) -> None:
        self._chunks: dict[str, str] = {}
        self._clipped: dict[str, int] = {}

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks written so far."""
        return self._chunks

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        return clipped_by_variable(self._clipped)

    def add_block(self, window: Window, written: Written) -> None:
        """Remember a finished block."""
        self._chunks |= written.hashes
        self._clipped |= written.clipped

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Nothing is ever found: every pass runs once in a process."""
        return None

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Nothing needs remembering."""


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is known of a product before its first pixel is read.

    Attributes:
        source: where the pixels come from.
        stages: the steps that do something, in order.
        specs: the Scene before the first step and after each one.
        measured: the root group with what the source delivers, where it is published as it is: such variables are
            written first, in blocks that suit the file, and the steps read them back from the store, whose chunks
            cost a fraction of the file's tiles and strips to decode again for every pass. None where a step changes
            them (bands were selected) or the store would round them, so that the steps must read the file.
        derived: what the steps add, one spec a group, of the published variables alone.
        ingest_shape: height and width of a block that is written as it was read, px, whole chunks.
        block_shape: height and width of a block that goes through the steps, px of the source's grid, whole chunks.
        workers: block tasks at a time.
        projected_bytes: memory the run will need at its peak.
        content: digest of the content of the input files.
        identity: hex digest of everything that decides the product's bytes.
    """

    source: Source
    stages: tuple[Stage, ...]
    specs: tuple[SceneSpec, ...]
    measured: SceneSpec | None
    derived: tuple[SceneSpec, ...]
    ingest_shape: Shape
    block_shape: Shape
    workers: int
    projected_bytes: int
    content: str
    identity: str

    @property
    def groups(self) -> list[SceneSpec]:
        """What the store will hold, one spec a group, the native grid first."""
        by_group: dict[str, SceneSpec] = {}
        for spec in (*((self.measured,) if self.measured else ()), *self.derived):
            known = by_group.get(spec.group)
            by_group[spec.group] = replace(spec, variables={**known.variables, **spec.variables}) if known else spec
        return list(by_group.values())

    def missing(self, known: Mapping[str, str]) -> "Work":
        """The blocks some of whose chunks are not among the known ones."""
        ingest = _missing([self.measured] if self.measured else [], self._tiles(self.ingest_shape), known)
        return Work(ingest, _missing(self.derived, self._tiles(self.block_shape), known))

    @property
    def blocks(self) -> int:
        """How many block tasks the whole product takes."""
        work = self.missing({})
        return len(work.ingest) + len(work.steps)

    def _tiles(self, shape: Shape) -> list[Window]:
        return list(tile(self.source.spec.shape, shape))


@dataclass(frozen=True)
class Work:
    """Blocks to do: those that are written as they are read, and those that go through the steps."""

    ingest: list[Window]
    steps: list[Window]


def _missing(groups: Sequence[SceneSpec], windows: Sequence[Window], known: Mapping[str, str]) -> list[Window]:
    groups = [spec for spec in groups if spec.variables]
    return [window for window in windows if not set(block_keys(groups, window)) <= known.keys()]


def make_plan(
    source: Source,
    stages: Sequence[Stage],
    *,
    publish: Sequence[str] | None = None,
    workers: int = 1,
    memory: int = DEFAULT_MEMORY,
    content: str = "",
    workflow: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a chain over a source.

    Args:
        source: an open source.
        stages: the steps; those that say `skipped` are left out.
        publish: names of the variables to keep beside those of the source; by default all but cubes that a later
            step has replaced.
        workers: block tasks at a time.
        memory: bytes the run may use.
        content: digest of the input files' content, where it is known; by default they are hashed.
        workflow: what the workflow itself adds to the product's identity.

    Raises:
        InputError: a step cannot take the scene.
        ConfigError: `publish` names what no step makes, or even the smallest block exceeds the memory.
    """
    active = tuple(stage for stage in stages if not stage.skipped)
    specs = tuple(plan_chain(source.spec, active))
    groups = _published(specs, publish)
    measured, derived = _divide(source.spec, groups) if source.exact or not active else (None, groups)
    ingest = _ingest_shape(source, memory)
    shape, projected = _fit(source, active, specs, ingest, workers, memory)
    content = content or source.fingerprint()
    identity = _identity(content, active, groups, workflow or {})
    return Plan(source, active, specs, measured, derived, ingest, shape, workers, projected, content, identity)


def _divide(spec: SceneSpec, groups: Sequence[SceneSpec]) -> tuple[SceneSpec | None, tuple[SceneSpec, ...]]:
    """What is published as the source delivers it, and what the steps make."""
    root = groups[0]
    if root.group or any(root.variables.get(name) is not variable for name, variable in spec.variables.items()):
        return None, tuple(groups)
    added = {name: variable for name, variable in root.variables.items() if name not in spec.variables}
    return replace(root, variables=spec.variables), (replace(root, variables=added), *groups[1:])


def _published(specs: Sequence[SceneSpec], publish: Sequence[str] | None) -> tuple[SceneSpec, ...]:
    """The last spec of every group, with the variables that are to be kept."""
    finals = {spec.group: spec for spec in specs}
    made = {name for spec in finals.values() for name in spec.variables}
    if publish is not None and (unknown := sorted(set(publish) - made)):
        raise ConfigError(f"publish names {', '.join(unknown)}; the steps make {', '.join(sorted(made))}")
    groups = []
    for spec in finals.values():
        kept = {name: v for name, v in spec.variables.items() if _is_kept(name, spec, publish)}
        if kept:
            subject = spec.subject if spec.subject in kept else spec.measurement
            groups.append(replace(spec, variables=kept, subject=subject))
    return tuple(groups)


def _is_kept(name: str, spec: SceneSpec, publish: Sequence[str] | None) -> bool:
    variable = spec.variables[name]
    if name == spec.measurement or name in ("quality", "defect"):
        return True
    if publish is not None:
        return name in publish
    return not variable.is_cube or name == spec.subject


def _ingest_shape(source: Source, memory: int) -> Shape:
    """The block that suits the file, in squares that an overview chunk is made of, halved until it fits the budget."""
    shape = _whole_squares(source.block_shape, 2 * CHUNK)
    while _ingest_bytes(source.spec, shape) > memory and shape != (CHUNK, CHUNK):
        shape = _halved(shape)
    return shape


def _ingest_bytes(spec: SceneSpec, shape: Shape) -> int:
    """Peak memory of ingest: all threads share one block of one variable, read in parts and halved on the way out."""
    pixels = _pixels(spec, shape, spec.shape, 0)
    return BASE_BYTES + 2 * max(_variable_bytes(spec, name, pixels) for name in spec.variables)


def _fit(
    source: Source, stages: Sequence[Stage], specs: Sequence[SceneSpec], ingest: Shape, workers: int, memory: int
) -> tuple[Shape, int]:
    """The largest block whose way through the steps fits the budget, and the memory that the run takes."""
    spec = source.spec
    floor = _ingest_bytes(spec, ingest)
    if any(stage.passes for stage in stages):
        statistics = (STATISTICS_BLOCK, STATISTICS_BLOCK)
        floor = max(floor, BASE_BYTES + workers * _block_bytes(stages, specs, statistics, spec.shape))
    shape = (LARGEST_BLOCK, LARGEST_BLOCK)
    while True:
        steps = workers * _block_bytes(stages, specs, shape, spec.shape) if stages else 0
        projected = max(floor, BASE_BYTES + steps)
        if projected <= memory:
            return shape, projected
        if shape == (CHUNK, CHUNK) or not stages:
            raise ConfigError(
                f"{spec.scene_id}: projected memory {projected / 2**20:.0f} MiB = {BASE_BYTES / 2**20:.0f} MiB base + "
                f"{workers} workers x {(projected - BASE_BYTES) / workers / 2**20:.0f} MiB for a block with its halo; "
                f"the budget is {memory / 2**20:.0f} MiB. Give more memory, or fewer workers"
            )
        shape = _halved(shape)


def _halved(shape: Shape) -> Shape:
    """A block of half the size, cut across its longer side."""
    rows, cols = shape
    return _whole_squares((rows, cols // 2) if cols >= rows and cols > CHUNK else (rows // 2, cols), CHUNK)


def _whole_squares(shape: Shape, edge: int) -> Shape:
    rows, cols = (max(-(-size // edge), 1) * edge for size in shape)
    return rows, cols


def _block_bytes(stages: Sequence[Stage], specs: Sequence[SceneSpec], block: Shape, scene: Shape) -> int:
    """Bytes one block task holds at its peak: at some step, the arrays before and after it, and its work space."""
    halos = halos_before(specs, stages)
    peak = _array_bytes(specs[0], block, scene, halos[0])
    for stage, before, after, halo in zip(stages, specs[:-1], specs[1:], halos[:-1], strict=True):
        held = _array_bytes(before, block, scene, halo)
        cube = 4 * len(before.bands) * _pixels(before, block, scene, halo)
        factor = after.scale // before.scale
        made = _array_bytes(after, block, scene, halo * factor) - (
            held if factor == 1 and after.group == before.group else 0
        )
        peak = max(peak, held + max(made, 0) + int(stage.work_cubes * cube))
    return peak


def _pixels(spec: SceneSpec, block: Shape, scene: Shape, halo: int) -> int:
    height, width = (
        min(size + 2 * halo // spec.scale, full) * spec.scale for size, full in zip(block, scene, strict=True)
    )
    return height * width


def _array_bytes(spec: SceneSpec, block: Shape, scene: Shape, halo: int) -> int:
    pixels = _pixels(spec, block, scene, halo)
    return sum(_variable_bytes(spec, name, pixels) + _packed_bytes(spec, name, pixels) for name in spec.variables)


def _variable_bytes(spec: SceneSpec, name: str, pixels: int) -> int:
    return math.prod(spec.sizes(name)[:-2]) * pixels * spec.variables[name].encoding.decoded_dtype.itemsize


def _packed_bytes(spec: SceneSpec, name: str, pixels: int) -> int:
    encoding = spec.variables[name].encoding
    return math.prod(spec.sizes(name)[:-2]) * pixels * np.dtype(encoding.dtype).itemsize if encoding.scale else 0


def _identity(content: str, stages: Sequence[Stage], groups: Sequence[SceneSpec], workflow: Mapping[str, Any]) -> str:
    parts = {
        "layout": store.LAYOUT_VERSION,
        "source": content,
        "stages": [stage.fingerprint() for stage in stages],
        "variables": {spec.group: sorted(spec.variables) for spec in groups},
        "workflow": workflow,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def execute(plan: Plan, staged: Path, journal: Journal, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Make a product in staging: statistics, blocks, seal. What the journal holds already is not done again.

    Returns:
        The commit record's own entries: identity, history and counts.
    """
    if not staged.exists() or not journal.chunks():
        store.create(staged, plan.groups)
    work = plan.missing(journal.chunks())
    total = plan.blocks
    done = total - len(work.ingest) - len(work.steps)

    def keep(what: str, windows: Sequence[Window], results: Iterable[Written]) -> None:
        nonlocal done
        progress(what, done, total)
        for window, written in zip(windows, results, strict=True):
            journal.add_block(window, written)
            done += 1
            progress(what, done, total)

    source = plan.source
    if plan.measured:
        ingest = partial(_ingest_task, source, plan.measured, staged, executor.map, executor.workers)
        keep("ingest", work.ingest, map(ingest, work.ingest))
        source = StoreSource(staged, "", source.spec)
    if work.steps:
        stats = settle_statistics(plan, source, journal, executor, progress)
        keep("steps", work.steps, executor.map(partial(_block_task, plan, source, stats, staged), work.steps))
    record = {
        "identity": plan.identity,
        "scene_id": source.spec.scene_id,
        "source": plan.content,
        "stages": [stage.fingerprint() for stage in plan.stages],
        "clipped": dict(journal.clipped()),
    }
    progress("verify", 0, 1)
    store.seal(staged, plan.groups, journal.chunks(), record, executor.map)
    progress("verify", 1, 1)
    return record


def settle_statistics(
    plan: Plan, source: Source, journal: Journal, executor: Executor, progress: Progress
) -> list[Stats]:
    """What the statistics of every step settled to; a step without passes has none."""
    stats: list[Stats] = [NO_STATS for _ in plan.stages]
    windows = list(tile(plan.source.spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)))
    for step, stage in enumerate(plan.stages):
        for number in range(stage.passes):
            known = {part: journal.statistics(step, number, part) for part in range(len(windows))}
            todo = [part for part, sums in known.items() if sums is None]
            what = f"{stage.name} statistics {number + 1}/{stage.passes}"
            progress(what, len(windows) - len(todo), len(windows))
            measure = partial(_measure_task, plan, source, tuple(stats), windows, step, number)
            for part, sums in zip(todo, executor.map(measure, todo), strict=True):
                journal.add_statistics(step, number, part, sums)
                known[part] = sums
                progress(what, part + 1, len(windows))
            total: Stats = NO_STATS
            for part in range(len(windows)):
                total = add_stats(total, known[part] or NO_STATS)
            stats[step] = stage.settle(total, stats[step], number, plan.specs[step])
    return stats


def _measure_task(
    plan: Plan, source: Source, stats: Sequence[Stats], windows: Sequence[Window], step: int, number: int, part: int
) -> Stats:
    return measure_block(source, plan.stages, plan.specs, stats, windows[part], step, number)


def _ingest_task(
    source: Source, spec: SceneSpec, staged: Path, run: store.Submit, threads: int, core: Window
) -> Written:
    """One block as it was read, one variable after the other, all threads on the same block: memory holds it once."""
    written = Written({}, 0, {})
    for name, variable in spec.variables.items():
        array = _read_together(source, name, core, run, threads)
        block = Block(replace(spec, variables={name: variable}), core, core, {name: array})
        squares = [
            Window(core.row + part.row, core.col + part.col, part.height, part.width)
            for part in tile(core.shape, (2 * CHUNK, 2 * CHUNK))
        ]
        for part in run(partial(write_block, staged), [block.crop(square) for square in squares]):
            written += part
    return written


def _read_together(source: Source, name: str, window: Window, run: store.Submit, threads: int) -> Array | Packed:
    """A variable over a window; the bands of a cube are read in parts by several threads."""
    count = source.spec.sizes(name)[0] if source.spec.variables[name].dims[0] == "band" else 0
    if count < 2 * threads:
        return source.read(name, window)
    encoding = source.spec.variables[name].encoding
    whole = np.empty((count, *window.shape), encoding.dtype if source.exact else encoding.decoded_dtype)
    step = -(-count // (2 * threads))
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    packed = False
    for part, array in zip(parts, run(lambda part: source.read(name, window, part, whole[part]), parts), strict=True):
        packed = isinstance(array, Packed)
        numbers = array.data if isinstance(array, Packed) else array
        if not np.shares_memory(numbers, whole[part]):
            whole[part] = numbers
    return Packed(whole, encoding) if packed else whole


def _block_task(plan: Plan, source: Source, stats: Sequence[Stats], staged: Path, core: Window) -> Written:
    """One block through the steps, and what they make into the store; doing it again leaves the same files."""
    written = Written({}, 0, {})
    blocks = {block.spec.group: block for block in run_chain(source, plan.stages, plan.specs, stats, core)}
    for spec in plan.derived:
        written += write_block(staged, replace(blocks[spec.group], spec=spec))
    return written


def quiet(what: str, done: int, total: int) -> None:
    """A progress function that says nothing."""


def run_to_store(
    source: Source,
    stages: Sequence[Stage],
    out: Path,
    *,
    overwrite: bool = False,
    workers: int = 2,
    memory: int = DEFAULT_MEMORY,
    progress: Progress = quiet,
) -> Plan:
    """Take one source through stages into a store at `out`, published by a rename.

    Raises:
        ConfigError: `out` exists and `overwrite` is not set.
    """
    _require_free(out, overwrite)
    plan = make_plan(source, stages, workers=workers, memory=memory, content=UNHASHED)
    with _staging(out) as staged, Executor(workers) as executor:
        execute(plan, staged, MemoryJournal(), executor, progress)
        _replace(staged, out)
    return plan


def write_scene(scene: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a Scene, computing what is lazy block by block, and publish it by a rename.

    Args:
        scene: any Scene, as opened or as stages made it.
        path: the `.zarr` folder to make.
        overwrite: replace what stands at `path`, in one step, once the new store is complete.

    Returns:
        The path of the store.

    Raises:
        ConfigError: `path` exists and `overwrite` is not set.
        InputError: `scene` breaks the Scene contract.
    """
    out = Path(path)
    _require_free(out, overwrite)
    spec = replace(spec_of(scene), group="", scale=1)
    with _staging(out) as staged:
        store.create(staged, [spec])
        arrays = {name: da.asarray(scene[name].data) for name in spec.variables}
        write = delayed(_write_window, pure=False)
        edge = (STATISTICS_BLOCK, STATISTICS_BLOCK)
        tasks = [
            write(staged, spec, window, {name: array[(..., *window.slices)] for name, array in arrays.items()})
            for window in tile(spec.shape, edge)
        ]
        journal = MemoryJournal()
        for window, written in zip(tile(spec.shape, edge), compute(*tasks), strict=True):
            journal.add_block(window, written)
        record = {"identity": None, "scene_id": spec.scene_id, "clipped": dict(journal.clipped())}
        store.seal(staged, [spec], journal.chunks(), record, map)
        _replace(staged, out)
    return out


def _write_window(staged: Path, spec: SceneSpec, window: Window, arrays: Mapping[str, Any]) -> Written:
    return write_block(staged, Block(spec, window, window, arrays))


def _require_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give --overwrite (overwrite=True) to replace it")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A staging folder beside the target, on the same disk; gone afterwards, whether it was published or not."""
    staged = out.parent / f".{out.name}.staging"
    staged.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _replace(staged: Path, out: Path) -> None:
    """Publish at `out`; what stood there stays until the new store has its name."""
    old = out.parent / f".{out.name}.old"
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    try:
        store.publish(staged, out)
    except (OSError, StoreError):
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
