"""Plain GeoTIFFs decoded without GDAL: every pixel as GDAL reads it, and whatever is not plain left to GDAL."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cubeloom.errors import InputError
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.readers.rasters import RasterFile, close_handles, file_state, read_window
from cubeloom.pipeline.readers.tiff_blocks import read_blocks
from cubeloom.pipeline.readers.tiff_layout import tiff_layout

BANDS, HEIGHT, WIDTH = 5, 150, 170
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 48}
STRIPS = {"blockysize": 7}
WHOLE = Window(0, 0, HEIGHT, WIDTH)


def numbers(dtype: str) -> np.ndarray:
    """Smooth numbers with jumps over the type's whole range, so that differences wrap."""
    generator = np.random.default_rng(7)
    info = np.iinfo(dtype)
    cube = np.cumsum(generator.integers(-9, 10, (BANDS, HEIGHT, WIDTH)), axis=2)
    cube[generator.random(cube.shape) < 0.02] = info.max
    cube[generator.random(cube.shape) < 0.02] = info.min
    return cube.astype(dtype)


def written(path: Path, dtype: str = "int16", **profile: object) -> Path:
    profile = {"interleave": "band", "compress": "deflate", **profile}
    shape = {"count": BANDS, "height": HEIGHT, "width": WIDTH, "dtype": dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(numbers(dtype))
    return path


def by_gdal(path: Path, window: Window, bands: tuple[int, ...]) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(list(bands), window=RasterioWindow(window.col, window.row, window.width, window.height))


def decoded(path: Path, window: Window, bands: tuple[int, ...]) -> np.ndarray | None:
    """What the own decoder makes of a window; None where it leaves the file to GDAL."""
    layout = tiff_layout(path, *file_state(path))
    if layout is None:
        return None
    around = np.zeros((len(bands), window.height + 2, window.width + 3), layout.dtype)
    out = around[:, 1:-1, 2:-1]  # rows that lie apart
    if not read_blocks(path, layout, window, bands, out):
        return None
    assert not around[:, [0, -1]].any()
    assert not around[:, :, [0, 1, -1]].any()
    return out


@pytest.mark.parametrize("blocks", [TILED, STRIPS], ids=["tiled", "strips"])
@pytest.mark.parametrize("compress", ["deflate", "zstd", None])
@pytest.mark.parametrize(
    ("predictor", "dtype"), [(1, "uint8"), (2, "uint8"), (1, "int16"), (2, "int16"), (2, "uint16")]
)
def test_every_plain_layout_reads_as_gdal_reads_it(tmp_path, blocks, compress, predictor, dtype):
    path = written(tmp_path / "a.tif", dtype, compress=compress, predictor=predictor, **blocks)
    bands = (4, 1, 2, 5)
    for window in (WHOLE, Window(48, 64, 96, 106), Window(5, 7, 140, 150)):
        found = decoded(path, window, bands)
        assert found is not None
        assert np.array_equal(found, by_gdal(path, window, bands))
        assert np.array_equal(found, window.crop(numbers(dtype), WHOLE)[[band - 1 for band in bands]])


@pytest.mark.parametrize("profile", [{"BIGTIFF": "YES"}, {"blockysize": HEIGHT}, {"photometric": "rgb"}])
def test_other_headers_of_plain_files(tmp_path, profile):
    path = written(tmp_path / "a.tif", predictor=2, **profile)
    assert np.array_equal(decoded(path, WHOLE, (2, 1)), numbers("int16")[[1, 0]])


@pytest.mark.parametrize(
    "profile",
    [
        {"interleave": "pixel", **TILED},
        {"ENDIANNESS": "BIG", **TILED},
        {"compress": "lzw", **TILED},
        {"NBITS": 12, "dtype": "uint16", **TILED},
        {"compress": "deflate", "dtype": "float32", "predictor": 3, **TILED},
        {"photometric": "miniswhite", "dtype": "uint8", **TILED},
    ],
)
def test_what_is_not_plain_is_left_to_gdal(tmp_path, profile):
    path = tmp_path / "a.tif"
    dtype = profile.pop("dtype", "int16")
    cube = numbers("int16" if dtype == "float32" else dtype).astype(dtype)
    if "NBITS" in profile:
        cube %= 4096
    shape = {"count": BANDS, "height": HEIGHT, "width": WIDTH, "dtype": dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **{"interleave": "band", **profile}) as file:
        file.write(cube)
    assert decoded(path, WHOLE, (1, 2)) is None
    assert np.array_equal(read_window(RasterFile(path), WHOLE, (1, 2), (HEIGHT, WIDTH)), by_gdal(path, WHOLE, (1, 2)))


def test_blocks_that_the_file_leaves_out_are_left_to_gdal(tmp_path):
    path, shape = tmp_path / "a.tif", {"count": 2, "height": HEIGHT, "width": WIDTH, "dtype": "int16"}
    with rasterio.open(
        path, "w", driver="GTiff", sparse_ok=True, interleave="band", nodata=-7, **TILED, **shape
    ) as file:
        file.write(numbers("int16")[:2, :48], window=RasterioWindow(0, 0, WIDTH, 48))
    assert decoded(path, Window(0, 0, 48, WIDTH), (1, 2)) is not None
    assert decoded(path, WHOLE, (1, 2)) is None
    found = read_window(RasterFile(path), WHOLE, (1, 2), (HEIGHT, WIDTH))
    assert (found[:, 48:] == -7).all()
    assert np.array_equal(found, by_gdal(path, WHOLE, (1, 2)))


@pytest.mark.parametrize("blocks", [TILED, STRIPS], ids=["tiled", "strips"])
def test_blocks_of_the_same_bytes(tmp_path, blocks):
    path, mask = tmp_path / "a.tif", np.zeros((BANDS, HEIGHT, WIDTH), np.uint8)
    mask[1, 60, 70] = mask[4, -1, -1] = mask[4, 100, 3] = 1
    shape = {"count": BANDS, "height": HEIGHT, "width": WIDTH, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", compress="deflate", interleave="band", **blocks, **shape) as file:
        file.write(mask)
    assert np.array_equal(decoded(path, WHOLE, (1, 2, 3, 4, 5)), mask)


def test_small_parts_of_blocks_are_left_to_gdal_which_keeps_blocks(tmp_path):
    path = written(tmp_path / "a.tif", predictor=2, **TILED)
    assert decoded(path, Window(40, 60, 16, 16), (1,)) is None


@pytest.mark.parametrize("blocks", [TILED, STRIPS], ids=["tiled", "strips"])
def test_a_file_cut_short_is_told_as_ever(tmp_path, blocks):
    path = written(tmp_path / "a.tif", predictor=2, **blocks)
    whole = path.read_bytes()
    path.write_bytes(whole[: -len(whole) // 4])
    with pytest.raises(InputError, match=r"cannot read rows 0-149, columns 0-169 .*fetch it again"):
        read_window(RasterFile(path), WHOLE, tuple(range(1, BANDS + 1)), (HEIGHT, WIDTH))
    close_handles()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blocks", [TILED, STRIPS], ids=["tiled", "strips"])
def test_a_file_with_wrong_bytes_gives_gdals_pixels_or_is_left_to_it(tmp_path, blocks, seed):
    generator = np.random.default_rng(seed)
    whole = written(tmp_path / "whole.tif", predictor=2, **blocks).read_bytes()
    bands = tuple(range(1, BANDS + 1))
    told = 0
    for number in range(40):
        data = bytearray(whole)
        data[generator.integers(8, 330 if number % 2 else len(whole))] = generator.integers(256)
        path = tmp_path / f"{number}.tif"
        path.write_bytes(data)
        try:
            with rasterio.open(path) as file:
                shape, count = file.shape, file.count
        except (RasterioError, ValueError):
            continue  # the reader opens a file by GDAL before it looks at the layout
        if (shape, count) != (WHOLE.shape, BANDS) or (found := decoded(path, WHOLE, bands)) is None:
            continue
        assert np.array_equal(found, by_gdal(path, WHOLE, bands))
        told += 1
    assert told
