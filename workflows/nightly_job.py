"""A nightly job as plain values, so that the command line, a timer and Prefect start the same one."""

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cubeloom.errors import ConfigError, CubeloomError, LockedError, Stopped

from .console import say
from .nightly import NightlyResult, Reach, Runner, nightly
from .notify import WEBHOOK, Notices
from .run import RunOptions, SceneProgress, run
from .scene_task import describe
from .schema import Workflow, load_workflow
from .summary import report_run
from .systemd import schedule
from .watermark import parse_time

if TYPE_CHECKING:
    from cubeloom.catalogs.search import Query


@dataclass(frozen=True)
class Ended:
    """A night, its report where something was run, and what a script or a message is told of it."""

    night: NightlyResult
    report: Path | None
    summary: dict[str, Any]

    def lines(self) -> list[str]:
        """What a person is told."""
        told = ", ".join(f"{number} {state}" for state, number in self.summary["counts"].items()) or "nothing to run"
        watermark = self.summary["watermark"]
        moved = "moved to" if self.night.after != self.night.before else "stays at"
        notes = [f"note: {note}" for note in self.summary["notes"]]
        report = [f"report:   {self.report}"] if self.report else []
        return [
            f"{self.night.found} found since {self.summary['since']}: {told}",
            f"watermark {moved} {watermark}",
            *report,
            *notes,
        ]


class NightlyJob(BaseModel):
    """What `cubeloom nightly` was told; every field can be written as JSON, and none is a secret.

    Attributes:
        workflow: name of the library, or a YAML file.
        settings: `STEP.PARAMETER=VALUE` changes.
        search: a provider by name, or the URL of a STAC API.
        out: directory of the products.
        collections, bbox, datetime, max_cloud, cql: what to search, see `cubeloom search`.
        since, overlap_hours, nights: see `Reach`; `since` is a day or a moment in UTC.
        mail: who is told; the webhook comes from the environment.
        always: also tell of a night on which all went well.
        options: fields of `RunOptions`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workflow: str
    settings: tuple[str, ...] = ()
    search: str
    out: Path
    collections: tuple[str, ...] = ()
    bbox: str | None = None
    datetime: str | None = None
    max_cloud: float | None = None
    cql: str | None = None
    since: str | None = None
    overlap_hours: float = Field(default=48, ge=0)
    nights: int = Field(default=7, ge=1)
    mail: tuple[str, ...] = ()
    always: bool = False
    options: Mapping[str, Any] = Field(default_factory=dict)

    def query(self) -> "Query":
        """What is searched.

        Raises:
            ConfigError: no such thing can be searched.
        """
        from .search import parse_query

        return parse_query(
            collections=list(self.collections),
            bbox=self.bbox,
            datetime=self.datetime,
            max_cloud=self.max_cloud,
            cql=self.cql,
        )

    def reach(self) -> Reach:
        """How far back the night looks.

        Raises:
            ConfigError: `since` is no time.
        """
        since = parse_time(self.since) if self.since else None
        if self.since and since is None:
            raise ConfigError(f"--since {self.since!r}: expected a day or a moment (UTC) such as 2026-11-01T18:00Z")
        return Reach(since, timedelta(hours=self.overlap_hours), self.nights)

    def check(self) -> Workflow:
        """The workflow, once everything is known to be right that can be known without the network.

        Raises:
            ConfigError: something is not.
        """
        self.query()
        self.reach()
        return load_workflow(self.workflow, self.settings)

    def run(
        self,
        progress: SceneProgress | None = None,
        stop: threading.Event | None = None,
        webhook: str = "",
        runner: Runner = run,
    ) -> Ended:
        """Work for one night, write the run's report, and tell those who want to know.

        Args:
            progress: told of every scene.
            stop: once set, the blocks under way come to their end, and nothing else is begun.
            webhook: URL; by default that of the environment.
            runner: runs the scenes.

        Raises:
            CubeloomError: as `nightly` raises it; told as well, unless the job only has to wait or was stopped.
        """
        notices = Notices(webhook or os.environ.get(WEBHOOK, ""), self.mail, self.always)
        try:
            night = self._night(progress, stop, runner)
        except (LockedError, Stopped):
            raise
        except Exception as error:
            for warning in notices.tell(self._failure(error)):
                say(f"warning: {warning}")
            raise
        report = report_run(night.run) if night.run else None
        summary = {**night.summary(), "report": str(report) if report else None}
        if night.exit_code != Stopped.exit_code:
            summary["notes"] += notices.tell(summary)
        return Ended(night, report, summary)

    def _failure(self, error: Exception) -> dict[str, Any]:
        """What is told of a night that did not come to its end."""
        code = error.exit_code if isinstance(error, CubeloomError) else 1
        return {"workflow": self.workflow, "search": self.search, "error": describe(error), "exit_code": code}

    def _night(self, progress: SceneProgress | None, stop: threading.Event | None, runner: Runner) -> NightlyResult:
        return nightly(
            self.check(),
            self.search,
            self.query(),
            self.out,
            RunOptions(**self.options),
            reach=Reach(
                parse_time(self.since) if self.since else None, timedelta(hours=self.overlap_hours), self.nights
            ),
            progress=progress,
            stop=stop,
            runner=runner,
        )


def start(job: NightlyJob, at: str, *, systemd: bool, cron: bool, prefect: bool) -> bool:
    """Print or serve a schedule of a job, where that is asked for.

    Args:
        job: the job; checked as far as that can be without the network.
        at: time of day in UTC, such as `02:30`.
        systemd: print a unit and its timer, which call this process's own command.
        cron: print lines of a crontab, which do so too.
        prefect: stay, and start the job every night on Prefect's schedule.

    Returns:
        Whether any of them was asked for; if not, the job is to be run now.

    Raises:
        ConfigError: the job or the time is wrong, or Prefect is not installed.
    """
    if not (systemd or cron or prefect):
        return False
    workflow = job.check()
    if prefect:
        try:
            from .prefect_flow import serve
        except ImportError as error:
            raise ConfigError(f"Prefect is not installed ({error}); pip install 'cubeloom[prefect]'") from None
        serve(job, at)
        return True
    made = schedule(sys.argv[1:], workflow.name, job.out, at)
    sys.stdout.write(made.systemd() if systemd else made.cron())
    return True
