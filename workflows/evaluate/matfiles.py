"""Cubes in MATLAB files: which array is the cube, which of its axes holds the bands, what else the file says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError, InputError

_WAVELENGTH_NAMES = ("wavelength", "wavelengths", "wavelength_nm", "wvl", "wl", "lambda")
_GOOD_NAMES = ("good", "bbl", "good_bands")
_ROW_NAMES, _COLUMN_NAMES = ("lines", "rows", "nrow", "height"), ("cols", "columns", "samples", "ncol", "width")
OPTIONS = ("key", "bands", "shape", "order", "wavelengths", "good")


@dataclass(frozen=True, eq=False)
class MatCube:
    """A cube as a MATLAB file holds it.

    Attributes:
        cube: `(band, y, x)`, in the file's numbers.
        wavelength: centres, nm; None where the file has none.
        good: usable bands, `(band,)`.
        notes: what was taken for what.
    """

    cube: npt.NDArray[Any]
    wavelength: npt.NDArray[np.float64] | None
    good: npt.NDArray[np.bool_]
    notes: tuple[str, ...]


def read_mat(path: Path, options: Mapping[str, str]) -> MatCube:
    """The cube of a MATLAB file (up to version 7).

    Args:
        path: the file.
        options: `key`, the array's name; `bands`, `first` or `last`; for an array of spectra `shape` (`HEIGHTxWIDTH`)
            and `order` (`C` or `F`, which of its axes runs first through the pixels); names of the arrays with
            `wavelengths` and `good` bands. What is not given is found by name and size, and noted.

    Raises:
        InputError: damaged, of version 7.3, or without a numeric cube.
        ConfigError: an option that does not fit, or one that is needed.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ConfigError(f"{path}: MATLAB files take no option {unknown[0]!r}; they take {', '.join(OPTIONS)}")
    shapes = _shapes(path)
    key = _cube_key(path, shapes, options)
    arrays = _load(path, [key, *(name for name in shapes if _is_vector(shapes[name]))])
    array = arrays.pop(key)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: array {key!r} holds {array.dtype}, expected numbers; name another with key=")
    cube, how = _bands_first(path, key, array, arrays, options)
    wavelength = _vector(path, arrays, options.get("wavelengths"), _WAVELENGTH_NAMES, len(cube))
    good = _vector(path, arrays, options.get("good"), _GOOD_NAMES, len(cube))
    return MatCube(
        cube=cube,
        wavelength=None if wavelength is None else wavelength.astype(float),
        good=np.ones(len(cube), bool) if good is None else good.astype(bool),
        notes=(f"array {key!r} {array.shape}, {how}",),
    )


