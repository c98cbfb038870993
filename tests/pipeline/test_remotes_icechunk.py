"""A push to an Icechunk repository is one commit: before it nothing is seen, afterwards all of it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xarray as xr

import cubeloom
from cubeloom.errors import ConfigError, CubeloomError, InputError, StoreError
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.remotes import open_remote
from cubeloom.pipeline.store import COMMIT

icechunk = pytest.importorskip("icechunk")

NAME = "scenes/ITEM/lc-0123abcd.zarr"
PUSH = (
    "import pathlib, sys; from cubeloom.pipeline.remotes import open_remote\n"
    "open_remote(sys.argv[1]).push(pathlib.Path(sys.argv[2]), sys.argv[3])"
)

PUSH_AT_ONCE = """
import os, pathlib, sys
import cubeloom.pipeline.remotes.icechunk
from cubeloom.pipeline.remotes import open_remote
pushers = []
for path, name in zip(sys.argv[2::2], sys.argv[3::2]):
    pushers.append(os.fork())
    if not pushers[-1]:
        open_remote(sys.argv[1]).push(pathlib.Path(path), name)
        sys.exit()
print([os.waitstatus_to_exitcode(os.waitpid(pusher, 0)[1]) for pusher in pushers])
"""
"""Pushes from processes that come to their own end; they are forked before any of them has a thread."""

LINGER = """
import threading, time
from asyncio.selector_events import BaseSelectorEventLoop
wake = BaseSelectorEventLoop._write_to_self
def linger(loop):
    wake(loop)
    if isinstance(threading.current_thread(), threading._DummyThread):
        time.sleep(0.2)
