"""Where block tasks run: a pool of threads whose results come back in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
A = TypeVar("A")


class Executor:
    """Runs block tasks on `workers` threads.

    GDAL, Blosc and the array libraries release the interpreter's lock, so threads use all cores; each task then
    computes on one thread, since workers times BLAS threads would only get in each other's way.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="block")
        self._limits: Any = None

    def __enter__(self) -> "Executor":
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

    def map(self, function: Callable[[A], T], arguments: Iterable[A], at_once: int | None = None) -> Iterator[T]:
        """Results of a function over arguments, in order; few more tasks are under way than there are workers.

        Args:
            function: the task.
            arguments: one for each task.
            at_once: most tasks under way, for such as take more memory than every worker can have.
        """
        most = 2 * self.workers + 1 if at_once is None or at_once >= self.workers else at_once
        waiting: deque[Future[T]] = deque()
        for argument in arguments:
            waiting.append(self.submit(function, argument))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
