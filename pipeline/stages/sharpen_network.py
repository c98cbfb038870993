"""A small residual network: what the guide tells of the scene's coefficients beyond regression, learnt on the scene.

Wald's protocol (Wald, Ranchin and Mangolini 1997, PE&RS 63(6)) on the scene itself: seen by a sensor with pixels as
many times larger, beside the guide as the scene's sensor sees it, the scene is its own truth. The coefficients are
those of `sharpen_hysure`. Features of a pixel are the guide's detail, the guide, and the interpolated coefficients; the
network answers what regression on the guide leaves of them. Each coefficient's answer is weighted by what it was worth
in parts of the scene that were held out: by nothing where it was worth nothing.

As many pixels are learnt from whatever the scene's size, and each goes through the network by itself.
"""

import numpy as np

from cubeloom.pipeline.degrade import degrade

from .base import Stats
from .sharpen_guide import Detail, FloatArray, FloatImages, Seen, degrade_reach, mix
from .sharpen_hysure import coefficients, standardised
from .superres import REACH

SAMPLES = 64
"""Rows and columns of the pixels learnt from."""
HIDDEN = (32, 32)
EPOCHS = 60
LEAST = 256
"""Pixels from which something can be learnt."""
STRIPE, HELD = 8, 4
"""Rows of samples in a stripe; every fourth stripe is held out."""
STRIP = 32
"""Fine rows that go through the network at once: bounds the memory for what is hidden."""


def reach(mtf: float, factor: int) -> int:
    """Pixels of the scene beyond its own that one that is learnt from depends on."""
    return factor * (degrade_reach(mtf, factor) + REACH) + degrade_reach(mtf, factor)


def lesson(seen: Seen, stats: Stats, mtf: float) -> FloatImages:
    """Features, and then what the network shall answer, of the scene's pixels, from the scene seen coarser.

    Returns:
        `(2 m + 2 K, y, x)`, NaN where the guide does not show the ground, and at the end of a window that is no whole
        number of coarser pixels.
    """
    whole = tuple(size // seen.factor * seen.factor for size in seen.valid.shape)
    fine = coefficients(seen, stats)[:, : whole[0], : whole[1]]
    guide = standardised(seen.coarse, stats)[:, : whole[0], : whole[1]]
    coarse = degrade(fine, seen.factor, mtf)
    valid = np.asarray(np.isfinite(coarse).all(axis=0))
    coarser = Seen(coarse, valid, guide, degrade(guide, seen.factor, mtf), seen.factor)
    features, regressed = _features(coarser, coarse, stats)
    joint = np.concatenate([features, fine - features[-len(fine) :] - regressed])
    joint[:, ~coarser.shown] = np.nan
    return np.pad(joint, ((0, 0), *((0, size % seen.factor) for size in seen.valid.shape)), constant_values=np.nan)


def _features(seen: Seen, coarse: FloatImages, stats: Stats) -> tuple[FloatImages, FloatImages]:
    """Features of fine pixels, the interpolated coefficients last, and what regression on the guide adds to these.

    Args:
        seen: with the guide in units of its spread.
        coarse: coefficients `(K, y, x)`.
        stats: of `sharpen_hysure.settle`.
    """
    sharp = seen.detail(seen.fine, seen.coarse)
    return np.concatenate([sharp, seen.fine, seen.smooth(coarse)]), mix(stats["start"], sharp)


def learn(pixels: FloatArray, stats: Stats) -> Stats:
    """The network, from features and answers of pixels `(n, 2 m + 2 K)`; those without a value 0.

    Returns:
        `weights0` `(hidden, features)`, `bias0` and so on, the last weighted by `worth` `(K,)`; `learnt`, the number of
        pixels.
    """
    from sklearn.neural_network import MLPRegressor  # not for those who learn nothing
    from threadpoolctl import threadpool_limits

    count = len(stats["unmix"])
    there = np.any(pixels != 0, axis=1)
    held = (np.arange(len(pixels)) // SAMPLES // STRIPE % HELD == HELD - 1)[there]
    features, answers = np.split(pixels[there], [-count], axis=1)
    if min(np.count_nonzero(held), np.count_nonzero(~held)) < LEAST:
        return {"worth": np.zeros(count), "learnt": np.array(0)}
    middle, width = features[~held].mean(axis=0), np.maximum(features[~held].std(axis=0), 1e-6)
    size = np.maximum(answers[~held].std(axis=0), 1e-9)
    network = MLPRegressor(hidden_layer_sizes=HIDDEN, alpha=1e-2, learning_rate_init=3e-3, random_state=0)
    with threadpool_limits(1):  # sums are the same on any number of cores
        for _ in range(EPOCHS):
            network.partial_fit((features[~held] - middle) / width, answers[~held] / size)
        made = network.predict((features[held] - middle) / width).reshape(-1, count)
    worth = np.clip(np.sum(made * answers[held] / size, axis=0) / np.maximum(np.sum(made**2, axis=0), 1e-12), 0, 1)
    weights, biases = [matrix.T for matrix in network.coefs_], list(network.intercepts_)
    weights[0] = weights[0] / width
    biases[0] = biases[0] - weights[0] @ middle
    scale = worth * size
    weights[-1], biases[-1] = weights[-1] * scale[:, None], biases[-1] * scale
    layers = {f"weights{n}": matrix for n, matrix in enumerate(weights)}
    return {
        **layers,
        **{f"bias{n}": bias for n, bias in enumerate(biases)},
        "worth": worth,
        "learnt": np.array(held.size),
    }


def detail(seen: Seen, stats: Stats) -> Detail:
    """What the guide tells of the coefficients: by regression, and by the network."""
    guided = Seen(seen.cube, seen.valid, standardised(seen.fine, stats), standardised(seen.coarse, stats), seen.factor)
    features, added = _features(guided, coefficients(seen, stats), stats)
    shown = guided.shown & np.isfinite(features).all(axis=0)
    if int(stats["learnt"]):
        added += answer(np.where(shown, features, np.float32(0)), stats)
    return Detail(np.where(shown, added, np.float32(0)), stats["mixing"])


def answer(images: FloatImages, stats: Stats) -> FloatImages:
    """The network's, to features `(2 m + K, y, x)`: `(K, y, x)`."""
    made = np.empty((len(stats["worth"]), *images.shape[1:]), np.float32)
    for row in range(0, images.shape[1], STRIP):
        strip = images[:, row : row + STRIP]
        for layer in range(len(HIDDEN) + 1):
            strip = mix(stats[f"weights{layer}"], strip)
            strip += stats[f"bias{layer}"].astype(np.float32)[:, None, None]
            if layer < len(HIDDEN):
                np.maximum(strip, 0, out=strip)
        made[:, row : row + STRIP] = strip
    return made
