"""Land-cover classes and what each is made of: the palette from which pixels are mixed.

A palette row is one variant of a class (one field, one stand, one roof): fractions of ground materials, leaf area and
leaf traits of what grows on it, wetness, and for water its contents. Pixels mix rows, textures vary them.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .materials import GROUNDS
from .spectra import LEAF_TRAITS, MINERALS

Float32Array = npt.NDArray[np.float32]

VARIANTS = 256
"""Rows of the palette a class."""

CLASSES = {
    1: "water", 2: "deciduous forest", 3: "coniferous forest", 4: "meadow", 5: "cereal", 6: "maize", 7: "rapeseed",
    8: "root crop", 9: "bare soil", 10: "stubble", 11: "built-up", 12: "road", 13: "shrubland", 14: "sand", 15: "rock",
    16: "snow",
}  # fmt: skip
"""Codes of the truth's class map; 0 is background."""

WATER, DECIDUOUS, CONIFEROUS, MEADOW, CEREAL, MAIZE, RAPESEED, ROOT_CROP = range(1, 9)
BARE_SOIL, STUBBLE, BUILT_UP, ROAD, SHRUBLAND, SAND, ROCK, SNOW = range(9, 17)

N_GROUNDS = len(GROUNDS)
LEAF = slice(N_GROUNDS, N_GROUNDS + len(LEAF_TRAITS))
"""Columns of the leaf traits, in the order of `spectra.LEAF_TRAITS`."""
LAI = LEAF.stop
"""Column of the leaf area index."""
FILMS = slice(LAI + 1, LAI + 2 + len(MINERALS))
"""Columns of the absorbers on the ground: water, then the minerals of `spectra.MINERALS`."""
TEXTURED = FILMS.stop
"""The columns before this one vary with the textures."""
SHADE, OPEN_WATER = TEXTURED, TEXTURED + 1
"""Columns of shade inside the canopy and of the fraction under water."""
CONTENTS = slice(TEXTURED + 2, TEXTURED + 5)
"""Columns of the water's chlorophyll (mg/m3), sediment (g/m3) and dissolved matter (1/m)."""
COLUMNS = CONTENTS.stop

