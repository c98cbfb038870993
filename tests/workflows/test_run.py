"""The main job: a workflow over a catalog, from the item to the published product."""

import fcntl
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import zarr

from cubeloom.catalogs.items import Asset, read_catalog
from cubeloom.errors import LockedError, ModelError
from cubeloom.pipeline import store
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.scene import QUALITY_FLAGS
from cubeloom.workflows.inspect import validate_path
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.run import RunOptions, dry_run, run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import load_workflow


def states(result):
    return [scene.state for scene in result.scenes]


def image_of(folder):
    (path,) = folder.glob("*-SPECTRAL_IMAGE.TIF")
    return path


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def small(tiny):
    """Scenes of one chunk: how large they are is not the point here."""
    return tiny


class TestPublished:
    """What stands after a run of the library's main workflow over two scenes."""

    def test_every_scene_has_its_store_its_item_and_its_pictures(self, published):
        assert states(published.result) == ["published"] * 2
        assert published.result.exit_code == 0
        layout = Layout(published.out)
        for scene in published.result.scenes:
            assert (scene.product / store.COMMIT).is_file()
            assert scene.product.name == f"enmap_l2a-{scene.identity[:8]}.zarr"
            item = pystac.Item.from_file(str(layout.item(scene.item.id, "enmap_l2a")))
            item.make_asset_hrefs_absolute()
            assert item.assets["product"].href == str(scene.product)
            pictures = [Path(asset.href) for asset in item.assets.values() if asset.media_type == "image/png"]
            assert len(pictures) >= 3
            for picture in pictures:
                assert picture.read_bytes().startswith(b"\x89PNG")
        assert not list((published.out / ".cubeloom" / "staging").iterdir())
        assert not (published.out / ".cubeloom" / "quarantine").exists()

    def test_pystac_walks_from_the_catalog_to_the_items(self, published):
        catalog = pystac.Catalog.from_file(str(published.out / "catalog.json"))
        (collection,) = catalog.get_children()
        assert collection.id == "enmap_l2a"
        found = {item.id: item for item in catalog.get_items(recursive=True)}
        assert set(found) == {f"{item.id}_enmap_l2a" for item in published.delivery.items}
        for item in published.delivery.items:
            made = found[f"{item.id}_enmap_l2a"]
            assert made.datetime == item.datetime
            assert made.properties["proj:shape"] == item.properties["proj:shape"]
            assert np.allclose(made.bbox, item.bbox, atol=1e-3)
            (source,) = (link for link in made.links if link.rel == "derived_from")
            assert Path(source.get_absolute_href()).resolve() == item.self_path

    def test_it_validates(self, published):
        lines = list(validate_path(published.out))
        assert "4 STAC objects are valid" in lines[0]
        assert sum("metadata files match" in line for line in lines) == 2
        assert sum("is a Scene of 224 bands" in line for line in lines) == 2

    def test_the_report_names_every_scene_and_the_summary_counts(self, published):
        page = published.report.read_text()
        summary = json.loads(published.report.with_name("summary.json").read_text())
        assert [scene["state"] for scene in summary["scenes"]] == ["published"] * 2
        for scene, item in zip(summary["scenes"], published.delivery.items, strict=True):
            assert scene["item"] == item.id
            assert item.id in page
            assert (published.out / scene["product"] / store.COMMIT).is_file()
            assert scene["bytes"] > 0
            assert {"ingest", "statistics", "steps", "verify", "publish"} <= scene["seconds"].keys()
        assert summary["workflow"] == "enmap_l2a"

    def test_reflectance_is_that_of_the_geotiff_in_every_band(self, published):
        for product, result in zip(sorted(published.delivery.products, key=lambda p: p.scene_id),
                                   published.result.scenes, strict=True):  # fmt: skip
            scene = open_scene(result.product)
            assert scene.attrs["scene_id"] == product.scene_id
            with rasterio.open(image_of(product.path)) as tiff:
                numbers = tiff.read().astype(np.float64)
            assert numbers.shape == scene["reflectance"].shape == (224, 132, 48)
            expected = np.where(numbers == -32768, np.nan, numbers * 1e-4)
            np.testing.assert_allclose(scene["reflectance"].values, expected, rtol=0, atol=5e-5)

    def test_denoised_stands_beside_and_background_is_nan_in_both(self, published):
        for result in published.result.scenes:
            scene = open_scene(result.product)
            measured, denoised = scene["reflectance"].values, scene["denoised"].values
            background = (scene["quality"].values & QUALITY_FLAGS["background"]) != 0
            assert 0.02 < background.mean() < 0.9
            assert np.isnan(measured[:, background]).all()
            assert np.isnan(denoised[:, background]).all()
            valid, good = scene["valid"].values, scene["good"].values
            assert not (valid & background).any()
            inside = denoised[good][:, valid]
            assert np.isfinite(inside).all()
            change = inside - measured[good][:, valid]
            assert np.nanmean(np.abs(change)) > 0
            assert np.nanmean(np.abs(change)) < 0.1 * np.nanmean(np.abs(inside))

    def test_denoised_is_nearer_to_the_truth(self, published):
        products = {product.scene_id: product for product in published.delivery.products}
        for result in published.result.scenes:
            scene = open_scene(result.product)
            with rasterio.open(products[scene.attrs["scene_id"]].truth_folder / "CLEAN.TIF") as tiff:
                clean = tiff.read() * 1e-4
            good, valid = scene["good"].values, scene["valid"].values
            before, after = (
                np.abs(scene[name].values - clean)[good][:, valid].mean() for name in ("reflectance", "denoised")
            )
            assert after < 0.7 * before

    def test_classification_is_skipped_without_a_model(self, published):
        for result in published.result.scenes:
            scene = open_scene(result.product)
            assert "classes" not in scene
            assert "classify" not in scene.attrs["history"]
            assert "denoise" in scene.attrs["history"]

    def test_a_store_tells_nothing_of_when_and_where_it_was_made(self, published, tmp_path):
        run_id = published.result.run_id
        day = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"
        telling = [str(published.out.parent), str(published.delivery.folder.parent), socket.gethostname(), run_id, day]
        telling = [word for word in telling if len(word) > 3]
        assert len(telling) >= 4
        for scene in published.result.scenes:
            texts = [file for file in scene.product.rglob("*") if file.suffix == ".json"]
            assert len(texts) > 10
            for file in texts:
                text = file.read_text()
                assert not [word for word in telling if word in text], file

    def test_plain_zarr_finds_every_array(self, published):
        root = zarr.open_group(published.result.scenes[0].product, mode="r")
        assert {"reflectance", "denoised", "quality", "defect", "valid", "wavelength"} <= set(root.array_keys())
        assert root["denoised"].dtype == np.int16
        assert root["denoised"].chunks == (224, 128, 128)


