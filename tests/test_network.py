"""The network under guard: addresses, redirects, limits, waits, and no secret in what is said."""

import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from cubeloom.errors import InputError, RetryableError
from cubeloom.network import (
    Guard,
    HttpError,
    Network,
    UnavailableError,
    again,
    public_url,
    retry_after,
    without_credentials,
)

SECRET = "S3CR3T"
LOCAL = Guard(("http://127.0.0.1",), private=True)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(stac_server):
    with stac_server.StacServer() as server:
        yield server


def resolved(monkeypatch, *answers):
    """Let every look-up of a name give the next of these addresses, the last one for ever."""
    left = list(answers)
    real = socket.getaddrinfo

    def look_up(host, port, *args, **options):
        if host == "127.0.0.1":
            return real(host, port, *args, **options)
        address = left.pop(0) if len(left) > 1 else left[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a",
        "ftp://example.org/a",
        "file:///etc/passwd",
        "/vsicurl/https://example.org/a",
        "https:///a",
        "https://user:pass@example.org/a",
        "https://user@example.org/a",
        "https://[::1/a",
        "https://127.0.0.1/a",
        "https://[::1]/a",
        "https://[::ffff:127.0.0.1]/a",
        "https://[64:ff9b::7f00:1]/a",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/",
        "https://100.64.0.1/",
        "https://192.168.0.1/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://localhost/",
    ],
)
def test_urls_that_lead_inwards_or_are_not_https_are_refused(url):
    with pytest.raises(InputError):
        Guard().check(url)


