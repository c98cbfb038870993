"""The registry: network families by name, the weights shipped with them, and how the two come together."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from cubeloom.errors import ModelError

from .cards import SUFFIX, Card, card_path, did_you_mean, problems, read_card, write_card
from .checkpoints import FILE_LIMIT, SUFFIXES, load_strictly, read_weights, weights_digest, write_weights
from .hub import PREFIX, fetch, parse_source

if TYPE_CHECKING:
    from .checkpoints import StateDict
    from .network import Network

SHIPPED = Path(__file__).parent / "weights"

_HOMES = {
    "croma_base": "croma",
    "croma_large": "croma",
    "croma_nano": "croma",
    "essaformer_x2": "essaformer",
    "essaformer_x3": "essaformer",
    "essaformer_x4": "essaformer",
    "essaformer_x8": "essaformer",
    "hsdt_s": "hsdt",
    "hsdt_m": "hsdt",
    "hsdt_l": "hsdt",
    "freenet": "freenet",
    "located": "location",
    "spectral_change": "spectral_tasks",
    "spectral_gpt_base": "spectral_gpt",
    "spectral_gpt_huge": "spectral_gpt",
    "spectral_gpt_large": "spectral_gpt",
    "spectral_regressor": "spectral_tasks",
    "spectral_resnet50": "spectral_networks",
    "spectral_segmenter": "spectral_tasks",
    "spectral_vit_nano": "spectral_networks",
    "spectral_vit_tiny": "spectral_networks",
    "spectral_vit_small": "spectral_networks",
    "spectral_vit_base": "spectral_networks",
    "spectral_vit_large": "spectral_networks",
    "spectral_vit_huge": "spectral_networks",
    "spectral_vit_giant": "spectral_networks",
    "spectral_timm": "spectral_networks",
}
"""Families of this package with the module that registers each, so that names are known before torch is imported."""


@dataclass(frozen=True)
class Family:
    """An architecture of the registry.

    Attributes:
        name: what it is called.
        build: makes the network of its settings.
        defaults: card fields of weights that come without a card, from the settings.
        key_map: turns the keys of the authors' checkpoints into ours, before they are checked.
        tolerated: beginnings of keys that a network without them leaves aside.
    """

    name: str
    build: "Callable[..., Network]"
    defaults: Callable[..., Mapping[str, Any]]
    key_map: "Callable[[StateDict], StateDict] | None"
    tolerated: tuple[str, ...] = ()

    def card(self, settings: Mapping[str, Any], sha256: str = "") -> Card:
        """The card of weights that come without one.

        Raises:
            ModelError: the family has no such setting.
        """
        self.require(settings)
        fields = {"settings": dict(settings), "sha256": sha256, **self.defaults(**settings)}
        try:
            return Card(name=self.name, family=self.name, **fields)
        except ValidationError as error:
            raise ModelError(f"model {self.name}, settings {dict(settings)}: {problems(error)}") from None

    def network(self, settings: Mapping[str, Any], *, to_load: bool = False) -> "Network":
        """An untrained network.

        Args:
            settings: of the architecture.
            to_load: all its weights will be loaded by `load_strictly`; until then it has none where it can do without.
                It has none either where torch's default device is "meta", which is for those who want shapes alone.

        Raises:
            ModelError: the settings are of a kind or size that cannot be built.
        """
        import torch

        from .outlines import without_values

        try:
            with without_values():  # what is too large is told before it is allocated
                sketch = self.build(**settings)
            size = sum(value.nbytes for value in (*sketch.parameters(), *sketch.buffers()))
            if size > FILE_LIMIT:
                raise ValueError(
                    f"its weights would take {size / 1e9:,.0f} GB; at most {FILE_LIMIT / 1e9:,.0f} are built"
                )
            without = torch.get_default_device().type == "meta" or (to_load and _all_is_weights(sketch))
            return sketch if without else self.build(**settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"model {self.name} cannot be built with settings {dict(settings)}: {error}") from error

    def translated(self, state: "StateDict", network: "Network") -> "StateDict":
        """Weights by the network's keys, without those of the tolerated that it has no place for."""
        state = self.key_map(state) if self.key_map else state
        known = network.state_dict()
        absent = tuple(part for part in self.tolerated if not any(key.startswith(part) for key in known))
        return {key: value for key, value in state.items() if key in known or not key.startswith(absent)}

    def require(self, settings: Mapping[str, Any]) -> None:
        """Check that the family has all these settings.

        Raises:
            ModelError: it has not; names the nearest.
        """
        known = inspect.signature(self.build).parameters
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known) or "."
                raise ModelError(
                    f"model {self.name}: unknown setting {name!r}{hint} Its settings: {', '.join(known) or 'none'}"
                )


