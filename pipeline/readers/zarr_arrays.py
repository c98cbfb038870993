"""Arrays of Zarr stores from outside, format 2 or 3: their metadata are checked before Zarr opens them.

They lie on disk, or behind a network. Zarr runs whatever codec an array's metadata name, and one of them (`pickle`)
runs code. So only plain compression is let through, and sizes are limited before anything is decoded.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer as AbstractBuffer
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.grids import Window
from cubeloom.untrusted import BLOCK_LIMIT, DECODED_LIMIT, load_json

from .rasters import file_state
from .tile_cache import TileCache, touched
from .zarr_remote import RemoteNode

METADATA_LIMIT = 16 * 2**20
"""Bytes of one metadata document; those of an EOPF product's root have about 0.1 MiB."""
CODECS = frozenset({"blosc", "zstd", "zlib", "gzip", "lz4", "shuffle"})
"""Codecs of format 2 that only compress."""
CODECS_3 = frozenset({"bytes", "blosc", "zstd", "gzip", "crc32c", "transpose"})
"""Codecs of format 3 that only compress, check or reorder."""
_KINDS = "uif"

Node = Path | RemoteNode
"""A group or an array of a hierarchy on disk, or of one behind a network."""

CHUNKS = TileCache(64 * 2**20)
"""Decoded chunks. They are large (1830 px), and blocks do not follow them: nine of them are kept."""
os.register_at_fork(after_in_child=CHUNKS.forget)


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An array.

    Attributes:
        path: where it is.
        shape: as stored.
        chunks: shape of a chunk.
        dtype: NumPy name of the numbers' type.
        fill: what a missing chunk stands for; None where not stated.
        attributes: JSON-like.
    """

    path: Node
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float | None
    attributes: Mapping[str, Any]

    @classmethod
    def open(cls, path: Node) -> "ArrayFile":
        """Read and check an array's metadata.

        Raises:
            InputError: there are none, they break the limits, or name a codec that does more than compress.
        """
        if (path / "zarr.json").is_file():
            document = _object(path / "zarr.json")
            found = _format_3(path, document)
        elif (path / ".zarray").is_file():
            found = _format_2(path, _object(path / ".zarray"))
        else:
            raise InputError(f"{path}: no array there; expected .zarray or zarr.json")
        shape, chunks, dtype, fill = found
        _check_size(path, shape, chunks, dtype)
        return cls(path, shape, chunks, dtype.name, fill, attributes(path))

    def read(self) -> Array:
        """All its numbers, as stored.

        Raises:
            InputError: a chunk is damaged.
        """
        return self._decoded(tuple(slice(0, size) for size in self.shape))

    def read_window(self, window: Window) -> Array:
        """Numbers of a window of an array `(y, x)`, as stored; not to be written to.

        Raises:
            InputError: a chunk is damaged.
            RetryableError: the server does not answer.
        """
        height, width = self.shape
        edge = min(self.chunks[0], height), min(self.chunks[1], width)
        state = file_state(self._metadata) if isinstance(self._metadata, Path) else self._metadata
        out: Array | None = None
        for chunk in touched(window, edge, (height, width)):
            numbers = CHUNKS.get((self.path, state, chunk), partial(self._decoded, chunk.slices))
            shared = chunk.overlap(window)
            part = shared.crop(numbers, chunk)
            if shared == window:
                return part
            if out is None:
                out = np.empty(window.shape, self.dtype)
            out[shared.within(window).slices] = part
        assert out is not None
        return out

    def _decoded(self, part: tuple[slice, ...]) -> Array:
        try:
            if isinstance(self.path, Path):
                opened = _opened(self.path, file_state(self.path / self._metadata.name))
            else:
                opened = _fetched(self.path, self, part)
            return np.array(opened[part])
        except (ValueError, RuntimeError, OSError, TypeError, KeyError) as error:
            raise InputError(f"{self.path}: a chunk cannot be decoded ({error}); fetch the product again") from error

    def files(self) -> Iterator[tuple[Path, Path]]:
        """All files of an array on disk, in the order of their paths: where in its folder, and the whole path."""
        folder = self.path
        if isinstance(folder, Path):
            yield from ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())

    @property
    def _metadata(self) -> Node:
        new = self.path / "zarr.json"
        return new if new.is_file() else self.path / ".zarray"


def attributes(path: Node) -> dict[str, Any]:
    """Attributes of a group or an array; empty where it has none.

    Raises:
        InputError: the document is no JSON object, or too large.
    """
    if (path / "zarr.json").is_file():
        found = _object(path / "zarr.json").get("attributes", {})
        return found if isinstance(found, dict) else {}
    return _object(path / ".zattrs") if (path / ".zattrs").is_file() else {}


def _fetched(node: RemoteNode, array: ArrayFile, part: tuple[slice, ...]) -> Any:  # noqa: ANN401 - as `_opened`
    """The array that Zarr opens in memory, with those of its chunks there that hold a part of it."""
    new = (node / "zarr.json").is_file()
    name = "zarr.json" if new else ".zarray"
    document = (node / name).document()
    files: dict[str, AbstractBuffer] = {name: Buffer.from_bytes(json.dumps(document).encode())}
    spans = [range(span.start // size, -(-span.stop // size)) for span, size in zip(part, array.chunks, strict=True)]
    for index in np.ndindex(*(len(span) for span in spans)):
        key = _chunk_key(document, [span[at] for span, at in zip(spans, index, strict=True)])
        data = node.store.files.fetch(f"{node.key}/{key}")
        if data is not None:
            files[key] = Buffer.from_bytes(data)
    return zarr.open_array(MemoryStore(files, read_only=True), mode="r")


def _chunk_key(document: Mapping[str, Any], index: list[int]) -> str:
    """Name of a chunk, as the array's metadata spell it."""
    encoding = document.get("chunk_key_encoding", {"name": "v2", "configuration": document})
    settings = encoding.get("configuration") or {}
    if encoding.get("name") == "default":
        return str(settings.get("separator", "/")).join(["c", *map(str, index)])
    return str(settings.get("dimension_separator", settings.get("separator", "."))).join(map(str, index))


