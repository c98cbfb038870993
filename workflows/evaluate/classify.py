"""Classifiers side by side on labelled images: the same pixels to learn from, the same to be judged on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, CubeloomError, InputError, ModelError, Stopped
from cubeloom.workflows.train.labelled import LabelledImage

from .class_methods import Column
from .class_metrics import class_metrics, confusion_of
from .class_splits import Division, SplitGroup, divide
from .cubes import digest
from .environment import environment, measured
from .scores import selected

METRICS = ("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "macro_iou", "micro_iou")
COSTS = ("fit_seconds", "map_seconds", "cpu_seconds", "peak_mib")
CONVENTIONS = {
    "input": "every method gets the whole cube and the labels of the training pixels alone",
    "bands": "those that are good and preferred; networks bound to a sensor's bands take what they need of all",
    "overall_accuracy": "share of the test pixels that have their class",
    "average_accuracy": "mean over classes of the share of a class's test pixels that have it",
    "kappa": "Cohen's",
    "macro_f1": "mean over classes of F1",
    "macro_iou": "mean over classes of intersection over union; micro_iou: over all pixels",
    "mean": "over the runs of a split; the spread is their sample standard deviation",
    "confusion": "summed over the runs of a split, a row for each true class",
    "fit_seconds": "wall clock of learning, tuning included; libraries are loaded before",
    "map_seconds": "wall clock of labelling the whole image",
    "cpu_seconds": "processor time of both over all threads",
    "peak_mib": "most memory of the process while it learns or labels beyond what it held before, MiB; of all runs",
}
"""What the numbers are, written beside them."""


@dataclass(frozen=True)
class Score:
    """One method on one division of an image; what it measured is None where it failed with `error`.

    Attributes:
        image: name.
        split: name of the group of divisions.
        run: name of the division in it.
        seed: of the method.
        method: name.
        accuracy: of every class, as `f1` and `iou`; None for one that does not occur.
        confusion: counts, a row for each true class.
        details: what the method chose or found.
    """

    image: str
    split: str
    run: str
    seed: int
    method: str
    overall_accuracy: float | None = None
    average_accuracy: float | None = None
    kappa: float | None = None
    macro_f1: float | None = None
    macro_iou: float | None = None
    micro_iou: float | None = None
    accuracy: Sequence[float | None] = ()
    f1: Sequence[float | None] = ()
    iou: Sequence[float | None] = ()
    confusion: Sequence[Sequence[int]] = ()
    fit_seconds: float | None = None
    map_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mib: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """The class map that a method made in the first run of a split, class values `(y, x)`."""

    image: str
    split: str
    method: str
    classes: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation over runs; no spread where there is one run."""

    mean: float
    spread: float | None
    runs: int


@dataclass(eq=False)
class ClassEvaluation:
    """Everything that an evaluation found.

    Attributes:
        images: with the classes alone that have labels.
        columns: the methods, in order.
        splits: kinds of divisions, in order.
        divisions: those of each image, by its name and the split's.
        scores: one for each image, division and method.
        pictures: the maps of the first run of each split.
    """

    images: tuple[LabelledImage, ...]
    columns: tuple[Column, ...]
    splits: tuple[SplitGroup, ...]
    divisions: dict[str, dict[str, list[Division]]]
    scores: list[Score] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def of(self, image: str, split: str, method: str) -> list[Score]:
        """The scores of all runs."""
        return selected(self.scores, image=image, split=split, method=method)

    def mean(self, metric: str, image: str, split: str, method: str) -> Mean | None:
        """Of a metric over the runs, the largest of `peak_mib`; None where one of them failed or has none."""
        values = [getattr(score, metric) for score in self.of(image, split, method)]
        if metric == "peak_mib" and values and None not in values:
            return Mean(max(values), None, len(values))
        return _mean(values)

    def class_mean(self, metric: str, place: int, image: str, split: str, method: str) -> Mean | None:
        """Of a metric of one class over the runs in which it occurs; None where one of them failed."""
        scores = self.of(image, split, method)
        if any(score.error for score in scores):
            return None
        return _mean([value for score in scores if (value := getattr(score, metric)[place]) is not None])

    def confusion(self, image: str, split: str, method: str) -> npt.NDArray[np.int64] | None:
        """Summed over the runs, a row for each true class; None where one of them failed."""
        scores = self.of(image, split, method)
        if any(score.error for score in scores):
            return None
        total: npt.NDArray[np.int64] = np.asarray([score.confusion for score in scores], np.int64).sum(axis=0)
        return total

    def means(self) -> list[dict[str, Any]]:
        """Means and spreads of every metric, for each image, split and method."""
        listed: list[dict[str, Any]] = []
        for image in self.images:
            for split in self.splits:
                for column in self.columns:
                    key = (image.name, split.name, column.name)
                    found = {metric: self.mean(metric, *key) for metric in (*METRICS, *COSTS)}
                    listed.append(
                        dict(zip(("image", "split", "method"), key, strict=True))
                        | {metric: None if one is None else asdict(one) for metric, one in found.items()}
                    )
        return listed

    def to_json(self) -> dict[str, Any]:
        """The whole evaluation, for `results.json`."""
        return {
            "conventions": CONVENTIONS,
            "environment": environment("numpy", "scipy", "scikit-learn", "torch"),
            "methods": [column.describe() for column in self.columns],
            "splits": [{"name": one.name, "label": one.label, "spatially_disjoint": one.apart} for one in self.splits],
            "images": [self._described(image) for image in self.images],
            "means": self.means(),
            "scores": [asdict(score) for score in self.scores],
        }

    def _described(self, image: LabelledImage) -> dict[str, Any]:
        divisions = self.divisions[image.name]
        return {
            "name": image.name,
            "source": dict(image.source),
            "bands": len(image.cube),
            "height": image.shape[0],
            "width": image.shape[1],
            "classes": [
                {**one.model_dump(mode="json"), "labelled_pixels": image.counts[one.value]} for one in image.classes
            ],
            "sha256": {"cube": digest(image.cube), "labels": hashlib.sha256(image.labels.tobytes()).hexdigest()},
            "splits": {name: [one.describe(image) for one in runs] for name, runs in divisions.items()},
        }


