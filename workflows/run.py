"""Run a workflow over a catalog: scenes one after the other, blocks in parallel, one bad scene stops nothing."""

import errno
import hashlib
import platform
import resource
import shutil
import sqlite3
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

import cubeloom
from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.publish import publish_item, write_index
from cubeloom.errors import ConfigError, CubeloomError, InputError, StoreError
from cubeloom.pipeline import store
from cubeloom.pipeline.engine import execute
from cubeloom.pipeline.executor import Executor
from cubeloom.pipeline.journal import Progress, inference_summary
from cubeloom.pipeline.memory import DEFAULT_MEMORY
from cubeloom.pipeline.overviews import overview_factors
from cubeloom.pipeline.plan import Plan, make_plan
from cubeloom.pipeline.quicklook import write_quicklooks
from cubeloom.pipeline.readers import Source, open_scene, open_source

from .describe import product_record
from .layout import Layout
from .ledger import Ledger
from .schema import Workflow


@dataclass(frozen=True)
class RunOptions:
    """How a run uses the machine: blocks at a time, and bytes of memory."""

    workers: int = 2
    memory: int = DEFAULT_MEMORY


@dataclass
class SceneResult:
    """What became of one scene.

    Attributes:
        state: `published`, `unchanged`, `failed` or `invalid` (the workflow does not take such a scene).
        cause: why it failed or is invalid.
        exit_code: what a run of this scene alone ends with.
        seconds: wall time of each phase.
        warnings: what went wrong beside the product, such as a quicklook, or memory that a network found too small.
        inference: how the networks' tiles were computed, see `inference_summary`.
    """

    item: CatalogItem
    state: str = "failed"
    cause: str = ""
    exit_code: int = 0
    identity: str = ""
    product: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    blocks: int = 0
    resumed_blocks: int = 0
    nbytes: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    peak_mib: float = 0.0
    warnings: list[str] = field(default_factory=list)
    inference: list[dict[str, Any]] = field(default_factory=list)


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
        """0 when every scene has its product; 3 when some have none, or 2 when the call itself is why."""
        codes = {scene.exit_code for scene in self.scenes}
        return 0 if codes <= {0} else 2 if codes == {2} else 3


def run(
    workflow: Workflow,
    items: Iterable[CatalogItem],
    out: Path,
    options: RunOptions = RunOptions(),
    progress: "SceneProgress | None" = None,
) -> RunResult:
    """Run a workflow over catalog items and publish what comes of it under `out`.

    What is published already with the same identity is left alone. A scene that fails is quarantined with its cause,
    and the others go on.

    Raises:
        LockedError: another run writes to `out`.
        ModelError: a model that the workflow names cannot be read; nothing is written.
        StoreError: the ledger under `out` cannot be read or written.
    """
    workflow.digest()
    started = time.perf_counter()
    run_id = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    layout = Layout(out)
    report = progress or SceneProgress()
    results = []
    try:
        with layout.locked(), Ledger(layout.ledger) as ledger, Executor(options.workers) as executor:
            for item in items:
                task = _SceneTask(workflow, item, layout, ledger, executor, options, report)
                results.append(task.run())
                report.ended(results[-1])
            write_index(out)
    except sqlite3.Error as error:
        raise StoreError(f"{layout.ledger}: the ledger cannot be used: {error}") from error
    machine = f"{platform.node()}, {platform.system()} {platform.machine()}, cubeloom {cubeloom.__version__}"
    return RunResult(run_id, workflow, out, tuple(results), time.perf_counter() - started, machine)


class SceneProgress:
    """What a run tells while it works; this one says nothing, the command line's draws bars."""

    def scene(self, item: CatalogItem) -> Progress:
        """A scene begins; gives the function that its blocks are reported to."""
        return lambda what, done, total: None

    def ended(self, result: SceneResult) -> None:
        """A scene came to its end."""


