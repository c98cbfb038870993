"""Tune a spectral backbone, with a head, to a task: all of it, some of it, or low-rank additions to it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card, card_path, read_card
from cubeloom.models.location import Located
from cubeloom.models.network import Backbone, Network
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.models.spectral_tasks import BLENDED

from .keeper import Say
from .loop import LoopModule, LoopPaths, LoopReport, claim, finished_before, prepare, run_loop
from .named_card import named_card
from .tune_data import TuneData, tune_data
from .tune_recipe import TuneRecipe
from .tune_tasks import BestKeeper, Loss, evaluate, loss_of
from .tune_tiles import TileBatches

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TuneModule(LoopModule):
    """A network of which some parts learn; the others do not change by a bit.

    Args:
        network: of the task; which of its parameters learn is decided here, and low-rank adapters are put on.
        recipe: how.
        loss: of the task.

    Raises:
        ConfigError: the backbone has no such parts.
    """

    def __init__(self, network: Network, recipe: TuneRecipe, loss: Loss) -> None:
        super().__init__(network, recipe)
        self.tuning, self.loss = recipe, loss
        choose_learning(network, recipe)

    @property
    def trained(self) -> Network:
        """The network, low-rank adapters merged into its weights."""
        if self.tuning.tune != "lora":
            return self.network
        from .lora import merged

        return merged(self.network)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 - the loop's
        """Seed what the step draws, and hold the parts that do not learn."""
        super().on_train_batch_start(batch, batch_idx)
        set_modes(self.network, drifting_norms=self.tuning.drifting_norms)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        cubes, targets, *places = batch
        return self.loss(self.network(cubes, *places), targets)

    def learning(self) -> list[dict[str, Any]]:
        """Head and backbone, each with its learning rate."""
        of_head = {id(weight) for part in head_parts(self.network) for weight in part.parameters()}
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        rates = (self.recipe.learning_rate, self.recipe.learning_rate * self.tuning.backbone_rate)
        groups = ([w for w in weights if id(w) in of_head], [w for w in weights if id(w) not in of_head])
        return [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True) if group]


def choose_learning(network: Network, recipe: TuneRecipe) -> None:
    """Let the head learn, and of the backbone what the recipe says; nothing else.

    Raises:
        ConfigError: the backbone has no such parts.
    """
    network.requires_grad_(False)
    encoder = encoder_of(network)
    if recipe.tune == "lora":
        from .lora import add_lora

        add_lora(_trunk(encoder), recipe.lora)
    for part in (*head_parts(network), *_tuned_parts(encoder, recipe)):
        part.requires_grad_(True)


def encoder_of(network: nn.Module) -> Any:  # noqa: ANN401 - a Backbone
    """The backbone, with what stands before it: part of the network, or the network."""
    return getattr(network, "encoder", network)


def head_parts(network: nn.Module) -> list[nn.Module]:
    """What stands behind the backbone, and a prior by place."""
    if isinstance(network, Located):
        return [*head_parts(network.network), network.prior]
    encoder = getattr(network, "encoder", None)
    if encoder is None:
        return [encoder_of(network).head]
    return [part for part in network.children() if part is not encoder]


def _trunk(encoder: Any) -> nn.Module:  # noqa: ANN401 - a Backbone
    """What holds the blocks of a backbone: it may stand behind a spectral adapter."""
    trunk: nn.Module = getattr(encoder, "backbone", encoder)
    return trunk


def _tuned_parts(encoder: Any, recipe: TuneRecipe) -> Iterator[nn.Module]:  # noqa: ANN401 - a Backbone
    """What of a backbone learns, low-rank adapters apart."""
    adapter = getattr(encoder, "spectral_adapter", None)
    if recipe.tune == "full":
        yield encoder
    if adapter is not None and recipe.tune == "first_n":
        yield adapter
    if recipe.tune == "adapter" or (recipe.tune == "lora" and recipe.lora.adapter):
        if adapter is None:
            raise ConfigError(
                f"{recipe.backbone} has no spectral adapter to tune; choose tune frozen, first_n, full or lora"
            )
        yield adapter
    if recipe.tune == "first_n":
        stages = _stages(_trunk(encoder))
        if recipe.first > len(stages):
            raise ConfigError(f"first is {recipe.first}; {recipe.backbone} has {len(stages)} stages or blocks")
        yield from stages[: recipe.first]


def _stages(backbone: nn.Module) -> list[nn.Module]:
    """The blocks of a vision transformer, or the stages of a convolutional network."""
    for name in ("blocks", "stages", "layers"):
        parts = getattr(backbone, name, None)
        if isinstance(parts, nn.Sequential | nn.ModuleList):
            return list(parts)
    found = [part for name, part in backbone.named_children() if name.startswith("layer")]
    if not found:
        raise ConfigError(
            f"tune first_n: {type(backbone).__name__} has no blocks or stages that are known; use another"
        )
    return found


def set_modes(part: nn.Module, *, drifting_norms: bool = False, around: bool = True) -> None:
    """Train mode for what learns, eval mode for what does not: its batch norms keep their statistics.

    Args:
        part: a network, or a part of one.
        drifting_norms: batch norms that do not learn are in train mode too.
        around: mode of what `part` stands in, which parts without weights, such as dropout, share.
    """
    weights = list(part.parameters())
    part.training = any(weight.requires_grad for weight in weights) if weights else around
    part.training |= drifting_norms and isinstance(part, NORMS)
    for child in part.children():
        set_modes(child, drifting_norms=drifting_norms, around=part.training)


def train_tune(recipe: TuneRecipe, out: Path, say: Say = lambda _: None) -> LoopReport:
    """Tune the network of a recipe, or go on where an earlier call stopped, and test it.

    Args:
        recipe: what to tune, to what, and how.
        out: the `.safetensors` file to write, with the weights that were best in validation. Card and log lie beside
            it; so does the folder that training goes on from, `<name>.training`, which may be deleted in the end.
        say: takes lines for a person.

    Raises:
        ConfigError: another recipe's training lies beside `out`, or the recipe does not fit its data or backbone.
        ModelError: no such backbone, or weights that cannot be read or do not fit the data.
        InputError: data that cannot be used.
    """
    paths = claim(recipe, out)
    done = finished_before(recipe, paths)
    if done and "best_step" in read_card(card_path(out)).training:
        return done
    data = tune_data(recipe, model_card(recipe.backbone, recipe.weights, **recipe.settings))
    prepare(recipe)
    network, card = build(recipe, data, out)
    module = TuneModule(network, recipe, loss_of(recipe.task, data.counts, recipe.balance))
    judge = BestKeeper(data.validation, recipe, data.names, paths.folder, lambda: int(module.global_step))
    if done is None:
        done = run_loop(
            module,
            TileBatches(data.train, recipe, len(data.names)),
            recipe,
            paths,
            card,
            judge=judge,
            facts=_facts(recipe, data, module),
            say=say,
        )
    return _concluded(done, paths, recipe, data, judge, say) if done.step >= recipe.steps else done


def _facts(recipe: TuneRecipe, data: TuneData, module: TuneModule) -> dict[str, Any]:
    """What the card says of a training beside its recipe."""
    learning = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    note = {"note": recipe.about.note} if recipe.about.note else {}
    return {"data": dict(data.facts), "learning_parameters": learning, **note}


def build(recipe: TuneRecipe, data: TuneData, out: Path) -> tuple[Network, Card]:
    """The network of the task with the backbone's weights in it, and the card of what it will be."""
    base = model_card(recipe.backbone, recipe.weights, **recipe.settings)
    encoder = create_model(recipe.backbone, recipe.weights, **recipe.settings)
    if not isinstance(encoder, Backbone):
        raise ConfigError(f"backbone {recipe.backbone}: {base.family} is no backbone, such as spectral_vit_nano")
    count = len(data.names)
    settings: dict[str, Any] = {key: value for key, value in base.settings.items() if key != "num_classes"}
    encoder.reset_head(0)
    behind: dict[str, Any] = {"backbone": base.family, "backbone_settings": settings}
    family, settings = {
        "segment": (_of_pixels(recipe), {**behind, "head": recipe.head, "num_classes": count}),
        "regress": ("spectral_regressor", {**behind, "outputs": count}),
    }.get(recipe.task, (base.family, {**settings, "num_classes": count}))
    if recipe.location:
        family, settings = "located", {"network": family, "network_settings": settings}
    network = create_model(family, None, **settings)
    place = encoder_of(network)
    place.load_state_dict({**place.state_dict(), **encoder.state_dict()})  # whose head is not of the backbone
    return network.train(), _card(recipe, data, family, settings, out)


