"""An S3 server process on loopback, and a link to it that can be made slow or made to fail."""

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIATESTONLYTESTONLY", "a-secret-key-of-nobody", "a-session-token-of-nobody"

_SERVE = """
import logging, sys, threading
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()
"""
"""S3 alone: moto's server of all services lists its folder of services at every request, to find out which is meant."""


class ObjectServer:
    """moto's S3 in a process of its own. Attributes: `port`, and `client`, which reaches it without the link."""

    def __enter__(self) -> "ObjectServer":
        quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", _SERVE], text=True, **quiet)
        self.port = int(self.process.stdout.readline())
        import boto3

        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="direct",
            aws_secret_access_key="direct",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def objects(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """The bytes of every object below a prefix, by the rest of its key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            return {key.removeprefix(f"{prefix}/"): _get(connection, f"/{bucket}/{quote(key)}") for key in keys}


def _get(connection: http.client.HTTPConnection, target: str) -> bytes:
    """The bytes of one object; moto wants a request to be signed, and believes every signature."""
    signed = "AWS4-HMAC-SHA256 Credential=direct/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    connection.request("GET", target, headers={"Authorization": signed})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == HTTPStatus.OK, (target, answer.status, body)
    return body


@dataclass(frozen=True)
class Asked:
    """A request on the link; `key` is the path in the bucket, empty for the bucket itself."""

    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def writes(self) -> bool:
        return self.method != "GET" and self.method != "HEAD"


CUT = "cut"
"""The connection ends before the server has seen the request."""
LOST = "lost"
"""The server does as asked, and the connection ends before it has answered."""
TORN = "torn"
"""As `LOST`, but the answer's first bytes are sent."""
HALF = "half"
"""The connection ends within the answer's body."""

Fault = str | tuple[int, bytes] | None


class Link:
    """An HTTP proxy to a server. It is the address in `environment`.

    Attributes:
        fault: asked for every request; says what goes wrong with it, if anything.
        delay: seconds that every request takes longer.
        asked: all requests so far.
        most: the most requests that were under way at once.
    """

    def __init__(self, port: int) -> None:
        self.fault: Callable[[Asked], Fault] = lambda _: None
        self.delay = 0.0
        self.asked: list[Asked] = []
        self.most = self.under_way = 0
        self.lock = threading.Lock()
        self.one_write = threading.Lock()  # S3 compares and writes in one step; moto does so in two
        self.port = port

    def __enter__(self) -> "Link":
        self.proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.proxy.daemon_threads = True
        self.thread = threading.Thread(target=self.proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.shutdown()
        self.proxy.server_close()
        self.thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server over this link."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": SESSION_TOKEN,
        }

    def writes(self) -> list[Asked]:
        return [one for one in self.asked if one.writes]

    def heal(self) -> None:
        """Everything works again, and the record begins anew."""
        self.fault, self.delay = lambda _: None, 0.0
        self.asked.clear()
        self.most = 0


def _handler(link: Link) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body that follows its headers would wait 40 ms for their receipt

        def handle(self) -> None:
            """Serve the requests of a connection, over one connection to the server."""
            with closing(http.client.HTTPConnection("127.0.0.1", link.port, timeout=30)) as self.behind:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True  # the other side went away, as killed processes do

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            _, _, key = unquote(parts.path).lstrip("/").partition("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.command, key, parts.query, dict(self.headers), body)
            with link.lock:
                link.asked.append(asked)
                link.under_way += 1
                link.most = max(link.most, link.under_way)
            try:
                time.sleep(link.delay)
                fault = link.fault(asked)
                reply = self._reply(asked, fault)
            finally:
                with link.lock:  # before the answer: the other side may ask again as soon as it has it
                    link.under_way -= 1
            if reply is None or fault == TORN:
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le" if reply else b"")
            else:
                self._send(*reply, asked.method, half=fault == HALF)

        def _reply(self, asked: Asked, fault: Fault) -> tuple[int, list[tuple[str, str]], bytes] | None:
            if fault == CUT:
                return None
            if isinstance(fault, tuple):
                return fault[0], [("Content-Type", "application/xml")], fault[1]
            with link.one_write if asked.writes else nullcontext():
                self.behind.request(asked.method, self.path, asked.body, asked.headers)
                answer = self.behind.getresponse()
                reply = answer.status, answer.getheaders(), answer.read()
            return None if fault == LOST else reply

        def _send(self, status: int, headers: Any, body: bytes, method: str, half: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding") or method == "HEAD":
                    self.send_header(name, value)
            if method != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.close_connection = self.close_connection or half
            self.wfile.write(body[: len(body) // 2] if half else body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    return Handler
