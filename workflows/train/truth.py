"""A recipe for simulated scenes: their truth as labels, so that training can be tried without any data."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml

from cubeloom.pipeline.simulate import SimulatedProduct
from cubeloom.untrusted import open_raster
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
_CHANGE = """\
# What changed between two dates of simulated Sentinel-2, by their truth: cubeloom train {name} --out change.safetensors
# What is of another class at the later date has changed. spectral_gpt_base and croma_base are backbones for it too.
#   cubeloom run s2_change --catalog CATALOG --out OUT --set classify.model=change.safetensors
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


def write_change_recipe(products: Sequence[SimulatedProduct], dates: int, path: Path) -> Path:
    """Write the recipe that learns what changed from date to date, and the maps of it, `CHANGE.TIF` by `CLASSES.TIF`.

    Args:
        products: what `simulate_places` gave of Sentinel-2.
        dates: of each place.
        path: the YAML file to write; its paths become relative to it.
    """
    workflow = load_workflow("s2_change")
    (guide,) = (step.guide for step in pair_steps(workflow))
    series = [products[start : start + dates] for start in range(0, len(products), dates)]
    scenes = [
        {
            **_labelled(later, path.parent, _change_map(earlier, later)),
            "guides": {guide: str(earlier.path.relative_to(path.parent))},
            "options": dict(workflow.open),
        }
        for place in series
        for earlier, later in pairwise(place)
    ]
    classes = {1: {"name": "unchanged", "colour": "#d9d9d9"}, 2: {"name": "changed", "colour": "#d7301f"}}
    split = {"method": "blocks", "block_px": 32, "test_fraction": 0.2}
    recipe = {
        "kind": "tune",
        "backbone": "croma_nano",
        "settings": {"modality": "optical"},
        "tune": "full",
        "scenes": {
            "other_date": guide,
            "train": scenes,
            "steps": ["mask"],
            "split": split,
            "validation_split": {**split, "seed": 1},
            "classes": classes,
        },
        "tile_px": 32,
        "balance": 0.5,
        "steps": 600,
        "batch": 8,
        "validate_every": 100,
        "best_by": "macro_f1",
    }
    return _written(path, _CHANGE, recipe)


def _change_map(earlier: SimulatedProduct, later: SimulatedProduct) -> Path:
    """Write where the classes of two dates on one grid differ (2) and where they do not (1)."""
    with open_raster(str(earlier.truth_folder / "CLASSES.TIF"), "truth") as before:
        known = before.read(1)
    with open_raster(str(later.truth_folder / "CLASSES.TIF"), "truth") as after:
        profile, found = after.profile, after.read(1)
    changed = np.where((known == 0) | (found == 0), 0, 1 + (known != found)).astype(np.uint8)
    path = later.truth_folder / "CHANGE.TIF"
    with rasterio.open(path, "w", **{**profile, "nodata": 0}) as raster:
        raster.write(changed, 1)
    return path


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
    return _written(path, head, {"kind": "classifier", "scenes": list(scenes), "classes": classes, **learnt})


def _written(path: Path, head: str, recipe: Mapping[str, Any]) -> Path:
    text = yaml.safe_dump(dict(recipe), sort_keys=False, width=120, default_flow_style=None)
    path.write_text(head.format(name=path.name) + text, encoding="utf-8")
    return path


def _labelled(product: SimulatedProduct, folder: Path, labels: Path | None = None) -> dict[str, Any]:
    labels = labels or product.truth_folder / "CLASSES.TIF"
    return {"scene": str(product.path.relative_to(folder)), "labels": str(labels.relative_to(folder))}
