"""Products in an Icechunk repository: a push is one commit, and the repository keeps the history of all.

The repository lies in `products.icechunk` under the URL, so that documents stand beside it as plain files or objects.
A product is the group that its name says; its commit record is an array of bytes under `_commits`.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult

import icechunk
from icechunk import ConflictDetector, IcechunkStore, Repository, Session, Storage
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

from cubeloom.errors import ConfigError, CubeloomError, RetryableError, StoreError
from cubeloom.pipeline.chunks import digest
from cubeloom.pipeline.store import COMMIT

from .base import PATIENCE, Change, Product, checked_name, concurrently, other_product

REPOSITORY = "products.icechunk"
RECORDS = "_commits"
BRANCH = "main"
GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'

if "ICECHUNK_LOG" not in os.environ:  # it warns that commits to a folder may collide; `Place.turn` keeps them apart
    icechunk.set_logs_filter("error")

ATTEMPTS = 5
"""How often a product is written anew because another commit of the same names came first."""


def open_remote(parts: SplitResult, patience: float, uploads: int) -> "IcechunkRemote":
    """The remote at an `icechunk+…://` URL."""
    return IcechunkRemote(_place(parts, patience), uploads)


def open_files(parts: SplitResult) -> "IcechunkFiles":
    """The files of the product that the fragment of a URL names, as the repository holds it now."""
    name = checked_name(parts.fragment)
    folder, _, last = parts.path.rstrip("/").rpartition("/")
    if last != REPOSITORY:
        raise ConfigError(f"{parts.geturl()}: expected {parts.scheme}://…/{REPOSITORY}#NAME, as pushing gives it")
    place = _place(parts._replace(path=folder), PATIENCE)
    with _readable_errors(place, "cannot read"):
        return IcechunkFiles(place, name, place.reader().snapshot_id)


def _place(parts: SplitResult, patience: float) -> "Place":
    path = parts.path.rstrip("/")
    return Place(f"{parts.scheme}://{parts.netloc}{path}", parts.netloc, path, patience)


@dataclass(frozen=True)
class Place:
    """Where a repository and its documents are. Picklable: a copy opens it anew, from its own environment.

    Attributes:
        url: as it was given.
        bucket: of S3; empty for a folder of this machine.
        path: the prefix, or the folder.
        patience: seconds for which a request that fails in passing is tried again.
    """

    url: str
    bucket: str
    path: str
    patience: float

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "repository"}

    @cached_property
    def repository(self) -> Repository:
        """The repository, made where there is none."""
        with self.turn():
            return Repository.open_or_create(self.storage())

    def reader(self) -> Session:
        """A view of what is committed.

        Raises:
            StoreError: there is no repository.
        """
        if not Repository.exists(self.storage()):
            raise StoreError(f"{self.url}: holds no {REPOSITORY}; nothing was pushed there")
        return self.repository.readonly_session(BRANCH)

    def storage(self) -> Storage:
        """Where the repository's own files are, as Icechunk takes it."""
        if not self.bucket:
            return icechunk.local_filesystem_storage(f"{self.path}/{REPOSITORY}")
        endpoint = next(
            (os.environ[key] for key in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if key in os.environ), None
        )
        return icechunk.s3_storage(
            bucket=self.bucket,
            prefix="/".join(filter(None, (self.path.strip("/"), REPOSITORY))),
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            endpoint_url=endpoint,
            allow_http=os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
            from_env=True,
            force_path_style=endpoint is not None,
        )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn to change a folder of this machine; S3 itself refuses a change that comes too late."""
        if self.bucket:
            yield
            return
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


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
        return f"{self.url}/{REPOSITORY}#{checked_name(name)}"

    def stands(self, name: str, commit_sha256: str) -> bool:
        """Whether a product stands whose commit record has this digest."""
        checked_name(name)
        with _readable_errors(self.place, f"cannot look for {name}"):
            if not Repository.exists(self.place.storage()):
                return False
            record = _read_record(self.place.reader().store, name)
        return record is not None and digest(record) == commit_sha256

    def push(self, product: Path, name: str) -> None:
        """Copy a finished product in one commit; see `Remote.push`."""
        pushed = Product.read(product)
        checked_name(name)
        with _readable_errors(self.place, f"cannot write {name}"):
            self._make_groups(name)
            for _ in range(ATTEMPTS):
                session = self.place.repository.writable_session(BRANCH)
                if self._done(session.store, name, pushed):
                    return
                self._write(session.store, name, pushed)
                if self._commit(session, f"push {name}"):
                    return
        raise RetryableError(f"{self.href(name)}: others committed {ATTEMPTS} times while it was written; push again")

    def delete(self, name: str) -> None:
        """Remove a product by a commit; the history keeps its bytes until Icechunk's garbage collection."""
        record = _record(checked_name(name))
        with _readable_errors(self.place, f"cannot delete {name}"):
            for _ in range(ATTEMPTS):
                session = self.place.repository.writable_session(BRANCH)
                if not sync(session.store.exists(f"{record}/zarr.json")):
                    return
                sync(session.store.delete_dir(record))
                sync(session.store.delete_dir(name))
                if self._commit(session, f"delete {name}"):
                    return
        raise RetryableError(f"{self.href(name)}: others committed {ATTEMPTS} times while it was to be deleted")

    def point(self, name: str, document: bytes) -> None:
        """Put a document in place of what stands."""
        self.edit(name, lambda _: document)

    def edit(self, name: str, change: Change) -> None:
        """Put in place what `change` makes of the document that stands."""
        if self.place.bucket:
            from .bucket import Bucket
            from .objects import ObjectRemote

            bucket = Bucket(self.place.bucket, self.place.path.strip("/"), self.place.patience)
            ObjectRemote(bucket, self.uploads).edit(name, change)
            return
        file = Path(self.place.path) / checked_name(name)
        with self.place.turn():
            stands = file.read_bytes() if file.is_file() else None
            wanted = change(stands)
            if wanted != stands:
                _replace(file, wanted)

    def _done(self, store: IcechunkStore, name: str, pushed: Product) -> bool:
        record = _read_record(store, name)
        if record is not None and record != pushed.record:
            raise other_product(self.href(name), record, pushed)
        return record is not None

    def _make_groups(self, name: str) -> None:
        """Commit the groups above a product, so that pushes of products beside each other do not collide over them."""
        above = [*PurePosixPath(name).parents, *PurePosixPath(_record(name)).parents]
        while True:
            session = self.place.repository.writable_session(BRANCH)
            keys = {f"{group}/zarr.json".removeprefix("./") for group in map(str, above)}
            missing = [key for key in sorted(keys, key=len) if not sync(session.store.exists(key))]
            for key in missing:
                _set(session.store, key, GROUP)
            if not missing or self._commit(session, f"groups for {name}"):
                return

    def _write(self, store: IcechunkStore, name: str, pushed: Product) -> None:
        """Write all files of a product into a session: metadata first, from the root downwards, then the chunks."""
        metadata = sorted(
            (key for key in pushed.hashes if key.endswith("zarr.json")), key=lambda key: (key.count("/"), key)
        )
        for key in metadata:
            _set(store, f"{name}/{key}", pushed.content(key))
        chunks = [key for key in pushed.hashes if not key.endswith("zarr.json")]
        workers = pushed.workers(self.uploads)
        concurrently(lambda key: _set(store, f"{name}/{key}", pushed.content(key)), chunks, workers)
        _set(store, f"{_record(name)}/zarr.json", _bytes_array(len(pushed.record)))
        _set(store, f"{_record(name)}/c/0", pushed.record)

    def _commit(self, session: Session, message: str) -> bool:
        """Commit, after other commits that touch other names; False where one came first that touches the same."""
        try:
            with self.place.turn():
                session.commit(message, rebase_with=ConflictDetector())
        except (icechunk.ConflictError, icechunk.RebaseFailedError):
            return False
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
        with _readable_errors(self.place, f"cannot read {self.name}/{key}"):
            if key == COMMIT:
                return _read_record(self._store, self.name)
            return _get(self._store, f"{self.name}/{key}")

    def zarr_store(self) -> tuple[Any, str]:
        """The repository, and the group of the product in it."""
        return self._store, self.name

    def readable_errors(self, what: str) -> AbstractContextManager[None]:
        """Turn the errors of Icechunk into ours."""
        return _readable_errors(self.place, f"{self.name}: {what}")


def _record(name: str) -> str:
    return f"{RECORDS}/{name}"


def _read_record(store: IcechunkStore, name: str) -> bytes | None:
    record = _record(name)
    return _get(store, f"{record}/c/0") if sync(store.exists(f"{record}/zarr.json")) else None


def _get(store: IcechunkStore, key: str) -> bytes | None:
    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def _set(store: IcechunkStore, key: str, data: bytes) -> None:
    sync(store.set(key, cpu.Buffer.from_bytes(data)))


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


@contextmanager
def _readable_errors(place: Place, what: str) -> Iterator[None]:
    """Turn Icechunk's errors into ours; of those about S3 no word is repeated, for it may be a credential."""
    problem: CubeloomError
    try:
        yield
        return
    except (icechunk.IcechunkError, icechunk.ConflictError, OSError) as error:
        if place.bucket:
            problem = RetryableError(f"{place.url}: {what}: the server does not answer as it should; try again later")
        else:
            problem = StoreError(f"{place.url}: {what}: {str(error).strip().splitlines()[0]}")
    raise problem
