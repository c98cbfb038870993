"""Scenes that are fetched: transfers that break off, lie, or are killed, all the way through a run."""

import json
import signal

import pytest

from cubeloom.pipeline import store

from .conftest import Case
from .driver import Fault
from .reader import breaches, leftovers


@pytest.fixture
def server(stac_server, tmp_path):
    (tmp_path / "served").mkdir()
    with stac_server.StacServer(files=tmp_path / "served") as server:
        yield server


@pytest.fixture
def remote(one, server, stac_items, tmp_path):
    """The same scene at a provider, listed in a file."""
    (product,) = one.catalog.parent.with_name("in").glob("*Z")
    document = stac_items.publish_product(product, tmp_path / "served", checksums=True, nested=False)
    collection = json.dumps({"type": "FeatureCollection", "features": [document]}).replace("@server@", server.url)
    catalog = tmp_path / "found.json"
    catalog.write_text(collection)
    return Case(one.nursery, catalog, one.workflow)


def image_of(server):
    """Path at the server, and content, of the spectral image."""
    (image,) = server.files.rglob("*SPECTRAL_IMAGE*")
    return f"/files/{image.relative_to(server.files)}", image.read_bytes()


def holds(remote, one, expected, out):
    """The product that files of this machine give, and nothing left of the transfer."""
    assert not list(breaches(out))
    assert not leftovers(out)
    assert chunks(out) == chunks(expected.out(one))


def chunks(out):
    (product,) = out.glob("scenes/*/*.zarr")
    return store.read_commit(product)["chunks"]


def test_a_transfer_that_breaks_off_goes_on(remote, server, stac_server, one, expected, tmp_path):
    path, content = image_of(server)
    server.then(path, stac_server.cut(content, 5_000), stac_server.cut(content, 100))
    out = tmp_path / "out"
    with one.nursery.watching(out):
        child = remote.run(out)
        assert child.code == 0, child.said
    holds(remote, one, expected, out)


def test_a_transfer_that_always_breaks_off_fails_the_scene_and_the_next_run_fetches_it(
    remote, server, stac_server, one, expected, tmp_path
):
    path, content = image_of(server)
    server.routes[path] = stac_server.cut(content, 5_000)
    out = tmp_path / "out"
    with one.nursery.watching(out):
        child = remote.run(out, "--retries", 1)
        assert child.code == 3, child.said
        assert "Traceback" not in child.said
        assert not (out / "scenes").exists()
        server.routes.clear()
        child = remote.run(out)
        assert child.code == 0, child.said
    holds(remote, one, expected, out)


def test_a_file_that_is_not_what_the_item_says_is_not_used(remote, server, stac_server, one, expected, tmp_path):
    path, content = image_of(server)
    server.routes[path] = stac_server.answer(200, content[:-1] + bytes([content[-1] ^ 1]))
    out = tmp_path / "out"
    child = remote.run(out, "--retries", 1)
    assert child.code == 3, child.said
    assert "checksum" in child.said
    assert not (out / "scenes").exists()
    server.routes.clear()
    assert remote.run(out).code == 0
    holds(remote, one, expected, out)


@pytest.mark.parametrize(
    ("at", "when"),
    [
        ("cubeloom.catalogs.transfer.fetch", "before"),
        ("cubeloom.catalogs.transfer.fetch", "after"),
        ("pathlib.Path.replace", "before"),
        ("cubeloom.pipeline.store.seal", "before"),
        ("cubeloom.workflows.ledger.Ledger.end", "before"),
        ("cubeloom.workflows.ledger.Ledger.end", "after"),
    ],
)
def test_a_kill_on_the_way_leaves_nothing_behind(at, when, remote, one, expected, tmp_path):
    out = tmp_path / "out"
    with one.nursery.watching(out):
        killed = remote.run(out, fault=Fault(at=at, when=when))
        assert killed.code == -signal.SIGKILL, killed.said
        child = remote.run(out)
        assert child.code == 0, child.said
    holds(remote, one, expected, out)
