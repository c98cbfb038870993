"""Sentinel-1 GRD products for `cubeloom scan`: SAFE folders and ZIPs.

The images lie on no map, so the item has no `proj:` fields: the grid is a choice of whoever opens the product.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cubeloom.catalogs.records import BandRecord, FileRecord
from cubeloom.catalogs.scan import SceneRecord

from .describe import band_records, scene_facts
from .scan_files import file_record


def find(folder: Path) -> Iterator[Path]:
    """Every product at or below a folder."""
    from cubeloom.pipeline.readers.sentinel1 import find_products, recognises

    if folder.is_file():
        yield from [folder] if recognises(folder) else []
        return
    yield from find_products(folder)


def record(path: Path) -> SceneRecord:
    """The facts and files of one product.

    Raises:
        InputError: the product cannot be opened.
    """
    from cubeloom.pipeline.readers.sentinel1 import open_source

    spec = open_source(path).spec
    bands = band_records(spec)
    if path.suffix.lower() == ".zip":
        files = [replace(file_record("product", path, ("data", "metadata")), bands=bands)]
    else:
        files = _safe_files(path, {band.name: band for band in bands})
    return SceneRecord(replace(scene_facts(spec), grid=None), files)


def _safe_files(path: Path, bands: dict[str, BandRecord]) -> list[FileRecord]:
    """The manifest, and what it lists of each polarisation."""
    from cubeloom.pipeline.readers.sentinel1_safe import listed_images, locate
    from cubeloom.pipeline.readers.xml_tree import Node

    files = locate(path)
    manifest = files.file(files.document).path
    listed = listed_images(Node.parse(files.read(files.document), str(manifest)))
    found = [file_record("metadata", manifest, ("metadata",))]
    for image in listed:
        parts = {"annotation": image.annotation, "calibration": image.calibration, "noise": image.noise}
        name = image.polarisation.lower()
        cube = file_record(name, files.file(image.measurement).path, ("data",))
        found.append(replace(cube, bands=(bands[image.polarisation],)))
        found += [
            file_record(f"{name}_{part}", files.file(place).path, ("metadata",))
            for part, place in parts.items()
            if place
        ]
    return found
