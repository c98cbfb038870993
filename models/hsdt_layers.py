"""Layers of HSDT, the Hybrid Spectral Denoising Transformer (Lai, Yan and Fu, ICCV 2023).

Arrays stand as (N, D, H, W, C), features last: spatial convolutions see them as N·D images, the spectral one sees D as
an axis of N images, and every linear layer is a 1 × 1 convolution, all without moving a value.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        y = resized(x, 2 * x.shape[2], 2 * x.shape[3]) if self.scale > 1 else x
        y = self.conv(y) if isinstance(self.conv, S3Conv) else over_both(y, self.conv.weight, self.stride)
        y = self.bn(y.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        z: Tensor = self.attn(y, weight, query)
        return z


def over_space(x: Tensor, weight: Tensor) -> Tensor:
    """3 × 3 convolution of every band: (N, D, H, W, C), weight (C', C, 3, 3) → (N, D, H, W, C')."""
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def over_bands(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of three neighbouring bands of each pixel: (N, D, H, W, C), weight (C', C, 3, 1) → (…, C')."""
    y = functional.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), weight, padding=(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def over_both(x: Tensor, weight: Tensor, stride: int = 1, bias: Tensor | None = None) -> Tensor:
    """3 × 3 × 3 convolution: (N, D, H, W, C), weight (C', C, 3, 3, 3) → (N, D, H', W', C')."""
    y = functional.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, padding=1, stride=(1, stride, stride))
    return y.permute(0, 2, 3, 4, 1).contiguous()


def to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3 × 3 × 3 convolution to one feature: (N, D, H, W, C), weight (1, C, 3, 3, 3), bias (1,) → (N, 1, D, H, W).

    Kernels fill vectors with output features: one alone wastes them. Three images a band, one for each neighbour that
    they are to be added to, cost a third of it.
    """
    taps = weight[0].transpose(0, 1)
    images = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), taps, padding=1)
    after, here, before = images.view(*x.shape[:2], 3, *x.shape[2:4]).unbind(2)
    y = here.clone() if bias is None else here + bias
    y[:, 1:] += after[:, :-1]
    y[:, :-1] += before[:, 1:]
    return y[:, None]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as a 1 × 1 convolution, faster on few features: (N, D, H, W, C), weight (C', C) → (…, C')."""
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Linear interpolation from corner to corner: (N, D, H, W, C) → (N, D, height, width, C)."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=True)
    return y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:2], height, width, -1)


def spatial_means(x: Tensor, weight: Tensor | None) -> Tensor:
    """Means over the pixels: (N, D, H, W, C), non-negative weights (N, H, W) or None for equal ones → (N, D, C)."""
    if weight is None:
        return x.mean((2, 3))
    share = weight.flatten(1)
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return (share[:, None, None] @ x.flatten(2, 3)).squeeze(2)
