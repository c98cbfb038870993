"""A prefix of an S3 bucket through obstore: the few requests that publishing needs, and what their failures mean."""

import mimetypes
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from cubeloom.errors import ConfigError, CubeloomError, RetryableError, StoreError

from .environment import s3_endpoint

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import S3Config

Answer = TypeVar("Answer")

ATTEMPTS = 3
"""How often a request is made that obstore gave up on: it repeats what is safe to repeat blindly, and nothing else."""

REQUEST_SECONDS = 300
"""Limit for one request; 8 uploads of 8 MB still end in time at 220 kB/s."""

SHA256 = "sha256"
"""Name of the metadata of an object that holds its digest; S3's own ETag is one for some ways of encryption only."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read: its bytes, and the tag that tells this version of it from any other."""

    data: bytes
    tag: str


@dataclass(frozen=True)
class Bucket:
    """Objects below a prefix; keys are relative to it. Picklable: a copy connects anew, from its own environment."""

    name: str
    prefix: str
    patience: float

    def __str__(self) -> str:
        return "/".join(filter(None, (f"s3://{self.name}", self.prefix)))

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "prefix": self.prefix, "patience": self.patience}

    @cached_property
    def store(self) -> S3Store:
        """The client, which keeps its connections open.

        Raises:
            ConfigError: the `AWS_*` environment is not one that it takes.
        """
        # obstore takes what belongs to the HTTP client here too; given as such, it would hide AWS_ALLOW_HTTP and others
        settings = {"timeout": os.environ.get("AWS_TIMEOUT", f"{REQUEST_SECONDS} seconds")}
        endpoint = s3_endpoint()
        if endpoint is not None:
            settings["endpoint"] = endpoint
        try:
            return S3Store(
                self.name,
                prefix=self.prefix or None,
                config=cast("S3Config", settings),
                retry_config={
                    "max_retries": 12,
                    "retry_timeout": timedelta(seconds=self.patience / ATTEMPTS),
                    "backoff": {
                        "init_backoff": timedelta(seconds=0.1),
                        "max_backoff": timedelta(seconds=10),
                        "base": 2,
                    },
                },
            )
        except (BaseError, ValueError):  # its message may repeat the environment
            problem = ConfigError(f"{self}: the AWS_* environment does not describe a store; see docs/object_stores.md")
        raise problem

    def read(self, key: str) -> Stored | None:
        """An object, or None."""

        def read() -> Stored | None:
            try:
                found = obstore.get(self.store, key)
            except FileNotFoundError:
                return None
            return Stored(bytes(found.bytes()), found.meta["e_tag"] or "")

        return self._ask("read", key, read)

    def holds(self, key: str, sha256: str) -> bool:
        """Whether an object is there that was uploaded under this digest."""

        def holds() -> bool:
            try:
                found = obstore.get(self.store, key, options={"head": True})
            except FileNotFoundError:
                return False
            return found.attributes.get(SHA256) == sha256

        return self._ask("look at", key, holds)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object below a folder, by key."""

        def sizes() -> dict[str, int]:
            batches = obstore.list(self.store, prefix=f"{folder}/", chunk_size=1000)
            return {found["path"]: found["size"] for batch in batches for found in batch}

        return self._ask("list", folder, sizes)

    def write(self, key: str, data: bytes, sha256: str) -> None:
        """Put an object, whatever stood there; one request, so it is there whole or not at all."""
        described = _described(key) | {SHA256: sha256}
        self._ask("write", key, lambda: obstore.put(self.store, key, data, attributes=described, use_multipart=False))

    def create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none; False if there is one, which may be this one: an answer can be lost."""
        return self._write_if(key, data, None)

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Put an object in place of the version that has this tag; False if another stands, as for `create`."""
        return self._write_if(key, data, tag)

    def _write_if(self, key: str, data: bytes, tag: str | None) -> bool:
        def write() -> bool:
            mode = {"e_tag": tag} if tag is not None else "create"
            try:
                obstore.put(self.store, key, data, attributes=_described(key), mode=cast("obstore.PutMode", mode))
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._ask("write", key, write)

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; those that are not there are no error."""
        if keys:
            self._ask("delete", min(keys), lambda: obstore.delete(self.store, sorted(keys)))

    def _ask(self, verb: str, key: str, request: Callable[[], Answer]) -> Answer:
        return answered(f"{self}/{key}: cannot {verb}", request)


def _described(key: str) -> "Attributes":
    return {"Content-Type": mimetypes.guess_type(key)[0] or "application/octet-stream"}


def answered(what: str, request: Callable[[], Answer]) -> Answer:
    """The answer to a request, made again where it failed in passing; else our error in place of obstore's.

    Args:
        what: begins the message, up to "cannot write".
        request: asks the server, and may do so again.
    """
    for _ in range(ATTEMPTS):
        try:
            return request()
        except (BaseError, NotImplementedError, OSError) as error:  # its text may repeat keys and signatures
            problem = _meaning(what, error)
        if not isinstance(problem, RetryableError):
            break
    raise problem  # not in the handler, and not in a `with`: both would keep the other error as its context


def _meaning(what: str, error: Exception) -> CubeloomError:
    said = _said(error)
    if "/latest/api/token" in str(error):  # where a machine of Amazon's would get them
        return StoreError(f"{what}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StoreError(f"{what}: access is denied{said}; check the credentials in the AWS_* environment")
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in said:
        return StoreError(f"{what}: there is no such bucket{said}; check its name, AWS_REGION and AWS_ENDPOINT_URL")
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{what}: conditional writes are off; unset AWS_CONDITIONAL_PUT")
    if re.match(r" \(4(?!08|29)", said):
        return StoreError(f"{what}: the server refuses{said}")
    return RetryableError(f"{what}: the server does not answer as it should{said}; try again later")


def _said(error: Exception) -> str:
    """Status and code of an answer, or how the connection failed, in brackets: no more of it is safe to show."""
    text = str(error)
    found = (
        re.search(pattern, text) for pattern in (r"status code: (\d{3})", r"<Code>(\w{1,40})</Code>", r"kind: (\w+)")
    )
    said = " ".join(match[1] for match in found if match)
    return f" ({said})" if said else ""
