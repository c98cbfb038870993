"""ESSAformer (Zhang, Zhang, Dai, Cheng, Zhou and Zhang, ICCV 2023): one image with many bands, some times finer.

The state dict is that of the authors' classes, key by key and shape by shape. Their attention takes means over all
pixels that it is given (see `Attention`), so what it says of a pixel depends on the tile around it. With
`statistics="running"` the means are those of the training instead, and the network looks no farther than its
convolutions do.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .network import Network
from .registry import register_model

Statistics = Literal["tile", "running"]

SLOPE = 0.2
"""Of the leaky rectifiers."""
DROPOUT = 0.2
_MOMENTUM = 0.02
"""Share of a batch in the running means."""
UP_VISITS, DOWN_VISITS = 3, 2
"""How often the refinements on the fine and on the coarse grid are passed; their weights are the same each time."""
_TINY_SUM, _TINY_NORM = 1e-7, 1e-12


class Attention(nn.Module):
    """Attention among channels by the squares of centred queries and keys (paper, section 3.3, eq. 7 to 11).

    With q̂ = q² / Σ_c q², of unit length over the channels, and k̂ = k² / Σ_c k², a pixel gets v + q̂ · C. The context
    C = Σ_n k̂ₙᵀ vₙ / (√(Σ_n k̂ₙ²) √N) holds sums over all N pixels; written with means it is
    C = E[k̂ᵀ v] / √E[k̂²]: no number of pixels is left in it, but it is the mean of this tile.

    Attributes:
        scatter: running mean of k̂ᵀ v at each visit, (visits, C, C); None where the means are the tile's.
        power: running mean of k̂², (visits, C); likewise.
        seen: batches in these means, (visits,); likewise.
    """

    scatter: Tensor | None
    power: Tensor | None
    seen: Tensor | None

    def __init__(self, width: int, visits: int, statistics: Statistics) -> None:
        super().__init__()
        self.lnqkv = nn.Linear(width, 3 * width)
        self.ln = nn.Linear(width, width)
        running = statistics == "running"
        self.register_buffer("scatter", torch.zeros(visits, width, width) if running else None)
        self.register_buffer("power", torch.zeros(visits, width) if running else None)
        self.register_buffer("seen", torch.zeros(visits) if running else None)

    def forward(self, tokens: Tensor, visit: int) -> Tensor:
        """Tokens (N, pixel, C) to tokens; `visit` counts how often the network was here before."""
        query, key, value = self.lnqkv(tokens).chunk(3, -1)
        query = functional.normalize(_shares(query), dim=-1, eps=_TINY_NORM)
        attended: Tensor = self.ln(value + query @ self.context(_shares(key), value, visit))
        return attended

    def context(self, key: Tensor, value: Tensor, visit: int) -> Tensor:
        """C of this tile, (N, C, C), or that of the running means, (C, C), which training moves towards the tile's."""
        if self.scatter is not None and self.power is not None and not self.training:
            return settled(self.scatter[visit], self.power[visit])
        scatter, power = key.transpose(-2, -1) @ value / key.shape[-2], key.square().mean(-2)
        if self.training:
            self._keep(scatter.detach().float().mean(0), power.detach().float().mean(0), visit)
        return settled(scatter, power)

    def _keep(self, scatter: Tensor, power: Tensor, visit: int) -> None:
        """Move the running means towards those of a batch: by equal shares at first, then by a fixed one."""
        if self.scatter is None or self.power is None or self.seen is None:
            return
        share = (1 / (self.seen[visit] + 1)).clamp_min(_MOMENTUM)
        self.scatter[visit].lerp_(scatter, share)
        self.power[visit].lerp_(power, share)
        self.seen[visit] += 1


def settled(scatter: Tensor, power: Tensor) -> Tensor:
    """The context E[k̂ᵀ v] / √E[k̂²]."""
    return scatter / power.sqrt().clamp_min(_TINY_NORM)[..., None]


def _shares(x: Tensor) -> Tensor:
    """Squares about the mean over the last axis, over their sum."""
    squares = (x - x.mean(-1, keepdim=True)).square()
    return squares / (squares.sum(-1, keepdim=True) + _TINY_SUM)


