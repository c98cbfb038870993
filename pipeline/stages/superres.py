"""Super-resolve: the subject on a grid some times finer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cubeloom.errors import ConfigError
from cubeloom.pipeline.blocks import PREDICTION, Block
from cubeloom.pipeline.encoding import Array
from cubeloom.pipeline.regrid import refined
from cubeloom.pipeline.scene import SceneSpec

from .base import Stage, Stats, register

if TYPE_CHECKING:
    from cubeloom.pipeline.tiles import Inferred, Tiling

    from .superres_network import SuperresNetwork

OUTPUT = "superresolved"
REACH = 2
"""Source pixels on either side that an output pixel of cubic convolution depends on."""
LOBES = 3
"""The same of Lanczos's kernel."""

NETWORK_ONLY = ("model", "weights", "tile", "precision")
"""Parameters that say nothing of interpolation, nor of its products."""

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kernel:
    """How much a source pixel counts by its distance.

    Attributes:
        reach: distance, px, from which on it counts nothing; as many pixels on either side are summed.
        weight: at a distance, px; all of an output pixel are scaled to sum 1.
    """

    reach: int
    weight: Callable[[float], float]


@dataclass(frozen=True)
class Tap:
    """The source pixels of a sub-pixel position.

    Attributes:
        first: of them, px right of the source pixel less the kernel's reach.
        weights: of sum 1, from the first on.
    """

    first: int
    weights: list[np.float32]


