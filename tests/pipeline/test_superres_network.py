"""superres by a network: its tiles leave no trace, its bands find their places, its grid is right to the corner."""

import numpy as np
import pytest
import torch

from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.cards import InputBands
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.regrid import refined
from cubeloom.pipeline.scene import spec_of, validate_scene
from cubeloom.pipeline.stages import Classify
from cubeloom.pipeline.stages.superres import Superres
from cubeloom.pipeline.stages.superres_network import folded, unfolded
from cubeloom.pipeline.tiles import Axis, Lattice, Tiling

BANDS = 5


@pytest.fixture
def good_scene(make_scene):
    """Make a scene all of whose bands are good."""

    def make(height, width, bands, background=0):
        scene = make_scene(height=height, width=width, bands=bands + 1, background=background)
        return scene.isel(band=np.flatnonzero(np.arange(bands + 1) != bands - 1))

    return make


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Save a small network with weights that are not near zero; gives its file."""

    def make(scene, family="essaformer_x2", seen=BANDS, given=True, tile=48, **settings):
        torch.manual_seed(7)
        settings = {"bands": seen, "width": 18 if family.endswith("3") else 8, "statistics": "running", **settings}
        network = create_model(family, **settings)
        for name, value in network.state_dict().items():
            if name.endswith(("power", "scatter")):
                value.copy_(torch.rand_like(value) * 0.3 + 0.05)
            elif value.ndim == 4:
                value.normal_(std=(2.0 / value[0].numel()) ** 0.5)
        spec = spec_of(scene)
        fields = {"name": f"{family}.test", "tag": "test", "tile": tile, "halo": 4, "units": "1"}
        if given:
            fields |= {
                "input_bands": InputBands(
                    numbers=tuple(int(one) for one in spec.bands.number[:seen]),
                    wavelengths_nm=tuple(spec.bands.wavelength[:seen].tolist()),
                    fwhm_nm=tuple(spec.bands.fwhm[:seen].tolist()),
                ),
                "mean": tuple(np.linspace(0.1, 0.3, seen).tolist()),
                "std": tuple(np.linspace(0.05, 0.2, seen).tolist()),
            }
        path = tmp_path_factory.mktemp("weights") / f"{family}.test.safetensors"
        save_model(network, path, model_card(family, **settings).model_copy(update=fields))
        return str(path)

    return make


def run(scene, **parameters):
    """The stage over a scene."""
    return lift(Superres(**parameters))(scene).compute()


def by_hand(path, family, cube, mean, std):
    """The network over the whole cube at once, as trained."""
    with torch.no_grad():
        seen = torch.from_numpy((cube - mean) / std).float()[None]
        return create_model(family, path)(seen)[0].numpy() * std + mean


@pytest.mark.parametrize(("family", "scale"), [("essaformer_x2", 2), ("essaformer_x3", 3)])
def test_three_sizes_of_tiles_give_the_same(good_scene, weights, family, scale):
    scene = good_scene(height=95, width=70, bands=BANDS)
    path = weights(scene, family)
    whole, *others = (run(scene, model=path, tile=tile).superresolved.values for tile in (0, 48, 64))
    span = float(np.ptp(whole))
    for other in others:
        assert np.abs(other - whole).max() < 1e-4 * span
    mean, std = (np.linspace(*ends, BANDS, dtype=np.float32)[:, None, None] for ends in ((0.1, 0.3), (0.05, 0.2)))
    expected = by_hand(path, family, scene.reflectance.values, mean, std)
    np.testing.assert_allclose(whole, expected, atol=1e-5 * span)
    assert whole.shape == (BANDS, 95 * scale, 70 * scale)


def test_tiles_of_the_published_attention_are_the_cards(good_scene, weights):
    """They do change the product, and so the card alone says how large they are."""
    scene = good_scene(height=60, width=60, bands=BANDS)
    made = [
        run(scene, model=weights(scene, statistics="tile", tile=tile)).superresolved.values for tile in (32, 40, 60)
    ]
    assert np.abs(made[0] - made[2]).max() > 1e-3 * np.ptp(made[2])
    path = weights(scene, statistics="tile", tile=32)
    with pytest.raises(ConfigError, match=r"tile 64; what this network makes of a pixel depends on the tile"):
        run(scene, model=path, tile=64)
    assert list(Superres(model=path).smaller(spec_of(scene))) == []
    free = Superres(model=weights(scene, tile=56))
    assert [stage.tile for stage in free.smaller(spec_of(scene))] == [48, 32]


def test_the_finer_scene_is_a_scene(good_scene, weights):
    scene = good_scene(height=64, width=50, bands=BANDS, background=7)
    path = weights(scene)
    made = run(scene, model=path)
    validate_scene(made)
    spec, before = spec_of(made), spec_of(scene)
    assert (spec.group, spec.scale, spec.measurement, spec.subject) == ("x2", 2, "superresolved", "superresolved")
    assert spec.grid == refined(before.grid, 2)
    assert spec.grid.boundingbox == before.grid.boundingbox
    np.testing.assert_array_equal(made.quality.values, np.kron(scene.quality.values, np.ones((2, 2), np.uint32)))
    background = np.kron(scene.quality.values == 1, np.ones((2, 2), bool))
    np.testing.assert_array_equal(
        np.isnan(made.superresolved.values), np.broadcast_to(background, made.superresolved.shape)
    )
    assert model_card(path).sha256[:8] in spec.history[-1]
    assert made.superresolved.attrs["model_sha256"] == model_card(path).sha256


def test_masked_pixels_are_never_seen(good_scene, weights):
    scene = good_scene(height=40, width=40, bands=BANDS)
    masked = np.zeros((40, 40), bool)
    masked[10:20, 5:30] = True
    scene = scene.assign(valid=(("y", "x"), ~masked))
    path = weights(scene)
    made = [
        run(scene.assign(reflectance=scene.reflectance.where(~masked, junk)), model=path).superresolved.values
        for junk in (np.nan, 50.0)
    ]
    np.testing.assert_array_equal(*made)
    np.testing.assert_array_equal(np.isnan(made[0][0]), np.kron(masked, np.ones((2, 2), bool)))


def test_bands_that_the_network_does_not_know_are_nan(good_scene, weights):
    scene = good_scene(height=30, width=30, bands=BANDS + 2)
    path = weights(scene)
    made = run(scene, model=path).superresolved.values
    assert np.isnan(made[BANDS:]).all()
    alone = run(scene.isel(band=slice(BANDS)), model=path).superresolved.values
    np.testing.assert_array_equal(made[:BANDS], alone)


def test_groups_of_bands_are_blended_along_the_spectrum(good_scene, weights):
    scene = good_scene(height=30, width=32, bands=9)
    path = weights(scene, seen=4, given=False)
    made = run(scene, model=path).superresolved.values
    cube = scene.reflectance.values
    top = max(np.quantile(band, 0.999) for band in cube)
    total, share = np.zeros((9, 60, 64)), np.zeros((9, 1, 1))
    axis = Axis.of(9, 4, 2)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        total[start : start + 4] += weight[:, None, None] * by_hand(
            path, "essaformer_x2", cube[start : start + 4], 0, top
        )
        share[start : start + 4] += weight[:, None, None]
    np.testing.assert_allclose(share, 1, atol=1e-6)
    assert np.abs(made - total).max() < 0.02 * np.ptp(total)  # the largest value is read off a histogram
    with pytest.raises(InputError, match=r"3 good bands of 3, the network takes 4 at once"):
        run(scene.isel(band=slice(3)), model=path)


def test_what_does_not_fit_is_told(good_scene, weights):
    scene = good_scene(height=30, width=30, bands=BANDS)
    path = weights(scene)
    with pytest.raises(ConfigError, match=r"scale 4, and essaformer_x2.test refines 2 times"):
        run(scene, model=path, scale=4)
    with pytest.raises(ConfigError, match=r"tile 24; the network reaches so far that it takes 27 px or more"):
        run(scene, model=path, tile=24)
    with pytest.raises(ModelError, match=r"for the task superres, this stage takes segment; the stage superres runs"):
        lift(Classify(model=path))(scene)
    with pytest.raises(ModelError, match=r"has no weights"):
        run(scene, model="essaformer_x2")
    other = scene.assign_coords(wavelength=scene.wavelength + 210)
    with pytest.raises(ModelError, match=r"the network's bands are not those of the scene|out of range"):
        run(other, model=path)
    with pytest.raises(ValueError, match=r"tile belong to method network"):
        Superres(tile=64)
    with pytest.raises(ValueError, match=r"method network needs a model"):
        Superres(method="network")


def test_bicubic_products_keep_their_identity():
    told = Superres(scale=3).fingerprint()
    assert told == {"stage": "superres", "version": "1", "method": "bicubic", "scale": 3}


@pytest.mark.parametrize("scale", [2, 3])
def test_folding_is_undone(scale):
    fine = np.random.default_rng(0).random((3, 4 * scale, 5 * scale), np.float32)
    cells = folded(fine, scale)
    np.testing.assert_array_equal(unfolded(cells, scale), fine)
    np.testing.assert_array_equal(cells.reshape(3, -1, 4, 5)[:, 0], fine[:, ::scale, ::scale])


def test_trimmed_ends_have_no_share():
    tiling = Tiling(40, 24, 1, 1, trim=9)
    lattice = Lattice.of((100, 37), tiling)
    total = np.zeros(100)
    for number, weights in enumerate(lattice.rows.weights):
        start, stop = lattice.rows.span(number)
        total[start:stop] += weights
        assert (weights[:9] == 0).all() == (start > 0)
        assert (weights[-9:] == 0).all() == (stop < 100)
    np.testing.assert_allclose(total, 1, rtol=1e-6)
