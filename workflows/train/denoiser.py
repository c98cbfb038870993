"""Train a denoising network by a recipe: stop and go on as often as you like, the outcome is the same."""

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from cubeloom import __version__
from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card, card_path, problems, read_card
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.untrusted import load_json

from .cubes import CleanCube, training_cubes, validation_cubes
from .denoiser_recipe import DenoiserRecipe
from .eigenimages import CubeSource, ScenePool
from .keeper import Checkpoints, Keeper, Say, Stopped
from .lightning_extra import TensorBoardLogger, Trainer
from .mixtures import Mixtures, load_mixtures
from .module import DenoiserModule
from .patches import BandPatches, ComponentPatches, Stream
from .training_log import TrainingLog
from .validation import Validation

GOES_ON = 75
"""Exit code of a training that ran out of its minutes: the same command goes on."""


@dataclass(frozen=True)
class DenoiserReport:
    """How far a training came.

    Attributes:
        path: the weights: the finished ones, or those of the last validation.
        sha256: digest of that file; empty where there is none yet.
        step: steps done.
        steps: steps of the recipe.
        hours: spent on them.
        metrics: of the last validation, PSNR in dB.
        stopped_by: the signal that ended it early.
    """

    path: Path
    sha256: str
    step: int
    steps: int
    hours: float
    metrics: Mapping[str, float]
    stopped_by: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0 when finished, 75 when out of time, 128 and the signal when stopped by one."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return 0 if self.step >= self.steps else GOES_ON

    def summary(self) -> dict[str, Any]:
        """For a script."""
        done = {"steps_done": self.step, "steps": self.steps, "hours": self.hours}
        return {"model": self.path, "sha256": self.sha256, **done, "metrics": self.metrics}

    def __str__(self) -> str:
        """For a terminal."""
        scores = "  ".join(f"{name} {value:.2f}" for name, value in self.metrics.items())
        if self.step >= self.steps:
            return f"{self.path}  sha256 {self.sha256[:12]}\n{self.step} steps in {self.hours:.2f} h\n{scores}"
        return (
            f"stopped after step {self.step} of {self.steps}, {self.hours:.2f} h; the same command goes on from there"
        )


