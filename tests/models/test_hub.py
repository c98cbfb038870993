"""Weights from a hub: a server on this machine stands in for it and speaks the part of its protocol that is used."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from cubeloom.errors import ModelError, RetryableError
from cubeloom.models.cards import Card, write_card
from cubeloom.models.checkpoints import write_weights
from cubeloom.models.hub import HubFile, fetch, parse_source
from cubeloom.models.registry import create_model, model_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO, FILE = "someone/denoisers", "enmap/tiny.safetensors"


class Hub(ThreadingHTTPServer):
    """Files by `owner/repo/path`, and the requests that came for them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut_short = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = (
            self.path.partition("?")[0].lstrip("/").replace("/resolve/main/", "/").replace(f"/resolve/{COMMIT}/", "/")
        )
        content = self.server.files.get(name)
        self.server.asked.append(f"{self.command} {name}")
        if content is None:
            known = any(other.startswith("/".join(name.split("/")[:2]) + "/") for other in self.server.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.server.cut_short else content)

    def log_message(self, *_: object) -> None:
        """Tests read `asked`."""


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("CUBELOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUBELOOM_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def source(hub, tiny, tmp_path) -> str:
    """Weights of `tiny` on the hub, as a user names them."""
    path = tmp_path / "tiny.safetensors"
    digest = write_weights(tiny, path)
    hub.files[f"{REPO}/{FILE}"] = path.read_bytes()
    return f"hf:{REPO}/{FILE}@{digest}"


def publish_card(hub, tmp_path, **fields) -> Card:
    card = Card(name="tiny", family="tiny", **fields)
    write_card(card, tmp_path / "published.card.json")
    hub.files[f"{REPO}/enmap/tiny.card.json"] = (tmp_path / "published.card.json").read_bytes()
    return card


def cached_files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


class TestFetch:
    def test_weights_come_once_and_then_from_the_cache(self, hub, source, tiny):
        network = create_model("tiny", source)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), tiny.parameters(), strict=True))
        assert f"GET {REPO}/{FILE}" in hub.asked
        hub.asked.clear()
        create_model("tiny", source)
        assert hub.asked == []

    def test_what_is_cached_needs_no_network(self, hub, source, monkeypatch):
        fetch(parse_source(source))
        monkeypatch.setenv("CUBELOOM_OFFLINE", "1")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        assert fetch(parse_source(source)).is_file()
        assert create_model("tiny", source)

    def test_offline_what_is_not_cached_is_refused_unasked(self, hub, source, monkeypatch, tmp_path):
        monkeypatch.setenv("CUBELOOM_OFFLINE", "1")
        with pytest.raises(ModelError, match=rf"not at {tmp_path}/cache/weights/.*CUBELOOM_OFFLINE is set"):
            create_model("tiny", source)
        assert hub.asked == []
        monkeypatch.setenv("CUBELOOM_OFFLINE", "0")
        assert create_model("tiny", source)

    def test_the_card_comes_with_the_weights(self, hub, source, tmp_path):
        card = publish_card(hub, tmp_path, sha256=source.rpartition("@")[2], tile=96, settings={"width": 4})
        assert model_card(source) == model_card("tiny", source) == card
        assert cached_files(tmp_path) == ["tiny.card.json", "tiny.safetensors"]

    def test_without_a_card_the_family_speaks_for_the_weights(self, hub, source, tmp_path):
        assert model_card("tiny", source).sha256 == source.rpartition("@")[2]
        assert cached_files(tmp_path) == ["tiny.safetensors"]
        with pytest.raises(ModelError, match="no card beside them"):
            model_card(source)

    def test_a_card_of_other_weights_is_refused(self, hub, source, tmp_path):
        publish_card(hub, tmp_path, sha256="1" * 64)
        with pytest.raises(ModelError, match=rf"their card tiny.card.json says {'1' * 64}"):
            create_model("tiny", source)

    def test_other_content_is_refused_and_not_kept(self, hub, source, tmp_path):
        hub.files[f"{REPO}/{FILE}"] += b"more"
        with pytest.raises(ModelError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; the file on the hub is"):
            create_model("tiny", source)
        assert cached_files(tmp_path) == []

    def test_a_damaged_copy_in_the_cache_is_fetched_anew(self, hub, source):
        path = fetch(parse_source(source))
        path.write_bytes(b"damaged")
        assert create_model("tiny", source)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == source.rpartition("@")[2]

    def test_a_file_or_repository_that_is_not_there(self, hub, source):
        with pytest.raises(ModelError, match=f"the repository {REPO} has no file 'enmap/none.safetensors'"):
            fetch(parse_source(source.replace("tiny.", "none.")))
        with pytest.raises(ModelError, match="there is no repository nobody/denoisers, or it is not open to you"):
            fetch(parse_source(source.replace("someone", "nobody")))

    def test_a_connection_that_breaks_may_be_tried_again_and_leaves_nothing(self, hub, source, tmp_path, monkeypatch):
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits longer before each of its attempts
        hub.cut_short = True
        with pytest.raises(RetryableError, match=r"weights hf:someone/denoisers/enmap/tiny.safetensors: .*try again"):
            fetch(parse_source(source))
        assert cached_files(tmp_path) == []
        hub.cut_short = False
        assert fetch(parse_source(source)).is_file()

    def test_a_server_that_is_down_may_be_tried_again(self, hub, source, monkeypatch):
        monkeypatch.setattr("time.sleep", lambda _: None)
        hub.shutdown()
        hub.server_close()
        with pytest.raises(RetryableError, match=r"refused.*try again, or use a local file"):
            fetch(parse_source(source))

    def test_a_cache_that_cannot_be_written_is_named(self, hub, source, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CUBELOOM_CACHE", str(tmp_path / "file"))
        with pytest.raises(ModelError, match=r"cannot be kept below .*set CUBELOOM_CACHE"):
            fetch(parse_source(source))


DIGEST = "ab" * 32


class TestNames:
    def test_a_source_is_taken_apart(self):
        found = parse_source(f"hf:a/b/c/d.pth@{DIGEST.upper()}")
        assert found == HubFile("a/b", "c/d.pth", DIGEST)
        assert str(found) == "hf:a/b/c/d.pth"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("hf:a/b/c.safetensors", "without it none is fetched"),
            ("hf:a/b/c.safetensors@main", "without it none is fetched"),
            (f"hf:a/b/c.safetensors@{DIGEST[1:]}", "64 hex digits"),
            (f"hf:c.safetensors@{DIGEST}", "found 1 of its three names"),
            (f"hf:a/c.safetensors@{DIGEST}", "found 2 of its three names"),
            (f"hf:a/b/c.zip@{DIGEST}", "known suffixes are .safetensors"),
            (f"hf:../b/c.safetensors@{DIGEST}", r"name '\.\.' cannot be used"),
            (f"hf:a/../../c.safetensors@{DIGEST}", r"name '\.\.' cannot be used"),
            (f"hf:a/b/../../../c.safetensors@{DIGEST}", r"name '\.\.' cannot be used"),
            (f"hf:a/b//etc/c.safetensors@{DIGEST}", "name '' cannot be used"),
            (f"hf:/a/b/c.safetensors@{DIGEST}", "name '' cannot be used"),
            (f"hf:a/b/.hidden/c.safetensors@{DIGEST}", "cannot be used"),
            (f"hf:a/b/c\\..\\d.safetensors@{DIGEST}", "cannot be used"),
            (f"hf:a/b/c%2f.safetensors@{DIGEST}", "cannot be used"),
            (f"hf:a/b/c\n.safetensors@{DIGEST}", "cannot be used"),
        ],
    )
    def test_what_is_no_source_is_refused_before_anything_is_asked(self, families, text, said):
        with pytest.raises(ModelError, match=said):
            create_model("tiny", text)

    def test_a_name_the_hub_does_not_allow(self, hub, families):
        with pytest.raises(ModelError, match="a b/c"):
            fetch(parse_source(f"hf:a b/c/d.safetensors@{DIGEST}"))
        assert hub.asked == []
