"""Case `glcm`: grey-level co-occurrence texture of a band beside scikit-image's matrices, window by window.

The band has 1000 x 1000 px of 32 levels, smooth ground under noise as radar shows it; windows are 5 x 5 px, the four
directions are averaged, and eight measures are taken: mean, variance, homogeneity, contrast, dissimilarity, entropy,
angular second moment and correlation. Ours is `texture_images`. The peer is a loop over pixels with `graycomatrix`, all
four directions in one call, and `graycoprops` for each measure, which is how scikit-image is used for maps of texture.
It takes the inner pixels of a crop, 20 x 20 of them, and 40 x 40 in the full run; its time for the band is that time by
the number of pixels. It does the same work at every one. Both run in one process on one thread, in turn, and once
before to warm up; the ratio is ours over peer, median of the rounds, and `faster` its inverse. No more than 1e-4 of its
size, or 1e-5, may lie between ours and the peer's measures of the crop, in float32, which the benchmark checks; `apart`
is the largest share of that.
"""

import time
from typing import TYPE_CHECKING, Any

from _rows import compared

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIDE, LEVELS, WINDOW = 1000, 32, 5
CROP, SHORT_CROP = 40, 20
WANTED = 20
"""How many times as fast ours is to be."""


def measured(rounds: int, *, quick: bool) -> dict[str, Any]:
    """The row of the case."""
    import numpy as np

    from cubeloom.pipeline.stages.texture import HARALICK
    from cubeloom.pipeline.stages.texture_glcm import texture_images

    crop, band = SHORT_CROP if quick else CROP, _radar_band()
    texture_images(band[:64], HARALICK, WINDOW)
    _matrices(band[:6, :6])
    piece = band[: crop + WINDOW - 1, : crop + WINDOW - 1]
    row, made, theirs = compared(
        "glcm",
        lambda: texture_images(band, HARALICK, WINDOW),
        lambda: _matrices(piece),
        time.perf_counter,
        rounds,
        SIDE**2 / crop**2,
    )
    inner = slice(WINDOW // 2, WINDOW // 2 + crop)
    apart = np.abs(made[:, inner, inner] - theirs) / (1e-5 + 1e-4 * np.abs(theirs))
    return row | {"wanted": WANTED, "peer_pixels": crop**2, "apart": float(apart.max())}


def _radar_band() -> "npt.NDArray[np.uint8]":
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from cubeloom.pipeline.stages.texture_glcm import quantise

    draw = np.random.default_rng(1)
    ground = gaussian_filter(draw.normal(size=(SIDE, SIDE)), 6) * 20
    decibel = 10 * np.log10(np.exp(ground / 4) * draw.gamma(4.4, 1 / 4.4, (SIDE, SIDE)))
    return quantise(decibel, *np.percentile(decibel, (1, 99)), LEVELS)


def _matrices(band: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float64]":
    """The measures of every whole window, `(measure, y, x)`."""
    import numpy as np
    from skimage.feature import graycomatrix, graycoprops

    from cubeloom.pipeline.stages.texture import HARALICK

    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    height, width = (size - WINDOW + 1 for size in band.shape)
    made = np.empty((len(HARALICK), height, width))
    for row, col in np.ndindex(height, width):
        window = band[row : row + WINDOW, col : col + WINDOW]
        matrices = graycomatrix(window, [1], angles, LEVELS, symmetric=True, normed=True)
        for at, measure in enumerate(HARALICK):
            made[at, row, col] = graycoprops(matrices, "ASM" if measure == "asm" else measure).mean()
    return made
