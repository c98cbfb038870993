"""Pairs of a fine cube and what a coarser sensor would have seen of it, to learn super-resolution from."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from cubeloom.errors import InputError
from cubeloom.models.cards import Card, InputBands
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.metrics import psnr, sam
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.simulate import simulate_catalog
from cubeloom.pipeline.simulate.styles import STYLES
from cubeloom.pipeline.stages.superres import refine
from cubeloom.workflows.evaluate.superres_grounds import simulate

from .cubes import largest_rectangle, read_cube
from .denoiser_recipe import CubeFile, SimulatedScenes
from .noisy import choose, oriented
from .superres_recipe import SimulatedGround, SuperresRecipe

Float32Array = npt.NDArray[np.float32]

_PATCHES = 7
"""Key of the random stream of batches."""
_LEAST_STD = 1e-6
_CYCLES = (0.5, 3.0)
"""Turns from one place to the other and back along all bands of a blended patch."""
_STEEP = 4.0
"""How sharply they turn."""


@dataclass(frozen=True, eq=False)
class FineCube:
    """A cube that counts as the truth.

    Attributes:
        name: for messages.
        values: `(band, y, x)` in its own units, finite, bands by ascending wavelength.
        bands: which they are, where that is known.
        weight: how often it is drawn, relative to the others.
        seen: what a sensor measured of it on the coarse grid, `(band, y, x)`; None where it is to be degraded.
    """

    name: str
    values: Float32Array
    bands: InputBands | None
    weight: float = 1.0
    seen: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """A cube on two grids with the same corner, both `(band, y, x)`."""

    fine: Float32Array
    coarse: Float32Array
    weight: float = 1.0


def fine_cubes(files: Sequence[CubeFile], scenes: SimulatedScenes | None, folder: Path) -> list[FineCube]:
    """The cubes of a recipe; simulated ones are kept in `folder` for the next time.

    Raises:
        InputError: a file cannot be used, or the cubes have different numbers of bands.
    """
    cubes = [_of_file(file) for file in files] + (_simulated(scenes, folder) if scenes else [])
    counts = {len(cube.values): cube.name for cube in cubes}
    if len(counts) > 1:
        raise InputError(
            f"cubes with {' and '.join(f'{count} bands ({name})' for count, name in counts.items())}; a network has "
            "one number of bands: give cubes of the same bands"
        )
    return cubes


def _of_file(file: CubeFile) -> FineCube:
    if file.path.suffix != ".mat" and file.path.exists():
        return FineCube(file.path.name, *_of_scene(file), file.weight)
    values, wavelengths = read_cube(file)
    if wavelengths is None:
        return FineCube(file.path.name, values, None, file.weight)
    order = np.argsort(wavelengths)
    centres = wavelengths[order]
    bands = InputBands(wavelengths_nm=tuple(centres.tolist()), fwhm_nm=tuple(np.abs(np.gradient(centres)).tolist()))
    return FineCube(file.path.name, values[order], bands, file.weight)


def _of_scene(file: CubeFile) -> tuple[Float32Array, InputBands]:
    """The good bands of a product, store or raster by wavelength, and its largest rectangle that is complete."""
    scene = open_scene(file.path, **file.options)
    spec = spec_of(scene)
    good = np.flatnonzero(spec.bands.good)
    good = good[np.argsort(spec.bands.wavelength[good], kind="stable")]
    good = good[np.append(True, np.diff(spec.bands.wavelength[good]) > 0)]
    values = scene[file.key or spec.subject].values[good]
    rows, cols = largest_rectangle(np.asarray(np.isfinite(values).all(axis=0)))
    bands = InputBands(
        numbers=tuple(int(one) for one in spec.bands.number[good]),
        wavelengths_nm=tuple(spec.bands.wavelength[good].tolist()),
        fwhm_nm=tuple(spec.bands.fwhm[good].tolist()),
    )
    return np.ascontiguousarray(values[:, rows, cols], np.float32), bands


def _simulated(scenes: SimulatedScenes, folder: Path) -> list[FineCube]:
    seeds = range(scenes.seed, scenes.seed + scenes.count)
    paths = [folder / f"fine_{seed}_{scenes.height}x{scenes.width}.safetensors" for seed in seeds]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        _simulate(scenes, folder, paths)
    share = scenes.weight / scenes.count
    return [
        FineCube(f"simulated scene {seed}", held.pop("values"), _bands(held), share)
        for seed, held in zip(seeds, map(load_file, paths), strict=True)
    ]


def ground_cubes(
    ground: SimulatedGround, like: InputBands | None, recipe: SuperresRecipe, scale: int
) -> list[FineCube]:
    """Simulated ground on the fine grid, and what EnMAP measures of it.

    Args:
        ground: how much of it.
        like: bands to have, by wavelength; all that are usable where None.
        recipe: gives modulation transfers and their seed.
        scale: of the grids.
    """
    landscapes = sorted(STYLES)
    return [
        _ground(ground.seed + number, landscapes[number % len(landscapes)], ground, like, recipe, scale)
        for number in range(ground.count)
    ]


def _ground(
    seed: int, landscape: str, ground: SimulatedGround, like: InputBands | None, recipe: SuperresRecipe, scale: int
) -> FineCube:
    mtf = float(np.random.default_rng([recipe.seed, seed]).uniform(*recipe.mtf))
    scene, truth = simulate(landscape, seed, ground.edge, scale, mtf)
    spec = spec_of(scene)
    every, apart = spec.bands.wavelength, np.flatnonzero(spec.bands.good)
    if like is not None:
        apart = np.abs(every[:, None] - like.wavelengths_nm).argmin(axis=0)
    bands = like or InputBands(
        numbers=tuple(int(one) for one in spec.bands.number[apart]),
        wavelengths_nm=tuple(every[apart].tolist()),
        fwhm_nm=tuple(spec.bands.fwhm[apart].tolist()),
    )
    seen = scene[spec.subject].values[apart]
    return FineCube(f"simulated ground {seed}", truth[apart], bands, ground.weight / ground.count, seen)


def _bands(held: dict[str, npt.NDArray[np.float64]]) -> InputBands:
    return InputBands(**{name: tuple(values.tolist()) for name, values in held.items()})


def _simulate(scenes: SimulatedScenes, folder: Path, paths: Sequence[Path]) -> None:
    """Write the reflectance without noise of simulated products, each complete or not at all."""
    with tempfile.TemporaryDirectory(prefix=".products-", dir=folder) as scratch:
        products = simulate_catalog(
            Path(scratch), scenes.count, seed=scenes.seed, height=scenes.height, width=scenes.width, clouds=0.0
        )
        for product, path in zip(products, paths, strict=True):
            values, bands = _of_scene(CubeFile(path=product.truth_folder / "CLEAN.TIF", options={"scale": "0.0001"}))
            held = {
                "values": values,
                "numbers": np.asarray(bands.numbers),
                "wavelengths_nm": np.asarray(bands.wavelengths_nm),
                "fwhm_nm": np.asarray(bands.fwhm_nm),
            }
            part = path.with_suffix(".part")
            save_file(held, part)
            part.replace(path)


@dataclass(frozen=True, eq=False)
class Standard:
    """Mean and standard deviation of every band, by which the network sees them."""

    mean: Float32Array
    std: Float32Array

    @classmethod
    def of_card(cls, card: Card) -> "Standard":
        """Those by which a network learnt before."""
        return cls(np.asarray(card.mean, np.float32), np.asarray(card.std, np.float32))

    @classmethod
    def of(cls, cubes: Sequence[FineCube]) -> "Standard":
        """Over all pixels of some cubes."""
        spectra = [cube.values.reshape(len(cube.values), -1) for cube in cubes]
        count = sum(part.shape[1] for part in spectra)
        mean = sum(part.sum(axis=1, dtype=np.float64) for part in spectra) / count
        square = sum((part.astype(np.float64) - mean[:, None]).__pow__(2).sum(axis=1) for part in spectra) / count
        return cls(mean.astype(np.float32), np.maximum(np.sqrt(square), _LEAST_STD).astype(np.float32))

    def apply(self, cube: Float32Array) -> Float32Array:
        """Standardise `(band, y, x)`."""
        return (cube - self.mean[:, None, None]) / self.std[:, None, None]

    def undo(self, cube: Float32Array) -> Float32Array:
        """The reverse."""
        return cube * self.std[:, None, None] + self.mean[:, None, None]


class SuperresPatches:
    """Batches: what the network sees, `(N, band, y, x)`, and what it should make of it."""

    def __init__(self, cubes: Sequence[FineCube], standard: Standard, recipe: SuperresRecipe, scale: int) -> None:
        least = recipe.patch_px * scale
        large = [cube for cube in cubes if min(cube.values.shape[1:]) >= least]
        if not large:
            sizes = ", ".join(f"{cube.name} {cube.values.shape[1]} x {cube.values.shape[2]}" for cube in cubes)
            raise InputError(f"no cube is as large as a patch of {least} px ({sizes}); make patch_px smaller")
        self.recipe, self.scale = recipe, scale
        self.pairs = list(_pairs(large, standard, recipe, scale))
        self.shares = {number: pair.weight for number, pair in enumerate(self.pairs)}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step; depends on the seed and the step alone."""
        rng = np.random.default_rng([self.recipe.seed, _PATCHES, step])
        coarse, fine = zip(*(self._blended(rng) for _ in range(self.recipe.batch)), strict=True)
        return torch.from_numpy(np.stack(coarse)), torch.from_numpy(np.stack(fine))

    def _blended(self, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
        """A patch, or one whose ranges of wavelength are of two places in turn."""
        patch = self._patch(rng)
        if not self.recipe.blend or rng.random() >= self.recipe.blend:
            return patch
        cycles, start = rng.uniform(*_CYCLES), rng.random()
        along = np.linspace(0, cycles, len(patch[0])) + start
        share = (1 / (1 + np.exp(-_STEEP * np.sin(2 * np.pi * along)))).astype(np.float32)[:, None, None]
        coarse, fine = (share * one + (1 - share) * other for one, other in zip(patch, self._patch(rng), strict=True))
        return coarse, fine

    def _patch(self, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
        pair, px, scale = self.pairs[choose(self.shares, rng)], self.recipe.patch_px, self.scale
        row, col = (int(rng.integers(0, extent - px + 1)) for extent in pair.coarse.shape[1:])
        coarse = pair.coarse[:, row : row + px, col : col + px]
        fine = pair.fine[:, row * scale : (row + px) * scale, col * scale : (col + px) * scale]
        if self.recipe.noise:
            level = np.float32(self.recipe.noise * rng.random())
            coarse = coarse + level * rng.standard_normal(coarse.shape, np.float32)
        turn = int(rng.integers(8)) if self.recipe.dihedral else 0
        return oriented(coarse, turn), oriented(fine, turn)


def _pairs(cubes: Sequence[FineCube], standard: Standard, recipe: SuperresRecipe, scale: int) -> Iterator[Pair]:
    for number, cube in enumerate(cubes):
        mtf = float(np.random.default_rng([recipe.seed, number]).uniform(*recipe.mtf))
        fine = standard.apply(cube.values)
        seen = degrade(fine, scale, mtf) if cube.seen is None else standard.apply(cube.seen)
        yield Pair(fine, seen, cube.weight)


class SuperresJudge:
    """MPSNR (range 1 of the cube's own units), dB, and mean spectral angle, degrees, over the cubes kept aside.

    Attributes:
        every: steps from one validation to the next.
    """

    def __init__(self, cubes: Sequence[FineCube], standard: Standard, recipe: SuperresRecipe, scale: int) -> None:
        self.every, self.standard, self.scale = recipe.validation.every, standard, scale
        fine = [_middle(cube.values, recipe.validation.px // scale * scale, scale) for cube in cubes]
        self.pairs = [Pair(cube, degrade(cube, scale, recipe.validation.mtf)) for cube in fine]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what `score` gives."""
        return ("psnr", "sam_deg") if self.pairs else ()

    def score(self, network: nn.Module) -> dict[str, float]:
        """Both metrics of a network in eval mode."""
        device = next(network.parameters()).device

        def made(coarse: Float32Array) -> Float32Array:
            with torch.inference_mode():
                inputs = torch.from_numpy(self.standard.apply(coarse))[None].to(device)
                answer = network(inputs)[0].float().cpu().numpy()
            return self.standard.undo(answer)

        return self._score([made(pair.coarse) for pair in self.pairs])

    def baseline(self) -> dict[str, float]:
        """The same of cubic convolution."""
        return self._score(
            [refine(pair.coarse, np.ones(pair.coarse.shape[1:], bool), self.scale) for pair in self.pairs]
        )

    def _score(self, answers: Sequence[Float32Array]) -> dict[str, float]:
        if not self.pairs:
            return {}
        both = list(zip((pair.fine for pair in self.pairs), answers, strict=True))
        return {
            "psnr": float(np.mean([psnr(fine, answer, 1.0) for fine, answer in both])),
            "sam_deg": float(np.mean([sam(fine, answer) for fine, answer in both])),
        }


def _middle(cube: Float32Array, px: int, scale: int) -> Float32Array:
    edges = [min(extent, px) // scale * scale for extent in cube.shape[1:]]
    row, col = ((extent - edge) // 2 for extent, edge in zip(cube.shape[1:], edges, strict=True))
    return np.ascontiguousarray(cube[:, row : row + edges[0], col : col + edges[1]])
