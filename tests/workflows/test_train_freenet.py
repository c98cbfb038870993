"""FreeNet's training follows the authors' steps, goes on after a stop, and its weights map what it learnt."""

import itertools
import json

import numpy as np
import pytest
import rasterio
import torch
import yaml
from scipy.io import savemat
from sklearn.metrics import cohen_kappa_score, f1_score
from torch.nn import functional

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.freenet import HALO
from cubeloom.models.registry import create_model, model_card
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.freenet import (
    FreenetModule,
    band_statistics,
    brightened,
    freenet_card,
    kept_bands,
    turned,
    turned_back,
)
from cubeloom.workflows.train.freenet_data import FreenetBatches, pictures
from cubeloom.workflows.train.freenet_recipe import FreenetRecipe
from cubeloom.workflows.train.labelled import card_classes, labelled_image, read_images
from cubeloom.workflows.train.labels_recipe import ClassOf, PixelSplit
from cubeloom.workflows.train.loop import prepare
from cubeloom.workflows.train.split import split_pixels
from cubeloom.workflows.train.stratified import StratifiedBatches, draw_split
from cubeloom.workflows.train.windows import image_windows

CLASSES = {2: "roof", 3: "grass", 7: "water"}
HEIGHT, WIDTH, BANDS = 40, 52, 6
SMALL = {"width": 0.125, "learning_rate": 0.02, "steps": 40, "log_every": 4, "threads": 1}


@pytest.fixture
def arrays():
    """A cube of squares of 5 px, noisy, of three classes of which one is rare, and labels at most pixels."""
    random = np.random.default_rng(1)
    truth = np.kron(random.choice(list(CLASSES), (8, 11), p=[0.5, 0.4, 0.1]), np.ones((5, 5), int))[:, :WIDTH]
    spectra = random.uniform(0.1, 0.5, (8, BANDS))
    cube = spectra[truth].transpose(2, 0, 1) + random.normal(0, 0.06, (BANDS, HEIGHT, WIDTH))
    return cube.astype(np.float32), np.where(random.random(truth.shape) < 0.2, 0, truth).astype(np.uint8)


@pytest.fixture
def image(arrays):
    classes = card_classes({value: ClassOf(name=name) for value, name in CLASSES.items()})
    return labelled_image("image", *arrays, classes)


@pytest.fixture
def folder(arrays, tmp_path):
    cube, labels = arrays
    savemat(tmp_path / "cube.mat", {"cube": cube.transpose(1, 2, 0)})
    savemat(tmp_path / "labels.mat", {"labels": labels})
    return tmp_path


