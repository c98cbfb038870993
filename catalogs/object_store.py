"""Objects of S3 fetched through obstore (extra `s3`)."""

import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cubeloom.errors import ConfigError, InputError
from cubeloom.network import UnavailableError

from .access import Access

ENDPOINTS = {"eodata": "https://eodata.dataspace.copernicus.eu"}
"""Where a bucket is, if not at Amazon's; `AWS_ENDPOINT_URL` goes before."""

PIECE = 8 * 2**20


def receive_object(url: str, path: Path, access: Access, stop: threading.Event) -> None:
    """Fetch `s3://bucket/key` to `path`, with the credentials of the usual `AWS_*` variables or as nobody.

    Raises:
        ConfigError: obstore is not installed.
        InputError: no such object, no right to read it, or it is too large.
        UnavailableError: the store is busy or the connection broke.
    """
    try:
        import obstore
        from obstore import exceptions
    except ImportError:
        raise ConfigError(f"{url}: reading from S3 needs obstore: pip install 'cubeloom[s3]'") from None
    parts = urlsplit(url)
    try:
        found = obstore.get(_store(parts.netloc), unquote(parts.path).lstrip("/"))
        if found.meta["size"] > access.largest:
            raise InputError(f"{url}: has {found.meta['size']:,} bytes; at most {access.largest:,} are fetched")
        with path.open("wb") as file:
            for piece in found.stream(min_chunk_size=PIECE):
                if stop.is_set():
                    raise UnavailableError(f"{url}: given up because another file failed")
                file.write(bytes(piece))
    except (FileNotFoundError, exceptions.NotFoundError):
        raise InputError(f"{url}: no such object") from None
    except (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise InputError(
            f"{url}: may not be read; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for the bucket eodata those of "
            "https://eodata-s3keysmanager.dataspace.copernicus.eu)"
        ) from None
    except exceptions.BaseError as error:
        raise UnavailableError(f"{url}: the object store does not answer ({type(error).__name__})") from None


def _store(bucket: str) -> Any:  # noqa: ANN401 - obstore is optional
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or ENDPOINTS.get(bucket)
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        options["skip_signature"] = True
    if endpoint and endpoint.startswith("http://"):
        options["client_options"] = {"allow_http": True}
    return S3Store(bucket, **options)
