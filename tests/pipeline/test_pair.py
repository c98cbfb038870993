"""pair: a planted displacement is found, corrected where it is sure, and nothing is claimed that is not known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rasterio.warp import transform
from scipy.ndimage import fourier_shift, gaussian_filter

import cubeloom
from cubeloom.errors import InputError
from cubeloom.pipeline import memory
from cubeloom.pipeline.blocks import measure_block, plan_chain
from cubeloom.pipeline.coregister import compare, displacement, window_edge, windows
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import tile, whole
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import Bands, spec_of
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2
from cubeloom.pipeline.stages import Mask, Pair, Superres, add_stats
from cubeloom.pipeline.stages.base import NO_STATS

SIZE = {"height": 176, "width": 176, "clouds": 0.04}


@pytest.fixture(scope="module")
def enmap(tmp_path_factory) -> Path:
    return simulate_scene(tmp_path_factory.mktemp("enmap"), seed=11, n_vnir=40, n_swir=30, **SIZE).path


def settled(source, stages) -> dict:
    """What the last stage's pass over a scene settles to, and what it says of it."""
    specs = plan_chain(source.spec, stages)
    step, total = len(stages) - 1, NO_STATS
    for core in tile(source.spec.shape, (256, 256)):
        total = add_stats(total, measure_block(source, stages, specs, [{}] * len(stages), core, step, 0))
    stats = stages[step].settle(total, {}, 0, specs[step])
    return dict(stages[step].facts(stats, specs[step]))


def planted(shift, spec, epsg) -> tuple[float, float]:
    """East and north, m, on the scene's grid, of a shift in the guide's zone, which is turned against it."""
    a = spec.grid.affine
    middle = a * (spec.shape[1] / 2, spec.shape[0] / 2)
    there = transform(str(spec.grid.crs), f"EPSG:{epsg}", [middle[0]], [middle[1]])
    back = transform(f"EPSG:{epsg}", str(spec.grid.crs), [there[0][0] + shift[0]], [there[1][0] + shift[1]])
    return back[0][0] - middle[0], back[1][0] - middle[1]


@pytest.mark.parametrize(("shift", "zones"), [((-9, 9), 0), ((-30, 45), 1)])
def test_a_planted_displacement_is_found(enmap, shift, zones, tmp_path):
    """In both sensors' noise, under clouds that differ, in one UTM zone and across two; 0.3 px is 9 m."""
    source = open_source(enmap)
    epsg = source.spec.grid.crs.to_epsg() + zones
    guide = open_source(simulate_sentinel2(tmp_path, seed=11, epsg=epsg, shift=shift, **SIZE).path)
    pair = Pair(guide="s2")
    found = settled(with_guides(source, {"s2": pair.regridded(guide, source.spec)}), [Mask(), pair])
    east, north = planted(shift, source.spec, epsg)
    assert found["shift_right_px"] == pytest.approx(east / 30, abs=0.05)
    assert found["shift_down_px"] == pytest.approx(-north / 30, abs=0.05)
    assert found["shift_east_m"] == pytest.approx(east, abs=1.5)
    assert found["error_px"] < 0.05
    assert found["quality"] > 0.5
    assert found["windows"] > 15


def images(shape=(160, 160), noise=0.0, shift=(0.0, 0.0), seed=0):
    """Two images of one ground, the second displaced by a turn of its spectrum, each with noise of its own."""
    random = np.random.default_rng(seed)
    ground = gaussian_filter(random.normal(size=(3, *shape)), (0, 1.0, 1.0))
    ground /= ground.std()
    moved = np.stack([np.fft.ifft2(fourier_shift(np.fft.fft2(band), shift)).real for band in ground])
    return [(one + noise * random.normal(size=one.shape)).astype(np.float32) for one in (ground, moved)]


@pytest.mark.parametrize("shift", [(0.3, 0.0), (-0.17, 0.42), (1.5, -2.25)])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_any_fraction_of_a_pixel_is_found(shift, noise):
    one, other = images(noise=noise, shift=shift)
    core = whole(one.shape[1:])
    sums = compare(one, other, np.ones(core.shape, bool), core, 32, 4.0)
    found = displacement(sums, 32, 4.0)
    towards_zero = 0.02  # of windows that show a little other ground
    assert found.shift == pytest.approx(shift, abs=(0.03 if noise else 0.005) + towards_zero)
    assert found.windows == 81
    assert np.abs(np.subtract(found.shift, shift)).max() < 5 * found.error + 0.01 + towards_zero


def test_what_has_nothing_in_common_is_not_sure():
    one, other = images()[0], images(seed=5)[0]
    core = whole(one.shape[1:])
    found = displacement(compare(one, other, np.ones(core.shape, bool), core, 32, 3.0), 32, 3.0)
    stats = {
        "shift": np.array(found.shift),
        "error": np.array(found.error),
        "quality": np.array(found.quality),
        "windows": np.array(found.windows),
    }
    assert Pair(coregister="correct").shifts(stats) == {}


