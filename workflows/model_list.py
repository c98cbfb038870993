"""`cubeloom models list` and `cubeloom models info`: which networks there are, and what a model's card says."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cubeloom.models.registry import ModelEntry, create_model, list_models, model_card

from .console import print_table

CLASSIFIER = ".skops"
LISTED = 8
"""Values of a list that are shown in full; of a longer one the ends."""


def describe_models() -> list[dict[str, Any]]:
    """Every family, followed by its shipped weights with their cards, as a JSON value."""
    return [
        {"name": entry.name, "family": entry.family, "card": entry.card and entry.card.model_dump(mode="json")}
        for entry in list_models()
    ]


def print_models() -> None:
    """Every family and its shipped weights, for a person."""
    columns = ("name", "task", "trained for", "wavelengths nm", "sees", "licence", "sha256")
    print_table("models", columns, [_row(entry) for entry in list_models()])


def _row(entry: ModelEntry) -> Sequence[str]:
    card = entry.card
    if card is None:
        return entry.name, "", "(architecture alone)", "", "", "", ""
    span = "{:.0f}-{:.0f}".format(*card.wavelengths_nm) if card.wavelengths_nm else "any"
    sees = f"{card.bands or 'any number of'} {card.transform}"
    return entry.name, card.task, card.sensor or "any sensor", span, sees, card.licence, card.sha256[:8]


def describe_model(name: str, weights: str | None = None) -> dict[str, Any]:
    """The card of a network or of a saved classifier as a JSON value; of a network with its number of `parameters`.

    Args:
        name: a registered name, weights with a card, a card, or a classifier that `cubeloom train` made.
        weights: those of a family, where they have no card.

    Raises:
        ModelError: there is no such model, or its files are not what they should be.
    """
    if weights is None and name.endswith(CLASSIFIER):
        from cubeloom.models.classifiers import read_card

        return read_card(name)
    card = model_card(name, weights)
    network = create_model(card.family, None, **card.settings)
    return {**card.model_dump(mode="json"), "parameters": sum(value.numel() for value in network.parameters())}


def print_model(description: Mapping[str, Any]) -> None:
    """A card for a person."""
    title = str(description.get("name") or description.get("estimator", ""))
    print_table(title, ("", ""), list(_rows(description)))


def _rows(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What a card states, with the names of nested values joined by dots."""
    for key, value in card.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield prefix + key, _listed(value)
        elif value not in (None, ""):
            yield prefix + key, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _listed(values: Sequence[Any]) -> str:
    shown = [str(value.get("name", value)) if isinstance(value, Mapping) else str(value) for value in values]
    if len(shown) > LISTED:
        return f"{shown[0]} ... {shown[-1]} ({len(shown)})"
    return ", ".join(shown)
