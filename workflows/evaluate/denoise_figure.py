"""The figure of an evaluation: how every method does on every kind of noise, and what it makes of one cube."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .denoise import Evaluation, Picture
from .figure import COLOURS, MARKERS, SHADE, STYLE, stretched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPACING = 0.12
"""How far the marks of two methods stand apart, of the distance of two kinds of noise."""


def write_figure(found: Evaluation, path: Path) -> None:
    """Write the figure as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = list(dict.fromkeys(picture.noise for picture in found.pictures))
    columns = max(sum(picture.noise == noise for picture in found.pictures) for noise in shown)
    with mpl.rc_context(STYLE):
        width = max(9.0, 1.9 * columns + 0.6)
        picture_height = (width - 0.6) / columns * _aspect(found) + 0.25
        heights = [2.9, *[picture_height] * len(shown)]
        figure = Figure(figsize=(width, sum(heights) + 0.7), layout="constrained")
        charts, *strips = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _charts(found, charts)
        for noise, strip in zip(shown, strips, strict=True):
            _strip(found, [picture for picture in found.pictures if picture.noise == noise], strip, columns)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _aspect(found: Evaluation) -> float:
    height, width = found.pictures[0].bands.shape[1:]
    return float(np.clip(height / width, 0.4, 2.0))


def _charts(found: Evaluation, figure: "Figure") -> None:
    """Mean PSNR and SAM over the cubes by noise, a mark a method."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes = figure.subplots(1, 2)
    _marks(found, axes[0], "psnr_db", "PSNR (dB), more is better")
    _marks(found, axes[1], "sam_deg", "SAM (degrees), less is better")
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].yaxis.set_minor_locator(NullLocator())
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _marks(found: Evaluation, axes: "Axes", metric: str, title: str) -> None:
    at = range(len(found.noises))
    for place in at[::2]:
        axes.axvspan(place - 0.5, place + 0.5, color=SHADE, lw=0, zorder=0)
    axes.set_xlim(-0.5, len(found.noises) - 0.5)
    for number, method in enumerate(found.methods):
        means = [found.mean(metric, method.name, noise) for noise in found.noises]
        values = [np.nan if mean is None else mean for mean in means]
        colour, mark = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        beside = _SPACING * (number - (len(found.methods) - 1) / 2)
        axes.plot([place + beside for place in at], values, ls="", ms=6, label=method.label, color=colour, marker=mark)
    axes.set_xticks(at, found.noises, rotation=35, ha="right", rotation_mode="anchor")
    over = f"mean over {len(found.cubes)} cubes" if len(found.cubes) > 1 else found.cubes[0].name
    axes.set_title(f"{title}; {over}", loc="left", fontsize=9)


def _strip(found: Evaluation, pictures: list[Picture], figure: "Figure", columns: int) -> None:
    """One noise: the clean cube, then what each method made, all with the stretch of the clean one."""
    low, high = np.nanpercentile(pictures[0].bands, (2, 98), axis=(1, 2))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    for axis, picture in zip(axes, pictures, strict=False):
        axis.imshow(stretched(picture.bands, low, high), interpolation="nearest")
        axis.set_title(_caption(found, picture), fontsize=8.5)
    figure.suptitle(f"{pictures[0].cube}, {pictures[0].noise}", x=0.01, ha="left", fontsize=9, fontweight="bold")


def _caption(found: Evaluation, picture: Picture) -> str:
    if picture.method == "clean":
        return "clean"
    [label] = [method.label for method in found.methods if method.name == picture.method]
    psnr = found.mean("psnr_db", picture.method, picture.noise, picture.cube)
    return f"{label}\n{psnr:.2f} dB"
