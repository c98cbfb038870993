"""A product in an object store is whole or not there, whatever fails on the way; documents change in one step."""

import contextlib
import hashlib
import json
import os
import pickle  # noqa: TID251 - as Dask sends a source to its workers
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import cubeloom
from cubeloom.errors import ConfigError, CubeloomError, InputError, RetryableError, StoreError
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.remotes import open_folder, open_remote
from cubeloom.pipeline.remotes.objects import CLAIM
from cubeloom.pipeline.store import COMMIT, read_commit

pytest.importorskip("obstore")

NAME = "scenes/ITEM/lc-0123abcd.zarr"
BUCKETS = (f"bucket-{number}" for number in count())


@pytest.fixture(scope="module")
def server(object_server):
    with object_server.ObjectServer() as server:
        yield server


@pytest.fixture
def link(object_server, server, monkeypatch):
    with object_server.Link(server.port) as link:
        for name, value in link.environment.items():
            monkeypatch.setenv(name, value)
        yield link


@pytest.fixture
def bucket(server):
    name = next(BUCKETS)
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def url(bucket):
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Where products are kept that are made once."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def product(make_scene, written, tmp_path) -> Path:
    """Four chunks a variable; one of them is empty, so that it has no file."""
    if not (written / "one.zarr").exists():
        cubeloom.write_scene(make_scene(height=200, width=180, bands=3, background=128), written / "one.zarr")
    return Path(shutil.copytree(written / "one.zarr", tmp_path / "one.zarr"))


@pytest.fixture
def other(make_scene, written, tmp_path) -> Path:
    if not (written / "two.zarr").exists():
        cubeloom.write_scene(make_scene(height=200, width=180, bands=3, seed=1, background=0), written / "two.zarr")
    return Path(shutil.copytree(written / "two.zarr", tmp_path / "two.zarr"))


def impatient(url, **options):
    return open_remote(url, patience=0.001, **options)


def files(product: Path) -> dict[str, bytes]:
    return {path.relative_to(product).as_posix(): path.read_bytes() for path in product.rglob("*") if path.is_file()}


def remote_objects(server, url, name=NAME):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return server.objects(bucket, f"{prefix}/{name}")


def is_product(url, name=NAME) -> bool:
    """Whether a reader takes what is under a name for a product; there is no third way."""
    with contextlib.suppress(StoreError):
        open_source(f"{url}/{name}")
        return True
    with pytest.raises(StoreError, match="not a finished product"):
        open_source(f"{url}/{name}")
    return False


FORKER = """
import json, os, pathlib, signal, sys
from cubeloom.pipeline.remotes import objects, open_remote
for line in sys.stdin:
    method, environment, url, *arguments = json.loads(line)
    if method == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(int(url), 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        signal.alarm(120)
        os.environ.update(environment)
        remote = open_remote(url)
        remote.push(pathlib.Path(arguments[0]), arguments[1]) if method == "push" else remote.delete(*arguments)
        os._exit(0)
"""
"""Forks a process for every call, once all is imported and before any thread runs."""


@pytest.fixture(scope="module")
def in_process(server):
    """Call a method of a remote, whose URL comes first, in a process of its own; its id, and what waits for its end."""
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKER], **piped) as forker:

        def ask(*told) -> int:
            print(json.dumps([*told[:2], *map(str, told[2:])]), file=forker.stdin, flush=True)
            return int(forker.stdout.readline())

        def start(method, link, *arguments):
            child = ask(method, link.environment, *arguments)
            return child, lambda: ask("wait", None, child)

        yield start


def at_write(number, fault):
    """A fault of every write from this one on, counted from 0."""
    writes = count()
    return lambda asked: fault if asked.writes and next(writes) >= number else None


def content(asked) -> bool:
    """Whether a request uploads a file of a product that is neither claim nor commit record."""
    return asked.method == "PUT" and not asked.key.endswith((CLAIM, COMMIT))


