"""How providers want to be asked: HTTP Basic, a form that sets a cookie, bearer tokens, signed URLs."""

import base64
import netrc
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from cubeloom.errors import ConfigError, InputError
from cubeloom.network import HttpError, Network, public_url


@dataclass(frozen=True)
class Ticket:
    """Leave to read a URL: what to ask for, headers for its host alone, and which turn of its login it stems from."""

    url: str
    headers: Mapping[str, str]
    turn: int = 0


class Login:
    """How files of some hosts are asked for. This one asks as nobody.

    Attributes:
        hosts: names and patterns, as `Guard.hosts` has them; nothing secret is ever sent to another host.
        needs: what its user is to do, for messages.
    """

    hosts: tuple[str, ...] = ()
    needs: str = "a login that Cubeloom does not know; download the files yourself and name their folder"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._turn = 0

    def covers(self, url: str) -> bool:
        """Whether a URL is one of this login's."""
        host = urlsplit(url).hostname or ""
        return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in self.hosts)

    def ticket(self, url: str, network: Network) -> Ticket:
        """Leave to read a URL.

        Raises:
            InputError: there are no credentials, or they are refused.
            RetryableError: the login cannot be reached now.
        """
        return Ticket(url, {})

    def renew(self, ticket: Ticket) -> bool:
        """Forget what led to a ticket that was refused; whether asking again can help."""
        return False


@dataclass(frozen=True)
class Credentials:
    """Where a user name and password are found: two variables of the environment, else ~/.netrc (or $NETRC).

    Attributes:
        prefix: of the variables `<prefix>_USER` and `<prefix>_PASSWORD`.
        machines: names in netrc, tried in turn.
    """

    prefix: str
    machines: tuple[str, ...]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.prefix}_USER and {self.prefix}_PASSWORD, or the machine {self.machines[0]} in ~/.netrc"

    def find(self) -> tuple[str, str]:
        """User name and password.

        Raises:
            ConfigError: there are none, or netrc cannot be read.
        """
        user, password = os.environ.get(f"{self.prefix}_USER"), os.environ.get(f"{self.prefix}_PASSWORD")
        if user and password:
            return user, password
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        try:
            known = netrc.netrc(str(path)) if path.is_file() else None
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError):  # the error's text quotes what stands there
            raise ConfigError(f"{path}: cannot be read as netrc") from None
        for machine in self.machines:
            found = known.authenticators(machine) if known else None
            if found and found[0] and found[2]:
                return found[0], found[2]
        raise ConfigError(f"no user and password for {self.machines[0]}: set {self.where}")


class LoginError(InputError):
    """A file that was asked for and not given; `ticket` was the leave of `login`."""

    def __init__(self, message: str, login: Login, ticket: Ticket) -> None:
        super().__init__(message)
        self.login, self.ticket = login, ticket


class BasicLogin(Login):
    """HTTP Basic with every request to the login's hosts."""

    def __init__(self, hosts: Sequence[str], credentials: Credentials, about: str = "") -> None:
        super().__init__()
        self.hosts, self._credentials = tuple(hosts), credentials
        self.needs = f"a login (HTTP Basic): set {credentials.where}{about}"

    def ticket(self, url: str, network: Network) -> Ticket:
        """The URL with the header `Authorization`."""
        user, password = self._credentials.find()
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        return Ticket(url, {"Authorization": f"Basic {encoded}"})


class CasLogin(Login):
    """The form of a Central Authentication Service, filled in once; its session cookie serves all further requests.

    Asked for a file, the host redirects to the service's page. That has several forms; the one with a password also
    holds a one-time `execution` token, which must come back with it. The answer redirects to the file with a ticket,
    for which the host sets its session cookie.

    Args:
        hosts: that hold the files.
        service: hosts that may be given the password.
        credentials: where they are found.
        about: more for messages.
    """

    def __init__(self, hosts: Sequence[str], service: Sequence[str], credentials: Credentials, about: str = "") -> None:
        super().__init__()
        self.hosts, self._service, self._credentials = tuple(hosts), tuple(service), credentials
        self._open = False
        self.needs = f"a login (CAS form): set {credentials.where}{about}"

    def ticket(self, url: str, network: Network) -> Ticket:
        """The URL itself, once the session stands."""
        with self._lock:
            if not self._open:
                self._enter(url, network)
                self._open = True
            return Ticket(url, {}, self._turn)

    def renew(self, ticket: Ticket) -> bool:
        """End the session, unless another thread has renewed it since."""
        with self._lock:
            if ticket.turn == self._turn:
                self._open, self._turn = False, self._turn + 1
        return True

    def _enter(self, url: str, network: Network) -> None:
        user, password = self._credentials.find()
        network.forget_cookies()
        with network.open_url(url) as response:
            if not is_page(response):
                return
            form = _login_form(network.read(response, limit=2**21), response.url)
        if form is None:
            raise InputError(
                f"{public_url(url)}: a web page without a login form came instead; this takes {self.needs}"
            )
        action, fields = form
        if urlsplit(action).hostname not in self._service:
            raise InputError(f"{public_url(action)}: no place to send a password to; expected {self._service[0]}")
        try:
            with network.open_url(action, method="POST", form=fields | {"username": user, "password": password}) as got:
                page = network.read(got, limit=2**21) if is_page(got) else b""
                place = got.url
        except HttpError as error:
            if error.status not in (401, 403):
                raise
            raise InputError(f"{public_url(action)}: the user name or the password is refused") from None
        if not page:
            return
        if _login_form(page, place):
            raise InputError(f"{public_url(action)}: the user name or the password is refused")
        raise InputError(
            f"{public_url(place)}: the login ends on a web page and not at the file; open {public_url(url)} in a "
            "browser once, accept what is asked there, and check that the account is subscribed to the data"
        )


