"""Run a workflow over a catalog: some scenes at once, blocks in parallel, one bad scene stops nothing."""

import platform
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import cubeloom
from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.publish import write_index
from cubeloom.errors import CubeloomError, LockedError, RetryableError, StoreError
from cubeloom.pipeline.executor import open_executor
from cubeloom.pipeline.journal import Progress
from cubeloom.pipeline.memory import DEFAULT_MEMORY
from cubeloom.pipeline.store import COMMIT

from .batch import Batch, delay_s
from .budget import Budget
from .layout import Layout
from .ledger import LEASE_S, Ledger
from .outlet import Outlet
from .pairing import paired
from .run_log import RunLog
from .scene_task import SceneResult, SceneTask, Shared, content_of, open_item, plan_scene, request_key
from .schema import Workflow
from .sweep import STAGING_KEPT_S, sweep

if TYPE_CHECKING:
    from distributed import Client

    from cubeloom.catalogs.access import Access

Each = Callable[[CatalogItem, Callable[[], SceneResult]], SceneResult]
"""Called with an item and what makes its scene, so that others can watch over it or try again."""

LOOKING = 8
"""Scenes that are looked up at once: where products stand in an object store, each waits for its answer."""

MOST_DEATHS = 3
"""A scene over which so many processes in turn have died, and left no more than the one before, is given up."""


@dataclass(frozen=True)
class RunOptions:
    """How a run uses the machine.

    Attributes:
        workers: block tasks at a time.
        memory: bytes that the run may use; with a cluster other than `processes`, that each of its workers may.
        scenes: scenes under way at once, as far as the memory allows; 0 for as many as there are workers, at most 4.
        scheduler: a Dask cluster's address or client, or `processes` for a cluster of its own; None for threads.
        dashboard: whether a cluster of its own serves Dask's dashboard.
        retries: how often a scene is tried again whose failure may pass.
        wait_s: seconds to wait for another run on the same output.
        keep: how many versions of each product stay; None for all.
        publish_to: URL of an object store that finished products are pushed to as well, see `open_remote`.
        keep_local: whether what was pushed also stays under the output directory.
        give_up: leave alone what has killed `MOST_DEATHS` processes.
        resume: go on with unfinished products; otherwise they are begun anew.
    """

    workers: int = 2
    memory: int = DEFAULT_MEMORY
    scenes: int = 0
    scheduler: "str | Client | None" = None
    dashboard: bool = False
    retries: int = 2
    wait_s: float = 0.0
    keep: int | None = None
    publish_to: str | None = None
    keep_local: bool = True
    give_up: bool = True
    resume: bool = True

    @property
    def process_memory(self) -> int:
        """Bytes that each process with block tasks may use."""
        return self.memory // self.workers if self.scheduler == "processes" else self.memory


@dataclass(frozen=True)
class RunResult:
    """A whole run: when, what, and every scene."""

    run_id: str
    workflow: Workflow
    out: Path
    scenes: tuple[SceneResult, ...]
    seconds: float
    machine: str

    @property
    def exit_code(self) -> int:
        """0 when every scene has its product; 143 after a stop; 3 when some have none, 2 when the call is why."""
        codes = {scene.exit_code for scene in self.scenes}
        if 143 in codes:
            return 143
        return 0 if codes <= {0} else 2 if codes == {2} else 3


class SceneProgress:
    """What a run tells while it works; this one says nothing, the command line's draws bars."""

    def note(self, words: str) -> None:
        """Something about the run as a whole."""

    def scene(self, item: CatalogItem) -> Progress:
        """A scene begins; gives the function that its blocks are reported to."""
        return lambda what, done, total: None

    def ended(self, result: SceneResult) -> None:
        """A scene came to its end."""


