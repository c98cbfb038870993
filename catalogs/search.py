"""STAC APIs searched: what is found is made safe, put in order, and written as a static catalog."""

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cubeloom.errors import ConfigError, InputError
from cubeloom.untrusted import safe_name

from .access import Access
from .documents import Document, local_path, relative_href, write_json_atomic
from .found import changed, made_safe
from .items import BBox
from .providers import find_provider
from .scan import GEOJSON, JSON, catalog_document, collection_document, link

MOST = 100_000
"""Items of one search."""

_EARLIEST = dt.datetime.min.replace(tzinfo=dt.UTC)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """What is searched for; everything that is given must hold.

    Attributes:
        collections: ids; the provider's own where empty.
        bbox: west, south, east, north, degrees; west is greater than east across the antimeridian.
        datetime: of the acquisition, such as `2024-06-01/2024-06-30` or `2024-06`; open ends are `..`.
        updated_since: items that changed then or later, with a time zone; an item that does not tell is found too.
        max_cloud: percent; an item that does not tell is left out.
        ids: exact.
        limit: items at most. With `updated_since` those that changed first, else those that the API gives first.
        filter: more conditions, in CQL2 as text or as JSON.
    """

    collections: tuple[str, ...] = ()
    bbox: BBox | None = None
    datetime: str | None = None
    updated_since: dt.datetime | None = None
    max_cloud: float | None = None
    ids: tuple[str, ...] = ()
    limit: int | None = None
    filter: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        since = self.updated_since
        if since is not None and since.tzinfo is None:
            raise ConfigError(f"updated_since is {since.isoformat()}; expected a time with a zone, such as Z")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; expected at least 1")


def search(
    provider: str, query: Query, access: Access | None = None, reject: Callable[[str], object] = _log.warning
) -> Iterator[Document]:
    """STAC items that an API finds, in the order of (time of change, id).

    The query is put to the API as far as that can filter, and held against every item anyway. Nothing secret is sent.

    Args:
        provider: name in `PROVIDERS`, or the URL of a STAC API (plain http for one that is named so).
        query: what to find.
        access: `Access.from_environment()` where None.
        reject: told of every item that cannot be used, and why; it is left out and stops nothing.

    Raises:
        ConfigError: no such provider, or a query that its API cannot be asked.
        InputError: the API refuses, or answers with something else than STAC.
        RetryableError: it is busy or cannot be reached, also after `access.attempts`.
    """
    from .stac_api import Api

    api = Api(find_provider(provider), access or Access.from_environment())
    whole = query.bbox is None or query.bbox[0] <= query.bbox[2]  # else in two parts, each in its own order
    found: dict[tuple[str, str], tuple[dt.datetime, Document]] = {}
    for feature in _features(api.features, query):
        try:
            item = made_safe(feature, api.provider)
        except InputError as error:
            reject(str(error))
            continue
        when = changed(item, api.provider)
        if not _matches(item, when, query):
            continue
        key = (item["id"], item["collection"] or "")
        known = found.get(key)
        if known is None or (when or _EARLIEST) > known[0]:
            found[key] = (when or _EARLIEST, item)
        if len(found) > MOST:
            raise InputError(f"{provider}: finds more than {MOST:,} items; narrow the search by time or box")
        if len(found) == query.limit and (query.updated_since is None or (api.provider.sorts and whole)):
            break
    ordered = sorted(found.items(), key=lambda entry: (entry[1][0], entry[0]))
    yield from (item for _, (_, item) in ordered[: query.limit])


def write_search_catalog(items: Iterable[Document], out: Path) -> Path:
    """Write catalog.json, a collection.json for each collection, and the items, under `out`; for `read_catalog`.

    The documents depend on the items alone: equal items give equal bytes. catalog.json is written last. Hrefs that are
    `file://` URLs become relative.

    Returns:
        The path of catalog.json.

    Raises:
        InputError: two items share an id, or a name cannot be a file name.
    """
    ordered = sorted(items, key=lambda item: (_collection(item), item["id"]))
    places: dict[str, str] = {}
    for item in ordered:
        name = safe_name(str(item["id"]), "item id")
        if name.lower() in places:
            raise InputError(
                f"two items are called {name!r}, in {places[name.lower()]} and {_collection(item)}; products are named "
                "after the item: search one collection at a time"
            )
        places[name.lower()] = _collection(item)
    names = []
    for name, group in groupby(ordered, key=_collection):
        _write_collection(name, list(group), out)
        names.append(name)
    path = out / "catalog.json"
    write_json_atomic(path, catalog_document("cubeloom-search", "Scenes found by a search", names))
    return path


def _features(ask: Callable[[Query, BBox | None], Iterator[object]], query: Query) -> Iterator[object]:
    """What an API finds; a box across the antimeridian is asked for in two parts, which every API understands."""
    box = query.bbox
    if box is None or box[0] <= box[2]:
        yield from ask(query, box)
        return
    west, south, east, north = box
    yield from ask(query, (west, south, 180.0, north))
    yield from ask(query, (-180.0, south, east, north))


def _matches(item: Document, when: dt.datetime | None, query: Query) -> bool:
    """Whether an item is one that was asked for, whatever the API thinks."""
    cloud = item["properties"].get("eo:cloud_cover")
    return (
        (not query.ids or item["id"] in query.ids)
        and (not query.collections or item.get("collection") in (None, *query.collections))
        and (query.max_cloud is None or (cloud is not None and cloud <= query.max_cloud))
        and (query.updated_since is None or when is None or when >= query.updated_since)
    )


def _collection(item: Document) -> str:
    return safe_name(str(item.get("collection") or "items"), "collection")


def _write_collection(name: str, items: Sequence[Document], out: Path) -> None:
    children = []
    for item in items:
        path = out / name / item["id"] / f"{item['id']}.json"
        write_json_atomic(path, _placed(item, path))
        children.append(link("item", f"./{item['id']}/{item['id']}.json", GEOJSON, item["id"]))
    up = [link("root", "../catalog.json", JSON), link("parent", "../catalog.json", JSON)]
    timed = [item | {"properties": item["properties"] | {"datetime": _time(item)}} for item in items]
    document = collection_document(
        name, f"Items of {name}, as a search found them", timed, [*up, *children], title=name
    )
    write_json_atomic(out / name / "collection.json", document)


def _time(item: Document) -> str:
    return str(item["properties"].get("datetime") or item["properties"].get("start_datetime"))


def _placed(item: Document, path: Path) -> Document:
    """An item as it stands in the file `path`, two folders below the catalog."""
    assets = {
        key: asset | {"href": relative_href(local_path(asset["href"], path), path)}
        if asset["href"].startswith("file://")
        else asset
        for key, asset in item["assets"].items()
    }
    up = [
        link("root", "../../catalog.json", JSON),
        link("parent", "../collection.json", JSON),
        link("collection", "../collection.json", JSON),
    ]
    origin = [entry for entry in item.get("links") or () if entry.get("rel") == "via"]
    placed = item | {"assets": assets, "links": [*up, *origin]}
    return placed if item.get("collection") else placed | {"collection": _collection(item)}
