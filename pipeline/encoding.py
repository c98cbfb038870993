"""How a variable's numbers lie in a store: packed type, scale and fill value."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Encoding:
    """Packed dtype, scale and fill value of a variable; `value = packed * scale`, fill means "no value".

    A `scale` of None stores the numbers as they are. `fill` is None where every number is a value.
    """

    dtype: str
    scale: float | None = None
    fill: float | int | None = None

    @property
    def decoded_dtype(self) -> np.dtype[Any]:
        """Dtype in memory: float32 for packed variables, the stored one for all others."""
        return np.dtype("float32") if self.scale is not None else np.dtype(self.dtype)

    @property
    def cf(self) -> dict[str, Any]:
        """The encoding as xarray and CF spell it; empty for variables that are stored as they are."""
        if self.scale is None:
            return {}
        return {"dtype": self.dtype, "scale_factor": self.scale, "_FillValue": self.fill}

    def decode(self, packed: Array) -> Array:
        """Packed numbers to values; fill becomes NaN. Variables without a scale come back as they are."""
        if self.scale is None:
            return packed
        values = packed.astype(np.float32)
        values *= np.float32(self.scale)
        if self.fill is not None:
            values[packed == self.fill] = np.nan
        return values

    def encode(self, values: Array) -> tuple[Array, int]:
        """Values to packed numbers, and how many lay out of range and were clipped (never wrapped).

        NaN becomes the fill value; infinities are clipped. The fill value itself is never the packed form of a value.
        """
        if self.scale is None:
            return np.ascontiguousarray(values, dtype=self.dtype), 0
        info = np.iinfo(self.dtype)
        low, high = info.min, info.max
        if self.fill == low:
            low += 1
        elif self.fill == high:
            high -= 1
        with np.errstate(invalid="ignore", over="ignore"):
            counts = np.rint(np.asarray(values, np.float32) * np.float32(1 / self.scale))
        missing = np.isnan(counts)
        clipped = int(np.count_nonzero((counts < low) | (counts > high)))
        np.clip(counts, low, high, out=counts)
        counts[missing] = 0
        packed = counts.astype(self.dtype)
        if self.fill is not None:
            packed[missing] = self.fill
        return packed, clipped


@dataclass(frozen=True)
class Packed:
    """An array still in its packed form, decoded when it is first asked for.

    Attributes:
        data: the packed numbers.
        encoding: how they are packed.
        clipped: True where a value lay out of range and was clipped; None where none did.
    """

    data: Array
    encoding: Encoding
    clipped: npt.NDArray[np.bool_] | None = None

    @cached_property
    def values(self) -> Array:
        """The decoded values."""
        return self.encoding.decode(self.data)

    def take(self, index: slice | npt.NDArray[np.intp]) -> "Packed":
        """Some entries of the first axis, still packed."""
        return Packed(self.data[index], self.encoding, None if self.clipped is None else self.clipped[index])


REFLECTANCE = Encoding("int16", 1e-4, -32768)
FLOAT = Encoding("float32", None, float("nan"))
PROBABILITY = Encoding("uint8", 1 / 250, 255)
CLASSES = Encoding("uint8", None, 0)
FLAGS = Encoding("uint32")
BOOL = Encoding("bool")
