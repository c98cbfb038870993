"""Finished products on their way to an object store: the output directory is where they are made and listed."""

import json
from dataclasses import dataclass
from pathlib import Path

from cubeloom.catalogs.documents import Document, read_document, write_json_atomic
from cubeloom.catalogs.records import SHA256_PREFIX
from cubeloom.pipeline.remotes import Remote, open_remote
from cubeloom.pipeline.store import COMMIT

from .layout import Layout


@dataclass(frozen=True)
class Outlet:
    """Copies products, their pictures and their items to a remote, under the names they have in the output directory.

    Attributes:
        remote: where they go. One output directory to a remote: its index lists the products of that directory.
        layout: the output directory.
        keep_local: whether products stay in the output directory; items and pictures stay in any case.
    """

    remote: Remote
    layout: Layout
    keep_local: bool

    @classmethod
    def open(cls, url: str, layout: Layout, *, keep_local: bool) -> "Outlet":
        """The outlet to a URL, see `open_remote`.

        Raises:
            ConfigError: no such remote.
        """
        return cls(open_remote(url), layout, keep_local)

    def href(self, product: Path) -> str:
        """The URL of a product of the output directory."""
        return self.remote.href(self._name(product))

    def stands(self, item: Path, product: Path) -> bool:
        """Whether the product that the local item tells of stands at the remote, and the item is of this product."""
        if not item.is_file():
            return False
        document = read_document(item)
        digest = str(document["assets"]["commit"].get("file:checksum", "")).removeprefix(SHA256_PREFIX)
        named = str(document["assets"]["product"]["href"]).rstrip("/").endswith(product.name)
        return named and bool(digest) and self.remote.stands(self._name(product), digest)

    def send(self, item: Path, product: Path) -> None:
        """Push a product, then its pictures, then its item, which makes it known.

        Raises:
            RetryableError: the network or the server fails.
            StoreError: the product is damaged, or another one goes by its name.
        """
        self.remote.push(product, self._name(product))
        for picture in sorted(product.with_suffix(".quicklooks").glob("*.png")):
            self.remote.point(self._name(picture), picture.read_bytes())
        document = read_document(item)
        self.remote.point(self._name(item), _bytes(self._pushed(document, product)))
        if not self.keep_local:
            write_json_atomic(item, self._leading_there(document, product))
            self.layout.discard(product)

    def send_index(self) -> None:
        """Put catalog.json and the collections beside the products."""
        paths = [*sorted((self.layout.out / "collections").glob("*.json")), self.layout.out / "catalog.json"]
        for path in paths:
            self.remote.point(self._name(path), path.read_bytes())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.layout.out).as_posix()

    def _pushed(self, document: Document, product: Path) -> Document:
        """The item as it stands beside the product, whose files lie where its relative hrefs lead, or in a repository.

        It has no link to a source that only this machine has.
        """
        links = [one for one in document["links"] if one["rel"] != "derived_from" or "://" in one["href"]]
        assets, there = document["assets"], self.href(product)
        if there != f"{self.remote.url}/{self._name(product)}":
            assets = {key: asset for key, asset in assets.items() if key != "commit"}
            assets["product"] = {**assets["product"], "href": there}
        return {**document, "assets": assets, "links": links}

    def _leading_there(self, document: Document, product: Path) -> Document:
        """The local item of a product that is at the remote alone."""
        there = self.href(product)
        commit = f"{there}/{COMMIT}" if there == f"{self.remote.url}/{self._name(product)}" else there
        assets = {**document["assets"]}
        for key, href in (("product", there), ("commit", commit)):
            assets[key] = {**assets[key], "href": href}
        return {**document, "assets": assets}


def _bytes(document: Document) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