class Refinement(nn.Module):
    """Attention, then three convolutions of its result beside the input, added to the input.

    Args:
        width: C, channels.
        visits: how often the network passes here.
        convolutions: what the authors call them: `convu` on the fine grid, `convd` on the coarse one.
        statistics: over which pixels the attention takes means.
        dropout: chance that a channel is left out while training.
    """

    def __init__(self, width: int, visits: int, convolutions: str, statistics: Statistics, dropout: float) -> None:
        super().__init__()
        self.convolutions = convolutions
        layers = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 1),
            nn.LeakyReLU(SLOPE),
            nn.Dropout2d(dropout),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Dropout2d(dropout),
            nn.Conv2d(2 * width, width, 1),
        )
        self.add_module(convolutions, layers)
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width, visits, statistics)
        self.drop = nn.Dropout2d(dropout)

    @property
    def layers(self) -> nn.Sequential:
        """The convolutions, under whatever name."""
        layers = self.get_submodule(self.convolutions)
        assert isinstance(layers, nn.Sequential)
        return layers

    def forward(self, x: Tensor, visit: int) -> Tensor:
        """(N, C, H, W) to the same."""
        attended = self.attn(self.norm(x.flatten(2).transpose(1, 2)), visit)
        image = self.drop(attended.transpose(1, 2).reshape(x.shape))
        refined: Tensor = self.layers(torch.cat((image, x), 1))
        return refined + x


class Resampling(nn.Sequential):
    """Convolutions with what moves channels to pixels, or back, in steps of two (of three for a scale of 3)."""

    def __init__(self, width: int, scale: int, *, finer: bool) -> None:
        step = 3 if scale == 3 else 2
        layers: list[nn.Module] = []
        for _ in range(1 if scale == 3 else scale.bit_length() - 1):
            if finer:
                layers += [nn.Conv2d(width, step**2 * width, 3, padding=1), nn.PixelShuffle(step)]
            else:
                layers += [nn.Conv2d(width, width // step**2, 3, padding=1), nn.PixelUnshuffle(step)]
        super().__init__(*layers)


class IterativeBlock(nn.Module):
    """To the fine grid and back, two and a half times, with the same weights (paper, section 3.2)."""

    def __init__(self, width: int, scale: int, statistics: Statistics, dropout: float) -> None:
        super().__init__()
        self.convup = Refinement(width, UP_VISITS, "convu", statistics, dropout)
        self.convdown = Refinement(width, DOWN_VISITS, "convd", statistics, dropout)
        self.convupsample = Resampling(width, scale, finer=True)
        self.convdownsample = Resampling(width, scale, finer=False)

    def forward(self, coarse: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, scale H, scale W)."""
        fine: Tensor = self.convup(self.convupsample(coarse), 0)
        for visit in range(DOWN_VISITS):
            coarse = self.convdown(self.convdownsample(fine) + coarse, visit)
            fine = self.convup(self.convupsample(coarse) + fine, visit + 1)
        return fine


class ESSAformer(Network):
    """The network; as published for 128 bands, width 256 and scale 4.

    Args:
        bands: of the image, in and out.
        width: C, a multiple of 4; of 9 for a scale of 3.
        scale: 2, 3, 4 or 8.
        statistics: the attention takes means over the `tile`, as published, or those of the training (`running`).
        skip: what comes out is added to the image enlarged by cubic convolution. The authors' network has none and
            must learn to enlarge first.
        dropout: chance that a channel is left out while training.
    """

    def __init__(
        self,
        bands: int = 128,
        width: int = 256,
        scale: int = 4,
        statistics: Statistics = "tile",
        skip: bool = False,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        if min(bands, width) < 1 or scale not in (2, 3, 4, 8) or width % (9 if scale == 3 else 4):
            raise ValueError(
                f"bands {bands}, width {width}, scale {scale}; expected a scale of 2, 3, 4 or 8 and a width that is a "
                f"multiple of {9 if scale == 3 else 4}"
            )
        if statistics not in ("tile", "running"):
            raise ValueError(f"statistics is tile or running; found {statistics!r}")
        self.bands, self.width, self.scale, self.skip = bands, width, scale, skip
        self.statistics: Statistics = statistics
        self.conv_first = nn.Conv2d(bands, width, 3, padding=1)
        self.blockup = IterativeBlock(width, scale, statistics, dropout)
        self.conv_last = nn.Conv2d(width, bands, 3, padding=1)
        if skip:
            nn.init.zeros_(self.conv_last.weight)
            nn.init.zeros_(self.conv_last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The finer image.

        Args:
            x: (N, bands, H, W).

        Returns:
            (N, bands, scale H, scale W)

        Raises:
            ModelError: x is of another shape.
        """
        self.check(x)
        made: Tensor = self.conv_last(self.blockup(self.conv_first(x)))
        return made + enlarged(x, self.scale) if self.skip else made

    def for_inference(self) -> nn.Module:
        """The same function on a CPU in a fraction of the memory, with fewer multiplications; equal to 1e-5."""
        from .essaformer_strips import InStrips

        return InStrips(self)

    def check(self, x: Tensor) -> None:
        """Refuse an input that does not fit.

        Raises:
            ModelError: wrong number of axes or bands.
        """
        if x.ndim != 4 or x.shape[1] != self.bands:
            raise ModelError(f"ESSAformer takes (N, {self.bands}, H, W); found {tuple(x.shape)}")


def enlarged(x: Tensor, scale: int) -> Tensor:
    """Cubic convolution with a = -1/2, as the stage `superres` has it (torch's antialiasing kernel is that one)."""
    return functional.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True, align_corners=False)


def reach(scale: int, *, skip: bool) -> int:
    """Pixels of the input beyond its own that a pixel of the output depends on through the convolutions.

    Followed from the last convolution back: each 3 x 3 reaches one pixel of its grid; on the way to the coarser grid
    an interval is filled up to whole pixels, since these are what `PixelShuffle` makes finer ones of.
    """
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)

    def before_up(low: int, high: int) -> tuple[int, int]:
        for step in steps:
            low, high = low // step - 1, high // step + 1
        return low, high

    def before_down(low: int, high: int) -> tuple[int, int]:
        for step in steps:
            low, high = low * step - 1, high * step + step
        return low, high

    reaches = []
    for phase in range(scale):
        low, high = phase - 2, phase + 2  # the last convolution, and the last refinement
        for _ in range(DOWN_VISITS):
            coarse_low, coarse_high = before_up(low, high)
            low, high = before_down(coarse_low - 1, coarse_high + 1)
            low, high = low - 1, high + 1
        low, high = before_up(low, high)
        reaches += [1 - low, high + 1]  # and the first convolution
    return max(*reaches, 2 if skip else 0)


