"""SpectralGPT (Hong et al., TPAMI 46(8), 2024, arXiv 2311.07113): a transformer whose tokens are cubes.

A token is of a few neighbouring bands and a square of pixels; its position is the sum of one along the spectrum and
one in the image. The state dict is that of the encoder in the authors' files, key by key.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .croma import S2_MEAN, S2_STD, optical_bands, scaled
from .network import Backbone, Level
from .packed_linear import pack
from .registry import register_model
from .spectral_gpt_layers import EPSILON, Block, initialise, patches, position_table, resized, separable_positions

Positions = Literal["separable", "joint"]
Statistics = Literal["image", "dataset"]
Joined = Literal["mean", "concat"]

SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
"""Width, depth and heads."""
BANDS = 12
"""Of Sentinel-2 without B10, as the authors have them."""

TOLERATED = ("mask_token", "decoder_", "head.", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_joint")
"""Beginnings of keys that a network without them leaves aside: of pretraining, a classifier's head, other positions."""
_SEPARABLE = ("pos_embed_spatial", "pos_embed_temporal")
_NO_RANGE = 1e-10
"""Added to the range of a band, as the authors do: a band of one value is 0."""


class SpectralGpt(Backbone):
    """The encoder, and a linear layer behind the mean of its tokens where there are classes.

    Args:
        size: one of `SIZES`.
        bands: of the input.
        group: neighbouring bands of a token.
        image_size: side of the images that the positions are for, px; for others they are interpolated.
        patch_size: side of a token, px.
        num_classes: of the linear layer; 0 for none.
        positions: `separable`, as they are pretrained. `joint` is the authors' classifier: it leaves those aside for a
            table with a row for each token, which is 0 at first, and its mean leaves out the first token.
        statistics: how `forward` and `features` scale an image to [0, 1]: by the least and largest value of each band
            in it (`image`), as the authors pretrain, or by the card's mean and standard deviation (`dataset`).
        joined: what a feature map holds of the groups of bands at a place: their `mean`, or all, one after another.

    Raises:
        ModelError: no such positions, statistics or way to join.
        ValueError: sizes that do not fit together.
    """

    channels: int

    def __init__(
        self,
        size: str = "base",
        bands: int = BANDS,
        group: int = 3,
        image_size: int = 128,
        patch_size: int = 8,
        num_classes: int = 0,
        positions: Positions = "separable",
        statistics: Statistics = "image",
        joined: Joined = "mean",
    ) -> None:
        super().__init__()
        _require("positions", positions, Positions)
        _require("statistics", statistics, Statistics)
        _require("joined", joined, Joined)
        _require_multiple("bands", bands, "group", group)
        _require_multiple("image_size", image_size, "patch_size", patch_size)
        self.channels, self.group, self.multiple = bands, group, patch_size
        self.positions, self.statistics, self.joined = positions, statistics, joined
        self.groups, self.side = bands // group, image_size // patch_size
        self.width, depth, heads = SIZES[size]
        shape = (group, patch_size, patch_size)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(1, self.width, shape, shape)})
        if positions == "separable":
            self.pos_embed_spatial = position_table(self.side**2, self.width)
            self.pos_embed_temporal = position_table(self.groups, self.width)
        else:
            self.pos_embed_joint = nn.Parameter(torch.zeros(1, self.groups * self.side**2, self.width))
        self.blocks = nn.ModuleList(Block(self.width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(self.width, EPSILON)
        nn.init.xavier_uniform_(self.projection.weight.view(self.width, -1))
        initialise(self.blocks)
        self.reset_head(num_classes)

    @property
    def projection(self) -> nn.Conv3d:
        """From the values of a token to its features."""
        layer = self.patch_embed["proj"]
        assert isinstance(layer, nn.Conv3d)
        return layer

    @property
    def levels(self) -> tuple[Level, ...]:
        """One feature map for each block."""
        channels = self.width * (self.groups if self.joined == "concat" else 1)
        return (Level(channels, self.multiple),) * len(self.blocks)

    @property
    def embedding_size(self) -> int:
        """Length of the embedding of a cube."""
        return self.width

    @property
    def head(self) -> nn.Module:
        """What turns the embedding into scores; an identity where there is nothing."""
        found = self._modules["head"]
        assert found is not None
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The embedding of each cube, or its logits where the network has classes.

        Args:
            x: (N, bands, H, W), standardised as the card says.

        Returns:
            (N, embedding_size), or (N, classes)

        Raises:
            ModelError: x is of another shape.
        """
        tokens = self.embedded(self.scaled(x))
        for block in self.blocks:
            tokens = block(tokens)
        first = 1 if self.positions == "joint" else 0
        y: Tensor = self.head(self.norm(tokens[:, first:].mean(1)))
        return y

    def features(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps, for heads that label pixels.

        Args:
            x: as `forward` takes it.
            indices: of `levels`, ascending; four evenly spaced where None.

        Returns:
            (N, channels, H / patch_size, W / patch_size) each, through the final norm.

        Raises:
            ModelError: x does not fit, or there is no such level.
        """
        chosen, maps = self.chosen_levels(indices), []
        tokens = self.embedded(self.scaled(x))
        shape = (self.groups, x.shape[2] // self.multiple, x.shape[3] // self.multiple)
        for number, block in enumerate(self.blocks[: chosen[-1] + 1]):
            tokens = block(tokens)
            if number in chosen:
                places = self.norm(tokens).view(len(x), *shape, -1).permute(0, 1, 4, 2, 3)
                maps.append(places.mean(1) if self.joined == "mean" else places.flatten(1, 2))
        return maps

    def encode(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """The tokens of an image behind the final norm.

        Args:
            image: (N, bands, H, W) in [0, 1]: see `scaled`.
            kept: (N, n), indices of the tokens that there shall be; None for all.

        Returns:
            (N, n, width), or of all tokens, by group of bands, row and column.

        Raises:
            ModelError: the image is of another shape.
        """
        tokens = self.embedded(image, kept)
        for block in self.blocks:
            tokens = block(tokens)
        y: Tensor = self.norm(tokens)
        return y

    def embedded(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """What goes into the first block; arguments and result as of `encode`."""
        self._check(image)
        values = patches(image, self.group, self.multiple)
        places = self._places(image.shape[2] // self.multiple, image.shape[3] // self.multiple)
        if kept is not None:
            values, places = (one.take_along_dim(kept[..., None], 1) for one in (values, places))
        return functional.linear(values, self.projection.weight.flatten(1), self.projection.bias) + places

    def scaled(self, x: Tensor) -> Tensor:
        """A standardised cube as the encoder takes it, in [0, 1], by the network's `statistics`."""
        if self.statistics == "dataset":
            return scaled(x)
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (x - low) / (high - low + _NO_RANGE)

    def reset_head(self, num_classes: int) -> None:
        """Put a new, untrained linear layer behind the embedding; 0 takes it away."""
        head = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()
        if isinstance(head, nn.Linear):
            nn.init.normal_(head.weight, std=0.02)
        self._modules["head"] = head  # by this way, for `head` itself is a property of all backbones

    def for_inference(self) -> "SpectralGpt":
        """The same network without gradients, weights copied, equal to 1e-5, its linear layers packed on a CPU."""
        network = deepcopy(self).eval().requires_grad_(False)
        pack(network)
        return network

    def _places(self, rows: int, cols: int) -> Tensor:
        if self.positions == "separable":
            return separable_positions(self.pos_embed_temporal, self.pos_embed_spatial, rows, cols)
        return resized(self.pos_embed_joint.view(self.groups, -1, self.width), rows, cols).flatten(0, 1)[None]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels or any(side % self.multiple or not side for side in x.shape[2:]):
            raise ModelError(
                f"this SpectralGPT takes (N, {self.channels}, H, W) with H and W multiples of {self.multiple}; found "
                f"{tuple(x.shape)}"
            )


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by our keys, from those of the authors' pretraining or of their classifier.

    Their classifier calls its own positions `pos_embed`. Where a file has separable ones alone, joint ones are 0, as
    that classifier starts; a network with separable positions leaves them aside.
    """
    found = {("pos_embed_joint" if key == "pos_embed" else key): value for key, value in state.items()}
    if "pos_embed_joint" not in found and all(key in found for key in _SEPARABLE):
        spatial, spectral = (found[key] for key in _SEPARABLE)
        found["pos_embed_joint"] = spatial.new_zeros(1, spectral.shape[1] * spatial.shape[1], spatial.shape[2])
    return found


def _require(what: str, value: str, known: Any) -> None:  # noqa: ANN401 - a Literal
    if value not in get_args(known):
        raise ModelError(f"SpectralGPT has no {what} {value!r}; expected {' or '.join(get_args(known))}")


def _require_multiple(what: str, whole: int, of: str, part: int) -> None:
    if part < 1 or whole < part or whole % part:
        raise ValueError(f"{what} {whole} is no multiple of {of} {part}")


def _card_fields(
    bands: int = BANDS, image_size: int = 128, patch_size: int = 8, num_classes: int = 0, **_: object
) -> Mapping[str, Any]:
    task = "classify" if num_classes else "embed"
    common = {"task": task, "tile": image_size, "halo": 0, "multiple": patch_size, "bands": bands}
    if bands != BANDS:
        return common
    known = optical_bands()
    return {
        **common,
        "sensor": "Sentinel-2",
        "variable": "reflectance",
        "units": "1",
        "wavelengths_nm": (known.wavelengths_nm[0], known.wavelengths_nm[-1]),
        "input_bands": known,
        "mean": S2_MEAN,
        "std": S2_STD,
    }


def _family(size: str) -> Callable[..., SpectralGpt]:
    def build(
        bands: int = BANDS,
        group: int = 3,
        image_size: int = 128,
        patch_size: int = 8,
        num_classes: int = 0,
        positions: Positions = "separable",
        statistics: Statistics = "image",
        joined: Joined = "mean",
    ) -> SpectralGpt:
        return SpectralGpt(size, bands, group, image_size, patch_size, num_classes, positions, statistics, joined)

    return build


for _size in SIZES:
    register_model(f"spectral_gpt_{_size}", defaults=_card_fields, key_map=official_keys, tolerated=TOLERATED)(
        _family(_size)
    )
