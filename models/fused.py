"""Convolutions that also do what comes after them, so that a result passes through memory once.

On a CPU they are the kernels of oneDNN that `torch.compile` would choose, called without a compiler; elsewhere, or
where this torch has none, the same from torch's plain functions. No gradients. Images are (N, C, H, W), channels last.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["none", "leaky_relu", "gelu", "sigmoid"]
Padding = tuple[int, int]

SLOPE = 0.01
"""Of the leaky rectifier."""


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", padding: Padding = (0, 0)
) -> Tensor:
    """The image activation(x ∗ weight + bias)."""
    if _by_onednn(x):
        return _onednn_activated(x, weight, bias, activation, padding)
    y = functional.conv2d(x, weight, bias, padding=padding)
    if activation == "leaky_relu":
        return functional.leaky_relu_(y, SLOPE)
    if activation == "gelu":
        return functional.gelu(y)
    return y.sigmoid_() if activation == "sigmoid" else y


def convolve_onto(
    total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: Padding = (0, 0)
) -> Tensor:
    """The sum total + x ∗ weight + bias, written over `total`."""
    if _by_onednn(x):
        return _onednn_added(total, x, weight, bias, padding)
    return total.add_(functional.conv2d(x, weight, bias, padding=padding))


def convolve_times(factor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product factor ⊙ (x ∗ weight + bias), of a 1 × 1 convolution."""
    if _by_onednn(x):
        return _onednn_multiplied(factor, x, weight, bias)
    return functional.conv2d(x, weight, bias).mul_(factor)


def _by_onednn(x: Tensor) -> bool:
    """Whether the fused kernels take this; they have no gradients."""
    differentiable = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and x.dtype == torch.float32 and not differentiable and _has_onednn()


@cache
def _has_onednn() -> bool:
    """Whether this torch has the kernels: they are no part of its documented functions, so each is tried once."""
    x = torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1)
    weight, bias = torch.eye(2)[:, :, None, None], torch.ones(2)
    try:
        found = (
            _onednn_activated(x, weight, bias, "leaky_relu", (0, 0)),
            _onednn_activated(x, weight, bias, "gelu", (0, 0)),
            _onednn_added(x.clone(), x, weight, bias, (0, 0)),
            _onednn_multiplied(x, x, weight, bias),
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    y = x + 1
    expected = functional.leaky_relu(y, SLOPE), functional.gelu(y), x + y, x * y
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def _onednn_activated(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, padding: Padding
) -> Tensor:
    slope = [SLOPE] if activation == "leaky_relu" else []
    kernel = torch.ops.mkldnn._convolution_pointwise
    y: Tensor = kernel(x, weight, bias, padding, (1, 1), (1, 1), 1, activation, slope, "none")
    return y


def _onednn_added(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding) -> Tensor:
    kernel = torch.ops.mkldnn._convolution_pointwise_.binary
    y: Tensor = kernel(total, x, weight, bias, padding, (1, 1), (1, 1), 1, "add", 1.0, None, [], None)
    return y


def _onednn_multiplied(factor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = torch.ops.mkldnn._convolution_pointwise.binary
    y: Tensor = kernel(x, factor, weight, bias, (0, 0), (1, 1), (1, 1), 1, "mul", 1.0, None, [], None)
    return y
