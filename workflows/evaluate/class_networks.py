"""Networks that label whole images, trained as `cubeloom train` trains them; of these FreeNet."""

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
from cubeloom.models.registry import create_model
from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.stages import explain
from cubeloom.workflows.train.freenet import FreenetModule, freenet_card, window_pixels
from cubeloom.workflows.train.freenet_data import FreenetBatches, pictures
from cubeloom.workflows.train.freenet_recipe import FreenetRecipe
from cubeloom.workflows.train.labelled import LabelledImage
from cubeloom.workflows.train.loop import LoopReport, claim, prepare, run_loop
from cubeloom.workflows.train.loop_part import LoopPart
from cubeloom.workflows.train.recipe import load_recipe
from cubeloom.workflows.train.windows import ImageWindow, image_windows

from .class_methods import ClassMethod, Float32Array, usable_bands

AnyRecipe = TypeVar("AnyRecipe", bound=LoopPart)

NOWHERE = Path("image")
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
            put(settings, name.split("."), value_of(value))
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
        return {"images": [{"scene": NOWHERE, "labels": NOWHERE}], "classes": classes}

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "FreeNetMapper":
        """Train on the whole image."""
        recipe, seen = self.recipe_of(image, seed), usable(image)
        windows = image_windows([image.shape], window_pixels(recipe), HALO)
        with training(recipe) as out:
            card = freenet_card(recipe, out, [seen], max(max(window.shape) for window in windows))
            settings: dict[str, Any] = card.settings
            module = FreenetModule(create_model("freenet", **settings).train(), recipe)
            batches = FreenetBatches(pictures([seen], card), [train], windows, recipe)
            steps = completed(run_loop(module, batches, recipe, claim(recipe, out), card))
        details = {"weights": size_of(module.trained), "steps": steps, "windows": len(windows)}
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


METHODS = {"freenet": FreeNet}


def usable(image: LabelledImage) -> LabelledImage:
    """The image with the bands alone that single spectra are classified by."""
    kept = usable_bands(image)
    return replace(image, cube=image.cube[kept], bands=image.bands and image.bands.take(kept))


@contextmanager
def training(recipe: LoopPart) -> Iterator[Path]:
    """A file for weights that nobody keeps; torch's threads and random numbers are afterwards as they were."""
    threads = torch.get_num_threads()
    with TemporaryDirectory(prefix="cubeloom-") as folder, torch.random.fork_rng(devices=[]):
        try:
            prepare(recipe)
            yield Path(folder) / "network.safetensors"
        finally:
            torch.set_num_threads(threads)


def completed(report: LoopReport) -> int:
    """The steps that a training came to.

    Raises:
        Stopped: a signal ended it.
    """
    if report.stopped_by is not None:
        raise Stopped(f"stopped by {report.stopped_by.name} while a network was trained; nothing was written")
    return report.step


def size_of(network: nn.Module) -> int:
    """How many weights a network has."""
    return sum(weight.numel() for weight in network.parameters())


def value_of(text: Any) -> Any:  # noqa: ANN401 - of an option
    """An option's number, truth or list where it is one, for fields that take anything."""
    with suppress(TypeError, ValueError):
        return json.loads(text)
    return text


def put(settings: dict[str, Any], path: list[str], value: Any) -> None:  # noqa: ANN401 - any option
    """Set a field, or one of a part."""
    *parts, name = path
    for part in parts:
        inner = settings.get(part)
        settings[part] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[part]
    settings[name] = value
