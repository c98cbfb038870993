"""Classify: a map of classes from the spectra, by a classifier or a network that was trained before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.checkpoints import SUFFIXES
from cubeloom.models.classifiers import Classifier, classifier_digest, load_classifier
from cubeloom.pipeline.binding import Binding, bind
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import SceneSpec

from .base import Stage, Stats, register
from .class_images import class_images, class_variables
from .to_db import decibels, is_linear_backscatter

if TYPE_CHECKING:
    from cubeloom.pipeline.tiles import Inferred, Tiling

    from .classify_network import SegmentNetwork

MIN_KNOWN = 0.5
"""Share of a classifier's bands that a pixel must have; the others are interpolated between them."""

CLASSIFIER = ".skops"
NETWORK_ONLY = ("weights", "tile", "precision")
"""Parameters that say nothing of a classifier of single spectra."""


@register("classify")
class Classify(Stage):
    """Give every valid pixel a class.

    Adds `classes` (uint8, 0 where there is none), `probability` of every class, `confidence`, the probability of the
    pixel's class less that of the runner-up, and `entropy`, 0 where the class is certain and 1 where all are as likely.

    A classifier sees each pixel's spectrum alone, a network its surroundings too, in overlapping tiles whose
    probabilities are blended.

    Attributes:
        model: path of a classifier saved by `cubeloom train` (`.skops`); or a network of the task `segment`: the name
            of weights that are shipped, weights with a card, or `hf:owner/repo/file@sha256`; or a family, with
            `weights`.
        variable: the cube to classify; by default what the stages before made last.
        weights: file or hub source with weights of that family.
        guide: name of the scene that the model sees beside the scene, if any (see `pair`): of a radar, or another date.
        tile: side of the tiles that a network sees, px; by default that of its card, 0 for the whole image.
        precision: type of a network's arithmetic on a GPU; a CPU always takes float32.
    """

    version: ClassVar[str] = "2"

    model: str | None = None
    variable: str | None = None
    weights: str | None = None
    guide: str = "radar"
    tile: int | None = Field(default=None, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    work_cubes: ClassVar[float] = 3.0

    @property
    def skipped(self) -> str:
        """Without a model there is nothing to do."""
        return "" if self.model is not None else "no model given"

    @cached_property
    def _network(self) -> SegmentNetwork | None:
        """The network with its card, read once; None for a classifier."""
        if self.model is None or (self.weights is None and _is_classifier(self.model)):
            self._require_no_network_parameters()
            return None
        from .classify_change import ChangeNetwork  # its libraries are not for those who classify without
        from .classify_network import SegmentNetwork

        network = SegmentNetwork.of(self.model, self.weights, self.precision, self.tile, self.variable, self.guide)
        return ChangeNetwork.like(network) if network.card.dates > 1 else network

    @property
    def guides(self) -> tuple[str, ...]:
        """The scene that the model sees beside the scene, where it sees one."""
        if self._network:
            return self._network.guides
        return (self.guide,) if self.model is not None and self._load().polarisations else ()

    def _require_no_network_parameters(self) -> None:
        given = [name for name in NETWORK_ONLY if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise ConfigError(
                f"classify: {', '.join(given)} belong to networks, and model is {self.model or 'not given'}"
            )

    def _load(self) -> Classifier:
        if self.model is None:
            raise ModelError("classify: no model given; set model to a classifier saved by `cubeloom train`")
        return load_classifier(self.model)

    def _subject(self, spec: SceneSpec) -> str:
        return self.variable or spec.subject

    def _bind(self, spec: SceneSpec, classifier: Classifier) -> Binding:
        try:
            return bind(spec.bands, classifier.wavelengths, classifier.fwhm)
        except ModelError as error:
            raise ModelError(f"{spec.scene_id}, classify with {self.model}: {error}") from None

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `classes`, `probability`, `confidence` and `entropy`.

        Raises:
            InputError: there is no such cube.
            ModelError: the model is for another task, or does not fit the scene's bands or units.
            ConfigError: tiles that the network does not take, or tiles of a classifier.
        """
        if self.model is None:
            return spec
        if network := self._network:
            bound = network.require(spec)
            line = f"classify: {network.seen(spec)}, {network.channels} classes, {network.describe(bound)}"
            return spec.with_variables(line, None, **network.variables(bound))
        classifier, subject = self._load(), self._subject(spec)
        if subject not in spec.variables or not spec.variables[subject].is_cube:
            cubes = [name for name, variable in spec.variables.items() if variable.is_cube]
            raise InputError(f"{spec.scene_id}, classify: no cube {subject!r}; the scene has {', '.join(cubes)}")
        units = spec.variables[subject].attrs.get("units")
        if units != classifier.units:
            raise ModelError(
                f"{spec.scene_id}, classify with {self.model}: {subject} has units {units!r}, the classifier was "
                f"trained on {classifier.variable} in {classifier.units!r}; classify a cube in those units"
            )
        binding = self._bind(spec, classifier)
        for guide in self.guides:
            _polarisations(classifier, spec, guide)
        line = f"classify: {subject}, {len(classifier.classes)} classes, bands {binding}, model {classifier.sha256[:8]}"
        return spec.with_variables(line, None, **class_variables(classifier.classes))

    def tiling(self, spec: SceneSpec) -> Tiling | None:
        """The tiles of a network."""
        return self._network.tiling(spec) if self._network else None

    def tile_bytes(self, spec: SceneSpec) -> int:
        """What a network takes for a group of tiles, by a measurement of it."""
        return self._network.tile_bytes(spec) if self._network else 0

    def weight_bytes(self) -> int:
        """Those of a network."""
        return self._network.weight_bytes() if self._network else 0

    def smaller(self, spec: SceneSpec) -> Iterator[Stage]:
        """This stage with ever smaller tiles."""
        for side in self._network.smaller(spec) if self._network else ():
            yield type(self)(**{**self.model_dump(), "tile": side})

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """The probabilities that a network gives for a group of tiles."""
        if self._network is None:
            raise ValueError(f"{self.model} is no network")
        return self._network.infer(tiles, threads)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """Classes, probabilities, confidence and entropy of the block's valid pixels."""
        if self.model is None:
            return {}
        if self._network:
            return self._network.apply(block)
        from threadpoolctl import threadpool_limits

        classifier = self._load()
        cube, valid = block[self._subject(block.spec)], np.asarray(block.valid, bool)
        spectra = np.ascontiguousarray(self._bind(block.spec, classifier).apply(cube[:, valid]).T)
        known = np.isfinite(spectra).mean(axis=1) >= MIN_KNOWN
        radar = self._backscatter(block, classifier)[valid]
        known &= np.isfinite(radar).all(axis=1)
        filled = np.concatenate([_fill(spectra[known], classifier.wavelengths), radar[known]], axis=1)
        with threadpool_limits(1, user_api="openmp"):  # blocks already run side by side
            made = classifier.predict(filled)
        where = valid.copy()
        where[valid] = known
        probability = np.full((len(classifier.classes), *where.shape), np.nan, np.float32)
        probability[:, where] = made.T
        return class_images(probability, classifier.classes)

    def _backscatter(self, block: Block, classifier: Classifier) -> npt.NDArray[np.float32]:
        """What a radar beside the scene measured, dB, `(y, x, polarisation)`, as far as the classifier asks for it."""
        found = [np.empty((0, *block.window.shape), np.float32)]
        for name in self.guides:
            guide = block.guides[name]
            linear = is_linear_backscatter(guide.spec, guide.spec.subject)
            numbers = guide.subject[_polarisations(classifier, block.spec, name)]
            found.append(decibels(numbers) if linear else numbers)
        return np.moveaxis(np.concatenate(found), 0, -1)

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters; the model by its content instead of its path."""
        described = super().fingerprint()
        for name in (*NETWORK_ONLY, "guide"):
            described.pop(name)
        if network := self._network:
            described.pop("model")
            return {**described, **network.fingerprint()}
        if self.model is not None:
            described["model"] = classifier_digest(self.model)
        return described


def _polarisations(classifier: Classifier, spec: SceneSpec, name: str) -> list[int]:
    """Places of a classifier's polarisations among the bands of a radar scene.

    Raises:
        ModelError: it lacks one, or holds no backscatter.
        InputError: it lies on another grid than the scene.
    """
    guide, where = spec.guides[name], f"{spec.scene_id}, classify: the guide {name!r}"
    if guide.scale != spec.scale:
        raise InputError(f"{where} lies on another grid than the scene; give `pair` refine: 1")
    places = {str(one).upper(): at for at, one in enumerate(guide.bands.detector) if guide.bands.good[at]}
    lacking = [one for one in classifier.polarisations if one not in places]
    units = guide.variables[guide.subject].attrs.get("units")
    if lacking or not (units == "dB" or is_linear_backscatter(guide, guide.subject)):
        raise ModelError(
            f"{where} holds {guide.subject} ({units}) of {', '.join(places) or 'no polarisation'}; the classifier was "
            f"trained on the backscatter of {', '.join(classifier.polarisations)}"
        )
    return [places[one] for one in classifier.polarisations]


def _is_classifier(model: str) -> bool:
    """Whether a model is a classifier's file, rather than a network's name, file or hub source."""
    path = Path(model)
    return path.suffix == CLASSIFIER or (path.suffix not in SUFFIXES and not model.endswith(".json") and path.is_file())


def _fill(spectra: npt.NDArray[np.float32], wavelengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Spectra `(n, band)` with NaN interpolated along wavelength; beyond the last known band its value is kept."""
    missing = ~np.isfinite(spectra)
    for row in np.flatnonzero(missing.any(axis=1)):
        gap = missing[row]
        spectra[row, gap] = np.interp(wavelengths[gap], wavelengths[~gap], spectra[row, ~gap])
    return spectra
