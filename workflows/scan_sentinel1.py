"""Sentinel-1 products for `cubeloom scan`: GRD as SAFE folders and ZIPs, and backscatter beside its STAC item.

The images of GRD lie on no map, so their item has no `proj:` fields: the grid is a choice of whoever opens the product.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cubeloom.catalogs.records import BandRecord, FileRecord
from cubeloom.catalogs.scan import SceneRecord

from .describe import band_records, scene_facts
from .scan_files import file_record, find_items


def find(folder: Path) -> Iterator[Path]:
    """Every product at or below a folder: SAFE first, then items beside their files."""
    from cubeloom.pipeline.readers.sentinel1 import find_products, recognises
    from cubeloom.pipeline.readers.sentinel1_items import lies_beside_files

    if folder.is_file():
        yield from [folder] if recognises(folder) or lies_beside_files(folder) else []
        return
    yield from find_products(folder)
    yield from find_items(folder, lies_beside_files)


def record(path: Path) -> SceneRecord:
    """The facts and files of one product.

    Raises:
        InputError: the product cannot be opened.
    """
    from cubeloom.pipeline.readers.sentinel1 import open_source

    if path.suffix.lower() in (".json", ".geojson"):
        return _item_record(path)
    spec = open_source(path).spec
    bands = band_records(spec)
    if path.suffix.lower() == ".zip":
        files = [replace(file_record("product", path, ("data", "metadata")), bands=bands)]
    else:
        files = _safe_files(path, {band.name: band for band in bands})
    return SceneRecord(replace(scene_facts(spec), grid=None), files)


def _item_record(path: Path) -> SceneRecord:
    """The facts that an item tells, and its files; `metadata`, the item itself, is what opens."""
    from cubeloom.pipeline.readers.sentinel1_items import open_source

    # What the numbers are, no item of ours says: whoever opens the scene does, where its files do not.
    source = open_source(path, units="linear", calibration="sigma0")
    bands = {band.name: band for band in band_records(source.spec)}
    files = [file_record("metadata", path, ("metadata",))]
    for place in dict.fromkeys(layer.file.path for layer in source.layers):
        names = [layer.polarisation for layer in source.layers if layer.file.path == place]
        cube = file_record("-".join(names).lower(), place, ("data",))
        files.append(replace(cube, bands=tuple(bands[name] for name in names)))
    return SceneRecord(scene_facts(source.spec), files)


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
