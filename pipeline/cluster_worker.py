"""What runs in the workers of a Dask cluster: a round's tasks, and what comes to a worker once for all of them."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distributed import WorkerPlugin
from distributed.protocol.pickle import loads
from threadpoolctl import threadpool_limits

import cubeloom
from cubeloom.errors import ConfigError, CubeloomError

from .executor import Skipped

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_PACKAGES = ("numcodecs", "numpy", "scikit-learn", "scipy", "torch")
"""Beside Cubeloom and Python, what decides the bytes of a product."""


@dataclass(frozen=True)
class Job:
    """What the tasks of a round have in common."""

    function: Callable[..., Any]
    common: tuple[Any, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """An error that a task raised on purpose, with what lay under it: Dask would leave that out."""

    error: CubeloomError
    cause: OSError | None


_OPEN: dict[str, bytes | Job] = {}
"""In a worker: what it holds of the rounds that are under way; packed until its first task."""

_UNPACKING = threading.Lock()


def open_round(token: str, packed: bytes) -> None:
    """Take what the tasks of a round have in common."""
    _OPEN.setdefault(token, packed)


def close_round(token: str) -> None:
    """Drop a round; none of its tasks begins any more."""
    _OPEN.pop(token, None)


class Common(WorkerPlugin):
    """Brings a round to a worker."""

    def __init__(self, token: str, packed: bytes) -> None:
        self.token, self.packed = token, packed

    def setup(self, worker: Any) -> None:  # noqa: ANN401
        """Dask calls it in every worker, those to come too."""
        open_round(self.token, self.packed)

    def teardown(self, worker: Any) -> None:  # noqa: ANN401
        """Dask calls it when the plugin is taken back."""
        close_round(self.token)


def _job(token: str) -> Job | None:
    """What the tasks of a round have in common; None where this worker holds none of it."""
    with _UNPACKING:
        held = _OPEN.get(token)
        if isinstance(held, bytes):
            held = loads(held)
            assert isinstance(held, Job)
            if token in _OPEN:  # else it was closed meanwhile
                _OPEN[token] = held
        return held


def run_task(token: str, argument: Any) -> Any:  # noqa: ANN401 - any task
    """One task, in a worker."""
    job = _job(token)
    if job is None:
        return Skipped.NOT_BEGUN
    try:
        _prepare(tuple(job.versions.items()))
        return job.function(*job.common, argument)
    except CubeloomError as error:
        return Refusal(error, error.__cause__ if isinstance(error.__cause__, OSError) else None)


@cache
def _prepare(expected: tuple[tuple[str, str], ...]) -> None:
    """Once in a worker: the same software as its client, and one thread for each task's linear algebra."""
    own = versions()
    if wrong := [f"{name} {own[name]}, expected {found}" for name, found in expected if own[name] != found]:
        raise ConfigError(
            f"worker on {platform.node()}: has {'; '.join(wrong)}. A product's bytes depend on it: run the workers in "
            "the same environment as this process"
        )
    os.environ.update(ONE_THREAD)  # for libraries that are still to be loaded
    threadpool_limits(1)


def versions() -> dict[str, str]:
    """The software that decides the bytes of a product."""
    found = {"cubeloom": cubeloom.__version__, "python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


class Deaf(WorkerPlugin):
    """Signals that a terminal or a service manager sends to all processes are for the runner to heed."""

    def setup(self, worker: Any) -> None:  # noqa: ANN401
        """Dask calls it in every worker."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
