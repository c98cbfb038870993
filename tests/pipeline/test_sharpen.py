"""sharpen: truth is met, the sensor would measure the same again, and no block or cloud shows where it should not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

import cubeloom
from cubeloom.errors import InputError
from cubeloom.pipeline import memory, metrics
from cubeloom.pipeline.blocks import measure_block, plan_chain
from cubeloom.pipeline.degrade import degrade
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import whole
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import refined, regridded
from cubeloom.pipeline.scene import QUALITY_FLAGS, Bands, scene_from, spec_of
from cubeloom.pipeline.srf import SENSORS, weights
from cubeloom.pipeline.stages import Gate, Mask, Pair, Sharpen, Superres
from cubeloom.pipeline.stages.sharpen_hysure import _spread
from cubeloom.pipeline.stages.sharpen_network import SAMPLES, answer, learn
from cubeloom.pipeline.stages.superres import refine

METHODS = ("gsa", "cnmf", "hysure", "network")
SHAPE = (150, 100)
FACTOR = 3
S2_10M = [band for band in SENSORS["sentinel2a"] if band.name in ("B2", "B3", "B4", "B8")]
CLOUD = (slice(200, 260), slice(150, 190))
LOST = (slice(40, 47), slice(80, 84))


def bands_of(wavelength, fwhm) -> Bands:
    every = np.ones(len(wavelength), bool)
    return Bands(np.arange(1, len(wavelength) + 1), wavelength, fwhm, np.full(len(wavelength), "vnir"), every, every)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Fields of six materials whose amounts vary, `(band, y, x)` at the guide's resolution."""
    random = np.random.default_rng(3)
    shape = tuple(FACTOR * size for size in SHAPE)
    fields = np.stack([gaussian_filter(random.normal(size=shape), 5) for _ in range(6)])
    share = np.where(np.argmax(fields, axis=0) == np.arange(6)[:, None, None], 1.0, 0.05)
    share *= 1 + 0.3 * np.stack([gaussian_filter(random.normal(size=shape), 1.5) for _ in range(6)])
    steps = np.linspace(0, 1, 24)
    spectra = np.stack([0.1 + 0.4 * np.exp(-(((steps - at) / 0.3) ** 2)) for at in random.random(6)], axis=1)
    return np.tensordot(spectra, share, axes=1).astype(np.float32)


@pytest.fixture(scope="module")
def scene(truth, make_scene) -> xr.Dataset:
    random = np.random.default_rng(4)
    cube = degrade(truth, FACTOR, 0.3) + random.normal(0, 5e-4, (24, *SHAPE)).astype(np.float32)
    cube[:, LOST[0], LOST[1]] = np.nan
    like = spec_of(make_scene(height=SHAPE[0], width=SHAPE[1], bands=24))
    bands = bands_of(np.linspace(430, 950, 24), np.full(24, 25.0))
    bands.good[11] = False
    spec = replace(like, bands=bands, variables={k: like.variables[k] for k in ("reflectance", "quality")})
    return scene_from(spec, {"reflectance": cube, "quality": np.zeros(SHAPE, np.uint32)})


@pytest.fixture(scope="module")
def guide(truth, scene) -> xr.Dataset:
    like = spec_of(scene)
    seen = weights(S2_10M, bands_of(like.bands.wavelength, like.bands.fwhm)).apply(truth)
    seen += np.random.default_rng(5).normal(0, 1e-3, seen.shape).astype(np.float32)
    seen[(slice(None), *CLOUD)] = 3.0
    quality = np.zeros(seen.shape[1:], np.uint32)
    quality[CLOUD] = QUALITY_FLAGS["cloud"]
    bands = bands_of(np.array([band.wavelength for band in S2_10M]), np.array([band.fwhm for band in S2_10M]))
    grid = refined(like.grid, FACTOR)
    spec = replace(like, scene_id="guide", sensor="Sentinel-2A", bands=bands, grid=grid)
    return scene_from(spec, {"reflectance": seen, "quality": quality})


@pytest.fixture(scope="module")
def lazy(scene, guide) -> dict[str, xr.Dataset]:
    return {
        method: cubeloom.sharpen(cubeloom.mask(scene), guide, method=method, endmembers=6).load() for method in METHODS
    }


def paired(scene, guide):
    source = SceneSource(scene, spec_of(scene))
    return with_guides(source, {"guide": regridded(SceneSource(guide, spec_of(guide)), source.spec)})


