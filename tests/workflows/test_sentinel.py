"""Sentinel-2 and Sentinel-1 from the command line: simulated, scanned, validated, run, and run again."""

import json
import shutil
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio

import cubeloom
from cubeloom.catalogs import read_catalog, validate_catalog
from cubeloom.catalogs.access import Access
from cubeloom.catalogs.documents import write_json_atomic
from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.classifiers import load_classifier
from cubeloom.models.registry import model_card, save_model
from cubeloom.pipeline.readers import open_scene, open_source
from cubeloom.pipeline.simulate import SimulatedProduct
from cubeloom.pipeline.simulate.geometry import utm_zone
from cubeloom.pipeline.simulate.places import simulate_places
from cubeloom.workflows.cli_options import open_settings, reader_options
from cubeloom.workflows.run import run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import load_workflow
from cubeloom.workflows.summary import report_run
from cubeloom.workflows.train import load_recipe
from cubeloom.workflows.train.classifier import train_classifier
from cubeloom.workflows.train.labels_recipe import LabelledScene, Split
from cubeloom.workflows.train.recipe import EstimatorChoice
from cubeloom.workflows.train.samples import after_steps
from cubeloom.workflows.train.truth import write_sentinel_recipe

BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]


L1C = """
name: l1c_with_radar
sensors: [Sentinel-2]
levels: [L1C]
open: {bands: common}
steps:
  - mask
  - pair: {guide: radar, sensors: [Sentinel-1], days: 5, coregister: off, open: {units: linear}}
"""


@dataclass(frozen=True)
class Sky:
    """One place seen by three satellites, and the catalog of it."""

    folder: Path
    products: dict[str, Path]
    catalog: Path

    def item(self, sensor: str):
        return next(item for item in read_catalog(self.catalog) if item.id == self.products[sensor].stem)


@pytest.fixture(scope="module")
def sky(tmp_path_factory) -> Sky:
    folder = tmp_path_factory.mktemp("sky")
    made = simulate_places(
        folder / "in", 1, sensors=("enmap", "sentinel2", "sentinel1"), seed=4, height=24, width=24, n_vnir=3, n_swir=3
    )
    products = {sensor: listed[0].path for sensor, listed in made.items()}
    return Sky(folder / "in", products, scan(folder / "in", folder / "catalog").catalog)