class TestPushing:
    def test_the_objects_are_the_files_byte_for_byte(self, server, link, url, product):
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)

    def test_the_commit_record_goes_up_when_all_else_stands(self, link, url, product):
        open_remote(url).push(product, NAME)
        uploads = [asked.key for asked in link.asked if asked.method == "PUT"]
        assert uploads[0].endswith(CLAIM)
        assert uploads[-1].endswith(COMMIT)
        assert len(uploads) == len(set(uploads)) == len(files(product)) + 1

    def test_pushing_again_uploads_nothing(self, server, link, url, product):
        open_remote(url).push(product, NAME)
        link.heal()
        open_remote(url).push(product, NAME)
        assert [asked.method for asked in link.asked] == ["GET", "POST"]  # the commit record; the claim, if any, goes
        assert remote_objects(server, url) == files(product)

    @pytest.mark.parametrize("fault", ["cut", "lost", (503, b"<Code>SlowDown</Code>")], ids=str)
    @pytest.mark.parametrize("part", [0, 0.5, "commit record", "claim given up"])
    def test_a_failure_at_any_write_leaves_no_product_and_a_second_push_completes_it(
        self, server, link, url, product, fault, part
    ):
        size = len(files(product))
        number = {"commit record": size, "claim given up": size + 1}.get(part) or round(part * size)
        link.fault = at_write(number, fault)
        with pytest.raises(RetryableError):
            impatient(url).push(product, NAME)
        link.heal()
        stands = remote_objects(server, url)
        whole = part == "claim given up" or (part == "commit record" and fault == "lost")
        assert is_product(url) == (COMMIT in stands) == whole
        link.heal()
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)
        sent = {asked.key.partition(f"{NAME}/")[2] for asked in link.asked if content(asked)}
        assert sent == files(product).keys() - stands.keys() - {COMMIT}
        xr.testing.assert_identical(cubeloom.open_scene(f"{url}/{NAME}").load(), cubeloom.open_scene(product).load())

    @pytest.mark.parametrize("when", ["first upload", "before the record", "after the record"])
    def test_a_kill_leaves_no_product_and_a_second_push_completes_it(
        self, server, link, in_process, url, product, when
    ):
        pusher: Future[int] = Future()

        def kill_pusher():
            os.kill(pusher.result(60), signal.SIGKILL)

        def kill(asked):
            fatal = content(asked) if when == "first upload" else asked.key.endswith(COMMIT)
            if not (fatal and asked.method == "PUT"):
                return None
            if when == "after the record":
                threading.Timer(0.3, kill_pusher).start()
                link.delay = 60  # what follows on the record never comes
                return None
            kill_pusher()
            return "cut"

        link.fault = kill
        child, ended = in_process("push", link, url, product, NAME)
        pusher.set_result(child)
        assert ended() == -signal.SIGKILL
        link.heal()
        assert is_product(url) == (when == "after the record")
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)

    def test_trouble_that_passes_is_waited_for(self, server, link, url, product):
        seen = []

        def twice(asked):
            seen.append((asked.method, asked.key))
            return (503, b"busy") if seen.count(seen[-1]) < 3 else None

        link.fault = twice
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)

    @pytest.mark.parametrize("fault", ["lost", "torn"])
    @pytest.mark.parametrize("suffix", [CLAIM, COMMIT])
    def test_a_lost_answer_to_a_conditional_write_is_no_conflict_with_itself(
        self, server, link, url, product, suffix, fault
    ):
        lost = count()
        link.fault = lambda one: fault if one.method == "PUT" and one.key.endswith(suffix) and not next(lost) else None
        open_remote(url).push(product, NAME)
        assert next(lost) > 1
        assert remote_objects(server, url) == files(product)

    def test_an_answer_that_comes_too_late_is_no_conflict_either(self, server, link, url, product, monkeypatch):
        """Libraries do not repeat a conditional write that timed out, as it may have been done: it is read back."""
        monkeypatch.setenv("AWS_TIMEOUT", "1500 ms")
        late = count()
        link.fault = lambda one: (
            time.sleep(2.5) if one.method == "PUT" and COMMIT in one.key and not next(late) else None
        )
        open_remote(url).push(product, NAME)
        assert next(late) > 1
        assert remote_objects(server, url) == files(product)

    @pytest.mark.parametrize("key", ["reflectance/c/0/1/1", "reflectance/zarr.json", "zarr.json", "quality/c/0/0"])
    def test_a_flipped_bit_on_the_local_disk_is_found_before_the_product_stands(self, link, url, product, key):
        data = bytearray((product / key).read_bytes())
        data[len(data) // 2] ^= 4
        (product / key).write_bytes(data)
        with pytest.raises(StoreError, match=f"{key} does not match"):
            open_remote(url).push(product, NAME)
        assert not is_product(url)
        uploads = {asked.key.partition(f"{NAME}/")[2] for asked in link.asked if asked.method == "PUT"}
        assert not uploads & {COMMIT, key}

    def test_a_missing_file_is_found_before_the_product_stands(self, link, url, product):
        (product / "reflectance/c/0/1/0").unlink()
        with pytest.raises(StoreError, match="reflectance/c/0/1/0 is missing"):
            open_remote(url).push(product, NAME)
        assert not is_product(url)

    def test_an_unfinished_product_is_not_pushed(self, link, url, product):
        (product / COMMIT).unlink()
        with pytest.raises(StoreError, match="not a finished product"):
            open_remote(url).push(product, NAME)
        assert not link.asked

    def test_what_lies_under_the_name_by_accident_does_not_become_part_of_the_product(self, server, link, url, product):
        """A chunk that should be empty, and one of the right size whose bytes are others."""
        empty = next(key for key, known in read_commit(product)["chunks"].items() if not known)
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        for key, body in {
            empty: b"not empty",
            "quality/c/0/0": bytes((product / "quality/c/0/0").stat().st_size),
        }.items():
            server.client.put_object(Bucket=bucket, Key=f"{prefix}/{NAME}/{key}", Body=body)
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)

    def test_names_beside_each_other_do_not_touch(self, server, link, url, product, other):
        remote = open_remote(url)
        remote.push(product, NAME)
        remote.push(other, f"{NAME}-2.zarr")
        remote.push(other, "with blank (1)/x,y=z.zarr")
        remote.delete(f"{NAME}-2.zarr")
        assert remote_objects(server, url) == files(product)
        assert remote_objects(server, url, "with blank (1)/x,y=z.zarr") == files(other)
        xr.testing.assert_identical(
            cubeloom.open_scene(remote.href("with blank (1)/x,y=z.zarr")).load(), cubeloom.open_scene(other).load()
        )


