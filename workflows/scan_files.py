"""Files of a delivered product as the assets of its STAC item: media type, size, and the sha256 of their content."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cubeloom.catalogs.items import ZARR
from cubeloom.catalogs.records import FileRecord

_MEDIA_TYPES = {
    ".xml": "application/xml",
    ".safe": "application/xml",
    ".gml": "application/gml+xml",
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


_PRODUCTS = (".SAFE", ".zarr")
"""Folders in which no item lies beside its files."""


def find_items(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Files at or below a folder, but inside no product, that are wanted: STAC items beside their files."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(_PRODUCTS))
        yield from filter(wanted, (Path(parent, name) for name in sorted(names)))


def file_record(key: str, path: Path, roles: tuple[str, ...], content: Path | None = None) -> FileRecord:
    """A file as an asset.

    Args:
        key: of the asset.
        path: what the asset's href leads to.
        roles: of STAC.
        content: the file that is hashed, where `path` runs through an archive.
    """
    file = content or path
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    media_type = _MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
    return FileRecord(key, path, media_type, roles, digest, file.stat().st_size)


def store_record(key: str, path: Path, roles: tuple[str, ...]) -> FileRecord:
    """A Zarr store of somebody else as an asset: the sha256 runs over the names and contents of all its files."""
    digest, size = hashlib.sha256(), 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        part = file_record(key, file, roles)
        digest.update(f"{file.relative_to(path).as_posix()}\0{part.sha256}\n".encode())
        size += part.size
    version = 3 if (path / "zarr.json").is_file() else 2
    record = FileRecord(key, path, f"{ZARR}; version={version}", roles, digest.hexdigest(), size)
    return replace(record, is_store=True)
