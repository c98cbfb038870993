"""Blocks of HSDT for inference: the same output from fewer passes over memory.

Folded once: the batch normalisation into the convolution before it, and the attention's two projections into one.
Fused: activations, sums and gates into the convolutions they follow. Cut: what works pixel by pixel or band by band
runs in pieces that stay in cache and are written over their input; a large cube then needs few arrays of its size.

A normalisation by a negative factor cannot be folded through the rectifiers of an `S3Conv`, but its magnitude can. Such
features stand with the other sign inside their block, and the weights that read them turn it back.
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from .fused import convolve, convolve_onto, convolve_times
from .hsdt_layers import Block, Query, S3Conv, TransformerBlock, doubled, over_both, spatial_means

PIECE = 2**20
"""Bytes of an array that are worked on at once: with what is made of them they fit a core's cache."""

PIECE_ON_DEVICE = 2**28
"""The same away from the CPU, where a kernel wants much to do at once."""


class FusedBlock(nn.Module):
    """A `Block` in eval mode, with copies of its weights and the same `forward`; no gradients."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.scale = block.scale
        factor, shift = _normalisation(block)
        self.conv: FusedS3Conv | FusedDense
        if isinstance(block.conv, S3Conv):
            signs = torch.where(factor < 0, -1.0, 1.0)
            self.conv = FusedS3Conv(block.conv, factor.abs(), shift * signs)
        else:
            signs = torch.ones_like(factor)
            self.conv = FusedDense(block.conv.weight, factor, shift, block.scale)
        self.attn = FusedTransformer(block.attn, signs)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight (N, H', W') at the size of the output → (N, D, H', W', C')."""
        return self.attn.over(self.conv(x), weight, query)


def _normalisation(block: Block) -> tuple[Tensor, Tensor]:
    """Factor and shift of a block's batch normalisation in eval mode, (C,) each."""
    mean, variance = block.bn.get_buffer("running_mean"), block.bn.get_buffer("running_var")
    factor = block.bn.weight.detach() * (variance + block.bn.eps).rsqrt()
    return factor, block.bn.bias.detach() - mean * factor