class TestOtherProducts:
    def test_a_standing_product_is_never_written_over(self, server, link, url, product, other):
        remote = open_remote(url)
        remote.push(product, NAME)
        with pytest.raises(StoreError, match="another product stands there"):
            remote.push(other, NAME)
        assert remote_objects(server, url) == files(product)

    def test_an_unfinished_push_of_another_product_is_not_mixed_with(self, server, link, url, product, other):
        link.fault = at_write(9, "cut")
        with pytest.raises(RetryableError):
            impatient(url).push(product, NAME)
        link.heal()
        begun = remote_objects(server, url)
        with pytest.raises(StoreError, match="delete it and push again"):
            open_remote(url).push(other, NAME)
        assert remote_objects(server, url) == begun
        open_remote(url).delete(NAME)
        open_remote(url).push(other, NAME)
        assert remote_objects(server, url) == files(other)

    def test_two_pushers_of_one_product_end_with_it(self, server, link, url, product):
        link.delay = 0.005
        with ThreadPoolExecutor(3) as pool:
            for pushed in [pool.submit(open_remote(url).push, product, NAME) for _ in range(3)]:
                pushed.result()
        assert remote_objects(server, url) == files(product)

    @pytest.mark.parametrize("lead", [0, 0.02, 0.1])
    def test_two_pushers_of_different_products_end_with_one_of_them(self, server, link, url, product, other, lead):
        link.delay = 0.005
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(open_remote(url).push, product, NAME)
            time.sleep(lead)
            second = pool.submit(open_remote(url).push, other, NAME)
            errors = [first.exception(), second.exception()]
        assert sorted(map(type, errors), key=str) == [type(None), StoreError] or errors == [None, None]
        winner = product if errors[0] is None else other
        assert remote_objects(server, url) == files(winner)
        assert not errors[0] or not errors[1]
        assert errors.count(None) == 1

    @pytest.mark.parametrize("mine", ["product", "other"])
    def test_who_comes_late_sees_what_another_finished_meanwhile(
        self, server, object_server, link, url, product, other, monkeypatch, mine
    ):
        """The other's whole push falls between the first look at the name and the claim to it."""
        with object_server.Link(server.port) as second:
            monkeypatch.setenv("AWS_ENDPOINT_URL", second.environment["AWS_ENDPOINT_URL"])
            faster = open_remote(url)
            faster.stands(NAME, "0")  # connects
            monkeypatch.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
            link.fault = lambda asked: faster.push(product, NAME) if asked.key.endswith(CLAIM) and asked.body else None
            if mine == "other":
                with pytest.raises(StoreError, match="another product stands there"):
                    open_remote(url).push(other, NAME)
            else:
                open_remote(url).push(product, NAME)
        assert not any(content(asked) for asked in link.asked)
        assert remote_objects(server, url) == files(product)

    def test_what_vanishes_during_a_push_keeps_the_product_from_standing(self, server, link, url, bucket, product):
        gone = f"some/prefix/{NAME}/reflectance/zarr.json"

        def lose(asked):
            if content(asked) and asked.key.endswith("reflectance/c/0/1/1"):
                server.client.delete_object(Bucket=bucket, Key=gone)

        link.fault = lose
        with pytest.raises(RetryableError, match=r"reflectance/zarr.json: vanished.*push again"):
            open_remote(url, uploads=1).push(product, NAME)
        link.heal()
        assert not is_product(url)
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)

    @pytest.mark.parametrize("number", [3, 20])
    def test_a_deletion_during_a_push_leaves_no_product(
        self, server, object_server, link, in_process, url, product, number
    ):
        """Once a deletion has begun, no push under way can make a product of what is left."""
        writes = count()
        with object_server.Link(server.port) as second:

            def delete_then_go_on(asked):
                if asked.writes and next(writes) == number:
                    _, ended = in_process("delete", second, url, NAME)
                    assert ended() == 0

            link.fault = delete_then_go_on
            with pytest.raises(CubeloomError, match=r"push again|vanished"):
                open_remote(url, uploads=1).push(product, NAME)
        link.heal()
        assert not is_product(url)
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)


