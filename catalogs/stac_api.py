"""A STAC API asked through pystac-client, every request under guard, in the API's own way of filtering and paging."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pystac_client.item_search import ItemSearch
from pystac_client.stac_api_io import StacApiIO

from cubeloom.errors import ConfigError, InputError
from cubeloom.network import HttpError, again, public_url

from .access import Access
from .documents import Document, listed
from .items import BBox
from .providers import Provider
from .records import utc

if TYPE_CHECKING:
    from .search import Query

PAGE = 100
"""Items that a page is asked to hold."""
MOST_PAGES = 10_000

Condition = tuple[str, str, Any]
"""Property, operator of CQL2, and value; times as RFC 3339 in a mapping `{"timestamp": ...}`."""

_Request = tuple[str, str, Mapping[str, Any]]
"""URL, method, and body or query."""

_log = logging.getLogger(__name__)
_QUERY_OPERATORS = {"<=": "lte", ">=": "gte"}


class GuardedIO(StacApiIO):
    """pystac-client's way to the network, through ours; local files are never read."""

    def __init__(self, api: str, access: Access) -> None:
        super().__init__(max_retries=None)
        self._access, self._network = access, access.to_api(api)

    def read_text(self, source: Any, *_: Any, **options: Any) -> str:  # noqa: ANN401 - pystac's own arguments
        """The answer to a URL."""
        return self.request(str(source), **options)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> str:
        """The answer to a request, tried again while the server is busy.

        Raises:
            InputError, RetryableError: as `Network.open_url`.
        """
        posted = (method or "GET").upper() == "POST"
        accepted = {"Accept": "application/geo+json, application/json", **(headers or {})}
        asked: dict[str, Any] = {"body": parameters or {}} if posted else {"params": parameters or None}

        def ask() -> str:
            with self._network.open_url(
                href, method="POST" if posted else "GET", headers=accepted, **asked
            ) as response:
                return self._network.read(response).decode(errors="replace")

        return again(ask, self._access.attempts, self._access.pause, self._access.patience)

    def read_json(self, source: Any, *args: Any, **options: Any) -> Document:  # noqa: ANN401 - pystac's own arguments
        """The JSON object that a URL answers with.

        Raises:
            InputError: it is something else.
        """
        text = self.read_text(source, *args, **options)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{public_url(str(source))}: the answer is no JSON object; is this a STAC API?")
        return found

    def get_pages(
        self, url: str, method: str | None = None, parameters: Mapping[str, Any] | None = None
    ) -> Iterator[Document]:
        """Pages of a search, by their next links, or by `startIndex` where a server only counts.

        Raises:
            InputError: the pages go round in a circle, or do not end.
        """
        ask: _Request | None = (url, method or "GET", parameters or {})
        seen, linked = 0, False
        asked: set[str] = set()
        while ask is not None:
            mark = json.dumps(ask, sort_keys=True, default=str)
            if mark in asked or len(asked) == MOST_PAGES:
                raise InputError(f"{public_url(url)}: the pages of the search do not end ({len(asked)} read)")
            asked.add(mark)
            page = self.read_json(ask[0], method=ask[1], parameters=ask[2])
            features = listed(page, "features")
            if not features:
                return
            yield page
            seen += len(features)
            following = _linked(page, ask)
            linked = linked or following is not None
            ask = following if linked else _counted(page, ask, seen)


def _linked(page: Document, ask: _Request) -> _Request | None:
    """What the next link of a page asks for; None where it has none."""
    url, _, parameters = ask
    for link in listed(page, "links"):
        if isinstance(link, Mapping) and link.get("rel") == "next" and isinstance(link.get("href"), str):
            href = urljoin(url, link["href"])
            if url.startswith("https://") and href.startswith("http://"):  # of an API behind a proxy
                href = "https://" + href.removeprefix("http://")
            if str(link.get("method", "GET")).upper() != "POST":
                return href, "GET", {}
            given = link.get("body")
            body: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
            return href, "POST", {**parameters, **body} if link.get("merge") else body
    return None


def _counted(page: Document, ask: _Request, seen: int) -> _Request | None:
    """What to ask a server for that tells how many there are, and links to no next page."""
    url, method, parameters = ask
    context = page.get("context")
    matched = page.get("numberMatched", context.get("matched") if isinstance(context, Mapping) else None)
    if not isinstance(matched, int) or seen >= matched:
        return None
    return url, method, {**parameters, "startIndex": seen}


