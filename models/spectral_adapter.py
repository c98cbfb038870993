"""The spectral adapter of SpectralEarth (Braham et al. 2024, arXiv 2408.08447): from any spectrum to 128 features.

Three convolutions along the spectrum of each pixel, with strides, each followed by a batch normalisation and a
rectifier, then the mean over what is left of the spectrum. The state dict is that of the authors' class, key by key.

A convolution with strides is computed as matrix products: arrays stand as (N, D, C, pixels), so that the C features of
neighbouring bands are neighbouring rows, and one output band is one matrix times a slice of rows, without a copy.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cubeloom.errors import ModelError

from .spectral_adapter_training import Layer, TrainingPass

LAYERS = ((1, 32, 7, 5), (32, 64, 7, 5), (64, 128, 5, 3))
"""Features in and out, kernel and stride of each convolution; all have a padding of one band."""
PADDING = 1
FEATURES = 128
"""Features of each pixel that the adapter gives."""
MIN_BANDS = 75
"""Fewest bands that leave something for the last kernel."""
PIECE = 1024
"""Pixels that are worked on at once: what is made of them stays in cache."""
PIECE_ON_DEVICE = 2**18
"""The same away from the CPU, where a kernel wants much to do at once."""


class Window(NamedTuple):
    """One place of a kernel along the spectrum.

    Attributes:
        place: index of the band of the output.
        bands: of the input that it covers.
        taps: of the kernel that lie on them; at the ends some lie on the padding.
    """

    place: int
    bands: slice
    taps: slice


def output_depth(depth: int, kernel: int, stride: int) -> int:
    """Bands that a convolution makes of `depth`."""
    return (depth + 2 * PADDING - kernel) // stride + 1


def windows(depth: int, kernel: int, stride: int) -> Iterator[Window]:
    """The places of a kernel, in order."""
    for place in range(output_depth(depth, kernel, stride)):
        start = place * stride - PADDING
        first, last = max(start, 0), min(start + kernel, depth)
        yield Window(place, slice(first, last), slice(first - start, last - start))


def bands_seen(bands: int) -> int:
    """How many bands, from the first, reach the output in eval mode; the strides leave the others out.

    181 of 202: each convolution drops what does not fill a stride. While training, batch statistics see them all.
    """
    depths = [bands]
    for _, _, kernel, stride in LAYERS:
        depths.append(output_depth(depths[-1], kernel, stride))
    return _needed(depths)[0]


def _needed(depths: list[int]) -> list[int]:
    """Of the bands at the input of each layer, those that the last layer's output depends on."""
    needed = depths[-1:]
    for depth, (_, _, kernel, stride) in zip(reversed(depths[:-1]), reversed(LAYERS), strict=True):
        needed.insert(0, min((needed[0] - 1) * stride - PADDING + kernel, depth))
    return needed[:-1]


def require_spectra(x: Tensor) -> None:
    """Check that an adapter can take this.

    Raises:
        ModelError: not (N, D, H, W), too few bands, or integers.
    """
    if x.ndim != 4 or not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise ModelError(
            f"a spectral adapter takes floating-point cubes (N, bands, H, W); found {tuple(x.shape)} of {kind}; scale "
            "and standardise the cube first"
        )
    if x.shape[1] < MIN_BANDS:
        raise ModelError(
            f"a spectral adapter needs at least {MIN_BANDS} bands; found {x.shape[1]}. Its published weights expect "
            "EnMAP's 202: resample the spectra to them"
        )


