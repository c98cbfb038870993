"""Train a classifier of spectra by a recipe, and measure it on pixels it has not seen."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError
from cubeloom.models.classifiers import Classifier, MapClass, spectral_features
from cubeloom.workflows.schema import Workflow

from .recipe import ClassifierRecipe, EstimatorChoice
from .samples import Samples, collect
from .split import Parts, split_samples

SEARCH_FOLDS = 3
FORESTS = ("RandomForestClassifier", "RotatedForests")


@dataclass(frozen=True)
class TrainingReport:
    """What was trained, and how well it did on its test pixels.

    Attributes:
        path: the saved model.
        sha256: digest of that file.
        metrics: overall accuracy, kappa, macro F1, F1 of every class, confusion matrix (rows: truth), counts.
        split: how test pixels were kept apart.
        parameters: the estimator's parameters, those that the search chose included.
    """

    path: Path
    sha256: str
    metrics: Mapping[str, Any]
    split: Mapping[str, Any]
    parameters: Mapping[str, Any]
    exit_code: ClassVar[int] = 0

    def summary(self) -> dict[str, Any]:
        """For a script."""
        scores = {"model": self.path, "sha256": self.sha256, "metrics": self.metrics, "split": self.split}
        return {**scores, "parameters": self.parameters}

    def __str__(self) -> str:
        """A table for a terminal."""
        m = self.metrics
        head = (
            f"{self.path}  sha256 {self.sha256[:12]}\n"
            f"split {self.split['method']}: {m['train_pixels']} training and {m['test_pixels']} test pixels\n"
            f"overall accuracy {m['overall_accuracy']:.3f}  kappa {m['kappa']:.3f}  macro F1 {m['macro_f1']:.3f}"
        )
        width = max(len(name) for name in m["f1"])
        return "\n".join([head, *(f"  {name:<{width}}  F1 {value:.3f}" for name, value in m["f1"].items())])


def train_classifier(recipe: ClassifierRecipe, out: Path) -> TrainingReport:
    """Train the classifier of a recipe and save it.

    Args:
        recipe: what to train on, and how.
        out: the `.skops` file to write.

    Raises:
        ConfigError: wrong steps or estimator parameters.
        InputError: scenes or labels cannot be used, or a class is missing from training or test pixels.
    """
    if out.suffix != ".skops":
        raise ConfigError(f"{out}: a classifier is saved as .skops; name the file so")
    names = {value: one.name for value, one in sorted(recipe.classes.items())}
    stages = Workflow(name="training", steps=recipe.steps).stages()
    samples = collect(recipe.scenes, stages, recipe.variable, names, recipe.radar)
    parts = _limited(samples.labels, split_samples(samples, recipe.split), recipe)
    present = np.unique(samples.labels).tolist()
    classes = tuple(MapClass(value, names[value], recipe.classes[value].colour) for value in names if value in present)
    estimator, parameters = _fit(recipe, samples, parts)
    classifier = Classifier(
        estimator=estimator,
        classes=classes,
        wavelengths=samples.bands.wavelength,
        fwhm=samples.bands.fwhm,
        variable=samples.variable,
        units=samples.units,
        features=recipe.features,
        polarisations=samples.polarisations,
        split=recipe.split.model_dump(),
        training={
            "sources": samples.sources,
            "steps": [stage.fingerprint() for stage in stages],
            "estimator": recipe.estimator.type,
            "parameters": parameters,
            "balance": recipe.balance,
        },
    )
    metrics = assess(classifier, samples, parts)
    saved = replace(classifier, metrics=metrics).save(out)
    return TrainingReport(out, saved.sha256, metrics, saved.split, parameters)


def _fit(recipe: ClassifierRecipe, samples: Samples, parts: Parts) -> tuple[Any, dict[str, Any]]:
    """The fitted estimator, and the parameters it was fitted with."""
    features = spectral_features(samples.spectra[parts.train], samples.bands.wavelength, recipe.features)
    labels, choice, seed = samples.labels[parts.train], recipe.estimator, recipe.split.seed
    parameters = dict(choice.params)
    weighing = {"model__sample_weight": class_weights(labels, recipe.balance)}
    if choice.type == "lda":  # takes no weights; priors do the same
        weighing = {}
        shares = np.unique(labels, return_counts=True)[1].astype(float) ** (1 - recipe.balance)
    try:
        if choice.search:
            parameters |= _search(choice, seed, features, labels, parts.block[parts.train], weighing)
        estimator = _estimator(choice, parameters, seed)
        if choice.type == "lda":
            estimator.set_params(model__priors=shares / shares.sum())
        return _on_all_cores(estimator, features, labels, weighing), parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"estimator {choice.type}: {error}") from error


def _on_all_cores(
    estimator: Any,  # noqa: ANN401
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    weighing: Mapping[str, Any],
) -> Any:  # noqa: ANN401
    """Fit an estimator, whose trees grow side by side. Once fitted it answers on one core, since blocks run so."""
    model = estimator.named_steps["model"]
    chosen = model.get_params().get("n_jobs")
    if type(model).__name__ in FORESTS and chosen is None:
        model.set_params(n_jobs=-1)
    estimator.fit(features, labels, **weighing)
    if type(model).__name__ in FORESTS:
        model.set_params(n_jobs=chosen)
    return estimator


def _search(
    choice: EstimatorChoice,
    seed: int,
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    squares: npt.NDArray[np.int64],
    weighing: Mapping[str, Any],
) -> dict[str, Any]:
    """The best of the values to try: macro F1 over folds of whole training squares."""
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

    prefix = "model__estimator__" if choice.type == "svm" else "model__"
    grid = {prefix + name: values for name, values in choice.search.items()}
    folds = StratifiedGroupKFold(SEARCH_FOLDS, shuffle=True, random_state=seed)
    estimator = _estimator(choice, choice.params, seed)
    search = GridSearchCV(estimator, grid, scoring="f1_macro", cv=folds, error_score="raise", refit=False)
    search.fit(features, labels, groups=squares, **weighing)
    return {name.removeprefix(prefix): value for name, value in search.best_params_.items()}


def _limited(labels: npt.NDArray[np.uint8], parts: Parts, recipe: ClassifierRecipe) -> Parts:
    """At most `max_per_class` training samples of every class, drawn at random."""
    draw = np.random.default_rng(recipe.split.seed)
    train = np.zeros(labels.size, bool)
    for value in np.unique(labels):
        members = np.flatnonzero(parts.train & (labels == value))
        train[draw.permutation(members)[: recipe.max_per_class]] = True
    return replace(parts, train=train)


def class_weights(labels: npt.NDArray[np.uint8], balance: float) -> npt.NDArray[np.float64]:
    """A weight for every sample, (size of its class) ** -balance, of mean 1."""
    counts = np.bincount(labels)
    weights = counts[labels].astype(float) ** -balance
    scaled: npt.NDArray[np.float64] = weights / weights.mean()
    return scaled


def _estimator(choice: EstimatorChoice, params: Mapping[str, Any], seed: int) -> Any:  # noqa: ANN401 - scikit-learn is untyped
    """Scaling, principal components where asked for, and the model, unfitted."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    reduce = [("reduce", PCA(choice.pca, random_state=seed))] if choice.pca else []
    return Pipeline([("scale", StandardScaler()), *reduce, ("model", _model(choice.type, params, seed))])


