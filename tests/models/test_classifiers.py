"""A classifier comes back from its file as it was saved, and no other file is taken for one."""

import json
import operator
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from skops import io as skops_io

from cubeloom.errors import ModelError
from cubeloom.models.classifiers import CARD, Classifier, MapClass, load_classifier, read_card, spectral_features
from cubeloom.models.forests import RotatedForests

BANDS = 8
WAVELENGTHS = np.linspace(450, 2400, BANDS)
FEATURES = ("spectrum", "shape", "derivative")
ESTIMATORS = {
    "logistic": LogisticRegression(),
    "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "svm": CalibratedClassifierCV(SVC(), ensemble=False, cv=3),
    "forest": RandomForestClassifier(8, random_state=0),
    "rotated": RotatedForests(forests=3, trees=4),
    "boosting": HistGradientBoostingClassifier(max_iter=8, random_state=0),
}


def spectra(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.choice([2, 5, 9], n).astype(np.uint8)
    means = np.random.default_rng(99).uniform(0.1, 0.5, (10, BANDS))
    return (means[labels] + random.normal(0, 0.08, (n, BANDS))).astype(np.float32), labels


def trained(estimator) -> Classifier:
    x, y = spectra()
    return Classifier(
        estimator=make_pipeline(StandardScaler(), estimator).fit(spectral_features(x, WAVELENGTHS, FEATURES), y),
        classes=(MapClass(2, "tree", "#00ff00"), MapClass(5, "water", "#0000ff"), MapClass(9, "roof", "#ff0000")),
        wavelengths=WAVELENGTHS,
        fwhm=np.full(BANDS, 10.0),
        variable="reflectance",
        units="1",
        features=FEATURES,
        metrics={"overall_accuracy": 0.5},
        training={"sources": [{"scene": "a"}]},
    )


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_save_and_load_give_the_same_classifier(tmp_path, kind):
    classifier = trained(ESTIMATORS[kind])
    saved = classifier.save(tmp_path / "m.skops")
    loaded = load_classifier(tmp_path / "m.skops")
    x, y = spectra(700, seed=1)
    probabilities = classifier.predict(x)
    np.testing.assert_array_equal(loaded.predict(x), probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.array([2, 5, 9])[probabilities.argmax(axis=1)] == y).mean() > 0.8
    assert loaded.sha256 == saved.sha256 == read_card(tmp_path / "m.skops")["sha256"]
    assert loaded.card() == json.loads(json.dumps(classifier.card())) | {"features": FEATURES}
    assert load_classifier(tmp_path / "m.skops") is loaded
    assert [path.name for path in tmp_path.iterdir()] == ["m.skops"]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_spectrum_does_not_depend_on_its_neighbours(kind):
    classifier = trained(ESTIMATORS[kind])
    x, _ = spectra(2600, seed=2)
    whole = classifier.predict(x)
    for start, stop in ((0, 1), (1023, 1030), (5, 2111), (2599, 2600)):
        np.testing.assert_array_equal(classifier.predict(x[start:stop]), whole[start:stop])
    assert classifier.predict(x[:0]).shape == (0, 3)


def test_shape_takes_out_illumination_and_derivative_an_offset():
    x, _ = spectra(20)
    np.testing.assert_allclose(
        spectral_features(x * 0.5, WAVELENGTHS, ("shape",)), spectral_features(x, WAVELENGTHS, ("shape",)), rtol=1e-5
    )
    slope = (WAVELENGTHS * 0.002 + 0.3)[None].astype(np.float32)
    np.testing.assert_allclose(spectral_features(slope, WAVELENGTHS, ("derivative",)), 0.2, rtol=1e-5)
    assert np.isfinite(spectral_features(np.zeros((1, BANDS), np.float32), WAVELENGTHS, FEATURES)).all()


def test_a_changed_file_is_loaded_again(tmp_path):
    path = tmp_path / "m.skops"
    trained(ESTIMATORS["logistic"]).save(path)
    first = load_classifier(path)
    replace(trained(ESTIMATORS["lda"]), units="other").save(path)
    assert load_classifier(path).units == "other"
    assert load_classifier(path).sha256 != first.sha256


def test_foreign_types_are_refused_when_saved_and_when_loaded(tmp_path):
    classifier = trained(ESTIMATORS["logistic"])
    x, y = spectra()
    foreign = make_pipeline(FunctionTransformer(operator.pos), LogisticRegression()).fit(x, y)
    with pytest.raises(ModelError, match=r"not trusted: _operator\.pos"):
        replace(classifier, estimator=foreign).save(tmp_path / "m.skops")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "forged.skops"
    path.write_bytes(skops_io.dumps(foreign))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CARD, json.dumps(classifier.card()))
    with pytest.raises(ModelError, match=r"not trusted: _operator\.pos"):
        load_classifier(path)


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_trees_that_would_lead_astray_are_refused(tmp_path, kind):
    classifier = trained(ESTIMATORS[kind])
    last = classifier.estimator.steps[-1][1]
    if kind == "forest":
        last.estimators_[3].tree_.children_left[0] = 10**6
    else:
        last._predictors[2][1].nodes["left"][0] = 0
    classifier.save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match="decision tree in it is damaged"):
        load_classifier(tmp_path / "m.skops")


