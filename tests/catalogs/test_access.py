"""Logins against stand-ins of the services: what they send, to whom, how often, and what they say when refused."""

import json
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from cubeloom.catalogs.access import Access, known_logins
from cubeloom.catalogs.logins import BasicLogin, CasLogin, Credentials, LoginError, SasLogin, TokenLogin
from cubeloom.errors import ConfigError, InputError

USER, PASSWORD = "someone", "p&ss word=ü"
MINE = Credentials("MINE", ("files.example",))


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No credentials of whoever runs the tests."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("MINE_USER", "MINE_PASSWORD", "MINE_TOKEN", "CUBELOOM_DLR_LOGIN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def me(monkeypatch):
    monkeypatch.setenv("MINE_USER", USER)
    monkeypatch.setenv("MINE_PASSWORD", PASSWORD)


@pytest.fixture
def server(stac_server):
    with stac_server.StacServer() as server:
        yield server


def fetched(access, url):
    with access.open_url(url, {}) as (response, _, _):
        return access.network.read(response)


class Cas:
    """A Central Authentication Service on `localhost` that keeps the files of 127.0.0.1."""

    def __init__(self, server):
        self.server, self.tokens, self.tickets, self.sessions = server, set(), set(), set()
        self.logins, self.terms = 0, False
        server.routes["/files/"] = self.file
        server.routes["/cas/"] = self.page

    def page(self, handler):
        service = handler.asked.query["service"]
        if handler.command == "POST":
            form = {key: values[0] for key, values in parse_qs(handler.asked.body).items()}
            known = form.get("execution") in self.tokens
            self.tokens.discard(form.get("execution"))
            if known and (form.get("username"), form.get("password"), form.get("_eventId")) == (
                USER,
                PASSWORD,
                "submit",
            ):
                self.logins += 1
                ticket = f"ST-{self.logins}"
                self.tickets.add(ticket)
                handler.send(302, b"", {"Location": f"{service}?ticket={ticket}"})
                return
            self.form(handler, 401)
            return
        self.form(handler, 200)

    def form(self, handler, status):
        token = f"e{len(handler.stac.seen)}s1"
        self.tokens.add(token)
        page = f"""<!DOCTYPE html><html><head><title>Login</title></head><body>
        <form action="/search"><input type="text" name="execution" value="wrong"/><input name="q"></form>
        <form method="post" id="fm1"><input name="username"/><input type="password" name="password"/>
        <input type="hidden" name="execution" value="{token}"/><input type="hidden" name="_eventId" value="submit"/>
        </form></body></html>"""
        handler.send(status, page.encode(), {"Content-Type": "text/html;charset=UTF-8"})

    def file(self, handler):
        here = f"{self.server.url}{handler.asked.path}"
        ticket = handler.asked.query.get("ticket")
        cookie = handler.asked.headers.get("Cookie", "").removeprefix("session=")
        if ticket in self.tickets:
            self.tickets.discard(ticket)
            self.sessions.add(f"s-{ticket}")
            handler.send(302, b"", {"Location": here, "Set-Cookie": f"session=s-{ticket}; Path=/"})
        elif cookie in self.sessions and self.terms:
            handler.send(200, b"<html>Please accept our terms</html>", {"Content-Type": "text/html"})
        elif cookie in self.sessions:
            handler.send(200, b"the file")
        else:
            service = self.server.url.replace("127.0.0.1", "localhost")
            handler.send(302, b"", {"Location": f"{service}/cas/login?service={here}"})


@pytest.fixture
def cas(server):
    return Cas(server)


def cas_access(server, service="localhost", **options):
    login = CasLogin(("127.0.0.1",), (service,), MINE, "; ask the archive for an account")
    return server.access(hosts=("http://127.0.0.1", "http://localhost"), logins=(login,), **options)


def test_the_form_of_a_cas_is_filled_in_once_for_all_files(server, cas, me):
    access = cas_access(server)
    assert [fetched(access, f"{server.url}/files/{name}") for name in "abc"] == [b"the file"] * 3
    assert cas.logins == 1
    posted = [seen for seen in server.seen if seen.method == "POST"]
    assert len(posted) == 1
    assert "execution=e" in posted[0].body
    assert all(PASSWORD not in str(seen) for seen in server.seen if seen.path.startswith("/files"))