class Api:
    """A provider's API; what it can do is asked where it is not known."""

    def __init__(self, provider: Provider, access: Access) -> None:
        self._io = GuardedIO(provider.api, access)
        self._search_url = f"{provider.api}/search"
        self.provider = provider if provider.language else self._described(provider)

    def features(self, query: "Query", box: BBox | None) -> Iterator[object]:
        """What a search finds, as it was sent; some of it perhaps twice, and more than asked for.

        Raises:
            ConfigError: the query cannot be put in the API's language.
            InputError, RetryableError: the API refuses it, or cannot be reached.
        """
        wanted = self._conditions(query)
        try:
            yield from self._ask(query, box, wanted)
        except HttpError as error:
            if error.status not in (400, 422, 501) or not (wanted or self.provider.sorts):
                raise
            _log.warning("%s neither filters nor sorts as it was asked; all is read", self.provider.name)
            self.provider = replace(self.provider, sorts=False)
            yield from self._ask(query, box, [])

    def _ask(self, query: "Query", box: BBox | None, wanted: list[Condition]) -> Iterator[object]:
        filters = self._filters(query, wanted)
        order = [
            {"field": f"properties.{self.provider.changed[0]}", "direction": "asc"},
            {"field": "id", "direction": "asc"},
        ]
        try:
            search = ItemSearch(
                self._search_url,
                method="POST",
                stac_io=self._io,
                limit=PAGE,
                ids=list(query.ids) or None,
                collections=list(query.collections or self.provider.collections) or None,
                bbox=list(box) if box else None,
                datetime=query.datetime,
                sortby=order if self.provider.sorts else None,
                **filters,
            )
        except Exception as error:  # noqa: BLE001 - pystac-client's for a time that it cannot read
            raise ConfigError(f"{self.provider.name}: the search cannot be put ({error})") from None
        for page in search.pages_as_dicts():
            yield from page["features"]

    def _conditions(self, query: "Query") -> list[Condition]:
        """What the API is asked to filter by; the rest is left out after its answer."""
        found: list[Condition] = []
        if query.max_cloud is not None and (query.bbox or not self.provider.cloud_needs_box):
            found.append(("eo:cloud_cover", "<=", query.max_cloud))
        if query.updated_since is not None and self.provider.filters_changed:
            found.append((self.provider.changed[0], ">=", {"timestamp": utc(query.updated_since)}))
        return found

    def _filters(self, query: "Query", wanted: Sequence[Condition]) -> dict[str, Any]:
        language, own = self.provider.language, query.filter
        if own and language != "cql2":
            raise ConfigError(f"{self.provider.name}: takes no CQL2 filter; leave --filter out")
        if language == "query" and wanted:
            return {"query": {name: {_QUERY_OPERATORS[op]: _plain(value)} for name, op, value in wanted}}
        if language != "cql2" or not (own or wanted):
            return {}
        if isinstance(own, str):
            texts = [f"({own})", *(_as_text(condition) for condition in wanted)]
            return {"filter": " AND ".join(texts) if wanted else own, "filter_lang": "cql2-text"}
        parts = [dict(own)] if own else []
        parts += [_as_json(condition) for condition in wanted]
        combined = parts[0] if len(parts) == 1 else {"op": "and", "args": parts}
        return {"filter": combined, "filter_lang": "cql2-json"}

    def _described(self, provider: Provider) -> Provider:
        """The provider with what its landing page says."""
        landing = self._io.read_json(provider.api)
        conforms = [str(uri) for uri in listed(landing, "conformsTo")]
        links = [link for link in listed(landing, "links") if isinstance(link, Mapping)]
        search = next((str(link["href"]) for link in links if link.get("rel") == "search" and link.get("href")), "")
        if not conforms and not search:
            raise InputError(f"{public_url(provider.api)}: no STAC API (its landing page names no search)")
        self._search_url = urljoin(f"{provider.api}/", search) if search else self._search_url
        filters = any(uri.endswith(("item-search#filter", "/filter")) for uri in conforms)
        queries = any(uri.endswith("#query") for uri in conforms)
        language = "cql2" if filters else "query" if queries else "none"
        return replace(provider, language=language, sorts=any(uri.endswith("#sort") for uri in conforms))


def _plain(value: Any) -> Any:  # noqa: ANN401 - of a condition
    return value["timestamp"] if isinstance(value, Mapping) else value


def _as_json(condition: Condition) -> Document:
    name, operator, value = condition
    return {"op": operator, "args": [{"property": name}, value]}


def _as_text(condition: Condition) -> str:
    name, operator, value = condition
    quoted = f"TIMESTAMP('{value['timestamp']}')" if isinstance(value, Mapping) else f"{value:g}"
    return f'"{name}" {operator} {quoted}'
