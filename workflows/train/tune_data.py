"""What a backbone is tuned on: tiles to learn from, to choose weights by and to test with, and their channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import Card, CardClass, InputBands
from cubeloom.models.network import Backbone
from cubeloom.models.registry import create_model
from cubeloom.workflows.schema import Workflow

from .labelled import LabelledImage, read_images
from .labels_recipe import LabelledScene, PixelSplit
from .split import split_pixels
from .tune_recipe import ScenesPart, TuneRecipe
from .tune_tiles import Area, GridTiles, SceneTiles, Tiles, area

BoolArray = npt.NDArray[np.bool_]
CHANNELS = ("sensor", "wavelengths_nm", "variable", "units", "bands", "input_bands", "polarisations", "mean", "std")
"""Fields of a card that say what a network sees."""


@dataclass(frozen=True, eq=False)
class TuneData:
    """Tiles and what they are of.

    Attributes:
        train: to learn from.
        validation: to choose weights by.
        test: that decide nothing; None for none.
        channels: fields of a card that say what the network sees.
        classes: in the order of the logits.
        outputs: names of regressed values.
        counts: pixels (or tiles) of each class in `train`; None for values.
        facts: of the data, for the card.
    """

    train: Tiles
    validation: Tiles
    test: Tiles | None
    channels: Mapping[str, Any]
    classes: tuple[CardClass, ...] = ()
    outputs: tuple[str, ...] = ()
    counts: npt.NDArray[np.int64] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes or values."""
        return self.outputs or tuple(one.name for one in self.classes)


def tune_data(recipe: TuneRecipe, base: Card) -> TuneData:
    """The data of a recipe.

    Args:
        recipe: what to read.
        base: card of the backbone.

    Raises:
        InputError: data that cannot be used.
        ModelError: their bands do not cover those of the backbone.
    """
    if recipe.scenes is not None:
        return _of_scenes(recipe, recipe.scenes, base)
    if recipe.earth is None:
        raise ConfigError("nothing to learn from: give earth or scenes")
    from .earth_tiles import earth_data  # which builds on this module

    return earth_data(recipe, recipe.earth, base)


def is_trained(recipe: TuneRecipe) -> bool:
    """Whether the backbone comes with weights, whose channels the data must then be brought to."""
    return recipe.weights is not None or "." in recipe.backbone


def channels_of(recipe: TuneRecipe, base: Card, images: Sequence[LabelledImage]) -> Mapping[str, Any]:
    """Fields of a card that say what the network sees: of a trained backbone, or one of certain bands, its own card's.

    Else what the images have.

    Raises:
        InputError: the first image is of another quantity than a trained backbone takes.
    """
    listed = base.input_bands is not None or bool(base.polarisations)
    known = is_trained(recipe) or (listed and _takes_certain_bands(recipe))
    return _of_backbone(base, images[0]) if known else _of_images(images)


def _takes_certain_bands(recipe: TuneRecipe) -> bool:
    """Whether a backbone takes one number of bands alone."""
    with torch.device("meta"):
        network = create_model(recipe.backbone, **recipe.settings)
    return isinstance(network, Backbone) and network.channels is not None


def _of_scenes(recipe: TuneRecipe, part: ScenesPart, base: Card) -> TuneData:
    stages = Workflow(name="tuning", steps=part.steps).stages()
    sources = (*part.train, *part.validation, *part.test)
    # Each with its own bands, the bad ones as well: a card's bands are taken from each by itself.
    of_both = base.input_bands is not None and bool(base.polarisations)
    options: dict[str, Any] = {"stages": stages, "variable": part.variable, "usable": False, "radar": of_both}
    images = [image for one in sources for image in read_images([one], part.classes, **options)]
    learnt = images[: len(part.train)]
    channels = channels_of(recipe, base, learnt)
    seen = base.model_copy(update=dict(channels))
    masks = [_masks(image, part) for image in learnt]
    every = [_area(one, image, seen, part, options) for one, image in zip(sources, images, strict=True)]
    areas, held, tested = _parts(every, len(part.train), len(part.validation))
    train = SceneTiles(
        [one.within(mask.train) for one, mask in zip(areas, masks, strict=True)],
        [mask.validation | mask.test for mask in masks],
        recipe.tile_px,
    )
    validation = held or [one.within(mask.validation) for one, mask in zip(areas, masks, strict=True)]
    test = tested or [one.within(mask.test) for one, mask in zip(areas, masks, strict=True)]
    split = {
        "test": _split_fact(part.test, part.split),
        "validation": _split_fact(part.validation, part.validation_split),
    }
    return TuneData(
        train,
        GridTiles(validation, recipe.tile_px),
        GridTiles(test, recipe.tile_px),
        channels,
        classes=learnt[0].classes,
        counts=train.class_counts(len(learnt[0].classes)),
        facts={"sources": [dict(image.source) for image in images], "split": split},
    )


