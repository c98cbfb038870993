"""Sentinel-2 SAFE products (L1C, L2A) as Sources, one of their three grids each, read in place window by window."""

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import QUALITY_FLAGS, SceneSpec

from . import sentinel2_guard, sentinel2_safe
from .jp2_tiles import CUBES, read_tiles
from .rasters import RasterFile, RasterInfo, block_shape, digest, file_state, inspect
from .sentinel2_bands import NAMES
from .sentinel2_common import CommonGridSource, on_common_grid
from .sentinel2_decoding import Decoding
from .sentinel2_images import Image, grid_images, quality_files, tile_folder
from .sentinel2_metadata import ProductMetadata, parse_product
from .sentinel2_quality import QualityFiles
from .sentinel2_safe import SafeFiles
from .sentinel2_scene import scene_spec
from .sentinel2_tile import TileMetadata, parse_tile

__all__ = ["GRIDS", "Sentinel2Source", "find_products", "open_source", "read_metadata", "recognises"]

recognises = sentinel2_safe.recognises
find_products = sentinel2_safe.find_products
GRIDS = {"10m": 10, "20m": 20, "60m": 60}


def open_source(
    path: Path, *, grid: str = "10m", bands: str = "native", masks: str = "scene", resampling: str = "area"
) -> "Sentinel2Source | CommonGridSource":
    """The Source over one grid of a SAFE product.

    Args:
        path: the product's folder, its ZIP, or its MTD_MSIL*.xml.
        grid: `10m`, `20m` or `60m`.
        bands: `native`, the bands that were measured at this grid; `all` that the product has images of at it,
            which the provider resampled; or `common`, every band, brought to this grid here.
        masks: `scene`, the masks of the whole scene, or `bands` for those of each band too (`defect`, saturation);
            they are as many pixels again to decode.
        resampling: for `common`: `area` (finer bands averaged, coarser ones repeated) or `cubic` (coarser ones
            interpolated).

    Raises:
        InputError: files are missing or damaged, or images and metadata disagree.
        ConfigError: no such grid or option.

    Warns:
        OffsetWarning: the offset that the metadata state does not fit the pixels.
    """
    _check(
        path,
        {
            "grid": (grid, tuple(GRIDS)),
            "bands": (bands, ("native", "all", "common")),
            "masks": (masks, ("scene", "bands")),
            "resampling": (resampling, ("area", "cubic")),
        },
    )
    files = sentinel2_safe.locate(path)
    metadata, tile = read_metadata(files)
    if bands == "common":
        if masks == "bands":
            raise ConfigError(f"{path}: masks='bands' are of native bands; open them with bands='native'")
        steps = {step: _native_source(files, metadata, tile, step, "native", masks) for step in GRIDS.values()}
        steps[GRIDS[grid]] = _guarded(steps[GRIDS[grid]], metadata)
        return on_common_grid(steps, GRIDS[grid], cubic=resampling == "cubic")
    return _guarded(_native_source(files, metadata, tile, GRIDS[grid], bands, masks), metadata)


def _native_source(
    files: SafeFiles, metadata: ProductMetadata, tile: TileMetadata, resolution: int, bands: str, masks: str
) -> "Sentinel2Source":
    """The Source over the images that a product has at a resolution, m."""
    images = grid_images(metadata, resolution, native=bands == "native")
    if not images:
        raise InputError(f"{files.path}: lists no images of bands at {resolution} m")
    quality = quality_files(files, metadata, tile, resolution, [image.band for image in images], masks == "bands")
    cubes = tuple(files.image(image.path) for image in images)
    offset = np.array([metadata.offset[image.band] for image in images])
    spec = scene_spec(metadata, tile, [metadata.bands[image.band] for image in images], resolution, quality)
    decoding = Decoding(metadata.quantification, offset, (metadata.nodata, metadata.saturated))
    documents = files.document, _tile_document(metadata)
    return Sentinel2Source(spec, files, documents, cubes, decoding, quality, _common_info(cubes, spec))


def read_metadata(files: SafeFiles) -> tuple[ProductMetadata, TileMetadata]:
    """Both documents of a product.

    Raises:
        InputError: one is missing or wrong.
    """
    metadata = parse_product(files.read(files.document), f"{files.path}/{files.document}")
    name = _tile_document(metadata)
    return metadata, parse_tile(files.read(name), f"{files.path}/{name}")


def _tile_document(metadata: ProductMetadata) -> str:
    return f"{tile_folder(metadata)}/MTD_TL.xml"