def run(
    workflow: Workflow,
    items: Iterable[CatalogItem],
    out: Path,
    options: RunOptions = RunOptions(),
    progress: SceneProgress | None = None,
    stop: threading.Event | None = None,
    each: Each | None = None,
    guides: Iterable[CatalogItem] = (),
) -> RunResult:
    """Run a workflow over catalog items and publish what comes of it under `out`.

    What is published already with the same identity is left alone. A scene that fails is quarantined with its cause,
    and the others go on.

    Args:
        workflow: what is done to each scene.
        items: the scenes, and the guides of those that `pair` steps pair.
        out: the output directory.
        options: how the machine is used.
        progress: told what happens.
        stop: once set, the blocks under way come to their end, and nothing else is begun.
        each: called for each scene, by several threads, with its item and what makes it; gives back what that gives.
        guides: items that `pair` steps may take besides, see `paired`.

    Raises:
        LockedError: another run writes to `out`.
        ModelError: a model that the workflow names cannot be read; nothing is written.
        StoreError: the ledger under `out` cannot be read or written.
    """
    digest = workflow.digest()
    started = time.perf_counter()
    layout, stop = Layout(out), stop or threading.Event()
    try:
        with layout.locked(options.wait_s, stop), Ledger(layout.ledger) as ledger:
            if holder := ledger.holder():
                raise LockedError(
                    f"{out}: run {holder.run} on {holder.host} holds {holder.item}, its last sign of life was at "
                    f"{holder.heartbeat}; wait for it, or for its lease to end"
                )
            run_id = layout.new_run()
            with RunLog(layout.run(run_id)) as log:
                log.event("run begins", run=run_id, workflow=workflow.name, digest=digest, options=vars(options))
                work = _Run(workflow, digest, run_id, layout, ledger, log, options, progress, stop, each)
                scenes = work.scenes(paired(workflow, items, guides))
                log.event("run ends", seconds=time.perf_counter() - started, stopped=stop.is_set())
    except sqlite3.Error as error:
        raise StoreError(f"{layout.ledger}: the ledger cannot be used: {error}") from error
    machine = f"{platform.node()}, {platform.system()} {platform.machine()}, cubeloom {cubeloom.__version__}"
    return RunResult(run_id, workflow, out, tuple(scenes), time.perf_counter() - started, machine)


