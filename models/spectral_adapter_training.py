"""A spectral adapter's forward and backward pass while it trains on a CPU, with little traffic to memory.

Only what each convolution gives is kept. Its normalisation and rectifier are computed anew wherever they are needed,
on pieces of pixels that stay in cache; the sums that a normalisation by batch statistics takes, forward (Ioffe and
Szegedy 2015, arXiv 1502.03167, algorithm 1) and backward, are taken while a piece is there. A piece is an array
(bands · features, pixels), so that a place of a kernel is a slice of rows.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1024
"""Pixels of a piece for each thread that works on it."""

Rows = tuple[slice, slice, slice]
"""Of a kernel's place: rows of the input that it covers, of its taps that lie on them, and of the output."""


class Layer(NamedTuple):
    """One convolution.

    Attributes:
        inputs: features of each band that it takes.
        outputs: features of each band that it gives.
        depth: bands that it gives.
        places: of its kernel.
    """

    inputs: int
    outputs: int
    depth: int
    places: tuple[Rows, ...]


class Norm(NamedTuple):
    """What a normalisation does to each row: values · scale + shift, as columns; and where it comes from, (C,) float64.

    Attributes:
        scale: (rows, 1)
        shift: (rows, 1)
        mean: of the batch.
        var: of the batch, biased.
        rstd: 1 / sqrt(var + eps).
        size: values of each feature.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    var: Tensor
    rstd: Tensor
    size: int


class TrainingPass(torch.autograd.Function):
    """(N, D, P) → the adapter's features (N, C, P), then mean and variance of each layer's batch.

    The mean is that without the convolution's bias, which normalisation takes away again, so its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        layers: Sequence[Layer],
        eps: Sequence[float],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        """Parameters: weight (C', C, taps) and bias of a convolution, weight and bias of its normalisation, in turn."""
        weights, _, scales, shifts = (parameters[first::4] for first in range(4))
        scratch, norms, kept = Scratch(x), list[Norm](), list[Tensor]()
        step = PIECE * torch.get_num_threads()
        below = _cut(x, step)
        for layer, weight, scale, shift, epsilon in zip(layers, weights, scales, shifts, eps, strict=True):
            whole, above = _allocate(x, layer.depth * layer.outputs, step)
            moments = _convolve(layer, weight, norms[-1] if norms else None, below, above, scratch)
            norms.append(moments.norm(scale, shift, epsilon))
            kept.append(whole)
            below = above
        features = x.new_empty(len(x), layers[-1].outputs, x.shape[2])
        for piece, total in zip(below, _cut(features, step), strict=True):
            torch.mean(_activate(piece, norms[-1], scratch).view(-1, *total.shape), 0, out=total)
        ctx.save_for_backward(x, *kept, *weights, *scales)
        ctx.layers, ctx.norms, ctx.step = layers, norms, step
        found = [value for norm in norms for value in (norm.mean, norm.var)]
        ctx.mark_non_differentiable(*found)
        return features, *found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of all parameters; that of the cube is not asked for."""
        x, *saved = ctx.saved_tensors
        count = len(ctx.layers)
        pieces = [_cut(x, ctx.step), *(_views(whole, x, ctx.step) for whole in saved[:count])]
        weights, scales = saved[count : 2 * count], saved[2 * count :]
        scratch = Scratch(x)
        above, sums = _of_features(_cut(gradient, ctx.step), ctx.layers[-1], ctx.norms[-1], pieces[-1], scratch)
        found: list[Tensor | None] = []
        for at in reversed(range(count)):
            layer, norm = ctx.layers[at], ctx.norms[at]
            of_shift, of_scale = sums.by_feature(norm)
            inner = Backward(layer, norm, weights[at], scales[at], of_scale, of_shift, scratch)
            before = ctx.norms[at - 1] if at else None
            above, sums = inner.run(pieces[at], before, pieces[at + 1], above)
            of_bias = torch.zeros_like(of_shift)
            found = [inner.of_weight(), *(one.to(x.dtype) for one in (of_bias, of_scale, of_shift)), *found]
        return None, None, None, *found


class Scratch:
    """Arrays for what is done with a piece, used again for the next."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.arrays = like, dict[str, Tensor]()

    def array(self, name: str, rows: int, pixels: int) -> Tensor:
        """(rows, pixels), of no values in particular."""
        if name not in self.arrays or self.arrays[name].numel() < rows * pixels:
            self.arrays[name] = self.like.new_empty(rows * pixels)
        return self.arrays[name][: rows * pixels].view(rows, pixels)


