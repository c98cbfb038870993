"""Linear layers whose weights are laid out once for oneDNN's kernels, which also do what comes after the product.

With weights laid out beforehand a product takes about three quarters of the time of torch's own on a CPU; the kernels
are those that `torch.compile` would choose, called without a compiler. Elsewhere, or where this torch has none, the
same from torch's plain functions. No gradients where weights are packed.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

_PACKING = threading.Lock()


class PackedLinear(nn.Linear):
    """A linear layer, and the sums and activations that go with it.

    Attributes:
        packs: lay the weight out for oneDNN at the first call on a CPU; the plain one is then given up.
    """

    packs = False
    _packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)."""
        packed = self._packed_for(x)
        return super().forward(x) if packed is None else _product(x, packed, self.bias, "none")

    def activated(self, x: Tensor) -> Tensor:
        """GELU, the exact one, of the layer's answer."""
        packed = self._packed_for(x)
        return functional.gelu(super().forward(x)) if packed is None else _product(x, packed, self.bias, "gelu")

    def onto(self, total: Tensor, x: Tensor) -> Tensor:
        """The sum of `total` and the layer's answer to x; `total` stays as it is."""
        packed = self._packed_for(x)
        return total + super().forward(x) if packed is None else _sum(total, x, packed, self.bias)

    def _packed_for(self, x: Tensor) -> Tensor | None:
        """The weight as the kernels take it; None where they take none."""
        if not self.packs or x.device.type != "cpu" or x.dtype != torch.float32 or not _has_kernels():
            return None
        if self._packed is None:
            with _PACKING, _disable_current_modes():  # which may ask for memory that a packed weight does not show
                if self._packed is None:  # another thread may have been first
                    packed = _laid_out(self.weight.detach(), x.numel() // x.shape[-1])
                    self._packed = packed
                    self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        return self._packed

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "PackedLinear":
        """As torch's, for moves to a device or type: of the plain weight."""
        if self._packed is not None:
            self.weight = nn.Parameter(self._packed.to_dense(), requires_grad=False)
            self._packed = None
        return cast("PackedLinear", super()._apply(fn, recurse))  # type: ignore[no-untyped-call, unused-ignore]


def pack(network: nn.Module) -> None:
    """Let all such layers of a network pack their weights; there are no gradients then."""
    for module in network.modules():
        if isinstance(module, PackedLinear):
            module.packs = True


@cache
def _has_kernels() -> bool:
    """Whether this torch has the kernels: they are no part of its documented functions, so each is tried once."""
    draw = torch.Generator().manual_seed(0)
    with _disable_current_modes():
        x, weight, bias, total = (torch.randn(size, generator=draw) for size in ((2, 3, 16), (8, 16), (8,), (2, 3, 8)))
        try:
            packed = _laid_out(weight, 6)
            same = torch.equal(packed.to_dense(), weight)
            found = (_product(x, packed, bias, "none"), _product(x, packed, bias, "gelu"), _sum(total, x, packed, bias))
        except (AttributeError, RuntimeError, TypeError):
            return False
        y = functional.linear(x, weight, bias)
        expected = y, functional.gelu(y), y + total
        return same and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def _laid_out(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return y


def _sum(total: Tensor, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, total, packed, bias, "add")
    return y