@pytest.mark.parametrize("harm", ["tree", "matrix", "forest", "classes"])
def test_an_ensemble_that_would_lead_astray_is_refused(tmp_path, harm):
    x, y = spectra()
    ensemble = RotatedForests(forests=2, trees=2).fit(x, y)
    if harm == "tree":
        ensemble.forests_[1].estimators_[0].tree_.children_right[0] = 10**6
    elif harm == "matrix":
        ensemble.matrices_ = ensemble.matrices_[:, :, :-1]
    elif harm == "forest":
        ensemble.forests_[0] = LogisticRegression().fit(x, y)
    else:
        ensemble.classes_ = ensemble.classes_[:2]
    classes = trained(ESTIMATORS["lda"]).classes[: ensemble.classes_.size]
    few = Classifier(ensemble, classes, WAVELENGTHS, np.full(BANDS, 10.0), "reflectance", "1")
    few.save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match=r"in it (is damaged|holds a LogisticRegression|does not agree)"):
        load_classifier(tmp_path / "m.skops")


@pytest.mark.parametrize("harm", ["counts", "coefficients", "intercepts", "features"])
def test_a_support_vector_machine_that_would_lead_astray_is_refused(tmp_path, harm):
    classifier = trained(ESTIMATORS["svm"])
    (calibrated,) = classifier.estimator.steps[-1][1].calibrated_classifiers_
    machine = calibrated.estimator
    if harm == "counts":  # the sum stays, which is all that scikit-learn looks at
        machine._n_support[:2] += np.array([1000, -1000], np.int32)
    elif harm == "coefficients":
        machine._dual_coef_ = machine._dual_coef_[:, :1]
    elif harm == "intercepts":
        machine._intercept_ = machine._intercept_[:1]
    else:
        machine.support_vectors_ = machine.support_vectors_[:, :1]
    classifier.save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match="support vector machine in it is damaged"):
        load_classifier(tmp_path / "m.skops")


def test_estimators_of_other_kinds_are_refused_though_skops_trusts_them(tmp_path):
    """Inside them trees could hide that are not looked at."""
    x, y = spectra()
    inner = spectral_features(x, WAVELENGTHS, FEATURES)
    hidden = OneVsRestClassifier(RandomForestClassifier(2))
    classifier = replace(trained(ESTIMATORS["logistic"]), estimator=make_pipeline(StandardScaler(), hidden))
    classifier.estimator.fit(inner, y)
    classifier.save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match="it holds a OneVsRestClassifier; known are"):
        load_classifier(tmp_path / "m.skops")


def test_an_estimator_that_does_not_suit_its_card_is_refused(tmp_path):
    classifier = trained(ESTIMATORS["logistic"])
    replace(classifier, features=("spectrum",)).save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match=r"does not work .*features"):
        load_classifier(tmp_path / "m.skops")
    classifier.estimator.steps[-1][1].coef_[0, 0] = np.nan
    classifier.save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match=r"for probabilities|does not work"):
        load_classifier(tmp_path / "m.skops")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wavelengths_nm": ["blue"] * BANDS}, "wavelengths_nm"),
        ({"wavelengths_nm": [1e400] * BANDS}, "wavelengths_nm"),
        ({"wavelengths_nm": [*WAVELENGTHS[::-1]]}, "do not ascend"),
        ({"fwhm_nm": [10.0]}, "one fwhm_nm for each"),
        ({"features": ["smell"]}, "features"),
        ({"classes": [{"value": 300, "name": "x", "colour": "#000000"}]}, "1 to 255"),
        ({"classes": 5}, "classes"),
        ({"metrics": None}, "metrics"),
    ],
)
def test_a_damaged_card_is_named(tmp_path, changes, message):
    path = tmp_path / "m.skops"
    card = trained(ESTIMATORS["logistic"]).card() | changes
    path.write_bytes(skops_io.dumps(LogisticRegression()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CARD, json.dumps(card))
    for read in (load_classifier, read_card):
        with pytest.raises(ModelError, match=rf"m.skops: its card is damaged .*{message}"):
            read(path)


def test_other_files_are_refused_with_what_was_expected(tmp_path):
    path = tmp_path / "m.skops"
    with pytest.raises(ModelError, match=r"No such file.*cubeloom train"):
        load_classifier(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"not a classifier saved by Cubeloom.*card\.json"):
        load_classifier(path)
    path.write_bytes(skops_io.dumps(LogisticRegression()))
    with pytest.raises(ModelError, match=r"card\.json"):
        load_classifier(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CARD, json.dumps({"format": "other/7"}))
    with pytest.raises(ModelError, match="format 'other/7', expected 'cubeloom-classifier/1'"):
        load_classifier(path)


def test_classes_that_are_not_the_estimators_are_refused(tmp_path):
    classifier = trained(ESTIMATORS["logistic"])
    replace(classifier, classes=classifier.classes[:2]).save(tmp_path / "m.skops")
    with pytest.raises(ModelError, match="card's classes are not the estimator's"):
        load_classifier(tmp_path / "m.skops")