class TestDeleting:
    def test_it_ceases_to_be_a_product_first_and_nothing_is_left(self, server, link, url, product):
        open_remote(url).push(product, NAME)
        link.heal()
        open_remote(url).delete(NAME)
        deletions = [asked.body for asked in link.asked if asked.method == "POST"]
        assert COMMIT.encode() in deletions[0]
        assert b"zarr.json" not in deletions[0]
        assert remote_objects(server, url) == {}
        open_remote(url).delete(NAME)

    @pytest.mark.parametrize("number", [0, 1, 2, 3])
    def test_a_deletion_that_broke_off_can_be_taken_up(self, server, link, url, product, number):
        open_remote(url).push(product, NAME)
        link.fault = at_write(number, "cut")
        with pytest.raises(RetryableError):
            impatient(url).delete(NAME)
        link.heal()
        stands = is_product(url)
        assert stands == (number < 2)  # the claim, then the commit record
        if not stands:
            with pytest.raises(StoreError, match="delete it"):
                open_remote(url).push(product, NAME)
        open_remote(url).delete(NAME)
        assert remote_objects(server, url) == {}
        open_remote(url).push(product, NAME)
        assert remote_objects(server, url) == files(product)


class TestLoad:
    def test_no_more_uploads_are_under_way_than_asked_for(self, link, url, product):
        link.delay = 0.01
        open_remote(url, uploads=3).push(product, NAME)
        assert link.most == 3

    def test_memory_holds_the_uploads_under_way_and_not_the_product(self, link, url, make_scene, tmp_path):
        noise = make_scene(height=512, width=512, bands=20, background=0)
        noise["reflectance"] = noise.reflectance.copy(
            data=np.random.default_rng(0).uniform(0, 1, noise.reflectance.shape).astype("float32")
        )
        path = cubeloom.write_scene(noise, tmp_path / "large.zarr")
        sizes = list(map(len, files(path).values()))
        code = (
            "import pathlib, sys, tracemalloc; from cubeloom.pipeline.remotes import base, objects, open_remote\n"
            "tracemalloc.start(); open_remote(sys.argv[1], uploads=2).push(pathlib.Path(sys.argv[2]), sys.argv[3])\n"
            "print(tracemalloc.get_traced_memory()[1])"
        )
        link.delay = 0.02
        peak = int(subprocess.check_output([sys.executable, "-c", code, url, path, NAME], env=os.environ))
        assert max(sizes) < peak < 2 * max(sizes) + 1e6 < sum(sizes) / 3


