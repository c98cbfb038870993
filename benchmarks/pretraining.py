"""What pretraining teaches: a linear probe of MAE's, MoCo's and DINO's encoders beside the untrained network.

Run: python benchmarks/pretraining.py [--quick] [--json FILE] [--folder DIR] [--methods NAME ...] [--weights FILE ...]

Each method pretrains a `spectral_vit_nano` by `cubeloom train`'s own code on simulated places, two dates each, without
labels. Then the encoder is frozen. Its embedding of a tile of 16 px is the mean of its last feature map; a logistic
regression on standardised embeddings learns the class that most of the tile's pixels are of. Its tiles, and those that
it is tested on, are of places that neither pretraining nor the other has seen. The untrained network is that which
training began with; its row is the mean of several seeds. Given weights are probed in the same way.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cubeloom.models.cards import Card, InputBands
from cubeloom.models.network import Network
from cubeloom.models.registry import create_model, model_card
from cubeloom.models.spectral_networks import SpectralNetwork
from cubeloom.workflows.train.locations import standardised
from cubeloom.workflows.train.pretrain import pretrain
from cubeloom.workflows.train.pretrain_recipe import PretrainRecipe
from cubeloom.workflows.train.probe import linear_probe
from cubeloom.workflows.train.simulated_dates import band_table, simulate_dates

MODEL = "spectral_vit_nano"
TILE = 16
"""Edge of the tiles, px."""
PLACE = 64
"""Edge of the places, px."""
PROBE_SEEDS = {"train": 500_000, "test": 600_000}
"""Of the first place; pretraining's begin at 3000."""
UNTRAINED = (0, 1, 2)
"""Seeds of the untrained networks."""

COMMON = {
    "kind": "pretrain",
    "model": MODEL,
    "size": TILE,
    "tile": 2 * TILE,
    "batch": 32,
    "warmup": 0.1,
    "schedule": "cosine",
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "optimiser": "adam",
    "clip": 3.0,
    "threads": 1,
    "log_every": 20,
    "checkpoint_every": 200,
    "blur": 0.0,
}
METHODS: dict[str, dict[str, Any]] = {
    "mae": {
        "method": {"name": "mae", "mask_ratio": 0.75, "decoder_width": 128, "decoder_heads": 4, "adapter": "visible"},
        "steps": 800,
    },
    "moco": {
        "method": {"name": "moco", "queue": 1024, "momentum": 0.99, "hidden": 256},
        "crop": (0.2, 1.0),
        "steps": 300,
    },
    "dino": {
        "method": {"name": "dino", "hidden": 256, "bottleneck": 64, "outputs": 512, "momentum": 0.98},
        "crop": (0.2, 1.0),
        "steps": 300,
    },
}
"""What differs from the recipes' defaults: sizes and steps for some minutes of one processor."""

Tiles = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


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
    places = {"train": 12, "test": 8} if arguments.quick else {"train": 120, "test": 80}
    card = model_card(MODEL, image_size=TILE)
    tiles = {name: probe_tiles(PROBE_SEEDS[name], count, card) for name, count in places.items()}
    sizes = ", ".join(f"{len(labels)} tiles to {name}" for name, (_, labels) in tiles.items())
    print(f"{sizes}, {len(np.unique(tiles['train'][1]))} classes, one of them in {_most(tiles['test'][1]):.1%}")
    print(f"{'encoder':40}{'steps':>8}{'minutes':>9}{'accuracy':>10}{'gain':>8}")
    rows = [_untrained(tiles)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        for name in arguments.methods:
            rows.append(_trained(name, folder, arguments.quick, tiles, rows[0]["accuracy"]))
    for path in arguments.weights:
        of = model_card(path)
        score = accuracy(create_model(of.family, path), tiles)
        rows.append(_row(path.name, int(str(of.training.get("steps", 0))), 0.0, score, rows[0]["accuracy"]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def probe_tiles(seed: int, count: int, card: Card) -> Tiles:
    """Tiles `(n, D, y, x)` of simulated places as the network takes them, and the class that most of each is."""
    bands: InputBands | None = card.input_bands
    assert bands is not None
    table = band_table(bands)
    cubes, labels = [], []
    for number in range(seed, seed + count):
        [date] = simulate_dates(number, PLACE, 1, table)
        image = standardised(date.cube, card)
        for row in range(0, PLACE, TILE):
            for col in range(0, PLACE, TILE):
                here = slice(row, row + TILE), slice(col, col + TILE)
                cubes.append(image[:, *here])
                labels.append(np.bincount(date.classes[here].ravel()).argmax())
    return np.stack(cubes), np.array(labels, np.uint8)


def embeddings(network: Network, tiles: npt.NDArray[np.float32], at_once: int = 64) -> npt.NDArray[np.float32]:
    """The mean of the last feature map of each tile, `(n, channels)`."""
    assert isinstance(network, SpectralNetwork)
    last = len(network.levels) - 1
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(tiles), at_once):
            [features] = network.features(torch.from_numpy(tiles[start : start + at_once]), [last])
            parts.append(features.mean((2, 3)).numpy())
    return np.concatenate(parts)


def accuracy(network: Network, tiles: dict[str, Tiles]) -> float:
    """Share of the test tiles whose class the probe finds."""
    (learnt, labels), (asked, truth) = ((embeddings(network, x), y) for x, y in (tiles["train"], tiles["test"]))
    return float(np.mean(linear_probe(learnt, labels).predict(asked) == truth))


def _untrained(tiles: dict[str, Tiles]) -> dict[str, Any]:
    scores = []
    for seed in UNTRAINED:
        torch.manual_seed(seed)
        scores.append(accuracy(create_model(MODEL, image_size=TILE), tiles))
    return _row(f"untrained ({min(scores):.1%} to {max(scores):.1%})", 0, 0.0, float(np.mean(scores)), None)


def _trained(name: str, folder: Path, quick: bool, tiles: dict[str, Tiles], before: float) -> dict[str, Any]:
    chosen = {**COMMON, **METHODS[name], "data": {"simulated": {"count": 16 if quick else 192, "px": PLACE}}}
    if quick:
        chosen |= {"steps": 8, "batch": 16}
    out = folder / f"{MODEL}.{name}.safetensors"
    started = time.monotonic()
    report = pretrain(PretrainRecipe.model_validate(chosen), out)
    hours = report.hours or (time.monotonic() - started) / 3600
    return _row(name, report.step, 60 * hours, accuracy(create_model(MODEL, out), tiles), before)


def _row(name: str, steps: int, minutes: float, score: float, before: float | None) -> dict[str, Any]:
    gain = None if before is None else score - before
    shown = "" if gain is None else f"{100 * gain:+8.1f}"
    print(f"{name:40}{steps:8}{minutes:9.1f}{score:10.1%}{shown}", flush=True)
    return {"encoder": name, "steps": steps, "minutes": round(minutes, 2), "accuracy": score, "gain": gain}


def _most(labels: npt.NDArray[np.uint8]) -> float:
    """Share of the most frequent class."""
    counts: Sequence[int] = np.bincount(labels).tolist()
    return max(counts) / len(labels)


if __name__ == "__main__":
    main()
