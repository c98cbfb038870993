"""What every network of the registry is: a module that may offer a faster form of itself for inference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cubeloom.errors import ModelError


@dataclass(frozen=True)
class Level:
    """One of the feature maps that a network can give.

    Attributes:
        channels: of the map.
        stride: pixels of the input to one of the map.
    """

    channels: int
    stride: int


class Network(nn.Module):
    """Base class of the registry's networks; they take and give float tensors, batch first, y before x."""

    @property
    def of_batch(self) -> bool:
        """Whether what it gives for an image depends on what else is in the batch, in eval mode too."""
        return False

    def pair_bytes(self, height: int, width: int) -> int:
        """Bytes that it holds at its peak for pairs of places of an image, whose number is a square; px."""
        return 0

    def for_inference(self) -> nn.Module:
        """A module in eval mode with the same `forward`, equal to 1e-5, as fast as the network knows how.

        The network itself where it has no faster form. Take it after weights are loaded: it may hold copies of them.
        """
        return self.eval()


class Backbone(Network):
    """A network that describes an image: by one vector, and by feature maps for heads that label pixels.

    Attributes:
        multiple: height and width of its input are multiples of this, px.
        channels: of its input; None for any number.
    """

    multiple: int
    channels: int | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """The feature maps there are, in the order of their computation."""
        raise NotImplementedError

    @property
    def embedding_size(self) -> int:
        """Length of the embedding of an image."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Module:
        """What turns the embedding into scores or values; an identity where there is nothing."""
        raise NotImplementedError

    def reset_head(self, num_classes: int) -> None:
        """Put a new, untrained linear layer behind the embedding; 0 takes it away."""
        raise NotImplementedError

    def features(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps, for heads that label pixels.

        Args:
            x: as `forward` takes it, (N, D, H, W).
            indices: of `levels`, ascending. None: those of `default_levels`.

        Returns:
            (N, channels, H / stride, W / stride) each.

        Raises:
            ModelError: x does not fit, or there is no such level.
        """
        raise NotImplementedError

    def default_levels(self) -> list[int]:
        """The last map of each stride; where all have one stride, as a vision transformer's, four evenly spaced."""
        strides = [level.stride for level in self.levels]
        if len(set(strides)) == 1:
            return sorted({math.ceil(len(strides) * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
        return sorted({stride: index for index, stride in enumerate(strides)}.values())

    def chosen_levels(self, indices: Sequence[int] | None) -> list[int]:
        """The maps asked for.

        Raises:
            ModelError: there is no such level.
        """
        levels = len(self.levels)
        chosen = self.default_levels() if indices is None else list(indices)
        if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= levels:
            raise ModelError(f"feature maps {chosen}: give ascending indices from 0 to {levels - 1}")
        return chosen
