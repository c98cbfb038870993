"""Networks that label whole images, trained as `cubeloom train` trains them: FreeNet, and spectral backbones."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
import torch
from pydantic import ConfigDict, PrivateAttr, ValidationError, model_validator
from torch import nn

from cubeloom.errors import ConfigError, Stopped
from cubeloom.models.cards import Card
from cubeloom.models.freenet import HALO
from cubeloom.models.registry import create_model, model_card
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.stages import explain
from cubeloom.pipeline.tiles import Lattice, Tiling, blend, padded
from cubeloom.workflows.train.freenet import FreenetModule, freenet_card, window_pixels
from cubeloom.workflows.train.freenet_data import FreenetBatches, pictures
from cubeloom.workflows.train.freenet_recipe import FreenetRecipe
from cubeloom.workflows.train.labelled import LabelledImage
from cubeloom.workflows.train.loop import LoopReport, claim, prepare, run_loop
from cubeloom.workflows.train.loop_part import LoopPart
from cubeloom.workflows.train.recipe import load_recipe
from cubeloom.workflows.train.tune import TuneModule, build
from cubeloom.workflows.train.tune_data import TuneData, channels_of
from cubeloom.workflows.train.tune_recipe import TuneRecipe
from cubeloom.workflows.train.tune_tasks import loss_of
from cubeloom.workflows.train.tune_tiles import SceneTiles, TileBatches, area
from cubeloom.workflows.train.windows import ImageWindow, image_windows

from .class_methods import ClassMethod, Float32Array, usable_bands

AnyRecipe = TypeVar("AnyRecipe", bound=LoopPart)

_NOWHERE = Path("image")
"""Stands in a recipe for an image that is in memory."""


class RecipeMethod(ClassMethod, Generic[AnyRecipe]):
    """A training whose options are the fields of its recipe, those inside a part as `part.field`.

    Attributes:
        recipe: a recipe file whose fields hold where no option says otherwise; images, classes and splits in it are not
            looked at.
    """

    model_config = ConfigDict(extra="allow")
    kind: ClassVar[type[LoopPart]]
    data_fields: ClassVar[frozenset[str]]
    """Fields that an evaluation fills: where the data are, and how they are split."""

    recipe: Path | None = None
    _settings: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_recipe(self) -> Self:
        options = dict(self.model_extra or {})
        if filled := sorted({*self.data_fields, "seed", "kind"} & {name.partition(".")[0] for name in options}):
            raise ConfigError(f"--methods: option {filled[0]!r} is for the evaluation to give; leave it out")
        settings = {**self.defaults(), **self._of_file()}
        for name, value in options.items():
            _put(settings, name.split("."), _value(value))
        self._settings.update(settings)
        try:
            self.filled([(1, "one"), (2, "other")], 0)
        except ValidationError as error:
            raise ConfigError(f"--methods: {explain(error, self.kind)}") from None
        return self

    def _of_file(self) -> dict[str, Any]:
        if self.recipe is None:
            return {}
        found = load_recipe(self.recipe)
        if not isinstance(found, self.kind):
            raise ConfigError(f"{self.recipe}: a recipe of another kind; expected one with kind: {self.named()}")
        return found.model_dump(exclude={*self.data_fields, "seed"}, exclude_unset=True)

    @classmethod
    def named(cls) -> str:
        """The recipe's `kind`."""
        return str(cls.kind.model_fields["kind"].annotation.__args__[0])  # type: ignore[union-attr]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Fields whose default is another one here."""
        return {}

    @abstractmethod
    def data(self, classes: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
        """The fields that say where the data are."""

    def filled(self, classes: list[tuple[int, str]], seed: int) -> AnyRecipe:
        """The recipe for an image with these classes, by value and name."""
        table = {value: {"name": name} for value, name in classes}
        fields = {**self._settings, **self.data(table), "kind": self.named(), "seed": seed}
        fields.setdefault("threads", torch.get_num_threads())
        return cast(AnyRecipe, self.kind.model_validate(fields))

    def recipe_of(self, image: LabelledImage, seed: int) -> AnyRecipe:
        """The recipe for an image."""
        return self.filled([(one.value, one.name) for one in image.classes], seed)


class FreeNet(RecipeMethod[FreenetRecipe]):
    """FreeNet (Zheng, Zhong, Ma and Zhang, TGRS 2020), which sees the whole image at every step."""

    kind: ClassVar[type[LoopPart]] = FreenetRecipe
    data_fields: ClassVar[frozenset[str]] = frozenset(
        {"images", "classes", "stages", "variable", "split", "judge_every"}
    )

    @property
    def what(self) -> str:
        """In words."""
        recipe = self.filled([(1, "one"), (2, "other")], 0)
        return f"FreeNet of width {recipe.width:g}, GS² batches of {recipe.quota} a class, {recipe.steps} steps"

    def data(self, classes: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
        """One image."""
        return {"images": [{"scene": _NOWHERE, "labels": _NOWHERE}], "classes": classes}

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "FreeNetMapper":
        """Train on the whole image."""
        recipe, seen = self.recipe_of(image, seed), usable(image)
        windows = image_windows([image.shape], window_pixels(recipe), HALO)
        with _training(recipe) as out:
            card = freenet_card(recipe, out, [seen], max(max(window.shape) for window in windows))
            settings: dict[str, Any] = card.settings
            module = FreenetModule(create_model("freenet", **settings).train(), recipe)
            batches = FreenetBatches(pictures([seen], card), [train], windows, recipe)
            steps = _completed(run_loop(module, batches, recipe, claim(recipe, out), card))
        details = {"weights": _size(module.trained), "steps": steps, "windows": len(windows)}
        return FreeNetMapper(module.trained.for_inference(), card, windows, recipe.valid_only, details)


@dataclass(frozen=True, eq=False)
class FreeNetMapper:
    """A trained FreeNet.

    Attributes:
        network: in its form for inference.
        card: bands, means and deviations.
        windows: of the image.
        valid_only: whether means are over valid pixels alone.
        details: its size.
    """

    network: nn.Module
    card: Card
    windows: list[ImageWindow]
    valid_only: bool
    details: Mapping[str, Any]

    def map(self, image: LabelledImage) -> Float32Array:
        """Probabilities `(K, y, x)`, window by window."""
        [seen] = pictures([usable(image)], self.card)
        made = np.zeros((len(self.card.classes), *image.shape), np.float32)
        with torch.inference_mode():
            for window in self.windows:
                valid = torch.from_numpy(np.ascontiguousarray(seen.valid[window.rows, window.cols]))[None]
                x = seen.x[None, :, window.rows, window.cols]
                scores = self.network(x, valid if self.valid_only else None)[0]
                made[:, window.core_rows, window.core_cols] = scores.softmax(0).numpy()[:, *window.inner]
        return made


class Adapter(RecipeMethod[TuneRecipe]):
    """A backbone behind a spectral adapter (SpectralEarth, Braham et al. 2024), tuned with a head on tiles of an image.

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
        trained = "trained" if self.weights or "." in self.model else "untrained"
        return (
            f"{trained} {self.model} behind its spectral adapter, head {recipe.head}, tuned: {recipe.tune}; "
            f"{recipe.steps} steps of {recipe.batch} tiles of {recipe.tile_px} px"
        )

    def data(self, classes: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
        """One scene."""
        scenes = {"train": [{"scene": _NOWHERE, "labels": _NOWHERE}], "classes": classes}
        return {"task": "segment", "backbone": self.model, "weights": self.weights, "scenes": scenes}

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "AdapterMapper":
        """Tune on tiles of the image, which all of its spectra and the labels of the training pixels are in."""
        recipe = self.recipe_of(image, seed)
        base = model_card(recipe.backbone, recipe.weights, **recipe.settings)
        recipe = recipe.model_copy(update={"tile_px": _fitting(recipe.tile_px, image, base.multiple)})
        channels = channels_of(recipe, base, [image])
        tiles = SceneTiles([area(image, base.model_copy(update=dict(channels))).within(train)], [None], recipe.tile_px)
        counts = tiles.class_counts(len(image.classes))
        data = TuneData(tiles, tiles, None, channels, classes=image.classes, counts=counts)
        with _training(recipe) as out:
            network, card = build(recipe, data, out)
            module = TuneModule(network, recipe, loss_of(recipe.task, counts, recipe.balance))
            learning = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
            batches = TileBatches(tiles, recipe, len(image.classes))
            steps = _completed(run_loop(module, batches, recipe, claim(recipe, out), card))
        details = {"weights": _size(module.trained), "steps": steps, "learning": learning, "tile_px": recipe.tile_px}
        return AdapterMapper(module.trained.for_inference(), card, details)


@dataclass(frozen=True, eq=False)
class AdapterMapper:
    """A tuned backbone.

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


METHODS = {"freenet": FreeNet, "adapter": Adapter}


def usable(image: LabelledImage) -> LabelledImage:
    """The image with the bands alone that single spectra are classified by."""
    kept = usable_bands(image)
    return replace(image, cube=image.cube[kept], bands=image.bands and image.bands.take(kept))


@contextmanager
def _training(recipe: LoopPart) -> Iterator[Path]:
    """A file for weights that nobody keeps; torch's threads and random numbers are afterwards as they were."""
    threads = torch.get_num_threads()
    with TemporaryDirectory(prefix="cubeloom-") as folder, torch.random.fork_rng(devices=[]):
        try:
            prepare(recipe)
            yield Path(folder) / "network.safetensors"
        finally:
            torch.set_num_threads(threads)


def _completed(report: LoopReport) -> int:
    """The steps that a training came to.

    Raises:
        Stopped: a signal ended it.
    """
    if report.stopped_by is not None:
        raise Stopped(f"stopped by {report.stopped_by.name} while a network was trained; nothing was written")
    return report.step


def _fitting(px: int, image: LabelledImage, multiple: int) -> int:
    """The side of tiles, px, no longer than the image's."""
    return max(min(px, *image.shape) // multiple, 1) * multiple


def _size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _value(text: Any) -> Any:  # noqa: ANN401 - of an option
    """An option's number, truth or list where it is one, for fields that take anything."""
    with suppress(TypeError, ValueError):
        return json.loads(text)
    return text


def _put(settings: dict[str, Any], path: list[str], value: Any) -> None:  # noqa: ANN401 - any option
    """Set a field, or one of a part."""
    *parts, name = path
    for part in parts:
        inner = settings.get(part)
        settings[part] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[part]
    settings[name] = value
