"""The four tasks of tuning: their losses, their measures, and the judge that keeps the best weights of a training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.models.checkpoints import load_strictly, read_weights, write_weights
from cubeloom.models.location import Located
from cubeloom.models.network import Network
from cubeloom.untrusted import load_json
from cubeloom.workflows.evaluate.class_metrics import (
    class_metrics,
    confusion_of,
    multilabel_metrics,
    regression_metrics,
)

from .tune_recipe import BEST_BY, TuneRecipe, TuneTask
from .tune_tiles import IGNORE, Tiles, places, target_of

Loss = Callable[[Tensor, Tensor], Tensor]
_LEAST = frozenset({"loss"})
"""Measures of which less is better."""
_AT_ONCE = 8
"""Tiles that are judged together."""


def loss_of(task: TuneTask, counts: npt.NDArray[np.integer] | None = None, balance: float = 0.0) -> Loss:
    """The loss of a task.

    Args:
        task: `segment` and `classify` have cross entropy, `multilabel` binary cross entropy of each label, `regress`
            the squared error of each value over that of always saying 0, in the batch.
        counts: occurrences of each class, (K,), where classes are weighted.
        balance: weights are count ** -balance, of mean 1 over the samples.

    Returns:
        `(outputs, targets) -> loss`; targets IGNORE take no part.
    """
    if task == "regress":
        return normalised_squares
    weight = None if counts is None or not balance else _class_weights(counts, balance)
    if task == "multilabel":
        return lambda scores, truth: functional.binary_cross_entropy_with_logits(
            scores, truth, None if weight is None else weight.to(scores)
        )
    return lambda scores, truth: cross_entropy(scores, truth, weight)


def cross_entropy(scores: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the labelled places, weighted by class; 0 where no place has a label, which torch makes nan.

    Args:
        scores: (N, K, ...).
        truth: (N, ...) class indices, or IGNORE.
        weight: (K,).
    """
    weight = None if weight is None else weight.to(scores)
    total = functional.cross_entropy(scores, truth, weight, ignore_index=IGNORE, reduction="sum")
    labelled = truth[truth != IGNORE]
    count = torch.tensor(float(labelled.numel())) if weight is None else weight[labelled].sum()
    return total / count.clamp_min(torch.finfo(torch.float32).tiny).to(total)


def normalised_squares(estimate: Tensor, truth: Tensor) -> Tensor:
    """Mean over the values of mean squared error / mean square of the truth (the HYPERVIEW challenge's measure)."""
    scale = truth.square().mean(0).clamp_min(torch.finfo(truth.dtype).eps)
    return ((estimate - truth).square().mean(0) / scale).mean()


def _class_weights(counts: npt.NDArray[np.integer], balance: float) -> Tensor:
    """Count ** -balance for each class, scaled so that the mean over all samples is 1; 0 for a class without any."""
    known = np.maximum(counts, 1).astype(np.float64)
    weights = np.where(counts > 0, known**-balance, 0)
    return torch.from_numpy((weights * counts.sum() / (weights * counts).sum()).astype(np.float32))


