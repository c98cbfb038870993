"""Training of denoisers: the loss falls, a stop changes nothing, and wrong recipes are told apart."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("lightning_utilities", reason="needs the extra train")

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.registry import create_model, model_card
from cubeloom.models.torchvision_cure import make_torchvision_importable

make_torchvision_importable()

from safetensors.numpy import load_file

from cubeloom.pipeline.stages.subspace import exact_product
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.cubes import largest_rectangle, projected, read_cube, training_cubes
from cubeloom.workflows.train.denoiser_recipe import CubeFile, DenoiserRecipe
from cubeloom.workflows.train.eigenimages import Components, ScenePool, component_images, noisy_scene
from cubeloom.workflows.train.module import learning_rate_factor
from cubeloom.workflows.train.noisy import choose, oriented, resampled
from cubeloom.workflows.train.patches import BandPatches, ComponentPatches, network_input

SIDE, BANDS = 40, 12


@pytest.fixture(scope="module")
def cubes(tmp_path_factory) -> Path:
    """A folder with two smooth cubes of three spectra each, as MATLAB files."""
    from scipy.io import savemat
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("cubes")
    for number, name in enumerate(("one.mat", "two.mat")):
        random = np.random.default_rng(number)
        maps = np.stack([gaussian_filter(random.standard_normal((SIDE, SIDE + 4)), 3) for _ in range(3)])
        cube = np.tensordot(random.uniform(0, 1, (BANDS, 3)), np.exp(10 * maps), 1)
        savemat(folder / name, {"cube": cube.transpose(1, 2, 0), "wl": np.linspace(0.42, 2.4, BANDS)[None]})
    return folder


RECIPE = {
    "kind": "denoiser",
    "model": "hsdt_s",
    "transform": "eigenimages",
    "bands": 4,
    "cubes": ["one.mat"],
    "noise": {"gaussian30": 2, "noniid": 1},
    "patch_px": 16,
    "batch": 2,
    "steps": 6,
    "schedule": "constant",
    "pool": {"size": 3, "renew_every": 2, "process": False},
    "validation": {"cubes": ["two.mat"], "noise": ["gaussian50"], "every": 3, "px": 16},
    "threads": 1,
    "log_every": 1,
    "checkpoint_every": 2,
}


@pytest.fixture
def write(cubes):
    """Write the recipe with changes, beside the cubes."""
    count = 0

    def write(**changes) -> Path:
        nonlocal count
        count += 1
        path = cubes / f"recipe{os.getpid()}_{count}.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}))
        return path

    return write


@pytest.fixture
def recipe(write):
    """The recipe with changes, read."""

    def make(**changes) -> DenoiserRecipe:
        loaded = load_recipe(write(**changes))
        assert isinstance(loaded, DenoiserRecipe)
        return loaded

    return make


def rows(out: Path) -> list[dict[str, str]]:
    """The log without the hours, which differ from run to run."""
    with out.with_suffix(".log.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "hours"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("transform", ["eigenimages", "bands"])
def test_the_loss_falls_and_the_weights_load(write, tmp_path, transform):
    changes = {"noise": {"gaussian50": 1}, "steps": 40, "learning_rate": 0.005, "loss": "mse", "ema": 0.5}
    out = tmp_path / "hsdt_s.tiny.safetensors"
    report = train(write(transform=transform, **changes, validation={"every": 100}), out)
    losses = [float(row["loss"]) for row in rows(out)]
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    card = model_card(out)
    assert (card.name, card.tag, card.transform, card.bands) == ("hsdt_s.tiny", "tiny", transform, 4)
    assert card.residual_in_sigma == card.sigma_input == (transform == "eigenimages")
    assert card.sha256 == report.sha256
    assert card.training["steps"] == 40
    assert (out.parent / card.log) == out.with_suffix(".log.csv")
    assert create_model("hsdt_s", out).in_channels == (2 if transform == "eigenimages" else 1)
    assert report.exit_code == 0


def test_what_it_learns_beats_the_noisy_cube(write, tmp_path):
    """Judged on a cube that training does not see."""
    out = tmp_path / "hsdt_s.tiny.safetensors"
    judged = {"cubes": ["two.mat"], "noise": ["gaussian50"], "every": 100, "px": 40}
    train(write(transform="bands", noise={"gaussian50": 1}, steps=60, learning_rate=0.005, validation=judged), out)
    card = model_card(out)
    assert card.metrics["psnr"] > card.training["validation_noisy"]["psnr"] + 2


@pytest.mark.parametrize("transform", ["eigenimages", "bands"])
def test_stops_change_nothing(write, tmp_path, transform):
    """Three runs of a third each end in the very weights and log of one run, to the bit."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(write(transform=transform), whole)
    path = write(transform=transform, minutes=1e-9)
    steps = []
    for _ in range(6):
        report = train(path, parts)
        steps.append(report.step)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert report.exit_code == 0
    assert rows(parts) == rows(whole)
    ours, theirs = load_file(parts), load_file(whole)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_training_is_left_alone(write, tmp_path):
    path, out = write(steps=2), tmp_path / "hsdt_s.safetensors"
    first = train(path, out)
    written = out.stat().st_mtime_ns
    again = train(path, out)
    assert out.stat().st_mtime_ns == written
    assert (again.sha256, again.step, again.metrics) == (first.sha256, 2, pytest.approx(first.metrics))


def test_out_of_time_keeps_the_step(write, tmp_path):
    out = tmp_path / "a.safetensors"
    report = train(write(minutes=1e-9), out)
    assert (report.exit_code, report.step, out.exists()) == (75, 1, False)
    assert [path.name for path in out.with_suffix(".training").glob("*.ckpt")] == ["step_000000001.ckpt"]
    assert "goes on" in str(report)


def test_rows_after_the_checkpoint_are_dropped(write, tmp_path):
    """A kill between a log row and the next checkpoint leaves a row that the next run repeats."""
    path, out = write(minutes=1e-9), tmp_path / "a.safetensors"
    train(path, out)
    with out.with_suffix(".log.csv").open("a") as file:
        file.write("2,0.1,9,9,,\n3,0.1,9\n")
    train(path, out)
    assert [row["step"] for row in rows(out)] == ["1", "2"]


def test_sigterm_ends_the_step_and_keeps_it(write, tmp_path):
    path, out = write(steps=100_000, pool={"size": 2, "renew_every": 1000, "process": True}), tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "cubeloom.workflows.cli", "train", str(path), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as run:
        log = out.with_suffix(".log.csv")
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 4, run)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 143, errors
    assert "goes on" in errors
    [checkpoint] = out.with_suffix(".training").glob("step_*.ckpt")
    last = int(rows(out)[-1]["step"])
    assert int(checkpoint.stem.removeprefix("step_")) == last
    assert train(path.with_name(path.name), out) if False else last > 4


def wait_for(happened, process, limit_s=90):
    start = time.monotonic()
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - start < limit_s
        time.sleep(0.1)
