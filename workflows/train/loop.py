"""The loop that trains every network: stop and go on as often as you like, the outcome is the same to the bit.

A training leaves the weights `out`, card and log beside them, and the folder `<name>.training` that it goes on from.
"""

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from cubeloom import __version__
from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card, card_path, read_card
from cubeloom.models.network import Network
from cubeloom.models.registry import save_model
from cubeloom.untrusted import load_json

from .keeper import Checkpoints, Judge, Keeper, Say, Stop, Stopped
from .lightning_extra import LightningModule, TensorBoardLogger, Trainer
from .loop_part import LoopPart, learning_rate_factor
from .training_log import TrainingLog

__all__ = ["Judge", "LoopModule", "LoopPart", "LoopPaths", "LoopReport", "Stop", "claim", "prepare", "run_loop"]

GOES_ON = 75
"""Exit code of a training that ran out of its minutes: the same command goes on."""


class Batches(Protocol):
    """Batches by number, so that a training goes on with the batch that it would have had."""

    def batch(self, step: int) -> Any:  # noqa: ANN401 - whatever the module's `training_step` takes
        """The batch of optimiser step `step`, from 0; depends on the recipe's seed and the step alone."""
        ...


class LoopModule(LightningModule):
    """A network in training; a kind of training gives it `training_step`.

    What a step draws from torch's generator depends on the seed and the step alone. Modes (train or eval) of parts are
    to be set in `on_train_batch_start`, for they do not outlast a stop.

    Attributes:
        network: what learns.
        recipe: how.
    """

    def __init__(self, network: Network, recipe: LoopPart) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe

    @property
    def trained(self) -> Network:
        """What is judged and saved."""
        return self.network

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 - see `Batches`
        """Seed what the step draws."""
        seed = np.random.SeedSequence([self.recipe.seed, self.global_step]).generate_state(1)
        torch.manual_seed(int(seed[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401 - see `Batches`
        """Loss of a batch."""
        raise NotImplementedError

    def learning(self) -> Any:  # noqa: ANN401 - what torch's optimisers take
        """Parameters, or groups of them, that learn."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, or AdamW where weights decay."""
        kind = torch.optim.AdamW if self.recipe.weight_decay else torch.optim.Adam
        return kind(self.learning(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)

    def learning_rate_factor(self, step: int) -> float:
        """Share of the largest learning rate at a step."""
        return learning_rate_factor(step, self.recipe)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - one of Lightning's many forms
        """The optimiser and the schedule."""
        optimiser = self.optimiser()
        schedule = LambdaLR(optimiser, self.learning_rate_factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class LoopReport:
    """How far a training came.

    Attributes:
        path: the weights: the finished ones, or those to come.
        sha256: digest of that file; empty where there is none yet.
        step: steps done.
        steps: steps of the recipe.
        hours: spent on them.
        metrics: of the last judgement.
        stopped_by: the signal that ended it early.
    """

    path: Path
    sha256: str
    step: int
    steps: int
    hours: float
    metrics: Mapping[str, float] = field(default_factory=dict)
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
        scores = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        if self.step >= self.steps:
            done = f"{self.path}  sha256 {self.sha256[:12]}\n{self.step} steps in {self.hours:.2f} h\n{scores}"
            return done.rstrip()
        return (
            f"stopped after step {self.step} of {self.steps}, {self.hours:.2f} h; the same command goes on from there"
        )


@dataclass(frozen=True)
class LoopPaths:
    """What a training leaves: the weights with card and log, and a folder to go on from."""

    out: Path

    @property
    def folder(self) -> Path:
        """Checkpoints, and whatever else the data of this training keeps."""
        return self.out.with_suffix(".training")

    @property
    def log(self) -> Path:
        """Loss and metrics by step."""
        return self.out.with_suffix(".log.csv")

    @property
    def unfinished(self) -> Path:
        """The weights of the last judgement."""
        return self.folder / self.out.name

    @property
    def checkpoints(self) -> Checkpoints:
        """Where to go on."""
        return Checkpoints(self.folder)


def claim(recipe: LoopPart, out: Path) -> LoopPaths:
    """Make the folder of the training that writes `out`, or find that it is this training's.

    Raises:
        ConfigError: it is another's, the weights are there and their training is not, or `out` has another suffix.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the weights of a network are saved as .safetensors; name the file so")
    paths = LoopPaths(out)
    note, identity = paths.folder / "recipe.json", recipe.identity()
    if note.exists():
        before = load_json(note)
        changed = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        if changed:
            raise ConfigError(
                f"{paths.folder}: this training was begun with another recipe (changed: {', '.join(changed)}); "
                "undo the change to go on, delete the folder to begin anew, or name another file with --out"
            )
        return paths
    if paths.out.exists():
        raise ConfigError(f"{paths.out} exists; delete it, or name another file with --out")
    paths.folder.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
    part.replace(note)
    return paths


def finished_before(recipe: LoopPart, paths: LoopPaths) -> LoopReport | None:
    """The report of a training whose last step was done by an earlier call; None where steps are left.

    Raises:
        ConfigError: it is finished and its weights are gone.
    """
    if paths.checkpoints.step < recipe.steps:
        return None
    if not paths.out.exists():
        raise ConfigError(
            f"{paths.folder}: this training is finished, but {paths.out} is gone; delete the folder to train again"
        )
    card = read_card(card_path(paths.out))
    metrics = {name: float(str(value)) for name, value in card.metrics.items()}
    hours = float(str(card.training["hours"]))
    return LoopReport(paths.out, card.sha256, recipe.steps, recipe.steps, hours, metrics)


def prepare(recipe: LoopPart) -> None:
    """Threads and the seed of what is drawn before the first step; call it before the network is built."""
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    torch.manual_seed(recipe.seed)


def run_loop(
    module: LoopModule,
    batches: Batches,
    recipe: LoopPart,
    paths: LoopPaths,
    card: Card,
    *,
    judge: Judge | None = None,
    facts: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
    stop: Stop | None = None,
) -> LoopReport:
    """Train from the last checkpoint on, to the end or until time is up or a signal comes.

    Args:
        module: what learns; its `trained` is saved to `paths.out` in the end, and after each judgement beside the
            checkpoints.
        batches: what it learns from.
        recipe: how.
        paths: of `claim`.
        card: of the weights to come, without training, metrics and log.
        judge: scores `module.trained` every so many steps.
        facts: further entries of the card's `training`.
        say: takes lines for a person.
        stop: where something else also waits for the end of this training; by default its own.
    """
    checkpoints, stop = paths.checkpoints, stop or Stop(recipe.minutes)
    columns = judge.columns if judge else ()
    log = TrainingLog(paths.log, ("loss", "learning_rate", *columns), checkpoints.step)

    def keep(step: int, metrics: Mapping[str, float]) -> None:
        done = step >= recipe.steps
        training = {**_history(recipe, step, keeper.hours), **(facts or {})}
        fields = {"training": training, "metrics": dict(metrics), "log": paths.log.name if done else None}
        save_model(module.trained, paths.out if done else paths.unfinished, card.model_copy(update=fields))

    keeper = Keeper(recipe, judge, log, checkpoints, keep, say, stop)
    step = _fit(module, _Stream(batches, recipe.steps, checkpoints.step), keeper, paths.folder)
    digest = read_card(card_path(paths.out)).sha256 if step >= recipe.steps else ""
    return LoopReport(paths.out, digest, step, recipe.steps, keeper.hours, keeper.metrics, stop.by)


class _Stream:
    """The batches of a training from the step at which it goes on, as a loader that Lightning resumes."""

    def __init__(self, batches: Batches, steps: int, start: int) -> None:
        self.batches, self.steps, self.start = batches, steps, start

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.start, self.steps):
            yield self.batches.batch(step)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: who makes the stream knows where it starts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do; without it Lightning takes the loader for one that cannot be resumed."""


def _history(recipe: LoopPart, step: int, hours: float) -> dict[str, Any]:
    """How weights came about, for their card."""
    return {
        "steps": step,
        "hours": round(hours, 4),
        "threads": torch.get_num_threads(),
        "cubeloom": __version__,
        "torch": torch.__version__,
        "recipe": recipe.described(),
    }


def _fit(module: LoopModule, stream: _Stream, keeper: Keeper, folder: Path) -> int:
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
