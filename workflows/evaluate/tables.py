"""The parts that Markdown pages of all evaluations are made of."""

from collections.abc import Callable, Mapping, Sequence

Best = Callable[[Sequence[float]], float]
"""The best of some numbers: `max`, or `min`."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def shown(value: float | None, form: str, missing: str = "failed") -> str:
    """A number, or what stands for one that is missing."""
    return missing if value is None else format(value, form)


def marked(values: Sequence[float | None], form: str, best: Best | None, missing: str = "failed") -> list[str]:
    """Numbers that belong side by side, the best of them bold; none is where `best` is None."""
    known = [value for value in values if value is not None]
    top = best(known) if known and best else None
    cells = [shown(value, form, missing) for value in values]
    return [
        f"**{cell}**" if value is not None and value == top else cell for value, cell in zip(values, cells, strict=True)
    ]


def closing(conventions: Mapping[str, str], failed: Sequence[str]) -> list[str]:
    """The last parts of a page: what its numbers are, and what failed."""
    parts = ["## Conventions", "\n".join(f"- {name}: {text}" for name, text in conventions.items())]
    return [*parts, "## Failed", "\n".join(f"- {line}" for line in failed)] if failed else parts
