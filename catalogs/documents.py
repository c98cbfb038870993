"""STAC documents on disk: read under limits, links resolved to local paths, written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cubeloom.errors import InputError
from cubeloom.untrusted import load_json

STAC_VERSION = "1.1.0"

Document = dict[str, Any]


def read_document(path: Path) -> Document:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, is too large, or holds something else.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}; expected a STAC object")
    return content


def is_remote(href: str) -> bool:
    """Whether an href names something on another machine that can be fetched from there: https, http or s3."""
    scheme, found, _ = href.partition("://")
    return bool(found) and scheme.lower() in ("https", "http", "s3")


def local_path(href: str, base: Path) -> Path:
    """The real path that an href names; nothing is opened, symbolic links are followed.

    Args:
        href: relative (to the folder of `base`), absolute, or a `file://` URL.
        base: the document that holds the href.

    Raises:
        InputError: the href is remote, or one of GDAL's virtual file systems.
    """
    try:
        parts = urlsplit(href)
        os.fsencode(href)  # half a surrogate pair is no text
    except ValueError:
        raise InputError(f"{base}: {href[:200]!r} is no href") from None
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        shown = href.partition("?")[0]  # the rest may hold a signature
        raise InputError(f"{base}: {shown!r} is not on this machine; download it and use a catalog of local files")
    name = unquote(parts.path)
    if "\0" in name or name.startswith("/vsi"):
        raise InputError(f"{base}: {href!r} is not a path that a catalog may name; expected a file or folder")
    return Path(os.path.realpath(base.parent / name))


def is_within(path: Path, roots: tuple[Path, ...]) -> bool:
    """Whether a real path lies in one of the real paths `roots`."""
    return any(path.is_relative_to(root) for root in roots)


def relative_href(target: Path, document: Path) -> str:
    """The href of a file as seen from a document, relative and percent-encoded."""
    relative = os.path.relpath(os.path.realpath(target), os.path.realpath(document.parent))
    return quote(Path(relative).as_posix())


def links(document: Mapping[str, Any], *relations: str) -> Iterator[str]:
    """The hrefs of a document's links of these relations, in order."""
    listed = document.get("links")
    for link in listed if isinstance(listed, list) else ():
        if isinstance(link, Mapping) and link.get("rel") in relations and isinstance(link.get("href"), str):
            yield link["href"]


def listed(document: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key; empty where something else stands there, or nothing."""
    found = document.get(key)
    return found if isinstance(found, list) else []


def write_json_atomic(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document so that readers see the old one or the new one and never a part, also after a power cut.

    Equal documents give equal bytes. NaN and infinities, which JSON does not have, are refused by a ValueError.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:  # of a full disk it tells no name
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
