"""Denoising by a trained network: its card meets the scene, its tiles go in and come out.

What a network sees of a tile is its transform's: `band_windows` or `eigenimages`. What it says of it may be an
ensemble: the eight ways to turn and flip a tile are as likely, so the scatter of what the network makes of them tells
how sure it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ModelError
from cubeloom.models.cards import Card
from cubeloom.models.registry import model_card
from cubeloom.pipeline.blocks import PREDICTION, Block
from cubeloom.pipeline.scene import MEASUREMENTS, UNCERTAINTY, BoolArray, SceneSpec
from cubeloom.pipeline.tiles import How, Inferred, Lattice, Tiling

from .base import NO_STATS, Stats
from .subspace import Rank
from .tasks import require_task, require_weights

if TYPE_CHECKING:
    from cubeloom.pipeline.inference import ModelHandle, Precision

FloatImages = npt.NDArray[np.float32]

TOGETHER = 2**16
"""Pixels of tiles that go through the network at once: small tiles alone would leave a GPU idle."""

MARGIN_NM = 10.0
"""How far beyond a network's wavelengths a band may lie: about the width of one."""


@dataclass(frozen=True)
class Sample:
    """A tile as the network sees it.

    Attributes:
        inputs: `(n, channel, D, y, x)`, finite, of the lattice's shape.
        known: pixels of the tile's window that have a value, `(y, x)`.
    """

    inputs: FloatImages
    known: BoolArray


def network_method(
    model: str,
    weights: str | None,
    precision: "Precision",
    rank: Rank,
    strength: float,
    *,
    outliers: bool,
    uncertainty: bool,
) -> "NetworkMethod":
    """The method for a model, by the transform of its card.

    Raises:
        ModelError: there is no such model, or it has no weights.
    """
    from .band_windows import BandWindows
    from .eigenimages import EigenImages

    card = model_card(model, weights)
    require_task(card, "denoise", "denoise")
    require_weights(card, "denoise")
    transform = {"bands": BandWindows, "eigenimages": EigenImages}[card.transform]
    return transform(model, weights, card, precision, rank, strength, outliers, uncertainty)


