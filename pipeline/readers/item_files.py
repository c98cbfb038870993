"""A STAC item that lies beside the files of its assets, as readers of single bands take it.

An item is foreign input: its hrefs stay in its folder, and a field that is not what STAC says is no field.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cubeloom.errors import InputError
from cubeloom.untrusted import load_json

from .rasters import RasterFile

ITEM_LIMIT = 4 * 2**20
"""Bytes of one item; those of the large providers have about 40 KiB."""
_RASTERS = (".tif", ".tiff", ".jp2")

Item = Mapping[str, Any]


def read_item(path: Path) -> Item | None:
    """The STAC item in a file; None where it holds something else.

    Raises:
        InputError: a `.json` file that is damaged.
    """
    if path.suffix.lower() not in (".json", ".geojson") or not path.is_file() or path.stat().st_size > ITEM_LIMIT:
        return None
    item = load_json(path, ITEM_LIMIT)
    return item if isinstance(item, dict) and item.get("type") == "Feature" else None


def item_assets(item: Item) -> dict[str, Item]:
    """The assets of an item that have an href, by key."""
    assets = item.get("assets")
    listed = assets.items() if isinstance(assets, dict) else ()
    return {str(key): asset for key, asset in listed if isinstance(asset, dict) and isinstance(asset.get("href"), str)}


def item_properties(item: Item) -> Item:
    """The properties of an item."""
    properties = item.get("properties")
    return properties if isinstance(properties, dict) else {}


def is_of(item: Item, constellation: str) -> bool:
    """Whether platform, constellation or collection of an item are of `sentinel-1` or `sentinel-2`."""
    properties = item_properties(item)
    told = (properties.get("platform"), properties.get("constellation"), item.get("collection"))
    return any(str(one).lower().startswith((constellation, constellation.replace("-", ""))) for one in told)


def lies_beside(path: Path, assets: Callable[[Item], Iterable[Item]]) -> bool:
    """Whether a STAC item is at `path`, and files of those of its assets lie in its folder or below."""
    try:
        item = read_item(path)
        return item is not None and any(local_raster(path, asset["href"]) for asset in assets(item))
    except InputError:  # any JSON may lie in a folder; and the items of a catalog lie far from the files
        return False


def item_time(path: Path, item: Item) -> datetime:
    """When the scene of the item in `path` was taken, UTC; the start where the item gives a range.

    Raises:
        InputError: it states no such time.
    """
    properties = item_properties(item)
    text = str(properties.get("datetime") or properties.get("start_datetime") or "")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{path}: states no datetime in ISO 8601") from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def local_raster(path: Path, href: str) -> RasterFile | None:
    """The file of an asset's href, of the item in `path`; None where it is remote, missing, or no raster.

    Raises:
        InputError: it leads out of the item's folder.
    """
    try:
        parts = urlsplit(href)
    except ValueError:
        raise InputError(f"{path}: an asset's href {href[:80]!r} is no URL") from None
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    try:
        folder = path.parent.resolve()
        place = (folder / unquote(parts.path)).resolve()
        here = place.is_file()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise InputError(f"{path}: an asset's href {href[:80]!r} is no path ({error})") from None
    if not place.is_relative_to(folder):
        raise InputError(f"{path}: an asset leads to {place}, outside the item's folder; lay the files beside the item")
    return RasterFile(place) if here and place.suffix.lower() in _RASTERS else None