class TestDocuments:
    def test_a_document_is_put_and_replaced(self, server, link, url, bucket):
        remote = open_remote(url)
        for document in (b'{"a": 1}', b'{"a": 1}', b'{"b": 2}'):
            remote.point("scenes/ITEM/lc.json", document)
            answer = server.client.get_object(Bucket=bucket, Key="some/prefix/scenes/ITEM/lc.json")
            assert answer["Body"].read() == document
            assert answer["ContentType"] == "application/json"
        assert len(link.writes()) == 2

    def test_a_reader_sees_one_of_the_documents_and_every_writer_is_served(self, server, link, url, bucket):
        documents = [json.dumps({"writer": number, "filling": "x" * 5000 * number}).encode() for number in range(6)]
        remote = open_remote(url)
        remote.point("p.json", documents[0])
        done, seen = threading.Event(), set()

        def read():
            while not done.is_set():
                seen.add(server.client.get_object(Bucket=bucket, Key="some/prefix/p.json")["Body"].read())

        with ThreadPoolExecutor(7) as pool:
            reading = pool.submit(read)
            list(pool.map(lambda document: remote.point("p.json", document), documents))
            done.set()
            reading.result()
        assert seen <= set(documents)
        assert {asked.body for asked in link.writes()} == set(documents)

    def test_whoever_loses_a_race_makes_the_document_anew_so_no_change_is_lost(self, link, url):
        remote = open_remote(url)

        def add(number):
            def change(stands):
                return json.dumps(sorted({*json.loads(stands or b"[]"), number})).encode()

            remote.edit("catalog.json", change)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(24)))
        got = []
        remote.edit("catalog.json", lambda stands: got.append(stands) or stands)
        assert json.loads(got[0]) == list(range(24))
        assert len(link.writes()) > 24  # some writers were too late, and wrote again

    @pytest.mark.parametrize("fault", ["lost", "torn"])
    def test_a_lost_answer_does_not_apply_a_change_twice(self, link, url, fault):
        remote, lost = open_remote(url), count()
        link.fault = lambda asked: fault if asked.writes and not next(lost) else None
        made = []

        def change(stands):
            made.append(stands)
            return b"[1]"

        remote.edit("catalog.json", change)
        assert made == [None, b"[1]"]

    def test_stands_tells_by_the_commit_record(self, link, url, product, other):
        remote = open_remote(url)
        ours, theirs = (hashlib.sha256((path / COMMIT).read_bytes()).hexdigest() for path in (product, other))
        assert not remote.stands(NAME, ours)
        remote.push(product, NAME)
        assert remote.stands(NAME, ours)
        assert not remote.stands(NAME, theirs)