def inner(image):
    return image[..., 12:-12, 12:-12]


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_any_size_and_a_lifted_stage_give_the_same(method, scene, guide, lazy, tmp_path, monkeypatch):
    by_hand = cubeloom.open_scene(cubeloom.write_scene(lazy[method], tmp_path / "lazy.zarr"))
    stages = [Mask(), Sharpen(method=method, endmembers=6)]
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 128)  # a lifted stage takes blocks of 256 px
    run_to_store(paired(scene, guide), stages, tmp_path / "batch.zarr", overwrite=True)
    made = cubeloom.open_scene(tmp_path / "batch.zarr", group="x3")
    for name in made.data_vars:
        np.testing.assert_array_equal(made[name].values, by_hand[name].values, name)


@pytest.mark.parametrize("method", METHODS)
def test_it_comes_nearer_to_the_truth_than_interpolation_and_says_what_was_measured(method, scene, truth, lazy):
    good = scene.good.values
    made = lazy[method].sharpened.values
    cubic = refine(scene.reflectance.values, np.isfinite(scene.reflectance.values[0]), FACTOR)
    known = inner(np.isfinite(made[good]).all(axis=0) & (lazy[method].quality.values == 0))
    scores = [metrics.psnr(inner(truth)[good], inner(cube)[good], 1.0, known) for cube in (made, cubic)]
    assert scores[0] > scores[1] + 3
    again = degrade(made[good], FACTOR, 0.3)
    both = np.isfinite(again).all(axis=0) & np.isfinite(scene.reflectance.values[good]).all(axis=0)
    assert metrics.sam(scene.reflectance.values[good], again, both) < 1


@pytest.mark.parametrize("method", METHODS)
def test_corner_flags_and_history(method, scene, lazy):
    made, spec = lazy[method], spec_of(lazy[method])
    assert (spec.group, spec.scale, spec.subject, spec.measurement) == ("x3", 3, "sharpened", "sharpened")
    assert made.odc.crs == scene.odc.crs
    a, b = spec.grid.affine, spec_of(scene).grid.affine
    assert (a.c, a.f, a.a * 3, a.e * 3) == (b.c, b.f, b.a, b.e)
    assert "sharpen: reflectance x3 by " + method + ", with 4 bands of guide" in made.history
    values = made.sharpened.values
    lost = tuple(slice(3 * part.start, 3 * part.stop) for part in LOST)
    assert np.isnan(values[(slice(None), *lost)]).all()
    assert np.isnan(values[11]).all()
    assert np.isfinite(values[0]).sum() == values[0].size - 9 * 7 * 4
    assert ((made.quality.values[CLOUD] & QUALITY_FLAGS["reduced_quality"]) != 0).all()
    assert (made.quality.values != 0).mean() < 0.04


@pytest.mark.parametrize("method", METHODS)
def test_what_stands_under_a_cloud_of_the_guide_does_not_matter(method, scene, guide, lazy):
    other = guide.copy(deep=True)
    other.reflectance.values[(slice(None), *CLOUD)] = np.nan
    made = cubeloom.sharpen(cubeloom.mask(scene), other, method=method, endmembers=6)
    np.testing.assert_array_equal(made.sharpened.values, lazy[method].sharpened.values)


def test_a_network_answers_what_it_can_learn_and_nothing_where_that_is_worth_nothing():
    random = np.random.default_rng(6)
    features = random.normal(size=(SAMPLES**2, 4))
    answers = np.stack([features[:, 0] * features[:, 1], random.normal(size=len(features))], axis=1)
    pixels, sized = np.concatenate([features, answers], axis=1), {"unmix": np.zeros((2, 9))}
    learnt, again = learn(pixels, sized), learn(pixels, sized)
    assert all(np.array_equal(learnt[name], again[name]) for name in learnt)
    assert learnt["worth"][0] > 0.8 > 0.2 > learnt["worth"][1]
    fresh = random.normal(size=(4, 50, 50)).astype(np.float32)
    made, product = answer(fresh, learnt), fresh[0] * fresh[1]
    assert np.var(made[0] - product) < 0.3 * np.var(product)
    assert np.var(made[1]) < 0.05
    few = learn(pixels[:500], sized)
    assert few["learnt"] == 0
    assert not few["worth"].any()


def test_what_cannot_be_is_told(scene, guide):
    spec = paired(scene, guide).spec
    coarse = replace(spec.guides["guide"], scale=1, grid=spec.grid)
    with pytest.raises(InputError, match=r"grid 1 times finer; expected a whole number from 2"):
        Sharpen().plan(replace(spec, guides={"guide": coarse}))
    radar = replace(spec.guides["guide"], bands=bands_of(np.full(4, 5.5e7), np.full(4, 1e5)))
    with pytest.raises(InputError, match="cover none of those of guide"):
        Sharpen().plan(replace(spec, guides={"guide": radar}))
    blind = guide.copy(deep=True)
    blind.reflectance.values[:] = np.nan
    with pytest.raises(InputError, match=r"sharpen with guide: 0 pixels have a value in all 27 bands"):
        cubeloom.sharpen(scene, blind).load()


