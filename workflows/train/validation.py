"""How good a denoiser is part way: cubes kept aside, with the same noise every time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cubeloom.pipeline.metrics import psnr

from .cubes import CleanCube, Float32Array
from .denoiser_recipe import DenoiserRecipe
from .eigenimages import component_images
from .noisy import TRAINING_NOISES, resampled
from .patches import network_input

_MULTIPLE = 8
"""Edges of the inputs are multiples of this, whatever the network halves."""


@dataclass(frozen=True, eq=False)
class Case:
    """One noisy cube to denoise.

    Attributes:
        noise: its kind.
        inputs: of the network, `(channel, D, y, x)`.
        clean: what should come out, `(band, y, x)`.
        noisy: what is measured.
        cube: makes a cube of the network's output `(D, y, x)`.
    """

    noise: str
    inputs: Float32Array
    clean: Float32Array
    noisy: Float32Array
    cube: Callable[[Float32Array], Float32Array]


class Validation:
    """Mean PSNR over cubes and kinds of noise, dB; estimates are clipped to [0, 1] as the protocol has it.

    Attributes:
        every: steps from one validation to the next.
    """

    def __init__(self, cubes: Sequence[CleanCube], recipe: DenoiserRecipe) -> None:
        self.every = recipe.validation.every
        self.noises = recipe.validation.noise if cubes else ()
        self.cases = list(_cases(cubes, recipe))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what `score` gives."""
        return ("psnr", *(f"psnr_{noise}" for noise in self.noises)) if self.cases else ()

    def score(self, network: nn.Module) -> dict[str, float]:
        """The PSNR of a network in eval mode, of all cases and of each kind of noise."""
        device = next(network.parameters()).device
        return self._score(lambda case: case.cube(_output(network, case.inputs, device)))

    def baseline(self) -> dict[str, float]:
        """The same of the noisy cubes."""
        return self._score(lambda case: case.noisy)

    def _score(self, estimate: Callable[[Case], Float32Array]) -> dict[str, float]:
        found: dict[str, list[float]] = {noise: [] for noise in self.noises}
        for case in self.cases:
            found[case.noise].append(psnr(case.clean, np.clip(estimate(case), 0, 1), 1.0))
        means = {f"psnr_{noise}": float(np.mean(values)) for noise, values in found.items()}
        return {"psnr": float(np.mean(list(means.values()))), **means} if means else {}


def _output(network: nn.Module, inputs: Float32Array, device: torch.device) -> Float32Array:
    with torch.inference_mode():
        output: Any = network(torch.from_numpy(inputs)[None].to(device))
    return np.asarray(output[0, 0].float().cpu().numpy())


def _cases(cubes: Sequence[CleanCube], recipe: DenoiserRecipe) -> Iterator[Case]:
    make = _of_bands if recipe.transform == "bands" else _of_components
    for number, cube in enumerate(cubes):
        for noise in recipe.validation.noise:
            rng = np.random.default_rng([recipe.validation.seed, number, *noise.encode()])
            yield make(cube, noise, rng, recipe)


def _of_bands(cube: CleanCube, noise: str, rng: np.random.Generator, recipe: DenoiserRecipe) -> Case:
    """The middle bands of the middle of a cube."""
    first = (len(cube.values) - recipe.bands) // 2
    bands = slice(first, first + recipe.bands)
    clean = _middle(cube.values[bands], recipe.validation.px)
    wavelengths = None if cube.wavelengths is None else cube.wavelengths[bands]
    noisy = TRAINING_NOISES[noise](clean, rng, wavelengths)
    inputs = [noisy.cube]
    if recipe.channels == 2:
        inputs.append(np.broadcast_to(noisy.sigma[:, None, None], clean.shape))
    return Case(noise, np.stack(inputs), clean, noisy.cube, lambda output: output)


def _of_components(cube: CleanCube, noise: str, rng: np.random.Generator, recipe: DenoiserRecipe) -> Case:
    """The middle of a cube, in the subspace of the whole; the noise is resampled where that of training always is."""
    noisy = TRAINING_NOISES[noise](cube.values, rng, cube.wavelengths).cube
    noisy = resampled(noisy, cube.values, float(recipe.correlated == 1), rng)
    space, components = component_images(noisy, cube.values, recipe.rank, recipe.bands)
    images = _middle(components.noisy, recipe.validation.px)
    inputs = network_input(images, components.scale, 1.0)
    clean = _middle(cube.values, recipe.validation.px)

    def restored(output: Float32Array) -> Float32Array:
        denoised = images + (output - inputs[0])
        return space.restore(denoised.reshape(len(denoised), -1)).reshape(clean.shape)

    return Case(noise, inputs, clean, _middle(noisy, recipe.validation.px), restored)


def _middle(cube: Float32Array, px: int) -> Float32Array:
    edges = [min(extent, px) // _MULTIPLE * _MULTIPLE for extent in cube.shape[1:]]
    row, col = ((extent - edge) // 2 for extent, edge in zip(cube.shape[1:], edges, strict=True))
    return np.ascontiguousarray(cube[:, row : row + edges[0], col : col + edges[1]])
