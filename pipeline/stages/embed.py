"""Embed: what a backbone sees in a scene, as features on a grid of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from pydantic import Field

from cubeloom.errors import ModelError
from cubeloom.pipeline.blocks import PREDICTION, Block
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.grids import CHUNK
from cubeloom.pipeline.scene import SceneSpec, Variable

from .base import Stage, Stats, register

if TYPE_CHECKING:
    from cubeloom.pipeline.tiles import Inferred, Tiling

    from .embed_network import EmbedNetwork

OUTPUT = "embedding"


@register("embed")
class Embed(Stage):
    """Describe a scene by the features of a backbone: a vector for every cell of as many pixels as its stride.

    The result is a group of its own (`d4` for a stride of 4), whose one variable, `embedding(feature, y, x)`, is NaN
    where no pixel of a cell takes part. No stage can follow, for there is no cube any more.

    Attributes:
        model: name of a backbone's weights that are shipped, weights with a card, or `hf:owner/repo/file@sha256`; or a
            family, with `weights`.
        weights: file or hub source with weights of that family.
        variable: the cube to embed; by default what the stages before made last.
        guide: name of the radar scene, for networks that see one beside the scene (see `pair`).
        tile: side of the tiles that the network sees, px; by default that of its card, 0 for the whole image.
        precision: type of the network's arithmetic on a GPU; a CPU always takes float32.
    """

    model: str | None = None
    weights: str | None = None
    variable: str | None = None
    guide: str = "radar"
    tile: int | None = Field(default=None, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    work_cubes: ClassVar[float] = 0.1

    @property
    def skipped(self) -> str:
        """Without a model there is nothing to do."""
        return "" if self.model is not None else "no model given"

    @cached_property
    def _network(self) -> EmbedNetwork:
        from .embed_network import EmbedNetwork  # its libraries are not for those who embed nothing

        if self.model is None:
            raise ModelError("embed: no model given; set model to a backbone of `cubeloom models list`")
        return EmbedNetwork.of(self.model, self.weights, self.precision, self.tile, self.variable, self.guide)

    @property
    def guides(self) -> tuple[str, ...]:
        """The radar scene, where the network sees one beside the scene."""
        return self._network.guides if self.model is not None else ()

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene of the embedding, in a group of its own.

        Raises:
            InputError: there is no such cube.
            ModelError: there is no such model, or it does not fit the scene's bands or units.
            ConfigError: tiles that the network does not take.
        """
        if self.model is None:
            return spec
        from .classify_network import filled_bands

        network = self._network
        bound, stride = network.require(spec), network.stride
        if CHUNK % stride:
            raise ModelError(f"embed: {network.card.name} has a stride of {stride} px, which does not divide {CHUNK}")
        attrs = {
            "long_name": f"features of {network.card.name}, one vector for {stride} x {stride} px",
            "features": network.channels,
            "model_sha256": network.card.sha256,
            **filled_bands(bound),
        }
        return replace(
            spec,
            grid=coarser(spec.grid, stride),
            variables={OUTPUT: Variable(("feature", "y", "x"), FLOAT, attrs)},
            measurement=OUTPUT,
            subject=OUTPUT,
            group="_".join(filter(None, (spec.group, f"d{stride}"))),
            scale=Fraction(spec.scale) / stride,
            history=(*spec.history, f"embed: {network.seen(spec)}, {network.describe(bound)}"),
        )

    def tiling(self, spec: SceneSpec) -> Tiling | None:
        """The tiles of the network."""
        return self._network.tiling(spec) if self.model is not None else None

    def tile_bytes(self, spec: SceneSpec) -> int:
        """What the network takes for a group of tiles, by a measurement of it."""
        return self._network.tile_bytes(spec) if self.model is not None else 0

    def weight_bytes(self) -> int:
        """Those of the network."""
        return self._network.weight_bytes() if self.model is not None else 0

    def smaller(self, spec: SceneSpec) -> Iterator[Stage]:
        """This stage with ever smaller tiles."""
        for side in self._network.smaller(spec):
            yield type(self)(**{**self.model_dump(), "tile": side})

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """The features of a group of tiles."""
        return self._network.infer(tiles, threads)

    def apply(self, block: Block, stats: Stats) -> dict[str, npt.NDArray[Any]]:
        """The features of a block."""
        return {OUTPUT: np.asarray(block[PREDICTION])} if self.model is not None else {}

    def fingerprint(self) -> dict[str, Any]:
        """Name and version, and the network by its card and the digest of its weights."""
        described = {"stage": self.name, "version": self.version}
        return described if self.model is None else {**described, **self._network.fingerprint()}


def coarser(grid: GeoBox, stride: int) -> GeoBox:
    """The grid with pixels `stride` times larger and the same corner; pixel numbers where there is no CRS."""
    shape = (ceil(grid.shape[0] / stride), ceil(grid.shape[1] / stride))
    if grid.crs is None:
        return GeoBox(shape, Affine.identity(), None)
    return GeoBox(shape, grid.affine * Affine.scale(stride), grid.crs)
