"""Whether an offset fits the physics of the scene.

Since processing baseline 04.00 Sentinel-2's numbers stand 1000 above those of before, so that dark surfaces keep their
noise; the offset of -1000 takes that back. It goes wrong in two ways, and both show in the darkest pixels. Forgotten,
nothing is darker than a reflectance of 0.1, though hardly a scene lacks water, shadow, or a band that sees them dark.
(Bands of all grids are asked, whichever is opened: over forest the near infrared alone is nowhere dark.)
Applied to numbers that never had it, whole surfaces reflect less than nothing. Whole scenes of cloud, snow or bright
desert look like the first: hence a warning, not an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cubeloom.errors import ConfigError
from cubeloom.pipeline.encoding import Array

from .rasters import RasterFile, handle

SHIFT = 1000
"""DN that baseline 04.00 added."""
TOO_BRIGHT = 0.09
"""Reflectance: with no offset, some pixels of some band lie below this."""
TOO_DARK = -0.03
"""Reflectance: with the right offset, hardly a pixel lies below this."""
PERCENT = 1.0
"""Share of the pixels of a band that count as its dark ones."""
DARK_SOMEWHERE = frozenset({"B01", "B02", "B03", "B04", "B05", "B10", "B11", "B12"})
"""Bands that see something dark in nearly every scene; without one of them, brightness tells nothing."""
ASKED = frozenset({"B01", "B04", "B10", "B12"})
"""Bands of a whole product that are asked: enough to see something dark somewhere, and fewer files to open."""
LEAST = 64
"""Pixels that a judgement needs."""
SAMPLE_EDGE = 256
MIXED = 3
"""Pixels of a thinned image that "no data" beside them has reached."""


class OffsetWarning(UserWarning):
    """An offset that does not fit the scene: forgotten, or applied twice."""


def told_offset(path: Path, offset: str) -> float:
    """The offset, DN, that an option states.

    Raises:
        ConfigError: it is no number, or none that can be.
    """
    try:
        value = float(offset)
    except ValueError:
        value = np.nan
    if not abs(value) <= 10_000:
        raise ConfigError(f"{path}: offset={offset!r}; expected -1000 or 0")
    return value


@dataclass(frozen=True)
class Darkest:
    """The darkest of a scene's bands.

    Attributes:
        band: its name; empty where there are too few pixels.
        number: DN that `PERCENT` of its pixels lie below, offset added.
        telling: whether a band of `DARK_SOMEWHERE` was among those asked.
    """

    band: str
    number: float
    telling: bool

    def __str__(self) -> str:
        return f"the darkest percent of {self.band} has numbers up to {self.number:.0f}"


def darkest(samples: Sequence[Array], names: Sequence[str], offset: Sequence[float], special: Sequence[int]) -> Darkest:
    """The dark end of a scene, of numbers with their offset added.

    Args:
        samples: numbers of each band, of any shape.
        names: of the bands.
        offset: of the bands, DN.
        special: numbers that stand for "no value".
    """
    found, telling = ("", np.inf), False
    for sample, name, shift in zip(samples, names, offset, strict=True):
        known = sample[~np.isin(sample, list(special))]
        if known.size >= LEAST:
            number = float(np.percentile(known, PERCENT)) + shift
            found, telling = min(found, (name, number), key=lambda one: one[1]), telling or name in DARK_SOMEWHERE
    return Darkest(*found, telling)


def judge(dark: Darkest, quantification: float, offset: Sequence[float]) -> str:
    """What is wrong with an offset; empty where nothing is, or nothing can be told.

    Args:
        dark: the dark end of the scene, offset added.
        quantification: divisor of the numbers.
        offset: of the bands, DN.
    """
    reflectance = dark.number / quantification
    if not dark.band:
        return ""
    if reflectance < TOO_DARK:
        return (
            f"with an offset of {min(offset):g} one percent of {dark.band} reflects less than {reflectance:.3f}: the "
            "numbers seem to have been shifted already, so that the offset is applied twice. If so, open them with "
            "offset=0"
        )
    if reflectance >= TOO_BRIGHT and dark.telling and not any(offset):
        return (
            f"with no offset even the darkest percent of {dark.band}, the darkest band, reflects {reflectance:.3f}: "
            f"the offset of -{SHIFT} (processing baseline 04.00 and later) seems to be forgotten, unless all is cloud, "
            "snow or bright desert"
        )
    return ""


def suggestion(dark: Darkest, quantification: float) -> str:
    """Which offset numbers without one suggest, as a sentence.

    Args:
        dark: the dark end of the numbers as they are.
        quantification: divisor of the numbers.
    """
    if not dark.band:
        return "there are too few pixels to suggest one"
    if dark.number / quantification >= TOO_BRIGHT and not dark.telling:
        return f"{dark}, which tells nothing, since it is bright nearly everywhere; look at a visible band"
    if dark.number / quantification >= TOO_BRIGHT:
        return f"{dark}, which suggests offset=-{SHIFT} (processing baseline 04.00 and later)"
    return f"{dark}, which suggests offset=0"


def sample(file: RasterFile, band: int = 1) -> Array:
    """Numbers of a band `(y, x)`, thinned out to at most `SAMPLE_EDGE` px a side, by the file's own overviews.

    Raises:
        InputError: the file is missing or damaged.
    """
    from rasterio.errors import RasterioError

    from cubeloom.errors import InputError

    dataset = handle(file)
    shape = min(dataset.height, SAMPLE_EDGE), min(dataset.width, SAMPLE_EDGE)
    try:
        pixels: Array = dataset.read(band, out_shape=shape)
    except RasterioError as error:
        raise InputError(f"{file}: cannot be read ({error.__cause__ or error}); damaged or cut short") from error
    return pixels if pixels.shape == dataset.shape else _unmixed(pixels)


def _unmixed(pixels: Array) -> Array:
    """Without what lies beside "no data": in thinned images that has gone into its numbers, and makes them dark."""
    from scipy.ndimage import binary_dilation

    return np.where(binary_dilation(pixels == 0, iterations=MIXED), 0, pixels)
