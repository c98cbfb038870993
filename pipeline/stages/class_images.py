"""What a classification adds to a Scene: the map, the probabilities, and two measures of how sure they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.models.cards import CardClass
from cubeloom.models.classifiers import MapClass
from cubeloom.pipeline.encoding import CLASSES, PROBABILITY
from cubeloom.pipeline.scene import Variable

NamedClass = CardClass | MapClass
FloatImages = npt.NDArray[np.float32]


def class_variables(classes: Sequence[NamedClass], attrs: Mapping[str, Any] | None = None) -> dict[str, Variable]:
    """The variables of a classification into `classes`; `attrs` are further attributes of the map."""
    values = [one.value for one in classes]
    named = {
        "flag_values": values,
        "flag_meanings": " ".join("_".join(one.name.split()) for one in classes),
        "class_names": [one.name for one in classes],
        "class_colours": [one.colour for one in classes],
    }
    probability = {"long_name": "probability of the class", "units": "1", "class_values": values}
    margin = {"long_name": "probability of the class less that of the runner-up", "units": "1"}
    entropy = {"long_name": "entropy of the classes' probabilities, 1 where all are alike", "units": "1"}
    return {
        "classes": Variable(("y", "x"), CLASSES, {"long_name": "class", **named, **(attrs or {})}),
        "probability": Variable(("class", "y", "x"), PROBABILITY, probability),
        "confidence": Variable(("y", "x"), PROBABILITY, margin),
        "entropy": Variable(("y", "x"), PROBABILITY, entropy),
    }


def class_images(probability: FloatImages, classes: Sequence[NamedClass]) -> dict[str, npt.NDArray[Any]]:
    """The images of these variables.

    `entropy` is Shannon's, -sum p ln p, over its highest value, ln K: 0 where the class is certain, 1 where nothing is
    known.

    Args:
        probability: `(class, y, x)`, sum 1; NaN at pixels without a class.
        classes: in that order.
    """
    known = np.isfinite(probability[0])
    spread = probability[:, known]
    values = np.array([one.value for one in classes], np.uint8)
    images = {name: np.full(known.shape, np.nan, np.float32) for name in ("confidence", "entropy")}
    images["confidence"][known] = _margin(spread)
    images["entropy"][known] = _entropy(spread)
    chosen = np.zeros(known.shape, np.uint8)
    chosen[known] = values[spread.argmax(axis=0)]
    return {"classes": chosen, "probability": probability, **images}


def _margin(spread: FloatImages) -> FloatImages:
    """The highest probability of `(class, n)` less the second highest; the highest alone where there is one class."""
    if len(spread) == 1:
        return np.asarray(spread[0])
    best = np.partition(spread, -2, axis=0)
    return np.asarray(best[-1] - best[-2])


def _entropy(spread: FloatImages) -> FloatImages:
    if len(spread) == 1:
        return np.zeros(spread.shape[1], np.float32)
    smallest = np.finfo(np.float32).tiny
    entropy = -(spread * np.log(np.maximum(spread, smallest))).sum(axis=0)
    return np.asarray(np.clip(entropy / np.float32(np.log(len(spread))), 0, 1))
