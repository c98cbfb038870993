"""Where block tasks run: threads of this process, or the workers of a Dask cluster."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from enum import Enum
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from cubeloom.errors import Stopped

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A")


class Skipped(Enum):
    """Stands for the result of a task that was not begun, since its round had been stopped; equal across processes."""

    NOT_BEGUN = "not begun"


class Pending(Protocol[T_co]):
    """A task under way."""

    def result(self) -> T_co:
        """What it gives, once it has come to its end."""
        ...


class Round(ABC, Generic[A, T]):
    """The tasks of one function over its arguments, as an executor runs them."""

    @abstractmethod
    def start(self, tasks: Sequence[tuple[int, A]]) -> None:
        """Hand over tasks, each a number and an argument."""

    @abstractmethod
    def wait(self) -> Sequence[tuple[int, A, T | Skipped]]:
        """The tasks that have come to their end since the last call, at least one: number, argument, result."""

    @abstractmethod
    def close(self) -> None:
        """Begin no task that still waits, and come back once those that run have ended; their results are lost."""


class Executor(ABC):
    """Runs block tasks, each a function of things they all have in common and of one argument.

    Once `stop` is set, no task is begun; those that run come to their end and their results are given, then `Stopped`
    says that work was left undone.

    Attributes:
        shares_memory: whether tasks see this process's arrays; else arguments and results travel, and must be small.
        dashboard: address of a page that shows the tasks; empty where there is none.
    """

    shares_memory: bool
    dashboard: str = ""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    @property
    @abstractmethod
    def workers(self) -> int:
        """Tasks that run at a time."""

    @abstractmethod
    def submit(self, function: Callable[..., T], *args: Any) -> Pending[T]:  # noqa: ANN401 - any arguments
        """Start one task, also after `stop`: it is a part of work under way."""

    @abstractmethod
    def _round(self, function: Callable[..., T], common: Sequence[Any]) -> Round[Any, T]: ...

    @property
    def _most(self) -> int:
        """Tasks under way of which no worker runs dry."""
        return 2 * self.workers + 1

    def completed(
        self, function: Callable[..., T], arguments: Iterable[A], at_once: int | None = None, common: Sequence[Any] = ()
    ) -> Generator[tuple[A, T], None, None]:
        """Every argument with its result, in the order in which tasks end; close it to leave early.

        Args:
            function: the task, called as `function(*common, argument)`.
            arguments: one for each task; few more are under way than there are workers.
            at_once: most tasks under way, for such as take more memory than every worker can have.
            common: what all tasks need. It is handed over once, not with every task.

        Raises:
            Stopped: `stop` was set, and tasks were left undone.
            RetryableError: the workers were lost.
        """
        with closing(self._numbered(function, arguments, at_once, common)) as results:
            for _, argument, result in results:
                yield argument, result

    def map(
        self, function: Callable[..., T], arguments: Iterable[A], at_once: int | None = None, common: Sequence[Any] = ()
    ) -> Iterator[T]:
        """Results in the order of the arguments; else as `completed`, which loses none where a run is stopped."""
        early: dict[int, T] = {}
        due = 0
        with closing(self._numbered(function, arguments, at_once, common)) as results:
            for number, _, result in results:
                early[number] = result
                while due in early:
                    yield early.pop(due)
                    due += 1

    def _numbered(
        self, function: Callable[..., T], arguments: Iterable[A], at_once: int | None, common: Sequence[Any]
    ) -> Generator[tuple[int, A, T], None, None]:
        most = self._most if at_once is None or at_once >= self.workers else at_once
        numbered = enumerate(arguments)
        under_way, undone = 0, False
        with closing(self._round(function, common)) as tasks:
            while True:
                new = [] if self.stop.is_set() else list(islice(numbered, most - under_way))
                tasks.start(new)
                under_way += len(new)
                if not under_way:
                    break
                for number, argument, result in tasks.wait():
                    under_way -= 1
                    if isinstance(result, Skipped):
                        undone = True
                    else:
                        yield number, argument, result
        if undone or next(numbered, None) is not None:
            raise Stopped("stopped as asked; what was under way is done, run again to go on")


class Threads(Executor):
    """Runs block tasks on `workers` threads of this process; a context manager.

    GDAL, Blosc and the array libraries release the interpreter's lock, so threads use all cores; each task then
    computes on one thread, since workers times BLAS threads would only get in each other's way.
    """

    shares_memory = True

    def __init__(self, workers: int, stop: threading.Event | None = None) -> None:
        super().__init__(stop)
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="block")
        self._limits: Any = None

    @property
    def workers(self) -> int:
        """Threads."""
        return self._workers

    def __enter__(self) -> "Threads":
        self._limits = threadpool_limits(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._limits.restore_original_limits()

    def submit(self, function: Callable[..., T], *args: Any) -> "Future[T]":  # noqa: ANN401 - any arguments
        """Start one task."""
        return self._pool.submit(function, *args)

    def _round(self, function: Callable[..., T], common: Sequence[Any]) -> "_ThreadRound[Any, T]":
        return _ThreadRound(self, function, common)


class _ThreadRound(Round[A, T]):
    def __init__(self, threads: Threads, function: Callable[..., T], common: Sequence[Any]) -> None:
        self.threads, self.function, self.common = threads, function, common
        self.closed = False
        self.under_way: dict[Future[T | Skipped], tuple[int, A]] = {}
        self.ended: SimpleQueue[Future[T | Skipped]] = SimpleQueue()

    def start(self, tasks: Sequence[tuple[int, A]]) -> None:
        for number, argument in tasks:
            future = self.threads.submit(self._run, argument)
            self.under_way[future] = number, argument
            future.add_done_callback(self.ended.put)

    def _run(self, argument: A) -> T | Skipped:
        if self.closed or self.threads.stop.is_set():
            return Skipped.NOT_BEGUN
        return self.function(*self.common, argument)

    def wait(self) -> Sequence[tuple[int, A, T | Skipped]]:
        future = self.ended.get()
        return [(*self.under_way.pop(future), future.result())]

    def close(self) -> None:
        self.closed = True
        wait(self.under_way)


@contextmanager
def open_executor(
    workers: int,
    scheduler: "str | Client | None" = None,
    stop: threading.Event | None = None,
    *,
    dashboard: bool = False,
) -> Iterator[Executor]:
    """An executor, shut down at the end.

    Args:
        workers: threads, or processes of a cluster of our own; a cluster that runs already has the workers it has.
        scheduler: None for threads; `processes` for processes of one thread each on this machine; else the address
            of a Dask scheduler (`tcp://host:port`, `tls://…`), the path of its scheduler file, or a client.
        stop: once set, no task is begun.
        dashboard: whether a cluster of our own serves Dask's dashboard.

    Raises:
        ConfigError: `scheduler` is none of these, or its workers run other versions than this process.
        RetryableError: the cluster cannot be reached, or has no workers.
    """
    if scheduler is None:
        with Threads(workers, stop) as threads:
            yield threads
    else:
        from .cluster import open_cluster

        with open_cluster(workers, scheduler, stop, dashboard=dashboard) as cluster:
            yield cluster
