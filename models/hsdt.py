"""HSDT, the Hybrid Spectral Denoising Transformer (Lai, Yan and Fu, ICCV 2023), for any number of bands.

The state dict is that of the authors' classes, key by key and shape by shape. Between the first and the last layer the
arrays stand as (N, D, H, W, C), features last: spatial convolutions see (N D) images, the spectral one sees D as an
axis of a two-dimensional image, and every linear layer is one matrix product, all without moving a value.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cubeloom.errors import ModelError

Query = Literal["auto", "learned", "self"]

SLOPE = 0.01
"""Of the leaky rectifiers."""


def over_space(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3 × 3 convolution of every band: (N, D, H, W, C), weight (C', C, 3, 3) → (N, D, H', W', C')."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight, padding=1, stride=stride)
    return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def over_bands(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of three neighbouring bands at every pixel: (N, D, H, W, C), weight (C', C, 3, 1) → (…, C')."""
    spectra = x.flatten(2, 3).permute(0, 3, 1, 2)
    y = F.conv2d(spectra, weight, padding=(1, 0))
    return y.permute(0, 2, 3, 1).contiguous().unflatten(2, x.shape[2:4])


def over_both(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3 × 3 × 3 convolution: (N, D, H, W, C), weight (C', C, 3, 3, 3) → (N, D, H', W', C')."""
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, padding=1, stride=(1, stride, stride))
    return y.permute(0, 2, 3, 4, 1).contiguous()


def doubled(x: Tensor) -> Tensor:
    """Twice the height and width, linear between corners: (N, D, H, W, C) → (N, D, 2H, 2W, C)."""
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=True)
    return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


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
        y = F.leaky_relu(over_space(x, first), SLOPE, inplace=True)
        y = F.leaky_relu(over_space(y, second), SLOPE, inplace=True)
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

    def attention(self, means: Tensor, query: Query) -> Tensor:
        """Weights of the bands (N, D, D), rows sum to 1, from spatial means (N, D, C)."""
        if self._learned(means.shape[1], query):
            logits: Tensor = self.attn_proj(means)
        else:
            logits = means @ means.transpose(1, 2)
        return logits.softmax(-1)

    def _learned(self, bands: int, query: Query) -> bool:
        if query != "auto":
            return query == "learned"
        if bands != self.attn_proj.out_features:
            return False
        return not self.training or bool(torch.rand(()) < 0.5)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight of each pixel in the means (N, H, W) → (N, D, H, W, C)."""
        mixing = self.attention(spatial_means(x, weight), query)
        mixed = torch.bmm(mixing, x.flatten(2)).view(-1, x.shape[-1])
        # Mixing acts on bands, both projections on features: they commute, and become one matrix.
        return torch.addmm(x.view(-1, x.shape[-1]), mixed, (self.fc.weight @ self.value_proj.weight).T).view(x.shape)


def spatial_means(x: Tensor, weight: Tensor | None) -> Tensor:
    """Means over the pixels: (N, D, H, W, C), non-negative weight (N, H, W) or None for equal ones → (N, D, C)."""
    if weight is None:
        return x.mean((2, 3))
    share = weight.flatten(1)
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return (share[:, None, None] @ x.flatten(2, 3)).squeeze(2)


class SMFFN(nn.Module):
    """Self-modulated feed-forward network (paper, section 3.4): W2 gelu(W1 x) + a ⊙ sigmoid(b), [a, b] = W3 x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(channels, 2 * channels)
        self.w_2 = nn.Linear(2 * channels, channels)
        self.w_3 = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C)."""
        value, gate = self.w_3(x).chunk(2, -1)
        modulated: Tensor = self.w_2(F.gelu(self.w_1(x)))
        return torch.addcmul(modulated, value, gate.sigmoid())


class TransformerBlock(nn.Module):
    """GSSA, then SM-FFN."""

    def __init__(self, channels: int, num_bands: int) -> None:
        super().__init__()
        self.attn = GSSA(channels, num_bands)
        self.ffn = SMFFN(channels)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """As in `GSSA`."""
        y: Tensor = self.ffn(self.attn(x, weight, query))
        return y


class Block(nn.Module):
    """Convolution, batch normalisation, transformer; `scale` 1 keeps the size, 0.5 halves it, 2 doubles it."""

    def __init__(self, inputs: int, outputs: int, num_bands: int, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale
        stride = (1, 2, 2) if scale < 1 else 1
        dense = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv = S3Conv(inputs, outputs) if scale == 1 else dense
        self.bn = nn.BatchNorm3d(outputs)
        self.attn = TransformerBlock(outputs, num_bands)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight (N, H', W') at the size of the output → (N, D, H', W', C')."""
        y = self.bn(self._convolved(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        z: Tensor = self.attn(y, weight, query)
        return z

    def _convolved(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, S3Conv):
            y: Tensor = self.conv(x)
            return y
        if self.scale < 1:
            return over_both(x, self.conv.weight, stride=2)
        return over_both(doubled(x), self.conv.weight)


class Half(nn.Module):
    """The encoder or the decoder: its `layers`."""

    def __init__(self, layers: Sequence[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class HSDT(nn.Module):
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
        self.head = Block(in_channels, channels, num_bands)
        widths = [channels * 2 ** sum(layer <= index for layer in down) for index in range(half_layers)]
        before = [channels, *widths[:-1]]
        scales = [0.5 if index in down else 1 for index in range(half_layers)]
        walk = list(zip(before, widths, scales, strict=True))
        self.encoder = Half([Block(c_in, c_out, num_bands, scale) for c_in, c_out, scale in walk])
        self.decoder = Half([Block(c_out, c_in, num_bands, 1 / scale) for c_in, c_out, scale in reversed(walk)])
        self.tail = nn.Conv3d(channels, 1, 3, padding=1)

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
            ModelError: x is of another shape.
        """
        self.check(x, query)
        weights = pyramid(valid, self.multiple, x.dtype)
        y = self.head(x.permute(0, 2, 3, 4, 1).contiguous(), weights[0], query)
        skips = [y]
        level = 0
        for layer in self.encoder.layers:
            level += layer.scale < 1
            y = layer(y, weights[level], query)
            skips.append(y)
        y = skips.pop()
        for index, layer in enumerate(self.decoder.layers):
            level -= layer.scale > 1
            y = layer(y + skips.pop() if index else y, weights[level], query)
        return over_both(y + skips.pop(), self.tail.weight).permute(0, 4, 1, 2, 3) + self.tail.bias + x[:, :1]

    def check(self, x: Tensor, query: Query) -> None:
        """Refuse an input that does not fit.

        Raises:
            ModelError: wrong number of axes or channels, H or W not a multiple, learned queries of another D.
        """
        expected = f"(N, {self.in_channels}, D, H, W), H and W multiples of {self.multiple}"
        if x.ndim != 5 or x.shape[1] != self.in_channels or x.shape[3] % self.multiple or x.shape[4] % self.multiple:
            raise ModelError(f"HSDT takes {expected}; found {tuple(x.shape)}. Pad the cube.")
        if query == "learned" and x.shape[2] != self.num_bands:
            raise ModelError(
                f"HSDT's learned queries are for {self.num_bands} bands; found {x.shape[2]}. "
                f"Slide windows of {self.num_bands} bands along the spectrum, or use query='self'."
            )


def pyramid(valid: Tensor | None, multiple: int, dtype: torch.dtype) -> list[Tensor | None]:
    """Weights of the pixels at full size and every halving: the share that is valid, (N, H / 2**k, W / 2**k)."""
    levels = multiple.bit_length()
    if valid is None:
        return [None] * levels
    weights = [valid.to(dtype)]
    for _ in range(levels - 1):
        weights.append(F.avg_pool2d(weights[-1], 2))
    return [*weights]
