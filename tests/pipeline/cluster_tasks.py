"""What tests run in the workers of a cluster: a module of its own, since workers cannot import a test."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from marking import marked  # noqa: F401 - one of the tasks here
from threadpoolctl import threadpool_info

from cubeloom.errors import StoreError
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.readers.enmap import EnmapSource
from cubeloom.pipeline.readers.store import StoreSource
from cubeloom.pipeline.stages import Denoise
from cubeloom.pipeline.stages.base import Stage


def described(label: str, number: int) -> str:
    return f"{label} {number}"


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


def size(shared: bytes, window: Window) -> tuple[int, int]:
    return len(shared), window.height


def meet(shared: bytes, folder: Path, tasks: int, number: int) -> bool:
    """Whether `tasks` of them were under way at one time, each in a worker of its own."""
    (folder / f"{number}.begun").touch()
    until = time.monotonic() + 20
    while len(list(folder.iterdir())) < tasks and time.monotonic() < until:
        time.sleep(0.02)
    return len(list(folder.iterdir())) == tasks


def divided(number: int) -> float:
    return 1 / number


def blas_threads(_: int) -> set[int]:
    np.ones((4, 4)) @ np.ones((4, 4))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@dataclass(frozen=True)
class Fatal(StoreSource):
    """A store that kills whoever reads its last rows."""

    def read(self, name, window, bands=None, out=None):
        if window.stop[0] == self.spec.shape[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, window, bands, out)


def die_once(flag: Path) -> None:
    """Kills this process, unless that has been done already."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, eq=False)
class Shot(EnmapSource):
    """A product whose first reader of a block's second variable dies, when the first one has been written."""

    flag: Path

    def read(self, name, window, bands=None, out=None):
        if name == "quality" and window.row:
            die_once(self.flag)
        return super().read(name, window, bands, out)


class ShotStage(Stage):
    """Changes nothing; one of its tasks dies in statistics, and one in the step."""

    name: ClassVar[str] = "shot"
    flags: Path

    @property
    def passes(self):
        return 1

    def plan(self, spec):
        return spec

    def measure(self, block, stats, number):
        if block.core.row:
            die_once(self.flags / "measure")
        return {"pixels": np.array(block.valid.sum())}

    def settle(self, sums, stats, number, spec):
        return sums

    def apply(self, block, stats):
        if block.core.row:
            die_once(self.flags / "apply")
        return {}


class ShotNetwork(Denoise):
    """A network, one of whose groups of tiles dies when it is computed and not yet written."""

    flag: Path

    def infer(self, tiles, stats, threads=1):
        made = super().infer(tiles, stats, threads)
        die_once(self.flag)
        return made
