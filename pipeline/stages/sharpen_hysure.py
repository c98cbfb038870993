"""Subspace-regularised sharpening: the scene's coefficients in its signal subspace, fitted to scene and guide at once.

After HySure (Simões, Bioucas-Dias, Almeida and Chanussot 2015, IEEE TGRS 53(6)). With the scene's spectra E z, z in
units of each component's spread, the fine coefficients minimise

    9 t |D z - z_scene|² + |R z - guide|² + s w |∇z|²

where D is the scene's sensor, R what the guide shows of a component, both errors have variance 1, and w is small across
edges of the guide. Rotated to the singular vectors of R, components part, and each is solved by itself by a number of
accelerated gradient steps (Nesterov 1983), so that a pixel depends on a known neighbourhood.

Simplified against the paper: R is regressed on the guide degraded to the scene's pixels, where it is estimated by
quadratic programming there; D is a Gaussian of known MTF, where it is estimated too; the vector total variation is one
step of its reweighted quadratic form, with weights from the guide; the weight t of the scene is the same for all
components; and gradient steps stand for ADMM, whose Fourier transforms see the whole scene.
"""

import numpy as np

from cubeloom.pipeline.degrade import degrade, kernel

from .base import Stats
from .sharpen_guide import Detail, FloatArray, FloatImages, Moments, Seen, degrade_reach, mix
from .subspace import estimate_subspace

TRUST = 30.0
"""t: the scene's coefficients against the guide's bands."""
SMOOTHNESS = 0.3
"""s."""
EDGE = 0.1
"""Squared step of the standardised guide from pixel to pixel at which its w has fallen to a half."""
STEPS = 5
"""Gradient steps; each depends on two reaches of D."""
MOST = 12
"""Components at most: those that a guide can say something of are few."""


def settle(moments: Moments, floor: float) -> Stats:
    """Subspace and observation model, rotated so that components part.

    Returns:
        `unmix` `(K, B)` from spectra less `scene_mean` to rotated coefficients, `mixing` `(B, K)` back; `strength`
        `(K,)` squared singular values of R, and `observe` `(K, m)` from the guide in units of `spread` about `mean` to
        what it says of each coefficient; `start` `(K, m)`, the regression of coefficients on the guide.
    """
    scene_mean = moments.mean[: moments.bands]
    products = moments.scene + np.outer(scene_mean, scene_mean)
    signal, _ = estimate_subspace(scene_mean * moments.count, products * moments.count, moments.count, floor, "auto")
    kept = slice(min(MOST, signal.variance.size))
    spread = np.sqrt(signal.variance[kept])
    mixing = signal.sigma[:, None] * signal.basis[:, kept] * spread
    unmix = (signal.basis[:, kept] / spread).T / signal.sigma
    shown = (unmix @ moments.cross).T  # covariance of guide and coefficients, whose own is 1
    error = moments.guide - shown @ shown.T
    whiten = _inverse_root(error)
    u, s, v = np.linalg.svd(whiten @ shown)
    strength = np.zeros(len(v))
    strength[: s.size] = s**2
    observe = np.zeros((len(v), len(error)))
    observe[: s.size] = (u.T @ whiten)[: s.size] / np.maximum(s, 1e-6)[:, None]
    return {
        "scene_mean": scene_mean,
        "unmix": v @ unmix,
        "mixing": mixing @ v.T,
        "strength": strength,
        "observe": observe,
        "start": v @ np.linalg.solve(moments.guide, shown).T,
        "mean": moments.guide_mean,
        "spread": moments.guide_spread,
    }


