"""Cards: what must be known of a set of weights to use them rightly. JSON, beside the weights."""

import difflib
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError, model_validator

from cubeloom.errors import InputError, ModelError
from cubeloom.untrusted import load_json

SUFFIX = ".card.json"
CARD_LIMIT = 16 * 2**20
"""Bytes of a card; one has some kB."""

Task = Literal["denoise", "segment", "classify", "multilabel", "regress", "embed", "superres"]
Polarisation = Literal["VV", "VH", "HH", "HV"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class InputBands(BaseModel):
    """The bands that a network sees, in the order of its channels.

    Attributes:
        numbers: of the card's sensor, from 1; empty where only the responses are known.
        wavelengths_nm: centres, ascending, nm.
        fwhm_nm: widths at half maximum, nm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: tuple[Annotated[int, Field(ge=1)], ...] = ()
    wavelengths_nm: tuple[Positive, ...] = Field(min_length=1)
    fwhm_nm: tuple[Positive, ...]

    def __len__(self) -> int:
        return len(self.wavelengths_nm)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len(self.fwhm_nm) != len(self) or len(self.numbers) not in (0, len(self)):
            raise ValueError(
                f"{len(self)} wavelengths_nm, {len(self.fwhm_nm)} fwhm_nm and {len(self.numbers)} numbers; one of each "
                "for every band, or no numbers"
            )
        if any(after <= before for before, after in pairwise(self.wavelengths_nm)):
            raise ValueError("wavelengths_nm do not ascend")
        if len(set(self.numbers)) != len(self.numbers):
            raise ValueError("a band number stands twice")
        return self


class CardClass(BaseModel):
    """A class that a network tells from others; its logits stand in the order of a card's classes.

    Attributes:
        value: in class maps, where 0 is no class.
        name: of the class.
        colour: `#rrggbb`, for legends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int = Field(ge=1, le=255)
    name: str = Field(min_length=1)
    colour: str = Field(pattern=r"^#[0-9a-f]{6}$")


class Card(BaseModel):
    """What a set of weights is, was trained on, and expects.

    Attributes:
        name: `family.tag`, or the family alone where the weights have no tag of their own.
        family: architecture the registry builds.
        tag: which weights of the family.
        settings: arguments of the architecture.
        sha256: hex digest of the weights' file; empty for a network without weights.
        licence: of the weights, as an SPDX id where there is one.
        task: what the network does to a cube: `segment` gives every pixel a class; `classify` gives the whole tile one,
            `multilabel` any number of them and `regress` values; `embed` gives it a vector; `superres` makes the cube
            finer.
        sensor: sensor it was trained for; None for any.
        wavelengths_nm: shortest and longest band centre it was trained on, nm; None for any.
        variable: cube it takes, such as `reflectance`; None for any.
        units: units of that cube; None for any.
        transform: what the network sees: `bands` of the cube, each scaled to [0, 1], or whitened `eigenimages`.
        bands: how many of them it sees at once (D); None for any number.
        tile: side of the tiles it works on, px.
        halo: px at each side of a tile that are blended with, or left to, the neighbour.
        reach: px beyond its own that an output depends on; None where that is the whole tile, so that tiles of another
            side would give another product.
        scale: how many times finer its answer is than its input.
        multiple: height and width of its input are multiples of this, px.
        input_bands: those it sees, one for each channel; empty for any that are given.
        polarisations: those of a radar that it sees, as sigma0 in dB, in channels behind those of `input_bands`.
        dates: images of a place that it sees, each of `bands` channels, one behind the other: the scene, and of two the
            guide of another date.
        mean: of each channel in `units`, which is subtracted before the network; empty where nothing is.
        std: of each channel in `units`, by which it is then divided.
        classes: in the order of its logits, by ascending value.
        outputs: names of the values that it regresses, in order.
        located: where a tile lies on Earth counts too, so the scene needs a map projection.
        sigma_input: a second input channel holds the standard deviation of the noise.
        residual_in_sigma: its correction is in units of that standard deviation.
        training: data, steps, time and seeds of the training.
        metrics: measured on data that no training saw.
        log: file beside the card with the loss by step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["cubeloom-model/1"] = "cubeloom-model/1"
    name: str
    family: str = Field(pattern=r"^[a-z0-9_]+$")
    tag: str = Field("", pattern=r"^[a-z0-9_-]*$")
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    licence: str = ""
    task: Task = "denoise"
    sensor: str | None = None
    wavelengths_nm: tuple[Annotated[float, Field(gt=0)], float] | None = None
    variable: str | None = None
    units: str | None = None
    transform: Literal["bands", "eigenimages"] = "bands"
    bands: int | None = Field(31, ge=1)
    tile: int = Field(256, ge=1)
    halo: int = Field(16, ge=0)
    reach: int | None = Field(None, ge=0)
    scale: int = Field(1, ge=1)
    multiple: int = Field(1, ge=1)
    input_bands: InputBands | None = None
    polarisations: tuple[Polarisation, ...] = ()
    dates: Literal[1, 2] = 1
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[Positive, ...] = ()
    classes: tuple[CardClass, ...] = ()
    outputs: tuple[str, ...] = ()
    located: bool = False
    sigma_input: bool = False
    residual_in_sigma: bool = False
    training: dict[str, JsonValue] = Field(default_factory=dict)
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    log: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.name != (f"{self.family}.{self.tag}" if self.tag else self.family):
            raise ValueError(f"name {self.name!r} is not family {self.family!r} and tag {self.tag!r}")
        if self.wavelengths_nm and self.wavelengths_nm[0] > self.wavelengths_nm[1]:
            raise ValueError(f"wavelengths_nm {self.wavelengths_nm} do not ascend")
        if self.tile % self.multiple:
            raise ValueError(f"tile {self.tile} is no multiple of {self.multiple}")
        if 2 * self.halo >= self.tile:
            raise ValueError(f"a tile of {self.tile} px is all halo, {self.halo} px at each side")
        return self

    @model_validator(mode="after")
    def _channels_agree(self) -> Self:
        listed = len(self.input_bands or ()) + len(self.polarisations)
        if listed not in (0, self.bands):
            seen = f"input_bands has {len(self.input_bands or ())}"
            radar = f", polarisations has {len(self.polarisations)}" if self.polarisations else ""
            raise ValueError(f"bands is {self.bands}, {seen}{radar}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.bands):
            raise ValueError(
                f"{len(self.mean)} values of mean and {len(self.std)} of std for {self.bands} bands; one of each for "
                "every band, or none"
            )
        if any(after.value <= before.value for before, after in pairwise(self.classes)):
            raise ValueError(f"the values of the classes do not ascend: {[one.value for one in self.classes]}")
        for what, names in (
            ("classes", [one.name for one in self.classes]),
            ("outputs", self.outputs),
            ("polarisations", self.polarisations),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"a name stands twice among the {what}")
        return self


def card_path(weights: Path) -> Path:
    """Where the card of a weights' file lies: `hsdt_s.enmap.safetensors` has `hsdt_s.enmap.card.json`."""
    return weights.with_suffix(SUFFIX)


def read_card(path: Path) -> Card:
    """The card in a JSON file.

    Raises:
        ModelError: the file cannot be read, or a key is unknown, missing or wrong; names them all.
    """
    try:
        content = load_json(path, CARD_LIMIT)
    except InputError as error:
        raise ModelError(f"model card {error}") from None
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"model card {path}: {problems(error)}") from None


def write_card(card: Card, path: Path) -> None:
    """Write a card, replacing the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(card.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def problems(error: ValidationError) -> str:
    """A card's validation error in one line; unknown keys come with the nearest known one."""
    lines = []
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}{did_you_mean(where, Card.model_fields)}")
        elif problem["type"] == "missing":
            lines.append(f"key {where!r} is missing")
        else:
            lines.append(": ".join(filter(None, (where, problem["msg"]))))
    return "; ".join(lines)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, to be put behind a wrong one; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