def test_the_adjoint_is_that_of_the_degradation():
    random = np.random.default_rng(0)
    fine, coarse = random.random((30, 36)), random.random((10, 12)).astype(np.float32)
    fine[:6], fine[-6:], fine[:, :6], fine[:, -6:] = 0, 0, 0, 0
    padded = np.pad(fine, 15).astype(np.float32)[
        None
    ]  # weights that fall off an edge are shared out by the degradation
    seen = degrade(padded, 3, 0.3)[0][5:-5, 5:-5]
    assert np.vdot(seen, coarse) == pytest.approx(np.vdot(fine, _spread(coarse, 3, 0.3)), rel=1e-4)


class TestGate:
    def run(self, scene, guide, out, *stages):
        pair = Pair(publish=False, coregister="off")
        run_to_store(paired(scene, guide), [Mask(), pair, *stages], out)
        return cubeloom.open_scene(out, group="x3")

    def test_a_faithful_product_passes_with_its_numbers(self, scene, guide, lazy, tmp_path):
        made = self.run(scene, guide, tmp_path / "out.zarr", Sharpen(), Gate())
        assert "gate: SAM 1 deg" in made.history
        facts = json.loads((tmp_path / "out.zarr/_COMMIT.json").read_text())["facts"]
        good = scene.good.values
        again = degrade(made.sharpened.values[good], FACTOR, 0.3)
        measured = scene.reflectance.values[good]
        both = np.isfinite(again).all(axis=0) & np.isfinite(measured).all(axis=0)
        assert facts["gate"]["sam_deg"] == pytest.approx(metrics.sam(measured, again, both), rel=1e-3)
        level = measured[:, both].mean()
        rmse = np.sqrt(np.mean((again - measured)[:, both] ** 2)) / level
        assert facts["gate"]["rmse"] == pytest.approx(rmse, rel=1e-3)
        assert facts["gate"]["pixels"] == both.sum()
        assert facts["gate"]["drift_ndvi"] < 0.01
        assert facts["sharpen"]["guide"] == "guide"
        assert 0.9 < facts["sharpen"]["share_of_scene"] < 1

    def test_another_product_fails_and_every_number_is_told(self, scene, guide, tmp_path):
        with pytest.raises(InputError, match=r"sharpened does not say.*sam_deg 0\.\d+, at most 0.001; rmse .*at most"):
            self.run(scene, guide, tmp_path / "out.zarr", Sharpen(rounds=0), Gate(max_sam=1e-3, max_rmse=1e-3))
        assert not (tmp_path / "out.zarr").exists()

    def test_a_cube_on_the_scenes_own_grid_is_compared_with_the_measurement(self, scene):
        with pytest.raises(InputError, match="put gate after a step that makes a cube"):
            plan_chain(spec_of(scene), [Gate()])
        altered = scene.assign(altered=(scene.reflectance * 1.05).assign_attrs(scene.reflectance.attrs))
        altered.attrs["subject"] = "altered"
        with pytest.raises(InputError, match=r"altered does not say what was measured: shift 0\.0[5-9]"):
            settled(Gate(), altered)
        assert settled(Gate(max_shift=0.2), altered)["sam_deg"] < 1e-3

    def test_in_python_a_finer_cube_is_refused(self, scene):
        with pytest.raises(InputError, match="is not at hand"):
            settled(Gate(), cubeloom.superres(scene, scale=2))

    def test_any_refined_grid_is_compared_with_what_it_came_from(self, scene, tmp_path):
        gate = Gate(max_sam=90, max_shift=1, max_rmse=1, max_drift=1)
        run_to_store(SceneSource(scene, spec_of(scene)), [Superres(scale=2), gate], tmp_path / "out.zarr")
        strict = Gate(max_sam=0.01)
        with pytest.raises(InputError, match="sam_deg"):
            run_to_store(SceneSource(scene, spec_of(scene)), [Superres(scale=2), strict], tmp_path / "no.zarr")


def settled(gate, scene):
    source = SceneSource(scene, spec_of(scene))
    specs = plan_chain(source.spec, [gate])
    sums = measure_block(source, [gate], specs, [{}], whole(source.spec.shape), 0, 0)
    return gate.settle(sums, {}, 0, specs[0])