def write_recipe(folder, **changes):
    recipe = {
        "kind": "freenet",
        "images": [{"scene": "cube.mat", "labels": "labels.mat"}],
        "classes": {value: {"name": name} for value, name in CLASSES.items()},
        "split": {"method": "blocks", "block_px": 5, "buffer_px": 0},
        **SMALL,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def recipe_of(**changes):
    base = {"images": [{"scene": "x", "labels": "y"}], "classes": {1: {"name": "a"}, 2: {"name": "b"}}}
    return FreenetRecipe.model_validate({"kind": "freenet", **base, **changes})


def read_log(path):
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_first_steps_are_those_of_the_paper(image, folder):
    """A plain loop over zero-padded images and maps of weights ends with the weights of a recipe."""
    steps, settings = 3, {"in_channels": BANDS, "num_classes": 3, "width": 0.125}
    path = write_recipe(folder, split={"method": "random", "per_class": 30}, quota=10, steps=steps, valid_only=False)
    report = train(path, folder / "freenet.a.safetensors")
    prepare(load_recipe(path))
    network = create_model("freenet", **settings).train()
    standard = (image.cube - image.cube.mean((1, 2))[:, None, None]) / image.cube.std((1, 2))[:, None, None]
    x = torch.zeros(1, BANDS, 48, 64)
    x[0, :, :HEIGHT, :WIDTH] = torch.from_numpy(standard)
    target = torch.full((48, 64), -1)
    target[:HEIGHT, :WIDTH] = torch.from_numpy(np.searchsorted(list(CLASSES), image.labels))
    drawn, _ = draw_split(image.labels, 30)
    batches = StratifiedBatches(np.where(drawn, image.labels, 0), 10).steps()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - max(step - 1, 0) / steps) ** 0.9
        weight = torch.zeros(48, 64)
        rows, cols = np.unravel_index(batch, image.shape)
        weight[rows, cols] = 1
        loss = functional.cross_entropy(network(x), target[None], reduction="none", ignore_index=-1)[0]
        optimiser.zero_grad()
        ((loss * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 35)
        optimiser.step()
    found = create_model("freenet", report.path).state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_training_learns_and_its_report_is_that_of_the_map(image, folder):
    report = train(write_recipe(folder, judge_every=20), folder / "freenet.a.safetensors")
    log = read_log(folder / "freenet.a.log.csv")
    assert float(log[-1]["loss"]) < 0.3 * float(log[0]["loss"])
    assert report.metrics["overall_accuracy"] > 0.8
    assert [row["step"] for row in log if row["kappa"]] == ["20", "40"]
    card = model_card(report.path)
    parts = split_pixels(image, PixelSplit(method="blocks", block_px=5, buffer_px=0))
    x = (image.cube - np.array(card.mean)[:, None, None]) / np.array(card.std)[:, None, None]
    valid = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    with torch.inference_mode():
        scores = create_model("freenet", report.path)(torch.from_numpy(x[None].astype(np.float32)), valid)[0]
    mapped = np.array([one.value for one in card.classes])[scores.argmax(0).numpy()][parts.test]
    truth = image.labels[parts.test]
    assert np.mean(truth == mapped) == pytest.approx(report.metrics["overall_accuracy"])
    assert cohen_kappa_score(truth, mapped) == pytest.approx(report.metrics["kappa"])
    each = f1_score(truth, mapped, labels=list(CLASSES), average=None)
    assert [report.metrics[f"f1 {name}"] for name in CLASSES.values()] == pytest.approx(each.tolist())


def test_the_stage_maps_what_was_learnt_by_the_card(folder, make_scene, arrays):
    cube, labels = arrays
    scene = make_scene(height=HEIGHT, width=WIDTH, bands=12, background=0)
    scene["reflectance"] = scene.reflectance.copy(data=np.repeat(cube, 2, axis=0))
    cubeloom.write_scene(scene, folder / "scene.zarr")
    told = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "l.tif", "w", **told, crs="EPSG:32633", transform=scene.odc.geobox.affine) as raster:
        raster.write(labels, 1)
    path = write_recipe(folder, images=[{"scene": "scene.zarr", "labels": "l.tif"}], stages=["mask"], steps=25)
    report = train(path, folder / "freenet.mine.safetensors")
    card = model_card(report.path)
    identity = (card.name, card.task, card.sensor, card.variable, card.units)
    assert identity == ("freenet.mine", "segment", "EnMAP", "reflectance", "1")
    good = np.array([number for number in range(1, 13) if number != 11])
    assert card.input_bands.numbers == tuple(good)
    assert card.input_bands.wavelengths_nm == pytest.approx(scene.wavelength.values[good - 1].tolist())
    clear = scene.quality.values == 0
    assert card.mean == pytest.approx(scene.reflectance.values[good - 1][:, clear].mean(1).tolist(), abs=1e-3)
    assert (card.tile % 16, card.tile > 2 * card.halo, card.halo) == (0, True, HALO)
    classified = cubeloom.classify(cubeloom.mask(cubeloom.open_scene(folder / "scene.zarr")), model=str(report.path))
    mapped = classified.compute().classes.values
    assert (mapped[~clear] == 0).all()
    (image,) = read_images(load_recipe(path).images, load_recipe(path).classes, stages=[Mask()])
    test = split_pixels(image, PixelSplit(method="blocks", block_px=5, buffer_px=0)).test
    agreement = np.mean(mapped[test] == labels[test])
    assert report.metrics["overall_accuracy"] > 0.7
    assert agreement == pytest.approx(report.metrics["overall_accuracy"], abs=0.03)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_training_cut_into_pieces_is_that_without_stops(folder, arrays, windows):
    """Also where the image is seen in windows, and with everything that is drawn at random."""
    cube, labels = arrays
    if windows > 1:
        savemat(folder / "cube.mat", {"cube": np.tile(cube, 4).transpose(1, 2, 0)})
        savemat(folder / "labels.mat", {"labels": np.tile(labels, 4)})
    random = {"turns": True, "noise": 0.1, "brightness": 0.1, "drop_bands": 0.3}
    changes = {"augmentation": random, "steps": 4, "optimiser": "adamw", "judge_every": 2}
    changes["memory_gib"] = 8 if windows == 1 else 0.018
    whole = train(write_recipe(folder, **changes), folder / "whole.safetensors")
    assert model_card(whole.path).training["windows"] == windows
    path = write_recipe(folder, **changes, minutes=1e-9)
    reports = [train(path, folder / "pieces.safetensors") for _ in range(4)]
    assert [(one.step, one.exit_code) for one in reports] == [(1, 75), (2, 75), (3, 75), (4, 0)]
    assert reports[-1].sha256 == whole.sha256
    assert reports[-1].metrics == whole.metrics
    assert train(path, folder / "pieces.safetensors").sha256 == whole.sha256


