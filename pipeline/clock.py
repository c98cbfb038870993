"""Where the time of a block goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

Seconds = dict[str, float]
"""Wall time by the name of a step: `read`, a stage's name, `write`."""


class Clock:
    """Adds up the seconds that parts of one task take, by their names; to those in `seconds`, where they are given."""

    def __init__(self, seconds: Seconds | None = None) -> None:
        self.seconds: Seconds = {} if seconds is None else seconds

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of a `with` block under `part`, whether it ends well or not."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def added(one: Seconds, other: Seconds) -> Seconds:
    """The sum of two, by name."""
    return {part: one.get(part, 0.0) + other.get(part, 0.0) for part in one | other}