class TestScan:
    def test_every_sensor_is_in_one_catalog_that_is_valid(self, sky):
        assert validate_catalog(sky.catalog) == 1 + 3 + 3
        assert {item.collection for item in read_catalog(sky.catalog)} == {
            "enmap-l2a", "sentinel-2-l2a", "sentinel-1-grd",
        }  # fmt: skip

    def test_an_item_of_sentinel_2_says_what_the_product_says(self, sky):
        item, scene = sky.item("sentinel2"), open_scene(sky.products["sentinel2"])
        told = item.properties
        assert (told["platform"], told["constellation"], told["instruments"]) == ("sentinel-2a", "sentinel-2", ["msi"])
        assert told["grid:code"] == f"MGRS-{sky.products['sentinel2'].name.split('_')[5].removeprefix('T')}"
        assert told["sat:relative_orbit"] == int(sky.products["sentinel2"].name.split("_")[4].removeprefix("R"))
        assert told["eo:cloud_cover"] == scene.attrs["cloud_cover"]
        assert "Copernicus" in told["cubeloom:licence"]
        assert told["attribution"] == f"contains modified Copernicus Sentinel data {item.datetime.year}"
        assert told["proj:shape"] == [scene.sizes["y"], scene.sizes["x"]]
        document = json.loads(item.self_path.read_text())
        for key, asset in document["assets"].items():
            path = item.self_path.parent / asset["href"]
            assert asset["file:size"] == path.stat().st_size
            if asset["type"] == "image/jp2" and asset["roles"] != ["data-mask"]:
                with rasterio.open(path) as image:
                    assert asset["proj:shape"] == [image.height, image.width], key
                    assert asset["proj:transform"] == list(image.transform)[:6]
                    assert asset["gsd"] == image.res[0]
        bands = {band["name"]: band for asset in document["assets"].values() for band in asset.get("bands", ())}
        assert sorted(bands) == sorted(BANDS)
        assert bands["B8A"]["eo:common_name"] == "nir08"
        assert bands["B04"]["eo:center_wavelength"] == pytest.approx(0.665, abs=0.002), "µm"

    def test_an_item_of_sentinel_1_says_its_mode_and_polarisations(self, sky):
        item = sky.item("sentinel1")
        told = {key: value for key, value in item.properties.items() if key.startswith("sar:")}
        assert told == {
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:center_frequency": pytest.approx(5.405, abs=1e-3),
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "GRD",
        }
        assert item.properties["sat:orbit_state"] in ("ascending", "descending")
        assert open_source(item.product_path).spec.scene_id == item.id

    def test_scanning_again_gives_the_same_bytes_and_a_changed_image_another_key(self, sky, tmp_path):
        shutil.copytree(sky.products["sentinel2"], tmp_path / "in" / sky.products["sentinel2"].name)

        def documents():
            scan(tmp_path / "in", tmp_path / "out")
            return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}

        first, key = documents(), read_catalog(tmp_path / "out")[0].content_key()
        assert documents() == first
        with next((tmp_path / "in").rglob("*_B11_20m.jp2")).open("ab") as image:
            image.write(b"\0")
        documents()
        assert read_catalog(tmp_path / "out")[0].content_key() != key

    def test_a_zip_is_one_asset_with_every_band(self, sky, tmp_path):
        archive = tmp_path / "in" / f"{sky.products['sentinel2'].stem}.zip"
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w") as target:
            for path in sky.products["sentinel2"].rglob("*"):
                target.write(path, path.relative_to(sky.products["sentinel2"].parent))
        (item,) = read_catalog(scan(tmp_path / "in", tmp_path / "out").catalog)
        assert list(item.assets) == ["product"]
        assert [band["name"] for band in item.document["assets"]["product"]["bands"]] == BANDS
        assert item.properties == sky.item("sentinel2").properties

    def test_a_product_without_an_image_is_left_out_with_its_cause(self, sky, tmp_path):
        shutil.copytree(sky.products["sentinel2"], tmp_path / "in" / "x.SAFE")
        next((tmp_path / "in").rglob("*_B11_20m.jp2")).unlink()
        result = scan(tmp_path / "in", tmp_path / "out")
        assert result.items == ()
        assert "B11_20m" in result.rejected[0][1]


