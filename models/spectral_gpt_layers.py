"""Layers of SpectralGPT (Hong et al., TPAMI 46(8), 2024, arXiv 2311.07113): tokens of a cube, and blocks over them.

Names of modules are those of the authors' files.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .packed_linear import PackedLinear

EPSILON = 1e-6
"""Of the norms."""
POSITION_STD = 0.02


class Attention(nn.Module):
    """Each token looks at all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (PackedLinear(width, width) for _ in "qkv")
        self.proj = PackedLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → what was seen, of x's shape."""
        q, k, v = (layer(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """Attention, then two linear layers for each token by itself, four times as wide in between."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": PackedLinear(width, 4 * width), "fc2": PackedLinear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → the same."""
        first, second = (cast("PackedLinear", self.mlp[name]) for name in ("fc1", "fc2"))
        x = x + self.attn(self.norm1(x))
        return second.onto(x, first.activated(self.norm2(x)))


def patches(x: Tensor, group: int, edge: int) -> Tensor:
    """The values of each token of a cube.

    Args:
        x: (N, D, H, W).
        group: bands of a token; D is a multiple of it.
        edge: of a token, px; H and W are multiples of it.

    Returns:
        (N, D / group · H / edge · W / edge, group · edge · edge): tokens by group of bands, row and column, values by
        band, row and column.
    """
    n, bands, height, width = x.shape
    y = x.view(n, bands // group, group, height // edge, edge, width // edge, edge)
    return y.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)


def position_table(count: int, width: int) -> nn.Parameter:
    """A table of learnt positions, (1, count, width)."""
    return nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, count, width), std=POSITION_STD))


def separable_positions(spectral: Tensor, spatial: Tensor, rows: int, cols: int) -> Tensor:
    """The sum of a token's position along the spectrum and in the image.

    Args:
        spectral: (1, groups, width).
        spatial: (1, side², width), of a square image.
        rows: of tokens; the table is interpolated where it is of another size.
        cols: of tokens.

    Returns:
        (1, groups · rows · cols, width)
    """
    return (spectral[:, :, None] + resized(spatial, rows, cols)[:, None]).flatten(1, 2)


def resized(table: Tensor, rows: int, cols: int) -> Tensor:
    """Positions in a square image, (K, side², width), interpolated to another size: (K, rows · cols, width)."""
    side = round(table.shape[1] ** 0.5)
    if (rows, cols) == (side, side):
        return table
    image = table.view(len(table), side, side, -1).permute(0, 3, 1, 2)
    return functional.interpolate(image, (rows, cols), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def initialise(part: nn.Module) -> None:
    """First weights as the authors draw them: linear layers uniformly (Glorot and Bengio 2010), their biases 0."""
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
