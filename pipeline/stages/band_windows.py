"""A network on the bands themselves: windows of as many as it takes, slid along the spectrum and blended.

Each good band is scaled so that the scene's own range of it, but for outliers, becomes [0, 1], as networks are trained
on. Windows overlap by half, and a band takes the mean of those that hold it, with less weight towards their ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import BoolArray, SceneSpec
from cubeloom.pipeline.tiles import Axis, FloatImages, Lattice, padded

from . import inpaint
from .base import Stats
from .components import settle_subspaces, spectral_sums
from .denoise_network import NetworkMethod, Sample
from .histograms import quantiles, value_histograms
from .spectra import known_pixels, spectra_of

TAIL = 1e-3
"""Share of a band's values on either side that its range leaves out."""


@dataclass(frozen=True)
class BandWindows(NetworkMethod):
    """The method `network` for cards with the transform `bands`."""

    def require(self, spec: SceneSpec) -> None:
        """Check wavelengths, units, the number of bands, and the parameters.

        Raises:
            ConfigError: a rank, outliers, or a strength that the network cannot be told.
            InputError: fewer good bands than the network takes.
            ModelError: the scene is not of the kind that the network was trained on.
        """
        super().require(spec)
        where = f"{spec.scene_id}, denoise with {self.model}"
        good = int(spec.bands.good.sum())
        least = self.card.bands or 1
        if good < least:
            raise InputError(
                f"{where}: {good} good bands of {len(spec.bands)}, the network takes {least} at once; use a network "
                "for any number of bands, or method subspace"
            )
        if self.rank != "auto":
            raise ConfigError(f"{where}: rank {self.rank!r} is for component images; this network works on bands")
        if self.outliers:
            raise ConfigError(f"{where}: outliers is for component images; this network works on bands")
        if self.strength > 1 and not self.card.sigma_input:
            raise ConfigError(
                f"{where}: strength {self.strength:g}; this network is told no noise level, so its result can only be "
                "blended with its input: give 0 to 1"
            )

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """How often which values are met in every good band, and what tells their noise."""
        sums = spectral_sums(block) if self.card.sigma_input else {}
        return {**sums, "histograms": value_histograms(part for part in _core_values(block))}

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The range of every good band, and its noise as the network is told it.

        Raises:
            InputError: a good band has no value, or too few pixels have one in every good band.
        """
        low, high = quantiles(sums["histograms"], TAIL), quantiles(sums["histograms"], 1 - TAIL)
        if np.isnan(low).any():
            empty = spec.bands.describe(int(np.flatnonzero(spec.bands.good)[int(np.argmax(np.isnan(low)))]))
            raise InputError(
                f"{spec.scene_id}, denoise: {empty} has no value at any pixel that takes part; leave it out with "
                "select_bands, or check the mask"
            )
        span = np.where(high > low, high - low, 1.0)
        settled = {"low": low, "span": span}
        if self.card.sigma_input:
            settled["noise"] = settle_subspaces(sums, spec, "auto")[0].sigma / span
        return settled

    def _axis(self, good: int) -> Axis:
        """The windows along the spectrum."""
        edge = self.card.bands or good
        return Axis.of(good, edge, edge // 2)

    def images(self, spec: SceneSpec, stats: Stats) -> int:
        """The good bands."""
        return int(spec.bands.good.sum())

    def sample_shape(self, spec: SceneSpec) -> tuple[int, int, int]:
        """A sample for each window."""
        axis = self._axis(int(spec.bands.good.sum()))
        return len(axis.starts), 1 + self.card.sigma_input, axis.edge

    def sample(self, tile: Block, stats: Stats, lattice: Lattice) -> Sample | None:
        """Windows of scaled bands; a band that a pixel lacks is interpolated, a pixel that has none filled."""
        scaled, observed = _scaled(tile, stats)
        known: BoolArray = np.any(observed, axis=0)
        if not known.any():
            return None
        _interpolate(scaled, observed, tile.bands.wavelength[tile.bands.good])
        bands = padded(inpaint.nearest(scaled, known), lattice.shape)
        axis = self._axis(len(bands))
        inputs = np.empty((len(axis.starts), 1 + self.card.sigma_input, axis.edge, *lattice.shape), np.float32)
        for window, start in zip(inputs, axis.starts, strict=True):
            window[0] = bands[start : start + axis.edge]
            if self.card.sigma_input:
                noise = self.strength * stats["noise"][start : start + axis.edge]
                window[1] = noise[:, None, None]
        return Sample(inputs, known)

    def result(self, sample: Sample, made: FloatImages, stats: Stats) -> FloatImages:
        """The denoised bands, in the units of the scene."""
        rows, cols = (slice(size) for size in sample.known.shape)
        axis = self._axis(stats["low"].size)
        bands = np.zeros((axis.size, *sample.known.shape), np.float32)
        for number, (given, answer) in enumerate(zip(sample.inputs, made, strict=True)):
            part = answer[:, rows, cols]
            if not self.card.sigma_input and self.strength != 1:
                before = given[0, :, rows, cols]
                part = before + np.float32(self.strength) * (part - before)
            bands[slice(*axis.span(number))] += part * axis.weights[number][:, None, None]
        bands *= stats["span"].astype(np.float32)[:, None, None]
        bands += stats["low"].astype(np.float32)[:, None, None]
        return bands

    def deviation(self, images: FloatImages, stats: Stats) -> FloatImages:
        """The differences themselves."""
        return images

    def spectra(self, block: Block, images: FloatImages, stats: Stats) -> FloatImages:
        """The denoised bands in their places."""
        cube = np.full((len(block.bands), *block.window.shape), np.nan, np.float32)
        cube[block.bands.good] = np.where(known_pixels(block), images, np.float32(np.nan))
        return cube


def _core_values(block: Block) -> Iterator[tuple[npt.NDArray[np.float32], BoolArray]]:
    for _, spectra, observed in spectra_of(block, block.core):
        yield spectra, observed


def _scaled(tile: Block, stats: Stats) -> tuple[FloatImages, BoolArray]:
    """Good bands by their own range, 0 where there is no value, and where there is one; both `(B, y, x)`."""
    low, span = (stats[name].astype(np.float32)[:, None] for name in ("low", "span"))
    scaled = np.empty((low.size, *tile.window.shape), np.float32)
    known = np.empty(scaled.shape, bool)
    for part, spectra, observed in spectra_of(tile, tile.window):
        shape = (low.size, part.stop - part.start, tile.window.width)
        scaled[:, part] = np.where(observed, (spectra - low) / span, np.float32(0)).reshape(shape)
        known[:, part] = observed.reshape(shape)
    return scaled, known


def _interpolate(bands: FloatImages, observed: BoolArray, wavelengths: npt.NDArray[np.float64]) -> None:
    """Fill gaps in spectra `(B, y, x)` along wavelength, in place; beyond the last known band its value is kept."""
    some, every = observed.any(axis=0), observed.all(axis=0)
    for row, col in zip(*np.nonzero(some & ~every), strict=True):
        seen = observed[:, row, col]
        spectrum = bands[:, row, col]
        bands[~seen, row, col] = np.interp(wavelengths[~seen], wavelengths[seen], spectrum[seen])
