"""Train a network for super-resolution by a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card
from cubeloom.models.essaformer import Attention, ESSAformer
from cubeloom.models.essaformer_widen import widened
from cubeloom.models.network import Network
from cubeloom.models.registry import create_model, model_card

from .keeper import Say, Stop
from .loop import LoopReport, claim, finished_before, prepare, run_loop
from .module import LOSSES, AveragedModule, moving_average
from .named_card import named_card
from .superres_data import FineCube, Standard, SuperresJudge, SuperresPatches, fine_cubes, ground_cubes
from .superres_recipe import SuperresRecipe


class SuperresModule(AveragedModule):
    """A network that learns the fine cube from the coarse one."""

    def __init__(self, network: Network, recipe: SuperresRecipe) -> None:
        super().__init__(network, recipe)
        self.recipe: SuperresRecipe = recipe
        self.loss = LOSSES[recipe.loss]
        self.average = moving_average(network, recipe.ema) if recipe.ema else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 - see `SuperresPatches`
        """Seed what the network draws; take the running means once they are to be held."""
        if self.global_step >= self.recipe.hold * self.recipe.steps:
            for part in self.network.modules():
                if isinstance(part, Attention):
                    part.eval()
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        coarse, fine = batch
        return self.loss(self.network(coarse), fine)


def train_superres(recipe: SuperresRecipe, out: Path, say: Say = lambda _: None) -> LoopReport:
    """Train the network of a recipe, or go on where an earlier call stopped.

    Args:
        recipe: what to train on, and how.
        out: the `.safetensors` file to write. Its card and the log lie beside it; so does the folder that training
            goes on from, `<name>.training`, which may be deleted in the end.
        say: takes lines for a person.

    Raises:
        ConfigError: another recipe's training lies beside `out`, `out` has another suffix, or the model is for another
            task.
        ModelError: no such family, or settings that it does not take.
        InputError: cubes that cannot be used.
    """
    scale = _scale(recipe)
    paths = claim(recipe, out)
    if report := finished_before(recipe, paths):
        return report
    prepare(recipe)
    chosen, folder = recipe.validation, paths.folder / "scenes"
    cubes = fine_cubes(recipe.cubes, recipe.scenes, folder)
    kept = fine_cubes(chosen.cubes, chosen.scenes, folder)
    start = model_card(recipe.model, recipe.weights) if recipe.weights else None
    if recipe.ground:
        like = cubes[0].bands if cubes else start.input_bands if start else None
        cubes += ground_cubes(recipe.ground, like, recipe, scale)
    standard = Standard.of_card(start) if start and start.mean else Standard.of(cubes)
    settings = {**recipe.settings, "bands": len(cubes[0].values)}
    card = _card(recipe, out, settings, cubes, standard)
    module = SuperresModule(_begun(recipe, settings, start).train(), recipe)
    judge = SuperresJudge(kept, standard, recipe, scale)
    facts: dict[str, Any] = {"cubes": [cube.name for cube in cubes], "validation_bicubic": judge.baseline()}
    if start and start.training:
        facts["before"] = dict(start.training)  # else the card would not tell where the weights come from
    batches = SuperresPatches(cubes, standard, recipe, scale)
    return run_loop(module, batches, recipe, paths, card, judge=judge, facts=facts, say=say, stop=Stop(recipe.minutes))


def _scale(recipe: SuperresRecipe) -> int:
    card = model_card(recipe.model, **recipe.settings)
    if card.task != "superres":
        raise ConfigError(f"model {recipe.model!r} is for the task {card.task}; this recipe trains superres")
    return card.scale


def _begun(recipe: SuperresRecipe, settings: dict[str, Any], start: Card | None) -> Network:
    """The network to train: new, as another training left it, or widened from that."""
    before = start.settings.get("width") if start else None
    width = settings.get("width")
    if not isinstance(before, int) or not isinstance(width, int) or width == before or width % before:
        return create_model(recipe.model, recipe.weights, **settings)
    narrow = create_model(recipe.model, recipe.weights, **{**settings, "width": before})
    assert isinstance(narrow, ESSAformer)
    return widened(narrow, width // before, recipe.seed)


def _card(
    recipe: SuperresRecipe, out: Path, settings: dict[str, Any], cubes: Sequence[FineCube], standard: Standard
) -> Card:
    """The card of the weights to come; an unfit one shows before any training."""
    family, bands = recipe.model, cubes[0].bands
    about = recipe.about.model_dump()
    if bands is not None and about["wavelengths_nm"] is None:
        about["wavelengths_nm"] = (bands.wavelengths_nm[0], bands.wavelengths_nm[-1])
    fields = {
        **model_card(family, **settings).model_dump(),
        **about,
        "input_bands": bands,
        "mean": tuple(map(float, standard.mean)),
        "std": tuple(map(float, standard.std)),
    }
    return named_card(out, family, fields)
