"""The Markdown page of an evaluation of super-resolution."""

from cubeloom.workflows.console import counted

from .superres import CONVENTIONS, SuperresEvaluation
from .tables import Best, closing, marked, table

_SUMMARY: tuple[tuple[str, str, str, Best | None], ...] = (
    ("psnr_db", "MPSNR dB", ".2f", max),
    ("ssim", "MSSIM", ".4f", max),
    ("sam_deg", "SAM deg", ".2f", min),
    ("ergas", "ERGAS", ".2f", min),
    ("cc", "CC", ".4f", max),
    ("rmse", "RMSE", ".4f", min),
    ("d_lambda", "D_lambda", ".4f", min),
    ("d_s", "D_s", ".4f", min),
    ("qnr", "QNR", ".4f", max),
    ("consistency_deg", "degraded again, deg", ".2f", None),
    ("seconds", "s", ".2f", None),
    ("cpu_seconds", "CPU s", ".2f", None),
)
_TITLES = {
    "full": "Full resolution: the scene refined as it is",
    "reduced": "Reduced resolution: scene and guide degraded, the scene is the truth",
}


def superres_markdown(found: SuperresEvaluation) -> str:
    """For each protocol means over the ground and what a guide is worth, then every ground; then the inputs."""
    over = counted(len(found.grounds), "scene")
    parts = [f"# Super-resolution: {found.scale} times finer, {over}, modulation transfer {found.mtf:g}"]
    for protocol in found.protocols:
        parts += [f"## {_TITLES[protocol]}", _summary(found, protocol), *_gains(found, protocol)]
        if len(found.grounds) > 1:
            for metric, title, form, best in _SUMMARY[:1] + _SUMMARY[2:3]:
                parts += [f"{title}, {protocol} resolution", _by_ground(found, protocol, metric, form, best)]
    failed = [f"{s.method} on {s.ground}, {s.protocol}: {s.error}" for s in found.scores if s.error]
    return "\n\n".join([*parts, "## Scenes", _cases(found), *closing(CONVENTIONS, failed)]) + "\n"


def _summary(found: SuperresEvaluation, protocol: str) -> str:
    """A row a method; columns without any number are left out."""
    titles, columns = [], []
    for metric, title, form, best in _SUMMARY:
        values = [found.mean(metric, method.name, protocol) for method in found.methods]
        if any(value is not None for value in values):
            titles.append(title)
            columns.append(marked(values, form, best, "–"))
    failed = {score.method for score in found.scores if score.error and score.protocol == protocol}
    rows = [
        [method.label, *(cell if cell != "–" or method.name not in failed else "failed" for cell in cells)]
        for method, *cells in zip(found.methods, *columns, strict=True)
    ]
    return table(["mean over the scenes", *titles], rows)


def _gains(found: SuperresEvaluation, protocol: str) -> list[str]:
    """What the best methods with a guide and without are worth, in words."""
    alone, guided = (found.best(protocol, guided=guided) for guided in (False, True))
    if alone is None:
        return []
    psnr = found.mean("psnr_db", alone.name, protocol) or 0.0
    text = f"Best without a guide: {alone.label}, {psnr:.2f} dB"
    bicubic = found.mean("psnr_db", "bicubic", protocol)
    if bicubic is not None and alone.name != "bicubic":
        text += f" ({psnr - bicubic:+.2f} dB beside bicubic)"
    if guided is not None:
        best = found.mean("psnr_db", guided.name, protocol) or 0.0
        text += f". Best with one: {guided.label}, {best:.2f} dB ({best - psnr:+.2f} dB beside the best without)"
    return [f"{text}."]


def _by_ground(found: SuperresEvaluation, protocol: str, metric: str, form: str, best: Best | None) -> str:
    """A row a ground and a column a method; the best of each row is bold."""
    rows = []
    for ground in found.grounds:
        values = [found.mean(metric, method.name, protocol, ground.name) for method in found.methods]
        rows.append([ground.name, *marked(values, form, best, "–")])
    return table(["scene", *(method.label for method in found.methods)], rows)


def _cases(found: SuperresEvaluation) -> str:
    notes = {ground.name: "; ".join(ground.notes) for ground in found.grounds}
    rows = []
    for case in found.inputs:
        judged = f"{case['judged_pixels']} px, {case['judged_bands']} bands" if case["truth"] else "no truth"
        guides = ", ".join(dict.fromkeys(case["guides"].values())) or "none"
        size = f"{case['height']} x {case['width']} px"
        rows.append([case["ground"], case["protocol"], size, judged, guides, notes[case["ground"]]])
    return table(["scene", "protocol", "given", "judged", "guide", "notes"], rows)
