"""The product store: the only module that lays out Zarr.

A store is built in staging. `create` lays out groups, coordinates and array metadata; blocks then write their chunks
(`chunks.py`). When all stand, `seal` adds the overviews that are missing, reads every chunk back against its hash and
writes the commit record; `publish` renames the whole into place. A folder without a commit record is not a product.
"""

import ctypes
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from cubeloom.errors import StoreError

from .chunks import (
    BLOSC_BLOCK,
    Hashes,
    chunk_edge,
    chunk_keys,
    coarsened,
    digest,
    fill_value,
    halve_chunks,
    missing_overviews,
    overview_group,
    read_chunk,
)
from .folders import Folder
from .grids import whole
from .overviews import overview_factors
from .scene import SceneSpec, coordinates

COMMIT = "_COMMIT.json"
LAYOUT_VERSION = 1

# Consolidated metadata is outside the format 3 specification, and read by all. For good, since to silence a warning for
# a block of code is to silence it, or not, for the other threads as well.
warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata", category=ZarrUserWarning)

_LIBC = ctypes.CDLL(None, use_errno=True)

Submit = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
"""Runs a function over arguments and yields the results in order; a pool's `map`, or the built-in one."""


def create(path: Path, groups: Sequence[SceneSpec]) -> None:
    """Lay out an empty store: groups, coordinates, and the metadata of every array; an old one at `path` goes.

    Args:
        path: folder of the store, in staging.
        groups: one spec a group, whose variables are those to be written; the native grid first.

    Raises:
        StoreError: the disk refuses.
    """
    files: dict[str, Any] = {}
    layout = MemoryStore(files)  # the metadata are some hundred small files: laid out in memory, written at once
    for spec in groups:
        _create_group(layout, spec.group, spec)
        for factor in overview_factors(spec.shape):
            _create_group(layout, overview_group(spec.group, factor), coarsened(spec, factor))
    zarr.consolidate_metadata(layout)
    if path.exists():
        shutil.rmtree(path)
    try:
        for key, content in files.items():
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            (path / key).write_bytes(content.to_bytes())
        for folder in {key.rpartition("/")[0] for spec in groups for key in _all_keys(spec)}:
            (path / folder).mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot lay out the store: {error.strerror}") from error


