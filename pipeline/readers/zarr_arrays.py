"""Arrays of Zarr stores from outside, format 2 or 3, on disk: their metadata are checked before Zarr opens them.

Zarr runs whatever codec an array's metadata name, and one of them (`pickle`) runs code. So only plain compression is
let through, and sizes are limited before anything is decoded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import Array
from cubeloom.untrusted import BLOCK_LIMIT, DECODED_LIMIT, load_json

from .rasters import file_state

METADATA_LIMIT = 16 * 2**20
"""Bytes of one metadata document; those of an EOPF product's root have about 0.1 MiB."""
CODECS = frozenset({"blosc", "zstd", "zlib", "gzip", "lz4", "shuffle"})
"""Codecs of format 2 that only compress."""
CODECS_3 = frozenset({"bytes", "blosc", "zstd", "gzip", "crc32c", "transpose"})
"""Codecs of format 3 that only compress, check or reorder."""
_KINDS = "uif"


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An array on disk.

    Attributes:
        path: its folder.
        shape: as stored.
        chunks: shape of a chunk.
        dtype: NumPy name of the numbers' type.
        fill: what a missing chunk stands for; None where not stated.
        attributes: JSON-like.
    """

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float | None
    attributes: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ArrayFile":
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

    def read(self, window: tuple[slice, ...]) -> Array:
        """Numbers of a window, as stored.

        Raises:
            InputError: a chunk is damaged.
        """
        try:
            return np.asarray(_opened(self.path, file_state(self._metadata))[window])
        except (ValueError, RuntimeError, OSError, TypeError, KeyError) as error:
            raise InputError(f"{self.path}: a chunk cannot be decoded ({error}); fetch the product again") from error

    def files(self) -> Iterator[Path]:
        """All files of the array, in the order of their paths."""
        return (path for path in sorted(self.path.rglob("*")) if path.is_file())

    @property
    def _metadata(self) -> Path:
        new = self.path / "zarr.json"
        return new if new.is_file() else self.path / ".zarray"


def attributes(path: Path) -> dict[str, Any]:
    """Attributes of a group or an array; empty where it has none.

    Raises:
        InputError: the document is no JSON object, or too large.
    """
    if (path / "zarr.json").is_file():
        found = _object(path / "zarr.json").get("attributes", {})
        return found if isinstance(found, dict) else {}
    return _object(path / ".zattrs") if (path / ".zattrs").is_file() else {}


@lru_cache(maxsize=256)
def _opened(path: Path, state: tuple[int, int]) -> Any:  # noqa: ANN401 - Zarr's arrays have several types
    """The array that Zarr opens; the state of its metadata is there to key the cache."""
    return zarr.open_array(str(path), mode="r")


def _object(path: Path) -> dict[str, Any]:
    content = load_json(path, METADATA_LIMIT)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object")
    return content


_Header = tuple[tuple[int, ...], tuple[int, ...], np.dtype[Any], float | None]


def _format_2(path: Path, document: Mapping[str, Any]) -> _Header:
    filters = document.get("filters") or []
    codecs = [document.get("compressor"), *(filters if isinstance(filters, list) else [filters])]
    _check_codecs(path, [codec.get("id") if isinstance(codec, dict) else codec for codec in codecs if codec], CODECS)
    return (
        _lengths(path, document.get("shape")),
        _lengths(path, document.get("chunks")),
        _type(path, document.get("dtype")),
        finite(document.get("fill_value")),
    )


def _format_3(path: Path, document: Mapping[str, Any]) -> _Header:
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


def _check_codecs(path: Path, names: list[Any], allowed: frozenset[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in allowed:
            raise InputError(f"{path}: is packed by {str(name)[:40]!r}; of arrays from outside only those packed by "
                             f"{', '.join(sorted(allowed))} are read")  # fmt: skip


def _check_size(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != len(chunks) or not 1 <= len(shape) <= 4 or min(chunks) < 1:
        raise InputError(f"{path}: has shape {shape} in chunks of {chunks}, which cannot be")
    for what, size, limit in (("array", shape, DECODED_LIMIT), ("chunk", chunks, BLOCK_LIMIT)):
        if prod(size) * dtype.itemsize > limit:
            raise InputError(f"{path}: one {what} of {size} decodes to more than {limit:,} bytes")


def _lengths(path: Path, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**40 for item in value):
        raise InputError(f"{path}: {str(value)[:60]} is no shape")
    return tuple(value)


def _type(path: Path, value: object) -> np.dtype[Any]:
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
