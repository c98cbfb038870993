"""What every network of the registry is: a module that may offer a faster form of itself for inference."""

from dataclasses import dataclass

from torch import nn


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

    def for_inference(self) -> nn.Module:
        """A module in eval mode with the same `forward`, equal to 1e-5, as fast as the network knows how.

        The network itself where it has no faster form. Take it after weights are loaded: it may hold copies of them.
        """
        return self.eval()