def test_a_public_address_is_allowed_and_a_name_by_what_it_leads_to(monkeypatch):
    Guard().check("https://93.184.215.14/a")
    resolved(monkeypatch, "93.184.215.14")
    Guard().check("https://example.org/a")
    for address in (
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
    ):
        resolved(monkeypatch, address)
        with pytest.raises(InputError, match="no public address"):
            Guard().check("https://example.org/a")
        Guard(private=True).check("https://example.org/a")


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    both = [(socket.AF_INET, 1, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(InputError, match=r"10\.0\.0\.1"):
        Guard().check("https://example.org/")


def test_hosts_are_held_to_the_list(monkeypatch):
    resolved(monkeypatch, "93.184.215.14")
    guard = Guard(("data.example.org", "*.cloud.example", "http://plain.example"))
    for url in (
        "https://data.example.org/",
        "https://DATA.example.org/",
        "https://a.cloud.example/",
        "https://a.b.cloud.example",
    ):
        guard.check(url)
    guard.check("http://plain.example/")
    guard.check("https://plain.example/")
    for url in (
        "https://example.org/",
        "https://xdata.example.org/",
        "https://data.example.org.evil.example/",
        "https://cloud.example/",
        "https://evilcloud.example/",
        "http://data.example.org/",
        "http://a.cloud.example/",
    ):
        with pytest.raises(InputError):
            guard.check(url)


def test_a_name_that_changes_its_address_after_the_check_is_not_followed(server, monkeypatch):
    """DNS rebinding: the address that is connected to is the one that was checked."""
    guard = Guard(("http://rebind.example",))
    port = server.url.rpartition(":")[2]
    resolved(monkeypatch, "93.184.215.14", "127.0.0.1")
    guard.check(f"http://rebind.example:{port}/")
    with (
        pytest.raises(InputError, match=r"leads to 127\.0\.0\.1"),
        Network(guard).open_url(f"http://rebind.example:{port}/"),
    ):
        pass
    assert server.count() == 0


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://localhost:1/", "file:///etc/passwd", "//10.0.0.1/x"]
)
def test_every_redirect_is_checked(server, stac_server, target):
    server.then("/start", stac_server.answer(302, Location=target))
    with pytest.raises(InputError), Network(LOCAL).open_url(f"{server.url}/start"):
        pass
    assert server.count() == 1


def test_redirects_are_followed_to_the_end_but_not_for_ever(server, stac_server):
    server.then("/a", stac_server.answer(301, Location="/b"))
    server.then("/b", stac_server.answer(200, b"here"))
    network = Network(LOCAL)
    with network.open_url(f"{server.url}/a") as response:
        assert network.read(response) == b"here"
        assert response.url == f"{server.url}/b"
    server.then("/loop", *[stac_server.answer(302, Location="/loop")] * 50)
    with pytest.raises(InputError, match="redirects"), network.open_url(f"{server.url}/loop"):
        pass


def test_credentials_stay_with_their_host(stac_server, server):
    """A redirect to another host name gets what that host is due, and nothing of the first host's."""
    other = server.url.replace("127.0.0.1", "localhost")
    network = Network(Guard(("http://127.0.0.1", "http://localhost"), private=True))
    server.then("/file", stac_server.answer(302, Location=f"{other}/elsewhere"))
    server.then("/elsewhere", stac_server.answer(200, b"x"))
    given = {server.url: {"Authorization": f"Bearer {SECRET}"}}
    with network.open_url(f"{server.url}/file", credentials=lambda url: given.get(url.rpartition("/")[0], {})):
        pass
    first, second = server.seen
    assert first.headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(second)


def test_a_form_is_not_sent_on_to_another_host(stac_server, server):
    network = Network(Guard(("http://127.0.0.1", "http://localhost"), private=True))
    target = f"{server.url.replace('127.0.0.1', 'localhost')}/thief"
    server.then("/login", stac_server.answer(307, Location=target))
    with (
        pytest.raises(InputError, match="form"),
        network.open_url(f"{server.url}/login", method="POST", form={"password": SECRET}),
    ):
        pass
    assert server.count("/thief") == 0
    server.then("/login", stac_server.answer(302, Location=target))
    server.then("/thief", stac_server.answer(200))
    with network.open_url(f"{server.url}/login", method="POST", form={"password": SECRET}):
        pass
    assert server.seen[-1].method == "GET"
    assert SECRET not in str(server.seen[-1])


def test_netrc_is_not_used_behind_the_callers_back(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Network(LOCAL).open_url(server.url):
        pass
    assert "Authorization" not in server.seen[0].headers


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_retryable_and_tells_how_long_to_wait(server, stac_server, status):
    server.then("/x", stac_server.answer(status, Retry_After="7"))
    with pytest.raises(UnavailableError, match=str(status)) as caught, Network(LOCAL).open_url(f"{server.url}/x"):
        pass
    assert caught.value.wait == 7
    assert isinstance(caught.value, RetryableError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_stays_is_an_input_error_with_its_status(server, stac_server, status):
    server.then("/x", stac_server.answer(status))
    with pytest.raises(HttpError) as caught, Network(LOCAL).open_url(f"{server.url}/x"):
        pass
    assert caught.value.status == status


def test_retry_after_has_two_forms():
    now = datetime(2024, 6, 1, 12, tzinfo=UTC)
    assert retry_after("120", now) == 120
    assert retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert retry_after(format_datetime(now - timedelta(days=1), usegmt=True), now) == 0
    for nothing in (None, "", "soon", "-5", "1e9", "Sat, 99 Foo"):
        assert retry_after(nothing, now) == 0


def test_trying_again_waits_as_long_as_asked_and_gives_up_in_the_end():
    waits, failures = [], [UnavailableError("busy", 5), UnavailableError("busy"), RetryableError("broken")]

    def action():
        if failures:
            raise failures.pop(0)
        return "done"

    assert again(action, 4, 1.0, 60, waits.append) == "done"
    assert waits == [5, 2, 4]
    with pytest.raises(UnavailableError):
        again(lambda: (_ for _ in ()).throw(UnavailableError("busy", 61)), 4, 1.0, 60, waits.append)
    assert len(waits) == 3, "a server that asks for more than the patience is left alone"
    with pytest.raises(InputError):
        again(lambda: (_ for _ in ()).throw(InputError("no")), 4, 1.0, 60, waits.append)
    assert len(waits) == 3


def test_a_server_that_stalls_times_out(server, stac_server):
    server.then("/x", stac_server.stall(b"a" * 100, 10, 3))
    network = Network(LOCAL, timeout=0.2)
    begin = time.monotonic()
    with network.open_url(f"{server.url}/x") as response, pytest.raises(RetryableError, match="stall"):
        list(network.pieces(response))
    assert time.monotonic() - begin < 2
    server.then("/silent", lambda handler: time.sleep(1))
    with pytest.raises(RetryableError), network.open_url(f"{server.url}/silent"):
        pass


def test_a_server_that_drips_counts_as_stalled(server):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    server.then("/x", drip)
    network = Network(LOCAL, timeout=0.3)
    with network.open_url(f"{server.url}/x") as response, pytest.raises(RetryableError, match="stalls"):
        list(network.pieces(response))


def test_a_connection_that_breaks_is_retryable(server, stac_server):
    server.then("/x", stac_server.cut(b"a" * 100, 40))
    network = Network(LOCAL)
    with network.open_url(f"{server.url}/x") as response, pytest.raises(RetryableError):
        list(network.pieces(response))
    with pytest.raises(RetryableError), Network(LOCAL).open_url("http://127.0.0.1:9/closed"):
        pass


def test_an_answer_has_a_limit_also_when_it_is_packed(server, stac_server):
    import gzip

    network = Network(LOCAL)
    server.then("/x", stac_server.answer(200, gzip.compress(b"0" * 10_000_000), Content_Encoding="gzip"))
    with network.open_url(f"{server.url}/x") as response, pytest.raises(InputError, match="more than"):
        network.read(response, limit=1_000_000)
    server.then("/x", stac_server.answer(200, gzip.compress(b'{"a": 1}'), Content_Encoding="gzip"))
    with network.open_url(f"{server.url}/x") as response:
        assert network.read_json(response) == {"a": 1}
    server.then("/x", stac_server.answer(200, b"<html>"))
    with network.open_url(f"{server.url}/x") as response, pytest.raises(InputError, match="no JSON"):
        network.read_json(response)


def test_urls_are_shown_without_what_is_secret():
    url = f"https://user:{SECRET}@example.org:8443/a/b.tif?sig={SECRET}#{SECRET}"
    assert public_url(url) == "https://example.org:8443/a/b.tif"
    assert public_url("https://[::1") == "(a URL that cannot be read)"
    assert without_credentials(url) == "https://example.org:8443/a/b.tif"
    assert without_credentials("https://example.org/a?limit=5&f=json") == "https://example.org/a?limit=5&f=json"
    for name in ("sig", "X-Amz-Signature", "token", "access_token", "apikey", "Signature", "ticket"):
        assert without_credentials(f"https://example.org/a?limit=5&{name}={SECRET}") == "https://example.org/a"


def test_no_secret_is_in_an_error_or_a_log(server, stac_server, caplog):
    caplog.set_level(logging.DEBUG)
    url = f"{server.url}/x?sig={SECRET}"
    network = Network(LOCAL, timeout=0.2)
    server.then(
        "/x",
        stac_server.answer(404),
        stac_server.answer(503),
        stac_server.stall(b"ab", 1, 0.5),
        stac_server.cut(b"ab", 1),
    )
    for _ in range(4):
        with pytest.raises((InputError, RetryableError)) as caught, network.open_url(url) as response:
            list(network.pieces(response))
        assert SECRET not in str(caught.value)
    with pytest.raises(RetryableError) as caught, network.open_url(f"http://127.0.0.1:9/?sig={SECRET}"):
        pass
    assert SECRET not in str(caught.value)
    assert "/x" in caplog.text
    assert SECRET not in caplog.text
