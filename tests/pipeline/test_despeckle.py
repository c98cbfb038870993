"""Speckle filters against a slow computation of the papers' words, and for what they promise."""

from datetime import UTC, datetime

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.quicklook import write_quicklooks
from cubeloom.pipeline.readers.sentinel1_scene import band_names, radar_bands
from cubeloom.pipeline.scene import SceneSpec, cube_variable, scene_from

LOOKS = 5


def backscatter(cube: np.ndarray, **attrs) -> xr.Dataset:
    names = ["VV", "VH"][: len(cube)]
    spec = SceneSpec(
        scene_id="radar",
        sensor="Sentinel-1A",
        processing_level="GRD",
        time=datetime(2024, 6, 1, 17, tzinfo=UTC),
        source="memory",
        bands=radar_bands(names),
        grid=GeoBox(cube.shape[1:], Affine(10, 0, 500_000, 0, -10, 5_800_000), "EPSG:32633"),
        variables={"sigma0": cube_variable("sigma0")},
        measurement="sigma0",
        subject="sigma0",
        attrs={"band_names": band_names(names), **attrs},
    )
    return scene_from(spec, {"sigma0": cube.astype(np.float32)})


def speckled(clean: np.ndarray, seed: int = 0, looks: float = LOOKS) -> np.ndarray:
    return clean * np.random.default_rng(seed).gamma(looks, 1 / looks, clean.shape)


def estimate(value: float, window: np.ndarray, looks: float) -> float:
    """Minimum mean square error, of the values that a window has."""
    known = window[np.isfinite(window)]
    mean, variance = known.mean(), known.var()
    signal = max((variance - mean**2 / looks) / (1 + 1 / looks), 0)
    return mean + (signal / variance if variance > 0 else 0) * (value - mean)


def refined_by_hand(image: np.ndarray, looks: float) -> np.ndarray:
    """Lee 1981, pixel by pixel."""
    padded, found = np.pad(image, 3, constant_values=np.nan), np.full(image.shape, np.nan)
    row, col = np.mgrid[-3:4, -3:4]
    for y, x in np.argwhere(np.isfinite(image)):
        window = padded[y : y + 7, x : x + 7]
        every = window[np.isfinite(window)]
        limit = (1 + 2 * np.sqrt((2 + 6 / looks) / 49)) / looks
        if every.var() <= limit * every.mean() ** 2:
            found[y, x] = estimate(image[y, x], window, looks)
            continue
        means = np.full((3, 3), np.nan)
        for i in range(3):
            for j in range(3):
                part = window[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                if np.isfinite(part).any():
                    means[i, j] = np.nanmean(part)
        means[np.isnan(means)] = means[1, 1]
        edges = [
            (means[:, 2].sum() - means[:, 0].sum(), means[1, 0], means[1, 2], col <= 0, col >= 0),
            (means[2].sum() - means[0].sum(), means[0, 1], means[2, 1], row <= 0, row >= 0),
            (
                means[0, 1] + means[0, 2] + means[1, 2] - means[1, 0] - means[2, 0] - means[2, 1],
                means[2, 0],
                means[0, 2],
                row >= col,
                row <= col,
            ),
            (
                means[1, 2] + means[2, 1] + means[2, 2] - means[0, 0] - means[0, 1] - means[1, 0],
                means[0, 0],
                means[2, 2],
                row + col <= 0,
                row + col >= 0,
            ),
        ]
        _, first, second, low, high = max(edges, key=lambda edge: abs(edge[0]))
        side = low if abs(first - means[1, 1]) <= abs(second - means[1, 1]) else high
        assert side.sum() == 28
        found[y, x] = estimate(image[y, x], np.where(side, window, np.nan), looks)
    return found


def test_refined_lee_is_that_of_the_paper():
    clean = np.full((40, 44), 0.05)
    clean[:, 20:] = 0.4
    clean[25:] *= 3
    clean[np.add.outer(np.arange(40), np.arange(44)) < 22] = 1.0
    clean[10, 30] = 60
    image = speckled(clean)
    image[5:9, 30:36] = np.nan
    image[::11, ::7] = np.nan
    found = cubeloom.despeckle(backscatter(image[None]), looks=LOOKS)["despeckled"].values[0]
    expected = refined_by_hand(image.astype(np.float32).astype(float), LOOKS)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(image))
    close = np.isclose(found, expected, rtol=1e-4) | np.isnan(image)
    assert close.mean() == 1  # of float32 sums and float64 ones


