"""Four kinds of landscape: rules that turn terrain, woods, rivers and towns into classes and variants."""

import numpy as np
import numpy.typing as npt

from . import cover
from .cover import VARIANTS, Season
from .landscape import CodeArray, Strip, Style
from .patterns import HashArray, mix, parcels, uniform

BoolArray = npt.NDArray[np.bool_]


def _put(code: CodeArray, where: BoolArray, name: int, variant: HashArray) -> None:
    code[where] = (name * VARIANTS + variant[where] % VARIANTS).astype(np.uint16)


def _choose(key: HashArray, shares: dict[int, float]) -> npt.NDArray[np.uint16]:
    """A class for every key, in the given shares."""
    edges = np.cumsum(list(shares.values()))
    return np.array(list(shares), np.uint16)[np.searchsorted(edges / edges[-1], uniform(key), side="right")]


def _farmland(strip: Strip, shares: dict[int, float], block: float, field: tuple[float, float]) -> CodeArray:
    """Fields of one crop each, with tracks and hedges along the borders of the blocks."""
    blocks = strip.blocks(block, 11)
    parcel = parcels(blocks, *field)
    code = (_choose(mix(parcel, 5), shares) * VARIANTS + parcel % VARIANTS).astype(np.uint16)
    _put(code, blocks.border < 10, cover.ROAD, blocks.key)
    _put(code, (blocks.border < 32) & (strip.grain > 0.9), cover.DECIDUOUS, blocks.key)
    return code


def _crops(season: Season) -> dict[int, float]:
    """Shares of crops in the fields: harvested cereals turn into stubble and bare soil."""
    harvested = float(np.clip((season.day - 200) / 35, 0, 0.9))
    return {
        cover.CEREAL: 0.36 * (1 - harvested) + 0.02,
        cover.STUBBLE: 0.03 + 0.22 * harvested,
        cover.BARE_SOIL: 0.08 + 0.14 * harvested + 0.12 * season.spring,
        cover.MAIZE: 0.17,
        cover.RAPESEED: 0.11 * (1 - harvested) + 0.01,
        cover.ROOT_CROP: 0.09,
        cover.MEADOW: 0.16,
    }


def _forest(strip: Strip, code: CodeArray, where: BoolArray, conifers: BoolArray) -> None:
    stands = strip.blocks(380, 23).key
    _put(code, where & conifers, cover.CONIFEROUS, stands)
    _put(code, where & ~conifers, cover.DECIDUOUS, stands)


def _settle(strip: Strip, code: CodeArray, reach: float = 0.42) -> None:
    """Towns: streets on a grid of their own direction, lots with roofs and gardens, and roads between them."""
    quarter = strip.blocks(700, 31)
    angle = uniform(mix(quarter.key, 6)) * np.float32(np.pi / 2)
    u = strip.x * np.cos(angle) + strip.y * np.sin(angle)
    v = strip.y * np.cos(angle) - strip.x * np.sin(angle)
    street = (np.mod(u, 105) < 15) | (np.mod(v, 150) < 15)
    lot = mix(np.floor(u / 30).astype(np.int32), np.floor(v / 30).astype(np.int32), strip.seed)
    works = (uniform(mix(quarter.key, 7)) < 0.22) & (strip.town < 0.8)
    hall = mix(np.floor(u / 90).astype(np.int32), np.floor(v / 60).astype(np.int32), strip.seed)
    built = strip.town + 0.12 * strip.grain > reach
    outside = code.copy()
    _put(code, built, cover.BUILT_UP, np.where(works, hall, lot))
    _put(code, built & street, cover.ROAD, quarter.key)
    park = built & (uniform(mix(quarter.key, 8)) < 0.12)
    code[park] = outside[park]
    _put(code, strip.road < 13, cover.ROAD, np.zeros_like(lot))


def _waterways(strip: Strip, code: CodeArray, width: float, lake: float) -> None:
    _put(
        code,
        strip.river < width * (1 + 0.35 * strip.grain),
        cover.WATER,
        np.full(code.shape, 60 + mix(strip.seed, 9) % 110, np.uint32),
    )
    depth = (lake - strip.height) * 260
    _put(code, strip.height < lake, cover.WATER, np.clip(150 - depth, 20, 200).astype(np.uint32))


