"""Tiles of JPEG 2000 images: decoded once, and the same pixels as a plain read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from cubeloom.errors import InputError
from cubeloom.pipeline.encoding import REFLECTANCE
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.readers.jp2_tiles import read_tiles
from cubeloom.pipeline.readers.rasters import RasterFile, file_state
from cubeloom.pipeline.readers.sentinel2_decoding import Decoding
from cubeloom.pipeline.readers.tile_cache import TileCache

SHAPE = (150, 210)


def write(path: Path, layers: np.ndarray) -> RasterFile:
    profile = {"count": layers.shape[0], "height": SHAPE[0], "width": SHAPE[1], "dtype": layers.dtype.name}
    place = {"crs": "EPSG:32633", "transform": from_origin(300000, 5000040, 10, 10)}
    options = {"QUALITY": 100, "REVERSIBLE": "YES", "YCBCR420": "NO", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64}
    with rasterio.open(path, "w", driver="JP2OpenJPEG", **profile, **place, **options) as dataset:
        dataset.write(layers)
    return RasterFile(path)


@pytest.mark.parametrize("bands", [(1,), (1, 2, 3), (3, 1)])
def test_windows_are_those_of_a_plain_read(tmp_path, bands):
    layers = np.random.default_rng(0).integers(0, 250, (3, *SHAPE)).astype(np.uint8)
    file = write(tmp_path / "x.jp2", layers)
    cache = TileCache(5 * 3 * 64 * 64)
    for window in (Window(0, 0, 64, 64), Window(60, 60, 10, 10), Window(0, 0, *SHAPE), Window(149, 209, 1, 1)):
        for _ in range(2):
            found = read_tiles(file, window, bands, SHAPE, cache)
            np.testing.assert_array_equal(found, layers[[number - 1 for number in bands]][(..., *window.slices)])
        assert cache.held <= cache.limit


def test_a_file_that_has_changed_is_read_again(tmp_path):
    layers = np.ones((1, *SHAPE), np.uint16)
    cache, window = TileCache(2**20), Window(3, 3, 5, 5)
    for value in (1, 2):
        file = write(tmp_path / "x.jp2", layers * value)
        assert (read_tiles(file, window, (1,), SHAPE, cache) == value).all()
    with pytest.raises(InputError, match="belong together"):
        read_tiles(file, window, (1,), (151, 210), cache)


def test_threads_that_ask_at_once_decode_once(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    key = (RasterFile(tmp_path / "x"), file_state(tmp_path / "x"), Window(0, 0, 4, 4))
    cache, begun, decoded = TileCache(2**20), Barrier(4), []

    def ask() -> np.ndarray:
        begun.wait()
        return cache.get(key, lambda: decoded.append(1) or np.zeros((1, 4, 4)))

    with ThreadPoolExecutor(4) as pool:
        tiles = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert len(decoded) == 1
    assert all(tile is tiles[0] for tile in tiles)
    with pytest.raises(ValueError, match="read-only"):
        tiles[0][:] = 1


def test_a_tile_that_cannot_be_decoded_is_tried_again(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    key = (RasterFile(tmp_path / "x"), file_state(tmp_path / "x"), Window(0, 0, 4, 4))
    cache = TileCache(2**20)

    def fail() -> np.ndarray:
        raise InputError("damaged")

    with pytest.raises(InputError, match="damaged"):
        cache.get(key, fail)
    assert cache.get(key, lambda: np.ones((1, 4, 4))).sum() == 16


@pytest.mark.parametrize("offset", [-1000.0, 0.0, 1000.0, -30000.0, 30000.0])
def test_every_number_is_packed_as_by_hand(offset):
    numbers = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    decoding = Decoding(10_000.0, np.array([0.0, offset]), (0, 65535))
    packed = decoding.decode([numbers], slice(1, 2))
    values = numbers.astype(int) + offset
    known = ~np.isin(numbers, (0, 65535))
    np.testing.assert_array_equal(packed.data[0], np.where(known, np.minimum(values, 32767), REFLECTANCE.fill))
    expected = known & (values > 32767)
    np.testing.assert_array_equal(np.zeros((256, 256), bool) if packed.clipped is None else packed.clipped[0], expected)
    np.testing.assert_array_equal(numbers.ravel(), np.arange(2**16))
