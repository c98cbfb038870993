"""A class for every pixel by a network that sees its surroundings."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ModelError
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.blocks import PREDICTION, Block
from cubeloom.pipeline.scene import BoolArray, SceneSpec, Variable

from .class_images import class_images, class_variables
from .tile_network import FloatImages, TileNetwork


@dataclass(frozen=True)
class SegmentNetwork(TileNetwork):
    """The stage `classify` with a network: the probabilities of overlapping tiles are blended."""

    stage: ClassVar[str] = "classify"
    task: ClassVar[str] = "segment"

    @property
    def channels(self) -> int:
        """The classes."""
        return len(self.card.classes)

    @property
    def stride(self) -> int:
        """Every pixel has a class."""
        return 1

    def require(self, spec: SceneSpec) -> BandInput:
        """As every network; the card must name the classes too.

        Raises:
            ModelError: it does not, or the network gives another number of them.
        """
        given = self.card.settings.get("num_classes", len(self.card.classes))
        if not self.card.classes or given != len(self.card.classes):
            raise ModelError(
                f"classify: the card of {self.card.name} names {len(self.card.classes)} classes, the network tells "
                f"{given} apart; a map needs a value, name and colour of each"
            )
        return super().require(spec)

    def images(self, answer: FloatImages, known: BoolArray) -> FloatImages:
        """Probabilities: the softmax of the scores."""
        probability: FloatImages = np.exp(answer - answer.max(axis=0))
        probability /= probability.sum(axis=0)
        probability[:, ~known] = np.nan
        return probability

    def variables(self, bound: BandInput) -> dict[str, Variable]:
        """What the stage adds to a Scene."""
        return class_variables(self.card.classes, filled_bands(bound))

    def apply(self, block: Block) -> dict[str, npt.NDArray[Any]]:
        """Map, probabilities, confidence and entropy of a block from the blended probabilities."""
        return class_images(block[PREDICTION], self.card.classes)


def filled_bands(bound: BandInput) -> dict[str, Any]:
    """The attribute that names the bands, nm, which the scene lacks and which were interpolated; none without any."""
    if not bound.filled:
        return {}
    return {"interpolated_bands_nm": [round(float(bound.wavelengths[channel]), 2) for channel in bound.filled]}
