"""Downloads against a server that lies, cuts, stalls and changes its mind."""

import hashlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cubeloom.catalogs import read_catalog
from cubeloom.catalogs.download import download_item, needed_assets
from cubeloom.catalogs.items import Asset, parse_item
from cubeloom.catalogs.logins import BasicLogin, Credentials
from cubeloom.catalogs.transfer import fetch, is_strong, is_whole, parse_multihash
from cubeloom.errors import ConfigError, InputError, RetryableError, StoreError
from cubeloom.pipeline.readers import open_scene, open_source
from cubeloom.pipeline.simulate import simulate_scene

TIFF = b"II*\0" + bytes(np.random.default_rng(0).integers(0, 256, 200_000, np.uint8))
SECRET = "S3CR3T"


@pytest.fixture(scope="session")
def product(tmp_path_factory):
    folder = tmp_path_factory.mktemp("product")
    return simulate_scene(folder, height=48, width=40, n_vnir=5, n_swir=6, seed=3).path


@pytest.fixture
def server(stac_server, tmp_path):
    with stac_server.StacServer(files=tmp_path / "served") as server:
        (tmp_path / "served").mkdir()
        yield server


def sha(data: bytes) -> str:
    return "1220" + hashlib.sha256(data).hexdigest()


def asset(server, name="image.tif", path=None, **fields) -> Asset:
    return Asset(href=f"{server.url}{path or '/files/' + name}", file_name=name, **fields)


def item_of(server, document):
    text = json.dumps(document).replace("@server@", server.url)
    return parse_item(json.loads(text), Path("catalog.json"))


def got(server, wanted, target, **options) -> bytes:
    fetch(wanted, target, server.access(**options), threading.Event())
    return target.read_bytes()


@pytest.fixture
def served(server, tmp_path):
    """The file of most tests."""
    (tmp_path / "served/image.tif").write_bytes(TIFF)
    return asset(server, size=len(TIFF), checksum=sha(TIFF))


@pytest.mark.parametrize("options", [{"nested": True}, {"nested": False}, {"cog": False}, {"checksums": True}])
def test_an_item_of_dlr_becomes_a_product_that_opens_like_the_original(server, stac_items, product, tmp_path, options):
    document = stac_items.publish_product(product, tmp_path / "served", **options)
    item = item_of(server, document)
    assert item.is_remote
    local = download_item(item, tmp_path / "here", server.access())
    assert (local.id, local.content_key(), local.is_remote) == (item.id, item.content_key(), False)
    assert local.product_path == tmp_path / "here" / f"{product.name}-METADATA.XML"
    mine, original = open_scene(local.product_path), open_scene(product)
    np.testing.assert_array_equal(mine.reflectance, original.reflectance)
    np.testing.assert_array_equal(mine.quality, original.quality)
    assert open_source(tmp_path / "here").spec.scene_id == product.name
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert len(names) == 11, "the XML, the cube, seven masks, the pixel mask, and the note of their origin"
    assert not any("QL_VNIR" in name or "THUMBNAIL" in name or ".part" in name for name in names)
    assert server.count("/files/") == 10


def test_what_is_there_is_not_fetched_again_and_an_update_is(server, stac_items, product, tmp_path):
    document = stac_items.publish_product(product, tmp_path / "served")
    access = server.access()
    download_item(item_of(server, document), tmp_path / "here", access)
    download_item(item_of(server, document), tmp_path / "here", access)
    assert server.count("/files/") == 10
    document["properties"]["updated"] = "2025-01-01T00:00:00Z"
    download_item(item_of(server, document), tmp_path / "here", access)
    assert server.count("/files/") == 20


def test_a_local_item_is_left_as_it_is(server, stac_items, product, tmp_path):
    document = stac_items.publish_product(product, tmp_path / "served")
    local = download_item(item_of(server, document), tmp_path / "here", server.access())
    assert download_item(local, tmp_path / "other", server.access()) is local
    assert not (tmp_path / "other").exists()


def test_the_roots_of_an_item_take_in_what_was_fetched(server, stac_items, product, tmp_path):
    document = stac_items.publish_product(product, tmp_path / "served")
    path = tmp_path / "catalog" / "item.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document).replace("@server@", server.url))
    (item,) = read_catalog(path, roots=[tmp_path / "data"])
    local = download_item(item, tmp_path / "here", server.access())
    assert local.product_path.parent == tmp_path / "here"


