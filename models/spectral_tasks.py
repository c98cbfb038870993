"""Backbones with a head: classes of pixels (`spectral_segmenter`) or of their change, values (`spectral_regressor`).

Their state dicts are those of SpectralEarth's classes (Braham et al. 2024, arXiv 2408.08447), key by key, where these
have such a head. A tile's class or labels need no family of their own: a backbone with `num_classes` gives them.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ModelError

from .heads import ConvHead, FCNHead, Pyramid, UPerHead, regression_mlp
from .network import Backbone, Network
from .registry import create_model, model_card, register_model
from .spectral_checkpoints import TOLERATED, official_keys, task_keys
from .spectral_networks import SpectralNetwork

Head = Literal["conv", "fcn", "upernet", "linear"]
HEADS: tuple[Head, ...] = get_args(Head)
BACKBONE = "spectral_vit_nano"
WIDTH = 256
"""Features inside a UPerNet head."""
BLENDED = 8
"""Tiles are blended over this part of their side: what is near the edge of one has seen little around it."""


class SpectralSegmenter(Network):
    """A backbone and a head that gives every pixel the scores of the classes.

    Its `head` is `classifier` in the state dict of an FCN, as in the authors'.

    Args:
        encoder: the backbone; a head of its own is not used.
        head: `conv` doubles the last map in steps, `fcn` and `linear` enlarge its scores at once, `upernet` joins maps
            of several sizes.
        num_classes: K.
        head_width: features inside `upernet`.

    Raises:
        ModelError: there is no such head, or it does not go with the backbone's strides.
        ValueError: no class, or no feature.
    """

    head: nn.Module

    def __init__(self, encoder: Backbone, head: Head, num_classes: int, head_width: int = WIDTH) -> None:
        super().__init__()
        if head not in HEADS:
            raise ModelError(f"there is no head {head!r}; expected {', '.join(HEADS)}")
        if num_classes < 1 or head_width < 1:
            raise ValueError("num_classes and head_width are at least 1")
        self.encoder = encoder
        self.indices = encoder.default_levels() if head == "upernet" else [len(encoder.levels) - 1]
        last = encoder.levels[-1]
        if head == "conv":
            self.head = ConvHead(last.channels, num_classes, last.stride)
        elif head == "linear":
            self.head = nn.Conv2d(last.channels, num_classes, 1)
        elif head == "upernet":
            self.head = _uper_head(encoder, self.indices, num_classes, head_width)
        else:
            self.classifier = FCNHead(last.channels, num_classes)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as of nn.Module
        """A module by its name; the head by `head` too where the authors call it `classifier`."""
        fcn = name == "head" and "classifier" in self.__dict__.get("_modules", ())
        return super().__getattr__("classifier" if fcn else name)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes before the softmax.

        Args:
            x: (N, D, H, W), as the backbone takes it.

        Returns:
            (N, K, H, W)

        Raises:
            ModelError: x does not fit.
        """
        maps = self.maps(x)
        scores: Tensor = self.head(maps if isinstance(self.head, UPerHead) else maps[0])
        if scores.shape[2:] == x.shape[2:]:
            return scores
        return functional.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What the head sees of the input of `forward`."""
        return self.encoder.features(x, self.indices)

    def for_inference(self) -> "SpectralSegmenter":
        """The same network without gradients, weights copied, equal to 1e-5; see `SpectralNetwork.for_inference`."""
        network = deepcopy(self).eval().requires_grad_(False)
        network.encoder = cast("Backbone", network.encoder.for_inference())
        return network

    @property
    def of_batch(self) -> bool:
        """Whether the backbone's features are."""
        return self.encoder.of_batch

    def pair_bytes(self, height: int, width: int) -> int:
        """Those of the backbone."""
        return self.encoder.pair_bytes(height, width)


class SpectralChange(SpectralSegmenter):
    """A backbone that sees two dates, each by itself, and a head that labels pixels by how its features differ.

    So does SpectralGPT's change detection (Hong et al. 2024, arXiv 2311.07113). `forward` takes (N, 2 · D, H, W): the
    channels of one date, and behind them those of the other.
    """

    def maps(self, x: Tensor) -> list[Tensor]:
        """Features of the first date less those of the second."""
        if x.ndim != 4 or x.shape[1] % 2:
            raise ModelError(f"a network of two dates takes (N, 2 · bands, H, W); found {tuple(x.shape)}")
        first, second = (self.encoder.features(date, self.indices) for date in x.chunk(2, 1))
        return [one - other for one, other in zip(first, second, strict=True)]


