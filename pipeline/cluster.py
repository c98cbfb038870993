"""Block tasks on the workers of a Dask cluster: processes of our own on this machine, or a cluster that runs already.

The graph holds names and windows. What all tasks of a round have in common goes to each worker once, beside the graph,
as a plugin, so that workers that join later get it too; as a dependency within the graph, it would draw the tasks to
the worker where it lies, and leave others idle. A worker begins no task of a round that it does not hold: taking the
plugin back is how a round is stopped.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import dask
from distributed import Client, Future, KilledWorker, as_completed
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.protocol.pickle import dumps
from threadpoolctl import threadpool_limits

from cubeloom.errors import ConfigError, RetryableError, Stopped

from .cluster_client import OWN, connected, own_processes
from .cluster_worker import Common, Job, Refusal, close_round, open_round, run_task, versions
from .executor import Executor, Pending, Round, Skipped

T = TypeVar("T")
A = TypeVar("A")

LARGEST_COMMON = 32 * 2**20
"""Bytes that the tasks of a round may have in common: statistics of 224 bands take some hundred kB a step."""

IN_FLIGHT = 32
"""Tasks that the scheduler knows of at least: names cost nothing there, and no worker waits for the next one."""

WORKERLESS_S = 300.0
"""Seconds that a cluster may be without any worker: batch systems take their time to start one."""

_POLL_S = 0.1
_TOGETHER_S = 0.005
"""Tasks that end so soon after another are fetched with it."""
_LOOK_S = 5.0

_NO_SOURCE = {"distributed.diagnostics.computations.nframes": 0}
"""Else Dask looks up the caller's source code, and sends it, with every task."""


class Cluster(Executor):
    """Runs block tasks on the workers of a Dask cluster.

    The workers must see the input files and the staging folder under the same paths as this process. A task whose
    worker is lost runs again on another one; it leaves the same files.
    """

    shares_memory = False

    def __init__(self, client: Client, stop: threading.Event | None = None, dashboard: str = "") -> None:
        super().__init__(stop)
        self.client, self.dashboard = client, dashboard

    @property
    def workers(self) -> int:
        """Threads of all workers that are there now; 1 before the first one has come."""
        with _connection(self.client):
            threads: dict[str, int] = self.client.nthreads()
        return max(sum(threads.values()), 1)

    @property
    def _most(self) -> int:
        return max(2 * self.workers + 1, IN_FLIGHT)

    def submit(self, function: Callable[..., T], *args: Any) -> Pending[T]:  # noqa: ANN401 - any arguments
        """Start one task."""
        alone: _ClusterRound[tuple[Any, ...], T] = _ClusterRound(self.client, threading.Event(), _apply, (function,))
        alone.start([(0, args)])
        return _Lone(alone)

    def _round(self, function: Callable[..., T], common: Sequence[Any]) -> "_ClusterRound[Any, T]":
        return _ClusterRound(self.client, self.stop, function, common)


