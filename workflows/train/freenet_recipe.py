"""What a recipe of kind `freenet` may say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .labels_recipe import ClassTable, ImageSource, LabelledScene, PixelSplit
from .loop_part import Count, LoopPart
from .stratified import QUOTA, SEED

Share = Annotated[float, Field(ge=0, lt=1)]


class Augmentation(BaseModel):
    """What a step changes of an image at random; the authors of FreeNet change nothing.

    Attributes:
        turns: one of the eight ways to turn and flip it.
        noise: white noise of so many standard deviations of a band.
        brightness: all bands of the image times a factor, whose logarithm has this standard deviation.
        drop_bands: at most this share of the bands is set to its mean, another share at each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: bool = False
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    drop_bands: Share = 0.0


class FreenetRecipe(LoopPart):
    """How to train FreeNet to label whole images; the fields of the loop are those of `LoopPart`.

    As they stand, all fields but `split` and `valid_only` are the authors' (FPGA: Zheng, Zhong, Ma and Zhang, TGRS
    2020). Their split is `{method: random}`.

    Attributes:
        images: what to learn from; further images have the bands and classes of the first.
        classes: name and colour of every class value; none where all images are standard scenes, whose are known.
        stages: what runs on scenes before, written as in a workflow.
        variable: the cube of scenes to learn from; by default what the last stage made.
        split: which labelled pixels train; the metrics are those of the others. No choice is made by them.
        quota: pixels of a class in a step (GS²); a class with fewer in training takes part with all it has.
        width: factor on the network's numbers of features.
        optimiser: stochastic gradients with momentum, or AdamW.
        momentum: of `sgd`.
        valid_only: means and normalisations are over valid pixels alone; the authors' also count the zeros that an
            image is padded with.
        augmentation: what a step changes at random.
        memory_gib: what one step may take; a larger image is learnt, and later labelled, in overlapping windows.
        judge_every: steps from one look at the test pixels to the next; None looks in the end.
        licence: of the weights.
    """

    kind: Literal["freenet"]
    images: Annotated[tuple[ImageSource, ...], Field(min_length=1)]
    classes: ClassTable = Field(default_factory=dict)
    stages: tuple[str | dict[str, dict[str, Any] | None], ...] = ()
    variable: str | None = None
    split: PixelSplit = PixelSplit()
    quota: Count = QUOTA
    width: Annotated[float, Field(ge=1 / 16, le=16)] = 1.0
    optimiser: Literal["sgd", "adamw"] = "sgd"
    momentum: Share = 0.9
    valid_only: bool = True
    augmentation: Augmentation = Augmentation()
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    judge_every: Count | None = None
    licence: str = "Apache-2.0"

    steps: Count = 1000
    schedule: Literal["one_cycle", "cosine", "multistep", "poly", "constant"] = "poly"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 35.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = SEED
    checkpoint_every: Count = 100
    log_every: Count = 10

    def _problems(self) -> Iterator[str]:
        """What does not fit together."""
        labelled = [image for image in self.images if isinstance(image, LabelledScene)]
        if labelled and len(self.classes) < 2:
            yield f"classes: {len(self.classes)} given; name two at least, the values of {labelled[0].labels}"
        if self.classes and len(labelled) < len(self.images):
            yield "classes are given, but a standard scene has its own; leave one of the two out"
        if self.split.method == "listed" and len(self.images) > 1:
            yield "split.test_tiles are of one image; give one, or another method"

    def beside(self, folder: Path) -> "FreenetRecipe":
        """The recipe with its paths relative to `folder`."""
        return self.model_copy(update={"images": tuple(image.beside(folder) for image in self.images)})