@dataclass(frozen=True)
class ModelEntry:
    """A row of `list_models`: a family, or a set of weights shipped for one.

    Attributes:
        name: what `create_model` takes.
        card: of the weights; None for a family, which stands for untrained networks and weights of one's own.
    """

    name: str
    card: Card | None = None

    @property
    def family(self) -> str:
        """The architecture."""
        return self.name.partition(".")[0]


_FAMILIES: dict[str, Family] = {}
B = TypeVar("B", bound="Callable[..., Network]")


def register_model(
    name: str,
    *,
    defaults: Callable[..., Mapping[str, Any]] = lambda **_: {},
    key_map: "Callable[[StateDict], StateDict] | None" = None,
    tolerated: tuple[str, ...] = (),
) -> Callable[[B], B]:
    """Decorator of a function `(**settings) -> Network`: make it known as family `name`.

    Args:
        name: lower case letters, digits and `_`.
        defaults: `(**settings) -> fields` of the card of weights that come without one, where they differ from
            `Card`'s own; takes the same settings as the function.
        key_map: turns a state dict with the authors' keys into one with the network's.
        tolerated: beginnings of keys, after the mapping, that may stand in checkpoints and that a network without
            them leaves aside; any other key that it lacks is an error.

    Raises:
        ValueError: the name is taken, or none.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"model {name!r}: use lower case letters, digits and _")

    def add(build: B) -> B:
        home = f"{__package__}.{_HOMES[name]}" if name in _HOMES else build.__module__
        taken = _FAMILIES[name].build.__module__ if name in _FAMILIES else home
        if name in _FAMILIES or build.__module__ != home:
            raise ValueError(f"model {name!r} is registered twice: {taken} and {build.__module__}")
        _FAMILIES[name] = Family(name, build, defaults, key_map, tolerated)
        return build

    return add


def create_model(name: str, weights: str | Path | None = None, **settings: Any) -> "Network":  # noqa: ANN401
    """A network of the registry, in eval mode on the CPU.

    Args:
        name: `family`, or `family.tag` for weights that are shipped.
        weights: a file, or `hf:owner/repo/file@sha256`; None or `builtin` takes those of the tag. A family without
            tag and without weights is untrained.
        **settings: of the architecture; those that a card states need not be given again.

    Raises:
        ModelError: unknown name or setting, weights that cannot be read, are not those of their card, or are of
            another architecture; says which and what to do.
    """
    found = _find(name, weights, settings)
    network = found.family.network(found.card.settings, to_load=found.path is not None)
    if found.path is not None:
        state = read_weights(found.path, found.card.sha256)
        load_strictly(network, found.family.translated(state, network), str(found.path))
    return network.eval()


def model_card(name: str | Path, weights: str | Path | None = None, **settings: Any) -> Card:  # noqa: ANN401
    """The card of a model; its digest is that of the file as it lies there.

    Args:
        name: as for `create_model`; or weights that have a card beside them, or the card itself.
        weights: as for `create_model`.
        **settings: as for `create_model`.

    Raises:
        ModelError: as `create_model`, but for what only parsing the weights would show.
    """
    if weights is None and _names_weights(name):
        return _card_beside(name)
    if weights in (None, "builtin") and not settings and (path := _shipped().get(str(name))):
        return _checked(*_local(path))  # without a look at the architecture, which would import torch
    return _find(str(name), weights, settings).card


def list_models() -> list[ModelEntry]:
    """All families, each followed by the weights shipped for it; imports no network."""
    shipped = _shipped()
    entries = []
    for family in sorted({*_HOMES, *_FAMILIES}):
        entries.append(ModelEntry(family))
        entries += [
            ModelEntry(name, read_card(card_path(path)))
            for name, path in shipped.items()
            if name.partition(".")[0] == family
        ]
    return entries


def save_model(network: "Network", path: Path, card: Card) -> Card:
    """Write weights to `path` (`.safetensors`) and the card, with their digest in it, beside them; returns that card.

    Raises:
        ModelError: `path` has another suffix.
    """
    if path.suffix != ".safetensors":
        raise ModelError(f"weights {path}: expected a file name that ends with .safetensors")
    complete = card.model_copy(update={"sha256": write_weights(network, path)})
    write_card(complete, card_path(path))
    return complete


@dataclass(frozen=True)
class _Found:
    family: Family
    path: Path | None
    card: Card


def _all_is_weights(sketch: "Network") -> bool:
    """Whether a state dict holds all arrays of a network, so that loading one fills it."""
    from torch import Tensor

    loaded = sketch.state_dict().keys()
    kept = any(isinstance(value, Tensor) for module in sketch.modules() for value in vars(module).values())
    return not kept and all(name in loaded for name, _ in sketch.named_buffers())


def _find(name: str, weights: str | Path | None, settings: Mapping[str, Any]) -> _Found:
    family = _family(name)
    tag = name.partition(".")[2]
    if weights is None and not tag:
        return _Found(family, None, family.card(settings))
    if weights is None or weights == "builtin":
        path, digest = _local(_shipped_path(name))
    elif tag:
        raise ModelError(
            f"model {name!r} stands for the shipped weights {tag!r}, and weights {weights} were given too; for these "
            f"name the family alone: {family.name!r}"
        )
    else:
        path, digest = _local(weights)
    if not card_path(path).exists():
        return _Found(family, path, family.card(settings, digest))
    card = _checked(path, digest)
    if card.family != family.name:
        raise ModelError(f"weights {path} are of family {card.family!r}, not {family.name!r}, as their card says")
    family.require({**card.settings, **settings})
    for key, value in settings.items():
        if card.settings.get(key, value) != value:
            raise ModelError(f"weights {path}: their card says {key}={card.settings[key]!r}, not {value!r}")
    return _Found(family, path, card.model_copy(update={"settings": {**card.settings, **settings}}))


def _family(name: str) -> Family:
    family = name.partition(".")[0]
    if family in _HOMES and family not in _FAMILIES:
        import_module(f".{_HOMES[family]}", __package__)
    if family not in _FAMILIES:
        known = sorted({*_HOMES, *_FAMILIES})
        hint = did_you_mean(name, [*known, *_shipped()]) or "."
        raise ModelError(f"unknown model {name!r}{hint} Families: {', '.join(known)}")
    return _FAMILIES[family]


def _shipped() -> dict[str, Path]:
    """Weights that come with the package, by name."""
    return {path.name.removesuffix(SUFFIX): _weights_of(path) for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}


def _weights_of(card: Path) -> Path:
    return card.with_name(card.name.removesuffix(SUFFIX) + ".safetensors")


def _shipped_path(name: str) -> Path:
    shipped = _shipped()
    if name not in shipped:
        family = name.partition(".")[0]
        listed = ", ".join(one for one in shipped if one.partition(".")[0] == family) or "none"
        hint = did_you_mean(name, shipped) or "."
        raise ModelError(f"no weights {name!r} are shipped{hint} Of {family}: {listed}")
    return shipped[name]


def _local(weights: str | Path) -> tuple[Path, str]:
    """The file of weights, fetched first where they lie on a hub, and the digest it must have when it is parsed."""
    if str(weights).startswith(PREFIX):
        source = parse_source(str(weights))
        return fetch(source), source.sha256
    return Path(weights), weights_digest(Path(weights))


def _names_weights(name: str | Path) -> bool:
    """Whether a model is named by its file or hub source rather than by its registered name."""
    return isinstance(name, Path) or name.startswith(PREFIX) or "/" in name or name.endswith((*SUFFIXES, SUFFIX))


def _card_beside(source: str | Path) -> Card:
    if str(source).endswith(SUFFIX):
        return read_card(Path(source))
    path, digest = _local(source)
    if not card_path(path).exists():
        raise ModelError(
            f"weights {path} have no card beside them ({card_path(path).name}); name their family too, such as "
            f"model_card('hsdt_s', {str(source)!r})"
        )
    return _checked(path, digest)


def _checked(path: Path, digest: str) -> Card:
    """The card beside weights, which must be theirs."""
    card = read_card(card_path(path))
    if card.sha256 != digest:
        raise ModelError(
            f"weights {path}: sha256 is {digest}, their card {card_path(path).name} says {card.sha256 or 'none'}; one "
            "of the two was changed or cut short: fetch both again"
        )
    return card
