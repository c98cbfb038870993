"""Classify: a map of classes from the spectra, by a classifier that was trained before."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError, ModelError
from cubeloom.models.classifiers import Classifier, classifier_digest, load_classifier
from cubeloom.pipeline.binding import Binding, bind
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.encoding import CLASSES, PROBABILITY
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register

MIN_KNOWN = 0.5
"""Share of a classifier's bands that a pixel must have; the others are interpolated between them."""


@register("classify")
class Classify(Stage):
    """Give every valid pixel a class.

    Adds `classes` (uint8, 0 where there is none), `probability` of every class, and `confidence`: the probability of
    the pixel's class less that of the runner-up.

    Attributes:
        model: path of a classifier saved by `cubeloom train`.
        variable: the cube to classify; by default what the stages before made last.
    """

    model: str | None = None
    variable: str | None = None
    work_cubes: ClassVar[float] = 3.0

    @property
    def skipped(self) -> str:
        """Without a model there is nothing to do."""
        return "" if self.model is not None else "no model given"

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
        """The Scene with `classes`, `probability` and `confidence`.

        Raises:
            InputError: there is no such cube.
            ModelError: the classifier does not fit the scene's bands or units.
        """
        if self.model is None:
            return spec
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
        line = f"classify: {subject}, {len(classifier.classes)} classes, bands {binding}, model {classifier.sha256[:8]}"
        return spec.with_variables(line, None, **_variables(classifier))

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """Classes, probabilities and confidence of the block's valid pixels."""
        if self.model is None:
            return {}
        from threadpoolctl import threadpool_limits

        classifier = self._load()
        cube, valid = block[self._subject(block.spec)], np.asarray(block.valid, bool)
        spectra = np.ascontiguousarray(self._bind(block.spec, classifier).apply(cube[:, valid]).T)
        known = np.isfinite(spectra).mean(axis=1) >= MIN_KNOWN
        filled = _fill(spectra[known], classifier.wavelengths)
        with threadpool_limits(1, user_api="openmp"):  # blocks already run side by side
            made = classifier.predict(filled)
        where = valid.copy()
        where[valid] = known
        return _images(made, where, np.array([one.value for one in classifier.classes], np.uint8))

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and parameters; the model by its content instead of its path."""
        described = super().fingerprint()
        if self.model is not None:
            described["model"] = classifier_digest(self.model)
        return described


def _variables(classifier: Classifier) -> dict[str, Variable]:
    values = [one.value for one in classifier.classes]
    named = {
        "flag_values": values,
        "flag_meanings": " ".join("_".join(one.name.split()) for one in classifier.classes),
        "class_names": [one.name for one in classifier.classes],
        "class_colours": [one.colour for one in classifier.classes],
    }
    probability = {"long_name": "probability of the class", "units": "1", "class_values": values}
    margin = {"long_name": "probability of the class less that of the runner-up", "units": "1"}
    return {
        "classes": Variable(("y", "x"), CLASSES, {"long_name": "class", **named}),
        "probability": Variable(("class", "y", "x"), PROBABILITY, probability),
        "confidence": Variable(("y", "x"), PROBABILITY, margin),
    }


def _fill(spectra: npt.NDArray[np.float32], wavelengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Spectra `(n, band)` with NaN interpolated along wavelength; beyond the last known band its value is kept."""
    missing = ~np.isfinite(spectra)
    for row in np.flatnonzero(missing.any(axis=1)):
        gap = missing[row]
        spectra[row, gap] = np.interp(wavelengths[gap], wavelengths[~gap], spectra[row, ~gap])
    return spectra


def _images(
    probabilities: npt.NDArray[np.float32], where: npt.NDArray[np.bool_], values: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[Any]]:
    """Images of the pixels `where`, in row order, from their probabilities `(n, class)`."""
    classes = np.zeros(where.shape, np.uint8)
    probability = np.full((values.size, *where.shape), np.nan, np.float32)
    confidence = np.full(where.shape, np.nan, np.float32)
    classes[where] = values[probabilities.argmax(axis=1)]
    probability[:, where] = probabilities.T
    best = np.sort(probabilities, axis=1)
    confidence[where] = best[:, -1] - best[:, -2]
    return {"classes": classes, "probability": probability, "confidence": confidence}
