"""Denoisers side by side: clean cubes, noise by protocol with fixed seeds, the field's metrics."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, CubeloomError
from cubeloom.pipeline import metrics
from cubeloom.pipeline.simulate.noise import NOISES, PROTOCOL, add_noise

from .cubes import CleanCube, digest
from .denoise_methods import Method
from .environment import environment, measured
from .scores import mean, selected

Float32Array = npt.NDArray[np.float32]

CONVENTIONS = {
    "scaling": "each cube by its own least and largest value to [0, 1], over all good bands of the crop",
    "crop": "centred, no longer than stated",
    "seed": "numpy default_rng([seed, crc32(noise name), crc32(cube name)])",
    "input": "the noisy cube is not clamped; every method sees the same one",
    "output": "clamped to [0, 1]; the row `noisy` is not",
    "psnr_db": "mean over bands of 10 log10(1 / MSE of the band)",
    "ssim_uniform": "mean over bands, range 1, 7 x 7 px uniform window, sample covariance",
    "ssim_gaussian": "mean over bands, range 1, 11 x 11 px Gaussian window of sigma 1.5 px",
    "sam_deg": "mean over pixels of the angle between spectra, degrees; zero spectra do not count",
    "sam_rad": "the same in radians",
    "ergas": "100 sqrt(mean over bands of (RMSE / mean)^2), ratio 1, percent",
    "seconds": "wall clock of one run, loading of a model included in a method's first",
    "cpu_seconds": "processor time of the same over all threads",
}
"""What the numbers are, written beside them."""

METRICS = ("psnr_db", "ssim_uniform", "ssim_gaussian", "sam_deg", "sam_rad", "ergas", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Score:
    """One method on one noisy cube; the fields of `METRICS` are None where it failed with `error`."""

    cube: str
    noise: str
    method: str
    psnr_db: float | None = None
    ssim_uniform: float | None = None
    ssim_gaussian: float | None = None
    sam_deg: float | None = None
    sam_rad: float | None = None
    ergas: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """What one method made of one noisy cube, for the figure."""

    cube: str
    noise: str
    method: str
    bands: Float32Array


@dataclass(eq=False)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        seed: seed of the noise.
        noises: kinds of noise, in order.
        methods: methods, in order.
        cubes: the clean cubes.
        scores: one for each cube, noise and method.
        inputs: sha256 and mean standard deviation of each noisy cube, by cube and noise.
        pictures: three bands of what was made of the first cube, clean ones first.
    """

    seed: int
    noises: tuple[str, ...]
    methods: tuple[Method, ...]
    cubes: tuple[CleanCube, ...]
    scores: list[Score] = field(default_factory=list)
    inputs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    def mean(self, metric: str, method: str, noise: str | None = None, cube: str | None = None) -> float | None:
        """Mean of a metric over the scores that fit; None where one of them failed."""
        wanted = selected(self.scores, method=method, noise=noise, cube=cube)
        return mean(getattr(score, metric) for score in wanted)

    def means(self) -> list[dict[str, Any]]:
        """Means over the cubes for every noise and method; then, as noise `mean`, over the kinds of noise as well."""
        return [
            {
                "noise": noise or "mean",
                "method": method.name,
                **{metric: self.mean(metric, method.name, noise) for metric in METRICS},
            }
            for noise in (*self.noises, None)
            for method in self.methods
        ]

    def to_json(self) -> dict[str, Any]:
        """The whole evaluation, for `results.json`."""
        return {
            "conventions": CONVENTIONS,
            "environment": environment("numpy", "scipy", "scikit-image", "torch"),
            "seed": self.seed,
            "noises": list(self.noises),
            "methods": [method.describe() for method in self.methods],
            "cubes": [{**cube.describe(), "noisy": self.inputs[cube.name]} for cube in self.cubes],
            "means": self.means(),
            "scores": [asdict(score) for score in self.scores],
        }


