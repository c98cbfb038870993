"""A network over the tiles of a scene: its card meets the scene, its channels go in and images come out.

What a pixel under the mask holds never reaches the network: it sees the nearest spectrum that takes part instead, and
where it looks at a whole tile and can be told so, at the pixels that take part alone.

A network of two sensors sees the scene's bands and, behind them, the radar's of a guide on the same grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, lcm
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.cards import Card
from cubeloom.models.registry import model_card
from cubeloom.pipeline.band_input import BandInput, beside
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.regrid import centre_lonlat
from cubeloom.pipeline.scene import MEASUREMENTS, BoolArray, SceneSpec
from cubeloom.pipeline.tiles import How, Inferred, Lattice, Tiling, padded

from .denoise_network import TOGETHER
from .tasks import require_task, require_weights
from .to_db import decibels, is_linear_backscatter

if TYPE_CHECKING:
    from cubeloom.models.network import Network
    from cubeloom.pipeline.inference import ModelHandle, Precision

FloatImages = npt.NDArray[np.float32]

RADAR = "radar"
"""What the guide of a network of two sensors is called unless told otherwise."""

SIDES = (1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32)
"""Sides of tiles, px, that are proposed where the one asked for takes too much memory."""


@dataclass(frozen=True)
class TileNetwork(ABC):
    """What the stages that run such a network have in common.

    Attributes:
        model: as `model_card` takes it.
        weights: those of a family, where `model` does not name them.
        card: of the weights.
        precision: type of the arithmetic on a GPU.
        tile: side of the tiles, px; the card's where None, the whole image where 0.
        variable: the cube that it works on; the scene's subject where None.
        guide: name of the radar scene, where the network sees one beside the scene.
    """

    model: str
    weights: str | None
    card: Card
    precision: "Precision"
    tile: int | None
    variable: str | None
    guide: str

    stage: ClassVar[str]
    task: ClassVar[str]

    @classmethod
    def of(
        cls,
        model: str,
        weights: str | None,
        precision: "Precision",
        tile: int | None,
        variable: str | None = None,
        guide: str = RADAR,
    ) -> Self:
        """The network of a name.

        Raises:
            ModelError: there is none, it has no weights, or it is for another task than the stage's.
        """
        card = model_card(model, weights)
        require_task(card, cls.stage, cls.task)
        require_weights(card, cls.stage)
        return cls(model, weights, card, precision, tile, variable, guide)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Images that it gives of a tile."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels of the scene to one of its images."""

    @abstractmethod
    def images(self, answer: FloatImages, known: BoolArray) -> FloatImages:
        """What is blended of the answer to a tile, NaN where none of a cell's pixels takes part.

        Args:
            answer: of the network, cut to the cells of the tile, `(channel, y, x)`.
            known: pixels of the tile that take part, filled up to whole cells.
        """

    @cached_property
    def handle(self) -> "ModelHandle":
        """The network, to be loaded where it runs."""
        from cubeloom.pipeline.inference import ModelHandle

        by_file = self.weights is None and self.model != self.card.name
        name, weights = (self.card.family, self.model) if by_file else (self.model, self.weights)
        return ModelHandle(name, weights, self.card.sha256, self.precision, dense=self.task == "embed")

    def subject(self, spec: SceneSpec) -> str:
        """Name of the cube that it works on."""
        return self.variable or spec.subject

    @property
    def guides(self) -> tuple[str, ...]:
        """The radar scene, where the network sees one beside the scene's own bands."""
        return (self.guide,) if self.card.input_bands and self.card.polarisations else ()

    def seen(self, spec: SceneSpec) -> str:
        """What it works on, in words."""
        return " and ".join([self.subject(spec), *(f"{name} {spec.guides[name].scene_id}" for name in self.guides)])

    def input_of(self, spec: SceneSpec) -> BandInput:
        """The way from the bands of scene and guide to the network.

        Raises:
            ModelError: bands that they lack.
        """
        bands = spec.bands
        for name in self.guides:
            bands = beside(bands, spec.guides[name].bands)
        return BandInput.of(self.card, bands)

    def require(self, spec: SceneSpec) -> BandInput:
        """Check that the scene is of the kind that the network was trained on; the way from its bands to the network.

        Raises:
            InputError: there is no such cube.
            ModelError: another measurement, other units, or bands that the scene lacks.
            ConfigError: tiles that the network does not take.
        """
        where = self.require_kind(spec)
        try:
            bound = self.input_of(spec)
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from None
        if self.card.located and spec.grid.crs is None:
            raise ModelError(f"{where}: the network asks where a tile lies, and the scene has no map projection")
        for guide in self.guides:
            self._require_guide(where, spec, guide)
        self._require_tile(where)
        return bound

    def require_kind(self, spec: SceneSpec) -> str:
        """Check the cube and its units; what messages begin with.

        Raises:
            InputError: there is no such cube.
            ModelError: another measurement, or other units.
        """
        card, name, where = self.card, self.subject(spec), f"{spec.scene_id}, {self.stage} with {self.model}"
        if name not in spec.variables or not spec.variables[name].is_cube:
            cubes = [cube for cube, variable in spec.variables.items() if variable.is_cube]
            raise InputError(f"{where}: no cube {name!r}; the scene has {', '.join(cubes) or 'none'}")
        linear = card.units == "dB" and is_linear_backscatter(spec, name)  # which becomes decibels on the way
        units = "dB" if linear else spec.variables[name].attrs.get("units")
        if card.units is not None and units != card.units:
            raise ModelError(f"{where}: {name} has units {units!r}, the network was trained on {card.units!r}")
        if card.variable in MEASUREMENTS and spec.measurement in MEASUREMENTS and card.variable != spec.measurement:
            raise ModelError(f"{where}: the scene is of {spec.measurement}, the network was trained on {card.variable}")
        return where

    def _require_guide(self, where: str, spec: SceneSpec, name: str) -> None:
        guide = spec.guides[name]
        decibels = guide.variables[guide.subject].attrs.get("units") == "dB"
        if not decibels and not (guide.measurement == "sigma0" and is_linear_backscatter(guide, guide.subject)):
            raise ModelError(
                f"{where}: the guide {name!r} holds {guide.subject} of {guide.measurement}, the network was trained on "
                "sigma0 of a radar; pair a Sentinel-1 scene, opened with calibration sigma0, with its last step to_db"
            )
        if guide.scale != spec.scale:
            raise InputError(
                f"{where}: the guide {name!r} lies on a grid {guide.scale / spec.scale} times finer than the scene's; "
                "give `pair` refine: 1"
            )

    def _require_tile(self, where: str) -> None:
        if self.tile:
            multiple, least = self._multiple, 2 * self.card.halo + 1
            if self.tile % multiple or self.tile < least:
                fitting = max(self.tile // multiple, ceil(least / multiple)) * multiple
                raise ConfigError(
                    f"{where}: tile {self.tile}; the network takes multiples of {multiple} px, from "
                    f"{ceil(least / multiple) * multiple}: take {fitting}, or 0 for the whole image"
                )

    @property
    def _multiple(self) -> int:
        return lcm(self.card.multiple, self.stride)

    def tiling(self, spec: SceneSpec) -> Tiling:
        """Tiles of the size wanted; small ones go through the network together.

        A tile is as large as those of the training wherever the scene is: a network may know positions by heart.
        """
        multiple = self._multiple
        edge = self.card.tile if self.tile is None else self.tile or max(spec.shape)
        edge = ceil(edge / multiple) * multiple
        alone = Tiling(edge, self.card.halo, multiple, self.channels, stride=self.stride, exact=True)
        rows, cols = Lattice.of(spec.shape, alone).shape
        return replace(alone, at_once=max(TOGETHER // (rows * cols), 1))

    def smaller(self, spec: SceneSpec) -> Iterator[int]:
        """Sides of tiles that the network takes and that are smaller than those it has, descending, px."""
        largest, least = max(Lattice.of(spec.shape, self.tiling(spec)).shape), 2 * self.card.halo
        for side in SIDES:
            if least < side < largest and side % self._multiple == 0:
                yield side

    def tile_bytes(self, spec: SceneSpec) -> int:
        """Channels of a group of tiles, the network's activations, and what is blended."""
        from cubeloom.pipeline.inference import activation_bytes

        tiling = self.tiling(spec)
        rows, cols = Lattice.of(spec.shape, tiling).shape
        depth = (self.card.bands or 0) * self.card.dates
        activations = activation_bytes(self.handle, (depth,), tiling.multiple)
        samples = 4 * depth * (2 * tiling.at_once + 2)
        results = 4 * (tiling.at_once + 2) * tiling.channels / self.stride**2
        pairs: int = cast("Network", self.handle.load("cpu")).pair_bytes(rows, cols)
        return int(rows * cols * (activations + samples + results)) + pairs

    def weight_bytes(self) -> int:
        """Those of the network."""
        from cubeloom.pipeline.inference import weight_bytes

        return weight_bytes(self.handle)

    def infer(self, tiles: Sequence[Block], threads: int) -> Inferred:
        """What the network makes of a group of tiles: images to be blended.

        A tile without any pixel that takes part is NaN, and the network never sees it.
        """
        spec = tiles[0].spec
        lattice, bound = Lattice.of(spec.shape, self.tiling(spec)), self.input_of(spec)
        samples = [self._sample(tile, bound) for tile in tiles]
        seen = [sample for sample in samples if sample[1].any()]
        places = [
            centre_lonlat(spec.grid, tile.window)
            for tile, (_, known) in zip(tiles, samples, strict=True)
            if known.any()
        ]
        made, how = self._made(seen, places, lattice, threads) if seen else (iter(()), How())
        images = []
        for _, known in samples:
            cells = tuple(ceil(size / self.stride) for size in known.shape)
            if known.any():
                answer = next(made)[:, : cells[0], : cells[1]]
                images.append(self.images(answer, _whole_cells(known, self.stride)))
            else:
                images.append(np.full((self.channels, *cells), np.nan, np.float32))
        return Inferred(images, how)

    def _sample(self, tile: Block, bound: BandInput) -> tuple[FloatImages, BoolArray]:
        """The channels of a tile, and its pixels that take part; a value that `defect` marks is none."""
        cube, valid = self._measured(tile), np.asarray(tile.valid, bool)
        for name in self.guides:
            guide = tile.guides[name]
            cube = np.concatenate([cube, self._numbers(guide, guide.spec.subject)])
            valid = valid & np.asarray(guide.valid, bool)
        return bound.prepared(cube, valid)

    def _measured(self, tile: Block) -> npt.NDArray[Any]:
        """The cube of a tile, NaN where `defect` marks a value."""
        cube = self._numbers(tile, self.subject(tile.spec))
        return np.where(tile["defect"], np.float32(np.nan), cube) if "defect" in tile.arrays else cube

    def _numbers(self, block: Block, name: str) -> npt.NDArray[Any]:
        """A cube as the network's statistics are: of a radar in decibels."""
        cube = block[name]
        return decibels(cube) if self.card.polarisations and is_linear_backscatter(block.spec, name) else cube

    def _made(
        self,
        samples: Sequence[tuple[FloatImages, BoolArray]],
        places: Sequence[tuple[float, float] | None],
        lattice: Lattice,
        threads: int,
    ) -> tuple[Iterator[FloatImages], How]:
        from cubeloom.pipeline.inference import predict

        inputs = np.stack([padded(channels, lattice.shape) for channels, _ in samples])
        counted = np.zeros((len(samples), *lattice.shape), bool)
        for target, (_, known) in zip(counted, samples, strict=True):
            target[: known.shape[0], : known.shape[1]] = known
        lonlat = None if None in places else np.array(places, np.float64)
        answers, how = predict(self.handle, inputs, None if counted.all() else counted, threads, lonlat)
        if answers.shape[1] != self.channels:
            raise ModelError(
                f"model {self.card.name}: gives {answers.shape[1]} images of a tile, its card tells of {self.channels}"
            )
        return iter(answers), how

    def describe(self, bound: BandInput) -> str:
        """The network in a line of history."""
        return f"network {self.card.name}, weights {self.card.sha256[:8]}, bands {bound.describe()}"

    def fingerprint(self) -> dict[str, Any]:
        """What of the network decides the product: all that its card says of how it is used, and the tiles."""
        told = {"family", "settings", "sha256", "tile", "halo", "multiple", "input_bands", "mean", "std", "classes"}
        told |= {"polarisations"} if self.card.polarisations else set()
        card = self.card.model_dump(mode="json", include=told)
        if self.tile is not None:
            card["tile"] = self.tile
        return {"network": card, "precision": self.precision, "variable": self.variable}


def _whole_cells(known: BoolArray, stride: int) -> BoolArray:
    """Pixels `(y, x)` filled up with False to whole cells."""
    more = [(0, -size % stride) for size in known.shape]
    return np.pad(known, more)
