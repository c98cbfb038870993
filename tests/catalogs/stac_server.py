"""A STAC API and a file server on loopback, with faults on demand. Load it through the fixture `stac_server`.

    with StacServer(items, files=folder) as server:
        search(server.url, Query(), server.access())

Hrefs of items may begin with `@server@`, which stands for the server's URL; files of `folder` are at `@server@/files/`.
"""

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

Item = dict[str, Any]
Answer = Callable[["Handler"], None]

CONFORMANCE = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#sort",
    "https://api.stacspec.org/v1.0.0/item-search#filter",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
]
OPERATORS = {
    "=": lambda a, b: a == b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "lte": lambda a, b: a <= b,
    "gte": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
}


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass
class StacServer:
    """The server; a context manager.

    Attributes:
        items: what a search finds, STAC items; may be replaced while the server runs.
        files: folder served at `/files/`, with ranges and strong ETags.
        paging: `token` (a POST next link with a token, as pgstac), `href` (a GET next link with `startIndex`), or
            `startIndex` (no next link: the caller counts).
        page: most items of a page, whatever `limit` says.
        conforms: of the landing page.
        refuses_filters: whether a search with `filter` is answered by 400.
        sorts: whether `sortby` is heeded.
        seen: every request in order.
        answers: for a path, what its next requests get instead, one by one; filled by `then(path, answer(503))`.
        routes: for the beginning of a path, what its requests get instead.
    """

    items: list[Item] = field(default_factory=list)
    files: Path | None = None
    paging: str = "token"
    page: int = 100
    conforms: list[str] = field(default_factory=lambda: list(CONFORMANCE))
    refuses_filters: bool = False
    sorts: bool = True
    seen: list[Seen] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    routes: dict[str, Answer] = field(default_factory=dict)
    url: str = ""

    def __enter__(self) -> "StacServer":
        self._server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"stac": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def access(self, **options: Any) -> Any:
        """An Access that may reach this server and nothing else, and does not wait long."""
        from cubeloom.catalogs.access import Access

        return Access(**{"hosts": ("http://127.0.0.1",), "private": True, "logins": (), "pause": 0.01, **options})

    def count(self, prefix: str = "/", method: str | None = None) -> int:
        """How many requests had a path that begins with `prefix`."""
        return sum(seen.path.startswith(prefix) and method in (None, seen.method) for seen in self.seen)

    def then(self, path: str, *answers: Answer) -> None:
        """Let the next requests of `path` get these answers."""
        self.answers.setdefault(path, []).extend(answers)

    def found(self, asked: Mapping[str, Any]) -> list[Item]:
        """The items that a search finds, in order."""
        items = [item for item in self.items if matches(item, asked)]
        for key in reversed(asked.get("sortby") or () if self.sorts else ()):
            items.sort(key=lambda item: str(value_of(item, key["field"])), reverse=key["direction"] == "desc")
        return items

    def pages(self, asked: dict[str, Any], method: str) -> Item:
        """The page of a search that was asked for."""
        found = self.found(asked)
        start = int(asked.get("token") or asked.get("startIndex") or 0)
        end = start + min(int(asked.get("limit") or 10), self.page)
        document = {"type": "FeatureCollection", "features": found[start:end], "links": []}
        document |= {"numberMatched": len(found), "numberReturned": len(found[start:end])}
        if end < len(found) and self.paging == "token":
            link = {"rel": "next", "href": f"{self.url}/search", "method": method}
            document["links"].append(link | {"body": asked | {"token": str(end)}})
        elif end < len(found) and self.paging == "href":
            query = "&".join(
                f"{key}={quote(text_of(key, value))}" for key, value in {**asked, "startIndex": end}.items()
            )
            document["links"].append({"rel": "next", "href": f"{self.url}/search?{query}"})
        return document


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up, which is what some tests make them do."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    stac: StacServer
    asked: Seen
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body that follows its headers would wait 40 ms for their receipt

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_HEAD = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body: Any = raw.decode(errors="replace")
        if "json" in (self.headers.get("Content-Type") or ""):
            body = json.loads(raw)
        path = unquote(parts.path)
        self.asked = Seen(self.command, path, query, dict(self.headers.items()), body)
        self.stac.seen.append(self.asked)
        queue = self.stac.answers.get(path)
        route = next((route for prefix, route in self.stac.routes.items() if path.startswith(prefix)), None)
        try:
            if queue:
                queue.pop(0)(self)
            elif route:
                route(self)
            else:
                self._plain(path, query, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _plain(self, path: str, query: Mapping[str, str], body: Any) -> None:
        if path in ("", "/"):
            self.send_json(self._landing())
        elif path == "/search":
            asked = body if self.command == "POST" else from_query(query)
            if "filter" in asked and self.stac.refuses_filters:
                self.send(400, b'{"code": "InvalidQuery", "description": "filter is not supported"}')
            else:
                self.send_json(self.stac.pages(asked, self.command))
        elif path.startswith("/files/") and self.stac.files is not None:
            self.send_file(self.stac.files / path.removeprefix("/files/"))
        else:
            self.send(404, b"nothing here")

    def _landing(self) -> Item:
        search = [
            {"rel": "search", "href": f"{self.stac.url}/search", "type": "application/geo+json", "method": method}
            for method in ("GET", "POST")
        ]
        here = {"rel": "self", "href": self.stac.url, "type": "application/json"}
        return {
            "type": "Catalog",
            "id": "local",
            "stac_version": "1.0.0",
            "description": "A STAC API for tests",
            "conformsTo": self.stac.conforms,
            "links": [here, {**here, "rel": "root"}, *search],
        }

    def send_json(self, document: Any) -> None:
        """A JSON document, with the server's URL in place of `@server@`."""
        text = json.dumps(document).replace("@server@", self.stac.url)
        self.send(200, text.encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        """A whole answer."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, path: Path) -> None:
        """A file, or the range of it that was asked for, with its digest as a strong ETag."""
        self.send_bytes(path.read_bytes()) if path.is_file() else self.send(404, b"no such file")

    def send_bytes(self, data: bytes) -> None:
        """As `send_file`, of a file that holds `data`."""
        tag = etag(data)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and self.headers.get("If-Range") in (None, tag) else 0
        if start >= len(data) > 0:
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers)


def etag(data: bytes) -> str:
    """A strong ETag."""
    return f'"{sha256(data).hexdigest()[:16]}"'


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    """A whole answer; underscores in the names of headers stand for hyphens."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler: handler.send(status, body, named)


def cut(data: bytes, sent: int, claimed: int | None = None, tagged: bool = True) -> Answer:
    """The first `sent` bytes of a file, claimed to be all of it (or `claimed` bytes); then the connection ends."""

    def serve(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if claimed is None else claimed))
        if tagged:
            handler.send_header("ETag", etag(data))
        handler.end_headers()
        handler.wfile.write(data[:sent])
        handler.wfile.flush()
        handler.close_connection = True

    return serve


def stall(data: bytes, sent: int, seconds: float) -> Answer:
    """The first `sent` bytes of a file, then nothing for so long."""

    def serve(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:sent])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True

    return serve