@dataclass(frozen=True, eq=False)
class _Masks:
    """Labelled pixels of an image that learn, choose and test, `(y, x)` each."""

    train: BoolArray
    validation: BoolArray
    test: BoolArray


def _masks(image: LabelledImage, part: ScenesPart) -> _Masks:
    labelled, none = image.labels > 0, np.zeros(image.shape, bool)
    train, test = (labelled, none) if part.test else _divided(image, labelled, part.split)
    train, validation = (train, none) if part.validation else _divided(image, train, part.validation_split)
    return _Masks(train, validation, test)


def _divided(image: LabelledImage, among: BoolArray, split: PixelSplit) -> tuple[BoolArray, BoolArray]:
    parts = split_pixels(replace(image, labels=np.where(among, image.labels, 0).astype(np.uint8)), split)
    return parts.train, parts.test


def _area(
    source: LabelledScene, image: LabelledImage, card: Card, part: ScenesPart, options: Mapping[str, Any]
) -> Area:
    """An image as a network sees it; of two dates where the recipe names the other."""
    if part.other_date is None:
        return area(image, card)
    other = source.model_copy(update={"scene": source.guides[part.other_date], "guides": {}})
    (beside,) = read_images([other], part.classes, **options)
    return area(image, card).with_date(area(beside, card))


def _parts(areas: list[Area], train: int, validation: int) -> tuple[list[Area], list[Area], list[Area]]:
    return areas[:train], areas[train : train + validation], areas[train + validation :]


def _split_fact(scenes: Sequence[object], split: PixelSplit) -> Any:  # noqa: ANN401 - JSON
    return f"{len(scenes)} other scenes" if scenes else split.model_dump(mode="json")


def _of_backbone(base: Card, image: LabelledImage) -> Mapping[str, Any]:
    """The channels that the backbone was trained on.

    Raises:
        InputError: the image is of another quantity.
    """
    if base.units is not None and image.units and image.units != base.units:
        advice = "put to_db among the steps" if base.units == "dB" else "take another cube (variable)"
        raise InputError(
            f"{image.name}: in units of {image.units!r}, the backbone {base.name} was trained on {base.units!r}; "
            f"{advice}, or take an untrained backbone"
        )
    return {**{name: getattr(base, name) for name in CHANNELS}, "variable": image.variable or base.variable}


def _of_images(images: Sequence[LabelledImage]) -> Mapping[str, Any]:
    """Channels for a network that has seen none: the usable bands of the images, standardised by their pixels."""
    first = images[0]
    usable = np.ones(len(first.cube), bool) if first.bands is None else first.bands.good & first.bands.preferred
    pixels = np.concatenate([image.cube[usable][:, image.valid] for image in images], axis=1).astype(np.float64)
    fields: dict[str, Any] = {
        "sensor": first.sensor or None,
        "variable": first.variable or None,
        "units": first.units or None,
        "bands": int(usable.sum()),
        "mean": tuple(np.nanmean(pixels, axis=1).tolist()),
        "std": tuple(np.maximum(np.nanstd(pixels, axis=1), 1e-6).tolist()),
        "input_bands": None,
        "polarisations": (),
        "wavelengths_nm": None,
    }
    if first.bands is None:
        return fields
    bands = first.bands.take(usable)
    return {
        **fields,
        "input_bands": InputBands(
            numbers=tuple(bands.number.tolist()),
            wavelengths_nm=tuple(bands.wavelength.tolist()),
            fwhm_nm=tuple(bands.fwhm.tolist()),
        ),
        "wavelengths_nm": (float(bands.wavelength.min()), float(bands.wavelength.max())),
    }