def parse_noises(text: str) -> tuple[str, ...]:
    """Kinds of noise from `stripe,mixture`; `protocol` stands for the nine.

    Raises:
        ConfigError: one that is not known, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    listed = [noise for name in names for noise in (PROTOCOL if name == "protocol" else [name])]
    if unknown := [name for name in listed if name not in NOISES]:
        raise ConfigError(f"--noises: {unknown[0]!r} is not known; expected protocol or some of {', '.join(NOISES)}")
    if not listed:
        raise ConfigError(f"--noises names none; expected protocol or some of {', '.join(NOISES)}")
    return tuple(dict.fromkeys(listed))


def evaluate_denoise(
    cubes: Sequence[CleanCube],
    methods: Sequence[Method],
    noises: Sequence[str],
    seed: int = 0,
    progress: Callable[[Score], None] = lambda _: None,
) -> Evaluation:
    """Run every method on every cube with every kind of noise.

    A method that fails with one of our own errors is recorded as failed on that cube and noise, and the others go on.

    Args:
        cubes: clean cubes with different names.
        methods: from `parse_methods`.
        noises: from `parse_noises`.
        seed: the same seed gives the same noise, whatever else is evaluated.
        progress: called with each score.
    """
    found = Evaluation(seed, tuple(noises), tuple(methods), tuple(cubes))
    shown = _shown(noises)
    for cube in cubes:
        found.inputs[cube.name] = {}
        for noise in noises:
            noisy = noisy_input(cube, noise, seed)
            found.inputs[cube.name][noise] = noisy.description
            pictured = cube is cubes[0] and noise in shown
            if pictured:
                found.pictures.append(Picture(cube.name, noise, "clean", cube.cube[colours(cube)]))
            for score, made in _scores(cube, noise, noisy.cube, methods):
                found.scores.append(score)
                progress(score)
                if pictured and made is not None:
                    found.pictures.append(Picture(cube.name, noise, score.method, made[colours(cube)]))
    return found


@dataclass(frozen=True, eq=False)
class NoisyInput:
    """A noisy cube and what identifies it."""

    cube: Float32Array
    description: dict[str, Any]


def noisy_input(clean: CleanCube, noise: str, seed: int) -> NoisyInput:
    """The cube with one kind of noise; it depends on the seed, the names and the cube, on nothing else."""
    rng = np.random.default_rng([seed, zlib.crc32(noise.encode()), zlib.crc32(clean.name.encode())])
    made = add_noise(np.where(clean.valid, clean.cube, np.float32(0)), noise, rng, clean.wavelength)
    cube = np.where(clean.valid, made.cube, np.float32(np.nan))
    struck = float(made.struck[:, clean.valid].mean())
    return NoisyInput(
        cube, {"sha256": digest(cube), "mean_sigma": float(made.sigma.mean()), "struck_share": round(struck, 6)}
    )


def _scores(
    clean: CleanCube, noise: str, noisy: Float32Array, methods: Sequence[Method]
) -> Iterator[tuple[Score, Float32Array | None]]:
    for method in methods:
        try:
            with measured() as cost:
                made = method.run(clean, noisy.copy())
        except CubeloomError as error:
            yield Score(clean.name, noise, method.name, error=str(error)), None
            continue
        made = np.clip(made, 0, 1) if method.clamped else made
        score = Score(clean.name, noise, method.name, seconds=cost.seconds, cpu_seconds=cost.cpu_seconds)
        yield replace(score, **measure(clean, made)), made


def measure(clean: CleanCube, made: Float32Array) -> dict[str, Any]:
    """Every metric of an estimate against a clean cube."""
    reference, valid = clean.cube, clean.valid
    angle = metrics.sam(reference, made, valid)
    return {
        "psnr_db": metrics.psnr(reference, made, 1.0, valid),
        "ssim_uniform": metrics.ssim(reference, made, 1.0, valid, gaussian=False),
        "ssim_gaussian": metrics.ssim(reference, made, 1.0, valid, gaussian=True),
        "sam_deg": angle,
        "sam_rad": float(np.radians(angle)),
        "ergas": metrics.ergas(reference, made, 1.0, valid),
    }


def colours(clean: CleanCube) -> list[int]:
    """Positions of three bands to show as red, green and blue: near 860, 650 and 550 nm, or spread over the bands."""
    picked = [int(np.argmin(np.abs(clean.wavelength - target))) for target in (860.0, 650.0, 550.0)]
    size = len(clean.wavelength)
    return picked if len(set(picked)) == 3 else [size - 1, size // 2, 0]


def _shown(noises: Sequence[str]) -> tuple[str, ...]:
    """At most two kinds of noise for the figure: a Gaussian one and the hardest."""
    wanted = [noise for noise in ("gaussian50", "mixture") if noise in noises]
    return tuple(wanted or noises[-1:])