@dataclass
class _Run:
    """A run that holds the output directory."""

    workflow: Workflow
    digest: str
    run_id: str
    layout: Layout
    ledger: Ledger
    log: RunLog
    options: RunOptions
    progress: SceneProgress | None
    stop: threading.Event
    each: Each | None
    outlet: Outlet | None = field(init=False)
    report: SceneProgress = field(init=False)

    def __post_init__(self) -> None:
        self.report = self.progress or SceneProgress()
        url = self.options.publish_to
        self.outlet = Outlet.open(url, self.layout, keep_local=self.options.keep_local) if url else None

    def scenes(self, items: Sequence[CatalogItem]) -> list[SceneResult]:
        """What became of every item, in order."""
        self.ledger.take_over()
        sweep(self.layout, self.ledger, STAGING_KEPT_S if self.options.resume else 0.0)
        with ThreadPoolExecutor(LOOKING) as pool:
            settled = dict(enumerate(pool.map(self._settled, items)))
        results = {number: result for number, result in settled.items() if result}
        for result in results.values():
            self._ended(result)
        todo = [number for number in range(len(items)) if number not in results]
        wanted = {items[number].id: request_key(items[number], self.digest) for number in todo}
        guides = {item.id: {name: guide.id for name, guide in item.guides.items()} for item in items}
        self.ledger.claim(wanted, self.workflow.name, self.run_id, guides)
        with self._alive():
            if todo:
                self.layout.index_behind.touch()
                results |= self._make(items, todo)
            if self.layout.index_behind.exists() or not (self.layout.out / "catalog.json").exists():
                self._index()
        for number, item in enumerate(items):
            if number not in results:
                results[number] = SceneResult(item, "aborted", "the run was stopped before it began", 143)
        return [results[number] for number in range(len(items))]

    def _settled(self, item: CatalogItem) -> SceneResult | None:
        """A scene that needs no work: its product stands as it was asked for, or it has killed too many processes."""
        row = self.ledger.scene(item.id, self.workflow.name)
        if row is None or row.request != request_key(item, self.digest):
            return None
        if row.state == "succeeded" and row.request and self._stands(item.id, row.identity):
            product = self.layout.product(item.id, self.workflow.name, row.identity)
            return SceneResult(item, "unchanged", identity=row.identity, product=product)
        if self.options.give_up and row.deaths >= MOST_DEATHS:
            return self._given_up(item, row.deaths)
        return None

    def _stands(self, item: str, identity: str) -> bool:
        """Whether a product is published where it shall be."""
        if self.outlet is None:
            return self.layout.stands(item, self.workflow.name, identity)
        product = self.layout.product(item, self.workflow.name, identity)
        return self.outlet.stands(self.layout.item(item, self.workflow.name), product)

    def _fetched(self, item: CatalogItem) -> CatalogItem:
        """The item with its files, and those of its guides, on this machine."""
        folder = self.layout.inputs(item.id)
        guides = {name: self._downloaded(guide, folder / name) for name, guide in item.guides.items()}
        return replace(self._downloaded(item, folder), guides=guides)

    def _downloaded(self, item: CatalogItem, folder: Path) -> CatalogItem:
        if not item.is_remote:
            return item
        from cubeloom.catalogs.download import download_item

        return download_item(item, folder, self.access)

    @cached_property
    def access(self) -> "Access":
        """One for all scenes, since it counts the requests to each host."""
        from cubeloom.catalogs.access import Access

        return Access.from_environment()

    def _given_up(self, item: CatalogItem, deaths: int) -> SceneResult:
        cause = (
            f"{deaths} processes in turn died over this scene, and none got further than the one before (out of "
            "memory, or a crash in a library?); it stays until its files or the workflow change, or --again is given"
        )
        self.ledger.end(item.id, self.workflow.name, "failed", cause=cause)
        self.layout.put_aside(item.id, self.workflow.name, {"item": item.id, "state": "failed", "cause": cause})
        return SceneResult(item, "failed", cause, 3)

    def _index(self) -> None:
        write_index(self.layout.out)
        if self.outlet:
            try:
                self.outlet.send_index()
            except (RetryableError, StoreError) as error:  # the products stand; the next run sends it
                self.report.note(f"warning: the index was not sent: {error}")
                self.log.event("index not sent", cause=str(error))
                return
        self.layout.index_behind.unlink(missing_ok=True)

    def _make(self, items: Sequence[CatalogItem], todo: Sequence[int]) -> dict[int, SceneResult]:
        """Make what is to be made: first, one by one, what a process died over, so that it is known which it is."""
        options = self.options
        died = {row.item for row in self.ledger.scenes() if row.workflow == self.workflow.name and row.deaths}
        suspects = [number for number in todo if items[number].id in died]
        others = [number for number in todo if items[number].id not in died]
        results: dict[int, SceneResult] = {}
        cluster = (options.workers, options.scheduler, self.stop)
        with open_executor(*cluster, dashboard=options.dashboard) as executor:
            if executor.dashboard:
                self.report.note(f"dashboard: {executor.dashboard}")
            shared = Shared(
                workflow=self.workflow,
                digest=self.digest,
                workers=executor.workers,
                layout=self.layout,
                ledger=self.ledger,
                log=self.log,
                executor=executor,
                memory=options.process_memory,
                budget=Budget(options.process_memory * (1 if executor.shares_memory else executor.workers)),
                fetch=self._fetched,
                stands=self._stands,
                keep=options.keep,
                outlet=self.outlet,
            )
            for numbers, at_once in ((suspects, 1), (others, options.scenes or min(executor.workers, 4))):
                made = self._batch([items[number] for number in numbers], shared, at_once)
                results |= {numbers[place]: result for place, result in made.items()}
        return results

    def _batch(self, items: Sequence[CatalogItem], shared: Shared, at_once: int) -> dict[int, SceneResult]:
        tasks = [partial(self._one, item, shared) for item in items]
        return Batch(tasks, at_once, self._again, self.stop).run()

    def _one(self, item: CatalogItem, shared: Shared) -> SceneResult:
        make = SceneTask(item, shared, self.report.scene(item)).run
        return self.each(item, make) if self.each else make()

    def _again(self, number: int, result: SceneResult, runs: int) -> float | None:
        """In how many seconds a scene is tried again; if not, it has come to its end."""
        result.attempts = runs
        if result.retryable and runs <= self.options.retries and not self.stop.is_set():
            delay = max(delay_s(runs), result.wait_s)
            self.log.event("scene waits", item=result.item.id, cause=result.cause, seconds=delay)
            self.report.note(f"{result.item.id}: tried again in {delay:.0f} s: {result.cause}")
            return delay
        self._ended(result)
        return None

    def _ended(self, result: SceneResult) -> None:
        self.log.event(
            "scene ends",
            item=result.item.id,
            state=result.state,
            cause=result.cause,
            attempts=result.attempts,
            identity=result.identity,
            product=result.product,
            seconds={phase: round(spent, 4) for phase, spent in result.seconds.items()},
            blocks=result.blocks,
            resumed_blocks=result.resumed_blocks,
            bytes=result.nbytes,
            peak_mib=round(result.peak_mib, 1),
            warnings=result.warnings,
        )
        self.log.say(scene_line(result))
        self.report.ended(result)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Give signs of life for as long as the run works, and let go of its scenes at the end."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(LEASE_S / 4):
                self.ledger.beat(self.run_id)

        heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()
            self.ledger.release(self.run_id)