def _card_fields(
    scale: int,
    bands: int = 128,
    width: int = 256,
    statistics: Statistics = "tile",
    skip: bool = False,
    dropout: float = DROPOUT,
) -> Mapping[str, Any]:
    free = reach(scale, skip=skip) if statistics == "running" else None
    return {"task": "superres", "bands": bands, "scale": scale, "tile": 128, "halo": 16, "reach": free}


@register_model("essaformer_x2", defaults=partial(_card_fields, 2))
def essaformer_x2(
    bands: int = 128, width: int = 256, statistics: Statistics = "tile", skip: bool = False, dropout: float = DROPOUT
) -> ESSAformer:
    """Twice finer: 9,132,992 parameters as published."""
    return ESSAformer(bands, width, 2, statistics, skip, dropout)


@register_model("essaformer_x3", defaults=partial(_card_fields, 3))
def essaformer_x3(
    bands: int = 128, width: int = 252, statistics: Statistics = "tile", skip: bool = False, dropout: float = DROPOUT
) -> ESSAformer:
    """Three times finer; a width of 252, since one of 256 has no ninth."""
    return ESSAformer(bands, width, 3, statistics, skip, dropout)


@register_model("essaformer_x4", defaults=partial(_card_fields, 4))
def essaformer_x4(
    bands: int = 128, width: int = 256, statistics: Statistics = "tile", skip: bool = False, dropout: float = DROPOUT
) -> ESSAformer:
    """Four times finer: 11,640,832 parameters as published."""
    return ESSAformer(bands, width, 4, statistics, skip, dropout)


@register_model("essaformer_x8", defaults=partial(_card_fields, 8))
def essaformer_x8(
    bands: int = 128, width: int = 256, statistics: Statistics = "tile", skip: bool = False, dropout: float = DROPOUT
) -> ESSAformer:
    """Eight times finer: 14,148,672 parameters as published."""
    return ESSAformer(bands, width, 8, statistics, skip, dropout)