class TestRun:
    def test_a_mixed_catalog_is_run_and_run_again(self, sky, cli, tmp_path):
        out = tmp_path / "out"
        ended = cli("run", "sentinel2_l2a", "--catalog", sky.catalog, "--out", out, "--open", "grid=20m", "--json")
        assert ended.code == 0, ended.err
        assert "left out: 2 items of other sensors than Sentinel-2" in ended.err
        (made,) = json.loads(ended.out)["scenes"]
        scene = open_scene(out / made["product"])
        expected = open_scene(sky.products["sentinel2"], grid="20m", bands="common")
        assert list(scene.attrs["band_names"].values()) == BANDS
        kept = scene["valid"].values
        np.testing.assert_array_equal(
            scene["reflectance"].values[:, kept], expected["reflectance"].values[:, kept], strict=True
        )
        assert "contains modified Copernicus" in scene.attrs["attribution"]
        assert cli("validate", out).code == 0
        pictures = {path.name for path in (out / made["product"]).with_suffix(".quicklooks").iterdir()}
        indices = {f"index_{name}.png" for name in ("NDVI", "NDMI", "MNDWI")}
        assert pictures == {"truecolour.png", "swir.png", "thumbnail.png", *indices}
        (page,) = (out / "runs").glob("*/report.html")
        assert "Sentinel-2A L2A" in page.read_text()
        again = cli("run", "sentinel2_l2a", "--catalog", sky.catalog, "--out", out, "--open", "grid=20m")
        assert "1 unchanged in" in again.err
        other = cli("run", "sentinel2_l2a", "--catalog", sky.catalog, "--out", out, "--dry-run", "--json")
        assert json.loads(other.out)[0]["identity"] != made["identity"], "the grid is part of it"

    def test_level_1c_is_paired_with_radar_beside_its_item_and_status_names_it(self, sky, as_l1c, cli, tmp_path):
        """Top-of-atmosphere reflectance, and backscatter in TIFFs that say nothing but what their item tells."""
        optical, radar = tmp_path / "in" / "x.SAFE", tmp_path / "in" / "radar"
        shutil.copytree(sky.products["sentinel2"], optical)
        as_l1c(optical)
        grd = open_scene(sky.products["sentinel1"])
        radar.mkdir(parents=True)
        assets = {}
        place = {"crs": str(grd.odc.crs), "transform": grd.odc.geobox.affine, "dtype": "float32", "count": 1}
        for layer, name in zip(grd.sigma0.values, ("vv", "vh"), strict=True):
            height, width = layer.shape
            with rasterio.open(radar / f"{name}.rtc.tiff", "w", height=height, width=width, **place) as image:
                image.write(layer, 1)
            assets[name] = {"href": f"./{name}.rtc.tiff", "roles": ["data"]}
        told = json.loads(sky.item("sentinel1").self_path.read_text())
        rtc = {**told, "id": "rtc", "collection": "sentinel-1-rtc", "assets": assets, "links": []}
        (radar / "rtc.json").write_text(json.dumps(rtc))
        catalog = scan(tmp_path / "in", tmp_path / "in" / "catalog").catalog
        validate_catalog(catalog)
        again = scan(tmp_path / "in", tmp_path / "in" / "catalog")
        assert again.rejected == (), "items of a catalog below the folder are no products"
        item = next(item for item in read_catalog(catalog) if item.id == "rtc")
        for key in ("datetime", "platform", "sat:orbit_state", "sat:absolute_orbit", "sar:polarizations"):
            assert item.properties[key] == told["properties"][key], key
        assert item.collection == "sentinel-1-rtc"
        (tmp_path / "l1c.yaml").write_text(L1C)
        ended = cli("run", tmp_path / "l1c.yaml", "--catalog", catalog, "--out", tmp_path / "out", "--json")
        assert ended.code == 0, ended.err
        [made] = json.loads(ended.out)["scenes"]
        scene = open_scene(tmp_path / "out" / made["product"])
        assert (scene.attrs["processing_level"], scene.sizes["band"]) == ("L1C", 13)
        kept = scene["valid"].values
        expected = open_scene(optical, bands="common")
        np.testing.assert_array_equal(scene.reflectance.values[:, kept], expected.reflectance.values[:, kept])
        guide = open_scene(tmp_path / "out" / made["product"], group="radar")
        assert guide.odc.geobox == scene.odc.geobox
        assert guide.attrs["subject"] == "gamma0"
        [row] = json.loads(cli("status", tmp_path / "out", "--json").out)["scenes"]
        assert row["guides"] == {"radar": "rtc"}
        assert "radar rtc" in cli("status", tmp_path / "out").out

    @pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")
    def test_change_between_two_dates_is_mapped_and_its_truth_is_known(self, cli, tmp_path):
        from cubeloom.workflows.train.tune import build
        from cubeloom.workflows.train.tune_data import tune_data

        ended = cli(
            "simulate", tmp_path / "in", "--sensors", "sentinel2", "--dates", 2, "--size", "36x36", "--seed", 20
        )
        assert ended.code == 0, ended.err
        earlier, later = sorted((tmp_path / "in").glob("*.SAFE"))
        scenes = [open_scene(path, grid="10m", bands="common") for path in (earlier, later)]
        assert scenes[0].odc.geobox == scenes[1].odc.geobox
        assert not np.array_equal(*(scene.quality.values for scene in scenes)), "each date has its own clouds"
        before, after, changed = (
            rasterio.open(tmp_path / "in" / f"{path.stem}-TRUTH" / f"{name}.TIF").read(1)
            for path, name in ((earlier, "CLASSES"), (later, "CLASSES"), (later, "CHANGE"))
        )
        known = (before > 0) & (after > 0)
        np.testing.assert_array_equal(changed, np.where(known, 1 + (before != after), 0))
        assert (changed == 2).any()
        recipe = load_recipe(tmp_path / "in" / "train_change.yaml")
        data = tune_data(recipe, model_card(recipe.backbone, **recipe.settings))
        assert data.counts.sum() > 0.3 * known.sum()
        model = tmp_path / "change.safetensors"
        network, card = build(recipe, data, model)  # as it is before its first step
        save_model(network, model, card)
        catalog = scan(tmp_path / "in", tmp_path / "catalog").catalog
        ended = cli(
            "run", "s2_change", "--catalog", catalog, "--out", tmp_path / "out", "--json",
            "--set", f"classify.model={model}",
        )  # fmt: skip
        assert ended.code == 3
        assert f"{earlier.stem}: no before to pair it with" in ended.err
        [made] = [scene for scene in json.loads(ended.out)["scenes"] if scene["state"] == "published"]
        assert made["item"] == later.stem
        found = open_scene(tmp_path / "out" / made["product"])
        assert f"reflectance and before {earlier.stem}" in found.attrs["history"]
        assert set(np.unique(found.classes.values[found.valid.values])) - {0} <= {1, 2}

    def test_an_item_that_is_named_is_not_left_out_quietly(self, sky, cli, tmp_path):
        item = sky.item("enmap").id
        ended = cli("run", "sentinel2_l2a", "--catalog", sky.catalog, "--out", tmp_path / "out", "--items", item)
        assert ended.code == 3
        assert "takes sensor Sentinel-2, the scene is of enmap" in ended.err

    def test_a_searched_item_of_single_files_runs_as_a_product_does(self, sky, cli, stac_server, tmp_path, monkeypatch):
        """Bands served one by one, as Earth Search has them, are fetched, and give what the product gives."""
        monkeypatch.setenv("CUBELOOM_HOSTS", "http://127.0.0.1")
        monkeypatch.setenv("CUBELOOM_PRIVATE", "1")
        monkeypatch.setitem(Access.__init__.__kwdefaults__ or {}, "pause", 0.01)
        with stac_server.StacServer([], files=tmp_path / "served") as server:
            server.items = [searched(sky.item("sentinel2"), server.files)]
            found = cli("search", server.url, "--out", tmp_path / "found")
            assert found.code == 0, found.err
            ended = cli("run", "sentinel2_l2a", "--catalog", tmp_path / "found", "--out", tmp_path / "out", "--json")
            assert ended.code == 0, ended.err
            assert server.count("/files/", "GET") == len(BANDS) + 1, "no picture, and no band twice"
        (made,) = json.loads(ended.out)["scenes"]
        scene = open_scene(tmp_path / "out" / made["product"])
        expected = open_scene(sky.products["sentinel2"], grid="10m", bands="common")
        kept = scene["valid"].values
        assert kept.any()
        np.testing.assert_array_equal(scene["reflectance"].values[:, kept], expected["reflectance"].values[:, kept])


