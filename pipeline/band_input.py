"""What a network gets of a spectrum: its card's bands from a scene's, without gaps, standardised.

The bands of the card's own sensor go in by number, untouched. Those of another sensor are resampled by spectral
response, or refused where the sensor does not see them. A band that is bad or missing is interpolated along
wavelength from its neighbours, if there are some near enough, and is named. A radar's polarisations stand behind the
spectral bands, and go in by name.
"""

from dataclasses import dataclass, replace
from typing import Self, get_args

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError, ModelError
from cubeloom.models.cards import Card, InputBands, Polarisation

from .binding import MAX_UNCOVERED, Binding
from .encoding import Array
from .scene import Bands, BoolArray
from .srf import Weights, gaussians, weights
from .stages.inpaint import nearest

FloatImages = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

REACH_NM = 50.0
"""How far, nm, the nearest band with data may lie from one that is interpolated: some five of EnMAP's bands."""

MAX_FILLED = 0.25
"""Share of a card's bands that may be interpolated; beyond it the scene is of another kind."""

SAME_NM = 1.0
"""How far apart, nm, two centres may lie and be the same band."""

MIN_KNOWN = 0.5
"""Share of the bands that a pixel must have to take part; the others are interpolated between them."""

_FIELDS = ("number", "wavelength", "fwhm", "detector", "good", "preferred")

PIXELS_AT_ONCE = 8192
"""Spectra with gaps that are filled together: bounds the arrays of indices."""


@dataclass(frozen=True, eq=False)
class BandInput:
    """The way from a scene's bands to a network's channels; small and picklable.

    Attributes:
        binding: gives the channels `present` of a cube.
        present: channels that the scene has, ascending.
        filled: channels that it lacks, whose values are interpolated along wavelength from those present.
        wavelengths: centres of all channels but the radar's, nm, ascending.
        mean: subtracted from each channel, `(D,)`.
        std: divides it then, `(D,)`.
        how: the binding in words.
        radar: places, among the scene's bands, of the polarisations that are the last channels.
    """

    binding: Binding
    present: npt.NDArray[np.intp]
    filled: tuple[int, ...]
    wavelengths: FloatArray
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    how: str
    radar: tuple[int, ...] = ()

    @classmethod
    def of(cls, card: Card, bands: Bands) -> Self:
        """Bind a scene's bands to a network's.

        Raises:
            ModelError: the card does not say which bands the network sees, or the scene lacks some of them; names them.
        """
        wanted = card.input_bands
        if wanted is None and not card.polarisations:
            raise ModelError(
                f"model {card.name}: its card has no input_bands, so the bands of a scene cannot be brought to it; "
                "name weights whose card says on which bands they were trained"
            )
        radar = _places(card, bands)
        size = len(wanted or ()) + len(radar)
        mean = np.asarray(card.mean or np.zeros(size), np.float32)
        std = np.asarray(card.std or np.ones(size), np.float32)
        named = ", ".join(card.polarisations)
        if wanted is None:
            none = np.empty(0, np.intp)
            return cls(Binding(index=none), none, (), np.empty(0), mean, std, named, radar)
        bands = _without_radar(bands)
        binding, missing, how = _bind(bands, wanted)
        wavelengths = np.asarray(wanted.wavelengths_nm)
        present = np.flatnonzero(~missing)
        _require_in_range(card, bands, wavelengths, missing)
        filled = tuple(map(int, np.flatnonzero(missing)))
        return cls(binding, present, filled, wavelengths, mean, std, " and ".join(filter(None, (how, named))), radar)

    def apply(self, cube: Array, valid: BoolArray) -> FloatImages:
        """The channels of a cube, standardised, with a number everywhere.

        A pixel that takes no part holds the nearest spectrum that does; where there is none, all are 0, each
        channel's mean.

        Args:
            cube: `(band, y, x)` in the card's units, a radar's in dB, NaN where there is no value.
            valid: pixels that take part, `(y, x)`.

        Returns:
            `(D, y, x)`
        """
        return self.prepared(cube, valid)[0]

    def prepared(self, cube: Array, valid: BoolArray) -> tuple[FloatImages, BoolArray]:
        """What `apply` gives, and the pixels `(y, x)` that take part.

        They are valid, and have half of the spectral channels at least, and all of the radar's.
        """
        count = self.wavelengths.size
        channels = np.empty((count + len(self.radar), *cube.shape[1:]), np.float32)
        channels[self.present] = self.binding.apply(cube)
        channels[count:] = cube[list(self.radar)]
        finite = np.isfinite(channels[self.present])
        known: BoolArray = valid & np.isfinite(channels[count:]).all(axis=0)
        if count:
            known &= finite.mean(axis=0, dtype=np.float32) >= MIN_KNOWN
        self._fill_gaps(channels, finite, known)
        channels[:, ~known] = 0
        self._fill_channels(channels)
        channels -= self.mean[:, None, None]
        channels /= self.std[:, None, None]
        channels[:, ~known] = 0
        return nearest(channels, known) if known.any() else channels, known

    def describe(self) -> str:
        """The binding in a line of history."""
        if not self.filled:
            return self.how
        named = ", ".join(f"{self.wavelengths[channel]:.1f}" for channel in self.filled[:8])
        return f"{self.how}, {len(self.filled)} interpolated ({named}{', ...' if len(self.filled) > 8 else ''} nm)"

    def _fill_gaps(self, channels: FloatImages, finite: BoolArray, known: BoolArray) -> None:
        """Interpolate what single pixels lack of the channels present, in place."""
        rows, cols = np.nonzero(known & ~finite.all(axis=0))
        for start in range(0, rows.size, PIXELS_AT_ONCE):
            at = (rows[start : start + PIXELS_AT_ONCE], cols[start : start + PIXELS_AT_ONCE])
            spectra = channels[:, *at][self.present]
            channels[self.present[:, None], *at] = interpolated(spectra, finite[:, *at], self.wavelengths[self.present])

    def _fill_channels(self, channels: FloatImages) -> None:
        """Interpolate the channels that the scene lacks from those present, in place."""
        known = self.wavelengths[self.present]
        for channel in self.filled:
            above = int(np.searchsorted(known, self.wavelengths[channel]))
            low, high = max(above - 1, 0), min(above, known.size - 1)
            gap = known[high] - known[low]
            share = np.float32((self.wavelengths[channel] - known[low]) / gap if gap else 0.0)
            before, after = channels[self.present[low]], channels[self.present[high]]
            channels[channel] = before + share * (after - before)