def read_map(path: Path, key: str | None = None) -> npt.NDArray[np.integer[Any]]:
    """A map of whole numbers, such as class values, out of a MATLAB file.

    Args:
        path: the file.
        key: the array's name; None where it is the only one with two axes.

    Returns:
        `(y, x)`

    Raises:
        InputError: damaged, or the array holds something else than whole numbers.
        ConfigError: no such array, or more than one that may be meant.
    """
    shapes = _shapes(path)
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    maps = [name for name, shape in shapes.items() if len(shape) == 2 and (key == name or not _is_vector(shape))]
    found = [name for name in maps if key in (None, name)]
    if len(found) != 1:
        wanted = f"named {key!r}" if key else "that alone has two axes"
        raise ConfigError(f"{path}: no map {wanted}; name one of its arrays: {listed}")
    values = _load(path, found)[found[0]]
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise InputError(f"{path}: array {found[0]!r} holds {values.dtype} that are no whole numbers, so no classes")
    return values.astype(np.int64)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the numeric arrays in the file."""
    from scipy.io import whosmat

    try:
        with path.open("rb") as file:
            listed = whosmat(file)
    except NotImplementedError:
        raise InputError(f"{path}: a MATLAB 7.3 file (HDF5), which is not read; save it with -v7") from None
    except Exception as error:  # noqa: BLE001 - scipy raises whatever a damaged file leads it to
        raise InputError(f"{path}: not a MATLAB file that can be read ({error})") from None
    kinds = {"cell", "struct", "object", "char", "function", "opaque", "logical"}
    return {name: tuple(shape) for name, shape, kind in listed if kind not in kinds}


def _load(path: Path, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            found = loadmat(file, variable_names=names)
    except Exception as error:  # noqa: BLE001 - scipy raises whatever a damaged file leads it to
        raise InputError(f"{path}: cannot be read ({error}); the file is damaged") from None
    return {name: np.asarray(found[name]) for name in names}


def _is_vector(shape: tuple[int, ...]) -> bool:
    return max(shape, default=0) == int(np.prod(shape, dtype=np.int64))


def _cube_key(path: Path, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, str]) -> str:
    """The array that is the cube: the one named, else the largest with three axes, else with two."""
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    if "key" in options:
        if options["key"] not in shapes:
            raise ConfigError(f"{path}: no numeric array {options['key']!r}; the file has {listed}")
        return options["key"]
    axes = 2 if "shape" in options else 3
    some = {name: np.prod(shape) for name, shape in shapes.items() if len(shape) == axes and not _is_vector(shape)}
    largest = [name for name, size in some.items() if size == max(some.values())]
    if len(largest) != 1:
        raise ConfigError(
            f"{path}: no one array is the largest with {axes} axes; name the cube with key=, and give "
            f"shape=HEIGHTxWIDTH if it holds spectra in a matrix. The file has {listed}"
        )
    return largest[0]


def _bands_first(
    path: Path, key: str, array: npt.NDArray[Any], others: Mapping[str, npt.NDArray[Any]], options: Mapping[str, str]
) -> tuple[npt.NDArray[Any], str]:
    """The array as `(band, y, x)`, and how it was understood."""
    if array.ndim not in (2, 3):
        raise ConfigError(f"{path}: array {key!r} has shape {array.shape}, expected a cube or a matrix of spectra")
    pixels = _size(path, array, others, options) if array.ndim == 2 else None
    where, why = _band_axis(path, array, others, options, pixels)
    moved = np.moveaxis(array, 0 if where == "first" else -1, 0)
    if pixels is None:
        return moved, f"bands {where} ({why})"
    order: Any = options.get("order", "F").upper()
    if order not in ("C", "F"):
        raise ConfigError(f"{path}: order={options['order']!r}; expected C (row after row) or F (column after column)")
    cube = np.stack([spectrum.reshape(pixels, order=order) for spectrum in moved])
    by = "stated" if "order" in options else "MATLAB's"
    return cube, f"bands {where} ({why}), {pixels[0]} x {pixels[1]} px in {order} order ({by})"


def _size(
    path: Path, array: npt.NDArray[Any], others: Mapping[str, npt.NDArray[Any]], options: Mapping[str, str]
) -> tuple[int, int]:
    """Height and width of a matrix of spectra."""
    parts: list[int] = []
    if "shape" in options:
        parts = [int(part) for part in options["shape"].lower().split("x") if part.isdigit()]
    else:
        scalars = {name.lower(): int(value.item()) for name, value in others.items() if value.size == 1}
        for names in (_ROW_NAMES, _COLUMN_NAMES):
            parts += [scalars[name] for name in names if name in scalars][:1]
    if len(parts) != 2 or parts[0] * parts[1] not in array.shape:
        raise ConfigError(
            f"{path}: a matrix {array.shape} of spectra needs its height and width, whose product is one of its "
            f"sizes; give shape=HEIGHTxWIDTH (found {options.get('shape') or parts or 'nothing'})"
        )
    return parts[0], parts[1]


def _band_axis(
    path: Path,
    array: npt.NDArray[Any],
    others: Mapping[str, npt.NDArray[Any]],
    options: Mapping[str, str],
    pixels: tuple[int, int] | None,
) -> tuple[str, str]:
    """`first` or `last`, and why."""
    ends = {"first": array.shape[0], "last": array.shape[-1]}
    if "bands" in options:
        if options["bands"] not in ends:
            raise ConfigError(f"{path}: bands={options['bands']!r}; expected first or last")
        return options["bands"], "stated"
    if pixels is not None:
        count = pixels[0] * pixels[1]
        return ("first" if ends["last"] == count else "last"), "the other axis has as many values as pixels"
    names = {*_WAVELENGTH_NAMES, *_GOOD_NAMES, options.get("wavelengths", ""), options.get("good", "")}
    sizes = {value.size for name, value in others.items() if name.lower() in names or name in names}
    fitting = [end for end, size in ends.items() if size in sizes]
    if len(fitting) == 1:
        return fitting[0], "as many as wavelengths"
    if array.shape[1] == array.shape[2] != array.shape[0]:
        return "first", "guessed: the other two axes are equal; else say bands=last"
    return "last", "guessed, as MATLAB cubes have them; else say bands=first"


def _vector(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str | None, usual: tuple[str, ...], size: int
) -> npt.NDArray[Any] | None:
    """An array with a value a band: the one named, or one with a usual name."""
    if name is None:
        found = [value for key, value in arrays.items() if key.lower() in usual and value.size == size]
        return found[0].ravel() if found else None
    if name not in arrays or arrays[name].size != size:
        sizes = ", ".join(f"{key} ({value.size})" for key, value in arrays.items()) or "none"
        raise ConfigError(f"{path}: no array {name!r} with {size} values, one a band; the file has {sizes}")
    return arrays[name].ravel()
