"""Products in an Icechunk repository: a push is one commit, and the repository keeps the history of all.

The repository lies in `products.icechunk` under the URL, so that documents stand beside it as plain files or objects.
A product is the group that its name says; its commit record is an array of bytes under `_commits`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult

from icechunk import IcechunkStore

from cubeloom.errors import ConfigError
from cubeloom.pipeline.chunks import digest
from cubeloom.pipeline.store import COMMIT

from .base import Change, Product, concurrently, document_name, other_product, product_name
from .repository import REPOSITORY, Answer, Place, get, holds, put, remove

RECORDS = "_commits"
GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'


def open_remote(parts: SplitResult, patience: float, uploads: int) -> "IcechunkRemote":
    """The remote at an `icechunk+…://` URL."""
    return IcechunkRemote(Place.of(parts, patience), uploads)


def open_files(parts: SplitResult, patience: float) -> "IcechunkFiles":
    """The files of the product that the fragment of a URL names, as the repository holds it now."""
    name = product_name(parts.fragment)
    folder, _, last = parts.path.rstrip("/").rpartition("/")
    if last != REPOSITORY:
        raise ConfigError(f"{parts.geturl()}: expected {parts.scheme}://…/{REPOSITORY}#NAME, as pushing gives it")
    place = Place.of(parts._replace(path=folder), patience)
    return place.answered("cannot read", lambda: IcechunkFiles(place, name, place.reader().snapshot_id))


@dataclass(frozen=True)
class IcechunkRemote:
    """A `Remote` on an Icechunk repository."""

    place: Place
    uploads: int

    @property
    def url(self) -> str:
        """As it was given."""
        return self.place.url

    def href(self, name: str) -> str:
        """The URL of a product."""
        return f"{self.url}/{REPOSITORY}#{product_name(name)}"

    def stands(self, name: str, commit_sha256: str) -> bool:
        """Whether a product stands whose commit record has this digest."""
        product_name(name)

        def stands() -> bool:
            record = _read_record(self.place.reader().store, name) if self.place.exists else None
            return record is not None and digest(record) == commit_sha256

        return self.place.answered(f"cannot look for {name}", stands)

    def push(self, product: Path, name: str) -> None:
        """Copy a finished product in one commit; see `Remote.push`."""
        product_name(name)
        pushed = Product.read(product)

        def push() -> None:
            self.place.commit(f"groups for {name}", lambda store: _make_groups(store, name))
            self.place.commit(f"push {name}", lambda store: self._write(store, name, pushed))

        self.place.answered(f"cannot write {name}", push)

    def delete(self, name: str) -> None:
        """Remove a product by a commit; the history keeps its bytes until Icechunk's garbage collection."""
        product_name(name)

        def delete(store: IcechunkStore) -> bool:
            if not holds(store, _record(name)):
                return False
            remove(store, _record(name))
            remove(store, name)
            return True

        self.place.answered(f"cannot delete {name}", lambda: self.place.commit(f"delete {name}", delete))

    def point(self, name: str, document: bytes) -> None:
        """Put a document in place of what stands."""
        self.edit(name, lambda _: document)

    def edit(self, name: str, change: Change) -> None:
        """Put in place what `change` makes of the document that stands."""
        document_name(name)
        if self.place.bucket:
            from .bucket import Bucket
            from .objects import ObjectRemote

            bucket = Bucket(self.place.bucket, self.place.path.strip("/"), self.place.patience)
            ObjectRemote(bucket, self.uploads).edit(name, change)
        else:
            file = Path(self.place.path) / name
            self.place.answered(f"cannot write {name}", lambda: self._edit_file(file, change))

    def _edit_file(self, file: Path, change: Change) -> None:
        with self.place.turn():
            stands = file.read_bytes() if file.is_file() else None
            wanted = change(stands)
            if wanted != stands:
                _replace(file, wanted)

    def _write(self, store: IcechunkStore, name: str, pushed: Product) -> bool:
        """Write a product into a session, unless it stands: metadata from the root downwards, chunks, its record."""
        record = _read_record(store, name)
        if record is not None:
            if record != pushed.record:
                raise other_product(self.href(name), record, pushed)
            return False
        nodes = [key for key in pushed.hashes if key.endswith("zarr.json")]
        for key in sorted(nodes, key=lambda key: (key.count("/"), key)):
            put(store, f"{name}/{key}", pushed.content(key))
        chunks = pushed.hashes.keys() - set(nodes)
        workers = pushed.workers(self.uploads)
        concurrently(lambda key: put(store, f"{name}/{key}", pushed.content(key)), sorted(chunks), workers)
        put(store, f"{_record(name)}/zarr.json", _bytes_array(len(pushed.record)))
        put(store, f"{_record(name)}/c/0", pushed.record)
        return True


@dataclass(frozen=True)
class IcechunkFiles:
    """The files of a product in one snapshot of a repository."""

    place: Place
    name: str
    snapshot: str

    def __getstate__(self) -> dict[str, object]:
        return {"place": self.place, "name": self.name, "snapshot": self.snapshot}

    @cached_property
    def _store(self) -> IcechunkStore:
        return self.place.repository.readonly_session(snapshot_id=self.snapshot).store

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a file, or None."""

        def fetch() -> bytes | None:
            is_record = key == COMMIT
            return _read_record(self._store, self.name) if is_record else get(self._store, f"{self.name}/{key}")

        return self.place.answered(f"cannot read {self.name}/{key}", fetch)

    def zarr_store(self) -> tuple[Any, str]:
        """The repository, and the group of the product in it."""
        return self._store, self.name

    def through(self, what: str, read: Callable[[], Answer]) -> Answer:
        """What `read` gives, or our error in place of Icechunk's."""
        return self.place.answered(f"{self.name}: {what}", read)


def _record(name: str) -> str:
    return f"{RECORDS}/{name}"


def _read_record(store: IcechunkStore, name: str) -> bytes | None:
    return get(store, f"{_record(name)}/c/0") if holds(store, _record(name)) else None


def _make_groups(store: IcechunkStore, name: str) -> bool:
    """Make the groups above a product, in a commit of their own: products beside each other share them."""
    above = {*PurePosixPath(name).parents, *PurePosixPath(_record(name)).parents}
    keys = [(group / "zarr.json").as_posix() for group in sorted(above, key=lambda group: len(group.parts))]
    missing = [key for key in keys if get(store, key) is None]
    for key in missing:
        put(store, key, GROUP)
    return bool(missing)


def _bytes_array(size: int) -> bytes:
    """Metadata of an array that holds so many bytes in one chunk."""
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }
    return json.dumps(metadata).encode()


def _replace(file: Path, content: bytes) -> None:
    """Replace a local file in one step that survives a power cut."""
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
