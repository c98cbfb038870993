"""Many tasks, some at once: failures that may pass are tried again later, and a stop leaves the rest undone."""

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

R = TypeVar("R")

FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0


def delay_s(failures: int) -> float:
    """Seconds to wait after so many failures in turn: twice as long after each."""
    return min(FIRST_DELAY_S * 2.0 ** (failures - 1), LONGEST_DELAY_S)


class Batch(Generic[R]):
    """Runs tasks on threads of its own.

    Args:
        tasks: what to run; each gives its result and raises only what must end the whole.
        at_once: tasks under way at a time.
        again: tells from a task's number, its result, and how often it was run, in how many seconds to run it again;
            None for never.
        stop: once set, no further task begins.
    """

    def __init__(
        self,
        tasks: Sequence[Callable[[], R]],
        at_once: int,
        again: Callable[[int, R, int], float | None],
        stop: threading.Event,
    ) -> None:
        self._tasks, self._at_once, self._again, self._stop = tasks, at_once, again, stop
        self._waiting = [(0.0, number, 1) for number in range(len(tasks))]
        self._running = 0
        self._changed = threading.Condition()
        self._results: dict[int, R] = {}

    def run(self) -> dict[int, R]:
        """The results by the tasks' numbers; of those that were not begun because of a stop there is none."""
        with ThreadPoolExecutor(self._at_once, thread_name_prefix="scene") as pool:
            workers = [pool.submit(self._work) for _ in range(min(self._at_once, len(self._tasks)))]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                self._stop.set()
                with self._changed:
                    self._changed.notify_all()
                raise
        return self._results

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            number, runs = taken
            try:
                result = self._tasks[number]()
                delay = self._again(number, result, runs)
            except BaseException:
                self._stop.set()
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
                raise
            self._leave(number, result, runs, delay)

    def _leave(self, number: int, result: R, runs: int, delay: float | None) -> None:
        with self._changed:
            self._results[number] = result
            if delay is not None:
                heapq.heappush(self._waiting, (time.monotonic() + delay, number, runs + 1))
            self._running -= 1
            self._changed.notify_all()

    def _next(self) -> tuple[int, int] | None:
        """The number of the next task whose time has come, and how often it will have been run."""
        with self._changed:
            while not self._stop.is_set() and (self._waiting or self._running):
                now = time.monotonic()
                if self._waiting and self._waiting[0][0] <= now:
                    _, number, runs = heapq.heappop(self._waiting)
                    self._running += 1
                    return number, runs
                # A stop comes from a signal, which cannot wake a thread: look for it now and then.
                self._changed.wait(min(self._waiting[0][0] - now, 0.2) if self._waiting else 0.2)
        return None
