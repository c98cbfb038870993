"""ESSAformer on a CPU: strip by strip of a feature map, written over it, by fewer multiplications.

The network as written holds some ten maps of the fine grid at its peak: tokens, queries, keys, values, their squares,
both halves of a concatenation and what becomes of it. Here one map of each grid is held. A refinement reads it twice:

- once for the context, which is a sum over all pixels. The value is linear in the normed token n, so
  Σ k̂ᵀ v = (Σ k̂ᵀ n) Wᵥᵀ + (Σ k̂)ᵀ bᵥ and no value is made;
- once for all the rest, in strips of rows that stay in the cache. Attention ends in two linear layers, the second being
  the first convolution: their product is taken once, so that this convolution reads n, q̂ and the input.

The convolutions 3 x 3 are Winograd's.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .essaformer_winograd import OUT, Winograd, whole

if TYPE_CHECKING:
    from .essaformer import ESSAformer, Refinement, Resampling

TILES = 128
"""Winograd tiles of a strip, about: enough to multiply matrices well, few enough to stay in the cache."""

Rows = Callable[[int, int], Tensor]
"""Rows of an image from one to before another, (rows, W, C)."""


class InStrips(nn.Module):
    """The network's form for inference; off the CPU, or with another type than float32, the network itself."""

    def __init__(self, network: "ESSAformer") -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        block = network.blockup
        self.first, self.last = _winograd(network.conv_first), _winograd(network.conv_last)
        self.up, self.down = _Up(block.convupsample), _Down(block.convdownsample)
        self.refine_fine, self.refine_coarse = _Refine(block.convup), _Refine(block.convdown)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) to (N, bands, scale H, scale W)."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            finer: Tensor = self.network(x)
            return finer
        self.network.check(x)
        scale, height, width = self.network.scale, *x.shape[2:]
        made = x.new_empty(len(x), self.network.bands, scale * height, scale * width)
        for image, out in zip(x, made, strict=True):
            self._one(image.permute(1, 2, 0), out)
        if self.network.skip:
            from .essaformer import enlarged

            for image, out in zip(x, made, strict=True):
                for band, finer in zip(image, out, strict=True):
                    finer += enlarged(band[None, None], scale)[0, 0]
        return made

    def _one(self, image: Tensor, out: Tensor) -> None:
        """An image (H, W, bands) into `out`, (bands, scale H, scale W)."""
        coarse = image.new_empty(*image.shape[:2], self.network.width)
        for start, rows in _convolved(image, self.first):
            coarse[start : start + len(rows)] = rows
        fine = coarse.new_zeros(out.shape[1], out.shape[2], self.network.width)
        self.up.onto(fine, coarse)
        self.refine_fine(fine, 0)
        for visit in range(2):
            self.down.onto(coarse, fine)
            self.refine_coarse(coarse, visit)
            self.up.onto(fine, coarse)
            self.refine_fine(fine, visit + 1)
        for start, rows in _convolved(fine, self.last):
            out[:, start : start + len(rows)] = rows.permute(2, 0, 1)


class _Up(nn.Module):
    """To the finer grid."""

    def __init__(self, layers: "Resampling") -> None:
        super().__init__()
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        self.step = 3 if convolutions[0].out_channels == 9 * convolutions[0].in_channels else 2
        self.steps = nn.ModuleList(_winograd(one, self._pixels_first(one)) for one in convolutions)

    def _pixels_first(self, layer: nn.Conv2d) -> Tensor:
        """The order of its channels that has those of one pixel together."""
        return torch.arange(layer.out_channels).view(-1, self.step**2).t().reshape(-1)

    def onto(self, fine: Tensor, coarse: Tensor) -> None:
        """Add what becomes of `coarse` to `fine`."""
        for layer in _each(self.steps):
            height, width, channels = coarse.shape
            target = fine
            if layer is not self.steps[-1]:
                target = coarse.new_zeros(height * self.step, width * self.step, channels)
            cells = target.view(height, self.step, width, self.step, channels)
            for start, rows in _convolved(coarse, layer):
                parts = rows.reshape(len(rows), width, self.step, self.step, channels)
                cells[start : start + len(rows)] += parts.transpose(1, 2)
            coarse = target


