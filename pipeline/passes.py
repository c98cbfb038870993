"""What must be known of a whole scene before its blocks are made: statistics, and the tiles of networks.

Both are computed once, whatever the blocks, and recorded piece by piece, so that a run that was cut off goes on there.
"""

import ctypes
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cubeloom.errors import StoreError

from .blocks import Predictions, measure_block, read_tile
from .clock import Clock, Seconds
from .encoding import Array
from .executor import Executor
from .grids import STATISTICS_BLOCK, Window, tile
from .journal import Journal, Progress, TileRecord
from .plan import Plan
from .readers.base import Source
from .stages.base import NO_STATS, Fact, Stats, add_stats
from .tiles import Lattice, blend

Noted = Callable[[str, Window, Seconds, int], None]
"""Called with every finished piece of work: the phase, its window, the seconds by step, and the bytes written."""

SCRATCH = ".tiles"
"""Folder inside a staged store that holds the tiles; it goes before the store is sealed."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What the steps need of the whole scene.

    Attributes:
        stats: what the statistics of every step settled to; empty for one without passes, or before them.
        predictions: what the networks gave, by step and window.
    """

    stats: list[Stats]
    predictions: Predictions


@dataclass(frozen=True)
class Making:
    """What is on its way: whom a plan's pieces are handed to, and who hears of them.

    Attributes:
        plan: the plan.
        staged: the store, in staging.
        journal: what is done already, and the record of what gets done.
        executor: runs the tasks.
        progress: hears how much is done.
        noted: hears of every piece.
    """

    plan: Plan
    staged: Path
    journal: Journal
    executor: Executor
    progress: Progress
    noted: Noted


def settle(making: Making, source: Source, *, tiles: bool = True) -> Settled:
    """Take the statistics of every step, and compute the tiles of those with a network, each after all before it.

    Without `tiles` no network is run: all blocks that it is for stand already.
    """
    plan = making.plan
    scratch = Scratch(making.staged / SCRATCH, plan)
    known = Settled([NO_STATS for _ in plan.stages], scratch.read)
    for step, stage in enumerate(plan.stages):
        for number in range(stage.passes):
            total = _total(making, source, known, (step, number))
            known.stats[step] = stage.settle(total, known.stats[step], number, plan.specs[step])
        if tiles and step in scratch.lattices:
            _compute_tiles(making, source, known, scratch, step)
    return known


def facts(plan: Plan, known: Settled) -> dict[str, dict[str, Fact]]:
    """What the steps found out of the whole scene, by their names; of two of one name the second is `name-2`."""
    found: dict[str, dict[str, Fact]] = {}
    for stage, spec, settled in zip(plan.stages, plan.specs, known.stats, strict=False):
        if told := stage.facts(settled, spec):
            count = sum(name.partition("-")[0] == stage.name for name in found)
            found[f"{stage.name}-{count + 1}" if count else stage.name] = dict(told)
    return found


def _total(making: Making, source: Source, known: Settled, at: tuple[int, int]) -> Stats:
    """Sums over the whole scene of one pass of one step, added in the order of the blocks."""
    plan, journal, progress = making.plan, making.journal, making.progress
    stage = plan.stages[at[0]]
    windows = list(tile(plan.source.spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)))
    sums = {part: journal.statistics(*at, part) for part in range(len(windows))}
    todo = [part for part, one in sums.items() if one is None]
    what = f"{stage.name} statistics {at[1] + 1}/{stage.passes}"
    done = len(windows) - len(todo)
    progress(what, done, len(windows))
    common = plan, source, known, windows, at
    with closing(making.executor.completed(_measure_task, todo, common=common)) as results:
        for part, (one, seconds) in results:
            journal.add_statistics(*at, part, one)
            sums[part] = one
            done += 1
            making.noted(what, windows[part], seconds, 0)
            progress(what, done, len(windows))
    total: Stats = NO_STATS
    for part in range(len(windows)):
        total = add_stats(total, sums[part] or NO_STATS)
    return total


def _measure_task(
    plan: Plan, source: Source, known: Settled, windows: Sequence[Window], at: tuple[int, int], part: int
) -> tuple[Stats, Seconds]:
    clock = Clock()
    chain = plan.stages, plan.specs, known.stats
    return measure_block(source, *chain, windows[part], *at, known.predictions, clock), clock.seconds


