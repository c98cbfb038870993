"""Training by recipe learns what can be learned, tests on pixels it has not seen, and says what is wrong."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from shapely.geometry import box
from sklearn.metrics import cohen_kappa_score, f1_score

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.classifiers import load_classifier
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.classify import Classify
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.classifier import class_weights
from cubeloom.workflows.train.labels_recipe import LabelledScene, Split
from cubeloom.workflows.train.samples import collect, read_labels
from cubeloom.workflows.train.split import split_samples

NAMES = {1: "water", 3: "forest", 8: "bare soil"}
SIDE = 96


@pytest.fixture
def scene(make_scene):
    """A scene whose patches of 8 px have one of three spectra, and a map of them with unlabelled strips."""
    scene = make_scene(height=SIDE, width=SIDE, bands=10, background=10)
    random = np.random.default_rng(5)
    truth = np.kron(random.choice([1, 3, 8], (SIDE // 8, SIDE // 8), p=[0.2, 0.5, 0.3]), np.ones((8, 8), int))
    spectra = random.uniform(0.1, 0.5, (9, 10))
    cube = spectra[truth].transpose(2, 0, 1) + random.normal(0, 0.06, (10, SIDE, SIDE))
    cube[:, :10, :10] = np.nan
    cube[8] = np.nan
    labels = truth.astype(np.uint8)
    labels[::5] = 0
    return scene.assign(reflectance=scene.reflectance.copy(data=cube.astype(np.float32))), labels


@pytest.fixture
def folder(scene, tmp_path) -> Path:
    """A store, its label raster and a recipe beside them."""
    data, labels = scene
    cubeloom.write_scene(data, tmp_path / "scene.zarr")
    write_labels(tmp_path / "labels.tif", labels, spec_of(data).grid)
    write_recipe(tmp_path)
    return tmp_path


def write_labels(path: Path, labels: np.ndarray, grid) -> None:
    profile = {"driver": "GTiff", "height": labels.shape[0], "width": labels.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=str(grid.crs), transform=grid.affine) as raster:
        raster.write(labels, 1)


def write_recipe(folder: Path, **changes) -> Path:
    recipe = {
        "kind": "classifier",
        "scenes": [{"scene": "scene.zarr", "labels": "labels.tif"}],
        "classes": {value: {"name": name} for value, name in NAMES.items()},
        "split": {"method": "blocks", "block_px": 8, "test_fraction": 0.3, "seed": 1},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


ESTIMATORS = {
    "logistic": {"type": "logistic", "search": {"C": [0.1, 1]}},
    "lda": {"type": "lda", "pca": 5},
    "svm": {"type": "svm", "search": {"C": [1, 10]}},
    "forest": {"type": "random_forest", "params": {"n_estimators": 20}},
    "rotated": {"type": "rotated_forests", "params": {"rotation": "pca", "forests": 4, "trees": 5}},
    "boosting": {"type": "hist_gradient_boosting", "params": {"max_iter": 8, "max_leaf_nodes": 8}},
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_learns_and_its_map_agrees_with_its_report(folder, scene, estimator):
    data, labels = scene
    report = train(write_recipe(folder, estimator=estimator), folder / "model.skops")
    assert report.metrics["overall_accuracy"] > 0.85
    assert report.sha256 == load_classifier(report.path).sha256
    assert set(report.parameters) >= set(estimator.get("search", {}))
    classes = lift(Classify(model=str(report.path)))(data).compute().classes.values
    recipe = load_recipe(folder / "recipe.yaml")
    samples = collect(recipe.scenes, [], None, NAMES)
    test = split_samples(samples, recipe.split).test
    truth, mapped = (image[samples.row[test], samples.col[test]] for image in (labels, classes))
    assert np.mean(truth == mapped) == pytest.approx(report.metrics["overall_accuracy"], abs=5e-3)
    assert cohen_kappa_score(truth, mapped) == pytest.approx(report.metrics["kappa"], abs=1e-2)
    expected = f1_score(truth, mapped, labels=list(NAMES), average=None)
    assert list(report.metrics["f1"].values()) == pytest.approx(expected.tolist(), abs=1e-2)
    assert np.sum(report.metrics["confusion"]) == test.sum()
    assert "overall accuracy" in str(report)
    assert "bare soil" in str(report)


def test_samples_are_the_valid_labelled_pixels(folder, scene):
    data, labels = scene
    samples = collect(load_recipe(folder / "recipe.yaml").scenes, [], None, NAMES)
    wanted = (labels > 0) & (data.quality.values != 1)
    assert samples.labels.size == wanted.sum()
    np.testing.assert_array_equal(samples.labels, labels[samples.row, samples.col])
    cube = data.reflectance.values[data.good.values]
    np.testing.assert_allclose(samples.spectra, cube[:, samples.row, samples.col].T, atol=0.6e-4)
    assert samples.bands.good.all()


@pytest.mark.parametrize("method", ["blocks", "tiles"])
@pytest.mark.parametrize("buffer", [0, 1, 3, 11])
def test_training_pixels_keep_their_distance(folder, method, buffer):
    samples = collect(load_recipe(folder / "recipe.yaml").scenes, [], None, NAMES)
    parts = split_samples(samples, Split(method=method, block_px=24 if buffer > 3 else 8, buffer_px=buffer, seed=3))
    assert not (parts.train & parts.test).any()
    train_at, test_at = (np.stack([samples.row[p], samples.col[p]], axis=1) for p in (parts.train, parts.test))
    nearest = min(np.abs(test_at - place).max(axis=1).min() for place in train_at)
    assert nearest > buffer
    shares = [np.mean(samples.labels[parts.test] == value) / np.mean(samples.labels == value) for value in NAMES]
    assert np.allclose(shares, 1, atol=0.6)


def test_swapping_tiles_swaps_test_and_training(folder):
    samples = collect(load_recipe(folder / "recipe.yaml").scenes, [], None, NAMES)
    one, other = (
        split_samples(samples, Split(method="tiles", block_px=24, buffer_px=0, swap=swap)) for swap in (False, True)
    )
    np.testing.assert_array_equal(one.train, other.test)
    np.testing.assert_array_equal(one.test, other.train)


def test_training_again_gives_the_same_model(folder):
    recipe = write_recipe(folder, estimator=ESTIMATORS["forest"])
    models = [load_classifier(train(recipe, folder / f"{name}.skops").path) for name in "ab"]
    spectra = np.random.default_rng(0).random((50, models[0].wavelengths.size), np.float32)
    np.testing.assert_array_equal(models[0].predict(spectra), models[1].predict(spectra))
    assert models[0].metrics == models[1].metrics


def test_no_class_takes_more_pixels_than_allowed(folder):
    report = train(write_recipe(folder, max_per_class=50), folder / "m.skops")
    assert report.metrics["train_pixels"] == 150
    assert report.metrics["overall_accuracy"] > 0.8


def test_steps_run_before_sampling(folder, scene):
    path = write_recipe(folder, steps=[{"select_bands": {"detector": "vnir"}}])
    assert load_classifier(train(path, folder / "m.skops").path).wavelengths.max() < 1500


def test_two_scenes_are_joined(folder, scene):
    data, _ = scene
    shifted = data.assign_coords(wavelength=data.wavelength + 0.4)
    cubeloom.write_scene(shifted, folder / "second.zarr")
    both = [{"scene": f"{name}.zarr", "labels": "labels.tif"} for name in ("scene", "second")]
    samples = collect(load_recipe(write_recipe(folder, scenes=both)).scenes, [], None, NAMES)
    half = samples.labels.size // 2
    np.testing.assert_array_equal(samples.spectra[:half], samples.spectra[half:])
    assert set(samples.scene[:half]) == {0}
    assert set(samples.scene[half:]) == {1}
    assert np.unique(split_samples(samples, Split(method="blocks", block_px=8)).block).size > (SIDE // 8) ** 2


def test_polygons_and_points_are_burnt_by_value_or_name(folder, scene):
    data, _ = scene
    grid = spec_of(data).grid
    polygon = box(*(grid.affine * (20, 30)), *(grid.affine * (25, 33)))
    from shapely.geometry import Point

    shapes = [polygon, Point(*(grid.affine * (40.5, 50.5)))]
    for column, values in (("name", ["forest", "water"]), ("code", [3, 1])):
        path = folder / f"{column}.gpkg"
        table = geopandas.GeoDataFrame({column: values}, geometry=shapes, crs=str(grid.crs))
        table.to_crs("EPSG:4326").to_file(path)
        burnt = read_labels(LabelledScene(scene="x", labels=path, field=column), grid, NAMES)
        expected = np.zeros((SIDE, SIDE), np.uint8)
        expected[30:33, 20:25] = 3
        expected[50, 40] = 1
        np.testing.assert_array_equal(burnt, expected)
    with pytest.raises(InputError, match=r"set field to the attribute of the class; found None, it has \['code'\]"):
        read_labels(LabelledScene(scene="x", labels=path), grid, NAMES)
    with pytest.raises(InputError, match="code holds 3, not among"):
        read_labels(LabelledScene(scene="x", labels=path, field="code"), grid, {1: "water"})


def test_labels_off_the_grid_or_of_no_class_are_named(folder, scene):
    data, _ = scene
    grid = spec_of(data).grid
    with pytest.raises(InputError, match="not on the scene's grid"):
        read_labels(LabelledScene(scene="x", labels=folder / "labels.tif"), grid.pad(1), NAMES)
    with pytest.raises(InputError, match=r"values \[8\] are not among the recipe's classes \[1, 3\]"):
        read_labels(LabelledScene(scene="x", labels=folder / "labels.tif"), grid, {1: "a", 3: "b"})
    with pytest.raises(InputError, match=r"nowhere\.tif: no such file"):
        read_labels(LabelledScene(scene="x", labels=folder / "nowhere.tif"), grid, NAMES)


def test_a_class_without_test_pixels_is_an_error(folder, scene):
    data, labels = scene
    rare = np.where(labels == 8, 0, labels)
    rare[26:30, 26:30] = 8
    write_labels(folder / "labels.tif", rare, spec_of(data).grid)
    split = {"method": "tiles", "block_px": 24}
    with pytest.raises(InputError, match=r"no test pixel of class \[8\] with split tiles of 24 px squares"):
        train(write_recipe(folder, split=split), folder / "m.skops")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "painter"}, "expected a recipe with kind: classifier or .*, found 'painter'"),
        ({"estimatr": {}}, "unknown key 'estimatr'; did you mean 'estimator'"),
        ({"classes": {1: {"name": "a"}, 3: {"name": "a"}}}, "class names must differ"),
        ({"estimator": {"params": {"depth": 3}}}, "estimator logistic: .*unexpected keyword argument 'depth'"),
        ({"estimator": {"search": {"depth": [3]}}}, "estimator logistic: Invalid parameter 'depth'"),
        ({"steps": ["destrip"]}, "unknown stage 'destrip'"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(write_recipe(folder, **changes), folder / "m.skops")


def test_the_file_name_and_the_recipe_are_checked_first(folder):
    with pytest.raises(ConfigError, match=r"saved as \.skops"):
        train(folder / "recipe.yaml", folder / "model.pkl")
    with pytest.raises(ConfigError, match="no such recipe"):
        train(folder / "none.yaml", folder / "model.skops")


def test_weights_go_from_pixels_to_classes():
    labels = np.repeat([1, 2], [90, 10]).astype(np.uint8)
    totals = {b: [class_weights(labels, b)[labels == v].sum() for v in (1, 2)] for b in (0, 0.5, 1)}
    assert totals[0] == pytest.approx([90, 10])
    assert totals[0.5][0] / totals[0.5][1] == pytest.approx(3)
    assert totals[1] == pytest.approx([50, 50])


def test_the_example_recipe_is_valid():
    library = Path(__file__).parents[2] / "workflows" / "library"
    recipe = load_recipe(library / "train_landcover.yaml")
    assert recipe.split.method == "blocks"
    assert recipe.scenes[0].scene == library / "SCENE"


@pytest.mark.shared
@pytest.mark.parametrize("swap", [False, True])
def test_land_cover_of_real_tiles(shared_data, tmp_path, swap):
    """Whole tiles apart; both directions, six classes. The most frequent class alone would give 0.40."""
    product = next((shared_data / "enmap_potsdam_product").glob("ENMAP*"))
    recipe = yaml.safe_load((Path(__file__).parents[2] / "workflows/library/train_landcover.yaml").read_text())
    recipe["scenes"] = [{"scene": str(product), "labels": str(product.parent / "labels.tif")}]
    recipe["split"] = {"method": "tiles", "block_px": 32, "swap": swap}
    recipe["estimator"] = {"type": "logistic", "params": {"C": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report = train(tmp_path / "recipe.yaml", tmp_path / "model.skops")
    assert report.metrics["overall_accuracy"] > 0.68
    assert report.metrics["macro_f1"] > 0.55