class TestReading:
    @pytest.fixture
    def href(self, link, url, product):
        remote = open_remote(url)
        remote.push(product, NAME)
        link.heal()
        return remote.href(NAME)

    def test_the_scene_is_the_local_one(self, href, product):
        here, there = cubeloom.open_scene(product), cubeloom.open_scene(href)
        assert there.reflectance.chunks == here.reflectance.chunks
        xr.testing.assert_identical(there.load(), here.load())
        assert open_source(href).fingerprint() == open_source(product).fingerprint()

    def test_an_overview_is_a_scene_too(self, link, url, make_scene, tmp_path):
        path = cubeloom.write_scene(make_scene(height=600, width=550, bands=3), tmp_path / "wide.zarr")
        open_remote(url).push(path, NAME)
        there = cubeloom.open_scene(f"{url}/{NAME}", group="overviews/2")
        xr.testing.assert_identical(there.load(), cubeloom.open_scene(path, group="overviews/2").load())
        with pytest.raises(InputError, match=r"no group 'x2'; it has overviews, overviews/2"):
            cubeloom.open_scene(f"{url}/{NAME}", group="x2")
        with pytest.raises(ConfigError, match="no option 'detector'"):
            cubeloom.open_scene(f"{url}/{NAME}", detector="vnir")

    def test_only_what_is_looked_at_is_read_and_no_empty_chunk_is_asked_for(self, link, href):
        scene = cubeloom.open_scene(href)
        assert not any("/reflectance/c/" in asked.key or "/quality/c/" in asked.key for asked in link.asked)
        link.heal()
        source = open_source(href)
        link.asked.clear()
        source.read("reflectance", Window(0, 0, 128, 180))  # an empty chunk, and one that is not
        assert [asked.key.partition(f"{NAME}/")[2] for asked in link.asked] == ["reflectance/c/0/0/1"]
        assert np.isnan(scene.reflectance[:, :128, :128].values).all()

    def test_stages_take_it_and_it_is_written_again_as_it_was(self, href, product, tmp_path):
        masked = cubeloom.mask(cubeloom.open_scene(href))
        xr.testing.assert_equal(masked.load(), cubeloom.mask(cubeloom.open_scene(product)).load())
        again = cubeloom.write_scene(cubeloom.open_scene(href), tmp_path / "again.zarr")
        expected = cubeloom.write_scene(cubeloom.open_scene(product), tmp_path / "expected.zarr")
        assert read_commit(again)["chunks"] == read_commit(expected)["chunks"]

    def test_a_source_goes_to_other_processes_without_a_credential(self, object_server, href):
        source = open_source(href)
        everything = whole(source.spec.shape)
        before = source.read("quality", everything)
        data = pickle.dumps(source)
        secrets = (object_server.ACCESS_KEY, object_server.SECRET_KEY, object_server.SESSION_TOKEN)
        assert not any(secret.encode() in data for secret in secrets)
        assert np.array_equal(pickle.loads(data).read("quality", everything), before)

    @pytest.mark.parametrize("body", [None, b"damaged"])
    def test_a_chunk_that_is_missing_or_damaged_is_an_error_and_not_a_gap(self, server, bucket, href, body):
        key = f"some/prefix/{NAME}/reflectance/c/0/1/1"
        if body is None:
            server.client.delete_object(Bucket=bucket, Key=key)
        else:
            server.client.put_object(Bucket=bucket, Key=key, Body=body)
        scene = cubeloom.open_scene(href)
        with pytest.raises(StoreError, match=r"reflectance/c/0/1/1 (is missing|does not match)"):
            scene.reflectance.load()

    def test_an_answer_that_breaks_off_is_asked_for_again(self, link, href, product):
        broken = set()

        def once(asked):
            again = asked.key in broken or not asked.key.endswith((COMMIT, "zarr/zarr.json", "/0", "/1"))
            return None if again or "/wavelength/" in asked.key else broken.add(asked.key) or "half"

        link.fault = once
        xr.testing.assert_identical(cubeloom.open_scene(href).load(), cubeloom.open_scene(product).load())
        assert len(broken) > 5

    def test_a_prefix_without_a_commit_record_is_no_product(self, server, bucket, href):
        server.client.delete_object(Bucket=bucket, Key=f"some/prefix/{NAME}/{COMMIT}")
        with pytest.raises(StoreError, match="not a finished product"):
            cubeloom.open_scene(href)

    def test_a_server_that_is_away_is_worth_another_try(self, link, href):
        link.fault = lambda _: "cut"
        with pytest.raises(RetryableError, match=r"cannot read.*try again later"):
            read_commit(open_folder(href, patience=0.001))


