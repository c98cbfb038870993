"""What pretraining teaches: a linear probe of MAE's, MoCo's and DINO's encoders beside the untrained network.

Run: python benchmarks/pretraining.py [--quick] [--json FILE] [--folder DIR] [--methods NAME ...] [--weights FILE ...]

Each method pretrains a `spectral_vit_nano` by its recipe in the library as it stands, on simulated places, two dates
each, without labels. Then the encoder is frozen. Its embedding of a tile of 16 px is the mean of its last feature map,
which is what the stage `embed` writes; a logistic regression on standardised embeddings learns the class that most of
the tile's pixels are of. Two protocols: `all` learns from all 1920 tiles of 120 places; `few` from ten tiles of each
class that has as many, the mean of five draws. The tiles that are asked for are of 80 other places, and no place of
either is one of pretraining's. Every number is the mean over three draws of places; the error of a gain is the standard
error, over them, of the difference to the untrained network. The untrained network is that which training began with;
its row is the mean of three seeds. `mean spectrum` is the same probe of a tile's mean spectrum, without any network.
Given weights are probed in the same way.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cubeloom.models.cards import Card, InputBands
from cubeloom.models.network import Network
from cubeloom.models.registry import create_model, model_card
from cubeloom.models.spectral_networks import SpectralNetwork
from cubeloom.workflows import train as package
from cubeloom.workflows.train import load_recipe
from cubeloom.workflows.train.locations import standardised
from cubeloom.workflows.train.pretrain import pretrain
from cubeloom.workflows.train.pretrain_recipe import PretrainData, PretrainRecipe
from cubeloom.workflows.train.probe import linear_probe
from cubeloom.workflows.train.simulated_dates import band_table, simulate_dates

MODEL = "spectral_vit_nano"
TILE = 16
"""Edge of the probe's tiles, px."""
PLACE = 64
"""Edge of the probe's places, px."""
DRAWS = ((500_000, 600_000), (510_000, 610_000), (520_000, 620_000))
"""First places to learn from and to ask for; pretraining's begin at 3000."""
PLACES = (120, 80)
FEW = 10
"""Tiles of a class in the protocol `few`."""
FEW_DRAWS = 5
UNTRAINED = (0, 1, 2)
"""Seeds of the untrained networks."""
UNTRAINED_ROW = "untrained"

METHODS = ("mae", "moco", "dino")
"""By the recipes of the library, as they stand."""

FloatArray = npt.NDArray[np.floating[Any]]


class Tiles(NamedTuple):
    """Tiles `(n, D, y, x)` of simulated places as the network takes them, and the class that most of each is `(n,)`."""

    cubes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.uint8]


class Encoder(NamedTuple):
    """What is probed.

    Attributes:
        name: of the row.
        embed: tiles `(n, D, y, x)` to embeddings `(n, C)`.
        steps: of training.
        minutes: of training.
    """

    name: str
    embed: Callable[[npt.NDArray[np.float32]], FloatArray]
    steps: int = 0
    minutes: float = 0.0


