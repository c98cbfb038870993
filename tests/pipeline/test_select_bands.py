"""select_bands keeps the bands asked for, in every variable that has bands, and touches nothing else."""

import numpy as np
import pytest
import xarray as xr

from cubeloom.errors import InputError
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import validate_scene
from cubeloom.pipeline.stages.select_bands import SelectBands


@pytest.fixture
def scene(make_scene):
    scene = make_scene(height=70, width=60, bands=24)
    overlap = np.isin(np.arange(24), [9, 10])
    defect = np.random.default_rng(1).random(scene.reflectance.shape) < 0.1
    return scene.assign_coords(preferred=("band", ~overlap)).assign(defect=(("band", "y", "x"), defect))


CASES = {
    "ranges": (
        SelectBands(wavelengths=((420, 700), (2000, 2500))),
        lambda s: (s.wavelength <= 700) | (s.wavelength >= 2000),
    ),
    "numbers": (SelectBands(bands=(3, (7, 12), 24)), lambda s: s.band.isin([3, *range(7, 13), 24])),
    "detector": (SelectBands(detector="SWIR"), lambda s: s.detector == "swir"),
    "good": (SelectBands(good=True), lambda s: s.good),
    "preferred": (SelectBands(preferred=True), lambda s: s.preferred),
    "water vapour": (
        SelectBands(drop=("water_vapour",)),
        lambda s: ~s.wavelength.isin([w for w in s.wavelength.values if 1350 <= w <= 1460 or 1800 <= w <= 1960]),
    ),
    "all of several": (SelectBands(detector="vnir", preferred=True), lambda s: (s.detector == "vnir") & s.preferred),
}


@pytest.mark.parametrize(("stage", "wanted"), CASES.values(), ids=CASES)
def test_bands_that_meet_every_condition_stay(scene, stage, wanted):
    made = lift(stage)(scene).compute()
    validate_scene(made)
    kept = wanted(scene).values
    assert 0 < kept.sum() < 24
    expected = scene.isel(band=kept)
    for name in ("reflectance", "defect", "quality", "wavelength", "fwhm", "detector", "good", "preferred", "band"):
        xr.testing.assert_equal(made[name], expected[name])
    assert made.attrs["subject"] == made.attrs["measurement"] == "reflectance"
    assert "group" not in made.attrs


def test_nothing_left_is_an_error_that_says_what_there_was(scene):
    with pytest.raises(InputError, match=r"no band meets all of: wavelengths .*24 bands, band 1 \(vnir, 420.0 nm\)"):
        lift(SelectBands(wavelengths=((3000, 4000),)))(scene)


def test_without_a_condition_it_says_that_it_does_nothing():
    assert SelectBands().skipped
    assert not SelectBands(good=True).skipped


@pytest.mark.parametrize("stage", [CASES["numbers"][0], CASES["detector"][0]])
def test_blocks_of_any_size_give_the_same(scene, stage, run_in_blocks):
    whole = run_in_blocks(scene, stage, 70)
    for edge in (13, 32):
        parts = run_in_blocks(scene, stage, edge)
        assert all(np.array_equal(parts[n], whole[n], equal_nan=parts[n].dtype.kind == "f") for n in whole)
