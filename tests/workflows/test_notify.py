"""Messages about a night, to real servers on loopback: a webhook and a mail host."""

import email
import json
import socketserver
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cubeloom.workflows import notify
from cubeloom.workflows.notify import MOST_SCENES, Notices

SECRET = "c0ffee4711"
SUMMARY = {
    "workflow": "enmap_l2a",
    "search": "dlr-enmap",
    "exit_code": 3,
    "counts": {"failed": 1, "published": 2},
    "without_product": [
        {
            "item": "ENMAP01",
            "state": "failed",
            "cause": f"https://user:{SECRET}@example.org/a.tif?sig={SECRET}&sp=r cannot be read",
        }
    ],
}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(notify, "PAUSE_S", 0.01)


@dataclass
class Hook:
    """A webhook: answers with `answers` in turn, then 204, and keeps what it got."""

    url: str = ""
    answers: list = field(default_factory=list)
    got: list = field(default_factory=list)


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hook():
    taken = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            status = taken.answers.pop(0) if taken.answers else 204
            if status is None:  # hangs up
                self.close_connection = True
                return
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    taken.url = f"http://127.0.0.1:{server.server_address[1]}/services/{SECRET}"
    with serving(server):
        yield taken


class TestWebhook:
    def test_it_gets_the_summary_with_a_headline(self, hook):
        assert Notices(hook.url).tell(SUMMARY) == []
        [(path, kind, body)] = hook.got
        assert path == f"/services/{SECRET}"
        assert kind == "application/json"
        assert body["exit_code"] == 3
        assert body["counts"] == SUMMARY["counts"]
        assert "1 failed, 2 published" in body["text"]
        assert body["without_product"][0]["item"] == "ENMAP01"

    def test_no_secret_is_in_the_message(self, hook):
        Notices(hook.url).tell({**SUMMARY, "error": f"login failed: password={SECRET}"})
        [(_, _, body)] = hook.got
        assert SECRET not in json.dumps(body)
        assert "example.org/a.tif" in body["without_product"][0]["cause"]

    def test_a_long_list_is_cut(self, hook):
        scenes = [{"item": f"scene-{n}", "state": "failed", "cause": "x" * 100} for n in range(400)]
        Notices(hook.url).tell({**SUMMARY, "without_product": scenes})
        [(_, _, body)] = hook.got
        assert len(body["without_product"]) == MOST_SCENES
        assert body["not_listed"] == 400 - MOST_SCENES

    @pytest.mark.parametrize("trouble", [503, 429, None])
    def test_what_may_pass_is_tried_again(self, hook, trouble):
        hook.answers = [trouble, trouble]
        assert Notices(hook.url).tell(SUMMARY) == []
        assert len(hook.got) == 3

    @pytest.mark.parametrize(("status", "tries"), [(503, 3), (404, 1), (302, 1)])
    def test_what_does_not_pass_is_a_warning_without_the_address(self, hook, status, tries):
        hook.answers = [status] * 5
        [warning] = Notices(hook.url).tell(SUMMARY)
        assert len(hook.got) == tries
        assert f"HTTP {status}" in warning
        assert "127.0.0.1" in warning
        assert SECRET not in warning

    @pytest.mark.parametrize(
        "url",
        [f"http://127.0.0.1:1/{SECRET}", f"ftp://127.0.0.1/{SECRET}", f"http://[::1/{SECRET}", f"http://a b/{SECRET}"],
    )
    def test_an_address_that_nobody_listens_at_is_a_warning(self, url):
        [warning] = Notices(url).tell(SUMMARY)
        assert "could not be told" in warning
        assert SECRET not in warning

    def test_a_good_night_is_told_on_request_alone(self, hook):
        good = {**SUMMARY, "exit_code": 0, "without_product": []}
        assert Notices(hook.url).tell(good) == []
        assert hook.got == []
        assert Notices(hook.url, always=True).tell(good) == []
        assert len(hook.got) == 1

    def test_the_address_is_not_shown(self):
        assert SECRET not in repr(Notices(f"https://example.org/{SECRET}"))


class Mailhost(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client without TLS needs; `refuse` is the answer to every sender."""

    got: list
    refuse = ""

    def handle(self):
        def answer(line):
            self.wfile.write(line.encode() + b"\r\n")

        answer("220 localhost")
        while line := self.rfile.readline():
            command = line.split(b" ")[0].strip().upper()
            if command == b"DATA":
                answer("354 go on")
                lines = list(iter(self.rfile.readline, b".\r\n"))
                self.got.append(email.message_from_bytes(b"".join(lines)))
            if command == b"MAIL" and self.refuse:
                answer(self.refuse)
            else:
                answer("221 bye" if command == b"QUIT" else "250 fine")


@pytest.fixture
def mailhost(monkeypatch):
    host = type("Bound", (Mailhost,), {"got": []})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), host)
    server.daemon_threads = True
    monkeypatch.setenv("CUBELOOM_SMTP_HOST", f"127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("CUBELOOM_MAIL_FROM", "night@example.org")
    with serving(server):
        yield host


class TestMail:
    def test_it_tells_what_failed_and_why(self, mailhost):
        assert Notices(mail=("a@example.org", "b@example.org")).tell(SUMMARY) == []
        [message] = mailhost.got
        assert message["To"] == "a@example.org, b@example.org"
        assert message["From"] == "night@example.org"
        assert "exit code 3" in message["Subject"]
        text = message.get_payload(decode=True).decode()
        assert "ENMAP01: failed: https://" in text
        assert "example.org/a.tif" in text
        assert SECRET not in text

    def test_a_cause_of_several_lines_makes_no_header(self, mailhost):
        bad = {**SUMMARY, "error": "cut short\nBcc: everyone@example.org"}
        assert Notices(mail=("a@example.org",)).tell(bad) == []
        [message] = mailhost.got
        assert message["Bcc"] is None
        assert "cut short Bcc" in message["Subject"]

    def test_a_host_that_refuses_is_a_warning(self, mailhost):
        mailhost.refuse = "550 not you"
        [warning] = Notices(mail=("a@example.org",)).tell(SUMMARY)
        assert "mail could not be told" in warning
        assert "SMTP 550" in warning

    def test_a_password_never_goes_over_an_open_line(self, mailhost, monkeypatch):
        monkeypatch.setenv("CUBELOOM_SMTP_USER", "night")
        monkeypatch.setenv("CUBELOOM_SMTP_PASSWORD", SECRET)
        [warning] = Notices(mail=("a@example.org",)).tell(SUMMARY)
        assert "mail could not be told" in warning
        assert SECRET not in warning
        monkeypatch.setenv("CUBELOOM_SMTP_TLS", "none")
        [warning] = Notices(mail=("a@example.org",)).tell(SUMMARY)
        assert "CUBELOOM_SMTP_TLS" in warning
        assert mailhost.got == []

    def test_without_a_host_it_is_a_warning_that_says_what_is_missing(self, monkeypatch):
        monkeypatch.delenv("CUBELOOM_SMTP_HOST", raising=False)
        [warning] = Notices(mail=("a@example.org",)).tell(SUMMARY)
        assert "CUBELOOM_SMTP_HOST" in warning
