"""A scene on another grid: the numbers of an independent computation, whatever window they are read in."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import rasterio.warp
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from cubeloom.errors import InputError
from cubeloom.pipeline.degrade import sigma_of
from cubeloom.pipeline.grids import Window, tile, whole
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import Placement, RegriddedSource, refined, regridded
from cubeloom.pipeline.regrid_kernels import LARGEST, NOISE, taps
from cubeloom.pipeline.scene import QUALITY_FLAGS, scene_from, spec_of


def on_grid(scene: xr.Dataset, grid: GeoBox, cube: np.ndarray | None = None) -> SceneSource:
    """A scene moved to another grid of the same shape, with another cube if wanted."""
    spec = replace(spec_of(scene), grid=grid)
    arrays = {name: scene[name].values for name in spec.variables}
    if cube is not None:
        arrays["reflectance"] = cube
    moved = scene_from(spec, arrays)
    return SceneSource(moved, spec_of(moved))


@pytest.fixture(scope="module")
def scene(make_scene) -> xr.Dataset:
    return make_scene(height=210, width=240, bands=4)


NEXT_ZONE = GeoBox((210, 240), Affine(10, 0, 91_003, 0, -10, 5_812_004), "EPSG:32634")
"""Somewhere on the ground of `scene`'s first pixels, as the next zone sees it: turned by some 5 degrees."""


def target_over(source: GeoBox, crs: str, pixel: float, shape: tuple[int, int]) -> GeoBox:
    """A grid of `shape` around the middle of another one."""
    middle = source.affine * (source.shape[1] / 2, source.shape[0] / 2)
    (x,), (y,) = rasterio.warp.transform(str(source.crs), crs, [middle[0]], [middle[1]])
    return GeoBox(shape, Affine(pixel, 0, x - pixel * shape[1] / 2, 0, -pixel, y + pixel * shape[0] / 2), crs)


def smooth(grid: GeoBox, crs: str) -> np.ndarray:
    """A function of the place alone, in the coordinates of one zone, at the pixels of a grid in another."""
    y, x = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
    east, north = grid.affine * (x.ravel(), y.ravel())
    found = rasterio.warp.transform(str(grid.crs), crs, east.tolist(), north.tolist())
    east, north = (np.reshape(axis, grid.shape) for axis in found)
    return (np.sin(east / 170) + np.cos(north / 140) + np.sin((east + north) / 230)).astype(np.float32)


@pytest.mark.parametrize(
    ("resampling", "crs", "pixel"),
    [
        *product(("cubic", "average", "nearest"), ("EPSG:32633",), (11.0,)),
        *product(("cubic", "average", "nearest"), ("EPSG:32634",), (10.0, 31.0)),
        *(("bilinear", "EPSG:32634", 31.0), ("restored", "EPSG:32633", 11.0), ("restored", "EPSG:32634", 10.0)),
    ],
)
def test_a_pixel_is_the_same_in_every_window(scene, resampling, crs, pixel):
    source = on_grid(scene, GeoBox((210, 240), Affine(10, 0, 640_000, 0, -10, 5_812_000), "EPSG:32633"))
    grid = target_over(source.spec.grid, crs, pixel, (230, 190))
    read = RegriddedSource(source, grid, resampling, shift=(0.37, -1.21))
    for name in ("reflectance", "quality"):
        at_once = read.read(name, whole(grid.shape))
        assert np.isfinite(at_once).mean() > 0.05
        for size in ((17, 63), (64, 64), (5, 190)):
            parts = np.empty_like(at_once)
            for window in tile(grid.shape, size):
                parts[(..., *window.slices)] = read.read(name, window)
            np.testing.assert_array_equal(parts, at_once)
    window, some = Window(3, 5, 40, 60), slice(1, 3)
    expected = read.read("reflectance", whole(grid.shape))[some, *window.slices]
    np.testing.assert_array_equal(read.read("reflectance", window, some), expected)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32634", "EPSG:4326"])
def test_what_lies_at_a_place_is_found_there(scene, crs):
    """Against the function itself, in both zones and in degrees: cubic convolution errs by 1e-3 of it here."""
    grid = GeoBox((210, 240), Affine(10, 0, 640_000, 0, -10, 5_812_000), "EPSG:32633")
    cube = np.repeat(smooth(grid, "EPSG:32633")[None], 4, 0)
    target = target_over(grid, crs, 1.5e-4 if crs == "EPSG:4326" else 12.0, (120, 110))
    made = RegriddedSource(on_grid(scene, grid, cube), target, "cubic").read("reflectance", whole(target.shape))
    expected = smooth(target, "EPSG:32633")
    known = np.isfinite(made[0])
    assert known.mean() > 0.9
    assert np.abs(made[0] - expected)[known].max() < 5e-3


@pytest.mark.parametrize(("resampling", "pixel"), [("cubic", 9.0), ("bilinear", 7.0), ("nearest", 13.0)])
def test_it_agrees_with_gdal_where_all_pixels_are_known(scene, resampling, pixel):
    source = on_grid(scene, GeoBox((210, 240), Affine(10, 0, 640_000, 0, -10, 5_812_000), "EPSG:32633"))
    grid = target_over(source.spec.grid, "EPSG:32634", pixel, (60, 50))
    made = RegriddedSource(source, grid, resampling).read("reflectance", whole(grid.shape), slice(0, 1))[0]
    expected = np.empty(grid.shape, np.float32)
    rasterio.warp.reproject(
        source.read("reflectance", whole(source.spec.shape))[0].astype(np.float32),
        expected,
        src_transform=source.spec.grid.affine,
        src_crs="EPSG:32633",
        dst_transform=grid.affine,
        dst_crs="EPSG:32634",
        resampling=rasterio.warp.Resampling[resampling],
        tolerance=0,
        src_nodata=np.nan,
    )
    same = np.isclose(made, expected, atol=2e-6)
    assert same.all() if resampling != "nearest" else same.mean() > 0.999  # ties between two pixels


