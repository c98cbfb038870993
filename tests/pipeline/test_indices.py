"""Spectral indices: by the published formulas, on bands found by wavelength."""

import numpy as np
import pytest

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.quicklook import write_quicklooks
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.srf import SENSORS
from cubeloom.pipeline.stages import Indices
from cubeloom.pipeline.stages.indices_catalogue import catalogue, letters, standard_bands


@pytest.fixture
def fine(make_scene):
    """A scene of 6.5 nm bands over 420-2450 nm."""
    return make_scene(height=40, width=30, bands=310, background=0)


@pytest.fixture
def msi(fine):
    """The same seen by Sentinel-2A."""
    return cubeloom.resample_bands(fine, to="sentinel2a", max_uncovered=0.3)


def band(scene, number: int) -> np.ndarray:
    return scene["reflectance"].sel(band=number).values.astype(float)


def test_formulas_are_those_of_the_papers(msi):
    """Rouse et al. 1974; McFeeters 1996; Huete et al. 2002; Huete 1988 with L = 0.5; Gitelson and Merzlyak 1994."""
    found = cubeloom.indices(msi, names=["NDVI", "NDWI", "SAVI", "NDREI"], constants={"L": 0.5})
    blue, green, red, edge, near = (band(msi, number) for number in (2, 3, 4, 5, 8))
    expected = {
        "NDVI": (near - red) / (near + red),
        "NDWI": (green - near) / (green + near),
        "SAVI": 1.5 * (near - red) / (near + red + 0.5),
        "NDREI": (near - edge) / (near + edge),
    }
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name].values, values, rtol=2e-5, atol=1e-6)
    evi = cubeloom.indices(msi, names=["EVI"])["EVI"].values
    np.testing.assert_allclose(evi, 2.5 * (near - red) / (near + 6 * red - 7.5 * blue + 1), rtol=2e-4, atol=1e-5)


def test_multispectral_bands_stand_for_their_letters_untouched(msi):
    """Sentinel-2A's own centre for every letter that the catalogue gives it."""
    names = [letter for letter in letters() if letter not in ("T", "T1", "T2", "Y", "G1")]
    found = standard_bands(names, spec_of(msi))
    assert (found.matrix.max(axis=1) == 1).all()
    assert ((found.matrix > 0).sum(axis=1) == 1).all()
    centres = {response.name: response.wavelength for response in SENSORS["sentinel2a"]}
    order = {"A": "B1", "B": "B2", "G": "B3", "R": "B4", "RE1": "B5", "RE2": "B6", "RE3": "B7", "N": "B8", "N2": "B8A"}
    order |= {"WV": "B9", "S1": "B11", "S2": "B12"}
    assert dict(zip(found.letters, found.centres, strict=True)) == {name: centres[order[name]] for name in names}


def test_narrow_bands_are_integrated_over_the_standard_band(fine):
    """Against a sum over a Gaussian of Sentinel-2A's centre and width by hand."""
    found = standard_bands(["N", "R", "RE1"], spec_of(fine))
    wavelength = fine["wavelength"].values
    assert ((found.matrix > 0).sum(axis=1) > 2).all()
    cubes = found.cubes(fine["reflectance"].values)
    for name in found.letters:
        response = letters()[name].response
        steps = np.linspace(response.wavelength - 2 * response.fwhm, response.wavelength + 2 * response.fwhm, 2001)
        weight = np.exp(-4 * np.log(2) * ((steps - response.wavelength) / response.fwhm) ** 2)
        spectrum = fine["reflectance"].values[:, 7, 5].astype(float)
        expected = np.average(np.interp(steps, wavelength, spectrum), weights=weight)
        assert cubes[name][7, 5] == pytest.approx(expected, rel=0.02)


def test_without_the_broad_near_infrared_the_narrow_one_stands_in(msi):
    coarse = cubeloom.select_bands(msi, bands=[[4, 7], 9])  # as on the 20 m grid: B8A is the ninth
    found = standard_bands(["N"], spec_of(coarse))
    assert found.centres == (864.7,)


