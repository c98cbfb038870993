"""Scores of an evaluation, whatever they are of: which of them are meant, and their mean."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

S = TypeVar("S")


def selected(scores: Iterable[S], **wanted: str | None) -> list[S]:
    """The scores whose fields are as wanted; None stands for any."""
    return [score for score in scores if all(value in (None, getattr(score, name)) for name, value in wanted.items())]


def mean(values: Iterable[float | None]) -> float | None:
    """None where there are no values, or one of them is missing: a mean over less would not compare."""
    known = list(values)
    return None if None in known or not known else float(np.mean([value for value in known if value is not None]))
