"""`cubeloom info` and `cubeloom validate`: what stands there, and whether it is whole."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cubeloom.errors import CubeloomError, InputError, StoreError
from cubeloom.pipeline import store
from cubeloom.pipeline.folders import Folder
from cubeloom.pipeline.readers import Source, open_scene, open_source
from cubeloom.pipeline.readers.open import open_every_grid
from cubeloom.pipeline.readers.sentinel2 import GRIDS
from cubeloom.pipeline.readers.store import recognises as is_store
from cubeloom.pipeline.readers.zarr_remote import recognises
from cubeloom.pipeline.scene import spec_of, validate_scene

from .console import print_table

if TYPE_CHECKING:
    from cubeloom.catalogs.items import CatalogItem

_RADAR = 1e6
"""Wavelength, nm, from which on it is told in centimetres."""


def describe_path(path: str | Path, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A product or store as a JSON value; metadata only.

    Args:
        path: of the product or store.
        options: for `open_scene`, to be told of that Scene alone; of all there are where not given.
    """
    if options:
        kind = "store" if _is_store(path) else "product"
        return {"path": str(path), "kind": kind, "scenes": {_options(options): _describe(open_source(path, **options))}}
    if _is_store(path):
        commit = store.read_commit(_folder(path))
        scenes = {group or "/": _describe(open_source(path, group=group)) for group in _scene_groups(commit)}
        found = {"found": commit["facts"]} if "facts" in commit else {}
        return {"path": str(path), "kind": "store", "identity": commit.get("identity"), **found, "scenes": scenes}
    sources = _sources(path)
    return {"path": str(path), "kind": "product", "scenes": {key: _describe(s) for key, s in sources.items()}}


def _is_store(path: str | Path) -> bool:
    """Whether Cubeloom published what lies there, rather than somebody else."""
    return not recognises(str(path)) if "://" in str(path) else is_store(Path(path))


