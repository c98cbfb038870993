"""One scene's way from its catalog item to the published product."""

import errno
import hashlib
import json
import resource
import shutil
import sqlite3
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

import cubeloom
from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.publish import publish_item
from cubeloom.errors import ConfigError, CubeloomError, InputError, RetryableError, Stopped, StoreError
from cubeloom.pipeline import store
from cubeloom.pipeline.chunks import overview_group
from cubeloom.pipeline.clock import Clock
from cubeloom.pipeline.engine import execute
from cubeloom.pipeline.executor import Executor
from cubeloom.pipeline.grids import Shape
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.journal import Progress, inference_summary
from cubeloom.pipeline.overviews import overview_factors
from cubeloom.pipeline.plan import Plan, make_plan
from cubeloom.pipeline.quicklook import write_guide_quicklooks, write_quicklooks
from cubeloom.pipeline.readers import Source, open_scene, open_source
from cubeloom.pipeline.stages.base import Fact
from cubeloom.secrets import redact

from .budget import Budget
from .describe import product_record
from .layout import Layout
from .ledger import Ledger
from .outlet import Outlet
from .pairing import pair_steps
from .run_log import RunLog
from .schema import Workflow
from .sweep import drop_versions


@dataclass
class SceneResult:
    """What became of one scene.

    Attributes:
        state: `published`, `unchanged`, `failed`, `invalid` (the workflow does not take such a scene) or `aborted`
            (the run was stopped before it came to its end).
        cause: why it failed or is invalid.
        exit_code: what a run of this scene alone ends with.
        attempts: how often this run tried.
        product: the store in the output directory.
        href: URL of the product where it went elsewhere.
        seconds: wall time of each phase.
        warnings: what went wrong beside the product, such as a quicklook, or memory that a network found too small.
        inference: how the networks' tiles were computed, see `inference_summary`.
        facts: what the steps found out of the whole scene, by their names.
        retryable: whether it failed in a way that may pass.
        wait_s: seconds that a server asked to be left alone for.
    """

    item: CatalogItem
    state: str = "failed"
    cause: str = ""
    exit_code: int = 0
    attempts: int = 1
    identity: str = ""
    product: Path | None = None
    href: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    blocks: int = 0
    resumed_blocks: int = 0
    nbytes: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    peak_mib: float = 0.0
    warnings: list[str] = field(default_factory=list)
    inference: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, dict[str, Fact]] = field(default_factory=dict)
    retryable: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True)
class Shared:
    """What all scenes of a run have in common.

    Attributes:
        workflow: what is done to each.
        digest: its digest.
        workers: block tasks at a time, for the plans.
        memory: bytes that each process with block tasks may use.
        fetch: gives an item whose files are on this machine.
        stands: tells by an item's id and an identity whether the product is published where it shall be.
        keep: how many versions of each product stay; None for all.
        outlet: where products go beside the output directory; None for nowhere.
    """

    workflow: Workflow
    digest: str
    workers: int
    layout: Layout
    ledger: Ledger
    log: RunLog
    executor: Executor
    memory: int
    budget: Budget
    fetch: Callable[[CatalogItem], CatalogItem]
    stands: Callable[[str, str], bool]
    keep: int | None
    outlet: Outlet | None