def main() -> None:
    """Pretrain, probe, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few places and steps: that it runs; about a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--folder", type=Path, help="keep the trainings here, and go on where they stopped")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="of pretraining")
    parser.add_argument("--weights", nargs="*", type=Path, default=[], help="further weights to probe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoders = [Encoder("mean spectrum", mean_spectrum), *map(_untrained, UNTRAINED)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        encoders += [_pretrained(name, folder, arguments.quick) for name in arguments.methods]
    encoders += [_given(path) for path in arguments.weights]
    draws = DRAWS[:1] if arguments.quick else DRAWS
    places = (12, 8) if arguments.quick else PLACES
    scores = np.stack([probe(encoders, draw, places) for draw in draws], -1)
    rows = table(encoders, scores)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def probe(encoders: list[Encoder], draw: tuple[int, int], places: tuple[int, int]) -> FloatArray:
    """Shares of the tiles asked for whose class is found, (encoders, protocols)."""
    card = model_card(MODEL, image_size=TILE)
    learnt, asked = (probe_tiles(seed, count, card) for seed, count in zip(draw, places, strict=True))
    most = np.bincount(asked.classes).max() / len(asked.classes)
    print(f"{len(learnt.classes)} tiles to learn from, {len(asked.classes)} asked for, {most:.1%} of one class")
    found = []
    for encoder in encoders:
        known, unknown = encoder.embed(learnt.cubes), encoder.embed(asked.cubes)
        every = linear_probe(known, learnt.classes).predict(unknown) == asked.classes
        found.append((float(every.mean()), few_labels(known, learnt.classes, unknown, asked.classes)))
    return np.array(found)


def probe_tiles(seed: int, count: int, card: Card) -> Tiles:
    """The tiles of so many places."""
    bands: InputBands | None = card.input_bands
    assert bands is not None
    of_bands = band_table(bands)
    cubes, labels = [], []
    for number in range(seed, seed + count):
        [date] = simulate_dates(number, PLACE, 1, of_bands)
        image = standardised(date.cube, card)
        for row in range(0, PLACE, TILE):
            for col in range(0, PLACE, TILE):
                here = slice(row, row + TILE), slice(col, col + TILE)
                cubes.append(image[:, *here])
                labels.append(np.bincount(date.classes[here].ravel()).argmax())
    return Tiles(np.stack(cubes), np.array(labels, np.uint8))


def few_labels(
    known: FloatArray, classes: npt.NDArray[np.uint8], unknown: FloatArray, truth: npt.NDArray[np.uint8]
) -> float:
    """The share found from a few tiles of each class that has as many; tiles of other classes are not asked for."""
    counts = np.bincount(classes)
    chosen = np.flatnonzero(counts >= FEW) if (counts >= FEW).sum() > 1 else np.flatnonzero(counts)
    asked, found = np.isin(truth, chosen), []
    for seed in range(FEW_DRAWS):
        random = np.random.default_rng(seed)
        taken = np.concatenate([random.permutation(np.flatnonzero(classes == one))[:FEW] for one in chosen])
        model = linear_probe(known[taken], classes[taken])
        found.append(np.mean(model.predict(unknown[asked]) == truth[asked]))
    return float(np.mean(found))


def mean_spectrum(cubes: npt.NDArray[np.float32]) -> FloatArray:
    """Of each tile, `(n, D)`."""
    spectra: FloatArray = cubes.mean((2, 3))
    return spectra


def embeddings(network: Network, cubes: npt.NDArray[np.float32], at_once: int = 64) -> npt.NDArray[np.float32]:
    """The mean of the last feature map of each tile, `(n, channels)`."""
    assert isinstance(network, SpectralNetwork)
    network, last = network.for_inference(), len(network.levels) - 1
    parts = []
    with torch.inference_mode():
        for start in range(0, len(cubes), at_once):
            [features] = network.features(torch.from_numpy(cubes[start : start + at_once]), [last])
            parts.append(features.mean((2, 3)).numpy())
    return np.concatenate(parts)


def table(encoders: list[Encoder], scores: FloatArray) -> list[dict[str, Any]]:
    """Print the rows, and return them; scores (encoders, protocols, draws)."""
    at = [number for number, one in enumerate(encoders) if one.name == UNTRAINED_ROW]
    base = scores[at].mean(0)
    kept = [(one, scores[number]) for number, one in enumerate(encoders) if number not in at]
    kept.insert(1, (Encoder(UNTRAINED_ROW, mean_spectrum), base))
    print(f"{'encoder':28}{'steps':>7}{'minutes':>9}" + "".join(f"{name:>8}{'gain':>13}" for name in ("all", "few")))
    rows = []
    for one, found in kept:
        row: dict[str, Any] = {"encoder": one.name, "steps": one.steps, "minutes": round(one.minutes, 2)}
        line = f"{one.name:28}{one.steps:7}{one.minutes:9.1f}"
        for name, values, zero in zip(("all", "few"), found, base, strict=True):
            gains = values - zero
            error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
            row |= {name: float(values.mean()), f"{name}_gain": float(gains.mean()), f"{name}_gain_error": error}
            told = f"{100 * gains.mean():+.1f} ± {100 * error:.1f}"
            line += f"{values.mean():8.1%}{'' if one.name == UNTRAINED_ROW else told:>13}"
        rows.append(row)
        print(line, flush=True)
    return rows


def _untrained(seed: int) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(UNTRAINED_ROW, partial(embeddings, create_model(MODEL, image_size=TILE)))


def _pretrained(name: str, folder: Path, quick: bool) -> Encoder:
    recipe = load_recipe(Path(package.__file__).parents[1] / f"library/pretrain_{name}.yaml")
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.data.simulated is not None
    places = recipe.data.simulated.model_copy(update={"folder": folder / "places"} | ({"count": 16} if quick else {}))
    changes: dict[str, Any] = {"data": PretrainData(simulated=places), "threads": 1, "workers": 0}
    if quick:
        changes |= {"steps": 8, "batch": 16}
    out = folder / f"{MODEL}.{name}.safetensors"
    report = pretrain(recipe.model_copy(update=changes), out)
    return Encoder(name, partial(embeddings, create_model(MODEL, out)), report.step, 60 * report.hours)


def _given(path: Path) -> Encoder:
    of = model_card(path)
    minutes = 60 * float(str(of.training.get("hours", 0)))
    embed = partial(embeddings, create_model(of.family, path))
    return Encoder(path.name.removesuffix(".safetensors"), embed, int(str(of.training.get("steps", 0))), minutes)


if __name__ == "__main__":
    main()