class TokenLogin(Login):
    """OAuth 2: a bearer token bought for user name and password, renewed before it ends; or one that is given.

    Args:
        hosts: that hold the files.
        endpoint: URL of the token endpoint.
        client: id of the public client.
        credentials: where they are found.
        given: variable of the environment that may hold a token.
        about: more for messages.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        endpoint: str,
        client: str,
        credentials: Credentials,
        given: str = "",
        about: str = "",
    ) -> None:
        super().__init__()
        self.hosts, self._endpoint, self._client, self._credentials = tuple(hosts), endpoint, client, credentials
        self._given = given
        self._token, self._ends = "", datetime.min.replace(tzinfo=UTC)
        self.needs = f"a login (OAuth): set {credentials.where}, or a token as {given}{about}"

    def ticket(self, url: str, network: Network) -> Ticket:
        """The URL with the header `Authorization`."""
        if given := os.environ.get(self._given, ""):
            return Ticket(url, {"Authorization": f"Bearer {given}"}, -1)
        with self._lock:
            if datetime.now(UTC) >= self._ends:
                self._buy(network)
            return Ticket(url, {"Authorization": f"Bearer {self._token}"}, self._turn)

    def renew(self, ticket: Ticket) -> bool:
        """Buy another token for the next request; a given one cannot be renewed."""
        with self._lock:
            if ticket.turn == self._turn:
                self._turn, self._ends = self._turn + 1, datetime.min.replace(tzinfo=UTC)
        return ticket.turn >= 0

    def _buy(self, network: Network) -> None:
        user, password = self._credentials.find()
        form = {"grant_type": "password", "client_id": self._client, "username": user, "password": password}
        try:
            with network.open_url(self._endpoint, method="POST", form=form) as response:
                answer = network.read_json(response, limit=2**20)
        except HttpError as error:
            if error.status not in (400, 401, 403):
                raise
            raise InputError(f"{public_url(self._endpoint)}: the user name or the password is refused") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("access_token"), str):
            raise InputError(f"{public_url(self._endpoint)}: the answer holds no access_token")
        self._token = answer["access_token"]
        self._ends = datetime.now(UTC) + timedelta(seconds=max(0.0, _seconds(answer.get("expires_in")) - 60))


class SasLogin(Login):
    """Shared access signatures of Azure's blob storage: a query for each container, open to anyone, for some minutes.

    Args:
        hosts: of the storage.
        api: URL that hands out tokens, at `<api>/<account>/<container>`.
    """

    MARGIN = timedelta(minutes=5)
    """A signature is renewed when it has less than this left."""

    needs = "a signature that the provider did not give; the container may have moved: search again"

    def __init__(self, hosts: Sequence[str], api: str) -> None:
        super().__init__()
        self.hosts, self._api = tuple(hosts), api
        self._known: dict[str, tuple[str, datetime]] = {}

    def ticket(self, url: str, network: Network) -> Ticket:
        """The URL with its container's signature; as it is where the container needs none."""
        parts = urlsplit(url)
        account = (parts.hostname or "").partition(".")[0]
        container = parts.path.strip("/").partition("/")[0]
        with self._lock:
            token, ends = self._known.get(f"{account}/{container}", ("", datetime.min.replace(tzinfo=UTC)))
            if ends - datetime.now(UTC) < self.MARGIN:
                token, ends = self._known[f"{account}/{container}"] = self._ask(account, container, network)
            return Ticket(parts._replace(query=token).geturl() if token else url, {}, self._turn)

    def renew(self, ticket: Ticket) -> bool:
        """Ask for other signatures, unless another thread has since."""
        with self._lock:
            if ticket.turn == self._turn:
                self._turn += 1
                self._known.clear()
        return True

    def _ask(self, account: str, container: str, network: Network) -> tuple[str, datetime]:
        endless = datetime.max.replace(tzinfo=UTC)
        try:
            with network.open_url(f"{self._api}/{account}/{container}") as response:
                answer = network.read_json(response, limit=2**20)
        except HttpError as error:
            if error.status == 404:
                return "", endless
            raise
        try:
            ends = datetime.fromisoformat(answer["msft:expiry"])
            return str(answer["token"]), ends if ends.tzinfo else ends.replace(tzinfo=UTC)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{public_url(self._api)}: the answer holds no token and expiry") from None


def is_page(response: requests.Response) -> bool:
    """Whether an answer says that it is a web page."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in (
        "text/html",
        "application/xhtml+xml",
    )


class _Forms(HTMLParser):
    """The forms of a page: where they go to and their fields with the values that stand there."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[tuple[str, dict[str, str], bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "form":
            self.forms.append((found.get("action", ""), {}, False))
        elif tag == "input" and self.forms and found.get("name"):
            action, fields, secret = self.forms[-1]
            fields[found["name"]] = found.get("value", "")
            self.forms[-1] = action, fields, secret or found.get("type", "").lower() == "password"


def _login_form(page: bytes, url: str) -> tuple[str, dict[str, str]] | None:
    """Target and fields of the form of a page that takes a password and has an `execution` token."""
    forms = _Forms()
    forms.feed(page.decode(errors="replace"))
    for action, fields, secret in forms.forms:
        if secret and "execution" in fields:
            return urljoin(url, action) if action else url, fields
    return None


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
