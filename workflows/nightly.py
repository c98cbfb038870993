"""A night's work: what a catalog has changed since the last one is searched, run, and ticked off.

How far the catalog is worked off is told by the catalog's own time (`watermark.py`), so neither the time zone of this
machine nor a clock that was set wrong skips a scene. Each search looks some time further back than the watermark, for
a catalog may list an item later than its `updated` says; what stands already is known by its identity and not made
again, and what was reprocessed has another identity and is.
"""

import fcntl
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubeloom.catalogs.items import CatalogItem, read_catalog
from cubeloom.errors import LockedError
from cubeloom.secrets import redact, redact_values

from .pairing import pair_steps, paired
from .run import RunOptions, RunResult, SceneProgress, run
from .scene_task import SceneResult, request_key
from .schema import Workflow
from .watermark import Mark, Trouble, parse_time, read_mark, search_key, utc_text, write_mark

if TYPE_CHECKING:
    from cubeloom.catalogs.search import Query

_LOG = logging.getLogger(__name__)

FIRST_REACH = timedelta(days=7)
"""How far before the first night its search begins, where nobody says."""

AHEAD = timedelta(days=1)
"""An `updated` further ahead of this machine's clock is a mistake of one of the two; the watermark does not follow."""

Runner = Callable[
    [Workflow, Sequence[CatalogItem], Path, RunOptions, SceneProgress | None, threading.Event | None], RunResult
]


Found = Sequence[tuple[CatalogItem, datetime | None]]
"""Items of a search, and when each was changed last as far as the catalog tells."""


@dataclass(frozen=True)
class Reach:
    """How far back a night looks, and how often it tries.

    Attributes:
        since: where the first night begins, UTC; `FIRST_REACH` before it where None. Later ones go on from there.
        overlap: how much further back than the watermark each search looks.
        nights: on how many nights a scene that fails keeps the watermark back; then it is given up.
    """

    since: datetime | None = None
    overlap: timedelta = timedelta(days=2)
    nights: int = 7


