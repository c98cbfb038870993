"""What all training data share: which noise there is, how it lies on the grid, how a patch is turned."""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.scene import FloatArray
from cubeloom.pipeline.simulate.noise import NOISES, Noise, Noisy


def faint(cube: npt.NDArray[Any], rng: np.random.Generator, _: FloatArray | None = None) -> Noisy:
    """White noise as a good sensor has it: 0.2 to 5 % of the range, in each band half to one and a half times that."""
    level = np.exp(rng.uniform(np.log(0.002), np.log(0.05)))
    sigma = (level * rng.uniform(0.5, 1.5, len(cube))).astype(np.float32)
    noise = rng.standard_normal(cube.shape, np.float32) * sigma[:, None, None]
    return Noisy(cube + noise, sigma, np.zeros(cube.shape, bool))


TRAINING_NOISES: dict[str, Noise] = {**NOISES, "faint": faint}
"""What recipes may name: the noise of the protocol and of the sensors, and what the protocol leaves out."""

Choice = TypeVar("Choice", bound=Hashable)


def choose(shares: Mapping[Choice, float], rng: np.random.Generator) -> Choice:
    """One of the keys, drawn in proportion to the values."""
    edges = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def oriented(array: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """One of the eight orientations of the last two axes; of them the even ones keep columns as columns."""
    if turn & 1:
        array = array.swapaxes(-1, -2)
    if turn & 2:
        array = array[..., ::-1, :]
    if turn & 4:
        array = array[..., ::-1]
    return np.ascontiguousarray(array)


def resampled(
    noisy: npt.NDArray[np.float32], clean: npt.NDArray[np.float32], chance: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A noisy cube whose noise, at this chance, was resampled bilinearly between the pixels.

    A product that was rectified has such noise: weaker, and correlated from pixel to pixel.
    """
    if chance == 0 or rng.random() >= chance:
        return noisy
    noise = noisy - clean
    for axis in (1, 2):
        part = np.float32(rng.random())
        noise = (1 - part) * noise + part * np.roll(noise, 1, axis)
    return np.asarray(clean + noise, np.float32)
