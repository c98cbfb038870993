"""Sentinel-1 GRD products (SAFE) as Sources: calibrated, without thermal noise, on a map grid, window by window."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import SceneSpec

from . import sentinel1_border, sentinel1_safe
from .rasters import RasterFile, digest, inspect, read_window
from .sentinel1_calibration import CALIBRATIONS, NOISE_HANDLING, Radiometry, parse_calibration, parse_noise
from .sentinel1_geolocation import Geocoding, MapModel, map_crs, map_grid
from .sentinel1_metadata import ImageMetadata, ProductMetadata, parse_annotation, parse_manifest
from .sentinel1_safe import ImageFiles
from .sentinel1_sampling import RESAMPLING, Samples, mean_of_blocks, source_window, within
from .sentinel1_scene import scene_spec
from .sentinel2_safe import SafeFiles
from .xml_tree import Node

__all__ = ["Sentinel1Source", "find_products", "open_source", "read_metadata", "recognises"]

recognises = sentinel1_safe.recognises
find_products = sentinel1_safe.find_products
BLOCK = 512
"""Edge, px of the map grid, of what is read at once: more rows of the image lie in wider windows, which are turned."""
_SEVERAL = 1.001
"""A map pixel this many times larger than the image's is averaged."""


def open_source(
    path: Path,
    *,
    calibration: str = "sigma0",
    noise: str = "clipped",
    border: str = "auto",
    crs: str = "utm",
    grid: str = "native",
    resampling: str = "bilinear",
    angles: str = "none",
) -> "Sentinel1Source":
    """The Source over a GRD product on a map grid: on the ellipsoid, at the heights of its geolocation grid.

    Args:
        path: the product's folder, its ZIP, or its manifest.safe.
        calibration: `sigma0` or `gamma0`.
        noise: `clipped` (thermal noise removed, negative power set to zero, as SNAP), `signed` (removed; means of dark
            areas stay true, single pixels may be negative) or `kept`.
        border: `auto`, `on` or `off`: whether low numbers along the edges are no values; `auto` for processors
            before IPF 2.90, whose products have them.
        crs: `utm` for the zone of the scene's middle, or one that GDAL knows, such as `EPSG:32633`.
        grid: edge of a pixel in units of the CRS, such as `20m` or `0.0001`; `native` for the product's spacing.
            What lies in a pixel that is larger than the product's is averaged.
        resampling: `bilinear` (of intensity) or `nearest` (which leaves the speckle's statistics).
        angles: `incidence` adds the layer `incidence_angle`, degrees on the ellipsoid; `none`.

    Raises:
        InputError: files are missing or damaged, or images and metadata disagree.
        ConfigError: no such option.
    """
    chosen = {
        "calibration": (calibration, tuple(CALIBRATIONS)),
        "noise": (noise, NOISE_HANDLING),
        "border": (border, ("auto", "on", "off")),
        "resampling": (resampling, RESAMPLING),
        "angles": (angles, ("none", "incidence")),
    }
    _check(path, chosen)
    files = sentinel1_safe.locate(path)
    manifest = Node.parse(files.read(files.document), f"{files.path}/{files.document}")
    product, listed = parse_manifest(manifest), sentinel1_safe.listed_images(manifest)
    found = {image.polarisation: _annotation(files, image) for image in listed}
    first = _same_image(files.path, found)
    images = tuple(
        Image(
            name.polarisation,
            files.file(name.measurement),
            _radiometry(files, name, found, calibration, noise, manifest),
        )
        for name in listed
    )
    trims = border == "on" or (border == "auto" and sentinel1_border.needed(product.version))
    geocoding, shown = _geocoding(path, first, crs, grid)
    for image in images:
        _check_size(image.file, first.shape)
    how = Reading(resampling == "nearest", trims, first.shape)
    options = {name: value for name, (value, _) in chosen.items()} | {"crs": shown, "grid": grid}
    name = sentinel1_safe.product_name(files)
    spec = scene_spec(name, product, first, list(found), geocoding, options, trims=trims)
    documents = tuple(name for image in listed for name in (image.annotation, image.calibration, image.noise) if name)
    return Sentinel1Source(spec, files, (files.document, *documents), images, geocoding, how)