BaseSelectorEventLoop._write_to_self = linger
"""
"""Lets the threads of Rust that hand over an answer come back late: what waited for it goes on, and may be the last."""


@pytest.fixture
def url(tmp_path):
    return f"icechunk+file://{tmp_path}/remote"


@pytest.fixture(scope="module")
def written(make_scene, tmp_path_factory) -> Path:
    """Products that are made once."""
    folder = tmp_path_factory.mktemp("written")
    cubeloom.write_scene(make_scene(height=300, width=280, bands=3, background=128), folder / "one.zarr")
    cubeloom.write_scene(make_scene(height=200, width=180, bands=3, seed=1), folder / "two.zarr")
    return folder


@pytest.fixture
def product(written, tmp_path) -> Path:
    return Path(shutil.copytree(written / "one.zarr", tmp_path / "one.zarr"))


@pytest.fixture
def other(written, tmp_path) -> Path:
    return Path(shutil.copytree(written / "two.zarr", tmp_path / "two.zarr"))


def commits(tmp_path) -> list[str]:
    storage = icechunk.local_filesystem_storage(f"{tmp_path}/remote/products.icechunk")
    return [one.message for one in icechunk.Repository.open(storage).ancestry(branch="main")]


def sha256(product: Path) -> str:
    return hashlib.sha256((product / COMMIT).read_bytes()).hexdigest()


def assert_reads_back(remote, product, name=NAME):
    xr.testing.assert_identical(cubeloom.open_scene(remote.href(name)).load(), cubeloom.open_scene(product).load())
    assert open_source(remote.href(name)).fingerprint() == open_source(product).fingerprint()


def test_the_scene_that_is_read_back_is_the_local_one(url, product):
    remote = open_remote(url)
    remote.push(product, NAME)
    assert_reads_back(remote, product)
    assert remote.stands(NAME, sha256(product))


def test_every_file_is_kept_byte_for_byte(url, product):
    from cubeloom.pipeline.remotes import open_folder

    remote = open_remote(url)
    remote.push(product, NAME)
    folder = open_folder(remote.href(NAME))
    for file in filter(Path.is_file, product.rglob("*")):
        key = file.relative_to(product).as_posix()
        assert (folder / key).read_bytes() == file.read_bytes(), key


def test_overviews_are_groups_as_in_a_local_store(url, make_scene, tmp_path):
    path = cubeloom.write_scene(make_scene(height=600, width=550, bands=3), tmp_path / "wide.zarr")
    remote = open_remote(url)
    remote.push(path, NAME)
    coarse = cubeloom.open_scene(remote.href(NAME), group="overviews/2")
    xr.testing.assert_identical(coarse.load(), cubeloom.open_scene(path, group="overviews/2").load())
    with pytest.raises(InputError, match="it has overviews, overviews/2"):
        cubeloom.open_scene(remote.href(NAME), group="x2")


def test_icechunk_and_zarr_alone_read_it(url, product, tmp_path):
    open_remote(url).push(product, NAME)
    storage = icechunk.local_filesystem_storage(f"{tmp_path}/remote/products.icechunk")
    store = icechunk.Repository.open(storage).readonly_session("main").store
    theirs = xr.open_zarr(store, group=NAME, consolidated=False)
    xr.testing.assert_identical(theirs.reflectance.load(), xr.open_zarr(product).reflectance.load())


def test_pushing_again_commits_nothing_and_another_product_is_refused(url, product, other, tmp_path):
    remote = open_remote(url)
    remote.push(product, NAME)
    before = commits(tmp_path)
    remote.push(product, NAME)
    with pytest.raises(StoreError, match="another product stands there"):
        remote.push(other, NAME)
    assert commits(tmp_path) == before
    assert_reads_back(remote, product)


@pytest.mark.parametrize("key", ["zarr.json", "quality/c/0/0"])
def test_a_flipped_bit_on_the_local_disk_is_found_and_nothing_is_committed(url, product, tmp_path, key):
    data = bytearray((product / key).read_bytes())
    data[len(data) // 2] ^= 4
    (product / key).write_bytes(data)
    remote = open_remote(url)
    with pytest.raises(StoreError, match=f"{key} does not match"):
        remote.push(product, NAME)
    assert not any(message.startswith("push") for message in commits(tmp_path))
    assert not remote.stands(NAME, sha256(product))


def test_a_kill_before_the_commit_leaves_nothing_to_see(url, product, tmp_path):
    """One chunk's file is a pipe that nobody writes to: the push waits in the middle, and is killed there."""
    chunk = product / "reflectance/c/0/1/2"
    aside = chunk.rename(tmp_path / "aside")
    os.mkfifo(chunk)
    pusher = subprocess.Popen([sys.executable, "-c", PUSH, url, product, NAME])
    stored = tmp_path / "remote/products.icechunk/chunks"
    deadline = time.monotonic() + 60
    while pusher.poll() is None and len(list(stored.glob("*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    pusher.kill()
    assert pusher.wait() == -signal.SIGKILL
    assert len(list(stored.glob("*"))) >= 5
    remote = open_remote(url)
    assert not remote.stands(NAME, sha256(product))
    with pytest.raises(StoreError, match="not a finished product"):
        cubeloom.open_scene(remote.href(NAME))
    chunk.unlink()
    shutil.copy(aside, chunk)
    remote.push(product, NAME)
    assert_reads_back(remote, product)


def test_pushers_at_once_in_processes_of_their_own_all_come_through(url, product, other):
    """Who finds the product there is done with an answer, and ends before it has been handed over to the end."""
    names = [NAME, NAME, "scenes/ITEM/other.zarr"]
    pushed = [product, product, other]
    told = [word for pair in zip(pushed, names, strict=True) for word in pair]
    ended = subprocess.check_output([sys.executable, "-c", LINGER + PUSH_AT_ONCE, url, *told], timeout=120)
    assert ended.strip() == b"[0, 0, 0]"
    for path, name in zip(pushed, names, strict=True):
        assert_reads_back(open_remote(url), path, name)


def test_of_different_products_at_once_under_one_name_one_stands(url, product, other):
    with ThreadPoolExecutor(2) as pool:
        pushing = [pool.submit(open_remote(url).push, path, NAME) for path in (product, other)]
        errors = [one.exception() for one in pushing]
    winner = product if errors[0] is None else other
    assert {type(error) for error in errors} == {type(None), StoreError}
    assert_reads_back(open_remote(url), winner)


def test_a_deleted_product_is_gone_for_new_readers_and_stays_for_those_who_have_it_open(url, product, tmp_path):
    remote = open_remote(url)
    remote.push(product, NAME)
    opened = cubeloom.open_scene(remote.href(NAME))
    remote.delete(NAME)
    remote.delete(NAME)
    with pytest.raises(StoreError, match="not a finished product"):
        cubeloom.open_scene(remote.href(NAME))
    xr.testing.assert_identical(opened.load(), cubeloom.open_scene(product).load())
    assert [message for message in commits(tmp_path) if message.startswith("delete")] == [f"delete {NAME}"]
    remote.push(product, NAME)
    assert_reads_back(remote, product)


def test_documents_lie_beside_the_repository_and_no_change_to_them_is_lost(url, tmp_path):
    remote = open_remote(url)
    remote.point("scenes/ITEM/lc.json", b"{}")
    assert (tmp_path / "remote/scenes/ITEM/lc.json").read_bytes() == b"{}"

    def add(number):
        remote.edit("list.json", lambda stands: json.dumps(sorted({*json.loads(stands or b"[]"), number})).encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    assert json.loads((tmp_path / "remote/list.json").read_bytes()) == list(range(20))
    assert not list((tmp_path / "remote").rglob("*.partial"))


def test_where_nothing_was_pushed_nothing_is_read_and_nothing_made(url, tmp_path, product):
    remote = open_remote(url)
    assert not remote.stands(NAME, sha256(product))
    with pytest.raises(StoreError, match="nothing was pushed there"):
        cubeloom.open_scene(remote.href(NAME))
    assert not (tmp_path / "remote/products.icechunk/refs").exists()
    with pytest.raises(ConfigError, match=r"products.icechunk#NAME"):
        cubeloom.open_scene(f"{url}#{NAME}")


class TestOnS3:
    @pytest.fixture(scope="class")
    def server(self, object_server):
        with object_server.ObjectServer() as server:
            server.client.create_bucket(Bucket="bucket")
            yield server

    @pytest.fixture
    def link(self, object_server, server, monkeypatch):
        with object_server.Link(server.port) as link:
            for name, value in link.environment.items():
                monkeypatch.setenv(name, value)
            yield link

    def test_a_product_is_pushed_read_pointed_to_and_deleted(self, link, server, product, other):
        remote = open_remote("icechunk+s3://bucket/some/prefix")
        remote.push(product, NAME)
        assert_reads_back(remote, product)
        with pytest.raises(StoreError, match="another product stands there"):
            remote.push(other, NAME)
        remote.point("catalog.json", b"{}")
        answer = server.client.get_object(Bucket="bucket", Key="some/prefix/catalog.json")
        assert answer["Body"].read() == b"{}"
        remote.delete(NAME)
        assert not remote.stands(NAME, sha256(product))

    def test_a_push_that_fails_leaves_nothing_to_see_and_its_error_no_credential(self, object_server, link, product):
        remote = open_remote("icechunk+s3://bucket/failing")
        remote.push(product, "first.zarr")
        said = f"<Error><Code>AccessDenied</Code><AWSAccessKeyId>{object_server.ACCESS_KEY}</AWSAccessKeyId></Error>"
        chunks = iter(range(99))
        link.fault = lambda asked: (403, said.encode()) if "/chunks/" in asked.key and next(chunks) > 3 else None
        with pytest.raises(CubeloomError, match="cannot write") as failed:
            remote.push(product, NAME)
        shown, error = "".join(traceback.format_exception(failed.value)), failed.value
        assert error.__context__ is None
        assert not any(secret in shown for secret in (object_server.ACCESS_KEY, object_server.SECRET_KEY))
        link.heal()
        with pytest.raises(StoreError, match="not a finished product"):
            cubeloom.open_scene(remote.href(NAME))
        remote.push(product, NAME)
        assert_reads_back(remote, product)
