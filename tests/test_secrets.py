"""Secrets do not get into text that leaves the program, and everything else does."""

import logging
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeloom.secrets import HIDDEN, RedactingFilter, redact, redact_values

SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%+"
SECRETS = st.text(SAFE + "!$*,:;@/?|", min_size=8, max_size=40).filter(lambda text: text[-1] not in ".,;:!?|")
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
HARMLESS = st.sampled_from(["bbox", "limit", "collections", "datetime", "startIndex"])
ANY_NAME = st.sampled_from(
    ["sig", "se", "X-Amz-Signature", "X-Amz-Credential", "token", "access_token", "api_key", "key", "%73ig", "hdnea"]
)


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A URL, how it should read without its secrets, and these."""
    secrets = [f"zQ{draw(SECRETS)}" for _ in range(draw(st.integers(1, 4)))]
    user = draw(st.booleans())
    password = quote(secrets[0], safe="!$*,:;")
    rest = secrets[1:] if user else secrets
    url = f"{draw(st.sampled_from(['https', 's3', 'ftp']))}://"
    clean = url
    if user:
        url, clean = f"{url}{draw(WORDS)}:{password}@", f"{clean}{HIDDEN}@"
    path = draw(st.sampled_from(["", ":8443"])) + "".join(f"/{word}" for word in draw(st.lists(WORDS, max_size=3)))
    host = draw(WORDS) + ".example"
    url, clean = url + host + path, clean + host + path
    pairs = [(draw(ANY_NAME), secret, HIDDEN) for secret in rest]
    pairs += [(draw(HARMLESS), word, word) for word in draw(st.lists(WORDS, max_size=2))]
    pairs = draw(st.permutations(pairs))
    if pairs:
        url += "?" + "&".join(f"{name}={value}" for name, value, _ in pairs)
        clean += "?" + "&".join(f"{name}={shown}" for name, _, shown in pairs)
    return url, clean, [password, *rest] if user else rest


@settings(deadline=None)
@given(
    urls(),
    st.sampled_from(["", " ", "GET ", "(", "'", '{"href": "', "see\n"]),
    st.sampled_from(["", ")", '", ', " 200"]),
)
def test_a_secret_in_a_url_never_survives_and_all_else_does(found, before, after):
    url, clean, secrets = found
    shown = redact(before + url + after)
    assert shown == before + clean + after
    assert not any(secret in shown for secret in secrets)
    assert redact(shown) == shown


@settings(deadline=None)
@given(st.text(), urls())
def test_no_text_around_a_url_saves_its_secret(before, found):
    url, _, secrets = found
    shown = redact(f"{before} {url} {before}")
    assert not any(secret in shown for secret in secrets if secret not in before)


CASES = {
    "Authorization: Bearer aB3.dE-f failed with 401": "Authorization: *** failed with 401",
    "{'Authorization': 'Basic dXNlcjpwYXNz', 'Accept': '*/*'}": "{'Authorization': '***', 'Accept': '*/*'}",
    'Authorization: Digest username="u", response="SECRET", uri=/x\nHost: a': "Authorization: ***\nHost: a",
    "authorization: AWS4-HMAC-SHA256 Credential=A/b, Signature=SECRET": "authorization: ***",
    "sent bearer abc123defgh": "sent bearer ***",
    "Cookie: session=a; user=b\nHost: c": "Cookie: ***\nHost: c",
    "X-Api-Key: abc, next": "X-Api-Key: ***, next",
    '{"access_token": "a\\"bc", "expires_in": 600}': '{"access_token": "***", "expires_in": 600}',
    "AWS_SECRET_ACCESS_KEY=abc/d+ AWS_REGION=eu": "AWS_SECRET_ACCESS_KEY=*** AWS_REGION=eu",
    "Max retries exceeded with url: /a.tif?sig=a%2Bb&se=2 (Caused by": (
        "Max retries exceeded with url: /a.tif?sig=***&se=*** (Caused by"
    ),
    "https://h/login?service=https%3A%2F%2Fx%3Fticket%3DST-1": "https://h/login?service=***",
    "https://h/a;jsessionid=AB12.tif?page=2": "https://h/a;jsessionid=***",
    "https://h/#access_token=abc": "https://h/#access_token=***",
    "a?limit=5\\u0026sig=abc": "a?limit=5\\u0026sig=***",
    "a?limit=5&amp;sig=abc": "a?limit=5&amp;sig=***",
    "https://hooks.slack.com/services/T1/B2/abc": "https://hooks.slack.com/***",
    "got eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM": "got ***",
}


@pytest.mark.parametrize("text", CASES)
def test_headers_tokens_and_addresses_of_other_forms(text):
    assert redact(text) == CASES[text]
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "CLEAN.TIF#scale=0.0001: no such file",
        "unknown key 'token': expected a mapping",
        "https://h:443/a?bbox=1,2,3,4&limit=10, page 2 of 3",
        "sigma=3 design=4 --set classify.model=/x/y",
        "/data/a@b/c.tif: 28.7 GB when decoded; at most 17.2 GB are read",
        "EnMAP 'ENMAP01-____L2A-DT0000001867_20220724T104526Z_008' (band 91, 931.2 nm)",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_values_of_a_document_are_redacted_by_key_and_by_content():
    document = {"url": "https://u:p@h/?sig=s", "headers": {"X-Token": "abc", "n": [1, None, "?sig=s"]}, "seconds": 0.5}
    shown = {"url": "https://***@h/?sig=***", "headers": {"X-Token": "***", "n": [1, None, "?sig=***"]}, "seconds": 0.5}
    assert redact_values(document) == shown


def test_a_log_has_no_secrets_in_messages_arguments_and_tracebacks(caplog):
    logger, filtered = logging.getLogger("test_secrets.inner"), RedactingFilter()
    caplog.handler.addFilter(filtered)
    try:
        raise ValueError("https://user:PASSWORD@host/?sig=SIGNATURE")
    except ValueError:
        logger.exception("while reading %s", "https://h/?token=TOKEN&limit=3", stack_info=True)
    finally:
        caplog.handler.removeFilter(filtered)
    assert not any(secret in caplog.text for secret in ("PASSWORD", "SIGNATURE", "TOKEN"))
    assert "while reading https://h/?token=***&limit=3" in caplog.text
    assert "ValueError: https://***@host/?sig=***" in caplog.text


@pytest.mark.parametrize(
    "piece", ["token.", "?a", "&a=", "a@//", "eyJ-", "'a':", '"a":"', "authorization: a=b,", "x-a-"]
)
def test_hostile_text_takes_no_more_than_linear_time(piece):
    start = time.process_time()
    redact(piece * (400_000 // len(piece)))
    assert time.process_time() - start < 3
