"""STAC in: the items of a static catalog, a collection, an item collection or a single item."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cubeloom.errors import ConfigError, InputError
from cubeloom.untrusted import safe_name

from .documents import Document, is_remote, is_within, links, local_path, read_document

ZARR = "application/vnd+zarr"
"""Media type (without parameters) of a Zarr store."""

BBox = tuple[float, float, float, float]

_PICTURES = frozenset({"thumbnail", "overview", "visual", "graphic"})
"""Asset roles that no stage reads."""

_PRODUCT_KEYS = ("product", "metadata", "image")
"""Asset keys that `open_scene` can be given, the best first: an archive or store, METADATA.XML, the cube itself."""


_RASTERS = (".tif", ".tiff", ".jp2")
"""Suffixes of files that hold a band each."""


@dataclass(frozen=True)
class Asset:
    """A file of an item.

    Attributes:
        href: as the document has it.
        checksum: hexadecimal multihash, or empty; of a Zarr store that `scan` listed, over all its files.
        roles: of STAC, such as `data` and `thumbnail`.
        media_type: such as `application/xml`.
        etag: of the server that has it, or empty.
        size: in bytes; None where the item does not tell.
        file_name: what the file is called; empty where it cannot be a file name.
    """

    href: str
    checksum: str = ""
    roles: tuple[str, ...] = ()
    media_type: str = ""
    etag: str = ""
    size: int | None = None
    file_name: str = ""

    @property
    def is_zarr(self) -> bool:
        """Whether this is a Zarr store, a folder without a checksum of its own."""
        return self.media_type.partition(";")[0].strip() in (ZARR, "application/x-zarr")

    @property
    def is_picture(self) -> bool:
        """Whether this is there to be looked at, and no stage reads it."""
        return bool(_PICTURES & set(self.roles))


@dataclass(frozen=True)
class CatalogItem:
    """A scene of a catalog: a STAC item, read and checked.

    Attributes:
        id: unique in the catalog it was read from, and fit to be a file name.
        bbox: west, south, east, north, degrees; west is greater than east across the antimeridian.
        datetime: acquisition, UTC; the start where the item gives a range.
        collection: id of the collection, or empty.
        self_path: the document that holds the item.
        roots: folders that assets must lie in; empty where they may lie anywhere.
        document: the item as it was read.
    """

    id: str
    properties: Mapping[str, Any]
    assets: Mapping[str, Asset]
    bbox: BBox | None
    geometry: Mapping[str, Any] | None
    datetime: datetime
    collection: str
    self_path: Path
    roots: tuple[Path, ...] = field(default=(), repr=False)
    guides: Mapping[str, "CatalogItem"] = field(default_factory=dict, repr=False)
    no_guide: str = ""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def product_path(self) -> Path:
        """What `open_scene` is given for this item: its product; or, where each band is a file of its own, an item.

        Raises:
            InputError: no asset holds a product, or it is not on this machine, or outside `roots`.
        """
        key = self._product_key()
        path = local_path(self.assets[key].href, self.self_path) if key else self._item_beside_files()
        if path is None:
            listed = ", ".join(self.assets) or "none"
            raise InputError(
                f"{self.self_path}: item {self.id} has the assets {listed[:300]}; expected one of "
                f"{', '.join(_PRODUCT_KEYS)}, or a Zarr store, or files on this machine with the item's own JSON in "
                "their folder, as `cubeloom search --download` lays them"
            )
        if self.roots and not is_within(path, self.roots):
            allowed = ", ".join(map(str, self.roots))
            raise InputError(f"{self.self_path}: asset {key!r} of {self.id} leads to {path}, outside {allowed}")
        return path

    def _item_beside_files(self) -> Path | None:
        """The item's JSON that lies with its files: `<id>.json` in their folder, or this document; None if neither."""
        local = [asset for asset in self.assets.values() if not asset.is_picture and not is_remote(asset.href)]
        paths = [local_path(asset.href, self.self_path) for asset in local]
        folders = {path.parent for path in paths if path.suffix.lower() in _RASTERS}
        own = self.self_path.resolve()
        candidates = [next(iter(folders)) / f"{self.id}.json"] if len(folders) == 1 else []
        if folders and all(folder.is_relative_to(own.parent) for folder in folders):
            candidates.append(own)
        try:
            return next((path for path in candidates if path.is_file()), None)
        except OSError:  # a name longer than a file system takes
            return None

    @property
    def is_split(self) -> bool:
        """Whether no asset stands for the product: each band is a file of its own."""
        return self._product_key() is None

    @property
    def is_remote(self) -> bool:
        """Whether the product must be downloaded before `open_scene` can read it; see `catalogs.download`."""
        key = self._product_key()
        read = [self.assets[key]] if key else [asset for asset in self.assets.values() if not asset.is_picture]
        return bool(read) and all(is_remote(asset.href) for asset in read)

    @property
    def store(self) -> str | Path | None:
        """The Zarr store that the item points to: its path, or its URL in an object store; None for another product.

        Raises:
            InputError: it lies outside `roots`.
        """
        key = self._product_key()
        if key is None or not self.assets[key].is_zarr:
            return None
        return self.assets[key].href if is_remote(self.assets[key].href) else self.product_path

    def _product_key(self) -> str | None:
        key = next((key for key in _PRODUCT_KEYS if key in self.assets), None)
        return key or next((key for key, asset in self.assets.items() if asset.is_zarr), None)

    def content_key(self) -> str:
        """Digest (sha256, hex) of what the item's files hold, as far as the item tells.

        The `file:checksum` of every asset that is read, or its ETag; a Zarr store without one is stood for by the other
        assets (the commit record lists the hash of every chunk). Without them, id and `updated`.

        Raises:
            InputError: the item has none of the three.
        """
        read = {key: a for key, a in self.assets.items() if (a.checksum or not a.is_zarr) and not a.is_picture}
        marks = [f"{key}={asset.checksum or asset.etag}" for key, asset in sorted(read.items())]
        if not marks or any(mark.endswith("=") for mark in marks):
            updated = self.properties.get("updated")
            if not updated:
                raise InputError(
                    f"{self.self_path}: item {self.id} has no file:checksum on every asset, no ETag and no 'updated', "
                    "so a changed product could not be told from an old one; `cubeloom scan` writes checksums"
                )
            marks = [f"{self.collection}/{self.id}={updated}"]
        marks += [f"guide {name}={guide.content_key()}" for name, guide in sorted(self.guides.items())]
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()


