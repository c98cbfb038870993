"""What methods of every evaluation have in common: how they are listed and shown, and what is said of their weights."""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cubeloom.errors import ConfigError, CubeloomError
from cubeloom.models.cards import did_you_mean


class Parsed(NamedTuple):
    """A method as the user wrote it, in parts."""

    kind: str
    model: str
    options: dict[str, str]


def listed(text: str, known: Collection[str]) -> list[str]:
    """Names of methods from `one,two`.

    Args:
        text: as the user wrote it.
        known: names to propose where there is none.

    Raises:
        ConfigError: one comes twice, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--methods: {twice[0]!r} comes twice")
    if not names:
        raise ConfigError(f"--methods names no method; expected some of {', '.join(known)}")
    return names


def parsed(name: str, known: Collection[str], bare: Mapping[str, str] = MappingProxyType({})) -> Parsed:
    """A method's parts, from `KIND[:MODEL][+KEY[=VALUE]]...`.

    Args:
        name: as the user wrote it.
        known: kinds.
        bare: values of keys that come without one, where that is not `true`.

    Raises:
        ConfigError: there is no such kind.
    """
    start, *texts = re.split(r"\+(?=\w)", name)  # SpectralGPT+.pth is one name
    kind, _, model = start.partition(":")
    if kind not in known:
        raise ConfigError(
            f"--methods: {kind!r} is not known{did_you_mean(kind, known)}; expected some of {', '.join(known)}"
        )
    pairs = (text.partition("=")[::2] for text in texts)
    options = {key.strip(): value.strip() for key, value in pairs}
    return Parsed(kind, model, {key: value or bare.get(key, "true") for key, value in options.items()})


def label(name: str) -> str:
    """A method's name for tables and figures, in which files stand without their folders."""
    return re.sub(r"(?<=[@=:])[^@=+]*/", "", name)


def network_of(text: str) -> dict[str, str]:
    """The parameters `model` and `weights` of `MODEL[@WEIGHTS]`; none where there is no text."""
    model, _, weights = text.partition("@")
    return ({"model": model} if model else {}) | ({"weights": weights} if weights else {})


def digest_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """`sha256` of the weights that parameters name by `model` and `weights`; nothing where they name none."""
    if "model" not in parameters:
        return {}
    from cubeloom.models.registry import model_card

    try:
        return {"sha256": model_card(parameters["model"], parameters.get("weights")).sha256}
    except CubeloomError:  # its scores say why
        return {}
