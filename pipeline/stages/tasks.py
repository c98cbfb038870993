"""Which networks a stage takes: those of its own task, by their cards."""

from cubeloom.errors import ModelError
from cubeloom.models.cards import Card

_ADVICE = {
    "denoise": "the stage denoise runs such networks",
    "segment": "the stage classify runs such networks",
    "embed": "the stage embed runs such networks",
    "superres": "the stage superres runs such networks",
}
_OF_TILES = (
    "such a network answers for a whole tile, not for its pixels: call it from Python with "
    "cubeloom.models.registry.create_model"
)


def require_task(card: Card, stage: str, task: str) -> None:
    """Check that a network is for the task of a stage.

    Raises:
        ModelError: it is for another; says what to do with it.
    """
    if card.task != task:
        raise ModelError(
            f"{stage}: model {card.name} is for the task {card.task}, this stage takes {task}; "
            f"{_ADVICE.get(card.task, _OF_TILES)}"
        )


def require_weights(card: Card, stage: str) -> None:
    """Check that a network has been trained.

    Raises:
        ModelError: the name stands for an architecture alone.
    """
    if not card.sha256:
        raise ModelError(
            f"{stage}: model {card.name!r} has no weights, so it would give noise; name weights that are shipped "
            "(`cubeloom models list`), or a file with `weights`"
        )
