"""What methods of super-resolution made of a case, kept until all are there, and what the figure shows of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.scene import BoolArray

from .superres_cases import Case

Float32Array = npt.NDArray[np.float32]

CROP = 48
"""Edge, fine px, of what the figure shows of a case."""
POINTS = 3
"""Pixels whose spectra it shows."""
BORDER = 4
"""Of the crop, px, where none of them lies."""


class Products:
    """The products of a case, on disk: which bands are judged is known when all of them are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def add(self, name: str, made: Float32Array) -> None:
        """Keep a product `(band, y, x)`."""
        np.save(self._path(len(self.names)), made)
        self.names.append(name)

    def __getitem__(self, name: str) -> Float32Array:
        return np.asarray(np.load(self._path(self.names.index(name)), mmap_mode="r"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"

    def bands(self, good: BoolArray) -> BoolArray:
        """Those of some bands in which every product has values."""
        made = [np.isfinite(self[name]).any(axis=(1, 2)) for name in self.names]
        return np.asarray(np.logical_and.reduce([good, *made]))


@dataclass(frozen=True, eq=False)
class Picture:
    """A crop of a cube of one case, for the figure.

    Attributes:
        ground: name of the ground.
        protocol: of the case.
        method: that made it; `scene` and `truth` for those.
        colours: three bands `(3, y, x)`.
        spectra: of some pixels, `(pixel, band)`, preferred bands; NaN in those that are not judged.
        points: row and column of these pixels in the crop.
    """

    ground: str
    protocol: str
    method: str
    colours: Float32Array
    spectra: Float32Array
    points: npt.NDArray[np.intp]


def pictures_of(case: Case, products: Products, bands: BoolArray) -> list[Picture]:
    """Crops of the scene, of the truth and of every product about the place with most detail."""
    cube = case.cube.repeat(case.scale, axis=1).repeat(case.scale, axis=2)
    shown = {"scene": cube} | ({} if case.truth is None else {"truth": case.truth})
    shown |= {name: products[name] for name in products.names}
    model = shown.get("truth", products[products.names[0]])
    judged = np.where(case.judged, model[_bands_shown(case)[0]], np.float32(np.nan))
    rows, cols = most_detailed(judged, CROP)
    points = unlike(model[bands][:, rows, cols], POINTS)
    pictures = []
    for name, values in shown.items():
        crop = np.asarray(values[:, rows, cols])
        spectra = np.where(bands[:, None], crop[:, points[:, 0], points[:, 1]], np.float32(np.nan))[case.preferred].T
        pictures.append(Picture(case.ground, case.protocol, name, crop[_bands_shown(case)], spectra, points))
    return pictures


def _bands_shown(case: Case) -> list[int]:
    """Bands near 860, 650 and 550 nm, as red, green and blue."""
    return [case.spec.bands.nearest(target) for target in (860.0, 650.0, 550.0)]


def most_detailed(image: Float32Array, edge: int) -> tuple[slice, slice]:
    """Rows and columns of the square in which an image `(y, x)` varies most, of those on a lattice of half its edge.

    The middle one where none has all values.
    """
    edge = min(edge, *image.shape)
    height, width = image.shape
    starts = [(row, col) for row in range(0, height - edge + 1, max(edge // 2, 1))
              for col in range(0, width - edge + 1, max(edge // 2, 1))]  # fmt: skip
    spread = [float(np.std(image[row : row + edge, col : col + edge])) for row, col in starts]
    row, col = starts[int(np.nanargmax(spread))] if np.isfinite(spread).any() else starts[len(starts) // 2]
    return slice(row, row + edge), slice(col, col + edge)


def unlike(cube: Float32Array, count: int) -> npt.NDArray[np.intp]:
    """Row and column of pixels of a cube `(band, y, x)`: the brightest, then each time the least like those before.

    None lies within `BORDER` of the edge of a cube that is larger.
    """
    inner = cube[:, BORDER:-BORDER, BORDER:-BORDER] if min(cube.shape[1:]) > 2 * BORDER else cube
    border = BORDER if inner is not cube else 0
    spectra = inner.reshape(len(inner), -1).astype(np.float64)
    known = np.isfinite(spectra).all(axis=0)
    spectra = np.where(known, spectra, 0)
    distance, places = np.where(known, np.sum(spectra**2, axis=0), -1), []
    for number in range(count):
        place = int(np.argmax(distance))
        places.append(place)
        away = np.where(known, np.sum((spectra - spectra[:, [place]]) ** 2, axis=0), -1)
        distance = away if number == 0 else np.minimum(distance, away)
    return np.stack(np.unravel_index(places, inner.shape[1:]), axis=1) + border
