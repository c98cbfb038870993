"""The figure of an evaluation of classification: accuracies, maps and confusion matrices, split by split."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cubeloom.workflows.train.labelled import LabelledImage

from .class_methods import Column, usable_bands
from .class_splits import Division, SplitGroup
from .classify import ClassEvaluation
from .figure import COLOURS, INK, MARKERS, SHADE, STYLE, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Picture = npt.NDArray[np.float64]

_CELL = 2.3
"""Width of a map, inches."""
_LETTERS = 24
"""Of a title that fit above a map."""
_NUMBERED = 9
"""Confusion matrices of no more classes have their numbers written in."""
_TRAIN, _TEST = "#d98a3d", "#1d5f74"


def write_class_figure(found: ClassEvaluation, path: Path) -> None:
    """Write the figure as PNG: a chart, then for each image and split a row of maps and one of confusion matrices."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = 2 + len(found.columns)
    width = max(10.0, _CELL * columns)
    parts = [(image, split) for image in found.images for split in found.splits]
    cell = width / columns
    heights = [3.6, *(cell * (_aspect(image) + 1.0) + 1.5 for image, _ in parts)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        chart, *rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _chart(found, chart)
        for (image, split), row in zip(parts, rows, strict=True):
            _part(found, image, split, row)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _aspect(image: LabelledImage) -> float:
    height, width = image.shape
    return float(np.clip(height / width, 0.45, 1.8))


def _chart(found: ClassEvaluation, figure: "SubFigure") -> None:
    """Means and spreads of two measures by method, a mark an image and split; those of random pixels are hollow."""
    axes = figure.subplots(1, 2, sharey=True)
    for axis, metric, title in zip(
        axes, ("overall_accuracy", "macro_f1"), ("overall accuracy", "macro F1"), strict=True
    ):
        _marks(found, axis, metric)
        axis.set_title(f"{title}, percent: mean and standard deviation over runs", loc="left", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1, frameon=False, fontsize=8.5)


def _marks(found: ClassEvaluation, axes: "Axes", metric: str) -> None:
    at = range(len(found.columns))
    for place in at[::2]:
        axes.axvspan(place - 0.5, place + 0.5, color=SHADE, lw=0, zorder=0)
    series = [(image, split) for image in found.images for split in found.splits]
    for number, (image, split) in enumerate(series):
        means = [found.mean(metric, image.name, split.name, column.name) for column in found.columns]
        colour = COLOURS[(3 + number) % len(COLOURS)]
        beside = 0.5 / len(series) * (number - (len(series) - 1) / 2)
        known = [
            (place + beside, 100 * one.mean, 100 * (one.spread or 0))
            for place, one in zip(at, means, strict=True)
            if one
        ]
        x, y, spread = zip(*known, strict=True) if known else ((), (), ())
        label = f"{image.name}, {split.label}" if len(found.images) > 1 else split.label
        look: dict[str, Any] = {"fmt": MARKERS[number % len(MARKERS)], "ms": 6, "lw": 1, "capsize": 2}
        look |= {"color": colour, "mfc": colour if split.apart else "white"}
        axes.errorbar(x, y, spread, label=label, **look)
    axes.set_xlim(-0.5, len(found.columns) - 0.5)
    axes.margins(y=0.12)
    labels = [wrapped(column.label) for column in found.columns]
    axes.set_xticks(at, labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)


def _part(found: ClassEvaluation, image: LabelledImage, split: SplitGroup, figure: "SubFigure") -> None:
    """One image and split: labels, training and test pixels, and what each method made of it in the first run."""
    first = found.divisions[image.name][split.name][0]
    title = textwrap.fill(f"{image.name}: {split.label}", int(_LETTERS * (2 + len(found.columns))))
    figure.suptitle(title, x=0.005, ha="left", fontsize=10, fontweight="bold")
    maps, matrices = figure.subplots(2, 2 + len(found.columns), height_ratios=[_aspect(image), 1.0])
    ground = _ground(image)
    maps[0].imshow(_coloured(image, image.labels, ground), interpolation="nearest")
    maps[0].set_title("labels", fontsize=8.5)
    maps[1].imshow(_sides(first, ground), interpolation="nearest")
    maps[1].set_title(f"{first.trial.name}: training and test", fontsize=8.5)
    _legends(image, matrices[0], matrices[1])
    for column, chart, matrix in zip(found.columns, maps[2:], matrices[2:], strict=True):
        _method(found, image, split, column, chart, matrix)
    for axes in maps:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_anchor("S")
    for axes in matrices:
        axes.set_anchor("N")
    matrices[2].set_ylabel("true", fontsize=7)


def _method(
    found: ClassEvaluation, image: LabelledImage, split: SplitGroup, column: Column, chart: "Axes", matrix: "Axes"
) -> None:
    """A method's map of the first run, with its accuracy there, and its confusion over all runs."""
    key = (image.name, split.name, column.name)
    label = wrapped(column.label)
    picture = [one for one in found.pictures if (one.image, one.split, one.method) == key]
    if not picture:
        chart.imshow(np.ones((*image.shape, 3)))
        chart.set_title(f"{label}\nfailed", fontsize=8.5)
        matrix.set_axis_off()
        return
    chart.imshow(_coloured(image, np.where(image.valid, picture[0].classes, 0), None), interpolation="nearest")
    accuracy = found.of(*key)[0].overall_accuracy
    chart.set_title(f"{label}\nOA {100 * (accuracy or 0):.1f} %", fontsize=8.5)
    confusion = found.confusion(*key)
    if confusion is None:
        matrix.set_axis_off()
    else:
        _matrix(image, confusion, matrix)


def _matrix(image: LabelledImage, confusion: npt.NDArray[np.int64], axes: "Axes") -> None:
    """Shares of each true class, in percent."""
    from matplotlib.colors import LinearSegmentedColormap

    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap=LinearSegmentedColormap.from_list("share", ["white", "#1d5f74"]), vmin=0, vmax=1)
    values = [str(one.value) for one in image.classes]
    size = 7 if len(values) <= _NUMBERED else 5
    axes.set_xticks(range(len(values)), values, fontsize=size)
    axes.set_yticks(range(len(values)), values, fontsize=size)
    axes.set_xlabel("mapped", fontsize=7)
    axes.spines[:].set_visible(True)
    if len(values) <= _NUMBERED:
        for (row, col), part in np.ndenumerate(share):
            if part >= 0.005:
                colour = "white" if part > 0.5 else INK
                axes.text(col, row, f"{100 * part:.0f}", ha="center", va="center", fontsize=6.5, color=colour)


