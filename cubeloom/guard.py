"""Which addresses may be reached, and how a URL may be shown.

Nothing of a URL but its scheme, host and path is ever shown: queries carry signatures and tokens.
"""

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from cubeloom.errors import InputError, RetryableError

_SECRET = re.compile(
    r"(?i)^(sig|signature|token|access[-_]?token|key|api[-_]?key|subscription[-_]?key|password|ticket|policy|"
    r"key-pair-id|awsaccesskeyid|x-(amz|goog)-.*|s[eprktv]|sks|ske|skt|skv|skoid|sktid|spr|sip)$"
)
"""Names of query parameters that grant access: SAS, S3, CloudFront, Google, CAS and plain keys."""


class UnavailableError(RetryableError):
    """A server that is busy or cannot be reached now.

    Attributes:
        wait: seconds that the server asks to wait; 0 where it says nothing.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def public_url(url: str) -> str:
    """A URL fit for messages: scheme, host, port and path; no user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(a URL that cannot be read)"
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def without_credentials(url: str) -> str:
    """A URL without user, password and fragment, and without its query if that grants access."""
    parts = urlsplit(url)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    query = "" if any(_SECRET.match(name) for name in names) else parts.query
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


@dataclass(frozen=True)
class Guard:
    """What may be reached.

    Attributes:
        hosts: names (`example.org`) or patterns (`*.example.org`, the name itself excluded); any public one where None.
            Plain http is for those alone that are given as `http://name`.
        private: whether names may lead to private, loopback and link-local addresses.
    """

    hosts: Collection[str] | None = None
    private: bool = False

    def check(self, url: str) -> None:
        """Refuse a URL that may not be reached, after looking its name up.

        Raises:
            InputError: the scheme, the host or an address it leads to is not allowed.
            UnavailableError: the name cannot be resolved.
        """
        parts = self.admit(url)
        self.addresses(parts.hostname or "", parts.port or 443)

    def admit(self, url: str) -> SplitResult:
        """The parts of a URL whose scheme and host are allowed; no name is looked up.

        Raises:
            InputError: they are not.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise InputError(f"{url[:80]!r} is no URL") from None
        shown = public_url(url)
        if parts.scheme not in ("http", "https") or not host:
            raise InputError(f"{shown}: only https addresses are read")
        if parts.username is not None or parts.password is not None:
            raise InputError(f"{shown}: the URL holds a user or a password; credentials belong into the environment")
        if parts.scheme == "http" and not self._listed(host, plain=True):
            raise InputError(
                f"{shown}: plain http is refused, since anyone on the way could change what is read; for a server of "
                f"your own put http://{host} into CUBELOOM_HOSTS"
            )
        if self.hosts is not None and not self._listed(host, plain=parts.scheme == "http"):
            raise InputError(
                f"{shown}: {host} is not among the hosts that may be asked; if it is to be trusted, add it to "
                "CUBELOOM_HOSTS (names separated by commas)"
            )
        if (literal := _address(host)) is not None:
            self._refuse_private(host, [literal])
        return parts

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of which may be reached.

        Raises:
            InputError: one of them is private.
            UnavailableError: the name cannot be resolved.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UnavailableError(f"{host}: the name cannot be resolved; is there a network?") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        self._refuse_private(host, [ipaddress.ip_address(address.partition("%")[0]) for address in addresses])
        return addresses

    def _listed(self, host: str, *, plain: bool) -> bool:
        listed = [entry.lower() for entry in self.hosts or ()]
        if f"http://{host}" in listed:
            return True
        names = [] if plain else [entry.removeprefix("https://") for entry in listed]
        return any(host.endswith(name[1:]) if name.startswith("*.") else host == name for name in names)

    def _refuse_private(self, host: str, addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
        for address in () if self.private else addresses:
            if not _is_public(address):
                raise InputError(
                    f"{host}: leads to {address}, which is no public address; a catalog may not reach into a private "
                    "network (CUBELOOM_PRIVATE=1 allows it, for servers of your own)"
                )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the public internet; IPv4 inside IPv6 counts as what it holds."""
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo[1] if address.teredo else None
        inner = address.ipv4_mapped or address.sixtofour or teredo
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved
