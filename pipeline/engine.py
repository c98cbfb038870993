"""A plan carried out: the statistics, the networks' tiles, the blocks, the finished store.

This is the one way a product is made from files: the batch runner calls it with a ledger that outlives the process,
the single-scene commands with a journal in memory.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed

from cubeloom.errors import ConfigError, RetryableError, Stopped, StoreError

from . import store
from .blocks import Block, guide_blocks, run_chain
from .chunks import Written, laid_out, write_block, write_overviews
from .clock import Clock, Seconds
from .encoding import Array, Encoding, Packed
from .executor import Executor, Pending, open_executor
from .grids import STATISTICS_BLOCK, Window, tile
from .guided import guides_of, with_guides
from .journal import Journal, MemoryJournal, Progress
from .memory import DEFAULT_MEMORY, read_ahead
from .passes import Making, Noted, Settled, drop_scratch, facts, settle
from .plan import Plan, make_plan
from .readers.base import Source
from .readers.store import StoreSource
from .scene import SceneSpec, spec_of
from .stages.base import Stage

UNHASHED = "not hashed"
"""The content of an input that nobody needs to tell from another: hashing a product takes as long as reading it."""


Blocks = Generator[tuple[Window, Written], None, None]
"""Blocks as they get done, and what each one left."""


def unnoted(phase: str, window: Window, seconds: Seconds, nbytes: int) -> None:
    """Takes no note of a piece of work."""


def execute(
    plan: Plan, staged: Path, journal: Journal, executor: Executor, progress: Progress, noted: Noted = unnoted
) -> dict[str, Any]:
    """Make a product in staging: statistics, tiles, blocks, seal. What the journal holds already is not done again.

    Args:
        plan: what to make.
        staged: the store to be; all workers of a cluster must see it under this path.
        journal: what is done already, and the record of what gets done.
        executor: runs the tasks; the product is the same to the last bit whichever it is.
        progress: hears how much of each phase is done.
        noted: hears of every finished block, part of the statistics and group of tiles.

    Returns:
        The commit record's own entries: identity, steps, counts, and what the steps found out.

    Raises:
        Stopped: the executor was stopped; what was under way is in the journal.
        RetryableError: the executor lost its workers.
    """
    try:
        return _execute(Making(plan, staged, journal, executor, progress, noted))
    except RetryableError as error:
        raise RetryableError(f"{plan.source.spec.scene_id}: {error}") from error


def _execute(making: Making) -> dict[str, Any]:
    plan, staged, journal, executor = making.plan, making.staged, making.journal, making.executor
    if not staged.exists() or not (journal.chunks() or journal.tiles()):
        store.create(staged, plan.groups)
    work = plan.missing(journal.chunks())
    source = plan.source
    if plan.measured:
        _keep(making, "ingest", _ingest(source, plan.measured, staged, executor, work.ingest))
        stored = replace(source.spec, chunk=plan.edge)
        source = with_guides(StoreSource(staged, "", stored), guides_of(source))
    settled = settle(making, source, tiles=bool(work.steps))
    if work.steps:
        common = plan, source, settled, staged
        _keep(making, "steps", executor.completed(_block_task, work.steps, common=common))
    drop_scratch(staged)
    record: dict[str, Any] = {
        "identity": None if plan.content == UNHASHED else plan.identity,
        "scene_id": source.spec.scene_id,
        "source": plan.content,
        "stages": [stage.fingerprint() for stage in plan.stages],
        "clipped": dict(journal.clipped()),
    }
    if found := facts(plan, settled):
        record["facts"] = found
    making.progress("verify", 0, 1)
    store.seal(staged, plan.groups, journal.chunks(), record, executor.map)
    making.progress("verify", 1, 1)
    return record


def _keep(making: Making, what: str, blocks: Blocks) -> None:
    """Put blocks on record as they get done."""
    left = making.plan.missing(making.journal.chunks())
    total = making.plan.blocks
    done = total - len(left.ingest) - len(left.steps)
    making.progress(what, done, total)
    with closing(blocks):
        for window, written in blocks:
            making.journal.add_block(window, written)
            making.noted(what, window, written.seconds, written.nbytes)
            done += 1
            making.progress(what, done, total)


def _ingest(source: Source, spec: SceneSpec, staged: Path, executor: Executor, windows: Sequence[Window]) -> Blocks:
    """Write blocks as they are read."""
    if not executor.shares_memory:
        return executor.completed(_ingest_task, windows, common=(source, spec, staged))
    return _ingest_together(source, spec, staged, executor, windows)


def _ingest_task(source: Source, spec: SceneSpec, staged: Path, window: Window) -> Written:
    """One block from its files into the store, variable by variable; doing it again leaves the same files."""
    written = Written({}, 0, {})
    for name in spec.variables:
        clock = Clock()
        with clock("read"):
            block = _block_of(spec, window, name, source.read(name, window))
        written += Written({}, 0, {}, clock.seconds)
        for write, part in _writes(window, spec.chunk):
            written += write(staged, block.crop(part))
    return written


def _block_of(spec: SceneSpec, window: Window, name: str, array: Array | Packed) -> Block:
    """A block of one variable alone."""
    one = replace(spec, variables={name: spec.variables[name]})
    return Block(one, window, window, {name: array})


def _writes(window: Window, edge: int) -> list[tuple[Callable[[Path, Block], Written], Window]]:
    """What writes a block of one variable: parts that make whole overview chunks, and chunks, of an edge in px."""
    return [
        (write, part)
        for write, side in ((write_overviews, 4 * edge), (write_block, edge))
        for part in window.tiles((side, side))
    ]


def _ingest_together(
    source: Source, spec: SceneSpec, staged: Path, executor: Executor, windows: Sequence[Window]
) -> Blocks:
    """Write blocks as they are read, with all threads on the same variable of the same block.

    So memory holds few of them; the next ones are read while it is written, so that no thread waits.
    """
    items = [(window, name) for window in windows for name in spec.variables]
    spare: dict[str, list[Array]] = {name: [] for name in spec.variables}
    readings = (_Reading.start(source, window, name, spare[name], executor) for window, name in items)
    largest = max((window.shape for window in windows), key=math.prod, default=(0, 0))
    ahead = deque(islice(readings, read_ahead(spec, largest)))
    written = Written({}, 0, {})
    for number, (window, name) in enumerate(items):
        reading = ahead.popleft()
        array, seconds = reading.finish()
        block = _block_of(spec, window, name, array)
        writing = [executor.submit(write, staged, block.crop(part)) for write, part in _writes(window, spec.chunk)]
        del block, array
        ahead.extend(islice(readings, 1))
        written += Written({}, 0, {}, {"read": seconds})
        while writing:
            written += writing.pop(0).result()
        spare[name].append(reading.memory)
        if number + 1 == len(items) or items[number + 1][0] != window:
            yield window, written
            written = Written({}, 0, {})
            if executor.stop.is_set() and number + 1 < len(items):
                raise Stopped("stopped as asked; what was under way is done, run again to go on")


@dataclass(frozen=True, eq=False)
class _Reading:
    """A variable over a window, whose bands are read in parts by several threads."""

    encoding: Encoding
    memory: Array
    whole: Array
    parts: list[slice]
    futures: list[Pending[tuple[Array | Packed, float]]]

    @classmethod
    def start(cls, source: Source, window: Window, name: str, spare: list[Array], executor: Executor) -> "_Reading":
        """Begin to read, into the memory of a block that is done with where there is some: fresh pages are dear."""
        variable = source.spec.variables[name]
        sizes = (*source.spec.sizes(name)[:-2], *window.shape)
        dtype = np.dtype(variable.encoding.dtype if source.exact else variable.encoding.decoded_dtype)
        nbytes = math.prod(sizes) * dtype.itemsize
        memory = spare.pop() if spare and spare[-1].size >= nbytes else np.empty(nbytes, np.uint8)
        whole = memory[:nbytes].view(dtype).reshape(sizes)
        if variable.dims[0] != "band":
            return cls(variable.encoding, memory, whole, [slice(None)], [executor.submit(_read, source, name, window)])
        step = -(-sizes[0] // (2 * executor.workers))
        parts = [slice(start, min(start + step, sizes[0])) for start in range(0, sizes[0], step)]
        futures = [executor.submit(_read, source, name, window, part, whole[part]) for part in parts]
        return cls(variable.encoding, memory, whole, parts, futures)

    def finish(self) -> tuple[Array | Packed, float]:
        """The pixels, once all parts are read, and the seconds that all threads took."""
        packed, clipped, total = False, None, 0.0
        for part, future in zip(self.parts, self.futures, strict=True):
            array, seconds = future.result()
            total += seconds
            packed = isinstance(array, Packed)
            numbers = array.data if isinstance(array, Packed) else array
            if not np.shares_memory(numbers, self.whole[part]):
                self.whole[part] = numbers
            if isinstance(array, Packed) and array.clipped is not None:
                clipped = np.zeros(self.whole.shape, bool) if clipped is None else clipped
                clipped[part] = array.clipped
        return Packed(self.whole, self.encoding, clipped) if packed else self.whole, total


def _read(
    source: Source, name: str, window: Window, bands: slice | None = None, out: Array | None = None
) -> tuple[Array | Packed, float]:
    """What `source.read` gives, and the seconds it took."""
    started = time.perf_counter()
    array = source.read(name, window, bands, out)
    return array, time.perf_counter() - started


def _block_task(plan: Plan, source: Source, settled: Settled, staged: Path, core: Window) -> Written:
    """One block through the steps, and what they make into the store; doing it again leaves the same files."""
    clock = Clock()
    written = Written({}, 0, {}, clock.seconds)
    made = run_chain(source, plan.stages, plan.specs, settled.stats, core, 0, settled.predictions, clock)
    with clock("read"):
        made += guide_blocks(source, plan.stages, plan.specs[-1], settled.stats, core)
    blocks = {block.spec.group: block for block in made}
    for spec in plan.derived:
        block = replace(blocks[spec.group], spec=spec)
        written += write_block(staged, block)
        written += write_overviews(staged, block)
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
    executor: Executor | None = None,
) -> Plan:
    """Take one source through stages into a store at `out`, published by a rename.

    The tasks run on `executor`, by default on as many threads of this process as there are `workers`.

    Raises:
        ConfigError: `out` exists and `overwrite` is not set.
    """
    _require_free(out, overwrite)
    plan = make_plan(source, stages, workers=workers, memory=memory, content=UNHASHED)
    with _staging(out) as staged, nullcontext(executor) if executor else open_executor(workers) as running:
        execute(plan, staged, MemoryJournal(), running, progress)
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
    (spec,) = laid_out([replace(spec_of(scene), group="", scale=1)])
    with _staging(out) as staged:
        store.create(staged, [spec])
        arrays = {name: da.asarray(scene[name].data, name=False) for name in spec.variables}  # hashes no pixels
        write = delayed(partial(_write_window, staged, spec), pure=False)  # Dask would search all of the spec
        edge = (STATISTICS_BLOCK, STATISTICS_BLOCK)
        tasks = [
            write(window, {name: array[(..., *window.slices)] for name, array in arrays.items()})
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