def _compute_tiles(making: Making, source: Source, known: Settled, scratch: "Scratch", step: int) -> None:
    """Compute the tiles of a step that are not on the disk yet."""
    plan, journal, executor = making.plan, making.journal, making.executor
    lattice = scratch.lattices[step]
    records = journal.tiles()
    standing = {n for n in range(len(lattice)) if (step, n) in records and scratch.holds(step, records[step, n])}
    groups = list(lattice.groups(scratch.at_once[step]))
    todo = [group for group in groups if not standing.issuperset(group)]
    done = len(lattice) - sum(map(len, todo))
    what = f"{plan.stages[step].name} network"
    making.progress(what, done, len(lattice))
    at_once = plan.tile_workers if executor.shares_memory else None  # else every worker has memory of its own
    threads = threads_of(len(todo), at_once) if at_once else [1] * len(todo)
    tasks = list(zip(todo, threads, strict=True))
    common = plan, source, known, scratch, step
    with closing(executor.completed(_tile_task, tasks, at_once, common)) as results:
        for (group, _), (made, seconds) in results:
            journal.add_tiles(step, made)
            done += len(group)
            making.noted(what, _around([lattice.window(number) for number in group]), seconds, 0)
            making.progress(what, done, len(lattice))


def _around(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of them."""
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    stop_row, stop_col = max(window.stop[0] for window in windows), max(window.stop[1] for window in windows)
    return Window(row, col, stop_row - row, stop_col - col)


def threads_of(groups: int, workers: int) -> list[int]:
    """Threads for every group of tiles: the last ones share the workers that find no group of their own."""
    last = groups % workers
    return [1] * (groups - last) + [workers // max(last, 1)] * last


def _tile_task(
    plan: Plan, source: Source, known: Settled, scratch: "Scratch", step: int, task: tuple[Sequence[int], int]
) -> tuple[list[TileRecord], Seconds]:
    """One group of tiles through the steps before and the network, onto the disk; again, it leaves the same files."""
    group, threads = task
    clock = Clock()
    chain = plan.stages, plan.specs, known.stats
    windows = [scratch.lattices[step].window(number) for number in group]
    blocks = [read_tile(source, *chain, window, step, known.predictions, clock) for window in windows]
    with clock(plan.stages[step].name):
        made = plan.stages[step].infer(blocks, known.stats[step], threads)
    del blocks
    give_back()
    with clock("write"):
        records = [
            TileRecord(number, scratch.write(step, number, images), made.how)
            for number, images in zip(group, made.images, strict=True)
        ]
    return records, clock.seconds


def give_back() -> None:
    """Return freed memory to the system.

    A network's tensors of some MiB leave each thread's heap in shreds that the C library keeps: over a long scene a
    process grew by half a GiB.
    """
    if _TRIM is not None:
        _TRIM(0)


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of the GNU C library alone."""


class Scratch:
    """The tiles of a product under way on the disk, and the blend of them over any window."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.lattices: dict[int, Lattice] = {}
        self.at_once: dict[int, int] = {}
        for step, (stage, spec) in enumerate(zip(plan.stages, plan.specs, strict=False)):
            tiling = stage.tiling(spec)
            if tiling is not None:
                self.lattices[step], self.at_once[step] = Lattice.of(spec.shape, tiling), tiling.at_once

    def _path(self, step: int, number: int) -> Path:
        return self.folder / f"{step}-{number}.npy"

    def read(self, step: int, window: Window) -> Array:
        """The blended images of a step over a window of its input grid, `(channel, y, x)`."""
        return blend(self.lattices[step], window, lambda number: self._map(step, number))

    def _map(self, step: int, number: int) -> Array:
        """A tile, of which only what is used is read."""
        path = self._path(step, number)
        try:
            images: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: a computed tile cannot be read: {error}; run again to compute it anew") from None
        return images

    def write(self, step: int, number: int, images: Array) -> int:
        """Put a tile in place whole; returns its checksum."""
        path = self._path(step, number)
        partial_path = path.with_suffix(".partial")
        try:
            self.folder.mkdir(exist_ok=True)
            with partial_path.open("wb") as file:
                np.save(file, np.ascontiguousarray(images, np.float32), allow_pickle=False)
            partial_path.replace(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot write a tile of {images.nbytes} bytes: {error.strerror}") from error
        return _checksum(path)

    def holds(self, step: int, record: TileRecord) -> bool:
        """Whether a tile stands as it was recorded: a power cut may have torn a file that a kill would not."""
        path = self._path(step, record.number)
        return path.is_file() and _checksum(path) == record.crc32


def drop_scratch(staged: Path) -> None:
    """Remove the tiles of a product whose blocks all stand."""
    shutil.rmtree(staged / SCRATCH, ignore_errors=True)


def _checksum(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, mode="r").data)