class TestSecrets:
    """Servers and proxies echo what they were sent, and libraries repeat it: none of it may reach a log."""

    @pytest.fixture(params=["cut", "403", "400", "503", "half a list"])
    def failing(self, request, object_server, link):
        echo = f"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{object_server.ACCESS_KEY}</AWSAccessKeyId>"

        def fault(asked):
            said = f"{echo}{asked.headers}{object_server.SECRET_KEY}{object_server.SESSION_TOKEN}</Error>".encode()
            return "cut" if request.param == "cut" else (int(request.param), said)

        link.fault = (lambda _: "half") if request.param == "half a list" else fault
        return request.param

    @pytest.mark.parametrize("act", ["push", "stands", "point", "delete", "open"])
    def test_no_error_repeats_a_credential(self, object_server, failing, url, product, act):
        remote = impatient(url)
        acts = {
            "push": lambda: remote.push(product, NAME),
            "stands": lambda: remote.stands(NAME, "0"),
            "point": lambda: remote.point("x.json", b"{}"),
            "delete": lambda: remote.delete(NAME),
            "open": lambda: read_commit(open_folder(f"{url}/{NAME}", patience=0.001)),
        }
        try:
            acts[act]()
        except CubeloomError as error:
            shown = "".join(traceback.format_exception(error))
            while error is not None:  # what a debugger or a crash reporter would find
                shown += str(error) + repr(error.args)
                error = error.__cause__ or error.__context__
            secrets = (object_server.ACCESS_KEY, object_server.SECRET_KEY, object_server.SESSION_TOKEN, "Signature")
            assert not [secret for secret in secrets if secret in shown]
        else:
            assert failing == "half a list"

    @pytest.mark.parametrize("failing", ["403"], indirect=True)
    def test_a_refusal_is_not_tried_again_and_says_so(self, failing, link, url, product):
        with pytest.raises(StoreError, match=r"access is denied \(403 InvalidAccessKeyId\); check the credentials"):
            open_remote(url).push(product, NAME)
        assert len(link.asked) == 1


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("AWS_ALLOW_HTTP", "false", "not encrypted.*AWS_ALLOW_HTTP=true"),
            ("AWS_ALLOW_HTTP", "perhaps", "not encrypted"),
            ("AWS_ENDPOINT_URL", "https://user:hidden@127.0.0.1:9", "not the address of a server"),
            ("AWS_ENDPOINT_URL", "hidden host", "not the address of a server"),
            ("AWS_TIMEOUT", "soon", "does not describe a store"),
            ("AWS_CONDITIONAL_PUT", "disabled", "unset AWS_CONDITIONAL_PUT"),
        ],
    )
    def test_what_is_wrong_with_it_is_said(self, link, url, monkeypatch, product, name, value, said):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=said) as refused:
            open_remote(url).push(product, NAME)
        assert "hidden" not in str(refused.value)

    def test_missing_credentials_are_named_at_once(self, link, monkeypatch, product):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", link.environment["AWS_ENDPOINT_URL"])
        link.fault = lambda _: (404, b"")
        with pytest.raises(StoreError, match="no credentials were found"):
            open_remote("s3://bucket/x").push(product, NAME)

    def test_a_request_that_takes_too_long_is_given_up(self, link, url, monkeypatch):
        monkeypatch.setenv("AWS_TIMEOUT", "100 ms")
        link.delay = 1.0
        begun = time.monotonic()
        with pytest.raises(RetryableError, match=r"\(Timeout\); try again later"):
            impatient(url).stands(NAME, "0")
        assert time.monotonic() - begun < 3


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("ftp://bucket/x", "begins with one of"),
            ("bucket/x", "begins with one of"),
            ("s3://", "not the name of a bucket"),
            ("s3://B_cket/x", "not the name of a bucket"),
            ("s3://bucket/a/../b", "no dots"),
            ("s3://bucket/a//b", "no empty parts"),
            ("icechunk+file://relative/x", "absolute path"),
            ("icechunk+file:///", "absolute path"),
        ],
    )
    def test_what_is_wrong_with_a_url_is_said(self, url, said):
        with pytest.raises(ConfigError, match=said):
            open_remote(url)

    @pytest.mark.parametrize(
        "url", ["s3://AKIA:hidden@bucket/x", "s3://bucket/x?X-Amz-Signature=hidden", "http://a:hidden@b"]
    )
    @pytest.mark.parametrize("opened", [open_remote, cubeloom.open_scene])
    def test_a_url_with_a_secret_is_refused_and_not_repeated(self, url, opened):
        with pytest.raises(ConfigError) as refused:
            opened(url)
        assert "hidden" not in "".join(traceback.format_exception(refused.value)).replace(url, "")
        assert "hidden" not in str(refused.value)

    @pytest.mark.parametrize("name", ["", "/x", "x/", "a/../b", "./a", "a//b", "a#b", "a?b", "a\nb", "a%2fb", "é"])
    @pytest.mark.parametrize("url", ["s3://bucket/x", "icechunk+file:///nowhere"])
    def test_a_name_that_leads_elsewhere_is_refused(self, url, name):
        pytest.importorskip("icechunk")
        remote = open_remote(url)
        for act in (remote.href, remote.delete, lambda n: remote.point(n, b""), lambda n: remote.stands(n, "0")):
            with pytest.raises(ConfigError, match="no name for a remote"):
                act(name)

    @pytest.mark.parametrize("url", ["s3://bucket/x", "icechunk+file:///nowhere"])
    def test_products_and_documents_keep_out_of_each_other(self, url, product):
        """What a push or a deletion may clear away below a name is one product and nothing else."""
        pytest.importorskip("icechunk")
        remote = open_remote(url)
        for name in ("scenes", "scenes/ITEM", "x.zarr/y.zarr"):
            for act in (remote.delete, remote.href, lambda n: remote.push(product, n), lambda n: remote.stands(n, "0")):
                with pytest.raises(ConfigError, match=r"no name for a product; expected a path that ends in .zarr"):
                    act(name)
        with pytest.raises(ConfigError, match="it would lie in a product"):
            remote.point("scenes/x.zarr/zarr.json", b"{}")

    def test_a_bucket_that_does_not_exist_is_named(self, link, product):
        with pytest.raises(StoreError, match="no such bucket"):
            open_remote("s3://no-bucket-of-ours/x").push(product, NAME)
