"""HSDT, the Hybrid Spectral Denoising Transformer (Lai, Yan and Fu, ICCV 2023), for any number of bands.

The state dict is that of the authors' classes, key by key and shape by shape.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .hsdt_fused import FusedBlock
from .hsdt_layers import Block, Query, to_one
from .network import Network
from .registry import register_model


class Half(nn.Module):
    """The encoder or the decoder: its `layers`."""

    def __init__(self, layers: Iterable[Block | FusedBlock]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[Block | FusedBlock]:
        return (layer for layer in self.layers if isinstance(layer, Block | FusedBlock))

    def fused(self) -> "Half":
        """With fused layers."""
        return Half(_fused(layer) for layer in self)


class HSDT(Network):
    """The network: a U over space in which the bands keep their number (paper, section 3.1).

    Args:
        in_channels: 1, the cube; 2, the cube and a map of its noise level.
        channels: C, features at full size; doubled at every halving.
        half_layers: L, layers of the encoder, and of the decoder.
        down: which layers of the encoder halve the height and width.
        num_bands: D of the learned queries. Another D takes the self-similar ones.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        half_layers: int = 5,
        down: Sequence[int] = (1, 3),
        num_bands: int = 31,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_bands, self.multiple = in_channels, num_bands, 2 ** len(down)
        widths = [channels * 2 ** sum(layer <= index for layer in down) for index in range(half_layers)]
        scales = [0.5 if index in down else 1 for index in range(half_layers)]
        walk = list(zip([channels, *widths[:-1]], widths, scales, strict=True))
        self.head: Block | FusedBlock = Block(in_channels, channels, num_bands)
        self.encoder = Half([Block(before, after, num_bands, scale) for before, after, scale in walk])
        self.decoder = Half([Block(after, before, num_bands, 1 / scale) for before, after, scale in reversed(walk)])
        self.tail = nn.Conv3d(channels, 1, 3, padding=1)
        self.apply(_start)

    def forward(self, x: Tensor, valid: Tensor | None = None, query: Query = "auto") -> Tensor:
        """The denoised cube.

        Args:
            x: (N, in_channels, D, H, W), the cube near [0, 1] in channel 0; H and W multiples of `multiple`.
            valid: (N, H, W) bool: the pixels that count in the spatial means. None: all.
            query: "learned" queries (D must be `num_bands`), "self"-similar ones, or "auto": the learned ones where D
                fits; while training, each module tosses a coin (paper, section 3.3).

        Returns:
            (N, 1, D, H, W)

        Raises:
            ModelError: x, or `valid`, is of another shape.
        """
        self.check(x, valid, query)
        weights = pyramid(valid, self.multiple, x.dtype)
        y = self.head(x.permute(0, 2, 3, 4, 1).contiguous(), weights[0], query)
        skips = [y]
        level = 0
        for layer in self.encoder:
            level += layer.scale < 1
            y = layer(y, weights[level], query)
            skips.append(y)
        y = skips.pop()
        for index, layer in enumerate(self.decoder):
            level -= layer.scale > 1
            y = layer(y.add_(skips.pop()) if index else y, weights[level], query)
        return to_one(y.add_(skips.pop()), self.tail.weight, self.tail.bias).add_(x[:, :1])

    def for_inference(self) -> nn.Module:
        """The same function, fused (`FusedBlock`): no gradients, weights copied, equal to 1e-5."""
        network = deepcopy(self).eval().requires_grad_(False)
        network.head, network.encoder, network.decoder = _fused(self.head), self.encoder.fused(), self.decoder.fused()
        return network

    def check(self, x: Tensor, valid: Tensor | None, query: Query) -> None:
        """Refuse an input that does not fit.

        Raises:
            ModelError: wrong number of axes or channels, H or W not a multiple, learned queries of another D.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or x.shape[3] % self.multiple or x.shape[4] % self.multiple:
            raise ModelError(
                f"HSDT takes (N, {self.in_channels}, D, H, W) with H and W multiples of {self.multiple}; found "
                f"{tuple(x.shape)}; pad the cube and give each array its place"
            )
        if valid is not None and valid.shape != (x.shape[0], *x.shape[3:]):
            raise ModelError(f"HSDT takes valid pixels as (N, H, W) of {tuple(x.shape)}; found {tuple(valid.shape)}")
        if query == "learned" and x.shape[2] != self.num_bands:
            raise ModelError(
                f"HSDT's learned queries are for {self.num_bands} bands; found {x.shape[2]}. "
                f"Slide windows of {self.num_bands} bands along the spectrum, or use query='self'."
            )


def pyramid(valid: Tensor | None, multiple: int, dtype: torch.dtype) -> Sequence[Tensor | None]:
    """Weights of the pixels at full size and at every halving, their valid share: (N, H / 2ᵏ, W / 2ᵏ) each."""
    levels = multiple.bit_length()
    if valid is None:
        return [None] * levels
    weights = [valid.to(dtype)]
    for _ in range(levels - 1):
        weights.append(functional.avg_pool2d(weights[-1], 2))
    return weights


def _fused(layer: Block | FusedBlock) -> FusedBlock:
    return FusedBlock(layer) if isinstance(layer, Block) else layer


def _start(module: nn.Module) -> None:
    """Values to train from, as the authors': linear layers near zero; with torch's own it learns many times slower."""
    if isinstance(module, nn.Conv3d):
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1e-3)
    if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _card_fields(multiple: int, in_channels: int = 1, num_bands: int = 31) -> Mapping[str, Any]:
    return {"multiple": multiple, "sigma_input": in_channels == 2, "bands": num_bands}


def _counted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the counter of each batch normalisation, which those of the authors' multi-GPU training lack."""
    layers = [key.removesuffix("running_mean") for key in state if key.endswith(".bn.running_mean")]
    return {**{f"{layer}num_batches_tracked": torch.tensor(0) for layer in layers}, **state}


@register_model("hsdt_s", defaults=partial(_card_fields, 4), key_map=_counted)
def hsdt_s(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-S: 134,350 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 8, 5, (1, 3), num_bands)


@register_model("hsdt_m", defaults=partial(_card_fields, 4), key_map=_counted)
def hsdt_m(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-M: 521,158 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 16, 5, (1, 3), num_bands)


@register_model("hsdt_l", defaults=partial(_card_fields, 8), key_map=_counted)
def hsdt_l(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-L: 2,094,786 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 16, 7, (1, 3, 5), num_bands)
