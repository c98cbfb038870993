"""Sentinel-2 products for `cubeloom scan`: SAFE folders and ZIPs, EOPF Zarr, and COGs beside their STAC item.

The item stands for the whole product: its `proj:` fields are those of the 10 m grid, and an image of another grid has
its own.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cubeloom.catalogs.records import BandRecord, FileRecord
from cubeloom.catalogs.scan import SceneRecord
from cubeloom.errors import InputError

from .describe import band_records, grid_record, scene_facts
from .scan_files import file_record, find_items, store_record

if TYPE_CHECKING:
    from cubeloom.pipeline.readers import Source
    from cubeloom.pipeline.readers.sentinel2_safe import SafeFiles

_ROLES = {"SCL": ("data", "data-mask"), "TCI": ("visual",)}
"""Roles of the images that hold no band; those not named here are data."""


def find(folder: Path) -> Iterator[Path]:
    """Every product at or below a folder: SAFE first, then EOPF Zarr, then items beside their files."""
    from cubeloom.pipeline.readers.sentinel2 import find_products, recognises
    from cubeloom.pipeline.readers.sentinel2_cogs import lies_beside_files

    if folder.is_file():
        yield from [folder] if recognises(folder) or lies_beside_files(folder) else []
        return
    yield from find_products(folder)
    yield from _find_eopf(folder)
    yield from find_items(folder, lies_beside_files)


def _find_eopf(folder: Path) -> Iterator[Path]:
    from cubeloom.pipeline.readers.eopf import recognises

    for parent, folders, _ in os.walk(folder):
        here = Path(parent)
        if recognises(here):
            folders.clear()
            yield here
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".SAFE"))


def record(path: Path) -> SceneRecord:
    """The facts and files of one product.

    Raises:
        InputError: the product cannot be opened, or a file that its metadata list is missing.
    """
    from cubeloom.pipeline.readers import sentinel2
    from cubeloom.pipeline.readers.eopf import recognises as is_eopf
    from cubeloom.pipeline.readers.open import open_every_grid

    safe = sentinel2.recognises(path)
    grids = (
        {grid: sentinel2.open_source(path, grid=grid) for grid in sentinel2.GRIDS} if safe else open_every_grid(path)
    )
    finest = next(iter(grids.values()))
    every = {band.name: band for source in grids.values() for band in band_records(source.spec)}
    bands = tuple(every[name] for name in sorted(every, key=lambda name: every[name].wavelength))
    if is_eopf(path):
        files = [replace(store_record("product", path, ("data", "metadata")), bands=bands)]
    elif not safe:
        files = _item_files(path, grids, every)
    elif path.is_file() and path.suffix.lower() == ".zip":
        files = [replace(file_record("product", path, ("data", "metadata")), bands=bands)]
    else:
        files = _safe_files(path, grids, every)
    return SceneRecord(scene_facts(finest.spec), files)


def _item_files(path: Path, grids: "Mapping[str, Source]", bands: Mapping[str, BandRecord]) -> list[FileRecord]:
    """An item, which is what opens, and the files of its bands and classes."""
    from cubeloom.pipeline.readers.sentinel2_cogs import CogSource

    found = {path: file_record("metadata", path, ("metadata",))}
    for source in grids.values():
        assert isinstance(source, CogSource)
        grid = grid_record(source.spec.grid)
        for chip in source.chips:
            one = file_record(chip.name, chip.file.path, ("data",))
            found[chip.file.path] = replace(one, bands=(bands[chip.name],), grid=grid)
        for name, file in source.quality.files.items():
            if file.path not in found:  # each is hashed once, though all grids have it
                found[file.path] = file_record(name, file.path, ("data-mask",))
    return list(found.values())


def _safe_files(path: Path, grids: "Mapping[str, Source]", bands: Mapping[str, BandRecord]) -> list[FileRecord]:
    """The documents, images and masks of a SAFE folder that its metadata list, as far as they are there."""
    from cubeloom.pipeline.readers.sentinel2 import read_metadata
    from cubeloom.pipeline.readers.sentinel2_images import listed_images, tile_folder
    from cubeloom.pipeline.readers.sentinel2_safe import locate

    files = locate(path)
    if files.archive is not None:
        return []
    metadata, tile = read_metadata(files)
    listed = {
        "metadata": (files.document, ("metadata",)),
        "granule_metadata": (f"{tile_folder(metadata)}/MTD_TL.xml", ("metadata",)),
    }
    found = [file_record(key, files.file(name).path, roles) for key, (name, roles) in listed.items()]
    for image in listed_images(metadata):
        place = _place(files, image.path)
        if place:
            roles = _ROLES.get(image.band, ("data",))
            one = file_record(f"{image.band}_{image.resolution}m", place, roles)
            grid = grid_record(tile.grids[image.resolution])
            found.append(replace(one, bands=(bands[image.band],) if image.band in bands else (), grid=grid))
    for mask in tile.masks:
        place = _place(files, mask.path)
        if place:
            found.append(file_record(PurePosixPath(mask.path).stem, place, ("data-mask",)))
    return sorted(found, key=lambda file: (file.key != "metadata", file.key))


def _place(files: "SafeFiles", name: str) -> Path | None:
    try:
        return files.image(name).path
    except InputError:  # what a reader needs was looked for when the product was opened
        return None