def _legends(image: LabelledImage, left: "Axes", right: "Axes") -> None:
    from matplotlib.patches import Patch

    for axes in (left, right):
        axes.set_axis_off()
    classes = [Patch(color=one.colour, label=f"{one.value} {_short(one.name)}") for one in image.classes]
    sides = [Patch(color=_TRAIN, label="trains"), Patch(color=_TEST, label="tests")]
    small = 7.5 if len(classes) <= _NUMBERED else 6
    for axes, patches in ((left, classes), (right, sides)):
        axes.legend(handles=patches, loc="upper left", frameon=False, fontsize=small, handlelength=1, borderaxespad=0)
    right.text(0, 0.35, "Matrices: percent of each\ntrue class, over all runs.\nMaps: the first run.", fontsize=7.5)


def _short(name: str) -> str:
    return textwrap.shorten(name, 26, placeholder="…")


def _ground(image: LabelledImage) -> Picture:
    """The image in light greys, white where not valid, `(y, x, 3)`."""
    kept = usable_bands(image)
    brightness = image.cube[kept[:: max(1, kept.size // 16)]].astype(np.float64).mean(axis=0)
    low, high = np.percentile(brightness[image.valid], (2, 98))
    scaled = np.clip((brightness - low) / max(high - low, 1e-12), 0, 1)
    grey = np.where(image.valid, 0.72 + 0.24 * scaled, 1.0)
    return np.repeat(grey[..., None], 3, axis=2)


def _coloured(image: LabelledImage, classes: npt.NDArray[np.uint8], ground: Picture | None) -> Picture:
    """Class values in the classes' colours; where there is none, the ground, or white."""
    from matplotlib.colors import to_rgb

    picture = np.ones((*classes.shape, 3)) if ground is None else ground.copy()
    for one in image.classes:
        picture[classes == one.value] = to_rgb(one.colour)
    return picture


def _sides(division: Division, ground: Picture) -> Picture:
    from matplotlib.colors import to_rgb

    picture = ground.copy()
    picture[division.train] = to_rgb(_TRAIN)
    picture[division.test] = to_rgb(_TEST)
    return picture