def searched(item, folder: Path) -> dict:
    """An item of single files, as Planetary Computer has it, of a scanned product whose files are served."""
    folder.mkdir(exist_ok=True)
    native = {"10m": ("B02", "B03", "B04", "B08"), "20m": ("B05", "B06", "B07", "B8A", "B11", "B12", "SCL"),
              "60m": ("B01", "B09")}  # fmt: skip
    wanted = {f"{name}_{grid}": name for grid, names in native.items() for name in names}
    document = json.loads(item.self_path.read_text())
    assets = {}
    for key, asset in document["assets"].items():
        name = wanted.get(key) or ("visual" if key == "TCI_10m" else "B04_20m" if key == "B04_20m" else None)
        if name:
            source = item.self_path.parent / asset["href"]
            shutil.copy(source, folder / source.name)
            roles = ["visual"] if name == "visual" else ["data"]
            assets[name] = {"href": f"@server@/files/{source.name}", "type": "image/jp2", "roles": roles}
    properties = {
        "datetime": document["properties"]["datetime"],
        "platform": "Sentinel-2A",
        "updated": "2024-09-01T00:00:00Z",
        "s2:processing_baseline": document["properties"]["processing:version"],
    }
    kept = {key: document[key] for key in ("type", "stac_version", "id", "geometry", "bbox")}
    return {**kept, "stac_extensions": [], "properties": properties, "assets": assets, "links": [],
            "collection": "sentinel-2-l2a"}  # fmt: skip


