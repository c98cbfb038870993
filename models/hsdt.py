"""HSDT, the Hybrid Spectral Denoising Transformer (Lai, Yan and Fu, ICCV 2023), for any number of bands.

The state dict is that of the authors' classes, key by key and shape by shape. Between the first and the last layer the
arrays stand as (N, D, H, W, C), features last: spatial convolutions see them as N·D images, the spectral one sees D as
an axis of N images, and every linear layer is a 1 × 1 convolution, all without moving a value.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .network import Network
from .registry import register_model

Query = Literal["auto", "learned", "self"]

SLOPE = 0.01
"""Of the leaky rectifiers."""


class S3Conv(nn.Module):
    """Spatial and spectral convolutions side by side, summed (paper, section 3.2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dw_conv = nn.Sequential(
            nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(outputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.LeakyReLU(SLOPE),
        )
        self.pw_conv = nn.Conv3d(inputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H, W, C')."""
        first, second = (self.dw_conv.get_parameter(f"{index}.weight")[:, :, 0] for index in (0, 2))
        y = functional.leaky_relu(over_space(x, first), SLOPE, inplace=True)
        y = functional.leaky_relu(over_space(y, second), SLOPE, inplace=True)
        return y + over_bands(x, self.pw_conv.weight[..., 0])


class GSSA(nn.Module):
    """Guided spectral self-attention (paper, section 3.3): bands are mixed by one D × D matrix for the whole image.

    Its logits come from the spatial means P (D, C): against learned queries, P Wqᵀ + bq, or against themselves, P Pᵀ.
    """

    def __init__(self, channels: int, num_bands: int) -> None:
        super().__init__()
        self.attn_proj = nn.Linear(channels, num_bands)
        self.value_proj = nn.Linear(channels, channels, bias=False)
        self.fc = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight of each pixel in the means (N, H, W) → (N, D, H, W, C)."""
        mixed = torch.bmm(self.mixing(spatial_means(x, weight), query), x.flatten(2)).view(x.shape)
        return x + pointwise(mixed, self.projection())

    def mixing(self, means: Tensor, query: Query) -> Tensor:
        """Weights of the bands (N, D, D), rows sum to 1, from spatial means (N, D, C)."""
        logits = self.attn_proj(means) if self._learned(means.shape[1], query) else means @ means.mT
        return torch.softmax(logits, -1)

    def projection(self) -> Tensor:
        """(C, C): mixing acts on bands, both projections on features; so they commute with it and become one."""
        return self.fc.weight @ self.value_proj.weight

    def _learned(self, bands: int, query: Query) -> bool:
        if query != "auto":
            return query == "learned"
        if bands != self.attn_proj.out_features:
            return False
        return not self.training or bool(torch.rand(()) < 0.5)


class SMFFN(nn.Module):
    """Self-modulated feed-forward network (paper, section 3.4): W2 gelu(W1 x) + a ⊙ sigmoid(b), [a, b] = W3 x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(channels, 2 * channels)
        self.w_2 = nn.Linear(2 * channels, channels)
        self.w_3 = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H, W, C)."""
        y = pointwise(functional.gelu(pointwise(x, self.w_1.weight, self.w_1.bias)), self.w_2.weight, self.w_2.bias)
        # Two products rather than one and its halves, which would not be contiguous: the gate costs half as much.
        (to_value, to_gate), (value_bias, gate_bias) = self.w_3.weight.chunk(2), self.w_3.bias.chunk(2)
        value, gate = pointwise(x, to_value, value_bias), pointwise(x, to_gate, gate_bias)
        return torch.addcmul(y, value, gate.sigmoid())


class TransformerBlock(nn.Module):
    """GSSA, then SM-FFN."""

    def __init__(self, channels: int, num_bands: int) -> None:
        super().__init__()
        self.attn = GSSA(channels, num_bands)
        self.ffn = SMFFN(channels)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """As `GSSA`."""
        y: Tensor = self.ffn(self.attn(x, weight, query))
        return y


class Block(nn.Module):
    """Convolution, batch normalisation, transformer.

    Args:
        inputs: features of the input.
        outputs: features of the output.
        num_bands: of the learned queries.
        scale: of height and width: 1 with an `S3Conv`; 0.5 or 2 with a dense 3 × 3 × 3 convolution.
    """

    def __init__(self, inputs: int, outputs: int, num_bands: int, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale
        self.stride = 2 if scale < 1 else 1
        dense = nn.Conv3d(inputs, outputs, 3, (1, self.stride, self.stride), 1, bias=False)
        self.conv: S3Conv | nn.Conv3d = S3Conv(inputs, outputs) if scale == 1 else dense
        self.bn = nn.BatchNorm3d(outputs)
        self.attn = TransformerBlock(outputs, num_bands)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight (N, H', W') at the size of the output → (N, D, H', W', C')."""
        y = doubled(x) if self.scale > 1 else x
        y = self.conv(y) if isinstance(self.conv, S3Conv) else over_both(y, self.conv.weight, self.stride)
        y = self.bn(y.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        z: Tensor = self.attn(y, weight, query)
        return z


class Half(nn.Module):
    """The encoder or the decoder: its `layers`."""

    def __init__(self, layers: Sequence[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[Block]:
        return (layer for layer in self.layers if isinstance(layer, Block))


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
        self.head = Block(in_channels, channels, num_bands)
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
            y = layer(y + skips.pop() if index else y, weights[level], query)
        return to_one(y + skips.pop(), self.tail.weight).add_(self.tail_bias()).add(x[:, :1])

    def tail_bias(self) -> Tensor:
        """Of the last convolution, (1,)."""
        return self.tail.get_parameter("bias")

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


def over_space(x: Tensor, weight: Tensor) -> Tensor:
    """3 × 3 convolution of every band: (N, D, H, W, C), weight (C', C, 3, 3) → (N, D, H, W, C')."""
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def over_bands(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of three neighbouring bands of each pixel: (N, D, H, W, C), weight (C', C, 3, 1) → (…, C')."""
    y = functional.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), weight, padding=(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def over_both(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3 × 3 × 3 convolution: (N, D, H, W, C), weight (C', C, 3, 3, 3) → (N, D, H', W', C')."""
    y = functional.conv3d(x.permute(0, 4, 1, 2, 3), weight, padding=1, stride=(1, stride, stride))
    return y.permute(0, 2, 3, 4, 1).contiguous()


def to_one(x: Tensor, weight: Tensor) -> Tensor:
    """3 × 3 × 3 convolution to one feature: (N, D, H, W, C), weight (1, C, 3, 3, 3) → (N, 1, D, H, W).

    Kernels fill vectors with output features: one alone wastes them. Three images a band, one for each neighbour that
    they are to be added to, cost a third of it.
    """
    taps = weight[0].transpose(0, 1)
    images = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), taps, padding=1)
    after, here, before = images.view(*x.shape[:2], 3, *x.shape[2:4]).unbind(2)
    y = here.clone()
    y[:, 1:] += after[:, :-1]
    y[:, :-1] += before[:, 1:]
    return y[:, None]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as a 1 × 1 convolution, faster on few features: (N, D, H, W, C), weight (C', C) → (…, C')."""
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def doubled(x: Tensor) -> Tensor:
    """Twice the height and width, linear from corner to corner: (N, D, H, W, C) → (N, D, 2H, 2W, C)."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=True)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:2], *y.shape[2:], -1)


def spatial_means(x: Tensor, weight: Tensor | None) -> Tensor:
    """Means over the pixels: (N, D, H, W, C), non-negative weights (N, H, W) or None for equal ones → (N, D, C)."""
    if weight is None:
        return x.mean((2, 3))
    share = weight.flatten(1)
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return (share[:, None, None] @ x.flatten(2, 3)).squeeze(2)


def pyramid(valid: Tensor | None, multiple: int, dtype: torch.dtype) -> Sequence[Tensor | None]:
    """Weights of the pixels at full size and at every halving, their valid share: (N, H / 2ᵏ, W / 2ᵏ) each."""
    levels = multiple.bit_length()
    if valid is None:
        return [None] * levels
    weights = [valid.to(dtype)]
    for _ in range(levels - 1):
        weights.append(functional.avg_pool2d(weights[-1], 2))
    return weights


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


@register_model("hsdt_s", defaults=partial(_card_fields, 4))
def hsdt_s(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-S: 134,350 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 8, 5, (1, 3), num_bands)


@register_model("hsdt_m", defaults=partial(_card_fields, 4))
def hsdt_m(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-M: 521,158 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 16, 5, (1, 3), num_bands)


@register_model("hsdt_l", defaults=partial(_card_fields, 8))
def hsdt_l(in_channels: int = 1, num_bands: int = 31) -> HSDT:
    """HSDT-L: 2,094,786 parameters for one input channel and 31 bands."""
    return HSDT(in_channels, 16, 7, (1, 3, 5), num_bands)
