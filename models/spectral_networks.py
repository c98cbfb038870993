"""Backbones behind a spectral adapter, as in SpectralEarth (Braham et al. 2024, arXiv 2408.08447), on timm.

`spectral_resnet50` and `spectral_vit_*` have the state dicts of the authors' classes, key by key; `spectral_timm` is
any other network of timm behind the same adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from cubeloom.errors import ModelError

from .cards import did_you_mean
from .network import Backbone, Level, Network
from .registry import register_model
from .spectral_adapter import FEATURES, FoldedAdapter, SpectralAdapter
from .spectral_checkpoints import TOLERATED, official_keys
from .spectral_earth import card_fields
from .torchvision_cure import make_torchvision_importable

make_torchvision_importable()

import timm  # noqa: E402
from timm.models.resnet import Bottleneck  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

VIT_SIZES = {
    "nano": (128, 8, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}
"""Width, depth and heads; all but the nano are the authors'."""


class SpectralNetwork(Backbone):
    """A spectral adapter, then a network of timm.

    Args:
        backbone: the network, of 128 input channels.
        name: of the attribute that holds it, which checkpoints have in their keys.
        multiple: what height and width of the input must be multiples of.
        size: the one height and width that the backbone is built for; None for any.
    """

    def __init__(self, backbone: nn.Module, name: str, multiple: int = 1, size: int | None = None) -> None:
        super().__init__()
        self.name, self.multiple, self.size = name, multiple, size
        self.spectral_adapter: SpectralAdapter | FoldedAdapter = SpectralAdapter()
        self.add_module(name, backbone)

    @property
    def backbone(self) -> Any:  # noqa: ANN401 - timm has no types
        """The network of timm."""
        return self.get_submodule(self.name)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The feature maps there are, in the order of their computation."""
        return tuple(Level(one["num_chs"], one["reduction"]) for one in self.backbone.feature_info)

    @property
    def embedding_size(self) -> int:
        """Length of the embedding of a cube."""
        return int(getattr(self.backbone, "head_hidden_size", self.backbone.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """The embedding of each cube, or its logits where the network has classes.

        Args:
            x: (N, D, H, W), standardised; D is 202 for the published weights.

        Returns:
            (N, embedding_size), or (N, classes)

        Raises:
            ModelError: x does not fit.
        """
        self.check(x)
        y: Tensor = self.backbone(self.spectral_adapter(x))
        return y

    def features(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature maps, for heads that label pixels.

        Args:
            x: as `forward` takes it.
            indices: of `levels`, ascending. None: the last of each stride; where all have one stride, as those of a
                plain vision transformer do, four evenly spaced.

        Returns:
            (N, channels, H / stride, W / stride) each. Those of a vision transformer went through its final norm.

        Raises:
            ModelError: x does not fit, or there is no such level.
        """
        self.check(x)
        maps: list[Tensor] = self.backbone.forward_intermediates(
            self.spectral_adapter(x),
            indices=self.chosen_levels(indices),
            norm=isinstance(self.backbone, VisionTransformer),
            stop_early=True,
            intermediates_only=True,
        )
        return maps

    def reset_head(self, num_classes: int) -> None:
        """Put a new, untrained linear layer behind the embedding; 0 takes it away."""
        self.backbone.reset_classifier(num_classes)

    @property
    def head(self) -> nn.Module:
        """What turns the embedding into scores or values; an identity where there is nothing."""
        return cast("nn.Module", self.backbone.get_classifier())

    def replace_head(self, make: Callable[[int], nn.Module]) -> None:
        """Put any layer behind the embedding.

        Args:
            make: makes it, from the length of the embedding.

        Raises:
            ModelError: the backbone ends in something else than a linear layer.
        """
        self.backbone.reset_classifier(1)
        linear = self.head
        name = next((name for name, module in self.backbone.named_modules() if module is linear), "")
        if not name or not isinstance(linear, nn.Linear):
            raise ModelError(f"{type(self.backbone).__name__} ends in no linear layer; choose another backbone")
        self.backbone.set_submodule(name, make(linear.in_features))

    def for_inference(self) -> "SpectralNetwork":
        """The same network with a `FoldedAdapter`: no gradients, weights copied, equal to 1e-5."""
        network = deepcopy(self).eval().requires_grad_(False)
        if isinstance(network.spectral_adapter, SpectralAdapter):
            network.spectral_adapter = network.spectral_adapter.for_inference()
        return network

    def check(self, x: Tensor) -> None:
        """Refuse an input whose height or width does not fit; the adapter looks at the rest.

        Raises:
            ModelError: H or W is no multiple of `multiple`, or not `size`.
        """
        sides = tuple(x.shape[2:])
        if self.size is not None and sides != (self.size, self.size):
            raise ModelError(
                f"this network was built for {self.size} × {self.size} px, found {tuple(x.shape)}; cut such tiles, or "
                "build it with another image_size"
            )
        if any(side % self.multiple or not side for side in sides):
            raise ModelError(
                f"this network takes (N, bands, H, W) with H and W multiples of {self.multiple}; found {tuple(x.shape)}"
            )