def test_windows_that_are_not_clear_do_not_count():
    one, other = images(shift=(0.3, 0.3))
    clear = np.ones((160, 160), bool)
    clear[:, 60:] = False
    core = whole((160, 160))
    sums = compare(one, other, clear, core, 32, 3.0)
    assert 0 < sums["windows"].sum() < len(windows(core, 32)) / 2
    other[:, :, 60:] = 1e6
    again = compare(one, other, clear, core, 32, 3.0)
    np.testing.assert_array_equal(sums["turns"], again["turns"])
    assert displacement(compare(one, other, np.zeros_like(clear), core, 32, 3.0), 32, 3.0) is None
    assert window_edge((1000, 1200)) == 64
    assert window_edge((100, 70)) == 16


@pytest.fixture
def scene(make_scene):
    return make_scene(height=280, width=150, bands=8)


@pytest.fixture
def guide(make_scene):
    """The same ground by another instrument: other noise, and two bands fewer."""
    other = make_scene(height=280, width=150, bands=8)
    other["reflectance"] = other.reflectance + np.random.default_rng(1).normal(0, 0.02, other.reflectance.shape).astype(
        np.float32
    )
    other.attrs |= {"sensor": "Sentinel-2A", "scene_id": "guide"}
    return other.isel(band=slice(0, 6))


def with_guide(scene, guide, pair):
    source = SceneSource(scene, spec_of(scene))
    return with_guides(source, {pair.guide: pair.regridded(SceneSource(guide, spec_of(guide)), source.spec)})


@pytest.mark.parametrize("coregister", ["off", "report", "correct"])
def test_blocks_of_any_size_publish_the_guide_that_python_gives(scene, guide, coregister, tmp_path, monkeypatch):
    pair = Pair(guide="s2", coregister=coregister, refine=2)
    moved = guide.assign_coords(x=guide.x + 9.0)
    moved.spatial_ref.attrs.pop("GeoTransform", None)
    lazy = cubeloom.pair(cubeloom.mask(scene), moved, guide="s2", coregister=coregister, refine=2)
    by_hand = cubeloom.open_scene(cubeloom.write_scene(lazy, tmp_path / "lazy.zarr"))
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(with_guide(scene, moved, pair), [Mask(), pair], tmp_path / "batch.zarr", overwrite=True)
        made = cubeloom.open_scene(tmp_path / "batch.zarr", group="s2")
        for name in made.data_vars:
            np.testing.assert_array_equal(made[name].values, by_hand[name].values, f"{name}, blocks of {edge} px")
    native = cubeloom.open_scene(tmp_path / "batch.zarr")
    np.testing.assert_allclose(native.reflectance, scene.reflectance, atol=6e-5)
    assert made.attrs["scene_id"] == "guide"
    assert "brought onto the grid of scene-0" in made.attrs["history"]


def test_a_guide_that_is_not_published_leaves_no_trace(scene, guide, tmp_path):
    pair = Pair(guide="s2", publish=False, coregister="off")
    run_to_store(with_guide(scene, guide, pair), [pair], tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr" / "s2").exists()
    assert "pair: s2 is guide, 0.0 hours later" in cubeloom.open_scene(tmp_path / "out.zarr").attrs["history"]


def test_what_cannot_be_compared_is_refused(scene, guide):
    pair = Pair(guide="s2")
    source = with_guide(scene, guide, pair)
    seen = source.spec.guides["s2"]
    radar = replace(seen, bands=_bands(np.array([5.5e7, 5.5e7])))
    with pytest.raises(InputError, match=r"cover none of those of guide.*coregister: off"):
        pair.plan(replace(source.spec, guides={"s2": radar}))
    assert (
        Pair(guide="s2", coregister="off").plan(replace(source.spec, guides={"s2": radar})).guides["s2"].group == "s2"
    )
    with pytest.raises(InputError, match="put pair before"):
        plan_chain(source.spec, [Superres(scale=2), pair])
    with pytest.raises(ValidationError, match="must begin with a letter"):
        Pair(guide="overviews")


def _bands(wavelength) -> Bands:
    count = len(wavelength)
    every = np.ones(count, bool)
    return Bands(np.arange(1, count + 1), wavelength, wavelength / 100, np.full(count, ""), every, every)


def test_what_chooses_a_guide_is_not_what_a_product_is_made_of():
    assert Pair(days=1).fingerprint() == Pair(days=9, sensors=("Sentinel-2",), min_overlap=0.9).fingerprint()
    assert Pair(max_shift=2).fingerprint() != Pair().fingerprint()
