"""An Icechunk repository, on S3 or in a folder of this machine: opening it, its keys, and what its failures mean."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult

import icechunk
from icechunk import ConflictDetector, IcechunkStore, Repository, Session, Storage
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

from cubeloom.errors import CubeloomError, RetryableError, StoreError

from .environment import allows_http, s3_endpoint

REPOSITORY = "products.icechunk"
BRANCH = "main"

ATTEMPTS = 5
"""How often a commit is made anew because another one that touches the same names came first."""

if "ICECHUNK_LOG" not in os.environ:  # it warns that commits to a folder may collide; `Place.turn` keeps them apart
    icechunk.set_logs_filter("error")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Place:
    """Where a repository and its documents are. Picklable: a copy opens it anew, from its own environment.

    Attributes:
        url: as it was given.
        bucket: of S3; empty for a folder of this machine.
        path: the prefix, or the folder.
        patience: seconds for which the write of a document that fails in passing is tried again; in its repository,
            Icechunk decides.
    """

    url: str
    bucket: str
    path: str
    patience: float

    @classmethod
    def of(cls, parts: SplitResult, patience: float) -> "Place":
        """The place that a URL names."""
        path = parts.path.rstrip("/")
        return cls(f"{parts.scheme}://{parts.netloc}{path}", parts.netloc, path, patience)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "repository"}

    @cached_property
    def repository(self) -> Repository:
        """The repository, made where there is none."""
        with self.turn():
            return Repository.open_or_create(self.storage())

    @property
    def exists(self) -> bool:
        """Whether there is a repository yet."""
        return Repository.exists(self.storage())

    def reader(self) -> Session:
        """A view of what is committed.

        Raises:
            StoreError: there is no repository.
        """
        if not self.exists:
            raise StoreError(f"{self.url}: holds no {REPOSITORY}; nothing was pushed there")
        return self.repository.readonly_session(BRANCH)

    def commit(self, message: str, write: Callable[[IcechunkStore], bool]) -> None:
        """Commit what `write` does to the latest state, after other commits that touch other names.

        Args:
            message: of the commit.
            write: False where nothing is to be done. Called again where a commit that touches the same came first.

        Raises:
            RetryableError: that happened too often.
        """
        for _ in range(ATTEMPTS):
            session = self.repository.writable_session(BRANCH)
            if not write(session.store):
                return
            try:
                with self.turn():
                    session.commit(message, rebase_with=ConflictDetector())
            except (icechunk.ConflictError, icechunk.RebaseFailedError):
                continue
            return
        raise RetryableError(f"{self.url}: others committed {ATTEMPTS} times before this could: {message}; try again")

    def storage(self) -> Storage:
        """Where the repository's own files are, as Icechunk takes it."""
        if not self.bucket:
            return icechunk.local_filesystem_storage(f"{self.path}/{REPOSITORY}")
        endpoint = s3_endpoint()
        return icechunk.s3_storage(
            bucket=self.bucket,
            prefix="/".join(filter(None, (self.path.strip("/"), REPOSITORY))),
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            endpoint_url=endpoint,
            allow_http=allows_http(),
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

    def answered(self, what: str, request: Callable[[], Answer]) -> Answer:
        """What a request gives, or our error in place of Icechunk's; of those about S3 no word is repeated.

        Args:
            what: begins the message, up to "cannot write".
            request: uses the repository.
        """
        problem: CubeloomError
        try:
            return request()
        except (icechunk.IcechunkError, icechunk.ConflictError, OSError) as error:
            if self.bucket:
                said = "the server does not answer as it should; check the credentials, or try again later"
                problem = RetryableError(f"{self.url}: {what}: {said}")
            else:
                problem = StoreError(f"{self.url}: {what}: {str(error).strip().splitlines()[0]}")
        raise problem  # not in the handler, and not in a `with`: both would keep the other error as its context


def holds(store: IcechunkStore, node: str) -> bool:
    """Whether a group or array is there."""
    return sync(store.exists(f"{node}/zarr.json"))


def get(store: IcechunkStore, key: str) -> bytes | None:
    """The bytes under a key of a node that is there, or None."""
    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def put(store: IcechunkStore, key: str, data: bytes) -> None:
    """Put bytes under a key, in this session alone until it is committed."""
    sync(store.set(key, cpu.Buffer.from_bytes(data)))


def remove(store: IcechunkStore, node: str) -> None:
    """Remove a group or array with all that is below, in this session alone until it is committed."""
    sync(store.delete_dir(node))
