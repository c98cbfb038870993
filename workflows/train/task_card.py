"""The card of a segmenter to come, from that of its backbone."""

from pathlib import Path
from typing import Any

from cubeloom.models.cards import Card, CardClass
from cubeloom.models.registry import model_card
from cubeloom.models.spectral_tasks import BLENDED

from .named_card import named_card
from .tune_data import CHANNELS


def segmenter_card(base: Card, out: Path, head: str, classes: tuple[CardClass, ...]) -> Card:
    """The card of a backbone with a head that labels pixels.

    Args:
        base: of the backbone.
        out: the weights' file, whose name tells the tag.
        head: which.
        classes: in the order of its scores.

    Raises:
        ConfigError: the file's name has no fit tag.
    """
    settings = {key: value for key, value in base.settings.items() if key != "num_classes"}
    whole: dict[str, Any] = {"backbone": base.family, "backbone_settings": settings, "head": head}
    family, whole["num_classes"] = "spectral_segmenter", len(classes)
    channels = {name: getattr(base, name) for name in CHANNELS}
    fields = {**model_card(family, **whole).model_dump(), **channels, "classes": classes, "licence": base.licence}
    return named_card(out, family, {**fields, "tile": base.tile, "halo": base.tile // BLENDED})
