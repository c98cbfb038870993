"""Classes of SpectralEarth's downstream sets: codes in their label rasters, and names, in the authors' order.

Codes and order are those of the authors' configurations (`configs/data` of AABNassim/spectral_earth). Names are those
of the maps' own legends: USDA's Cropland Data Layer, the National Land Cover Database, HCAT-3 of EuroCrops, FIA's
forest types of TreeMap, CORINE in the 19 classes of BigEarthNet. The legends of BD Forêt and BNETD were not at hand:
their classes are called by their codes.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from cubeloom.models.cards import CardClass


@dataclass(frozen=True)
class EarthClass:
    """A class.

    Attributes:
        codes: in label rasters, which all stand for it.
        name: of the class.
    """

    codes: tuple[int, ...]
    name: str


def card_classes(classes: Sequence[EarthClass]) -> tuple[CardClass, ...]:
    """The classes as a card has them: values from 1, and colours as far apart as may be."""
    named = enumerate(classes, 1)
    return tuple(CardClass(value=value, name=one.name, colour=_colour(value)) for value, one in named)


def _colour(value: int) -> str:
    """Neighbouring values lie a golden angle apart on the circle of hues."""
    rgb = colorsys.hls_to_rgb(value * 0.61803398875 % 1, (0.42, 0.58, 0.72)[value % 3], 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _table(text: str) -> tuple[EarthClass, ...]:
    """Classes from lines of `codes name`, codes with commas between them."""
    rows = (line.strip().split(" ", 1) for line in text.strip().splitlines())
    return tuple(EarthClass(tuple(map(int, codes.split(","))), name) for codes, name in rows)


def _coded(names: dict[int, str], codes: str) -> tuple[EarthClass, ...]:
    return tuple(EarthClass((code,), names[code]) for code in map(int, codes.split()))


_CROPS = {
    1: "Corn", 2: "Cotton", 3: "Rice", 4: "Sorghum", 5: "Soybeans", 6: "Sunflower", 41: "Sugarbeets", 42: "Dry Beans",
    43: "Potatoes", 45: "Sugarcane", 49: "Onions", 54: "Tomatoes", 56: "Hops", 68: "Apples", 69: "Grapes", 72: "Citrus",
    75: "Almonds", 76: "Walnuts", 204: "Pistachios", 210: "Prunes",
}  # fmt: skip

CDL = _coded(_CROPS, "1 2 3 4 5 6 45 54 69 72 75 76 204 210")
DESIS_CDL = _coded(_CROPS, "1 2 3 5 42 43 49 54 56 68 69 75 76 204")
EO1_CDL = _coded(_CROPS, "1 2 3 4 5 6 41 42 43 54 69 75 76 204")

NLCD = _table("""
    11 Open Water
    21 Developed, Open Space
    22 Developed, Low Intensity
    23 Developed, Medium Intensity
    24 Developed, High Intensity
    31 Barren Land
    41 Deciduous Forest
    42 Evergreen Forest
    43 Mixed Forest
    52 Shrub/Scrub
    71 Grassland/Herbaceous
    81 Pasture/Hay
    82 Cultivated Crops
    90 Woody Wetlands
    95 Emergent Herbaceous Wetlands
""")

EUROCROPS = _table("""
    3301090205 Lolium ryegrass
    3301010600 Grain maize
    3301090303 Clover
    3301010800 Triticale
    3301090301 Alfalfa
    3303060000 Vineyards
    3303030600 Walnuts
    3303050000 Olives
    3303030100 Almond
    3301060500 Sunflower
    3301060300 Cotton
    3303010000 Orchards, fruits
    3301020000 Dried pulses
    3301160000 Soy
    3301029900 Other dry pulses
""")

TREEMAP = _table("""
    184 Juniper woodland
    185 Pinyon-juniper woodland
    221 Ponderosa pine
    924 Blue oak
    105 Eastern hemlock
    503 White oak, red oak, hickory
    520 Mixed upland hardwoods
    706 Sugarberry, hackberry, elm, green ash
    801 Sugar maple, beech, yellow birch
    201 Douglas-fir
    264 Pacific silver fir
    266 Engelmann spruce, subalpine fir
    281 Lodgepole pine
    301 Western hemlock
    901 Aspen
    406 Other pine, hardwood
    923 Oregon white oak
    142 Slash pine
    161 Loblolly pine
    602 Sweetgum, oak
    607 Baldcypress, water tupelo
    608 Sweetbay, swamp tupelo, red maple
    267 Grand fir
    371 California mixed conifer
""")

CORINE = _table("""
    111,112 Urban fabric
    121 Industrial or commercial units
    211,212,213 Arable land
    221,222,223,241 Permanent crops
    231 Pastures
    242 Complex cultivation patterns
    243 Land principally occupied by agriculture, with significant areas of natural vegetation
    244 Agro-forestry areas
    311 Broad-leaved forest
    312 Coniferous forest
    313 Mixed forest
    321,333 Natural grassland and sparsely vegetated areas
    322,323 Moors, heathland and sclerophyllous vegetation
    324 Transitional woodland, shrub
    331 Beaches, dunes, sands
    411,412 Inland wetlands
    421,422 Coastal wetlands
    511,512 Inland waters
    521,522,523 Marine waters
""")
"""Of 43 classes of the third level; 122-142, 332, 334 and 423 belong to none of the 19."""

BDFORET = tuple(EarthClass((code,), f"BD Forêt {code}") for code in (1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 14, 16))
BNETD = tuple(EarthClass((code,), f"BNETD {code}") for code in (1, 2, 3, 6, 9, 10, 13, 15, 16, 21))
