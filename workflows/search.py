"""`cubeloom search`: what a STAC API finds becomes a static catalog, with the products beside it where wanted."""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cubeloom.catalogs.access import Access
from cubeloom.catalogs.download import download_item
from cubeloom.catalogs.items import CatalogItem, parse_bbox, read_catalog
from cubeloom.catalogs.search import Query, search, write_search_catalog
from cubeloom.errors import ConfigError, CubeloomError

from .console import counted
from .watermark import parse_time

Document = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search found and fetched.

    Attributes:
        catalog: path of catalog.json.
        items: ids of the items in it, in the order of their last change.
        rejected: why items were left out that cannot be used.
        downloaded: ids of the items whose files are here.
        failed: ids of the items whose files could not be fetched, each with its cause.
    """

    catalog: Path
    items: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    downloaded: tuple[str, ...] = ()
    failed: tuple[tuple[str, CubeloomError], ...] = ()

    @property
    def exit_code(self) -> int:
        """0; 3 where an item is unusable or its files are; 75 where all that failed may pass."""
        codes = {error.exit_code for _, error in self.failed} | ({3} if self.rejected else set())
        return 0 if not codes else 75 if codes == {75} else 3

    def lines(self) -> Iterator[str]:
        """What a person is told."""
        yield from (f"left out: {cause}" for cause in self.rejected)
        if self.downloaded or self.failed:
            yield f"{len(self.downloaded)} of {counted(len(self.items), 'product')} fetched"
        yield f"{counted(len(self.items), 'item')} -> {self.catalog}"

    def summary(self) -> Document:
        """What a script is told."""
        causes = {item: str(error) for item, error in self.failed}
        found = {"catalog": self.catalog, "items": self.items, "rejected": self.rejected}
        return found | {"downloaded": self.downloaded, "failed": causes}


def search_command(
    provider: str,
    query: Query,
    out: Path,
    download: Path | None = None,
    access: Access | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> SearchResult:
    """Search, write the catalog under `out`, and fetch each product to `download/<item>/` where that is given.

    An item whose files cannot be fetched stays in the catalog with its remote hrefs and stops nothing.

    Args:
        provider: name, or URL of a STAC API.
        query: what to find.
        out: folder for the catalog.
        download: folder for the products.
        access: `Access.from_environment()` where None.
        tell: gets a line for each item that is fetched or fails.

    Raises:
        ConfigError, InputError, RetryableError: as `catalogs.search.search`.
    """
    access = access or Access.from_environment()
    rejected: list[str] = []
    found = list(search(provider, query, access, rejected.append))
    catalog = write_search_catalog(found, out)
    ids = tuple(item["id"] for item in found)
    if download is None:
        return SearchResult(catalog, ids, tuple(rejected))
    local, failed = _fetch(read_catalog(catalog), download, access, tell)
    catalog = write_search_catalog([_localised(item, local.get(item["id"])) for item in found], out)
    return SearchResult(catalog, ids, tuple(rejected), tuple(local), tuple(failed))


def parse_query(
    *,
    collections: list[str] | None = None,
    bbox: str | None = None,
    datetime: str | None = None,
    updated_since: str | None = None,
    max_cloud: float | None = None,
    ids: list[str] | None = None,
    limit: int | None = None,
    cql: str | None = None,
) -> Query:
    """A query from the words of the command line.

    Raises:
        ConfigError: a word that cannot be understood.
    """
    return Query(
        collections=tuple(collections or ()),
        bbox=parse_bbox(bbox) if bbox else None,
        datetime=datetime,
        updated_since=_moment(updated_since) if updated_since else None,
        max_cloud=max_cloud,
        ids=tuple(ids or ()),
        limit=limit,
        filter=_parse_filter(cql) if cql else None,
    )


def _moment(text: str) -> dt.datetime:
    found = parse_time(text)
    if found is None:
        raise ConfigError(f"{text!r} is no time; expected one such as 2024-06-01 or 2024-06-01T12:00:00Z")
    return found


def _parse_filter(text: str) -> str | Document:
    if not text.lstrip().startswith("{"):
        return text
    try:
        found: Document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--filter: begins like JSON and is none ({error})") from None
    return found


def _fetch(
    items: list[CatalogItem], folder: Path, access: Access, tell: Callable[[str], object]
) -> tuple[dict[str, CatalogItem], list[tuple[str, CubeloomError]]]:
    local: dict[str, CatalogItem] = {}
    failed = []
    for item in items:
        try:
            local[item.id] = download_item(item, folder / item.id, access)
            tell(f"{item.id}: fetched")
        except CubeloomError as error:
            failed.append((item.id, error))
            tell(f"{item.id}: {error}")
    return local, failed


def _localised(document: Document, item: CatalogItem | None) -> Document:
    """The document with the hrefs of an item's files that are here."""
    if item is None:
        return document
    assets = {
        key: asset | {"href": item.assets[key].href} if item.assets[key].href.startswith("file://") else asset
        for key, asset in document["assets"].items()
    }
    return document | {"assets": assets}
