"""Images of which some pixels have a class: scenes with label rasters or vectors, and MATLAB files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.cards import CardClass
from cubeloom.pipeline.binding import bind
from cubeloom.pipeline.scene import QUALITY_FLAGS, Bands, SceneSpec, spec_of
from cubeloom.pipeline.stages import Stage
from cubeloom.pipeline.stages.tile_network import RADAR
from cubeloom.workflows.evaluate.matfiles import read_map, read_mat

from .both_sensors import cube_of_both
from .labels_recipe import ClassTable, ImageSource, LabelledScene
from .samples import after_steps, read_labels, source_of

LEAST_BANDS = 2
"""Fewer make no spectrum."""

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Classes = tuple[CardClass, ...]


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A cube of which some pixels have a class.

    Attributes:
        name: for messages and reports.
        cube: `(band, y, x)` float32, NaN where not `valid`.
        labels: `(y, x)` uint8 class values, 0 where there is none or the pixel is not `valid`.
        classes: by ascending value; the only values of `labels`.
        valid: `(y, x)` bool: pixels that have a value in every good band.
        bands: of the cube; None where the file says nothing of them.
        units: of the cube.
        variable: the cube's name in a Scene; empty for other files.
        sensor: empty where it is not known.
        grid: where the image lies; None where the file does not say it.
        given_test: `(y, x)` bool: labelled pixels that the publisher keeps for tests; None where he keeps none.
        source: identity of scene and labels.
    """

    name: str
    cube: Float32Array
    labels: npt.NDArray[np.uint8]
    classes: Classes
    valid: BoolArray
    bands: Bands | None = None
    units: str = ""
    variable: str = ""
    sensor: str = ""
    grid: GeoBox | None = None
    given_test: BoolArray | None = None
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return int(self.labels.shape[0]), int(self.labels.shape[1])

    @property
    def counts(self) -> dict[int, int]:
        """Labelled pixels of every class value."""
        found = np.bincount(self.labels.ravel(), minlength=256)
        return {one.value: int(found[one.value]) for one in self.classes}


def labelled_image(
    name: str,
    cube: npt.NDArray[Any],
    labels: npt.NDArray[np.integer],
    classes: Classes,
    *,
    valid: BoolArray | None = None,
    **about: Any,  # noqa: ANN401 - further fields of LabelledImage
) -> LabelledImage:
    """An image from its arrays, checked: labels of pixels that are not valid are dropped.

    Args:
        name: for messages and reports.
        cube: `(band, y, x)`, in any numbers.
        labels: `(y, x)` class values, 0 for none.
        classes: by ascending value.
        valid: `(y, x)`, pixels that may take part; those of them without a value in every good band do not.
        **about: further fields of `LabelledImage`.

    Raises:
        InputError: sizes that do not fit, too few bands, values that are of no class, or no label at a valid pixel.
    """
    if cube.ndim != 3 or labels.shape != cube.shape[1:]:
        raise InputError(f"{name}: the cube is {cube.shape}, its labels {labels.shape}; expected (band, y, x), (y, x)")
    if len(cube) < LEAST_BANDS:
        raise InputError(f"{name}: a cube of {len(cube)} bands; classes are told apart by {LEAST_BANDS} at least")
    unknown = sorted(set(np.unique(labels).tolist()) - {0, *(one.value for one in classes)})
    if unknown:
        known = ", ".join(f"{one.value} {one.name}" for one in classes)
        raise InputError(f"{name}: labels hold {unknown}, expected 0 for none and the classes {known}")
    bands = about.get("bands")
    good = np.ones(len(cube), bool) if bands is None else bands.good
    whole: BoolArray = np.ones(labels.shape, bool) if valid is None else valid.copy()
    for band in np.flatnonzero(good):  # band by band: a mask of the whole cube takes a quarter of its memory
        whole &= np.isfinite(cube[band])
    kept = np.where(whole, labels, 0).astype(np.uint8)
    if not kept.any():
        raise InputError(
            f"{name}: none of its {int((labels > 0).sum())} labelled pixels is valid and has all good bands"
        )
    numbers = cube.astype(np.float32)
    numbers[:, ~whole] = np.nan
    return LabelledImage(name, numbers, kept, classes, whole, **about)


def read_images(
    sources: Sequence[ImageSource],
    classes: ClassTable,
    *,
    stages: Sequence[Stage] = (),
    variable: str | None = None,
    usable: bool = True,
    radar: bool = False,
) -> list[LabelledImage]:
    """The images of a recipe, all with the bands and classes of the first.

    Args:
        sources: where they are.
        classes: name and colour of every class value; empty where all sources are standard scenes.
        stages: what runs on scenes before.
        variable: the cube of scenes to take; None for the one that the stages made last.
        usable: leave out bands that are not both good and preferred; False keeps all, NaN where they hold nothing.
        radar: put the bands of the guide `radar`, in decibels, behind those of each scene.

    Raises:
        InputError: an image cannot be used, or is not like the first; says which and why.
        ModelError: a further scene lacks bands of the first.
    """
    images: list[LabelledImage] = []
    for source in sources:
        first = images[0] if images else None
        images.append(_read(source, classes, stages, variable, first, usable=usable, radar=radar))
        _require_like(images[0], images[-1])
    return images


def card_classes(classes: ClassTable) -> Classes:
    """Classes of a recipe as cards have them, by ascending value."""
    return tuple(CardClass(value=at, name=one.name, colour=one.colour.lower()) for at, one in sorted(classes.items()))


