"""Sentinel-2's scene classification and masks folded into the Scene's `quality` layer.

Classes of SCL as in the Level-2A Algorithm Theoretical Basis Document (S2-PDGS-MPC-ATBD-L2A); layers of MSK_CLASSI and
MSK_QUALIT as in the product specification from processing baseline 04.00 on (S2-PDGS-TAS-DI-PSD).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import QUALITY_FLAGS

from .jp2_tiles import MASKS, read_tiles
from .rasters import RasterFile
from .sentinel2_polygons import CloudPolygons

SCL_FLAGS = {
    0: "background",
    1: "saturated",
    3: "cloud_shadow",
    4: "land",
    5: "land",
    6: "water",
    8: "cloud",
    9: "cloud",
    10: "cirrus_thin",
    11: "snow",
}
"""Flag by class; 2 (dark: shadow of relief, or plainly dark) and 7 (unclassified) say nothing that has a flag."""
CLASSI_FLAGS = {1: "cloud", 2: "cirrus_thin", 3: "snow"}
"""Flag by layer of MSK_CLASSI: opaque cloud, cirrus, snow and ice."""
DEFECT_LAYERS = (3, 5)
"""Layers of MSK_QUALIT, by band: lost instrument packets, defective detector elements."""
QUALIT_FLAGS = {1: "reduced_quality", 2: "reduced_quality", 4: "reduced_quality", 7: "reduced_quality", 8: "saturated"}
"""Flag by layer of MSK_QUALIT: lost and degraded ancillary packets, degraded instrument packets, cross-talk mended in
part, saturation."""


@dataclass(frozen=True)
class CoarseFile:
    """A raster whose pixels are `factor` times as wide as those of the Scene."""

    file: RasterFile
    factor: int

    def read(self, window: Window, shape: Shape, bands: tuple[int, ...] = (1,)) -> Array:
        """A window of the Scene `(band, y, x)`, each pixel that of the raster that holds it.

        Args:
            window: px of the Scene.
            shape: of the Scene.
            bands: of the raster, 1-based.
        """
        step = self.factor
        coarse = window.coarsened(step)
        whole = -(-shape[0] // step), -(-shape[1] // step)
        pixels = read_tiles(self.file, coarse, bands, whole, MASKS)
        if step == 1:
            return pixels
        return spread(pixels, coarse, window, step)


def spread(pixels: Array, coarse: Window, window: Window, step: int) -> Array:
    """Pixels `(..., y, x)` of a window of a coarse grid, repeated over those of a grid `step` times finer."""
    rows = np.arange(window.row, window.stop[0]) // step - coarse.row
    columns = np.arange(window.col, window.stop[1]) // step - coarse.col
    return np.asarray(pixels.take(columns, axis=-1).take(rows, axis=-2))  # far faster than both indices together


@dataclass(frozen=True)
class QualityFiles:
    """The rasters that tell a Scene's quality; any may be missing.

    Attributes:
        scene_classes: SCL.
        cloud_classes: MSK_CLASSI.
        by_band: MSK_QUALIT of each of the Scene's bands.
        clouds: the clouds of older products.
    """

    scene_classes: CoarseFile | None = None
    cloud_classes: CoarseFile | None = None
    by_band: Mapping[str, CoarseFile] = field(default_factory=dict)
    clouds: CloudPolygons | None = None

    @property
    def files(self) -> dict[str, RasterFile]:
        """Files by the part they play."""
        found = {"SCL": self.scene_classes, "MSK_CLASSI": self.cloud_classes}
        found |= {f"MSK_QUALIT {name}": file for name, file in self.by_band.items()}
        files = {name: file.file for name, file in found.items() if file is not None}
        return files | ({"MSK_CLOUDS": self.clouds.file} if self.clouds is not None else {})

    def flags(self, window: Window, shape: Shape) -> Array:
        """The `quality` flags of a window, uint32 `(y, x)`; background is told where SCL is there.

        Raises:
            InputError: a file is damaged, or is none of classes.
        """
        if self.scene_classes is None:
            flags = np.zeros(window.shape, np.uint32)
        else:
            classes = self.scene_classes.read(window, shape)[0]
            if classes.dtype != np.uint8:
                raise InputError(f"{self.scene_classes.file}: holds {classes.dtype} as SCL; expected classes as uint8")
            flags = SCL_LOOKUP.take(classes)
        if self.cloud_classes is not None:
            _add(flags, CLASSI_FLAGS, self.cloud_classes.read(window, shape, tuple(CLASSI_FLAGS)))
        if self.clouds is not None:
            self.clouds.add(flags, window)
        for file in self.by_band.values():
            _add(flags, QUALIT_FLAGS, file.read(window, shape, tuple(QUALIT_FLAGS)))
        return flags

    def defects(self, window: Window, shape: Shape, bands: tuple[str, ...]) -> Array:
        """The `defect` cube of a window, bool `(band, y, x)`."""
        defects = np.zeros((len(bands), *window.shape), bool)
        for at, name in enumerate(bands):
            if name in self.by_band:
                defects[at] = self.by_band[name].read(window, shape, DEFECT_LAYERS).any(axis=0)
        return defects


def _add(flags: Array, meanings: Mapping[int, str], layers: Array) -> None:
    for meaning, layer in zip(meanings.values(), layers, strict=True):
        flags[layer != 0] |= np.uint32(QUALITY_FLAGS[meaning])


def _lookup() -> Array:
    table = np.zeros(256, np.uint32)
    for value, meaning in SCL_FLAGS.items():
        table[value] = QUALITY_FLAGS[meaning]
    return table


SCL_LOOKUP = _lookup()
"""Flags by class of SCL, `(256,)`."""