class Spatial(nn.Module):
    """A 3 × 3 convolution of images (N, H, W, C) by a weight (C', C, 3, 3).

    The kernels compute 16 features at once. For 8 or fewer, two neighbouring pixels are taken for one of twice the
    features: behind a column of padding, two such pairs hold all that a pair of results needs. A quarter less time.
    """

    weight: Tensor
    paired: Tensor | None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("paired", _paired(weight) if len(weight) <= 8 else None)

    def planes(self, images: Tensor) -> Tensor:
        """The images as `rectified` and `onto` take them; they may be cut along N."""
        if self.paired is None or images.shape[2] % 2:
            return images.permute(0, 3, 1, 2)
        padded = functional.pad(images, (0, 0, 1, 1))
        return padded.view(*images.shape[:2], -1, 2 * images.shape[3]).permute(0, 3, 1, 2)

    def rectified(self, planes: Tensor) -> Tensor:
        """The leaky rectifier of the convolution, (N, H, W, C')."""
        weight, padding = self._fitting(planes)
        y = convolve(planes, weight, None, "leaky_relu", padding).permute(0, 2, 3, 1)
        return y.reshape(*y.shape[:2], -1, len(self.weight))

    def onto(self, total: Tensor, planes: Tensor) -> None:
        """Add the convolution to `total`, (N, H, W, C')."""
        weight, padding = self._fitting(planes)
        convolve_onto(
            total.view(*total.shape[:2], -1, len(weight)).permute(0, 3, 1, 2), planes, weight, padding=padding
        )

    def _fitting(self, planes: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.paired is None or planes.shape[1] == self.weight.shape[1]:
            return self.weight, (1, 1)
        return self.paired, (1, 0)


def _paired(weight: Tensor) -> Tensor:
    """Weight (C', C, 3, 3) of single pixels as that of pairs, (2C', 2C, 3, 2)."""
    outputs, inputs = weight.shape[:2]
    pairs = weight.new_zeros(2, outputs, 2, inputs, 3, 2)
    for pixel in range(2):
        for column in range(3):
            pair, place = divmod(pixel + column, 2)
            pairs[pixel, :, place, :, :, pair] = weight[..., column]
    return pairs.reshape(2 * outputs, 2 * inputs, 3, 2)


class FusedS3Conv(nn.Module):
    """The sum factor ⊙ S3Conv(x) + shift, factor ≥ 0."""

    spectral: Tensor
    shift: Tensor

    def __init__(self, conv: S3Conv, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        first, second = (conv.dw_conv.get_parameter(f"{index}.weight").detach()[:, :, 0] for index in (0, 2))
        self.first, self.second = Spatial(first), Spatial(second * factor[:, None, None, None])
        self.register_buffer("spectral", conv.pw_conv.weight.detach()[..., 0] * factor[:, None, None, None])
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H, W, C')."""
        y = convolve(x.flatten(2, 3).permute(0, 3, 1, 2), self.spectral, self.shift, padding=(1, 0))
        y = y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)
        images, totals = x.flatten(0, 1), y.flatten(0, 1)
        for piece in _pieces(len(images), totals[0]):
            part = self.first.rectified(self.first.planes(images[piece]))
            totals[piece] += self.second.rectified(self.second.planes(part))
        return y


class FusedDense(nn.Module):
    """The sum factor ⊙ (3 × 3 × 3 convolution) + shift, of every second pixel or of an image of twice the size."""

    weight: Tensor
    shift: Tensor

    def __init__(self, weight: Tensor, factor: Tensor, shift: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = weight.detach() * factor[:, None, None, None, None]
        self.register_buffer("weight", weight)
        self.register_buffer("shift", shift)
        self.before, self.here, self.after = (Spatial(tap) for tap in weight.unbind(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H', W', C')."""
        if self.scale < 1:
            return over_both(x, self.weight, 2, self.shift)
        y = self.shift.expand(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], -1).contiguous()
        for total, sample in zip(y, x, strict=True):
            for piece in _pieces(len(total), total[0]):
                self._add(total, doubled(sample[None, piece])[0], piece.start)
        return y

    def _add(self, total: Tensor, images: Tensor, start: int) -> None:
        """Add what images (d, H, W, C) of the bands from `start` give to their neighbours too: (D, H, W, C')."""
        planes = self.here.planes(images)
        for ahead, tap in ((1, self.before), (0, self.here), (-1, self.after)):
            first, last = max(start + ahead, 0), min(start + len(images) + ahead, len(total))
            if first < last:
                tap.onto(total[first:last], planes[first - start - ahead : last - start - ahead])


class FusedTransformer(nn.Module):
    """A `TransformerBlock` of features that come with `signs`, (C,), turned."""

    signs: Tensor

    def __init__(self, block: TransformerBlock, signs: Tensor) -> None:
        super().__init__()
        self.guide = deepcopy(block.attn).eval()
        self.register_buffer("signs", signs)
        ffn = block.ffn
        (value, gate), (value_bias, gate_bias) = ffn.w_3.weight.chunk(2), ffn.w_3.bias.chunk(2)
        parts = {
            "projection": (block.attn.projection() * signs[:, None], None),
            "rise": (ffn.w_1.weight, ffn.w_1.bias),
            "value": (value, value_bias),
            "gate": (gate, gate_bias),
        }
        for name, (weight, bias) in parts.items():
            self._keep(name, weight * signs, bias)
        self._keep("fall", ffn.w_2.weight, ffn.w_2.bias)

    def _keep(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        self.register_buffer(name, weight.detach().clone()[:, :, None, None])
        self.register_buffer(f"{name}_bias", None if bias is None else bias.detach().clone())

    def over(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """The output, written over x: (N, D, H, W, C), weight (N, H, W)."""
        mixing = self.guide.mixing(spatial_means(x, weight) * self.signs, query)
        features = x.shape[-1]
        for sample, matrix in zip(x.flatten(2), mixing, strict=True):
            for piece in _pieces(sample.shape[1] // features, sample[:, :features]):
                part = sample[:, piece.start * features : piece.stop * features]
                part.copy_(self._pixels(part, matrix))
        return x

    def _pixels(self, part: Tensor, matrix: Tensor) -> Tensor:
        """The output at some pixels: (D, pixels · C), mixing (D, D)."""
        mixed, x = matrix @ part, part.contiguous()
        mixed, x = (array.view(1, 1, -1, len(self.signs)).permute(0, 3, 1, 2) for array in (mixed, x))
        x = convolve_onto(x, mixed, self.get_buffer("projection"))
        rise, fall, value, gate = (self._weights(name) for name in ("rise", "fall", "value", "gate"))
        y = convolve_times(convolve(x, *gate, "sigmoid"), x, *value)
        y = convolve_onto(y, convolve(x, *rise, "gelu"), *fall)
        return y.permute(0, 2, 3, 1).reshape(part.shape)

    def _weights(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(name), self.get_buffer(f"{name}_bias")


def _pieces(count: int, one: Tensor) -> Iterator[slice]:
    """Slices of `count` items, each a few of the size of `one`."""
    limit = PIECE if one.device.type == "cpu" else PIECE_ON_DEVICE
    step = max(1, limit // (one.numel() * one.element_size()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