def test_masked_pixels_and_divisions_by_zero_have_no_index(msi):
    values = msi["reflectance"].values.copy()
    values[[3, 7], 2, 3] = 0  # red and near infrared: 0 / 0
    values[7, 4, 4] = np.nan
    values[[3, 7], 5, 5] = 0.2, -0.2  # x / 0
    changed = msi.assign(reflectance=msi["reflectance"].copy(data=values))
    valid = np.ones(values.shape[1:], bool)
    valid[9, 9] = False
    changed["valid"] = (("y", "x"), valid)
    ndvi = cubeloom.indices(changed, names=["NDVI"])["NDVI"].values
    missing = list(zip(*np.nonzero(~np.isfinite(ndvi)), strict=True))
    assert missing == [(2, 3), (4, 4), (5, 5), (9, 9)]
    assert not np.isinf(ndvi).any()


def test_it_is_lazy_and_stays_in_a_store(msi, tmp_path):
    found = lift(Indices(names=("NDVI",)))(msi.chunk())
    assert found["NDVI"].chunks is not None
    opened = cubeloom.open_scene(cubeloom.write_scene(found, tmp_path / "x.zarr"))
    np.testing.assert_array_equal(opened["NDVI"].values, found["NDVI"].values)
    assert opened["NDVI"].attrs["formula"] == "(N-R)/(N+R)"
    assert "N = band 8" in opened.attrs["history"]
    assert write_quicklooks(opened, tmp_path / "looks")["index_NDVI"].stat().st_size > 1000


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"names": ["NDVII"]}, "did you mean NDVI"),
        ({"names": ["ndvi"]}, "did you mean NDVI"),
        ({"names": ["kNDVI"]}, "unknown index"),
        ({"names": ["DpRVIVV"]}, "unknown index"),
        ({"names": ["NDVI", "NDVI"]}, "twice"),
        ({"names": ["SAVI"], "constants": {"L": float("nan")}}, "no finite number"),
    ],
)
def test_names_that_are_none_are_refused(msi, parameters, said):
    with pytest.raises(ConfigError, match=said):
        cubeloom.indices(msi, **parameters)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"names": ["NDVI"], "constants": {"L": 0.5}}, "constant 'L'"),
        ({"names": ["NIRvP"]}, "PAR"),
        ({"names": ["NSTv1"]}, "no usable band for T "),
    ],
)
def test_scenes_that_lack_what_a_formula_takes_are_refused(msi, parameters, said):
    with pytest.raises(InputError, match=said):
        cubeloom.indices(msi, **parameters)


def test_other_measurements_and_taken_names_are_refused(msi):
    radiance = msi.assign(reflectance=msi["reflectance"].assign_attrs(units="W m-2 sr-1 nm-1"))
    radiance = radiance.rename(reflectance="radiance").assign_attrs(measurement="radiance", subject="radiance")
    with pytest.raises(InputError, match="no reflectance"):
        cubeloom.indices(radiance, names=["NDVI"])
    with pytest.raises(InputError, match="already"):
        cubeloom.indices(cubeloom.indices(msi, names=["NDVI"]), names=["NDVI"])


def test_every_index_of_the_catalogue_computes_on_sentinel2_or_says_what_it_lacks(msi):
    spec = spec_of(cubeloom.select_bands(msi, good=True))
    lacking = set()
    for name in catalogue():
        try:
            Indices(names=(name,)).plan(spec)
        except InputError as error:
            lacking |= {name for said in ("needs a value", "no usable band") if said in str(error)}
    assert len(lacking) < 0.15 * len(catalogue())
    names = sorted(set(catalogue()) - lacking)
    found = cubeloom.indices(msi.isel(y=slice(0, 8), x=slice(0, 8)), names=names).compute()
    assert all(found[name].shape == (8, 8) for name in names)


def test_a_newer_formula_is_another_product():
    assert Indices(names=("NDVI",)).fingerprint()["formulas"] == {"NDVI": "(N-R)/(N+R)"}
