"""Training of denoisers: the loss falls, a stop changes nothing, and wrong recipes are told apart."""

import csv
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.registry import create_model, model_card
from cubeloom.workflows.cli import main
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.cubes import largest_rectangle, projected, read_cube, training_cubes
from cubeloom.workflows.train.denoiser_recipe import CubeFile, DenoiserRecipe
from cubeloom.workflows.train.eigenimages import ScenePool, component_images
from cubeloom.workflows.train.mixtures import load_mixtures
from cubeloom.workflows.train.noisy import choose, oriented, resampled
from cubeloom.workflows.train.patches import BandPatches, ComponentPatches

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="training networks needs the extra train")
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


TRANSFORMS = ["eigenimages", "bands"]


@pytest.fixture(scope="module")
def trained(cubes, tmp_path_factory):
    """Weights of forty steps and the report on them, for each way to see a scene."""
    made = {}
    for transform in TRANSFORMS:
        folder = tmp_path_factory.mktemp(transform)
        changes = {"noise": {"gaussian50": 1}, "steps": 40, "learning_rate": 0.005, "loss": "mse", "ema": 0.5}
        judged = {**RECIPE["validation"], "every": 100, "px": SIDE}
        recipe = {**RECIPE, **changes, "transform": transform, "validation": judged}
        path, out = cubes / f"forty_{transform}.yaml", folder / "hsdt_s.tiny.safetensors"
        path.write_text(yaml.safe_dump(recipe))
        made[transform] = out, train(path, out)
    return made


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_loss_falls_and_the_weights_load(trained, transform):
    out, report = trained[transform]
    losses = [float(row["loss"]) for row in rows(out)]
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    card = model_card(out)
    bands = None if transform == "eigenimages" else 4  # any number of components
    assert (card.name, card.tag, card.transform, card.bands) == ("hsdt_s.tiny", "tiny", transform, bands)
    assert card.residual_in_sigma == card.sigma_input == (transform == "eigenimages")
    assert card.sha256 == report.sha256
    assert card.training["steps"] == 40
    assert (out.parent / card.log) == out.with_suffix(".log.csv")
    assert create_model("hsdt_s", out).in_channels == (2 if transform == "eigenimages" else 1)
    assert report.exit_code == 0
    assert card.training["recipe"]["cubes"] == [{"path": "one.mat"}]
    assert str(out.parents[1]) not in card.model_dump_json()


def test_what_it_learns_beats_the_noisy_cube(trained):
    """Judged on a cube that training does not see."""
    card = model_card(trained["bands"][0])
    assert card.metrics["psnr"] > card.training["validation_noisy"]["psnr"] + 2