@dataclass
class _SceneTask:
    """One scene's way from its product to the published store."""

    workflow: Workflow
    item: CatalogItem
    layout: Layout
    ledger: Ledger
    executor: Executor
    options: RunOptions
    progress: SceneProgress

    def run(self) -> SceneResult:
        result = SceneResult(self.item)
        try:
            self._make(result)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # noqa: BLE001 - one bad scene, whatever its trouble, stops nothing
            self._fail(result, error)
        else:
            if result.state in {"published", "unchanged"}:
                self._tidy(result.identity)
        result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return result

    def _tidy(self, identity: str) -> None:
        """The product stands: what is left of attempts under other identities goes, and so does the quarantine."""
        for abandoned in self.ledger.supersede(identity, self.item.id, self.workflow.name):
            shutil.rmtree(self.layout.staging(abandoned), ignore_errors=True)
        self.layout.release(self.item.id, self.workflow.name)

    def _make(self, result: SceneResult) -> None:
        with _timed(result, "open"):
            product = self.item.product_path
            try:
                source = open_source(product, **self.workflow.open)
                self.workflow.require(source.spec)
            except ConfigError as error:
                self._set_aside(result, "invalid", error)
                return
            plan = plan_scene(self.workflow, source, self.options, content_of(self.item))
        result.identity, result.blocks = plan.identity, plan.blocks
        result.product = self.layout.product(self.item.id, self.workflow.name, plan.identity)
        if self._stands(result.product):
            result.state = "unchanged"
            return
        self.ledger.begin(plan.identity, self.item.id, self.workflow.name)
        if not (result.product / store.COMMIT).is_file():
            self._build(plan, result)
        self._announce(plan, result)
        self.ledger.end(plan.identity, "succeeded", product=str(result.product))
        result.state = "published"

    def _stands(self, product: Path) -> bool:
        """Whether the product is published and the item points to it."""
        pointer = self.layout.item(self.item.id, self.workflow.name)
        return (product / store.COMMIT).is_file() and pointer.is_file() and product.name in pointer.read_text()

    def _build(self, plan: Plan, result: SceneResult) -> None:
        staged = self.layout.staging(plan.identity)
        journal = self.ledger.journal(plan.identity)
        if not staged.exists():
            self.ledger.forget(plan.identity)
        left = plan.missing(journal.chunks())
        result.resumed_blocks = plan.blocks - len(left.ingest) - len(left.steps)
        clock = _PhaseClock(result, self.progress.scene(self.item))
        record = execute(plan, staged, journal, self.executor, clock)
        clock.stop()
        result.clipped = record["clipped"]
        assert result.product is not None
        store.publish(staged, result.product)

    def _announce(self, plan: Plan, result: SceneResult) -> None:
        """Quicklooks beside the store, then the STAC item: the last thing written, since it publishes."""
        product = result.product
        assert product is not None
        result.inference = inference_summary(self.ledger.journal(plan.identity).tiles())
        result.warnings += [_fell_back(one) for one in result.inference if one["wanted"]]
        result.nbytes = sum(file.stat().st_size for file in product.rglob("*") if file.is_file())
        with _timed(result, "publish"):
            pictures = {}
            try:
                pictures = write_quicklooks(open_overview(product), product.with_suffix(".quicklooks"))
            except Exception as error:  # noqa: BLE001 - a picture must not cost the product
                result.warnings.append(f"no quicklooks: {describe(error)}")
            record = product_record(
                plan.groups[0],
                self.item,
                product,
                workflow=self.workflow.name,
                identity=plan.identity,
                commit_sha256=hashlib.sha256((product / store.COMMIT).read_bytes()).hexdigest(),
                pictures=pictures,
                properties={"cubeloom:inference": result.inference} if result.inference else {},
            )
            publish_item(self.layout.out, record)

    def _fail(self, result: SceneResult, error: Exception) -> None:
        if result.identity and (isinstance(error, InputError | StoreError) or _disk_is_full(error)):
            # What stands may be damaged, and fills the disk; first of all, since on a full one nothing can be written.
            shutil.rmtree(self.layout.staging(result.identity), ignore_errors=True)
            self.ledger.forget(result.identity)
        self._set_aside(result, "failed", error)

    def _set_aside(self, result: SceneResult, state: str, error: Exception) -> None:
        result.state, result.cause = state, describe(error)
        result.exit_code = 2 if state == "failed" and getattr(error, "exit_code", 1) == 2 else 3
        identity = result.identity or f"unplanned:{self.workflow.name}:{self.item.id}"
        self.ledger.begin(identity, self.item.id, self.workflow.name)
        self.ledger.end(identity, state, cause=result.cause)
        cause: dict[str, Any] = {
            "item": self.item.id,
            "document": str(self.item.self_path),
            "workflow": self.workflow.name,
            "state": state,
            "cause": result.cause,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if not isinstance(error, CubeloomError):
            cause["traceback"] = traceback.format_exception(error)
        self.layout.put_aside(self.item.id, self.workflow.name, cause)


def _fell_back(inference: dict[str, Any]) -> str:
    computed = "{device} x{batch} in {precision}".format(**inference)
    return (
        f"step {inference['step']}: memory did not suffice for {inference['wanted']}; {inference['tiles']} tiles were "
        f"computed on {computed}"
    )


def open_overview(product: Path, longest_side: int = 600) -> xr.Dataset:
    """The coarsest level of a store that is still `longest_side` px or more, or the native grid."""
    shape = open_source(product).spec.shape
    fitting = [factor for factor in overview_factors(shape) if max(shape) // factor >= longest_side]
    return open_scene(product, group=f"overviews/{fitting[-1]}") if fitting else open_scene(product)


def content_of(item: CatalogItem) -> str:
    """Digest of the item's files as its checksums tell it; empty where it has none, so that they must be hashed."""
    try:
        return item.content_key()
    except InputError:
        return ""


def plan_scene(workflow: Workflow, source: Source, options: RunOptions, content: str = "") -> Plan:
    """The plan of a workflow over one open source."""
    return make_plan(
        source,
        workflow.stages(),
        publish=workflow.publish,
        workers=options.workers,
        memory=options.memory,
        content=content,
        workflow={"workflow": workflow.digest()},
    )


def describe(error: BaseException) -> str:
    """An error in words: our own as they are, others with their class."""
    if isinstance(error, CubeloomError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _disk_is_full(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _timed:  # noqa: N801 - reads as a word
    """Adds the wall time of a block of code to a scene's phases."""

    def __init__(self, result: SceneResult, phase: str) -> None:
        self.result, self.phase = result, phase

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.started
        self.result.seconds[self.phase] = self.result.seconds.get(self.phase, 0.0) + spent


class _PhaseClock:
    """Passes progress on, and times each phase by the calls that name it."""

    def __init__(self, result: SceneResult, then: Progress) -> None:
        self.result, self.then = result, then
        self.phase, self.since = "layout", time.perf_counter()

    def __call__(self, what: str, done: int, total: int) -> None:
        phase = "statistics" if "statistics" in what else what
        now = time.perf_counter()
        self.result.seconds[self.phase] = self.result.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now
        self.then(what, done, total)

    def stop(self) -> None:
        self("", 0, 0)


@dataclass(frozen=True)
class PlannedScene:
    """A line of `--dry-run`: what would be done to a scene, in which memory, under which identity."""

    item: str
    action: str
    detail: str
    identity: str = ""
    projected_mib: float = 0.0
    blocks: int = 0


def dry_run(workflow: Workflow, items: Sequence[CatalogItem], out: Path, options: RunOptions) -> list[PlannedScene]:
    """Plan every scene and write nothing.

    Raises:
        ModelError: a model that the workflow names cannot be read.
    """
    workflow.digest()
    layout = Layout(out)
    planned = []
    for item in items:
        try:
            source = open_source(item.product_path, **workflow.open)
            workflow.require(source.spec)
            plan = plan_scene(workflow, source, options, content_of(item))
        except CubeloomError as error:
            planned.append(PlannedScene(item.id, "fail", str(error)))
            continue
        standing = (layout.product(item.id, workflow.name, plan.identity) / store.COMMIT).is_file()
        steps = " > ".join(stage.name for stage in plan.stages) or "ingest"
        skipped = [f"{stage.name} skipped: {stage.skipped}" for stage in workflow.stages() if stage.skipped]
        detail = "; ".join([f"{steps} on {plan.block_shape[0]} x {plan.block_shape[1]} px blocks", *skipped])
        action = "nothing to do" if standing else "make"
        mib = plan.projected_bytes / 2**20
        planned.append(PlannedScene(item.id, action, detail, plan.identity, mib, plan.blocks))
    return planned
