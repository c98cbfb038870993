"""Clean cubes to learn denoising from: files that the recipe names, and scenes simulated without noise."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from cubeloom.errors import CubeloomError, InputError
from cubeloom.pipeline.scene import BoolArray, FloatArray, spec_of
from cubeloom.pipeline.simulate import simulate_catalog
from cubeloom.pipeline.stages.subspace import estimate_subspace

from .denoiser_recipe import CubeFile, DenoiserRecipe, SimulatedScenes

Float32Array = npt.NDArray[np.float32]

_MICROMETRES = 100.0
"""A table of wavelengths that stays below this is in micrometres."""


@dataclass(frozen=True, eq=False)
class CleanCube:
    """A cube that counts as free of noise.

    Attributes:
        name: for messages.
        values: `(band, y, x)` float32, finite, its least value 0 and its largest 1; bands by wavelength.
        wavelengths: of the bands, nm, where they are known.
        weight: how often it is drawn, relative to the others.
    """

    name: str
    values: Float32Array
    wavelengths: FloatArray | None
    weight: float = 1.0

    def draw(self, rng: np.random.Generator, subset: float = 0.0) -> "CleanCube":
        """This cube; at the chance `subset` with the bands of its middle third and some at either side of it alone."""
        bands = len(self.values)
        if rng.random() >= subset:
            return self
        first, last = int(rng.integers(0, bands // 3 + 1)), int(rng.integers(2 * bands // 3, bands))
        part = slice(first, last + 1)
        wavelengths = None if self.wavelengths is None else self.wavelengths[part]
        return CleanCube(self.name, unit_range(self.values[part]), wavelengths, self.weight)

    def window(self, size: int, rng: np.random.Generator) -> Float32Array:
        """A random square of `size` px, or as much of it as the cube has."""
        height, width = self.values.shape[1:]
        row, col = (int(rng.integers(0, max(extent - size, 0) + 1)) for extent in (height, width))
        return self.values[:, row : row + size, col : col + size]


def training_cubes(recipe: DenoiserRecipe, folder: Path | None = None) -> list[CleanCube]:
    """The cubes of a recipe at every scale that leaves them large enough for a patch.

    Args:
        recipe: which.
        folder: where simulated ones are kept for the next time.

    Raises:
        InputError: a file cannot be used, or no cube is large enough.
    """
    cubes = [_clean_file(source, recipe) for source in recipe.cubes]
    if recipe.scenes:
        cubes += simulated(recipe.scenes, folder)
    scaled = [one for cube in cubes for one in _scales(cube, recipe.scales)]
    least = max(recipe.patch_px)
    large = [cube for cube in scaled if min(cube.values.shape[1:]) >= least]
    if not large and not recipe.mixtures:
        sizes = ", ".join(f"{cube.name} {cube.values.shape[1]} x {cube.values.shape[2]}" for cube in cubes)
        raise InputError(f"no cube is as large as a patch of {least} px ({sizes}); make patch_px smaller")
    return large


def validation_cubes(recipe: DenoiserRecipe, folder: Path | None = None) -> list[CleanCube]:
    """The cubes that training is judged on; arguments as for `training_cubes`."""
    chosen = recipe.validation
    cubes = [_clean_file(source, recipe) for source in chosen.cubes]
    return cubes + (simulated(chosen.scenes, folder) if chosen.scenes else [])


def _clean_file(source: CubeFile, recipe: DenoiserRecipe) -> CleanCube:
    values, wavelengths = read_cube(source)
    _require_bands(source.path, len(values), recipe)
    if source.project:
        values = projected(values)
    return CleanCube(source.path.name, unit_range(values), wavelengths, source.weight)


def _require_bands(name: Path, bands: int, recipe: DenoiserRecipe) -> None:
    least = recipe.bands if recipe.transform == "bands" else 4
    if bands < least:
        raise InputError(f"{name}: {bands} bands; transform {recipe.transform!r} needs at least {least}")


def read_cube(source: CubeFile) -> tuple[Float32Array, FloatArray | None]:
    """Values `(band, y, x)` and wavelengths of a cube file, without bands and pixels that lack values.

    Raises:
        InputError: nothing there that can be used.
    """
    if not source.path.exists():
        raise InputError(f"{source.path}: no such cube; a path in a recipe is relative to the recipe")
    values, wavelengths = _from_mat(source) if source.path.suffix == ".mat" else _from_scene(source)
    present = np.isfinite(values)
    bands = present.any(axis=(1, 2))
    if not bands.any():
        raise InputError(f"{source.path}: no band holds a value")
    rows, cols = largest_rectangle(np.asarray(present[bands].all(axis=0)))
    return values[bands, rows, cols].astype(np.float32), None if wavelengths is None else wavelengths[bands]


def _from_scene(source: CubeFile) -> tuple[Float32Array, FloatArray]:
    """The good bands of a product, store or raster, without background."""
    from cubeloom.pipeline.readers import open_scene

    scene = open_scene(source.path, **source.options)
    spec = spec_of(scene)
    values = scene[source.key or spec.subject].values
    good = np.flatnonzero(spec.bands.good)
    return values[good], spec.bands.wavelength[good]


def _from_mat(source: CubeFile) -> tuple[Float32Array, FloatArray | None]:
    """A cube of a MATLAB file, with the bands that `bbl` calls good and wavelengths from `wl` where it has them."""
    from scipy.io import loadmat

    try:
        content = loadmat(source.path)
    except (NotImplementedError, ValueError, OSError) as error:
        raise InputError(f"{source.path}: not a MATLAB file of version 5 to 7 ({error})") from None
    cube = _mat_cube(source, {name: value for name, value in content.items() if isinstance(value, np.ndarray)})
    wavelengths = _per_band(content, ("wavelengths", "wavelength", "wl"), len(cube))
    if wavelengths is not None and wavelengths.max() < _MICROMETRES:
        wavelengths = wavelengths * 1000
    usable = _per_band(content, ("bbl",), len(cube))
    kept = np.arange(len(cube)) if usable is None else np.flatnonzero(usable > 0)
    return cube[kept], None if wavelengths is None else wavelengths[kept]


def _mat_cube(source: CubeFile, content: dict[str, npt.NDArray[Any]]) -> Float32Array:
    """The array to use, `(band, y, x)`: `(y, x, band)` as files have it, or `(band, pixel)` with its `shape` given."""
    wanted = 2 if source.shape else 3
    fitting = [name for name, value in content.items() if value.ndim == wanted and value.dtype.kind in "fiu"]
    key = source.key or max(fitting, key=lambda name: (content[name].shape[-1], content[name].size), default="")
    if key not in fitting:
        found = ", ".join(f"{name} {value.shape}" for name, value in content.items())
        raise InputError(
            f"{source.path}: no array of {wanted} axes{f' called {source.key}' if source.key else ''}; found {found}. "
            "Give its name as key, and for an array (band, pixel) the image's shape"
        )
    if not source.shape:
        return content[key].transpose(2, 0, 1).astype(np.float32)
    height, width = source.shape
    if content[key].shape[1] != height * width:
        raise InputError(f"{source.path}: {key} has {content[key].shape[1]} pixels, shape says {height} x {width}")
    return content[key].reshape(-1, width, height).transpose(0, 2, 1).astype(np.float32)  # MATLAB stores columns


def _per_band(content: dict[str, Any], names: Sequence[str], bands: int) -> FloatArray | None:
    for name in names:
        if name in content and np.size(content[name]) == bands:
            return np.ravel(content[name]).astype(float)
    return None


def simulated(scenes: SimulatedScenes, folder: Path | None = None) -> list[CleanCube]:
    """The noise-free cubes of simulated L2A scenes; the same settings give the same cubes.

    Args:
        scenes: which.
        folder: where they are kept for the next time.
    """
    seeds = range(scenes.seed, scenes.seed + scenes.count)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="cubeloom-scenes-") as scratch:
            return simulated(scenes, Path(scratch))
    paths = [folder / f"{seed}_{scenes.height}x{scenes.width}.safetensors" for seed in seeds]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        _simulate(scenes, folder, paths)
    kept = [load_file(path) for path in paths]
    share = scenes.weight / scenes.count
    return [
        CleanCube(f"simulated scene {seed}", one["values"], one["wavelengths"], share)
        for seed, one in zip(seeds, kept, strict=True)
    ]


def _simulate(scenes: SimulatedScenes, folder: Path, paths: Sequence[Path]) -> None:
    """Write the clean cubes of simulated products, each complete or not at all."""
    with tempfile.TemporaryDirectory(prefix=".products-", dir=folder) as scratch:
        products = simulate_catalog(
            Path(scratch), scenes.count, seed=scenes.seed, height=scenes.height, width=scenes.width, clouds=0.0
        )
        for product, path in zip(products, paths, strict=True):
            truth = CubeFile(path=product.truth_folder / "CLEAN.TIF", options={"scale": "0.0001"})
            values, wavelengths = read_cube(truth)
            content = {"values": unit_range(values), "wavelengths": np.asarray(wavelengths, float)}
            part = path.with_suffix(".part")
            save_file(content, part)
            part.replace(path)


def unit_range(values: npt.NDArray[Any]) -> Float32Array:
    """A cube scaled as a whole to [0, 1].

    Raises:
        InputError: it is the same everywhere.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        raise InputError(f"a cube to learn from is {low:g} everywhere")
    return ((values - low) / (high - low)).astype(np.float32)