def _create_group(layout: MemoryStore, group: str, spec: SceneSpec) -> None:
    frame = coordinates(spec)
    names, codes = np.unique(frame["detector"].values.astype(str), return_inverse=True)
    meanings = " ".join(name or "single" for name in names)
    flags = {"flag_values": list(range(len(names))), "flag_meanings": meanings, "long_name": "detector"}
    frame["detector"] = ("band", codes.astype(np.uint8), flags)
    frame.attrs |= {"Conventions": "CF-1.11", **_geo_attributes(spec)}
    encoding = {name: {"_FillValue": None} for name in ("wavelength", "fwhm", "y", "x")}
    frame.to_zarr(layout, group=group or None, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
    root = zarr.open_group(layout, path=group, mode="r+")
    for name in spec.variables:
        _create_array(root, name, spec)


def _all_keys(spec: SceneSpec) -> Iterator[str]:
    """Paths of all chunks of a group and its overviews."""
    yield from chunk_keys(spec, spec.group, whole(spec.shape))
    for factor in overview_factors(spec.shape):
        coarse = coarsened(spec, factor)
        yield from chunk_keys(coarse, overview_group(spec.group, factor), whole(coarse.shape))


def _create_array(root: zarr.Group, name: str, spec: SceneSpec) -> None:
    variable = spec.variables[name]
    encoding = variable.encoding
    attrs: dict[str, Any] = dict(variable.attrs)
    if encoding.scale is not None:
        attrs |= {"scale_factor": encoding.scale, "_FillValue": encoding.fill}
    if spec.grid.crs is not None:
        attrs |= {"grid_mapping": "spatial_ref", **_geo_attributes(spec)}
    root.create_array(
        name,
        shape=spec.sizes(name),
        chunks=_chunk_shape(spec, name),
        dtype=encoding.dtype,
        fill_value=fill_value(encoding),
        serializer=BytesCodec(endian="little" if np.dtype(encoding.dtype).itemsize > 1 else None),
        compressors=BloscCodec(
            typesize=np.dtype(encoding.dtype).itemsize,
            cname="zstd",
            clevel=1,
            shuffle="bitshuffle",
            blocksize=BLOSC_BLOCK,
        ),
        dimension_names=variable.dims,
        attributes=attrs,
    )


def _chunk_shape(spec: SceneSpec, name: str) -> tuple[int, ...]:
    return (*spec.sizes(name)[:-2], chunk_edge(spec), chunk_edge(spec))


def _geo_attributes(spec: SceneSpec) -> dict[str, Any]:
    """CRS and grid by the GeoZarr `proj:` and `spatial:` conventions; nothing for sensor geometry."""
    grid = spec.grid
    if grid.crs is None:
        return {}
    epsg = grid.crs.to_epsg()
    box = grid.extent.boundingbox
    github = "https://raw.githubusercontent.com/zarr-conventions"
    return {
        "zarr_conventions": [
            {
                "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
                "name": "proj:",
                "schema_url": f"{github}/geo-proj/refs/tags/v1/schema.json",
            },
            {
                "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
                "name": "spatial:",
                "schema_url": f"{github}/spatial/refs/tags/v1/schema.json",
            },
        ],
        **({"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": grid.crs.to_wkt()}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.affine)[:6],
        "spatial:bbox": [box.left, box.bottom, box.right, box.top],
        "spatial:shape": list(spec.shape),
        "spatial:registration": "pixel",
    }


def seal(
    path: Path, groups: Sequence[SceneSpec], hashes: Mapping[str, str], record: Mapping[str, Any], run: Submit
) -> Hashes:
    """Add the overviews, verify every chunk, and write the commit record.

    Args:
        path: the staged store, all of whose blocks are written.
        groups: as given to `create`.
        hashes: the hash of every chunk by its path.
        record: what else the commit record holds (identity, workflow, counts); nothing that changes from run to run.
        run: maps a function over tasks, in order.

    Returns:
        The hashes of all chunks, those of the overviews too.

    Raises:
        StoreError: a chunk is missing, or its bytes are not those that were written.
    """
    known: Hashes = dict(hashes)
    _require_all_chunks(path, groups, known)
    with ThreadPoolExecutor(1) as flusher:
        flushed = flusher.submit(_sync, path)  # the disk takes the chunks while overviews are made and hashes checked
        for spec in groups:
            finer, group = spec, spec.group
            for factor in overview_factors(spec.shape):
                target = overview_group(spec.group, factor)
                for made in run(halve_chunks, missing_overviews(path, finer, group, target, known)):
                    known |= made
                finer, group = coarsened(spec, factor), target
        _sweep(path, known)
        keys = list(known)
        parts = [(path, {key: known[key] for key in keys[i : i + 16]}) for i in range(0, len(keys), 16)]
        for _ in run(_verify_chunks, parts):
            pass
        flushed.result()
    _write_commit(path, known, record)
    return known


def _require_all_chunks(path: Path, groups: Sequence[SceneSpec], known: Mapping[str, str]) -> None:
    expected = {key for spec in groups for key in chunk_keys(spec, spec.group, whole(spec.shape))}
    if missing := sorted(expected - known.keys()):
        raise StoreError(f"{path}: {len(missing)} of {len(expected)} chunks were never written, first {missing[0]}")


def _verify_chunks(task: tuple[Path, Hashes]) -> None:
    """Read chunks back against their hashes."""
    path, hashes = task
    for key, expected in hashes.items():
        read_chunk(path, key, expected)


def _sweep(path: Path, known: Mapping[str, str]) -> None:
    """Remove files among the chunks that no block owns (left by a write that was cut off)."""
    for variable in {key.partition("/c/")[0] for key in known}:
        for key in _files(path, f"{variable}/c"):
            if not known.get(key):
                (path / key).unlink()


def _files(path: Path, below: str = "") -> Iterator[str]:
    """Paths in a store of all files below one of its folders; of a store that is not remote."""
    for folder, _, names in os.walk(path / below):
        inside = Path(folder).relative_to(path)
        yield from ((inside / name).as_posix() for name in names)


def _write_commit(path: Path, known: Mapping[str, str], record: Mapping[str, Any]) -> None:
    """The commit record: the hash of every chunk, of the metadata, and of the coordinates."""
    others = sorted((key for key in _files(path) if key not in known and key != COMMIT), key=lambda key: key.split("/"))
    metadata = {key: digest((path / key).read_bytes()) for key in others}
    commit = {"layout": LAYOUT_VERSION, **record, "metadata": metadata, "chunks": dict(sorted(known.items()))}
    try:
        (path / COMMIT).write_text(json.dumps(commit, indent=1))
    except OSError as error:
        raise StoreError(f"{path / COMMIT}: cannot be written: {error.strerror}") from error
    _sync(path)


def _sync(path: Path) -> None:
    """Push all that was written to the file system of `path` to its disk.

    One call for the whole file system: a store has thousands of files, and syncing each costs a journal commit.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            raise StoreError(f"{path}: the disk did not take what was written: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def publish(staged: Path, target: Path) -> None:
    """Move a sealed store into place by one rename.

    Raises:
        StoreError: the store is not sealed, or the target exists.
    """
    if not (staged / COMMIT).is_file():
        raise StoreError(f"{staged} has no commit record: seal it before publishing")
    if target.exists():
        raise StoreError(f"{target} exists; a published product is never written over")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(target)
    _sync(target.parent)


def read_commit(path: Folder) -> dict[str, Any]:
    """The commit record of a published store.

    Raises:
        StoreError: there is none, so the folder is not a finished product.
    """
    try:
        record = json.loads((path / COMMIT).read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path} has no {COMMIT}: it is not a finished product; run its workflow again") from None
    except ValueError as error:
        raise StoreError(f"{path}: {COMMIT} is damaged: {error}") from None
    return dict(record)


def verify(path: Folder) -> dict[str, int]:
    """Hash every chunk and metadata file of a published store against its commit record.

    Args:
        path: the store. On this machine it must hold no other file; what else lies in a bucket is not looked at.

    Returns:
        Counts: `chunks`, `empty` (chunks without a file) and `metadata` files checked.

    Raises:
        StoreError: names the files that are missing, changed or not part of the product.
    """
    commit = read_commit(path)
    files = {**commit["metadata"], **{key: known for key, known in commit["chunks"].items() if known}}
    problems = []
    for key, expected in files.items():
        try:
            read_chunk(path, key, expected)
        except StoreError as error:
            problems.append(str(error))
    if isinstance(path, Path):
        strange = sorted(set(_files(path)) - files.keys() - {COMMIT})
        problems += [f"{path}: {extra} is not part of the product" for extra in strange]
    if problems:
        shown = "\n  - ".join(problems[:5])
        raise StoreError(f"{path} is damaged ({len(problems)} files):\n  - {shown}")
    empty = sum(not known for known in commit["chunks"].values())
    return {"chunks": len(commit["chunks"]), "empty": empty, "metadata": len(commit["metadata"])}
