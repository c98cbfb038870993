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
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError, model_validator

from cubeloom.errors import InputError, ModelError
from cubeloom.untrusted import parse_json, read_zip_member, zip_members

from .estimators import OWN, check_estimator, steps_of

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
    OWN,
)
"""Types beyond those that skops itself trusts. Trees are compiled code that follows indices out of the file, so they
are checked after loading (`check_estimator`)."""
_CARRIED = ("variable", "units", "polarisations", "metrics", "split", "training")
"""Fields that the card has as they are."""
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
        polarisations: of a radar scene beside the scene, whose backscatter, dB, stands behind the bands.
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
    polarisations: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def columns(self) -> int:
        """Numbers that it takes of a pixel."""
        return self.wavelengths.size + len(self.polarisations)

    def predict(self, spectra: FloatArray) -> npt.NDArray[np.float32]:
        """Probabilities `(n, class)` of spectra `(n, columns)` without NaN, each by itself."""
        probabilities = np.empty((len(spectra), len(self.classes)), np.float32)
        batch = np.zeros((BATCH, self.columns), np.float32)
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
            "estimator": " + ".join(type(step).__name__ for step in steps_of(self.estimator)),
            "classes": [asdict(one) for one in self.classes],
            "wavelengths_nm": self.wavelengths.tolist(),
            "fwhm_nm": self.fwhm.tolist(),
            **{key: getattr(self, key) for key in _CARRIED},
            "features": self.features,
            "polarisations": list(self.polarisations),
        }

    def save(self, path: Path) -> "Classifier":
        """Write estimator and card to one file, replacing it whole; returns the classifier with its digest.

        Raises:
            ModelError: the estimator holds types that `load_classifier` would refuse.
        """
        from skops import io as skops_io

        content = skops_io.dumps(self.estimator, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
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

    Columns behind those of the wavelengths are a radar's, and go in as they are.

    `spectrum`: as it is. `shape`: divided by its Euclidean length, which takes out illumination. `derivative`: by
    wavelength, per 100 nm.
    """
    parts, radar = [], spectra[:, len(wavelengths) :]
    spectra = spectra[:, : len(wavelengths)]
    for feature in features:
        if feature == "spectrum":
            parts.append(spectra)
        elif feature == "shape":
            length = np.sqrt((spectra * spectra).sum(axis=1, keepdims=True))
            parts.append(spectra / np.maximum(length, np.float32(1e-6)))
        else:
            parts.append(np.gradient(spectra, wavelengths / 100, axis=1).astype(np.float32))
    return np.concatenate([*parts, radar], axis=1)


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

    content = _read(path)
    card = _Card.model_validate(_read_card(content, path))
    _require_trusted(content, path)
    try:
        estimator = skops_io.loads(content, trusted=list(TRUSTED))
        check_estimator(estimator)
        classes = list(map(int, estimator.classes_))
    except Exception as error:
        raise ModelError(f"classifier {path}: cannot be loaded ({error}); train it again with this version") from error
    if [one.value for one in card.classes] != classes:
        raise ModelError(f"classifier {path}: the card's classes are not the estimator's {classes}")
    classifier = Classifier(
        estimator=estimator,
        classes=card.classes,
        wavelengths=np.asarray(card.wavelengths_nm, float),
        fwhm=np.asarray(card.fwhm_nm, float),
        features=card.features,
        sha256=digest,
        **{key: getattr(card, key) for key in _CARRIED},
    )
    _try_out(classifier, path)
    return classifier


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_LIMIT + 1)
    if len(content) > FILE_LIMIT:
        raise ModelError(f"classifier {path}: more than {FILE_LIMIT:,} bytes, which are not read")
    return content


def _try_out(classifier: Classifier, path: Path) -> None:
    """Refuse an estimator that takes other spectra than its card says, or whose numbers are none."""
    try:
        with np.errstate(all="ignore"):
            found = classifier.predict(np.full((1, classifier.columns), 0.2, np.float32))
    except Exception as error:
        raise ModelError(f"classifier {path}: does not work ({error}); train it again with this version") from error
    if not (np.isfinite(found).all() and 0.999 < found.sum() < 1.001):
        raise ModelError(f"classifier {path}: gives {found[0]} for probabilities; train it again")


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a saved classifier, without loading the estimator.

    Raises:
        ModelError: there is no such file, or it has none.
    """
    path = Path(path)
    digest = _digest(path)
    return {**_read_card(_read(path), path), "sha256": digest}


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Card(BaseModel):
    """What `Classifier.card` writes."""

    classes: tuple[MapClass, ...]
    wavelengths_nm: Annotated[tuple[Positive, ...], Field(min_length=1)]
    fwhm_nm: tuple[Positive, ...]
    variable: str
    units: str
    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    polarisations: tuple[str, ...] = ()
    metrics: dict[str, Any]
    split: dict[str, Any]
    training: dict[str, Any]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        values = [one.value for one in self.classes]
        if not values or values != sorted(set(values)) or values[0] < 1 or values[-1] > 255:
            raise ValueError(f"class values {values} do not ascend within 1 to 255")
        if len(self.wavelengths_nm) != len(self.fwhm_nm) or list(self.wavelengths_nm) != sorted(self.wavelengths_nm):
            raise ValueError("wavelengths_nm do not ascend, or there is not one fwhm_nm for each")
        return self


def _read_card(content: bytes, path: Path) -> dict[str, Any]:
    try:
        unpacked = sum(member.file_size for member in zip_members(content, "its archive"))
        if unpacked > FILE_LIMIT:
            raise ModelError(f"classifier {path}: {unpacked:,} bytes when unpacked; at most {FILE_LIMIT:,} are read")
        card = parse_json(read_zip_member(content, CARD, CARD_LIMIT, "its archive"), "its card")
    except InputError as error:
        raise ModelError(
            f"classifier {path}: not a classifier saved by Cubeloom ({error}); expected a .skops file with {CARD}"
        ) from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ModelError(f"classifier {path}: its card has format {found!r}, expected {FORMAT!r}; train it again")
    try:
        _Card.model_validate(card)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise ModelError(f"classifier {path}: its card is damaged ({problems}); train it again") from None
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
