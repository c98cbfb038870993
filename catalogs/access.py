"""Who asks, and how much at a time: logins of the providers, hosts that may be asked, limits of a download."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from cubeloom.errors import ConfigError
from cubeloom.network import Guard, HttpError, Network

from .logins import BasicLogin, CasLogin, Credentials, Login, LoginError, SasLogin, Ticket, TokenLogin
from .providers import KNOWN_HOSTS

GIB = 2**30


def known_logins() -> tuple[Login, ...]:
    """The logins of the providers that are known by name; DLR's is `CUBELOOM_DLR_LOGIN`, `cas` by default or `basic`.

    Raises:
        ConfigError: it is neither.
    """
    dlr = Credentials("CUBELOOM_DLR", ("download.geoservice.dlr.de", "sso.eoc.dlr.de", "geoservice.dlr.de"))
    about = "; the account needs the 'EnMAP Access Service' (https://sso.eoc.dlr.de/geoservice/permissions)"
    kind, files = os.environ.get("CUBELOOM_DLR_LOGIN", "cas"), ("download.geoservice.dlr.de",)
    if kind not in ("cas", "basic"):
        raise ConfigError(f"CUBELOOM_DLR_LOGIN is {kind!r}; expected cas or basic")
    return (
        CasLogin(files, ("sso.eoc.dlr.de",), dlr, about) if kind == "cas" else BasicLogin(files, dlr, about),
        TokenLogin(
            ("download.dataspace.copernicus.eu", "zipper.dataspace.copernicus.eu", "catalogue.dataspace.copernicus.eu"),
            "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token",
            "cdse-public",
            Credentials("CUBELOOM_CDSE", ("identity.dataspace.copernicus.eu", "dataspace.copernicus.eu")),
            given="CUBELOOM_CDSE_TOKEN",
        ),
        SasLogin(("*.blob.core.windows.net",), "https://planetarycomputer.microsoft.com/api/sas/v1/token"),
    )


class Access:
    """How files are fetched: which hosts, by which logins, how many at once, and how patiently.

    Args:
        hosts: that may be asked, as `Guard.hosts` has them.
        private: whether they may lie in a private network.
        logins: by host; `known_logins()` where None.
        predownloaded: a folder that holds the files already, at any depth below it; the network is then not used.
        per_host: requests to one host at a time.
        timeout: seconds without a byte after which a transfer counts as stalled.
        attempts: at each file.
        pause: seconds before the second attempt; doubled for each further one.
        patience: the longest wait that a server may ask for, s.
        largest: bytes of one file at most.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[str] = KNOWN_HOSTS,
        private: bool = False,
        logins: Sequence[Login] | None = None,
        predownloaded: Path | None = None,
        per_host: int = 4,
        timeout: float = 60.0,
        attempts: int = 4,
        pause: float = 1.0,
        patience: float = 300.0,
        largest: int = 64 * GIB,
    ) -> None:
        self.hosts, self.private, self.predownloaded = tuple(hosts), private, predownloaded
        self.per_host, self.timeout, self.largest = per_host, timeout, largest
        self.attempts, self.pause, self.patience = attempts, pause, patience
        self.network = Network(Guard(self.hosts, private), timeout)
        self._logins = tuple(known_logins() if logins is None else logins)
        self._slots: dict[str, threading.Semaphore] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, **options: Any) -> "Access":  # noqa: ANN401 - the arguments of Access
        """An Access to the known providers and to the hosts in `CUBELOOM_HOSTS` (separated by commas).

        `CUBELOOM_PRIVATE=1` allows private networks, `CUBELOOM_PREDOWNLOADED` names a folder with the files. Arguments
        that are given go before.
        """
        extra = [host.strip() for host in os.environ.get("CUBELOOM_HOSTS", "").split(",") if host.strip()]
        folder = os.environ.get("CUBELOOM_PREDOWNLOADED")
        found = {
            "hosts": (*KNOWN_HOSTS, *extra),
            "private": os.environ.get("CUBELOOM_PRIVATE") == "1",
            "predownloaded": Path(folder) if folder else None,
        }
        return cls(**{**found, **options})

    @cached_property
    def local_files(self) -> Mapping[str, Path]:
        """The files below `predownloaded` by name, as they are now; of several of a name the first by path."""
        if self.predownloaded is None:
            return {}
        if not self.predownloaded.is_dir():
            raise ConfigError(f"{self.predownloaded}: no such folder; expected one that holds the files of products")
        return {path.name: path for path in sorted(self.predownloaded.rglob("*"), reverse=True) if path.is_file()}

    def to_api(self, url: str) -> Network:
        """A network that also reaches a STAC API; no login is used there."""
        parts = urlsplit(url)
        listed = f"http://{parts.hostname}" if parts.scheme == "http" else parts.hostname or ""
        return Network(Guard((listed, *self.hosts), self.private), self.timeout)

    def login(self, url: str) -> Login:
        """The login of a URL's host."""
        return next((login for login in self._logins if login.covers(url)), Login())

    @contextmanager
    def open_url(self, url: str, headers: Mapping[str, str]) -> Iterator[tuple[requests.Response, Login, Ticket]]:
        """Ask for a file in the name of its login, when the host has a slot free.

        On the way along redirects a host gets what its own login gives, and nothing of another's.

        Raises:
            LoginError: the server says that one may not have it.
            InputError, RetryableError: as `Network.open_url` and `Login.ticket`.
        """
        login = self.login(url)
        with self._slot(urlsplit(url).hostname or ""):
            ticket = login.ticket(url, self.network)

            def credentials(hop: str) -> Mapping[str, str]:
                return ticket.headers if hop == ticket.url else self._proof(hop, login)

            with ExitStack() as answers:
                try:
                    response = answers.enter_context(
                        self.network.open_url(ticket.url, headers=headers, credentials=credentials)
                    )
                except HttpError as error:
                    if error.status not in (401, 403):
                        raise
                    raise LoginError(f"{error}; it takes {login.needs}", login, ticket) from None
                yield response, login, ticket

    def _proof(self, hop: str, login: Login) -> Mapping[str, str]:
        """What a host further on is given; a login with a form has nothing to add but its cookies."""
        if not login.covers(hop) or isinstance(login, CasLogin | SasLogin):
            return {}
        return login.ticket(hop, self.network).headers

    def _slot(self, host: str) -> threading.Semaphore:
        with self._lock:
            return self._slots.setdefault(host, threading.Semaphore(self.per_host))