class TestAgain:
    def test_a_second_run_does_nothing(self, published, snapshot):
        before = snapshot(published.out / "scenes")
        assert len(before) > 50
        result = run(load_workflow("enmap_l2a"), published.delivery.items, published.out)
        assert states(result) == ["unchanged"] * 2
        assert [scene.identity for scene in result.scenes] == [scene.identity for scene in published.result.scenes]
        assert snapshot(published.out / "scenes") == before
        assert result.exit_code == 0

    def test_products_are_the_input_of_the_next_workflow(self, published, tmp_path):
        items = read_catalog(published.out)
        result = run(load_workflow("ingest"), items[:1], tmp_path / "next")
        assert states(result) == ["published"]
        first, second = open_scene(published.result.scenes[0].product), open_scene(result.scenes[0].product)
        assert second.identical(first)
        assert list(validate_path(tmp_path / "next"))

    def test_another_parameter_makes_another_product_beside_the_old_one(self, small, workflow, tmp_path, snapshot):
        items, out = small.items[:1], tmp_path / "out"
        (first,) = run(workflow(), items, out).scenes
        before = snapshot(first.product)
        (second,) = run(workflow(settings=("mask.dilate=2",)), items, out).scenes
        assert second.state == "published"
        assert second.identity != first.identity
        assert second.product.parent == first.product.parent
        assert snapshot(first.product) == before
        (item,) = read_catalog(out)
        assert item.product_path == second.product.resolve()
        (back,) = run(workflow(), items, out).scenes
        assert back.state == "published", "the item points to the first product again"
        assert back.blocks == first.blocks
        assert snapshot(first.product) == before
        assert read_catalog(out)[0].product_path == first.product.resolve()

    def test_a_product_whose_item_was_never_written_is_announced_and_not_made_again(
        self, small, workflow, tmp_path, snapshot
    ):
        """A kill between the rename of the store and the writing of its item."""
        (first,) = run(workflow(), small.items[:1], tmp_path / "out").scenes
        before = snapshot(first.product)
        Layout(tmp_path / "out").item(first.item.id, "test").unlink()
        (again,) = run(workflow(), small.items[:1], tmp_path / "out").scenes
        assert again.state == "published"
        assert snapshot(first.product) == before
        assert read_catalog(tmp_path / "out")[0].product_path == first.product.resolve()

    def test_identity_does_not_depend_on_where_things_lie(self, small, workflow, tmp_path):
        shutil.copytree(small.folder, tmp_path / "elsewhere" / "deep")
        moved = read_catalog(scan(tmp_path / "elsewhere", tmp_path / "catalog").catalog)
        (first,) = run(workflow(), small.items[:1], tmp_path / "one").scenes
        (second,) = run(workflow(), moved[:1], tmp_path / "two").scenes
        assert first.product.relative_to(tmp_path / "one") == second.product.relative_to(tmp_path / "two")
        assert (first.product / store.COMMIT).read_bytes() == (second.product / store.COMMIT).read_bytes()