def test_learning_goes_on_from_given_weights(write, tmp_path):
    first, second = tmp_path / "hsdt_s.a.safetensors", tmp_path / "hsdt_s.b.safetensors"
    train(write(), first)
    train(write(weights=os.path.relpath(first, write().parent), steps=1, learning_rate=1e-12, ema=0), second)
    before, after = load_file(first), load_file(second)
    weights = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(np.allclose(before[name], after[name], atol=1e-9) for name in weights)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_stops_change_nothing(write, tmp_path, transform):
    """Runs of a step each end in the very weights and log of one run, to the bit."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(write(transform=transform, steps=4), whole)
    path = write(transform=transform, steps=4, minutes=1e-9)
    steps = []
    for _ in range(4):
        report = train(path, parts)
        steps.append(report.step)
    assert steps == [1, 2, 3, 4]
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


def test_sigterm_ends_the_step_and_keeps_it(write, tmp_path, forked):
    path, out = write(steps=100_000, pool={"size": 2, "renew_every": 1000, "process": True}), tmp_path / "a.safetensors"
    run, log = forked(command_line, "train", path, "--out", out), out.with_suffix(".log.csv")
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 4, run)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.end() == 143, run.errors
    assert "goes on" in run.errors
    [checkpoint] = out.with_suffix(".training").glob("step_*.ckpt")
    last = int(rows(out)[-1]["step"])
    assert int(checkpoint.stem.removeprefix("step_")) == last
    assert last > 4


def command_line(*arguments):
    sys.argv = ["cubeloom", *map(str, arguments)]
    main()


def wait_for(happened, run, limit_s=90):
    start = time.monotonic()
    while not happened():
        assert run.process.is_alive(), run.errors
        assert time.monotonic() - start < limit_s
        time.sleep(0.02)


def test_a_pool_is_the_same_whoever_makes_it_and_outlives_a_stop(recipe, tmp_path):
    ours, theirs = (recipe(pool={"size": 3, "renew_every": 2, "process": process}) for process in (False, True))
    cubes = training_cubes(ours)
    here = ScenePool(cubes, ours, tmp_path / "here")
    there = ScenePool(cubes, theirs, tmp_path / "there")
    try:
        for step in (0, 1, 2, 7):
            a, b = here.at(step), there.at(step)
            assert len(a) == len(b) == 3
            assert all(
                np.array_equal(x.noisy, y.noisy) and np.array_equal(x.scale, y.scale) for x, y in zip(a, b, strict=True)
            )
        kept = ScenePool([], ours, tmp_path / "there").at(7)  # which could make none
        assert all(np.array_equal(x.clean, y.clean) for x, y in zip(a, kept, strict=True))
    finally:
        there.close()


def test_a_pool_renews_itself_one_by_one(recipe, tmp_path):
    pool = ScenePool(training_cubes(recipe()), recipe(), tmp_path)
    first, same, later = pool.at(0), pool.at(1), pool.at(2)
    assert all(a is b for a, b in zip(first, same, strict=True))
    assert all(a is b for a, b in zip(first[1:], later[:2], strict=True))
    assert not np.array_equal(first[0].noisy, later[2].noisy)


def test_a_scene_that_cannot_be_made_is_an_error_of_training(recipe, tmp_path):
    """The process that makes scenes dies of it; training must not wait for ever."""
    chosen = recipe(pool={"size": 2, "renew_every": 2, "process": True, "scene_px": 16}, noise={"faint": 1})
    [cube] = training_cubes(chosen)
    thick = type(cube)(cube.name, np.repeat(cube.values, 20, axis=0), None)
    pool = ScenePool([thick], chosen, tmp_path)
    try:
        with pytest.raises(InputError, match=r"16 x 16 px has too few pixels for the subspace of 240 bands"):
            pool.at(0)
    finally:
        pool.close()


def test_component_images_are_whitened_and_hold_the_signal(recipe):
    """Against singular vectors of the whitened cube."""
    [cube] = training_cubes(recipe())
    random = np.random.default_rng(0)
    sigma = random.uniform(0.01, 0.05, BANDS)[:, None, None]
    noisy = (cube.values + sigma * random.standard_normal(cube.values.shape)).astype(np.float32)
    space, images = component_images(noisy, cube.values, "auto", 31)
    spectra = noisy.reshape(BANDS, -1).astype(float)
    white = (spectra - spectra.mean(axis=1, keepdims=True)) / space.sigma[:, None]
    left, strength, _ = np.linalg.svd(white, full_matrices=False)
    rank = len(images.scale)
    assert rank == 3  # the cubes have three spectra
    assert images.scale == pytest.approx(strength[:rank] / np.sqrt(white.shape[1]), rel=1e-4)
    assert np.abs(np.diag(left[:, :rank].T @ space.basis)) == pytest.approx(1, abs=1e-4)
    assert (images.noisy - images.clean).std(axis=(1, 2)) == pytest.approx(1, abs=0.1)
    back = space.restore(images.clean.reshape(rank, -1)).reshape(cube.values.shape)
    assert np.sqrt(np.mean((back - cube.values) ** 2)) < 0.3 * sigma.mean()
    assert component_images(noisy, cube.values, "auto", 2)[1].noisy == pytest.approx(images.noisy[:2])


def test_the_correction_makes_the_input_clean(recipe, tmp_path):
    """Whatever the strength, sign and turn: channel 0 and the told noise, scaled back, lead to the clean images."""
    chosen = recipe(strength=[0.5, 2.0], pool={"size": 1, "renew_every": 9, "process": False}, batch=8)
    pool = ScenePool(training_cubes(chosen), chosen, tmp_path)
    inputs, correction = (part.numpy() for part in ComponentPatches(pool, chosen).batch(0))
    [scene] = pool.at(0)
    scale = scene.scale[:, None, None]
    told = inputs[:, 1] * scale
    assert np.ptp(told, axis=(1, 2, 3)) == pytest.approx(0, abs=1e-5)
    strengths = told[:, 0, 0, 0]
    assert strengths.min() < 1 < strengths.max()
    clean = inputs[:, 0] * scale + told * correction[:, 0]
    seen = {one.tobytes() for turn in range(8) for one in patches(np.round(np.abs(oriented(scene.clean, turn)), 1), 16)}
    for patch in np.abs(clean):
        assert min(np.abs(patch - np.frombuffer(one, np.float32).reshape(patch.shape)).max() for one in seen) < 0.11


def patches(images, px):
    for row in range(images.shape[1] - px + 1):
        for col in range(images.shape[2] - px + 1):
            yield np.ascontiguousarray(images[:, row : row + px, col : col + px])


def test_band_patches_are_consecutive_bands_of_a_cube(recipe):
    chosen = recipe(transform="bands", noise={"gaussian30": 1}, batch=32, dihedral="none", settings={"in_channels": 2})
    [cube] = training_cubes(chosen)
    inputs, correction = (part.numpy() for part in BandPatches([cube], chosen).batch(3))
    assert inputs.shape == (32, 2, 4, 16, 16)
    assert inputs[:, 1] == pytest.approx(30 / 255)
    assert correction.std() == pytest.approx(30 / 255, rel=0.05)
    clean, places = inputs[:, 0] + correction[:, 0], set()
    for patch in clean:
        places |= {(first, step) for first, step in spans() if found_in(cube.values[first : first + 4][::step], patch)}
    assert {step for _, step in places} == {1, -1}
    assert len(places) > 8


def spans():
    return [(first, step) for first in range(BANDS - 3) for step in (1, -1)]


def found_in(bands, patch):
    windows = np.lib.stride_tricks.sliding_window_view(bands[0], patch.shape[1:])
    for row, col in np.argwhere(np.isclose(windows[..., 0, 0], patch[0, 0, 0], atol=1e-5)):
        if np.allclose(bands[:, row : row + 16, col : col + 16], patch, atol=1e-5):
            return True
    return False


def test_voxels_bound_a_batch(recipe):
    chosen = recipe(transform="bands", batch=16, voxels=4 * 16 * 16 * 5, patch_px=[8, 16])
    sizes = {BandPatches(training_cubes(chosen), chosen).batch(step)[0].shape for step in range(12)}
    assert sizes == {(5, 1, 4, 16, 16), (16, 1, 4, 8, 8)}
    assert chosen.patches(31, 64) == 2


def test_turns_are_the_eight_orientations_and_even_ones_keep_columns():
    image = np.arange(12).reshape(3, 4)
    turned = [oriented(image, turn) for turn in range(8)]
    assert len({(one.shape, one.tobytes()) for one in turned}) == 8
    columns = {frozenset(column) for column in image.T}
    assert all({frozenset(column) for column in one.T} == columns for one in turned[::2])


def test_resampled_noise_is_correlated_and_the_signal_stays():
    random = np.random.default_rng(1)
    clean = np.zeros((50, 30, 30), np.float32)
    clean[:, 10, 10] = 100
    noise = random.standard_normal(clean.shape).astype(np.float32)
    likeness = []
    for _ in range(10):
        moved = resampled(clean + noise, clean, 1.0, random) - clean
        likeness.append(np.corrcoef(moved[:, :-1].ravel(), moved[:, 1:].ravel())[0, 1])
        assert 0.4 < moved.std() < 1
        assert np.abs(moved).max() < 6  # the bright pixel stays where it is
    assert 0.1 < np.mean(likeness) < 0.5
    assert resampled(noise, clean, 0.0, random) is noise


def test_choices_come_in_proportion():
    random = np.random.default_rng(0)
    drawn = [choose({"a": 3.0, "b": 1.0}, random) for _ in range(4000)]
    assert drawn.count("a") / 4000 == pytest.approx(0.75, abs=0.03)


def test_the_learning_rate_rises_and_falls(recipe):
    from cubeloom.workflows.train.loop_part import learning_rate_factor

    chosen = recipe(schedule="one_cycle", steps=1000, warmup=0.1)
    rates = [learning_rate_factor(step, chosen) for step in range(1000)]
    assert np.argmax(rates) in (99, 100)
    assert max(rates) == 1
    assert (np.diff(rates[:99]) > 0).all()
    assert (np.diff(rates[101:]) < 0).all()
    assert rates[550] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 2e-4


def test_mixtures_have_the_maps_of_images_and_smooth_spectra(recipe, cubes):
    import rasterio

    random = np.random.default_rng(0)
    for name, side in (("fine.tif", 200), ("coarse.tif", 100)):
        profile = {"driver": "GTiff", "height": side, "width": side, "count": 2, "dtype": "float32"}
        with rasterio.open(cubes / name, "w", **profile) as raster:
            raster.write(random.random((2, side, side)).astype(np.float32))
    mixtures = {"images": [{"files": ["fine.tif", "coarse.tif"]}], "size_px": [30, 60], "cube_bands": [40, 50]}
    chosen = recipe(cubes=[], mixtures=mixtures)
    source = load_mixtures(chosen.mixtures, 16)
    assert [image.shape for image in source.images] == [(4, 100, 100)]
    drawn = [source.draw(np.random.default_rng(seed)).values for seed in range(12)]
    assert all(29 <= size <= 60 for cube in drawn for size in cube.shape[1:])
    assert all(40 <= len(cube) <= 50 and cube.min() == 0 and cube.max() == 1 for cube in drawn)
    assert all(np.linalg.matrix_rank(cube.reshape(len(cube), -1), tol=1e-3) <= 27 for cube in drawn)
    assert np.array_equal(drawn[0], source.draw(np.random.default_rng(0)).values)
    assert not np.array_equal(drawn[0][:40, :29, :29], drawn[1][:40, :29, :29])


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_rectangle_is_the_largest(seed):
    valid = np.random.default_rng(seed).random((7, 9)) < 0.75
    rows, cols = largest_rectangle(valid)
    best = max(
        (b - a) * (d - c)
        for a in range(7) for b in range(a + 1, 8) for c in range(9) for d in range(c + 1, 10)
        if valid[a:b, c:d].all()
    )  # fmt: skip
    assert valid[rows, cols].all()
    assert valid[rows, cols].size == best


def test_cubes_of_files(cubes, tmp_path):
    from scipy.io import savemat

    values, wavelengths = read_cube(CubeFile(path=cubes / "one.mat"))
    assert values.shape == (BANDS, SIDE, SIDE + 4)
    assert wavelengths[[0, -1]] == pytest.approx([420, 2400])
    cube = values.transpose(1, 2, 0)
    savemat(tmp_path / "two.mat", {"cube": cube, "rgb": np.zeros((200, 200, 3))})
    assert np.array_equal(read_cube(CubeFile(path=tmp_path / "two.mat"))[0], values)
    flat = values.transpose(0, 2, 1).reshape(BANDS, -1)  # MATLAB's order of pixels
    good = np.arange(BANDS) != 3
    savemat(tmp_path / "flat.mat", {"Y": flat, "bbl": good[None].astype(float), "other": np.zeros((2, 2))})
    again, nothing = read_cube(CubeFile(path=tmp_path / "flat.mat", shape=(SIDE, SIDE + 4)))
    assert nothing is None
    assert np.array_equal(again, values[good])


def test_projection_takes_noise_away(recipe):
    [cube] = training_cubes(recipe())
    random = np.random.default_rng(2)
    noisy = cube.values + 0.02 * random.standard_normal(cube.values.shape).astype(np.float32)
    error = [np.sqrt(np.mean((values - cube.values) ** 2)) for values in (projected(noisy), noisy)]
    assert error[0] < 0.6 * error[1]


def test_scenes_are_simulated_and_scaled(recipe, tmp_path):
    chosen = recipe(cubes=[], scenes={"count": 1, "height": 48, "width": 48}, scales=[1, 2], patch_px=8)
    whole, half = training_cubes(chosen)
    assert whole.values.min() == 0
    assert whole.values.max() == 1
    assert len(whole.wavelengths) == len(whole.values) > 200
    assert half.values.shape[1:] == tuple(size // 2 for size in whole.values.shape[1:])
    for _ in range(2):  # made, and read again
        kept, _ = training_cubes(chosen, tmp_path)
        assert np.array_equal(kept.values, whole.values)
    [path] = tmp_path.iterdir()
    assert path.name == "1000_48x48.safetensors"


WRONG = {
    "kind": ({"kind": "destroyer"}, r"kind: classifier or denoiser or .*, found 'destroyer'"),
    "key": ({"lerning_rate": 1}, r"unknown key 'lerning_rate'; did you mean 'learning_rate'\?"),
    "noise": ({"noise": {"gausian30": 1}}, r"noise gausian30 is unknown; expected some of gaussian30,"),
    "no data": ({"cubes": []}, r"nothing to learn from: give cubes, scenes to simulate, or images to mix"),
    "shared": ({"validation": {"cubes": ["one.mat"]}}, r"one.mat is both learnt from and validated on"),
    "strength": (
        {"transform": "bands", "strength": [0.5, 2]},
        r"strength, mixtures and subset are for transform eigen",
    ),
    "told": ({"settings": {"in_channels": 1}}, r"settings.in_channels must be 2"),
    "scene": ({"pool": {"scene_px": 16}, "patch_px": 32}, r"pool.scene_px 16 is less than a patch of 32 px"),
    "steps": ({"steps": 0}, r"steps: Input should be greater than or equal to 1, found 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_are_told(write, tmp_path, case):
    changes, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        train(write(**changes), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_wrong_data_and_models_are_told(write, tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"nowhere.mat: no such cube; a path in a recipe is relative to the recipe"):
        train(write(cubes=["nowhere.mat"]), out)
    with pytest.raises(InputError, match=r"no cube is as large as a patch of 64 px \(one.mat 40 x 44\)"):
        train(write(patch_px=64), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"one.mat: 12 bands; transform 'bands' needs at least 31"):
        train(write(transform="bands", bands=31), tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match=r"unknown model 'hsdt_x'; did you mean 'hsdt_.'"):
        train(write(model="hsdt_x"), tmp_path / "d.safetensors")
    with pytest.raises(ConfigError, match=r"saved as .safetensors"):
        train(write(), tmp_path / "a.pt")


def test_another_recipe_does_not_go_on(write, tmp_path):
    out = tmp_path / "a.safetensors"
    train(write(minutes=1e-9), out)
    with pytest.raises(ConfigError, match=r"begun with another recipe \(changed: batch, seed\); undo the change"):
        train(write(batch=3, seed=1), out)
    assert train(write(minutes=1e-9, log_every=5, threads=2), out).step == 2


def test_weights_of_others_are_not_overwritten(write, tmp_path):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"a.safetensors exists; delete it, or name another file"):
        train(write(), out)
    assert out.read_bytes() == b"mine"


def test_the_recipe_of_the_library_is_one(tmp_path):
    from cubeloom.workflows import train as package

    path = Path(package.__file__).parents[1] / "library/train_denoiser.yaml"
    recipe = load_recipe(path)
    assert isinstance(recipe, DenoiserRecipe)
    assert recipe.steps >= 20_000
