"""The network under guard: addresses checked, redirects by hand, limits, and errors without secrets."""

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

import cubeloom
from cubeloom.errors import ConfigError, InputError, RetryableError
from cubeloom.guard import Guard, UnavailableError, public_url, without_credentials

__all__ = [
    "Guard",
    "HttpError",
    "Network",
    "UnavailableError",
    "again",
    "public_url",
    "without_credentials",
]

REDIRECTS = 10
PIECE = 2**20
SLOWEST = 1024
"""Bytes per second below which a transfer counts as stalled."""
DOCUMENT_LIMIT = 64 * 2**20
"""Bytes of one document, such as a page of a search."""

_T = TypeVar("_T")
_Headers = Mapping[str, str]
_Credentials = Callable[[str], _Headers]


class HttpError(InputError):
    """A request that the server refuses for good; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Connection(HTTPConnection):
    """A connection to an address that the guard has passed: the name is looked up once, here, and not again."""

    guard: Guard

    def _new_conn(self) -> socket.socket:
        return _connected(self, self.guard)


class _SecureConnection(HTTPSConnection):
    guard: Guard

    def _new_conn(self) -> socket.socket:
        return _connected(self, self.guard)


def _connected(connection: HTTPConnection, guard: Guard) -> socket.socket:
    scheme = "https" if isinstance(connection, HTTPSConnection) else "http"
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    guard.admit(f"{scheme}://{host}")
    failure: OSError | None = None
    for address in guard.addresses(connection.host, connection.port):
        try:
            found = socket.create_connection((address, connection.port), connection.timeout)
        except OSError as error:
            failure = error
            continue
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    raise urllib3.exceptions.NewConnectionError(connection, f"no address of {connection.host} answers ({failure})")


class _GuardedAdapter(HTTPAdapter):
    """Sends through connections that ask the guard. A proxy is the operator's own choice and is not checked."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        super().__init__(pool_maxsize=16)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - requests' own arguments
        super().init_poolmanager(*args, **options)
        members = {"guard": self._guard}
        plain, secure = type("Plain", (_Connection,), members), type("Secure", (_SecureConnection,), members)
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }


