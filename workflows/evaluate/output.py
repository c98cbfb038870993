"""What an evaluation leaves on disk: numbers for scripts, a page for readers, a figure."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Written = tuple[Path, Path, Path]


def write_pages(out: Path, results: Mapping[str, Any], page: str, draw: Callable[[Path], None]) -> Written:
    """Write the three files of an evaluation, of whatever kind.

    Args:
        out: folder, made where it is missing.
        results: numbers, for JSON.
        page: Markdown.
        draw: writes the figure to a path.
    """
    out.mkdir(parents=True, exist_ok=True)
    numbers, table, figure = (out / name for name in ("results.json", "table.md", "figure.png"))
    numbers.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    table.write_text(page, encoding="utf-8")
    draw(figure)
    return numbers, table, figure
