"""Products under a prefix of an S3 bucket, one object a file.

S3 has no rename, but every write is whole, reads see the latest write, and a write can be made to depend on what
stands. So a product is uploaded object by object and its commit record last: readers take a prefix without one for
nothing. A claim, written only where there is none, keeps two different products from being mixed under one name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from zarr.storage import ObjectStore

from cubeloom.errors import RetryableError, StoreError
from cubeloom.pipeline.chunks import digest
from cubeloom.pipeline.store import COMMIT

from .base import Change, Product, concurrently, document_name, other_product, product_name
from .bucket import Answer, Bucket, answered

CLAIM = "_CLAIM.json"
"""Says which product is being pushed under a name, until its commit record stands."""

DELETION = b'{"state": "being deleted"}\n'

RACES = 100
"""How often a document is made anew because another writer was faster; each time, one of them was done."""


def open_remote(parts: SplitResult, patience: float, uploads: int) -> "ObjectRemote":
    """The remote at an `s3://` URL."""
    return ObjectRemote(Bucket(parts.netloc, parts.path.strip("/"), patience), uploads)


def open_files(parts: SplitResult, patience: float) -> "ObjectFiles":
    """The files of the product at an `s3://` URL."""
    return ObjectFiles(Bucket(parts.netloc, parts.path.strip("/"), patience))


@dataclass(frozen=True)
class ObjectFiles:
    """The files of a product, each an object below the bucket's prefix."""

    bucket: Bucket

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a file, or None."""
        found = self.bucket.read(key)
        return None if found is None else found.data

    def zarr_store(self) -> tuple[Any, str]:
        """The bucket, whose prefix is the product."""
        return ObjectStore(self.bucket.store, read_only=True), ""

    def through(self, what: str, read: Callable[[], Answer]) -> Answer:
        """What `read` gives, or our error in place of obstore's."""
        return answered(f"{self.bucket}: {what}", read)


@dataclass(frozen=True)
class ObjectRemote:
    """A `Remote` on a bucket. Uploads are checked against the commit record, and by the server against their hash."""

    bucket: Bucket
    uploads: int

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return str(self.bucket)

    def href(self, name: str) -> str:
        """The URL of a product."""
        return f"{self.url}/{product_name(name)}"

    def stands(self, name: str, commit_sha256: str) -> bool:
        """Whether a product stands whose commit record has this digest."""
        marker = self.bucket.read(f"{product_name(name)}/{COMMIT}")
        return marker is not None and digest(marker.data) == commit_sha256

    def push(self, product: Path, name: str) -> None:
        """Copy a finished product; see `Remote.push`."""
        product_name(name)
        pushed = Product.read(product)
        if not self._done(name, pushed):
            self._claim(name, pushed)
            if not self._done(name, pushed):  # between the first look and the claim another may have come and gone
                self._fill(name, pushed)
                self._mark(name, pushed)
        self.bucket.delete([f"{name}/{CLAIM}"])

    def point(self, name: str, document: bytes) -> None:
        """Put a document in place of what stands."""
        self.edit(name, lambda _: document)

    def edit(self, name: str, change: Change) -> None:
        """Put in place what `change` makes of the document that stands."""
        document_name(name)
        for _ in range(RACES):
            stands = self.bucket.read(name)
            wanted = change(stands.data if stands else None)
            if stands and stands.data == wanted:
                return
            if self.bucket.replace(name, wanted, stands.tag) if stands else self.bucket.create(name, wanted):
                return
        raise RetryableError(f"{self.url}/{name}: others changed it {RACES} times while it was to be written")

    def delete(self, name: str) -> None:
        """Remove a product, its commit record first. The claim goes last, so that no push comes in between."""
        claim, marker = (f"{product_name(name)}/{part}" for part in (CLAIM, COMMIT))
        there = self.bucket.sizes(name)
        if there:
            self.bucket.write(claim, DELETION, digest(DELETION))
            self.bucket.delete([marker])
            self.bucket.delete(self.bucket.sizes(name).keys() - {marker, claim})
            self.bucket.delete([claim])

    def _done(self, name: str, pushed: Product) -> bool:
        """Whether this product stands already; another one is an error."""
        marker = self.bucket.read(f"{name}/{COMMIT}")
        if marker is None or marker.data == pushed.record:
            return marker is not None
        self.bucket.delete([f"{name}/{CLAIM}"])  # ours, perhaps; of no use to anyone where a product stands
        raise other_product(self.href(name), marker.data, pushed)

    def _claim(self, name: str, pushed: Product) -> None:
        """Take the name for this product. Who pushes the very same product may join in: it writes the same bytes."""
        if not self.bucket.create(f"{name}/{CLAIM}", _claim_of(pushed)):
            self._require_claim(name, pushed)

    def _require_claim(self, name: str, pushed: Product) -> None:
        found = self.bucket.read(f"{name}/{CLAIM}")
        if found is None:
            if not self._done(name, pushed):  # whoever joined in may have finished first
                raise RetryableError(f"{self.href(name)}: was deleted while it was pushed; push again")
        elif found.data != _claim_of(pushed):
            raise StoreError(
                f"{self.href(name)}: another product is being pushed there or deleted, or that broke off; "
                "if nothing is at work on it, delete it and push again"
            )

    def _fill(self, name: str, pushed: Product) -> None:
        """Upload what is missing, and remove what does not belong: a chunk that should be empty would be read."""
        there = self.bucket.sizes(name)
        wanted = {f"{name}/{key}": key for key in pushed.hashes}
        sizes = {path: pushed.size(key) for path, key in wanted.items()}

        def upload(path: str) -> None:
            sha256 = pushed.hashes[wanted[path]]
            if there.get(path) != sizes[path] or not self.bucket.holds(path, sha256):
                self.bucket.write(path, pushed.content(wanted[path]), sha256)

        concurrently(upload, wanted, pushed.workers(self.uploads))
        self.bucket.delete(there.keys() - wanted.keys() - {f"{name}/{CLAIM}", f"{name}/{COMMIT}"})
        self._require_all(name, sizes)

    def _require_all(self, name: str, sizes: Mapping[str, int]) -> None:
        there = self.bucket.sizes(name)
        gone = [path for path, size in sizes.items() if there.get(path) != size]
        if gone:
            raise RetryableError(f"{self.url}/{min(gone)}: vanished or changed after it was uploaded; push again")

    def _mark(self, name: str, pushed: Product) -> None:
        """Write the commit record, upon which the product stands; one that is there already may be our own."""
        self._require_claim(name, pushed)
        if not self.bucket.create(f"{name}/{COMMIT}", pushed.record) and not self._done(name, pushed):
            raise RetryableError(f"{self.href(name)}: its commit record could not be written; push again")


def _claim_of(pushed: Product) -> bytes:
    return json.dumps({"state": "being pushed", "commit_sha256": pushed.commit_sha256}).encode()
