"""Zarr products of others behind a network: their metadata in one document, their chunks asked for one by one.

Nothing is listed: the consolidated metadata say which arrays there are. Zarr never sees the network. It decodes chunks
that were fetched before, by metadata that were checked before.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from cubeloom.errors import InputError
from cubeloom.network import Guard, HttpError, Network, again
from cubeloom.untrusted import BLOCK_LIMIT, parse_json

METADATA_LIMIT = 64 * 2**20
"""Bytes of the consolidated metadata of a product; those of EOPF have about 1 MiB."""
KNOWN_HOSTS = ("*.eodc.eu", "*.dataspace.copernicus.eu", "*.copernicus.eu")
"""Hosts that publish EOPF products; others are asked if they are in `CUBELOOM_HOSTS`."""
ATTEMPTS, PAUSE, PATIENCE = 5, 0.5, 60.0


class Files(Protocol):
    """Files below a URL. Picklable."""

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a file, or None where there is none."""
        ...


@dataclass(frozen=True)
class WebFiles:
    """Files below an `https://` URL, asked for under guard: listed hosts alone, no private addresses, no logins."""

    url: str

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    @cached_property
    def network(self) -> Network:
        """The session; a copy in another process has its own."""
        extra = [host.strip() for host in os.environ.get("CUBELOOM_HOSTS", "").split(",") if host.strip()]
        return Network(Guard((*KNOWN_HOSTS, *extra), os.environ.get("CUBELOOM_PRIVATE") == "1"))

    def fetch(self, key: str) -> bytes | None:
        """The bytes of a file, or None where the server has none.

        Raises:
            InputError: the host may not be asked, or refuses.
            RetryableError: it does not answer.
        """
        limit = METADATA_LIMIT if key.rpartition("/")[2] in _ROOTS else BLOCK_LIMIT

        def ask() -> bytes:
            with self.network.open_url(f"{self.url}/{quote(key)}", headers={"Accept-Encoding": "identity"}) as answer:
                return self.network.read(answer, limit)

        try:
            return again(ask, ATTEMPTS, PAUSE, PATIENCE)
        except HttpError as error:
            if error.status == 404:
                return None
            raise


_ROOTS = (".zmetadata", "zarr.json")


@dataclass(frozen=True, eq=False)
class RemoteStore:
    """A Zarr hierarchy behind a network.

    Attributes:
        url: where it is, as messages name it.
        files: its files.
        documents: every metadata document by its path (`measurements/.zattrs`, `measurements/zarr.json`).
        root: bytes of the consolidated metadata.
    """

    url: str
    files: Files
    documents: Mapping[str, Mapping[str, Any]]
    root: bytes

    @classmethod
    def open(cls, url: str, files: Files) -> "RemoteStore":
        """Fetch and read the consolidated metadata, of format 2 or 3.

        Raises:
            InputError: there are none, or they are damaged.
        """
        for name, read in ((".zmetadata", _format_2), ("zarr.json", _format_3)):
            data = files.fetch(name)
            if data is not None:
                if len(data) > METADATA_LIMIT:
                    raise InputError(f"{url}/{name}: has {len(data):,} bytes; at most {METADATA_LIMIT:,} are read")
                return cls(url, files, read(parse_json(data, f"{url}/{name}"), f"{url}/{name}"), data)
        raise InputError(
            f"{url}: neither .zmetadata nor zarr.json is there: no Zarr product, or one without consolidated metadata, "
            "which must be downloaded first"
        )


def _format_2(found: object, origin: str) -> dict[str, Mapping[str, Any]]:
    listed = found.get("metadata") if isinstance(found, dict) else None
    return _documents(listed, origin)


def _format_3(found: object, origin: str) -> dict[str, Mapping[str, Any]]:
    inner = found.get("consolidated_metadata") if isinstance(found, dict) else None
    listed = inner.get("metadata") if isinstance(inner, dict) else None
    nodes = {f"{path}/zarr.json": document for path, document in _documents(listed, origin).items()}
    assert isinstance(found, dict)  # or nothing were listed
    return {"zarr.json": {key: value for key, value in found.items() if key != "consolidated_metadata"}, **nodes}


def _documents(listed: object, origin: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(listed, dict) or not all(isinstance(document, dict) for document in listed.values()):
        raise InputError(f"{origin}: holds no consolidated metadata; download the product and open it here")
    return dict(listed)


@dataclass(frozen=True)
class RemoteNode:
    """A group, an array or a metadata document of a remote hierarchy; looks like a path as far as readers need it.

    Attributes:
        store: the hierarchy.
        key: its path in there; empty for the root.
    """

    store: RemoteStore
    key: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.store.url, self.key)))

    def __truediv__(self, name: str, /) -> "RemoteNode":
        return RemoteNode(self.store, "/".join(filter(None, (self.key, name))))

    @property
    def name(self) -> str:
        """The last part of the path; of the root, that of the URL."""
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "RemoteNode":
        """The group that holds it."""
        return RemoteNode(self.store, self.key.rpartition("/")[0])

    def is_file(self) -> bool:
        """Whether it is a metadata document."""
        return self.key in self.store.documents

    def is_dir(self) -> bool:
        """Whether it is a group or an array."""
        return not self.key or any(known.startswith(f"{self.key}/") for known in self.store.documents)

    def iterdir(self) -> Iterator["RemoteNode"]:
        """What is directly below it."""
        below = f"{self.key}/" if self.key else ""
        names = {known[len(below) :].partition("/")[0] for known in self.store.documents if known.startswith(below)}
        return (self / name for name in sorted(names))

    def document(self) -> dict[str, Any]:
        """The content of a metadata document."""
        return dict(self.store.documents[self.key])


_PRODUCT = re.compile(r"(S2[A-D]_MSIL(1C|2A)|S02MSIL(1C|2A))_[0-9A-Za-z_]+\.zarr")


def recognises(url: str) -> bool:
    """Whether a URL is, by its name, that of a Sentinel-2 product of EOPF: `https://host/…/S2A_MSIL2A_….zarr`."""
    parts = urlsplit(url)
    name = parts.path.rstrip("/").rpartition("/")[2]
    return parts.scheme in ("https", "http", "s3") and _PRODUCT.fullmatch(name) is not None


def open_root(url: str) -> RemoteNode:
    """The root of a product at an `https://` or `s3://` URL.

    Raises:
        InputError: nothing that can be read is there, or the host may not be asked.
        ConfigError: the URL holds what it may not, or an extra is not installed.
        RetryableError: the server does not answer.
    """
    url = url.rstrip("/")
    if urlsplit(url).scheme == "s3":
        from cubeloom.pipeline.remotes import open_folder

        return RemoteNode(RemoteStore.open(url, open_folder(url).files))
    if urlsplit(url).query or urlsplit(url).fragment:
        raise InputError("a URL of a Zarr product has no query: chunks are asked for below its path")
    return RemoteNode(RemoteStore.open(url, WebFiles(url)))