@dataclass(frozen=True)
class _Paths:
    """What a training leaves: the weights with card and log, and a folder to go on from."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out.with_suffix(".training")

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log.csv")

    @property
    def unfinished(self) -> Path:
        """The weights of the last validation."""
        return self.folder / self.out.name


def train_denoiser(recipe: DenoiserRecipe, out: Path, say: Say = lambda _: None) -> DenoiserReport:
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
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the weights of a network are saved as .safetensors; name the file so")
    paths = _Paths(out)
    card = _card(recipe, out)
    _claim(paths, recipe)
    checkpoints = Checkpoints(paths.folder)
    if checkpoints.step >= recipe.steps:
        return _finished_before(recipe, paths)
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    torch.manual_seed(recipe.seed)
    module = DenoiserModule(create_model(recipe.model, recipe.weights, **_settings(recipe)).train(), recipe)
    cubes = training_cubes(recipe, paths.folder / "scenes")
    sources: list[CleanCube | Mixtures] = [*cubes]
    if recipe.mixtures:
        sources.append(load_mixtures(recipe.mixtures, max(recipe.patch_px)))
    validation = Validation(validation_cubes(recipe, paths.folder / "scenes"), recipe)
    log = TrainingLog(paths.log, ("loss", "learning_rate", *validation.columns), checkpoints.step)
    facts = {"cubes": [source.name for source in sources], "validation_noisy": validation.baseline()}

    def keep(step: int, metrics: Mapping[str, float]) -> None:
        done = step >= recipe.steps
        training = {**_history(recipe, step, keeper.hours), **facts}
        fields = {"training": training, "metrics": dict(metrics), "log": paths.log.name if done else None}
        save_model(module.trained, out if done else paths.unfinished, card.model_copy(update=fields))

    keeper = Keeper(recipe, validation, log, checkpoints, keep, say)
    with _batches(cubes, sources, recipe, paths.folder, keeper) as batches:
        step = _fit(module, Stream(batches, recipe.steps, checkpoints.step), keeper, paths.folder)
    finished = step >= recipe.steps
    digest = read_card(card_path(out)).sha256 if finished else ""
    return DenoiserReport(out, digest, step, recipe.steps, keeper.hours, keeper.metrics, keeper.stopped_by)


def _settings(recipe: DenoiserRecipe) -> dict[str, Any]:
    return {"in_channels": recipe.channels, "num_bands": recipe.bands, **recipe.settings}


def _card(recipe: DenoiserRecipe, out: Path) -> Card:
    """The card of the weights to come; an unfit one shows before any training."""
    family, about = recipe.model, recipe.about
    tag = out.stem.removeprefix(f"{family}.") if out.stem.startswith(f"{family}.") else ""
    eigenimages = recipe.transform == "eigenimages"
    fields = {
        **model_card(family, **_settings(recipe)).model_dump(),
        **about.model_dump(),
        "name": f"{family}.{tag}" if tag else family,
        "tag": tag,
        "transform": recipe.transform,
        "bands": None if eigenimages else recipe.bands,
        "sigma_input": recipe.channels == 2,
        "residual_in_sigma": eigenimages,
    }
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{out}: {problems(error)}") from None


def _claim(paths: _Paths, recipe: DenoiserRecipe) -> None:
    """Make the folder of this training, or find that it is this training's.

    Raises:
        ConfigError: it is another's, or the weights are there and their training is not.
    """
    note, identity = paths.folder / "recipe.json", recipe.identity()
    if note.exists():
        before = load_json(note)
        changed = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        if changed:
            raise ConfigError(
                f"{paths.folder}: this training was begun with another recipe (changed: {', '.join(changed)}); "
                "undo the change to go on, delete the folder to begin anew, or name another file with --out"
            )
        return
    if paths.out.exists():
        raise ConfigError(f"{paths.out} exists; delete it, or name another file with --out")
    paths.folder.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    part.replace(note)


def _finished_before(recipe: DenoiserRecipe, paths: _Paths) -> DenoiserReport:
    if not paths.out.exists():
        raise ConfigError(
            f"{paths.folder}: this training is finished, but {paths.out} is gone; delete the folder to train again"
        )
    card = read_card(card_path(paths.out))
    metrics = {name: float(str(value)) for name, value in card.metrics.items()}
    hours = float(str(card.training["hours"]))
    return DenoiserReport(paths.out, card.sha256, recipe.steps, recipe.steps, hours, metrics)


def _history(recipe: DenoiserRecipe, step: int, hours: float) -> dict[str, Any]:
    """How weights came about, for their card."""
    return {
        "steps": step,
        "hours": round(hours, 4),
        "threads": torch.get_num_threads(),
        "cubeloom": __version__,
        "torch": torch.__version__,
        "recipe": recipe.described(),
    }


@contextmanager
def _batches(
    cubes: Sequence[CleanCube], sources: Sequence[CubeSource], recipe: DenoiserRecipe, folder: Path, keeper: Keeper
) -> Iterator[BandPatches | ComponentPatches]:
    if recipe.transform == "bands":
        yield BandPatches(cubes, recipe)
        return
    pool = ScenePool(sources, recipe, folder / "pool", keeper.require_going_on)
    try:
        yield ComponentPatches(pool, recipe)
    finally:
        pool.close()


def _fit(module: DenoiserModule, stream: Stream, keeper: Keeper, folder: Path) -> int:
    """Train from the last checkpoint on; returns the step that training came to."""
    recipe, start = keeper.recipe, keeper.checkpoints.latest
    with _quiet():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
            max_steps=recipe.steps,
            max_epochs=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            gradient_clip_val=recipe.clip,
            callbacks=[keeper],
            logger=_tensorboard(folder),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stderr.isatty(),
        )
        with suppress(Stopped):
            trainer.fit(module, stream, ckpt_path=start, weights_only=True)
    return int(trainer.global_step)


def _tensorboard(folder: Path) -> Any:  # noqa: ANN401 - a logger or False
    """A TensorBoard log where TensorBoard is installed."""
    if find_spec("tensorboard") is None:
        return False
    return TensorBoardLogger(folder, name="tensorboard", version="")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on the machine and on loaders, none of which is the user's to act on."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
