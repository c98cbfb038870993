"""Super-resolution by a trained network: tiles of the scene go in, and come out some times finer.

A tile's answer is held as the fine pixels of each pixel of the scene, so that tiles are blended as those of any other
network are. A card with `input_bands` says which bands the network knows. One without takes groups of as many good
bands as it sees, slid along the spectrum by half and blended, each value over the largest of the scene, which is how
such networks are trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.binding import Binding
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import BoolArray, SceneSpec
from cubeloom.pipeline.tiles import Axis, How, Inferred, Lattice, Tiling, padded

from .base import Stats
from .histograms import quantiles, value_histograms
from .spectra import spectra_of
from .tile_network import FloatImages, TileNetwork

TAIL = 1e-3
"""Share of a band's values above what counts as its largest."""

RAMP = 8
"""Pixels over which tiles are blended that would agree in any case."""


@dataclass(frozen=True)
class SuperresNetwork(TileNetwork):
    """The method `network` of the stage `superres`."""

    stage: ClassVar[str] = "superres"
    task: ClassVar[str] = "superres"

    @property
    def scale(self) -> int:
        """How many times finer the answer is."""
        return self.card.scale

    @property
    def channels(self) -> int:
        """Fine pixels of a pixel, of all bands that the network sees at once."""
        return self._seen * self.scale**2

    @property
    def _seen(self) -> int:
        return self.card.bands or 1

    @property
    def stride(self) -> int:
        """Every pixel has its own."""
        return 1

    @property
    def passes(self) -> int:
        """One over the scene where the card does not tell the range of its bands."""
        return 0 if self.card.input_bands is not None else 1

    def require(self, spec: SceneSpec) -> BandInput:
        """As every network; here the bands that come out must be the scene's own.

        Raises:
            InputError: fewer good bands than the network sees at once.
            ModelError: the network's bands are no bands of the scene.
        """
        if self.card.input_bands is None:
            where = self.require_kind(spec)
            good = int(spec.bands.good.sum())
            if good < self._seen:
                raise InputError(
                    f"{where}: {good} good bands of {len(spec.bands)}, the network takes {self._seen} at once; use "
                    "one of fewer bands"
                )
            self._require_tile(where)
            return self._in_groups(spec, 1.0)
        bound = super().require(spec)
        if bound.binding.index is None:
            raise ModelError(
                f"{spec.scene_id}, superres with {self.model}: the network's bands are not those of the scene, so what "
                "it gives are not either; resample_bands brings the scene to them first"
            )
        return bound

    def _require_tile(self, where: str) -> None:
        if self.tile is None:
            return
        if self.card.reach is None and self.tile != self.card.tile:
            raise ConfigError(
                f"{where}: tile {self.tile}; what this network makes of a pixel depends on the tile around it, and its "
                f"card fixes {self.card.tile} px: leave tile out"
            )
        least = 2 * (self.card.reach or 0) + RAMP + 1
        if self.tile and self.tile < least:
            raise ConfigError(f"{where}: tile {self.tile}; the network reaches so far that it takes {least} px or more")
        super()._require_tile(where)

    def bound(self, spec: SceneSpec, stats: Stats) -> BandInput:
        """The way from the scene's bands to the network's."""
        if self.card.input_bands is None:
            return self._in_groups(spec, float(stats["largest"][0]))
        return BandInput.of(self.card, spec.bands)

    @staticmethod
    def _in_groups(spec: SceneSpec, largest: float) -> BandInput:
        """All good bands, over the largest value."""
        good = np.flatnonzero(spec.bands.good)
        mean, std = np.zeros(good.size, np.float32), np.full(good.size, largest, np.float32)
        every = np.arange(good.size)
        return BandInput(Binding(index=good), every, (), spec.bands.wavelength[good], mean, std, "by groups")

    def measure(self, block: Block) -> Stats:
        """How often which values are met in every good band."""
        parts = ((spectra, observed) for _, spectra, observed in spectra_of(block, block.core))
        return {"histograms": value_histograms(parts)}

    def settle(self, sums: Stats) -> Stats:
        """The largest value of the scene, but for outliers."""
        tops = quantiles(sums["histograms"], 1 - TAIL)
        largest = float(np.nanmax(tops, initial=0.0))
        return {"largest": np.array([largest if largest > 0 else 1.0])}

    def tiling(self, spec: SceneSpec) -> Tiling:
        """Tiles of the card's side; where the network looks only so far, what lies nearer to an edge is left out."""
        tiling = super().tiling(spec)
        channels = int(self._places(spec).size) * self.scale**2
        if self.card.reach is None:
            return replace(tiling, channels=channels, at_once=1)
        overlap = max(self.card.halo, 2 * self.card.reach + RAMP)
        return replace(tiling, channels=channels, at_once=1, overlap=overlap, trim=self.card.reach)

    def smaller(self, spec: SceneSpec) -> Iterator[int]:
        """Sides of smaller tiles, where the product is the same with them."""
        if self.card.reach is not None:
            least = 2 * self.card.reach + RAMP
            yield from (side for side in super().smaller(spec) if side > least)

    def tile_bytes(self, spec: SceneSpec) -> int:
        """Channels of a tile, the network's activations for a group of bands, and the fine cube twice."""
        from cubeloom.pipeline.inference import activation_bytes

        tiling = self.tiling(spec)
        rows, cols = Lattice.of(spec.shape, tiling).shape
        given = len(self._places(spec)) if self.card.input_bands is None else self._seen
        activations = activation_bytes(self.handle, (self._seen,), tiling.multiple)
        return int(rows * cols * (activations + 4 * (4 * given + 3 * given * self.scale**2)))

    def _places(self, spec: SceneSpec) -> npt.NDArray[np.intp]:
        """Places in the scene of the bands that come out."""
        if self.card.input_bands is None:
            return np.flatnonzero(spec.bands.good)
        index = BandInput.of(self.card, spec.bands).binding.index
        assert index is not None  # as `require` has found
        return index

    def infer_with(self, tiles: Sequence[Block], stats: Stats, threads: int) -> Inferred:
        """What the network makes of each tile; one without any pixel that takes part is NaN."""
        made = [self._tile(tile, stats, threads) for tile in tiles]
        hows = [how for _, how in made if how.device]
        return Inferred([images for images, _ in made], hows[0] if hows else How())

    def _tile(self, tile: Block, stats: Stats, threads: int) -> tuple[FloatImages, How]:
        spec, bound = tile.spec, self.bound(tile.spec, stats)
        channels, known = self._sample(tile, bound)
        if not known.any():
            count = bound.present.size * self.scale**2
            return np.full((count, *known.shape), np.nan, np.float32), How()
        shape = Lattice.of(spec.shape, self.tiling(spec)).shape
        fine, how = self._finer(padded(channels, shape), threads)
        fine = fine[bound.present, : known.shape[0] * self.scale, : known.shape[1] * self.scale]
        fine *= bound.std[bound.present, None, None]
        fine += bound.mean[bound.present, None, None]
        return self.images(folded(fine, self.scale), known), how

    def _finer(self, channels: FloatImages, threads: int) -> tuple[FloatImages, How]:
        """The network's answer to all channels, in groups that are blended along the spectrum."""
        from cubeloom.pipeline.inference import predict

        count, height, width = channels.shape
        axis = Axis.of(count, self._seen, self._seen // 2)
        expected = (self._seen, height * self.scale, width * self.scale)
        fine, how = np.zeros((count, *expected[1:]), np.float32), How()
        for number, start in enumerate(axis.starts):
            answer, how = predict(self.handle, channels[None, start : start + self._seen], None, threads)
            if answer.shape[1:] != expected:
                raise ModelError(
                    f"model {self.card.name}: gives {answer.shape[1:]} of a tile, its card tells of {expected}"
                )
            fine[start : start + self._seen] += answer[0] * axis.weights[number][:, None, None]
        return fine, how

    def images(self, answer: FloatImages, known: BoolArray) -> FloatImages:
        """The fine pixels; NaN where their pixel takes no part."""
        answer[:, ~known] = np.nan
        return answer

    def cube(self, spec: SceneSpec, blended: FloatImages) -> FloatImages:
        """The scene's bands on the finer grid; NaN in those that the network does not give."""
        places = self._places(spec)
        height, width = blended.shape[1] * self.scale, blended.shape[2] * self.scale
        fine = np.full((len(spec.bands), height, width), np.nan, np.float32)
        fine[places] = unfolded(blended, self.scale)
        return fine

    def describe(self, bound: BandInput) -> str:
        """The network in a line of history."""
        groups = len(Axis.of(bound.wavelengths.size, self._seen, self._seen // 2).starts)
        return super().describe(bound) + (f", {groups} groups" if groups > 1 else "")

    def fingerprint(self) -> dict[str, Any]:
        """What of the network decides the product."""
        told = super().fingerprint()
        more = self.card.model_dump(mode="json", include={"reach", "scale", "bands"})
        return {**told, "network": {**told["network"], **more}}


def folded(fine: FloatImages, scale: int) -> FloatImages:
    """`(band, scale y, scale x)` as `(band * scale * scale, y, x)`."""
    bands, height, width = fine.shape
    cells = fine.reshape(bands, height // scale, scale, width // scale, scale)
    return cells.transpose(0, 2, 4, 1, 3).reshape(-1, height // scale, width // scale)


def unfolded(images: FloatImages, scale: int) -> FloatImages:
    """The reverse of `folded`."""
    height, width = images.shape[1:]
    cells = images.reshape(-1, scale, scale, height, width)
    return cells.transpose(0, 3, 1, 4, 2).reshape(-1, height * scale, width * scale)