class TestLandcover:
    """Sentinel-1 and Sentinel-2 together: from a catalog of three sensors to a map of classes."""

    @pytest.fixture(scope="class")
    def model(self, sky, tmp_path_factory) -> Path:
        """A small ensemble by the recipe that `cubeloom simulate` writes, of the place that it will map."""
        products = ([SimulatedProduct(path, path.with_name(f"{path.stem}-TRUTH"), path.stem)]
                    for path in (sky.products["sentinel2"], sky.products["sentinel1"]))  # fmt: skip
        recipe = load_recipe(write_sentinel_recipe(*products, sky.folder / "train_s1s2.yaml"))
        params = {"rotation": "combinations", "forests": 2, "trees": 3}
        chequered = Split(method="tiles", block_px=1, buffer_px=0)
        quick = {"estimator": EstimatorChoice(type="rotated_forests", params=params), "split": chequered}
        out = tmp_path_factory.mktemp("model") / "s1s2.skops"
        return train_classifier(recipe.model_copy(update=quick), out).path

    @pytest.fixture(scope="class")
    def mapped(self, sky, model, tmp_path_factory):
        settings = [f"classify.model={model}"]
        chosen = load_workflow("s1s2_landcover", settings)
        return run(chosen, chosen.of_its_sensors(read_catalog(sky.catalog)), tmp_path_factory.mktemp("mapped"))

    def test_both_sensors_are_in_the_product_and_its_report(self, sky, mapped):
        [done] = mapped.scenes
        assert (done.state, done.item.id) == ("published", sky.products["sentinel2"].stem)
        scene, radar = open_scene(done.product), open_scene(done.product, group="radar")
        assert scene.attrs["subject"] == "fused"
        assert radar.attrs["scene_id"] == sky.products["sentinel1"].stem
        assert radar.attrs["measurement"] == "despeckled_db"
        assert radar.odc.geobox == scene.odc.geobox
        assert np.nanmax(radar.despeckled_db.values) < 10, "decibels"
        page = report_run(mapped).read_text()
        for told in (
            "class map",
            "UTC, with Sentinel-1A",
            "polarisations and their ratio, radar",
            sky.products["sentinel1"].stem,
            "built-up",
        ):
            assert told in page
        item = json.loads((mapped.out / "scenes" / done.item.id / "s1s2_landcover.json").read_text())
        sources = {link["title"] for link in item["links"] if link["rel"] == "derived_from"}
        assert sources == {sky.products["sentinel1"].stem, sky.products["sentinel2"].stem}

    def test_the_map_is_of_the_ground(self, sky, mapped):
        """Of the place that it was learnt on, so that a few trees do; elsewhere it takes more."""
        scene = open_scene(mapped.scenes[0].product)
        with rasterio.open(next(sky.folder.glob("S2*-TRUTH/CLASSES.TIF"))) as labels:
            truth = labels.read(1)
        known = (scene.classes.values > 0) & (truth > 0)
        assert known.mean() > 0.5
        assert (scene.classes.values == truth)[known].mean() > 0.8
        np.testing.assert_allclose(scene.probability.values[:, known].sum(axis=0), 1, atol=0.02)
        assert scene.probability.shape[0] == len(scene.classes.attrs["class_names"])
        assert (scene.confidence.values[known] >= 0).all()

    def test_the_guide_is_the_radar_scene_after_its_steps(self, sky, mapped):
        """Despeckled on its own grid, and only then brought onto the other."""
        scene = cubeloom.open_scene(mapped.scenes[0].product)
        radar = cubeloom.to_db(cubeloom.despeckle(open_scene(sky.products["sentinel1"])))
        by_hand = cubeloom.pair(scene, radar, guide="radar", coregister="off").compute()
        made = open_scene(mapped.scenes[0].product, group="radar")
        np.testing.assert_array_equal(made.despeckled_db.values, by_hand.despeckled_db.values)
        steps = cubeloom.pair(
            scene, open_scene(sky.products["sentinel1"]), steps=["despeckle", "to_db"], coregister="off"
        )
        np.testing.assert_array_equal(made.despeckled_db.values, steps.despeckled_db.values)

    def test_the_classifier_sees_the_radar_too(self, sky, model, mapped):
        """In Python as in a run; a pixel without backscatter has no class, and without the guide there is no map."""
        assert load_classifier(model).polarisations == ("VV", "VH")
        made = open_scene(mapped.scenes[0].product)
        radar = open_scene(mapped.scenes[0].product, group="radar")
        by_hand = cubeloom.classify(
            made.drop_vars(("classes", "probability", "confidence", "entropy")), radar, model=str(model)
        )
        agree = (by_hand.classes.values == made.classes.values)[made.valid.values]
        assert agree.mean() > 0.99, "the product's numbers are rounded"
        radar["despeckled_db"] = radar.despeckled_db.where(radar.x > radar.x[30])
        half = cubeloom.classify(made, radar, model=str(model)).classes.values
        assert not half[:, :30].any()
        np.testing.assert_array_equal(half[:, 31:], by_hand.classes.values[:, 31:])
        with pytest.raises(ModelError, match="trained on the backscatter of VV, VH"):
            cubeloom.classify(made, made, model=str(model))
        with pytest.raises(ConfigError, match="takes a Scene and radar"):
            cubeloom.classify(made, model=str(model))

    def test_without_a_model_the_fused_scene_alone_is_made(self, sky):
        chosen = load_workflow("s1s2_landcover")
        assert [stage.name for stage in chosen.stages() if stage.skipped] == ["classify"]
        taken = chosen.of_its_sensors(read_catalog(sky.catalog))
        assert {item.collection for item in taken} == {"sentinel-2-l2a", "sentinel-1-grd"}

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ("[texture]", "texture: needs the whole scene"),
            ("[despekle]", "did you mean 'despeckle'"),
            ("[{despeckle: {windw: 3}}]", r"step 1 of the guide \(despeckle\)"),
        ],
    )
    def test_steps_that_a_guide_cannot_take_are_refused(self, sky, steps, message):
        scene, radar = (open_source(sky.products[sensor]) for sensor in ("sentinel2", "sentinel1"))

        def asked():
            pair = load_workflow("s1s2_landcover", [f"pair.steps={steps}"]).stages()[1]
            return pair.regridded(radar, scene.spec)

        with pytest.raises((ConfigError, InputError), match=message):
            asked()

    def test_a_recipe_must_name_its_guides(self, sky, tmp_path):
        labelled = LabelledScene(scene=sky.products["sentinel2"], labels=tmp_path / "x.tif")
        with pytest.raises(ConfigError, match=r"guides: \{radar: PRODUCT\}"):
            after_steps(labelled, load_workflow("s1s2_landcover").stages()[:2])


