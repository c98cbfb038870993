"""Training of super-resolution by Wald's protocol: the loss falls, bicubic is the start, wrong recipes are told."""

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.registry import create_model, model_card
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.metrics import psnr
from cubeloom.pipeline.stages.superres import refine
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.superres_data import FineCube, Standard, SuperresPatches, ground_cubes
from cubeloom.workflows.train.superres_recipe import SuperresRecipe

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")
SIDE, BANDS = 44, 9


def field(seed: int) -> np.ndarray:
    """A cube of fields with sharp edges, of four spectra."""
    random = np.random.default_rng(seed)
    grid = random.integers(0, 4, (SIDE // 5 + 1, SIDE // 4 + 1))
    labels = np.kron(grid, np.ones((5, 4), int))[:SIDE, :SIDE]
    spectra = np.random.default_rng(99).uniform(0.05, 0.5, (4, BANDS))
    return spectra[labels].transpose(2, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory) -> Path:
    """A folder with two such cubes, as MATLAB files."""
    from scipy.io import savemat

    folder = tmp_path_factory.mktemp("fields")
    for seed, name in enumerate(("one.mat", "two.mat")):
        savemat(folder / name, {"cube": field(seed).transpose(1, 2, 0), "wl": np.linspace(0.42, 2.4, BANDS)[None]})
    return folder


def recipe(folder: Path, **changes) -> Path:
    """A recipe with changes, beside the cubes."""
    chosen = {
        "kind": "superres", "model": "essaformer_x2", "cubes": ["one.mat"],
        "settings": {"width": 12, "statistics": "running", "skip": True, "dropout": 0.0}, "mtf": [0.3, 0.3],
        "patch_px": 8, "batch": 4, "steps": 60, "learning_rate": 0.004, "schedule": "constant", "ema": 0.5,
        "validation": {"cubes": ["two.mat"], "every": 30, "px": 40}, "about": {"tile": 64}, "threads": 1,
        "log_every": 1, "checkpoint_every": 30,
    }  # fmt: skip
    path = folder / f"recipe{abs(hash(str(changes)))}.yaml"
    path.write_text(yaml.safe_dump({**chosen, **changes}))
    return path


@pytest.fixture(scope="module")
def trained(cubes, tmp_path_factory) -> Path:
    """Weights after two epochs: the cube has some 30 patches."""
    out = tmp_path_factory.mktemp("trained") / "essaformer_x2.tiny.safetensors"
    assert train(recipe(cubes), out).exit_code == 0
    return out


def test_the_loss_falls(trained):
    with trained.with_suffix(".log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_the_weights_load_and_beat_bicubic_on_a_cube_kept_aside(trained):
    """Measured here once more, from the files alone."""
    card = model_card(trained)
    assert (card.name, card.task, card.scale, card.bands) == ("essaformer_x2.tiny", "superres", 2, BANDS)
    assert card.reach == 9
    assert len(card.input_bands) == len(card.mean) == BANDS
    truth = field(1)[:, 2:42, 2:42]
    coarse = degrade(truth, 2, 0.3)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        made = create_model("essaformer_x2", trained)(torch.from_numpy((coarse - mean) / std)[None])[0].numpy()
    network = psnr(truth, made * std + mean, 1.0)
    bicubic = psnr(truth, refine(coarse, np.ones((20, 20), bool), 2), 1.0)
    assert card.metrics["psnr"] == pytest.approx(network, abs=0.01)
    assert card.training["validation_bicubic"]["psnr"] == pytest.approx(bicubic, abs=0.01)
    assert network > bicubic + 0.3


def test_stops_change_nothing(cubes, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    changes = {"steps": 4, "checkpoint_every": 1, "hold": 0.5, "noise": 0.1, "validation": {"every": 100}}
    train(recipe(cubes, **changes), whole)
    while train(recipe(cubes, **changes, minutes=1e-9), parts).exit_code:
        pass
    assert whole.read_bytes() == parts.read_bytes()


def test_a_training_goes_on_wider_and_on_finer_ground(cubes, trained, tmp_path):
    """The first judgement is that of the narrow network: it was widened, and sees bands by the same means."""
    out, narrow = tmp_path / "essaformer_x2.wide.safetensors", model_card(trained)
    settings = {**narrow.settings, "width": 24}
    del settings["bands"]
    changes = {"weights": str(trained), "settings": settings, "ground": {"count": 1, "edge": 32}, "steps": 1}
    train(recipe(cubes, **changes, learning_rate=1e-9), out)
    card = model_card(out)
    assert (card.settings["width"], card.mean, card.std) == (24, narrow.mean, narrow.std)
    assert card.training["cubes"] == ["one.mat", "simulated ground 3000"]
    assert card.training["before"]["steps"] == 60
    assert card.metrics["psnr"] == pytest.approx(narrow.metrics["psnr"], abs=0.02)


def test_ground_is_seen_as_the_detectors_would():
    chosen = SuperresRecipe(kind="superres", ground={"count": 1, "edge": 32}, mtf=(0.3, 0.3))
    [cube] = ground_cubes(chosen.ground, None, chosen, 3)
    assert cube.values.shape[1:] == (96, 96)
    noise = cube.seen - degrade(cube.values, 3, 0.3)
    assert np.median(np.abs(noise).mean(axis=(1, 2)) / cube.values.std(axis=(1, 2))) < 0.05
    assert (noise.std(axis=(1, 2)) > 0).all()


def test_a_blended_patch_is_consistent_and_of_two_places():
    """Blended or not, the coarse half is the fine one degraded; bands that changed together do so no longer."""
    chosen = SuperresRecipe(kind="superres", ground={"count": 1}, mtf=(0.3, 0.3), patch_px=20, batch=1)
    cube = FineCube("field", np.repeat(field(0)[:1], BANDS, axis=0), None)
    apart = []
    for blend in (0.0, 1.0):
        data = SuperresPatches([cube], Standard.of([cube]), chosen.model_copy(update={"blend": blend}), 2)
        coarse, fine = (part[0].numpy() for part in data.batch(3))
        inner = np.s_[:, 4:-4, 4:-4]
        assert np.abs(degrade(fine, 2, 0.3)[inner] - coarse[inner]).max() < 1e-3
        apart.append(float(np.ptp(fine, axis=0).max()))
    assert apart[0] < 1e-5 < 0.1 < apart[1]


WRONG = {
    "none": ({"cubes": []}, ConfigError, r"nothing to learn from: give cubes, or scenes or ground"),
    "bands": ({"settings": {"bands": 4}}, ConfigError, r"settings.bands: leave it out"),
    "mtf": ({"mtf": [0.4, 0.2]}, ConfigError, r"mtf is a range from low to high"),
    "task": ({"model": "hsdt_s", "settings": {}}, ConfigError, r"'hsdt_s' is for the task denoise"),
    "patch": ({"patch_px": 64}, InputError, r"no cube is as large as a patch of 128 px \(one.mat 44 x 44\)"),
    "shared": ({"validation": {"cubes": ["one.mat"]}}, ConfigError, r"one.mat is both learnt from and validated on"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_are_told(cubes, tmp_path, case):
    changes, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        train(recipe(cubes, **changes), tmp_path / "a.safetensors")
    assert load_recipe(recipe(cubes)).kind == "superres"