def read_metadata(files: SafeFiles) -> tuple[ProductMetadata, tuple[ImageMetadata, ...]]:
    """What manifest and annotations of a product say.

    Raises:
        InputError: one is missing or wrong.
    """
    manifest = Node.parse(files.read(files.document), f"{files.path}/{files.document}")
    images = tuple(_annotation(files, image) for image in sentinel1_safe.listed_images(manifest))
    return parse_manifest(manifest), images


def _check(path: Path, options: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ConfigError(f"{path}: {name}={value!r}; expected {' or '.join(map(repr, known))}")


def _document(files: SafeFiles, name: str, what: str, manifest: str) -> Node:
    if not name:
        raise InputError(
            f"{manifest}: lists no {what}, without which the numbers cannot be read; fetch the product again"
        )
    return Node.parse(files.read(name), f"{files.path}/{name}")


def _annotation(files: SafeFiles, image: ImageFiles) -> ImageMetadata:
    what = f"annotation of {image.polarisation}"
    metadata = parse_annotation(_document(files, image.annotation, what, f"{files.path}/{files.document}"))
    if metadata.polarisation != image.polarisation:
        raise InputError(
            f"{files.path}/{image.annotation}: is of {metadata.polarisation[:8]}, not {image.polarisation}"
        )
    return metadata


def _same_image(path: Path, found: Mapping[str, ImageMetadata]) -> ImageMetadata:
    first = next(iter(found.values()))
    for name, one in found.items():
        if one.shape != first.shape or one.spacing != first.spacing:
            raise InputError(
                f"{path}: the image of {name} has {one.shape[0]} x {one.shape[1]} px, that of {first.polarisation} "
                f"{first.shape[0]} x {first.shape[1]}; the files do not belong together"
            )
    return first


def _radiometry(
    files: SafeFiles,
    image: ImageFiles,
    found: Mapping[str, ImageMetadata],
    calibration: str,
    noise: str,
    manifest: Node,
) -> Radiometry:
    gain = parse_calibration(
        _document(files, image.calibration, f"calibration of {image.polarisation}", manifest.origin), calibration
    )
    if noise == "kept" or found[image.polarisation].denoised:
        return Radiometry(gain, None, clip=False)
    table = parse_noise(_document(files, image.noise, f"noise vectors of {image.polarisation}", manifest.origin))
    return Radiometry(gain, table, clip=noise == "clipped")


def _check_size(file: RasterFile, shape: Shape) -> None:
    info = inspect(file)
    if info.shape != shape or info.count != 1 or info.dtype != "uint16":
        raise InputError(
            f"{file}: holds {info.count} bands of {info.shape[0]} x {info.shape[1]} px, {info.dtype}; the annotation "
            f"expects one of {shape[0]} x {shape[1]} px, uint16"
        )


def _geocoding(path: Path, image: ImageMetadata, crs: str, grid: str) -> tuple[Geocoding, str]:
    """The map grid over an image, and its CRS in words."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        system = CRS.from_user_input(map_crs(image.points) if crs == "utm" else crs)
    except CRSError:
        raise ConfigError(f"{path}: crs={crs!r} is not known; expected utm, or one such as EPSG:32633") from None
    if not (system.is_projected or system.is_geographic):
        raise ConfigError(f"{path}: crs={crs!r} is no map of the Earth; expected one such as EPSG:32633")
    name = system.to_string()
    spacing = max(image.spacing) / (111_320.0 if system.is_geographic else 1)
    resolution = spacing if grid == "native" else _resolution(path, grid)
    model = MapModel.fit(image.points, name, str(path))
    finer = max(1, ceil(resolution / spacing / _SEVERAL))
    if finer > 64:
        raise ConfigError(f"{path}: grid={grid!r} is more than 64 pixels of the product; the unit is that of {name}")
    return Geocoding(map_grid(model, name, resolution, str(path)), model, finer), name


def _resolution(path: Path, grid: str) -> float:
    try:
        value = float(grid.removesuffix("m"))
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        raise ConfigError(f"{path}: grid={grid!r}; expected native, or the edge of a pixel such as 20m or 0.0001")
    return value


@dataclass(frozen=True, eq=False)
class Image:
    """A polarisation: its file, and how its numbers are read."""

    polarisation: str
    file: RasterFile
    radiometry: Radiometry


@dataclass(frozen=True)
class Reading:
    """How images are read: nearest pixel or bilinear, whether their border is masked, and their lines and pixels."""

    nearest: bool
    trims: bool
    shape: Shape


@dataclass(frozen=True, eq=False)
class Sentinel1Source:
    """A Source over a GRD product.

    Attributes:
        spec: the Scene without pixels.
        product: where the product's files lie.
        documents: paths of the product's metadata in there.
        images: of each of the Scene's bands.
        geocoding: the map grid, and where the images lie on it.
        how: the images are read.
    """

    spec: SceneSpec
    product: SafeFiles
    documents: tuple[str, ...]
    images: tuple[Image, ...]
    geocoding: Geocoding
    how: Reading

    @property
    def block_shape(self) -> Shape:
        """Squares: the images lie turned against the map."""
        return min(BLOCK, self.spec.shape[0]), min(BLOCK, self.spec.shape[1])

    @property
    def exact(self) -> bool:
        """True: backscatter is stored as the float32 that it is read as."""
        return True

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array:
        """Pixels of one variable, see `Source.read`; linear backscatter, NaN where there is no value.

        Memory beside the result is that of some `BLOCK` x `BLOCK` pixels, whatever the window.

        Raises:
            InputError: a file is damaged, or of another size than the metadata say.
        """
        if name not in self.spec.variables:
            raise KeyError(name)
        images = self.images[bands or slice(None)]
        leading = (len(images),) if name == self.spec.measurement else ()
        result = np.empty((*leading, *window.shape), np.float32)
        edge = max(BLOCK // self.geocoding.finer, 1)
        for part in window.tiles((edge, edge)):
            line, pixel = self.geocoding.positions(part.scaled(self.geocoding.finer))
            found = self._sampled(images, line, pixel) if leading else self._incidence(line, pixel)
            result[(..., *part.within(window).slices)] = mean_of_blocks(found, self.geocoding.finer)
        return result

    def _sampled(self, images: tuple[Image, ...], line: Array, pixel: Array) -> Array:
        found = np.full((len(images), *line.shape), np.nan, np.float32)
        window = source_window(line, pixel, self.how.shape)
        if window is not None:
            samples = Samples.at(line, pixel, window, self.how.shape, nearest=self.how.nearest)
            for layer, image in zip(found, images, strict=True):
                layer[:] = samples.of(self._backscatter(image, window))
        return found

    def _backscatter(self, image: Image, window: Window) -> Array:
        """Calibrated pixels of a window of an image."""

        def numbers(part: Window) -> Array:
            return np.asarray(read_window(image.file, part, (1,), self.how.shape)[0])

        values = image.radiometry.calibrate(numbers(window), window)
        if self.how.trims:
            noise = image.radiometry.noise
            values[sentinel1_border.border(numbers, noise, window, self.how.shape)] = np.nan
        return values

    def _incidence(self, line: Array, pixel: Array) -> Array:
        points, inside = self.geocoding.model.points, within(line, pixel, self.how.shape)
        return np.where(inside, points.at(points.incidence, line, pixel), np.nan).astype(np.float32)

    def files(self) -> list[Path]:
        """The files that the scene is read from: the archive alone where there is one."""
        return sorted({path for _, path in self._parts()})

    def _parts(self) -> list[tuple[str, Path]]:
        return self.product.parts(self.documents, [(image.polarisation, image.file.path) for image in self.images])

    def fingerprint(self) -> str:
        """sha256 over the content of all files the scene is read from, and how they are read."""
        grid = self.spec.grid
        salt = f"{self.spec.scene_id} {self.spec.history} {grid.crs} {tuple(grid.transform)[:6]} {grid.shape}"
        return digest(self._parts(), salt=salt)
