"""Tuning changes what it should and nothing else, learns what can be learned, and goes on to the bit after a stop."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import read_card
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.scene import spec_of
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.tune import TuneModule, set_modes
from cubeloom.workflows.train.tune_data import tune_data
from cubeloom.workflows.train.tune_recipe import AugmentPart, TuneRecipe
from cubeloom.workflows.train.tune_tasks import cross_entropy, evaluate, loss_of, normalised_squares
from cubeloom.workflows.train.tune_tiles import (
    IGNORE,
    Area,
    GridTiles,
    SceneTiles,
    TileBatches,
    augmented,
    target_of,
)

SIDE, BANDS, PX = 64, 80, 16
NAMES = {1: "water", 3: "forest", 8: "bare soil"}
BACKBONE = {"backbone": "spectral_vit_nano", "settings": {"image_size": PX}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_scene) -> Path:
    """A store whose patches of 8 px have one of three spectra, with a map of them, and another such store."""
    path = tmp_path_factory.mktemp("tune")
    spectra = np.random.default_rng(5).uniform(0.1, 0.5, (9, BANDS))
    for name, seed in (("scene", 5), ("other", 6)):
        scene = make_scene(height=SIDE, width=SIDE, bands=BANDS, background=10)
        random = np.random.default_rng(seed)
        truth = np.kron(random.choice([1, 3, 8], (8, 8)), np.ones((8, 8), int))
        cube = spectra[truth].transpose(2, 0, 1) + random.normal(0, 0.05, (BANDS, SIDE, SIDE))
        cube[:, :10, :10] = np.nan
        cube[-2] = np.nan
        labels = truth.astype(np.uint8)
        labels[::5] = 0
        cubeloom.write_scene(
            scene.assign(reflectance=scene.reflectance.copy(data=cube.astype(np.float32))), path / f"{name}.zarr"
        )
        grid = spec_of(scene).grid
        profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 1, "dtype": "uint8"}
        with rasterio.open(path / f"{name}.tif", "w", **profile, crs=str(grid.crs), transform=grid.affine) as raster:
            raster.write(labels, 1)
    return path


def source(folder: Path, name: str = "scene") -> dict:
    return {"scene": str(folder / f"{name}.zarr"), "labels": str(folder / f"{name}.tif")}


def recipe_of(folder: Path, **changes) -> dict:
    """Learns from one scene, chooses and tests on areas of the other."""
    scenes = {
        "train": [source(folder)],
        "test": [source(folder, "other")],
        "validation_split": {"block_px": 16, "test_fraction": 0.2, "buffer_px": 0},
        "classes": {value: {"name": name} for value, name in NAMES.items()},
    }
    loop = {"steps": 4, "batch": 4, "validate_every": 2, "log_every": 1, "threads": 1}
    return {"kind": "tune", **BACKBONE, "scenes": scenes, "tile_px": PX, **loop, **changes}


@pytest.fixture
def write(folder, tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_of(folder, **changes)))
        return path

    return write


def module_of(task="classify", **changes) -> TuneModule:
    """A network of three classes (or values) of its own, in training."""
    torch.manual_seed(0)
    network = create_model(**{"name": changes.get("backbone", "spectral_vit_nano"), **changes.pop("build", {})})
    network.reset_head(3)
    fields = {"kind": "tune", "task": task, "earth": {"set": "corine", "root": "."}, **changes}
    return TuneModule(network, TuneRecipe.model_validate(fields), loss_of(task))


def steps_of(module: TuneModule, count: int = 2, px: int = PX) -> None:
    """Some steps of the optimiser, as the loop makes them."""
    optimiser, draw = module.optimiser(), torch.Generator().manual_seed(1)
    for number in range(count):
        batch = torch.randn(4, BANDS, px, px, generator=draw), torch.randint(0, 3, (4,), generator=draw)
        module.on_train_batch_start(batch, number)
        optimiser.zero_grad()
        module.training_step(batch, number).backward()
        optimiser.step()


def changed_by_steps(module: TuneModule) -> set[str]:
    before = {key: value.clone() for key, value in module.network.state_dict().items()}
    steps_of(module)
    after = module.network.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


def blocks(*numbers: int) -> tuple[str, ...]:
    return tuple(f"vit_core.blocks.{number}." for number in numbers)


MODES = {
    "frozen": ({"tune": "frozen"}, ()),
    "adapter": ({"tune": "adapter"}, ("spectral_adapter.",)),
    "first_n": ({"tune": "first_n", "first": 2}, ("spectral_adapter.", *blocks(0, 1))),
    "full": ({"tune": "full"}, ("spectral_adapter.", "vit_core.")),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_way_to_tune_changes_what_it_should_and_nothing_else(mode):
    fields, learns = MODES[mode]
    module = module_of(build={"image_size": PX}, **fields)
    learns = (*learns, "vit_core.head.")
    expected = {key for key in module.network.state_dict() if key.startswith(learns)}
    assert changed_by_steps(module) == expected


def test_first_stages_of_a_convolutional_network():
    module = module_of(
        backbone="spectral_timm", build={"backbone": "resnet18", "name": "spectral_timm"}, tune="first_n"
    )
    learns = ("spectral_adapter.", "core.layer1.", "core.fc.")
    changed = changed_by_steps(module)
    assert changed == {key for key in module.network.state_dict() if key.startswith(learns)}
    with pytest.raises(ConfigError, match="has 4 stages"):
        module_of(
            backbone="spectral_timm", build={"backbone": "resnet18", "name": "spectral_timm"}, tune="first_n", first=5
        )


def test_statistics_of_frozen_norms_drift_only_where_that_is_asked_for():
    module = module_of(build={"image_size": PX}, tune="frozen", drifting_norms=True)
    drifted = changed_by_steps(module) - {"vit_core.head.weight", "vit_core.head.bias"}
    kinds = {key.rsplit(".", 1)[1] for key in drifted}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}


def test_dropout_goes_with_what_it_stands_in():
    module = module_of(build={"image_size": PX, "drop_path_rate": 0.3}, tune="first_n", first=2)
    set_modes(module.network)
    drops = {name: part.training for name, part in module.network.named_modules() if name.endswith("drop_path2")}
    assert [drops[f"vit_core.blocks.{number}.drop_path2"] for number in (0, 1, 2, 7)] == [True, True, False, False]


class TestLora:
    def test_only_the_additions_and_the_head_change(self):
        module = module_of(build={"image_size": PX}, tune="lora", lora={"rank": 2})
        changed = changed_by_steps(module)
        assert {key for key in changed if "lora_" not in key} == {"vit_core.head.weight", "vit_core.head.bias"}
        assert sum("lora_" in key for key in changed) == 2 * 2 * 8

    def test_merged_weights_do_what_the_adapted_network_does(self):
        module = module_of(build={"image_size": PX}, tune="lora", lora={"rank": 4, "adapter": True})
        plain = create_model("spectral_vit_nano", image_size=PX, num_classes=3)
        steps_of(module, 3)
        for name, weight in module.network.named_parameters():
            if "lora_B" in name:  # far from their start at 0
                weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        x = torch.randn(2, BANDS, PX, PX)
        adapted, merged = module.network.eval(), module.trained
        assert merged.state_dict().keys() == plain.state_dict().keys()
        plain.load_state_dict(merged.state_dict())
        with torch.inference_mode():
            expected = adapted(x)
            torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(create_model("spectral_vit_nano", image_size=PX, num_classes=3)(x), expected)
        assert any("lora_" in key for key in module.network.state_dict())  # which goes on training

    def test_a_network_without_attention_is_refused(self):
        with pytest.raises(ConfigError, match="vision transformers"):
            module_of(backbone="spectral_timm", build={"backbone": "resnet18", "name": "spectral_timm"}, tune="lora")


def test_backbone_and_head_may_learn_at_different_rates():
    module = module_of(build={"image_size": PX}, tune="full", backbone_rate=0.1, learning_rate=1e-2)
    head, backbone = module.optimiser().param_groups
    assert (head["lr"], backbone["lr"]) == (pytest.approx(1e-2), pytest.approx(1e-3))
    assert sum(map(torch.numel, head["params"])) == 3 * 128 + 3


class TestTiles:
    def area(self, side=40, seed=0):
        labels = np.random.default_rng(seed).integers(-1, 3, (side, side))
        labels[labels < 0] = IGNORE
        return Area("image", np.broadcast_to(labels, (4, side, side)).astype(np.float32), labels)

    def test_the_grid_has_every_label_once(self):
        areas = [self.area(40, 1), self.area(52, 2)]
        tiles = GridTiles(areas, 16)
        found = np.concatenate([tiles.tile(index)[1].ravel() for index in range(len(tiles))])
        expected = np.concatenate([one.target.ravel() for one in areas])
        assert np.bincount(found[found >= 0]).tolist() == np.bincount(expected[expected >= 0]).tolist()

    def test_no_training_tile_holds_a_pixel_that_is_kept_out(self):
        one, kept_out = self.area(), np.zeros((40, 40), bool)
        kept_out[20:23, 5] = True
        marked = Area("image", np.where(kept_out, 99, one.cube).astype(np.float32), one.target)
        tiles = SceneTiles([marked], [kept_out], 16)
        assert len(tiles) == 25 * 25 - sum(
            kept_out[row : row + 16, col : col + 16].any() for row in range(25) for col in range(25)
        )
        assert all((tiles.tile(index)[0] != 99).all() for index in range(len(tiles)))

    def test_no_room_is_an_error(self):
        with pytest.raises(InputError, match="make tile_px smaller"):
            SceneTiles([self.area()], [None], 41)
        with pytest.raises(InputError, match="no tile of 16 px"):
            SceneTiles([self.area()], [np.ones((40, 40), bool)], 16)

    def test_labels_follow_every_change_of_place(self):
        rows, cols = np.mgrid[:40, :40]
        cube, bands = np.stack([rows, cols]).astype(np.float32), rows // 8 * 5 + cols // 8
        for seed in range(20):
            changed, found = augmented(cube, bands, AugmentPart(crop_scale=(0.3, 1)), np.random.default_rng(seed))
            centre = np.stack([found // 5, found % 5]) * 8 + 3.5
            assert changed.shape == cube.shape
            assert np.abs(changed - centre).max() < 5
        one = self.area()
        flipped = [augmented(one.cube, one.target, AugmentPart(), np.random.default_rng(seed)) for seed in range(16)]
        assert all((cube[0] == found).all() for cube, found in flipped)
        assert len({found.tobytes() for _, found in flipped}) == 4

    def test_dropped_channels_are_zero_and_noise_has_its_size(self):
        cube, found = np.ones((400, 8, 8), np.float32), np.zeros((8, 8), int)
        part = AugmentPart(flips=False, drop_bands=0.5)
        changed, _ = augmented(cube, found, part, np.random.default_rng(0))
        gone = (changed == 0).all(axis=(1, 2))
        assert 0 < gone.sum() < 0.6 * 400
        assert (changed[~gone] == 1).all()
        noisy, _ = augmented(cube, found, AugmentPart(flips=False, noise=0.5), np.random.default_rng(0))
        assert 0 < noisy.std() <= 0.52
        assert (cube == 1).all()

    def test_each_tile_comes_once_an_epoch_and_a_step_is_always_the_same(self):
        tiles = SceneTiles([self.area(20)], [None], 16)
        recipe = TuneRecipe(kind="tune", earth={"set": "corine", "root": "."}, batch=5, augment={"flips": False})
        batches = TileBatches(tiles, recipe, 3)
        seen = [one.numpy().tobytes() for step in range(5) for one in batches.batch(step)[0]]
        assert len(seen) == len(set(seen)) == len(tiles) == 25
        again = TileBatches(tiles, recipe, 3).batch(7)
        assert all(torch.equal(a, b) for a, b in zip(again, batches.batch(7), strict=True))

    def test_targets_of_whole_tiles(self):
        mask = np.array([[0, 2, 2], [IGNORE, IGNORE, 2]])
        assert target_of("classify", mask, 4) == 2
        assert target_of("multilabel", mask, 4).tolist() == [1, 0, 1, 0]
        assert target_of("classify", np.full((2, 2), IGNORE), 4) == IGNORE
        assert target_of("segment", mask, 4) is mask


class TestLosses:
    def test_cross_entropy_counts_labelled_places_by_weight(self):
        draw = torch.Generator().manual_seed(0)
        scores = torch.randn(2, 3, 4, 4, generator=draw)
        truth = torch.randint(0, 3, (2, 4, 4), generator=draw)
        truth[0, :2] = IGNORE
        weight = torch.tensor([1.0, 2.0, 0.5])
        logs = scores.log_softmax(1)
        places = [(n, y, x) for n, y, x in np.ndindex(2, 4, 4) if truth[n, y, x] != IGNORE]
        total = sum(-weight[truth[p]] * logs[p[0], truth[p], p[1], p[2]] for p in places)
        expected = total / sum(weight[truth[p]] for p in places)
        torch.testing.assert_close(cross_entropy(scores, truth, weight), expected)

    def test_a_batch_without_labels_costs_nothing(self):
        scores = torch.randn(1, 3, 4, 4, requires_grad=True)
        loss = cross_entropy(scores, torch.full((1, 4, 4), IGNORE))
        loss.backward()
        assert loss == 0
        assert (scores.grad == 0).all()

    def test_balance_makes_classes_weigh_alike(self):
        counts = np.array([900, 100, 0])
        truth = torch.tensor([0] * 900 + [1] * 100)
        scores = torch.zeros(1000, 3)
        scores[truth == 1, 0] = 2.0  # only the small class is wrong
        plain, even = loss_of("classify")(scores, truth), loss_of("classify", counts, 1.0)(scores, truth)
        per_class = [cross_entropy(scores[truth == k], truth[truth == k]) for k in (0, 1)]
        torch.testing.assert_close(even, (per_class[0] + per_class[1]) / 2)
        assert even > plain

    def test_squares_are_relative_to_saying_nothing(self):
        truth = torch.randn(200, 4) * torch.tensor([1.0, 10, 100, 0.1])
        assert normalised_squares(torch.zeros_like(truth), truth) == pytest.approx(1)
        assert normalised_squares(0.5 * truth, truth) == pytest.approx(0.25)


@pytest.fixture(scope="module")
def earth_data():
    """Writers of small sets in SpectralEarth's layout."""
    spec = importlib.util.spec_from_file_location("earth_data", Path(__file__).with_name("earth_data.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def column(log: Path, name: str) -> list[float]:
    rows = [line.split(",") for line in log.read_text().splitlines()]
    place = rows[0].index(name)
    return [float(row[place]) for row in rows[1:] if row[place]]


class TestTraining:
    def test_segmentation_learns_and_its_weights_are_a_model(self, write, tmp_path):
        out = tmp_path / "spectral_segmenter.mine.safetensors"
        report = train(
            write(
                steps=30,
                validate_every=15,
                batch=4,
                learning_rate=3e-3,
                tune="adapter",
                about={"licence": "MIT", "note": "Good for tests."},
            ),
            out,
        )
        card = read_card(out.with_suffix("").with_suffix(".mine.card.json"))
        assert report.exit_code == 0
        assert report.sha256 == card.sha256
        assert (card.name, card.task, card.tile) == ("spectral_segmenter.mine", "segment", PX)
        assert [one.name for one in card.classes] == list(NAMES.values())
        assert (card.licence, card.training["note"]) == ("MIT", "Good for tests.")
        assert len(card.input_bands) == len(card.mean) == BANDS - 1
        assert card.training["best_step"] in (15, 30)
        losses = column(tmp_path / card.log, "loss")
        assert np.mean(losses[-5:]) < 0.65 * np.mean(losses[:5])
        assert card.metrics["test_overall_accuracy"] > 0.8
        assert np.sum(card.training["test"]["confusion"]) == card.metrics["test_samples"]
        network = create_model("spectral_segmenter", out)
        assert network(torch.randn(1, BANDS - 1, PX, PX)).shape == (1, 3, PX, PX)

    @pytest.mark.parametrize(("task", "tune"), [("classify", "lora"), ("multilabel", "frozen")])
    def test_labels_of_whole_tiles(self, write, tmp_path, task, tune):
        out = tmp_path / "spectral_vit_nano.tiles.safetensors"
        report = train(write(task=task, tune=tune, steps=4), out)
        card = read_card(tmp_path / "spectral_vit_nano.tiles.card.json")
        assert card.task == task
        assert create_model("spectral_vit_nano", out)(torch.randn(1, BANDS - 1, PX, PX)).shape == (1, 3)
        assert "test_macro_f1" in report.metrics

    def test_a_stopped_training_goes_on_to_the_bit(self, write, tmp_path):
        one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        train(write(steps=3), one)
        report = train(write(steps=3, minutes=1e-9), two)
        runs = 1
        while report.exit_code:
            assert report.exit_code == 75
            report, runs = train(write(steps=3, minutes=1e-9), two), runs + 1
        assert runs == 3
        assert one.read_bytes() == two.read_bytes()
        assert read_card(tmp_path / "a.card.json").metrics == read_card(tmp_path / "b.card.json").metrics
        assert train(write(steps=3), two).metrics == report.metrics  # finished before

    def test_a_kill_before_the_best_weights_were_put_back_changes_nothing(self, write, tmp_path):
        out, path = tmp_path / "a.safetensors", write(steps=2)
        train(path, out)
        finished, digest = read_card(tmp_path / "a.card.json"), out.read_bytes()
        left = {key: value for key, value in finished.training.items() if key not in ("best_step", "saved", "test")}
        save_model(
            create_model("spectral_segmenter", **finished.settings), out, finished.model_copy(update={"training": left})
        )
        assert train(path, out).metrics == finished.metrics
        assert out.read_bytes() == digest
        assert read_card(tmp_path / "a.card.json") == finished

    def test_the_best_weights_of_validation_are_saved(self, write, tmp_path):
        """Steps so large that the network gets worse again."""
        out, said = tmp_path / "spectral_segmenter.best.safetensors", []
        path = write(steps=3, validate_every=1, learning_rate=0.1, schedule="constant", tune="full", clip=None)
        train(path, out, said.append)
        card = read_card(tmp_path / "spectral_segmenter.best.card.json")
        judged = column(tmp_path / card.log, "validation_loss")
        assert min(judged) < judged[-1]
        assert card.training["best_step"] == 1 + int(np.argmin(judged))
        recipe = load_recipe(path)
        data = tune_data(recipe, model_card(recipe.backbone, **recipe.settings))
        again = evaluate(create_model("spectral_segmenter", out), data.validation, "segment", data.names)
        assert again["loss"] == pytest.approx(card.metrics["validation_loss"], rel=1e-5)
        assert again["loss"] == pytest.approx(min(judged), rel=1e-4)
        assert f"saved step {card.training['best_step']}," in said[-1]


class TestEarthSets:
    """Two epochs on small files in the layout of SpectralEarth's sets."""

    @pytest.mark.parametrize("name", ["desis_cdl", "corine"])
    def test_label_rasters(self, write, earth_data, tmp_path, name):
        earth_data.write_set(tmp_path / name, name, side=PX)
        multilabel = name == "corine"
        out = tmp_path / "tuned.safetensors"
        earth = {"set": name, "root": str(tmp_path / name), "split": "scenes"}
        task = {"task": "multilabel"} if multilabel else {"task": "segment", "head": "linear", "balance": 0.5}
        report = train(write(scenes=None, earth=earth, **task, batch=3, steps=4, tune="adapter"), out)
        card = read_card(tmp_path / "tuned.card.json")
        assert report.exit_code == 0
        assert card.bands == (235 if name == "desis_cdl" else 202)
        assert (card.input_bands is None) == (name == "desis_cdl")
        assert len(card.classes) == (19 if multilabel else 14)
        assert card.training["data"]["tiles"]["train"] > 0
        network = create_model(card.family, out)
        assert network(torch.randn(1, card.bands, PX, PX)).shape[1] == len(card.classes)

    def test_values_of_soil(self, write, earth_data, tmp_path):
        earth_data.write_set(tmp_path / "soil", "hyperview", counts=(2, 1))
        out = tmp_path / "spectral_regressor.soil.safetensors"
        earth = {"set": "hyperview", "root": str(tmp_path / "soil")}
        network = {"settings": {"patch_size": 32}, "tile_px": 128}
        train(write(scenes=None, earth=earth, task="regress", tune="frozen", batch=2, steps=1, **network), out)
        card = read_card(tmp_path / "spectral_regressor.soil.card.json")
        assert card.outputs == ("P", "K", "Mg", "pH")
        assert card.metrics["validation_loss"] > 0
        assert "test_rmse" not in card.metrics  # nobody but its publisher has the test
        assert create_model("spectral_regressor", out)(torch.randn(1, 150, 128, 128)).shape == (1, 4)

    def test_a_set_for_another_task_or_size_is_refused(self, write, earth_data, tmp_path):
        earth_data.write_set(tmp_path / "set", "corine", side=PX)
        earth = {"set": "corine", "root": str(tmp_path / "set")}
        with pytest.raises(ConfigError, match="corine is for task multilabel, not segment"):
            train(write(scenes=None, earth=earth), tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="set tile_px to its side"):
            train(write(scenes=None, earth=earth, task="multilabel", tile_px=8), tmp_path / "y.safetensors")


class TestRecipes:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"scenes": None}, "either earth"),
            ({"tune": "adapter", "first": 2}, "first is for tune first_n"),
            ({"task": "classify", "head": "fcn"}, "head is for task segment"),
            ({"task": "regress"}, "no values to regress"),
            ({"best_by": "macro_map"}, "not measured with task segment"),
            ({"tune": "lore"}, "tune"),
            ({"augment": {"crop_scale": [1, 0.5]}}, "low to high"),
        ],
    )
    def test_what_does_not_fit_is_named(self, write, changes, problem):
        with pytest.raises(ConfigError, match=problem):
            load_recipe(write(**changes))

    def test_test_pixels_may_not_stand_among_training_pixels(self, folder, write):
        scenes = {**recipe_of(folder)["scenes"], "split": {"method": "random"}, "test": []}
        with pytest.raises(ConfigError, match="method random"):
            load_recipe(write(scenes=scenes))

    def test_a_network_that_is_no_backbone_is_refused(self, write, tmp_path):
        with pytest.raises(ConfigError, match="freenet is no backbone"):
            train(write(backbone="freenet", settings={"in_channels": 79}), tmp_path / "x.safetensors")

    def test_the_recipe_of_the_library_is_one(self):
        path = Path(cubeloom.__file__).parents[1] / "workflows/library/tune_landcover.yaml"
        assert load_recipe(path).kind == "tune"


def test_areas_that_choose_and_test_are_no_training_pixels(folder):
    scenes = recipe_of(folder)["scenes"] | {"test": [], "split": {"block_px": 16, "test_fraction": 0.2, "buffer_px": 0}}
    recipe = TuneRecipe.model_validate(recipe_of(folder, scenes=scenes, tile_px=8))
    data = tune_data(recipe, model_card(recipe.backbone, **recipe.settings))
    area_of = {"train": data.train.areas[0].target != IGNORE}
    labels = sum(
        int((tiles.tile(i)[1] != IGNORE).sum()) for tiles in (data.validation, data.test) for i in range(len(tiles))
    )
    assert labels > 0
    kept = np.isnan(np.where(area_of["train"], 0.0, np.nan))
    assert kept.sum() >= labels
    assert data.counts.sum() == area_of["train"].sum()
