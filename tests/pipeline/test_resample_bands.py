"""Resampled bands are what the other sensor's responses would have measured, or an error."""

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from cubeloom.errors import InputError
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import Bands, validate_scene
from cubeloom.pipeline.srf import SENSORS, gaussians, read_table, weights
from cubeloom.pipeline.stages.resample_bands import ResampleBands

FINE = np.arange(300.0, 2700.0, 0.25)


def source_bands(step: float = 8.0, fwhm: float = 10.0, **changes: object) -> Bands:
    wavelength = np.arange(420.0, 2450.0, step)
    n = wavelength.size
    fields = {"detector": np.full(n, ""), "good": np.ones(n, bool), "preferred": np.ones(n, bool), **changes}
    return Bands(number=np.arange(1, n + 1), wavelength=wavelength, fwhm=np.full(n, fwhm), **fields)


def measured(spectrum: np.ndarray, wavelength: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """What Gaussian bands measure of a finely sampled spectrum, by brute force."""
    sigma = np.asarray(fwhm) / 2.3548200450309493
    response = np.exp(-0.5 * ((FINE - np.asarray(wavelength)[:, None]) / sigma[:, None]) ** 2)
    return (response * spectrum).sum(axis=1) / response.sum(axis=1)


@pytest.fixture
def scene(make_scene):
    """A scene with bands every 10 nm."""
    return make_scene(height=40, width=50, bands=204, background=10).assign_coords(good=("band", np.ones(204, bool)))


def test_own_bands_come_back_untouched(scene):
    made = lift(ResampleBands(wavelengths=tuple(scene.wavelength.values), fwhm=10.0))(scene).compute()
    np.testing.assert_array_equal(made.reflectance.values, scene.reflectance.values)


def test_a_linear_spectrum_gives_its_value_at_the_centre():
    source = source_bands()
    target = gaussians((500.3, 901.0, 1650.0), (3.0, 20.0, 150.0))
    line = (0.1 + source.wavelength / 5000)[:, None].astype(np.float32)
    np.testing.assert_allclose(
        weights(target, source).apply(line)[:, 0], 0.1 + np.array([500.3, 901, 1650]) / 5000, rtol=2e-6
    )


@pytest.mark.parametrize("fwhm", [12.0, 20.0, 60.0])
def test_the_target_sees_what_its_response_would_have_measured(fwhm):
    """Against integration of the true spectrum; the source's own blur must not be added to the target's."""
    spectrum = 0.3 + 0.2 * np.sin(FINE / 12.0)
    source = source_bands(step=4.0)
    centres = np.arange(600.0, 2300.0, 37.0)
    blurred = measured(spectrum, source.wavelength, source.fwhm)[:, None].astype(np.float32)
    made = weights(gaussians(centres, np.full(centres.size, fwhm)), source).apply(blurred)[:, 0]
    truth = measured(spectrum, centres, np.full(centres.size, fwhm))
    twice_blurred = measured(spectrum, centres, np.full(centres.size, np.hypot(fwhm, 10.0)))
    error = np.abs(made - truth).max()
    assert error < 4e-3
    assert error < 0.3 * np.abs(twice_blurred - truth).max()


def test_weights_are_a_mean_of_usable_bands():
    good = np.ones(254, bool)
    good[30:33] = False
    preferred = np.ones(254, bool)
    preferred[60] = False
    matrix = weights(SENSORS["sentinel2a"], source_bands(good=good, preferred=preferred)).matrix
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (matrix >= 0).all()
    assert not matrix[:, ~(good & preferred)].any()


def test_a_table_of_gaussians_has_their_centres_and_widths(tmp_path):
    centres, widths = np.array([560.0, 850.0]), np.array([35.0, 100.0])
    nm = np.arange(400.0, 1100.0)
    curves = np.exp(-0.5 * ((nm[:, None] - centres) / (widths / 2.35482)) ** 2)
    rows = ["nm;green;nir", *(";".join(map(str, (w, *row))) for w, row in zip(nm, curves, strict=True))]
    path = tmp_path / "srf.csv"
    path.write_text("\n".join(rows))
    table = read_table(path)
    assert [response.name for response in table] == ["green", "nir"]
    np.testing.assert_allclose([response.wavelength for response in table], centres, atol=0.05)
    np.testing.assert_allclose([response.fwhm for response in table], widths, atol=0.2)
    stage = ResampleBands(srf=path)
    assert stage.fingerprint()["srf"] != str(path)
    before = stage.fingerprint()
    path.write_text("\n".join(rows[:-1]))
    assert stage.fingerprint() != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nm,a\n400,1\n", "expected a header row"),
        ("nm,a\n400,1\n410\n", "row 3: 1 columns, the header has 2"),
        ("nm,a\n400,x\n410,1\n", "expected numbers"),
        ("nm,a\n410,1\n400,1\n", "must ascend"),
        ("um,a\n0.4,1\n0.41,1\n", "expected nanometres"),
        ("nm,a\n400,0\n410,0\n", "'a' has no positive response"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, text, message):
    (tmp_path / "srf.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "srf.csv")


def test_the_built_in_sensor_agrees_with_measured_responses(shared_data):
    """Centres and widths of the published Sentinel-2A responses, and EnMAP-like spectra seen through both."""
    table = [r for r in read_table(shared_data / "srf" / "srs_sentinel2a.csv") if r.name != "B10"]
    known = SENSORS["sentinel2a"]
    assert [r.name for r in table] == [r.name for r in known]
    np.testing.assert_allclose([r.wavelength for r in table], [r.wavelength for r in known], atol=0.8)
    np.testing.assert_allclose([r.fwhm for r in table], [r.fwhm for r in known], atol=3)
    source = source_bands()
    spectrum = (0.2 + 0.1 * np.sin(source.wavelength / 150))[:, None].astype(np.float32)
    np.testing.assert_allclose(
        weights(table, source).apply(spectrum), weights(known, source).apply(spectrum), atol=6e-3
    )


def test_what_the_scene_does_not_cover_is_an_error_or_nan(scene):
    gap = scene.assign_coords(good=("band", (scene.wavelength.values < 1500) | (scene.wavelength.values > 1750)))
    with pytest.raises(InputError, match=r"do not cover 1 of 12 target bands: B11 \(1613.7 nm"):
        lift(ResampleBands(to="sentinel2a"))(gap)
    made = lift(ResampleBands(to="sentinel2a", uncovered="nan"))(gap).compute()
    assert made.good.values.tolist() == [True] * 10 + [False, True]
    assert np.isnan(made.reflectance[10]).all()
    assert np.isfinite(made.reflectance[9, 20:, 20:]).all()
    with pytest.raises(InputError, match="do not cover 1 of 1"):
        lift(ResampleBands(wavelengths=(3000.0,), fwhm=10.0, uncovered="nan"))(scene)


def test_few_missing_values_are_made_up_for_and_many_are_not():
    source = source_bands()
    target = weights(gaussians((1000.0,), (100.0,)), source)
    flat = np.full((len(source), 3), 0.4, np.float32)
    order = np.argsort(np.abs(source.wavelength - 1000.0))
    weight = target.matrix[0, order]
    far = order[(weight > 0) & (weight < 0.01)][0]
    flat[far, 1] = np.nan
    flat[order[0], 2] = np.nan
    assert target.matrix[0, order[0]] > 0.05
    made = target.apply(flat)[0]
    np.testing.assert_allclose(made[:2], 0.4, rtol=1e-6)
    assert np.isnan(made[2])


def test_the_group_holds_the_subject_and_the_layers(scene):
    defect = xr.zeros_like(scene.reflectance, dtype=bool)
    valid = xr.ones_like(scene.quality, dtype=bool)
    valid[3:5, 12:14] = False
    made = lift(ResampleBands(to="sentinel2b"))(scene.assign(defect=defect, valid=valid)).compute()
    validate_scene(made)
    assert set(made.data_vars) == {"reflectance", "quality", "valid"}
    assert made.attrs["group"] == "sentinel2b"
    assert [made.attrs["band_names"][number] for number in ("8", "9", "10")] == ["B8", "B8A", "B9"]
    assert np.isnan(made.reflectance.values[:, ~valid.values]).all()
    xr.testing.assert_equal(made.quality, scene.quality)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "found none"),
        ({"to": "sentinel2a", "wavelengths": (500,), "fwhm": 10}, "found to, wavelengths"),
        ({"to": "sentinel9"}, "known: sentinel2a"),
        ({"wavelengths": (500, 600)}, "go together"),
        ({"wavelengths": (500, 600), "fwhm": (10,)}, "2 wavelengths but 1 fwhm"),
        ({"to": "sentinel2a", "group": "../x"}, "letters, digits"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(given, message):
    with pytest.raises(ValidationError, match=message):
        ResampleBands(**given)


def test_blocks_of_any_size_give_the_same(scene, run_in_blocks):
    holes = np.random.default_rng(3).random(scene.reflectance.shape) < 0.002
    holed = scene.assign(reflectance=scene.reflectance.where(~holes))
    stage = ResampleBands(to="sentinel2a")
    whole = run_in_blocks(holed, stage, 64)["reflectance"]
    assert np.isnan(whole[:, 20:, 20:]).any()
    for edge in (7, 16):
        np.testing.assert_array_equal(run_in_blocks(holed, stage, edge)["reflectance"], whole)
