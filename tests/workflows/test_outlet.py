"""Products on their way to an object store: whole there, listed there, and made once."""

import json

import pystac
import pytest

import cubeloom
from cubeloom.catalogs.items import read_catalog
from cubeloom.errors import StoreError
from cubeloom.pipeline.store import COMMIT
from cubeloom.workflows.inspect import validate_path
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.run import RunOptions, run
from cubeloom.workflows.schema import load_workflow
from cubeloom.workflows.summary import report_run

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def small(tiny):
    """Scenes of one chunk: how large they are is not the point here."""
    return tiny


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
def url(server, tmp_path):
    bucket = tmp_path.name.replace("_", "-").lower()[-60:].strip("-")
    server.client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/products"


def states(result):
    return [scene.state for scene in result.scenes]


def objects(server, url):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return server.objects(bucket, prefix)


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """The scenes as a run without a store publishes them."""
    out = tmp_path_factory.mktemp("plain")
    (out / "test.yaml").write_text("name: test\nsteps: [mask]")
    return run(load_workflow(str(out / "test.yaml")), small.items[:2], out / "out")


@pytest.mark.parametrize("keep_local", [True, False])
def test_what_is_published_is_there_and_is_not_made_again(
    keep_local, server, link, url, small, plain, workflow, tmp_path
):
    out = tmp_path / "out"
    options = RunOptions(2, publish_to=url, keep_local=keep_local)
    result = run(workflow(), small.items[:2], out, options)
    assert states(result) == ["published"] * 2
    there = objects(server, url)
    for scene, local in zip(result.scenes, plain.scenes, strict=True):
        assert scene.href == f"{url}/{local.product.relative_to(plain.out).as_posix()}"
        name = scene.href.removeprefix(f"{url}/")
        assert there[f"{name}/{COMMIT}"] == (local.product / COMMIT).read_bytes()
        assert cubeloom.open_scene(scene.href).identical(cubeloom.open_scene(local.product))
        assert scene.product.exists() == keep_local
    if not keep_local:  # else it is read here, as that of any other run
        assert "cannot be shown" not in report_run(result).read_text()
    whole = [line.partition(": ")[0] for line in validate_path(out) if "chunks" in line]
    assert sorted(whole) == sorted(str(scene.product) if keep_local else scene.href for scene in result.scenes)

    link.asked.clear()
    again = run(workflow(), small.items[:2], out, options)
    assert states(again) == ["unchanged"] * 2
    assert not link.writes()
    with Ledger(Layout(out).ledger) as ledger:
        assert [row.product for row in ledger.scenes()] == [scene.href for scene in result.scenes]


def test_the_catalog_there_leads_to_every_product(server, link, url, small, workflow, tmp_path):
    run(workflow(), small.items[:2], tmp_path / "out", RunOptions(2, publish_to=url))
    for name, data in objects(server, url).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    items = read_catalog(tmp_path / "copy")
    assert len(items) == 2
    for item in items:
        assert cubeloom.open_scene(item.product_path).sizes["band"] == 14
        assert not [one for one in json.loads(item.self_path.read_text())["links"] if one["rel"] == "derived_from"]
    catalog = pystac.Catalog.from_file(str(tmp_path / "copy" / "catalog.json"))
    assert {item.id for item in catalog.get_items(recursive=True)} == {item.id for item in items}
    assert list(validate_path(tmp_path / "copy"))


def test_without_local_copies_the_items_lead_there(link, url, small, workflow, tmp_path):
    out = tmp_path / "out"
    (scene,) = run(workflow(), small.items[:1], out, RunOptions(2, publish_to=url, keep_local=False)).scenes
    item = json.loads(Layout(out).item(scene.item.id, "test").read_text())
    assert item["assets"]["product"]["href"] == scene.href
    assert item["assets"]["commit"]["href"] == f"{scene.href}/{COMMIT}"
    assert scene.product.with_suffix(".quicklooks").is_dir()