def is_radar(bands: Bands) -> BoolArray:
    """Which bands are polarisations of a radar."""
    return np.isin(np.char.upper(bands.detector), get_args(Polarisation))


def beside(bands: Bands, guide: Bands) -> Bands:
    """The bands of a scene, and behind them those of a radar scene on its grid."""
    return Bands(*(np.concatenate([getattr(one, name) for one in (bands, guide)]) for name in _FIELDS))


def _without_radar(bands: Bands) -> Bands:
    """The same bands, of which a radar's go by no number and are not good, so that no spectral channel takes them."""
    radar = is_radar(bands)
    if not radar.any():
        return bands
    return replace(bands, number=np.where(radar, -1, bands.number), good=bands.good & ~radar)


def _places(card: Card, bands: Bands) -> tuple[int, ...]:
    """Where the polarisations stand that a network sees.

    Raises:
        ModelError: the scene lacks one.
    """
    place = {str(name).upper(): at for at, name in enumerate(bands.detector) if bands.good[at]}
    lacking = [name for name in card.polarisations if name not in place]
    if lacking:
        has = ", ".join(name for name in place if name in get_args(Polarisation)) or "no polarisation of a radar"
        raise ModelError(
            f"model {card.name} sees {', '.join(card.polarisations)} of a radar, of which {', '.join(lacking)} is "
            f"missing; the scene has {has}"
        )
    return tuple(place[name] for name in card.polarisations)