def test_lee_and_boxcar_are_means_and_variances_of_squares():
    image = speckled(np.linspace(0.02, 0.5, 30 * 33).reshape(30, 33))
    image[3:6, 8:10] = np.nan
    scene = backscatter(image[None])
    padded = np.pad(image.astype(np.float32).astype(float), 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    expected = np.where(np.isnan(image), np.nan, np.nanmean(windows, axis=(2, 3)))
    found = cubeloom.despeckle(scene, method="boxcar", window=5)["despeckled"].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = [
        [np.nan if np.isnan(value) else estimate(value, windows[y, x], LOOKS) for x, value in enumerate(line)]
        for y, line in enumerate(image)
    ]
    found = cubeloom.despeckle(scene, method="lee", window=5, looks=LOOKS)["despeckled"].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def enl(image: np.ndarray) -> float:
    return float(image.mean() ** 2 / image.var())


def test_speckle_falls_in_homogeneous_areas_and_the_mean_stays():
    image = speckled(np.full((2, 150, 150), 0.1), seed=2)
    scene = backscatter(image, looks=float(LOOKS))
    before = enl(image[0])
    assert before == pytest.approx(LOOKS, rel=0.1)
    for method, factor in (("refined_lee", 5), ("lee", 6), ("boxcar", 20)):
        found = cubeloom.despeckle(scene, method=method)["despeckled"].values
        assert enl(found[0, 5:-5, 5:-5]) > factor * before, method
        assert found[0].mean() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("turn", ["upright", "slanting"])
def test_edges_and_points_stay(turn):
    """Beside an edge of 10 dB the refined filter keeps both levels, where a mean of squares mixes them."""
    rows, cols = np.mgrid[:160, :160]
    place = cols - 79.5 if turn == "upright" else (rows + cols - 159.5) / np.sqrt(2)
    clean = np.where(place < 0, 0.03, 0.3)
    image = speckled(clean, seed=4)
    scene = backscatter(image[None], looks=float(LOOKS))
    refined, box = (cubeloom.despeckle(scene, method=m)["despeckled"].values[0] for m in ("refined_lee", "boxcar"))
    inner = np.s_[10:-10, 10:-10]
    for side, level in ((place < 0, 0.03), (place > 0, 0.3)):
        near = (side & (np.abs(place) < 1.6))[inner]
        kept = abs(10 * np.log10(refined[inner][near].mean() / level))
        mixed = abs(10 * np.log10(box[inner][near].mean() / level))
        assert kept < 1.5, level
        assert mixed > 1.5 * kept, level
    point = np.full((41, 41), 0.05)
    point[20, 20] = 100
    found = cubeloom.despeckle(backscatter(point[None]), looks=LOOKS)["despeckled"].values[0]
    assert found[20, 20] > 70


def test_pixels_that_take_no_part_never_change_the_others():
    image = speckled(np.full((1, 60, 60), 0.1), seed=1)
    image[0, 20:30, 20:30] = np.nan
    first = backscatter(image, looks=5.0).assign(valid=(("y", "x"), np.isfinite(image[0])))
    first["valid"].attrs["long_name"] = "valid"
    other = first.copy()
    other["sigma0"] = first["sigma0"].fillna(1e9).assign_attrs(first["sigma0"].attrs)
    for method in ("refined_lee", "lee", "boxcar"):
        one, two = (cubeloom.despeckle(scene, method=method)["despeckled"].values for scene in (first, other))
        np.testing.assert_array_equal(one, two)
        assert np.isnan(one[0, 20:30, 20:30]).all()


def test_what_cannot_be_despeckled_is_refused(make_scene):
    scene = backscatter(np.ones((1, 20, 20)))
    with pytest.raises(InputError, match="does not say how many looks"):
        cubeloom.despeckle(scene)
    with pytest.raises(InputError, match="no linear backscatter"):
        cubeloom.despeckle(make_scene(20, 20, 3), looks=5)
    with pytest.raises(InputError, match="before to_db"):
        cubeloom.despeckle(cubeloom.to_db(scene), looks=5)
    with pytest.raises(InputError, match="window of 7 px"):
        cubeloom.despeckle(scene, looks=5, window=5)
    with pytest.raises(ConfigError, match="edge is odd"):
        cubeloom.despeckle(scene, method="lee", window=6)
    with pytest.raises(InputError, match="no linear backscatter"):
        cubeloom.to_db(cubeloom.to_db(scene))


def test_decibels_have_a_floor_and_no_infinity():
    image = np.array([[[1.0, 0.1, 1e-3, 1e-9, 0.0, -0.2, np.nan, 100.0]]])
    scene = cubeloom.to_db(backscatter(image))
    np.testing.assert_allclose(scene["sigma0_db"].values[0, 0], [0, -10, -30, -50, -50, -50, np.nan, 20], atol=1e-5)
    assert scene["sigma0_db"].attrs["units"] == "dB"
    assert scene.attrs["subject"] == "sigma0_db"
    assert cubeloom.to_db(backscatter(image), floor=-20)["sigma0_db"].values[0, 0, 2] == -20


def test_a_picture_in_decibels_has_limits_of_its_own(tmp_path):
    """Those of linear power would show decibels all black."""
    clean = np.where(np.arange(60) < 30, 0.01, 0.2) * np.ones((2, 60, 1))
    scene = cubeloom.to_db(cubeloom.despeckle(backscatter(speckled(clean), looks=float(LOOKS))))
    written = write_quicklooks(scene, tmp_path)
    shown = np.asarray(Image.open(written["polarisations_despeckled_db"]).convert("L"), float)
    assert shown[:, 35:].mean() - shown[:, :25].mean() > 60
