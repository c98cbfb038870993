"""Products in a remote as folders of files, which the reader of stores reads as it reads those of this machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

from cubeloom.errors import StoreError
from cubeloom.pipeline.chunks import EMPTY, digest
from cubeloom.pipeline.store import COMMIT

from .base import PATIENCE, module_of, split_url

Answer = TypeVar("Answer")


class Files(Protocol):
    """The files of one product behind a network. Picklable; a copy connects anew."""

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a file, or None; errors as `Remote`."""
        ...

    def zarr_store(self) -> tuple[Any, str]:
        """A store that Zarr reads and nothing writes, and the path of the product in it."""
        ...

    def through(self, what: str, read: Callable[[], Answer]) -> Answer:
        """What `read` gives, which uses `zarr_store`; its errors become ours, and say `what` cannot be done."""
        ...


@dataclass(frozen=True)
class RemoteFolder:
    """A product in a remote; whatever is read is held against the commit record.

    Attributes:
        url: where it is, as messages name it.
        files: its files.
        hashes: sha256 (hex) of every file by its path, once the commit record is read; of no file for an empty chunk.
    """

    url: str
    files: Files
    hashes: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, key: str, /) -> "RemoteFile":
        return RemoteFile(self, key)

    def listing(self, commit: Mapping[str, Any]) -> Self:
        """This folder, of which the commit record says what is in it."""
        return replace(self, hashes={**commit["metadata"], **commit["chunks"]})


@dataclass(frozen=True)
class RemoteFile:
    """A file of a product in a remote."""

    folder: RemoteFolder
    key: str

    def read_bytes(self) -> bytes:
        """All its bytes, checked against the commit record once that is known.

        Raises:
            FileNotFoundError: there is none and need not be: the commit record itself, or an empty chunk.
            StoreError: it is missing, or its bytes are others.
            RetryableError: the server does not answer.
        """
        folder, expected = self.folder, (self.folder.hashes or {}).get(self.key)
        if expected == EMPTY:  # known without asking the server
            raise FileNotFoundError(self.key)
        data = folder.files.fetch(self.key)
        if self.key == COMMIT or folder.hashes is None:
            if data is None:
                raise FileNotFoundError(self.key)
            return data
        if data is None:
            raise StoreError(f"{folder}: {self.key} is missing; the product was deleted or damaged")
        if digest(data) != expected:
            raise StoreError(
                f"{folder}: {self.key} does not match its sha256 in the commit record; push the product again"
            )
        return data


def open_folder(url: str, patience: float = PATIENCE) -> RemoteFolder:
    """The product at a URL as `Remote.href` gives it.

    Args:
        url: of the product.
        patience: seconds for which a request that fails in passing is tried again.

    Raises:
        ConfigError: the URL is not one of a product in a remote.
    """
    parts = split_url(url)
    return RemoteFolder(url, module_of(parts).open_files(parts, patience))
