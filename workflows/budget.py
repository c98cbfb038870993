"""The memory of a run, shared among the scenes that are under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cubeloom.pipeline.memory import BASE_BYTES


class Budget:
    """Lets a scene begin once what it needs is free.

    A plan never projects more than the whole, so every scene gets its turn. What the process holds anyway
    (`BASE_BYTES`) is part of every projection, and counts once.

    Args:
        total: bytes that the run may use.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, projected: int) -> Iterator[None]:
        """Hold what a plan projects, `projected` bytes with the base, for a block of code."""
        needed = max(projected - BASE_BYTES, 0)
        with self._changed:
            self._changed.wait_for(lambda: not self._used or BASE_BYTES + self._used + needed <= self.total)
            self._used += needed
        try:
            yield
        finally:
            with self._changed:
                self._used -= needed
                self._changed.notify_all()
