"""A plan carried out: the statistics, the networks' tiles, the blocks, the finished store.

This is the one way a product is made from files: the batch runner calls it with a ledger that outlives the process,
the single-scene commands with a journal in memory.
"""

import math
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
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

from cubeloom.errors import ConfigError, StoreError

from . import store
from .blocks import Block, run_chain
from .chunks import Written, write_block, write_overviews
from .encoding import Array, Encoding, Packed
from .executor import Executor
from .grids import CHUNK, STATISTICS_BLOCK, Window, tile
from .journal import Journal, MemoryJournal, Progress
from .memory import DEFAULT_MEMORY, READ_AHEAD
from .passes import Settled, drop_scratch, settle
from .plan import Plan, make_plan
from .readers.base import Source
from .readers.store import StoreSource
from .scene import SceneSpec, spec_of
from .stages.base import Stage

UNHASHED = "not hashed"
"""The content of an input that nobody needs to tell from another: hashing a product takes as long as reading it."""


def execute(plan: Plan, staged: Path, journal: Journal, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Make a product in staging: statistics, tiles, blocks, seal. What the journal holds already is not done again.

    Returns:
        The commit record's own entries: identity, history and counts.
    """
    if not staged.exists() or not (journal.chunks() or journal.tiles()):
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
        keep("ingest", work.ingest, _ingest(source, plan.measured, staged, executor, work.ingest))
        source = StoreSource(staged, "", source.spec)
    if work.steps:
        settled = settle(plan, source, staged, journal, executor, progress)
        keep("steps", work.steps, executor.map(partial(_block_task, plan, source, settled, staged), work.steps))
    drop_scratch(staged)
    record = {
        "identity": None if plan.content == UNHASHED else plan.identity,
        "scene_id": source.spec.scene_id,
        "source": plan.content,
        "stages": [stage.fingerprint() for stage in plan.stages],
        "clipped": dict(journal.clipped()),
    }
    progress("verify", 0, 1)
    store.seal(staged, plan.groups, journal.chunks(), record, executor.map)
    progress("verify", 1, 1)
    return record


def _ingest(
    source: Source, spec: SceneSpec, staged: Path, executor: Executor, windows: Sequence[Window]
) -> Iterator[Written]:
    """Write blocks as they are read; what each one left.

    All threads work on the same variable of the same block, so that memory holds few of them; the next ones are read
    while it is written, so that no thread waits.
    """
    items = [(window, name) for window in windows for name in spec.variables]
    spare: dict[str, list[Array]] = {name: [] for name in spec.variables}
    readings = (_Reading.start(source, window, name, spare[name], executor) for window, name in items)
    ahead = deque(islice(readings, READ_AHEAD))
    written = Written({}, 0, {})
    for number, (window, name) in enumerate(items):
        reading = ahead.popleft()
        one = replace(spec, variables={name: spec.variables[name]})
        block = Block(one, window, window, {name: reading.finish()})
        writing = [
            executor.submit(write, staged, block.crop(part))
            for write, edge in ((write_overviews, 4 * CHUNK), (write_block, CHUNK))
            for part in window.tiles((edge, edge))
        ]
        del block
        ahead.extend(islice(readings, 1))
        while writing:
            written += writing.pop(0).result()
        spare[name].append(reading.memory)
        if number + 1 == len(items) or items[number + 1][0] != window:
            yield written
            written = Written({}, 0, {})


@dataclass(frozen=True, eq=False)
class _Reading:
    """A variable over a window, whose bands are read in parts by several threads."""

    encoding: Encoding
    memory: Array
    whole: Array
    parts: list[slice]
    futures: "list[Future[Array | Packed]]"

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
            return cls(variable.encoding, memory, whole, [slice(None)], [executor.submit(source.read, name, window)])
        step = -(-sizes[0] // (2 * executor.workers))
        parts = [slice(start, min(start + step, sizes[0])) for start in range(0, sizes[0], step)]
        futures = [executor.submit(source.read, name, window, part, whole[part]) for part in parts]
        return cls(variable.encoding, memory, whole, parts, futures)

    def finish(self) -> Array | Packed:
        """The pixels, once all parts are read."""
        packed = False
        for part, future in zip(self.parts, self.futures, strict=True):
            array = future.result()
            packed = isinstance(array, Packed)
            numbers = array.data if isinstance(array, Packed) else array
            if not np.shares_memory(numbers, self.whole[part]):
                self.whole[part] = numbers
        return Packed(self.whole, self.encoding) if packed else self.whole


def _block_task(plan: Plan, source: Source, settled: Settled, staged: Path, core: Window) -> Written:
    """One block through the steps, and what they make into the store; doing it again leaves the same files."""
    written = Written({}, 0, {})
    made = run_chain(source, plan.stages, plan.specs, settled.stats, core, 0, settled.predictions)
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