class TestOptions:
    def test_info_shows_every_grid_and_one_that_is_asked_for(self, sky, cli):
        product = sky.products["sentinel2"]
        shown = cli("info", product).out
        size = open_scene(product).sizes
        assert f"{size['y']} x {size['x']} px of 10, EPSG:" in shown
        assert "B05 B06 B07 B8A B11 B12" in shown
        described = json.loads(cli("info", product, "--json").out)["scenes"]
        assert {grid: scene["grid"]["pixel_size"][0] for grid, scene in described.items()} == {
            "10m": 10, "20m": 20, "60m": 60,
        }  # fmt: skip
        one = json.loads(cli("info", product, "--open", "grid=20m", "--open", "bands=common", "--json").out)["scenes"]
        assert [scene["bands"]["names"] for scene in one.values()] == [BANDS]
        assert "5.55 cm: VV VH" in cli("info", sky.products["sentinel1"]).out

    def test_single_commands_open_what_they_are_told(self, sky, cli, tmp_path):
        out = tmp_path / "x.zarr"
        assert cli("ingest", sky.products["sentinel2"], out, "--open", "grid=60m").code == 0
        assert list(open_scene(out).attrs["band_names"].values()) == ["B01", "B09"]
        refused = cli("ingest", sky.products["sentinel2"], out, "--open", "grd=60m", "--overwrite")
        assert refused.code == 2
        assert "take no option 'grd'" in refused.err

    def test_options_in_words(self):
        assert reader_options(["grid=20m", "offset = -1000"]) == {"grid": "20m", "offset": "-1000"}
        assert reader_options(None, "vnir") == reader_options(["detector=vnir"], "vnir") == {"detector": "vnir"}
        for wrong in (["grid"], ["=20m"], ["grid="], ["grid=20m", "grid=10m"]):
            with pytest.raises(ConfigError, match="--open"):
                reader_options(wrong)

    def test_a_workflows_own_options_are_changed(self):
        changed = load_workflow("sentinel2_l2a", open_settings(["grid=60m", "offset=-1000"]))
        assert changed.open == {"grid": "60m", "bands": "common", "offset": "-1000"}
        assert changed.digest() != load_workflow("sentinel2_l2a").digest()


