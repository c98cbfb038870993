"""SIGTERM: what it ends at once, and what comes to its own end first."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def stop_now(*_: object) -> None:
    """End on SIGTERM as a program does that does not handle it, but cleanly."""
    sys.stderr.write("stopped by SIGTERM\n")
    raise SystemExit(143)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: blocks under way come to their end, no other is begun. The second one ends all."""
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            stop_now()
        stop.set()
        sys.stderr.write("stopped by SIGTERM; a run keeps its finished blocks, the same command goes on from there\n")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
