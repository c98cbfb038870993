"""What a product's making leaves a record of, so that it can go on where it was cut off."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, Protocol

from .chunks import Written, clipped_by_variable
from .grids import Window
from .stages.base import Stats
from .tiles import How

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class TileRecord:
    """A tile that was computed.

    Attributes:
        number: its place in the lattice.
        crc32: checksum of its file.
        how: how its group was computed.
    """

    number: int
    crc32: int
    how: How


class Journal(Protocol):
    """What is already done of a product, and the record of what gets done."""

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks that stand in staging."""
        ...

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        ...

    def add_block(self, window: Window, written: Written) -> None:
        """Record a finished block."""
        ...

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Partial sums recorded for a block of a statistics pass."""
        ...

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Record the partial sums of one block."""
        ...

    def tiles(self) -> Mapping[tuple[int, int], TileRecord]:
        """The tiles that were computed, by step and number."""
        ...

    def add_tiles(self, step: int, records: Sequence[TileRecord]) -> None:
        """Record a group of tiles that stand on the disk."""
        ...


class MemoryJournal:
    """A journal that ends with the process."""

    def __init__(self) -> None:
        self._chunks: dict[str, str] = {}
        self._clipped: dict[str, int] = {}
        self._tiles: dict[tuple[int, int], TileRecord] = {}

    def chunks(self) -> Mapping[str, str]:
        """Hashes of the chunks written so far."""
        return self._chunks

    def clipped(self) -> Mapping[str, int]:
        """Values clipped so far, by variable."""
        return clipped_by_variable(self._clipped)

    def add_block(self, window: Window, written: Written) -> None:
        """Remember a finished block."""
        self._chunks |= written.hashes
        self._clipped |= written.clipped

    def statistics(self, step: int, number: int, part: int) -> Stats | None:
        """Nothing is ever found: every pass runs once in a process."""
        return None

    def add_statistics(self, step: int, number: int, part: int, sums: Stats) -> None:
        """Nothing needs remembering."""

    def tiles(self) -> Mapping[tuple[int, int], TileRecord]:
        """The tiles that were computed, by step and number."""
        return self._tiles

    def add_tiles(self, step: int, records: Sequence[TileRecord]) -> None:
        """Remember a group of tiles."""
        self._tiles |= {(step, record.number): record for record in records}


def inference_summary(tiles: Mapping[tuple[int, int], TileRecord]) -> list[dict[str, Any]]:
    """How the tiles of every step were computed, with the number of those computed so: for people and STAC items."""
    counts = Counter((step, record.how) for (step, _), record in tiles.items() if record.how.device)
    ordered = sorted(counts.items(), key=lambda entry: (entry[0][0], astuple(entry[0][1])))
    return [{"step": step + 1, **asdict(how), "tiles": count} for (step, how), count in ordered]
