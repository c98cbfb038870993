"""What accompanies a training: its log, validations, checkpoints, and the end before its last step."""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import Tensor, nn

from .lightning_extra import Callback, LightningModule, Trainer
from .loop_part import LoopPart
from .training_log import TrainingLog

Say = Callable[[str], None]
Keep = Callable[[int, Mapping[str, float]], None]
"""Saves the weights of a step with their metrics."""


class Judge(Protocol):
    """What tells how good a network is part way.

    Attributes:
        every: steps from one judgement to the next; the last step is always judged.
        columns: names of what `score` gives, for the log; the first is told to a person.
    """

    @property
    def every(self) -> int: ...  # noqa: D102
    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102

    def score(self, network: nn.Module) -> Mapping[str, float]:
        """Metrics of a network in eval mode."""
        ...


class Stopped(Exception):  # noqa: N818 - no error
    """Training was asked to stop while it waited for data; nothing was learnt since the last step."""


class Stop:
    """Whether training shall end early: its minutes are over, or a signal came.

    Attributes:
        by: signal that ended the training, if one did.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.by: signal.Signals | None = None
        self._started = time.monotonic()

    @property
    def hours(self) -> float:
        """Since training began or went on."""
        return (time.monotonic() - self._started) / 3600

    @property
    def due(self) -> bool:
        """Whether to end after this step."""
        return self.by is not None or (self.minutes is not None and 60 * self.hours > self.minutes)

    def require_going_on(self) -> None:
        """Raise `Stopped` where training shall end; for those who wait."""
        if self.due:
            raise Stopped

    def begin(self) -> None:
        """Start the clock, and let a signal end the step under way first; Lightning restores the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)
        self._started = time.monotonic()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.by = signal.Signals(number)


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
    """Logs, judges and saves every so many steps; stops after a step when time is up or a signal says so.

    Attributes:
        metrics: of the last judgement.
    """

    def __init__(
        self,
        recipe: LoopPart,
        judge: Judge | None,
        log: TrainingLog,
        checkpoints: Checkpoints,
        keep: Keep,
        say: Say,
        stop: Stop,
    ) -> None:
        self.recipe, self.judge, self.table, self.checkpoints = recipe, judge, log, checkpoints
        self.keep, self.say, self.stop = keep, say, stop
        self.metrics: Mapping[str, float] = {}
        self._losses: list[Tensor] = []

    @property
    def hours(self) -> float:
        """Of training so far, earlier runs included."""
        return self.table.hours_before + self.stop.hours

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The time of this run counts from here."""
        self.stop.begin()

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
        judged = last or (self.judge is not None and step % self.judge.every == 0)
        metrics = self._judged(pl_module, step) if judged else {}
        if metrics or last or step % self.recipe.log_every == 0:
            self._log(trainer, step, metrics)
        stopping = self.stop.due
        if judged or stopping or step % self.recipe.checkpoint_every == 0:
            self.checkpoints.save(trainer)
        trainer.should_stop = trainer.should_stop or stopping

    def _judged(self, module: Any, step: int) -> Mapping[str, float]:  # noqa: ANN401 - Lightning's base class
        network = module.trained
        modes = {part: part.training for part in network.modules()}
        network.eval()
        self.metrics = {} if self.judge is None else self.judge.score(network)
        self.keep(step, self.metrics)
        for part, training in modes.items():
            part.training = training
        return self.metrics

    def _log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        loss = sum(float(one) for one in self._losses) / len(self._losses)
        self._losses.clear()
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        values = {"loss": loss, "learning_rate": rate, **metrics}
        self.table.add(step, self.hours, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        score = "".join(f"  {name} {value:.4g}" for name, value in list(metrics.items())[:1])
        self.say(f"step {step} of {self.recipe.steps}  loss {loss:.5f}  {self.hours:.2f} h{score}")
