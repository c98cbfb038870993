"""Spectral response functions: one sensor's bands seen through another's.

A target band is a weighted mean of the spectrum, and the spectrum is known at the source's band centres. Between
them it is taken as linear, so that the weight of source band j in target band i is

    w_ij = ∫ SRF_i(λ) h_j(λ) dλ / ∫ SRF_i(λ) dλ

with h_j the linear interpolation ("hat") function of centre j. A source band has blurred the spectrum already: for
Gaussian responses the blur adds in quadrature, so a Gaussian target is integrated with the width that is left,
sqrt(FWHM_i² - FWHM_j²). A sensor resampled to its own bands is thereby unchanged, bit by bit.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError

from .encoding import Array
from .scene import Bands

FloatArray = npt.NDArray[np.float64]

GAUSSIAN_REACH = 4.0
"""Standard deviations at which a Gaussian response is cut; 6e-5 of its integral lies beyond."""
GAUSSIAN_SAMPLES = 161
SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
NEGLIGIBLE = 1e-5
"""Weights below this share of a target band are dropped: a far band must not spoil a pixel by being NaN."""


@dataclass(frozen=True, eq=False)
class Response:
    """The response of one target band.

    Attributes:
        name: what the target's provider calls the band.
        wavelength: centre, nm.
        fwhm: full width at half maximum, nm.
        curve: sampled response `(wavelength nm, response)`; None for a Gaussian of `wavelength` and `fwhm`.
    """

    name: str
    wavelength: float
    fwhm: float
    curve: tuple[FloatArray, FloatArray] | None = None

    def samples(self, blur: float) -> tuple[FloatArray, FloatArray]:
        """Wavelengths (nm) and weights, of sum 1, that stand for the integral over this response.

        Args:
            blur: FWHM, nm, of the source's bands here; a Gaussian narrows by it, a measured curve is taken as it is.
        """
        if self.curve is not None:
            wavelength, response = self.curve
            weight = np.maximum(response, 0) * np.gradient(wavelength)
            return wavelength, weight / weight.sum()
        sigma = SIGMA_PER_FWHM * np.sqrt(max(self.fwhm**2 - blur**2, 0.0))
        if sigma == 0:
            return np.array([self.wavelength]), np.ones(1)
        steps = np.linspace(-GAUSSIAN_REACH, GAUSSIAN_REACH, GAUSSIAN_SAMPLES)
        weight = np.exp(-0.5 * steps**2)
        return self.wavelength + sigma * steps, weight / weight.sum()


def gaussians(
    wavelengths: Sequence[float] | FloatArray, fwhm: Sequence[float] | FloatArray, names: Sequence[str] = ()
) -> list[Response]:
    """Gaussian responses of centres and widths in nm, named by their order where no names are given."""
    names = names or [str(number) for number in range(1, len(wavelengths) + 1)]
    return [Response(name, float(c), float(w)) for name, c, w in zip(names, wavelengths, fwhm, strict=True)]


def half_maximum_width(wavelength: FloatArray, response: FloatArray) -> float:
    """Distance, nm, between the outermost crossings of half the maximum, linear between samples."""
    above = np.flatnonzero(response >= response.max() / 2)
    first, last, half = int(above[0]), int(above[-1]), response.max() / 2
    left, right = wavelength[first], wavelength[last]
    if first > 0:
        left = np.interp(half, response[first - 1 : first + 1], wavelength[first - 1 : first + 1])
    if last < response.size - 1:
        right = np.interp(half, response[[last + 1, last]], wavelength[[last + 1, last]])
    return float(right - left)


def read_table(path: Path) -> list[Response]:
    """Measured responses from a text table: wavelengths in the first column (nm), one column a band, one header row.

    Separated by comma, semicolon or tab; with the latter two, decimal commas are understood. Centres are the
    responses' centroids.

    Raises:
        InputError: the file is missing or not such a table; says where.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"response table {path}: {error}") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    if delimiter != ",":
        rows[1:] = [[cell.replace(",", ".") for cell in row] for row in rows[1:]]
    if len(rows) < 3 or len(rows[0]) < 2:
        raise InputError(
            f"response table {path}: expected a header row, then a wavelength and one value a band per row"
        )
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise InputError(f"response table {path}, row {number}: {len(row)} columns, the header has {len(header)}")
    try:
        numbers = np.array(body, dtype=float)
    except ValueError as error:
        raise InputError(f"response table {path}: {error}; expected numbers below the header row") from None
    return _responses(path, header[1:], numbers)


def _responses(path: Path, names: list[str], numbers: FloatArray) -> list[Response]:
    wavelength = numbers[:, 0]
    if not np.isfinite(numbers).all() or (np.diff(wavelength) <= 0).any():
        raise InputError(f"response table {path}: wavelengths must ascend, and every cell must hold a finite number")
    if wavelength.max() < 100:
        raise InputError(f"response table {path}: wavelengths run to {wavelength.max():g}; expected nanometres")
    responses = []
    for name, response in zip(names, numbers[:, 1:].T, strict=True):
        if response.max() <= 0:
            raise InputError(f"response table {path}: band {name!r} has no positive response")
        weight = np.maximum(response, 0) * np.gradient(wavelength)
        centre = float((weight * wavelength).sum() / weight.sum())
        responses.append(Response(name, centre, half_maximum_width(wavelength, response), (wavelength, response)))
    return responses


