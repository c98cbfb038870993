"""A land-cover head in a minute: a linear layer behind a frozen backbone, fitted to the labels of one scene."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import Card
from cubeloom.models.network import Backbone, Network
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.scene import spec_of
from cubeloom.workflows.evaluate.class_metrics import class_metrics, confusion_of

from .labelled import LabelledImage, card_classes, scene_image
from .labels_recipe import ClassOf, LabelledScene, PixelSplit
from .probe import PER_CLASS, linear_probe, pixel_features
from .split import split_pixels
from .task_card import segmenter_card
from .tune_tiles import IGNORE, Area, area

IntArray = npt.NDArray[np.int64]
_SPLIT = PixelSplit()


def fit_head(
    scene: xr.Dataset,
    labels: Path,
    classes: Mapping[int, str | ClassOf],
    *,
    model: str,
    out: Path,
    weights: str | None = None,
    field: str | None = None,
    radar: xr.Dataset | None = None,
    split: PixelSplit = _SPLIT,
    per_class: int = PER_CLASS,
) -> Card:
    """Fit a linear layer to what a frozen backbone says of a scene's labelled pixels, and save the two as one network.

    Args:
        scene: a Scene; its subject is what is learnt from.
        labels: a raster of class values on the scene's grid, 0 for none, or a vector file.
        classes: name, or name and colour, of every class value.
        model: the backbone, as `create_model` names it.
        out: the `.safetensors` file to write, which the stage `classify` takes.
        weights: of the backbone, where `model` is a family alone.
        field: attribute of the vector file that holds class values or names.
        radar: a radar scene on the same grid, for a backbone that sees both (see `cubeloom.pair`).
        split: which labelled pixels do not train but test; the card has the scores.
        per_class: at most so many pixels of a class are learnt from.

    Returns:
        The card of what was saved.

    Raises:
        ConfigError: the model is no backbone.
        ModelError: no such model, or the scene lacks its bands.
        InputError: labels that cannot be used.
    """
    base = model_card(model, weights)
    encoder: Any = create_model(model, weights)
    if not isinstance(encoder, Backbone):
        raise ConfigError(f"{model}: {base.family} is no backbone, such as spectral_vit_nano")
    encoder.reset_head(0)
    table = {value: ClassOf(name=one) if isinstance(one, str) else one for value, one in classes.items()}
    labelled = LabelledScene(scene=Path(spec_of(scene).scene_id), labels=labels, field=field)
    image = scene_image(scene, labelled, card_classes(table), radar=radar)
    image = _of_present_classes(image)
    parts, seen = split_pixels(image, split), area(image, base)
    card = segmenter_card(base, out, "linear", image.classes)
    network: Any = create_model(card.family, None, **card.settings)
    network.encoder.load_state_dict(encoder.state_dict())
    probe = fit_linear(network, seen.within(parts.train), base.tile, per_class, split.seed)
    found = _tested(probe, encoder, seen.within(parts.test), base.tile, len(image.classes))
    told = {
        "metrics": {name: value for name, value in found.items() if isinstance(value, float)},
        "training": {"source": dict(image.source), "split": split.model_dump(mode="json"), "test": found},
    }
    return save_model(network, out, card.model_copy(update=told))


def fit_linear(network: Any, seen: Area, tile: int, per_class: int, seed: int) -> Any:  # noqa: ANN401 - scikit-learn's
    """Fit the linear head of a network to what its backbone says of labelled pixels; the backbone stays as it is.

    Args:
        network: a `spectral_segmenter` with the head `linear`, whose head is set.
        seen: an image as it sees it, with the labels of the pixels to learn from.
        tile: side of the tiles that the backbone sees, px.
        per_class: at most so many pixels of a class are learnt from.
        seed: which ones.

    Returns:
        The regression, as of `linear_probe`.

    Raises:
        InputError: one class alone has labels, or not every class of the head.
    """
    probe = linear_probe(*_sampled(network.encoder, seen, tile, per_class, seed))
    _set_linear(network.head, probe, network.head.out_channels)
    return probe


def _of_present_classes(image: LabelledImage) -> LabelledImage:
    """Without classes that no pixel has.

    Raises:
        InputError: fewer than two are left.
    """
    present = tuple(one for one in image.classes if image.counts[one.value])
    if len(present) < 2:
        raise InputError(f"{image.name}: labels of {len(present)} class; a head tells two or more apart")
    return replace(image, classes=present)


@torch.inference_mode()
def _labelled_features(encoder: Network, seen: Area, tile: int) -> Iterator[tuple[npt.NDArray[np.float32], IntArray]]:
    """Features (n, C) and class indices (n,) of the labelled pixels, tile by tile."""
    network: Any = encoder.for_inference()
    left = seen.target.copy()
    for row in range(0, left.shape[0], tile):
        for col in range(0, left.shape[1], tile):
            window = np.s_[row : row + tile, col : col + tile]
            target, cube = left[window], seen.cube[:, *window]
            if (target == IGNORE).all():
                continue
            below, right = (-side % network.multiple for side in target.shape)
            padded = np.pad(cube, ((0, 0), (0, below), (0, right)), mode="edge")
            features = network.features(torch.from_numpy(padded)[None], [len(network.levels) - 1])[0][0].numpy()
            fine = pixel_features(features, padded.shape[1:])[:, : target.shape[0], : target.shape[1]]
            yield fine[:, target != IGNORE].T, target[target != IGNORE]


def _sampled(
    encoder: Network, seen: Area, tile: int, per_class: int, seed: int
) -> tuple[npt.NDArray[np.float32], IntArray]:
    """At most `per_class` pixels of each class, drawn over the whole area."""
    draw, kept = np.random.default_rng(seed), np.full(seen.target.shape, IGNORE)
    for index in np.unique(seen.target[seen.target != IGNORE]):
        members = np.flatnonzero(seen.target == index)
        kept.ravel()[draw.permutation(members)[:per_class]] = index
    found = list(_labelled_features(encoder, Area(seen.name, seen.cube, kept), tile))
    return np.concatenate([features for features, _ in found]), np.concatenate([indices for _, indices in found])


def _tested(probe: Any, encoder: Network, seen: Area, tile: int, classes: int) -> dict[str, Any]:  # noqa: ANN401 - scikit-learn's
    confusion = np.zeros((classes, classes), np.int64)
    for features, indices in _labelled_features(encoder, seen, tile):
        confusion += confusion_of(indices, probe.predict(features), classes)
    return {**class_metrics(confusion), "confusion": confusion.tolist()}


def _set_linear(layer: torch.nn.Conv2d, probe: Any, classes: int) -> None:  # noqa: ANN401 - scikit-learn's
    """Standardisation and regression in one layer; enlarging its scores is enlarging what it sees, for it is linear."""
    scaler, model = probe[0], probe[-1]
    weight = model.coef_ / scaler.scale_
    bias = model.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes scikit-learn has the difference alone
        weight, bias = np.stack([0 * weight[0], weight[0]]), np.array([0, bias[0]])
    if len(weight) != classes:
        raise InputError(f"training pixels of {len(weight)} classes, {classes} have labels: change the split")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight)[..., None, None])
        layer.get_parameter("bias").copy_(torch.from_numpy(bias))
