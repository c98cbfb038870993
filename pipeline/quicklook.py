"""Quicklooks: colour composites and class maps of a Scene as small PNGs.

A composite of the measurement and one of a cube derived from it share one stretch, so that what differs between the
two pictures differs in the data. Pixels without a value are transparent.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubeloom.pipeline.scene import QUALITY_FLAGS, spec_of

TRUE_COLOUR = (660.0, 560.0, 480.0)
"""Wavelengths, nm, shown as red, green and blue."""
SWIR = (2200.0, 1650.0, 850.0)
"""Clay and carbonate, leaf water and soil, vegetation; nm."""

_SPECTRAL = {"truecolour": TRUE_COLOUR, "swir": SWIR}
_DARKEST = 1e-5
"""Backscatter, -50 dB, below which nothing is told apart."""

REACH = 60.0
"""How far, nm, a band may lie from the wavelength it stands for."""
PERCENTILES = (1.0, 99.0)
GAMMA = 1.25
"""Exponent 1/GAMMA lifts the dark half of a scene, where most land surfaces lie."""
LONGEST_SIDE = 1024
THUMBNAIL_SIDE = 256

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#5b4b8a", "#8c6d46", "#7f7f7f")
"""Colours for classes without one of their own: those of Okabe and Ito (2008), which colour-blind readers can tell
apart, and three more; they start again after the last."""

Image = npt.NDArray[np.uint8]
Limits = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LegendEntry:
    """A class of a map: pixel value, name, colour as red, green, blue."""

    value: int
    name: str
    colour: Colour


def truecolour(scene: xr.Dataset, cube: str | None = None, limits: Limits | None = None) -> Image:
    """A true-colour picture `(y, x, 4)` RGBA of one cube.

    Args:
        scene: a Scene, best an overview of one.
        cube: which cube; the measurement where not given.
        limits: black and white point of each channel as `stretch_limits` gives; from this cube where not given.

    Raises:
        ValueError: the Scene has no bands in the visible; see `can_show`.
    """
    return _composite(scene, TRUE_COLOUR, cube, limits)


def swir_composite(scene: xr.Dataset, cube: str | None = None, limits: Limits | None = None) -> Image:
    """A picture `(y, x, 4)` RGBA of two SWIR bands and one NIR band; arguments and errors as `truecolour`."""
    return _composite(scene, SWIR, cube, limits)


def can_show(scene: xr.Dataset, wavelengths: Sequence[float]) -> bool:
    """Whether the Scene has a usable band within `REACH` of each wavelength (nm)."""
    bands = spec_of(scene).bands
    return all(abs(bands.wavelength[bands.nearest(wanted)] - wanted) <= REACH for wanted in wavelengths)


def channels(scene: xr.Dataset, wavelengths: Sequence[float], cube: str) -> npt.NDArray[np.float32]:
    """The bands of a cube nearest to `wavelengths` (nm), `(channel, y, x)`, without reading the others."""
    bands = spec_of(scene).bands
    positions = [bands.nearest(wanted) for wanted in wavelengths]
    parts = {
        str(channel): (("band", "y", "x"), scene[cube].isel(band=slice(position, position + 1)).data)
        for channel, position in enumerate(positions)
    }
    read = xr.Dataset(parts).compute()
    return np.concatenate([read[name].values for name in parts]).astype(np.float32, copy=False)


def stretch_limits(pixels: npt.NDArray[np.float32], clear: npt.NDArray[np.bool_] | None = None) -> Limits:
    """Black and white point of each channel, `(channel, 2)`: percentiles over the pixels with a value.

    Args:
        pixels: `(channel, y, x)`, NaN where there is no value.
        clear: `(y, x)`, True where a pixel may set the limits; all where it leaves fewer than one in a hundred.
    """
    known = np.isfinite(pixels).all(axis=0)
    if clear is not None and (known & clear).sum() >= 0.01 * known.sum():
        known &= clear
    if not known.any():
        return np.tile([0.0, 1.0], (len(pixels), 1))
    limits = np.percentile(pixels[:, known].astype(np.float64), PERCENTILES, axis=1).T
    flat = limits[:, 1] - limits[:, 0] <= 0
    limits[flat, 1] = limits[flat, 0] + 1
    return np.asarray(limits)


def render(pixels: npt.NDArray[np.float32], limits: Limits) -> Image:
    """Channels `(3, y, x)` as RGBA `(y, x, 4)`; transparent where a channel has no value."""
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    known = np.isfinite(pixels).all(axis=0)
    scaled = np.clip((np.where(known, pixels, low) - low) / (high - low), 0, 1) ** (1 / GAMMA)
    colours = np.rint(255 * np.moveaxis(scaled, 0, -1)).astype(np.uint8)
    return np.dstack([colours, np.where(known, 255, 0).astype(np.uint8)])


def class_legend(attrs: Mapping[str, Any]) -> tuple[LegendEntry, ...]:
    """The classes of a map from the attributes of its variable.

    CF's `flag_values` and `flag_meanings`; and where they are there, `class_names` and `class_colours` (`#rrggbb`).
    """
    values = [int(value) for value in np.atleast_1d(attrs.get("flag_values", ()))]
    names = [str(name) for name in np.atleast_1d(attrs.get("class_names", str(attrs.get("flag_meanings", "")).split()))]
    names += [f"class {value}" for value in values[len(names) :]]
    colours = [str(colour) for colour in np.atleast_1d(attrs.get("class_colours", ()))]
    return tuple(
        LegendEntry(value, names[n], _rgb(colours[n] if n < len(colours) else PALETTE[n % len(PALETTE)]))
        for n, value in enumerate(values)
    )


def class_map(scene: xr.Dataset) -> Image:
    """The class map `(y, x, 4)` RGBA in the colours of its legend; transparent where there is no class."""
    codes = np.asarray(scene["classes"].values)
    table = np.zeros((256, 4), np.uint8)
    for entry in class_legend(scene["classes"].attrs):
        table[entry.value] = (*entry.colour, 255)
    return np.asarray(table[codes])


def write_guide_quicklooks(scene: xr.Dataset, name: str, folder: Path) -> dict[str, Path]:
    """Write the composites of a guide among the pictures of its Scene, with `_<name>` behind their names."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {f"{kind}_{name}": image for kind, image in _composites(scene).items()}
    return {key: write_png(image, folder / f"{key}.png") for key, image in pictures.items()}