def test_an_item_that_names_its_files_like_paths_stays_in_its_folder(server, stac_items, tmp_path):
    document = stac_items.earth_search_item()
    hrefs = [
        "@server@/files/../../etc/passwd",
        "@server@/files/%2e%2e%2fevil.tif",
        "@server@/files/a%2F..%2Fb.tif",
        "@server@/",
    ]
    document["assets"] = {f"k{n}": {"href": href, "roles": ["data"]} for n, href in enumerate(hrefs)}
    document["assets"]["k9"] = {"href": "@server@/files/x", "file:local_path": "../../../x.tif", "roles": ["data"]}
    server.routes["/"] = lambda handler: handler.send(200, TIFF)
    local = download_item(item_of(server, document), tmp_path / "out" / "here", server.access())
    assert {path.parent for path in (tmp_path / "out").rglob("*") if path.is_file()} == {tmp_path / "out" / "here"}
    assert sorted(Path(a.href).name for a in local.assets.values()) == ["b.tif", "evil.tif", "k3", "passwd", "x.tif"]


def test_files_of_one_name_are_told_apart_by_their_keys(server, stac_items, tmp_path):
    document = stac_items.earth_search_item()
    document["assets"] = {key: {"href": f"@server@/files/{key}/B01.tif", "roles": ["data"]} for key in ("R10m", "R20m")}
    server.routes["/files/"] = lambda handler: handler.send(200, TIFF)
    local = download_item(item_of(server, document), tmp_path / "here", server.access())
    assert sorted(Path(a.href).name for a in local.assets.values()) == ["R10m-B01.tif", "R20m-B01.tif"]


def test_of_other_items_all_is_needed_but_the_pictures(server, stac_items):
    item = item_of(server, stac_items.earth_search_item())
    assert set(needed_assets(item)) == {"blue", "green", "red", "nir"}
    assert item.is_remote


def test_a_file_that_was_cut_is_fetched_on_from_where_it_ended(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000))
    assert got(server, served, tmp_path / "image.tif") == TIFF
    first, second = server.seen
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=120000-"
    assert second.headers["If-Range"] == stac_server.etag(TIFF)
    assert [path.name for path in tmp_path.glob("image.tif*")] == ["image.tif"]


def test_a_body_in_chunks_that_ends_early_is_found(server, tmp_path):
    def chunked(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n" % 5000 + TIFF[:5000] + b"\r\n")
        if handler.asked.path.endswith("whole.tif"):
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    server.routes["/files/"] = chunked
    with pytest.raises(RetryableError):
        got(server, asset(server), tmp_path / "image.tif", attempts=2)
    assert got(server, asset(server, "whole.tif"), tmp_path / "whole.tif") == TIFF[:5000]


def test_a_file_that_comes_packed_is_refused(server, stac_server, tmp_path):
    server.routes["/files/"] = stac_server.answer(200, TIFF, Content_Encoding="gzip")
    with pytest.raises(InputError, match="packs"):
        got(server, asset(server), tmp_path / "image.tif")


def test_a_later_call_goes_on_too(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000))
    with pytest.raises(RetryableError, match=r"image\.tif"):
        got(server, served, tmp_path / "image.tif", attempts=1)
    assert not (tmp_path / "image.tif").exists()
    assert (tmp_path / "image.tif.part").stat().st_size == 120_000
    assert got(server, served, tmp_path / "image.tif", attempts=1) == TIFF
    assert server.seen[-1].headers["Range"] == "bytes=120000-"


@pytest.mark.parametrize("tag", [None, 'W/"weak"', "bare"])
def test_without_a_strong_etag_a_file_is_begun_anew(server, stac_server, served, tmp_path, tag):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(TIFF)))
        if tag:
            handler.send_header("ETag", tag)
        handler.end_headers()
        handler.wfile.write(TIFF[:120_000])
        handler.close_connection = True

    server.then("/files/image.tif", cut)
    assert got(server, served, tmp_path / "image.tif") == TIFF
    assert all("Range" not in seen.headers for seen in server.seen)


def test_a_file_that_changed_in_between_is_begun_anew(server, stac_server, tmp_path):
    other = b"II*\0" + TIFF[::-1]
    (tmp_path / "served/image.tif").write_bytes(other)
    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000))
    assert got(server, asset(server), tmp_path / "image.tif") == other


