"""Places simulated at several dates: the same ground under another season, sun and sky, with noise of its own."""

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError
from cubeloom.models.cards import InputBands
from cubeloom.pipeline.simulate.bands import BandTable, operational
from cubeloom.pipeline.simulate.observation import build_cubes, build_ground
from cubeloom.pipeline.simulate.options import Options, ground_options, settle_site
from cubeloom.pipeline.simulate.styles import STYLES

Float32Array = npt.NDArray[np.float32]

_APART_DAYS = (20, 80)
"""From one date to the next, within the months in which the sun stands high."""


@dataclass(frozen=True, eq=False)
class SimulatedDate:
    """One date of a place.

    Attributes:
        cube: reflectance `(band, y, x)` as an instrument measures it.
        classes: of each pixel, `(y, x)`; codes of the simulator's truth.
    """

    cube: Float32Array
    classes: npt.NDArray[np.uint8]


def band_table(bands: InputBands) -> BandTable:
    """EnMAP's bands as the simulator has them.

    Raises:
        ConfigError: these are not EnMAP's.
    """
    every = operational()
    if not bands.numbers or max(bands.numbers) > len(every):
        raise ConfigError("scenes are simulated with EnMAP's bands; this network sees others: give it scenes or pairs")
    return every.take(np.array(bands.numbers) - 1)


def simulate_dates(seed: int, px: int, dates: int, bands: BandTable, noise: float = 1.0) -> list[SimulatedDate]:
    """Simulate a place; the same arguments give the same pixels.

    Args:
        seed: decides all that is random; consecutive ones take the kinds of landscape in turn.
        px: edge of the square.
        dates: how many.
        bands: of the cubes.
        noise: of the instrument, 1 as in a product.
    """
    styles = list(STYLES)
    ground = ground_options(seed, px, px, styles[seed % len(styles)], bands=bands)
    first = replace(ground, noise=noise, stripes=noise)
    site = settle_site(first)
    rng = np.random.default_rng([seed, 7])
    ways = rng.choice([-1, 1]) * (-1) ** np.arange(dates)
    seen = [first]
    for number in range(1, dates):
        days = int(rng.integers(*_APART_DAYS)) * int(ways[number])
        other = int(rng.integers(2**62))
        seen.append(replace(first, seed=other, place=site.place, start=site.start + timedelta(days=days)))
    return [_observe(first, options) for options in seen]


def _observe(ground_of: Options, options: Options) -> SimulatedDate:
    """The ground of one set of options under the sky, at the date and with the noise of another."""
    site = replace(settle_site(options), angle=0.0)  # so that the swath fills the raster
    ground = build_ground(replace(options, seed=ground_of.seed), site)
    [cube] = build_cubes(options, site, ground)
    values = np.empty((len(options.bands), options.height, options.width), np.float32)
    for number in range(options.height):
        values[:, number] = cube.values(number)[1].T
    return SimulatedDate(values, ground.surface.classes())
