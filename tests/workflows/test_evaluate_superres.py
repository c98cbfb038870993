"""Methods of super-resolution are compared on equal inputs by two protocols, and the tables say what was measured."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from skimage.metrics import structural_similarity

import cubeloom
from cubeloom.errors import ConfigError
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.embed import coarser
from cubeloom.workflows.evaluate.output import write_pages
from cubeloom.workflows.evaluate.superres import evaluate_superres
from cubeloom.workflows.evaluate.superres_cases import cases_of, parse_protocols
from cubeloom.workflows.evaluate.superres_figure import write_superres_figure
from cubeloom.workflows.evaluate.superres_grounds import read_ground, with_cube
from cubeloom.workflows.evaluate.superres_methods import default_methods, parse_superres_methods
from cubeloom.workflows.evaluate.superres_pictures import most_detailed, unlike
from cubeloom.workflows.evaluate.superres_tables import superres_markdown

METHODS = "bicubic,bicubic+projected,gsa,network:no_such_network"


@pytest.fixture(scope="module")
def ground():
    """A small simulated place, with what is known of it."""
    return read_ground("simulated:coastal#seed=5,edge=32", 2, 0.3, 256, ["finest"])


@pytest.fixture(scope="module")
def evaluation(ground):
    return evaluate_superres([ground], parse_superres_methods(METHODS), ("full", "reduced"), 2, 0.3)


def score(evaluation, protocol, method):
    [found] = [one for one in evaluation.scores if (one.protocol, one.method) == (protocol, method)]
    return found


# --- what is asked for


def test_methods_are_stages_with_options():
    names = "bicubic,lanczos+projected,network:essaformer_x2@/a/b/w.safetensors,gsa+rounds=6+guide=common+denoised"
    bicubic, lanczos, network, gsa = parse_superres_methods(names)
    assert (bicubic.stage, bicubic.parameters, bicubic.guided) == ("superres", {"method": "bicubic"}, False)
    assert (lanczos.own.projected, lanczos.own.denoised) == (3, False)
    assert network.parameters["weights"] == "/a/b/w.safetensors"
    assert network.label == "network:essaformer_x2@w.safetensors"
    assert (gsa.stage, gsa.guided, gsa.own.guide, gsa.own.denoised) == ("sharpen", True, "common", True)
    assert gsa.parameters == {"method": "gsa", "rounds": "6"}
    assert "network:essaformer_x2.enmap+projected" in default_methods(2)
    assert [method.name for method in parse_superres_methods(default_methods(8)) if method.guided]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("bicubc", "'bicubc' is not known; did you mean 'bicubic'"),
        ("gsa,gsa", "comes twice"),
        ("", "names no method"),
        ("gsa+round=3", "unknown key 'round'; did you mean 'rounds'"),
        ("gsa+guide=all", "expected one of finest, common"),
        ("gsa+projected", "projects its products back by itself"),
        ("network", "needs a model"),
    ],
)
def test_methods_that_cannot_be_are_refused(methods, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_superres_methods(methods)


def test_sources_and_protocols_that_cannot_be_are_refused():
    for source, message in (
        ("simulated:costal", "did you mean 'coastal'"),
        ("simulated:arid#size=3", "no option 'size'"),
        ("simulated:arid#seed=x", "whole numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_ground(source, 2, 0.3, 256, [])
    assert parse_protocols("reduced,full,reduced") == ("reduced", "full")
    for text in ("", "half"):
        with pytest.raises(ConfigError, match="expected one of full, reduced"):
            parse_protocols(text)


# --- the two protocols


def test_simulated_ground_is_its_truth_degraded_with_noise(ground):
    scene, good = ground.scene.reflectance.values, ground.scene.good.values
    assert ground.truth.shape == (224, 64, 64)
    assert np.isfinite(ground.truth).all()
    noise = (scene - degrade(ground.truth, 2, 0.3))[good]
    assert abs(noise.mean()) < 1e-3
    assert 1e-4 < noise.std() < 0.02
    [guide] = ground.guides.values()
    assert guide.sizes["y"] == 64
    assert spec_of(guide).grid.boundingbox == spec_of(ground.scene).grid.boundingbox
    red = int(np.argmin(np.abs(guide.wavelength.values - 665)))
    near = ground.truth[np.argmin(np.abs(ground.scene.wavelength.values - 665))]
    seen = guide.reflectance.values[red]
    shown = np.isfinite(seen)
    assert shown.mean() > 0.9
    assert np.corrcoef(seen[shown], near[shown])[0, 1] > 0.9


def test_wald_degrades_scene_and_guide_and_takes_the_scene_for_the_truth(ground):
    full, reduced = cases_of(ground, ("full", "reduced"), 2, 0.3)
    assert full.scene is ground.scene
    np.testing.assert_array_equal(reduced.truth, ground.scene.reflectance.values)
    np.testing.assert_array_equal(reduced.cube, degrade(reduced.truth, 2, 0.3))
    [fine], [coarse] = full.guides.values(), reduced.guides.values()
    np.testing.assert_array_equal(coarse.reflectance.values, degrade(fine.reflectance.values, 2, 0.3))
    assert spec_of(coarse).grid == spec_of(ground.scene).grid
    assert spec_of(reduced.scene).grid.boundingbox == spec_of(ground.scene).grid.boundingbox
    assert reduced.judged.sum() == (32 - 12) ** 2


def test_pixels_without_values_are_not_judged(ground):
    holed = ground.scene.copy(deep=True)
    holed.reflectance.values[3, 10, 20] = np.nan
    [case] = cases_of(replace(ground, scene=holed), ("full",), 2, 0.3)
    lost = np.argwhere(~case.judged[6:-6, 6:-6]) + 6
    assert sorted(map(tuple, lost.tolist())) == [(20, 40), (20, 41), (21, 40), (21, 41)]


# --- scores


def test_scores_equal_an_independent_computation(ground, evaluation):
    made = cubeloom.superres(ground.scene, method="bicubic", scale=2).superresolved.values
    good, inner = ground.scene.good.values, slice(6, -6)
    x, y = (cube[good][:, inner, inner].astype(float) for cube in (ground.truth, made))
    found = score(evaluation, "full", "bicubic")
    error = np.mean((x - y) ** 2, axis=(1, 2))
    assert found.psnr_db == pytest.approx(np.mean(-10 * np.log10(error)))
    assert found.rmse == pytest.approx(np.sqrt(error.mean()))
    assert found.ergas == pytest.approx(50 * np.sqrt(np.mean(error / x.mean(axis=(1, 2)) ** 2)))
    cosine = np.sum(x * y, axis=0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0)
    assert found.sam_deg == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean(), rel=1e-5)
    alike = [structural_similarity(a, b, data_range=1) for a, b in zip(x, y, strict=True)]
    assert found.ssim == pytest.approx(np.mean(alike))
    assert found.qnr == pytest.approx((1 - found.d_lambda) * (1 - found.d_s))
    again = degrade(made[good], 2, 0.3).astype(float)
    scene = ground.scene.reflectance.values[good].astype(float)
    cosine = np.sum(scene * again, axis=0) / np.linalg.norm(scene, axis=0) / np.linalg.norm(again, axis=0)
    assert found.consistency_deg == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean(), rel=1e-4)


def test_back_projection_and_a_guide_each_bring_what_they_promise(evaluation):
    for protocol in ("full", "reduced"):
        alone, projected = (score(evaluation, protocol, name) for name in ("bicubic", "bicubic+projected"))
        assert projected.consistency_deg < 0.5 * alone.consistency_deg
        assert projected.psnr_db > alone.psnr_db
    guided = score(evaluation, "full", "gsa")
    assert guided.psnr_db > score(evaluation, "full", "bicubic+projected").psnr_db
    assert guided.qnr > score(evaluation, "full", "bicubic").qnr
    assert evaluation.best("full", guided=False).name == "bicubic+projected"
    assert evaluation.best("full", guided=True).name == "gsa"


def test_a_method_that_fails_is_said_and_the_others_go_on(evaluation):
    failed = score(evaluation, "full", "network:no_such_network")
    assert "no_such_network" in failed.error
    assert failed.psnr_db is None
    few = score(evaluation, "reduced", "gsa")
    assert "256 pixels have a value" in few.error
    page = superres_markdown(evaluation)
    assert failed.error in page
    assert "| network:no_such_network | failed |" in page


def test_pages_say_what_the_scores_say(evaluation, tmp_path):
    written = write_pages(
        tmp_path,
        evaluation.to_json(),
        superres_markdown(evaluation),
        lambda path: write_superres_figure(evaluation, path),
    )
    results = json.loads(written[0].read_text())
    assert len(results["scores"]) == 2 * 4
    assert "100 / scale" in results["conventions"]["ergas"]
    assert [(case["protocol"], case["judged_bands"]) for case in results["cases"]] == [("full", 217), ("reduced", 217)]
    full = written[1].read_text().split("## ")[1]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in full.splitlines() if line[:1] == "|"]
    columns = dict(zip(rows[0], range(len(rows[0])), strict=True))
    for row in rows[2:5]:
        found = score(evaluation, "full", row[0])
        assert row[columns["MPSNR dB"]] == f"{found.psnr_db:.2f}"
        assert row[columns["QNR"]] == f"{found.qnr:.4f}"
    assert re.search(r"\| gsa \| \*\*", full)
    gain = score(evaluation, "full", "gsa").psnr_db - score(evaluation, "full", "bicubic+projected").psnr_db
    assert f"({gain:+.2f} dB beside the best without)" in full
    with rasterio.open(written[2]) as figure:
        assert figure.width > 1500
        assert np.unique(figure.read(1)).size > 50


# --- what the figure shows


def test_the_figure_looks_where_there_is_something_to_see():
    image = np.zeros((60, 80), np.float32)
    image[40:, 60:] = np.random.default_rng(0).random((20, 20)) > 0.5
    assert most_detailed(image, 20) == (slice(40, 60), slice(60, 80))
    image[50, 70] = np.nan
    rows, cols = most_detailed(image, 20)
    assert np.isfinite(image[rows, cols]).all()

    cube = np.full((3, 30, 30), 0.2, np.float32)
    cube[:, 12, 7], cube[:, 20, 9], cube[:, 6, 25] = 0.9, (0.5, 0.0, 0.0), np.nan
    assert unlike(cube, 2).tolist() == [[12, 7], [20, 9]]


# --- the command


def test_the_command_takes_a_scene_with_a_guide(cli, make_scene, tmp_path):
    fine = make_scene(96, 96, bands=40, background=0)
    spec = spec_of(fine)
    cubeloom.write_scene(
        with_cube(spec, degrade(fine.reflectance.values, 3, 0.3), coarser(spec.grid, 3)), tmp_path / "scene.zarr"
    )
    guide = cubeloom.resample_bands(fine, wavelengths=[492.7, 559.8, 664.6, 832.8], fwhm=[65, 35, 30, 105])
    cubeloom.write_scene(guide.assign_attrs(scene_id="guide", sensor="other", group=""), tmp_path / "guide.zarr")
    call = ["evaluate", "superres", f"{tmp_path}/scene.zarr#guide={tmp_path}/guide.zarr,name=place"]
    made = cli(*call, "--methods", "lanczos,gsa", "--protocols", "full", "--out", tmp_path / "out", "--json")
    assert made.code == 0, made.err
    results = json.loads(made.out)
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    lanczos, gsa = results["scores"]
    assert lanczos["ground"] == "place"
    assert lanczos["psnr_db"] is None
    assert gsa["d_s"] < lanczos["d_s"]
    assert gsa["consistency_deg"] < lanczos["consistency_deg"]
    assert (tmp_path / "out/figure.png").stat().st_size > 5000

    own = [
        "evaluate",
        "superres",
        f"{tmp_path}/scene.zarr#guide=sentinel2a",
        "--scale",
        "2",
        "--methods",
        "bicubic,gsa",
    ]
    made = cli(*own, "--protocols", "reduced", "--out", tmp_path / "own", "--json")
    assert made.code == 0, made.err
    bicubic, gsa = json.loads(made.out)["scores"]
    assert gsa["psnr_db"] > bicubic["psnr_db"]


def test_the_command_refuses_in_one_line(cli, tmp_path):
    wrong = cli("evaluate", "superres", "simulated:arid", "--scale", "5", "--out", tmp_path / "out")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "expected one of 2, 3, 4, 8" in wrong.err
    assert not (tmp_path / "out").exists()