Soils = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How the variants of a class are drawn.

    Attributes:
        grounds: weights of ground materials; "soil" stands for the soils of the landscape.
        purity: small values make each variant nearly one material, large ones make all alike.
        leaf: chlorophyll, carotenoid, anthocyanin, brown pigment, water and dry matter; 1 is a typical green leaf.
        lai: leaf area index, mean and relative spread.
        shade: darkening by shadows inside the canopy.
        wetness: of the ground, mean.
        green: share of variants that carry leaves at all.
        films: strength of the minerals that vary the ground.
    """

    grounds: Soils
    leaf: tuple[float, float, float, float, float, float] = (1, 1, 0, 0.02, 1, 0.6)
    lai: tuple[float, float] = (0, 0.3)
    purity: float = 3
    shade: float = 0.1
    wetness: float = 0.3
    green: float = 1
    films: float = 1


_SOIL = {"soil": 0.85, "straw": 0.1, "gravel": 0.05}
_ROOFS = {
    "red_tile": 3.0, "slate": 1.5, "bitumen": 1.6, "metal_roof": 0.9, "concrete": 1.6, "asphalt_old": 2.2,
    "gravel": 0.9, "asphalt_new": 0.7, "blue_paint": 0.15, "plastic": 0.15, "solar_panel": 0.3,
}  # fmt: skip


def _recipes(ripe: float, spring: float) -> dict[int, Recipe]:
    """The classes at a time of year: `ripe` runs from 0 (green cereals) to 1 (yellow), `spring` peaks in May."""
    flower = spring**2
    return {
        DECIDUOUS: Recipe({"litter": 0.8, "bark": 0.2}, (1.1, 1.0, 0.02, 0.02, 1.1, 0.6), (4.5, 0.25), 5, 0.22),
        CONIFEROUS: Recipe(
            {"litter": 0.6, "bark": 0.3, "peat": 0.1}, (1.25, 1.1, 0.03, 0.05, 1.2, 1.0), (3.6, 0.3), 5, 0.52
        ),
        MEADOW: Recipe({"soil": 0.5, "straw": 0.5}, (0.75, 0.8, 0.03, 0.06, 0.8, 0.7), (2.6, 0.45), 4, 0.05, 0.4),
        CEREAL: Recipe(
            _SOIL,
            (1.0 - 0.88 * ripe, 1.0 - 0.68 * ripe, 0.05 * ripe, 0.02 + 0.28 * ripe, 1.0 - 0.8 * ripe, 0.6 + 0.8 * ripe),
            (3.2, 0.4),
        ),
        MAIZE: Recipe(_SOIL, (1.0, 0.9, 0.0, 0.01, 1.1, 0.5), (0.4 + 3.2 * ripe, 0.5), shade=0.12),
        RAPESEED: Recipe(
            _SOIL,
            (1.0 - 0.82 * flower, 1.0 + 0.9 * flower, 0, 0.02 + 0.15 * ripe, 1.2 - 0.6 * ripe, 0.6 + 0.5 * ripe),
            (3.2, 0.35),
        ),
        ROOT_CROP: Recipe(_SOIL, (0.95, 0.85, 0.02, 0.01, 1.5, 0.45), (2.4 * (0.3 + 0.7 * ripe), 0.6), wetness=0.5),
        BARE_SOIL: Recipe({"soil": 0.9, "straw": 0.07, "gravel": 0.03}, lai=(0.12, 1.2), wetness=0.6),
        STUBBLE: Recipe({"soil": 0.4, "straw": 0.6}, (0.3, 0.6, 0.1, 0.3, 0.3, 1.3), (0.3, 0.9), wetness=0.1),
        BUILT_UP: Recipe(_ROOFS, (0.95, 0.9, 0.02, 0.03, 1.0, 0.6), (2.6, 0.5), 0.6, 0.2, 0.05, 0.36),
        ROAD: Recipe(
            {"asphalt_old": 0.6, "asphalt_new": 0.2, "concrete": 0.15, "gravel": 0.05}, lai=(0.15, 1), purity=1.5
        ),
        SHRUBLAND: Recipe(
            {"soil": 0.55, "litter": 0.25, "straw": 0.2}, (0.8, 0.9, 0.1, 0.1, 0.7, 1.1), (1.3, 0.5), 4, 0.15
        ),
        SAND: Recipe({"beach": 0.55, "sand": 0.35, "gravel": 0.1}, lai=(0.03, 1.5), purity=2),
        ROCK: Recipe({"granite": 0.4, "limestone": 0.35, "basalt": 0.15, "gravel": 0.1}, lai=(0.12, 1.2), purity=0.9),
        SNOW: Recipe({"snow": 0.9, "granite": 0.1}, lai=(0, 0), purity=10, wetness=0.12, films=0.1),
    }  # fmt: skip


@dataclass(frozen=True)
class Season:
    """Time of the year on the northern hemisphere, day 1-366 (southern dates are shifted by half a year)."""

    day: int
    ripe: float = field(init=False)
    spring: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ripe", float(1 / (1 + np.exp(-(self.day - 184) / 9))))
        object.__setattr__(self, "spring", float(np.exp(-0.5 * ((self.day - 128) / 15) ** 2)))


def draw_palette(rng: np.random.Generator, season: Season, soils: Soils, sediment: float) -> Float32Array:
    """The palette `(17 * VARIANTS, COLUMNS)`; row `code * VARIANTS + variant`.

    Args:
        rng: source of the variants.
        season: decides how ripe the crops are.
        soils: weights of the soils of this landscape.
        sediment: typical sediment of its waters, g/m3.
    """
    palette = np.zeros((17 * VARIANTS, COLUMNS), np.float32)
    for code, recipe in _recipes(season.ripe, season.spring).items():
        palette[code * VARIANTS : (code + 1) * VARIANTS] = _variants(rng, recipe, soils)
    palette[WATER * VARIANTS : (WATER + 1) * VARIANTS] = _waters(rng, sediment)
    return palette


def _variants(rng: np.random.Generator, recipe: Recipe, soils: Soils) -> Float32Array:
    rows = np.zeros((VARIANTS, COLUMNS), np.float32)
    weights = np.full(N_GROUNDS, 1e-3)
    for name, weight in recipe.grounds.items():
        parts = {soil: weight * share for soil, share in soils.items()} if name == "soil" else {name: weight}
        for material, amount in parts.items():
            weights[GROUNDS.index(material)] += amount
    rows[:, :N_GROUNDS] = rng.dirichlet(recipe.purity * weights / weights.sum() * 4, VARIANTS)
    chlorophyll, carotenoid, anthocyanin, brown, water, dry = recipe.leaf
    leaf = (chlorophyll, chlorophyll, carotenoid, anthocyanin, brown, water, *(dry,) * 5)
    rows[:, LEAF] = np.array(leaf) * rng.lognormal(0, 0.48, (VARIANTS, len(leaf)))
    mean, spread = recipe.lai
    rows[:, LAI] = mean * rng.lognormal(0, spread, VARIANTS) * (rng.random(VARIANTS) < recipe.green)
    rows[:, SHADE] = np.clip(recipe.shade * rng.lognormal(0, 0.25, VARIANTS), 0, 0.75)
    rows[:, FILMS] = 0.115 * recipe.films * rng.lognormal(0, 0.9, (VARIANTS, len(MINERALS) + 1))
    rows[:, FILMS.start] = recipe.wetness * rng.lognormal(0, 0.6, VARIANTS)
    return rows


def _waters(rng: np.random.Generator, sediment: float) -> Float32Array:
    """Variants ascend in sediment, so that neighbouring ones make a gradient."""
    rows = np.zeros((VARIANTS, COLUMNS), np.float32)
    rows[:, GROUNDS.index("loam")] = 1
    rows[:, OPEN_WATER] = 1
    turbid = np.linspace(-2.4, 1.3, VARIANTS)
    contents = np.array([5.0, sediment, 0.16]) * np.exp(turbid[:, None] * (0.5, 1, 0.35))
    rows[:, CONTENTS] = contents * rng.lognormal(0, (0.3, 0.03, 0.2), (VARIANTS, 3))
    return rows
