"""Simulated scenes and their truth train a classifier that holds on other simulated scenes."""

import numpy as np
import pytest
import rasterio

from cubeloom.pipeline.functions import classify, mask
from cubeloom.pipeline.readers import open_scene
from cubeloom.pipeline.simulate import simulate_catalog
from cubeloom.pipeline.simulate.cover import CLASSES
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.truth import COLOURS, write_truth_recipe

SMALL = {"n_vnir": 24, "n_swir": 24, "landscapes": ("temperate", "alpine")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    products = simulate_catalog(folder, 2, seed=40, height=96, width=96, **SMALL)
    return write_truth_recipe(products, folder / "train.yaml")


def test_every_simulated_class_has_a_colour_of_its_own():
    assert COLOURS.keys() == set(CLASSES.values())
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_recipe_is_one_that_train_takes(recipe):
    loaded = load_recipe(recipe)
    assert len(loaded.scenes) == 2
    for labelled in loaded.scenes:
        assert labelled.scene.exists()
        with rasterio.open(labelled.labels) as labels:
            assert set(np.unique(labels.read(1)).tolist()) - {0} <= loaded.classes.keys()


def test_what_was_learnt_holds_elsewhere(recipe, tmp_path):
    report = train(recipe, tmp_path / "landcover.skops")
    [unseen] = simulate_catalog(tmp_path, 1, seed=50, height=80, width=80, **SMALL)
    made = classify(mask(open_scene(unseen.path)), model=str(report.path))["classes"].values
    with rasterio.open(unseen.truth_folder / "CLASSES.TIF") as labels:
        truth = labels.read(1)
    known = (made > 0) & (truth > 0)
    commonest = np.bincount(truth[known]).max() / known.sum()
    assert (made == truth)[known].mean() > max(0.4, commonest)
