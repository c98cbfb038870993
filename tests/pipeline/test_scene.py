"""The Scene contract: what is written down of a Scene comes back, and every breach is named."""

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError
from cubeloom.pipeline.scene import spec_of, validate_scene


def test_a_spec_holds_all_of_a_scene_but_its_pixels(make_scene):
    scene = make_scene()
    spec = spec_of(scene)
    assert spec.shape == (300, 280)
    assert spec.grid.crs.to_epsg() == 32633
    assert tuple(spec.grid.affine)[:6] == (30, 0, 500_010, 0, -30, 5_800_020)
    assert np.array_equal(spec.bands.wavelength, scene.wavelength.values)
    assert spec.attrs == {"sun_elevation": 55.0}
    assert spec.variables["quality"].attrs["flag_meanings"].startswith("background water cloud")


def test_validation_reads_no_pixels(make_scene):
    import dask.array as da

    scene = make_scene()

    def explode(*_):
        raise AssertionError("a pixel was read")

    lazy = da.map_blocks(explode, da.zeros(scene.reflectance.shape, chunks=100), dtype=np.float32, meta=np.empty(0))
    validate_scene(scene.assign(reflectance=(scene.reflectance.dims, lazy, scene.reflectance.attrs)))


def shuffled(scene: xr.Dataset) -> xr.Dataset:
    return scene.isel(band=[1, 0, *range(2, scene.sizes["band"])])


@pytest.mark.parametrize(
    ("breach", "message"),
    [
        (lambda s: s.drop_vars("wavelength"), "'wavelength' on 'band' is missing"),
        (lambda s: s.assign_coords(wavelength=s.wavelength / 1000), "micrometres"),
        (shuffled, "must ascend: band 2 at 604.5 nm stands before band 1 at 420.0 nm"),
        (lambda s: s.assign_coords(fwhm=s.fwhm * 0), "band 1 has a fwhm of 0; expected nanometres above zero"),
        (lambda s: s.drop_vars("reflectance"), "'measurement' names 'reflectance'"),
        (lambda s: s.transpose("y", "x", "band"), "dimensions"),
        (lambda s: s.drop_vars("time"), "'time'"),
        (lambda s: s.assign(reflectance=s.reflectance.assign_attrs(units="percent")), "units 'percent'"),
        (lambda s: s.drop_attrs(deep=False), "'scene_id' is missing"),
    ],
)
def test_every_breach_is_named(make_scene, breach, message):
    with pytest.raises(InputError, match=message):
        validate_scene(breach(make_scene(height=20, width=20)))


NO_WIDTHS = [0.0, -1.0, np.nan, np.inf, -np.inf]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    at=st.integers(0, 11),
    name=st.sampled_from(["wavelength", "fwhm"]),
    value=st.sampled_from(NO_WIDTHS) | st.floats(max_value=0),
)
def test_a_band_that_cannot_be_is_named(make_scene, at, name, value):
    scene = make_scene(height=4, width=4)
    numbers = scene[name].values.copy()
    numbers[at] = value
    broken = scene.assign_coords({name: ("band", numbers)})
    with pytest.raises(InputError, match=rf"band {at + 1} has .*expected nanometres"):
        validate_scene(broken)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(order=st.permutations(range(12)))
def test_bands_out_of_order_are_named(make_scene, order):
    scene = make_scene(height=4, width=4).isel(band=order)
    if list(order) == sorted(order):
        validate_scene(scene)
        return
    first = next(at for at in range(11) if order[at] > order[at + 1])
    with pytest.raises(InputError, match=rf"must ascend: band {order[first] + 1} at .* band {order[first + 1] + 1} at"):
        validate_scene(scene)


def test_a_subset_keeps_its_place(make_scene):
    """Slicing with xarray leaves the old GeoTransform in spatial_ref: the coordinates win."""
    part = spec_of(make_scene().isel(y=slice(10, 50), x=slice(20, 60)))
    assert part.grid == GeoBox((40, 40), Affine(30, 0, 500_610, 0, -30, 5_799_720), "EPSG:32633")
    coarse = spec_of(make_scene().isel(y=slice(None, None, 2), x=slice(None, None, 2)))
    assert coarse.grid.affine.a == 60
