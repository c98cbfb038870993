"""The chunk files of a store: packed, compressed, hashed; written by blocks and read back by windows.

A block owns whole chunks, so no two tasks write the same file, and a block done twice leaves the same bytes.

How wide they are depends on the scene. A chunk of an imaging spectrometer's 224 bands and 128 px holds 7 MB. One of
Sentinel-2's four bands would hold 0.1 MB, and a tile of 10980 px lie in 19,900 files: each is created, hashed and read
back, and found again by whoever reads the store. So scenes of few bands and many pixels get chunks of twice the edge,
which are 5,100 files of up to 0.5 MB. Four times the edge cost as much CPU time as twice, and more where less is read.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numcodecs.blosc import Blosc
from odc.geo.geobox import GeoBox

from cubeloom.errors import StoreError

from .blocks import Block
from .clock import Clock, Seconds, added
from .encoding import Array, Encoding, Packed
from .folders import Folder
from .grids import CHUNK, STATISTICS_BLOCK, Shape, Window, scaled_shape, tile, tile_covering
from .overviews import halve, overview_factors
from .scene import SceneSpec, Variable

EMPTY = ""
"""Stands for the hash of a chunk that holds nothing but the fill value and has no file."""

BLOSC_BLOCK = 2**20
"""Bytes that Blosc shuffles and compresses together. Its own choice (32 KiB) cuts the bit planes of a cube into shreds:
on a simulated scene 1 MiB packed 9 % smaller, 1.9 times as fast, and came back 3 times as fast."""

WIDE_CHUNK = STATISTICS_BLOCK
"""Edge, px, of the chunks of few bands; a block of the passes over a scene reads one, and none is read twice."""

LARGEST_WIDE = 4 * 2**20
"""Bytes, at most, of a variable over the ground of a wide chunk, in the finest group too: a task holds no less."""

FEWEST_WIDE = 64
"""Wide chunks that cover a scene, at least: the files of a smaller one cost little, and many workers want work."""

_CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, blocksize=BLOSC_BLOCK)

Hashes = dict[str, str]


@dataclass(frozen=True)
class Written:
    """What writing a block left.

    Attributes:
        hashes: the hash of every chunk by its path in the store.
        nbytes: size of them all.
        clipped: how many values were clipped, of the chunks where any were. They are counted by chunk, so that a
            chunk written twice, in blocks of two sizes, counts once.
        seconds: what the task spent, by step: `read`, each stage's name, `write`.
    """

    hashes: Hashes
    nbytes: int
    clipped: dict[str, int]
    seconds: Seconds = field(default_factory=dict)

    def __add__(self, other: "Written") -> "Written":
        return Written(
            self.hashes | other.hashes,
            self.nbytes + other.nbytes,
            self.clipped | other.clipped,
            added(self.seconds, other.seconds),
        )


def clipped_by_variable(clipped: Mapping[str, int]) -> dict[str, int]:
    """How many values of every variable were clipped, from the counts of its chunks."""
    total: dict[str, int] = {}
    for key, count in sorted(clipped.items()):
        name = key.partition("/c/")[0]
        total[name] = total.get(name, 0) + count
    return total


def write_block(path: Path, block: Block) -> Written:
    """Write the chunks of a block's variables.

    Args:
        path: the staged store.
        block: its spec names the variables to write; its window must cover whole chunks, but at the scene's edge.

    Raises:
        StoreError: the window splits a chunk, or the disk refuses.
    """
    spec, window = block.spec, block.window
    edge = chunk_edge(spec)
    _require_whole_chunks(window, spec.shape, edge)
    clock = Clock()
    written = Written({}, 0, {}, clock.seconds)
    nbytes = 0
    with clock("write"):
        for name, variable in spec.variables.items():
            array = block.arrays[name]
            for part in window.tiles((edge, edge)):
                packed, outside = _packed(array, part, window, variable.encoding)
                key = chunk_key(spec.group, name, packed.ndim, part, edge)
                written.hashes[key], size = _write_chunk(path, key, packed, fill_value(variable.encoding), edge)
                nbytes += size
                if outside:
                    written.clipped[key] = outside
    return replace(written, nbytes=nbytes)


def write_overviews(path: Path, block: Block) -> Written:
    """Write the overview chunks that a block holds all of, from pixels that are at hand in their stored form.

    `seal` makes the others from the chunks.
    """
    clock = Clock()
    hashes: Hashes = {}
    with clock("write"):
        for name, variable in block.spec.variables.items():
            if _is_stored_form(block.arrays[name], variable.encoding) and not is_band_mask(variable):
                hashes |= _write_overviews_of(path, block, name, variable)
    return Written(hashes, 0, {}, clock.seconds)


def _write_overviews_of(path: Path, block: Block, name: str, variable: Variable) -> Hashes:
    hashes: Hashes = {}
    level, window, edge = _data(block.arrays[name]), block.window, chunk_edge(block.spec)
    for factor in overview_factors(block.spec.shape):
        if not _covers_chunks(window.scaled(factor // 2), block.spec.shape, edge * factor):
            break
        level = halve(level, variable)
        window = Window(window.row // 2, window.col // 2, level.shape[-2], level.shape[-1])
        target, fill = overview_group(block.spec.group, factor), fill_value(variable.encoding)
        hashes |= _write_level(path, target, name, level, window, fill, edge)
    return hashes


def _write_level(path: Path, group: str, name: str, level: Array, window: Window, fill: float, edge: int) -> Hashes:
    hashes: Hashes = {}
    for part in window.tiles((edge, edge)):
        key = chunk_key(group, name, level.ndim, part, edge)
        hashes[key], _ = _write_chunk(path, key, part.crop(level, window), fill, edge)
    return hashes


def laid_out(groups: Sequence[SceneSpec]) -> tuple[SceneSpec, ...]:
    """The groups of a store to be, with the edge of its chunks: one for all, so that a block owns whole ones in each.

    Args:
        groups: one spec a group, with the variables to be written.
    """
    rows, cols = scaled_shape(groups[0].shape, 1 / Fraction(groups[0].scale))
    squares = -(-rows // WIDE_CHUNK) * -(-cols // WIDE_CHUNK)
    largest = max(_ground_bytes(spec, name) for spec in groups for name in spec.variables)
    wide = squares >= FEWEST_WIDE and largest <= LARGEST_WIDE
    return tuple(replace(spec, chunk=WIDE_CHUNK if wide else CHUNK) for spec in groups)


def _ground_bytes(spec: SceneSpec, name: str) -> float:
    """Bytes of a variable over as much ground as a wide chunk of the native grid covers."""
    deep = math.prod(spec.sizes(name)[:-2]) * np.dtype(spec.variables[name].encoding.dtype).itemsize
    return float(deep * (WIDE_CHUNK * spec.scale) ** 2)


def chunk_edge(spec: SceneSpec) -> int:
    """Edge, px, of a group's chunks: shorter on a coarser grid, so that a block owns whole ones there too."""
    return spec.chunk // Fraction(spec.scale).denominator


