"""Train FreeNet to label whole images (FPGA: Zheng, Zhong, Ma and Zhang, TGRS 2020)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import Card, InputBands, problems
from cubeloom.models.freenet import HALO, MULTIPLE
from cubeloom.models.registry import create_model, model_card
from cubeloom.workflows.evaluate.class_metrics import class_metrics, confusion_of
from cubeloom.workflows.schema import Workflow

from .freenet_data import FreenetBatches, Picture, pictures
from .freenet_recipe import FreenetRecipe
from .keeper import Say
from .labelled import LabelledImage, read_images
from .loop import LoopModule, LoopReport, claim, finished_before, prepare, run_loop
from .split import PixelParts, split_pixels
from .windows import image_windows

_SCORES = ("overall_accuracy", "average_accuracy", "kappa", "macro_f1")


def train_freenet(recipe: FreenetRecipe, out: Path, say: Say = lambda _: None) -> LoopReport:
    """Train the network of a recipe, or go on where an earlier call stopped.

    Args:
        recipe: what to train on, and how.
        out: the `.safetensors` file to write; the card and the log lie beside it, and the folder that training goes on
            from.
        say: takes lines for a person.

    Raises:
        ConfigError: wrong stages, another recipe's training lies beside `out`, or `out` has another suffix.
        InputError: images or labels cannot be used, or a class has no pixels to learn from.
    """
    paths = claim(recipe, out)
    if report := finished_before(recipe, paths):
        return report
    stages = Workflow(name="training", steps=recipe.stages).stages()
    images = read_images(recipe.images, recipe.classes, stages=stages, variable=recipe.variable)
    parts = [split_pixels(image, recipe.split) for image in images]
    _require_classes(images, parts)
    windows = image_windows([image.shape for image in images], window_pixels(recipe), HALO)
    card = freenet_card(recipe, out, images, max(max(window.shape) for window in windows))
    settings: dict[str, Any] = card.settings
    prepare(recipe)
    seen = pictures(images, card)
    module = FreenetModule(create_model("freenet", **settings).train(), recipe)
    batches = FreenetBatches(seen, [part.train for part in parts], windows, recipe)
    judge = MapJudge(seen, [part.test for part in parts], batches, recipe)
    facts = _facts(images, parts, len(windows), stages)
    judged = judge if any(part.test.any() for part in parts) else None
    return run_loop(module, batches, recipe, paths, card, judge=judged, facts=facts, say=say)


def window_pixels(recipe: FreenetRecipe) -> int:
    """Pixels that a step may see: it takes some 2,000 bytes and 5,000 times the width for each, measured."""
    return int(recipe.memory_gib * 2**30 / (2000 + 5000 * recipe.width))


class FreenetModule(LoopModule):
    """FreeNet in training: a step sees a window, and learns at some of its pixels."""

    recipe: FreenetRecipe

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy at the pixels of the mini-batch."""
        changed = self.recipe.augmentation
        x = batch["image"]
        if changed.brightness:
            x = brightened(x, batch["level"], changed.brightness)
        if changed.noise:
            x = x + changed.noise * torch.randn_like(x)
        if changed.drop_bands:
            x = x * kept_bands(x.shape[1], changed.drop_bands)[:, None, None].to(x)
        turn = int(torch.randint(8, ())) if changed.turns else 0
        scores = turned_back(self.network(turned(x, turn), _turned_mask(batch, turn)), turn)
        found = scores[0].flatten(1)[:, batch["at"]].T.float()
        return functional.cross_entropy(found, batch["target"], reduction="sum") / batch["divisor"]

    def learning_rate_factor(self, step: int) -> float:
        """As the authors': their schedule sets the rate after a step, so the first two have the same."""
        if self.recipe.schedule != "poly":
            return super().learning_rate_factor(step)
        return float((1 - max(step - 1, 0) / self.recipe.steps) ** 0.9)

    def optimiser(self) -> torch.optim.Optimizer:
        """Stochastic gradients with momentum, or AdamW."""
        recipe = self.recipe
        if recipe.optimiser == "adamw":
            return torch.optim.AdamW(self.learning(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(
            self.learning(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )


class MapJudge:
    """Tells how well a network's maps agree with the labels of test pixels.

    Attributes:
        every: steps from one judgement to the next.
        columns: names of the metrics.
    """

    def __init__(
        self, seen: Sequence[Picture], test: Sequence[Any], batches: FreenetBatches, recipe: FreenetRecipe
    ) -> None:
        self._seen, self._batches = seen, batches
        self._truth = [np.where(mask, one.index, -1) for one, mask in zip(seen, test, strict=True)]
        self.every = recipe.judge_every or recipe.steps
        self._names = [one.name for one in seen[0].image.classes]
        self.columns = (*_SCORES, *(f"f1 {name}" for name in self._names))

    def score(self, network: nn.Module) -> dict[str, float]:
        """Overall and average accuracy, kappa and F1 of the test pixels of all images together."""
        confusion = sum(
            confusion_of(truth, self.class_map(network, number), len(self._names))
            for number, truth in enumerate(self._truth)
        )
        found = class_metrics(np.asarray(confusion))
        named = {f"f1 {name}": value for name, value in zip(self._names, found["f1"], strict=True)}
        scores = {**{name: found[name] for name in _SCORES}, **named}
        return {name: float(value) for name, value in scores.items() if value is not None}

    def class_map(self, network: nn.Module, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Class indices `(y, x)` of an image, window by window."""
        device = next(network.parameters()).device
        made = np.zeros(self._seen[number].image.shape, np.int64)
        with torch.inference_mode():
            for window in self._batches.windows:
                if window.image == number:
                    x, valid = self._batches.seen_in(window)
                    scores = network(x.to(device), None if valid is None else valid.to(device))[0]
                    made[window.core_rows, window.core_cols] = scores.argmax(0).cpu().numpy()[window.inner]
        return made


def freenet_card(recipe: FreenetRecipe, out: Path, images: Sequence[LabelledImage], side: int) -> Card:
    """The card of the weights to come: bands, their means and deviations over all images, classes, tiles.

    Args:
        recipe: how they are trained.
        out: their file.
        images: what they are trained on.
        side: longest side of what a step sees, px; tiles are no smaller, so that means are over as much.
    """
    first = images[0]
    settings: dict[str, Any] = {
        "in_channels": len(first.cube),
        "num_classes": len(first.classes),
        "width": recipe.width,
    }
    tag = out.stem.removeprefix("freenet.") if out.stem.startswith("freenet.") else ""
    mean, std = band_statistics(images)
    fields = {
        **model_card("freenet", **settings).model_dump(),
        "name": f"freenet.{tag}" if tag else "freenet",
        "tag": tag,
        "licence": recipe.licence,
        "sensor": first.sensor or None,
        "variable": first.variable or None,
        "units": first.units or None,
        "tile": -(-max(side, 2 * HALO + 1) // MULTIPLE) * MULTIPLE,
        "mean": mean,
        "std": std,
        "classes": first.classes,
    }
    if first.bands is not None:
        centres = first.bands.wavelength.tolist()
        fields["input_bands"] = InputBands(
            numbers=first.bands.number.tolist(), wavelengths_nm=centres, fwhm_nm=first.bands.fwhm.tolist()
        )
        fields["wavelengths_nm"] = (min(centres), max(centres))
    try:
        return Card.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{out}: {problems(error)}") from None


def band_statistics(images: Sequence[LabelledImage]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every band over the valid pixels of all images; a constant band deviates by 1."""
    mean, std = [], []
    for band in range(len(images[0].cube)):
        values = np.concatenate([image.cube[band][image.valid] for image in images]).astype(np.float64)
        mean.append(float(values.mean()))
        std.append(float(values.std()) or 1.0)
    return mean, std


def turned(images: Tensor, turn: int) -> Tensor:
    """Images `(..., y, x)` in one of eight ways: `turn` % 4 quarter turns, then left for right from 4 on."""
    images = torch.rot90(images, turn % 4, (-2, -1))
    return images.flip(-1) if turn >= 4 else images


def turned_back(images: Tensor, turn: int) -> Tensor:
    """What `turned` gave as it was."""
    images = images.flip(-1) if turn >= 4 else images
    return torch.rot90(images, -(turn % 4), (-2, -1))


def _turned_mask(batch: Mapping[str, Tensor], turn: int) -> Tensor | None:
    return turned(batch["valid"], turn) if "valid" in batch else None


def brightened(x: Tensor, level: Tensor, spread: float) -> Tensor:
    """Standardised bands as they would be were the image brighter; `level` is mean over deviation of each band."""
    factor = float(torch.exp(spread * torch.randn(())))
    return x * factor + (factor - 1) * level[:, None, None]


def kept_bands(bands: int, most: float) -> Tensor:
    """1 for bands that stay and 0 for those left out: at most a share `most` of them, drawn anew."""
    return (torch.rand(bands) >= most * float(torch.rand(()))).float()


def _require_classes(images: Sequence[LabelledImage], parts: Sequence[PixelParts]) -> None:
    """Check that every class can be learnt.

    Raises:
        InputError: a class has no training pixel in any image.
    """
    learnt = {value for image, part in zip(images, parts, strict=True) for value in np.unique(image.labels[part.train])}
    absent = [f"{one.value} {one.name}" for one in images[0].classes if one.value not in learnt]
    if absent:
        raise InputError(
            f"no pixel to learn {', '.join(absent)} from, valid and in training, in any image: label some, or leave "
            "the class out"
        )


def _facts(
    images: Sequence[LabelledImage], parts: Sequence[PixelParts], windows: int, stages: Sequence[Any]
) -> dict[str, Any]:
    """What the card tells of the data."""
    masks = {"train": [part.train for part in parts], "test": [part.test for part in parts]}
    counts = {
        name: {
            one.name: int(
                sum((image.labels[mask] == one.value).sum() for image, mask in zip(images, drawn, strict=True))
            )
            for one in images[0].classes
        }
        for name, drawn in masks.items()
    }
    sources = [dict(image.source) for image in images]
    return {
        "sources": sources,
        "pixels": counts,
        "windows": windows,
        "stages": [stage.fingerprint() for stage in stages],
    }