@dataclass(frozen=True)
class NightlyResult:
    """What a night has brought.

    Attributes:
        since: where its search began.
        before, after: the watermark; equal where it could not move.
        found: how many items the search gave.
        left_alone: ids of scenes that have no product and were not tried again.
        given_up: ids of scenes that failed tonight and keep the watermark back no longer.
        run: the run over all others; None where there were none.
        notes: what an operator should know besides.
    """

    workflow: Workflow
    provider: str
    out: Path
    since: datetime
    before: datetime
    after: datetime
    found: int
    left_alone: tuple[str, ...]
    given_up: tuple[str, ...]
    run: RunResult | None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of the run; 0 when there was nothing to run."""
        return self.run.exit_code if self.run else 0

    @property
    def scenes(self) -> tuple[SceneResult, ...]:
        """The scenes of the run."""
        return self.run.scenes if self.run else ()

    def summary(self) -> dict[str, Any]:
        """The night for a script or a message."""
        states = [scene.state for scene in self.scenes]
        return {
            "workflow": self.workflow.name,
            "search": redact(self.provider),
            "since": utc_text(self.since),
            "watermark": utc_text(self.after),
            "watermark_before": utc_text(self.before),
            "found": self.found,
            "counts": {state: states.count(state) for state in sorted(set(states))},
            "without_product": [
                {"item": scene.item.id, "state": scene.state, "cause": scene.cause}
                for scene in self.scenes
                if scene.state not in ("published", "unchanged")
            ],
            "left_alone": list(self.left_alone),
            "given_up": list(self.given_up),
            "run": self.run.run_id if self.run else None,
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }


def utc_now() -> datetime:
    """The clock of this machine."""
    return datetime.now(UTC)


def nightly(
    workflow: Workflow,
    provider: str,
    query: "Query",
    out: Path,
    options: RunOptions | None = None,
    *,
    reach: Reach = Reach(),
    progress: SceneProgress | None = None,
    stop: threading.Event | None = None,
    runner: Runner = run,
    now: Callable[[], datetime] = utc_now,
) -> NightlyResult:
    """Search what a catalog has changed since the watermark, run it, and move the watermark as far as all is settled.

    Settled are scenes that are published or unchanged, those that the workflow does not take, and those that failed on
    `reach.nights` nights, or found no guide on as many. Any other that failed, or that a stop left undone, keeps the
    watermark back, so that it is found again.

    Args:
        workflow: what is done to each scene.
        provider: where to search, see `cubeloom.catalogs.search`.
        query: what to search; `updated_since` and `limit` are set here.
        out: directory of the products.
        options: of the run.
        reach: how far back to look, and how often to try.
        progress: told of every scene.
        stop: once set, the blocks under way come to their end, and nothing else is begun.
        runner: runs the scenes.
        now: the clock; it only places the first night, and unmasks an `updated` in the future.

    Raises:
        LockedError: the same job is still at work, or another run writes to `out`.
        RetryableError: the catalog could not be searched now.
        InputError, ConfigError: the search is refused or gives no STAC.
        ModelError: a model that the workflow names cannot be read.
        StoreError: the state under `out` cannot be read or written.
    """
    digest = workflow.digest()
    state = out / ".cubeloom" / "nightly" / f"{workflow.name}.json"
    asked = asdict(replace(query, updated_since=None, limit=None))
    key, search = search_key(provider, asked), redact_values({"provider": provider, "query": asked})
    with _alone(state.with_suffix(".lock")):
        mark = read_mark(state, key)
        if mark is None:
            begin = reach.since or now() - FIRST_REACH
            mark = Mark(begin, begin)
            write_mark(state, key, mark, search)  # before anything can fail, or the next night would begin later
        since = mark.since(reach.overlap)
        notes: list[str] = []
        wanted = replace(query, updated_since=since, limit=None)
        found = _search(provider, wanted, state.with_suffix(""), notes.append)
        found, aside = _paired(workflow, provider, wanted, found, state.with_suffix(".guides"))
        requests = {item.id: request_key(item, digest) for item, _ in found}
        night = _Night(found, requests, mark, reach, aside)
        todo = night.todo()
        done = runner(workflow, todo, out, options or RunOptions(), progress, stop) if todo else None
        night.tick_off(done.scenes if done else ())
        after = night.watermark(now() + AHEAD, notes.append)
        write_mark(state, key, Mark(mark.begun, after, night.troubles), search)
    if reach.since and reach.since != mark.begun:
        notes.append(f"--since is for the first night, which began at {utc_text(mark.begun)}")
    return NightlyResult(
        workflow, provider, out, since, mark.updated, after, len(found), tuple(night.left_alone), tuple(night.given_up),
        done, tuple(notes),
    )  # fmt: skip


class _Night:
    """The items that a search gave, and which of them are settled.

    Args:
        found: when the catalog changed each, in that order.
        requests: what tells a changed scene from the one before, by id.
        mark: the state before.
        reach: how often to try.
        aside: ids of items that are no scenes.
    """

    def __init__(
        self, found: Found, requests: Mapping[str, str], mark: Mark, reach: Reach, aside: Collection[str] = ()
    ) -> None:
        self.found, self.requests, self.mark, self.reach = found, requests, mark, reach
        self.left_alone = [item.id for item, _ in found if self._hopeless(item.id)]
        self.troubles = {item: mark.troubles[item] for item in self.left_alone}
        self.given_up: list[str] = []
        self.settled = {*self.left_alone, *aside}

    def todo(self) -> list[CatalogItem]:
        """What is run: all but the scenes of which it is known that they come to nothing."""
        return [item for item, _ in self.found if item.id not in self.settled]

    def tick_off(self, scenes: Sequence[SceneResult]) -> None:
        """Take what became of the scenes."""
        # A night on which nothing at all was made tells of a full disk or a dead network, not of the scenes.
        fair = any(scene.state == "published" for scene in scenes)
        for scene in scenes:
            item = scene.item.id
            if scene.state in ("published", "unchanged"):
                self.settled.add(item)
            elif scene.state == "invalid" and scene.item.no_guide:  # one may come later
                self._failed(scene, counts=True)
            elif scene.state == "invalid":
                self.settled.add(item)
                self.troubles[item] = Trouble(self.requests[item], "invalid", 0)
            elif scene.state == "failed":
                self._failed(scene, fair and scene.exit_code != 2 and not scene.retryable)

    def watermark(self, latest: datetime, note: Callable[[str], None]) -> datetime:
        """How far all is settled. What is strange about the catalog's times is noted, and one after `latest` is."""
        times = {item.id: time for item, time in self.found}
        if without := [item for item, time in times.items() if time is None]:
            note(f"{len(without)} items do not tell when they changed, such as {without[0]}; they move no watermark")
        if ahead := [item for item, time in times.items() if time and time > latest]:
            note(f"{len(ahead)} items changed after now, such as {ahead[0]}; is this machine's clock right?")
        known = {item: time for item, time in times.items() if time and time <= latest}
        unsettled = [time for item, time in known.items() if item not in self.settled]
        reached = min(unsettled) if unsettled else max(known.values(), default=self.mark.updated)
        return max(self.mark.updated, reached)

    def _hopeless(self, item: str) -> bool:
        trouble = self.mark.troubles.get(item)
        if trouble is None or not trouble.request or trouble.request != self.requests[item]:
            return False
        return trouble.state == "invalid" or trouble.nights >= self.reach.nights

    def _failed(self, scene: SceneResult, counts: bool) -> None:
        item = scene.item.id
        request, before = self.requests[item], self.mark.troubles.get(item)
        nights = before.nights if before and before.request == request else 0
        self.troubles[item] = trouble = Trouble(request, "failed", nights + counts)
        if trouble.nights >= self.reach.nights:
            self.settled.add(item)
            self.given_up.append(item)


def _paired(workflow: Workflow, provider: str, query: "Query", found: Found, folder: Path) -> tuple[Found, set[str]]:
    """What was found, each scene with its guides, and the ids of those that are guides alone.

    A guide may have come on an earlier night than its scene, so they are looked for by the time they show.
    """
    steps = pair_steps(workflow)
    if not steps or not found:
        return found, set()
    reach = timedelta(days=max(step.days for step in steps))
    times = [item.datetime for item, _ in found]
    span = f"{utc_text(min(times) - reach)}/{utc_text(max(times) + reach)}"
    around = replace(query, updated_since=None, ids=(), datetime=span)
    others = [item for item, _ in _search(provider, around, folder, _LOG.warning)]
    scenes = {item.id: item for item in paired(workflow, [item for item, _ in found], others)}
    return [(scenes.get(item.id, item), time) for item, time in found], {i.id for i, _ in found} - scenes.keys()


def _search(provider: str, query: "Query", folder: Path, reject: Callable[[str], None]) -> Found:
    """What a search gives, in the order in which the catalog changed it; its documents stay in `folder` to look at."""
    from cubeloom.catalogs.search import search, write_search_catalog

    shutil.rmtree(folder, ignore_errors=True)
    items = read_catalog(write_search_catalog(search(provider, query, reject=reject), folder))
    last = datetime.max.replace(tzinfo=UTC)
    found = [(item, parse_time(item.properties.get("updated"))) for item in items]
    return sorted(found, key=lambda one: (one[1] or last, one[0].id))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep a second process with the same job out; the kernel lets go of the lock however this one ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"{path}: this nightly job is still at work; the next night finds what it leaves"
            ) from None
        yield
