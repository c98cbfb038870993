"""Labelled images out of files, evaluated, and what is found written to a folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cubeloom.errors import ConfigError
from cubeloom.models.cards import did_you_mean
from cubeloom.pipeline.stages import Pair, explain
from cubeloom.pipeline.stages.tile_network import RADAR
from cubeloom.untrusted import read_yaml
from cubeloom.workflows.schema import Workflow
from cubeloom.workflows.train.labelled import LabelledImage, read_images
from cubeloom.workflows.train.labels_recipe import ClassTable, ImageSource, SetName, StandardScene

from .class_figure import write_class_figure
from .class_methods import DEFAULT, parse_columns
from .class_splits import SplitOptions, parse_splits
from .class_tables import class_markdown
from .classify import ClassEvaluation, Score, evaluate_classify
from .output import Written, write_pages

SETS = get_args(SetName)


class ImageList(BaseModel):
    """A YAML file that lists labelled images; a training recipe is one too.

    Attributes:
        images: where they are, relative to the file.
        classes: name and colour of every class value; none where all images are standard scenes.
        steps: stages that run on scenes before, written as in a workflow; where they `pair` a guide `radar`, its
            backscatter in decibels stands behind the bands.
        variable: the cube of scenes to take; by default what the last step made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Annotated[tuple[ImageSource, ...], Field(min_length=1)]
    classes: ClassTable = Field(default_factory=dict)
    steps: tuple[str | dict[str, dict[str, Any] | None], ...] = ()
    variable: str | None = None


def evaluate_class_files(
    sources: Sequence[str],
    out: Path,
    *,
    methods: str = DEFAULT,
    splits: str = "random,blocks",
    options: SplitOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[ClassEvaluation, Written]:
    """Read labelled images, evaluate methods on them and write results, tables and figure into `out`.

    Args:
        sources: as `read_labelled` takes them.
        out: folder, made where it is missing.
        methods: as `parse_columns` takes them.
        splits: as `parse_splits` takes them.
        options: how splits are made.
        tell: called with a line an image and a line a score.

    Raises:
        InputError: an image that cannot be used.
        ConfigError: a wrong option.
    """
    columns, groups = parse_columns(methods), parse_splits(splits, options or SplitOptions())
    images = read_labelled(sources)
    for image in images:
        height, width = image.shape
        counts = image.counts
        classes = ", ".join(f"{one.name} {counts[one.value]}" for one in image.classes)
        tell(f"{image.name}: {len(image.cube)} bands, {height} x {width} px; labelled: {classes}")
    for group in groups:
        tell(f"split {group.name}: {group.label}")
    found = evaluate_classify(images, columns, groups, lambda score: tell(_line(score)))
    return found, write_pages(out, found.to_json(), class_markdown(found), lambda path: write_class_figure(found, path))


def read_labelled(sources: Sequence[str]) -> list[LabelledImage]:
    """Images from `SET=FOLDER` of a standard scene and YAML files (see `ImageList`); their names become short.

    Raises:
        InputError: an image that cannot be used; says which and why.
        ConfigError: a source that is neither, or a file that says something else.
    """
    images = [image for source in sources for image in _read(source)]
    named: list[LabelledImage] = []
    for image in images:
        named.append(replace(image, name=_name(image.name, [one.name for one in named])))
    return named


def _read(source: str) -> list[LabelledImage]:
    kind, equals, folder = source.partition("=")
    if equals and not Path(source).exists():
        if kind not in SETS:
            hint = did_you_mean(kind, SETS)
            raise ConfigError(f"{source}: {kind!r} is no standard scene{hint}; expected one of {', '.join(SETS)}")
        return read_images([StandardScene(set=kind, folder=Path(folder))], {})
    path = Path(source)
    if not path.is_file() or path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"{source}: expected a YAML file that lists labelled images, such as a training recipe, or SET=FOLDER of a "
            f"standard scene ({', '.join(SETS)})"
        )
    listed = _listed(path)
    stages = Workflow(name="evaluation", steps=listed.steps).stages()
    # Each with its own bands, the bad ones as well: networks bound to a sensor take theirs from each by itself.
    options: dict[str, Any] = {"stages": stages, "variable": listed.variable, "usable": False}
    options["radar"] = any(isinstance(stage, Pair) and stage.guide == RADAR for stage in stages)
    return [
        image for one in listed.images for image in read_images([one.beside(path.parent)], listed.classes, **options)
    ]


def _listed(path: Path) -> ImageList:
    data = read_yaml(path)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected keys such as images and classes, found {type(data).__name__}")
    try:
        return ImageList.model_validate(_of_recipe(data) if "kind" in data else data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, ImageList)}") from None


def _of_recipe(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a training recipe of any kind says of its images."""
    part = data["scenes"] if isinstance(data.get("scenes"), Mapping) else data
    images = part.get("images") or part.get("train") or part.get("scenes") or ()
    found = {"images": images, "classes": part.get("classes"), "steps": part.get("steps") or part.get("stages")}
    found["variable"] = part.get("variable")
    return {name: value for name, value in found.items() if value is not None}


def _name(name: str, taken: Sequence[str]) -> str:
    """The last part of a path without its suffix; numbered where it is taken."""
    short = Path(name).stem if "/" in name else name
    return next(
        title for title in (short, *(f"{short} {number}" for number in range(2, len(taken) + 3))) if title not in taken
    )


def _line(score: Score) -> str:
    start = f"{score.image}, {score.split}, {score.run}, {score.method}: "
    if score.error or score.overall_accuracy is None or score.macro_f1 is None:
        return f"{start}failed: {score.error}"
    quality = f"OA {100 * score.overall_accuracy:.1f} %, macro F1 {100 * score.macro_f1:.1f} %"
    return f"{start}{quality}, fit {score.fit_seconds:.1f} s, map {score.map_seconds:.2f} s"
