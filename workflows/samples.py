"""What a report shows of a scene: spectra of a few telling pixels, and how much of it each class covers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubeloom.pipeline.quicklook import can_show, channels, class_legend, hex_colour
from cubeloom.pipeline.scene import QUALITY_FLAGS

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

_SURFACE_BANDS = (480.0, 560.0, 660.0, 850.0, 1650.0)
"""Blue, green, red, near and shortwave infrared, nm."""
EDGE = 3
"""Pixels that a sample stays away from clouds, and looks round itself for the edge of its surface."""
_TYPICAL = 0.98
"""Rank of the pixel that stands for a surface: strong, but not the outlier that tops the list."""


@dataclass(frozen=True, eq=False)
class BandAxis:
    """The band axis of a plot, `(band,)` each: wavelength in nm, and the Scene's `good` and `preferred`."""

    wavelength: FloatArray
    good: BoolArray
    preferred: BoolArray


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One pixel's spectrum in the measurement and in the cube made of it, `(band,)` each, NaN for no value."""

    label: str
    row: int
    col: int
    before: FloatArray
    after: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra of one scene: band axis, pixels, name (and units) of the quantity, and name of the derived cube."""

    bands: BandAxis
    samples: tuple[Spectrum, ...]
    quantity: str = "reflectance"
    after: str = ""


@dataclass(frozen=True, eq=False)
class Noise:
    """Standard deviation of the noise of each band, `(band,)`, in the units of the measurement."""

    bands: BandAxis
    before: FloatArray
    after: FloatArray | None = None
    units: str = "1"


@dataclass(frozen=True)
class ClassShare:
    """A class of a map: name, colour as `#rrggbb`, and its share of the pixels that have a class, 0 to 1."""

    name: str
    colour: str
    share: float


def sample_spectra(scene: xr.Dataset, n: int = 4, overview: xr.Dataset | None = None) -> Spectra:
    """Spectra of `n` pixels that tell much of a scene, before and after processing; the same ones every time.

    Vegetation, water, snow, bare soil and built-up by their indices, as far as the scene has them, else pixels by
    brightness.

    Args:
        scene: a Scene; the measurement is shown, and the subject beside it where it is another cube.
        n: how many pixels at most.
        overview: a coarser Scene of the same extent, to choose the pixels in; spectra are always those of `scene`.
    """
    measurement, subject = scene.attrs["measurement"], scene.attrs["subject"]
    chosen = scene if overview is None else overview
    derived = subject if subject != measurement and scene[subject].dims == scene[measurement].dims else ""
    scale_y, scale_x = (scene.sizes[dim] / chosen.sizes[dim] for dim in ("y", "x"))
    samples = []
    for label, row, col in _telling_pixels(chosen, n):
        at = {
            "y": min(int((row + 0.5) * scale_y), scene.sizes["y"] - 1),
            "x": min(int((col + 0.5) * scale_x), scene.sizes["x"] - 1),
        }
        before = np.asarray(scene[measurement].isel(at).values)
        after = np.asarray(scene[derived].isel(at).values) if derived else None
        samples.append(Spectrum(label, at["y"], at["x"], before, after))
    units = str(scene[measurement].attrs.get("units", ""))
    return Spectra(
        bands=band_axis(scene),
        samples=tuple(samples),
        quantity=measurement if units in ("", "1") else f"{measurement} ({units})",
        after=derived.replace("_", " "),
    )


def band_axis(scene: xr.Dataset) -> BandAxis:
    """The band axis of a Scene."""
    return BandAxis(*(np.asarray(scene[name].values) for name in ("wavelength", "good", "preferred")))


def class_shares(scene: xr.Dataset) -> tuple[ClassShare, ...]:
    """The classes that a map holds, the most frequent first."""
    counts = np.bincount(np.asarray(scene["classes"].values).ravel(), minlength=256)
    legend = class_legend(scene["classes"].attrs)
    total = sum(int(counts[entry.value]) for entry in legend)
    shares = [ClassShare(e.name, hex_colour(e.colour), int(counts[e.value]) / total) for e in legend if counts[e.value]]
    return tuple(sorted(shares, key=lambda share: -share.share))


def _telling_pixels(scene: xr.Dataset, n: int) -> list[tuple[str, int, int]]:
    """Label, row and column of `n` pixels, no two the same."""
    cube = scene.attrs["measurement"]
    wanted = _SURFACE_BANDS if can_show(scene, _SURFACE_BANDS) else (float(np.median(scene["wavelength"].values)),)
    pixels = channels(scene, wanted, cube).astype(np.float64)
    valid = np.isfinite(pixels).all(axis=0)
    if "valid" in scene:
        valid &= np.asarray(scene["valid"].values, bool)
    if not valid.any():
        return []
    valid = _inside(np.asarray(valid))
    snow = (scene["quality"].values & QUALITY_FLAGS["snow"]) > 0 if "quality" in scene else None
    surfaces = _surfaces(pixels, snow) if len(wanted) > 1 else iter(())
    roughness = _roughness(pixels)
    found: list[tuple[str, int, int]] = []
    for label, score, where in (*surfaces, *_by_brightness(pixels)):
        if len(found) == n:
            break
        for _, row, col in found:
            where[row, col] = False
        spot = _typical(score, _heart(where & valid, roughness))
        if spot is not None:
            found.append((label, *spot))
    return found


def _inside(valid: BoolArray) -> BoolArray:
    """Valid pixels away from what is masked, since clouds and their shadows have soft edges; all where few are left."""
    inside = _eroded(valid, 1)
    return inside if inside.sum() >= 0.05 * valid.sum() else valid


def _roughness(pixels: FloatArray) -> FloatArray:
    """How far a pixel `(y, x)` lies from the mean of those round it, in brightness, the largest of its neighbourhood.

    Near an edge, bands of coarser pixels show the other side as well.
    """
    from scipy.ndimage import maximum_filter, uniform_filter

    brightness = np.nan_to_num(pixels.mean(axis=0))
    side = 2 * EDGE + 1
    return np.asarray(maximum_filter(np.abs(brightness - uniform_filter(brightness, side)), side))


def _heart(where: BoolArray, roughness: FloatArray) -> BoolArray:
    """Of the marked pixels those whose neighbours are marked too, where there are any; of these the smoother half."""
    heart = _eroded(where, 0)
    heart = heart if heart.any() else where
    return heart & (roughness <= np.median(roughness[heart])) if heart.any() else heart


def _eroded(marked: BoolArray, beyond: int) -> BoolArray:
    """Marked pixels that are `EDGE` px from any other; `beyond` the border is marked (1) or not (0)."""
    from scipy.ndimage import binary_erosion

    return np.asarray(binary_erosion(marked, iterations=EDGE, border_value=beyond))


def _surfaces(pixels: FloatArray, snow: BoolArray | None) -> Iterator[tuple[str, FloatArray, BoolArray]]:
    """Surface, its index `(y, x)`, and where the index says that the surface is there.

    NDVI (Rouse et al. 1974), MNDWI (Xu 2006, eq. 3), BSI (Rikimaru et al. 2002), NDBI (Zha et al. 2003, eq. 1). MNDWI
    is high for snow as well (there it is NDSI), which keeps its brightness in the near infrared; so do thin clouds, and
    where the provider tells of `snow`, it decides.
    """
    blue, green, red, nir, swir = np.maximum(pixels, 1e-6)  # noise makes dark water negative
    ndvi, mndwi, ndbi = (nir - red) / (nir + red), (green - swir) / (green + swir), (swir - nir) / (swir + nir)
    bare = ((swir + red) - (nir + blue)) / (swir + red + nir + blue)
    light = (nir + swir) / 2
    dry = (mndwi < 0) & (light > 0.25 * np.nanpercentile(light, 90))
    yield "vegetation", ndvi, (ndvi > 0.4) & dry
    yield "water", mndwi, (mndwi > 0.2) & (ndvi < 0.2) & (nir < 0.7 * green)
    bright = (mndwi > 0.4) & (nir >= 0.7 * green) & (ndvi < 0.2)
    yield "snow", green, bright if snow is None else bright & snow
    yield "bare soil", bare, (bare > 0.05) & (ndvi < 0.35) & dry
    yield "built-up", ndbi + blue / np.maximum(nir, blue), (ndvi < 0.3) & dry & (blue > 0.5 * red)


def _by_brightness(pixels: FloatArray) -> Iterator[tuple[str, FloatArray, BoolArray]]:
    """Dark, bright and middling pixels: nearness of the mean over the channels to a quantile of it."""
    brightness = pixels.mean(axis=0)
    everywhere = np.isfinite(brightness)
    for label, quantile in (("bright", 0.98), ("dark", 0.02), ("medium", 0.5), ("fairly bright", 0.8)):
        level = np.quantile(brightness[everywhere], quantile)
        yield label, -np.abs(brightness - level), everywhere.copy()


def _typical(score: FloatArray, where: BoolArray) -> tuple[int, int] | None:
    """The pixel of rank `_TYPICAL` among those marked; the first in reading order among equals."""
    index = np.flatnonzero(where)
    if index.size == 0:
        return None
    order = np.argsort(score.ravel()[index], kind="stable")
    row, col = divmod(int(index[order[int(_TYPICAL * (order.size - 1))]]), where.shape[1])
    return row, col
