"""Pretrain a spectral backbone on images without labels, by a recipe."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card
from cubeloom.models.registry import create_model, model_card

from .cross_modal import CrossModalModule
from .dino import DinoModule
from .keeper import Say
from .locations import load_locations
from .loop import Batches, LoopReport, claim, finished_before, prepare, run_loop
from .mae import MaeModule
from .mae_3d import Mae3dModule
from .moco import MocoModule
from .named_card import named_card
from .pretrain_module import PretrainModule
from .pretrain_recipe import CrossModal, Dino, Mae, Mae3d, Moco, PretrainRecipe
from .views import Views

_OF_ONE_SIZE = ("spectral_vit_", "spectral_timm")
"""Families, or beginnings of them, that are built for a size of image."""
_OF_ANY_SIZE = "spectral_gpt_"
"""Beginning of families that interpolate their positions, so that weights learn on with views of another size."""
_MODULES: Mapping[type, Callable[[Any, PretrainRecipe, Card, Any], PretrainModule]] = {
    Mae: MaeModule,
    Moco: MocoModule,
    Dino: DinoModule,
    Mae3d: Mae3dModule,
    CrossModal: CrossModalModule,
}
"""Networks in training by the method's part of a recipe: of the network, the recipe, the card and that part."""


def pretrain(recipe: PretrainRecipe, out: Path, say: Say = lambda _: None) -> LoopReport:
    """Pretrain the backbone of a recipe, or go on where an earlier call stopped.

    Args:
        recipe: what to learn from, and how.
        out: the `.safetensors` file to write, with the encoder alone. Its card and the log lie beside it; so does the
            folder that training goes on from, `<name>.training`, which may be deleted in the end.
        say: takes lines for a person.

    Raises:
        ConfigError: another recipe's training lies beside `out`, `out` has another suffix, or the method is not for
            this network.
        ModelError: no such family, or settings that it does not take.
        InputError: images that cannot be used.
    """
    card = _card(recipe, out)
    paths = claim(recipe, out)
    if report := finished_before(recipe, paths):
        return report
    prepare(recipe)
    module = _module(recipe, card)
    locations = load_locations(recipe.data, card, recipe.edge, paths.folder / "images")
    module.look_at(locations)
    facts = {"places": len(locations), **({"note": recipe.about.note} if recipe.about.note else {})}
    views = Views(locations, recipe, recipe.method.views)
    with _ahead(views, recipe.workers, recipe.steps) as batches:
        return run_loop(module, batches, recipe, paths, card, facts=facts, say=say)


def _module(recipe: PretrainRecipe, card: Card) -> PretrainModule:
    """The network in training, drawn by the seed."""
    network = create_model(recipe.model, recipe.weights, **_settings(recipe)).train()
    return _MODULES[type(recipe.method)](network, recipe, card, recipe.method)


def _settings(recipe: PretrainRecipe) -> dict[str, Any]:
    sized = {"image_size": recipe.size} if recipe.model.startswith(_OF_ONE_SIZE) else {}
    if recipe.model.startswith(_OF_ANY_SIZE) and recipe.weights is None:
        sized = {"image_size": recipe.size}
    return {**sized, **recipe.settings}


def _card(recipe: PretrainRecipe, out: Path) -> Card:
    """The card of the weights to come; an unfit one shows before any training."""
    family = recipe.model.partition(".")[0]
    base = model_card(recipe.model, recipe.weights, **_settings(recipe))
    if base.task != "embed" or base.input_bands is None:
        raise ConfigError(f"model {recipe.model} is no spectral backbone; choose one, such as spectral_vit_small")
    fields = {
        **base.model_dump(),
        "family": family,
        "task": "embed",
        "tile": recipe.about.tile or recipe.size,
        "licence": recipe.about.licence,
    }
    return named_card(out, family, fields)


@contextmanager
def _ahead(batches: Views, workers: int, steps: int) -> Iterator[Batches]:
    """The same batches, prepared ahead by threads."""
    if not workers:
        yield batches
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="views")
    try:
        yield _Ahead(batches.batch, pool, workers, steps)
    finally:
        pool.shutdown(cancel_futures=True)


class _Ahead:
    """Batches of which the next ones are being made."""

    def __init__(self, make: Callable[[int], Tensor], pool: ThreadPoolExecutor, count: int, steps: int) -> None:
        self.make, self.pool, self.count, self.steps = make, pool, count, steps
        self.coming: dict[int, Future[Tensor]] = {}

    def batch(self, step: int) -> Tensor:
        """The batch of a step."""
        for number in range(step, min(step + self.count, self.steps)):
            if number not in self.coming:
                self.coming[number] = self.pool.submit(self.make, number)
        return self.coming.pop(step).result()