def test_commands_take_the_url_of_a_product(link, url, small, workflow, cli, tmp_path):
    (scene,) = run(workflow(), small.items[:1], tmp_path / "out", RunOptions(2, publish_to=url)).scenes
    described = json.loads(cli("info", scene.href, "--json").out)
    assert described["path"] == scene.href
    assert described["scenes"] == json.loads(cli("info", scene.product, "--json").out)["scenes"]
    checked = cli("validate", scene.href)
    assert checked.out.replace(scene.href, str(scene.product)) == cli("validate", scene.product).out
    assert cli("export", scene.href, tmp_path / "there.tif").code == 0
    assert cli("export", scene.product, tmp_path / "here.tif").code == 0
    assert (tmp_path / "there.tif").read_bytes() == (tmp_path / "here.tif").read_bytes()
    assert cli("ingest", scene.href, tmp_path / "copy.zarr").code == 0
    assert cubeloom.open_scene(tmp_path / "copy.zarr").identical(cubeloom.open_scene(scene.product))


def test_a_changed_chunk_there_is_found(server, link, url, small, workflow, tmp_path):
    out = tmp_path / "out"
    run(workflow(), small.items[:2], out, RunOptions(2, publish_to=url, keep_local=False))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    name = next(name for name in objects(server, url) if "/c/" in name)
    server.client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=b"else")
    with pytest.raises(StoreError, match="does not match") as caught:
        list(validate_path(out))
    assert str(caught.value).count("is damaged") == 1
    assert name.rpartition(".zarr/")[2] in str(caught.value)


def test_a_store_that_fails_is_tried_again_and_nothing_is_computed_twice(server, link, url, small, workflow, tmp_path):
    items, out = small.items[:1], tmp_path / "out"
    link.fault = lambda asked: (403, b"<Error><Code>AccessDenied</Code></Error>") if asked.writes else None
    (failed,) = run(workflow(), items, out, RunOptions(2, publish_to=url)).scenes
    assert failed.state == "failed"
    assert objects(server, url) == {}
    assert (failed.product / COMMIT).is_file(), "it stands locally"
    stamps = {path: path.stat().st_mtime_ns for path in failed.product.rglob("*")}

    link.heal()
    (again,) = run(workflow(), items, out, RunOptions(2, publish_to=url)).scenes
    assert again.state == "published"
    assert {path: path.stat().st_mtime_ns for path in failed.product.rglob("*")} == stamps
    assert cubeloom.open_scene(again.href).identical(cubeloom.open_scene(again.product))


def test_what_was_taken_away_there_is_put_there_again(server, link, url, small, workflow, tmp_path):
    items, out = small.items[:1], tmp_path / "out"
    options = RunOptions(2, publish_to=url)
    (first,) = run(workflow(), items, out, options).scenes
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    name = first.href.removeprefix(f"{url}/")
    server.client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}/{COMMIT}")
    (again,) = run(workflow(), items, out, options).scenes
    assert again.state == "published"
    assert f"{name}/{COMMIT}" in objects(server, url)


def test_a_repository_takes_them_as_well(small, workflow, tmp_path):
    pytest.importorskip("icechunk")
    url = f"icechunk+file://{tmp_path}/repository"
    (scene,) = run(workflow(), small.items[:1], tmp_path / "out", RunOptions(2, publish_to=url)).scenes
    assert scene.state == "published"
    assert cubeloom.open_scene(scene.href).identical(cubeloom.open_scene(scene.product))
    name = Layout(tmp_path / "out").item(scene.item.id, "test").relative_to(tmp_path / "out")
    document = tmp_path / "repository" / name
    assert json.loads(document.read_text())["assets"]["product"]["href"] == scene.href
    (again,) = run(workflow(), small.items[:1], tmp_path / "out", RunOptions(2, publish_to=url)).scenes
    assert again.state == "unchanged"
