"""Low-rank adapters through peft: put on a backbone's attention, and merged into plain weights to be saved."""

from copy import deepcopy
from typing import TypeVar

from torch import nn

from cubeloom.errors import ConfigError
from cubeloom.models.torchvision_cure import make_torchvision_importable

from .tune_recipe import LoraPart

make_torchvision_importable()

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
except ModuleNotFoundError as error:
    raise ConfigError(
        f"low-rank adapters need the extra: pip install 'cubeloom[train]' ({error.name} is missing)"
    ) from None

_LAYERS = {"qkv": ("qkv", "q", "k", "v"), "proj": ("proj",)}
"""Names of layers by what a recipe calls them: queries, keys and values may be of one layer or of three."""

N = TypeVar("N", bound=nn.Module)


def add_lora(network: nn.Module, part: LoraPart) -> None:
    """Put adapters on linear layers of a network's attention, in place; they alone are then trainable.

    They start as nothing: the network's outputs are unchanged.

    Raises:
        ConfigError: the network has no such layer.
    """
    layers = [layer for target in part.targets for layer in _LAYERS[target]]
    names = rf".*\.attn\.({'|'.join(layers)})"
    config = LoraConfig(r=part.rank, lora_alpha=part.alpha, lora_dropout=part.dropout, target_modules=names)
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise ConfigError(
            f"tune lora is for vision transformers: the backbone has no attention with {' or '.join(part.targets)}; "
            f"choose another way to tune ({error})"
        ) from None


def merged(network: N) -> N:
    """A copy with its adapters added to the weights they stand beside: plain layers and keys, the same function."""
    plain = deepcopy(network)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(parent), attribute, layer.get_base_layer())
    return plain