def evaluate_classify(
    images: Sequence[LabelledImage],
    columns: Sequence[Column],
    splits: Sequence[SplitGroup],
    progress: Callable[[Score], None] = lambda _: None,
) -> ClassEvaluation:
    """Run every method on every division of every image.

    A method that fails with one of our own errors is recorded as failed on that division, and the others go on.

    Args:
        images: with different names.
        columns: from `parse_columns`.
        splits: from `parse_splits`.
        progress: called with each score.

    Raises:
        InputError: an image has one class only, or a split leaves a class without training or test pixels.
    """
    shown = tuple(_with_labels(image) for image in images)
    names = [image.name for image in shown]
    if len(set(names)) != len(names):
        raise ConfigError(f"images need different names; found {', '.join(names)}")
    divisions = {image.name: divide(image, splits) for image in shown}
    found = ClassEvaluation(shown, tuple(columns), tuple(splits), divisions)
    for image in shown:
        for split in splits:
            for number, division in enumerate(divisions[image.name][split.name]):
                for column in columns:
                    score, classes = judge(column, image, split.name, division)
                    found.scores.append(score)
                    progress(score)
                    if number == 0 and classes is not None:
                        found.pictures.append(Picture(image.name, split.name, column.name, classes))
    return found


def judge(
    column: Column, image: LabelledImage, split: str, division: Division
) -> tuple[Score, npt.NDArray[np.uint8] | None]:
    """Fit a method to the training pixels of a division, map the image, and measure the map on the test pixels.

    What the method gets has no label but those of the training pixels.

    Returns:
        The score, and the map as class values `(y, x)`; None where the method failed.

    Raises:
        Stopped: a signal ended the training of a network.
    """
    trial = division.trial
    score = Score(image.name, split, trial.name, trial.seed, column.name)
    seen = replace(image, labels=np.where(division.train, image.labels, 0).astype(np.uint8), given_test=None)
    try:
        with measured() as learning:
            mapper = column.method.fit(seen, division.train, trial.seed)
        with measured() as labelling:
            probabilities = mapper.map(seen)
        if not np.isfinite(probabilities[:, image.valid]).all():
            raise ModelError(f"{column.name} gives NaN: its training came to no end; lower its learning rate")
    except Stopped:
        raise
    except CubeloomError as error:
        return replace(score, error=str(error)), None
    values = np.array([one.value for one in image.classes], np.uint8)
    mapped = probabilities.argmax(axis=0)
    truth = np.where(division.test, np.searchsorted(values, image.labels), -1)
    confusion = confusion_of(truth, mapped, len(values))
    measures = class_metrics(confusion)
    peaks = [cost.mib for cost in (learning, labelling) if cost.mib is not None]
    return (
        replace(
            score,
            **{name: measures[name] for name in (*METRICS, "accuracy", "f1", "iou")},
            confusion=confusion.tolist(),
            fit_seconds=learning.seconds,
            map_seconds=labelling.seconds,
            cpu_seconds=learning.cpu_seconds + labelling.cpu_seconds,
            peak_mib=max(peaks) if peaks else None,
            details=dict(mapper.details),
        ),
        values[mapped],
    )


def _with_labels(image: LabelledImage) -> LabelledImage:
    """The image with those of its classes that have labels."""
    counts = image.counts
    present = tuple(one for one in image.classes if counts[one.value])
    if len(present) < 2:
        listed = ", ".join(one.name for one in present) or "none"
        raise InputError(f"{image.name}: labels of {listed}; two classes at least are needed to tell apart")
    return replace(image, classes=present)


def _mean(values: Sequence[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Mean(float(np.mean(known)), spread, len(known))
