"""Heads behind a spectral backbone: scores of classes for every pixel, and values for a tile.

`ConvHead`, `FCNHead` and `regression_mlp` are those of SpectralEarth (Braham et al. 2024, arXiv 2408.08447), key by
key; `UPerHead` is UPerNet's (Xiao et al. 2018, arXiv 1807.10221), behind a vision transformer with a small pyramid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

CONV_FEATURES = 128
"""Of the first convolution of `ConvHead`; each further one but the last has half as many."""
FCN_REDUCTION = 8
POOLS = (1, 2, 3, 6)
"""Sides to which the deepest map is averaged, px."""
MLP = (2048, 1024)
"""Widths of the layers of `regression_mlp`."""
DROPOUT = 0.2


class ConvHead(nn.Module):
    """Doubles a map until it is as large as the image, with a 3 × 3 convolution after each step.

    Args:
        channels: of the map.
        num_classes: K.
        stride: pixels of the image to one of the map: 2, 4, 8 ...

    Raises:
        ModelError: another stride.
    """

    def __init__(self, channels: int, num_classes: int, stride: int) -> None:
        super().__init__()
        steps = stride.bit_length() - 1
        if steps < 1 or stride != 2**steps:
            raise ModelError(
                f"a conv head doubles feature maps, so their stride must be 2, 4, 8 ...; found {stride}; take head "
                "'fcn' or 'linear'"
            )
        widths = [channels, *(max(CONV_FEATURES >> step, 1) for step in range(steps - 1)), num_classes]
        layers: list[nn.Module] = []
        for step in range(steps):
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            layers.append(nn.Conv2d(widths[step], widths[step + 1], 3, padding=1))
            if step < steps - 1:
                layers += [nn.BatchNorm2d(widths[step + 1]), nn.ReLU(inplace=True)]
        self.segmentation_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) → (N, K, stride · h, stride · w)."""
        y: Tensor = self.segmentation_conv(x)
        return y


class FCNHead(nn.Sequential):
    """A 3 × 3 convolution to an eighth of the features, and one of a pixel; (N, C, h, w) → (N, K, h, w)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        inner = max(channels // FCN_REDUCTION, 1)
        conv = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, num_classes, 1))


class Pyramid(nn.Module):
    """Four sizes of maps that all have one: four times and twice as large, as it is, and half as large.

    Transposed convolutions enlarge, as behind BEiT (Bao et al. 2022, arXiv 2106.08254); no map becomes larger than the
    image.

    Args:
        channels: of each of the four maps.
        stride: pixels of the image to one of the maps.

    Raises:
        ModelError: there are not four maps.
    """

    def __init__(self, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ModelError(f"a pyramid takes four feature maps; found {len(channels)}; take head 'conv'")
        twice, once = (min(steps, stride.bit_length() - 1) for steps in (2, 1))
        enlarged = [_enlarge(channels[0], twice), _enlarge(channels[1], once)]
        self.levels = nn.ModuleList([*enlarged, nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four (N, C, h, w) → as many, of h × w times 4, 2, 1 and 1/2."""
        return [level(one) for level, one in zip(self.levels, maps, strict=True)]


class UPerHead(nn.Module):
    """Joins maps of several sizes, from the deepest, of which means over areas are seen too, up to the largest.

    Args:
        channels: of each map, the largest map first.
        num_classes: K.
        width: features of all that is inside.
        pyramid: brings maps that all have one size to several; None for maps that have them.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int, pyramid: Pyramid | None = None) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.pools = nn.ModuleList(_pooled(channels[-1], width, side) for side in POOLS)
        self.bottleneck = _conv(channels[-1] + len(POOLS) * width, width, 3)
        self.laterals = nn.ModuleList(_conv(one, width, 1) for one in channels[:-1])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in channels[:-1])
        self.fuse = _conv(len(channels) * width, width, 3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) each, the largest first → (N, K, h, w) of the largest."""
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        *larger, deepest = maps
        around = [_resized(pool(deepest), deepest) for pool in self.pools]
        joined = [self.bottleneck(torch.cat([deepest, *around], 1))]
        for lateral, one in zip(reversed(list(self.laterals)), reversed(larger), strict=True):
            joined.insert(0, lateral(one) + _resized(joined[0], one))
        smooth = [conv(one) for conv, one in zip(self.smooth, joined[:-1], strict=True)]
        every = [*smooth, joined[-1]]
        scores: Tensor = self.classifier(self.fuse(torch.cat([_resized(one, every[0]) for one in every], 1)))
        return scores


def regression_mlp(inputs: int, outputs: int) -> nn.Sequential:
    """The authors' head for values: (N, inputs) → (N, outputs)."""
    layers: list[nn.Module] = [nn.BatchNorm1d(inputs)]
    for before, after in zip((inputs, *MLP), MLP, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*layers, nn.Linear(MLP[-1], outputs))


def _enlarge(channels: int, steps: int) -> nn.Sequential:
    """Doubles a map some times."""
    layers: list[nn.Module] = []
    for step in range(steps):
        layers += [nn.BatchNorm2d(channels), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(channels, channels, 2, 2))
    return nn.Sequential(*layers)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _pooled(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """A single pixel of a single tile has no statistics of a batch, so features are normalised among themselves."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), conv, nn.GroupNorm(1, outputs), nn.ReLU(inplace=True))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
