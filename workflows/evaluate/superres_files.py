"""Ground out of files, super-resolution evaluated on it, and what is found written to a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cubeloom.errors import ConfigError

from .output import Written, write_pages
from .superres import Score, SuperresEvaluation, evaluate_superres
from .superres_cases import parse_protocols
from .superres_figure import write_superres_figure
from .superres_grounds import Ground, read_ground
from .superres_methods import default_methods, parse_superres_methods
from .superres_tables import superres_markdown

SCALES = (2, 3, 4, 8)


def evaluate_superres_files(
    sources: Sequence[str],
    out: Path,
    *,
    methods: str | None = None,
    protocols: str = "full,reduced",
    scale: int = 3,
    mtf: float = 0.3,
    crop: int = 256,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[SuperresEvaluation, Written]:
    """Read scenes, evaluate methods on them and write results, tables and figure into `out`.

    Args:
        sources: as `read_ground` takes them.
        out: folder, made where it is missing.
        methods: as `parse_superres_methods` takes them; by default all kinds.
        protocols: as `parse_protocols` takes them.
        scale: how many times finer, of `SCALES`.
        mtf: modulation transfer of the scenes' sensors at their Nyquist frequency.
        crop: longest side of what is taken of a scene, px.
        tell: called with a line a scene and a line a score.

    Raises:
        InputError: a scene that cannot be read.
        ConfigError: a wrong option.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale is {scale}; expected one of {', '.join(map(str, SCALES))}")
    chosen, wanted = parse_superres_methods(methods or default_methods(scale)), parse_protocols(protocols)
    guides = list(dict.fromkeys(["finest", *(method.own.guide for method in chosen if method.guided)]))
    grounds: list[Ground] = []
    for source in sources:
        ground = read_ground(source, scale, mtf, crop, guides, [one.name for one in grounds])
        grounds.append(ground)
        bands, height, width = (ground.scene.sizes[dim] for dim in ("band", "y", "x"))
        tell("; ".join([f"{ground.name}: {bands} bands, {height} x {width} px", *ground.notes]))
    found = evaluate_superres(grounds, chosen, wanted, scale, mtf, lambda score: tell(_line(score)))
    pages = found.to_json(), superres_markdown(found)
    return found, write_pages(out, *pages, lambda path: write_superres_figure(found, path))


def _line(score: Score) -> str:
    start = f"{score.ground}, {score.protocol}, {score.method}: "
    if score.error:
        return f"{start}failed: {score.error}"
    known = [] if score.psnr_db is None else [f"{score.psnr_db:.2f} dB, {score.sam_deg:.2f} deg"]
    known += [] if score.qnr is None else [f"QNR {score.qnr:.3f}"]
    return start + ", ".join([*known, f"degraded again {score.consistency_deg:.2f} deg, {score.seconds:.2f} s"])