def _require_whole_chunks(window: Window, shape: Shape, edge: int) -> None:
    if not _covers_chunks(window, shape, edge):
        raise StoreError(
            f"{window} does not cover whole chunks of {edge} px of a grid of {shape}; two tasks would write one"
        )


def _covers_chunks(window: Window, shape: Shape, edge: int) -> bool:
    """Whether a window is made of whole squares of `edge` px, but where the grid ends."""
    starts = window.row % edge == 0 and window.col % edge == 0
    return starts and all(stop % edge == 0 or stop >= size for stop, size in zip(window.stop, shape, strict=True))


def _data(array: Array | Packed) -> Array:
    return array.data if isinstance(array, Packed) else array


def _is_stored_form(array: Array | Packed, encoding: Encoding) -> bool:
    return array.encoding == encoding if isinstance(array, Packed) else encoding.scale is None


def _packed(array: Array | Packed, part: Window, window: Window, encoding: Encoding) -> tuple[Array, int]:
    """The packed numbers of a part of an array over `window`, and how many values were clipped, also in reading."""
    numbers = part.crop(_data(array), window)
    if not isinstance(array, Packed):
        return encoding.encode(numbers)
    before = 0 if array.clipped is None else int(np.count_nonzero(part.crop(array.clipped, window)))
    if array.encoding == encoding:
        return numbers, before
    packed, outside = encoding.encode(array.encoding.decode(numbers))
    return packed, before + outside