@pytest.fixture
def batches(image):
    """Of training pixels in windows that are smaller than the image, and what they were made of."""
    recipe = recipe_of(quota=4)
    train_mask, _ = draw_split(image.labels, 30)
    return image, recipe, train_mask


def prepared(image, recipe, train_mask, windows, tmp_path):
    card = freenet_card(recipe, tmp_path / "a.safetensors", [image], 112)
    return FreenetBatches(pictures([image], card), [train_mask], windows, recipe)


def test_a_batch_of_the_whole_image_is_the_authors(batches, tmp_path):
    image, recipe, train_mask = batches
    made = prepared(image, recipe, train_mask, image_windows([image.shape], 10**9, HALO), tmp_path)
    expected = StratifiedBatches(np.where(train_mask, image.labels, 0), 4).steps(5)
    for step, pixels in zip(range(5, 30), expected, strict=False):
        batch = made.batch(step)
        assert batch["at"].tolist() == pixels.tolist()
        assert float(batch["divisor"]) == pixels.size
        values = np.array([one.value for one in image.classes])[batch["target"]]
        np.testing.assert_array_equal(values, image.labels.flat[pixels])


def test_windows_learn_each_training_pixel_once_an_epoch(batches, tmp_path):
    image, recipe, train_mask = batches
    windows = image_windows([image.shape], 400, 6)
    assert len(windows) > 3
    made = prepared(image, recipe, train_mask, windows, tmp_path)
    epoch = len(made)
    found = np.zeros(image.shape, int)
    scaled = (image.cube - image.cube.mean((1, 2))[:, None, None]) / image.cube.std((1, 2))[:, None, None]
    total = 0.0
    for step in range(epoch, 2 * epoch):
        batch = made.batch(step)
        height, width = batch["image"].shape[2:]
        (window,) = [
            one
            for one in windows
            if one.shape == (height, width) and np.allclose(scaled[:, one.rows, one.cols], batch["image"][0], atol=1e-4)
        ]
        rows, cols = np.unravel_index(batch["at"].numpy(), (height, width))
        rows, cols = rows + window.rows.start, cols + window.cols.start
        found[rows, cols] += 1
        values = np.array([one.value for one in image.classes])[batch["target"]]
        np.testing.assert_array_equal(values, image.labels[rows, cols])
        total += len(rows) / float(batch["divisor"])
    np.testing.assert_array_equal(found, train_mask)
    assert total == pytest.approx(epoch)


@pytest.mark.parametrize("shape", [(40, 52), (13, 200), (200, 13), (1, 1), (100, 100)])
@pytest.mark.parametrize("pixels", [1, 400, 2500, 10**6])
def test_windows_cover_an_image_once_with_their_halo(shape, pixels):
    halo = 6
    windows = image_windows([shape, shape], pixels, halo)
    covered = np.zeros((2, *shape), int)
    for window in windows:
        covered[window.image, window.core_rows, window.core_cols] += 1
        for seen, core, length in zip(
            (window.rows, window.cols), (window.core_rows, window.core_cols), shape, strict=True
        ):
            assert seen.start == 0 or core.start - seen.start >= halo
            assert seen.stop == length or seen.stop - core.stop >= halo
        side = 4 * halo
        assert window.shape[0] * window.shape[1] <= max(pixels, side**2, side * min(shape))
        assert window.inner[0].stop - window.inner[0].start == window.core_rows.stop - window.core_rows.start
    assert (covered == 1).all()
    assert len(windows) == 2 or shape[0] * shape[1] > pixels