class TestSimulate:
    def test_zips_in_the_next_zone_are_found(self, cli, tmp_path):
        ended = cli("simulate", tmp_path / "in", "--sensors", "sentinel2", "--size", "16x16", "--container", "zip",
                    "--s2-epsg", "next")  # fmt: skip
        assert ended.code == 0, ended.err
        assert sorted(path.suffix for path in (tmp_path / "in").iterdir()) == ["", ".zip"]
        (item,) = read_catalog(scan(tmp_path / "in", tmp_path / "out").catalog)
        own = utm_zone(np.mean(item.bbox[1::2]), np.mean(item.bbox[::2]))
        apart = abs(int(item.properties["proj:code"].removeprefix("EPSG:")) - own)
        assert apart in (1, 59), "zone 1 is the next to 60"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--sensors", "enmap,landsat"), "expected some of enmap, sentinel2, sentinel1"),
            (("--sensors", "enmap,sentinel2", "--level", "L1B"), "sensor geometry"),
            (("--sensors", "sentinel2", "--shift", "3"), "expected EAST,NORTH in metres"),
            (("--sensors", "sentinel2", "--s2-epsg", "32632"), "a UTM zone that reaches the place"),
            (("--sensors", "sentinel2", "--s2-epsg", "next door"), "expected the code of a UTM zone"),
        ],
    )
    def test_wrong_words_are_refused_before_anything_is_written(self, cli, tmp_path, options, message):
        ended = cli("simulate", tmp_path / "x", *options)
        assert ended.code == 2
        assert message in ended.err
        assert not list(tmp_path.rglob("*.jp2"))


def test_an_item_whose_files_lie_nowhere_near_it_says_what_to_do(sky, tmp_path):
    document = searched(sky.item("sentinel2"), tmp_path / "files")
    for asset in document["assets"].values():
        asset["href"] = asset["href"].replace("@server@/files/", "../files/")
    write_json_atomic(tmp_path / "catalog" / "item.json", document)
    (item,) = read_catalog(tmp_path / "catalog" / "item.json")
    with pytest.raises(InputError, match="with the item's own JSON in their folder"):
        _ = item.product_path
    write_json_atomic(tmp_path / "item.json", document | {"assets": {
        key: {**asset, "href": asset["href"].removeprefix("../")} for key, asset in document["assets"].items()
    }})  # fmt: skip
    (item,) = read_catalog(tmp_path / "item.json")
    assert open_source(item.product_path, grid="20m").spec.scene_id == f"{item.id}-20m"