class TestBadScenes:
    @pytest.mark.parametrize("when", ["before the scan", "after the scan"])
    def test_one_of_three_is_quarantined_and_published_once_it_is_mended(self, when, copied, workflow, tmp_path):
        broken = copied.folder / sorted(product.scene_id for product in copied.products)[1]
        image = image_of(broken)
        whole = image.read_bytes()
        cut_short(image)
        if when == "before the scan":
            catalog = scan(copied.folder, tmp_path / "catalog")
            assert catalog.rejected == (), "the header is whole, so a scan lists the scene"
        out = tmp_path / "out"
        layout, chain = Layout(out), workflow()
        result = run(chain, copied.items, out)
        assert states(result) == ["published", "failed", "published"]
        assert result.exit_code == 3
        cause = json.loads(layout.quarantine(broken.name, "test").read_text())
        assert cause["state"] == "failed"
        assert image.name in cause["cause"]
        assert "cut short" in cause["cause"]
        assert "traceback" not in cause
        assert not layout.item(broken.name, "test").exists()
        assert not layout.scene(broken.name).exists()
        assert not list((out / ".cubeloom" / "staging").iterdir())
        assert {item.id for item in read_catalog(out)} == {
            f"{item.id}_test" for item in copied.items if item.id != broken.name
        }
        assert list(validate_path(out))

        image.write_bytes(whole)
        if when == "before the scan":
            scan(copied.folder, tmp_path / "catalog")
        again = run(chain, copied.items, out)
        assert states(again) == ["unchanged", "published", "unchanged"]
        assert again.exit_code == 0
        assert not layout.quarantine(broken.name, "test").parent.exists()
        assert len(read_catalog(out)) == 3
        with Ledger(layout.ledger) as ledger:
            assert {row.state for row in ledger.scenes()} == {"succeeded"}

    def test_a_scene_of_another_level_is_invalid_with_the_reason(self, all_levels, tmp_path):
        result = run(load_workflow("enmap_l2a"), all_levels.items, tmp_path / "out")
        by_level = {scene.item.properties["processing:level"]: scene for scene in result.scenes}
        assert {level: scene.state for level, scene in by_level.items()} == {
            "L1B": "invalid",
            "L1C": "invalid",
            "L2A": "published",
        }
        assert "takes level L2A, the scene is L1C" in by_level["L1C"].cause
        assert "L1B" in by_level["L1B"].cause
        assert result.exit_code == 3
        with Ledger(Layout(tmp_path / "out").ledger) as ledger:
            assert sorted(row.state for row in ledger.scenes()) == ["invalid", "invalid", "succeeded"]

    def test_l1b_runs_where_the_workflow_names_the_detector(self, all_levels, workflow, tmp_path):
        item = next(item for item in all_levels.items if item.properties["processing:level"] == "L1B")
        (scene,) = run(workflow(open="{detector: swir}"), [item], tmp_path / "out").scenes
        assert scene.state == "published"
        assert set(open_scene(scene.product)["detector"].values) == {"swir"}
        assert list(validate_path(tmp_path / "out"))

    def test_a_scene_that_is_gone_fails_alone(self, copied, workflow, tmp_path):
        items = copied.items
        shutil.rmtree(items[0].product_path.parent)
        result = run(workflow(), items, tmp_path / "out")
        assert states(result) == ["failed", "published", "published"]
        assert "no such file" in result.scenes[0].cause

    def test_a_missing_model_stops_the_run_before_it_writes(self, small, tmp_path):
        chain = load_workflow("enmap_l2a", [f"classify.model={tmp_path / 'none.skops'}"])
        with pytest.raises(ModelError, match=r"none\.skops"):
            run(chain, small.items, tmp_path / "out")
        with pytest.raises(ModelError, match=r"none\.skops"):
            dry_run(chain, small.items, tmp_path / "out", RunOptions())
        assert not (tmp_path / "out").exists()

    def test_too_little_memory_is_the_callers_to_mend(self, small, tmp_path):
        result = run(load_workflow("enmap_l2a"), small.items, tmp_path / "out", RunOptions(1, 10 * 2**20))
        assert states(result) == ["failed"] * 3
        assert "budget is 10 MiB" in result.scenes[0].cause
        assert result.exit_code == 2

    def test_an_item_that_leads_elsewhere_fails_alone(self, small, workflow, tmp_path):
        items = small.items
        items[0] = replace(items[0], assets={"product": Asset("https://example.com/scene.zip")})
        items[1] = replace(items[1], assets={"thumbnail": Asset("picture.png")})
        result = run(workflow(), items, tmp_path / "out")
        assert states(result) == ["failed", "failed", "published"]
        assert "example.com is not among the hosts that may be asked" in result.scenes[0].cause
        assert "has the assets thumbnail" in result.scenes[1].cause
        assert result.exit_code == 3

    def test_an_unexpected_failure_stops_nothing_and_leaves_its_trace(self, copied, workflow, tmp_path):
        """The folder of the second scene's products cannot be made: a file is in its place."""
        items, layout = copied.items, Layout(tmp_path / "out")
        layout.scene(items[1].id).parent.mkdir(parents=True)
        layout.scene(items[1].id).write_text("in the way")
        result = run(workflow(), items, layout.out)
        assert states(result) == ["published", "failed", "published"]
        cause = json.loads(layout.quarantine(items[1].id, "test").read_text())
        assert cause["cause"].startswith("FileExistsError")
        assert "Traceback" in cause["traceback"][0]
        layout.scene(items[1].id).unlink()
        again = run(workflow(), items, layout.out)
        assert states(again) == ["unchanged", "published", "unchanged"]
        assert again.scenes[1].resumed_blocks == again.scenes[1].blocks, "its blocks stood in staging"


