"""What every recipe of a network's training may say on the loop; no torch here, so that recipes are read quickly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_LAST_FACTOR = {"one_cycle": 1e-4, "cosine": 1e-2}
_MULTISTEP = ((0.6, 1e-1), (0.8, 1e-2))
"""Shares of the steps from which on the learning rate is that much less (MoCo: epochs 60 and 80 of 100)."""
_POLY = 0.9
_INDECISIVE = {"minutes", "threads", "workers", "log_every", "checkpoint_every", "about"}
"""Fields that do not change the weights."""


class LoopPart(BaseModel):
    """Fields of the loop; a kind of recipe inherits them and gives its own defaults.

    Attributes:
        steps: of the optimiser.
        learning_rate: the largest.
        schedule: after `warmup` of the steps, `one_cycle` and `cosine` fall in a half cosine, to a ten-thousandth and
            to a hundredth; `multistep` falls to a tenth after 60 % of the steps and again after 80 %; `poly` falls as
            (1 - share of the steps)^0.9; `constant` stays.
        warmup: share of the steps.
        weight_decay: decoupled (AdamW) where it is not 0.
        clip: largest norm of the gradient; None for any.
        precision: of the arithmetic: `fp32` or `bf16`.
        seed: of all that is random.
        threads: of the arithmetic on a CPU; as many as there are cores where None.
        minutes: stop after so long; the same command goes on from there.
        checkpoint_every: steps.
        log_every: steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Count = 20_000
    learning_rate: Positive = 1e-3
    schedule: Literal["one_cycle", "cosine", "multistep", "poly", "constant"] = "one_cycle"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    threads: Count | None = None
    minutes: Positive | None = None
    checkpoint_every: Count = 500
    log_every: Count = 50

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """What does not fit together, of which the first is told."""
        return iter(())

    def identity(self) -> dict[str, Any]:
        """All that decides the weights: training only goes on where this is unchanged."""
        return self.model_dump(mode="json", exclude=_INDECISIVE)

    def described(self) -> dict[str, Any]:
        """What the recipe says, for a card: files by their names alone, wherever they lie."""
        said = self.model_dump(exclude={"minutes", "threads", "workers", "about"}, exclude_defaults=True)
        plain: dict[str, Any] = _plain(said)
        return plain


class StartPart(LoopPart):
    """A recipe whose network may have learnt before.

    Attributes:
        weights: start from these instead of random ones.
    """

    weights: str | None = None

    def described(self) -> dict[str, Any]:
        """What the recipe says, for a card: files by their names alone, wherever they lie."""
        return {**super().described(), "weights": self.weights and Path(self.weights).name}


def learning_rate_factor(step: int, part: LoopPart) -> float:
    """Share of the largest learning rate at a step: up in a line over the warm-up, then down by the schedule."""
    warm = max(round(part.warmup * part.steps), 1)
    if step < warm:
        return (step + 1) / warm
    if part.schedule == "constant":
        return 1.0
    if part.schedule == "multistep":
        return min((factor for share, factor in _MULTISTEP if step >= share * part.steps), default=1.0)
    done = min((step - warm) / max(part.steps - warm, 1), 1.0)
    if part.schedule == "poly":
        return float((1 - done) ** _POLY)
    last = _LAST_FACTOR[part.schedule]
    return float(last + (1 - last) * (1 + np.cos(np.pi * done)) / 2)


def weights_beside(weights: str | None, folder: Path) -> str | None:
    """Weights to start from, as `create_model` takes them: a file's path relative to `folder`, all else as it is."""
    return weights if not weights or weights == "builtin" or weights.startswith("hf:") else str(folder / weights)


def _plain(value: Any) -> Any:  # noqa: ANN401 - values of a recipe, to values of JSON
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