@register("superres")
class Superres(Stage):
    """Refine the subject's grid by a whole number; the ground and its corner stay.

    The result is a group of its own (`x2`) whose one cube, `superresolved`, is both measurement and subject there.
    `quality` and `valid` are repeated; per-band masks and other layers stay with the native grid.

    `network` runs a trained network over tiles. Its card says by how much it refines, which bands it knows and whether
    what it makes of a pixel depends on the tile around it: if so, the card fixes the tiles. Bands that it does not know
    are NaN, and so is every pixel that takes no part; a value that a pixel lacks is estimated from its other bands.

    Attributes:
        method: `bicubic`, the baseline that networks are compared with: cubic convolution with a = -1/2; `lanczos`, a
            sharper one of three lobes; or `network`, which a `model` alone stands for too.
        scale: how many times finer; with a network what its card says.
        model: name of weights that are shipped, weights with a card, or `hf:owner/repo/file@sha256`; or a family, with
            `weights`.
        weights: file or hub source with weights of that family.
        tile: side of the network's tiles, px; by default, and where its card fixes it, that of the card. 0 for the
            whole image.
        precision: type of the network's arithmetic on a GPU; a CPU always takes float32.
    """

    method: Literal["bicubic", "lanczos", "network"] = "bicubic"
    scale: Literal[2, 3, 4, 8] = 2
    model: str | None = None
    weights: str | None = None
    tile: int | None = Field(default=None, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    work_cubes: ClassVar[float] = 0.25

    @model_validator(mode="before")
    @classmethod
    def _a_model_is_a_network(cls, data: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        if isinstance(data, dict) and data.get("model") is not None and "method" not in data:
            return {**data, "method": "network"}
        return data

    @model_validator(mode="after")
    def _parameters_suit_the_method(self) -> Self:
        given = [name for name in NETWORK_ONLY if getattr(self, name) != type(self).model_fields[name].default]
        if self.method != "network" and given:
            raise ValueError(f"{', '.join(given)} belong to method network, and method is {self.method}")
        if self.method == "network" and self.model is None:
            raise ValueError("method network needs a model (`cubeloom models list`)")
        return self

    @cached_property
    def _network(self) -> SuperresNetwork | None:
        """The network with its card, read once."""
        if self.model is None:
            return None
        from .superres_network import SuperresNetwork  # its libraries are not for those who interpolate

        network = SuperresNetwork.of(self.model, self.weights, self.precision, self.tile)
        if "scale" in self.model_fields_set and self.scale != network.scale:
            raise ConfigError(f"superres: scale {self.scale}, and {network.card.name} refines {network.scale} times")
        return network

    @property
    def times(self) -> int:
        """How many times finer."""
        return self._network.scale if self._network else self.scale

    @property
    def passes(self) -> int:
        """One, for a network whose card does not tell the range of its bands."""
        return self._network.passes if self._network else 0

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene on the finer grid, in a group of its own.

        Raises:
            InputError: fewer good bands than the network takes.
            ModelError: there is no such model, or it does not fit the scene's bands or units.
            ConfigError: another scale than the network's, or tiles that it does not take.
        """
        network, scale = self._network, self.times
        how = network.describe(network.require(spec)) if network else self.method
        subject = spec.variables[spec.subject]
        described = {**subject.attrs, "long_name": f"{spec.subject.replace('_', ' ')}, {scale} times finer"}
        if network:
            described["model_sha256"] = network.card.sha256
        layers = {name: spec.variables[name] for name in ("quality", "valid") if name in spec.variables}
        return replace(
            spec,
            grid=refined(spec.grid, scale),
            variables={
                OUTPUT: replace(subject, attrs=described),
                **{name: replace(variable) for name, variable in layers.items()},
            },
            measurement=OUTPUT,
            subject=OUTPUT,
            group="_".join(filter(None, (spec.group, f"x{scale}"))),
            scale=spec.scale * scale,
            history=(*spec.history, f"superres: {spec.subject} x{scale}, {how}"),
        )

    def halo(self, spec: SceneSpec) -> int:
        """The reach of the kernel; a network's tiles overlap by themselves."""
        return 0 if self._network else KERNELS[self.method].reach

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """How often which values are met."""
        assert self._network is not None  # nothing else takes a pass
        return self._network.measure(block)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The largest value of the scene."""
        assert self._network is not None
        return self._network.settle(sums)

    def tiling(self, spec: SceneSpec) -> Tiling | None:
        """The tiles of the network."""
        return self._network.tiling(spec) if self._network else None

    def tile_bytes(self, spec: SceneSpec) -> int:
        """What the network takes for a tile, by a measurement of it."""
        return self._network.tile_bytes(spec) if self._network else 0

    def smaller(self, spec: SceneSpec) -> Iterator[Stage]:
        """This stage with ever smaller tiles, where its product is the same with them."""
        for side in self._network.smaller(spec) if self._network else ():
            yield type(self)(**{**self.model_dump(exclude_unset=True), "tile": side})

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """The fine pixels of tiles."""
        if self._network is None:
            raise ValueError(f"method {self.method} runs no network")
        return self._network.infer_with(tiles, stats, threads)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The finer cube, NaN where the nearest source pixel has no value, and the repeated layers."""
        layers = {name: block[name] for name in ("quality", "valid") if name in block.spec.variables}
        if self._network:
            fine = self._network.cube(block.spec, block[PREDICTION])
        else:
            fine = refine(block.subject, np.asarray(block.valid, bool), self.scale, KERNELS[self.method])
        return {OUTPUT: fine, **{name: _repeat(layer, self.times) for name, layer in layers.items()}}

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and the method's parameters; a network by its card and the digest of its weights."""
        described = super().fingerprint()
        for name in NETWORK_ONLY:
            described.pop(name)
        return {**described, "scale": self.times, **self._network.fingerprint()} if self._network else described


def _keys(distance: float) -> float:
    """The cubic convolution kernel at a distance in px: Keys (1981), IEEE TASSP 29(6), eq. 15, a = -1/2."""
    s = abs(distance)
    if s <= 1:
        return 1.5 * s**3 - 2.5 * s**2 + 1
    return -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2 if s < 2 else 0.0


def _lanczos(distance: float) -> float:
    """The sinc in the middle lobe of a wider one: Duchon (1979), J. Appl. Meteorol. 18(8), here of `LOBES` lobes."""
    return float(np.sinc(distance) * np.sinc(distance / LOBES)) if abs(distance) < LOBES else 0.0


CUBIC = Kernel(REACH, _keys)
KERNELS = {"bicubic": CUBIC, "lanczos": Kernel(LOBES, _lanczos)}
"""The kernels of the methods that interpolate."""


def refine(cube: Array, valid: npt.NDArray[np.bool_], scale: int, kernel: Kernel = CUBIC) -> FloatImage:
    """Interpolation of `(band, y, x)` to `(band, y * scale, x * scale)`, float32.

    Pixels without a value take no part: the weights of the others are scaled to sum 1. Every output pixel sums the
    same taps in the same order wherever it lies in its block.
    """
    bands, height, width = cube.shape
    fine = np.empty((bands, height * scale, width * scale), np.float32)
    taps = _taps(scale, kernel)
    shared = _present(valid, taps)
    for band, out in zip(cube, fine, strict=True):
        known = np.isfinite(band) & valid
        if not known.any():
            out[...] = np.nan
            continue
        present = shared if np.array_equal(known, valid) else _present(known, taps)
        _convolve(np.where(known, band, np.float32(0)), taps, out)
        with np.errstate(divide="ignore", invalid="ignore"):  # pixels that become NaN below
            out /= present
        out[_repeat(~known, scale)] = np.nan
    return fine


def _present(known: npt.NDArray[np.bool_], taps: list[Tap]) -> FloatImage:
    """Sum of the weights of the known taps of every output pixel: exactly 1 where all are known."""
    fine = np.empty((known.shape[0] * len(taps), known.shape[1] * len(taps)), np.float32)
    _convolve((~known).astype(np.float32), taps, fine, beyond=1)
    present: FloatImage = np.float32(1) - fine
    return present


def _taps(scale: int, kernel: Kernel) -> list[Tap]:
    """The taps of every sub-pixel position, twice the kernel's reach of them."""
    phases = []
    for phase in range(scale):
        position = (phase + 0.5) / scale - 0.5
        first = math.floor(position) + 1 - kernel.reach
        weights = np.array([kernel.weight(position - first - tap) for tap in range(2 * kernel.reach)])
        phases.append(Tap(first + kernel.reach, [np.float32(weight) for weight in weights / weights.sum()]))
    return phases


def _convolve(image: FloatImage, taps: list[Tap], out: FloatImage, beyond: float = 0) -> None:
    """Interpolate rows, then columns, of an image into `out`, one sub-pixel position at a time."""
    reach = len(taps[0].weights) // 2
    padded = np.pad(image, reach, constant_values=beyond)
    scale, (height, width) = len(taps), image.shape
    rows = np.empty((height * scale, padded.shape[1]), np.float32)
    for phase, tap in enumerate(taps):
        parts = [padded[start : start + height] for start in range(tap.first, tap.first + 2 * reach)]
        rows[phase::scale] = _mix(parts, tap.weights)
    for phase, tap in enumerate(taps):
        parts = [rows[:, start : start + width] for start in range(tap.first, tap.first + 2 * reach)]
        out[:, phase::scale] = _mix(parts, tap.weights)


def _mix(images: list[FloatImage], kernel: list[np.float32]) -> FloatImage:
    """Weighted sum of images, from the first to the last."""
    total: FloatImage = images[0] * kernel[0]
    scratch = np.empty_like(total)
    for image, weight in zip(images[1:], kernel[1:], strict=True):
        total += np.multiply(image, weight, out=scratch)
    return total


def _repeat(layer: Array, scale: int) -> Array:
    """Every pixel `scale` times along both axes."""
    return layer.repeat(scale, axis=-2).repeat(scale, axis=-1)
