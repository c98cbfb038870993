"""HYPERVIEW's soil values and images, as SpectralEarth's authors read them."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from cubeloom.errors import InputError
from cubeloom.untrusted import read_zip_member, zip_members

from .earth_layout import Float32Array

SIDE = 128
"""To which the images, of many sizes, are brought, px."""
SOIL = ("P", "K", "Mg", "pH")
"""What is asked for; the tables hold each with mean 0 and standard deviation 1."""
_MEMBER = "data.npy"


def read_soil_table(path: Path) -> tuple[list[int], Float32Array]:
    """Numbers of the images and values of each.

    Args:
        path: CSV with the columns `sample_index` and those of `SOIL`.

    Returns:
        The numbers, and (images, 4).

    Raises:
        InputError: it cannot be read, a column is missing, or something is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; expected HYPERVIEW's table") from None
    try:
        numbers = [int(row["sample_index"]) for row in rows]
        values = [[float(row[name]) for name in SOIL] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected numbers under sample_index, {', '.join(SOIL)}") from None
    if not rows or not all(math.isfinite(value) for row in values for value in row):
        raise InputError(f"{path}: no rows, or values that are not finite")
    return numbers, np.array(values, np.float32)


def read_soil_image(path: Path, bands: int, scale: float = 1.0) -> Float32Array:
    """The cube of a field, resized by cubic interpolation with corners on corners, as the authors do.

    Args:
        path: NumPy archive with an array `data`, (band, y, x).
        bands: how many it must have.
        scale: factor on its numbers.

    Returns:
        (band, SIDE, SIDE)

    Raises:
        InputError: it cannot be read, or is of another shape.
    """
    from torch import from_numpy
    from torch.nn.functional import interpolate

    if _MEMBER not in {member.filename for member in zip_members(path)}:
        raise InputError(f"{path}: holds no array 'data'; expected one of HYPERVIEW's images")
    try:
        found = np.lib.format.read_array(io.BytesIO(read_zip_member(path, _MEMBER)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: array 'data' cannot be read ({error})") from None
    if found.ndim != 3 or len(found) != bands or found.dtype.kind not in "iuf" or 0 in found.shape:
        raise InputError(f"{path}: 'data' is {found.shape} of {found.dtype}, expected ({bands}, y, x) numbers")
    cube = from_numpy(scale * found.astype(np.float32))[None]
    sized = interpolate(cube, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    return np.asarray(sized[0].numpy())