def _stemless_resnet50(num_classes: int, dense: bool) -> nn.Module:
    """ResNet-50 whose first block takes the adapter's features and halves them; total stride 16.

    Args:
        num_classes: of a linear layer at the end; 0 for none.
        dense: stride 1 throughout, with dilations of 1, 2, 4 and 8 in the four stages instead.
    """
    network: Any = timm.create_model("resnet50", in_chans=FEATURES, num_classes=num_classes)
    network.conv1 = network.bn1 = network.act1 = network.maxpool = nn.Identity()
    shortcut = nn.Sequential(nn.Conv2d(FEATURES, 256, 1, 2, bias=False), nn.BatchNorm2d(256))
    first: Any = Bottleneck(FEATURES, 64, 2, shortcut, base_width=256)
    for layer in first.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    network.layer1[0] = first
    channels = (FEATURES, 256, 512, 1024, 2048)
    strides = (1,) * 5 if dense else (1, 2, 4, 8, 16)
    for info, width, stride in zip(network.feature_info, channels, strides, strict=True):
        info.update(num_chs=width, reduction=stride)
    if dense:
        for number, dilation in enumerate((1, 2, 4, 8), 1):
            _dilate(network.get_submodule(f"layer{number}"), dilation)
    return cast("nn.Module", network)


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Replace the strides of a stage by a dilation of its 3 × 3 convolutions."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (dilation, dilation)


def _card_fields(num_classes: int = 0, image_size: int = 128, multiple: int = 1, **_: object) -> Mapping[str, Any]:
    task = "classify" if num_classes else "embed"
    return {**card_fields(), "task": task, "multiple": multiple, "tile": image_size, "halo": 0}


def _vit_card_fields(patch_size: int = 4, **settings: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return _card_fields(multiple=patch_size, **settings)


@register_model(
    "spectral_resnet50", defaults=partial(_card_fields, multiple=16), key_map=official_keys, tolerated=TOLERATED
)
def spectral_resnet50(num_classes: int = 0, dense: bool = False) -> SpectralNetwork:
    """Spec. RN50: 24,202,624 parameters.

    Args:
        num_classes: of a linear layer at the end; 0 for none.
        dense: features at full resolution, as the authors' segmentation has them; same weights.
    """
    return SpectralNetwork(_stemless_resnet50(num_classes, dense), "resnet")


def spectral_vit(
    size: str, num_classes: int = 0, image_size: int = 128, patch_size: int = 4, drop_path_rate: float = 0.0
) -> SpectralNetwork:
    """Spec. ViT of one of `VIT_SIZES`.

    Args:
        size: its name.
        num_classes: of a linear layer at the end; 0 for none.
        image_size: side of the images that its positions are for, px; at other sizes they are interpolated.
        patch_size: side of a token, px.
        drop_path_rate: of the last block, in training.

    Raises:
        ValueError: the patches do not fill the image.
    """
    if patch_size < 1 or image_size < patch_size or image_size % patch_size:
        raise ValueError(f"image_size {image_size} is no multiple of patch_size {patch_size}")
    width, depth, heads = VIT_SIZES[size]
    backbone = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=FEATURES,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        dynamic_img_size=True,
        drop_path_rate=drop_path_rate,
    )
    return SpectralNetwork(backbone, "vit_core", patch_size)


def _vit_family(size: str) -> Callable[..., Network]:
    def build(
        num_classes: int = 0, image_size: int = 128, patch_size: int = 4, drop_path_rate: float = 0.0
    ) -> SpectralNetwork:
        return spectral_vit(size, num_classes, image_size, patch_size, drop_path_rate)

    return build


for _size in VIT_SIZES:
    register_model(f"spectral_vit_{_size}", defaults=_vit_card_fields, key_map=official_keys, tolerated=TOLERATED)(
        _vit_family(_size)
    )


@register_model("spectral_timm", defaults=_card_fields)
def spectral_timm(
    backbone: str = "convnext_tiny", num_classes: int = 0, image_size: int = 128, drop_path_rate: float = 0.0
) -> SpectralNetwork:
    """Any network of timm behind a spectral adapter, untrained.

    Args:
        backbone: its name in timm, without a tag of weights.
        num_classes: of a linear layer at the end; 0 for none.
        image_size: side of the input, px, for networks that are built for one size.
        drop_path_rate: of the last block, in training.

    Raises:
        ModelError: timm has no such network, or it cannot give feature maps.
    """
    known = timm.list_models()
    if backbone not in known:
        raise ModelError(
            f"timm has no network {backbone!r}{did_you_mean(backbone, known) or '; see timm.list_models()'}"
        )
    config = timm.get_pretrained_cfg(backbone)
    fixed = bool(config and config.fixed_input_size)
    settings: dict[str, Any] = {"img_size": image_size} if fixed else {}
    if drop_path_rate:
        settings["drop_path_rate"] = drop_path_rate
    network = timm.create_model(backbone, in_chans=FEATURES, num_classes=num_classes, **settings)
    if not hasattr(network, "forward_intermediates"):
        raise ModelError(f"timm's {backbone} gives no feature maps; choose another, such as convnext_tiny")
    return SpectralNetwork(network, "core", size=image_size if fixed else None)
