"""classify maps every valid pixel by its own spectrum alone."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cubeloom.errors import InputError, ModelError
from cubeloom.models.classifiers import Classifier, MapClass
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import spec_of, validate_scene
from cubeloom.pipeline.stages.classify import Classify

CLASSES = (MapClass(1, "low vegetation", "#00aa00"), MapClass(4, "water", "#0000aa"), MapClass(7, "soil", "#aa5500"))


@pytest.fixture
def scene(make_scene):
    return make_scene(height=60, width=50, bands=12, background=9)


@pytest.fixture
def model(scene, tmp_path):
    """A classifier that learned which of three sums of bands is largest."""
    good = scene.good.values
    x = np.nan_to_num(scene.reflectance.values[good, 10:, 10:].reshape(good.sum(), -1).T)
    y = np.array([1, 4, 7])[np.stack([x[:, :3].sum(1), x[:, 3:6].sum(1), x[:, 6:9].sum(1)]).argmax(axis=0)]
    assert np.unique(y).size == 3
    path = tmp_path / "model.skops"
    classifier = Classifier(
        estimator=LogisticRegression(C=100, max_iter=1000).fit(x, y),
        classes=CLASSES,
        wavelengths=scene.wavelength.values[good],
        fwhm=scene.fwhm.values[good],
        variable="reflectance",
        units="1",
    )
    classifier.save(path)
    return classifier, str(path)


def test_the_map_is_the_classifiers(scene, model):
    classifier, path = model
    made = lift(Classify(model=path))(scene).compute()
    validate_scene(made)
    valid = scene.quality.values != 1
    expected = classifier.estimator.predict_proba(scene.reflectance.values[scene.good.values][:, valid].T)
    np.testing.assert_allclose(made.probability.values[:, valid].T, expected, atol=1e-6)
    np.testing.assert_array_equal(made.classes.values[valid], classifier.estimator.classes_[expected.argmax(axis=1)])
    ordered = np.sort(expected, axis=1)
    np.testing.assert_allclose(made.confidence.values[valid], ordered[:, -1] - ordered[:, -2], atol=1e-6)
    assert (made.classes.values[~valid] == 0).all()
    assert np.isnan(made.probability.values[:, ~valid]).all()
    assert np.isnan(made.confidence.values[~valid]).all()
    spread = -(expected * np.log(expected)).sum(axis=1) / np.log(3)
    np.testing.assert_allclose(made.entropy.values[valid], spread, atol=1e-5)
    assert np.isnan(made.entropy.values[~valid]).all()
    assert made["class"].values.tolist() == made.classes.attrs["flag_values"] == [1, 4, 7]
    assert made.classes.attrs["flag_meanings"] == "low_vegetation water soil"
    assert made.classes.attrs["class_colours"] == ["#00aa00", "#0000aa", "#aa5500"]
    assert made.attrs["subject"] == "reflectance"


def test_missing_bands_are_interpolated_up_to_a_half(scene, model):
    _, path = model
    cube = scene.reflectance.values.copy()
    cube[3, 20, 20] = np.nan
    cube[:7, 21, 21] = np.nan
    filled = cube.copy()
    w = scene.wavelength.values
    share = (w[3] - w[2]) / (w[4] - w[2])
    filled[3, 20, 20] = cube[2, 20, 20] * (1 - share) + cube[4, 20, 20] * share
    maps = [
        lift(Classify(model=path))(scene.assign(reflectance=scene.reflectance.copy(data=c))).compute()
        for c in (cube, filled)
    ]
    np.testing.assert_allclose(maps[0].probability[:, 20, 20], maps[1].probability[:, 20, 20], atol=1e-6)
    assert maps[0].classes[21, 21] == 0
    assert np.isnan(maps[0].confidence[21, 21])


def test_another_cube_can_be_named(scene, model):
    _, path = model
    flipped = scene.assign(other=scene.reflectance[:, :, ::-1].variable).assign(reflectance=scene.reflectance)
    made = lift(Classify(model=path, variable="other"))(flipped).compute()
    plain = lift(Classify(model=path))(scene).compute()
    inner = (slice(10, None), slice(10, 40))
    np.testing.assert_array_equal(made.classes.values[inner], plain.classes.values[:, ::-1][inner])
    with pytest.raises(InputError, match="no cube 'denoised'; the scene has reflectance"):
        lift(Classify(model=path, variable="denoised"))(scene)


def test_a_scene_that_does_not_fit_is_refused(scene, model):
    _, path = model
    with pytest.raises(ModelError, match=r"scene-0, classify with .*good bands"):
        lift(Classify(model=path))(scene.isel(band=slice(0, 8)))
    radiance = scene.rename(reflectance="radiance").assign_attrs(measurement="radiance", subject="radiance")
    radiance.radiance.attrs["units"] = "W m-2 sr-1 nm-1"
    with pytest.raises(ModelError, match="units 'W m-2 sr-1 nm-1', the classifier was trained on reflectance in '1'"):
        lift(Classify(model=path))(radiance)


def test_without_a_model_it_says_so_and_changes_nothing(scene):
    stage = Classify()
    assert stage.skipped == "no model given"
    assert stage.plan(spec := spec_of(scene)) is spec


def test_identity_is_the_models_content_not_its_path(scene, model, tmp_path):
    classifier, path = model
    copy = tmp_path / "elsewhere" / "copy.skops"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "model.skops").read_bytes())
    assert Classify(model=str(copy)).fingerprint() == Classify(model=path).fingerprint()
    classifier.save(copy)  # another file, since archives carry times
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert Classify(model=str(copy)).fingerprint() != Classify(model=path).fingerprint()


def test_blocks_of_any_size_give_the_same(scene, model, run_in_blocks):
    _, path = model
    whole = run_in_blocks(scene, Classify(model=path), 64)
    for edge in (11, 32):
        made = run_in_blocks(scene, Classify(model=path), edge)
        for name in ("classes", "probability", "confidence"):
            np.testing.assert_array_equal(made[name], whole[name])


def test_stages_load_neither_scikit_learn_nor_torch():
    """Nor does denoising without a network."""
    code = (
        "import sys, cubeloom.pipeline.stages.classify\n"
        "from cubeloom.pipeline import engine, lift, passes, tiles\n"
        "from cubeloom.pipeline.stages import stage_class\n"
        "stage = stage_class('denoise')(method='subspace')\n"
        "stage.fingerprint(), stage.passes, stage.tiling(None), stage.halo(None)\n"
        "print(sorted({'sklearn', 'skops', 'torch', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
