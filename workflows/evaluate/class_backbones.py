"""Backbones with a head: tuned as `cubeloom train` tunes them, or frozen with a linear layer that is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from cubeloom.models.cards import Card
from cubeloom.models.registry import model_card
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.tiles import Lattice, Tiling, blend, padded
from cubeloom.workflows.train.fit_head import fit_linear
from cubeloom.workflows.train.labelled import LabelledImage
from cubeloom.workflows.train.loop import claim, run_loop
from cubeloom.workflows.train.loop_part import LoopPart
from cubeloom.workflows.train.probe import PER_CLASS
from cubeloom.workflows.train.tune import TuneModule, build
from cubeloom.workflows.train.tune_data import TuneData, channels_of
from cubeloom.workflows.train.tune_recipe import TuneRecipe
from cubeloom.workflows.train.tune_tasks import loss_of
from cubeloom.workflows.train.tune_tiles import SceneTiles, TileBatches, area

from .class_methods import ClassMethod, Float32Array
from .class_networks import NOWHERE, RecipeMethod, completed, put, size_of, training, value_of


class Adapter(RecipeMethod[TuneRecipe]):
    """A backbone with a head, tuned on tiles of an image; the families of SpectralEarth have a spectral adapter.

    Attributes:
        model: family of the backbone, or family and tag of weights that are shipped; a family alone is untrained.
        weights: a file or hub source of weights for the family.
    """

    kind: ClassVar[type[LoopPart]] = TuneRecipe
    data_fields: ClassVar[frozenset[str]] = frozenset(
        {"task", "earth", "scenes", "backbone", "weights", "validate_every", "best_by"}
    )
    model: str = "spectral_vit_nano"
    weights: str | None = None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Few steps on small tiles, which labelled images are."""
        return {"steps": 1000, "tile_px": 64, "balance": 0.5}

    @property
    def what(self) -> str:
        """In words."""
        recipe = self.filled([(1, "one"), (2, "other")], 0)
        return (
            f"{_told(self.model, self.weights)}, head {recipe.head}, tuned: {recipe.tune}; "
            f"{recipe.steps} steps of {recipe.batch} tiles of {recipe.tile_px} px"
        )

    def data(self, classes: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
        """One scene."""
        return {"task": "segment", "backbone": self.model, "weights": self.weights, "scenes": _scenes(classes)}

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "BackboneMapper":
        """Tune on tiles of the image, which all of its spectra and the labels of the training pixels are in."""
        recipe, tiles, data = _tiled(self.recipe_of(image, seed), image, train)
        with training(recipe) as out:
            network, card = build(recipe, data, out)
            module = TuneModule(network, recipe, loss_of(recipe.task, data.counts, recipe.balance))
            learning = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
            batches = TileBatches(tiles, recipe, len(image.classes))
            steps = completed(run_loop(module, batches, recipe, claim(recipe, out), card))
        details = {"weights": size_of(module.trained), "steps": steps, "learning": learning, "tile_px": recipe.tile_px}
        return BackboneMapper(module.trained.for_inference(), card, details)


class Probe(ClassMethod):
    """A frozen backbone with a linear layer, which is a logistic regression on its features at the training pixels.

    Attributes:
        model: as of `Adapter`.
        weights: as of `Adapter`.
        settings: of the backbone's architecture; as options `settings.NAME=VALUE`.
        tile_px: side of the tiles that it sees; by default that of its card.
        per_class: at most so many pixels of a class are learnt from.
    """

    model: str = "spectral_vit_nano"
    weights: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    tile_px: int | None = Field(default=None, ge=1)
    per_class: int = Field(default=PER_CLASS, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _settings_by_name(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in options.items():
            path = name.split(".")
            put(fields, path, value_of(value) if len(path) > 1 else value)
        return fields

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"{_told(self.model, self.weights)}, frozen, with a linear layer fitted to at most {self.per_class} pixels "
            "of a class"
        )

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "BackboneMapper":
        """Fit the layer to what the backbone says of the training pixels."""
        recipe, tiles, data = _tiled(self._recipe(image, seed), image, train)
        with training(recipe) as out:
            network, card = build(recipe, data, out)
            fit_linear(network, tiles.areas[0], recipe.tile_px, self.per_class, seed)
        details = {
            "weights": size_of(network),
            "learning": size_of(network.get_submodule("head")),
            "tile_px": recipe.tile_px,
        }
        return BackboneMapper(network.for_inference(), card, details)

    def _recipe(self, image: LabelledImage, seed: int) -> TuneRecipe:
        """What is said of the network by those who tune it."""
        return TuneRecipe.model_validate(
            {
                "kind": "tune",
                "backbone": self.model,
                "weights": self.weights,
                "settings": self.settings,
                "tune": "frozen",
                "head": "linear",
                "scenes": _scenes({one.value: {"name": one.name} for one in image.classes}),
                "tile_px": self.tile_px or model_card(self.model, self.weights, **self.settings).tile,
                "seed": seed,
                "threads": torch.get_num_threads(),
            }
        )


@dataclass(frozen=True, eq=False)
class BackboneMapper:
    """A backbone with a head that has learnt.

    Attributes:
        network: in its form for inference.
        card: bands, means and deviations, size and halo of tiles.
        details: its size.
    """

    network: nn.Module
    card: Card
    details: Mapping[str, Any]

    def map(self, image: LabelledImage) -> Float32Array:
        """Probabilities `(K, y, x)`, blended between tiles."""
        cube = area(image, self.card).cube
        tiling = Tiling(self.card.tile, self.card.halo, self.card.multiple, len(self.card.classes), exact=True)
        lattice = Lattice.of(image.shape, tiling)

        def tile(number: int) -> Float32Array:
            window: Window = lattice.window(number)
            x = torch.from_numpy(padded(cube[:, *window.slices], lattice.shape)[None])
            height, width = window.shape
            return np.asarray(self.network(x)[0, :, :height, :width].softmax(0).numpy())

        with torch.inference_mode():
            return blend(lattice, whole(image.shape), tile)


METHODS = {"adapter": Adapter, "probe": Probe}


def _told(model: str, weights: str | None) -> str:
    """A backbone in words; a family alone has random weights."""
    return f"{'trained' if weights or '.' in model else 'untrained'} {model}"


def _scenes(classes: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    """A recipe's scenes where there is one image, in memory."""
    return {"train": [{"scene": NOWHERE, "labels": NOWHERE}], "classes": classes}


def _tiled(recipe: TuneRecipe, image: LabelledImage, train: BoolArray) -> tuple[TuneRecipe, SceneTiles, TuneData]:
    """The recipe with tiles that fit into the image, the tiles with the labels of training pixels, and what they are.

    Raises:
        ModelError: no such backbone, or the image lacks bands of it.
        InputError: the image is of another quantity.
    """
    base = model_card(recipe.backbone, recipe.weights, **recipe.settings)
    recipe = recipe.model_copy(update={"tile_px": _fitting(recipe.tile_px, image, base.multiple)})
    channels = channels_of(recipe, base, [image])
    tiles = SceneTiles([area(image, base.model_copy(update=dict(channels))).within(train)], [None], recipe.tile_px)
    counts = tiles.class_counts(len(image.classes))
    return recipe, tiles, TuneData(tiles, tiles, None, channels, classes=image.classes, counts=counts)


def _fitting(px: int, image: LabelledImage, multiple: int) -> int:
    """The side of tiles, px, no longer than the image's."""
    return max(min(px, *image.shape) // multiple, 1) * multiple