def _of_pixels(recipe: TuneRecipe) -> str:
    """The family that labels pixels of one date, or their change between two."""
    dated = recipe.scenes is not None and recipe.scenes.other_date is not None
    return "spectral_change" if dated else "spectral_segmenter"


def _card(recipe: TuneRecipe, data: TuneData, family: str, settings: Mapping[str, Any], out: Path) -> Card:
    """The card of the weights to come; an unfit one shows before any training."""
    fields = {
        **model_card(family, **settings).model_dump(),
        **data.channels,
        "task": recipe.task,
        "licence": recipe.about.licence,
        "tile": recipe.tile_px,
        "halo": recipe.tile_px // BLENDED if recipe.task == "segment" else 0,
        "classes": data.classes,
        "outputs": data.outputs,
    }
    return named_card(out, family, fields)


def _concluded(
    done: LoopReport, paths: LoopPaths, recipe: TuneRecipe, data: TuneData, judge: BestKeeper, say: Say
) -> LoopReport:
    """Save the weights that were best in validation instead of the last ones, and what they score in the test."""
    card = read_card(card_path(paths.out))
    network = judge.restore(create_model(card.family, None, **card.settings))
    tested: dict[str, Any] = {}
    if data.test is not None:
        tested = evaluate(network.for_inference(), data.test, recipe.task, data.names)
    metrics = {**judge.metrics, **{f"test_{key}": float(value) for key, value in tested.items() if _single(value)}}
    training = {**card.training, "best_step": judge.step, "saved": f"the best {judge.by} in validation", "test": tested}
    saved = save_model(network, paths.out, card.model_copy(update={"training": training, "metrics": metrics}))
    say(f"saved step {judge.step}, the best {judge.by} in validation ({judge.best:.4g})")
    return replace(done, sha256=saved.sha256, metrics=metrics)


def _single(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
