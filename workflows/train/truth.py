"""A recipe for simulated scenes: their truth as labels, so that training can be tried without any data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cubeloom.pipeline.simulate import SimulatedProduct

COLOURS = {
    "water": "#2b6cb0", "deciduous forest": "#2f7d32", "coniferous forest": "#14532d", "meadow": "#a2cf6e",
    "cereal": "#e0b13c", "maize": "#6fae1f", "rapeseed": "#f2e24a", "root crop": "#3fa37c", "bare soil": "#9c6b4a",
    "stubble": "#d8b98e", "built-up": "#c0392b", "road": "#6b7280", "shrubland": "#8f9a3b", "sand": "#f0dfae",
    "rock": "#a39d95", "snow": "#dcecf5",
}  # fmt: skip
"""Colour of every class of `pipeline.simulate`."""

_HEAD = """\
# The land cover of simulated scenes, learnt from their truth: cubeloom train {name} --out landcover.skops
# The steps are those that enmap_l2a takes before it classifies.
"""


def write_truth_recipe(products: Sequence[SimulatedProduct], path: Path) -> Path:
    """Write the recipe that learns the land cover of simulated L1C or L2A products from their class maps.

    Args:
        products: what `simulate_catalog` gave.
        path: the YAML file to write; its paths become relative to it.
    """
    codes: dict[int, str] = {}
    for product in products:
        names = json.loads((product.truth_folder / "CLASSES.json").read_text())
        codes |= {int(code): name for code, name in names.items()}
    recipe: dict[str, Any] = {
        "kind": "classifier",
        "scenes": [_labelled(product, path.parent) for product in products],
        "classes": {code: {"name": name, "colour": COLOURS[name]} for code, name in sorted(codes.items())},
        "steps": ["mask", "destripe", "denoise"],
        "features": ["spectrum", "shape"],
        "estimator": {"type": "lda"},
        "max_per_class": 1000,
    }
    text = yaml.safe_dump(recipe, sort_keys=False, width=120, default_flow_style=None)
    path.write_text(_HEAD.format(name=path.name) + text, encoding="utf-8")
    return path


def _labelled(product: SimulatedProduct, folder: Path) -> dict[str, str]:
    labels = product.truth_folder / "CLASSES.TIF"
    return {"scene": str(product.path.relative_to(folder)), "labels": str(labels.relative_to(folder))}
