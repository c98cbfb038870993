"""Heads on CROMA: what is tuned, fitted or probed labels scenes of both sensors, which neither could label alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.croma import S1_MEAN, S1_STD, S2_MEAN, S2_STD
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import regridded
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages import Mask
from cubeloom.pipeline.stages.classify import Classify
from cubeloom.workflows.train import train
from cubeloom.workflows.train.fit_head import fit_head
from cubeloom.workflows.train.probe import dense_predict, dense_probe, probe_scores

SIDE, FIELD, PX = 128, 16, 32
NAMES = {1: "water", 2: "forest", 3: "soil"}


@pytest.fixture(scope="module")
def pair(sentinel_scenes):
    """Both sensors over fields of 16 px, and their classes: one tells 1 from 2 and 3, the other 3 from 1 and 2."""
    draw = np.random.default_rng(4)
    fields = draw.permutation(np.resize([1, 2, 3], (SIDE // FIELD) ** 2)).reshape(SIDE // FIELD, -1)
    truth = np.kron(fields, np.ones((FIELD, FIELD), int))
    bright, rough = np.where(truth == 1, -0.7, 0.7), np.where(truth == 3, 0.7, -0.7)
    optical = np.array(S2_MEAN)[:, None, None] + np.array(S2_STD)[:, None, None] * (
        bright + draw.normal(0, 0.2, (12, SIDE, SIDE))
    )
    decibels = np.array(S1_MEAN)[:, None, None] + np.array(S1_STD)[:, None, None] * (
        rough + draw.normal(0, 0.2, (2, SIDE, SIDE))
    )
    return *sentinel_scenes(optical, 10 ** (decibels / 10)), truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pair) -> Path:
    """The pair as stores, with labels that lie on half of the rows."""
    path = tmp_path_factory.mktemp("tune")
    *scenes, truth = pair
    for name, scene in zip(("optical", "radar"), scenes, strict=True):
        cubeloom.write_scene(scene, path / f"{name}.zarr")
    grid = spec_of(scenes[0]).grid
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 1, "dtype": "uint8"}
    with rasterio.open(path / "labels.tif", "w", **profile, crs=str(grid.crs), transform=grid.affine) as raster:
        raster.write(np.where(np.arange(SIDE)[:, None] % 2, truth, 0).astype(np.uint8), 1)
    return path


@pytest.fixture
def write(folder, tmp_path):
    def write(**changes) -> Path:
        scene = {name: str(folder / f"{file}") for name, file in (("scene", "optical.zarr"), ("labels", "labels.tif"))}
        split = {"block_px": PX, "test_fraction": 0.2, "buffer_px": 0}
        scenes = {
            "train": [{**scene, "guides": {"radar": str(folder / "radar.zarr")}}],
            "steps": ["mask", {"pair": {"guide": "radar", "coregister": "off"}}],
            "split": split,
            "validation_split": {**split, "seed": 1},
            "classes": {value: {"name": name} for value, name in NAMES.items()},
        }
        loop = {"steps": 60, "batch": 4, "validate_every": 20, "threads": 1, "learning_rate": 0.03}
        recipe = {"kind": "tune", "backbone": "croma_nano", "tune": "frozen", "head": "linear", "tile_px": PX, **loop}
        recipe = {**recipe, "scenes": scenes, **changes}
        recipe["scenes"] = {**scenes, **changes.get("scenes", {})}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return tmp_path / "recipe.yaml"

    return write


def best_alone(truth: np.ndarray) -> float:
    """Accuracy of who knows all that one sensor can tell."""
    water, forest, soil = (np.mean(truth == value) for value in NAMES)
    return max(water + max(forest, soil), soil + max(water, forest))


def test_a_head_is_tuned_on_both_and_classify_runs_it(write, pair, tmp_path):
    out = tmp_path / "spectral_segmenter.both.safetensors"
    report = train(write(), out)
    card = model_card(out)
    assert (report.exit_code, card.task, card.tile, card.polarisations) == (0, "segment", PX, ("VV", "VH"))
    assert card.settings["backbone"] == "croma_nano"
    *scenes, truth = pair
    mapped = cubeloom.classify(*scenes, model=str(out))
    assert (mapped.classes.values == truth).mean() > 0.04 + best_alone(truth)
    source = SceneSource(scenes[0], spec_of(scenes[0]))
    guides = {"radar": regridded(SceneSource(scenes[1], spec_of(scenes[1])), source.spec)}
    run_to_store(with_guides(source, guides), [Mask(), Classify(model=str(out))], tmp_path / "s.zarr")
    found = cubeloom.open_scene(tmp_path / "s.zarr").classes.values
    np.testing.assert_array_equal(found, cubeloom.classify(lift(Mask())(scenes[0]), scenes[1], model=str(out)).classes)
    with pytest.raises(InputError, match="classify: needs the guide 'radar'"):
        run_to_store(source, [Classify(model=str(out))], tmp_path / "t.zarr")


@pytest.mark.parametrize("head", ["fcn", "upernet"])
def test_other_heads_go_with_its_maps(head):
    settings = {"backbone": "croma_nano", "backbone_settings": {"modality": "optical"}, "head": head, "head_width": 8}
    network = create_model("spectral_segmenter", num_classes=3, **settings)
    scores = network(torch.randn(2, 12, 32, 48))
    assert scores.shape == (2, 3, 32, 48)
    scores.sum().backward()
    assert network.encoder.s2_encoder.linear_input.weight.grad.abs().sum() > 0
    quick = network.eval().for_inference()
    x = torch.randn(1, 12, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), network(x), atol=1e-4, rtol=0)


def test_tiles_are_labelled_by_one_sensor(write, folder, tmp_path):
    """Of radar alone, its backscatter brought to decibels by a step."""
    out = tmp_path / "croma_nano.tiles.safetensors"
    scenes = {
        "train": [{"scene": str(folder / "radar.zarr"), "labels": str(folder / "labels.tif")}],
        "steps": ["mask", "to_db"],
    }
    fields = {
        "task": "classify",
        "tune": "full",
        "settings": {"modality": "radar"},
        "steps": 2,
        "validate_every": 2,
        "tile_px": 16,
    }
    recipe = write(scenes=scenes, **fields)
    changed = yaml.safe_load(recipe.read_text())
    del changed["head"]
    recipe.write_text(yaml.safe_dump(changed))
    train(recipe, out)
    assert model_card(out).task == "classify"
    assert create_model("croma_nano", out)(torch.randn(2, 2, 16, 16)).shape == (2, 3)
    changed["scenes"]["steps"] = ["mask"]
    recipe.write_text(yaml.safe_dump(changed))
    with pytest.raises(InputError, match="trained on 'dB'; put to_db among the steps"):
        train(recipe, tmp_path / "croma_nano.other.safetensors")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """An untrained network with a card: what it tells of its input is enough for a probe here."""
    path = tmp_path_factory.mktemp("encoder") / "croma_nano.x.safetensors"
    torch.manual_seed(0)
    card = model_card("croma_nano").model_copy(update={"tile": PX, "tag": "x", "name": "croma_nano.x"})
    save_model(create_model("croma_nano"), path, card)
    return str(path)


def test_a_linear_head_is_fitted(folder, pair, encoder, tmp_path):
    optical, radar, truth = pair
    out = tmp_path / "spectral_segmenter.linear.safetensors"
    split = {"split": {"block_px": PX, "test_fraction": 0.2, "buffer_px": 0}}
    from cubeloom.workflows.train.labels_recipe import PixelSplit

    options = {"model": "croma_nano", "weights": encoder, "out": out, "split": PixelSplit(**split["split"])}
    card = fit_head(optical, folder / "labels.tif", NAMES, radar=radar, **options)
    assert card.metrics["overall_accuracy"] > 0.6
    mapped = cubeloom.classify(optical, radar, model=str(out))
    assert (mapped.classes.values == truth).mean() > best_alone(truth)


def test_an_evaluation_gives_every_method_both_sensors(folder, pair, encoder, tmp_path, cli):
    """A frozen network sees what its card says: both, or one of them, with which it cannot tell all classes apart."""
    scene = {"scene": str(folder / "optical.zarr"), "labels": str(folder / "labels.tif")}
    recipe = {
        "images": [{**scene, "guides": {"radar": str(folder / "radar.zarr")}}],
        "steps": ["mask", {"pair": {"guide": "radar", "refine": 1, "coregister": "off"}}],
        "classes": {value: {"name": name} for value, name in NAMES.items()},
    }
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(recipe))
    alone = f"probe:croma_nano+settings.modality=optical+tile_px={PX}"
    methods = ("random_forest+shape+search=false+trees=20", f"probe:croma_nano@{encoder}", alone)
    ended = cli(
        "evaluate", "classify", tmp_path / "images.yaml", "--out", tmp_path / "out", "--splits", "blocks", "--seeds", 1,
        "--block", FIELD, "--buffer", 0, "--per-class", 500, "--methods", ",".join(methods),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    forest, both, optical = (score["overall_accuracy"] for score in found["scores"])
    assert found["images"][0]["bands"] == 14
    assert forest > 0.1 + best_alone(pair[2])
    assert both > 0.1 + optical
    assert [one["what"].split(",")[0] for one in found["methods"][1:]] == ["trained croma_nano", "untrained croma_nano"]


def test_embeddings_are_probed(pair, encoder):
    optical, radar, truth = pair
    vectors = cubeloom.embed(optical, radar, model="croma_nano", weights=encoder).embedding.values
    half = SIDE // 2
    probe = dense_probe([vectors[:, : half // 8]], [truth[:half]], c=10)
    found = dense_predict(probe, vectors[:, half // 8 :], (half, SIDE))
    assert (found == truth[half:]).mean() > 0.6
    cells = vectors.reshape(len(vectors), -1).T, truth[4::8, 4::8].ravel() - 1
    scores = probe_scores((cells[0][::2], cells[1][::2]), (cells[0][1::2], cells[1][1::2]), k=3)
    assert scores["knn"]["overall_accuracy"] > 0.7
    assert scores["linear"]["overall_accuracy"] > 0.8


def test_what_does_not_fit_is_told(write, folder, tmp_path):
    out = tmp_path / "spectral_segmenter.x.safetensors"
    with pytest.raises(ConfigError, match="has no spectral adapter to tune"):
        train(write(tune="adapter"), out)
    alone = [{"scene": str(folder / "optical.zarr"), "labels": str(folder / "labels.tif")}]
    with pytest.raises(ConfigError, match="the network sees a radar scene too; name it beside the scene"):
        train(write(scenes={"train": alone, "steps": ["mask"]}), tmp_path / "spectral_segmenter.y.safetensors")
