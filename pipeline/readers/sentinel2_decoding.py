"""Sentinel-2's numbers to reflectance: (DN + offset) / quantification, once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.encoding import REFLECTANCE, Array, Packed

FloatArray = npt.NDArray[np.float64]
_HIGHEST = int(np.iinfo(REFLECTANCE.dtype).max)
_FILL = np.int16(-32768)
_LARGEST_OFFSET = 30_000
"""DN either way; a sum of 16 bits holds what numbers become with it."""


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
        whole = bool((self.offset % 1 == 0).all() and (np.abs(self.offset) <= _LARGEST_OFFSET).all())
        return self.quantification * (REFLECTANCE.scale or 0) == 1 and whole

    def decode(self, layers: Sequence[Array], bands: slice, out: Array | None = None) -> Array | Packed:
        """Reflectance `(band, y, x)` of some bands, NaN (or the store's fill) for the special numbers.

        Special numbers are told before the offset is added. Packed reflectance ends at 3.2767; what lies above reads
        as that, and is marked as clipped.

        Args:
            layers: the provider's numbers `(y, x)` of each band, uint16; they are not changed.
            bands: which of the Scene's bands they are.
            out: where packed numbers go, if it has their shape and type.
        """
        if not self.packed:
            numbers = np.stack(layers)
            values = (numbers + self.offset[bands, None, None].astype(np.float32)) / np.float32(self.quantification)
            return np.where(np.isin(numbers, self.special), np.float32(np.nan), values).astype(np.float32)
        shape = (len(layers), *layers[0].shape)
        fits = out is not None and (out.shape, out.dtype) == (shape, np.dtype(REFLECTANCE.dtype))
        data = out if out is not None and fits else np.empty(shape, REFLECTANCE.dtype)
        clipped: npt.NDArray[np.bool_] | None = None
        for at, (layer, offset) in enumerate(zip(layers, self.offset[bands].astype(int).tolist(), strict=True)):
            above = self._pack(layer, offset, data[at])
            if above is not None:
                clipped = np.zeros(shape, bool) if clipped is None else clipped
                clipped[at] = above
        return Packed(data, REFLECTANCE, clipped)

    def _pack(self, layer: Array, offset: int, out: Array) -> npt.NDArray[np.bool_] | None:
        """Pack one band into `out`; True where it was clipped, None where it was nowhere.

        Sums stay in 16 bits: what lies too high is cut off before, and numbers below the offset wrap round to just
        those bits that stand for the negative number.
        """
        lowest, largest = int(layer.min()), int(layer.max())
        missing = [layer == number for number in self.special if lowest <= number <= largest]
        highest = _HIGHEST - offset
        above = layer > highest if largest > highest else None
        if above is not None:
            layer = np.minimum(layer, np.uint16(highest))
        np.add(layer, np.uint16(offset % 2**16), out=out.view(np.uint16))
        for pixels in missing:
            out[pixels] = _FILL
            if above is not None:
                above &= ~pixels
        return above if above is not None and above.any() else None
