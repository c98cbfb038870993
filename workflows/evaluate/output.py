"""What an evaluation leaves on disk: numbers for scripts, a page for readers, a figure."""

import json
from pathlib import Path

from .denoise import Evaluation
from .figure import write_figure
from .tables import markdown


def write_evaluation(found: Evaluation, out: Path) -> tuple[Path, Path, Path]:
    """Write `results.json`, `table.md` and `figure.png` into the folder `out`; those of an earlier one are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    results, table, figure = (out / name for name in ("results.json", "table.md", "figure.png"))
    results.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    table.write_text(markdown(found), encoding="utf-8")
    write_figure(found, figure)
    return results, table, figure
