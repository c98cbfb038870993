"""Cubes computed block by block into plain band-sequential files, from which the GeoTIFFs are written band by band.

A GeoTIFF that is band interleaved and deflated is best written one band at a time, but pixels are made with all their
bands. The files between keep memory at a few raster lines, however large the scene.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .observation import Cube

AnyArray = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float64]


class BandFile:
    """An uncompressed cube on disk, `(band, y, x)`; rows may be written from several threads."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._file = path.open("w+b")
        self._file.truncate(int(np.prod(shape)) * self.dtype.itemsize)

    def __enter__(self) -> "BandFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = self._file.name
        self._file.close()
        Path(name).unlink()

    def write_rows(self, row: int, block: AnyArray) -> None:
        """Write `(band, rows, x)` at a row of all bands."""
        _, height, width = self.shape
        for band, part in enumerate(np.ascontiguousarray(block, self.dtype)):
            os.pwrite(self._file.fileno(), part.tobytes(), (band * height + row) * width * self.dtype.itemsize)

    def band(self, number: int) -> AnyArray:
        """One band, `(y, x)`."""
        _, height, width = self.shape
        size = height * width * self.dtype.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), size, number * size), self.dtype).reshape(height, width)

    def bands(self) -> Iterator[AnyArray]:
        """The bands in turn, `(y, x)` each."""
        return (self.band(number) for number in range(self.shape[0]))


@dataclass(frozen=True, eq=False)
class Packing:
    """Counts of a cube: value = count * gain + offset, per band; `nodata` outside the swath.

    Attributes:
        dtype: `int16` or `uint16`.
        gain: value of one count, `(band,)`.
        offset: value of count 0, `(band,)`.
        nodata: count that means "no value".
        empty: bands that hold no value at all, `(band,)`.
    """

    dtype: str
    gain: FloatArray
    offset: FloatArray
    nodata: int
    empty: npt.NDArray[np.bool_]

    def counts(self, values: npt.NDArray[np.float32]) -> AnyArray:
        """Values `(n, band)` to counts, clipped to those that are not nodata."""
        info = np.iinfo(self.dtype)
        scaled = (values - self.offset.astype(np.float32)) * (1 / self.gain).astype(np.float32)
        np.rint(scaled, out=scaled)
        return np.clip(scaled, info.min + 1, info.max, out=scaled).astype(self.dtype)


def packing(cube: Cube, version: str) -> Packing:
    """Reflectance in steps of 1e-4; radiance in 65535 steps from a little below the path radiance to a bright cloud."""
    bands = len(cube.table)
    if cube.reflectance:
        empty = cube.table.without_data(version)
        return Packing("int16", np.full(bands, 1e-4), np.zeros(bands), -32768, empty)
    light = cube.transfer
    noise = np.sqrt(cube.sensor.read)
    offset = 0.9 * light.path - 6 * noise - 0.004 * light.continuum
    gain = (1.3 * light.slope + light.path + 8 * noise + 0.05 * light.continuum - offset) / 65535
    rounded = [np.array([float(f"{value:.11e}") for value in values]) for values in (gain, offset)]
    return Packing("uint16", rounded[0], rounded[1], 0, np.zeros(bands, bool))


@dataclass(frozen=True, eq=False)
class Staged:
    """The three cubes of one raster: measured and clean counts, and the pixel mask."""

    measured: BandFile
    clean: BandFile
    defects: BandFile


def compute(cube: Cube, pack: Packing, staged: Staged, *, block_rows: int, workers: int) -> None:
    """Fill the staged files block by block on `workers` threads; the result does not depend on either."""

    def block(row: int) -> None:
        rows = range(row, min(row + block_rows, cube.shape[0]))
        shape = (len(cube.table), len(rows), cube.shape[1])
        measured, clean = np.full(shape, pack.nodata, pack.dtype), np.full(shape, pack.nodata, pack.dtype)
        defects = np.full(shape, 255, np.uint8)
        for index, number in enumerate(rows):
            line, noisy, true, defective = cube.values(number)
            measured[:, index, line.at] = pack.counts(noisy).T
            clean[:, index, line.at] = pack.counts(true).T
            defects[:, index, line.at] = defective.T
        measured[pack.empty] = pack.nodata
        for file, array in ((staged.measured, measured), (staged.clean, clean), (staged.defects, defects)):
            file.write_rows(row, array)

    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:  # one BLAS thread a line: same sums everywhere
        list(pool.map(block, range(0, cube.shape[0], block_rows)))