def _check(path: Path, options: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ConfigError(f"{path}: {name}={value!r}; expected {' or '.join(map(repr, known))}")


def _common_info(cubes: tuple[RasterFile, ...], spec: SceneSpec) -> RasterInfo | None:
    """Header of the first image that is no empty file; all must have the size and place that the metadata give."""
    found = None
    for cube in cubes:
        if 0 in (cube.size, file_state(cube.path)[0]):
            continue
        info = inspect(cube)
        if info.shape != spec.shape or info.count != 1 or info.dtype != "uint16":
            raise InputError(
                f"{cube}: holds {info.count} bands of {info.shape[0]} x {info.shape[1]} px, {info.dtype}; the metadata "
                f"expect one of {spec.shape[0]} x {spec.shape[1]} px, uint16"
            )
        _check_place(cube, info, spec)
        found = found or info
    return found


def _check_place(cube: RasterFile, info: RasterInfo, spec: SceneSpec) -> None:
    """Refuse an image whose own corner lies more than half a pixel from the tile's."""
    if info.grid.crs is None:
        return
    stated, own = spec.grid.transform, info.grid.transform
    if max(abs(stated.c - own.c), abs(stated.f - own.f)) > abs(stated.a) / 2:
        raise InputError(
            f"{cube}: its upper left corner is {own.c:g}, {own.f:g}; the metadata say {stated.c:g}, {stated.f:g}: the "
            "files do not belong together"
        )


def _guarded(source: "Sentinel2Source", metadata: ProductMetadata) -> "Sentinel2Source":
    """The source, with a warning where the product's offsets do not fit its pixels."""
    if source.info is None:
        return source
    there = _coarsest_images(metadata, source.product)
    there = [image for image in there if image.band in sentinel2_guard.ASKED] or there
    with ThreadPoolExecutor(len(sentinel2_guard.ASKED)) as threads:  # all are decoded at once
        samples = list(threads.map(lambda image: sentinel2_guard.sample(source.product.image(image.path)), there))
    offset = [metadata.offset[image.band] for image in there]
    dark = sentinel2_guard.darkest(samples, [image.band for image in there], offset, source.decoding.special)
    wrong = sentinel2_guard.judge(dark, metadata.quantification, offset)
    if not wrong:
        return source
    warnings.warn(f"{source.product.path}: {wrong}", sentinel2_guard.OffsetWarning, stacklevel=5)
    spec = replace(source.spec, attrs={**source.spec.attrs, "offset_warning": wrong})
    return replace(source, spec=spec)


def _coarsest_images(metadata: ProductMetadata, product: SafeFiles) -> list[Image]:
    """One image of every band that is there: the provider's coarsest, which is decoded soonest."""
    listed = [image for resolution in GRIDS.values() for image in grid_images(metadata, resolution, native=False)]
    return list({image.band: image for image in listed if product.has(image.path)}.values())


@dataclass(frozen=True, eq=False)
class Sentinel2Source:
    """A Source over one grid of a product.

    Attributes:
        spec: the Scene without pixels.
        product: where the product's files lie.
        documents: paths of the product's metadata in there.
        cubes: the image of each of the Scene's bands.
        decoding: numbers to reflectance.
        quality: the masks.
        info: an image's header; None where all images are empty.
    """

    spec: SceneSpec
    product: SafeFiles
    documents: tuple[str, ...]
    cubes: tuple[RasterFile, ...]
    decoding: Decoding
    quality: QualityFiles
    info: RasterInfo | None

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the images' tiles."""
        return block_shape(self.info) if self.info else self.spec.shape

    @property
    def exact(self) -> bool:
        """Whether reflectance comes in the store's own steps."""
        return self.decoding.packed

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the Scene's bands."""
        return tuple(NAMES[number - 1] for number in self.spec.bands.number)

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable, see `Source.read`; reflectance comes packed where it is whole steps of 1e-4.

        Raises:
            InputError: a file is empty, damaged, or of another size than the metadata say.
        """
        bands = bands or slice(None)
        if name == self.spec.measurement:
            layers = [read_tiles(cube, window, (1,), self.spec.shape, CUBES)[0] for cube in self.cubes[bands]]
            return self.decoding.decode(layers, bands, out)
        if name == "defect":
            return self.quality.defects(window, self.spec.shape, self.names[bands])
        if name == "quality":
            flags = self.quality.flags(window, self.spec.shape)
            if self.quality.scene_classes is None:
                flags[self._without_data(window)] |= np.uint32(QUALITY_FLAGS["background"])
            return flags
        raise KeyError(name)

    def _without_data(self, window: Window) -> Array:
        """True where no band has data; stops reading at the first band that leaves no such pixel."""
        missing = np.ones(window.shape, bool)
        for cube in self.cubes:
            missing &= read_tiles(cube, window, (1,), self.spec.shape, CUBES)[0] == self.decoding.special[0]
            if not missing.any():
                break
        return missing

    def files(self) -> list[Path]:
        """The files that the scene is read from: the archive alone where there is one."""
        return sorted({path for _, path in self._parts()})

    def _parts(self) -> list[tuple[str, Path]]:
        masks = [(name, file.path) for name, file in self.quality.files.items()]
        cubes = [(name, cube.path) for name, cube in zip(self.names, self.cubes, strict=True)]
        return self.product.parts(self.documents, [*masks, *cubes])

    def fingerprint(self) -> str:
        """sha256 over the content of all files the scene is read from; names and places do not matter."""
        return digest(self._parts(), salt=self.spec.scene_id)
