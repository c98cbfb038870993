"""How far an estimate of a cube is from its reference: each metric with its convention spelt out.

All take cubes `(band, y, x)` and an optional mask `valid` `(y, x)` of the pixels that count. A value that is not finite
among them is an error, never left out in silence.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.scene import BoolArray, FloatArray

Cube = npt.NDArray[Any]


def psnr(reference: Cube, estimate: Cube, value_range: float, valid: BoolArray | None = None) -> float:
    """Mean over bands of each band's peak signal-to-noise ratio, dB: 10 log10(value_range^2 / MSE).

    A band without any error counts as infinite. The mean over bands (MPSNR) is larger than the PSNR of the whole
    cube's MSE where bands differ.

    Args:
        reference: what is true.
        estimate: what is judged.
        value_range: the peak, in the cubes' units; 1 for reflectance scaled to [0, 1].
        valid: pixels that count; all where None.
    """
    _require_positive("value_range", value_range)
    x, y = _spectra(reference, estimate, valid)
    error = np.mean((x - y) ** 2, axis=1)
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(value_range**2 / error)))


def ssim(
    reference: Cube, estimate: Cube, value_range: float, valid: BoolArray | None = None, gaussian: bool = True
) -> float:
    """Mean over bands and pixels of structural similarity (Wang et al., IEEE TIP 13(4), 2004).

    Args:
        reference: what is true.
        estimate: what is judged.
        value_range: L in the constants (0.01 L)^2 and (0.03 L)^2.
        valid: pixels that count; all where None. Only pixels whose whole window is valid do.
        gaussian: the paper's window, Gaussian of sigma 1.5 px over 11 px with population covariances; else 7 x 7 px
            uniform with sample covariances, scikit-image's default and that of most tables on denoising.

    Raises:
        InputError: no window lies inside the valid pixels.
    """
    from scipy.ndimage import minimum_filter
    from skimage.metrics import structural_similarity

    _require_positive("value_range", value_range)
    _spectra(reference, estimate, valid)
    size = 11 if gaussian else 7
    kept = np.ones(reference.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    inner = minimum_filter(kept, size, mode="constant", cval=0)
    if not inner.any():
        raise InputError(f"ssim needs a valid area of {size} x {size} px at least; widen the mask or the crop")
    window: dict[str, Any] = {"win_size": size, "data_range": value_range, "full": True}
    if gaussian:
        window |= {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similarity: Any = structural_similarity
    bands = []
    for x, y in zip(reference, estimate, strict=True):
        pair = (np.where(kept, band, 0).astype(np.float64) for band in (x, y))
        bands.append(similarity(*pair, **window)[1][inner].mean())
    return float(np.mean(bands))


def sam(reference: Cube, estimate: Cube, valid: BoolArray | None = None) -> float:
    """Mean over pixels of the angle between spectra, degrees (Kruse et al., Remote Sens. Environ. 44, 1993).

    Pixels at which either spectrum is zero have no angle and do not count.
    """
    x, y = _spectra(reference, estimate, valid)
    lengths = np.linalg.norm(x, axis=0), np.linalg.norm(y, axis=0)
    some = (lengths[0] > 0) & (lengths[1] > 0)
    if not some.any():
        raise InputError("sam: every spectrum is zero, so no angle is defined")
    x, y = x[:, some] / lengths[0][some], y[:, some] / lengths[1][some]
    # Kahan's form of the angle, which keeps its digits where spectra agree and the arc cosine loses them.
    half = np.arctan2(np.linalg.norm(x - y, axis=0), np.linalg.norm(x + y, axis=0))
    return float(np.degrees(2 * half).mean())


def ergas(reference: Cube, estimate: Cube, ratio: float, valid: BoolArray | None = None) -> float:
    """Relative global error, percent (Wald, Data Fusion, 2002): 100 / ratio * sqrt(mean over bands of (RMSE / mean)^2).

    Args:
        reference: what is true; no band's mean may be zero.
        estimate: what is judged.
        ratio: pixel size of the coarse input over that of the fine output, 4 for a fourfold refinement; 1 for
            denoising.
        valid: pixels that count; all where None.
    """
    _require_positive("ratio", ratio)
    x, y = _spectra(reference, estimate, valid)
    mean = x.mean(axis=1)
    if not mean.all():
        raise InputError(
            f"ergas: band {int(np.argmin(np.abs(mean)))} of the reference has a mean of zero; leave it out"
        )
    relative = np.mean((x - y) ** 2, axis=1) / mean**2
    return float(100 / ratio * np.sqrt(relative.mean()))


def rmse(reference: Cube, estimate: Cube, valid: BoolArray | None = None) -> float:
    """Root of the mean squared error over all bands and pixels, in the cubes' units."""
    x, y = _spectra(reference, estimate, valid)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def cc(reference: Cube, estimate: Cube, valid: BoolArray | None = None) -> float:
    """Mean over bands of Pearson's correlation over pixels; bands that do not vary in either cube do not count."""
    x, y = _spectra(reference, estimate, valid)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    some = lengths > 0
    if not some.any():
        raise InputError("cc: no band varies, so no correlation is defined")
    return float(np.mean(np.sum(x * y, axis=1)[some] / lengths[some]))


def _spectra(reference: Cube, estimate: Cube, valid: BoolArray | None) -> tuple[FloatArray, FloatArray]:
    """Both cubes' valid spectra, `(band, pixel)` float64."""
    if reference.shape != estimate.shape or reference.ndim != 3:
        raise InputError(f"metrics compare two cubes (band, y, x); got {reference.shape} and {estimate.shape}")
    if valid is not None and valid.shape != reference.shape[1:]:
        raise InputError(f"the mask has shape {valid.shape}, the cubes' pixels {reference.shape[1:]}")
    pixels = np.ones(reference.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    x, y = (np.asarray(cube[:, pixels], np.float64) for cube in (reference, estimate))
    if not x.size:
        raise InputError("metrics need one valid pixel at least; the mask leaves none")
    for name, cube in (("reference", x), ("estimate", y)):
        missing = int(np.count_nonzero(~np.isfinite(cube)))
        if missing:
            raise InputError(f"the {name} has {missing} values that are not finite; leave them out with `valid`")
    return x, y


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive number, got {value!r}")