def read_catalog(path: str | Path, roots: Sequence[Path] = ()) -> list[CatalogItem]:
    """All items that a STAC document leads to, in the order of its links.

    Args:
        path: a catalog.json, collection.json, item collection or item; or a folder with a catalog.json.
        roots: where given, the folders that the items' assets must lie in, symbolic links followed.

    Raises:
        InputError: a document is no STAC, is broken or lies outside the catalog's folder, or two items share an id.
    """
    start = Path(path) / "catalog.json" if Path(path).is_dir() else Path(path)
    start = Path(start.resolve())
    real_roots = tuple(Path(root).resolve() for root in roots)
    items: dict[str, CatalogItem] = {}
    for document, source in _walk(start):
        item = parse_item(document, source, real_roots)
        if item.id in items:
            raise InputError(
                f"{start}: two items are called {item.id!r}, in {items[item.id].self_path} and {source}; products are "
                "named after the item, so ids must be unique: run on one collection at a time"
            )
        items[item.id] = item
    return list(items.values())


def select_items(
    items: Iterable[CatalogItem],
    ids: Sequence[str] = (),
    bbox: BBox | None = None,
    limit: int | None = None,
) -> list[CatalogItem]:
    """The items whose id matches one of the patterns and whose bbox meets `bbox`, at most `limit` of them.

    Args:
        items: where to choose from; the order is kept.
        ids: shell patterns such as `ENMAP01*_20220724*`; every id where empty.
        bbox: west, south, east, north, degrees; an item without a bbox never meets one.
        limit: how many at most.

    Raises:
        ConfigError: no item has one of the ids that are no pattern.
    """
    items = list(items)
    known = [item.id for item in items]
    for wanted in ids:
        if wanted not in known and not set(wanted) & set("*?["):
            near = get_close_matches(wanted, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no item is called {wanted!r}{hint} (there are {len(known)}; a pattern needs * or ?)")
    chosen = [
        item
        for item in items
        if (not ids or any(fnmatchcase(item.id, pattern) for pattern in ids))
        and (bbox is None or (item.bbox is not None and _meet(item.bbox, bbox)))
    ]
    return chosen[:limit]


def parse_bbox(text: str) -> BBox:
    """West, south, east, north in degrees from `"w,s,e,n"`; west may be greater than east across the antimeridian.

    Raises:
        ConfigError: not four numbers, or no box on the globe.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"bbox {text!r}: expected four numbers west,south,east,north, such as 12.9,52.3,13.2,52.5"
        ) from None
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise ConfigError(f"bbox {text!r}: expected -180..180 for west and east, and -90 <= south <= north <= 90")
    return west, south, east, north


def _meet(a: BBox, b: BBox) -> bool:
    """Whether two boxes have a point in common; each may cross the antimeridian."""
    if a[3] < b[1] or b[3] < a[1]:
        return False
    return any(p[0] <= q[1] and q[0] <= p[1] for p in _longitudes(a) for q in _longitudes(b))


def _longitudes(box: BBox) -> list[tuple[float, float]]:
    west, east = box[0], box[2]
    return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]


def _walk(start: Path) -> Iterator[tuple[Document, Path]]:
    """Item documents with the file that holds them, from `start` on along its child and item links."""
    root = _catalog_folder(start)
    seen, pending = {start}, [start]
    while pending:
        path = pending.pop()
        document = read_document(path)
        kind = document.get("type")
        if kind in ("Catalog", "Collection"):
            found = [_linked(href, path, root) for href in links(document, "child", "item")]
            fresh = [link for link in dict.fromkeys(found) if link not in seen]
            seen.update(fresh)
            pending += reversed(fresh)
        elif kind == "FeatureCollection" and isinstance(document.get("features"), list):
            yield from ((feature, path) for feature in document["features"])
        elif kind == "Feature":
            yield document, path
        else:
            raise InputError(f"{path}: no STAC catalog, collection or item; {_what(document)}")


def _catalog_folder(start: Path) -> Path:
    """The folder that links may not leave: that of the document's root catalog, if `start` lies in it, else its own."""
    for href in links(read_document(start), "root"):
        try:
            root = local_path(href, start)
            inside = start.is_relative_to(root.parent) and read_document(root).get("type") == "Catalog"
        except InputError:
            continue
        if inside:
            return root.parent
    return start.parent


def _linked(href: str, source: Path, root: Path) -> Path:
    path = local_path(href, source)
    if not path.is_relative_to(root):
        raise InputError(f"{source}: link {href!r} leads to {path}, outside the catalog's folder {root}")
    return path


def _what(document: object) -> str:
    if not isinstance(document, Mapping):
        return f"found a JSON {type(document).__name__}"
    kind = document.get("type")
    keys = ", ".join(sorted(map(str, document))[:8]) or "none"
    return f"found an object of type {kind!r} with the keys {keys}" if kind else f"found an object with the keys {keys}"


def parse_item(document: object, source: Path, roots: tuple[Path, ...] = ()) -> CatalogItem:
    """A STAC item, checked.

    Args:
        document: the item.
        source: the file that holds it, which relative hrefs start from.
        roots: folders that its assets must lie in.

    Raises:
        InputError: it is no item, or a part that is used is broken.
    """
    if not isinstance(document, Mapping) or not {"stac_version", "id", "properties", "assets"} <= set(document):
        raise InputError(f"{source}: a GeoJSON feature that is no STAC item; {_what(document)}; expected assets and id")
    item_id = safe_name(str(document["id"]), f"{source}: item id")
    properties, assets = document["properties"], document["assets"]
    if not isinstance(properties, Mapping) or not isinstance(assets, Mapping):
        raise InputError(f"{source}: item {item_id}: 'properties' and 'assets' must be JSON objects")
    geometry = document.get("geometry")
    return CatalogItem(
        id=item_id,
        properties=properties,
        assets={str(key): _asset(value, f"{source}: asset {key!r} of {item_id}") for key, value in assets.items()},
        bbox=_bbox(document.get("bbox"), f"{source}: item {item_id}"),
        geometry=geometry if isinstance(geometry, Mapping) else None,
        datetime=_datetime(properties, f"{source}: item {item_id}"),
        collection=str(document.get("collection") or ""),
        self_path=source,
        roots=roots,
        document=document,
    )


def _asset(value: object, where: str) -> Asset:
    if not isinstance(value, Mapping) or not isinstance(value.get("href"), str):
        raise InputError(f"{where} has no href")
    etag, roles = value.get("etag") or value.get("file:etag") or "", value.get("roles")
    return Asset(
        href=value["href"],
        checksum=str(value.get("file:checksum") or value.get("cubeloom:content") or ""),
        roles=tuple(map(str, roles)) if isinstance(roles, list) else (),
        media_type=str(value.get("type") or ""),
        etag=str(etag),
        size=_size(value.get("file:size")),
        file_name=_file_name(value),
    )


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _file_name(asset: Mapping[str, Any]) -> str:
    """The last part of `file:local_path` or of the href, where it can be the name of a file."""
    for place in (asset.get("file:local_path"), asset["href"]):
        try:
            return safe_name(unquote(urlsplit(str(place or "")).path).rstrip("/").rpartition("/")[2])
        except (InputError, ValueError):
            continue
    return ""


def _bbox(value: object, where: str) -> BBox | None:
    """West, south, east, north; the heights of a box with six numbers are left out."""
    if value is None:
        return None
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) not in (4, 6) or not all(isinstance(n, int | float) and abs(n) < math.inf for n in numbers):
        raise InputError(f"{where}: bbox is {repr(value)[:200]}; expected four (or six) numbers")
    half = len(numbers) // 2
    try:
        return float(numbers[0]), float(numbers[1]), float(numbers[half]), float(numbers[half + 1])
    except OverflowError:
        raise InputError(f"{where}: bbox holds an integer of hundreds of digits; expected degrees") from None


def _datetime(properties: Mapping[str, Any], where: str) -> datetime:
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        time = datetime.fromisoformat(str(text))
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter near the years 1 and 9999
        shown = repr(text)[:200]
        raise InputError(f"{where}: datetime is {shown}; expected a time such as 2022-07-24T10:45:26Z") from None
