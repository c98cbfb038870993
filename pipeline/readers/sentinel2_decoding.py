"""Sentinel-2's numbers to reflectance: (DN + offset) / quantification, once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.encoding import REFLECTANCE, Array, Packed

FloatArray = npt.NDArray[np.float64]
_HIGHEST = int(np.iinfo(REFLECTANCE.dtype).max)
_FILL = np.int16(-32768)


@dataclass(frozen=True, eq=False)
class Decoding:
    """How the numbers of a Scene's bands become reflectance.

    Attributes:
        quantification: divisor.
        offset: DN to be added before, by band of the Scene.
        special: DN that stand for "no value": nodata and saturation.
    """

    quantification: float
    offset: FloatArray
    special: tuple[int, ...]

    @property
    def packed(self) -> bool:
        """Whether whole numbers of the store's own step come out, so that nothing need be rounded."""
        return self.quantification * (REFLECTANCE.scale or 0) == 1 and bool((self.offset % 1 == 0).all())

    def decode(self, numbers: Array, bands: slice) -> Array | Packed:
        """Reflectance of some bands `(band, y, x)`, NaN (or the store's fill) for the special numbers.

        Special numbers are told before the offset is added. Packed reflectance ends at 3.2767; what lies above reads
        as that.
        """
        offset = self.offset[bands, None, None]
        known = ~np.isin(numbers, self.special)
        if not self.packed:
            values = (numbers + offset.astype(np.float32)) / np.float32(self.quantification)
            return np.where(known, values, np.float32(np.nan)).astype(np.float32)
        shifted = numbers.astype(np.int32)
        shifted += offset.astype(np.int32)
        np.minimum(shifted, _HIGHEST, out=shifted)
        return Packed(np.where(known, shifted, _FILL).astype(REFLECTANCE.dtype), REFLECTANCE)
