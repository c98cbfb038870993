"""Denoise: without training in the spectra's subspace, or by a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy.typing as npt
from pydantic import Field, model_validator

from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import UNCERTAINTY, SceneSpec, cube_variable

from .base import Stage, Stats, register
from .denoise_subspace import SubspaceMethod
from .subspace import Rank

if TYPE_CHECKING:
    from cubeloom.pipeline.tiles import Inferred, Tiling

    from .denoise_network import NetworkMethod

SHIPPED = "hsdt_s.enmap"
"""The network of the default: on real cubes that no training saw it is the better of the two methods."""

NETWORK_ONLY = ("model", "weights", "precision", "uncertainty")
"""Parameters that say nothing of the method `subspace`, nor of its products."""


class _Method(Protocol):
    """What the two methods have in common; each is a small value made of the stage's parameters."""

    @property
    def passes(self) -> int: ...

    @property
    def halo(self) -> int: ...

    def require(self, spec: SceneSpec) -> None: ...

    def measure(self, block: Block, stats: Stats, number: int) -> Stats: ...

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats: ...

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]: ...


@register("denoise")
class Denoise(Stage):
    """Remove noise that is independent from band to band, and keep what bands share.

    `subspace` needs no training. Two passes: the mean and covariance of complete spectra, which give each band's noise
    and the signal subspace; then histograms of wavelet coefficients, which give every component, level and orientation
    its thresholds. How the noise spreads over levels and orientations is read off directions that hold no signal, so
    noise that resampling has correlated from pixel to pixel is met as it is.

    `network` runs a trained network over tiles. Its card says what the network sees: windows of bands, each band
    scaled by its own range, or the component images of the subspace; and on which wavelengths and units it was
    trained: a scene that does not fit is refused. One pass.

    `denoised` is NaN at pixels that do not take part and in bands that are not good. A good band that is missing at a
    pixel (no value, or marked in `defect`) is estimated from the pixel's other bands.

    Attributes:
        method: `subspace` or `network`.
        rank: number of components, or how it is found: `auto` keeps all that rise above noise, `hysime` those with
            more signal than noise. A network takes at most as many as its card says.
        strength: 1 removes what is most likely noise. `subspace`: factor on all thresholds, 0 is the projection on
            the subspace alone. `network`: factor on the noise level that the network is told; one that is told none
            is blended with its input, from 0, which leaves the spectra as they are, to 1.
        outliers: tell dead, saturated and struck values, dead columns and stripes from noise, in five more passes, and
            estimate them from the pixel's other bands. Not for a network that sees the bands themselves.
        model: name of the network, such as `hsdt_s`, or with the tag of weights that are shipped; by default
            `hsdt_s.enmap`.
        weights: file or `hf:owner/repo/file@sha256` with weights for it; by default those of the tag.
        precision: type of the network's arithmetic on a GPU; a CPU always takes float32.
        uncertainty: also give the standard deviation of what the network makes of the eight ways to turn and flip
            each tile, as a cube `uncertainty`; `denoised` is then their mean.
    """

    work_cubes = 1.2

    method: Literal["subspace", "network"] = "network"
    rank: Rank = "auto"
    strength: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False)
    outliers: bool = False
    model: str | None = None
    weights: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    uncertainty: bool = False

    @model_validator(mode="after")
    def _parameters_suit_the_method(self) -> Self:
        given = [name for name in NETWORK_ONLY if getattr(self, name) != type(self).model_fields[name].default]
        if self.method != "network" and given:
            raise ValueError(f"{', '.join(given)} belong to method network, and method is {self.method}")
        return self

    @property
    def _method(self) -> _Method:
        return self._network or SubspaceMethod(self.rank, self.strength, self.outliers)

    @cached_property
    def _network(self) -> NetworkMethod | None:
        """The network with its card, read once: a stage stands for the weights that it found first."""
        if self.method != "network":
            return None
        from .denoise_network import network_method  # its libraries are not for those who denoise without

        return network_method(
            self.model or SHIPPED,
            self.weights,
            self.precision,
            self.rank,
            self.strength,
            outliers=self.outliers,
            uncertainty=self.uncertainty,
        )

    @property
    def passes(self) -> int:
        """Over the scene: two without a network, one with it, and five more where outliers are told from noise."""
        return self._method.passes

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene with `denoised` as its subject.

        Raises:
            InputError: too few good bands, or a rank that they do not have.
            ModelError: there is no such model, or it does not fit the scene's wavelengths or units.
        """
        self._method.require(spec)
        network = self._network
        units = str(spec.variables[spec.subject].attrs.get("units", "1"))
        how = network.describe() if network else f"{self.method}, rank {self.rank}"
        made = {"denoised": cube_variable("denoised", long_name=f"denoised {spec.subject}", units=units)}
        if self.uncertainty:
            name = f"standard deviation of denoised {spec.subject}"
            made[UNCERTAINTY] = cube_variable(UNCERTAINTY, long_name=name, units=units)
        return spec.with_variables(f"denoise: {how}, strength {self.strength:g}", "denoised", **made)

    def halo(self, spec: SceneSpec) -> int:
        """Reach of the wavelets; a network's tiles overlap by themselves."""
        return self._method.halo

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums over spectra, or wavelet statistics of the components (pass 1)."""
        return self._method.measure(block, stats, number)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """What the method needs to know of the whole scene.

        Raises:
            InputError: too few pixels have a value in every good band.
        """
        return self._method.settle(sums, stats, number, spec)

    def tiling(self, spec: SceneSpec) -> Tiling | None:
        """The tiles of the network, as its card wants them."""
        network = self._network
        return network.tiling(spec) if network else None

    def tile_bytes(self, spec: SceneSpec) -> int:
        """What the network takes for a group of tiles, by a measurement of it."""
        network = self._network
        return network.tile_bytes(spec) if network else 0

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """What the network makes of a group of tiles."""
        network = self._network
        if network is None:
            raise ValueError(f"method {self.method} runs no network")
        return network.infer(tiles, stats, threads)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The `denoised` cube of a block, and its uncertainty; NaN in the halo as well."""
        return self._method.apply(block, stats)

    def fingerprint(self) -> dict[str, Any]:
        """Name, version and the method's parameters; a network by its card and the digest of its weights."""
        described = super().fingerprint()
        for name in NETWORK_ONLY:
            described.pop(name)
        network = self._network
        return {**described, **network.fingerprint()} if network else described
