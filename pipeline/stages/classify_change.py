"""A class of change for every pixel of two dates, by a network: the scene, and a guide of another date on its grid."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from cubeloom.errors import InputError, ModelError
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import BoolArray, SceneSpec

from .classify_network import SegmentNetwork
from .tile_network import FloatImages


@dataclass(frozen=True)
class ChangeNetwork(SegmentNetwork):
    """The stage `classify` with a network of two dates; a pixel takes part where it does at both."""

    @classmethod
    def like(cls, network: SegmentNetwork) -> Self:
        """The network of a card with two dates."""
        return cls(**{field.name: getattr(network, field.name) for field in fields(network)})

    @property
    def guides(self) -> tuple[str, ...]:
        """The scene of the other date."""
        return (self.guide,)

    def input_of(self, spec: SceneSpec) -> BandInput:
        """The way from the scene's own bands to the network.

        Raises:
            ModelError: bands that it lacks.
        """
        return BandInput.of(self.card, spec.bands)

    def _require_guide(self, where: str, spec: SceneSpec, name: str) -> None:
        """Check that the guide shows what the scene does, on its grid.

        Raises:
            ModelError: it is of another quantity, or lacks bands.
            InputError: it is finer.
        """
        guide = spec.guides[name]
        units = guide.variables[guide.subject].attrs.get("units")
        if (guide.measurement, units) != (spec.measurement, spec.variables[self.subject(spec)].attrs.get("units")):
            raise ModelError(
                f"{where}: the guide {name!r} holds {guide.subject} of {guide.measurement} in {units!r}; the network "
                f"compares two dates of the scene's {spec.measurement}: pair a scene of the same sensor and level"
            )
        if guide.scale != spec.scale:
            raise InputError(f"{where}: the guide {name!r} lies on another grid than the scene; give `pair` refine: 1")
        try:
            BandInput.of(self.card, guide.bands)
        except ModelError as error:
            raise ModelError(f"{where}, the guide {name!r}: {error}") from None

    def _sample(self, tile: Block, bound: BandInput) -> tuple[FloatImages, BoolArray]:
        """The channels of both dates, and the pixels that take part."""
        guide = tile.guides[self.guide]
        of_guide = BandInput.of(self.card, guide.spec.bands)
        cubes = self._measured(tile), self._numbers(guide, guide.spec.subject)
        valid = np.asarray(tile.valid, bool) & np.asarray(guide.valid, bool)
        for cube in cubes:
            valid &= np.isfinite(cube).any(axis=0)
        later, earlier = (way.prepared(cube, valid) for way, cube in zip((bound, of_guide), cubes, strict=True))
        return np.concatenate([later[0], earlier[0]]), later[1] & earlier[1]
