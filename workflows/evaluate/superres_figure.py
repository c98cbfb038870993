"""The figure of an evaluation of super-resolution: how every method does, crops of what it makes, and spectra."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure import COLOURS, FAINT, INK, MARKERS, SHADE, STYLE, stretched, wrapped
from .scores import selected
from .superres import SuperresEvaluation
from .superres_methods import SuperresMethod
from .superres_pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_WIDTH = 12.6
"""Of the figure, inches."""
_COLUMNS = 7
"""Most crops beside each other."""
_CHARTS = {
    "psnr_db": "MPSNR, dB: more is better",
    "sam_deg": "SAM, degrees: less is better",
    "qnr": "QNR: more is better",
    "d_lambda": "D_lambda: less is better",
    "consistency_deg": "degraded again, degrees: less is better",
}
_PROTOCOLS = {"full": "full resolution", "reduced": "reduced resolution"}
_POINT = ("#ffd23f", "#ff6f91", "#4de1ff")
"""Colours of the pixels whose spectra are shown."""


def write_superres_figure(found: SuperresEvaluation, path: Path) -> None:
    """Write the figure as PNG: for each protocol two charts, crops of its first scene, and spectra of three pixels."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    parts = []
    for protocol in found.protocols:
        pictures = [picture for picture in found.pictures if picture.protocol == protocol]
        if pictures:
            rows, columns = _grid(len(pictures))
            parts.append((_charts, protocol, pictures, 0.9 + 0.24 * len(_methods(found, protocol))))
            parts.append((_crops, protocol, pictures, rows * (_WIDTH / columns + 0.4) + 0.3))
            parts.append((_spectra, protocol, pictures, 2.6))
    heights = [height for *_, height in parts]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, max(sum(heights), 1.0)), layout="constrained")
        if parts:
            places = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
            for (draw, protocol, pictures, _), place in zip(parts, places, strict=True):
                draw(found, protocol, pictures, place)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of so many crops, in rows of about the same length."""
    rows = -(-count // _COLUMNS)
    return rows, max(-(-count // rows), _COLUMNS - 2)


def _charts(found: SuperresEvaluation, protocol: str, pictures: list[Picture], figure: "SubFigure") -> None:
    """Two metrics by method, a mark a scene."""
    truth = any(picture.method == "truth" for picture in pictures)
    guided = any(score.qnr is not None for score in found.scores if score.protocol == protocol)
    shown = ("psnr_db", "sam_deg") if truth else ("qnr" if guided else "d_lambda", "consistency_deg")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, metric in zip(axes, shown, strict=True):
        _marks(found, protocol, metric, axis)
        axis.set_title(_CHARTS[metric], loc="left", fontsize=9)
    figure.suptitle(_title(found, protocol), x=0.005, ha="left", fontsize=10.5, fontweight="bold")
    if len(found.grounds) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False, fontsize=8, handletextpad=0.2)


def _methods(found: SuperresEvaluation, protocol: str) -> list[SuperresMethod]:
    """Those that some ground of a protocol suits."""
    return [method for method in found.methods if selected(found.scores, protocol=protocol, method=method.name)]


def _title(found: SuperresEvaluation, protocol: str) -> str:
    return f"{_PROTOCOLS[protocol].capitalize()}, {found.scale} times finer"


def _marks(found: SuperresEvaluation, protocol: str, metric: str, axes: "Axes") -> None:
    """A row a method, from the top down."""
    methods = _methods(found, protocol)
    at = np.arange(len(methods))
    for place in at[::2]:
        axes.axhspan(place - 0.5, place + 0.5, color=SHADE, lw=0, zorder=0)
    for number, ground in enumerate(found.grounds):
        values = [found.mean(metric, method.name, protocol, ground.name) for method in methods]
        look: dict[str, Any] = {"color": COLOURS[(number + 1) % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        known = [np.nan if value is None else value for value in values]
        axes.plot(known, at, ls="", ms=6, label=ground.name, **look)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.set_yticks(at, [method.label for method in methods], fontsize=8, color=INK)
    axes.tick_params(axis="y", length=0)


def _crops(found: SuperresEvaluation, protocol: str, pictures: list[Picture], figure: "SubFigure") -> None:
    """What was given, what is true, and what each method made, all with the stretch of the truth."""
    model = pictures[1] if pictures[1].method == "truth" else pictures[0]
    low, high = np.nanpercentile(model.colours, (1, 99), axis=(1, 2))
    axes = figure.subplots(*_grid(len(pictures)), squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, picture in zip(axes, pictures, strict=False):
        axis.imshow(stretched(picture.colours, low, high), interpolation="nearest")
        axis.set_title(_caption(found, picture), fontsize=7.5)
    for (row, col), colour in zip(pictures[0].points, _POINT, strict=True):
        axes[0].plot(col, row, "o", ms=6, mfc="none", mec=colour, mew=1.6)
    edge = pictures[0].colours.shape[1]
    title = f"{pictures[0].ground}: {edge} x {edge} fine pixels; 860, 650 and 550 nm as red, green and blue"
    figure.suptitle(title, x=0.005, ha="left", fontsize=9)


def _caption(found: SuperresEvaluation, picture: Picture) -> str:
    if picture.method == "scene":
        return "what was given\n"
    if picture.method == "truth":
        return "truth\n"
    [method] = [method for method in found.methods if method.name == picture.method]
    [score] = [
        one
        for one in found.scores
        if (one.ground, one.protocol, one.method) == (picture.ground, picture.protocol, picture.method)
    ]
    if score.psnr_db is not None and score.sam_deg is not None:
        measured = f"{score.psnr_db:.2f} dB, {score.sam_deg:.2f}°"
    else:
        measured = "" if score.qnr is None else f"QNR {score.qnr:.3f}"
    return f"{wrapped(method.label)}\n{measured}"


def _spectra(found: SuperresEvaluation, protocol: str, pictures: list[Picture], figure: "SubFigure") -> None:
    """Spectra of three pixels: given, true, and of the first method and the best ones without a guide and with."""
    made = [method for method in found.methods if any(method.name == picture.method for picture in pictures)]
    best = [found.best(protocol, guided=guided) for guided in (False, True)]
    names = dict.fromkeys(method.name for method in [made[0], *best] if method in made)
    if len(names) == 1:  # no truth tells which is best
        names = dict.fromkeys(method.name for method in (made[0], made[len(made) // 2], made[-1]))
    looks: dict[str, dict[str, Any]] = {
        "scene": {"color": FAINT, "lw": 2.4, "label": "what was given"},
        "truth": {"color": INK, "lw": 2.4, "label": "truth"},
    }
    for number, name in enumerate(names):
        [label] = [method.label for method in found.methods if method.name == name]
        looks[name] = {"color": COLOURS[(1, 5, 3)[number]], "lw": 1.1, "label": label}
    axes = figure.subplots(1, len(pictures[0].points), sharey=False)
    for number, axis in enumerate(axes):
        for picture in pictures:
            if picture.method in looks:
                _spectrum(axis, found.wavelength[protocol], picture.spectra[number], looks[picture.method])
        axis.plot(0.03, 0.93, "o", ms=7, mfc="none", mec=_POINT[number], mew=2, transform=axis.transAxes)
        axis.set_xlabel("nm", fontsize=8)
        axis.tick_params(labelsize=7.5)
    axes[0].set_ylabel("reflectance", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=5, frameon=False, fontsize=8)


def _spectrum(axes: "Axes", wavelength: Any, values: Any, look: dict[str, Any]) -> None:  # noqa: ANN401 - arrays
    """A line, broken where bands are missing or far apart."""
    gaps = np.flatnonzero(np.diff(wavelength) > 40) + 1
    axes.plot(np.insert(wavelength, gaps, np.nan), np.insert(values.astype(float), gaps, np.nan), **look)