@dataclass(frozen=True, eq=False)
class Weights:
    """How target bands are mixed from source bands.

    Attributes:
        matrix: `(target, source)` weights; each row sums to 1.
        uncovered: `(target,)` share of each target's response where no usable source band lies.
    """

    matrix: FloatArray
    uncovered: FloatArray

    def apply(self, cube: Array, tolerance: float = 0.05) -> Array:
        """Target bands `(target, ...)`, float32, of source bands `(source, ...)`.

        Where source bands without a value (NaN) hold less than `tolerance` of a target's weight, the others stand in;
        above it the result is NaN. Sums run band by band, so a pixel's result does not depend on its neighbours.
        """
        mixed = np.empty((self.matrix.shape[0], *cube.shape[1:]), np.float32)
        used = np.flatnonzero(self.matrix.any(axis=0))
        known = {band: np.isfinite(cube[band]) for band in used}
        gaps = {band for band in used if not known[band].all()}
        for row, out in zip(self.matrix.astype(np.float32), mixed, strict=True):
            out[...], missing = 0, np.zeros(cube.shape[1:], np.float32)
            for band in np.flatnonzero(row):
                if band in gaps:
                    out += row[band] * np.where(known[band], cube[band], np.float32(0))
                    missing += row[band] * ~known[band]
                else:
                    out += row[band] * cube[band]
            with np.errstate(divide="ignore", invalid="ignore"):
                out /= 1 - missing
            out[missing >= tolerance] = np.nan
        return mixed


def weights(responses: Sequence[Response], source: Bands) -> Weights:
    """Weights of `source`'s usable bands (good, and preferred where detectors overlap) in each response.

    A wavelength counts as covered where the centre of a usable source band lies within that band's FWHM.

    Raises:
        InputError: the source has no usable band at all.
    """
    usable = np.flatnonzero(source.good & source.preferred)
    if usable.size == 0:
        raise InputError("no band of the scene is both good and preferred, so none can be resampled")
    centre, width = source.wavelength[usable], source.fwhm[usable]
    matrix, uncovered = np.zeros((len(responses), len(source))), np.ones(len(responses))
    for row, response in enumerate(responses):
        blur = width[np.argmin(np.abs(centre - response.wavelength))]
        at, weight = response.samples(float(blur))
        covered = (np.abs(at[:, None] - centre) <= width).any(axis=1)
        uncovered[row] = weight[~covered].sum()
        if covered.any():
            matrix[row, usable] = _hat_integrals(centre, at[covered], weight[covered])
    return Weights(matrix, uncovered)


def _hat_integrals(centre: FloatArray, at: FloatArray, weight: FloatArray) -> FloatArray:
    """Sum of `weight * h_j(at)` for the linear interpolation functions h_j of ascending `centre`, scaled to sum 1.

    Beyond the first and last centre the spectrum is taken as constant.
    """
    if centre.size == 1:
        return np.ones(1)
    left = np.clip(np.searchsorted(centre, at, side="right") - 1, 0, centre.size - 2)
    gap = centre[left + 1] - centre[left]
    right_share = np.clip((at - centre[left]) / np.where(gap > 0, gap, 1), 0, 1)
    total = np.zeros(centre.size)
    np.add.at(total, left, weight * (1 - right_share))
    np.add.at(total, left + 1, weight * right_share)
    total[total < NEGLIGIBLE * total.sum()] = 0
    total /= total.sum()
    return total


_SENTINEL2_NAMES = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
SENSORS: dict[str, list[Response]] = {
    "sentinel2a": gaussians(
        (442.7, 492.7, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1, 1613.7, 2202.4),
        (20, 65, 35, 30, 14, 14, 19, 105, 20, 19, 90, 174),
        _SENTINEL2_NAMES,
    ),
    "sentinel2b": gaussians(
        (442.3, 492.3, 559.0, 665.0, 703.8, 739.1, 779.7, 833.0, 864.0, 943.2, 1610.4, 2185.7),
        (20, 65, 35, 30, 15, 13, 19, 105, 21, 20, 93, 184),
        _SENTINEL2_NAMES,
    ),
    "sentinel2c": gaussians(
        (444.2, 489.0, 560.6, 666.5, 707.1, 741.1, 784.7, 834.6, 865.6, 947.2, 1612.0, 2191.3),
        (20, 65, 35, 30, 15, 15, 20, 96, 20, 20, 90, 183),
        _SENTINEL2_NAMES,
    ),
}
"""Sensors known by name: the bands of Sentinel-2's surface reflectance (B10, cirrus, is not among them).

Of units A and B centres as `Spectral_Information/Wavelength/CENTRAL` of the products' MTD_MSI*.xml; widths at half
maximum of the responses listed beside them, to 1 nm. Of unit C centroids and widths of the responses in "Sentinel-2
Spectral Response Functions", version 4.0 of 2024 (ESA, COPE-GSEG-EOPG-TN-15-0007).
"""