class SpectralAdapter(nn.Sequential):
    """The adapter: 56,192 parameters for any number of bands from 75."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in LAYERS:
            conv = nn.Conv3d(inputs, outputs, (kernel, 1, 1), (stride, 1, 1), (PADDING, 0, 0))
            layers += [conv, nn.BatchNorm3d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool3d((1, None, None)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) → (N, 128, H, W).

        Raises:
            ModelError: x does not fit; see `require_spectra`.
        """
        require_spectra(x)
        if self._trains_on_cpu(x):
            return self._training_pass(x)
        y = x.flatten(2).unsqueeze(2)
        for index, (_, outputs, _, stride) in enumerate(LAYERS):
            conv, norm = self.layer(index)
            y = products(y, conv.weight[..., 0, 0], conv.bias, stride)
            z = norm(y.view(-1, outputs, 1, 1, y.shape[3]))
            y = functional.relu(z, inplace=True).view(y.shape)
        return y.mean(1).view(len(x), FEATURES, *x.shape[2:])

    def _trains_on_cpu(self, x: Tensor) -> bool:
        """Whether all normalisations are plain ones by batch statistics, and the cube needs no gradient."""
        norms = [self.layer(index)[1] for index in range(len(LAYERS))]
        plain = all(type(norm) is nn.BatchNorm3d and norm.training and norm.affine for norm in norms)
        whole = x.dtype == norms[0].weight.dtype and x[:, 0].numel() > 1
        return (
            plain and whole and x.device.type == "cpu" and not x.requires_grad and not torch.is_autocast_enabled("cpu")
        )

    def _training_pass(self, x: Tensor) -> Tensor:
        layers, parameters, depth = [], list[Tensor](), x.shape[1]
        pairs = [self.layer(index) for index in range(len(LAYERS))]
        for (inputs, outputs, kernel, stride), (conv, norm) in zip(LAYERS, pairs, strict=True):
            places = tuple(
                (_rows(bands, inputs), _rows(taps, inputs), _rows(slice(place, place + 1), outputs))
                for place, bands, taps in windows(depth, kernel, stride)
            )
            depth = len(places)
            layers.append(Layer(inputs, outputs, depth, places))
            parameters += [conv.weight[..., 0, 0], conv.bias, norm.weight, norm.bias]
        features, *found = TrainingPass.apply(  # type: ignore[no-untyped-call]
            x.flatten(2), layers, [norm.eps for _, norm in pairs], *parameters
        )
        for layer, (conv, norm), mean, var in zip(layers, pairs, found[::2], found[1::2], strict=True):
            _track(norm, mean + conv.bias.detach(), var, layer.depth * x[:, 0].numel())
        return cast("Tensor", features.view(len(x), FEATURES, *x.shape[2:]))

    def layer(self, index: int) -> tuple[Any, Any]:
        """The convolution and the normalisation of a layer; the latter may have become a synchronised one."""
        return self[3 * index], self[3 * index + 1]

    def for_inference(self) -> "FoldedAdapter":
        """The same function in eval mode, with batch normalisations folded in; equal to 1e-5."""
        return FoldedAdapter(self)


def _track(norm: nn.BatchNorm3d, mean: Tensor, var: Tensor, count: int) -> None:
    """Let a normalisation's running statistics follow those of a batch, as it would itself."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.lerp_(value.to(running.dtype), share)


def products(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Convolution along the spectrum: (N, D, C, P), weight (C', C, taps), bias (C',) → (N, D', C', P)."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        x, weight, bias = (array.to(torch.get_autocast_dtype(kind)) for array in (x, weight, bias))
    y: Tensor = _Products.apply(x, weight, bias, stride)  # type: ignore[no-untyped-call]
    return y


class _Products(torch.autograd.Function):
    """`products`, and its gradient without an array of the windows, which autograd would make."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:  # noqa: ANN401
        outputs, inputs, kernel = weight.shape
        taps = weight.permute(2, 1, 0).reshape(kernel * inputs, outputs)
        depth = x.shape[1]
        y = x.new_empty(len(x), output_depth(depth, kernel, stride), outputs, x.shape[3])
        for sample, total in zip(x.flatten(1, 2), y, strict=True):
            for place, bands, used in windows(depth, kernel, stride):
                rows, row_taps = _rows(bands, inputs), _rows(used, inputs)
                torch.addmm(bias[:, None], taps[row_taps].t(), sample[rows], out=total[place])
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        outputs, inputs, kernel = weight.shape
        taps = weight.permute(2, 1, 0).reshape(kernel * inputs, outputs)
        of_taps, of_bias = torch.zeros_like(taps), weight.new_zeros(outputs)
        of_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        gradient = gradient.contiguous()
        for n, sample in enumerate(x.flatten(1, 2)):
            written = 0
            for place, bands, used in windows(x.shape[1], kernel, ctx.stride):
                part, rows, row_taps = gradient[n, place], _rows(bands, inputs), _rows(used, inputs)
                of_taps[row_taps].addmm_(sample[rows], part.t())
                of_bias += part.sum(1)
                if of_x is not None:
                    _add_or_write(of_x[n].flatten(0, 1), rows, written, taps[row_taps], part)
                    written = rows.stop
            if of_x is not None:
                of_x[n].flatten(0, 1)[written:] = 0
        return of_x, of_taps.view(kernel, inputs, outputs).permute(2, 1, 0), of_bias, None