@torch.inference_mode()
def evaluate(network: nn.Module, tiles: Tiles, task: TuneTask, names: Sequence[str]) -> dict[str, Any]:
    """Measures of a network, in eval mode, over tiles.

    Args:
        network: of the task; on any device.
        tiles: with truth.
        task: what it does.
        names: of its classes or values.

    Returns:
        `loss`, without weights of classes, and what `class_metrics`, `multilabel_metrics` or `regression_metrics`
        give; for classes also the `confusion`, a row for each true one.
    """
    device = next(network.parameters()).device
    loss, outputs, truths, total, samples = loss_of(task), [], [], 0.0, 0
    confusion = np.zeros((len(names), len(names)), np.int64)
    for start in range(0, len(tiles), _AT_ONCE):
        indices = range(start, min(start + _AT_ONCE, len(tiles)))
        cubes, truth = _stacked(tiles, indices, task, len(names))
        where = places(tiles, indices) if isinstance(network, Located) else ()
        output = network(cubes.to(device), *(place.to(device) for place in where)).float().cpu()
        count = int((truth != IGNORE).sum()) if task in ("segment", "classify") else len(truth)
        total, samples = total + float(loss(output, truth)) * count, samples + count
        if task in ("segment", "classify"):
            confusion += confusion_of(truth.numpy(), output.argmax(1).numpy(), len(names))
        else:
            outputs.append(output.numpy())
            truths.append(truth.numpy())
    mean = {"loss": total / max(samples, 1)}
    if task in ("segment", "classify"):
        return {**mean, **class_metrics(confusion), "confusion": confusion.tolist()}
    if task == "multilabel":
        scores = 1 / (1 + np.exp(-np.concatenate(outputs).astype(np.float64)))
        return {**mean, **multilabel_metrics(scores, np.concatenate(truths) > 0.5)}
    found = regression_metrics(np.concatenate(outputs), np.concatenate(truths), names)
    return {"loss": found["normalised_mse"], **found}


def _stacked(tiles: Tiles, indices: Sequence[int], task: TuneTask, classes: int) -> tuple[Tensor, Tensor]:
    pairs = [tiles.tile(index) for index in indices]
    cubes = torch.from_numpy(np.stack([cube for cube, _ in pairs]).astype(np.float32))
    return cubes, torch.from_numpy(np.stack([target_of(task, found, classes) for _, found in pairs]))


class BestKeeper:
    """Judges a training, and keeps the best weights it saw in the training's folder, beyond any stop.

    Attributes:
        every: steps from one judgement to the next.
        columns: of the log.
        metrics: of the best weights.
        step: of the best weights; None before the first judgement.
    """

    def __init__(
        self, tiles: Tiles, recipe: TuneRecipe, names: Sequence[str], folder: Path, now: Callable[[], int]
    ) -> None:
        self.tiles, self.task, self.names, self.folder, self.now = tiles, recipe.task, names, folder, now
        self.every, self.by = recipe.validate_every, recipe.best_by
        self.columns = tuple(_column(name) for name in BEST_BY[recipe.task])
        self._note = folder / "best.json"
        kept: Mapping[str, Any] = load_json(self._note) if self._note.exists() else {}
        self.step: int | None = kept.get("step")
        self.metrics: dict[str, float] = dict(kept.get("metrics", {}))
        self._digest = str(kept.get("sha256", ""))

    def score(self, network: nn.Module) -> dict[str, float]:
        """Measures of a network; where they are the best so far, its weights are kept."""
        found = evaluate(network, self.tiles, self.task, self.names)
        metrics = {_column(name): float(found[name]) for name in BEST_BY[self.task]}
        if self.step is None or self._better(metrics[_column(self.by)], self.best):
            self._keep(network, metrics)
        return metrics

    @property
    def best(self) -> float:
        """The best value of what the recipe chooses by."""
        return self.metrics[_column(self.by)]

    def restore(self, network: Network) -> Network:
        """Put the best weights into a network."""
        path = self._weights(self.step)
        load_strictly(network, read_weights(path, self._digest), str(path))
        return network.eval()

    def _better(self, new: float, old: float) -> bool:
        return new < old if self.by in _LEAST else new > old

    def _keep(self, network: nn.Module, metrics: dict[str, float]) -> None:
        """The weights first, then the note that names them, and only then the former ones go."""
        former, self.step, self.metrics = self.step, self.now(), metrics
        self._digest = write_weights(network, self._weights(self.step))
        part = self._note.with_suffix(".part")
        part.write_text(
            json.dumps({"step": self.step, "sha256": self._digest, "metrics": metrics}) + "\n", encoding="utf-8"
        )
        part.replace(self._note)
        if former not in (None, self.step):
            self._weights(former).unlink(missing_ok=True)

    def _weights(self, step: int | None) -> Path:
        return self.folder / f"best_{step:09d}.safetensors"


def _column(name: str) -> str:
    """What a measure of the validation is called beside those of the training."""
    return "validation_loss" if name == "loss" else name
