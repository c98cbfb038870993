"""FreeNet, the patch-free network of FPGA (Zheng, Zhong, Ma and Zhang, TGRS 2020): a whole image in one pass.

The state dict is that of the authors' class, key by key and shape by shape.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .network import Network
from .registry import register_model

MULTIPLE = 16
"""An image is padded with zeros, below and to the right, to a multiple of this; the network itself needs 8."""
CHANNELS = (96, 128, 192, 256)
"""Features of the encoder at full size and after each halving, at width 1."""
INNER = 128
"""Features of the decoder, at width 1."""
HALO = 48
"""px; an output depends on inputs at most 45 px away, but for the means over the whole image."""


class SpectralAttention(nn.Module):
    """Rescales each channel by a gate in (0, 1) that is computed from the spatial means of all of them."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.seq = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """(N, C, H, W), share of each pixel in the means (N, H, W) or None for equal ones → (N, C, H, W)."""
        gate: Tensor = self.seq(spatial_means(x, share))
        return x * gate[..., None, None]


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics may be taken over some of the pixels."""

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """As `SpectralAttention`."""
        if share is None:
            return self._by_pixel(x) if _lies_by_pixel(x) else super().forward(x)
        centred = x - self._group_means(x, share)
        scale = (self._group_means(centred.square(), share) + self.eps).rsqrt() * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)

    def _by_pixel(self, x: Tensor) -> Tensor:
        """Of features that lie side by side, for which torch's own sums lose four digits in a large image."""
        rows = x.permute(0, 2, 3, 1)
        like = (len(x), self.num_groups, self.num_channels // self.num_groups)

        def group_means(sums: Tensor) -> Tensor:
            means = sums.double().sum(1) / (rows.shape[1] * rows.shape[2])
            return means.view(like).mean(2, keepdim=True).expand(like).flatten(1)

        means = group_means(rows.sum(2))
        centre = means.to(x.dtype)[:, None, None]
        some_rows = torch.split(rows, 16, 1)  # few enough to stay in the cache
        variances = group_means(torch.cat([(some - centre).square_().sum(2) for some in some_rows], 1))
        factor = (variances + self.eps).rsqrt() * self.weight
        offset, factor = (one.to(x.dtype)[..., None, None] for one in (self.bias - means * factor, factor))
        return torch.addcmul(offset, x, factor)

    def _group_means(self, x: Tensor, share: Tensor) -> Tensor:
        """Means over a group's channels and pixels, for each of its channels: (N, C, 1, 1)."""
        means = spatial_means(x, share).view(len(x), self.num_groups, -1)
        return means.mean(2, keepdim=True).expand_as(means).flatten(1)[..., None, None]


class ConvNormReLU(nn.Sequential):
    """3 × 3 convolution, group normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), GroupNorm(groups, outputs), nn.ReLU())

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """As `SpectralAttention`."""
        conv, norm, _ = self
        y: Tensor = norm(conv(x), share)
        return y.relu_()


class Chain(nn.Sequential):
    """Layers one after the other that all take the share of each pixel."""

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """As `SpectralAttention`."""
        for layer in self:
            x = layer(x, share)
        return x


class FreeNet(Network):
    """The network: an encoder with spectral attention, a linear decoder with lateral connections.

    Its output at a pixel depends on the whole image, through the means of the attention and of the normalisation.

    Args:
        in_channels: bands.
        num_classes: classes; scores, one for each.
        width: factor on all numbers of features, which are rounded down to multiples of the groups, ⌊16 · width⌋.

    Attributes:
        in_channels: bands.
        bands_last: on a CPU, let the features of a pixel lie side by side (the form for inference).

    Raises:
        ValueError: a size of which no network can be built.
    """

    def __init__(self, in_channels: int = 103, num_classes: int = 9, width: float = 1.0) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 1 or not 1 / 16 <= width < math.inf:
            raise ValueError("in_channels and num_classes are at least 1, width at least 1/16 and finite")
        self.in_channels = in_channels
        self.bands_last = False
        groups = int(16 * width)
        first, *deeper = widths = [int(channels * width / groups) * groups for channels in CHANNELS]
        inner = int(INNER * width)
        # Their keys are places in the authors' list; what is missing at 2, 5, 8 and 11 has no weights.
        self.feature_ops = nn.ModuleDict({"0": ConvNormReLU(in_channels, first, groups)})
        for place, channels in zip((1, 4, 7, 10), widths, strict=True):
            block = Chain(SpectralAttention(channels, groups), ConvNormReLU(channels, channels, groups))
            self.feature_ops[str(place)] = Chain(block)
        for place, before, after in zip((3, 6, 9), widths, deeper, strict=False):
            self.feature_ops[str(place)] = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.ReLU())
        self.reduce_1x1convs = nn.ModuleList(nn.Conv2d(channels, inner, 1) for channels in widths)
        self.fuse_3x3convs = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in widths)
        self.cls_pred_conv: nn.Module = nn.Conv2d(inner, num_classes, 1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores of the classes before the softmax.

        Args:
            x: (N, in_channels, H, W) of any H and W, each band with mean 0 and standard deviation 1 over the image.
            valid: (N, H, W) bool: the pixels that alone count in means and normalisations. Convolutions see the others
                as well: fill them. None: all count, and the padding too, as in the authors' code.

        Returns:
            (N, num_classes, H, W)

        Raises:
            ModelError: x, or `valid`, is of another shape.
        """
        self.check(x, valid)
        height, width = x.shape[2:]
        margins = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        weight = None if valid is None else functional.pad(valid.to(x.dtype), margins)
        padded = functional.pad(x, margins)
        if self.bands_last and x.device.type == "cpu":
            padded = padded.contiguous(memory_format=torch.channels_last)
        taps = self.encode(padded, shares(weight, len(CHANNELS)))
        return self.decode(taps)[..., :height, :width]

    def encode(self, x: Tensor, share: Sequence[Tensor | None]) -> list[Tensor]:
        """Features at full size and after each halving, (N, C, H / 2ᵏ, W / 2ᵏ); shares as of `shares`."""
        y = self.feature_ops["0"](x, share[0])
        taps: list[Tensor] = []
        for level, one in enumerate(share):
            before = self.feature_ops[str(3 * level)](taps[-1]) if taps else y
            taps.append(self.feature_ops[str(3 * level + 1)](before, one))
        return taps

    def decode(self, taps: Sequence[Tensor]) -> Tensor:
        """(N, num_classes, H, W) from the features of the encoder; linear."""
        y: Tensor | None = None
        for tap, lateral, fuse in zip(
            reversed(taps), reversed(list(self.reduce_1x1convs)), self.fuse_3x3convs, strict=True
        ):
            z = lateral(tap)
            y = fuse(z if y is None else z.add_(functional.interpolate(y, scale_factor=2, mode="nearest")))
        scores: Tensor = self.cls_pred_conv(y)
        return scores

    def for_inference(self) -> nn.Module:
        """The same function without gradients, weights copied, equal to 1e-5.

        The last convolution and the classifier, both linear, become one: of 9 classes, at full size, a fourteenth of
        the work of that convolution. On a CPU the features of a pixel lie side by side, which its convolutions take a
        tenth faster.
        """
        network = deepcopy(self).eval().requires_grad_(False)
        network.bands_last = True
        last, classifier = network.fuse_3x3convs[-1], network.cls_pred_conv
        if isinstance(last, nn.Conv2d) and isinstance(classifier, nn.Conv2d):
            network.fuse_3x3convs[-1] = _joined(last, classifier)
            network.cls_pred_conv = nn.Identity()
        return network

    def check(self, x: Tensor, valid: Tensor | None) -> None:
        """Refuse an input that does not fit.

        Raises:
            ModelError: wrong number of axes, bands or pixels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ModelError(
                f"FreeNet takes (N, {self.in_channels}, H, W); found {tuple(x.shape)}; build it with in_channels of "
                "the image, or bring the image to these bands"
            )
        if valid is not None and valid.shape != (x.shape[0], *x.shape[2:]):
            raise ModelError(f"FreeNet takes valid pixels as (N, H, W) of {tuple(x.shape)}; found {tuple(valid.shape)}")


def shares(weight: Tensor | None, levels: int) -> Sequence[Tensor | None]:
    """Share of each pixel in a mean, at full size and at every halving: (N, H / 2ᵏ, W / 2ᵏ), sum 1 each.

    Args:
        weight: (N, H, W), not negative; H and W multiples of 2 to the number of halvings. None: equal ones.
        levels: halvings and one.
    """
    if weight is None:
        return [None] * levels
    pyramid = [weight]
    for _ in range(levels - 1):
        pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
    smallest = torch.finfo(weight.dtype).tiny
    return [one / one.sum((1, 2), keepdim=True).clamp_min(smallest) for one in pyramid]


def spatial_means(x: Tensor, share: Tensor | None) -> Tensor:
    """Means over the pixels: (N, C, H, W), shares of the pixels (N, H, W) or None for equal ones → (N, C)."""
    if share is None:
        return x.mean((2, 3))
    if _lies_by_pixel(x):
        return (share[:, :, None] @ x.permute(0, 2, 3, 1)).double().sum((1, 2)).to(x.dtype)  # row by row, to be exact
    return (x.flatten(2) @ share.flatten(1)[..., None]).squeeze(2)


def _lies_by_pixel(x: Tensor) -> bool:
    """Whether the features of a pixel lie side by side in memory."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _joined(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One convolution that does what a 3 × 3 and then a 1 × 1 convolution do."""
    joined = nn.Conv2d(first.in_channels, second.out_channels, 3, padding=1, device=first.weight.device)
    project = second.weight[:, :, 0, 0].double()
    before, after = (layer.get_parameter("bias").double() for layer in (first, second))
    weight = torch.einsum("kc,cdyx->kdyx", project, first.weight.double())
    joined.to(first.weight.dtype).load_state_dict({"weight": weight, "bias": project @ before + after})
    return joined.eval().requires_grad_(False)


def _card_fields(in_channels: int = 103, num_classes: int = 9, width: float = 1.0) -> Mapping[str, Any]:
    return {"task": "segment", "bands": in_channels, "multiple": MULTIPLE, "halo": HALO}


@register_model("freenet", defaults=_card_fields)
def freenet(in_channels: int = 103, num_classes: int = 9, width: float = 1.0) -> FreeNet:
    """FreeNet: 2,712,755 parameters for the 103 bands and 9 classes of Pavia University."""
    return FreeNet(in_channels, num_classes, width)
