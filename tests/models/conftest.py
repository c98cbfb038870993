"""A small network family, registered for one test."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cubeloom.models import registry
from cubeloom.models.network import Network


class Tiny(Network):
    """One convolution and one batch norm over `(N, in, D, H, W)`, as small as a denoiser can be."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.head = nn.Conv3d(in_channels, width, 3, padding=1)
        self.bn = nn.BatchNorm3d(width)
        self.tail = nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] + self.tail(self.bn(self.head(x)))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors of this family called the head `first`."""
    return {key.replace("first.", "head."): value for key, value in state.items()}


@pytest.fixture
def families(monkeypatch) -> type[Tiny]:
    """Registers families `tiny` and `tiny_wide`; both are gone after the test."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))

    def defaults(in_channels: int = 1, width: int = 4) -> dict[str, Any]:
        return {"multiple": 2, "sigma_input": in_channels == 2}

    @registry.register_model("tiny", defaults=defaults, key_map=renamed)
    def tiny(in_channels: int = 1, width: int = 4) -> Network:
        return Tiny(in_channels, width)

    @registry.register_model("tiny_wide")
    def tiny_wide() -> Network:
        return Tiny(1, 8)

    return Tiny


@pytest.fixture
def tiny(families) -> Tiny:
    """A trained-looking network of family `tiny`: nothing in it is at its initial value."""
    network = registry.create_model("tiny")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network
