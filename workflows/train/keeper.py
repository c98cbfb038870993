"""What accompanies a training: its log, validations, checkpoints, and the end before its last step."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from .denoiser_recipe import DenoiserRecipe
from .lightning_extra import Callback, LightningModule, Trainer
from .training_log import TrainingLog
from .validation import Validation

Say = Callable[[str], None]
Keep = Callable[[int, dict[str, float]], None]
"""Saves the weights of a step with their metrics."""


class Stopped(Exception):  # noqa: N818 - no error
    """Training was asked to stop while it waited for data; nothing was learnt since the last step."""


class Checkpoints:
    """The last checkpoint of a training, in a folder; its name says the step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def latest(self) -> Path | None:
        """The file to go on from."""
        return max(self.folder.glob("step_*.ckpt"), default=None)

    @property
    def step(self) -> int:
        """Steps done by then."""
        return int(self.latest.stem.removeprefix("step_")) if self.latest else 0

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, and only then drop the former ones."""
        path = self.folder / f"step_{trainer.global_step:09d}.ckpt"
        part = path.with_suffix(".part")
        trainer.save_checkpoint(part)
        part.replace(path)
        for former in self.folder.glob("step_*"):
            if former != path:
                former.unlink()


class Keeper(Callback):
    """Logs, validates and saves every so many steps; stops after a step when time is up or a signal says so.

    Attributes:
        stopped_by: signal that ended the training, if one did.
        out_of_time: whether the recipe's minutes did.
        metrics: of the last validation.
    """

    def __init__(
        self,
        recipe: DenoiserRecipe,
        validation: Validation,
        log: TrainingLog,
        checkpoints: Checkpoints,
        keep: Keep,
        say: Say,
    ) -> None:
        self.recipe, self.validation, self.table, self.checkpoints = recipe, validation, log, checkpoints
        self.keep, self.say = keep, say
        self.stopped_by: signal.Signals | None = None
        self.out_of_time = False
        self.metrics: dict[str, float] = {}
        self._losses: list[Tensor] = []
        self._started = time.monotonic()

    @property
    def hours(self) -> float:
        """Of training so far, earlier runs included."""
        return self.table.hours_before + (time.monotonic() - self._started) / 3600

    def require_going_on(self) -> None:
        """Raise `Stopped` where training shall end; for those who wait."""
        if self._shall_stop():
            raise Stopped

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal end the step under way first; Lightning puts the former handlers back in the end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)
        self._started = time.monotonic()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """What is due after a step."""
        step, last = trainer.global_step, trainer.global_step >= self.recipe.steps
        self._losses.append(outputs["loss"].detach())
        judged = self._judged(pl_module, step) if last or step % self.recipe.validation.every == 0 else {}
        if judged or last or step % self.recipe.log_every == 0:
            self._log(trainer, step, judged)
        stopping = self._shall_stop()
        if judged or last or stopping or step % self.recipe.checkpoint_every == 0:
            self.checkpoints.save(trainer)
        trainer.should_stop = trainer.should_stop or stopping

    def _shall_stop(self) -> bool:
        limit = self.recipe.minutes
        self.out_of_time = limit is not None and time.monotonic() - self._started > 60 * limit
        return self.out_of_time or self.stopped_by is not None

    def _judged(self, module: Any, step: int) -> dict[str, float]:  # noqa: ANN401 - Lightning's base class
        network = module.trained
        training = network.training
        network.eval()
        self.metrics = self.validation.score(network)
        self.keep(step, self.metrics)
        network.train(training)
        return self.metrics

    def _log(self, trainer: Trainer, step: int, judged: dict[str, float]) -> None:
        loss = sum(float(one) for one in self._losses) / len(self._losses)
        self._losses.clear()
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        values = {"loss": loss, "learning_rate": rate, **judged}
        self.table.add(step, self.hours, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        score = f"  psnr {judged['psnr']:.2f} dB" if judged else ""
        self.say(f"step {step} of {self.recipe.steps}  loss {loss:.5f}  {self.hours:.2f} h{score}")
