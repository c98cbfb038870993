"""One file fetched: into `.part`, resumed where the server proves that it is the same file, checked, then named."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from cubeloom.errors import InputError, RetryableError, StoreError
from cubeloom.network import HttpError, UnavailableError, again, public_url

from .access import Access
from .documents import read_document, write_json_atomic
from .items import Asset
from .logins import LoginError, is_page

HEAD = 1024
"""Bytes of a file that tell what it is."""

_MAGIC: Mapping[str, tuple[bytes, ...]] = {
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    ".tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    ".jp2": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".xml": (b"<", b"\xef\xbb\xbf<", b"\xff\xfe<", b"\xfe\xff\0<"),
}
"""How files begin, by suffix."""

_HASHES = {0x11: "sha1", 0x12: "sha256", 0x13: "sha512", 0x14: "sha3_512", 0x16: "sha3_256", 0xD5: "md5"}
"""Names in `hashlib` of multihash functions (https://github.com/multiformats/multicodec)."""


class AbandonedError(RetryableError):
    """A transfer given up because another one failed."""


@dataclass(frozen=True)
class Part:
    """What is there of a file that is not complete: its bytes, and beside them the ETag of the file they are of."""

    target: Path

    @property
    def path(self) -> Path:
        """Where the bytes are."""
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        """Where the ETag is."""
        return self.target.with_name(self.target.name + ".part.json")

    def known(self) -> tuple[int, str]:
        """How many bytes may be gone on from, and the strong ETag of their file; 0 and empty where none may."""
        try:
            tag = read_document(self.note).get("etag") if self.note.is_file() else ""
        except InputError:
            tag = ""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return (size, tag) if size and isinstance(tag, str) and is_strong(tag) else (0, "")

    def begin(self, tag: str) -> None:
        """Start anew, with a file of this ETag."""
        self.discard()
        if is_strong(tag):
            write_json_atomic(self.note, {"etag": tag})

    def discard(self) -> None:
        """Remove what is there."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)


def fetch(asset: Asset, target: Path, access: Access, stop: threading.Event) -> None:
    """Fetch the file of an asset to `target`, trying again where that may help; nothing is done where it is whole.

    Raises:
        InputError, RetryableError, StoreError: as `download_item`.
        AbandonedError: `stop` was set.
    """
    part = Part(target)

    def attempt() -> None:
        with _writing(target):
            resumed = _receive(asset, part, access, stop)
            _check(asset, part, resumed)
            part.finish()

    with _writing(target):
        whole = is_whole(target, asset)
    if not whole:
        again(attempt, access.attempts, access.pause, access.patience, sleep=stop.wait)


def is_whole(path: Path, asset: Asset) -> bool:
    """Whether a file is there and agrees with the size and the checksum that its asset tells."""
    if not path.is_file() or (asset.size is not None and path.stat().st_size != asset.size):
        return False
    expected = parse_multihash(asset.checksum)
    return expected is None or _digest(path, expected[0]) == expected[1]


def parse_multihash(text: str) -> tuple[str, str] | None:
    """Name in `hashlib` and digest (hex) of a multihash; None where there is none or its function is not known.

    Raises:
        InputError: it is no multihash.
    """
    if not text:
        return None
    try:
        data = bytes.fromhex(text)
        code, rest = _varint(data)
        length, digest = _varint(rest)
    except (ValueError, IndexError):
        raise InputError(f"file:checksum {text[:80]!r} is no multihash in hexadecimal digits") from None
    if length != len(digest):
        raise InputError(f"file:checksum {text[:80]!r} is no multihash: it tells {length} bytes and has {len(digest)}")
    return (_HASHES[code], digest.hex()) if code in _HASHES else None


def is_strong(tag: str) -> bool:
    """Whether an ETag stands for the very bytes; a weak one (`W/"..."`) does not (RFC 9110, section 8.8.1)."""
    return re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', tag) is not None


def _receive(asset: Asset, part: Part, access: Access, stop: threading.Event) -> bool:
    """Bring the part to its full length; whether it was gone on with."""
    if stop.is_set():
        raise AbandonedError(f"{public_url(asset.href)}: given up because another file failed")
    if urlsplit(asset.href).scheme == "s3":
        from .object_store import receive_object

        receive_object(asset.href, part.path, access, stop)
        return False
    try:
        return _download(asset, part, access, stop)
    except LoginError as refused:
        if not refused.login.renew(refused.ticket):
            raise
    return _download(asset, part, access, stop)


def _download(asset: Asset, part: Part, access: Access, stop: threading.Event) -> bool:
    offset, tag = part.known()
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": tag}
    try:
        with access.open_url(asset.href, headers) as (response, login, ticket):
            if is_page(response):
                raise LoginError(_no_page(asset, login.needs), login, ticket)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise InputError(f"{public_url(asset.href)}: the server packs the file, though asked not to")
            resumed = bool(offset) and _continues(response, offset, tag)
            if response.status_code == 206 and not resumed:
                part.discard()
                raise UnavailableError(f"{public_url(asset.href)}: the file changed while it was fetched")
            if not resumed:
                part.begin(response.headers.get("ETag", ""))
            pieces = access.network.pieces(response)
            if not resumed:
                pieces = _recognised(pieces, asset, LoginError(_no_page(asset, login.needs), login, ticket))
            _append(pieces, part.path, _total(response, offset if resumed else 0, asset, access), asset, access, stop)
    except HttpError as error:
        if error.status != 416:
            raise
        part.discard()
        raise UnavailableError(f"{public_url(asset.href)}: the file changed while it was fetched") from None
    except LoginError:
        raise
    except InputError:
        part.discard()
        raise
    return resumed


def _continues(response: requests.Response, offset: int, tag: str) -> bool:
    """Whether an answer goes on where the part ends, in the same file."""
    start = re.match(rf"bytes {offset}-", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and start is not None and response.headers.get("ETag") == tag


def _total(response: requests.Response, offset: int, asset: Asset, access: Access) -> int | None:
    """Bytes that the whole file will have; None where the server does not tell."""
    length = response.headers.get("Content-Length", "")
    total = offset + int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if total is not None and total > access.largest:
        raise InputError(f"{public_url(asset.href)}: has {total:,} bytes; at most {access.largest:,} are fetched")
    return total


def _append(
    pieces: Iterator[bytes], path: Path, total: int | None, asset: Asset, access: Access, stop: threading.Event
) -> None:
    shown, limit = public_url(asset.href), access.largest
    if total is not None and asset.size is not None and total != asset.size:
        next(pieces, None)  # a web page in place of the file is the better explanation
        raise InputError(
            f"{shown}: the server has {total:,} bytes, the catalog says {asset.size:,}; the file was changed since: "
            "search again"
        )
    with path.open("ab") as file:
        for piece in pieces:
            if stop.is_set():
                raise AbandonedError(f"{shown}: given up because another file failed")
            file.write(piece)
            if file.tell() > limit:
                raise InputError(f"{shown}: more than {limit:,} bytes, which is the most that is fetched")
        size = file.tell()
    if total is not None and size != total:
        raise UnavailableError(f"{shown}: the connection ended after {size:,} of {total:,} bytes")


def _recognised(pieces: Iterator[bytes], asset: Asset, no_page: InputError) -> Iterator[bytes]:
    """The pieces of a file, once its beginning is what its name says.

    Raises:
        InputError: `no_page` where it is a web page; else says how the file begins.
    """
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= HEAD:
            break
    text = head[:HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")) or (text.startswith(b"<") and b"<html" in text):
        raise no_page
    suffix = Path(asset.file_name).suffix.lower()
    expected = _MAGIC.get(suffix, (b"",))
    if not head.startswith(expected):
        raise InputError(
            f"{public_url(asset.href)}: begins with {head[:12]!r}, which is no {suffix.removeprefix('.').upper()} file"
        )
    yield head
    yield from pieces


def _no_page(asset: Asset, needs: str) -> str:
    name = asset.file_name or "the file"
    return f"{public_url(asset.href)}: the server sent a web page in place of {name}; it takes {needs}"


def _check(asset: Asset, part: Part, resumed: bool) -> None:
    """Hold a complete part against what its asset tells.

    Raises:
        RetryableError: it differs, and may be of two versions.
        InputError: it differs.
    """
    if is_whole(part.path, asset):
        return
    size = part.path.stat().st_size
    part.discard()
    shown = public_url(asset.href)
    if resumed:
        raise UnavailableError(f"{shown}: what was fetched in several parts does not fit together")
    expected = f"{asset.size:,} bytes and " if asset.size is not None else ""
    raise InputError(
        f"{shown}: what came ({size:,} bytes) is not what the catalog says ({expected}checksum "
        f"{asset.checksum or 'unknown'}); the file was changed since: search again"
    )


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror or error})") from error


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _varint(data: bytes) -> tuple[int, bytes]:
    """An unsigned LEB128 number and the bytes after it."""
    value = 0
    for position in range(9):
        value |= (data[position] & 0x7F) << (7 * position)
        if not data[position] & 0x80:
            return value, data[position + 1 :]
    raise ValueError("a number of more than 63 bits")
