"""EnMAP's quality rasters folded into the Scene's one `quality` layer.

Codes as in DLR's product specification and SNAP's reader (`QualityLayerInfo`).
"""

from collections.abc import Callable, Container

import numpy as np

from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape
from cubeloom.pipeline.scene import QUALITY_FLAGS

MASKS = ("CLASSES", "CLOUD", "CIRRUS", "HAZE", "SNOW", "CLOUDSHADOW", "TESTFLAGS")
"""The rasters `QL_QUALITY_*` by what follows that prefix."""

_VALUE_FLAGS: dict[str, dict[int, str]] = {
    "CLASSES": {1: "land", 2: "water", 3: "background"},
    "CLOUD": {1: "cloud"},
    "CIRRUS": {1: "cirrus_thin", 2: "cirrus_medium", 3: "cirrus_thick"},
    "HAZE": {1: "haze"},
    "SNOW": {1: "snow"},
    "CLOUDSHADOW": {1: "cloud_shadow"},
}
_TEST_LEVELS = {1: "reduced_quality", 2: "low_quality", 3: "not_produced"}
"""Values of the two lowest bits of QL_QUALITY_TESTFLAGS."""
_TEST_BITS = {
    "interpolated": 1 << 2 | 1 << 3,
    "saturated": 1 << 4 | 1 << 5,
    "artefact": 1 << 6 | 1 << 7,
}
"""Higher bits of QL_QUALITY_TESTFLAGS, SWIR and VNIR each."""


def fold(read: Callable[[str], Array], masks: Container[str], shape: Shape) -> Array:
    """The `quality` flags of a window, uint32 `(y, x)`.

    Args:
        read: gives the window `(y, x)` of a mask by its short name.
        masks: names of the masks there are; the flags of missing ones stay unset.
        shape: height and width of the window.
    """
    flags = np.zeros(shape, np.uint32)
    for name, meanings in _VALUE_FLAGS.items():
        if name in masks:
            mask = read(name)
            for value, meaning in meanings.items():
                flags[mask == value] |= np.uint32(QUALITY_FLAGS[meaning])
    if "TESTFLAGS" in masks:
        _fold_test_flags(flags, read("TESTFLAGS"))
    return flags


def _fold_test_flags(flags: Array, tests: Array) -> None:
    level = tests & 0b11
    for value, meaning in _TEST_LEVELS.items():
        flags[level == value] |= np.uint32(QUALITY_FLAGS[meaning])
    for meaning, bits in _TEST_BITS.items():
        flags[(tests & np.uint8(bits)) != 0] |= np.uint32(QUALITY_FLAGS[meaning])
