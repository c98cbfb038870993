"""Denoisers compared on clean cubes with noise added by protocol."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .cubes import CleanCube, read_cube, read_cubes
from .denoise import Evaluation, Score, evaluate_denoise, parse_noises
from .methods import parse_methods
from .output import write_evaluation

__all__ = [
    "CleanCube",
    "Evaluation",
    "Score",
    "evaluate_denoise",
    "evaluate_files",
    "parse_methods",
    "parse_noises",
    "read_cube",
    "write_evaluation",
]


def evaluate_files(
    sources: Sequence[str],
    out: Path,
    *,
    methods: str = "noisy,subspace,hymixde",
    noises: str = "protocol",
    seed: int = 0,
    crop: int = 512,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, tuple[Path, Path, Path]]:
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


def _line(score: Score) -> str:
    start = f"{score.cube}, {score.noise}, {score.method}: "
    if score.error:
        return f"{start}failed: {score.error}"
    return f"{start}{score.psnr_db:.2f} dB, {score.sam_deg:.2f} deg, {score.seconds:.2f} s"