def projected(values: Float32Array) -> Float32Array:
    """A measured cube without the noise outside its signal subspace (rank by HySime).

    Noise that a target shares with the input teaches a network to keep it.

    Raises:
        CubeloomError: fewer pixels than twice the bands.
    """
    spectra = values.reshape(len(values), -1).astype(np.float64)
    if spectra.shape[1] < 2 * len(spectra):
        raise CubeloomError(f"{spectra.shape[1]} pixels are too few to find the subspace of {len(spectra)} bands")
    signal, _ = estimate_subspace(spectra.sum(axis=1), spectra @ spectra.T, spectra.shape[1], 0.0, "hysime")
    return signal.restore(signal.project(spectra)).reshape(values.shape)


def _scales(cube: CleanCube, factors: Sequence[int]) -> Iterator[CleanCube]:
    """The cube with its pixels averaged over squares, for every factor that leaves any."""
    for factor in factors:
        bands, height, width = cube.values.shape
        rows, cols = height // factor, width // factor
        if rows and cols:
            squares = cube.values[:, : rows * factor, : cols * factor].reshape(bands, rows, factor, cols, factor)
            mean = squares.mean(axis=(2, 4), dtype=np.float32)
            yield CleanCube(f"{cube.name} / {factor}", mean, cube.wavelengths, cube.weight)


def largest_rectangle(valid: BoolArray) -> tuple[slice, slice]:
    """Rows and columns of the largest rectangle that is True throughout.

    Raises:
        InputError: nothing is.
    """
    best, found = 0, (slice(0, 0), slice(0, 0))
    heights = np.zeros(valid.shape[1] + 1, int)
    for row, line in enumerate(valid):
        heights[:-1] = np.where(line, heights[:-1] + 1, 0)
        stack: list[tuple[int, int]] = []
        for col, height in enumerate(heights.tolist()):
            start = col
            while stack and stack[-1][1] >= height:
                start, tall = stack.pop()
                if tall * (col - start) > best:
                    best = tall * (col - start)
                    found = (slice(row - tall + 1, row + 1), slice(start, col))
            stack.append((start, height))
    if not best:
        raise InputError("no pixel has a value in every band that holds any; choose bands with select_bands first")
    return found
