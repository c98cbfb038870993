"""A recipe for simulated scenes: their truth as labels, so that training can be tried without any data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cubeloom.pipeline.simulate import SimulatedProduct
from cubeloom.workflows.pairing import pair_steps
from cubeloom.workflows.schema import load_workflow

COLOURS = {
    "water": "#2b6cb0", "deciduous forest": "#2f7d32", "coniferous forest": "#14532d", "meadow": "#a2cf6e",
    "cereal": "#e0b13c", "maize": "#6fae1f", "rapeseed": "#f2e24a", "root crop": "#3fa37c", "bare soil": "#9c6b4a",
    "stubble": "#d8b98e", "built-up": "#c0392b", "road": "#6b7280", "shrubland": "#8f9a3b", "sand": "#f0dfae",
    "rock": "#a39d95", "snow": "#dcecf5",
}  # fmt: skip
"""Colour of every class of `pipeline.simulate`."""

_ENMAP = """\
# The land cover of simulated scenes, learnt from their truth: cubeloom train {name} --out landcover.skops
# The steps are those that enmap_l2a takes before it classifies.
"""
_SENTINEL = """\
# The land cover of simulated scenes of both Sentinels, learnt from their truth: cubeloom train {name} --out s1s2.skops
# The steps are those that s1s2_landcover takes before it classifies:
#   cubeloom run s1s2_landcover --catalog CATALOG --out OUT --set classify.model=s1s2.skops
"""


def write_truth_recipe(products: Sequence[SimulatedProduct], path: Path) -> Path:
    """Write the recipe that learns the land cover of simulated L1C or L2A products from their class maps.

    Args:
        products: what `simulate_catalog` gave.
        path: the YAML file to write; its paths become relative to it.
    """
    learnt = {
        "steps": ["mask", "destripe", "denoise"],
        "features": ["spectrum", "shape"],
        "estimator": {"type": "lda"},
        "max_per_class": 1000,
    }
    return _write(path, _ENMAP, products, [_labelled(product, path.parent) for product in products], learnt)


def write_sentinel_recipe(optical: Sequence[SimulatedProduct], radar: Sequence[SimulatedProduct], path: Path) -> Path:
    """Write the recipe that learns the land cover of simulated Sentinel-2 products, each with its Sentinel-1 product.

    Args:
        optical: what `simulate_places` gave of Sentinel-2.
        radar: of Sentinel-1, over the same places.
        path: the YAML file to write; its paths become relative to it.
    """
    workflow = load_workflow("s1s2_landcover")
    (guide,) = (step.guide for step in pair_steps(workflow))
    scenes = [
        {
            **_labelled(product, path.parent),
            "guides": {guide: str(other.path.relative_to(path.parent))},
            "options": dict(workflow.open),
        }
        for product, other in zip(optical, radar, strict=True)
    ]
    learnt = {
        "steps": [step for step in workflow.steps if "classify" not in step],
        "radar": guide,
        "features": ["spectrum", "shape"],
        "estimator": {"type": "rotated_forests", "params": {"rotation": "combinations", "forests": 10, "trees": 10}},
        "split": {"method": "blocks", "block_px": 32},
        "max_per_class": 1000,
    }
    return _write(path, _SENTINEL, optical, scenes, learnt)


def _write(
    path: Path,
    head: str,
    products: Sequence[SimulatedProduct],
    scenes: Sequence[dict[str, Any]],
    learnt: Mapping[str, Any],
) -> Path:
    codes: dict[int, str] = {}
    for product in products:
        names = json.loads((product.truth_folder / "CLASSES.json").read_text())
        codes |= {int(code): name for code, name in names.items()}
    classes = {code: {"name": name, "colour": COLOURS[name]} for code, name in sorted(codes.items())}
    recipe = {"kind": "classifier", "scenes": list(scenes), "classes": classes, **learnt}
    text = yaml.safe_dump(recipe, sort_keys=False, width=120, default_flow_style=None)
    path.write_text(head.format(name=path.name) + text, encoding="utf-8")
    return path


def _labelled(product: SimulatedProduct, folder: Path) -> dict[str, Any]:
    labels = product.truth_folder / "CLASSES.TIF"
    return {"scene": str(product.path.relative_to(folder)), "labels": str(labels.relative_to(folder))}
