"""Files of remote items fetched into a folder that `open_source` reads: checked, resumed, and complete or not there."""

import re
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from cubeloom.errors import InputError
from cubeloom.untrusted import safe_name

from .access import Access
from .documents import is_remote, read_document, write_json_atomic
from .items import Asset, CatalogItem
from .transfer import AbandonedError, Part, fetch, is_whole

SOURCE_FILE = ".source.json"
"""Tells which content the files of a folder are of, so that those of an older version are not taken for them."""

_ENMAP = re.compile(
    r"(?i)(^|-)(METADATA|SPECTRAL_IMAGE(_VNIR|_SWIR)?|QL_PIXELMASK(_VNIR|_SWIR)?|QL_QUALITY_[A-Z]+(_VNIR|_SWIR)?)"
    r"(_COG)?\.\w+$"
)
"""File names of an EnMAP product that the reader takes; its other files are pictures."""


_SENTINEL2 = re.compile(
    r"(?i)(b02|b03|b04|b08)(_10m)?|(b05|b06|b07|b8a|b11|b12|scl)(_20m)?|(b01|b09|b10)(_60m)?"
    r"|coastal|blue|green|red|rededge[123]|nir|nir08|nir09|cirrus|swir16|swir22"
)
"""Asset keys of Sentinel-2's bands at the resolution they are measured at, and of its scene classes, as Earth Search,
Planetary Computer and CDSE have them."""


def needed_assets(item: CatalogItem) -> dict[str, Asset]:
    """The remote assets that a product needs.

    Of EnMAP the XML, the cubes and the masks; of Sentinel-2, where each band is a file, the bands at their own
    resolution and the scene classes; else all but the pictures.
    """
    remote = {key: a for key, a in item.assets.items() if is_remote(a.href) and not a.is_picture}
    enmap = {key: a for key, a in remote.items() if _ENMAP.search(a.file_name)}
    told = (item.properties.get("platform"), item.properties.get("constellation"), item.collection)
    bands = {}
    if any(str(one).lower().startswith("sentinel-2") for one in told):
        bands = {key: a for key, a in remote.items() if _SENTINEL2.fullmatch(key)}
    return enmap or bands or remote


def download_item(item: CatalogItem, folder: Path, access: Access) -> CatalogItem:
    """Fetch the files of a remote item into `folder`, all side by side under their own names.

    Files that are there already and whole are kept. A file gets its name when it is complete, and its size and
    `file:checksum` agree with the item's, where the item tells them. What was fetched of a file before a failure stays
    beside it as `.part`; the next call goes on from there where the server's ETag proves that the file is the same.

    Args:
        item: of a catalog; one whose product is here already is returned as it is.
        folder: for this item alone; made where it does not exist.
        access: how, and by which login.

    Returns:
        The item with the hrefs of its files as `file://` URLs; id and content key are the same. Where
        each band is a file of its own, the item lies with them, as `<id>.json`.

    Raises:
        InputError: an address that may not be reached, a missing or wrong login, a file that is not what the item says.
        RetryableError: a server that is busy, stalls or breaks off, also after `access.attempts`.
        StoreError: a file cannot be written.
    """
    if not item.is_remote:
        return item
    wanted = needed_assets(item)
    names = _file_names(item, wanted)
    if access.predownloaded is not None:
        places = _predownloaded(item, wanted, names, access.predownloaded, access.local_files)
    else:
        places = {key: folder / name for key, name in names.items()}
        _prepare(item, folder, places)
        _fetch_all(wanted, places, access)
        if item.is_split:
            _write_item(item, folder / f"{item.id}.json", names)
    assets = {
        key: replace(asset, href=places[key].resolve().as_uri()) if key in places else asset
        for key, asset in item.assets.items()
    }
    roots = (*item.roots, *{path.resolve().parent for path in places.values()}) if item.roots else ()
    return replace(item, assets=assets, roots=roots)


def _write_item(item: CatalogItem, path: Path, names: Mapping[str, str]) -> None:
    """The item beside its files, for the reader of products whose every band is a file of its own."""
    assets = item.document.get("assets", {})
    here = {key: {**assets[key], "href": f"./{quote(name)}"} for key, name in names.items()}
    write_json_atomic(path, {**item.document, "assets": {**assets, **here}, "links": []})


def _file_names(item: CatalogItem, assets: Mapping[str, Asset]) -> dict[str, str]:
    """The file name of each asset: its own, after its key where that is not enough."""
    names: dict[str, str] = {}
    own = [asset.file_name.lower() for asset in assets.values()]
    for key, asset in assets.items():
        if asset.is_zarr:
            raise InputError(
                f"{item.self_path}: asset {key!r} of {item.id} is a Zarr store, which is no file; open it where it is"
            )
        unique = asset.file_name and own.count(asset.file_name.lower()) == 1
        name = asset.file_name if unique else "-".join(filter(None, (key, asset.file_name)))
        names[key] = safe_name(name, f"{item.self_path}: file of asset {key!r}")
    return names


def _prepare(item: CatalogItem, folder: Path, places: Mapping[str, Path]) -> None:
    """Make the folder, and remove what an earlier version of the item left in it."""
    try:
        content = item.content_key()
    except InputError:  # nothing tells versions apart
        content = ""
    mark = folder / SOURCE_FILE
    try:
        known = read_document(mark).get("content") if mark.is_file() else None
    except InputError:
        known = None
    if not content or known != content:
        for path in places.values():
            path.unlink(missing_ok=True)
            Part(path).discard()
    write_json_atomic(mark, {"id": item.id, "content": content})


def _fetch_all(assets: Mapping[str, Asset], places: Mapping[str, Path], access: Access) -> None:
    """Fetch all files, small ones first so that a missing login shows early; one failure stops the others."""
    stop = threading.Event()
    order = sorted(assets, key=lambda key: (key != "metadata", key.startswith("image"), key))
    with ThreadPoolExecutor(access.per_host, thread_name_prefix="download") as pool:
        try:
            futures = [pool.submit(fetch, assets[key], places[key], access, stop) for key in order]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    failures = [error for future in futures if (error := future.exception())]
    for failure in sorted(failures, key=lambda error: isinstance(error, AbandonedError)):
        raise failure


def _predownloaded(
    item: CatalogItem,
    assets: Mapping[str, Asset],
    names: Mapping[str, str],
    folder: Path,
    files: Mapping[str, Path],
) -> dict[str, Path]:
    """Where the files of an item lie below a folder that somebody else filled; a folder called after it goes before."""
    places = {}
    for key, name in names.items():
        near = folder / item.id / name
        found = near if near.is_file() else files.get(name)
        if found is None:
            raise InputError(f"{folder}: holds no {name}, which item {item.id} needs (looked at any depth)")
        if not is_whole(found, assets[key]):
            raise InputError(f"{found}: size or checksum differ from what {item.self_path} says; fetch it again")
        places[key] = found
    return places
