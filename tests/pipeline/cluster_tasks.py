"""What tests run in the workers of a cluster: a module of its own, since workers cannot import a test."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_info

from cubeloom.errors import StoreError
from cubeloom.pipeline.readers.store import StoreSource


def described(label: str, number: int) -> str:
    return f"{label} {number}"


def marked(folder: Path, seconds: float, number: int) -> int:
    """Leaves a file when it begins and one when it ends."""
    (folder / f"{number}.begun").touch()
    time.sleep(seconds)
    (folder / f"{number}.ended").touch()
    return number


def slow_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0)
    return number


def refused(number: int) -> int:
    """Fails as a full disk makes a block fail."""
    if number == 3:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise StoreError(f"chunk {number} cannot be written") from error
    return number


def divided(number: int) -> float:
    return 1 / number


def blas_threads(_: int) -> set[int]:
    import numpy as np

    np.ones((4, 4)) @ np.ones((4, 4))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@dataclass(frozen=True)
class Fatal(StoreSource):
    """A store that kills whoever reads its last rows."""

    def read(self, name, window, bands=None, out=None):
        if window.stop[0] == self.spec.shape[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, window, bands, out)
