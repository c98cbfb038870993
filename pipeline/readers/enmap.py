"""EnMAP products (L1B, L1C, L2A) as Sources, read in place window by window."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import REFLECTANCE, Array, Packed
from cubeloom.pipeline.grids import Shape, Window
from cubeloom.pipeline.scene import QUALITY_FLAGS, SceneSpec

from . import enmap_files, enmap_quality
from .enmap_decoding import Decoding, decoding_of
from .enmap_files import ProductFiles
from .enmap_metadata import parse_metadata
from .enmap_scene import scene_spec
from .rasters import RasterFile, RasterInfo, block_shape, digest, envi_header, file_state, inspect, read_window

__all__ = ["EnmapSource", "find_products", "open_source", "recognises"]

recognises = enmap_files.recognises
find_products = enmap_files.find_products


def open_source(path: Path, *, detector: str | None = None) -> "EnmapSource":
    """The Source over an EnMAP product.

    Args:
        path: product folder, `.ZIP`, order `.tar.gz`, METADATA.XML, or the image.
        detector: `vnir` or `swir`; needed for L1B, whose two cubes are not registered to each other.

    Raises:
        InputError: files are missing or damaged, or cube and metadata disagree.
        ConfigError: `detector` is missing for L1B, given for another level, or no such detector.
    """
    files = enmap_files.locate(path)
    metadata = parse_metadata(files.read_metadata(), str(files.metadata))
    _check_detector(path, metadata.level, detector)
    cube, masks = _cube(files, detector), _masks(files, detector)
    table = metadata.bands
    if detector:
        table = table.take(table.detector == detector)
    info = None if 0 in (cube.size, file_state(cube.path)[0]) else inspect(cube)
    if info is not None and info.count != len(table.wavelength):
        raise InputError(
            f"{cube}: the image has {info.count} bands, but {files.metadata} describes {len(table.wavelength)}; "
            "they do not belong together"
        )
    order = np.argsort(table.wavelength, kind="stable")
    table = table.take(order)
    spec = scene_spec(files, metadata, table, info, masks, detector)
    bands = tuple(int(position) + 1 for position in order)
    return EnmapSource(spec, files, detector or "", cube, masks, bands, decoding_of(metadata.level, table, info), info)


def _check_detector(path: Path, level: str, detector: str | None) -> None:
    if level == "L1B" and detector not in ("vnir", "swir"):
        found = f", not {detector!r}" if detector else ""
        raise ConfigError(
            f"{path}: an L1B product is two cubes that are not registered to each other; choose one with "
            f"detector='vnir' or detector='swir'{found}"
        )
    if level != "L1B" and detector is not None:
        raise ConfigError(
            f"{path}: detector={detector!r} is for L1B; {level} holds both detectors in one cube (its `detector` "
            "coordinate tells them apart)"
        )


def _cube(files: ProductFiles, detector: str | None) -> RasterFile:
    role = "SPECTRAL_IMAGE" + (f"_{detector.upper()}" if detector else "")
    if role not in files.rasters:
        raise InputError(f"{files.where}: {role} is missing beside {files.metadata}; fetch the whole product")
    return files.rasters[role]


def _masks(files: ProductFiles, detector: str | None) -> dict[str, RasterFile]:
    """The masks by short name, `PIXELMASK` among them; L1B has some of them by detector."""
    roles = {name: f"QL_QUALITY_{name}" for name in enmap_quality.MASKS} | {"PIXELMASK": "QL_PIXELMASK"}
    part = f"_{detector.upper()}" if detector else ""
    found = {name: files.rasters.get(role + part) or files.rasters.get(role) for name, role in roles.items()}
    return {name: file for name, file in found.items() if file is not None}


@dataclass(frozen=True, eq=False)
class EnmapSource:
    """A Source over one EnMAP cube and its masks.

    Attributes:
        spec: the Scene without pixels.
        product: where the product's files lie.
        detector: `vnir` or `swir` for L1B, else empty.
        cube: the image.
        masks: masks by short name (`CLOUD`, ..., `PIXELMASK`); missing ones are absent.
        file_bands: the image's band number, 1-based, of each of the Scene's bands.
        decoding: numbers to physical values.
        info: the image's header; None where the image is empty.
    """

    spec: SceneSpec
    product: ProductFiles
    detector: str
    cube: RasterFile
    masks: Mapping[str, RasterFile]
    file_bands: tuple[int, ...]
    decoding: Decoding
    info: RasterInfo | None

    @property
    def block_shape(self) -> Shape:
        """Windows that suit the image's tiles or strips."""
        return block_shape(self.info) if self.info else self.spec.shape

    @property
    def exact(self) -> bool:
        """Whether the cube's numbers are stored as they lie in the file, or as float32."""
        return self.decoding.packed or self.spec.variables[self.spec.measurement].encoding.scale is None

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable, see `Source.read`; L2A reflectance comes packed, as it lies in the file.

        Raises:
            InputError: a file is empty, damaged, or of another size than the cube.
        """
        bands = bands or slice(None)
        if name == self.spec.measurement:
            numbers = self._read(self.cube, window, self.file_bands[bands], out)
            return Packed(numbers, REFLECTANCE) if self.decoding.packed else self.decoding.decode(numbers, bands)
        if name == "defect":
            bits = None if out is None else out.view(np.uint8)
            mask = self._read(self.masks["PIXELMASK"], window, self.file_bands[bands], bits)
            return np.asarray(np.equal(mask, 1, out=mask.view(bool)))
        if name == "quality":
            return self._quality(window)
        raise KeyError(name)

    def _read(self, file: RasterFile, window: Window, bands: tuple[int, ...], out: Array | None = None) -> Array:
        return read_window(file, window, bands, self.spec.shape, out)

    def _quality(self, window: Window) -> Array:
        flags = enmap_quality.fold(
            lambda name: self._read(self.masks[name], window, (1,))[0], self.masks.keys(), window.shape
        )
        if "CLASSES" not in self.masks:
            flags[self._without_data(window)] |= np.uint32(QUALITY_FLAGS["background"])
        return flags

    def _without_data(self, window: Window) -> Array:
        """True where no good band has data; stops reading at the first bands that leave no such pixel."""
        missing = np.ones(window.shape, bool)
        usable = np.flatnonzero(self.spec.bands.good)
        for start in range(0, len(usable), 16):
            numbers = self._read(self.cube, window, tuple(self.file_bands[at] for at in usable[start : start + 16]))
            missing &= np.isin(numbers, self.decoding.nodata).all(axis=0)
            if not missing.any():
                break
        return missing

    def files(self) -> list[Path]:
        """The files that the scene is read from: the archive alone where there is one."""
        paths = [path for _, path in self._parts()]
        headers = [header for path in paths if (header := envi_header(path))]
        return sorted({*paths, *headers})

    def _parts(self) -> list[tuple[str, Path]]:
        """Files by the part they play in the scene."""
        if self.product.archive is not None:
            return [(f"archive {self.detector}", self.product.archive)]
        parts = [(name, file.path) for name, file in self.masks.items()]
        if self.product.metadata is not None:
            parts.append(("METADATA", self.product.metadata.path))
        return [*parts, ("SPECTRAL_IMAGE", self.cube.path)]

    def fingerprint(self) -> str:
        """sha256 over the content of all files the scene is read from; names and places do not matter."""
        return digest(self._parts())
