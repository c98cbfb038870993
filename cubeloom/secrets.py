"""Secrets taken out of text before it leaves the program: logs, errors, items, history, reports.

What is taken for a secret: what stands before the `@` of a URL, every parameter of a query that is not known to be
harmless, credentials in headers, values whose name says so, the path of a webhook, and tokens of a form that nothing
else has. A secret in the path of another URL cannot be told from a file's name.

The patterns take time in proportion to the text, whatever it is: it may come from a hostile server.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_plus

HIDDEN = "***"
"""Stands where a secret was."""

_HARMLESS = frozenset(
    "bands bbox bbox-crs collection collections crs datetime end f fields filter filter-crs filter-lang format height "  # noqa: SIM905
    "ids intersects item items lang layers limit offset outputformat page query request scale service sortby start "
    "startindex styles updated version width".split()
)
"""Parameters of catalogs and map services that say what is asked for, not who asks. `token` is none of them: it pages
in some catalogs, but opens doors in most."""

_TELLING = re.compile(
    r"passw(?:or)?d|passphrase|secret|token|credential|signature|cookie|authorization|session_?id"
    r"|(?:api|access|account|auth|private|session|sas|shared|signing|subscription)[-_.]?key"
    r"|(?<![a-z])(?:sig|pwd|jwt|ticket)(?![a-z])",
    re.IGNORECASE,
)
"""What the name of a secret has in it."""

Replacement = str | Callable[[re.Match[str]], str]


def _parameter(found: re.Match[str]) -> str:
    """A parameter of a query: it stays where its name is harmless and nothing could hide in its value."""
    name, value = unquote_plus(found["name"]), unquote_plus(found["value"])
    return found[0] if name.lower() in _HARMLESS and "=" not in value else found["head"] + _hidden(found["value"])


def _named(found: re.Match[str]) -> str:
    """A value under a name, which stays unless the name tells a secret."""
    return found["head"] + _hidden(found["value"]) if _TELLING.search(found["name"]) else found[0]


def _hidden(value: str) -> str:
    """The mark of a secret, and the punctuation of the sentence or list that it stood in."""
    return HIDDEN + value[len(value.rstrip(".,;:!?'`)]}|")) :]


_RULES: tuple[tuple[re.Pattern[str], Replacement], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # scheme://user:password@host
        (r"(?<=//)[^/\s?#\"<>\\]*@", f"{HIDDEN}@"),
        # ?name=value&name=value, also where JSON or HTML wrote the & and where the = is percent-encoded
        (
            r"(?P<head>(?:[?&]|\\u0026|&amp;)(?P<name>[^\s=&#?\"'<>\\]+)(?:=|%3D))"
            r"(?P<value>(?:(?!&amp;|\\u0026)[^\s&#\"<>])+)",
            _parameter,
        ),
        # Authorization: Bearer TOKEN, or with name=value, name="value"
        (
            r"(?P<head>\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)"
            r"(?:(?:basic|bearer|digest|negotiate|ntlm|token|apikey|aws4-hmac-sha256)\s+)?"
            r"(?:[^\s\"',;=]++(?:=(?:\"[^\"]*\"|[^\s\"',]*)(?:,\s*)?)?)+",
            rf"\g<head>{HIDDEN}",
        ),
        (r"(?P<head>\bbearer\s+)(?=[\w+/=.~-]*\d)[\w+/=.~-]{8,}", rf"\g<head>{HIDDEN}"),
        (r"(?P<head>\b(?:set-)?cookie[\"']?\s*:\s*)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\"'\n]+)", rf"\g<head>{HIDDEN}"),
        # NAME=value, 'name': 'value', X-Name: value
        (r"(?P<head>(?<![\w.-])(?P<name>[\w.-]++)(?:=|%3D)[\"']?)(?P<value>[^\s\"'&,;<>]+)", _named),
        (
            r"(?P<head>(?P<quote>[\"'])(?P<name>[\w.-]++)(?P=quote)\s*:\s*(?P<open>[\"']))"
            r"(?P<value>(?:\\.|(?!(?P=open)).)+)",
            _named,
        ),
        (r"(?P<head>(?<![\w.-])(?P<name>x-[\w-]++)\s*:\s*)(?P<value>[^\s\"',;]+)", _named),
        # JSON web tokens; keys of Amazon, Hugging Face, GitHub, Slack
        (r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?", HIDDEN),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_\w{20,}|\bgh[a-z]_\w{20,}|\bxox[a-z]-[\w-]{10,}", HIDDEN),
        # who knows a webhook's path may use it
        (
            r"(?P<head>//(?:hooks\.slack\.com/|[^\s/?#]++/(?:\w++/){0,5}?(?:web)?hooks?/))[^\s\"'<>?#]+",
            rf"\g<head>{HIDDEN}",
        ),
    )
)


def redact(text: str) -> str:
    """`text` with `***` for every secret in it; everything else stays as it is.

    Applied twice it changes nothing more.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """A JSON value with every text in it redacted, and `***` for each text whose key says that it is a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(inner, str) and _TELLING.search(str(key)) else redact_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact_values(inner) for inner in value]
    return value


class RedactingFilter(logging.Filter):
    """Takes secrets out of log records: their message, and the traceback that comes with them.

    Put it on a handler, not on a logger: a logger's filters do not see the records of the loggers below it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True