class TestDryRun:
    def test_it_plans_and_writes_nothing(self, all_levels, tmp_path):
        out = tmp_path / "out"
        planned = dry_run(load_workflow("enmap_l2a"), all_levels.items, out, RunOptions())
        assert not out.exists()
        assert sorted(scene.action for scene in planned) == ["fail", "fail", "make"]
        (made,) = (scene for scene in planned if scene.action == "make")
        assert "mask > destripe > denoise" in made.detail
        assert "classify skipped: no model given" in made.detail
        assert 0 < made.projected_mib < 4096

    def test_memory_is_that_of_each_process(self, small, workflow, tmp_path):
        """Of all workers as threads of one; of its share as a process; of a cluster's worker whatever their number."""

        def projected(workers, scheduler):
            options = RunOptions(workers, 2**30, scheduler=scheduler)
            return dry_run(workflow(), small.items[:1], tmp_path / "out", options)[0].projected_mib

        alone = projected(1, None)
        assert projected(4, None) > alone
        assert projected(4, "tcp://192.0.2.1:8786") == alone
        assert projected(2, "processes") <= 512

    def test_it_promises_the_identity_that_the_run_makes(self, small, workflow, tmp_path, snapshot):
        out, chain = tmp_path / "out", workflow()
        planned = dry_run(chain, small.items, out, RunOptions())
        result = run(chain, small.items, out)
        assert [scene.identity for scene in planned] == [scene.identity for scene in result.scenes]
        assert [scene.blocks for scene in planned] == [scene.blocks for scene in result.scenes]
        before = snapshot(out)
        assert [scene.action for scene in dry_run(chain, small.items, out, RunOptions())] == ["nothing to do"] * 3
        assert snapshot(out) == before


def test_a_second_run_on_the_same_directory_is_refused(small, workflow, tmp_path):
    out = tmp_path / "out"
    lock = Layout(out).lock
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="process 4711") as refused:
            run(workflow(), small.items, out)
        assert refused.value.exit_code == 75
        assert not (out / "scenes").exists()
    assert states(run(workflow(), small.items, out)) == ["published"] * 3
