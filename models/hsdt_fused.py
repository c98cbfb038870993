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
from .hsdt_layers import Block, Query, S3Conv, TransformerBlock, over_both, resized, spatial_means

PIECE = 2**21
"""Bytes of an array that are worked on at once: with what is made of them they stay in cache."""

PIECE_ON_DEVICE = 2**28
"""The same away from the CPU, where a kernel wants much to do at once."""

ROWS = 16
"""Rows of a doubled image that are interpolated by one matrix: few, for most of it is zero; not too few for speed."""


class FusedBlock(nn.Module):
    """A `Block` in eval mode, with copies of its weights and the same `forward`; no gradients."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.scale = block.scale
        factor, shift = _normalisation(block)
        self.conv: FusedS3Conv | FusedDown | FusedUp
        if isinstance(block.conv, S3Conv):
            signs = torch.ones_like(factor).copysign(factor)
            self.conv = FusedS3Conv(block.conv, factor.abs(), shift * signs)
        else:
            signs = torch.ones_like(factor)
            dense = FusedDown if block.scale < 1 else FusedUp
            self.conv = dense(block.conv.weight, factor, shift)
        self.attn = FusedTransformer(block.attn, signs)

    def forward(self, x: Tensor, weight: Tensor | None, query: Query) -> Tensor:
        """(N, D, H, W, C), weight (N, H', W') at the size of the output → (N, D, H', W', C')."""
        return self.attn.over(self.conv(x), weight, query)


def _normalisation(block: Block) -> tuple[Tensor, Tensor]:
    """Factor and shift of a block's batch normalisation in eval mode, (C,) each."""
    mean, variance = block.bn.get_buffer("running_mean"), block.bn.get_buffer("running_var")
    factor = block.bn.weight.detach() * (variance + block.bn.eps).rsqrt()
    return factor, block.bn.bias.detach() - mean * factor


class RectifiedConvolution(nn.Module):
    """A 3 × 3 convolution of images (N, H, W, C) by a weight (C', C, 3, 3), then the leaky rectifier.

    The kernels compute 16 features at once. For 8 or fewer, two neighbouring pixels are taken for one of twice the
    features: behind a column of padding, two such pairs hold all that a pair of results needs. A quarter less time.
    """

    weight: Tensor
    paired: Tensor | None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("paired", _paired(weight) if len(weight) <= 8 else None)

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, C) → (N, H, W, C')."""
        if self.paired is None or images.shape[2] % 2:
            y = convolve(_planes(images), self.weight, None, "leaky_relu", (1, 1))
        else:
            pairs = functional.pad(images, (0, 0, 1, 1)).view(*images.shape[:2], -1, 2 * images.shape[3])
            y = convolve(_planes(pairs), self.paired, None, "leaky_relu", (1, 0))
        return y.permute(0, 2, 3, 1).reshape(*images.shape[:3], -1)


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
    """The sum factor ⊙ S3Conv(x) + shift, factor ≥ 0.

    A single feature gets a second one of zeros: with one, strides do not tell which order the axes have, and the
    kernels that are then taken are two to four times as slow.
    """

    spectral: Tensor
    shift: Tensor

    def __init__(self, conv: S3Conv, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        first, second = (conv.dw_conv.get_parameter(f"{index}.weight").detach()[:, :, 0] for index in (0, 2))
        spectral = conv.pw_conv.weight.detach()[..., 0] * factor[:, None, None, None]
        self.alone = first.shape[1] == 1
        if self.alone:
            first, spectral = (functional.pad(weight, (0, 0, 0, 0, 0, 1)) for weight in (first, spectral))
        self.first = RectifiedConvolution(first)
        self.second = RectifiedConvolution(second * factor[:, None, None, None])
        self.register_buffer("spectral", spectral)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H, W, C')."""
        x = functional.pad(x, (0, 1)) if self.alone else x
        y = convolve(_planes(x.flatten(2, 3)), self.spectral, self.shift, padding=(1, 0))
        y = y.permute(0, 2, 3, 1).contiguous().view(*x.shape[:4], -1)
        images, totals = x.flatten(0, 1), y.flatten(0, 1)
        for piece in _pieces(len(images), totals[0]):
            totals[piece] += self.second(self.first(images[piece]))
        return y


class FusedDown(nn.Module):
    """The sum factor ⊙ (3 × 3 × 3 convolution, of every second pixel) + shift."""

    weight: Tensor
    shift: Tensor

    def __init__(self, weight: Tensor, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach() * factor[:, None, None, None, None])
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, H / 2, W / 2, C')."""
        return over_both(x, self.weight, 2, self.shift)


class FusedUp(nn.Module):
    """The sum factor ⊙ (3 × 3 × 3 convolution of the image doubled in size) + shift.

    Doubling the rows mixes rows alone and is linear, so it may as well come after bands, columns and features are
    mixed, once for each row of the kernel, at half the height: half the multiplications.
    """

    weight: Tensor
    shift: Tensor

    def __init__(self, weight: Tensor, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        weight = weight.detach() * factor[:, None, None, None, None]
        self.register_buffer("weight", weight.permute(3, 2, 0, 1, 4)[..., None, :].contiguous())
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W, C) → (N, D, 2H, 2W, C')."""
        wide = resized(x, x.shape[2], 2 * x.shape[3])
        y = self.shift.expand(*x.shape[:2], 2 * x.shape[2], wide.shape[3], -1).contiguous()
        rows = _row_doubling(x.shape[2], y)
        for total, sample in zip(y, wide, strict=True):
            for piece in _pieces(len(total), total[0]):
                for row, weights in enumerate(self.weight):
                    mixed = _over_bands_and_columns(sample, piece, weights).to(y.dtype).flatten(2)
                    for target, source, shares in rows:
                        share = shares[row].expand(len(mixed), -1, -1)
                        total[piece].flatten(2)[:, target].baddbmm_(share, mixed[:, source])
        return y


def _over_bands_and_columns(images: Tensor, piece: slice, weights: Tensor) -> Tensor:
    """Convolution of neighbouring bands and columns, for the bands of a piece.

    (D, H, W, C), weights (3, C', C, 1, 3) → (d, H, W, C').
    """
    y = convolve(_planes(images[piece]), weights[1], padding=(0, 1)).permute(0, 2, 3, 1)
    first, last = max(piece.start, 1), min(piece.stop, len(images) - 1)
    if first < piece.stop:
        before = images[first - 1 : piece.stop - 1]
        convolve_onto(_planes(y[first - piece.start :]), _planes(before), weights[0], padding=(0, 1))
    if piece.start < last:
        after = images[piece.start + 1 : last + 1]
        convolve_onto(_planes(y[: last - piece.start]), _planes(after), weights[2], padding=(0, 1))
    return y


def _row_doubling(height: int, like: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """What rows of an image give to those of the doubled one, and to those above and below, in blocks.

    Each is a slice of doubled rows, the slice of rows that they depend on, and for each row of a kernel the shares of
    the second in the first, (3, rows, rows).
    """
    single = torch.eye(height, dtype=torch.promote_types(like.dtype, torch.float32))
    doubling = resized(single[None, None, :, :, None], 2 * height, height)[0, 0, :, :, 0]
    padded = functional.pad(doubling, (0, 0, 1, 1))
    shares = torch.stack([padded[row : row + 2 * height] for row in range(3)])
    blocks = []
    for start in range(0, 2 * height, ROWS):
        block = shares[:, start : start + ROWS]
        used = block.sum((0, 1)).nonzero()
        source = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(start, start + block.shape[1]), source, block[..., source].to(like)))
    return blocks


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


def _planes(images: Tensor) -> Tensor:
    """(N, H, W, C) as convolutions take it."""
    return images.permute(0, 3, 1, 2)


def _pieces(count: int, one: Tensor) -> Iterator[slice]:
    """Slices of `count` items, each a few of the size of `one`."""
    limit = PIECE if one.device.type == "cpu" else PIECE_ON_DEVICE
    step = max(1, limit // (one.numel() * one.element_size()))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
