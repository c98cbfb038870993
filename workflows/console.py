"""What the command line shows: bars on a terminal, plain lines elsewhere, tables, and values such as `8GB`."""

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from cubeloom.catalogs.items import CatalogItem
from cubeloom.errors import ConfigError
from cubeloom.pipeline.journal import Progress

from .run import SceneProgress, scene_line
from .scene_task import SceneResult

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from `8GB`, `500 MiB` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if not match:
        raise ConfigError(f"--memory {text!r}: expected a size such as 8GB or 500MiB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `1 scene` and `3 scenes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say(line: str) -> None:
    """A line for a person, on standard error so that `--json` output stays clean."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """A value for a script, on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output, as wide as it needs to be where nobody watches."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    table = Table(title=title, title_justify="left", header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    console.print(table)


@contextmanager
def watched() -> Iterator[SceneProgress]:
    """Progress for as long as a run lasts."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}")
    with Bars(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        yield BarProgress(bars)


class PlainProgress(SceneProgress):
    """A line a phase and a line a scene that something was done to."""

    def note(self, words: str) -> None:
        """Say it."""
        say(words)

    def scene(self, item: CatalogItem) -> Progress:
        """Say each phase once."""
        said: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if what and what not in said:
                said.add(what)
                say(f"{item.id}: {what}" + (f" ({total})" if total > 1 else ""))

        return tell

    def ended(self, result: SceneResult) -> None:
        """Say what became of the scene, unless it is nothing."""
        if result.state != "unchanged":
            say(scene_line(result))


class BarProgress(SceneProgress):
    """A bar for each scene under way."""

    def __init__(self, bars: Any) -> None:  # noqa: ANN401 - rich.progress.Progress
        self.bars = bars
        self._of: dict[str, Any] = {}

    def note(self, words: str) -> None:
        """Say it above the bars."""
        self.bars.console.print(words, highlight=False, markup=False)

    def scene(self, item: CatalogItem) -> Progress:
        """Draw a bar that follows the phases of the scene."""
        bar = self._of[item.id] = self.bars.add_task(item.id)

        def tell(what: str, done: int, total: int) -> None:
            if what:
                self.bars.update(bar, description=f"{item.id[-28:]} {what}", completed=done, total=total)

        return tell

    def ended(self, result: SceneResult) -> None:
        """Take the scene's bar away and leave one line."""
        if result.item.id in self._of:
            self.bars.remove_task(self._of.pop(result.item.id))
        if result.state != "unchanged":
            self.note(scene_line(result))


MOST_SHIFT_M = 1000.0
"""How far simulated images may be displaced, m."""


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from `256x320`."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise ConfigError(f"--size {text!r}: expected HEIGHTxWIDTH such as 256x320")
    return int(match[1]), int(match[2])


def parse_shift(text: str) -> tuple[float, float]:
    """East and north, m, from `9,-3.5`."""
    try:
        east, north = (float(part) for part in text.split(","))
    except ValueError:
        east = north = math.nan
    if not (abs(east) <= MOST_SHIFT_M and abs(north) <= MOST_SHIFT_M):
        raise ConfigError(f"--shift {text!r}: expected EAST,NORTH in metres such as 9,-3.5, up to {MOST_SHIFT_M:g}")
    return east, north


def parse_zone(text: str | None) -> int | Literal["next"] | None:
    """A UTM zone's code from `32632` or `EPSG:32632`, or `next`."""
    if text is None or text == "next":
        return "next" if text else None
    code = text.upper().removeprefix("EPSG:")
    if not (code.isascii() and code.isdigit()):
        raise ConfigError(f"--s2-epsg {text!r}: expected the code of a UTM zone such as 32632, or next")
    return int(code)
