"""CROMA (Fuller, Millard and Green, NeurIPS 2023, arXiv 2311.00566): tokens of Sentinel-1, of Sentinel-2, and of both.

The state dict is that of the authors' five parts, each behind its name in their files. Attention has a bias that falls
with the distance between patches (2-D ALiBi, section 3 of the paper) instead of positions, so any image goes in whose
height and width are multiples of 8.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .cards import InputBands
from .croma_layers import HEADS, PATCH, Encoder, Transformer, alibi
from .network import Backbone, Level
from .packed_linear import PackedLinear, pack
from .registry import register_model

Modality = Literal["joint", "optical", "radar"]
Statistics = Literal["dataset", "batch"]

SIZES = {"nano": (128, 8), "base": (768, 12), "large": (1024, 24)}
"""Width, and depth of the optical encoder; the two others are half as deep. The nano is not the authors'."""
TILE = 120
"""Side of the images that the authors trained with, px."""
CHANNELS = {"joint": 14, "optical": 12, "radar": 2}
"""Of the input; the joint one has the optical channels first, as the authors' pretraining has them."""

POLARISATIONS = ("VV", "VH")
S2_NUMBERS = (*range(1, 10), 10, 12, 13)
"""Bands B01 to B08, B8A, B09, B11 and B12 by their numbers in a scene; cirrus, B10, is left out."""
_S2_CENTRES = (442.7, 492.7, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1, 1613.7, 2202.4)
_S2_WIDTHS = (20, 65, 35, 30, 14, 14, 19, 105, 20, 19, 90, 174)
"""Of Sentinel-2A, nm."""

_S2_MEAN = (752.401, 884.297, 1144.162, 1297.473, 1624.910, 2194.642, 2422.212, 2517.761, 2581.647, 2645.519, 2368.512)
_S2_STD = (1108.029, 1155.152, 1183.629, 1368.114, 1370.265, 1355.554, 1416.515, 1474.789, 1439.309, 1582.280, 1455.521)
S2_MEAN, S2_STD = (tuple(value / 1e4 for value in every) for every in ((*_S2_MEAN, 1805.068), (*_S2_STD, 1343.484)))
S1_MEAN, S1_STD = (-12.54847, -20.19237), (5.25698, 5.91151)
"""Over SSL4EO-S12, with which the authors trained: surface reflectance, and VV and VH in dB.

As its authors' `ssl4eo_dataset.py` (zhu-xlab/SSL4EO-S12) has them to more decimals, of digital numbers
without offset there.
"""

PARTS = ("s1_encoder.", "s1_GAP_FFN.", "s2_encoder.", "s2_GAP_FFN.", "joint_encoder.")
"""Of the authors' files; a network of one sensor has two of them."""
TOLERATED = (*PARTS, "decoder.", "global_contrast_loss.")
"""What a network without it leaves aside: parts, and what only the pretraining needs."""
_TRAINED = {
    "radar_encoder.": "s1_encoder.",
    "optical_encoder.": "s2_encoder.",
    "cross_encoder.": "joint_encoder.",
    "GAP_FFN_radar.": "s1_GAP_FFN.",
    "GAP_FFN_optical.": "s2_GAP_FFN.",
    "GAP_FFN_s1.": "s1_GAP_FFN.",
    "GAP_FFN_s2.": "s2_GAP_FFN.",
}
"""Names of the parts in the authors' pretraining and in their class, by those of the files."""
_LAYERS = {".create_qkv.": ".to_qkv.", ".create_q.": ".to_q.", ".create_k.": ".to_k.", ".create_v.": ".to_v."} | {
    ".out.": ".to_out.",
    ".net.2.": ".net.3.",
}


@dataclass(frozen=True)
class Encodings:
    """Tokens, `(N, rows · cols, width)`, of patches row by row; None of what there is no input for.

    Attributes:
        radar: of the radar encoder.
        optical: of the optical encoder.
        joint: of the encoder that sees both, at the places of the radar's.
    """

    radar: Tensor | None = None
    optical: Tensor | None = None
    joint: Tensor | None = None