def _rows(bands: slice, features: int) -> slice:
    return slice(bands.start * features, bands.stop * features)


def _add_or_write(total: Tensor, rows: slice, written: int, left: Tensor, right: Tensor) -> None:
    """Put left @ right into these rows: add to the first, which the window before wrote, and write the others."""
    overlap = written - rows.start
    total[rows.start : written].addmm_(left[:overlap], right)
    torch.mm(left[overlap:], right, out=total[written : rows.stop])


class FoldedAdapter(nn.Module):
    """A `SpectralAdapter` in eval mode with copies of its weights and the same `forward`; no gradients.

    Batch normalisations are folded into the convolutions. Pixels are worked on in pieces that stay in cache, their
    features last; of the bands only those are read that reach the output.
    """

    def __init__(self, adapter: SpectralAdapter) -> None:
        super().__init__()
        for index in range(len(LAYERS)):
            conv, norm = adapter.layer(index)
            factor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight.detach()[..., 0] * factor[:, None, None, None]
            bias = (conv.bias.detach() - norm.running_mean) * factor + norm.bias.detach()
            # Channels last: of kernels one pixel wide, strides alone tell which of the two layouts is meant.
            self.register_buffer(f"weight_{index}", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"bias_{index}", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H, W) → (N, 128, H, W), channels last in memory.

        Raises:
            ModelError: x does not fit; see `require_spectra`.
        """
        require_spectra(x)
        y = x.new_empty(len(x), *x.shape[2:], FEATURES)
        used = x[:, : bands_seen(x.shape[1])].flatten(2)
        step = PIECE if x.device.type == "cpu" else PIECE_ON_DEVICE
        for sample, total in zip(used, y.flatten(1, 2), strict=True):
            for start in range(0, len(total), step):
                total[start : start + step] = self._pixels(sample[:, start : start + step])
        return y.permute(0, 3, 1, 2)

    def _pixels(self, x: Tensor) -> Tensor:
        """(D, pixels) → (pixels, 128)."""
        y = self._first(x).relu_().permute(2, 0, 1)[None]
        for index, (_, _, _, stride) in enumerate(LAYERS[1:], 1):
            weight, bias = self._layer(index)
            y = functional.conv2d(y, weight, bias, (stride, 1), (PADDING, 0)).relu_()
        bands = y[0].permute(1, 2, 0).unbind()
        return sum(bands[1:], bands[0]) / len(bands)

    def _first(self, x: Tensor) -> Tensor:
        """The first convolution: (D, pixels) → (D', pixels, 32)."""
        weight, bias = self._layer(0)
        taps = weight[:, 0, :, 0].t()
        _, outputs, kernel, stride = LAYERS[0]
        y = x.new_empty(output_depth(len(x), kernel, stride), x.shape[1], outputs)
        for place, bands, used in windows(len(x), kernel, stride):
            torch.addmm(bias, x[bands].t(), taps[used], out=y[place])
        return y

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")
