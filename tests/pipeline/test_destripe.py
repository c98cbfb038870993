"""Destriping: known offsets go, landscapes stay, along image columns and along a rotated swath."""

import numpy as np
import pytest

from cubeloom.errors import InputError
from cubeloom.pipeline import metrics
from cubeloom.pipeline.blocks import measure_block, plan_chain, run_chain
from cubeloom.pipeline.grids import STATISTICS_BLOCK, tile
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.base import NO_STATS, add_stats
from cubeloom.pipeline.stages.destripe import Destripe, split_errors
from cubeloom.pipeline.stages.mask import Mask

BANDS, SHAPE = 40, (300, 140)


def process(scene, *stages, size=STATISTICS_BLOCK):
    """All variables that a chain of stages makes of a scene, in blocks of `size` px."""
    source = SceneSource(scene, spec_of(scene))
    specs, stats = plan_chain(source.spec, stages), [NO_STATS] * len(stages)
    for step, stage in enumerate(stages):
        for number in range(stage.passes):
            total = NO_STATS
            for core in tile(source.spec.shape, (STATISTICS_BLOCK, STATISTICS_BLOCK)):
                total = add_stats(total, measure_block(source, stages, specs, stats, core, step, number))
            stats[step] = stage.settle(total, stats[step], number, specs[step])
    made = {
        name: np.empty(specs[-1].sizes(name), variable.encoding.decoded_dtype)
        for name, variable in specs[-1].variables.items()
    }
    for core in tile(source.spec.shape, (size, size)):
        block = run_chain(source, stages, specs, stats, core)[-1]
        for name, array in made.items():
            array[(..., *core.slices)] = block[name]
    return made


