"""What every remote promises, the URLs that name one, and the finished product that is pushed to it.

A product is staged and finished on a local disk; then it is copied whole. There is no rename in an object store, so
what makes a product visible is its commit record, which goes up last: a reader that finds none sees no product.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from cubeloom.errors import ConfigError, StoreError
from cubeloom.pipeline.chunks import digest, read_chunk
from cubeloom.pipeline.store import COMMIT, read_commit

from .ending import end_after_calls

SCHEMES = {"s3": "objects", "icechunk+s3": "icechunk", "icechunk+file": "icechunk"}
"""The module that serves a URL, by its scheme."""

EXTRAS = {"obstore": "s3", "icechunk": "icechunk"}
"""The extra that installs a library which not everybody has."""

PATIENCE = 180.0
"""Seconds for which a request that fails in passing is tried again."""

UPLOADS = 8
"""Objects under way at once."""

HELD = 256 * 2**20
"""Bytes of chunks in memory at most: fewer objects are under way at once where chunks are large."""

Change = Callable[[bytes | None], bytes]
"""Makes a document's new content of what stands (None: nothing). It may be called again, also on its own result."""


class Remote(Protocol):
    """Products and documents under one URL. Names are relative paths with slashes; those of products end in `.zarr`.

    All methods raise `RetryableError` when the network or the server fails beyond patience, and `StoreError` when
    trying again would not help; no message holds a credential.
    """

    url: str

    def push(self, product: Path, name: str) -> None:
        """Copy a finished product; readers see it whole or not at all. Pushing it again completes what is missing.

        Args:
            product: the local store, with its commit record.
            name: what it shall be called.

        Raises:
            StoreError: a local file is not what the commit record says, or another product goes by that name.
        """
        ...

    def stands(self, name: str, commit_sha256: str) -> bool:
        """Whether a product stands whose commit record has this digest (hex)."""
        ...

    def point(self, name: str, document: bytes) -> None:
        """Put a document (a STAC item, which points at a product) in place of what stands, in one step."""
        ...

    def edit(self, name: str, change: Change) -> None:
        """Put in place what `change` makes of the document that stands; whoever loses a race makes it anew."""
        ...

    def href(self, name: str) -> str:
        """The URL of a product, as `open_scene` takes it."""
        ...

    def delete(self, name: str) -> None:
        """Remove a product: it ceases to be one first, then its parts go. Nothing there is no error."""
        ...


def open_remote(url: str, *, patience: float = PATIENCE, uploads: int = UPLOADS) -> Remote:
    """The remote at a URL; nothing is read or written yet.

    Args:
        url: `s3://bucket/prefix`, `icechunk+s3://bucket/prefix` or `icechunk+file:///folder`. Endpoint, region and
            credentials come from the `AWS_*` environment.
        patience: seconds for which a request that fails in passing is tried again.
        uploads: how many objects may be under way at once.

    Raises:
        ConfigError: the URL is of another kind, or holds what a URL may not; or the extra it needs is not installed.
    """
    parts = split_url(url)
    remote: Remote = module_of(parts).open_remote(parts, patience, uploads)
    return remote


def module_of(parts: SplitResult) -> ModuleType:
    """The module that serves a URL.

    Raises:
        ConfigError: the extra that it needs is not installed.
    """
    end_after_calls()
    try:
        return import_module(f".{SCHEMES[parts.scheme]}", __package__)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
    raise ConfigError(f"{parts.scheme}://{parts.netloc}: needs the extra {extra}: pip install 'cubeloom[{extra}]'")


def split_url(url: str) -> SplitResult:
    """The parts of the URL of a remote, or of a product in one.

    Raises:
        ConfigError: as `open_remote`; a URL with a user or a query is not repeated, for it may hold a secret.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise ConfigError(
            f"a {parts.scheme}:// URL holds a user or a query: leave them out and set the AWS_* environment instead"
        )
    if parts.scheme not in SCHEMES:
        expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(f"{url}: a remote begins with one of {expected}")
    if parts.scheme == "icechunk+file":
        if parts.netloc or not parts.path.strip("/"):
            raise ConfigError(f"{url}: expected icechunk+file:///folder with the folder's absolute path")
    elif not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
        raise ConfigError(
            f"{url}: {parts.netloc!r} is not the name of a bucket; expected {parts.scheme}://bucket/prefix"
        )
    if any(part in ("", ".", "..") for part in parts.path.strip("/").split("/")) and parts.path.strip("/"):
        raise ConfigError(f"{url}: a prefix has no empty parts and no dots alone")
    return parts


def product_name(name: str) -> str:
    """The name of a product, as it was given. Nothing but the product lies below it, so all that does may be removed.

    Raises:
        ConfigError: it is no path below the remote, or does not end in `.zarr`.
    """
    *above, last = _parts_of(name)
    if not last.endswith(".zarr") or any(part.endswith(".zarr") for part in above):
        raise ConfigError(f"{name!r} is no name for a product; expected a path that ends in .zarr, and nowhere before")
    return name


def document_name(name: str) -> str:
    """The name of a document, as it was given.

    Raises:
        ConfigError: it is no path below the remote, or leads into a product.
    """
    if any(part.endswith(".zarr") for part in _parts_of(name)):
        raise ConfigError(f"{name!r} is no name for a document; it would lie in a product")
    return name


def _parts_of(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or not re.fullmatch(r"[\w.+=@,() /-]+", name, re.ASCII):
        raise ConfigError(
            f"{name!r} is no name for a remote; expected a relative path such as scenes/ITEM/WORKFLOW.zarr"
        )
    return parts


@dataclass(frozen=True)
class Product:
    """A finished product on the local disk, as its commit record lists it.

    Attributes:
        path: its folder.
        record: the bytes of its commit record.
        hashes: sha256 (hex) of every other file, by its path in the product.
    """

    path: Path
    record: bytes
    hashes: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Product":
        """The product in a folder.

        Raises:
            StoreError: it has no commit record, or a damaged one.
        """
        commit = read_commit(path)
        hashes = {**commit["metadata"], **{key: known for key, known in commit["chunks"].items() if known}}
        return cls(path, (path / COMMIT).read_bytes(), hashes)

    @property
    def commit_sha256(self) -> str:
        """Digest of the commit record: two products are the same if theirs are."""
        return digest(self.record)

    def size(self, key: str) -> int:
        """Bytes of a file; 0 where it is missing, which reading it will tell."""
        file = self.path / key
        return file.stat().st_size if file.is_file() else 0

    def workers(self, uploads: int) -> int:
        """How many files may be held at once, `uploads` at most."""
        largest = max(map(self.size, self.hashes), default=1)
        return max(1, min(uploads, HELD // max(largest, 1)))

    def content(self, key: str) -> bytes:
        """The bytes of a file, checked against its hash.

        Raises:
            StoreError: it is missing, or its bytes are others.
        """
        data = read_chunk(self.path, key, self.hashes[key])
        assert data is not None  # `hashes` lists no empty chunks
        return data


def other_product(href: str, record: bytes, pushed: Product) -> StoreError:
    """The error where a product stands under the name of another; `record` is its commit record."""
    return StoreError(
        f"{href}: another product stands there; its commit record has sha256 {digest(record)[:12]}…, that of "
        f"{pushed.path} {pushed.commit_sha256[:12]}…. A published product is never written over: choose another name"
    )


def concurrently(action: Callable[[str], None], keys: Iterable[str], workers: int) -> None:
    """Act on every key; after the first failure no other is begun."""
    with ThreadPoolExecutor(workers, thread_name_prefix="upload") as pool:
        tasks = [pool.submit(action, key) for key in keys]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