def read_labelled_scene(
    labelled: LabelledScene,
    classes: Classes,
    *,
    stages: Sequence[Stage] = (),
    variable: str | None = None,
    usable: bool = True,
    like: Bands | None = None,
    radar: bool = False,
) -> LabelledImage:
    """A scene with its labels, in memory.

    Args:
        labelled: scene, and a raster on its grid, points or polygons.
        classes: of the labels, by ascending value.
        stages: what runs on the scene before.
        variable: the cube to take; None for the one that the stages made last.
        usable: leave out bands that are not both good and preferred.
        like: bring the cube to these bands.
        radar: put the bands of the guide `radar`, in decibels, behind the scene's.

    Raises:
        InputError: scene or labels cannot be used; says why.
        ConfigError: there is no guide `radar`.
        ModelError: the scene lacks some of the bands `like`.
    """
    scene, guides = after_steps(labelled, stages)
    if radar and RADAR not in guides:
        raise ConfigError(
            f"{labelled.scene}: the network sees a radar scene too; name it beside the scene, guides: {{{RADAR}: "
            f"PRODUCT}}, and put `pair: {{guide: {RADAR}, ...}}` among the steps"
        )
    beside = guides[RADAR] if radar else None
    return scene_image(scene, labelled, classes, variable=variable, usable=usable, like=like, radar=beside)


def scene_image(
    scene: xr.Dataset,
    labelled: LabelledScene,
    classes: Classes,
    *,
    variable: str | None = None,
    usable: bool = True,
    like: Bands | None = None,
    radar: xr.Dataset | None = None,
) -> LabelledImage:
    """A Scene with its labels, in memory; as `read_labelled_scene`, but for scene and radar, which are there.

    Raises:
        InputError: scene or labels cannot be used; says why.
        ModelError: the scene lacks some of the bands `like`.
    """
    spec = spec_of(scene)
    taken = variable or spec.subject
    if taken not in spec.variables or not spec.variables[taken].is_cube:
        raise InputError(f"{labelled.scene}: no cube {taken!r}; it has {', '.join(spec.variables)}")
    labels = read_labels(labelled, spec.grid, {one.value: one.name for one in classes})
    if radar is None:
        cube, bands = _cube(scene, spec, taken, labelled.scene, usable=usable, like=like)
    else:
        both, bands = cube_of_both(scene, taken, radar)
        cube = np.asarray(both.values)
    return labelled_image(
        str(labelled.scene),
        cube,
        labels,
        classes,
        valid=_valid(scene),
        bands=bands,
        units=str(spec.variables[taken].attrs.get("units", "")),
        variable=taken,
        sensor=spec.sensor,
        grid=spec.grid,
        source=source_of(labelled, spec),
    )


def read_labelled_mat(labelled: LabelledScene, classes: Classes) -> LabelledImage:
    """A cube and a class map in two MATLAB files.

    Raises:
        InputError: they cannot be read, or do not fit together.
        ConfigError: which array is meant cannot be told; says what to state.
    """
    read = read_mat(labelled.scene, labelled.options)
    labels = read_map(labelled.labels, labelled.field)
    source = {"scene": labelled.scene.name, "labels": labelled.labels.name}
    return labelled_image(str(labelled.scene), read.cube[read.good], labels, classes, source=source)


def _read(
    source: ImageSource,
    classes: ClassTable,
    stages: Sequence[Stage],
    variable: str | None,
    first: LabelledImage | None,
    *,
    usable: bool,
    radar: bool,
) -> LabelledImage:
    if not isinstance(source, LabelledScene):
        from .standard_scenes import read_standard_scene  # which builds on this module

        return read_standard_scene(source.set, source.folder)
    known = card_classes(classes)
    if source.scene.suffix.lower() == ".mat":
        return read_labelled_mat(source, known)
    like = first.bands if first is not None else None
    return read_labelled_scene(source, known, stages=stages, variable=variable, usable=usable, like=like, radar=radar)


def _require_like(first: LabelledImage, image: LabelledImage) -> None:
    for what, expected, found in (
        ("classes", [one.name for one in first.classes], [one.name for one in image.classes]),
        ("number of bands", len(first.cube), len(image.cube)),
        ("units", first.units, image.units),
    ):
        if expected != found:
            raise InputError(f"{image.name}: its {what} differ from those of {first.name}: {found}, not {expected}")


def _cube(
    scene: xr.Dataset, spec: SceneSpec, variable: str, path: Path, *, usable: bool, like: Bands | None
) -> tuple[npt.NDArray[Any], Bands]:
    """The cube's numbers in the bands wanted, and these."""
    if like is not None:
        try:
            binding = bind(spec.bands, like.wavelength, like.fwhm)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        return binding.apply(np.asarray(scene[variable].values)), like
    kept = spec.bands.good & spec.bands.preferred if usable else np.ones(len(spec.bands), bool)
    if not (spec.bands.good & spec.bands.preferred).any():
        raise InputError(f"{path}: no band is both good and preferred, so there is nothing to learn from")
    return np.asarray(scene[variable].isel(band=np.flatnonzero(kept)).values), spec.bands.take(kept)


def _valid(scene: xr.Dataset) -> BoolArray | None:
    """Pixels that take part, as `cubeloom.pipeline.blocks.Block.valid` has them; None for all."""
    if "valid" in scene:
        return np.asarray(scene["valid"].values, bool)
    if "quality" in scene:
        return np.asarray((scene["quality"].values & QUALITY_FLAGS["background"]) == 0)
    return None
