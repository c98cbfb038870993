"""Clean cubes out of files, denoisers compared on them, and what is found written to a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .cubes import read_cubes
from .denoise import Evaluation, Score, evaluate_denoise, parse_noises
from .denoise_figure import write_figure
from .denoise_methods import parse_methods
from .denoise_tables import markdown
from .output import Written, write_pages


def evaluate_denoise_files(
    sources: Sequence[str],
    out: Path,
    *,
    methods: str = "noisy,subspace,hymixde",
    noises: str = "protocol",
    seed: int = 0,
    crop: int = 512,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, Written]:
    """Read cubes, evaluate methods on them and write results, tables and figure into `out`.

    Args:
        sources: cubes as `read_cube` takes them.
        out: folder, made where it is missing.
        methods: as `parse_methods` takes them.
        noises: as `parse_noises` takes them.
        seed: seed of the noise.
        crop: longest side of what is taken of a cube, px.
        tell: called with a line a cube and a line a score.

    Raises:
        InputError: a cube that cannot be read.
        ConfigError: a wrong option.
    """
    chosen, kinds = parse_methods(methods), parse_noises(noises)
    cubes = read_cubes(list(sources), crop)
    for cube in cubes:
        _, _, height, width = cube.crop
        tell(f"{cube.name}: {len(cube.band)} bands, {height} x {width} px; {'; '.join(cube.notes)}")
    found = evaluate_denoise(cubes, chosen, kinds, seed, lambda score: tell(_line(score)))
    return found, write_evaluation(found, out)


def write_evaluation(found: Evaluation, out: Path) -> Written:
    """Write `results.json`, `table.md` and `figure.png` into the folder `out`; those of an earlier one are replaced."""
    return write_pages(out, found.to_json(), markdown(found), lambda path: write_figure(found, path))


def _line(score: Score) -> str:
    start = f"{score.cube}, {score.noise}, {score.method}: "
    if score.error:
        return f"{start}failed: {score.error}"
    return f"{start}{score.psnr_db:.2f} dB, {score.sam_deg:.2f} deg, {score.seconds:.2f} s"
