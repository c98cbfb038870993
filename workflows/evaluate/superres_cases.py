"""What methods of super-resolution are given, and what they are judged by: the two protocols.

`full`: the scene as it is; judged by the truth where ground is simulated, else without a reference. `reduced`: Wald's
protocol (Wald, Ranchin and Mangolini 1997, PE&RS 63(6)): scene and guide are degraded as many times as they are to be
refined, and the scene itself is the truth.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubeloom.errors import ConfigError
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.scene import BoolArray, FloatArray, SceneSpec, spec_of
from cubeloom.pipeline.stages.embed import coarser
from cubeloom.pipeline.stages.pair import comparable

from .cubes import digest
from .superres_grounds import Ground, with_cube

Float32Array = npt.NDArray[np.float32]

PROTOCOLS = ("full", "reduced")
MARGIN = 3
"""Pixels at each edge of the scene that are not judged: there every method lacks neighbours."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scene to refine by one protocol.

    Attributes:
        ground: name of the ground.
        protocol: of `PROTOCOLS`.
        scale: how many times finer.
        mtf: modulation transfer of the scene's sensor.
        scene: what methods are given, in memory.
        truth: what they should make of it, `(band, y, x)`; None where that is not known.
        guides: on the fine grid, by what of the guide is taken; none where there is none.
    """

    ground: str
    protocol: str
    scale: int
    mtf: float
    scene: xr.Dataset
    truth: Float32Array | None
    guides: Mapping[str, xr.Dataset]

    @property
    def spec(self) -> SceneSpec:
        """The scene without its pixels."""
        return spec_of(self.scene)

    @property
    def cube(self) -> Float32Array:
        """The scene's cube, `(band, y, x)`."""
        return np.asarray(self.scene[self.scene.attrs["subject"]].values, np.float32)

    @property
    def wavelength(self) -> FloatArray:
        """Centres of the bands, nm."""
        return self.spec.bands.wavelength

    @property
    def good(self) -> BoolArray:
        """Bands that hold usable data."""
        return self.spec.bands.good

    @property
    def preferred(self) -> BoolArray:
        """Bands to show where detectors overlap."""
        return self.spec.bands.preferred

    @property
    def known(self) -> BoolArray:
        """Pixels of the scene with a value in every good band, `(y, x)`."""
        return np.asarray(np.isfinite(self.cube[self.good]).all(axis=0))

    @property
    def judged(self) -> BoolArray:
        """Fine pixels that count: with truth, of pixels of the scene with values, `MARGIN` and more off its edge."""
        known = self.known
        known[:MARGIN] = known[-MARGIN:] = known[:, :MARGIN] = known[:, -MARGIN:] = False
        fine = known.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        return fine if self.truth is None else fine & np.isfinite(self.truth[self.good]).all(axis=0)

    def sharp(self) -> Float32Array | None:
        """The guide's finest bands that the scene's cover, on the fine grid; None where there is no guide."""
        if "finest" not in self.guides:
            return None
        guide = self.guides["finest"]
        return np.asarray(guide[guide.attrs["subject"]].values[comparable(self.spec, spec_of(guide))], np.float32)

    def describe(self) -> dict[str, Any]:
        """What there is to say of it, for JSON."""
        height, width = self.spec.shape
        return {
            "ground": self.ground,
            "protocol": self.protocol,
            "height": height,
            "width": width,
            "good_bands": int(self.good.sum()),
            "judged_pixels": int(self.judged.sum()),
            "truth": self.truth is not None,
            "guides": {name: guide.attrs["scene_id"] for name, guide in self.guides.items()},
            "sha256": digest(self.cube),
        }


def parse_protocols(text: str) -> tuple[str, ...]:
    """Protocols from `full,reduced`.

    Raises:
        ConfigError: one that is not known, or none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or set(names) - set(PROTOCOLS):
        raise ConfigError(f"--protocols is {text!r}; expected one of {', '.join(PROTOCOLS)}, or both")
    return names


def cases_of(ground: Ground, protocols: Collection[str], scale: int, mtf: float) -> list[Case]:
    """The cases of some ground."""
    make = {"full": _full, "reduced": _reduced}
    return [make[protocol](ground, scale, mtf) for protocol in protocols]


def _full(ground: Ground, scale: int, mtf: float) -> Case:
    return Case(ground.name, "full", scale, mtf, ground.scene, ground.truth, ground.guides)


def _reduced(ground: Ground, scale: int, mtf: float) -> Case:
    scene = _degraded(ground.scene, scale, mtf)
    guides = ground.own or {name: _degraded(guide, scale, mtf) for name, guide in ground.guides.items()}
    truth = np.asarray(ground.scene[ground.scene.attrs["subject"]].values, np.float32)
    return Case(ground.name, "reduced", scale, mtf, scene, truth, guides)


def _degraded(scene: xr.Dataset, scale: int, mtf: float) -> xr.Dataset:
    spec = spec_of(scene)
    cube = degrade(scene[spec.subject].values, scale, mtf)
    return with_cube(spec, cube, coarser(spec.grid, scale))