def _options(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _folder(path: str | Path) -> Folder:
    """The files of a store of this machine, or of one behind a URL."""
    if "://" not in str(path):
        return Path(path)
    from cubeloom.pipeline.remotes import open_folder

    return open_folder(str(path))


def _sources(path: str | Path) -> Mapping[str, Source]:
    """The Source of a product; all grids of one that has several, both detectors of an L1B product."""
    try:
        return open_every_grid(path)
    except InputError as error:
        if "detector" not in str(error):
            raise
        return {detector: open_source(path, detector=detector) for detector in ("vnir", "swir")}


def _scene_groups(commit: Mapping[str, Any]) -> list[str]:
    """Groups of a store that hold a Scene, the native grid's, which has no name, first; without overviews."""
    tail = "band/zarr.json"
    groups = (key.removesuffix(tail).rstrip("/") for key in commit["metadata"] if f"/{key}".endswith(f"/{tail}"))
    return sorted(group for group in groups if "overviews" not in group)


def _describe(source: Source) -> dict[str, Any]:
    spec = source.spec
    bands, grid = spec.bands, spec.grid
    crs = None if grid.crs is None else (f"EPSG:{grid.crs.to_epsg()}" if grid.crs.to_epsg() else str(grid.crs))
    return {
        "scene_id": spec.scene_id,
        "sensor": spec.sensor,
        "processing_level": spec.processing_level,
        "time": spec.time.isoformat(),
        "measurement": spec.measurement,
        "subject": spec.subject,
        "grid": {
            "height": spec.shape[0],
            "width": spec.shape[1],
            "crs": crs or "none (sensor geometry)",
            "pixel_size": [abs(grid.affine.a), abs(grid.affine.e)],
            "bounds": list(grid.extent.boundingbox.bbox) if grid.crs is not None else None,
        },
        "bands": {
            "count": len(bands),
            "names": list(spec.attrs.get("band_names", {}).values()),
            "wavelength_nm": [float(bands.wavelength.min()), float(bands.wavelength.max())],
            "detectors": {
                str(name): int(count)
                for name, count in zip(*np.unique(bands.detector, return_counts=True), strict=True)
            },
            "not_good": bands.number[~bands.good].tolist(),
        },
        "variables": {
            name: {
                "dims": list(variable.dims),
                "shape": list(spec.sizes(name)),
                "stored_as": variable.encoding.dtype,
                "scale": variable.encoding.scale,
                "fill": None if variable.encoding.fill is None else str(variable.encoding.fill),
                "units": variable.attrs.get("units"),
            }
            for name, variable in spec.variables.items()
        },
        "history": list(spec.history),
        "attributes": dict(spec.attrs),
    }


Rows = list[tuple[str, Any]]


def print_description(description: Mapping[str, Any]) -> None:
    """The description for a person; what the grids of one product have in common stands there once."""
    scenes, path = description["scenes"], description["path"]
    if set(scenes) == set(GRIDS) & set(scenes) and len(scenes) > 1:
        first = next(iter(scenes.values()))
        rows: Rows = [("path", path), *_scene_rows(first)]
        for key, scene in scenes.items():
            rows += [(key, _grid_text(scene)), ("", _band_text(scene["bands"]))]
        print_table(first["scene_id"], ("", ""), [*rows, *_variable_rows(first, shapes=False), *_told_rows(first)])
        return
    for key, scene in scenes.items():
        rows = [("path", path + ("" if key == "/" else f" [{key}]")), *_scene_rows(scene)]
        rows += [("grid", _grid_text(scene)), ("bands", _band_text(scene["bands"]))]
        rows.append(("not good", _ranges(scene["bands"]["not_good"]) or "none"))
        if description.get("identity"):
            rows.append(("identity", description["identity"]))
        found = description.get("found", {}) if key == "/" else {}
        print_table(
            scene["scene_id"], ("", ""), [*rows, *_variable_rows(scene), *_told_rows(scene), *_found_rows(found)]
        )


def _found_rows(found: Mapping[str, Mapping[str, Any]]) -> Rows:
    """What the steps found out of the whole scene."""
    return [(step, ", ".join(f"{name} {value}" for name, value in facts.items())) for step, facts in found.items()]


def _scene_rows(scene: Mapping[str, Any]) -> Rows:
    return [("scene", f"{scene['sensor']} {scene['processing_level']}, {scene['time']}")]


def _grid_text(scene: Mapping[str, Any]) -> str:
    grid = scene["grid"]
    return f"{grid['height']} x {grid['width']} px of {grid['pixel_size'][0]:g}, {grid['crs']}"


def _band_text(bands: Mapping[str, Any]) -> str:
    detectors = ", ".join(f"{count} {name}" for name, count in bands["detectors"].items() if name)
    low, high = bands["wavelength_nm"]
    extent = f"{low:.1f} to {high:.1f} nm" if high < _RADAR else f"{low / 1e7:.2f} cm"
    text = f"{bands['count']}, {extent}"
    return text + (f": {' '.join(bands['names'])}" if bands["names"] else f" ({detectors})" if detectors else "")


def _variable_rows(scene: Mapping[str, Any], *, shapes: bool = True) -> Rows:
    rows: Rows = []
    for name, variable in scene["variables"].items():
        scale = f" x {variable['scale']:g}" if variable["scale"] else ""
        unit = f" [{variable['units']}]" if variable["units"] not in (None, "1") else ""
        shape = variable["shape"] if shapes else variable["dims"]
        rows.append((name, f"{' x '.join(map(str, shape))} {variable['stored_as']}{scale}{unit}"))
    return rows


def _told_rows(scene: Mapping[str, Any]) -> Rows:
    told = [(name, value) for name, value in scene["attributes"].items() if isinstance(value, str | int | float)]
    return [*told, *(("history", line) for line in scene["history"])]


def _ranges(numbers: list[int]) -> str:
    """Band numbers as `130-135, 161`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def validate_path(path: str | Path) -> Iterator[str]:
    """Check a store, or a catalog with the stores its items point to; one line for each thing that holds.

    Raises:
        InputError, StoreError: the first thing that does not hold; for a catalog, after all were checked.
    """
    if "://" in str(path) or is_store(Path(path)):
        yield from _validate_store(path)
        return
    path = Path(path)
    from cubeloom.catalogs.items import read_catalog
    from cubeloom.catalogs.validate import validate_catalog

    document = path / "catalog.json" if path.is_dir() else path
    if not document.is_file():
        found = "a folder without catalog.json" if path.is_dir() else "no such file or folder"
        raise InputError(f"{path}: {found}; expected a .zarr store, an output directory, or a STAC document")
    yield f"{document}: {validate_catalog(document)} STAC objects are valid"
    broken = []
    for item in read_catalog(document):
        product = item.store
        if product is None or "commit" not in item.assets:  # not made here
            continue
        try:
            _require_recorded(item, product)
            yield from _validate_store(product)
        except CubeloomError as error:
            broken.append(str(error))
    if broken:
        raise StoreError("\n".join(broken))


def _require_recorded(item: "CatalogItem", product: str | Path) -> None:
    """The commit record must be the one that the item names: everything else is checked against it."""
    known = item.assets["commit"].checksum
    try:
        record = (_folder(product) / store.COMMIT).read_bytes()
    except FileNotFoundError:
        return  # which is said when the store is checked
    if known and not known.endswith(hashlib.sha256(record).hexdigest()):
        raise StoreError(
            f"{product}: {store.COMMIT} is not the one that {item.self_path} names; its bytes were changed after "
            "writing"
        )


def _validate_store(path: str | Path) -> Iterator[str]:
    folder = _folder(path)
    counts = store.verify(folder)
    yield f"{path}: {counts['chunks']} chunks ({counts['empty']} empty) and {counts['metadata']} metadata files match"
    for group in _scene_groups(store.read_commit(folder)):
        scene = open_scene(path, group=group)
        validate_scene(scene)
        spec = spec_of(scene)
        yield f"{path}: group {group or '/'} is a Scene of {len(spec.bands)} bands, {', '.join(spec.variables)}"