def _apply(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    return function(*args)


@dataclass(frozen=True)
class _Lone(Pending[T]):
    """A task that is a round of its own."""

    round: "_ClusterRound[tuple[Any, ...], T]"

    def result(self) -> T:
        ((_, _, result),) = self.round.wait()
        assert not isinstance(result, Skipped)
        return result


class _ClusterRound(Round[A, T]):
    """The tasks of a round on a cluster: futures by their numbers, and those that have ended in a queue."""

    def __init__(
        self, client: Client, stop: threading.Event, function: Callable[..., T], common: Sequence[Any]
    ) -> None:
        self.client, self.stop = client, stop
        self.name, self.token = function.__name__.strip("_"), uuid.uuid4().hex
        self.held = False
        self.under_way: dict[Future[Any], tuple[int, A]] = {}
        self.ended: SimpleQueue[Future[Any]] = SimpleQueue()
        self.seen = self.looked = time.monotonic()
        packed = dumps(Job(function, tuple(common), versions()))
        if len(packed) > LARGEST_COMMON:
            raise ConfigError(
                f"{self.name}: the tasks have {len(packed) / 2**20:.0f} MiB in common, and at most "
                f"{LARGEST_COMMON / 2**20:.0f} MiB travel to a cluster; take a scene from files, not from memory"
            )
        add = partial(client.register_plugin, Common(self.token, packed), name=self.token)
        self._tell(add, open_round, self.token, packed)

    def _tell(self, plugin: Callable[[], object], directly: Callable[..., None], *args: Any) -> None:  # noqa: ANN401
        """Have workers take or drop a round: by a plugin those to come too; directly where one died just then."""
        with _connection(self.client):
            try:
                plugin()
            except OSError:
                self.client.run(directly, *args, on_error="ignore")

    def start(self, tasks: Sequence[tuple[int, A]]) -> None:
        if not tasks:
            return
        numbers, arguments = zip(*tasks, strict=True)
        keys = [(f"{self.name}-{self.token}", number) for number in numbers]
        with _connection(self.client):
            futures = self.client.map(run_task, [self.token] * len(tasks), arguments, key=keys, pure=False)
        self.under_way.update(zip(futures, tasks, strict=True))
        loop = self.client.loop
        assert loop is not None  # of a client that is connected
        loop.add_callback(self._watch, as_completed(futures, loop=loop))

    async def _watch(self, ending: as_completed) -> None:
        """Queue tasks as they end; on Dask's event loop, since a callback of each future would run in a thread."""
        async for future in ending:
            self.ended.put(future)

    def wait(self) -> Sequence[tuple[int, A, T | Skipped]]:
        ended = self._ended()
        tasks = [self.under_way.pop(future) for future in ended]
        for future, (_, argument) in zip(ended, tasks, strict=True):
            what = f"{self.name} {argument}"
            if future.status == "cancelled":
                raise RetryableError(f"{what}: the cluster has dropped it; is its scheduler up?")
            if future.status == "error":
                error = future.exception()
                raise _in_our_words(error, what) from error
        with _connection(self.client):
            results = self.client.gather(ended)  # a result that was lost with its worker since is made anew
        for result in results:
            if isinstance(result, Refusal):
                raise result.error from result.cause
            if isinstance(result, Skipped) and not self.held:
                raise RetryableError(f"{self.name}: a worker did not get what its tasks have in common")
        return [(*task, result) for task, result in zip(tasks, results, strict=True)]

    def _ended(self) -> list[Future[Any]]:
        """The tasks that have ended since the last call, at least one; meanwhile looks after stop and workers."""
        ended: list[Future[Any]] = []
        while not ended:
            with suppress(Empty):
                ended.append(self.ended.get(timeout=_POLL_S))
                time.sleep(_TOGETHER_S)
                while True:
                    ended.append(self.ended.get_nowait())
            if self.stop.is_set():
                self._hold()
            if not ended:
                self._look()
        return ended

    def _hold(self) -> None:
        """Let no worker begin any of the tasks that wait."""
        if not self.held:
            self.held = True
            self._tell(partial(self.client.unregister_worker_plugin, self.token), close_round, self.token)

    def _look(self) -> None:
        """Give up on a cluster that has had no worker for long."""
        now = time.monotonic()
        if now - self.looked < _LOOK_S:
            return
        self.looked = now
        with _connection(self.client):
            if self.client.nthreads():
                self.seen = now
                return
        if self.stop.is_set():
            raise Stopped("stopped as asked; the cluster had no worker")
        if self.held or now - self.seen > WORKERLESS_S:
            raise RetryableError(f"the cluster has had no worker for {now - self.seen:.0f} s; start some")

    def close(self) -> None:
        if self.client.status != "running":
            return  # the scheduler is lost, and with it the tasks
        with suppress(RetryableError, Stopped):
            self._hold()
            while self.under_way:
                for future in self._ended():
                    del self.under_way[future]


@contextmanager
def _connection(client: Client) -> Iterator[None]:
    """A lost connection in words of ours."""
    try:
        yield
    except KilledWorker as error:
        raise _in_our_words(error, str(client)) from error
    except (OSError, ClosedClientError, FutureCancelledError) as error:
        raise RetryableError(f"{client}: no connection to the cluster ({error}); is its scheduler up?") from error


def _in_our_words(error: BaseException, what: str) -> BaseException:
    """The error to raise for one that Dask reports; those of a task stay as they are."""
    if isinstance(error, KilledWorker):
        return RetryableError(
            f"{what}: every worker that took it died, {error.allowed_failures + 1} in turn, the last one at "
            f"{error.last_worker.address}; if it was for memory, give each worker more"
        )
    return error


@contextmanager
def open_cluster(
    workers: int, scheduler: str | Client, stop: threading.Event | None, *, dashboard: bool = False
) -> Iterator[Cluster]:
    """A cluster as an executor; arguments and errors as `open_executor`."""
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_NO_SOURCE))
        if isinstance(scheduler, Client):
            client = scheduler
        else:
            client = stack.enter_context(
                own_processes(workers, dashboard) if scheduler == OWN else connected(scheduler)
            )
        stack.enter_context(threadpool_limits(1))  # more would only spin beside the workers, and give other sums
        shown = dashboard or scheduler != OWN
        yield Cluster(client, stop, client.dashboard_link if shown else "")
