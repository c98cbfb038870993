"""What recipes say of labels: where they are, which classes there are, and which pixels test."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .stratified import SEED


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Count = Annotated[int, Field(ge=1)]
SetName = Literal["pavia_university", "salinas", "indian_pines", "houston_2013"]


class LabelledScene(_Part):
    """A scene and its labels; paths are relative to the recipe.

    Attributes:
        scene: a product or store that `open_scene` opens; for images also a MATLAB file.
        labels: a raster of class values on the scene's grid (0: none), or a vector file of points or polygons; beside a
            MATLAB file another one, with a map of the same size.
        field: attribute of the vector file that holds class values or names; or the array of the MATLAB file.
        options: of `open_scene`, or those that say how to read a MATLAB file: `key`, `bands`, `shape`, `order`.
        guides: the scene that each `pair` step of the recipe takes, by the guide's name.
    """

    scene: Path
    labels: Path
    field: str | None = None
    options: dict[str, str] = Field(default_factory=dict)
    guides: dict[str, Path] = Field(default_factory=dict)

    def beside(self, folder: Path) -> "LabelledScene":
        """The same with paths relative to `folder`."""
        guides = {name: folder / path for name, path in self.guides.items()}
        return self.model_copy(update={"scene": folder / self.scene, "labels": folder / self.labels, "guides": guides})


class StandardScene(_Part):
    """One of the scenes that classification is compared on, from the files as they are handed out.

    Attributes:
        set: which; its classes are known.
        folder: where its files lie under their usual names.
    """

    set: SetName
    folder: Path

    def beside(self, folder: Path) -> "StandardScene":
        """The same with paths relative to `folder`."""
        return self.model_copy(update={"folder": folder / self.folder})


def _kind(source: Any) -> str:  # noqa: ANN401 - whatever YAML holds, or one of the two classes
    standard = "set" in source if isinstance(source, dict) else isinstance(source, StandardScene)
    return "standard" if standard else "labelled"


ImageSource = Annotated[
    Annotated[StandardScene, Tag("standard")] | Annotated[LabelledScene, Tag("labelled")], Discriminator(_kind)
]
"""Told apart by `set`, so that a mistake is explained for the one that was meant."""


class ClassOf(_Part):
    """Name and colour of a class."""

    name: str
    colour: str = Field(default="#808080", pattern=r"^#[0-9a-fA-F]{6}$")


ClassTable = dict[Annotated[int, Field(ge=1, le=255)], ClassOf]


class Split(_Part):
    """How test pixels are kept apart from training pixels.

    Attributes:
        method: `blocks` draws whole squares of pixels so that classes keep their shares; `tiles` takes the squares of
            one colour of a checkerboard; `random` draws single pixels, whose neighbours then tell them: optimistic.
        block_px: edge of the squares.
        test_fraction: share of the labelled pixels to test on; a checkerboard has half.
        buffer_px: training pixels this near to a test square are left out.
        swap: with `tiles`, test on the squares of the other colour.
        seed: of every random draw, the estimator's too.
    """

    method: Literal["blocks", "tiles", "random"] = "blocks"
    block_px: int = Field(default=16, ge=1)
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    buffer_px: int = Field(default=1, ge=0)
    swap: bool = False
    seed: int = 0


class PixelSplit(_Part):
    """Which labelled pixels of an image train and which test.

    Attributes:
        method: `blocks` and `tiles` as in `Split`; `listed` tests on the squares of `test_tiles`; `given` on what the
            set's publisher keeps for it; `random` draws `per_class` pixels of every class to train on and tests on all
            others, as FreeNet's authors do. Test pixels then stand among training pixels: optimistic.
        block_px: edge of the squares.
        test_fraction: with `blocks`, share of the labelled pixels to test on.
        buffer_px: training pixels this near to a test square are left out.
        swap: with `tiles`, test on the squares of the other colour.
        test_tiles: row and column of every square to test on, counted from the upper left corner.
        per_class: at most so many training pixels of a class, drawn at random; None takes all, with `random` 200.
        largest_share: with `random`, at most this share of a class trains. At 1, as the authors have it, a class with
            no more pixels than `per_class` has none to test on.
        seed: of every random draw.
    """

    method: Literal["random", "blocks", "tiles", "listed", "given"] = "blocks"
    block_px: int = Field(default=16, ge=1)
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    buffer_px: int = Field(default=1, ge=0)
    swap: bool = False
    test_tiles: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = ()
    per_class: Count | None = None
    largest_share: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=SEED, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _tiles_are_listed(self) -> Self:
        if (self.method == "listed") != bool(self.test_tiles):
            raise ValueError("test_tiles and method listed go together: give both or neither")
        return self

    @property
    def apart(self) -> bool:
        """Whether training and test pixels lie in different places."""
        return self.method != "random"