class Moments:
    """Mean and variance of each feature over all pieces, merged as of Chan, Golub and LeVeque 1983."""

    def __init__(self, layer: Layer, like: Tensor) -> None:
        self.layer, self.count = layer, 0
        self.mean = like.new_zeros(layer.outputs, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, piece: Tensor, scratch: Scratch) -> None:
        """Take in a piece (rows, pixels)."""
        pixels = piece.shape[1]
        means = piece.mean(1, keepdim=True)
        squares = torch.sub(piece, means, out=scratch.array("moments", *piece.shape)).square_().sum(1)
        means, squares = (one.double().view(self.layer.depth, -1) for one in (means, squares))
        mean = means.mean(0)
        inside = squares.sum(0) + pixels * (means - mean).square().sum(0)
        count, apart = pixels * self.layer.depth, mean - self.mean
        total = self.count + count
        self.mean += apart * (count / total)
        self.squares += inside + apart.square() * (self.count * count / total)
        self.count = total

    def norm(self, scale: Tensor, shift: Tensor, eps: float) -> Norm:
        """The normalisation by these."""
        var = self.squares / self.count
        rstd = (var + eps).rsqrt()
        factor = scale.double() * rstd
        offset = shift.double() - self.mean * factor
        columns = _column(factor, self.layer, scale), _column(offset, self.layer, scale)
        return Norm(*columns, self.mean, var, rstd, self.count)


class Sums:
    """Of gradients behind a normalisation, and of their products with its input: (rows,) each."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.plain = like.new_zeros(rows, dtype=torch.float64)
        self.products = torch.zeros_like(self.plain)

    def add(self, gradient: Tensor, values: Tensor, scratch: Scratch) -> None:
        """Take in a piece of both."""
        self.plain += gradient.sum(1)
        self.products += torch.mul(gradient, values, out=scratch.array("products", *values.shape)).sum(1)

    def by_feature(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """Gradients of the normalisation's bias and weight, (C,) each."""
        plain, products = (one.view(-1, len(norm.mean)).sum(0) for one in (self.plain, self.products))
        return plain, (products - norm.mean * plain) * norm.rstd


class Backward:
    """A layer's backward pass, from the gradient behind its normalisation to that behind the one before.

    With g the gradient behind it, s and r its weight and 1 / sqrt(var + eps), and x̂ its input normalised, the gradient
    before a normalisation is s · r · (g - mean(g) - x̂ · mean(g · x̂)); its first factors go into the kernel.
    """

    def __init__(
        self,
        layer: Layer,
        norm: Norm,
        weight: Tensor,
        scale: Tensor,
        of_scale: Tensor,
        of_shift: Tensor,
        scratch: Scratch,
    ) -> None:
        self.layer, self.scratch, self.kernel = layer, scratch, weight.shape[2]
        self.factor = (scale.double() * norm.rstd).to(weight.dtype)
        slope = -norm.rstd * of_scale / norm.size
        offset = -slope * norm.mean - of_shift / norm.size
        self.slope, self.offset = (_column(one, layer, weight) for one in (slope, offset))
        self.taps = _taps(weight) * self.factor
        self.of_taps = torch.zeros_like(self.taps)

    def run(
        self, below: Sequence[Tensor], before: Norm | None, values: Sequence[Tensor], above: Sequence[Tensor]
    ) -> tuple[list[Tensor], Sums]:
        """The gradient behind the normalisation before, and its sums; none where there is none.

        Args:
            below: pieces of what that normalisation takes, or of the cube.
            before: the normalisation; None for the cube.
            values: pieces of what this layer's convolution gave.
            above: the gradient behind this layer's normalisation.
        """
        rows = below[0].shape[0]
        sums = Sums(rows if before else 0, self.factor)
        gradients = _allocate_like(below) if before else []
        for at, (source, value, upper) in enumerate(zip(below, values, above, strict=True)):
            gradient = torch.mul(value, self.slope, out=self.scratch.array("gradient", *value.shape))
            gradient.add_(self.offset).add_(upper)
            if before is None:
                self._windows(source, gradient, None)
                continue
            active = _activate(source, before, self.scratch)
            inner = self.scratch.array("inner", *source.shape)
            self._windows(active, gradient, inner)
            torch.ops.aten.threshold_backward.grad_input(inner, active, 0, grad_input=gradients[at])
            sums.add(gradients[at], source, self.scratch)
        return gradients, sums

    def of_weight(self) -> Tensor:
        """The kernel's gradient, (C', C, taps)."""
        return (self.of_taps * self.factor).view(self.kernel, self.layer.inputs, -1).permute(2, 1, 0)

    def _windows(self, source: Tensor, gradient: Tensor, inner: Tensor | None) -> None:
        """Place by place: add to the kernel's gradient, and write that of the source, which places overlap in."""
        written = 0
        for rows, taps, outputs in self.layer.places:
            part = gradient[outputs]
            self.of_taps[taps].addmm_(source[rows], part.t())
            if inner is not None:
                left, overlap = self.taps[taps], written - rows.start
                inner[rows.start : written].addmm_(left[:overlap], part)
                torch.mm(left[overlap:], part, out=inner[written : rows.stop])
                written = rows.stop
        if inner is not None:
            inner[written:] = 0