def chunk_key(group: str, name: str, ndim: int, part: Window, edge: int) -> str:
    """Path in the store of the chunk, of `edge` px, that a window lies in."""
    index = (*(0,) * (ndim - 2), part.row // edge, part.col // edge)
    return "/".join(filter(None, (group, name, "c", *map(str, index))))


def _write_chunk(path: Path, key: str, packed: Array, fill: float, edge: int) -> tuple[str, int]:
    """Encode one chunk and write its file; a chunk of fill alone gets none. Returns its hash and size."""
    target = path / key
    packed = np.ascontiguousarray(packed)
    if _only(packed, fill):
        target.unlink(missing_ok=True)
        return EMPTY, 0
    if packed.shape[-2:] != (edge, edge):
        full = np.full((*packed.shape[:-2], edge, edge), fill, packed.dtype)
        full[..., : packed.shape[-2], : packed.shape[-1]] = packed
        packed = full
    encoded = _CODEC.encode(packed)
    try:
        _overwrite(target, encoded)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise StoreError(f"{target}: cannot write a chunk of {len(encoded)} bytes: {error.strerror}") from error
    return digest(encoded), len(encoded)


def _overwrite(target: Path, data: bytes) -> None:
    """Write a file without emptying it first.

    A worker that a cluster has given up for lost may still be at a chunk that another one makes anew: both write the
    same bytes, so that whoever reads in between finds them whole.
    """
    with open(os.open(target, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:  # noqa: PTH123 - wants a descriptor
        file.write(data)
        file.truncate()


def digest(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def _only(packed: Array, fill: float) -> bool:
    """Whether every number is the fill value; the first band settles most cases."""
    return all(_only_in(part, fill) for part in (packed[0], packed))


def _only_in(packed: Array, fill: float) -> bool:
    if fill != fill:
        return bool(np.isnan(packed).all())
    if packed.dtype == bool:
        return not fill and not packed.any()
    return bool(packed.min() == fill == packed.max())


def read_chunk(path: Folder, key: str, expected: str) -> bytes | None:
    """A chunk's bytes, checked against its hash; None for an empty one."""
    if expected == EMPTY:
        return None
    try:
        data = (path / key).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: chunk {key} is missing; run the workflow again to make the product anew") from None
    if digest(data) != expected:
        raise StoreError(
            f"{path}: chunk {key} does not match its recorded sha256; its bytes were changed after writing"
        )
    return data


def block_keys(groups: Sequence[SceneSpec], window: Window) -> list[str]:
    """Paths of all chunks that a window of the source's grid owns, in every group."""
    return [key for spec in groups for key in chunk_keys(spec, spec.group, window.scaled(spec.scale))]


def chunk_keys(spec: SceneSpec, group: str, window: Window) -> Iterator[str]:
    """Paths of all chunks of a group in a window of its grid."""
    edge = chunk_edge(spec)
    for part in window.tiles((edge, edge)):
        for name, variable in spec.variables.items():
            yield chunk_key(group, name, len(variable.dims), part, edge)


def coarsened(spec: SceneSpec, factor: int) -> SceneSpec:
    """The Scene of an overview: every variable but per-band masks, on a grid `factor` times coarser."""
    kept = {name: v for name, v in spec.variables.items() if not is_band_mask(v)}
    shape = (-(-spec.shape[0] // factor), -(-spec.shape[1] // factor))
    grid = GeoBox(shape, spec.grid.affine * spec.grid.affine.scale(factor), spec.grid.crs)
    return replace(spec, variables=kept, grid=grid)


def is_band_mask(variable: Variable) -> bool:
    """Whether a variable is a mask of every band, which gets no overviews."""
    return variable.dims[0] == "band" and variable.encoding.dtype == "bool"


def overview_group(group: str, factor: int) -> str:
    """The group of an overview of a group."""
    return f"{group}/overviews/{factor}".lstrip("/")


def fill_value(encoding: Encoding) -> float | int | bool:
    """What a chunk without a file stands for."""
    if encoding.fill is not None:
        return encoding.fill
    return False if encoding.dtype == "bool" else 0


@dataclass(frozen=True)
class Square:
    """Two by two chunks of one variable, and the overview group that one chunk made of them belongs to."""

    path: Path
    group: str
    spec: SceneSpec
    name: str
    window: Window
    target: str


def missing_overviews(
    path: Path, spec: SceneSpec, group: str, target: str, known: Mapping[str, str]
) -> Iterator[Square]:
    """The squares whose overview chunk no block has written, because none held all of it."""
    edge = chunk_edge(spec)
    for name, variable in spec.variables.items():
        if is_band_mask(variable):
            continue
        for window in tile(spec.shape, (2 * edge, 2 * edge)):
            coarse = Window(window.row // 2, window.col // 2, edge, edge)
            if chunk_key(target, name, len(variable.dims), coarse, edge) not in known:
                yield Square(path, group, spec, name, window, target)


def halve_chunks(square: Square) -> Hashes:
    """One overview chunk from the chunks below it, each halved on its own: no array larger than a chunk is held."""
    variable, outer, edge = square.spec.variables[square.name], square.window, chunk_edge(square.spec)
    fill = fill_value(variable.encoding)
    coarse = Window(outer.row // 2, outer.col // 2, -(-outer.height // 2), -(-outer.width // 2))
    level = np.full((*square.spec.sizes(square.name)[:-2], *coarse.shape), fill, variable.encoding.dtype)
    for part in outer.tiles((edge, edge)):
        finer = read_window(square.path, square.group, square.spec, square.name, part)
        row, col = part.row // 2 - coarse.row, part.col // 2 - coarse.col
        level[..., row : row + -(-part.height // 2), col : col + -(-part.width // 2)] = halve(finer, variable)
    return _write_level(square.path, square.target, square.name, level, coarse, fill, edge)


def read_window(path: Folder, group: str, spec: SceneSpec, name: str, window: Window) -> Array:
    """Packed numbers of a variable over a window, straight from the chunks; a chunk without a file is fill.

    Args:
        path: the store, published or staged, on this machine or elsewhere.
        group: its group.
        spec: the Scene in that group.
        name: the variable.
        window: px of that group's grid.

    Raises:
        StoreError: a chunk cannot be decoded.
    """
    encoding = spec.variables[name].encoding
    leading, edge = spec.sizes(name)[:-2], chunk_edge(spec)
    out: Array | None = None
    for part in tile_covering(window, edge):
        key = chunk_key(group, name, len(leading) + 2, part, edge)
        numbers = _read_numbers(path, key, encoding, (*leading, edge, edge))
        if numbers is not None and part == window:
            return numbers
        if out is None:
            out = np.full((*leading, *window.shape), fill_value(encoding), encoding.dtype)
        if numbers is not None:
            shared = part.overlap(window)
            out[(..., *shared.within(window).slices)] = shared.crop(numbers, part)
    assert out is not None
    return out


def _read_numbers(path: Folder, key: str, encoding: Encoding, shape: tuple[int, ...]) -> Array | None:
    """A whole chunk's packed numbers (read-only), or None where it has no file."""
    try:
        data = (path / key).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return np.frombuffer(_CODEC.decode(data), encoding.dtype).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{path}: chunk {key} cannot be decoded: {error}; validate the store") from None
