"""The Markdown page of an evaluation."""

from cubeloom.workflows.console import counted

from .denoise import CONVENTIONS, Evaluation
from .tables import Best, closing, marked, shown, table

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
    failed = [f"{s.method} on {s.cube}, {s.noise}: {s.error}" for s in found.scores if s.error]
    parts += ["## Cubes", _cubes(found), *closing(CONVENTIONS, failed)]
    return "\n\n".join(parts) + "\n"


def _summary(found: Evaluation) -> str:
    rows = []
    for method in found.methods:
        values = (shown(found.mean(metric, method.name), form) for metric, _, form in _SUMMARY)
        rows.append([method.label, *values])
    return table(["mean over all", *(title for _, title, _ in _SUMMARY)], rows)


def _by_noise(found: Evaluation, metric: str, form: str, best: Best, cube: str | None = None) -> str:
    """A row a noise and a column a method; the best of each row is bold."""
    rows = []
    for noise in (*found.noises, None):
        values = [found.mean(metric, method.name, noise, cube) for method in found.methods]
        rows.append([noise or "mean", *marked(values, form, best)])
    return table(["noise", *(method.label for method in found.methods)], rows)


def _cubes(found: Evaluation) -> str:
    rows = []
    for cube in found.cubes:
        row, col, height, width = cube.crop
        crop = f"{height} x {width} px from row {row}, column {col}"
        span = f"{cube.span[0]:g} to {cube.span[1]:g}"
        rows.append([cube.name, str(len(cube.band)), crop, span, "; ".join(cube.notes)])
    return table(["cube", "bands", "crop", "scaled from", "notes"], rows)
