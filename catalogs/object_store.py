"""Objects of S3 fetched through obstore (extra `s3`)."""

import os
import threading
from datetime import timedelta
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

    It is asked for piece by piece, so that a stall shows soon, and every piece of the object that was there at first.

    Raises:
        ConfigError: obstore is not installed.
        InputError: no such object, no right to read it, or it is too large.
        UnavailableError: the store is busy, the connection broke, or the object changed meanwhile.
    """
    try:
        import obstore
        from obstore import exceptions
    except ImportError:
        raise ConfigError(f"{url}: reading from S3 needs obstore: pip install 'cubeloom[s3]'") from None
    try:
        _copy(obstore, url, path, access, stop)
    except (FileNotFoundError, exceptions.NotFoundError):
        raise InputError(f"{url}: no such object") from None
    except (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise InputError(
            f"{url}: may not be read; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for the bucket eodata those of "
            "https://eodata-s3keysmanager.dataspace.copernicus.eu)"
        ) from None
    except exceptions.PreconditionError:
        raise UnavailableError(f"{url}: the object changed while it was fetched") from None
    except exceptions.BaseError as error:
        raise UnavailableError(f"{url}: the object store does not answer ({type(error).__name__})") from None


def _copy(obstore: Any, url: str, path: Path, access: Access, stop: threading.Event) -> None:  # noqa: ANN401
    parts = urlsplit(url)
    store, key = _store(parts.netloc, access.timeout), unquote(parts.path).lstrip("/")
    about = obstore.head(store, key)
    size, tag = about["size"], about.get("e_tag")
    if size > access.largest:
        raise InputError(f"{url}: has {size:,} bytes; at most {access.largest:,} are fetched")
    same = {"if_match": tag} if tag else {}
    with path.open("wb") as file:
        for start in range(0, size, PIECE):
            if stop.is_set():
                raise UnavailableError(f"{url}: given up because another file failed")
            wanted = {"range": (start, min(start + PIECE, size)), **same}
            file.write(obstore.get(store, key, options=wanted).bytes())


def _store(bucket: str, timeout: float) -> Any:  # noqa: ANN401 - obstore is optional
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or ENDPOINTS.get(bucket)
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        options["skip_signature"] = True
    limit = timedelta(seconds=timeout)
    plain = bool(endpoint and endpoint.startswith("http://"))
    options["client_options"] = {"timeout": limit, "connect_timeout": limit, "allow_http": plain}
    # who calls this tries again, and waits longer than obstore would
    options["retry_config"] = {"max_retries": 0, "retry_timeout": limit}
    return S3Store(bucket, **options)