def _temperate(strip: Strip) -> CodeArray:
    code = _farmland(strip, _crops(strip.season), 1350, (130, 420))
    valley = (strip.river < 260 + 110 * strip.kind) | (strip.height < -1.45)
    _put(code, valley, cover.MEADOW, strip.blocks(260, 41).key)
    wooded = (strip.wood + 0.45 * strip.height > 0.62) & ~valley
    _forest(strip, code, wooded, strip.kind + 0.3 * strip.height > 0.35)
    _put(
        code, (strip.river > 40) & (strip.river < 85) & (strip.grain > 0.2), cover.DECIDUOUS, strip.blocks(200, 43).key
    )
    _settle(strip, code)
    _waterways(strip, code, 46, -1.75)
    return code


def _arid(strip: Strip) -> CodeArray:
    """Desert: rock on the heights, sand sheets, shrubs along dry valleys, pivot-irrigated fields."""
    geology = np.floor(6 * (strip.kind + 0.9 * strip.height + 0.02 * strip.grain)).astype(np.int32)
    layer = mix(geology, strip.seed)
    code = (cover.BARE_SOIL * VARIANTS + layer % VARIANTS).astype(np.uint16)
    _put(code, strip.height + 0.08 * strip.grain > 0.55, cover.ROCK, layer)
    _put(
        code, (strip.wood > 0.75) & (strip.height < 0.5), cover.SAND, mix(np.floor(3 * strip.wood).astype(np.int32), 3)
    )
    wadi = np.abs(strip.wood - 0.35 * strip.kind) < 0.05 - 0.03 * np.clip(strip.height, -1, 1)
    _put(code, wadi, cover.SAND, np.full(code.shape, 77, np.uint32))
    _put(
        code,
        (strip.grain > 1.5) & (np.abs(strip.wood - 0.35 * strip.kind) < 0.22),
        cover.SHRUBLAND,
        strip.blocks(300, 51).key,
    )
    _pivots(strip, code)
    _settle(strip, code, 0.5)
    _put(code, strip.height < -2.15, cover.WATER, np.full(code.shape, 170, np.uint32))
    return code


def _pivots(strip: Strip, code: CodeArray) -> None:
    """Circular fields of centre-pivot irrigation on a square lattice, in the lower land."""
    pitch = 880.0
    row, col = np.floor(strip.y / pitch).astype(np.int32), np.floor(strip.x / pitch).astype(np.int32)
    key = mix(row, col, strip.seed, 13)
    dy, dx = strip.y - (row + 0.5) * pitch, strip.x - (col + 0.5) * pitch
    radius = 330 + 90 * uniform(mix(key, 1))
    chance = np.clip(0.6 - 1.1 * np.floor(2 * strip.height) / 2, 0.0, 0.85)
    inside = (np.hypot(dy, dx) < radius) & (uniform(key) < chance) & (strip.height < 0.4)
    half = mix(key, (dy * np.cos(uniform(key) * 6.28) > dx * np.sin(uniform(key) * 6.28)).astype(np.int32))
    crop = {
        cover.ROOT_CROP: 0.34,
        cover.MEADOW: 0.2,
        cover.CEREAL: 0.14,
        cover.MAIZE: 0.12,
        cover.BARE_SOIL: 0.1,
        cover.STUBBLE: 0.1,
    }
    code[inside] = (_choose(mix(half, 5), crop) * VARIANTS + half % VARIANTS).astype(np.uint16)[inside]