class _Down(nn.Module):
    """To the coarser grid."""

    def __init__(self, layers: "Resampling") -> None:
        super().__init__()
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        self.step = 3 if convolutions[0].in_channels >= 9 * convolutions[0].out_channels else 2
        self.steps = nn.ModuleList(_winograd(one) for one in convolutions)

    def onto(self, coarse: Tensor, fine: Tensor) -> None:
        """Add what becomes of `fine` to `coarse`."""
        for layer in _each(self.steps):
            height, width, channels = fine.shape[0] // self.step, fine.shape[1] // self.step, coarse.shape[-1]
            target = coarse if layer is self.steps[-1] else coarse.new_zeros(height, width, channels)
            gathered = fine.new_empty(*fine.shape[:2], channels // self.step**2)
            for start, rows in _convolved(fine, layer):
                gathered[start : start + len(rows)] = rows
            cells = gathered.view(height, self.step, width, self.step, -1)
            target.view(height, width, -1, self.step, self.step).add_(cells.permute(0, 2, 4, 1, 3))
            fine = target


class _Refine(nn.Module):
    """A refinement, written over its input."""

    def __init__(self, refinement: "Refinement") -> None:
        super().__init__()
        self.attn = deepcopy(refinement.attn).requires_grad_(False)
        self.norm = deepcopy(refinement.norm).requires_grad_(False)
        first, middle, last = (layer for layer in refinement.layers if isinstance(layer, nn.Conv2d))
        width = last.out_channels
        query, key, _ = (_centred(part) for part in self.attn.lnqkv.weight.double().chunk(3))
        query_bias, key_bias, _ = (_centred(part) for part in _bias(self.attn.lnqkv).double().chunk(3))
        weight = first.weight.detach().double()[:, :, 0, 0]
        attended, beside = weight[:, :width], weight[:, width:]
        context = attended @ self.attn.ln.weight.double()
        value, value_bias = (part.double()[2 * width :] for part in (self.attn.lnqkv.weight, _bias(self.attn.lnqkv)))
        constant = _bias(first).double() + context @ value_bias + attended @ _bias(self.attn.ln).double()
        made = {
            "query": query.t(), "query_bias": query_bias, "key": key.t(), "key_bias": key_bias,
            "from_token": (context @ value).t(), "from_input": beside.t(), "from_context": context.t(),
            "constant": constant, "last": last.weight.detach().double()[:, :, 0, 0].t(), "last_bias": _bias(last),
        }  # fmt: skip
        for name, values in made.items():
            self.register_buffer(name, values.detach().float().contiguous())
        self.middle = _winograd(middle)
        self.query: Tensor
        self.query_bias: Tensor
        self.key: Tensor
        self.key_bias: Tensor
        self.from_token: Tensor
        self.from_input: Tensor
        self.from_context: Tensor
        self.constant: Tensor
        self.last: Tensor
        self.last_bias: Tensor

    def forward(self, x: Tensor, visit: int) -> None:
        """Refine a map (H, W, C) in place."""
        query_weight = self._context(x, visit) @ self.from_context

        def expanded(start: int, stop: int) -> Tensor:
            tokens = x[start:stop].reshape(-1, x.shape[2])
            normed = self.norm(tokens)
            query, size = _squares(normed, self.query, self.query_bias)
            length = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
            query /= torch.maximum(length, 1e-12 * size)
            made = torch.addmm(self.constant, tokens, self.from_input)
            made.addmm_(normed, self.from_token).addmm_(query, query_weight)
            return functional.leaky_relu_(made, 0.2).view(stop - start, x.shape[1], -1)

        for start, rows in _strips((*x.shape[:2], 2 * x.shape[2]), expanded, self.middle):
            made = functional.leaky_relu_(rows.reshape(-1, rows.shape[-1]), 0.2)
            out = x[start : start + len(rows)]
            out += torch.addmm(self.last_bias, made, self.last).view(out.shape)

    def _context(self, x: Tensor, visit: int) -> Tensor:
        """The context of the attention, (C, C)."""
        from .essaformer import settled

        if self.attn.scatter is not None and self.attn.power is not None:
            return settled(self.attn.scatter[visit], self.attn.power[visit])
        width = x.shape[2]
        scatter, power, mass = x.new_zeros(width, width), x.new_zeros(width), x.new_zeros(width)
        tokens = x.view(-1, width)
        for part in torch.split(tokens, TILES * OUT**2):
            normed = self.norm(part)
            key, size = _squares(normed, self.key, self.key_bias)
            key /= size
            scatter.addmm_(key.t(), normed)
            power += key.square().sum(0)
            mass += key.sum(0)
        value, bias = self.attn.lnqkv.weight[2 * width :], _bias(self.attn.lnqkv)[2 * width :]
        total = scatter @ value.t() + mass[:, None] * bias
        return settled(total / len(tokens), power / len(tokens))


def _squares(normed: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of a centred projection, and what the authors divide them by."""
    made = torch.addmm(bias, normed, weight).square_()
    return made, made.sum(-1, keepdim=True) + 1e-7


def _centred(weight: Tensor) -> Tensor:
    """A layer whose outputs have their mean over channels taken off."""
    return weight - weight.mean(0, keepdim=True)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def _each(layers: nn.ModuleList) -> Iterator[Winograd]:
    return (layer for layer in layers if isinstance(layer, Winograd))


def _winograd(layer: nn.Conv2d, order: Tensor | None = None) -> Winograd:
    every = slice(None) if order is None else order
    return Winograd(layer.weight[every], _bias(layer)[every])


def _convolved(image: Tensor, layer: Winograd) -> Iterator[tuple[int, Tensor]]:
    """An image (H, W, C) convolved, strip by strip: the first row of each, and its rows."""
    return _strips(image.shape, lambda start, stop: image[start:stop], layer)


def _strips(shape: tuple[int, ...], rows: Rows, layer: Winograd) -> Iterator[tuple[int, Tensor]]:
    """The same for an image (H, W, C) whose rows are made when they are needed, each once and in order.

    When a strip is given, all rows up to the one after it have been made, so that it may be written over them.
    """
    height, width, channels = shape
    across = whole(width)
    tall = min(max(TILES * OUT // across, 1) * OUT, whole(height))
    held = layer.bias.new_zeros(tall + 2, across + 2, channels)
    made = 0
    for start in range(0, height, tall):
        stop = min(start + tall + 1, height)
        if start:
            held[:2] = held[tall:].clone()
        at = made - start + 1
        if stop > made:
            held[at : at + stop - made, 1 : width + 1] = rows(made, stop)
        held[stop - start + 1 :] = 0
        made = stop
        yield start, layer(held)[: min(tall, height - start), :width]
