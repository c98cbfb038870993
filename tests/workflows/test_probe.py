"""Probes against computations of their own, and on features whose answer is known."""

import numpy as np
import pytest
import rasterio
import torch

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.cards import InputBands, read_card
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.scene import spec_of
from cubeloom.workflows.train.fit_head import fit_head
from cubeloom.workflows.train.labels_recipe import ClassOf, PixelSplit
from cubeloom.workflows.train.probe import (
    dense_predict,
    dense_probe,
    knn_probe,
    linear_probe,
    pixel_features,
    probe_scores,
)


def clouds(n=90, seed=0, spread=0.3):
    """Three directions with noise, of lengths that differ much."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, n)
    centres = np.random.default_rng(9).normal(size=(3, 12))
    features = centres[labels] + draw.normal(0, spread, (n, 12))
    return features * draw.uniform(0.1, 10, (n, 1)), labels


def test_neighbours_are_those_of_the_largest_cosine():
    (known, labels), (queries, _) = clouds(seed=1, spread=1.5), clouds(20, seed=2, spread=1.5)
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        known / np.linalg.norm(known, axis=1, keepdims=True)
    ).T
    nearest = labels[np.argsort(-cosine, axis=1)[:, :5]]
    expected = [np.bincount(row, minlength=3).argmax() for row in nearest]
    assert knn_probe(known, labels, queries, k=5).tolist() == expected


def test_more_neighbours_than_there_are_are_all():
    known, labels = clouds(9)
    assert set(knn_probe(known, labels, known, k=50)) == {np.bincount(labels).argmax()}


def test_a_linear_probe_does_not_depend_on_the_features_units():
    features, labels = clouds()
    one = linear_probe(features, labels).predict(features)
    other = linear_probe(features * np.geomspace(1e-3, 1e3, 12) + 7, labels).predict(
        features * np.geomspace(1e-3, 1e3, 12) + 7
    )
    assert (one == other).all()


def test_scores_of_features_that_tell_all_and_of_those_that_tell_nothing():
    told = probe_scores(clouds(seed=3), clouds(seed=4))
    assert told["knn"]["overall_accuracy"] > 0.95
    assert told["linear"]["macro_f1"] > 0.7
    draw = np.random.default_rng(0)
    noise = [(draw.normal(size=(200, 5)), np.arange(200) % 2) for _ in range(2)]
    assert all(abs(found["kappa"]) < 0.3 for found in probe_scores(*noise).values())


def test_a_dense_probe_labels_pixels_by_coarse_features():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 2, (3, 10, 12))
    maps = [draw.normal(0, 0.1, (4, 10, 12)) + np.stack([one, 1 - one, one * 0, one * 0]) for one in coarse]
    truth = [np.kron(one, np.ones((4, 4), int)) + 1 for one in coarse]
    partly = [np.where(draw.random(one.shape) < 0.1, one, 0) for one in truth]
    probe = dense_probe(maps[:2], partly[:2])
    found = dense_predict(probe, maps[2], truth[2].shape)
    centres = np.s_[1::4, 1::4]  # where interpolation mixes least
    assert (found[centres] == truth[2][centres]).mean() > 0.9
    assert set(np.unique(found)) == {1, 2}


def test_a_dense_probe_learns_from_so_many_pixels_of_a_class():
    labels = np.ones((20, 20), int)
    labels[:2] = 2
    features = np.stack([labels * 1.0, labels * -1.0])
    few = dense_probe([features], [labels], per_class=10)
    assert few[0].n_samples_seen_ == 20
    assert (dense_predict(few, features, (20, 20)) == labels).all()


def test_features_of_pixels_keep_linear_ramps():
    ramp = np.arange(8.0)[None, :, None] * np.ones((1, 8, 8))
    fine = pixel_features(ramp, (32, 32))[0]
    expected = (np.arange(32) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(fine[2:-2, 5], expected[2:-2], atol=1e-5)
    assert pixel_features(ramp, (8, 8)).dtype == np.float32


def test_what_cannot_be_probed_is_refused():
    features, labels = clouds()
    with pytest.raises(InputError, match=r"expected \(n, C\)"):
        linear_probe(features, labels[:-1])
    with pytest.raises(InputError, match="not finite"):
        knn_probe(np.full((3, 2), np.nan), np.arange(3), np.ones((1, 2)))
    with pytest.raises(InputError, match="alone"):
        linear_probe(features, np.ones_like(labels))
    with pytest.raises(ConfigError, match="k is 0"):
        knn_probe(features, labels, features, k=0)


BANDS = 80


@pytest.fixture
def labelled(make_scene, tmp_path):
    """A scene of patches of 8 px with one of three spectra, their map, and a backbone for its bands."""
    scene = make_scene(height=72, width=60, bands=BANDS, background=9)
    draw = np.random.default_rng(5)
    truth = np.kron(draw.choice([1, 3, 8], (9, 8)), np.ones((8, 8), np.uint8))[:, :60]
    spectra = draw.uniform(0.1, 0.5, (9, BANDS))
    cube = spectra[truth].transpose(2, 0, 1) + draw.normal(0, 0.03, (BANDS, 72, 60))
    cube[:, :9, :9] = np.nan
    scene = scene.assign(reflectance=scene.reflectance.copy(data=cube.astype(np.float32)))
    grid = spec_of(scene).grid
    profile = {"driver": "GTiff", "height": 72, "width": 60, "count": 1, "dtype": "uint8", "crs": str(grid.crs)}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile, transform=grid.affine) as raster:
        raster.write(np.where(draw.random(truth.shape) < 0.7, truth, 0).astype(np.uint8), 1)
    bands = InputBands(
        numbers=tuple(range(1, BANDS + 1)),
        wavelengths_nm=tuple(scene.wavelength.values.tolist()),
        fwhm_nm=tuple(scene.fwhm.values.tolist()),
    )
    torch.manual_seed(0)
    card = model_card("spectral_vit_nano", image_size=32).model_copy(
        update={"bands": BANDS, "input_bands": bands, "mean": (0.3,) * BANDS, "std": (0.1,) * BANDS}
    )
    save_model(create_model("spectral_vit_nano", image_size=32), tmp_path / "backbone.safetensors", card)
    return scene, truth, tmp_path


def test_a_head_is_fitted_saved_and_does_what_the_probe_did(labelled):
    scene, truth, folder = labelled
    out = folder / "spectral_segmenter.fitted.safetensors"
    backbone = {"model": "spectral_vit_nano", "weights": str(folder / "backbone.safetensors")}
    names = {1: "water", 2: "nowhere", 3: "forest", 8: ClassOf(name="soil", colour="#AA5500")}
    split = PixelSplit(block_px=8, test_fraction=0.2, buffer_px=0)
    card = fit_head(scene, folder / "labels.tif", names, **backbone, out=out, split=split)
    assert card == read_card(folder / "spectral_segmenter.fitted.card.json")
    assert [(one.value, one.name) for one in card.classes] == [(1, "water"), (3, "forest"), (8, "soil")]
    assert card.metrics["overall_accuracy"] > 0.6
    network = create_model("spectral_segmenter", out)
    encoder = create_model("spectral_vit_nano", backbone["weights"])
    torch.testing.assert_close(network.encoder.state_dict(), encoder.state_dict())
    cube, _ = BandInput.of(card, spec_of(scene).bands).prepared(scene.reflectance.values, np.ones((72, 60), bool))
    with torch.inference_mode():
        mapped = network(torch.from_numpy(cube[:, 32:64, 16:48])[None])[0].argmax(0).numpy()
    values = np.array([one.value for one in card.classes])
    assert (values[mapped] == truth[32:64, 16:48]).mean() > 0.7


def test_two_classes_are_the_sign_of_one_score(labelled):
    scene, truth, folder = labelled
    with rasterio.open(folder / "labels.tif", "r+") as raster:
        raster.write(np.where(truth == 8, 1, truth).astype(np.uint8), 1)
    out = folder / "spectral_segmenter.two.safetensors"
    backbone = {"model": "spectral_vit_nano", "weights": str(folder / "backbone.safetensors")}
    split = PixelSplit(block_px=8, test_fraction=0.2, buffer_px=0)
    card = fit_head(scene, folder / "labels.tif", {1: "a", 3: "b"}, **backbone, out=out, split=split)
    assert card.settings["num_classes"] == 2
    assert card.metrics["overall_accuracy"] > 0.7


def test_a_head_needs_two_classes_and_a_backbone(labelled):
    scene, _, folder = labelled
    out = folder / "x.safetensors"
    with pytest.raises(ConfigError, match="hsdt_s is no backbone"):
        fit_head(scene, folder / "labels.tif", {1: "a"}, model="hsdt_s.enmap", out=out)
