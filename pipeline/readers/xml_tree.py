"""Elements of a provider's XML, with readers that name the file and the path where something is missing."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.untrusted import Element, parse_xml

YEARS = (1678, 2261)
"""What a Scene can count in nanoseconds."""
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Node:
    """An element and the file it stands in. Paths are those of `xml.etree`; `{*}` stands for any namespace."""

    element: Element
    origin: str
    where: str = ""

    @classmethod
    def parse(cls, document: bytes, origin: str) -> Self:
        """The root of an XML document from outside.

        Raises:
            InputError: see `cubeloom.untrusted.parse_xml`.
        """
        return cls(parse_xml(document, origin), origin)

    def optional(self, path: str) -> str:
        """Text of an element; empty where there is none."""
        return (self.element.findtext(path) or "").strip()

    def text(self, path: str) -> str:
        """Text of an element that must be there."""
        text = self.optional(path)
        if not text:
            raise InputError(
                f"{self.origin}: element {self._at(path)} is missing or empty; the metadata are incomplete"
            )
        return text

    def number(self, path: str) -> float:
        """A finite number."""
        return self._number(path, self.text(path))

    def optional_number(self, path: str) -> float | None:
        """A finite number; None where there is no element."""
        text = self.optional(path)
        return self._number(path, text) if text else None

    def whole(self, path: str, most: int) -> int:
        """A whole number from 1 to `most`."""
        value = self.number(path)
        if not (value.is_integer() and 1 <= value <= most):
            raise InputError(
                f"{self.origin}: element {self._at(path)} holds {value:g}, expected a whole number from 1 to {most:,}"
            )
        return int(value)

    def index(self, attribute: str, below: int, least: int = 0) -> int:
        """An attribute that is a whole number from `least` to below `below`."""
        text = self.element.get(attribute, "").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 9 and least <= int(text) < below):
            raise InputError(
                f"{self.origin}: attribute {attribute} of {self._at('')} is {text[:20]!r}, expected {least} to "
                f"{below - 1}"
            )
        return int(text)

    def numbers(self, path: str) -> FloatArray:
        """Numbers between blanks, NaN among them where the text says so."""
        return self._numbers(path, self.text(path))

    def rows(self, path: str) -> FloatArray:
        """The matrix whose rows are the elements at `path`."""
        rows = [self._numbers(path, (element.text or "").strip()) for element in self.element.findall(path)]
        if not rows or len({row.size for row in rows}) != 1:
            raise InputError(f"{self.origin}: elements {self._at(path)} hold no matrix: rows are missing or differ")
        return np.stack(rows)

    def time(self, path: str) -> datetime:
        """An ISO 8601 time, UTC where it names no zone."""
        text = self.text(path)
        try:
            value = datetime.fromisoformat(text)
            value = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise InputError(
                f"{self.origin}: element {self._at(path)} holds {text[:40]!r}, expected an ISO 8601 time"
            ) from None
        if not YEARS[0] <= value.year <= YEARS[1]:
            raise InputError(f"{self.origin}: element {self._at(path)} holds {text!r}, expected a time of our age")
        return value

    def one(self, path: str) -> Self:
        """The first element at a path."""
        element = self.element.find(path)
        if element is None:
            raise InputError(f"{self.origin}: element {self._at(path)} is missing; the metadata are incomplete")
        return self._inner(element, path)

    def all(self, path: str) -> list[Self]:
        """All elements at a path."""
        return [self._inner(element, path) for element in self.element.findall(path)]

    def _inner(self, element: Element, path: str) -> Self:
        return type(self)(element, self.origin, self._at(path))

    def _at(self, path: str) -> str:
        return "/".join(part for part in (self.where, path.replace("{*}", "")) if part)

    def _number(self, path: str, text: str) -> float:
        values = self._numbers(path, text)
        if values.size != 1 or not np.isfinite(values[0]):
            raise InputError(f"{self.origin}: element {self._at(path)} holds {text[:40]!r}, expected a number")
        return float(values[0])

    def _numbers(self, path: str, text: str) -> FloatArray:
        try:
            return np.array(text.split(), dtype=float)
        except ValueError as error:
            raise InputError(f"{self.origin}: element {self._at(path)} holds no numbers ({error})") from None