def _model(kind: str, params: Mapping[str, Any], seed: int) -> Any:  # noqa: ANN401
    if kind == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(**{"max_iter": 1000, **params})
    if kind == "lda":
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        return LinearDiscriminantAnalysis(**{"solver": "lsqr", "shrinkage": "auto", **params})
    if kind == "svm":
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        return CalibratedClassifierCV(SVC(**{"C": 10, **params}), ensemble=False, cv=3)
    if kind == "rotated_forests":
        from cubeloom.models.forests import RotatedForests

        return RotatedForests(**{"min_samples_leaf": 2, "random_state": seed, **params})
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    if kind == "random_forest":
        return RandomForestClassifier(**{"n_estimators": 300, "min_samples_leaf": 2, "random_state": seed, **params})
    return HistGradientBoostingClassifier(**{"random_state": seed, **params})


def assess(classifier: Classifier, samples: Samples, parts: Parts) -> dict[str, Any]:
    """Overall accuracy, kappa, F1 and confusion (rows: truth, columns: map) on the test samples."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

    values = [one.value for one in classifier.classes]
    truth = samples.labels[parts.test]
    mapped = np.array(values)[classifier.predict(samples.spectra[parts.test]).argmax(axis=1)]
    f1 = f1_score(truth, mapped, labels=values, average=None, zero_division=0)
    return {
        "overall_accuracy": float((truth == mapped).mean()),
        "kappa": float(cohen_kappa_score(truth, mapped)),
        "macro_f1": float(f1.mean()),
        "f1": {one.name: float(score) for one, score in zip(classifier.classes, f1, strict=True)},
        "confusion": confusion_matrix(truth, mapped, labels=values).tolist(),
        "train_pixels": int(parts.train.sum()),
        "test_pixels": int(parts.test.sum()),
    }
