"""Train a denoising network by a recipe."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cubeloom.models.cards import Card
from cubeloom.models.registry import create_model, model_card

from .cubes import CleanCube, training_cubes, validation_cubes
from .denoiser_recipe import DenoiserRecipe
from .eigenimages import CubeSource, ScenePool
from .keeper import Say, Stop
from .loop import LoopReport, claim, finished_before, prepare, run_loop
from .mixtures import Mixtures, load_mixtures
from .module import DenoiserModule
from .named_card import named_card
from .patches import BandPatches, ComponentPatches
from .validation import Validation


def train_denoiser(recipe: DenoiserRecipe, out: Path, say: Say = lambda _: None) -> LoopReport:
    """Train the network of a recipe, or go on where an earlier call stopped.

    Args:
        recipe: what to train on, and how.
        out: the `.safetensors` file to write. Its card and the log lie beside it; so does the folder that training
            goes on from, `<name>.training`, which may be deleted in the end.
        say: takes lines for a person.

    Raises:
        ConfigError: another recipe's training lies beside `out`, or `out` has another suffix.
        ModelError: no such family, or settings that it does not take.
        InputError: cubes that cannot be used.
    """
    card = _card(recipe, out)
    paths = claim(recipe, out)
    if report := finished_before(recipe, paths):
        return report
    prepare(recipe)
    module = DenoiserModule(create_model(recipe.model, recipe.weights, **_settings(recipe)).train(), recipe)
    cubes = training_cubes(recipe, paths.folder / "scenes")
    sources: list[CleanCube | Mixtures] = [*cubes]
    if recipe.mixtures:
        sources.append(load_mixtures(recipe.mixtures, max(recipe.patch_px)))
    validation = Validation(validation_cubes(recipe, paths.folder / "scenes"), recipe)
    facts = {"cubes": [source.name for source in sources], "validation_noisy": validation.baseline()}
    stop = Stop(recipe.minutes)
    with _batches(cubes, sources, recipe, paths.folder, stop) as batches:
        return run_loop(module, batches, recipe, paths, card, judge=validation, facts=facts, say=say, stop=stop)


def _settings(recipe: DenoiserRecipe) -> dict[str, Any]:
    return {"in_channels": recipe.channels, "num_bands": recipe.bands, **recipe.settings}


def _card(recipe: DenoiserRecipe, out: Path) -> Card:
    """The card of the weights to come; an unfit one shows before any training."""
    family, about = recipe.model, recipe.about
    eigenimages = recipe.transform == "eigenimages"
    fields = {
        **model_card(family, **_settings(recipe)).model_dump(),
        **about.model_dump(),
        "transform": recipe.transform,
        "bands": None if eigenimages else recipe.bands,
        "sigma_input": recipe.channels == 2,
        "residual_in_sigma": eigenimages,
    }
    return named_card(out, family, fields)


@contextmanager
def _batches(
    cubes: Sequence[CleanCube], sources: Sequence[CubeSource], recipe: DenoiserRecipe, folder: Path, stop: Stop
) -> Iterator[BandPatches | ComponentPatches]:
    if recipe.transform == "bands":
        yield BandPatches(cubes, recipe)
        return
    pool = ScenePool(sources, recipe, folder / "pool", stop.require_going_on)
    try:
        yield ComponentPatches(pool, recipe)
    finally:
        pool.close()