def _convolve(
    layer: Layer,
    weight: Tensor,
    before: Norm | None,
    below: Sequence[Tensor],
    above: Sequence[Tensor],
    scratch: Scratch,
) -> Moments:
    """Fill `above`, and the moments of what it holds."""
    taps, moments = _taps(weight), Moments(layer, weight)
    for source, total in zip(below, above, strict=True):
        active = source if before is None else _activate(source, before, scratch)
        for rows, used, outputs in layer.places:
            torch.mm(taps[used].t(), active[rows], out=total[outputs])
        moments.add(total, scratch)
    return moments


def _of_features(
    above: Sequence[Tensor], layer: Layer, norm: Norm, values: Sequence[Tensor], scratch: Scratch
) -> tuple[list[Tensor], Sums]:
    """The gradient behind the last normalisation, from that of the mean over its bands."""
    sums, gradients = Sums(values[0].shape[0], values[0]), _allocate_like(values)
    for value, upper, total in zip(values, above, gradients, strict=True):
        active = _activate(value, norm, scratch)
        spread = (upper / layer.depth).repeat(layer.depth, 1)
        torch.ops.aten.threshold_backward.grad_input(spread, active, 0, grad_input=total)
        sums.add(total, value, scratch)
    return gradients, sums


def _activate(piece: Tensor, norm: Norm, scratch: Scratch) -> Tensor:
    """Normalised and rectified; overwritten by the next."""
    active = torch.mul(piece, norm.scale, out=scratch.array("active", *piece.shape))
    return active.add_(norm.shift).relu_()


def _taps(weight: Tensor) -> Tensor:
    """(C', C, taps) → (taps · C, C')."""
    return weight.permute(2, 1, 0).reshape(-1, len(weight))


def _column(values: Tensor, layer: Layer, like: Tensor) -> Tensor:
    """(C,) → (bands · C, 1)."""
    return values.to(like.dtype).repeat(layer.depth)[:, None]


def _starts(pixels: int, step: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, pixels, step), pixels])


def _cut(x: Tensor, step: int) -> list[Tensor]:
    """(N, rows, P) → views (rows, pixels of a piece)."""
    return [sample[:, start:stop] for sample in x for start, stop in _starts(x.shape[2], step)]


def _views(whole: Tensor, x: Tensor, step: int) -> list[Tensor]:
    """A row of memory as pieces, one behind the other: (rows, pixels) each."""
    widths = [stop - start for _ in x for start, stop in _starts(x.shape[2], step)]
    rows = whole.numel() // sum(widths)
    return [part.view(rows, -1) for part in torch.split(whole, [rows * width for width in widths])]


def _allocate(x: Tensor, rows: int, step: int) -> tuple[Tensor, list[Tensor]]:
    whole = x.new_empty(rows * len(x) * x.shape[2])
    return whole, _views(whole, x, step)


def _allocate_like(pieces: Sequence[Tensor]) -> list[Tensor]:
    """In one row of memory: many pieces of their own would be returned to the system and asked for again."""
    whole = pieces[0].new_empty(sum(piece.numel() for piece in pieces))
    parts = torch.split(whole, [piece.numel() for piece in pieces])
    return [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
