"""Figures of a report as data URIs: pictures shrunk to what the page needs, plots as SVG."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .samples import BandAxis, FloatArray, Noise, Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BEFORE, AFTER, GAP = "#1f2a30", "#9aa5ab", "#c4845a", "#1d5f74", "#eef0ee"
WIDE = 30.0
"""Spacing of neighbouring bands, nm, above which there is a gap; the widest inside EnMAP's ranges is 13 nm."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cubeloom",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": "#5d6a70",
    "ytick.color": "#5d6a70",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def picture_uri(path: Path, longest_side: int) -> str:
    """A PNG as a WebP data URI no longer than `longest_side` px; transparency stays, maps of few colours stay exact."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    flat = picture.getcolors(maxcolors=64) is not None
    if max(picture.size) > longest_side:
        how = Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS
        factor = longest_side / max(picture.size)
        width, height = (max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), how)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=flat, quality=82, method=4)
    return _uri("image/webp", buffer.getvalue())


def spectra_uri(spectra: Spectra) -> str:
    """One small plot a pixel, before and after; stretches without usable bands are left open on a grey ground."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    count = max(1, len(spectra.samples))
    columns = min(2, count)
    rows = -(-count // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 2.0 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes, sample in zip(grid.ravel(), spectra.samples, strict=False):
            _draw(axes, spectra.bands, sample.before, sample.after)
            axes.set_title(sample.label, loc="left", fontsize=9.5, fontweight="bold")
            axes.set_title(f"row {sample.row}, column {sample.col}", loc="right", fontsize=8, color="#7b878d")
        for axes in grid.ravel()[len(spectra.samples) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("wavelength (nm)")
        for axes in grid[:, 0]:
            axes.set_ylabel(spectra.quantity)
        return _svg(figure)


def noise_uri(noise: Noise) -> str:
    """Noise of each band, before and after, on a logarithmic axis."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 1.9), layout="constrained")
        axes = figure.subplots()
        _draw(axes, noise.bands, noise.before, noise.after)
        axes.set_yscale("log")
        axes.set_xlabel("wavelength (nm)")
        axes.set_ylabel("noise" if noise.units in ("", "1") else f"noise ({noise.units})")
        return _svg(figure)


def is_sparse(bands: BandAxis) -> bool:
    """Whether the shown bands stand apart, as a multispectral instrument's do: then each is a point of its own."""
    shown = bands.wavelength[bands.good & bands.preferred]
    return shown.size > 1 and float(np.median(np.diff(shown))) > WIDE


def gaps(bands: BandAxis) -> list[tuple[float, float]]:
    """Stretches, nm, between neighbouring shown bands with a bad band, or more than `WIDE` nm, between them.

    None between bands that stand apart by nature.
    """
    if is_sparse(bands):
        return []
    kept = np.flatnonzero(bands.good & bands.preferred)
    bad = np.cumsum(~bands.good & bands.preferred)
    edges = bands.wavelength[kept]
    broken = (np.diff(bad[kept]) > 0) | (np.diff(edges) > WIDE)
    return [(float(edges[at]), float(edges[at + 1])) for at in np.flatnonzero(broken)]


def line(bands: BandAxis, values: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wavelengths (nm) and values of the shown bands, with a NaN in each gap, which no line crosses."""
    kept = np.flatnonzero(bands.good & bands.preferred)
    x, y = bands.wavelength[kept].astype(float), np.asarray(values, float)[kept]
    starts = np.array([start for start, _ in gaps(bands)])
    after = np.searchsorted(x, starts, side="right")
    return np.insert(x, after, np.nan), np.insert(y, after, np.nan)


def _draw(axes: "Axes", bands: BandAxis, before: FloatArray, after: FloatArray | None) -> None:
    for start, stop in gaps(bands):
        axes.axvspan(start, stop, color=GAP, lw=0)
    mark: Any = {"marker": "o", "markersize": 3.2} if is_sparse(bands) else {}
    if after is None:
        axes.plot(*line(bands, before), color=AFTER, lw=1.1, **mark)
    else:
        axes.plot(*line(bands, before), color=BEFORE, lw=0.9, **mark)
        axes.plot(*line(bands, after), color=AFTER, lw=1.1, **mark)
    axes.margins(x=0.03 if mark else 0.01)


def _svg(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", buffer.getvalue())


def _uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
