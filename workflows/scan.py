"""`cubeloom scan`: a folder of products becomes a static STAC catalog."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from cubeloom.catalogs.scan import SceneRecord, write_scan_catalog
from cubeloom.errors import CubeloomError, InputError

FAMILIES = ("scan_enmap", "scan_sentinel2", "scan_sentinel1")
"""Modules that know a family of products; each has `find(folder)`, paths, and `record(path)`, a SceneRecord."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan found: the catalog, ids of the items in it, and the products left out, each with its cause."""

    catalog: Path
    items: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]


def scan(directory: Path, out: Path) -> ScanResult:
    """List every product of EnMAP, Sentinel-2 and Sentinel-1 below a folder in a static STAC catalog under `out`.

    Every file is read once for its checksum. A product that cannot be used is left out and reported; it never stops
    the scan. The catalog of an unchanged folder is the same to the byte.

    Raises:
        InputError: `directory` does not exist.
    """
    if not directory.exists():
        raise InputError(f"{directory}: no such folder; expected one that holds products")
    records: dict[str, SceneRecord] = {}
    places: dict[str, Path] = {}
    rejected = []
    for path, record_of in _products(directory):
        try:
            record = record_of(path)
            scene_id = record.facts.scene_id
            if scene_id in places:
                raise InputError(f"{path}: scene {scene_id} again, which is already listed from {places[scene_id]}")
        except (CubeloomError, OSError) as error:
            rejected.append((str(path), str(error)))
            continue
        records[scene_id], places[scene_id] = record, path
    catalog = write_scan_catalog(records.values(), out)
    return ScanResult(catalog, tuple(sorted(records)), tuple(rejected))


def _products(directory: Path) -> Iterator[tuple[Path, Callable[[Path], SceneRecord]]]:
    """Every product with what makes its record, family by family."""
    for name in FAMILIES:
        family = import_module(f".{name}", __package__)
        find: Callable[[Path], Iterable[Path]] = family.find
        yield from ((path, family.record) for path in find(directory))
