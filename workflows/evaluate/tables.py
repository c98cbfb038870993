"""The Markdown page of an evaluation."""

from collections.abc import Callable, Sequence

from cubeloom.workflows.console import counted

from .denoise import CONVENTIONS, Evaluation

_SUMMARY = (
    ("psnr_db", "PSNR dB", ".2f"),
    ("ssim_uniform", "SSIM 7x7", ".4f"),
    ("ssim_gaussian", "SSIM 11x11", ".4f"),
    ("sam_deg", "SAM deg", ".2f"),
    ("sam_rad", "SAM rad", ".4f"),
    ("ergas", "ERGAS", ".2f"),
    ("seconds", "s", ".2f"),
    ("cpu_seconds", "CPU s", ".2f"),
)
_BY_NOISE = (("psnr_db", "PSNR, dB", ".2f", max), ("ssim_gaussian", "SSIM 11x11", ".4f", max),
             ("sam_deg", "SAM, degrees", ".2f", min), ("ergas", "ERGAS", ".2f", min))  # fmt: skip


def markdown(found: Evaluation) -> str:
    """Means over cubes and noises, each noise, each cube, then the inputs and the conventions."""
    over = counted(len(found.cubes), "cube")
    kinds = counted(len(found.noises), "kind")
    parts = [f"# Denoising: {over}, {kinds} of noise, seed {found.seed}", _summary(found)]
    for metric, title, form, best in _BY_NOISE:
        parts += [f"## {title}, mean over {over}", _by_noise(found, metric, form, best)]
    if len(found.cubes) > 1:
        for cube in found.cubes:
            parts += [f"## PSNR, dB: {cube.name}", _by_noise(found, "psnr_db", ".2f", max, cube.name)]
    parts += ["## Cubes", _cubes(found), "## Conventions", "\n".join(f"- {k}: {v}" for k, v in CONVENTIONS.items())]
    failed = [f"- {s.method} on {s.cube}, {s.noise}: {s.error}" for s in found.scores if s.error]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def _summary(found: Evaluation) -> str:
    rows = []
    for method in found.methods:
        values = (_shown(found.mean(metric, method.name), form) for metric, _, form in _SUMMARY)
        rows.append([method.label, *values])
    return table(["mean over all", *(title for _, title, _ in _SUMMARY)], rows)


def _by_noise(
    found: Evaluation, metric: str, form: str, best: Callable[[Sequence[float]], float], cube: str | None = None
) -> str:
    """A row a noise and a column a method; the best of each row is bold."""
    rows = []
    for noise in (*found.noises, None):
        values = [found.mean(metric, method.name, noise, cube) for method in found.methods]
        known = [value for value in values if value is not None]
        top = best(known) if known else None
        cells = [f"**{_shown(v, form)}**" if v is not None and v == top else _shown(v, form) for v in values]
        rows.append([noise or "mean", *cells])
    return table(["noise", *(method.label for method in found.methods)], rows)


def _cubes(found: Evaluation) -> str:
    rows = []
    for cube in found.cubes:
        row, col, height, width = cube.crop
        crop = f"{height} x {width} px from row {row}, column {col}"
        span = f"{cube.span[0]:g} to {cube.span[1]:g}"
        rows.append([cube.name, str(len(cube.band)), crop, span, "; ".join(cube.notes)])
    return table(["cube", "bands", "crop", "scaled from", "notes"], rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _shown(value: float | None, form: str) -> str:
    return "failed" if value is None else format(value, form)
