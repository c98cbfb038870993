"""Packed linear layers beside the plain products of their weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cubeloom.models.packed_linear import PackedLinear, _has_kernels, pack
from cubeloom.pipeline.inference import _LiveBytes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@torch.inference_mode()
def test_all_three_forms(bias, packed):
    torch.manual_seed(1)
    layer = PackedLinear(48, 80, bias=bias)
    weight = layer.weight.clone()
    if packed:
        pack(nn.Sequential(layer))
    for shape in ((3, 7), (1, 225), (2, 1)):  # the weights, packed at the first, serve any number of rows
        x, total = torch.randn(*shape, 48), torch.randn(*shape, 80)
        kept = total.clone()
        y = x @ weight.T + (layer.bias if bias else 0)
        for found, expected in (
            (layer(x), y),
            (layer.activated(x), functional.gelu(y)),
            (layer.onto(total, x), total + y),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(total, kept)


@torch.inference_mode()
def test_a_move_gives_the_plain_weight_back():
    layer = PackedLinear(48, 80)
    weight, x = layer.weight.clone(), torch.randn(5, 48)
    pack(layer)
    before = layer(x)
    layer.double()
    assert torch.equal(layer.weight, weight.double())
    torch.testing.assert_close(layer(x.double()).float(), before, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_weight_is_packed_even_while_memory_is_measured():
    layer = PackedLinear(48, 80)
    pack(layer)
    _has_kernels.cache_clear()
    with _LiveBytes() as live:
        layer(torch.zeros(1, 9, 48))
    assert live.peak == 4 * 9 * (48 + 80)
    assert (layer.weight.numel() == 0) == _has_kernels()
    _has_kernels.cache_clear()
    assert (layer.weight.numel() == 0) == _has_kernels()  # the answer is the same without


def test_gradients_where_nothing_is_packed():
    layer = PackedLinear(4, 3)
    layer.onto(torch.zeros(2, 3), torch.ones(2, 4)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0))
