"""Recipes that tune a spectral backbone, with a head, to a task; no torch here, so that recipes are read quickly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .labels_recipe import ClassTable, LabelledScene, PixelSplit
from .loop_part import Count, Fraction, Positive, StartPart, weights_beside

TuneTask = Literal["segment", "classify", "multilabel", "regress"]
Head = Literal["conv", "fcn", "upernet", "linear"]
EarthSetName = Literal[
    "cdl", "nlcd", "eurocrops", "bdforet", "treemap", "bnetd", "corine", "desis_cdl", "eo1_cdl", "hyperview"
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraPart(_Part):
    """Low-rank adapters (Hu et al. 2022, arXiv 2106.09685) on the attention of a vision transformer.

    Attributes:
        rank: of the matrices that are added to the weights.
        alpha: they are scaled by `alpha / rank`.
        dropout: of their input, in training.
        targets: linear layers of the attention that get one.
        adapter: train the spectral adapter as well.
    """

    rank: Count = 8
    alpha: Count = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Literal["qkv", "proj"], ...], Field(min_length=1)] = ("qkv", "proj")
    adapter: bool = False


class AugmentPart(_Part):
    """What is done at random to a tile before the network sees it.

    Attributes:
        crop_scale: share of the tile's area that is cut out and brought to the tile's size.
        flips: left to right and top to bottom, each in half of the tiles.
        drop_bands: largest share of the channels that are set to their mean; how many is drawn for each tile, so that
            a scene that lacks bands is no surprise.
        noise: largest standard deviation of white noise, in units of a channel's own; drawn for each tile.
    """

    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (1.0, 1.0)
    flips: bool = True
    drop_bands: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale is a range from low to high; found {list(self.crop_scale)}")
        return self


class EarthPart(_Part):
    """One of the nine downstream sets of SpectralEarth (Braham et al. 2024), or HyperView, as they are handed out.

    Attributes:
        set: which.
        root: the folder with `{set}/{images}/{patch}/{scene}.tif`.
        splits: the folder with `train.txt`, `val.txt` and `test.txt`; None for where the set keeps them.
        split: `published`, whose parts share scenes, or `scenes`, with no scene in two parts.
        fraction: share of the training tiles to learn from.
    """

    set: EarthSetName
    root: Path
    splits: Path | None = None
    split: Literal["published", "scenes"] = "published"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0

    def beside(self, folder: Path) -> "EarthPart":
        """The same with paths relative to `folder`."""
        return self.model_copy(update={"root": folder / self.root, "splits": self.splits and folder / self.splits})


class ScenesPart(_Part):
    """Labelled scenes, of which tiles are cut.

    Attributes:
        train: scenes to learn from.
        validation: scenes that choose the weights; where there are none, areas of the training scenes.
        test: scenes that nothing else has seen; where there are none, the test areas of the training scenes.
        split: which areas of a training scene test; no training tile holds a pixel of them.
        validation_split: which areas of what then trains choose the weights.
        classes: name and colour of every class value.
        steps: stages that run on the scenes before, written as in a workflow.
        variable: the cube to learn from; None for what the last step made.
        other_date: name of the guide of each scene that shows the same pixels at another date; the network then labels
            the change between the two.
    """

    train: Annotated[tuple[LabelledScene, ...], Field(min_length=1)]
    validation: tuple[LabelledScene, ...] = ()
    test: tuple[LabelledScene, ...] = ()
    split: PixelSplit = PixelSplit(block_px=64, test_fraction=0.2)
    validation_split: PixelSplit = PixelSplit(block_px=64, test_fraction=0.2, seed=1)
    classes: Annotated[ClassTable, Field(min_length=2)]
    steps: tuple[str | dict[str, dict[str, Any] | None], ...] = ()
    variable: str | None = None
    other_date: str | None = None

    @model_validator(mode="after")
    def _has_both_dates(self) -> Self:
        every = (*self.train, *self.validation, *self.test)
        lacking = [str(one.scene) for one in every if self.other_date and self.other_date not in one.guides]
        if lacking:
            raise ValueError(
                f"other_date is {self.other_date}: give {', '.join(lacking)} guides: {{{self.other_date}: PRODUCT}}"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        places = [scene.scene for scene in (*self.train, *self.validation, *self.test)]
        shared = sorted({str(place) for place in places if places.count(place) > 1})
        if shared:
            raise ValueError(
                f"{', '.join(shared)} stands in more than one place; what trains, validates and tests differ"
            )
        for name in ("split", "validation_split"):
            if not getattr(self, name).apart:
                raise ValueError(f"{name}.method random puts test pixels into training tiles; choose blocks or tiles")
        return self

    def beside(self, folder: Path) -> "ScenesPart":
        """The same with paths relative to `folder`."""
        moved = {
            name: tuple(one.beside(folder) for one in getattr(self, name)) for name in ("train", "validation", "test")
        }
        return self.model_copy(update=moved)


class AboutTuned(_Part):
    """What the card says that training cannot know.

    Attributes:
        licence: of the weights.
        note: what they are good for, and what not.
    """

    licence: str = ""
    note: str = ""


class TuneRecipe(StartPart):
    """How to tune a backbone, with a head, to a task.

    The defaults are those of SpectralEarth's downstream training (Braham et al. 2024), but for batch norms that are
    not trained: here they keep their statistics.

    Attributes:
        task: `segment` gives every pixel a class, `classify` the whole tile one (the most frequent of its pixels),
            `multilabel` those of all its pixels, `regress` values.
        backbone: family, or family and tag of weights that are shipped. A family without `weights` is untrained.
        weights: of the backbone: a file or `hf:owner/repo/file@sha256`.
        settings: of the backbone's architecture.
        head: for `segment`: `conv` upsamples in steps, `fcn` and `linear` at once, `upernet` joins several levels.
        tune: what of the backbone learns: nothing (`frozen`), its spectral `adapter`, that and the `first_n` stages or
            blocks, all (`full`), or low-rank additions to its attention (`lora`).
        first: how many, with `first_n`.
        lora: with `lora`.
        backbone_rate: learning rate of the backbone, relative to the head's.
        drifting_norms: let batch norms that do not learn follow the new data's statistics, as the published code does.
        earth: a set of SpectralEarth to learn from; or
        scenes: labelled scenes.
        location: give the network a prior by where a tile's middle lies on Earth, which learns with the head.
        tile_px: side of a tile, px.
        batch: tiles of a step.
        balance: 0 counts every pixel (or label) alike, 1 every class; between, weights are (class size) ** -balance.
        augment: what is done at random to a training tile.
        validate_every: steps.
        best_by: what of the validation decides which weights are saved; by default the least loss.
        about: what the card says that training cannot know.
    """

    kind: Literal["tune"]
    task: TuneTask = "segment"
    backbone: str = "spectral_vit_nano"
    settings: dict[str, Any] = Field(default_factory=dict)
    head: Head = "conv"
    tune: Literal["frozen", "adapter", "first_n", "full", "lora"] = "adapter"
    first: Count = 1
    lora: LoraPart = LoraPart()
    backbone_rate: Positive = 1.0
    drifting_norms: bool = False
    earth: EarthPart | None = None
    scenes: ScenesPart | None = None
    location: bool = False
    tile_px: Count = 128
    batch: Count = 8
    balance: Fraction = 0.0
    augment: AugmentPart = AugmentPart()
    steps: Count = 10_000
    learning_rate: Positive = 1e-3
    schedule: Literal["one_cycle", "cosine", "multistep", "poly", "constant"] = "cosine"
    warmup: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    validate_every: Count = 200
    best_by: Literal["loss", "overall_accuracy", "macro_f1", "micro_f1", "macro_iou", "micro_map", "macro_map"] = "loss"
    about: AboutTuned = AboutTuned()

    def _problems(self) -> Iterator[str]:
        """What does not fit together."""
        if (self.earth is None) == (self.scenes is None):
            yield "give either earth, a set of SpectralEarth, or scenes, labelled scenes of your own"
        if self.tune != "first_n" and "first" in self.model_fields_set:
            yield f"first is for tune first_n, not {self.tune}; leave it out"
        if self.tune != "lora" and "lora" in self.model_fields_set:
            yield f"lora is for tune lora, not {self.tune}; leave it out"
        if self.task != "segment" and "head" in self.model_fields_set:
            yield f"head is for task segment, not {self.task}; leave it out"
        if self.task == "regress" and self.scenes is not None:
            yield "scenes have classes and no values to regress; choose another task, or earth with hyperview"
        if self.task != "segment" and self.scenes is not None and self.scenes.other_date is not None:
            yield f"scenes.other_date is for task segment, not {self.task}; leave it out"
        if self.location and (self.scenes is None or self.task == "regress"):
            yield "location is for classes of scenes, whose map projection tells where tiles lie; leave it out"
        known = BEST_BY[self.task]
        if self.best_by not in known:
            yield f"best_by {self.best_by} is not measured with task {self.task}; expected {', '.join(known)}"

    def beside(self, folder: Path) -> "TuneRecipe":
        """The recipe with absolute paths, where those it was written with are relative to `folder`."""
        folder = folder.resolve()
        update = {
            "earth": self.earth and self.earth.beside(folder),
            "scenes": self.scenes and self.scenes.beside(folder),
            "weights": weights_beside(self.weights, folder),
        }
        return self.model_copy(update=update)


_OF_CLASSES = ("loss", "overall_accuracy", "macro_f1", "macro_iou")
BEST_BY: dict[TuneTask, tuple[str, ...]] = {
    "segment": _OF_CLASSES,
    "classify": _OF_CLASSES,
    "multilabel": ("loss", "micro_f1", "macro_f1", "micro_map", "macro_map"),
    "regress": ("loss",),
}
"""Measures of the validation by which weights may be chosen."""
