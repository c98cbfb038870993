"""The methods that an evaluation of classification compares: one protocol, found by name."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from cubeloom.errors import ConfigError
from cubeloom.pipeline.scene import BoolArray
from cubeloom.pipeline.stages import explain
from cubeloom.workflows.train.labelled import LabelledImage

from .methods import digest_of, label, listed, network_of, parsed

Float32Array = npt.NDArray[np.float32]

METHODS = {
    "random_forest": "class_pixels",
    "rotated_forests": "class_pixels",
    "svm": "class_pixels",
    "cnn1d": "class_cnn",
    "cnn2d": "class_cnn",
    "freenet": "class_networks",
    "adapter": "class_backbones",
    "probe": "class_backbones",
}
"""The module of each method; imported when the method is asked for, so that no run pays for it while it is timed."""

DEFAULT = "random_forest,svm,cnn1d,cnn2d,freenet"


class Mapper(Protocol):
    """What came out of fitting a method."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What the fitting chose or found, as JSON."""
        ...

    def map(self, image: LabelledImage) -> Float32Array:
        """Probabilities of the classes, `(K, y, x)`, K in the order of `image.classes`; any where not valid."""
        ...


class ClassMethod(BaseModel, ABC):
    """A method and its options, which are its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def what(self) -> str:
        """The method in words."""

    @abstractmethod
    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> Mapper:
        """Learn from the labels of an image.

        Args:
            image: its labels are 0 at all pixels that do not train.
            train: the pixels that do, `(y, x)`.
            seed: of every random draw.

        Raises:
            CubeloomError: the method cannot be used on this image.
        """


@dataclass(frozen=True)
class Column:
    """One column of the tables.

    Attributes:
        name: as the user wrote it.
        method: what it stands for.
    """

    name: str
    method: ClassMethod

    @property
    def label(self) -> str:
        """The name for tables and figures, in which files stand without their folders."""
        return label(self.name)

    def describe(self) -> dict[str, Any]:
        """What there is to say of it, for JSON; for published weights with their digest where they load."""
        options = self.method.model_dump(mode="json")
        return {"name": self.name, "what": self.method.what, "options": options, **digest_of(options)}


def parse_columns(text: str) -> list[Column]:
    """Methods from `random_forest,svm+pca=30+mean=3,probe:MODEL[@WEIGHTS]`.

    Raises:
        ConfigError: an unknown method or option, a wrong value, a method that comes twice, or none.
    """
    return [Column(name, _method(name)) for name in listed(text, METHODS)]


def _method(name: str) -> ClassMethod:
    kind, model, options = parsed(name, METHODS)
    options |= network_of(model)
    made: type[ClassMethod] = importlib.import_module(f".{METHODS[kind]}", __package__).METHODS[kind]
    try:
        return made(**cast("dict[str, Any]", options))
    except ValidationError as error:
        raise ConfigError(f"--methods: {name}: {explain(error, made)}") from None


def usable_bands(image: LabelledImage) -> npt.NDArray[np.intp]:
    """Positions of the bands with a value at every valid pixel; good and preferred ones alone where that is known."""
    kept = np.isfinite(image.cube[:, image.valid]).all(axis=1)
    if image.bands is not None:
        kept &= image.bands.good & image.bands.preferred
    if not kept.any():
        raise ConfigError(f"{image.name}: no band has a value at every valid pixel; mask the pixels that lack one")
    return np.flatnonzero(kept)
