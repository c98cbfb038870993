"""Clients of Dask clusters: of processes of our own on this machine, or of a cluster that runs already."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from cubeloom.errors import ConfigError, RetryableError

from .cluster_worker import ONE_THREAD, Deaf

OWN = "processes"
"""Stands for a cluster of our own."""

PROTOCOLS = ("tcp://", "tls://", "ws://", "wss://", "ucx://")

_CLOSE_S = 5.0

_SETTINGS = {
    # Dask's own would have glibc give back freed memory at once, so that every array costs page faults anew.
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    # The plan has projected the memory, and nothing of size lies in Dask's own.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
"""Of a cluster of our own."""

_UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "10s",
    "distributed.admin.system-monitor.interval": "5s",
}
"""Where no dashboard shows them: samples of stacks, event loops and the machine, up to a hundred a second in every
process, which take time from the cores that blocks are computed on."""


@contextmanager
def own_processes(workers: int, dashboard: bool) -> Iterator[Client]:
    """Processes of one thread each, on this machine's loopback interface; gone at the end."""
    settings = _SETTINGS if dashboard else _SETTINGS | _UNWATCHED
    with tempfile.TemporaryDirectory(prefix="cubeloom-") as scratch, _environment(), dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": dashboard},
            memory_limit=None,
            local_directory=scratch,
            silence_logs=logging.ERROR,
        )
        try:
            with Client(cluster, set_as_default=False) as client:
                client.register_plugin(Deaf())
                yield client
        finally:
            cluster.close(timeout=_CLOSE_S)


@contextmanager
def _environment() -> Iterator[None]:
    """Takes back what Dask writes into this process's environment for its workers to inherit."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of a cluster that runs already."""
    if not scheduler.startswith(PROTOCOLS) and not Path(scheduler).is_file():
        raise ConfigError(
            f"scheduler {scheduler!r}: expected {OWN!r}, an address such as tcp://host:8786, or a scheduler file that "
            "exists"
        )
    named = {"address" if scheduler.startswith(PROTOCOLS) else "scheduler_file": scheduler}
    try:
        client = Client(**named, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise RetryableError(f"{scheduler}: no Dask scheduler answers there ({error}); is it up?") from error
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{scheduler}: cannot be used as a Dask scheduler: {error}") from error
    with client:
        yield client
