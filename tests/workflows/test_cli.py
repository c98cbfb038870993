"""The command line: every command, its exit codes, and what it prints."""

import fcntl
import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from typer.main import get_command

from cubeloom.pipeline.readers import open_scene
from cubeloom.workflows.cli import app
from cubeloom.workflows.layout import Layout

COMMANDS = sorted(get_command(app).commands)
HEAVY = ("torch", "rasterio", "sklearn", "xarray", "zarr", "dask", "matplotlib", "pandas", "requests")


def in_a_process(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def one_line(message: str) -> bool:
    return message.startswith("error: ") and message.count("\n") == 1 and "Traceback" not in message


class TestHelp:
    def test_the_commands_of_the_design_are_there(self):
        expected = {"run", "scan", "ingest", "denoise", "superres", "classify", "train", "simulate", "info", "validate",
                    "export", "report", "status", "search", "nightly"}  # fmt: skip
        assert expected <= set(COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command, cli):
        ended = cli(command, "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"Usage: cubeloom {command}")
        assert len(ended.out.splitlines()) > 4
        assert ended.err == ""

    def test_help_imports_nothing_that_takes_time(self):
        code = (
            "import sys\nfrom cubeloom.workflows.cli import main\n"
            f"for command in {COMMANDS}:\n"
            "    sys.argv = ['cubeloom', command, '--help']\n"
            "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, command\n"
            f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
        )
        assert in_a_process(code).splitlines()[-1] == "loaded: []"

    def test_without_arguments_it_lists_the_commands(self, cli):
        ended = cli()
        assert all(command in ended.out + ended.err for command in COMMANDS)


def test_ingest_imports_neither_torch_nor_sklearn(small, tmp_path):
    code = (
        "import sys\nfrom cubeloom.workflows.cli import main\n"
        f"sys.argv = ['cubeloom', 'ingest', {str(small.products[0].path)!r}, {str(tmp_path / 'x.zarr')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    loaded = in_a_process(code)
    assert "rasterio" in loaded
    assert "torch" not in loaded
    assert "sklearn" not in loaded
    assert "matplotlib" not in loaded
    assert (tmp_path / "x.zarr" / "_COMMIT.json").is_file()


RECIPE = """
kind: classifier
scenes:
  - {{scene: {scene}, labels: {labels}}}
classes:
{classes}
steps: [mask]
estimator: {{type: random_forest, params: {{n_estimators: 10, max_depth: 8}}}}
max_per_class: 200
"""


def test_from_nothing_to_a_classified_map(cli, tmp_path):
    """The whole way as a user types it: simulate, scan, run, info, validate, export, report, train, classify."""
    data, catalog, out = tmp_path / "data", tmp_path / "catalog", tmp_path / "out"
    assert cli("simulate", data, "--size", "132x40", "--seed", 2).code == 0
    (product,) = (path for path in data.iterdir() if path.is_dir() and not path.name.endswith("-TRUTH"))
    scanned = cli("scan", data, "--out", catalog, "--json")
    assert scanned.code == 0
    assert json.loads(scanned.out)["items"] == [product.name]
    assert scanned.err == f"1 scene -> {catalog / 'catalog.json'}\n"

    ended = cli("run", "enmap_l2a", "--catalog", catalog, "--out", out, "--json")
    assert ended.code == 0
    (scene,) = json.loads(ended.out)["scenes"]
    assert scene["state"] == "published"
    assert "1 published in" in ended.err
    assert str(out / "catalog.json") in ended.err
    store = out / scene["product"]

    described = json.loads(cli("info", store, "--json").out)
    assert described["kind"] == "store"
    assert described["identity"] == scene["identity"]
    assert described["scenes"]["/"]["bands"]["count"] == 224
    assert described["scenes"]["/"]["variables"]["denoised"]["stored_as"] == "int16"
    shown = cli("info", store)
    assert "132 x 40 px of 30, EPSG:" in shown.out
    assert scene["identity"] in shown.out
    raw = json.loads(cli("info", product, "--json").out)
    assert raw["kind"] == "product"
    assert raw["scenes"]["/"]["scene_id"] == product.name

    for target in (store, out, catalog):
        assert cli("validate", target).code == 0

    exported(cli, store, tmp_path)

    page = out / "runs" / json.loads(ended.out)["run"] / "report.html"
    page.unlink()
    again = cli("report", out)
    assert again.code == 0
    assert again.err.strip() == str(page)
    assert page.stat().st_size > 10_000

    model = trained(cli, product, tmp_path)
    classified = tmp_path / "classified.zarr"
    assert cli("classify", product, classified, "--model", model).code == 0
    classes = open_scene(classified)["classes"]
    assert set(np.unique(classes.values)) > {0}
    assert classes.attrs["flag_meanings"]
    result = cli("run", "enmap_l2a", "--catalog", catalog, "--out", out, "--set", f"classify.model={model}", "--json")
    (with_classes,) = json.loads(result.out)["scenes"]
    assert "classes" in open_scene(out / with_classes["product"])
    assert with_classes["identity"] != scene["identity"]
    assert cli("validate", out).code == 0


def exported(cli, store, tmp_path):
    """Both formats hold what the store holds."""
    expected = open_scene(store)["denoised"].values
    for to, path in (("cog", tmp_path / "cube.tif"), ("envi", tmp_path / "cube.bsq")):
        assert cli("export", store, path, "--to", to).code == 0
        with rasterio.open(path) as raster:
            scale = raster.scales[0] if to == "cog" else 1e-4
            values = np.where(raster.read() == raster.nodata, np.nan, raster.read() * scale)
            assert raster.crs == open_scene(store).odc.crs.to_wkt() or raster.crs.to_epsg()
        np.testing.assert_allclose(values, expected, atol=1e-6)


def trained(cli, product, tmp_path):
    truth = product.with_name(f"{product.name}-TRUTH") / "CLASSES.TIF"
    with rasterio.open(truth) as raster:
        values = [int(value) for value in np.unique(raster.read(1)) if value]
    listed = "\n".join(f"  {value}: {{name: class {value}}}" for value in values)
    recipe, model = tmp_path / "recipe.yaml", tmp_path / "model.skops"
    recipe.write_text(RECIPE.format(scene=product, labels=truth, classes=listed))
    ended = cli("train", recipe, "--out", model, "--json")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert model.is_file()
    assert report["metrics"]["overall_accuracy"] > 2 / len(values)
    return model


class TestRun:
    def test_choice_of_items(self, cli, small, tmp_path):
        out, ids = tmp_path / "out", [item.id for item in small.items]

        def planned(*options):
            ended = cli("run", "ingest", "--catalog", small.catalog, "--out", out, "--dry-run", "--json", *options)
            assert ended.code == 0
            assert not out.exists()
            return [scene["item"] for scene in json.loads(ended.out)]

        assert planned() == ids
        assert planned("--limit", 2) == ids[:2]
        assert planned("--items", ids[1]) == [ids[1]]
        assert planned("--items", f"*{ids[2][20:]}", "--items", ids[0]) == [ids[0], ids[2]]
        west, south, east, north = small.items[2].bbox
        assert planned("--bbox", f"{west},{south},{east},{north}") == [ids[2]]
        assert planned("--items", "nothing*") == []

    def test_an_id_that_no_item_has_is_an_error_with_the_nearest(self, cli, small, tmp_path):
        typo = small.items[0].id.replace("L2A", "L2B")
        ended = cli("run", "ingest", "--catalog", small.catalog, "--out", tmp_path / "out", "--items", typo)
        assert ended.code == 2
        assert one_line(ended.err)
        assert f"did you mean '{small.items[0].id}'" in ended.err
        assert not (tmp_path / "out").exists()

    def test_the_plan_is_a_table_for_people(self, cli, small, tmp_path):
        ended = cli("run", "enmap_l2a", "--catalog", small.catalog, "--out", tmp_path / "out", "--dry-run")
        assert ended.code == 0
        assert "3 scenes, nothing written" in ended.out
        assert "mask > destripe > denoise" in ended.out

    def test_a_plan_that_cannot_be_says_so(self, cli, all_levels, tmp_path):
        ended = cli("run", "enmap_l2a", "--catalog", all_levels.catalog, "--out", tmp_path / "out", "--dry-run")
        assert ended.code == 3
        assert "the scene is L1C" in " ".join(ended.out.replace("│", "").split())

    def test_it_says_what_becomes_of_each_scene_in_plain_lines(self, cli, all_levels, tmp_path):
        ended = cli("run", "enmap_l1c", "--catalog", all_levels.catalog, "--out", tmp_path / "out")
        assert ended.code == 3
        assert ended.out == ""
        lines = ended.err.splitlines()
        assert sum(": invalid" in line for line in lines) == 2
        assert sum(line.startswith("  cause: ") for line in lines) == 2
        assert sum(": published in" in line for line in lines) == 1
        assert any(line.startswith("2 invalid, 1 published in") for line in lines)
        assert not [line for line in lines if "Warning" in line or "\x1b" in line]
        again = cli("run", "enmap_l1c", "--catalog", all_levels.catalog, "--out", tmp_path / "out")
        assert "2 invalid, 1 unchanged in" in again.err

    def test_a_locked_directory_ends_with_75(self, cli, small, tmp_path):
        lock = Layout(tmp_path / "out").lock
        lock.parent.mkdir(parents=True)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            ended = cli("run", "ingest", "--catalog", small.catalog, "--out", tmp_path / "out")
        assert ended.code == 75
        assert one_line(ended.err)
        assert "another run" in ended.err


class TestSingle:
    def test_denoise_and_superres_make_stores_that_stand(self, cli, small, tmp_path):
        product = small.products[0].path
        assert cli("denoise", product, tmp_path / "d.zarr").code == 0
        assert "denoised" in open_scene(tmp_path / "d.zarr")
        assert cli("superres", tmp_path / "d.zarr", tmp_path / "s.zarr", "--scale", 2).code == 0
        fine = open_scene(tmp_path / "s.zarr", group="x2")
        assert fine["superresolved"].shape == (14, 300, 280)
        shown = cli("info", tmp_path / "s.zarr").out
        assert "s.zarr [x2]" in shown
        assert cli("validate", tmp_path / "s.zarr").code == 0

    def test_what_stands_is_replaced_on_demand_alone(self, cli, small, tmp_path):
        product, out = small.products[0].path, tmp_path / "x.zarr"
        assert cli("ingest", product, out).code == 0
        refused = cli("ingest", product, out)
        assert refused.code == 2
        assert "--overwrite" in refused.err
        assert cli("denoise", product, out, "--overwrite").code == 0
        assert "denoised" in open_scene(out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr"]

    def test_l1b_asks_for_the_detector(self, cli, all_levels, tmp_path):
        (product,) = (product.path for product in all_levels.products if "L1B" in product.scene_id)
        refused = cli("ingest", product, tmp_path / "x.zarr")
        assert refused.code == 2
        assert "detector='vnir' or detector='swir'" in refused.err
        ended = cli("ingest", product, tmp_path / "x.zarr", "--detector", "vnir")
        assert ended.code == 0
        assert ended.err == f"{product} -> {tmp_path / 'x.zarr'}\n", "no warning about what sensor geometry has not"

    def test_a_damaged_store_does_not_validate(self, cli, small, tmp_path):
        cli("ingest", small.products[0].path, tmp_path / "x.zarr")
        chunk = next(path for path in (tmp_path / "x.zarr" / "reflectance" / "c").rglob("*") if path.is_file())
        chunk.write_bytes(chunk.read_bytes() + b"x")
        ended = cli("validate", tmp_path / "x.zarr")
        assert ended.code == 3
        assert str(chunk.relative_to(tmp_path / "x.zarr")) in ended.err


WRONG_CALLS = {
    "workflow": (("run", "enmap_l2", "--catalog", "c", "--out", "o"), "did you mean 'enmap_l2a'?"),
    "workflow file": (("run", "missing.yaml", "--catalog", "c", "--out", "o"), "missing.yaml: no such workflow file"),
    "parameter": (
        ("run", "enmap_l2a", "--catalog", "c", "--out", "o", "--set", "denoise.rnk=3"),
        "step 3 (denoise): unknown key 'rnk'; did you mean 'rank'?",
    ),
    "step": (
        ("run", "enmap_l2a", "--catalog", "c", "--out", "o", "--set", "denoize.rank=3"),
        "has no step 'denoize'",
    ),
    "setting": (("run", "enmap_l2a", "--catalog", "c", "--out", "o", "--set", "x"), "expected STEP.PARAMETER=VALUE"),
    "memory": (("run", "ingest", "--catalog", "c", "--out", "o", "--memory", "much"), "a size such as 8GB"),
    "method": (("denoise", "p", "o.zarr", "--method", "magic"), "step 3 (denoise): method: "),
    "size": (("simulate", "o", "--size", "big"), "expected HEIGHTxWIDTH"),
    "level": (("simulate", "o", "--level", "L9"), "expected one of L1B, L1C, L2A"),
    "recipe": (("train", "none.yaml", "--out", "m.skops"), "none.yaml: no such recipe"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_ends_with_2_and_one_message(case, cli, tmp_path, monkeypatch):
    arguments, message = WRONG_CALLS[case]
    monkeypatch.chdir(tmp_path)
    ended = cli(*arguments)
    assert ended.code == 2
    assert one_line(ended.err), ended.err
    assert message in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    "arguments", [("bogus",), ("run",), ("run", "ingest", "--limit", "0"), ("export", "a", "b", "--nothing")]
)
def test_a_call_that_cannot_be_parsed_ends_with_2(arguments, cli):
    ended = cli(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err


MISSING = {
    "ingest": ("ingest", "none", "o.zarr"),
    "info": ("info", "none"),
    "validate": ("validate", "none"),
    "export": ("export", "none", "o.tif"),
    "report": ("report", "none"),
    "scan": ("scan", "none", "--out", "o"),
    "run": ("run", "ingest", "--catalog", "none", "--out", "o"),
}


@pytest.mark.parametrize("command", MISSING)
def test_what_is_not_there_ends_with_3_and_its_name(command, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli(*MISSING[command])
    assert ended.code == 3
    assert one_line(ended.err), ended.err
    assert "none" in ended.err
    assert list(tmp_path.iterdir()) == [], "nothing is written"
