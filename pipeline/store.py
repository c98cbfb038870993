"""The product store: the only module that writes Zarr.

A store is built in staging, block by block. A block owns whole chunks, so no two tasks write the same file and a
block done twice leaves the same bytes. When all blocks stand, `seal` reads every chunk back against its hash, adds
the overviews, consolidates the metadata and writes the commit record; `publish` renames the whole into place.
A folder without a commit record is not a product.
"""

import ctypes
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec, BytesCodec

from cubeloom.errors import StoreError

from .blocks import Block
from .encoding import Array, Encoding, Packed
from .grids import CHUNK, Shape, Window, tile, tile_covering, whole
from .overviews import halve, overview_factors
from .scene import SceneSpec, Variable, coordinates

COMMIT = "_COMMIT.json"
LAYOUT_VERSION = 1
EMPTY = ""
"""Stands for the hash of a chunk that holds nothing but the fill value and has no file."""

_LIBC = ctypes.CDLL(None, use_errno=True)

Hashes = dict[str, str]
Submit = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
"""Runs a function over arguments and yields the results in order; a pool's `map`, or the built-in one."""


@dataclass(frozen=True)
class Written:
    """What writing a block left: the hash of every chunk by its path in the store, bytes, and clipped values."""

    hashes: Hashes
    nbytes: int
    clipped: dict[str, int]

    def __add__(self, other: "Written") -> "Written":
        clipped = {
            name: self.clipped.get(name, 0) + other.clipped.get(name, 0) for name in {**self.clipped, **other.clipped}
        }
        return Written(self.hashes | other.hashes, self.nbytes + other.nbytes, clipped)


def create(path: Path, groups: Sequence[SceneSpec]) -> None:
    """Lay out an empty store: groups, coordinates, and the metadata of every array; an old one at `path` goes.

    Args:
        path: folder of the store, in staging.
        groups: one spec a group, whose variables are those to be written; the native grid first.
    """
    if path.exists():
        shutil.rmtree(path)
    for spec in groups:
        _create_group(path, spec.group, spec)
        for factor in overview_factors(spec.shape):
            _create_group(path, _overview_group(spec.group, factor), _coarsened(spec, factor))


