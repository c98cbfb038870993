"""Pixel classifiers: a scikit-learn estimator with its card in one `.skops` file, saved and loaded without pickle."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ModelError

FloatArray = npt.NDArray[np.floating[Any]]
Feature = Literal["spectrum", "shape", "derivative"]

FORMAT = "cubeloom-classifier/1"
CARD = "card.json"
CARD_LIMIT = 16 * 2**20
"""Bytes of a card; one has some tens of kB."""
FILE_LIMIT = 4 * 2**30
"""Bytes of a model file when unpacked."""
TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
"""Types beyond those that skops itself trusts. Trees are compiled code that follows indices out of the file, so they
are checked after loading (`_check_trees`)."""
BATCH = 1024
"""Spectra that go to an estimator at once, always: sums in a matrix product depend on its shape."""


@dataclass(frozen=True)
class MapClass:
    """A class of a map: its value (1-255), name, and colour as `#rrggbb`."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier of spectra, and what must be known to use it.

    Attributes:
        estimator: a fitted scikit-learn estimator with `predict_proba`.
        classes: the classes by ascending value; the estimator's, in its order.
        wavelengths: band centres it was trained on, nm, ascending.
        fwhm: their widths at half maximum, nm.
        variable: name of the cube it was trained on.
        units: its units.
        features: what the estimator gets of a spectrum, one after the other.
        metrics: measured on test pixels (see `split`).
        split: how training and test pixels were told apart.
        training: scenes, labels and counts it was trained with.
        sha256: digest of the file it was loaded from; empty before it is saved.
    """

    estimator: Any
    classes: tuple[MapClass, ...]
    wavelengths: npt.NDArray[np.float64]
    fwhm: npt.NDArray[np.float64]
    variable: str
    units: str
    features: tuple[Feature, ...] = ("spectrum",)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def predict(self, spectra: FloatArray) -> npt.NDArray[np.float32]:
        """Probabilities `(n, class)` of spectra `(n, band)` without NaN; one spectrum's do not depend on the others."""
        probabilities = np.empty((len(spectra), len(self.classes)), np.float32)
        batch = np.zeros((BATCH, self.wavelengths.size), np.float32)
        for start in range(0, len(spectra), BATCH):
            part = spectra[start : start + BATCH]
            batch[: len(part)] = part
            made = self.estimator.predict_proba(spectral_features(batch, self.wavelengths, self.features))
            probabilities[start : start + len(part)] = made[: len(part)]
        return probabilities

    def card(self) -> dict[str, Any]:
        """Everything but the estimator, as JSON."""
        return {
            "format": FORMAT,
            "estimator": " + ".join(type(step).__name__ for step in _steps(self.estimator)),
            "classes": [asdict(one) for one in self.classes],
            "wavelengths_nm": self.wavelengths.tolist(),
            "fwhm_nm": self.fwhm.tolist(),
            **{key: getattr(self, key) for key in ("variable", "units", "features", "metrics", "split", "training")},
        }

    def save(self, path: Path) -> "Classifier":
        """Write estimator and card to one file, replacing it whole; returns the classifier with its digest.

        Raises:
            ModelError: the estimator holds types that `load_classifier` would refuse.
        """
        from skops import io as skops_io

        content = skops_io.dumps(self.estimator)
        _require_trusted(content, path)
        buffer = io.BytesIO(content)
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CARD, json.dumps(self.card(), indent=1))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
        return replace(self, sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def spectral_features(
    spectra: npt.NDArray[np.float32], wavelengths: npt.NDArray[np.float64], features: tuple[Feature, ...]
) -> npt.NDArray[np.float32]:
    """What an estimator gets of spectra `(n, band)`: columns of every feature, in order.

    `spectrum`: as it is. `shape`: divided by its Euclidean length, which takes out illumination. `derivative`: by
    wavelength, per 100 nm.
    """
    parts = []
    for feature in features:
        if feature == "spectrum":
            parts.append(spectra)
        elif feature == "shape":
            length = np.sqrt((spectra * spectra).sum(axis=1, keepdims=True))
            parts.append(spectra / np.maximum(length, np.float32(1e-6)))
        else:
            parts.append(np.gradient(spectra, wavelengths / 100, axis=1).astype(np.float32))
    return np.concatenate(parts, axis=1)


_LOADING = threading.Lock()


def load_classifier(path: str | Path) -> Classifier:
    """The classifier saved at `path`; read once a process as long as the file does not change.

    Raises:
        ModelError: there is no such file, it is not one of Cubeloom's classifiers, or it holds types that are not
            trusted; says which.
    """
    path = Path(path)
    with _LOADING:
        return _load(path, _digest(path))


def classifier_digest(path: str | Path) -> str:
    """Hex SHA-256 of a classifier's file.

    Raises:
        ModelError: there is no such file.
    """
    return _digest(Path(path))


def _digest(path: Path) -> str:
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ModelError(f"classifier {path}: {error.strerror or error}; train one with `cubeloom train`") from None


@lru_cache(maxsize=64)
def _digest_of(path: Path, modified_ns: int, size: int) -> str:
    """Digest of the content that the file had at that time and size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4)
def _load(path: Path, digest: str) -> Classifier:
    from skops import io as skops_io

    content = path.read_bytes()
    card = _read_card(content, path)
    _require_trusted(content, path)
    try:
        estimator = skops_io.loads(content, trusted=list(TRUSTED))
    except Exception as error:
        raise ModelError(f"classifier {path}: cannot be loaded ({error}); train it again with this version") from error
    _check_trees(estimator, path)
    classes = tuple(MapClass(**one) for one in card["classes"])
    if [one.value for one in classes] != list(map(int, estimator.classes_)):
        raise ModelError(f"classifier {path}: the card's classes are not the estimator's {estimator.classes_}")
    return Classifier(
        estimator=estimator,
        classes=classes,
        wavelengths=np.asarray(card["wavelengths_nm"], float),
        fwhm=np.asarray(card["fwhm_nm"], float),
        features=tuple(card["features"]),
        sha256=digest,
        **{key: card[key] for key in ("variable", "units", "metrics", "split", "training")},
    )


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a saved classifier, without loading the estimator.

    Raises:
        ModelError: there is no such file, or it has none.
    """
    path = Path(path)
    digest = _digest(path)
    return {**_read_card(path.read_bytes(), path), "sha256": digest}


def _read_card(content: bytes, path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > FILE_LIMIT or archive.getinfo(CARD).file_size > CARD_LIMIT:
                raise ModelError(
                    f"classifier {path}: {unpacked:,} bytes when unpacked; at most {FILE_LIMIT:,} are read"
                )
            card = json.loads(archive.read(CARD))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelError(
            f"classifier {path}: not a classifier saved by Cubeloom ({error}); expected a .skops file with {CARD}"
        ) from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ModelError(f"classifier {path}: its card has format {found!r}, expected {FORMAT!r}; train it again")
    return card


def _require_trusted(content: bytes, path: Path) -> None:
    from skops import io as skops_io

    try:
        foreign = sorted(set(skops_io.get_untrusted_types(data=content)) - set(TRUSTED))
    except Exception as error:
        raise ModelError(f"classifier {path}: cannot be inspected ({error})") from error
    if foreign:
        raise ModelError(
            f"classifier {path}: holds types that are not trusted: {', '.join(foreign)}. Only scikit-learn estimators "
            "that Cubeloom trains are loaded"
        )


def _steps(estimator: Any) -> list[Any]:  # noqa: ANN401
    return [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]


def _check_trees(estimator: Any, path: Path) -> None:  # noqa: ANN401
    """Refuse trees whose children do not stand after their parents inside the tree, or that ask for absent features.

    Compiled code follows these numbers without looking: a made-up file could read foreign memory or never end.
    """
    last = _steps(estimator)[-1]
    for tree in getattr(last, "estimators_", ()):
        nodes = tree.tree_
        inner = nodes.children_left != -1
        _check_tree(nodes.children_left, nodes.children_right, nodes.feature, inner, last.n_features_in_, path)
    for stage in getattr(last, "_predictors", ()):
        for predictor in stage:
            nodes = predictor.nodes
            inner = nodes["is_leaf"] == 0
            if nodes["is_categorical"].any():  # would index bit sets out of the file; spectra have no such features
                raise ModelError(f"classifier {path}: a decision tree in it splits on categories; train it again")
            _check_tree(nodes["left"], nodes["right"], nodes["feature_idx"], inner, last.n_features_in_, path)


def _check_tree(
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    feature: npt.NDArray[Any],
    inner: npt.NDArray[np.bool_],
    features: int,
    path: Path,
) -> None:
    number = np.arange(left.size)[inner]
    sound = all(
        (child[inner] > number).all() and (child[inner] < left.size).all() for child in (left, right.astype(np.int64))
    )
    if not (left.size and sound and (feature[inner] >= 0).all() and (feature[inner] < features).all()):
        raise ModelError(f"classifier {path}: a decision tree in it is damaged; train it again")