def _bind(bands: Bands, wanted: InputBands) -> tuple[Binding, BoolArray, str]:
    """How the channels come from the bands, which of them the scene lacks, and the way in words."""
    centres, widths = np.asarray(wanted.wavelengths_nm), np.asarray(wanted.fwhm_nm)
    index = _by_number(bands, wanted)
    how = "by number"
    if index is None:
        index, how = _by_wavelength(bands, centres), "by wavelength"
    if index is not None:
        missing = (index < 0) | ~bands.good[index]
        return Binding(index=index[~missing]), missing, how
    try:
        mixing = weights(gaussians(centres, widths), bands)
    except InputError as error:
        raise ModelError(str(error)) from None
    missing = mixing.uncovered > MAX_UNCOVERED
    mixing = Weights(mixing.matrix[~missing], mixing.uncovered[~missing])
    return Binding(weights=mixing), missing, "resampled by response"


def _by_number(bands: Bands, wanted: InputBands) -> npt.NDArray[np.intp] | None:
    """The band of every channel, -1 where there is none; None where the numbers are those of another sensor.

    Numbers mean the same bands where all centres that go by the same number lie within half a width of each other.
    """
    place = {int(number): at for at, number in enumerate(bands.number)}
    index = np.array([place.get(number, -1) for number in wanted.numbers], np.intp)
    found = index >= 0
    if not found.any():
        return None
    apart = np.abs(bands.wavelength[index[found]] - np.asarray(wanted.wavelengths_nm)[found])
    return index if (apart <= np.asarray(wanted.fwhm_nm)[found] / 2).all() else None


def _by_wavelength(bands: Bands, centres: FloatArray) -> npt.NDArray[np.intp] | None:
    """The good band at every channel's centre, -1 where there is none; None where that is the case for too many.

    Of two bands as near the preferred one is taken.
    """
    if not bands.good.any():
        return None
    distance = np.abs(bands.wavelength - centres[:, None])
    distance[:, ~bands.good] = np.inf
    order = np.lexsort((np.broadcast_to(~bands.preferred, distance.shape), distance), axis=1)
    index = np.where(distance.min(axis=1) <= SAME_NM, order[:, 0], -1)
    found = index[index >= 0]
    same = np.unique(found).size == found.size and found.size >= (1 - MAX_FILLED) * index.size
    return index if same else None


def _require_in_range(card: Card, bands: Bands, wavelengths: FloatArray, missing: BoolArray) -> None:
    """Check that what is missing can be interpolated.

    Raises:
        ModelError: channels without a neighbour that the scene has, or too many of them.
    """
    known = wavelengths[~missing]
    distance = np.abs(wavelengths[:, None] - known).min(axis=1, initial=np.inf)
    outside = np.flatnonzero(distance > REACH_NM)
    if not outside.size and missing.mean() <= MAX_FILLED:
        return
    lacking = outside if outside.size else np.flatnonzero(missing)
    named = ", ".join(f"{wavelengths[channel]:.1f}" for channel in lacking[:8])
    good = bands.wavelength[bands.good]
    has = f"{good.size} good bands between {good[0]:.1f} and {good[-1]:.1f} nm" if good.size else "no good band"
    raise ModelError(
        f"model {card.name} sees {wavelengths.size} bands, of which {lacking.size} are out of range, too far from any "
        f"that the scene has: {named}{', ...' if lacking.size > 8 else ''} nm. The scene has {has}; use a model that "
        "was trained on bands that this sensor has, and leave them in the scene"
    )


def interpolated(spectra: FloatImages, finite: BoolArray, wavelengths: FloatArray) -> FloatImages:
    """Spectra `(band, n)` whose gaps are linear in wavelength; beyond the last known band its value is kept.

    Args:
        spectra: anything may stand where `finite` is False; every spectrum has a finite value.
        finite: `(band, n)`, which values count.
        wavelengths: centres, nm, ascending, `(band,)`.
    """
    count = len(spectra)
    places = np.arange(count)[:, None]
    before = np.maximum.accumulate(np.where(finite, places, -1), axis=0)
    after = np.minimum.accumulate(np.where(finite, places, count)[::-1], axis=0)[::-1]
    low = np.where(before < 0, after, before)
    high = np.where(after == count, before, after)
    gap = wavelengths[high] - wavelengths[low]
    share = (wavelengths[:, None] - wavelengths[low]) / np.where(gap > 0, gap, 1)
    lower, upper = (np.take_along_axis(spectra, at, axis=0) for at in (low, high))
    return np.where(finite, spectra, lower + (np.where(gap > 0, share, 0) * (upper - lower)).astype(np.float32))