def _uper_head(encoder: Backbone, indices: list[int], num_classes: int, width: int) -> UPerHead:
    levels = [encoder.levels[index] for index in indices]
    channels = [level.channels for level in levels]
    pyramid = Pyramid(channels, levels[0].stride) if len({level.stride for level in levels}) == 1 else None
    return UPerHead(channels, num_classes, width, pyramid)


def _require_family(name: str, settings: Mapping[str, Any] | None) -> None:
    """Refuse what would be overwritten: weights of a backbone alone, and a head of its own."""
    if "." in name:
        raise ModelError(f"backbone {name!r} names weights; name its family alone, and load the weights of the whole")
    if "num_classes" in (settings or {}):
        raise ModelError("backbone_settings: num_classes is of the head; give it beside backbone")


def _backbone(name: str, settings: Mapping[str, Any] | None) -> Backbone:
    """A backbone of the registry, untrained and without a head.

    Raises:
        ModelError: there is none, or its settings are wrong.
    """
    _require_family(name, settings)
    network = create_model(name, **settings or {})
    if not isinstance(network, Backbone):
        raise ModelError(f"backbone {name!r} gives no feature maps; expected one that does, such as {BACKBONE}")
    return network


def _card_fields(
    task: str, backbone: str = BACKBONE, backbone_settings: Mapping[str, Any] | None = None, **_: object
) -> Mapping[str, Any]:
    """Those of the backbone, but for the task."""
    _require_family(backbone, backbone_settings)
    card = model_card(backbone, **backbone_settings or {})
    of_weights = {"name", "family", "tag", "settings", "sha256", "licence", "training", "metrics", "log"}
    halo = card.tile // BLENDED if task == "segment" else 0
    return {
        **{name: getattr(card, name) for name in type(card).model_fields if name not in of_weights},
        "task": task,
        "halo": halo,
    }


def _segmenter_fields(**settings: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return _card_fields("segment", **settings)


def _change_fields(**settings: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return {**_segmenter_fields(**settings), "dates": 2}


def _regressor_fields(**settings: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return _card_fields("regress", **settings)


@register_model("spectral_segmenter", defaults=_segmenter_fields, key_map=task_keys, tolerated=("loss.",))
def spectral_segmenter(
    backbone: str = BACKBONE,
    backbone_settings: Mapping[str, Any] | None = None,
    head: Head = "conv",
    num_classes: int = 2,
    head_width: int = WIDTH,
) -> SpectralSegmenter:
    """A class for every pixel.

    Args:
        backbone: a family of `spectral_networks`, or another one that gives feature maps, such as `croma_base`.
        backbone_settings: its settings; `{"dense": True}` for `spectral_resnet50` with `fcn`, as the authors have it.
        head: `conv`, the authors' for transformers, `fcn`, theirs for the ResNet, `upernet` or `linear`.
        num_classes: K.
        head_width: features inside `upernet`.

    Raises:
        ModelError: no such backbone or head, or the two do not go together.
    """
    return SpectralSegmenter(_backbone(backbone, backbone_settings), head, num_classes, head_width)


@register_model("spectral_change", defaults=_change_fields)
def spectral_change(
    backbone: str = BACKBONE,
    backbone_settings: Mapping[str, Any] | None = None,
    head: Head = "conv",
    num_classes: int = 2,
    head_width: int = WIDTH,
) -> SpectralChange:
    """A class of change for every pixel of two dates; arguments and errors as of `spectral_segmenter`."""
    return SpectralChange(_backbone(backbone, backbone_settings), head, num_classes, head_width)


@register_model("spectral_regressor", defaults=_regressor_fields, key_map=official_keys, tolerated=TOLERATED)
def spectral_regressor(
    backbone: str = BACKBONE, backbone_settings: Mapping[str, Any] | None = None, outputs: int = 1
) -> SpectralNetwork:
    """Values of a tile, by the authors' perceptron behind the embedding.

    Args:
        backbone: a family of `spectral_networks`.
        backbone_settings: its settings.
        outputs: values of each tile.

    Raises:
        ModelError: no such backbone, or no head can be put behind it.
        ValueError: no output.
    """
    if outputs < 1:
        raise ValueError("outputs is at least 1")
    network = _backbone(backbone, backbone_settings)
    if not isinstance(network, SpectralNetwork):
        raise ModelError(f"backbone {backbone!r} takes no head for values; expected a spectral one, such as {BACKBONE}")
    network.replace_head(lambda inputs: regression_mlp(inputs, outputs))
    return network