def write_quicklooks(scene: xr.Dataset, folder: Path) -> dict[str, Path]:
    """Write the pictures of a Scene: composites of the measurement and of the subject, the class map, a thumbnail.

    Args:
        scene: a Scene; the overview nearest to 1024 px is enough. The measurement and the subject are shown.
        folder: where the PNGs go; made if it is not there.

    Returns:
        Paths by name: `truecolour`, `swir` (as far as the bands allow; of a radar `polarisations`), the same with
        `_<subject>` for a subject other than the measurement, `classes`, `classes_legend` (the same with its legend),
        `classes_entropy` (how sure they are, with its scale), `index_<NAME>` of every spectral index, and `thumbnail`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _composites(scene)
    written = {name: write_png(image, folder / f"{name}.png") for name, image in pictures.items()}
    if pictures:
        written["thumbnail"] = write_png(next(iter(pictures.values())), folder / "thumbnail.png", THUMBNAIL_SIDE)
    if "classes" in scene:
        written["classes"] = write_png(class_map(scene), folder / "classes.png")
        written["classes_legend"] = _write_legend(scene, folder / "classes_legend.png")
    if "entropy" in scene:
        shown = np.asarray(scene["entropy"].values)
        path, ends = folder / "classes_entropy.png", ("certain", "all alike")
        written["classes_entropy"] = _write_layer(shown, path, "entropy of the classes", (0.0, 1.0), ends)
    for name, layer in scene.data_vars.items():
        if "formula" in layer.attrs and layer.dims == ("y", "x"):
            written[f"index_{name}"] = _write_index(layer, folder / f"index_{name}.png")
    return written


def write_png(image: Image, path: Path, longest_side: int = LONGEST_SIDE) -> Path:
    """Write RGBA `(y, x, 4)` as a PNG no longer than `longest_side` px, averaging where it must shrink.

    A picture of few colours is a map: its colours stand for something, so it is thinned instead.
    """
    from PIL import Image as Picture

    picture = Picture.fromarray(image)
    flat = picture.getcolors(maxcolors=256) is not None
    factor = max(picture.size) / longest_side
    if factor > 1:
        width, height = (max(1, round(side / factor)) for side in picture.size)
        picture = picture.resize((width, height), Picture.Resampling.NEAREST if flat else Picture.Resampling.BOX)
    picture.save(path, optimize=True)
    return path


def _composites(scene: xr.Dataset) -> dict[str, Image]:
    measurement, subject = scene.attrs["measurement"], scene.attrs["subject"]
    clear = _clear(scene)
    pictures = {}
    for name, channels_of in _kinds(scene).items():
        pixels = channels_of(measurement)
        limits = stretch_limits(pixels, clear)
        pictures[name] = render(pixels, limits)
        if subject != measurement and scene[subject].dims == scene[measurement].dims:
            pixels = channels_of(subject)
            alike = scene[subject].attrs.get("units") == scene[measurement].attrs.get("units")
            pictures[f"{name}_{subject}"] = render(pixels, limits if alike else stretch_limits(pixels, clear))
    return pictures


def _kinds(scene: xr.Dataset) -> dict[str, Callable[[str], npt.NDArray[np.float32]]]:
    """What of a cube is shown as red, green and blue: by kind of picture, a function of the cube's name."""
    wanted = {name: lengths for name, lengths in _SPECTRAL.items() if can_show(scene, lengths)}
    bands = spec_of(scene).bands
    pair = [at for names in (("vv", "hh"), ("vh", "hv")) for at in np.flatnonzero(np.isin(bands.detector, names))[:1]]
    if not wanted and len(pair) == 2:
        return {"polarisations": partial(_polarisations, scene, pair)}
    if not wanted:
        middle = float(bands.wavelength[bands.good][bands.good.sum() // 2]) if bands.good.any() else 0.0
        wanted = {"grey": (middle,) * 3}
    return {name: partial(channels, scene, lengths) for name, lengths in wanted.items()}


def _polarisations(scene: xr.Dataset, pair: Sequence[int], cube: str) -> npt.NDArray[np.float32]:
    """Like and cross polarisation of a radar, and the ratio of the two, in decibels, `(3, y, x)`."""
    power = np.asarray(scene[cube].isel(band=list(pair)).values, np.float32)
    if scene[cube].attrs.get("units") != "dB":
        power = 10 * np.log10(np.maximum(power, np.float32(_DARKEST)))
    return np.stack([power[0], power[1], power[0] - power[1]])


def _composite(scene: xr.Dataset, wanted: Sequence[float], cube: str | None, limits: Limits | None) -> Image:
    if not can_show(scene, wanted):
        found = np.asarray(scene["wavelength"].values)
        raise ValueError(f"no bands near {wanted} nm: the scene has {found.min():.0f}-{found.max():.0f} nm")
    pixels = channels(scene, wanted, cube or scene.attrs["measurement"])
    return render(pixels, stretch_limits(pixels, _clear(scene)) if limits is None else limits)


def _clear(scene: xr.Dataset) -> npt.NDArray[np.bool_] | None:
    """Pixels `(y, x)` without cloud, snow or background, as the quality layer has it: beside white, land is black."""
    if "quality" not in scene:
        return None
    unwanted = QUALITY_FLAGS["background"] | QUALITY_FLAGS["cloud"] | QUALITY_FLAGS["snow"]
    return np.asarray((scene["quality"].values & unwanted) == 0)


def _write_legend(scene: xr.Dataset, path: Path) -> Path:
    """The class map with its legend below, on white."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    image, legend = class_map(scene), class_legend(scene["classes"].attrs)
    height, width = image.shape[:2]
    columns = 3
    rows = -(-len(legend) // columns)
    map_height = 6 * height / width
    figure = Figure(figsize=(6, map_height + 0.28 * rows + 0.2), facecolor="white")
    share = map_height / figure.get_figheight()
    axes = figure.add_axes((0, 1 - share, 1, share))
    axes.imshow(image, interpolation="nearest")
    axes.axis("off")
    patches = [Patch(color=hex_colour(entry.colour), label=entry.name.replace("_", " ")) for entry in legend]
    if patches:
        figure.legend(handles=patches, loc="lower left", ncols=columns, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _write_index(layer: xr.DataArray, path: Path) -> Path:
    """A spectral index with its scale, which ends where the outermost percent of the pixels begins."""
    values = np.asarray(layer.values, np.float32)
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, PERCENTILES) if known.size else (0.0, 1.0)
    return _write_layer(values, path, str(layer.name), (float(low), float(high)), (f"{low:.2f}", f"{high:.2f}"))


def _write_layer(
    values: npt.NDArray[np.float32], path: Path, title: str, limits: tuple[float, float], ends: tuple[str, str]
) -> Path:
    """A layer `(y, x)` with its scale below, on white; grey where there is no value."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    height, width = values.shape
    map_height = 6 * height / width
    figure = Figure(figsize=(6, map_height + 0.7), facecolor="white")
    share = map_height / figure.get_figheight()
    axes = figure.add_axes((0, 1 - share, 1, share), facecolor="#dddddd")
    low, high = limits if limits[0] < limits[1] else (limits[0] - 0.5, limits[0] + 0.5)
    shown = axes.imshow(values, cmap=colormaps["viridis"], vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    scale = figure.add_axes((0.2, 0.55 * (1 - share), 0.6, 0.2 * (1 - share)))
    bar = figure.colorbar(shown, cax=scale, orientation="horizontal", ticks=(low, (low + high) / 2, high))
    bar.set_ticklabels([ends[0], title, ends[1]], fontsize=12)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def hex_colour(colour: Colour) -> str:
    """A colour as `#rrggbb`."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def _rgb(colour: str) -> Colour:
    digits = colour.removeprefix("#")
    if not re.fullmatch(r"[0-9A-Fa-f]{6}", digits):
        return 127, 127, 127
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