def _inverse_root(covariance: FloatArray) -> FloatArray:
    """Symmetric inverse square root of a covariance of standardised bands, kept away from 0."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-4)) @ vectors.T)


def halo(mtf: float, factor: int) -> int:
    """Coarse pixels beyond its own that a coefficient depends on, beside those of the interpolation it starts from."""
    return STEPS * 2 * degrade_reach(mtf, factor)


def detail(seen: Seen, stats: Stats, mtf: float) -> Detail:
    """Fine coefficients less those of the scene, interpolated."""
    coarse = coefficients(seen, stats)
    guide, seen_guide = (standardised(images, stats) for images in (seen.fine, seen.coarse))
    shown = seen.shown
    smooth = seen.smooth(coarse)
    start = smooth + mix(stats["start"], seen.detail(guide, seen_guide))
    target = mix(stats["observe"], np.where(shown, guide, np.float32(0)))
    links = _links(np.where(shown, guide, np.float32(np.nan)))
    fitted = [
        _fit(z, y, t, np.float32(s) * shown.astype(np.float32), links, seen.factor, mtf)
        for z, y, t, s in zip(start, coarse, target, stats["strength"], strict=True)
    ]
    return Detail(np.where(shown, np.stack(fitted) - smooth, np.float32(0)), stats["mixing"])


def coefficients(seen: Seen, stats: Stats) -> FloatImages:
    """The scene's, `(K, y, x)`."""
    return mix(stats["unmix"], seen.cube - stats["scene_mean"].astype(np.float32)[:, None, None])


def standardised(images: FloatImages, stats: Stats) -> FloatImages:
    """Bands of the guide `(m, y, x)` about their mean over the scene, in units of their spread."""
    mean, spread = (stats[name].astype(np.float32)[:, None, None] for name in ("mean", "spread"))
    return (images - mean) / spread


def _links(guide: FloatImages) -> tuple[FloatImages, FloatImages]:
    """Weights w between every pixel and the one below, and the one to its right; 0 where the guide lacks one."""
    found = []
    for axis in (1, 2):
        step = np.zeros(guide.shape[1:], np.float32)
        for band in guide:
            step += np.diff(band, axis=axis - 1, append=np.float32(np.nan)) ** 2
        weight = np.float32(SMOOTHNESS) / (1 + step / np.float32(EDGE * len(guide)))
        found.append(np.nan_to_num(weight, copy=False))
    return found[0], found[1]


def _fit(
    start: FloatImages,
    measured: FloatImages,
    target: FloatImages,
    strength: FloatImages,
    links: tuple[FloatImages, FloatImages],
    factor: int,
    mtf: float,
) -> FloatImages:
    """The coefficient image that is left after `STEPS` accelerated gradient steps."""
    known = np.isfinite(start)
    bound = np.float32(TRUST + 8 * SMOOTHNESS) + strength
    before = now = np.where(known, start, np.float32(0))
    for step in range(STEPS):
        ahead = now + np.float32(step / (step + 3)) * (now - before)
        miss = np.nan_to_num(degrade(np.where(known, ahead, np.float32(np.nan))[None], factor, mtf)[0] - measured)
        slope = np.float32(TRUST * factor**2) * _spread(miss, factor, mtf)
        slope += strength * (ahead - target)
        slope += _roughness(ahead, links)
        before, now = now, np.where(known, ahead - slope / bound, np.float32(0))
    return now


def _spread(coarse: FloatImages, factor: int, mtf: float) -> FloatImages:
    """The adjoint of the degradation, where every pixel is known."""
    weights = kernel(mtf, factor).astype(np.float32)
    for _ in range(2):
        coarse = _spread_rows(coarse, weights, factor).T
    return coarse


def _spread_rows(image: FloatImages, weights: FloatImages, factor: int) -> FloatImages:
    beyond = (len(weights) - factor) // 2
    fine = np.zeros((image.shape[0] * factor + 2 * beyond, image.shape[1]), np.float32)
    for tap, weight in enumerate(weights):
        fine[tap : tap + image.shape[0] * factor : factor] += weight * image
    return fine[beyond:-beyond]


def _roughness(image: FloatImages, links: tuple[FloatImages, FloatImages]) -> FloatImages:
    """Gradient of the weighted squared differences of neighbours, halved."""
    down, right = links
    pull = np.zeros_like(image)
    step = down[:-1] * (image[:-1] - image[1:])
    pull[:-1] += step
    pull[1:] -= step
    step = right[:, :-1] * (image[:, :-1] - image[:, 1:])
    pull[:, :-1] += step
    pull[:, 1:] -= step
    return pull
