"""Classifiers learn from the same pixels and are judged on the same others, and the tables say what was found."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
import yaml
from sklearn.metrics import cohen_kappa_score, f1_score, jaccard_score

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import CardClass
from cubeloom.pipeline.scene import Bands, spec_of
from cubeloom.workflows.evaluate.class_cnn import padded
from cubeloom.workflows.evaluate.class_figure import write_class_figure
from cubeloom.workflows.evaluate.class_files import read_labelled
from cubeloom.workflows.evaluate.class_methods import METHODS, parse_columns, usable_bands
from cubeloom.workflows.evaluate.class_pixels import box_mean, grouped_folds, squares
from cubeloom.workflows.evaluate.class_splits import OPTIMISTIC, SplitOptions, divide, parse_splits
from cubeloom.workflows.evaluate.class_tables import class_markdown
from cubeloom.workflows.evaluate.classify import evaluate_classify, judge
from cubeloom.workflows.evaluate.environment import measured
from cubeloom.workflows.evaluate.output import write_pages
from cubeloom.workflows.train.labelled import labelled_image

BANDS = 80
NAMES = ("meadow", "forest", "soil")
COLOURS = ("#a2cf6e", "#14532d", "#9c6b4a")
EVERY = (
    "random_forest+trees=20+search=false",
    "rotated_forests+trees=20+forests=4+rotation=sparse+search=false",
    "svm+pca=8+mean=3+derivative",
    "cnn1d+steps=60",
    "cnn2d+steps=60+patch=5+width=16",
    "freenet+steps=30+width=0.25+learning_rate=0.02",
    "adapter+tune=frozen+head=linear+steps=30+tile_px=16+settings.image_size=16+batch=2+learning_rate=0.02",
    "adapter+tune=full+steps=12+tile_px=16+settings.image_size=16+batch=2",
    "probe+tile_px=16+settings.image_size=16+settings.patch_size=2",
)


def field(seed=0, height=40, width=44, noise=0.1):
    """Plots of 8 px with one of three smooth spectra, brightness and noise; half of the pixels are labelled."""
    rng = np.random.default_rng(seed)
    plots = rng.permuted(np.arange(height // 8 * -(-width // 8)) % 3).reshape(height // 8, -1)
    truth = np.kron(plots, np.ones((8, 8), int))[:height, :width]
    wavelength = np.linspace(420, 2450, BANDS)
    spectra = np.stack(
        [0.4 + 0.15 * np.sin(wavelength / 300 + k) + 0.1 * np.cos(wavelength / 150 * (1 + k)) for k in range(3)]
    )
    cube = np.moveaxis(spectra[truth], -1, 0) * rng.normal(1, 0.15, truth.shape)
    cube += rng.normal(0, noise, cube.shape)
    cube[40] = np.nan  # a band without data, marked so
    valid = np.ones(truth.shape, bool)
    valid[:4, :6] = False
    return labelled_image(
        "field",
        cube,
        np.where(rng.random(truth.shape) < 0.5, truth + 1, 0),
        tuple(CardClass(value=k, name=n, colour=c) for k, n, c in zip((1, 2, 3), NAMES, COLOURS, strict=True)),
        valid=valid,
        bands=Bands(
            number=np.arange(1, BANDS + 1),
            wavelength=wavelength,
            fwhm=np.full(BANDS, 25.0),
            detector=np.full(BANDS, ""),
            good=np.arange(BANDS) != 40,
            preferred=np.arange(BANDS) != 3,
        ),
    )


@pytest.fixture(scope="module")
def image():
    return field()


@pytest.fixture(scope="module")
def evaluation(image):
    """All methods, one run each."""
    splits = parse_splits("blocks", SplitOptions(seeds=1, block_px=8, per_class=60))
    return evaluate_classify([image], parse_columns(",".join(EVERY)), splits)


@pytest.fixture(scope="module")
def repeated(image):
    """Three runs of two quick methods."""
    columns = parse_columns("random_forest+trees=5+search=false,cnn1d+steps=5")
    return evaluate_classify([image], columns, parse_splits("random,tiles", SplitOptions(seeds=3, block_px=8)))


# --- methods


def test_every_method_does_clearly_better_than_chance(evaluation):
    assert {re.split(r"[+:]", name)[0] for name in EVERY} == set(METHODS)
    for score in evaluation.scores:
        assert not score.error
        assert score.overall_accuracy > 0.6, (score.method, score.split)
        assert score.kappa > 0.35, (score.method, score.split)


@pytest.mark.parametrize("number", range(len(EVERY)), ids=[name.split("+")[0] for name in EVERY])
def test_labels_of_test_pixels_change_no_map(evaluation, image, number):
    column = evaluation.columns[number]
    [division] = evaluation.divisions["field"]["blocks"]
    [before] = [one for one in evaluation.pictures if (one.split, one.method) == ("blocks", column.name)]
    changed = replace(image, labels=np.where(division.test, image.labels % 3 + 1, image.labels).astype(np.uint8))
    score, after = judge(column, changed, "blocks", division)
    np.testing.assert_array_equal(after, before.classes)
    assert score.overall_accuracy < 0.5


def test_measures_are_those_of_the_maps_at_the_test_pixels(evaluation, image):
    for picture in evaluation.pictures:
        [score] = evaluation.of("field", picture.split, picture.method)
        [division] = evaluation.divisions["field"][picture.split]
        assert not (division.train & division.test).any()
        truth, mapped = image.labels[division.test], picture.classes[division.test]
        assert score.overall_accuracy == pytest.approx((truth == mapped).mean())
        assert score.kappa == pytest.approx(cohen_kappa_score(truth, mapped))
        assert score.macro_f1 == pytest.approx(f1_score(truth, mapped, average="macro"))
        assert score.macro_iou == pytest.approx(jaccard_score(truth, mapped, average="macro"))
        counts = [[((truth == true) & (mapped == made)).sum() for made in (1, 2, 3)] for true in (1, 2, 3)]
        np.testing.assert_array_equal(score.confusion, counts)


def test_a_map_of_patches_is_what_each_patch_gives(image):
    [column] = parse_columns("cnn2d+steps=3+patch=7+width=8")
    mapper = column.method.fit(image, image.labels > 0, 0)
    mapped = mapper.map(image)
    patches = torch.from_numpy(padded(image, 3)).unfold(1, 7, 1).unfold(2, 7, 1)
    for row, col in ((0, 0), (13, 21), (39, 43), (31, 7), (32, 8)):  # corners, and both sides of a strip's end
        with torch.inference_mode():
            alone = mapper.network(patches[None, :, row, col])[0, :, 0, 0].softmax(0)
        np.testing.assert_allclose(mapped[:, row, col], alone, atol=1e-5)
    np.testing.assert_allclose(mapped.sum(axis=0), 1, atol=1e-5)


def test_a_support_vector_machine_maps_what_it_predicts(image):
    [column] = parse_columns("svm+shape+search=false")
    mapper = column.method.fit(image, image.labels > 0, 0)
    found = mapper.map(image)[:, image.valid].argmax(axis=0) + 1
    np.testing.assert_array_equal(found, mapper.estimator.predict(column.method.features(image, image.valid)))


def test_features_take_good_and_preferred_bands_and_means_of_valid_pixels(image):
    kept = usable_bands(image)
    assert set(range(BANDS)) - set(kept) == {3, 40}
    means = box_mean(image.cube[kept], image.valid, 3)
    for row, col in ((0, 6), (4, 3), (20, 20), (39, 43)):
        about = np.s_[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        expected = image.cube[kept][:, *about][:, image.valid[about]].mean(axis=1)
        np.testing.assert_allclose(means[:, row, col], expected, rtol=1e-4)


def test_folds_of_a_search_keep_squares_whole(image):
    train = image.labels > 0
    groups = squares(train)
    row, col = np.nonzero(train)
    assert np.unique(groups).size == len({(r // 16, c // 16) for r, c in zip(row, col, strict=True)}) == 9
    corner = np.zeros_like(train)
    corner[:18, :18] = train[:18, :18]
    assert np.unique(squares(corner)).size == 9, "squares of 8 px, where those of 16 px are too few"
    folds = grouped_folds(image.labels[train], groups, 0)
    held = np.concatenate([fold for _, fold in folds])
    assert sorted(held) == list(range(groups.size))
    for fit, fold in folds:
        assert not set(groups[fit]) & set(groups[fold])


def test_a_search_finds_what_fits(image):
    """A narrow kernel tells nothing of pixels it has not seen; the search on training pixels knows it."""
    [column] = parse_columns("svm")
    train = (image.labels > 0) & (np.random.default_rng(0).random(image.shape) < 0.3)
    mapper = column.method.fit(image, train, 0)
    assert mapper.details["search_score"] > 0.9
    assert mapper.details in [
        {**one, "search_score": mapper.details["search_score"]} for one in column.method.candidates()
    ]


# --- splits


def test_splits_are_named_for_what_they_show(image):
    groups = parse_splits("random,blocks,tiles", SplitOptions(seeds=2, block_px=8, buffer_px=2, per_class=30))
    assert [group.apart for group in groups] == [False, True, True]
    assert groups[0].label.startswith(OPTIMISTIC)
    assert all(group.label.startswith("spatially disjoint") for group in groups[1:])
    divisions = divide(image, groups)
    for group in groups:
        for division in divisions[group.name]:
            assert not (division.train & division.test).any()
            assert all((division.train & (image.labels == value)).sum() <= 30 for value in (1, 2, 3))
    for division in divisions["blocks"] + divisions["tiles"]:
        held = {(r // 8, c // 8) for r, c in zip(*np.nonzero(division.test), strict=True)}
        assert not held & {(r // 8, c // 8) for r, c in zip(*np.nonzero(division.train), strict=True)}


def tiles_of_all_classes(image, start):
    """Three test tiles of 8 px, one a class, from a place in the row-major order on."""
    found = {}
    for row in range(image.shape[0] // 8):
        for col in range(image.shape[1] // 8):
            labels = image.labels[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            if row * 5 + col >= start:
                found.setdefault(int(labels.max()), [row, col])
    return list(found.values())


def test_a_file_lists_test_tiles(image, tmp_path):
    path = tmp_path / "mine.yaml"
    tiles = {"s1": tiles_of_all_classes(image, 0), "s2": tiles_of_all_classes(image, 12)}
    assert tiles["s1"] != tiles["s2"]
    path.write_text(yaml.safe_dump({"tile_px": 8, "splits": [{"name": n, "test": t} for n, t in tiles.items()]}))
    [group] = parse_splits(str(path), SplitOptions(seeds=1, buffer_px=0))
    assert group.apart
    assert "tiles of 8 px listed in mine.yaml" in group.label
    divisions = divide(image, [group])["mine"]
    assert [division.trial.name for division in divisions] == ["s1", "s2"]
    for division, listed in zip(divisions, tiles.values(), strict=True):
        inside = np.zeros(image.shape, bool)
        for row, col in listed:
            inside[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = True
        np.testing.assert_array_equal(division.test, inside & (image.labels > 0))
        np.testing.assert_array_equal(division.train, ~inside & (image.labels > 0))
    [repeated] = parse_splits(str(path), SplitOptions(seeds=2))
    assert [trial.name for trial in repeated.trials] == ["s1, seed 0", "s1, seed 1", "s2, seed 0", "s2, seed 1"]


# --- output


def test_means_and_spreads_are_over_the_runs(repeated):
    name = repeated.columns[1].name
    values = [score.macro_f1 for score in repeated.scores if (score.split, score.method) == ("tiles", name)]
    mean = repeated.mean("macro_f1", "field", "tiles", name)
    assert (mean.mean, mean.spread, mean.runs) == (np.mean(values), np.std(values, ddof=1), 3)
    assert mean.spread > 0
    counts = repeated.confusion("field", "tiles", name)
    assert counts.sum() == sum(division.test.sum() for division in repeated.divisions["field"]["tiles"])


def test_tables_say_what_the_json_says(repeated, tmp_path):
    def draw(path):
        write_class_figure(repeated, path)

    results, table, figure = write_pages(tmp_path, repeated.to_json(), class_markdown(repeated), draw)
    numbers, page = json.loads(results.read_text()), table.read_text()
    assert f"**{OPTIMISTIC}" in page
    sections = dict(re.findall(r"^## field: (\w+)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == {"random", "tiles"}
    for one in numbers["means"]:
        rows = [line for line in sections[one["split"]].splitlines() if line.startswith(f"| {one['method']} |")]
        [cells] = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in rows]
        for cell, metric in zip(cells[1:5], ("overall_accuracy", "average_accuracy", "kappa", "macro_f1"), strict=True):
            mean, spread = (float(part.strip(" *")) for part in cell.split("±"))
            assert mean == pytest.approx(100 * one[metric]["mean"], abs=0.00501)
            assert spread == pytest.approx(100 * one[metric]["spread"], abs=0.00501)
    forest = numbers["methods"][0]["name"]
    of_class = [score["f1"][2] for score in numbers["scores"] if (score["split"], score["method"]) == ("tiles", forest)]
    [row] = [line for line in sections["tiles"].splitlines() if line.startswith("| soil |")]
    assert float(row.split("|")[4].strip(" *").split()[0].strip("*")) == pytest.approx(
        100 * np.mean(of_class), abs=0.00501
    )
    with rasterio.open(figure) as picture:
        pixels = picture.read()
    assert min(pixels.shape[1:]) > 800
    for colour in COLOURS:
        wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])[:, None, None]
        assert (pixels[:3] == wanted).all(axis=0).mean() > 0.01, "no map in this class's colour"


def test_a_training_that_goes_astray_is_a_failure(image, tmp_path):
    splits = parse_splits("random", SplitOptions(seeds=1))
    found = evaluate_classify([image], parse_columns("cnn2d+steps=8+learning_rate=1e30+patch=3+width=4"), splits)
    assert "gives NaN" in found.scores[0].error
    assert found.pictures == []
    results, _, _ = write_pages(tmp_path, found.to_json(), "", lambda path: write_class_figure(found, path))
    assert json.loads(results.read_text())["means"][0]["kappa"] is None


def test_work_is_measured():
    with measured() as cost:
        block = np.ones(8 * 2**20)
        del block
    assert cost.seconds > 0
    if cost.mib is not None:
        assert 60 < cost.mib < 80


# --- what cannot be used


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_florest", r"'random_florest' is not known; did you mean 'random_forest'\?; expected some of"),
        ("svm,svm", "'svm' comes twice"),
        (" , ", "names no method"),
        ("svm+derivate", r"unknown key 'derivate'; did you mean 'derivative'\?"),
        ("svm+pca", "pca: Input should be a valid integer.*found 'true'"),
        ("cnn2d+patch=8", "its edge is odd"),
        ("freenet+step=3", r"unknown key 'step'; did you mean 'steps'\?"),
        ("freenet+augmentation.noise=loud", "augmentation.noise"),
        ("freenet+seed=3", "option 'seed' is for the evaluation to give"),
        ("adapter+scenes.train=x", "option 'scenes' is for the evaluation"),
        ("adapter+tune=some", "tune: Input should be 'frozen', 'adapter'"),
        ("probe:spectral_gpt_base@SpectralGPT+.pth+step=1", r"unknown key 'step'"),
        ("freenet+recipe=nowhere.yaml", "nowhere.yaml: no such recipe"),
    ],
)
def test_wrong_methods_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_columns(text)


def test_wrong_splits_are_refused(image, tmp_path):
    for text, message in (
        ("randon", r"'randon' is not known; did you mean 'random'\?"),
        ("blocks,blocks", "'blocks' comes twice"),
        ("", "names none"),
        (str(tmp_path / "none.yaml"), "no such list of tiles"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_splits(text, SplitOptions())
    with pytest.raises(ConfigError, match="test_fraction"):
        parse_splits("blocks", SplitOptions(test_fraction=1.5))
    soil = np.zeros(image.shape, bool)
    soil[8:16, 8:16] = True
    path = tmp_path / "all.yaml"
    tiles = [[1, 1], *tiles_of_all_classes(image, 0)]
    path.write_text(yaml.safe_dump({"tile_px": 8, "splits": [{"name": "s", "test": tiles}]}))
    uneven = replace(image, labels=np.where(soil, 3, np.where(image.labels == 3, 1, image.labels)).astype(np.uint8))
    with pytest.raises(InputError, match=r"field, s, seed 0: no training pixel of class \[3\]"):
        divide(uneven, parse_splits(str(path), SplitOptions()))
    with pytest.raises(InputError, match="labels of soil; two classes at least"):
        evaluate_classify([replace(image, labels=np.where(image.labels == 3, 3, 0).astype(np.uint8))], [], [])


def test_wrong_sources_are_refused(tmp_path):
    for source, text, message in (
        ("salinos=folder", None, r"'salinos' is no standard scene; did you mean 'salinas'\?"),
        ("cube.mat", None, "expected a YAML file that lists labelled images"),
        ("list.yaml", "- 1", "found list"),
        ("keys.yaml", "{images: [{scene: a, labels: b}], class: {}}", r"unknown key 'class'; did you mean 'classes'\?"),
    ):
        if text is not None:
            (tmp_path / source).write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_labelled([str(tmp_path / source) if source.endswith("yaml") else source])


# --- from the command line


@pytest.fixture
def listed(make_scene, tmp_path):
    """A store and a raster of labels beside it, in a file that lists them."""
    cubeloom.write_scene(make_scene(64, 56, bands=12, background=8), tmp_path / "plain.zarr")
    scene = cubeloom.open_scene(tmp_path / "plain.zarr")
    grid = spec_of(scene).grid
    labels = (np.argmax(scene.reflectance.values[[1, 5, 8]], axis=0) + 1).astype(np.uint8)
    profile = {"driver": "GTiff", "height": 64, "width": 56, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile, crs=grid.crs.to_wkt(), transform=grid.affine) as file:
        file.write(labels, 1)
    path = tmp_path / "images.yaml"
    classes = {value: {"name": name} for value, name in enumerate(NAMES, 1) if (labels == value).any()}
    images = [{"scene": "plain.zarr", "labels": "labels.tif"}]
    path.write_text(yaml.safe_dump({"images": images, "classes": classes, "steps": ["mask"]}))
    return path


def test_a_method_that_cannot_be_used_fails_alone(cli, listed, tmp_path):
    """The spectral adapter needs 75 bands; the forest does not."""
    ended = cli(
        "evaluate", "classify", listed, "--out", tmp_path / "out", "--seeds", 1, "--block", 8, "--splits", "blocks",
        "--methods", "random_forest+trees=10+search=false,adapter+steps=1+tile_px=16", "--json",
    )  # fmt: skip
    assert ended.code == 3, ended.err
    assert "plain, blocks, seed 0, adapter+steps=1+tile_px=16: failed: " in ended.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found == json.loads(ended.out)
    forest, adapter = found["scores"]
    assert forest["overall_accuracy"] > 0.5
    assert adapter["overall_accuracy"] is None
    assert "75 bands" in adapter["error"]
    page = (tmp_path / "out" / "table.md").read_text()
    assert "| adapter+steps=1+tile_px=16 | failed |" in page
    assert "75 bands" in page.partition("## Failed")[2]
    assert found["images"][0]["source"]["labels"] == "labels.tif"


def test_a_training_recipe_lists_images_too(listed, tmp_path):
    said = yaml.safe_load(listed.read_text())
    recipes = {
        "classifier": {"kind": "classifier", "scenes": said["images"], "classes": said["classes"], "steps": ["mask"]},
        "freenet": {"kind": "freenet", "images": said["images"], "classes": said["classes"], "stages": ["mask"]},
        "tune": {"kind": "tune", "scenes": {"train": said["images"], "classes": said["classes"], "steps": ["mask"]}},
    }
    paths = []
    for kind, recipe in recipes.items():
        paths.append(str(tmp_path / f"{kind}.yaml"))
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(recipe))
    images = read_labelled([str(listed), *paths])
    assert [image.name for image in images] == ["plain", "plain 2", "plain 3", "plain 4"]
    for image in images[1:]:
        np.testing.assert_array_equal(image.labels, images[0].labels)
        np.testing.assert_array_equal(image.cube, images[0].cube)
    [column] = parse_columns(f"freenet+recipe={tmp_path / 'freenet.yaml'}+steps=7")
    assert column.label == "freenet+recipe=freenet.yaml+steps=7"
    assert column.method.recipe_of(images[0], 5).steps == 7