def test_what_is_not_valid_is_filled_and_not_counted(image, tmp_path):
    """Pixels without values are filled, and do not count in the means of a step."""
    cube = image.cube.copy()
    cube[:, 20:, :10] = np.nan
    holed = labelled_image("holed", cube, image.labels, image.classes)
    made = prepared(holed, recipe_of(), holed.labels > 0, image_windows([holed.shape], 10**9, HALO), tmp_path)
    batch = made.batch(0)
    assert torch.isfinite(batch["image"]).all()
    np.testing.assert_array_equal(batch["valid"][0], holed.valid)
    seen = batch["image"][0][:, torch.from_numpy(holed.valid)]
    torch.testing.assert_close(seen.mean(1), torch.zeros(BANDS), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(1, correction=0), torch.ones(BANDS), atol=1e-4, rtol=0)


def test_statistics_are_over_the_valid_pixels_of_all_images(image):
    flat = labelled_image("flat", np.full_like(image.cube, 0.3), image.labels, image.classes)
    mean, std = band_statistics([image, flat])
    both = np.concatenate([image.cube, flat.cube], 1).astype(np.float64)
    assert mean == pytest.approx(both.mean((1, 2)).tolist())
    assert std == pytest.approx(both.std((1, 2)).tolist())
    assert band_statistics([flat])[1] == [1.0] * BANDS


def test_the_rate_follows_the_authors_schedule():
    module = FreenetModule(create_model("freenet", in_channels=2, num_classes=2, width=0.0625), recipe_of())
    factors = [module.learning_rate_factor(step) for step in (0, 1, 2, 501, 999)]
    assert factors == pytest.approx([1, 1, 0.999**0.9, 0.5**0.9, 0.002**0.9])
    assert isinstance(module.optimiser(), torch.optim.SGD)
    cosine = FreenetModule(module.network, recipe_of(schedule="cosine", optimiser="adamw"))
    assert cosine.learning_rate_factor(500) == pytest.approx(0.505, abs=0.01)
    assert isinstance(cosine.optimiser(), torch.optim.AdamW)


def test_turns_are_eight_and_undone():
    images = torch.randn(2, 3, 5, 7)
    ways = [turned(images, turn) for turn in range(8)]
    for turn, way in enumerate(ways):
        assert torch.equal(turned_back(way, turn), images)
    alike = [a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(ways, 2)]
    assert not any(alike)


def test_a_brighter_image_is_that_image_standardised():
    cube, mean, std = torch.rand(4, 5, 6), torch.rand(4, 1, 1), torch.rand(4, 1, 1) + 0.5
    torch.manual_seed(3)
    factor = float(torch.exp(0.4 * torch.randn(())))
    torch.manual_seed(3)
    found = brightened((cube - mean) / std, (mean / std).flatten(), 0.4)
    assert abs(factor - 1) > 0.01
    torch.testing.assert_close(found, (factor * cube - mean) / std)


def test_left_out_bands_are_no_more_than_allowed():
    torch.manual_seed(0)
    shares = [float((kept_bands(2000, 0.4) == 0).float().mean()) for _ in range(50)]
    assert max(shares) < 0.44
    assert np.mean(shares) == pytest.approx(0.2, abs=0.05)


def test_recipes_that_cannot_be_followed_are_refused(folder):
    other = [{"scene": "cube.mat", "labels": "labels.mat"}, {"set": "salinas", "folder": "."}]
    for changes, words in (
        ({"classes": {}}, "name two at least"),
        ({"images": other}, "a standard scene has its own"),
        ({"images": [other[0], {**other[0]}], "split": {"method": "listed", "test_tiles": [[0, 0]]}}, "of one image"),
        (
            {"images": [{"set": "pavia", "folder": "."}]},
            r"standard\.set: Input should be 'pavia_university', 'salinas'",
        ),
        (
            {"images": [{"scene": "cube.mat"}]},
            r"labelled\.labels: Field required, found {'scene': 'cube\.mat'}; images",
        ),
        ({"quota": 0}, "quota"),
        ({"width": 0.01}, "width"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_recipe(write_recipe(folder, **changes))
    more = {9: {"name": "rock"}, **{value: {"name": name} for value, name in CLASSES.items()}}
    with pytest.raises(InputError, match="no pixel to learn 9 rock from"):
        train(write_recipe(folder, classes=more), folder / "a.safetensors")


def test_the_recipe_of_the_library_can_be_read(request):
    path = request.config.rootpath / "workflows/library/train_freenet.yaml"
    recipe = load_recipe(path)
    assert recipe.kind == "freenet"
    assert json.dumps(recipe.identity())
