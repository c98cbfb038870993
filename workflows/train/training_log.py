"""The log of a training: a CSV table that goes on where training does."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, float]


class TrainingLog:
    """Rows by step: `step`, `hours` of training so far, and the columns it was made with.

    Rows after the step that training goes on from are dropped, so that the table is that of one training without
    stops.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int = 0) -> None:
        self.path, self.columns = path, ("step", "hours", *columns)
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        self.hours_before = float(kept[-1]["hours"]) if kept else 0.0
        part = path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        part.replace(path)

    def add(self, step: int, hours: float, values: Row) -> None:
        """Append a row; a column without a value stays empty."""
        texts = {name: f"{value:.6g}" for name, value in values.items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writerow({"step": step, "hours": f"{hours:.5f}", **texts})

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row.get("step")]
