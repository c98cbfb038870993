"""Quicklooks: the right bands, one stretch for both pictures, transparency, class colours."""

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from cubeloom.pipeline.quicklook import (
    PALETTE,
    class_legend,
    class_map,
    render,
    stretch_limits,
    swir_composite,
    truecolour,
    write_png,
    write_quicklooks,
)

CLASSES = {"flag_values": [1, 2, 7], "flag_meanings": "water low_vegetation roof"}


def read_png(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA"))


def with_classes(scene: xr.Dataset) -> xr.Dataset:
    codes = np.zeros(scene.reflectance.shape[1:], np.uint8)
    codes[50:100], codes[100:150], codes[150:160] = 1, 2, 7
    return scene.assign(classes=(("y", "x"), codes, CLASSES))


def with_subject(scene: xr.Dataset, factor: float) -> xr.Dataset:
    cube = scene.reflectance
    derived = scene.assign(denoised=(cube.dims, cube.values * np.float32(factor), {"units": "1"}))
    return derived.assign_attrs(subject="denoised")


def test_each_channel_is_the_nearest_good_and_preferred_band(make_scene):
    scene = make_scene(bands=80)
    shown = truecolour(scene)
    for channel, wanted in enumerate((660, 560, 480)):
        nearest = int(np.argmin(np.abs(scene.wavelength.values - wanted)))
        lit = shown[..., channel][shown[..., 3] > 0].astype(float)
        values = scene.reflectance.values[nearest][shown[..., 3] > 0]
        inner = (lit > 0) & (lit < 255)
        order = np.argsort(values[inner], kind="stable")
        assert (np.diff(lit[inner][order]) >= 0).all()
    scene["preferred"] = ("band", scene.preferred.values & (np.arange(80) != nearest))
    assert not np.array_equal(truecolour(scene)[..., 2], shown[..., 2])


def test_pixels_without_a_value_are_transparent_and_set_no_limits(make_scene):
    scene = make_scene(bands=80)
    shown = swir_composite(scene)
    assert (shown[:40, :40, 3] == 0).all()
    assert (shown[41:, 41:, 3] == 255).all()
    empty = render(np.full((3, 4, 5), np.nan, np.float32), stretch_limits(np.full((3, 4, 5), np.nan, np.float32)))
    assert (empty == 0).all()


def test_clouds_do_not_set_the_limits(make_scene):
    scene = make_scene(bands=80)
    plain = truecolour(scene)
    scene.reflectance.values[:, -20:, -20:] = 5
    cloudy = truecolour(scene)
    assert (cloudy[-20:, -20:, :3] == 255).all()
    assert np.abs(cloudy[50:200, 50:200].astype(int) - plain[50:200, 50:200]).max() <= 1


def test_limits_are_percentiles_and_a_flat_channel_does_no_harm():
    pixels = np.stack([np.linspace(0, 100, 10_001).reshape(1, -1), np.full((1, 10_001), 7.0)]).astype(np.float32)
    limits = stretch_limits(pixels)
    assert limits[0] == pytest.approx([1, 99])
    assert limits[1, 0] < limits[1, 1]


def test_measurement_and_subject_share_one_stretch(make_scene, tmp_path):
    paths = write_quicklooks(with_subject(make_scene(bands=80), 0.5), tmp_path)
    assert set(paths) == {"truecolour", "truecolour_denoised", "swir", "swir_denoised", "thumbnail"}
    before, after = (read_png(paths[name]) for name in ("truecolour", "truecolour_denoised"))
    known = before[..., 3] > 0
    assert after[known][:, :3].mean() < 0.75 * before[known][:, :3].mean()


def test_a_scene_of_one_detector_shows_what_it_can(make_scene, tmp_path):
    scene = make_scene(bands=80)
    visible = write_quicklooks(scene.isel(band=scene.wavelength.values < 1000), tmp_path / "vnir")
    assert set(visible) == {"truecolour", "thumbnail"}
    narrow = write_quicklooks(scene.isel(band=scene.wavelength.values > 2300), tmp_path / "narrow")
    assert set(narrow) == {"grey", "thumbnail"}
    with pytest.raises(ValueError, match="no bands near"):
        truecolour(scene.isel(band=scene.wavelength.values > 2000))


def test_the_class_map_has_the_colours_of_its_legend(make_scene, tmp_path):
    scene = with_classes(make_scene())
    legend = class_legend(scene.classes.attrs)
    assert [(entry.value, entry.name) for entry in legend] == [(1, "water"), (2, "low_vegetation"), (7, "roof")]
    shown = class_map(scene)
    for entry in legend:
        assert (shown[scene.classes.values == entry.value] == (*entry.colour, 255)).all()
    assert (shown[scene.classes.values == 0, 3] == 0).all()
    own = class_legend(
        CLASSES | {"class_names": ["Water", "Low", "Roof"], "class_colours": ["#010203", "x", "#ffffff"]}
    )
    assert [(entry.name, entry.colour) for entry in own] == [
        ("Water", (1, 2, 3)),
        ("Low", (127, 127, 127)),
        ("Roof", (255, 255, 255)),
    ]
    paths = write_quicklooks(scene, tmp_path)
    assert np.array_equal(read_png(paths["classes"]), shown)
    assert paths["classes_legend"].stat().st_size > 1000


def test_there_are_colours_for_any_number_of_classes():
    legend = class_legend({"flag_values": list(range(1, 31)), "flag_meanings": "a b"})
    assert len(legend) == 30
    assert legend[2].name == "class 3"
    assert len({entry.colour for entry in legend}) == len(PALETTE)


def test_large_pictures_shrink_and_maps_keep_their_colours(tmp_path):
    random = np.random.default_rng(0)
    photo = random.integers(0, 255, (300, 600, 4), np.uint8)
    assert read_png(write_png(photo, tmp_path / "photo.png", 100)).shape == (50, 100, 4)
    coded = np.array([[255, 0, 0, 255], [0, 0, 255, 255]], np.uint8)[random.integers(0, 2, (300, 600))]
    small = read_png(write_png(coded, tmp_path / "map.png", 100))
    assert {tuple(pixel) for pixel in small.reshape(-1, 4)} == {(255, 0, 0, 255), (0, 0, 255, 255)}


def test_a_lazy_scene_gives_the_same_picture(make_scene):
    scene = make_scene(bands=80)
    assert np.array_equal(truecolour(scene.chunk({"y": 100, "x": 90})), truecolour(scene))
