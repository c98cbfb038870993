"""Coupled unmixing: the same endmembers seen by both sensors, abundances at the guide's resolution.

After coupled nonnegative matrix factorisation (Yokoya, Yairi and Iwasaki 2012, IEEE TGRS 50(2)). Spectra of the scene
and of the guide are E A and F A with abundances A that are not negative and sum to 1. E, F and A of a sample of the
scene's pixels, spread evenly over it, are found together by multiplicative updates (Lee and Seung 2001), from
endmembers by ATGP (Ren and Chang 2003, IEEE TAES 39(4)). With them fixed, every pixel of the scene is unmixed by E; its
abundances, interpolated, are where those of the guide's pixels start, which are updated by F.

Against the paper, E and F are not updated again from all pixels, which would need passes over the scene for every
round; the back-projection that follows takes the place of its outer loop.
"""

import numpy as np

from cubeloom.pipeline.scene import BoolArray

from .base import Stats
from .sharpen_guide import Detail, FloatArray, FloatImages, Seen, mix

SAMPLES = 48
"""Rows and columns of the sample."""
SETTLING = 300
"""Updates of the sample's factors."""
COARSE_UPDATES = 60
FINE_UPDATES = 15
SUM_TO_ONE = 1.0
"""Weight of the sum, beside spectra in units of the scene's level (Heinz and Chang 2001, IEEE TGRS 39(3))."""
LEAST = np.float32(1e-6)
"""Abundance from which an update can still grow."""


def settle(spectra: FloatArray, bands: int, endmembers: int) -> Stats:
    """Endmembers as both sensors see them: `scene` `(B, p)`, `guide` `(m, p)`, and the scene's `level`."""
    joint = spectra[np.any(spectra != 0, axis=1)].T
    joint = np.maximum(joint, 0)
    level = float(np.sqrt(np.mean(joint[:bands] ** 2)))
    weight = np.where(np.arange(len(joint)) < bands, 1 / np.sqrt(bands), 1 / np.sqrt(len(joint) - bands)) / level
    scaled = joint * weight[:, None]
    factors = np.maximum(scaled[:, _pure(scaled, endmembers)], 1e-6)
    abundance = np.full((factors.shape[1], joint.shape[1]), 1 / factors.shape[1])
    ones = np.full((1, joint.shape[1]), SUM_TO_ONE)
    for _ in range(SETTLING):
        left, right = np.vstack([factors, np.full((1, factors.shape[1]), SUM_TO_ONE)]), np.vstack([scaled, ones])
        abundance *= (left.T @ right) / (left.T @ left @ abundance + 1e-12)
        factors *= (scaled @ abundance.T) / (factors @ (abundance @ abundance.T) + 1e-12)
    found = factors / weight[:, None]
    return {"scene": found[:bands], "guide": found[bands:], "level": np.array(level)}


def _pure(spectra: FloatArray, count: int) -> list[int]:
    """Pixels that lie farthest from the span of those before (ATGP): the first is the brightest."""
    rest, found = spectra.copy(), []
    for _ in range(min(count, *spectra.shape)):
        found.append(int(np.argmax(np.sum(rest**2, axis=0))))
        direction = rest[:, found[-1]] / max(float(np.linalg.norm(rest[:, found[-1]])), 1e-12)
        rest -= np.outer(direction, direction @ rest)
    return found


def detail(seen: Seen, stats: Stats) -> Detail:
    """Abundances that the guide shows less those of the scene, interpolated."""
    level, scene, guide = float(stats["level"]), stats["scene"], stats["guide"]
    known = np.asarray(np.isfinite(seen.cube).all(axis=0))
    even = np.full((scene.shape[1], *known.shape), 1 / scene.shape[1], np.float32)
    coarse = _updated(even, scene / level, _filled(seen.cube, known, level), COARSE_UPDATES)
    coarse[:, ~known] = np.nan
    start = seen.smooth(coarse)
    shown = np.asarray(seen.shown & np.isfinite(start[0]))
    first = np.where(shown, start, LEAST)
    sharp = _updated(first, guide / level, _filled(seen.fine, shown, level), FINE_UPDATES)
    return Detail(np.where(shown, sharp - np.nan_to_num(start), np.float32(0)), scene)


def _filled(images: FloatImages, known: BoolArray, level: float) -> FloatImages:
    """Images in units of the scene's level, 0 where they are not known or negative."""
    return np.maximum(np.where(known, images / np.float32(level), np.float32(0)), np.float32(0))


def _updated(abundance: FloatImages, factors: FloatArray, images: FloatImages, updates: int) -> FloatImages:
    """Abundances `(p, y, x)` after multiplicative updates towards images `(n, y, x)` of factors `(n, p)`."""
    weight = 1 / len(factors)
    wanted = mix(weight * factors.T, images) + np.float32(SUM_TO_ONE**2)
    inner = weight * factors.T @ factors + SUM_TO_ONE**2
    abundance = np.maximum(abundance, LEAST)
    for _ in range(updates):
        abundance *= wanted / np.maximum(mix(inner, abundance), LEAST)
        np.maximum(abundance, LEAST, out=abundance)
    return abundance
