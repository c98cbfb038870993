"""Super-resolution side by side: the same scenes, by two protocols, with the field's metrics."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import CubeloomError, ModelError
from cubeloom.pipeline import metrics
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.metrics_without_truth import SQUARE, qnr, spatial_distortion, spectral_distortion
from cubeloom.pipeline.scene import BoolArray, FloatArray

from .environment import environment, measured
from .scores import mean, selected
from .superres_cases import MARGIN, Case, cases_of
from .superres_grounds import Ground
from .superres_methods import SuperresMethod
from .superres_pictures import Picture, Products, pictures_of

Float32Array = npt.NDArray[np.float32]

WITH_TRUTH = ("psnr_db", "ssim", "sam_deg", "ergas", "cc", "rmse")
WITHOUT_TRUTH = ("d_lambda", "d_s", "qnr")
METRICS = (*WITH_TRUTH, *WITHOUT_TRUTH, "consistency_deg", "seconds", "cpu_seconds")
CONVENTIONS = {
    "full": "the scene is refined as it is; the truth is known of simulated ground alone",
    "reduced": "Wald's protocol: scene and guide are degraded by the scale, and the scene itself is the truth",
    "degradation": "Gaussian with the stated modulation transfer at the coarse grid's Nyquist frequency",
    "bands": "good ones that every method makes",
    "pixels": f"those with a value in all of these bands, {MARGIN} coarse pixels or more off the scene's edge",
    "psnr_db": "mean over bands of 10 log10(1 / MSE of the band): range 1, in units of reflectance",
    "ssim": "mean over bands, range 1, 7 x 7 px uniform window, sample covariance",
    "sam_deg": "mean over pixels of the angle between spectra, degrees",
    "ergas": "100 / scale sqrt(mean over bands of (RMSE / mean)^2), percent",
    "cc": "mean over bands of the correlation over pixels",
    "rmse": "over all bands and pixels",
    "d_lambda, d_s": f"distortions of QNR, of the full protocol; squares of {SQUARE} coarse px; D_s with a guide alone",
    "qnr": "(1 - D_lambda) (1 - D_s)",
    "consistency_deg": "mean angle between the scene and the product, degraded again, degrees",
    "seconds": "wall clock of one run, loading of a model included in a method's first",
    "cpu_seconds": "processor time of the same over all threads",
}
"""What the numbers are, written beside them."""


@dataclass(frozen=True)
class Score:
    """One method on one case; the fields of `METRICS` are None where they do not apply, or it failed with `error`."""

    ground: str
    protocol: str
    method: str
    psnr_db: float | None = None
    ssim: float | None = None
    sam_deg: float | None = None
    ergas: float | None = None
    cc: float | None = None
    rmse: float | None = None
    d_lambda: float | None = None
    d_s: float | None = None
    qnr: float | None = None
    consistency_deg: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str = ""


@dataclass(eq=False)
class SuperresEvaluation:
    """Everything that an evaluation found.

    Attributes:
        scale: how many times finer.
        mtf: modulation transfer by which cubes were degraded.
        protocols: in order.
        methods: in order.
        grounds: in order.
        scores: one for each case and method that it suits.
        inputs: what is to be said of each case.
        pictures: of the first case of each protocol.
        wavelength: of the bands of the pictures' spectra, nm, by protocol.
    """

    scale: int
    mtf: float
    protocols: tuple[str, ...]
    methods: tuple[SuperresMethod, ...]
    grounds: tuple[Ground, ...]
    scores: list[Score] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    wavelength: dict[str, FloatArray] = field(default_factory=dict)

    def mean(self, metric: str, method: str, protocol: str, ground: str | None = None) -> float | None:
        """Mean of a metric over the ground of a protocol; None where it is missing on some of it."""
        wanted = selected(self.scores, method=method, protocol=protocol, ground=ground)
        if ground is None and len(wanted) < len(self.grounds):
            return None
        return mean(getattr(score, metric) for score in wanted)

    def best(self, protocol: str, *, guided: bool) -> SuperresMethod | None:
        """The method with the largest mean PSNR among those with a guide, or those without."""
        known = {
            method.name: value
            for method in self.methods
            if method.guided == guided and (value := self.mean("psnr_db", method.name, protocol)) is not None
        }
        return max((m for m in self.methods if m.name in known), key=lambda m: known[m.name], default=None)

    def to_json(self) -> dict[str, Any]:
        """The whole evaluation, for `results.json`."""
        return {
            "conventions": CONVENTIONS,
            "environment": environment("numpy", "scipy", "scikit-image", "torch"),
            "scale": self.scale,
            "mtf": self.mtf,
            "methods": [method.describe() for method in self.methods],
            "grounds": [{"name": one.name, "source": one.source, "notes": list(one.notes)} for one in self.grounds],
            "cases": self.inputs,
            "means": [
                {"protocol": protocol, "method": method.name}
                | {metric: self.mean(metric, method.name, protocol) for metric in METRICS}
                for protocol in self.protocols
                for method in self.methods
            ],
            "scores": [asdict(score) for score in self.scores],
        }


def evaluate_superres(
    grounds: Sequence[Ground],
    methods: Sequence[SuperresMethod],
    protocols: Sequence[str],
    scale: int,
    mtf: float,
    progress: Callable[[Score], None] = lambda _: None,
) -> SuperresEvaluation:
    """Run every method on all ground by every protocol; those with a guide only where there is one.

    A method that fails with one of our own errors is recorded as failed on that case, and the others go on.

    Args:
        grounds: with different names.
        methods: from `parse_superres_methods`.
        protocols: from `parse_protocols`.
        scale: how many times finer; truth and guides of the grounds are of that scale.
        mtf: modulation transfer of the scenes' sensors.
        progress: called with each score.
    """
    found = SuperresEvaluation(scale, mtf, tuple(protocols), tuple(methods), tuple(grounds))
    for ground in grounds:
        for case in cases_of(ground, protocols, scale, mtf):
            with tempfile.TemporaryDirectory(prefix="cubeloom-") as folder:
                _evaluate(found, case, Products(Path(folder)), progress)
    return found


def _evaluate(found: SuperresEvaluation, case: Case, products: Products, progress: Callable[[Score], None]) -> None:
    """Add the scores and pictures of a case."""
    made = [_made(case, method, products) for method in found.methods if method.suits(case)]
    bands = products.bands(case.good)
    found.inputs.append({**case.describe(), "judged_bands": int(bands.sum())})
    for score in made:
        if not score.error:
            score = _judged(case, score, products[score.method], bands)
        found.scores.append(score)
        progress(score)
    if case.protocol not in found.wavelength and products.names:
        found.wavelength[case.protocol] = case.wavelength[case.preferred]
        found.pictures += pictures_of(case, products, bands)


def _made(case: Case, method: SuperresMethod, products: Products) -> Score:
    """What a method costs; its product is kept."""
    score = Score(case.ground, case.protocol, method.name)
    try:
        with measured() as cost:
            made = method.run(case)
        if not np.isfinite(made).any():
            raise ModelError(f"{method.name} made no values of {case.ground}")
    except CubeloomError as error:
        return replace(score, error=str(error))
    products.add(method.name, made)
    return replace(score, seconds=cost.seconds, cpu_seconds=cost.cpu_seconds)


def _judged(case: Case, score: Score, made: Float32Array, bands: BoolArray) -> Score:
    try:
        return replace(score, **measure(case, made, bands))
    except CubeloomError as error:
        return Score(score.ground, score.protocol, score.method, error=str(error))


def measure(case: Case, made: Float32Array, bands: BoolArray) -> dict[str, Any]:
    """Every metric of a product that applies to its case.

    Args:
        case: what it was made of.
        made: the product, `(band, y, x)`.
        bands: those that are judged.
    """
    scene, product = case.cube[bands], made[bands]
    known = case.known & np.isfinite(again := degrade(product, case.scale, case.mtf)).all(axis=0)
    found = {"consistency_deg": metrics.sam(scene, again, known)}
    if case.truth is not None:
        truth, judged = case.truth[bands], case.judged
        found |= {
            "psnr_db": metrics.psnr(truth, product, 1.0, judged),
            "ssim": metrics.ssim(truth, product, 1.0, judged, gaussian=False),
            "sam_deg": metrics.sam(truth, product, judged),
            "ergas": metrics.ergas(truth, product, case.scale, judged),
            "cc": metrics.cc(truth, product, judged),
            "rmse": metrics.rmse(truth, product, judged),
        }
    return found | _without_truth(case, scene, product) if case.protocol == "full" else found


def _without_truth(case: Case, scene: Float32Array, product: Float32Array) -> dict[str, float]:
    found = {"d_lambda": spectral_distortion(scene, product)}
    if (sharp := case.sharp()) is not None:
        found["d_s"] = spatial_distortion(scene, product, sharp, degrade(sharp, case.scale, case.mtf))
        found["qnr"] = qnr(found["d_lambda"], found["d_s"])
    return found