def _coastal(strip: Strip) -> CodeArray:
    """A coast: sea with plumes of sediment, beach and dunes, fields and towns behind."""
    code = _farmland(strip, _crops(strip.season), 1000, (100, 300))
    direction = 2 * np.pi * float(uniform(mix(strip.seed, 15)))
    dy, dx = strip.y - strip.extent[0] / 2, strip.x - strip.extent[1] / 2
    inland = (dx * np.float32(np.cos(direction)) + dy * np.float32(np.sin(direction))) / 5000
    shore = 0.5 * strip.height + inland + 0.02 * strip.grain
    wooded = (strip.wood > 0.7) & (shore > 0.15)
    _forest(strip, code, wooded, strip.kind > 0.1)
    _put(code, (shore < 0.2) & (strip.wood < -0.1), cover.SHRUBLAND, strip.blocks(280, 61).key)
    _settle(strip, code, 0.38)
    _put(code, strip.river < 30, cover.WATER, np.full(code.shape, 215, np.uint32))
    _put(code, shore < 0.045 + 0.02 * strip.kind, cover.SAND, strip.blocks(500, 63).key)
    plume = 235 + 150 * shore + 9 * strip.kind - strip.river / 130
    _put(
        code, shore < 0, cover.WATER, np.clip(np.maximum(plume, 45 + 70 * np.exp(shore * 4)), 0, 255).astype(np.uint32)
    )
    return code


def _alpine(strip: Strip) -> CodeArray:
    """Mountains: valleys with meadows and villages, conifers up to the tree line, rock and snow above."""
    rough = strip.height + 0.12 * strip.grain
    code = _farmland(
        strip, {cover.MEADOW: 0.75, cover.MAIZE: 0.1, cover.CEREAL: 0.05, cover.ROOT_CROP: 0.1}, 700, (70, 180)
    )
    lower = rough + 0.25 * strip.wood
    _forest(strip, code, (lower > -0.55) & (lower < 0.55), strip.height + 0.5 * strip.kind > -0.45)
    stands = strip.blocks(260, 71).key
    _put(code, (lower >= 0.55) & (rough < 1.0), cover.MEADOW, stands)
    _put(code, (lower >= 0.55) & (rough < 1.0) & (strip.grain + strip.kind > 0.6), cover.SHRUBLAND, stands)
    strata = mix(np.floor(7 * strip.height + 2 * strip.kind + 0.6 * strip.grain).astype(np.int32), strip.seed)
    _put(code, (rough >= 1.0) | ((lower > 0.4) & (strip.grain > 1.5)), cover.ROCK, strata)
    _put(code, rough + 0.3 * strip.kind > 1.55, cover.SNOW, stands)
    _settle(strip, code, 0.55)
    _put(code, strip.height < -1.55, cover.WATER, np.full(code.shape, 40, np.uint32))
    _put(code, (strip.river < 20) & (strip.height < 0.2), cover.WATER, np.full(code.shape, 120, np.uint32))
    return code


_FARMLANDS = ((52.4, 13.0), (48.3, 11.9), (49.2, 2.6), (51.4, 11.6), (46.9, 17.2), (42.1, -93.6), (-37.8, 175.3))
_DESERTS = ((30.1, 32.3), (27.4, 43.9), (36.9, -112.6), (-28.6, 21.2), (24.2, 55.4))
_COASTS = ((54.3, 10.6), (43.6, 4.1), (39.4, -0.3), (-33.9, 151.1), (41.6, -70.4))
_MOUNTAINS = ((47.1, 10.9), (46.4, 8.3), (61.4, 8.4), (-44.2, 169.6), (51.3, -116.6))

STYLES: dict[str, Style] = {
    "temperate": Style(
        _temperate, {"loam": 0.6, "chernozem": 0.25, "sand": 0.1, "peat": 0.05}, 38, 5, 0.05, _FARMLANDS
    ),
    "arid": Style(
        _arid,
        {"red_soil": 0.3, "sand": 0.25, "clay_soil": 0.15, "limestone": 0.15, "gypsum": 0.07, "gravel": 0.08},
        130,
        8,
        0.015,
        _DESERTS,
    ),
    "coastal": Style(_coastal, {"loam": 0.35, "sand": 0.25, "clay_soil": 0.25, "red_soil": 0.15}, 25, 4, 0.06, _COASTS),
    "alpine": Style(_alpine, {"loam": 0.6, "gravel": 0.25, "chernozem": 0.15}, 420, 2, 0.03, _MOUNTAINS),
}
"""Kinds of landscape by name."""
