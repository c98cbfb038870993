"""What a measurement ran on and what it cost."""

import ctypes
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cubeloom

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def environment(*packages: str) -> dict[str, Any]:
    """Versions, cores and thread limits, for JSON."""
    threads = {name: value for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if (value := os.environ.get(name))}
    return {
        "cubeloom": cubeloom.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "cores": os.cpu_count(),
        **threads,
    }


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: wall clock.
        cpu_seconds: processor time over all threads.
        mib: most memory that the process held meanwhile beyond what it held before, MiB; None where the system does not
            say (Linux does).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    mib: float | None = None


@contextmanager
def measured() -> Iterator[Cost]:
    """The cost of what is done inside, known at its end."""
    cost = Cost()
    before = _reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    if before is not None:
        cost.mib = max(0.0, (_kib("VmHWM") - before) / 1024)


def _reset_peak() -> int | None:
    """Make the peak of the process what it holds now, KiB; None where that cannot be done.

    Memory that earlier work has freed goes back to the system first: later work would take it without a trace.
    """
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _RESET.write_text("5")
        return _kib("VmRSS")
    return None


def _kib(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