def _coarsened(spec: SceneSpec, factor: int) -> SceneSpec:
    """The Scene of an overview: every variable but per-band masks, on a grid `factor` times coarser."""
    kept = {name: v for name, v in spec.variables.items() if not _is_band_mask(v)}
    shape = (-(-spec.shape[0] // factor), -(-spec.shape[1] // factor))
    from odc.geo.geobox import GeoBox

    grid = GeoBox(shape, spec.grid.affine * spec.grid.affine.scale(factor), spec.grid.crs)
    return replace(spec, variables=kept, grid=grid)


def _is_band_mask(variable: Variable) -> bool:
    return variable.dims[0] == "band" and variable.encoding.dtype == "bool"


def _overview_group(group: str, factor: int) -> str:
    return f"{group}/overviews/{factor}".lstrip("/")


def _create_group(path: Path, group: str, spec: SceneSpec) -> None:
    frame = coordinates(spec)
    names, codes = np.unique(frame["detector"].values.astype(str), return_inverse=True)
    meanings = " ".join(name or "single" for name in names)
    flags = {"flag_values": list(range(len(names))), "flag_meanings": meanings, "long_name": "detector"}
    frame["detector"] = ("band", codes.astype(np.uint8), flags)
    frame.attrs |= {"Conventions": "CF-1.11", **_geo_attributes(spec)}
    encoding = {name: {"_FillValue": None} for name in ("wavelength", "fwhm", "y", "x")}
    frame.to_zarr(path, group=group or None, mode="a", zarr_format=3, consolidated=False, encoding=encoding)
    root = zarr.open_group(path / group, mode="r+")
    for name, variable in spec.variables.items():
        _create_array(root, name, spec)
        for chunk_row in range(-(-spec.shape[0] // CHUNK)):
            leading = [0] * (len(variable.dims) - 2)
            (path / group / name).joinpath("c", *map(str, (*leading, chunk_row))).mkdir(parents=True)


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
        fill_value=_fill(encoding),
        serializer=BytesCodec(endian="little" if np.dtype(encoding.dtype).itemsize > 1 else None),
        compressors=BloscCodec(
            typesize=np.dtype(encoding.dtype).itemsize, cname="zstd", clevel=1, shuffle="bitshuffle"
        ),
        dimension_names=variable.dims,
        attributes=attrs,
    )


def _chunk_shape(spec: SceneSpec, name: str) -> tuple[int, ...]:
    return (*spec.sizes(name)[:-2], CHUNK, CHUNK)


def _fill(encoding: Encoding) -> float | int | bool:
    if encoding.fill is not None:
        return encoding.fill
    return False if encoding.dtype == "bool" else 0


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


def write_block(path: Path, block: Block) -> Written:
    """Write the chunks of a block's variables.

    Args:
        path: the staged store.
        block: its spec names the variables to write; its window must cover whole chunks, but at the scene's edge.

    Raises:
        StoreError: the window splits a chunk, or the disk refuses.
    """
    spec, window = block.spec, block.window
    _require_whole_chunks(window, spec.shape)
    written = Written({}, 0, {})
    nbytes = 0
    for name, variable in spec.variables.items():
        array, clipped = block.arrays[name], 0
        for part in _chunks_of(window):
            packed, outside = _packed(part.crop(_data(array), window), array, variable.encoding)
            key = _chunk_key(spec.group, name, packed.ndim, part)
            written.hashes[key], size = _write_chunk(path, key, packed, _fill(variable.encoding))
            nbytes += size
            clipped += outside
        if _is_stored_form(array, variable.encoding):
            written.hashes.update(_write_overviews(path, spec, name, _data(array), window))
        if clipped:
            written.clipped[name] = clipped
    return replace(written, nbytes=nbytes)


def _write_overviews(path: Path, spec: SceneSpec, name: str, level: Array, window: Window) -> Hashes:
    """Overview chunks that a window holds all of: made while its pixels are at hand, the rest is left to `seal`."""
    hashes: Hashes = {}
    variable = spec.variables[name]
    if _is_band_mask(variable):
        return hashes
    for factor in overview_factors(spec.shape):
        if not _covers_chunks(window.scaled(factor // 2), spec.shape, CHUNK * factor):
            break
        level = halve(level, variable)
        window = Window(window.row // 2, window.col // 2, level.shape[-2], level.shape[-1])
        hashes |= _write_level(path, _overview_group(spec.group, factor), name, level, window, _fill(variable.encoding))
    return hashes


def _write_level(path: Path, group: str, name: str, level: Array, window: Window, fill: float) -> Hashes:
    hashes: Hashes = {}
    for part in _chunks_of(window):
        key = _chunk_key(group, name, level.ndim, part)
        hashes[key], _ = _write_chunk(path, key, part.crop(level, window), fill)
    return hashes


def _require_whole_chunks(window: Window, shape: Shape) -> None:
    if not _covers_chunks(window, shape, CHUNK):
        raise StoreError(
            f"{window} does not cover whole chunks of {CHUNK} px of a grid of {shape}; two tasks would write one"
        )


def _covers_chunks(window: Window, shape: Shape, edge: int) -> bool:
    """Whether a window is made of whole squares of `edge` px, but where the grid ends."""
    starts = window.row % edge == 0 and window.col % edge == 0
    return starts and all(stop % edge == 0 or stop >= size for stop, size in zip(window.stop, shape, strict=True))


def _chunks_of(window: Window) -> list[Window]:
    return [
        Window(window.row + part.row, window.col + part.col, part.height, part.width)
        for part in tile(window.shape, (CHUNK, CHUNK))
    ]


def _data(array: Array | Packed) -> Array:
    return array.data if isinstance(array, Packed) else array


def _is_stored_form(array: Array | Packed, encoding: Encoding) -> bool:
    return array.encoding == encoding if isinstance(array, Packed) else encoding.scale is None


def _packed(part: Array, origin: Array | Packed, encoding: Encoding) -> tuple[Array, int]:
    if isinstance(origin, Packed):
        if origin.encoding == encoding:
            return part, 0
        part = origin.encoding.decode(part)
    return encoding.encode(part)


def _chunk_key(group: str, name: str, ndim: int, part: Window) -> str:
    index = (*(0,) * (ndim - 2), part.row // CHUNK, part.col // CHUNK)
    return "/".join(filter(None, (group, name, "c", *map(str, index))))


def _write_chunk(path: Path, key: str, packed: Array, fill: float) -> tuple[str, int]:
    """Encode one chunk and write its file; a chunk of fill alone gets none. Returns its hash and size."""
    target = path / key
    if _only(packed, fill):
        target.unlink(missing_ok=True)
        return EMPTY, 0
    if packed.shape[-2:] != (CHUNK, CHUNK):
        full = np.full((*packed.shape[:-2], CHUNK, CHUNK), fill, packed.dtype)
        full[..., : packed.shape[-2], : packed.shape[-1]] = packed
        packed = full
    codec = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)
    encoded = codec.encode(np.ascontiguousarray(packed))
    try:
        target.write_bytes(encoded)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise StoreError(f"{target}: cannot write a chunk of {len(encoded)} bytes: {error.strerror}") from error
    return _digest(encoded), len(encoded)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _only(packed: Array, fill: float) -> bool:
    """Whether every number is the fill value; the first one settles most cases."""
    if fill != fill:
        return bool(np.isnan(packed.flat[0]) and np.isnan(packed).all())
    return bool(packed.flat[0] == fill and (packed == fill).all())


def _read_chunk(path: Path, key: str, digest: str) -> bytes | None:
    """A chunk's bytes, checked against its hash; None for an empty one."""
    if digest == EMPTY:
        return None
    try:
        data = (path / key).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: chunk {key} is missing; run the workflow again to make the product anew") from None
    if _digest(data) != digest:
        raise StoreError(
            f"{path}: chunk {key} does not match its recorded sha256; its bytes were changed after writing"
        )
    return data


def seal(
    path: Path, groups: Sequence[SceneSpec], hashes: Mapping[str, str], record: Mapping[str, Any], run: Submit
) -> Hashes:
    """Verify every chunk, add the overviews, consolidate, and write the commit record.

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
    for spec in groups:
        finer, group = spec, spec.group
        for factor in overview_factors(spec.shape):
            target = _overview_group(spec.group, factor)
            for made in run(_halve_chunks, _missing_overviews(path, finer, group, target, known)):
                known |= made
            finer, group = _coarsened(spec, factor), target
    _sweep(path, known)
    keys = list(known)
    for _ in run(_verify_chunks, [(path, {k: known[k] for k in keys[i : i + 16]}) for i in range(0, len(keys), 16)]):
        pass
    with warnings.catch_warnings():  # consolidated metadata is outside the format 3 specification, and read by all
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata")
        zarr.consolidate_metadata(path)
    _write_commit(path, known, record)
    return known


def block_keys(groups: Sequence[SceneSpec], window: Window) -> list[str]:
    """Paths of all chunks that a window of the source's grid owns, in every group."""
    return [
        _chunk_key(spec.group, name, len(variable.dims), part)
        for spec in groups
        for part in _chunks_of(window.scaled(spec.scale))
        for name, variable in spec.variables.items()
    ]


def _require_all_chunks(path: Path, groups: Sequence[SceneSpec], known: Mapping[str, str]) -> None:
    expected = {key for spec in groups for key in block_keys([spec], whole(_native_shape(spec)))}
    if missing := sorted(expected - known.keys()):
        raise StoreError(f"{path}: {len(missing)} of {len(expected)} chunks were never written, first {missing[0]}")


def _native_shape(spec: SceneSpec) -> Shape:
    return spec.shape[0] // spec.scale, spec.shape[1] // spec.scale


@dataclass(frozen=True)
class _Square:
    """Two by two chunks of one variable, and the overview group that one chunk made of them belongs to."""

    path: Path
    group: str
    spec: SceneSpec
    name: str
    window: Window
    target: str


def _missing_overviews(
    path: Path, spec: SceneSpec, group: str, target: str, known: Mapping[str, str]
) -> Iterator[_Square]:
    for name, variable in spec.variables.items():
        if _is_band_mask(variable):
            continue
        for window in tile(spec.shape, (2 * CHUNK, 2 * CHUNK)):
            coarse = Window(window.row // 2, window.col // 2, CHUNK, CHUNK)
            if _chunk_key(target, name, len(variable.dims), coarse) not in known:
                yield _Square(path, group, spec, name, window, target)


def _halve_chunks(square: _Square) -> Hashes:
    """One overview chunk from the chunks below it, each halved on its own: no array larger than a chunk is held."""
    variable, outer = square.spec.variables[square.name], square.window
    fill = _fill(variable.encoding)
    coarse = Window(outer.row // 2, outer.col // 2, -(-outer.height // 2), -(-outer.width // 2))
    level = np.full((*square.spec.sizes(square.name)[:-2], *coarse.shape), fill, variable.encoding.dtype)
    for part in _chunks_of(outer):
        finer = read_window(square.path, square.group, square.spec, square.name, part)
        row, col = part.row // 2 - coarse.row, part.col // 2 - coarse.col
        level[..., row : row + -(-part.height // 2), col : col + -(-part.width // 2)] = halve(finer, variable)
    return _write_level(square.path, square.target, square.name, level, coarse, fill)


def read_window(path: Path, group: str, spec: SceneSpec, name: str, window: Window) -> Array:
    """Packed numbers of a variable over a window, straight from the chunks; a chunk without a file is fill.

    Args:
        path: the store, published or staged.
        group: its group.
        spec: the Scene in that group.
        name: the variable.
        window: px of that group's grid.

    Raises:
        StoreError: a chunk cannot be decoded.
    """
    encoding = spec.variables[name].encoding
    leading = spec.sizes(name)[:-2]
    out: Array | None = None
    for part in tile_covering(window):
        numbers = _read_numbers(
            path, _chunk_key(group, name, len(leading) + 2, part), encoding, (*leading, CHUNK, CHUNK)
        )
        if numbers is not None and part == window:
            return numbers
        if out is None:
            out = np.full((*leading, *window.shape), _fill(encoding), encoding.dtype)
        if numbers is not None:
            shared = part.overlap(window)
            out[(..., *shared.within(window).slices)] = shared.crop(numbers, part)
    assert out is not None
    return out


def _read_numbers(path: Path, key: str, encoding: Encoding, shape: tuple[int, ...]) -> Array | None:
    """A whole chunk's packed numbers (read-only), or None where it has no file."""
    try:
        data = (path / key).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return np.frombuffer(Blosc().decode(data), encoding.dtype).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{path}: chunk {key} cannot be decoded: {error}; validate the store") from None


def _verify_chunks(task: tuple[Path, Hashes]) -> None:
    """Read chunks back against their hashes."""
    path, hashes = task
    for key, digest in hashes.items():
        if digest != EMPTY:
            _read_chunk(path, key, digest)


def _sweep(path: Path, known: Mapping[str, str]) -> None:
    """Remove files among the chunks that no block owns (left by a write that was cut off)."""
    for variable in {key.partition("/c/")[0] for key in known}:
        for file in (path / variable / "c").rglob("*"):
            if file.is_file() and not known.get(file.relative_to(path).as_posix()):
                file.unlink()


def _write_commit(path: Path, known: Mapping[str, str], record: Mapping[str, Any]) -> None:
    """The commit record: the hash of every chunk, of the metadata, and of the coordinates."""
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    metadata = {key: _digest(file.read_bytes()) for key, file in files.items() if key not in known}
    commit = {"layout": LAYOUT_VERSION, **record, "metadata": metadata, "chunks": dict(sorted(known.items()))}
    (path / COMMIT).write_text(json.dumps(commit, indent=1))
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


def read_commit(path: Path) -> dict[str, Any]:
    """The commit record of a published store.

    Raises:
        StoreError: there is none, so the folder is not a finished product.
    """
    try:
        record = json.loads((path / COMMIT).read_text())
    except FileNotFoundError:
        raise StoreError(f"{path} has no {COMMIT}: it is not a finished product; run its workflow again") from None
    except ValueError as error:
        raise StoreError(f"{path / COMMIT} is damaged: {error}") from None
    return dict(record)


def verify(path: Path) -> dict[str, int]:
    """Hash every chunk and metadata file of a published store against its commit record.

    Returns:
        Counts: `chunks`, `empty` (chunks without a file) and `metadata` files checked.

    Raises:
        StoreError: names the files that are missing, changed or not part of the product.
    """
    commit = read_commit(path)
    files = {**commit["metadata"], **{key: digest for key, digest in commit["chunks"].items() if digest}}
    problems = []
    for key, digest in files.items():
        try:
            _read_chunk(path, key, digest)
        except StoreError as error:
            problems.append(str(error))
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    problems += [f"{path}: {extra} is not part of the product" for extra in sorted(present - files.keys() - {COMMIT})]
    if problems:
        shown = "\n  - ".join(problems[:5])
        raise StoreError(f"{path} is damaged ({len(problems)} files):\n  - {shown}")
    empty = sum(not digest for digest in commit["chunks"].values())
    return {"chunks": len(commit["chunks"]), "empty": empty, "metadata": len(commit["metadata"])}
