"""The nightly job as a Prefect 3 flow: a task for each scene, on Prefect's schedule (extra `prefect`).

One run of the runner holds the output for the whole flow: one lock, one ledger, one set of workers, one report. What a
task does is one scene's way through that run, so the work is the same as without Prefect, byte for byte. Were each task
a run of its own, every one would wait for the lock of the one before, start its workers anew, and leave its own report;
and scenes could not share the memory of the machine.

Only failures that may pass are tried again, by Prefect with its delays and not by the runner as well. Everything else
is final for the night: a broken file does not mend by being read once more.
"""

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect import serve as serve_deployments
from prefect.cache_policies import NO_CACHE
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.tasks import exponential_backoff
from prefect.types.entrypoint import EntrypointType

from cubeloom.catalogs.items import CatalogItem
from cubeloom.errors import CubeloomError, RetryableError

from .nightly_job import NightlyJob
from .run import RunOptions, RunResult, SceneProgress, run
from .scene_task import SceneResult
from .schema import Workflow
from .systemd import check_time

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

FIRST_DELAY_S = 30.0
"""Before the first further try of a scene; twice as long before each one after it."""


class SceneFailedError(CubeloomError):
    """What Prefect is told of a scene without a product; nothing that trying again would mend."""

    exit_code = 3


@flow(name="cubeloom-nightly", persist_result=False)
def nightly_flow(job: NightlyJob, first_delay_s: float = FIRST_DELAY_S) -> dict[str, Any]:
    """Work for one night; the flow fails where the command would end with a code other than 0.

    Args:
        job: what `cubeloom nightly` would be told. `options["retries"]` is how often a task is tried again.
        first_delay_s: seconds before the first further try of a scene.

    Returns:
        The night's summary, see `NightlyResult.summary`.

    Raises:
        SceneFailedError: some scenes have no product.
        CubeloomError: as the job raises it.
    """
    ended = job.run(runner=partial(_run, first_delay_s=first_delay_s))
    logger = get_run_logger()
    for note in ended.summary["notes"]:
        logger.warning(note)
    logger.info("report: %s", ended.report)
    if ended.night.exit_code:
        raise SceneFailedError(f"exit code {ended.night.exit_code}: {ended.summary['counts']}; report: {ended.report}")
    return ended.summary


def deployment(job: NightlyJob, at: str) -> RunnerDeployment:
    """The flow with a job and the schedule of every night, to be served or applied.

    Args:
        job: what to do.
        at: hour and minute in UTC, such as `02:30`.

    Raises:
        ConfigError: `at` is no time of day.
    """
    hour, minute = map(int, check_time(at).split(":"))
    made = nightly_flow.to_deployment(
        name=Path(job.workflow).stem,
        schedule=Cron(f"{minute} {hour} * * *", timezone="UTC"),
        parameters={"job": job.model_dump(mode="json")},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine where a loop runs already
    return made


def serve(job: NightlyJob, at: str) -> None:
    """Stay and start the flow every night, one at a time, as the Prefect server that `PREFECT_API_URL` names tells.

    Raises:
        ConfigError: `at` is no time of day.
    """
    serve_deployments(deployment(job, at), limit=1, pause_on_shutdown=False)


def _run(
    workflow: Workflow,
    items: Sequence[CatalogItem],
    out: Path,
    options: RunOptions,
    progress: SceneProgress | None,
    stop: threading.Event | None,
    *,
    first_delay_s: float,
) -> RunResult:
    """The runner, with a Prefect task around each scene; the runner's own threads call it, several at a time."""
    context = copy_context()  # of the flow, without which a thread's tasks would belong to none

    def as_task(item: CatalogItem, make: Callable[[], SceneResult]) -> SceneResult:
        made: list[SceneResult] = []

        @task(
            name="scene",
            task_run_name=item.id,
            retries=options.retries,
            retry_delay_seconds=exponential_backoff(first_delay_s),
            retry_condition_fn=_may_pass,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        def scene() -> str:
            return _make_scene(make, made)

        state = context.copy().run(lambda: scene(return_state=True))
        trouble = state.result(raise_on_failure=False)
        if isinstance(trouble, BaseException) and not isinstance(trouble, RetryableError | SceneFailedError):
            raise trouble  # what ends the whole run, such as a ledger that cannot be written
        return made[-1]

    return run(workflow, items, out, replace(options, retries=0), progress, stop, each=as_task)


def _make_scene(make: Callable[[], SceneResult], made: list[SceneResult]) -> str:
    """Make one scene, add its result to those of earlier tries, and fail where the scene does; gives its state."""
    result = make()
    result.warnings += [f"tried again: {before.cause}" for before in made]
    made.append(result)
    if result.retryable:
        raise RetryableError(result.cause)
    if result.exit_code:
        raise SceneFailedError(f"{result.state}: {result.cause}")
    return result.state


def _may_pass(task: "Task[..., Any]", task_run: "TaskRun", state: "State[Any]") -> bool:
    """Whether a task's failure is one that may pass."""
    return isinstance(state.data, RetryableError)