def scene_line(result: SceneResult) -> str:
    """One scene's end in one line; a failed one with its cause."""
    line = f"{result.item.id}: {result.state}"
    if result.state == "published":
        resumed = f", {result.resumed_blocks} of them from an earlier run" if result.resumed_blocks else ""
        blocks = f"{result.blocks} block{'' if result.blocks == 1 else 's'}"
        line += f" in {sum(result.seconds.values()):.1f} s ({blocks}{resumed}) -> {result.product}"
    if result.cause:
        line += f"\n  cause: {result.cause}"
    return "".join([line, *(f"\n  warning: {warning}" for warning in result.warnings)])


@dataclass(frozen=True)
class PlannedScene:
    """A line of `--dry-run`: what would be done to a scene, in which memory, under which identity."""

    item: str
    action: str
    detail: str
    identity: str = ""
    projected_mib: float = 0.0
    blocks: int = 0


def dry_run(
    workflow: Workflow,
    items: Sequence[CatalogItem],
    out: Path,
    options: RunOptions,
    guides: Iterable[CatalogItem] = (),
) -> list[PlannedScene]:
    """Plan every scene and write nothing.

    Raises:
        ModelError: a model that the workflow names cannot be read.
    """
    digest = workflow.digest()
    layout = Layout(out)
    planned = []
    for item in paired(workflow, items, guides):
        try:
            workflow.require_item(item)
            source = open_item(workflow, item)
            plan = plan_scene(
                workflow,
                source,
                options.workers,
                options.process_memory,
                together=options.scheduler is None,
                content=content_of(item),
                digest=digest,
            )
        except CubeloomError as error:
            planned.append(PlannedScene(item.id, "fail", str(error)))
            continue
        standing = (layout.product(item.id, workflow.name, plan.identity) / COMMIT).is_file()
        steps = " > ".join(stage.name for stage in plan.stages) or "ingest"
        skipped = [f"{stage.name} skipped: {stage.skipped}" for stage in workflow.stages() if stage.skipped]
        seen_with = [f"with {name} {guide.id}" for name, guide in item.guides.items()]
        size = f"{plan.block_shape[0]} x {plan.block_shape[1]} px"
        detail = "; ".join([f"{steps} on {size} blocks", *seen_with, *skipped])
        action = "nothing to do" if standing else "make"
        mib = plan.projected_bytes / 2**20
        planned.append(PlannedScene(item.id, action, detail, plan.identity, mib, plan.blocks))
    return planned
