"""EnMAP's numbers to physical values."""

from dataclasses import dataclass

import numpy as np

from cubeloom.pipeline.encoding import REFLECTANCE, Array

from .enmap_metadata import BandTable
from .rasters import RasterInfo

L1_NODATA = 0
"""Nodata of L1B and L1C, whatever the image's tag says."""
L2A_NODATA = -32768
"""Nodata of L2A where the image states none. The XML's `backgroundValue` is 0 in L2A too: it is not used."""


@dataclass(frozen=True, eq=False)
class Decoding:
    """How the cube's numbers become reflectance or radiance.

    Attributes:
        gain: by band of the Scene, float32; value = DN * gain + offset.
        offset: see gain.
        nodata: DN that stand for "no value".
        packed: whether the DN lie as the store wants them, so that they are passed on as they are.
    """

    gain: Array
    offset: Array
    nodata: tuple[float, ...]
    packed: bool

    def decode(self, numbers: Array, bands: slice) -> Array:
        """Physical values of some bands, float32, NaN for nodata.

        Nodata is told from the DN: an offset turns DN 0 into some 0.05 W m-2 sr-1 nm-1, a plausible radiance.
        """
        values = numbers.astype(np.float32)
        values *= self.gain[bands, None, None]
        values += self.offset[bands, None, None]
        for nodata in self.nodata:
            values[numbers == nodata] = np.nan
        return values


def decoding_of(level: str, table: BandTable, info: RasterInfo | None) -> Decoding:
    """The decoding of a product's cube.

    Args:
        level: `L1B`, `L1C` or `L2A`.
        table: bands in the order of the Scene.
        info: the image's header; None where the image is empty.
    """
    tagged = None if info is None else info.nodata
    nodata = {L1_NODATA} if level != "L2A" else {L2A_NODATA} if tagged is None else set()
    if tagged is not None:
        nodata.add(int(tagged))
    stored = level == "L2A" and info is not None and info.dtype == REFLECTANCE.dtype and nodata == {REFLECTANCE.fill}
    packed = stored and bool((table.gain == REFLECTANCE.scale).all() and (table.offset == 0).all())
    return Decoding(table.gain.astype(np.float32), table.offset.astype(np.float32), tuple(sorted(nodata)), packed)