class Network:
    """A session under guard; may be used by several threads.

    Args:
        guard: what may be reached.
        timeout: seconds without a byte after which a server counts as stalled; also for connecting.
    """

    def __init__(self, guard: Guard, timeout: float = 60.0) -> None:
        self.guard, self.timeout = guard, timeout
        self._session = requests.Session()
        self._session.trust_env = False  # netrc would send passwords to any host that it names
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
        self._session.headers["User-Agent"] = f"cubeloom/{cubeloom.__version__}"
        adapter = _GuardedAdapter(guard)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        logging.getLogger("urllib3.connectionpool").addFilter(_without_queries)

    @contextmanager
    def open_url(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: _Headers | None = None,
        credentials: _Credentials | None = None,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Iterator[requests.Response]:
        """Ask for a URL and follow its redirects, each checked; the answer is a stream, read by `read` or `pieces`.

        Args:
            url: what to ask for.
            method: of HTTP.
            headers: sent to every host on the way; never secret.
            credentials: the headers for a URL that prove who asks; asked anew for every URL on the way.
            params: added to the query.
            body: sent as JSON.
            form: sent as a form.

        Raises:
            InputError: an address that may not be reached, or too many redirects.
            HttpError: a status from 400 on that will stay.
            UnavailableError: a status that may pass (408, 425, 429, 5xx), or a connection that broke.
        """
        response = self._follow(url, method, headers or {}, credentials, params, body, form)
        try:
            _raise_for_status(response)
            yield response
        finally:
            response.close()

    def read(self, response: requests.Response, limit: int = DOCUMENT_LIMIT) -> bytes:
        """The whole body, decompressed.

        Raises:
            InputError: more than `limit` bytes.
            UnavailableError: the connection broke.
        """
        shown, found, deadline = public_url(response.url), bytearray(), time.monotonic() + 10 * self.timeout
        with _plain_errors(shown):
            for piece in response.iter_content(2**16):
                found += piece
                if len(found) > limit:
                    raise InputError(f"{shown}: the answer has more than {limit:,} bytes")
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{shown}: the answer takes longer than {10 * self.timeout:g} s")
        return bytes(found)

    def read_json(self, response: requests.Response, limit: int = DOCUMENT_LIMIT) -> Any:  # noqa: ANN401 - any JSON
        """The JSON value of the body; errors as `read`, and InputError where it is no JSON."""
        try:
            return json.loads(self.read(response, limit))
        except (ValueError, RecursionError):
            raise InputError(f"{public_url(response.url)}: the answer is no JSON") from None

    def pieces(self, response: requests.Response) -> Iterator[bytes]:
        """The body as it arrives, as the server sent it (ask with `Accept-Encoding: identity`).

        Raises:
            UnavailableError: the connection broke or ended early, or the transfer stalls.
        """
        shown, since, got = public_url(response.url), time.monotonic(), 0
        with _plain_errors(shown):
            while piece := response.raw.read1(PIECE, decode_content=False):
                yield piece
                got += len(piece)
                passed = time.monotonic() - since
                if passed > self.timeout:
                    if got < SLOWEST * passed:
                        raise UnavailableError(f"{shown}: the transfer stalls ({got:,} bytes in {passed:.0f} s)")
                    since, got = time.monotonic(), 0

    def forget_cookies(self) -> None:
        """End all sessions that cookies stand for."""
        self._session.cookies.clear()

    def _follow(
        self,
        url: str,
        method: str,
        headers: _Headers,
        credentials: _Credentials | None,
        params: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        form: Mapping[str, str] | None,
    ) -> requests.Response:
        host = self.guard.admit(url).hostname
        for _ in range(REDIRECTS + 1):
            proof = credentials(url) if credentials else {}
            request = requests.Request(method, url, {**headers, **proof}, params=params, json=body, data=form)
            response = self._send(request)
            target = _target(response)
            if target is None:
                return response
            response.close()
            if self.guard.admit(target).hostname != host and (body or form) and response.status_code in (307, 308):
                raise InputError(f"{public_url(url)}: wants a form sent on to {public_url(target)}, which is refused")
            if response.status_code in (301, 302, 303) and method != "HEAD":
                method, body, form = "GET", None, None
            url, params = target, None
        raise InputError(f"{public_url(url)}: more than {REDIRECTS} redirects")

    def _send(self, request: requests.Request) -> requests.Response:
        shown = public_url(str(request.url))
        with _plain_errors(shown):
            prepared = self._session.prepare_request(request)
            proxies = get_environ_proxies(str(prepared.url), no_proxy=None)
            return self._session.send(
                prepared, stream=True, allow_redirects=False, timeout=self.timeout, proxies=dict(proxies)
            )


def again(
    action: Callable[[], _T],
    attempts: int,
    pause: float,
    patience: float,
    sleep: Callable[[float], object] = time.sleep,
) -> _T:
    """The result of `action`, tried again where it fails with a RetryableError.

    Args:
        action: may be called several times.
        attempts: calls at most.
        pause: seconds before the second call; doubled for each further one. A server's own wish goes before.
        patience: the longest wait, s; a server that asks for more is left alone.
        sleep: waits so many seconds.

    Raises:
        RetryableError: the last failure.
    """
    for number in range(attempts):
        try:
            return action()
        except RetryableError as error:
            wait = max(getattr(error, "wait", 0.0), pause * 2**number)
            if number == attempts - 1 or wait > patience:
                raise
            sleep(wait)
    raise ConfigError(f"attempts is {attempts}; expected at least 1")


def retry_after(value: str | None, now: datetime | None = None) -> float:
    """Seconds that a Retry-After header asks for, given in seconds or as a date; 0 where it says nothing."""
    text = (value or "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def _target(response: requests.Response) -> str | None:
    """Where a redirect leads; None where there is none."""
    location = response.headers.get("Location")
    if response.status_code not in (301, 302, 303, 307, 308) or not location:
        return None
    return urljoin(response.url, location)


_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


def _raise_for_status(response: requests.Response) -> None:
    status, shown = response.status_code, public_url(response.url)
    if status in _PASSING:
        wait = retry_after(response.headers.get("Retry-After"))
        asks = f" and asks to wait {wait:.0f} s" if wait else ""
        raise UnavailableError(f"{shown}: the server answers {status} {response.reason}{asks}", wait)
    if not 200 <= status < 300:
        raise HttpError(f"{shown}: the server answers {status} {response.reason}", status)


@contextmanager
def _plain_errors(shown: str) -> Iterator[None]:
    """Turn the errors of requests and urllib3, whose texts hold whole URLs, into our own."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
        raise InputError(f"{shown}: no URL that can be asked for") from None
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
        raise UnavailableError(f"{shown}: the server has stalled (nothing came in time)") from None
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise InputError(f"{shown}: the server's certificate is not trusted") from None
        raise UnavailableError(f"{shown}: the encrypted connection broke") from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        if _timed_out(error):
            raise UnavailableError(f"{shown}: the server has stalled (nothing came in time)") from None
        raise UnavailableError(f"{shown}: the connection failed or broke ({type(error).__name__})") from None


def _timed_out(error: BaseException) -> bool:
    """Whether a read timeout lies below; while a body is read requests calls it a ConnectionError."""
    return any(isinstance(part, urllib3.exceptions.TimeoutError) for part in error.args)


def _without_queries(record: logging.LogRecord) -> bool:
    """Take the queries out of urllib3's own log lines."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True