@dataclass(frozen=True)
class NetworkMethod(ABC):
    """The method `network` of the stage `denoise`, which says what its parameters mean."""

    model: str
    weights: str | None
    card: Card
    precision: "Precision"
    rank: Rank
    strength: float
    outliers: bool
    uncertainty: bool

    halo = 0

    @property
    def passes(self) -> int:
        """Over the scene, before the network."""
        return 1

    @property
    def handle(self) -> "ModelHandle":
        """The network, to be loaded where it runs."""
        from cubeloom.pipeline.inference import ModelHandle

        return ModelHandle(self.model, self.weights, self.card.sha256, self.precision)

    @abstractmethod
    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over the core of a block."""

    @abstractmethod
    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """What samples are made with."""

    @abstractmethod
    def sample(self, tile: Block, stats: Stats, lattice: Lattice) -> Sample | None:
        """A tile as the network sees it; None where no pixel has a value."""

    @abstractmethod
    def result(self, sample: Sample, made: FloatImages, stats: Stats) -> FloatImages:
        """What the network's answer `(n, D, y, x)` means: the images `(image, y, x)` that are blended."""

    @abstractmethod
    def deviation(self, images: FloatImages, stats: Stats) -> FloatImages:
        """Differences of such images as differences of good bands, `(B, y, x)`."""

    @abstractmethod
    def spectra(self, block: Block, images: FloatImages, stats: Stats) -> FloatImages:
        """The cube `(band, y, x)` of blended images, NaN where nothing is known."""

    @abstractmethod
    def images(self, spec: SceneSpec, stats: Stats) -> int:
        """How many images `result` gives; at most, before the statistics have settled."""

    @abstractmethod
    def sample_shape(self, spec: SceneSpec) -> tuple[int, int, int]:
        """Samples of a tile, channels and bands of each; at most."""

    def require(self, spec: SceneSpec) -> None:
        """Check that the scene is of the kind that the network was trained on.

        Raises:
            ModelError: another measurement, other units, or bands outside its wavelengths.
        """
        card, subject = self.card, spec.variables[spec.subject]
        where = f"{spec.scene_id}, denoise with {self.model}"
        units = subject.attrs.get("units")
        if card.units is not None and units != card.units:
            raise ModelError(f"{where}: {spec.subject} has units {units!r}, the network was trained on {card.units!r}")
        if card.variable in MEASUREMENTS and spec.measurement in MEASUREMENTS and card.variable != spec.measurement:
            raise ModelError(f"{where}: the scene is of {spec.measurement}, the network was trained on {card.variable}")
        if card.wavelengths_nm is not None:
            first, last = card.wavelengths_nm
            at = spec.bands.wavelength
            outside = np.flatnonzero(spec.bands.good & ((at < first - MARGIN_NM) | (at > last + MARGIN_NM)))
            if outside.size:
                raise ModelError(
                    f"{where}: {outside.size} good bands lie outside the {first:g}-{last:g} nm that the network was "
                    f"trained on, the first is {spec.bands.describe(int(outside[0]))}; select_bands with wavelengths "
                    f"[[{first:g}, {last:g}]] leaves them out"
                )

    def describe(self) -> str:
        """The network in a line of history."""
        origin = f", weights {self.card.sha256[:8]}"
        return f"network {self.card.name}{origin} on {self.card.transform}"

    def fingerprint(self) -> dict[str, Any]:
        """What of the network decides the product: all that its card says of how it is used."""
        told = ("family", "settings", "sha256", "transform", "bands", "tile", "halo", "multiple", "sigma_input")
        card = self.card.model_dump(mode="json", include={*told, "residual_in_sigma"})
        return {"network": card, "precision": self.precision, "uncertainty": self.uncertainty}

    def tiling(self, spec: SceneSpec) -> Tiling:
        """The tiles that the card wants; small ones go through the network together."""
        card = self.card
        alone = Tiling(card.tile, card.halo, card.multiple, self.images(spec, NO_STATS) + self._deviations(spec))
        rows, cols = Lattice.of(spec.shape, alone).shape
        return replace(alone, at_once=max(TOGETHER // (rows * cols), 1))

    def tile_bytes(self, spec: SceneSpec) -> int:
        """Samples of a group, what the network makes of them, its own activations, and what is blended."""
        from cubeloom.pipeline.inference import activation_bytes

        tiling = self.tiling(spec)
        rows, cols = Lattice.of(spec.shape, tiling).shape
        count, channels, bands = self.sample_shape(spec)
        activations = activation_bytes(self.handle, (channels, bands), tiling.multiple)
        samples = 4 * tiling.at_once * count * bands * (channels + 1 + (channels if self.uncertainty else 0))
        results = 4 * (tiling.at_once + 2) * tiling.channels
        return int(rows * cols * (activations + samples + results))

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """What the network makes of a group of tiles: images to be blended, and after them the bands' deviations.

        A tile without any pixel that takes part is NaN, and the network never sees it.
        """
        spec = tiles[0].spec
        lattice = Lattice.of(spec.shape, self.tiling(spec))
        samples = [self.sample(tile, stats, lattice) for tile in tiles]
        seen = [sample for sample in samples if sample is not None]
        made, how = self._made(seen, stats, threads) if seen else ([], How())
        answers = iter(made)
        count = self.images(spec, stats) + self._deviations(spec)
        images = [
            np.full((count, *tile.window.shape), np.nan, np.float32) if sample is None else next(answers)
            for tile, sample in zip(tiles, samples, strict=True)
        ]
        return Inferred(images, how)

    def _made(self, samples: Sequence[Sample], stats: Stats, threads: int) -> tuple[list[FloatImages], How]:
        """The images of every sample, each a mean of eight with its deviation where uncertainty is wanted."""
        from cubeloom.pipeline.inference import predict

        inputs = np.concatenate([sample.inputs for sample in samples])
        counted = _counted(samples)
        means = [_Mean(sample, self, stats) for sample in samples]
        for turn in TURNS if self.uncertainty else TURNS[:1]:
            valid = None if counted is None else turn.turned(counted)
            answers, how = predict(self.handle, turn.turned(inputs), valid, threads)
            answers = turn.undone(answers[:, 0])
            for mean in means:
                mean.add(answers[: len(mean.sample.inputs)])
                answers = answers[len(mean.sample.inputs) :]
        return [mean.images() for mean in means], how

    def _deviations(self, spec: SceneSpec) -> int:
        return int(spec.bands.good.sum()) if self.uncertainty else 0

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `denoised` cube of a block from the blended images, and its uncertainty."""
        blended = block[PREDICTION]
        count = self.images(block.spec, stats)
        made = {"denoised": self.spectra(block, blended[:count], stats)}
        if self.uncertainty:
            cube = np.full(made["denoised"].shape, np.nan, np.float32)
            cube[block.bands.good] = blended[count:]
            cube[np.isnan(made["denoised"])] = np.nan
            made[UNCERTAINTY] = cube
        return made


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to turn and flip an image: quarter turns, then perhaps left for right."""

    quarters: int
    flip: bool

    def turned(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Images `(..., y, x)` in this way."""
        turned = np.rot90(images, self.quarters, axes=(-2, -1))
        return np.ascontiguousarray(turned[..., ::-1] if self.flip else turned)

    def undone(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Images that `turned` gave as they were."""
        return np.rot90(images[..., ::-1] if self.flip else images, -self.quarters, axes=(-2, -1))


TURNS = tuple(Turn(quarters, flip) for flip in (False, True) for quarters in range(4))


class _Mean:
    """Mean and deviation of what the network makes of the versions of one sample (Welford's running sums)."""

    def __init__(self, sample: Sample, method: NetworkMethod, stats: Stats) -> None:
        self.sample, self._method, self._stats = sample, method, stats
        self._count = 0
        self._mean = self._squares = np.zeros((), np.float32)

    def add(self, answer: FloatImages) -> None:
        """Take in the network's answer `(n, D, y, x)` to one version, turned back."""
        images = self._method.result(self.sample, answer, self._stats)
        self._count += 1
        step = images - self._mean
        self._mean = self._mean + step / np.float32(self._count)
        if self._method.uncertainty:
            share = np.float32((self._count - 1) / self._count)
            self._squares = self._squares + self._method.deviation(step, self._stats) ** 2 * share

    def images(self) -> FloatImages:
        """The mean, and after it the standard deviation of the good bands where it is wanted."""
        if not self._method.uncertainty:
            return self._mean
        return np.concatenate([self._mean, np.sqrt(self._squares / np.float32(self._count - 1))])


def _counted(samples: Sequence[Sample]) -> BoolArray | None:
    """The pixels that a network may take means over, `(n, y, x)`; None where that is all of them."""
    masks = []
    for sample in samples:
        mask = np.zeros(sample.inputs.shape[-2:], bool)
        mask[tuple(slice(size) for size in sample.known.shape)] = sample.known
        masks.append(np.broadcast_to(mask, (len(sample.inputs), *mask.shape)))
    counted = np.concatenate(masks)
    return None if counted.all() else counted
