"""Batches to learn from: noisy patches and the correction that makes them clean.

A batch depends on the seed and its number alone, so that training goes on after a stop as if there had been none.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .cubes import CleanCube, Float32Array
from .denoiser_recipe import DenoiserRecipe
from .eigenimages import Components, ScenePool
from .noisy import TRAINING_NOISES, choose, oriented, resampled

Batch = tuple[Tensor, Tensor]
"""Inputs `(N, channel, D, y, x)`, and what to add to their channel 0, `(N, 1, D, y, x)`; both float32."""

_BANDS, _COMPONENTS = 1, 2
"""Keys of the random streams, beside that of the scenes of the pool."""


class BandPatches:
    """Transform `bands`: patches of D consecutive bands, noise drawn for each."""

    def __init__(self, cubes: Sequence[CleanCube], recipe: DenoiserRecipe) -> None:
        self.cubes, self.recipe = cubes, recipe
        self.shares = {number: cube.weight for number, cube in enumerate(cubes)}

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self.recipe.seed, _BANDS, step])
        px = int(rng.choice(self.recipe.patch_px))
        pairs = [self._pair(px, rng) for _ in range(self.recipe.patches(self.recipe.bands, px))]
        inputs, corrections = (np.stack(part) for part in zip(*pairs, strict=True))
        return torch.from_numpy(inputs), torch.from_numpy(corrections)

    def _pair(self, px: int, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
        recipe, cube = self.recipe, self.cubes[choose(self.shares, rng)]
        first = int(rng.integers(0, len(cube.values) - recipe.bands + 1))
        bands = slice(first, first + recipe.bands)
        clean = cube.window(px, rng)[bands]
        wavelengths = None if cube.wavelengths is None else cube.wavelengths[bands]
        if recipe.reverse and rng.random() < 0.5:
            clean, wavelengths = clean[::-1], None if wavelengths is None else wavelengths[::-1]
        if recipe.dihedral == "before":
            clean = oriented(clean, int(rng.integers(8)))
        noisy = TRAINING_NOISES[choose(recipe.noise, rng)](clean, rng, wavelengths)
        measured = resampled(noisy.cube, clean, recipe.correlated, rng)
        turn = int(rng.integers(8)) if recipe.dihedral == "after" else 0
        inputs = [measured]
        if recipe.channels == 2:
            inputs.append(np.broadcast_to(noisy.sigma[:, None, None], measured.shape))
        return oriented(np.stack(inputs), turn), oriented((clean - measured)[None], turn)


class ComponentPatches:
    """Transform `eigenimages`: crops of the component images of noisy scenes.

    Channel 0 is the image over its standard deviation s, channel 1 that of its noise, strength / s; the correction is
    in units of the noise that it is told.
    """

    def __init__(self, pool: ScenePool, recipe: DenoiserRecipe) -> None:
        self.pool, self.recipe = pool, recipe

    def batch(self, step: int) -> Batch:
        """The batch of a step; its scenes have the same number of components."""
        rng = np.random.default_rng([self.recipe.seed, _COMPONENTS, step])
        scenes = self.pool.at(step)
        size = len(scenes[int(rng.integers(len(scenes)))].scale)
        alike = [scene for scene in scenes if len(scene.scale) == size]
        px = int(rng.choice(self.recipe.patch_px))
        count = self.recipe.patches(size, px)
        pairs = [self._pair(alike[int(rng.integers(len(alike)))], px, rng) for _ in range(count)]
        inputs, corrections = (np.stack(part) for part in zip(*pairs, strict=True))
        return torch.from_numpy(inputs), torch.from_numpy(corrections)

    def _pair(self, scene: Components, px: int, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
        recipe = self.recipe
        row, col = (int(rng.integers(0, extent - px + 1)) for extent in scene.noisy.shape[1:])
        clean, noisy = (part[:, row : row + px, col : col + px] for part in (scene.clean, scene.noisy))
        low, high = np.log(recipe.strength)
        strength = np.float32(np.exp(rng.uniform(low, high)))
        correction = clean - noisy
        inputs = network_input(clean - strength * correction, scene.scale, float(strength))
        if recipe.reverse:  # the sign of an eigenvector means nothing
            sign = rng.choice(np.array([-1, 1], np.float32), (len(scene.scale), 1, 1))
            inputs[0] *= sign
            correction = correction * sign
        turn = int(rng.integers(8)) if recipe.dihedral == "after" else int(2 * rng.integers(4))
        turn = 0 if recipe.dihedral == "none" else turn
        return oriented(inputs, turn), oriented(correction[None], turn)


def network_input(images: Float32Array, scale: npt.NDArray[np.floating], strength: float) -> Float32Array:
    """Component images `(K, y, x)` as the network takes them, `(2, K, y, x)`: over their spread, and the noise."""
    over = (1 / np.asarray(scale, np.float32))[:, None, None]
    return np.stack([images * over, np.broadcast_to(strength * over, images.shape)]).astype(np.float32)
