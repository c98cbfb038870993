"""EnMAP products for `cubeloom scan`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cubeloom.catalogs.scan import SceneRecord

from .describe import band_records, scene_facts
from .scan_files import file_record

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


def find(folder: Path) -> Iterable[Path]:
    """Every product at or below a folder."""
    from cubeloom.pipeline.readers.enmap import find_products

    return find_products(folder)


def record(path: Path) -> SceneRecord:
    """The facts and files of one product; both detectors of an L1B product.

    Raises:
        InputError: the product cannot be opened.
    """
    from cubeloom.pipeline.readers.enmap import open_source
    from cubeloom.pipeline.readers.enmap_files import locate

    files = locate(path)
    detectors = [key for key in ("vnir", "swir") if f"SPECTRAL_IMAGE_{key.upper()}" in files.rasters]
    cubes = {f"image_{key}": open_source(path, detector=key).spec for key in detectors}
    cubes = cubes or {"image": open_source(path).spec}
    bands = {key: band_records(spec) for key, spec in cubes.items()}
    archive = _archive(path)
    if archive:
        everything = tuple(band for detector in bands.values() for band in detector)
        found = [replace(file_record("product", path, ("data", "metadata"), archive), bands=everything)]
    else:
        parts = {"METADATA": files.metadata, **files.rasters}
        named = {_key(role): part.path for role, part in sorted(parts.items()) if part is not None}
        found = [
            replace(file_record(key, file, _roles(key)), bands=bands.get(key, ())) for key, file in _with_headers(named)
        ]
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