@dataclass
class SceneTask:
    """A scene that a run has claimed."""

    item: CatalogItem
    shared: Shared
    progress: Progress

    def run(self) -> SceneResult:
        """Make the product, and publish it; whatever the trouble, it is this scene's alone.

        Raises:
            sqlite3.Error: the ledger cannot be used, so no scene can go on.
        """
        result = SceneResult(self.item)
        self.shared.log.event("scene begins", item=self.item.id)
        try:
            self._make(result)
        except sqlite3.Error:
            raise
        except Stopped as error:
            result.state, result.cause, result.exit_code = "aborted", str(error), error.exit_code
        except Exception as error:  # noqa: BLE001 - one bad scene, whatever its trouble, stops nothing
            self._fail(result, error)
        result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return result

    def _make(self, result: SceneResult) -> None:
        shared = self.shared
        with Clock(result.seconds)("open"):
            try:
                shared.workflow.require_item(self.item)
            except ConfigError as error:
                self._set_aside(result, "invalid", error)
                return
            item = shared.fetch(self.item)
            try:
                source = open_item(shared.workflow, item)
            except ConfigError as error:
                self._set_aside(result, "invalid", error)
                return
            content = content_of(self.item)
            plan = plan_scene(
                shared.workflow,
                source,
                shared.workers,
                shared.memory,
                together=shared.executor.shares_memory,
                content=content,
                digest=shared.digest,
            )
        result.identity, result.blocks = plan.identity, plan.blocks
        result.product = shared.layout.product(self.item.id, shared.workflow.name, plan.identity)
        result.href = shared.outlet.href(result.product) if shared.outlet else ""
        result.state = "unchanged"
        if not shared.stands(self.item.id, plan.identity):
            self._publish(plan, result)
            result.state = "published"
        self._end(result)

    def _publish(self, plan: Plan, result: SceneResult) -> None:
        shared = self.shared
        for left in shared.ledger.begin(plan.identity, self.item.id, shared.workflow.name):
            shutil.rmtree(shared.layout.staging(left), ignore_errors=True)
        assert result.product is not None
        if not (result.product / store.COMMIT).is_file():
            with shared.budget.reserved(plan.projected_bytes):
                self._build(plan, result)
        self._announce(plan, result)

    def _end(self, result: SceneResult) -> None:
        """Clear up, and tell the ledger last: what has succeeded is not looked at again."""
        layout, workflow = self.shared.layout, self.shared.workflow.name
        if self.shared.keep is not None and result.product:
            drop_versions(layout, self.item.id, workflow, result.product, self.shared.keep)
        layout.release(self.item.id, workflow)
        shutil.rmtree(layout.inputs(self.item.id), ignore_errors=True)
        product = result.href or str(result.product)
        self.shared.ledger.end(self.item.id, workflow, "succeeded", product=product, identity=result.identity)

    def _build(self, plan: Plan, result: SceneResult) -> None:
        staged = self.shared.layout.staging(plan.identity)
        journal = self.shared.ledger.journal(plan.identity)
        if not staged.exists():
            self.shared.ledger.forget(plan.identity)
        left = plan.missing(journal.chunks())
        result.resumed_blocks = plan.blocks - len(left.ingest) - len(left.steps)
        clock = _PhaseClock(result, self.progress)
        noted = partial(self.shared.log.block, self.item.id)
        record = execute(plan, staged, journal, self.shared.executor, clock, noted)
        clock.stop()
        result.clipped = record["clipped"]
        assert result.product is not None
        store.publish(staged, result.product)

    def _announce(self, plan: Plan, result: SceneResult) -> None:
        """Quicklooks beside the store, then the STAC item: the last thing written, since it publishes."""
        product, shared = result.product, self.shared
        assert product is not None
        result.inference = inference_summary(shared.ledger.journal(plan.identity).tiles())
        result.warnings += [_fell_back(one) for one in result.inference if one["wanted"]]
        result.facts = store.read_commit(product).get("facts", {})
        result.nbytes = sum(file.stat().st_size for file in product.rglob("*") if file.is_file())
        with Clock(result.seconds)("publish"):
            pictures = {}
            try:
                overview = open_overview(product, plan.groups[0].shape)
                pictures = write_quicklooks(overview, product.with_suffix(".quicklooks"))
                for name, guide in plan.specs[-1].guides.items():
                    if guide.group:
                        shown = open_overview(product, guide.shape, group=guide.group)
                        pictures |= write_guide_quicklooks(shown, name, product.with_suffix(".quicklooks"))
            except Exception as error:  # noqa: BLE001 - a picture must not cost the product
                result.warnings.append(f"no quicklooks: {describe(error)}")
            record = product_record(
                plan.groups[0],
                self.item,
                product,
                workflow=shared.workflow.name,
                identity=plan.identity,
                commit_sha256=hashlib.sha256((product / store.COMMIT).read_bytes()).hexdigest(),
                pictures=pictures,
                facts=result.facts,
                properties={"cubeloom:inference": result.inference} if result.inference else {},
            )
            item = publish_item(shared.layout.out, record)
            if shared.outlet:
                shared.outlet.send(item, product)

    def _fail(self, result: SceneResult, error: Exception) -> None:
        result.retryable = isinstance(error, RetryableError)
        result.wait_s = float(getattr(error, "wait", 0.0))
        if result.identity and (isinstance(error, InputError | StoreError) or _disk_is_full(error)):
            # What stands may be damaged, and fills the disk; first of all, since on a full one nothing can be written.
            self.shared.layout.abandon(result.identity)
            self.shared.ledger.forget(result.identity)
        if isinstance(error, InputError):
            shutil.rmtree(self.shared.layout.inputs(self.item.id), ignore_errors=True)
        self._set_aside(result, "failed", error)

    def _set_aside(self, result: SceneResult, state: str, error: Exception) -> None:
        result.state, result.cause = state, describe(error)
        result.exit_code = 2 if state == "failed" and getattr(error, "exit_code", 1) == 2 else 3
        workflow = self.shared.workflow.name
        self.shared.ledger.end(self.item.id, workflow, state, cause=result.cause)
        cause: dict[str, Any] = {
            "item": self.item.id,
            "document": str(self.item.self_path),
            "workflow": workflow,
            "state": state,
            "cause": result.cause,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if not isinstance(error, CubeloomError):
            cause["traceback"] = [redact(part) for part in traceback.format_exception(error)]
        self.shared.layout.put_aside(self.item.id, workflow, cause)


def _fell_back(inference: dict[str, Any]) -> str:
    computed = "{device} x{batch} in {precision}".format(**inference)
    return (
        f"step {inference['step']}: memory did not suffice for {inference['wanted']}; {inference['tiles']} tiles were "
        f"computed on {computed}"
    )


def open_overview(
    product: str | Path, shape: Shape | None = None, longest_side: int = 600, group: str = ""
) -> xr.Dataset:
    """The coarsest level of a store's group that is still `longest_side` px or more, or its own grid.

    Args:
        product: the store.
        shape: of the group's grid, px, where it is known: to open a store takes some 20 ms.
        longest_side: px.
        group: such as that of a guide; empty for the native grid.
    """
    shape = shape or open_source(product, group=group).spec.shape
    fitting = [factor for factor in overview_factors(shape) if max(shape) // factor >= longest_side]
    return open_scene(product, group=overview_group(group, fitting[-1]) if fitting else group)


def open_item(workflow: Workflow, item: CatalogItem) -> Source:
    """The scene of an item, with its guides as the workflow's steps want them.

    Raises:
        ConfigError: the workflow does not take it.
        InputError: one of the products cannot be read.
    """
    source = open_source(item.product_path, **workflow.open)
    workflow.require(source.spec)
    guides = {}
    for step in pair_steps(workflow):
        guide = open_source(item.guides[step.guide].product_path, **step.open)
        guides[step.guide] = step.regridded(guide, source.spec)
    return with_guides(source, guides)


def content_of(item: CatalogItem) -> str:
    """Digest of the item's files as its checksums tell it; empty where it has none, so that they must be hashed."""
    try:
        return item.content_key()
    except InputError:
        return ""


def request_key(item: CatalogItem, digest: str) -> str:
    """Digest of what decides a product, as far as it is known without opening the scene; empty where it is not."""
    content = content_of(item)
    parts = [content, digest, cubeloom.__version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest() if content else ""


def plan_scene(
    workflow: Workflow,
    source: Source,
    workers: int,
    memory: int,
    *,
    together: bool = True,
    content: str = "",
    digest: str = "",
) -> Plan:
    """The plan of a workflow over one open source.

    Args:
        workflow: what is done to the scene.
        source: the open scene.
        workers: block tasks at a time.
        memory: bytes that a process may use.
        together: whether all workers are threads of one process.
        content: digest of the input's content, where it is known already.
        digest: of the workflow, where it is known already.
    """
    return make_plan(
        source,
        workflow.stages(),
        publish=workflow.publish,
        workers=workers,
        memory=memory,
        together=together,
        content=content,
        workflow={"workflow": digest or workflow.digest()},
    )


def describe(error: BaseException) -> str:
    """An error in words, without secrets: our own as they are, others with their class."""
    return redact(str(error) if isinstance(error, CubeloomError) else f"{type(error).__name__}: {error}")


def _disk_is_full(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
