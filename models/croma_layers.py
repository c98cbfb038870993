"""Layers of CROMA (Fuller, Millard and Green, NeurIPS 2023, arXiv 2311.00566): attention that falls with distance.

Names of modules are those of the authors' files.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .packed_linear import PackedLinear

HEADS = 16
PATCH = 8
"""Side of a patch, px."""


class Attention(nn.Module):
    """Each token looks at all of its own stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = PackedLinear(width, 3 * width, bias=False)
        self.to_out = PackedLinear(width, width)
        self.input_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(N, T, width), bias (N or 1, HEADS, T, T) → x and what was seen, of x's shape."""
        queries, keys, values = self.to_qkv(self.input_norm(x)).chunk(3, -1)
        return self.to_out.onto(x, attended(queries, keys, values, bias))


class CrossAttention(nn.Module):
    """Each token looks at all of another stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (PackedLinear(width, width, bias=False) for _ in "qkv")
        self.to_out = PackedLinear(width, width)
        self.input_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """(N, T, width) twice, bias (N or 1, HEADS, T, T) → x and what was seen, of x's shape."""
        seen = self.input_norm(context)
        queries = self.to_q(self.input_norm(x))
        return self.to_out.onto(x, attended(queries, self.to_k(seen), self.to_v(seen), bias))


class FeedForward(nn.Module):
    """Two linear layers for each token by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width)
        # Their keys are places in the authors' list; what is missing, activation and dropout, has no weights.
        self.net = nn.ModuleDict({"0": PackedLinear(width, 4 * width), "3": PackedLinear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → x and the answer, of x's shape."""
        first, second = (cast("PackedLinear", self.net[name]) for name in "03")
        y: Tensor = second.onto(x, first.activated(self.input_norm(x)))
        return y


class Transformer(nn.Module):
    """Blocks over one stream, which may look at another; a norm at the end."""

    def __init__(self, width: int, depth: int, *, cross: bool = False) -> None:
        super().__init__()
        kinds = (Attention, CrossAttention, FeedForward) if cross else (Attention, FeedForward)
        self.layers = nn.ModuleList(nn.ModuleList(kind(width) for kind in kinds) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor, context: Tensor | None = None, across: Tensor | None = None) -> Tensor:
        """Tokens of a stream after all blocks; see `blocks`."""
        for made in self.blocks(x, bias, context, across):
            x = made
        y: Tensor = self.norm_out(x)
        return y

    def blocks(
        self, x: Tensor, bias: Tensor, context: Tensor | None = None, across: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Tokens of a stream after each block, before the norm.

        Args:
            x: (N, T, width).
            bias: of the attention to the stream itself, (N or 1, HEADS, T, T).
            context: the other stream, (N, S, width).
            across: of the attention to the other, (N or 1, HEADS, T, S); None where it is the same.

        Yields:
            (N, T, width)
        """
        across = bias if across is None else across
        for block in self.layers:
            first, *others, last = cast("nn.ModuleList", block)
            x = first(x, bias)
            for other in others:
                x = other(x, context, across)
            x = last(x)
            yield x


class Encoder(nn.Module):
    """Patches of an image of one sensor as tokens."""

    def __init__(self, width: int, depth: int, channels: int) -> None:
        super().__init__()
        self.linear_input = PackedLinear(PATCH * PATCH * channels, width)
        self.transformer = Transformer(width, depth)

    def forward(self, image: Tensor, bias: Tensor) -> Tensor:
        """(N, C, H, W) → (N, T, width)."""
        y: Tensor = self.transformer(self.embedded(image), bias)
        return y

    def embedded(self, image: Tensor) -> Tensor:
        """(N, C, H, W) → (N, T, width) before the first block; a patch's values go in by channel, then row by row."""
        patches = functional.pixel_unshuffle(image, PATCH).flatten(2).transpose(1, 2)
        y: Tensor = self.linear_input(patches)
        return y


def attended(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Softmax(q·k / √d + bias) · v of each head, (N, T, width) each → (N, T, width)."""
    q, k, v = (one.view(*one.shape[:2], HEADS, -1).transpose(1, 2) for one in (queries, keys, values))
    mask = bias.expand(len(q), -1, -1, -1)  # a view, not a copy for each image
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@lru_cache(maxsize=4)
def alibi(rows: int, cols: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The bias of each head for a grid of patches: -m‖p - p'‖, m = 2^(-(h + 1) / 2) of head h (2-D ALiBi, X-ALiBi).

    Args:
        rows: of patches.
        cols: of patches.
        device: of the bias.
        dtype: of the bias.

    Returns:
        (1, HEADS, rows · cols, rows · cols): the row of a query, the column of a key, in patches.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cached one also serves trainings
        row, col = (torch.arange(size, dtype=torch.float64, device=device) for size in (rows, cols))
        across = (row[:, None] - row).square()[:, None, :, None] + (col[:, None] - col).square()[None, :, None, :]
        distance = across.sqrt().reshape(rows * cols, rows * cols)
        bias = torch.empty(1, HEADS, rows * cols, rows * cols, dtype=dtype, device=device)
        for head in range(HEADS):  # one by one, so that no more than one is there in float64
            torch.mul(distance, -(2 ** (-(head + 1) / 2)), out=bias[0, head])
        return bias