def matches(item: Item, asked: Mapping[str, Any]) -> bool:
    """Whether a search finds an item."""
    if asked.get("collections") and item.get("collection") not in asked["collections"]:
        return False
    if asked.get("ids") and item["id"] not in asked["ids"]:
        return False
    box = asked.get("bbox")
    if box and not (
        item.get("bbox") and box[0] <= item["bbox"][2] and item["bbox"][0] <= box[2]
        and box[1] <= item["bbox"][3] and item["bbox"][1] <= box[3]
    ):  # fmt: skip
        return False
    if asked.get("datetime") and not in_interval(item["properties"]["datetime"], asked["datetime"]):
        return False
    conditions = [
        (name, operator, value)
        for name, tests in (asked.get("query") or {}).items()
        for operator, value in tests.items()
    ]
    return all(holds(item, *condition) for condition in [*conditions, *flattened(asked.get("filter"))])


def flattened(node: Any) -> Iterable[tuple[str, str, Any]]:
    """The comparisons of a conjunction in CQL2 JSON."""
    if not node:
        return
    if node["op"] == "and":
        for part in node["args"]:
            yield from flattened(part)
    else:
        left, right = node["args"]
        yield left["property"], node["op"], right.get("timestamp") if isinstance(right, dict) else right


def holds(item: Item, name: str, operator: str, value: Any) -> bool:
    """Whether a comparison holds; a missing property never compares."""
    found = value_of(item, name)
    if found is None:
        return False
    if name in ("updated", "datetime"):
        found, value = instant(found), instant(value)
    return OPERATORS[operator](found, value)


def value_of(item: Item, name: str) -> Any:
    """A property of an item, or its id."""
    name = name.removeprefix("properties.")
    return item["id"] if name == "id" else item["properties"].get(name)


def in_interval(time_: str, interval: str) -> bool:
    """Whether a time lies in a STAC interval."""
    start, _, end = interval.partition("/")
    end = end or start
    low = start in ("", "..") or instant(start) <= instant(time_)
    return low and (end in ("", "..") or instant(time_) <= instant(end))


def instant(text: str) -> datetime:
    """A time of RFC 3339."""
    return datetime.fromisoformat(text)


def text_of(key: str, value: Any) -> str:
    """A parameter as a GET request has it."""
    if key == "sortby":
        return ",".join(f"{'-' if part['direction'] == 'desc' else '+'}{part['field']}" for part in value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a GET search as a POST search has them."""
    asked: dict[str, Any] = dict(query)
    for key in ("collections", "ids"):
        if key in asked:
            asked[key] = asked[key].split(",")
    if "bbox" in asked:
        asked["bbox"] = [float(part) for part in asked["bbox"].split(",")]
    for key in ("filter", "query"):
        if key in asked:
            asked[key] = json.loads(asked[key])
    if "sortby" in asked:
        names = asked["sortby"].split(",")
        asked["sortby"] = [
            {"field": name.lstrip("+-"), "direction": "desc" if name.startswith("-") else "asc"} for name in names
        ]
    return asked
