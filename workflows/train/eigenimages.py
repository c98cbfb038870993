"""Component images of noisy scenes: what the network sees of a scene in its signal subspace."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from cubeloom.errors import InputError
from cubeloom.pipeline.stages.subspace import Subspace, estimate_subspace

from .cubes import CleanCube, Float32Array
from .denoiser_recipe import DenoiserRecipe
from .noisy import TRAINING_NOISES, choose, oriented, resampled

_SCENES = 3
"""Key of the random stream."""
_FIRST = 16
"""Training starts with so many scenes, or the whole pool where that is smaller."""
_AHEAD = 4
"""Scenes that are made before they are needed."""
_WAIT_S = 0.05


@dataclass(frozen=True, eq=False)
class Components:
    """Whitened component images of one scene, noise having variance 1.

    Attributes:
        noisy: `(K, y, x)` float32.
        clean: the same directions of the clean cube.
        scale: standard deviation of each noisy image over the scene, `(K,)` float32.
    """

    noisy: Float32Array
    clean: Float32Array
    scale: Float32Array

    def save(self, path: Path) -> None:
        """Write to a file, which appears complete or not at all."""
        part = path.with_suffix(".part")
        save_file({"noisy": self.noisy, "clean": self.clean, "scale": self.scale}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Components":
        """Read what `save` wrote."""
        return cls(**load_file(path))


def component_images(
    noisy: npt.NDArray[np.floating], clean: npt.NDArray[np.floating], rank: int | str, most: int
) -> tuple[Subspace, Components]:
    """The subspace that the `denoise` stage finds in a noisy cube, and both cubes in it.

    Args:
        noisy: `(band, y, x)`.
        clean: the same without noise.
        rank: as in the stage.
        most: components to keep, the strongest.

    Raises:
        InputError: fewer pixels than twice the bands.
    """
    bands, height, width = noisy.shape
    spectra = noisy.reshape(bands, -1).astype(np.float64)
    count = spectra.shape[1]
    if count < 2 * bands:
        raise InputError(
            f"a scene of {height} x {width} px has too few pixels for the subspace of {bands} bands; at least "
            f"{2 * bands} are needed: use larger cubes, or a larger scene_px"
        )
    signal_space, _ = estimate_subspace(spectra.sum(axis=1), spectra @ spectra.T, count, 0.0, rank)
    space = Subspace(signal_space.mean, signal_space.sigma, signal_space.basis[:, :most], signal_space.variance[:most])
    images = [
        np.asarray(space.project(part), np.float32).reshape(-1, height, width)
        for part in (spectra, clean.reshape(bands, -1))
    ]
    return space, Components(images[0], images[1], np.sqrt(space.variance).astype(np.float32))


class CubeSource(Protocol):
    """Where clean cubes come from."""

    @property
    def name(self) -> str:
        """For the card."""
        ...

    @property
    def weight(self) -> float:
        """How often it is drawn, relative to the other sources."""
        ...

    def draw(self, rng: np.random.Generator, subset: float = 0.0) -> CleanCube:
        """A cube; at the chance `subset` with some of its bands alone."""
        ...


def noisy_scene(sources: Sequence[CubeSource], recipe: DenoiserRecipe, number: int) -> Components:
    """Scene `number` of a training: the seed and the number decide cube, place, noise and all."""
    rng = np.random.default_rng([recipe.seed, _SCENES, number])
    cube = sources[choose({at: one.weight for at, one in enumerate(sources)}, rng)].draw(rng, recipe.subset)
    clean = cube.values if recipe.pool.scene_px is None else cube.window(recipe.pool.scene_px, rng)
    if recipe.dihedral == "before":
        clean = oriented(clean, int(rng.integers(8)))
    noise = choose(recipe.noise, rng)
    measured = TRAINING_NOISES[noise](clean, rng, cube.wavelengths).cube
    measured = resampled(measured, clean, recipe.correlated, rng)
    return component_images(measured, clean, recipe.rank, recipe.bands)[1]


class ScenePool:
    """The noisy scenes at hand at a step. A process of its own makes them, in files that outlive a stop.

    At step t these are the last `size` of the first `_FIRST + t // renew_every` scenes, whatever the speed of the
    process: training waits for it.
    """

    def __init__(
        self,
        sources: Sequence[CubeSource],
        recipe: DenoiserRecipe,
        folder: Path,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self.sources, self.recipe, self.folder, self.waiting = sources, recipe, folder, waiting
        self._scenes: dict[int, Components] = {}
        self._process: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self._wanted = context.Value("q", 0)
        self._from = context.Value("q", 0)
        self._context = context

    def at(self, step: int) -> list[Components]:
        """The scenes of a step, oldest first."""
        pool = self.recipe.pool
        stop = min(_FIRST, pool.size) + step // pool.renew_every
        numbers = range(max(stop - pool.size, 0), stop)
        if numbers[0] not in self._scenes or numbers[-1] not in self._scenes:
            self._renew(numbers)
        return list(self._scenes.values())

    def _renew(self, numbers: range) -> None:
        self._from.value, self._wanted.value = numbers.start, numbers.stop + _AHEAD
        if self.recipe.pool.process and self._process is None:
            self._start()
        scenes = {number: self._scenes.get(number) or self._take(number) for number in numbers}
        self._scenes = scenes
        for path in self.folder.glob("*.safetensors"):
            if int(path.stem) < numbers.start:
                path.unlink()

    def _start(self) -> None:
        arguments = (self.sources, self.recipe, self.folder, self._from, self._wanted, os.getpid())
        self._process = self._context.Process(target=_produce, args=arguments, daemon=True)
        self._process.start()

    def _take(self, number: int) -> Components:
        """Scene `number`, once it is there; where no process makes it, it is made here, and so are its errors."""
        path = scene_path(self.folder, number)
        while not path.exists() and self._process is not None and self._process.is_alive():
            self.waiting()
            time.sleep(_WAIT_S)
        if not path.exists():
            noisy_scene(self.sources, self.recipe, number).save(path)
        return Components.load(path)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self._process = None


def scene_path(folder: Path, number: int) -> Path:
    """Where a scene of the pool lies."""
    return folder / f"{number:08d}.safetensors"


def _produce(
    sources: Sequence[CubeSource],
    recipe: DenoiserRecipe,
    folder: Path,
    start: Any,  # noqa: ANN401 - a shared number
    wanted: Any,  # noqa: ANN401
    parent: int,
) -> None:
    """Make the scenes that are wanted, in order, for as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it has stopped
    number = 0
    with threadpool_limits(1):
        while os.getppid() == parent:
            number = max(number, start.value)
            if number >= wanted.value:
                time.sleep(_WAIT_S)
                continue
            path = scene_path(folder, number)
            if not path.exists():
                noisy_scene(sources, recipe, number).save(path)
            number += 1