def test_threads_log_in_once(server, cas, me):
    access, found = cas_access(server, per_host=8), []
    threads = [
        threading.Thread(target=lambda n=n: found.append(fetched(access, f"{server.url}/files/{n}"))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"the file"] * 8
    assert cas.logins == 1


def test_a_session_that_ends_is_renewed_when_asked(server, cas, me):
    access = cas_access(server)
    url = f"{server.url}/files/a"
    assert fetched(access, url) == b"the file"
    cas.sessions.clear()
    with access.open_url(url, {}) as (response, login, ticket):
        assert b"password" in access.network.read(response), "a login page in place of the file, with status 200"
    assert login.renew(ticket)
    assert fetched(access, url) == b"the file"
    assert cas.logins == 2
    assert login.renew(ticket)
    assert fetched(access, url) == b"the file"
    assert cas.logins == 2, "a ticket of an earlier turn does not end the session"


def test_a_wrong_password_says_so(server, cas, me, monkeypatch):
    monkeypatch.setenv("MINE_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refused") as caught:
        fetched(cas_access(server), f"{server.url}/files/a")
    assert "wrong" not in str(caught.value)
    assert cas.logins == 0


def test_terms_that_must_be_accepted_are_told(server, cas, me):
    cas.terms = True
    with pytest.raises(InputError, match="browser once"):
        fetched(cas_access(server), f"{server.url}/files/a")


def test_a_password_goes_to_the_service_alone(server, cas, me):
    """A page that looks like the service's, on a host that is not, gets nothing."""
    with pytest.raises(InputError, match="no place to send a password"):
        fetched(cas_access(server, service="sso.example"), f"{server.url}/files/a")
    assert not [seen for seen in server.seen if seen.method == "POST"]


def test_without_credentials_nothing_is_asked_and_the_variables_are_named(server, cas):
    with pytest.raises(ConfigError, match=r"MINE_USER and MINE_PASSWORD.*netrc"):
        fetched(cas_access(server), f"{server.url}/files/a")
    assert server.count() == 0


def test_basic_sends_what_netrc_says_to_its_hosts_alone(server, tmp_path, stac_server):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine files.example login someone password secret\n")
    server.routes["/files/"] = stac_server.answer(200, b"x")
    access = server.access(logins=(BasicLogin(("127.0.0.1",), MINE),), hosts=("http://127.0.0.1", "http://localhost"))
    fetched(access, f"{server.url}/files/a")
    assert server.seen[0].headers["Authorization"] == "Basic c29tZW9uZTpzZWNyZXQ="
    server.then("/files/b", stac_server.answer(302, Location=f"{server.url.replace('127.0.0.1', 'localhost')}/files/c"))
    fetched(access, f"{server.url}/files/b")
    assert "Authorization" not in server.seen[-1].headers
    assert server.seen[-1].path == "/files/c"


def test_a_netrc_that_cannot_be_read_is_named_and_not_quoted(tmp_path):
    (tmp_path / "netrc").write_text("machine files.example login someone pass word SECRET\n")
    with pytest.raises(ConfigError, match="netrc") as caught:
        MINE.find()
    assert "SECRET" not in str(caught.value)


def test_a_refusal_says_which_login_is_needed(server, stac_server, me):
    server.routes["/files/"] = stac_server.answer(403)
    access = server.access(logins=(BasicLogin(("127.0.0.1",), MINE, "; subscribe first"),))
    with pytest.raises(LoginError, match=r"MINE_USER.*subscribe first"):
        fetched(access, f"{server.url}/files/a")


class Tokens:
    """An OAuth endpoint, and files for who has its last token."""

    def __init__(self, server, seconds=600):
        self.server, self.seconds, self.sold = server, seconds, 0
        server.routes["/token"] = self.sell
        server.routes["/files/"] = self.file

    def sell(self, handler):
        form = {key: values[0] for key, values in parse_qs(handler.asked.body).items()}
        if (form.get("username"), form.get("password"), form.get("grant_type")) != (USER, PASSWORD, "password"):
            handler.send(401, b'{"error": "invalid_grant"}')
            return
        self.sold += 1
        handler.send_json({"access_token": f"t{self.sold}", "expires_in": self.seconds})

    def file(self, handler):
        good = handler.asked.headers.get("Authorization") == f"Bearer t{self.sold}"
        handler.send(200 if good else 401, b"the file")

    def access(self):
        login = TokenLogin(("127.0.0.1",), f"{self.server.url}/token", "public", MINE, given="MINE_TOKEN")
        return self.server.access(logins=(login,))


def test_a_token_is_bought_once_and_again_before_it_ends(server, me):
    tokens = Tokens(server)
    access = tokens.access()
    assert fetched(access, f"{server.url}/files/a") == fetched(access, f"{server.url}/files/b") == b"the file"
    assert tokens.sold == 1
    short = Tokens(server, seconds=30)
    access = short.access()
    fetched(access, f"{server.url}/files/a")
    fetched(access, f"{server.url}/files/b")
    assert short.sold == 2, "less than a minute is left of it"


def test_a_token_that_was_taken_back_is_bought_anew(server, me):
    tokens = Tokens(server)
    access = tokens.access()
    fetched(access, f"{server.url}/files/a")
    tokens.sold += 1
    with pytest.raises(LoginError) as refused:
        fetched(access, f"{server.url}/files/a")
    assert refused.value.login.renew(refused.value.ticket)
    assert fetched(access, f"{server.url}/files/a") == b"the file"


def test_a_token_may_be_given(server, monkeypatch):
    tokens = Tokens(server)
    tokens.sold = 7
    monkeypatch.setenv("MINE_TOKEN", "t7")
    assert fetched(tokens.access(), f"{server.url}/files/a") == b"the file"
    monkeypatch.setenv("MINE_TOKEN", "old")
    with pytest.raises(LoginError) as refused:
        fetched(tokens.access(), f"{server.url}/files/a")
    assert not refused.value.login.renew(refused.value.ticket)


def test_a_wrong_password_for_a_token_says_so(server, me, monkeypatch):
    monkeypatch.setenv("MINE_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refused") as caught:
        fetched(Tokens(server).access(), f"{server.url}/files/a")
    assert "wrong" not in str(caught.value)


class Signer:
    """Hands out signatures for one container that end after some time, and files for who has the last one."""

    def __init__(self, server, minutes=45):
        self.server, self.minutes, self.given = server, minutes, 0
        server.routes["/sas/"] = self.sign
        server.routes["/container/"] = self.file

    def sign(self, handler):
        if not handler.asked.path.endswith("/127/container"):
            handler.send(404, b"")
            return
        self.given += 1
        ends = datetime.now(UTC) + timedelta(minutes=self.minutes)
        handler.send_json({"token": f"sv=2024&sig=s%2B{self.given}", "msft:expiry": ends.isoformat()})

    def file(self, handler):
        good = handler.asked.query.get("sig") == f"s+{self.given}"
        handler.send(200 if good else 403, b"the file")

    def access(self):
        return self.server.access(logins=(SasLogin(("127.0.0.1",), f"{self.server.url}/sas"),))


def test_blobs_are_signed_right_before_they_are_read_and_signatures_renewed(server):
    signer = Signer(server)
    access = signer.access()
    assert fetched(access, f"{server.url}/container/a.tif") == fetched(access, f"{server.url}/container/b.tif")
    assert signer.given == 1
    signer.minutes = 3
    access = signer.access()
    fetched(access, f"{server.url}/container/a.tif")
    fetched(access, f"{server.url}/container/b.tif")
    assert signer.given == 3, "less than five minutes are left of it"


def test_a_container_that_needs_no_signature_is_read_without(server, stac_server):
    Signer(server)
    server.routes["/open/"] = stac_server.answer(200, b"public")
    access = server.access(logins=(SasLogin(("127.0.0.1",), f"{server.url}/sas"),))
    assert fetched(access, f"{server.url}/open/a.tif") == b"public"
    assert server.seen[-1].query == {}


def test_the_logins_of_the_known_providers_cover_their_hosts(monkeypatch):
    access = Access()
    kinds = {
        "https://download.geoservice.dlr.de/ENMAP/files/x": CasLogin,
        "https://download.dataspace.copernicus.eu/odata/v1/x": TokenLogin,
        "https://sentinel2l2a01.blob.core.windows.net/c/x": SasLogin,
    }
    for url, kind in kinds.items():
        assert isinstance(access.login(url), kind)
        access.network.guard.admit(url)
    assert not isinstance(access.login("https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/x"), CasLogin)
    for url in ("https://sso.eoc.dlr.de/x", "https://evil.example/"):
        assert type(access.login(url)).__name__ == "Login"
    monkeypatch.setenv("CUBELOOM_DLR_LOGIN", "basic")
    assert isinstance(known_logins()[0], BasicLogin)
    monkeypatch.setenv("CUBELOOM_DLR_LOGIN", "magic")
    with pytest.raises(ConfigError, match="cas or basic"):
        known_logins()


def test_the_environment_adds_hosts(monkeypatch, tmp_path):
    monkeypatch.setenv("CUBELOOM_HOSTS", "stac.example.org, http://10.0.0.5")
    monkeypatch.setenv("CUBELOOM_PREDOWNLOADED", str(tmp_path))
    access = Access.from_environment()
    access.network.guard.admit("https://stac.example.org/x")
    with pytest.raises(InputError, match="CUBELOOM_PRIVATE"):
        access.network.guard.admit("http://10.0.0.5/x")
    assert access.predownloaded == tmp_path
    monkeypatch.setenv("CUBELOOM_PRIVATE", "1")
    Access.from_environment().network.guard.admit("http://10.0.0.5/x")


def test_no_more_requests_at_a_time_than_allowed(server):
    running, most, lock = [], [0], threading.Lock()

    def slow(handler):
        with lock:
            running.append(1)
            most[0] = max(most[0], len(running))
        threading.Event().wait(0.05)
        with lock:
            running.pop()
        handler.send(200, b"x")

    server.routes["/files/"] = slow
    access = server.access(per_host=2)
    threads = [threading.Thread(target=fetched, args=(access, f"{server.url}/files/{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def test_json_of_the_signer_is_checked(server, stac_server):
    server.routes["/sas/"] = stac_server.answer(200, json.dumps({"token": "x"}).encode())
    access = server.access(logins=(SasLogin(("127.0.0.1",), f"{server.url}/sas"),))
    with pytest.raises(InputError, match="no token and expiry"):
        fetched(access, f"{server.url}/container/a")
    assert urlsplit(server.seen[0].path).path == "/sas/127/container"
