"""Tell somebody how a job ended: a webhook (POST of JSON) and mail.

A message that cannot be delivered is a warning and changes nothing else. No message, and no warning about one, holds a
login: URLs lose their query and password, and the webhook's own address, which is a secret in itself, is never shown.
"""

import http.client
import json
import os
import platform
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

from cubeloom.errors import ConfigError
from cubeloom.secrets import redact_values

TIMEOUT_S = 15.0
TRIES = 3
PAUSE_S = 1.0
"""Before the second try; twice as long before each further one."""
MOST_SCENES = 20
"""Scenes listed in a message; the report has all."""

WEBHOOK = "CUBELOOM_WEBHOOK"
"""Environment variable that holds the webhook's URL, so that it stands in no command line."""


@dataclass(frozen=True)
class Mailbox:
    """How mail leaves: the SMTP host, from the environment.

    `CUBELOOM_SMTP_HOST` (`host` or `host:port`), `CUBELOOM_SMTP_USER` and `CUBELOOM_SMTP_PASSWORD` where it wants a
    login, `CUBELOOM_SMTP_TLS` (`starttls`, `tls` or `none`; `starttls` by default where there is a login, which never
    goes over an open line), `CUBELOOM_MAIL_FROM`.
    """

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    tls: str = "none"
    sender: str = ""

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Mailbox":
        """The mailbox that the environment describes.

        Raises:
            ConfigError: it names no host, or a wrong port or kind of TLS.
        """
        host, _, port = environment.get("CUBELOOM_SMTP_HOST", "").partition(":")
        user, password = environment.get("CUBELOOM_SMTP_USER", ""), environment.get("CUBELOOM_SMTP_PASSWORD", "")
        tls = environment.get("CUBELOOM_SMTP_TLS", "starttls" if user else "none")
        if not host or tls not in PORTS or not (port or "0").isdecimal() or (user and tls == "none"):
            raise ConfigError(
                "mail needs CUBELOOM_SMTP_HOST=host[:port], and CUBELOOM_SMTP_TLS one of starttls, tls or none (none "
                f"only without CUBELOOM_SMTP_USER); found host {host!r}, port {port!r}, TLS {tls!r}"
            )
        sender = environment.get("CUBELOOM_MAIL_FROM", f"cubeloom@{platform.node() or 'localhost'}")
        return Mailbox(host, int(port or PORTS[tls]), user, password, tls, sender)

    def send(self, message: EmailMessage) -> None:
        """Deliver a message.

        Raises:
            OSError, smtplib.SMTPException: it was not taken.
        """
        context = ssl.create_default_context()
        server: smtplib.SMTP
        if self.tls == "tls":
            server = smtplib.SMTP_SSL(self.host, self.port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=TIMEOUT_S)
        with server:
            if self.tls == "starttls":
                server.starttls(context=context)
            if self.user:
                server.login(self.user, self.password)
            server.send_message(message)


PORTS = {"none": 25, "starttls": 587, "tls": 465}


@dataclass(frozen=True)
class Notices:
    """Who is told, and when.

    Attributes:
        webhook: URL that takes a POST; empty for none.
        mail: addresses.
        always: also tell of a night on which all went well.
    """

    webhook: str = field(default="", repr=False)
    mail: tuple[str, ...] = ()
    always: bool = False

    def tell(self, summary: Mapping[str, Any]) -> list[str]:
        """Send a job's summary (see `NightlyResult.summary`) if it is worth it.

        Returns:
            Warnings: what could not be sent, and why.
        """
        if not (self.always or summary["exit_code"]):
            return []
        body = message_of(summary)
        warnings = []
        if self.webhook:
            warnings += _tried(f"webhook at {_host(self.webhook)}", lambda: _post(self.webhook, body))
        if self.mail:
            warnings += _tried("mail", lambda: Mailbox.from_environment().send(_letter(body, self.mail)))
        return warnings


def message_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent: the summary, a headline that chat services show as `text`, no secrets, and not every scene."""
    scenes = list(summary.get("without_product", ()))
    body = {
        "text": headline(summary),
        "host": platform.node(),
        **summary,
        "without_product": scenes[:MOST_SCENES],
        "not_listed": max(len(scenes) - MOST_SCENES, 0),
    }
    cleaned: dict[str, Any] = redact_values(body)
    return cleaned


def headline(summary: Mapping[str, Any]) -> str:
    """A job's end in one line."""
    counts = ", ".join(f"{number} {state}" for state, number in summary.get("counts", {}).items())
    what = summary.get("error") or counts or "nothing new"
    return f"cubeloom nightly {summary['workflow']} on {platform.node()}: {what} (exit code {summary['exit_code']})"


def _letter(body: Mapping[str, Any], to: Sequence[str]) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = " ".join(str(body["text"]).split())[:200]
    message["From"] = Mailbox.from_environment().sender
    message["To"] = ", ".join(to)
    lines = [str(body["text"]), ""]
    lines += [f"{scene['item']}: {scene['state']}: {scene['cause']}" for scene in body["without_product"]]
    rest = {key: value for key, value in body.items() if key not in ("text", "without_product")}
    message.set_content("\n".join([*lines, "", json.dumps(rest, indent=1, default=str)]))
    return message


def _post(url: str, body: Mapping[str, Any]) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError("a webhook is an http or https URL")
    data = json.dumps(body, default=str).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    with urllib.request.build_opener(_Stay).open(request, timeout=TIMEOUT_S) as answer:
        answer.read(1024)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a message goes where its operator sends it."""

    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401 - as the base class has it
        """Refuse."""


def _tried(what: str, send: Callable[[], None]) -> list[str]:
    """Try some times, unless the other side says that it will never take it; gives a warning if it was in vain."""
    cause = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            send()
        except (OSError, http.client.HTTPException, smtplib.SMTPException, ConfigError, ValueError) as error:
            cause = _why(error)
            if _final(error):
                break
        else:
            return []
    return [f"{what} could not be told: {cause}"]


def _final(error: Exception) -> bool:
    """Whether trying again is no use."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code >= 500
    return isinstance(
        error, ConfigError | ValueError | http.client.InvalidURL | smtplib.SMTPNotSupportedError | ssl.SSLError
    )


def _why(error: Exception) -> str:
    """An error in words that hold neither an address nor a login."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, smtplib.SMTPResponseException):
        return f"SMTP {error.smtp_code}"
    return f"{type(error).__name__}{f': {error.strerror}' if isinstance(error, OSError) and error.strerror else ''}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "an unknown host"
    except ValueError:
        return "an unknown host"
