"""Writing a simulated Sentinel-2 product: lossless JPEG 2000 in ESA's folders, masks, documents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from cubeloom.pipeline.readers.sentinel2_bands import NAMES, NATIVE

from .sentinel2_metadata import ProductFacts, manifest, product_document, tile_document
from .sentinel2_tile import CIRRUS, CLOUD_HIGH, CLOUD_MEDIUM, Images, TileGrid, native_names

AnyArray = npt.NDArray[Any]
IMAGES = {
    10: ("B02", "B03", "B04", "B08", "TCI", "AOT", "WVP"),
    20: ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12", "TCI", "AOT", "WVP", "SCL"),
    60: ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B09", "B11", "B12", "TCI", "AOT", "WVP", "SCL"),
}
"""Images of a Level-2A product by resolution, in the order of its list."""
_BLOCK = {10: 1024, 20: 640, 60: 192}
"""Edge of the tiles inside the images, px, by resolution."""
_SNOW = 11
_RED, _GREEN, _BLUE = "B04", "B03", "B02"


@dataclass
class TileWriter:
    """The images and masks of a tile; remembers their paths for the documents.

    Attributes:
        root: the product's folder.
        granule: folder of the tile, below `GRANULE`.
        stem: what the images' names begin with, `T33UUP_20240601T101031`.
        grid: the tile's.
        offset: as in the metadata: DN = reflectance * 10000 - offset.
    """

    root: Path
    granule: str
    stem: str
    grid: TileGrid
    offset: int
    images: list[str] = field(default_factory=list)
    masks: list[tuple[str, int | None, str]] = field(default_factory=list)

    def write_images(self, images: Images, aerosol: float, vapour: float) -> None:
        """All images, each at every resolution that the product has it at."""
        native = {
            name: (step, numbers(plane, self.offset))
            for step, cube in images.reflectance.items()
            for name, plane in zip(native_names(step), cube, strict=True)
        }
        for step, names in IMAGES.items():
            planes = {name: resampled(*native[name], step) for name in names if name in native}
            shape = self.grid.shape(step)
            extra: dict[str, AnyArray] = {
                "TCI": true_colour([resampled(*native[name], step) for name in (_RED, _GREEN, _BLUE)], self.offset),
                "AOT": np.full(shape, round(1000 * aerosol), np.uint16),
                "WVP": np.full(shape, round(1000 * vapour), np.uint16),
                "SCL": images.classes if step == 20 else images.classes[1::3, 1::3],
            }
            for name in names:
                path = f"GRANULE/{self.granule}/IMG_DATA/R{step}m/{self.stem}_{name}_{step}m"
                self._write(path, planes.get(name, extra.get(name)), step)
                self.images.append(path)

    def write_masks(self, images: Images) -> None:
        """Detector footprints and quality of every band, and the classes of clouds."""
        empty = {step: ~np.isfinite(cube).all(axis=0) for step, cube in images.reflectance.items()}
        for number, name in enumerate(NAMES):
            step = next(step for step, names in NATIVE.items() if name in names)
            layers = np.zeros((8, *self.grid.shape(step)), np.uint8)
            layers[5] = empty[step]
            stripe = np.where(np.arange(layers.shape[2]) * 2 < layers.shape[2], 1, 2).astype(np.uint8)
            self._mask("MSK_DETFOO", number, name, np.where(empty[step], 0, stripe).astype(np.uint8), step)
            self._mask("MSK_QUALIT", number, name, layers, step)
        coarse = images.classes[1::3, 1::3]
        clouds = [np.isin(coarse, values) for values in ((CLOUD_MEDIUM, CLOUD_HIGH), (CIRRUS,), (_SNOW,))]
        self._mask("MSK_CLASSI", None, "B00", np.stack(clouds).astype(np.uint8), 60)

    def _mask(self, kind: str, band: int | None, name: str, layers: AnyArray, step: int) -> None:
        path = f"GRANULE/{self.granule}/QI_DATA/{kind}_{name}"
        self._write(path, layers, step)
        self.masks.append((kind, band, f"{path}.jp2"))

    def _write(self, path: str, pixels: AnyArray | None, step: int) -> None:
        assert pixels is not None
        layers = pixels if pixels.ndim == 3 else pixels[None]
        place = Affine(step, 0, self.grid.left, 0, -step, self.grid.top)
        target = self.root / f"{path}.jp2"
        target.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            target,
            "w",
            driver="JP2OpenJPEG",
            count=layers.shape[0],
            height=layers.shape[1],
            width=layers.shape[2],
            dtype=layers.dtype.name,
            crs=f"EPSG:{self.grid.epsg}",
            transform=place,
            QUALITY=100,
            REVERSIBLE="YES",
            YCBCR420="NO",
            BLOCKXSIZE=_BLOCK[step],
            BLOCKYSIZE=_BLOCK[step],
        ) as dataset:
            dataset.write(layers)


def numbers(reflectance: AnyArray, offset: int) -> AnyArray:
    """Reflectance `(y, x)` as the product's numbers: uint16, 0 where there is none."""
    counts = np.rint(reflectance * np.float32(10000) - offset)
    known = np.isfinite(reflectance)
    return np.where(known, np.clip(np.where(known, counts, 1), 1, 65534), 0).astype(np.uint16)


def resampled(native: int, plane: AnyArray, step: int) -> AnyArray:
    """Numbers of one resolution, m, at another: means of blocks, 0 where one of them is; or repeated."""
    if step <= native:
        return plane.repeat(native // step, 0).repeat(native // step, 1)
    factor = step // native
    blocks = plane.reshape(plane.shape[0] // factor, factor, plane.shape[1] // factor, factor)
    mean = np.rint(blocks.mean(axis=(1, 3)))
    return np.where((blocks == 0).any(axis=(1, 3)), 0, mean).astype(np.uint16)


def true_colour(planes: list[AnyArray], offset: int) -> AnyArray:
    """Red, green and blue numbers `(y, x)` as TCI has them: 255 is a reflectance of 0.3548."""
    return np.stack(
        [np.clip((plane.astype(np.float32) + offset) * (255 / 3548), 0, 255).astype(np.uint8) for plane in planes]
    )


def write_documents(root: Path, facts: ProductFacts) -> None:
    """MTD_MSIL2A.xml, MTD_TL.xml and, last, manifest.safe."""
    (root / "MTD_MSIL2A.xml").write_text(product_document(facts), encoding="utf-8")
    (root / "GRANULE" / facts.granule / "MTD_TL.xml").write_text(tile_document(facts), encoding="utf-8")
    (root / "manifest.safe").write_text(manifest(facts, _files(root)), encoding="utf-8")


def _files(root: Path) -> Iterator[str]:
    return (str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file())


def shares(classes: AnyArray) -> Mapping[int, float]:
    """Percent of the pixels with data by class of SCL."""
    values, counts = np.unique(classes[classes > 0], return_counts=True)
    total = max(int(counts.sum()), 1)
    return {int(value): 100 * float(count) / total for value, count in zip(values, counts, strict=True)}
