"""Scenes of two sensors that go together: found in the catalog, brought onto one grid, and shown in one report."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import cubeloom
from cubeloom.catalogs.items import CatalogItem, read_catalog
from cubeloom.catalogs.overlap import overlap
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2
from cubeloom.workflows.inspect import describe_path
from cubeloom.workflows.pairing import paired
from cubeloom.workflows.run import RunOptions, dry_run, run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import load_workflow
from cubeloom.workflows.summary import report_run

SIZE = {"height": 128, "width": 128}
SHIFT = (9.0, -9.0)
"""East and north, m: 0.3 px of EnMAP right and down."""


@pytest.fixture(scope="module")
def delivery(tmp_path_factory) -> Path:
    """An EnMAP scene, Sentinel-2 of the same hour in the next UTM zone, and an EnMAP scene far away."""
    folder = tmp_path_factory.mktemp("pair") / "in"
    made = simulate_scene(folder, seed=11, n_vnir=40, n_swir=30, clouds=0.02, **SIZE)
    epsg = int(str(cubeloom.open_scene(made.path).odc.crs.to_epsg())) + 1
    simulate_sentinel2(folder, seed=11, epsg=epsg, shift=SHIFT, clouds=0.02, **SIZE)
    simulate_scene(folder, seed=12, n_vnir=6, n_swir=6, height=64, width=64)
    return folder


@pytest.fixture(scope="module")
def items(delivery, tmp_path_factory) -> list[CatalogItem]:
    return read_catalog(scan(delivery, tmp_path_factory.mktemp("catalog")).catalog)


@pytest.fixture(scope="module")
def published(items, tmp_path_factory):
    return run(load_workflow("enmap_s2_pair"), items, tmp_path_factory.mktemp("out"))


def guide_of(items) -> CatalogItem:
    return next(item for item in items if item.properties["platform"].startswith("sentinel"))


def by_state(result, state):
    return [scene for scene in result.scenes if scene.state == state]


def test_two_sensors_of_two_zones_become_one_product_and_one_report(published, items):
    [done], [alone] = by_state(published, "published"), by_state(published, "invalid")
    assert alone.cause.startswith(f"{alone.item.id}: no s2 to pair it with: no scene of Sentinel-2 within 5 days")
    assert guide_of(items).id in alone.cause
    scene, guide = cubeloom.open_scene(done.product), cubeloom.open_scene(done.product, group="s2")
    assert (guide.sizes["y"], guide.sizes["x"]) == (3 * scene.sizes["y"], 3 * scene.sizes["x"])
    assert guide.odc.crs == scene.odc.crs
    assert guide.attrs["sensor"].startswith("Sentinel-2")
    assert np.isfinite(guide.reflectance.values[:, 40:-40, 40:-40]).mean() > 0.95
    page = report_run(published).read_text()
    for told in ("true colour, s2", "shift right px", guide_of(items).id, alone.item.id):
        assert told in page


def test_what_was_found_is_on_record(published, items):
    [done] = by_state(published, "published")
    facts = json.loads((done.product / "_COMMIT.json").read_text())["facts"]["pair"]
    assert facts["guide"] == guide_of(items).id
    assert facts["corrected"] == "yes"
    assert np.hypot(facts["shift_east_m"], facts["shift_north_m"]) == pytest.approx(np.hypot(*SHIFT), abs=2.0)
    item = json.loads((published.out / "scenes" / done.item.id / "enmap_s2_pair.json").read_text())
    assert item["properties"]["cubeloom:pair"] == facts
    sources = {link["title"] for link in item["links"] if link["rel"] == "derived_from"}
    assert sources == {done.item.id, guide_of(items).id}
    lineage = item["properties"]["processing:lineage"]
    assert f"pair: s2 is {guide_of(items).id}" in lineage
    assert "hours later" in lineage
    assert f"shift_right_px {facts['shift_right_px']}" in lineage
    assert done.facts["pair"] == facts
    told = describe_path(done.product)
    assert told["found"]["pair"] == facts
    assert told["scenes"]["s2"]["scene_id"] == guide_of(items).id


def test_a_corrected_guide_fits_the_scene_better(published, delivery):
    """The published guide against the scene, seen through two of its bands: closer than the guide as delivered."""
    [done] = by_state(published, "published")
    scene, guide = cubeloom.open_scene(done.product), cubeloom.open_scene(done.product, group="s2")
    raw = cubeloom.pair(scene, cubeloom.open_scene(next(delivery.glob("S2*.SAFE"))), guide="s2", coregister="off")
    near = int(np.argmin(np.abs(scene.wavelength.values - 664.6)))
    seen = scene.reflectance.values[near, 8:-8, 8:-8]

    def miss(other):
        mean = other.reflectance.values[2].reshape(128, 3, 128, 3).mean((1, 3))[8:-8, 8:-8]
        both = np.isfinite(mean) & np.isfinite(seen) & (scene.valid.values[8:-8, 8:-8])
        return np.corrcoef(mean[both], seen[both])[0, 1]

    assert miss(guide) > miss(raw)


def test_python_gives_the_guide_that_a_run_publishes(published, delivery):
    [done] = by_state(published, "published")
    scene = cubeloom.mask(cubeloom.open_scene(done.item.product_path))
    guide = cubeloom.open_scene(next(delivery.glob("S2*.SAFE")))
    made = cubeloom.pair(scene, guide, guide="s2", coregister="correct")
    assert made.attrs["sensor"].startswith("Sentinel-2")
    stored = cubeloom.open_scene(cubeloom.write_scene(made, done.product.parent / "by_hand.zarr"))
    again = cubeloom.open_scene(done.product, group="s2")
    for name in again.data_vars:
        np.testing.assert_array_equal(stored[name].values, again[name].values)
    shutil.rmtree(done.product.parent / "by_hand.zarr")


def test_a_second_run_does_nothing_and_another_guide_is_another_product(published, items):
    workflow = load_workflow("enmap_s2_pair")
    again = run(workflow, items, published.out)
    assert sorted(scene.state for scene in again.scenes) == ["invalid", "unchanged"]
    [same] = [plan for plan in dry_run(workflow, items, published.out, RunOptions()) if plan.action != "fail"]
    assert same.action == "nothing to do"
    assert f"with s2 {guide_of(items).id}" in same.detail
    changed = [_touched(item) if item.id == guide_of(items).id else item for item in items]
    [other] = [plan for plan in dry_run(workflow, changed, published.out, RunOptions()) if plan.action != "fail"]
    assert other.action == "make"
    assert other.identity != same.identity


def _touched(item):
    assets = {key: replace(asset, checksum="1220" + "0" * 64) for key, asset in item.assets.items()}
    return replace(item, assets=assets)


def test_the_command_line_names_the_guide_and_counts_scenes_alone(items, tmp_path, cli):
    catalog = items[0].self_path.parents[2] / "catalog.json"
    ended = cli("run", "enmap_s2_pair", "--catalog", catalog, "--out", tmp_path, "--limit", "2", "--dry-run", "--json")
    plans = json.loads(ended.out)
    assert len(plans) == 2
    [made] = [plan for plan in plans if plan["action"] == "make"]
    assert f"with s2 {guide_of(items).id}" in made["detail"]
    only = cli("run", "enmap_s2_pair", "--catalog", catalog, "--out", tmp_path, "--items", made["item"], "--dry-run")
    assert only.code == 0
    assert "1 scene" in only.out


def test_the_command_line_sharpens_a_scene(delivery, items, tmp_path, cli):
    safe = next(delivery.glob("S2*.SAFE"))
    near = next(
        item for item in items if item.properties["platform"] == "enmap" and overlap(item, guide_of(items)) > 0.5
    )
    options = ("--method", "hysure", "--resampling", "restored")
    ended = cli("sharpen", near.product_path, safe, tmp_path / "fine.zarr", *options)
    assert ended.code == 0, ended
    assert "by hysure" in cubeloom.open_scene(tmp_path / "fine.zarr", group="x3").history


def test_a_broken_guide_fails_its_scene_and_is_named(delivery, tmp_path):
    shutil.copytree(delivery, tmp_path / "in")
    broken = read_catalog(scan(tmp_path / "in", tmp_path / "catalog").catalog)
    for image in (tmp_path / "in").rglob("*B04_10m.jp2"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 3])
    result = run(load_workflow("enmap_s2_pair"), broken, tmp_path / "out")
    [failed] = by_state(result, "failed")
    assert "B04_10m.jp2" in failed.cause
    assert result.exit_code == 3


def test_a_cluster_makes_the_same_pair(published, items, tmp_path):
    result = run(load_workflow("enmap_s2_pair"), items, tmp_path / "out", RunOptions(workers=2, scheduler="processes"))
    [done], [before] = by_state(result, "published"), by_state(published, "published")
    ours, theirs = (json.loads((one.product / "_COMMIT.json").read_text()) for one in (done, before))
    assert ours == theirs


def item_at(name, platform, box, hours=0.0, level="L2A") -> CatalogItem:
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return CatalogItem(
        id=name,
        properties={"platform": platform, "processing:level": level, "updated": "2024-06-01"},
        assets={},
        bbox=box,
        geometry={"type": "Polygon", "coordinates": [ring]},
        datetime=datetime(2024, 6, 1, 10, tzinfo=UTC) + timedelta(hours=hours),
        collection="",
        self_path=Path("catalog.json"),
    )


ENMAP = item_at("e", "enmap", (10, 50, 10.4, 50.4))


def test_enmap_comes_out_at_ten_metres_through_the_gate(items, tmp_path):
    result = run(load_workflow("enmap_s2_10m"), items, tmp_path)
    [done], [alone] = by_state(result, "published"), by_state(result, "invalid")
    assert "no s2 to pair it with" in alone.cause
    scene, fine = cubeloom.open_scene(done.product), cubeloom.open_scene(done.product, group="x3")
    assert fine.sharpened.shape == (70, 3 * scene.sizes["y"], 3 * scene.sizes["x"])
    assert np.allclose(np.diff(fine.x.values), 10)
    item = json.loads((result.out / "scenes" / done.item.id / "enmap_s2_10m.json").read_text())
    gate, sharpen = (item["properties"][f"cubeloom:{name}"] for name in ("gate", "sharpen"))
    assert gate["sam_deg"] < 1
    assert gate["passed"] == "yes"
    assert sharpen["guide"] == guide_of(items).id
    assert re.search(rf"x3 by gsa, with \d bands of {guide_of(items).id}", fine.history)
    page = report_run(result).read_text()
    assert "sam deg" in page


def test_a_product_that_fails_the_gate_is_not_published(items, tmp_path):
    text = (Path(cubeloom.__file__).parents[1] / "workflows/library/enmap_s2_10m.yaml").read_text()
    (tmp_path / "strict.yaml").write_text(text.replace("max_sam: 1.0", "max_sam: 0.001"))
    result = run(load_workflow(str(tmp_path / "strict.yaml")), items, tmp_path / "out")
    assert not by_state(result, "published")
    [failed] = [scene for scene in result.scenes if "gate" in scene.cause]
    assert "sam_deg" in failed.cause
    assert "at most 0.001" in failed.cause
    assert len(list((tmp_path / "out/.cubeloom/quarantine").rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("guides", "chosen"),
    [
        ([("near", (10, 50, 10.2, 50.4), 1), ("most", (9, 49, 11, 51), 100)], "most"),
        ([("late", (9, 49, 11, 51), 20), ("early", (9, 49, 11, 51), -3)], "early"),
        ([("nearly", (10.001, 50, 11, 51), 1), ("all", (9, 49, 11, 51), 50)], "nearly"),
        ([("too late", (9, 49, 11, 51), 121), ("little", (10.3, 50, 11, 51), 1)], None),
        ([("boundary", (9, 49, 11, 51), 120)], "boundary"),
    ],
)
def test_the_guide_covers_most_and_then_is_nearest_in_time(guides, chosen):
    others = [item_at(name, "sentinel-2b", box, hours) for name, box, hours in guides]
    [scene] = paired(load_workflow("enmap_s2_pair"), [ENMAP, *others])
    assert scene.id == "e"
    if chosen:
        assert scene.guides["s2"].id == chosen
        assert scene.content_key() != ENMAP.content_key()
    else:
        assert "covers 50% of it" in scene.no_guide


def test_levels_and_other_sensors_are_not_taken_for_guides():
    workflow = load_workflow("enmap_s2_pair")
    others = [item_at("s1", "sentinel-1a", (9, 49, 11, 51)), item_at("l1c", "sentinel-2a", (9, 49, 11, 51), 0, "L1C")]
    scenes = {item.id: item for item in paired(workflow, [ENMAP, *others])}
    assert not scenes["e"].guides
    assert "the catalog has none of Sentinel-2" in scenes["e"].no_guide
    given = paired(workflow, [ENMAP], [item_at("s2", "sentinel-2a", (9, 49, 11, 51))])
    assert given[0].guides["s2"].id == "s2"
    assert paired(workflow, given) == given


def test_a_guide_may_have_to_be_of_an_earlier_date():
    dates = [item_at(f"s2{day}", "sentinel-2a", (10, 50, 11, 51), hours=24 * day) for day in (0, 30, 40, 130)]
    workflow = load_workflow("s2_change")
    first, second, third, last = paired(workflow, dates)
    assert paired(workflow, [first, second, third, last]) == [first, second, third, last]
    assert (second.guides["before"].id, third.guides["before"].id) == ("s20", "s230")
    assert "no scene of Sentinel-2 earlier than it within 60 days" in first.no_guide
    assert "the nearest of 3 is s240, 90.0 days apart" in last.no_guide


def test_overlap_across_the_antimeridian():
    west, east = item_at("w", "enmap", (179, 0, -179, 1)), item_at("e", "sentinel-2a", (179.5, 0, -178, 1))
    boxes = [replace(item, geometry=None) for item in (west, east)]
    assert overlap(*boxes) == pytest.approx(0.75)
