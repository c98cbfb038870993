"""Draw product.png from a product of `make demo`: python docs/images/product.py out/demo/products/scenes/*/*.zarr."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cubeloom import open_scene
from cubeloom.pipeline.quicklook import class_map, truecolour
from cubeloom.workflows.figures import AFTER, BEFORE, line
from cubeloom.workflows.samples import band_axis, sample_spectra

NOISY = 2420.0
"""Wavelength, nm, of the band shown before and after: little light, so much noise."""
SIDE = 200
"""Edge, px, of the part in the middle of the scene that is shown; it lies inside the swath."""


def draw(product: Path, out: Path) -> None:
    """A row of pictures, and below it a spectrum, whole and where it is noisiest."""
    scene = open_scene(product)
    top, left = ((scene.sizes[dim] - SIDE) // 2 for dim in ("y", "x"))
    part = scene.isel(y=slice(top, top + SIDE), x=slice(left, left + SIDE)).load()
    figure = Figure(figsize=(12, 4.9), facecolor="white")
    grid = figure.add_gridspec(
        2, 4, height_ratios=(2.1, 1), hspace=0.2, wspace=0.04, left=0.04, right=0.995, top=0.95, bottom=0.1
    )
    band = int(np.argmin(np.abs(part["wavelength"].values - NOISY)))
    before, after = (part[name].isel(band=band).values for name in ("reflectance", "denoised"))
    limits = dict(zip(("vmin", "vmax"), np.nanpercentile(after, (0.5, 92)), strict=True), cmap="gray")
    nm = f"{float(part['wavelength'][band]):.0f} nm"
    shown: list[tuple[str, Any, dict[str, Any]]] = [
        ("true colour", truecolour(part), {}),
        (f"{nm}, measured", before, limits),
        (f"{nm}, denoised", after, limits),
        ("land cover", class_map(part), {}),
    ]
    for column, (title, image, options) in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(image, interpolation="nearest", **options)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_facecolor("#dfded7")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    below = grid[1, :].subgridspec(1, 2, wspace=0.13)
    _spectrum(figure.add_subplot(below[0]), part)
    zoomed = figure.add_subplot(below[1])
    _spectrum(zoomed, part)
    zoomed.set(xlim=(1960, 2450), ylim=(0, 0.04), ylabel="")
    figure.savefig(out, dpi=100, pil_kwargs={"optimize": True})


def _spectrum(axes: Any, part: Any) -> None:  # noqa: ANN401 - matplotlib's Axes and a Scene
    bands = band_axis(part)
    sample = next(sample for sample in sample_spectra(part).samples if sample.label == "vegetation")
    axes.plot(*line(bands, sample.before), color=BEFORE, lw=1, label="measured")
    axes.plot(*line(bands, sample.after), color=AFTER, lw=1.2, label="denoised")
    axes.set_xlabel("wavelength (nm)", fontsize=9)
    axes.set_ylabel(f"reflectance, {sample.label}", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).with_name("product.png"))