class Croma(Backbone):
    """The encoders of two sensors and of both.

    Args:
        size: one of `SIZES`.
        modality: what goes in: both sensors, or one, whose encoder alone is built.
        statistics: by which `forward` and `features` scale an image: those of the card, or of the batch itself, as the
            authors do; then an image's embedding depends on what else is in its batch.
        eight_bit: round scaled values down to 256 levels, as the authors may.
        num_classes: of a linear layer behind the embedding; 0 for none.

    Raises:
        ModelError: no such size, modality or statistics.
    """

    def __init__(
        self,
        size: str = "base",
        modality: Modality = "joint",
        statistics: Statistics = "dataset",
        eight_bit: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _require("size", size, SIZES)
        _require("modality", modality, CHANNELS)
        _require("statistics", statistics, get_args(Statistics))
        self.modality, self.statistics, self.eight_bit = modality, statistics, eight_bit
        self.multiple, self.channels = PATCH, CHANNELS[modality]
        self.width, depth = SIZES[size]
        if modality != "optical":
            self.s1_encoder = Encoder(self.width, depth // 2, CHANNELS["radar"])
            self.s1_GAP_FFN = _summary(self.width)
        if modality != "radar":
            self.s2_encoder = Encoder(self.width, depth, CHANNELS["optical"])
            self.s2_GAP_FFN = _summary(self.width)
        if modality == "joint":
            self.joint_encoder = Transformer(self.width, depth // 2, cross=True)

        self.reset_head(num_classes)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Of the tokens after each block of the encoder that comes last."""
        return (Level(self.width, PATCH),) * len(self._last.layers)

    @property
    def embedding_size(self) -> int:
        """Length of the embedding of an image."""
        return self.width

    @property
    def head(self) -> nn.Module:
        """The linear layer behind the embedding; an identity where there is none."""
        return self.get_submodule("classifier") if "classifier" in self._modules else nn.Identity()

    def reset_head(self, num_classes: int) -> None:
        """Put a new, untrained linear layer behind the embedding; 0 takes it away."""
        self._modules.pop("classifier", None)
        if num_classes:
            self.classifier = nn.Linear(self.width, num_classes)

    @property
    def of_batch(self) -> bool:
        """Whether images are scaled by the statistics of their batch."""
        return self.statistics == "batch"

    def pair_bytes(self, height: int, width: int) -> int:
        """Of the bias, and of its copy that hides patches, float32."""
        return 2 * 4 * HEADS * ((height // PATCH) * (width // PATCH)) ** 2

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The embedding of each image: of the sensor whose encoder there is, or of both; or its scores.

        Args:
            x: (N, `CHANNELS`, H, W), standardised as the card says, the optical channels before VV and VH.
            valid: (N, H, W) bool: patches without any such pixel are left out. None: all count.

        Returns:
            (N, embedding_size), or (N, num_classes)

        Raises:
            ModelError: x, or `valid`, is of another shape.
        """
        found = self.encode(*self.images(x), valid)
        tokens = {"joint": found.joint, "optical": found.optical, "radar": found.radar}[self.modality]
        y = token_mean(_there(tokens), None if valid is None else _patches_with(valid))
        if self.modality != "joint":
            y = (self.s1_GAP_FFN if self.modality == "radar" else self.s2_GAP_FFN)(y)
        made: Tensor = self.head(y)
        return made

    def features(self, x: Tensor, indices: Sequence[int] | None = None, valid: Tensor | None = None) -> list[Tensor]:
        """The tokens after blocks of the last encoder as maps, for heads that label pixels.

        Args:
            x: as `forward` takes it.
            indices: of `levels`, ascending. None: four evenly spaced.
            valid: (N, H, W) bool: no token sees a patch without any such pixel. None: all count.

        Returns:
            (N, width, H / 8, W / 8) each; all went through the encoder's final norm.

        Raises:
            ModelError: x does not fit, or there is no such level.
        """
        chosen = self.chosen_levels(indices)
        maps = [self._last.norm_out(tokens) for at, tokens in enumerate(self._stream(x, valid)) if at in chosen]
        rows, cols = (side // PATCH for side in x.shape[2:])
        return [one.transpose(1, 2).reshape(len(x), self.width, rows, cols) for one in maps]

    def encode(
        self, radar: Tensor | None = None, optical: Tensor | None = None, valid: Tensor | None = None
    ) -> Encodings:
        """Tokens of each sensor given, and of both where the network has a joint encoder.

        Args:
            radar: (N, 2, H, W), VV and VH, in [0, 1]: see `scaled`.
            optical: (N, 12, H, W) in [0, 1], of the same ground.
            valid: (N, H, W) bool: no token sees a patch without any such pixel, though it has a token itself. Of an
                image without any such pixel all patches count. None: all count.

        Raises:
            ModelError: no image, one that the network has no encoder for, or another shape.
        """
        bias = self._bias(radar, optical, valid)
        of_radar = None if radar is None else self.s1_encoder(radar, bias)
        of_optical = None if optical is None else self.s2_encoder(optical, bias)
        if of_radar is None or of_optical is None:
            return Encodings(of_radar, of_optical)
        return Encodings(of_radar, of_optical, self.joint_encoder(of_radar, bias, of_optical))

    def for_inference(self) -> "Croma":
        """The same network without gradients, weights copied, equal to 1e-5, its linear layers packed on a CPU."""
        network = deepcopy(self).eval().requires_grad_(False)
        pack(network)
        return network

    @property
    def _last(self) -> Transformer:
        """The blocks behind which there are no others."""
        if self.modality == "joint":
            return self.joint_encoder
        return (self.s1_encoder if self.modality == "radar" else self.s2_encoder).transformer

    def _stream(self, x: Tensor, valid: Tensor | None) -> Iterator[Tensor]:
        """Tokens after each of those blocks."""
        radar, optical = self.images(x)
        bias = self._bias(radar, optical, valid)
        if radar is not None and optical is not None:
            return self.joint_encoder.blocks(self.s1_encoder(radar, bias), bias, self.s2_encoder(optical, bias))
        embedded = self.s2_encoder.embedded(_there(optical)) if radar is None else self.s1_encoder.embedded(radar)
        return self._last.blocks(embedded, bias)

    def images(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Radar and optical part of the input, scaled to 0-1, as `encode` takes them.

        Raises:
            ModelError: x is of another shape.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ModelError(
                f"CROMA for modality {self.modality!r} takes (N, {self.channels}, H, W); found {tuple(x.shape)}; give "
                "it 12 bands of Sentinel-2, or VV and VH, or both in this order"
            )
        image = scaled(standardised(x) if self.of_batch else x, eight_bit=self.eight_bit)
        if self.modality == "radar":
            return image, None
        optical, radar = image[:, : CHANNELS["optical"]], image[:, CHANNELS["optical"] :]
        return radar if self.modality == "joint" else None, optical

    def _bias(self, radar: Tensor | None, optical: Tensor | None, valid: Tensor | None) -> Tensor:
        """Of attention, once the images are checked; it hides patches without a valid pixel."""
        height, width = self._checked({"radar": radar, "optical": optical}, valid)
        like = radar if radar is not None else _there(optical)
        bias = alibi(height // PATCH, width // PATCH, like.device, like.dtype)
        return bias if valid is None else bias.masked_fill(~_patches_with(valid)[:, None, None], -torch.inf)

    def _checked(self, images: Mapping[str, Tensor | None], valid: Tensor | None) -> tuple[int, int]:
        """Height and width of the images, which are of one shape but for their channels."""
        given = {name: image for name, image in images.items() if image is not None}
        if not given:
            raise ModelError("CROMA: no image; give radar, optical, or both")
        shapes = {name: tuple(image.shape) for name, image in given.items()}
        for name, shape in shapes.items():
            if self.modality not in (name, "joint"):
                raise ModelError(f"this CROMA is for {self.modality} alone; build it with modality='joint' or '{name}'")
            if len(shape) != 4 or shape[1] != CHANNELS[name] or any(side % PATCH or not side for side in shape[2:]):
                raise ModelError(
                    f"CROMA takes {name} images (N, {CHANNELS[name]}, H, W) with H and W multiples of {PATCH}; found "
                    f"{shape}"
                )
        grounds = {(shape[0], *shape[2:]) for shape in shapes.values()}
        if len(grounds) > 1 or (valid is not None and tuple(valid.shape) not in grounds):
            pixels = "" if valid is None else f", valid pixels {tuple(valid.shape)}"
            raise ModelError(f"CROMA takes images of one N, H and W; found {shapes}{pixels}")
        ((_, height, width),) = grounds
        return height, width


def scaled(x: Tensor, *, eight_bit: bool = False) -> Tensor:
    """Standardised values as the encoders take them: two standard deviations below the mean are 0, two above are 1.

    Args:
        x: of any shape.
        eight_bit: round down to 256 levels.
    """
    y = ((x + 2) / 4).clamp(0, 1)
    return (y * 255).floor() / 255 if eight_bit else y


def standardised(x: Tensor) -> Tensor:
    """Each channel of (N, C, H, W) with mean 0 and standard deviation 1 over the batch, as the authors scale it.

    A channel of one value is 0; the authors' answer is NaN there.
    """
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    constant = x.amax((0, 2, 3), keepdim=True) == x.amin((0, 2, 3), keepdim=True)
    return torch.where(constant, 0, (x - mean) / torch.where(constant, 1, std))


def token_mean(tokens: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mean over tokens, (N, T, width), or over those kept, (N, T) bool → (N, width)."""
    if kept is None:
        return tokens.mean(1)
    share = kept.to(tokens.dtype)
    share = share / share.sum(1, keepdim=True)
    return (share[:, None] @ tokens).squeeze(1)


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the keys of the released files, from those of the pretraining and of the authors' class too.

    Where two would have one key the second keeps its own: strict loading then refuses the file.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        part = next((one for one in _TRAINED if key.startswith(one)), "")
        ours = key if not part else _TRAINED[part] + key.removeprefix(part)
        for theirs, layer in _LAYERS.items() if part else ():
            ours = ours.replace(theirs, layer)
        found[key if ours in found else ours] = value
    return found


@cache
def optical_bands() -> InputBands:
    """The twelve bands of Sentinel-2, with the centres and widths of unit A."""
    return InputBands(numbers=S2_NUMBERS, wavelengths_nm=_S2_CENTRES, fwhm_nm=_S2_WIDTHS)


def _summary(width: int) -> nn.Sequential:
    """What follows the mean over an encoder's tokens."""
    return nn.Sequential(nn.LayerNorm(width), PackedLinear(width, 4 * width), nn.GELU(), PackedLinear(4 * width, width))


def _patches_with(valid: Tensor) -> Tensor:
    """Patches (N, T) with any valid pixel of (N, H, W); all, where there is none in an image."""
    kept = functional.max_pool2d(valid[:, None].float(), PATCH).flatten(1) > 0
    return kept | ~kept.any(1, keepdim=True)


def _there(tokens: Tensor | None) -> Tensor:
    assert tokens is not None
    return tokens


def _require(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ModelError(f"CROMA has no {what} {value!r}; expected {', '.join(known)}")


def _card_fields(modality: Modality = "joint", num_classes: int = 0, **_: object) -> Mapping[str, Any]:
    _require("modality", modality, CHANNELS)
    task = "classify" if num_classes else "embed"
    common: dict[str, Any] = {"task": task, "tile": TILE, "halo": 0, "multiple": PATCH, "bands": CHANNELS[modality]}
    of_radar: dict[str, Any] = {"polarisations": POLARISATIONS}
    of_optical: dict[str, Any] = {
        "variable": "reflectance",
        "units": "1",
        "wavelengths_nm": (_S2_CENTRES[0], _S2_CENTRES[-1]),
        "input_bands": optical_bands(),
    }
    if modality == "radar":
        alone = {"sensor": "Sentinel-1", "variable": "sigma0", "units": "dB", "mean": S1_MEAN, "std": S1_STD}
        return common | of_radar | alone
    if modality == "optical":
        return common | of_optical | {"sensor": "Sentinel-2", "mean": S2_MEAN, "std": S2_STD}
    both: dict[str, Any] = {"sensor": "Sentinel-2 and Sentinel-1", "mean": S2_MEAN + S1_MEAN, "std": S2_STD + S1_STD}
    return common | of_radar | of_optical | both


@register_model("croma_nano", defaults=_card_fields, key_map=official_keys, tolerated=TOLERATED)
def croma_nano(
    modality: Modality = "joint", statistics: Statistics = "dataset", eight_bit: bool = False, num_classes: int = 0
) -> Croma:
    """CROMA of width 128, to try things out with; arguments as of `Croma`."""
    return Croma("nano", modality, statistics, eight_bit, num_classes)


@register_model("croma_base", defaults=_card_fields, key_map=official_keys, tolerated=TOLERATED)
def croma_base(
    modality: Modality = "joint", statistics: Statistics = "dataset", eight_bit: bool = False, num_classes: int = 0
) -> Croma:
    """CROMA of width 768: 194,365,440 parameters; arguments as of `Croma`."""
    return Croma("base", modality, statistics, eight_bit, num_classes)


@register_model("croma_large", defaults=_card_fields, key_map=official_keys, tolerated=TOLERATED)
def croma_large(
    modality: Modality = "joint", statistics: Statistics = "dataset", eight_bit: bool = False, num_classes: int = 0
) -> Croma:
    """CROMA of width 1024: 672,557,056 parameters; arguments as of `Croma`."""
    return Croma("large", modality, statistics, eight_bit, num_classes)