def test_a_server_that_goes_on_in_another_file_is_not_believed(server, stac_server, tmp_path):
    """It ignores If-Range: 206 with the tail of another version."""
    other = b"II*\0" + TIFF[::-1]
    (tmp_path / "served/image.tif").write_bytes(other)

    def tail(handler):
        handler.send(206, other[120_000:], {
            "Content-Range": f"bytes 120000-{len(other) - 1}/{len(other)}", "ETag": stac_server.etag(other)
        })  # fmt: skip

    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000), tail)
    assert got(server, asset(server), tmp_path / "image.tif") == other


def test_two_halves_that_do_not_fit_are_found_by_the_checksum(server, stac_server, served, tmp_path):
    """A server whose ETag does not change with the content."""
    other = TIFF[:4] + TIFF[:3:-1]

    def tail(handler):
        handler.send(206, other[120_000:], {
            "Content-Range": f"bytes 120000-{len(TIFF) - 1}/{len(TIFF)}", "ETag": stac_server.etag(TIFF)
        })  # fmt: skip

    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000), tail)
    assert got(server, served, tmp_path / "image.tif") == TIFF
    assert "Range" not in server.seen[-1].headers


def test_a_range_beyond_the_end_is_begun_anew(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", stac_server.cut(TIFF, 120_000), stac_server.answer(416))
    assert got(server, served, tmp_path / "image.tif") == TIFF


def test_a_length_that_is_a_lie_is_found(server, stac_server, served, tmp_path):
    more = stac_server.cut(TIFF, len(TIFF), claimed=len(TIFF) + 10)
    less = stac_server.cut(TIFF, len(TIFF), claimed=len(TIFF) - 10)
    for lie in (more, less):
        server.then("/files/image.tif", lie)
        with pytest.raises(InputError, match="catalog says"):
            got(server, served, tmp_path / "image.tif")
    bare = asset(server)
    server.then("/files/image.tif", more)
    with pytest.raises(RetryableError):
        got(server, bare, tmp_path / "image.tif", attempts=1)
    server.then("/files/image.tif", less)
    with pytest.raises(InputError, match="checksum"):
        got(server, asset(server, checksum=sha(TIFF)), tmp_path / "image.tif", attempts=1)
    assert not (tmp_path / "image.tif").exists()


@pytest.mark.parametrize("fields", [{"checksum": sha(b"other")}, {"size": 5}, {"checksum": "d50110" + "0" * 32}])
def test_a_file_that_is_not_what_the_catalog_says_is_refused(server, tmp_path, fields):
    (tmp_path / "served/image.tif").write_bytes(TIFF)
    with pytest.raises(InputError, match="search again"):
        got(server, asset(server, **fields), tmp_path / "image.tif")
    assert list(tmp_path.glob("image.tif*")) == []


def test_a_damaged_file_that_is_there_is_fetched_again(server, served, tmp_path):
    (tmp_path / "image.tif").write_bytes(TIFF[:-1] + b"?")
    assert got(server, served, tmp_path / "image.tif") == TIFF


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_as_late_as_it_wants(server, stac_server, served, tmp_path, status):
    server.then("/files/image.tif", stac_server.answer(status, Retry_After="1"))
    begin = time.monotonic()
    assert got(server, served, tmp_path / "image.tif") == TIFF
    assert time.monotonic() - begin >= 1


def test_a_server_that_stays_busy_is_left_alone_in_the_end(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", *[stac_server.answer(503)] * 9)
    with pytest.raises(RetryableError, match="503"):
        got(server, served, tmp_path / "image.tif", attempts=3)
    assert server.count() == 3
    server.answers.clear()
    server.then("/files/image.tif", stac_server.answer(429, Retry_After="100000"))
    with pytest.raises(RetryableError, match="100000 s"):
        got(server, served, tmp_path / "image.tif")
    assert server.count() == 4


def test_a_stall_ends_in_time_and_is_tried_again(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", stac_server.stall(TIFF, 1000, 2))
    assert got(server, served, tmp_path / "image.tif", timeout=0.3) == TIFF


PAGES = {
    "typed": ("text/html; charset=utf-8", b"anything"),
    "doctype": ("image/tiff", b"\n<!DOCTYPE html><html><body>Login</body></html>"),
    "xhtml": ("application/xml", b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">Login</html>'),
}


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("name", ["image.tif", "x-METADATA.XML"])
def test_a_login_page_is_not_taken_for_a_file(server, stac_server, tmp_path, kind, name):
    media_type, page = PAGES[kind]
    server.routes["/files/"] = stac_server.answer(200, page, Content_Type=media_type)
    login = BasicLogin(("127.0.0.1",), Credentials("MINE", ("archive.example",)), "; subscribe to EnMAP first")
    os.environ["MINE_USER"], os.environ["MINE_PASSWORD"] = "me", SECRET
    try:
        with pytest.raises(InputError, match=r"web page.*MINE_USER.*subscribe to EnMAP") as caught:
            got(server, asset(server, name, size=123456), tmp_path / name, logins=(login,))
    finally:
        del os.environ["MINE_USER"], os.environ["MINE_PASSWORD"]
    assert SECRET not in str(caught.value)
    assert server.count() == 1, "not tried again"
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("name", "data"), [("a.tif", b'{"error": 1}'), ("a.tif", b""), ("a.jp2", TIFF), ("a.zip", TIFF), ("a.xml", TIFF)]
)
def test_a_file_begins_as_its_name_says(server, stac_server, tmp_path, name, data):
    server.routes["/files/"] = stac_server.answer(200, data)
    with pytest.raises(InputError, match="begins with"):
        got(server, asset(server, name), tmp_path / name)


def test_a_session_that_ended_is_renewed_once(server, stac_server, served, tmp_path):
    class Renewable(BasicLogin):
        renewed = 0

        def ticket(self, url, network):
            return super(BasicLogin, self).ticket(url, network)

        def renew(self, ticket):
            self.renewed += 1
            return True

    login = Renewable(("127.0.0.1",), Credentials("MINE", ("archive.example",)))
    page = stac_server.answer(200, b"<html>", Content_Type="text/html")
    server.then("/files/image.tif", page)
    assert got(server, served, tmp_path / "image.tif", logins=(login,)) == TIFF
    (tmp_path / "image.tif").unlink()
    server.then("/files/image.tif", page, page, page)
    with pytest.raises(InputError, match="web page"):
        got(server, served, tmp_path / "image.tif", logins=(login,))
    assert login.renewed == 2


@pytest.mark.parametrize(
    "href", ["https://169.254.169.254/x.tif", "http://10.0.0.1/x.tif", "https://evil.example/x.tif"]
)
def test_hrefs_that_lead_elsewhere_are_refused(server, tmp_path, href):
    with pytest.raises(InputError):
        got(server, Asset(href=href, file_name="x.tif"), tmp_path / "x.tif")


def test_a_redirect_to_a_private_address_is_refused(server, stac_server, served, tmp_path):
    server.then("/files/image.tif", stac_server.answer(302, Location="http://169.254.169.254/x.tif"))
    with pytest.raises(InputError, match=r"169\.254"):
        got(server, served, tmp_path / "image.tif")


def test_a_file_has_a_limit(server, stac_server, served, tmp_path):
    with pytest.raises(InputError, match="at most"):
        got(server, served, tmp_path / "image.tif", largest=1000)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(TIFF)

    server.then("/files/image.tif", endless)
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        got(server, asset(server), tmp_path / "image.tif", largest=1000)


def test_one_file_that_fails_stops_the_others(server, stac_server, stac_items, product, tmp_path):
    document = stac_items.publish_product(product, tmp_path / "served")
    gone = document["assets"]["quality_classes"]["href"].removeprefix("@server@")
    server.then(gone, stac_server.answer(404))
    with pytest.raises(InputError, match="404"):
        download_item(item_of(server, document), tmp_path / "here", server.access(per_host=1))
    assert server.count("/files/") < 10


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path, server, served):
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from cubeloom.catalogs.access import Access\n"
        "from cubeloom.catalogs.items import Asset\n"
        "from cubeloom.catalogs.transfer import fetch\n"
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "access = Access(hosts=('http://127.0.0.1',), private=True, logins=(), pause=0.01)\n"
        "fetch(Asset(href=sys.argv[1], file_name='image.tif'), Path(sys.argv[2]), access, threading.Event())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, served.href, str(tmp_path / "image.tif")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert StoreError.__name__ in ended.stderr
    assert "cannot be written" in ended.stderr
    assert not (tmp_path / "image.tif").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_files_that_somebody_else_fetched_are_taken_without_the_network(server, stac_items, product, tmp_path):
    document = stac_items.publish_product(product, tmp_path / "served", cog=False, checksums=True)
    item = item_of(server, document)
    theirs = tmp_path / "theirs" / "deeper" / product.name
    shutil.copytree(product, theirs)
    for folder in (theirs, theirs.parent, theirs.parent.parent):
        local = download_item(item, tmp_path / "here", server.access(predownloaded=folder))
        assert local.product_path == theirs / f"{product.name}-METADATA.XML"
        assert local.content_key() == item.content_key()
    assert not (tmp_path / "here").exists()
    assert server.count() == 0
    empty = tmp_path / "empty"
    with pytest.raises(ConfigError, match="no such folder"):
        download_item(item, tmp_path / "here", server.access(predownloaded=empty))
    empty.mkdir()
    with pytest.raises(InputError, match="holds no"):
        download_item(item, tmp_path / "here", server.access(predownloaded=empty))
    document["assets"]["metadata"]["file:checksum"] = sha(b"other")
    with pytest.raises(InputError, match="checksum"):
        download_item(item_of(server, document), tmp_path / "here", server.access(predownloaded=theirs))


def test_multihashes():
    md5 = hashlib.md5(b"x").hexdigest()
    assert parse_multihash("d50110" + md5) == ("md5", md5)
    assert parse_multihash(sha(b"x")) == ("sha256", hashlib.sha256(b"x").hexdigest())
    assert parse_multihash("") is None
    assert parse_multihash("1e20" + "00" * 32) is None, "blake3, which hashlib has not"
    for broken in ("12", "zz", "1220abcd", "ff" * 12):
        with pytest.raises(InputError, match="multihash"):
            parse_multihash(broken)


def test_etags():
    assert is_strong('"abc"')
    assert not any(map(is_strong, ("", "abc", 'W/"abc"', '"a"b"', '"a\r\nX: y"')))


def test_is_whole_needs_all_that_is_known_to_agree(tmp_path):
    path = tmp_path / "a"
    assert not is_whole(path, Asset("x"))
    path.write_bytes(b"data")
    assert is_whole(path, Asset("x"))
    assert is_whole(path, Asset("x", size=4, checksum=sha(b"data")))
    assert not is_whole(path, Asset("x", size=5))
    assert not is_whole(path, Asset("x", checksum=sha(b"dat")))


def test_no_secret_is_left_anywhere(server, stac_server, stac_items, tmp_path, caplog):
    """A signed href: what is asked carries the signature; errors, logs and files do not."""
    caplog.set_level(logging.DEBUG)
    document = stac_items.earth_search_item()
    document["assets"] = {"blue": {"href": f"@server@/files/blue.tif?sig={SECRET}", "roles": ["data"]}}
    (tmp_path / "served/blue.tif").write_bytes(TIFF)
    server.then("/files/blue.tif", stac_server.cut(TIFF, 1000), stac_server.answer(503), stac_server.answer(404))
    with pytest.raises(InputError) as caught:
        download_item(item_of(server, document), tmp_path / "here", server.access())
    assert SECRET not in str(caught.value) + caplog.text
    local = download_item(item_of(server, document), tmp_path / "here", server.access())
    assert server.seen[-1].query == {"sig": SECRET}
    assert SECRET not in str(local)
    assert not any(SECRET.encode() in path.read_bytes() for path in (tmp_path / "here").iterdir())


@pytest.fixture
def bucket(object_server, monkeypatch):
    pytest.importorskip("obstore")
    with object_server.ObjectServer() as store:
        for key, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}", "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        store.client.create_bucket(Bucket="bucket")
        yield store.client


def test_objects_of_s3_are_fetched_and_checked_alike(bucket, server, tmp_path):
    bucket.put_object(Bucket="bucket", Key="a b/x.tif", Body=TIFF)
    wanted = Asset(href="s3://bucket/a%20b/x.tif", file_name="x.tif", size=len(TIFF), checksum=sha(TIFF))
    assert got(server, wanted, tmp_path / "x.tif") == TIFF
    with pytest.raises(InputError, match="search again"):
        got(server, replace(wanted, checksum=sha(b"other")), tmp_path / "y.tif")
    with pytest.raises(InputError, match="no such object") as caught:
        got(server, replace(wanted, href="s3://bucket/none.tif"), tmp_path / "y.tif")
    assert SECRET not in str(caught.value)
    with pytest.raises(InputError, match="at most"):
        got(server, wanted, tmp_path / "y.tif", largest=10)
    assert [path.name for path in tmp_path.glob("?.tif*")] == ["x.tif"]


def test_a_store_that_does_not_answer_is_retryable(server, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(RetryableError, match="does not answer") as caught:
        got(server, Asset(href="s3://bucket/x.tif", file_name="x.tif"), tmp_path / "x.tif", attempts=1, timeout=1)
    assert SECRET not in str(caught.value)


def test_without_obstore_the_extra_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"cubeloom\[s3\]"):
        got(server, Asset(href="s3://bucket/x.tif", file_name="x.tif"), tmp_path / "x.tif")
