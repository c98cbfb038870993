"""`cubeloom scan`: a folder of products becomes a static STAC catalog."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cubeloom.catalogs.records import BandRecord, FileRecord
from cubeloom.catalogs.scan import SceneRecord, write_scan_catalog
from cubeloom.errors import CubeloomError, InputError

from .describe import band_records, scene_facts

_MEDIA_TYPES = {
    ".xml": "application/xml",
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
    ".geotiff": "image/tiff; application=geotiff",
    ".jp2": "image/jp2",
    ".jpeg2000": "image/jp2",
    ".zip": "application/zip",
    ".gz": "application/gzip",
    ".tgz": "application/gzip",
    ".tar": "application/x-tar",
}
_KEYS = {
    "SPECTRAL_IMAGE": "image",
    "SPECTRAL_IMAGE_VNIR": "image_vnir",
    "SPECTRAL_IMAGE_SWIR": "image_swir",
    "QL_PIXELMASK": "defective_pixel_mask",
    "QL_PIXELMASK_VNIR": "defective_pixel_mask_vnir",
    "QL_PIXELMASK_SWIR": "defective_pixel_mask_swir",
    "QL_QUALITY_CLOUDSHADOW": "quality_cloud_shadow",
}
"""Asset keys of DLR's own STAC items; the other rasters are called after their role without `QL_`."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan found: the catalog, ids of the items in it, and the products left out, each with its cause."""

    catalog: Path
    items: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]


def scan(directory: Path, out: Path) -> ScanResult:
    """List every EnMAP product below a folder in a static STAC catalog under `out`.

    Every file is read once for its checksum. A product that cannot be used is left out and reported; it never stops
    the scan. The catalog of an unchanged folder is the same to the byte.

    Raises:
        InputError: `directory` does not exist.
    """
    from cubeloom.pipeline.readers.enmap import find_products

    if not directory.exists():
        raise InputError(f"{directory}: no such folder; expected one that holds EnMAP products")
    records: dict[str, SceneRecord] = {}
    places: dict[str, Path] = {}
    rejected = []
    for path in find_products(directory):
        try:
            record = scene_record(path)
            scene_id = record.facts.scene_id
            if scene_id in places:
                raise InputError(f"{path}: scene {scene_id} again, which is already listed from {places[scene_id]}")
        except (CubeloomError, OSError) as error:
            rejected.append((str(path), str(error)))
            continue
        records[scene_id], places[scene_id] = record, path
    catalog = write_scan_catalog(records.values(), out)
    return ScanResult(catalog, tuple(sorted(records)), tuple(rejected))


def scene_record(path: Path) -> SceneRecord:
    """The facts and files of one EnMAP product; both detectors of an L1B product.

    Raises:
        InputError: the product cannot be opened.
    """
    from cubeloom.pipeline.readers.enmap import open_source
    from cubeloom.pipeline.readers.enmap_files import locate

    files = locate(path)
    detectors = [key for key in ("vnir", "swir") if f"SPECTRAL_IMAGE_{key.upper()}" in files.rasters]
    cubes = {f"image_{key}": open_source(path, detector=key).spec for key in detectors}
    cubes = cubes or {"image": open_source(path).spec}
    bands = {key: band_records(spec.bands) for key, spec in cubes.items()}
    archive = _archive(path)
    if archive:
        everything = tuple(band for detector in bands.values() for band in detector)
        found = [_file("product", path, archive, ("data", "metadata"), everything)]
    else:
        parts = {"METADATA": files.metadata, **files.rasters}
        named = {_key(role): part.path for role, part in sorted(parts.items()) if part is not None}
        found = [_file(key, file, file, _roles(key), bands.get(key, ())) for key, file in _with_headers(named)]
    facts = scene_facts(next(iter(cubes.values())))
    suffix = f"-{detectors[0].upper()}" if detectors else ""
    return SceneRecord(replace(facts, scene_id=facts.scene_id.removesuffix(suffix)), found)


def _archive(path: Path) -> Path | None:
    """The archive that `path` is, or runs through."""
    suffixes = (".zip", ".tar", ".tgz", ".gz")
    return next((part for part in (path, *path.parents) if part.suffix.lower() in suffixes and part.is_file()), None)


def _key(role: str) -> str:
    return _KEYS.get(role, role.removeprefix("QL_").lower())


def _roles(key: str) -> tuple[str, ...]:
    if key == "metadata":
        return ("metadata",)
    return ("data",) if key.startswith("image") else ("data-mask",)


def _with_headers(files: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """The files, each ENVI raster followed by its header, whose content counts as much as the pixels'."""
    for key, path in files.items():
        yield key, path
        header = path.with_suffix(".hdr")
        if path.suffix.lower() in (".bsq", ".bil", ".bip") and header.is_file():
            yield f"{key}_header", header


def _file(key: str, path: Path, content: Path, roles: tuple[str, ...], bands: tuple[BandRecord, ...]) -> FileRecord:
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    media_type = _MEDIA_TYPES.get(content.suffix.lower(), "application/octet-stream")
    return FileRecord(key, path, media_type, roles, digest, content.stat().st_size, bands)