def rough(random, shape, slope):
    """A random field whose power falls with spatial frequency, of variance 1."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal(shape)) * frequency**-slope, shape)
    return field / field.std()


@pytest.fixture
def plain(make_scene):
    """A scene of four fractal covers with edges, and little noise; no stripes."""
    random = np.random.default_rng(0)
    scene = make_scene(*SHAPE, bands=BANDS, background=30)
    at = np.linspace(0, 1, BANDS)
    spectra = np.stack([0.2 + 0.1 * np.sin(p + f * at) for p, f in random.uniform(1, 5, (4, 2))])
    fields = np.stack([rough(random, SHAPE, 1.4) + (rough(random, SHAPE, 1.6) > 0.5) for _ in range(4)])
    share = np.exp(fields) / np.exp(fields).sum(axis=0)
    cube = np.tensordot(spectra.T, share, 1) + random.normal(0, 0.002, (BANDS, *SHAPE))
    missing = np.isnan(scene["reflectance"].values)
    scene["reflectance"].values[:] = np.where(missing, np.nan, cube)
    return scene


def stripes(count, seed=1):
    """Offsets by band and column, their slow part taken out."""
    offsets = np.random.default_rng(seed).normal(0, 0.004, (BANDS, count))
    kernel = np.ones(25) / 25
    return offsets - np.stack([np.convolve(np.pad(row, 12, mode="reflect"), kernel, mode="valid") for row in offsets])


def across(azimuth):
    """Position across track of every pixel of a north-up grid, px."""
    rows, cols = np.indices(SHAPE)
    return cols * np.cos(np.radians(azimuth)) + rows * np.sin(np.radians(azimuth))


def judged(scene, made):
    """Error before, and after, against the scene without stripes; over its valid pixels and good bands."""
    good, valid = scene["good"].values, np.isfinite(scene["reflectance"].values[0])
    return metrics.rmse(scene["reflectance"].values[good], made["destriped"][good], valid)


def test_known_offsets_go(plain):
    striped = plain.copy(deep=True)
    striped["reflectance"].values[:] += stripes(SHAPE[1])[:, None]
    made = process(striped, Destripe(model="offset"))
    assert judged(plain, made) < 0.5 * judged(plain, {"destriped": striped["reflectance"].values})
    assert np.isnan(made["destriped"][~plain["good"].values]).all()
    assert np.isnan(made["destriped"][:, :30, :30]).all()
    np.testing.assert_array_equal(made["reflectance"], striped["reflectance"].values)


def test_known_gains_go_and_dark_pixels_keep_theirs(plain):
    plain["reflectance"].values[:, 100:130] *= 0.02
    gains = 5 * stripes(SHAPE[1])[:, None]
    striped = plain.copy(deep=True)
    striped["reflectance"].values[:] *= 1 + gains
    made = process(striped, Destripe())
    assert judged(plain, made) < 0.5 * judged(plain, {"destriped": striped["reflectance"].values})
    taken = (striped["reflectance"].values - made["destriped"])[plain["good"].values]
    assert np.abs(taken[:, 100:130]).max() < 0.05 * np.nanmax(np.abs(taken))


def test_a_single_bad_column_is_found_and_its_neighbours_stay(plain):
    striped = plain.copy(deep=True)
    striped["reflectance"].values[7, :, 100] += 0.01
    taken = striped["reflectance"].values - process(striped, Destripe(model="offset"))["destriped"]
    assert np.nanmean(taken[7, :, 100]) == pytest.approx(0.01, abs=0.002)
    taken[7, :, 100] = 0
    assert np.nanmax(np.abs(taken)) < 0.001


@pytest.mark.parametrize("model", ["gain", "offset"])
@pytest.mark.parametrize("azimuth", [None, 14.0, 194.0, 100.0])
def test_a_scene_without_stripes_stays_as_it_is(plain, azimuth, model):
    if azimuth is not None:
        plain.attrs["along_track_azimuth"] = azimuth
    made = process(plain, Destripe(model=model))
    assert judged(plain, made) < 1e-5


@pytest.mark.parametrize("azimuth", [14.0, 194.0, -11.0, 97.0])
def test_stripes_along_a_rotated_swath(plain, azimuth):
    position = across(azimuth)
    position -= position.min()
    offsets = stripes(int(position.max()) + 2)
    striped = plain.copy(deep=True)
    striped["reflectance"].values[:] += np.stack([np.interp(position, np.arange(row.size), row) for row in offsets])
    striped.attrs["along_track_azimuth"] = azimuth
    before = judged(plain, {"destriped": striped["reflectance"].values})
    assert judged(plain, process(striped, Destripe(model="offset"))) < 0.6 * before
    striped.attrs["along_track_azimuth"] = azimuth + 45
    assert judged(plain, process(striped, Destripe(model="offset"))) > 0.9 * before


def test_block_size_and_masked_numbers_do_not_show(plain):
    plain["reflectance"].values[:] += stripes(SHAPE[1])[:, None]
    plain.attrs["along_track_azimuth"] = 3.0
    expected = process(plain, Mask(), Destripe())
    for size in (300, 128, 71):
        np.testing.assert_array_equal(process(plain, Mask(), Destripe(), size=size)["destriped"], expected["destriped"])
    for junk in (np.inf, -32768.0, 1e30):
        plain["reflectance"].values[:, ~expected["valid"]] = junk
        np.testing.assert_array_equal(process(plain, Mask(), Destripe())["destriped"], expected["destriped"])


def test_a_column_that_is_missing_in_one_band(plain):
    striped = plain.copy(deep=True)
    striped["reflectance"].values[:] += stripes(SHAPE[1])[:, None]
    before = judged(plain, {"destriped": striped["reflectance"].values})
    striped["reflectance"].values[5, :, 60] = np.nan
    made = process(striped, Destripe(model="offset"))["destriped"]
    assert np.isnan(made[5, 30:, 60]).all()
    made[5, :, 60] = plain["reflectance"].values[5, :, 60]
    assert judged(plain, {"destriped": made}) < 0.5 * before


def test_split_is_the_gaussian_posterior():
    random = np.random.default_rng(0)
    bands, columns = 8, 4000
    landscape = random.normal(size=(bands, 3))
    scatter = landscape @ landscape.T + 0.01 * np.eye(bands)
    weight = np.where(np.arange(columns) % 2, 40.0, 160.0)
    truth = random.normal(0, np.linspace(0.05, 0.3, bands)[:, None], (bands, columns))
    rest = np.linalg.cholesky(scatter) @ random.normal(size=(bands, columns)) / np.sqrt(weight)
    offset, error = split_errors(truth + rest, weight, scatter)
    variance = np.diag(np.linspace(0.05, 0.3, bands) ** 2)
    for column in (0, 1, 2, 3):
        total = np.linalg.inv(variance + scatter / weight[column])
        expected = variance @ total @ (truth + rest)[:, column]
        np.testing.assert_allclose(offset[:, column], expected, atol=0.02)
        spread = np.sqrt(np.diag(variance - variance @ total @ variance))
        np.testing.assert_allclose(error[:, column], spread, rtol=0.15)
    assert np.abs((offset - truth) / error).mean() == pytest.approx(np.sqrt(2 / np.pi), rel=0.05)


def test_an_azimuth_that_is_no_number(plain):
    plain.attrs["along_track_azimuth"] = "north"
    with pytest.raises(InputError, match="'north'; expected degrees"):
        Destripe().plan(spec_of(plain))
