"""The look that figures of all evaluations share."""

import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = ("#8a979e", "#c4845a", "#7a5c99", "#1d5f74", "#5a9a6e", "#b0444f", "#c9a227", "#3d6fb0")
MARKERS = "osD^vPX*"

INK, FAINT, SHADE = "#1f2a30", "#c7cfd3", "#f2f4f3"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": "#5d6a70",
    "xtick.major.size": 0,
}


def stretched(
    bands: npt.NDArray[np.float32], low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Bands `(3, y, x)` as an image; white where there is no value."""
    scaled = (bands - low[:, None, None]) / np.maximum(high - low, 1e-6)[:, None, None]
    return np.nan_to_num(np.clip(np.moveaxis(scaled, 0, -1), 0, 1), nan=1.0)


def wrapped(label: str, width: int = 24) -> str:
    """A method's label in lines of some `width` characters, broken before its options where that can be."""
    lines = [""]
    for part in label.replace("+", "\0+").replace("@", "\0@").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line for one in lines for line in textwrap.wrap(one, width + 6, break_on_hyphens=False))
