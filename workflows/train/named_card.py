"""The card of weights to come, called by their file: known, and checked, before any training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card, problems


def named_card(out: Path, family: str, fields: Mapping[str, Any]) -> Card:
    """A card whose tag is what the file's name has behind the family.

    Raises:
        ConfigError: the file's name has no fit tag, or the fields do not go together.
    """
    tag = out.stem.removeprefix(f"{family}.") if out.stem.startswith(f"{family}.") else ""
    try:
        return Card.model_validate({**fields, "name": f"{family}.{tag}" if tag else family, "tag": tag})
    except ValidationError as error:
        raise ConfigError(f"{out}: {problems(error)}") from None