@pytest.mark.parametrize(("footprint", "position"), [(1.0, 8 / 15), (1.0, 0.2), (1.4, 4 / 15)])
def test_what_is_restored_is_hardly_worse_than_a_regression_on_such_ground(footprint, position):
    """An Ornstein-Uhlenbeck line, 15 points a pixel, seen through a Gaussian: least squares over it knows the best."""
    random, fine = np.random.default_rng(2), 15
    points = 2**16 * fine
    ground = lfilter([1], [1, -np.exp(-2 * np.pi / (LARGEST * fine))], random.normal(size=points))
    seen = gaussian_filter1d(ground, sigma_of(0.26, 1) * fine)[fine // 2 :: fine]
    seen += NOISE * seen.std() * random.normal(size=seen.size)
    pixel = round(footprint * fine)
    means = np.convolve(ground, np.full(pixel, 1 / pixel), "valid")
    count = seen.size - 40
    wanted = means[round((20.5 + position) * fine - pixel / 2) :: fine][:count]

    def error(weights):
        first = 20 - (len(weights) // 2 - 1)
        return np.std(sum(w * seen[first + k : first + k + count] for k, w in enumerate(weights)) - wanted)

    weights, cubic = (taps(np.array([position]), how, footprint, 0.26).weights[:, 0] for how in ("restored", "cubic"))
    start = 20 - (len(weights) // 2 - 1)
    columns = np.stack([seen[start + k : start + k + count] for k in range(len(weights))], axis=1)
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert error(weights) < 1.01 * error(np.linalg.lstsq(columns, wanted, rcond=None)[0])
    assert error(weights) < 0.9 * error(cubic)


def test_a_mean_over_whole_pixels_is_their_mean(scene):
    source = on_grid(scene, GeoBox((210, 240), Affine(10, 0, 640_000, 0, -10, 5_812_000), "EPSG:32633"))
    grid = GeoBox((70, 80), Affine(30, 0, 640_000, 0, -30, 5_812_000), "EPSG:32633")
    made = regridded(source, replace(source.spec, grid=grid), refine=1)
    assert made.resampling == "average"
    cube = source.read("reflectance", whole(source.spec.shape))
    blocks = cube.reshape(4, 70, 3, 80, 3)
    missing = np.isnan(blocks).mean((2, 4))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nansum(blocks, (2, 4)) / (9 * (1 - missing))
    expected = np.where(missing > 0.5, np.nan, means)
    np.testing.assert_allclose(made.read("reflectance", whole((70, 80))), expected, atol=1e-6)


def test_the_same_grid_changes_nothing_and_a_shift_moves(scene):
    source = SceneSource(scene, spec_of(scene))
    same = regridded(source, source.spec)
    assert (same.scale, same.resampling) == (1, "cubic")
    everything = whole(source.spec.shape)
    for name in source.spec.variables:
        np.testing.assert_array_equal(same.read(name, everything), source.read(name, everything))
    moved = same.shifted((2.0, -3.0)).read("reflectance", Window(50, 50, 60, 70))
    np.testing.assert_array_equal(moved, scene.reflectance.values[:, 52:112, 47:117])


def test_beyond_the_source_there_is_no_value(scene):
    source = SceneSource(scene, spec_of(scene))
    grid = source.spec.grid
    wide = GeoBox((400, 400), grid.affine * Affine.translation(-80, -90), grid.crs)
    read = RegriddedSource(source, wide, "cubic")
    cube, flags = (read.read(name, whole((400, 400))) for name in ("reflectance", "quality"))
    inside = np.zeros((400, 400), bool)
    inside[90:300, 80:320] = True
    assert np.isnan(cube[:, ~inside]).all()
    assert (flags[~inside] == QUALITY_FLAGS["background"]).all()
    np.testing.assert_array_equal(flags[90:300, 80:320], scene.quality.values)
    far = RegriddedSource(source, GeoBox((9, 9), grid.affine * Affine.translation(9e3, -9e3), grid.crs), "average")
    assert np.isnan(far.read("reflectance", whole((9, 9)))).all()


def test_a_guide_of_finer_pixels_refines_the_grid(scene):
    spec = spec_of(scene)
    for pixel, scale in ((10, 3), (20, 2), (29, 1), (60, 1)):
        guide = on_grid(scene, target_over(spec.grid, "EPSG:32634", pixel, (210, 240)))
        made = regridded(guide, spec)
        assert made.scale == scale
        assert made.grid == refined(spec.grid, scale)
        assert made.resampling == "cubic"
        assert Placement(spec.grid, guide.spec.grid).footprint[0] == pytest.approx(30 / pixel, rel=5e-3)
    assert (
        regridded(on_grid(scene, target_over(spec.grid, "EPSG:32633", 10, (210, 240))), spec, 1).resampling == "average"
    )


def test_sensor_geometry_is_refused(scene):
    source = on_grid(scene, GeoBox((210, 240), Affine.identity(), None))
    with pytest.raises(InputError, match="sensor geometry"):
        regridded(source, spec_of(scene))
