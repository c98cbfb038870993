"""Grey-level co-occurrence texture of a band beside scikit-image's matrices, window by window.

Run: python benchmarks/texture.py [--quick] [--json FILE] [--rounds N]

The band has 1000 x 1000 px of 32 levels, smooth ground under noise as radar shows it; windows are 5 x 5 px, the four
directions are averaged, and eight measures are taken: mean, variance, homogeneity, contrast, dissimilarity, entropy,
angular second moment and correlation. Ours is `texture_images`.

The peer is a loop over pixels with `graycomatrix`, all four directions in one call, and `graycoprops` for each measure,
which is how scikit-image is used for maps of texture. It takes the inner pixels of a crop, 20 x 20 of them, and 40 x 40
in the full run; its time for the band is that time by the number of pixels. It does the same work at every one.

Both run in one process on one thread, in turn, and once before to warm up; the ratio is peer over ours, median of the
rounds. No more than 1e-4 of its size, or 1e-5, may lie between ours and the peer's measures of the crop, in float32,
which the benchmark checks; `apart` is the largest share of that.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix, graycoprops

from cubeloom.pipeline.stages.texture import HARALICK
from cubeloom.pipeline.stages.texture_glcm import quantise, texture_images

SIDE, LEVELS, WINDOW = 1000, 32, 5
ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
CROP, SHORT_CROP = 40, 20
WANTED = 20
"""How many times as fast ours is to be."""

Levels = npt.NDArray[np.uint8]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller crop for the peer, one round")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    row = _case(*(SHORT_CROP, 1) if arguments.quick else (CROP, arguments.rounds))
    print(f"{'case':12}{'ours s':>11}{'peer s':>11}{'ratio':>11}{'apart':>11}")
    cells = f"{row['ours_s']:>11.2f}{row['peer_s']:>11.0f}{row['ratio']:>11.0f}{row['apart']:>11.1e}"
    print(f"{row['case']:12}{cells}")
    print(f"the peer took {row['peer_pixels']} of {SIDE**2} pixels; its time is that of all, reckoned from them")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": [row]}, indent=1))
    if row["apart"] > 1:
        raise SystemExit("the measures differ by more than they may")


def _case(crop: int, rounds: int) -> dict[str, Any]:
    band = _band()
    texture_images(band[:64], HARALICK, WINDOW)
    _peer(band[:6, :6])
    ours, peers = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        theirs = _peer(band[: crop + WINDOW - 1, : crop + WINDOW - 1])
        peers.append((time.perf_counter() - start) * SIDE**2 / crop**2)
        start = time.perf_counter()
        made = texture_images(band, HARALICK, WINDOW)
        ours.append(time.perf_counter() - start)
    inner = slice(WINDOW // 2, WINDOW // 2 + crop)
    apart = np.abs(made[:, inner, inner] - theirs) / (1e-5 + 1e-4 * np.abs(theirs))
    return {
        "case": "glcm",
        "ours_s": statistics.median(ours),
        "peer_s": statistics.median(peers),
        "ratio": statistics.median(b / a for a, b in zip(ours, peers, strict=True)),
        "wanted": WANTED,
        "peer_pixels": crop**2,
        "apart": float(apart.max()),
        "rounds": rounds,
    }


def _band() -> Levels:
    draw = np.random.default_rng(1)
    ground = gaussian_filter(draw.normal(size=(SIDE, SIDE)), 6) * 20
    decibel = 10 * np.log10(np.exp(ground / 4) * draw.gamma(4.4, 1 / 4.4, (SIDE, SIDE)))
    return quantise(decibel, *np.percentile(decibel, (1, 99)), LEVELS)


def _peer(band: Levels) -> npt.NDArray[np.float64]:
    """The measures of every whole window, `(measure, y, x)`."""
    height, width = (size - WINDOW + 1 for size in band.shape)
    made = np.empty((len(HARALICK), height, width))
    for row, col in np.ndindex(height, width):
        window = band[row : row + WINDOW, col : col + WINDOW]
        matrices = graycomatrix(window, [1], ANGLES, LEVELS, symmetric=True, normed=True)
        for at, measure in enumerate(HARALICK):
            made[at, row, col] = graycoprops(matrices, "ASM" if measure == "asm" else measure).mean()
    return made


if __name__ == "__main__":
    main()