@lru_cache(maxsize=256)
def _opened(path: Path, state: tuple[int, int]) -> Any:  # noqa: ANN401 - Zarr's arrays have several types
    """The array that Zarr opens; the state of its metadata is there to key the cache."""
    return zarr.open_array(str(path), mode="r")


def _object(path: Node) -> dict[str, Any]:
    content = load_json(path, METADATA_LIMIT) if isinstance(path, Path) else path.document()
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object")
    return content


_Header = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any], float | None]


def _format_2(path: Node, document: Mapping[str, Any]) -> _Header:
    filters = document.get("filters") or []
    codecs = [document.get("compressor"), *(filters if isinstance(filters, list) else [filters])]
    _check_codecs(path, [codec.get("id") if isinstance(codec, dict) else codec for codec in codecs if codec], CODECS)
    return (
        _lengths(path, document.get("shape")),
        _lengths(path, document.get("chunks")),
        _type(path, document.get("dtype")),
        finite(document.get("fill_value")),
    )


def _format_3(path: Node, document: Mapping[str, Any]) -> _Header:
    listed = document.get("codecs")
    if document.get("node_type") != "array" or not isinstance(listed, list):
        raise InputError(f"{path}: zarr.json describes no array")
    _check_codecs(path, [codec.get("name") if isinstance(codec, dict) else codec for codec in listed], CODECS_3)
    grid = document.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    return (
        _lengths(path, document.get("shape")),
        _lengths(path, inner.get("chunk_shape") if isinstance(inner, dict) else None),
        _type(path, document.get("data_type")),
        finite(document.get("fill_value")),
    )


def _check_codecs(path: Node, names: list[Any], allowed: frozenset[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise InputError(f"{path}: is packed by {str(name)[:40]!r}; of arrays from outside only those packed by "
                             f"{', '.join(sorted(allowed))} are read")  # fmt: skip


def _check_size(path: Node, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != len(chunks) or not 1 <= len(shape) <= 4 or min(chunks) < 1:
        raise InputError(f"{path}: has shape {shape} in chunks of {chunks}, which cannot be")
    for what, size, limit in (("array", shape, DECODED_LIMIT), ("chunk", chunks, BLOCK_LIMIT)):
        if prod(size) * dtype.itemsize > limit:
            raise InputError(f"{path}: one {what} of {size} decodes to more than {limit:,} bytes")


def _lengths(path: Node, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**40 for item in value):
        raise InputError(f"{path}: {str(value)[:60]} is no shape")
    return tuple(value)


def _type(path: Node, value: object) -> np.dtype[Any]:
    try:
        found = np.dtype(value) if isinstance(value, str) else np.dtype(object)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in _KINDS:
        raise InputError(f"{path}: holds {str(value)[:40]!r}; expected real numbers")
    return found


def finite(value: object) -> float | None:
    """A JSON value as a finite number; None where it is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if np.isfinite(number) else None
