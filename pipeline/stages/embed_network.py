"""The features of a backbone, at its stride."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from cubeloom.errors import ModelError
from cubeloom.pipeline.scene import BoolArray

from .tile_network import FloatImages, TileNetwork

if TYPE_CHECKING:
    from cubeloom.models.network import Level
    from cubeloom.pipeline.inference import Dense


@dataclass(frozen=True)
class EmbedNetwork(TileNetwork):
    """The stage `embed`: the last of the backbone's feature maps."""

    stage: ClassVar[str] = "embed"
    task: ClassVar[str] = "embed"

    @cached_property
    def _level(self) -> "Level":
        network = cast("Dense", self.handle.load("cpu")).network
        if not hasattr(network, "features"):
            raise ModelError(f"embed: {self.card.name} gives no feature maps; take a backbone")
        last: Level = network.levels[-1]
        return last

    @property
    def channels(self) -> int:
        """Length of a cell's vector."""
        return self._level.channels

    @property
    def stride(self) -> int:
        """Pixels along a side of a cell."""
        return self._level.stride

    def images(self, answer: FloatImages, known: BoolArray) -> FloatImages:
        """The features; NaN where no pixel of a cell takes part."""
        rows, cols = answer.shape[1:]
        some = known.reshape(rows, self.stride, cols, self.stride).any(axis=(1, 3))
        return np.where(some, answer, np.float32(np.nan))
