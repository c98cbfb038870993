"""Denoising by a network: what it is given, what becomes of it, and that neither blocks nor masked numbers show."""

from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
from odc.geo.geobox import GeoBox

import cubeloom
from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.registry import create_model
from cubeloom.pipeline import inference, memory, store
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.engine import execute, quiet, run_to_store
from cubeloom.pipeline.executor import Threads
from cubeloom.pipeline.journal import MemoryJournal
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.passes import SCRATCH
from cubeloom.pipeline.plan import make_plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import QUALITY_FLAGS, defect_variable, scene_from, spec_of
from cubeloom.pipeline.stages.denoise import Denoise
from cubeloom.pipeline.stages.histograms import quantiles, value_histograms
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.pipeline.stages.superres import Superres

EIGEN = {"transform": "eigenimages", "residual_in_sigma": True}
KINDS = {
    "bands": ({}, {}),
    "bands, told the noise": ({"in_channels": 2}, {}),
    "eigenimages": ({"in_channels": 2}, EIGEN),
    "eigenimages, told nothing": ({}, {"transform": "eigenimages"}),
}


@pytest.fixture
def network(save_toy):
    """A factory of the stage with a toy network."""

    def make(kind="bands", family="toy", card=None, settings=None, **parameters):
        usual, fields = KINDS[kind] if family == "toy" else ({}, {})
        saved = save_toy(family, {**usual, **(settings or {})}, **{**fields, **(card or {})})
        return Denoise(method="network", model=saved.model, weights=saved.weights, **parameters)

    return make


def made(scene, *stages):
    """The variables of a scene after stages, in memory."""
    for stage in stages:
        scene = lift(stage)(scene)
    return {name: variable.values for name, variable in scene.data_vars.items()}


def in_batch(scene, stages, folder, monkeypatch, edge=256):
    """The floats that a batch run in blocks of `edge` px would store, before they are packed."""
    monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
    monkeypatch.setattr("cubeloom.pipeline.scene.REFLECTANCE", FLOAT)
    run_to_store(SceneSource(scene, spec_of(scene)), stages, folder, overwrite=True)
    opened = cubeloom.open_scene(folder)
    return {name: variable.values for name, variable in opened.data_vars.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_show_in_a_single_bit(kind, network, make_scene, tmp_path, monkeypatch):
    """Floats, not what the store packs: lazily, and in blocks of three sizes."""
    scene = make_scene(height=290, width=150, bands=10)
    scene["reflectance"].values[3, 100:110, 50:60] = np.nan
    names = ("denoised", "uncertainty") if kind == "eigenimages" else ("denoised",)
    stages = [Mask(), network(kind, uncertainty=len(names) == 2)]
    lazily = made(scene.chunk(y=90, x=70), *stages)
    assert np.isfinite(lazily["denoised"]).any()
    for edge in (128, 256, 512):
        batch = in_batch(scene, stages, tmp_path / "b.zarr", monkeypatch, edge)
        for name in names:
            assert batch[name].dtype == np.float32
            np.testing.assert_array_equal(batch[name], lazily[name], f"{name}, blocks of {edge} px")


def test_networks_follow_each_other_and_finer_grids(network, make_scene, tmp_path, monkeypatch):
    """Tiles of a grid twice as fine begin between the source's pixels; those of a second network need the first's."""
    scene = make_scene(height=131, width=150, bands=9)
    stages = [Mask(), network("eigenimages"), Superres(scale=2), network("bands", card={"tile": 100, "halo": 7})]
    lazy = scene.chunk(y=90, x=70)
    for stage in stages:
        lazy = lift(stage)(lazy)
    cubeloom.write_scene(lazy, tmp_path / "lazy.zarr")
    expected = cubeloom.open_scene(tmp_path / "lazy.zarr").denoised.values
    for edge in (128, 256):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(SceneSource(scene, spec_of(scene)), stages, tmp_path / "b.zarr", overwrite=True)
        np.testing.assert_array_equal(cubeloom.open_scene(tmp_path / "b.zarr", group="x2").denoised.values, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_numbers_do_not_show(kind, network, make_scene):
    scene = make_scene(height=100, width=90, bands=12, background=20)
    scene["quality"].values[40:65, 25:60] = QUALITY_FLAGS["cloud"]
    stages = [Mask(), network(kind, uncertainty=True)]
    expected = made(scene, *stages)
    masked = ~expected["valid"]
    assert masked[40:65, 25:60].all()
    for name in ("denoised", "uncertainty"):
        assert np.isnan(expected[name][:, masked]).all()
        assert np.isnan(expected[name][~scene["good"].values]).all()
        assert np.isfinite(expected[name][scene["good"].values][:, ~masked]).all()
    for junk in (np.nan, np.inf, -32768.0, 1e30):
        scene["reflectance"].values[:, masked] = junk
        found = made(scene, *stages)
        for name in ("denoised", "uncertainty"):
            np.testing.assert_array_equal(found[name], expected[name], f"{junk} under the mask")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_in_valid_pixels_are_missing_values(kind, network, make_scene):
    """NaN, infinity, or anything where `defect` says so: the band is estimated, and the number never shows."""
    scene = make_scene(height=100, width=90, bands=12, background=0)
    spec = spec_of(scene)
    defect = np.zeros(scene["reflectance"].shape, bool)
    defect[4, 40:50, 30:40] = True
    arrays = {"reflectance": scene["reflectance"].values, "quality": scene["quality"].values, "defect": defect}
    stage = network(kind)
    results = []
    for junk in (np.nan, np.inf, 0.3, -32768.0):
        arrays["reflectance"][4, 40:50, 30:40] = junk
        results.append(made(scene_from(spec.with_variables(defect=defect_variable()), arrays), stage)["denoised"])
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])
    arrays["reflectance"][4, 40:50, 30:40] = np.nan
    without = made(scene_from(spec, arrays), stage)["denoised"]
    np.testing.assert_array_equal(without, results[0])
    assert np.isfinite(without[scene["good"].values]).all()
    neighbours = (without[3] + without[5]) / 2
    assert np.abs(without[4, 40:50, 30:40] - neighbours[40:50, 30:40]).max() < 0.4


@pytest.mark.parametrize("kind", ["bands", "eigenimages"])
def test_tiles_without_any_value_are_nan_and_cost_nothing(kind, network, make_scene, monkeypatch):
    scene = make_scene(height=100, width=260, bands=12, background=0)
    scene["quality"].values[:, :140] = QUALITY_FLAGS["background"]
    stage = network(kind)
    calls = []
    original = inference.predict
    monkeypatch.setattr(
        inference, "predict", lambda handle, x, valid, threads: calls.append(len(x)) or original(handle, x, valid)
    )
    found = made(scene, Mask(), stage)["denoised"]
    assert np.isnan(found[:, :, :140]).all()
    assert np.isfinite(found[scene["good"].values][:, :80, 140:240]).all()
    some = sum(calls)
    scene["quality"].values[:, :140] = 0
    made(scene, Mask(), stage)
    assert 0 < some < sum(calls) - some


def test_a_scene_without_any_value_is_refused(network, make_scene):
    scene = make_scene(height=50, width=60, bands=12)
    scene["quality"].values[:] = QUALITY_FLAGS["background"]
    with pytest.raises(InputError, match=r"band 1 .* has no value at any pixel that takes part"):
        made(scene, Mask(), network("bands"))
    with pytest.raises(InputError, match="0 pixels have a value in every good band"):
        made(scene, Mask(), network("eigenimages"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (63, 64), (65, 129)])
@pytest.mark.parametrize("bands", [8, 20, 33])
def test_a_network_that_changes_nothing_gives_the_scene_back(shape, bands, network, make_scene):
    """Any height, width and number of bands: scaling, windows, tiles and blending undo each other."""
    scene = make_scene(height=shape[0], width=shape[1], bands=bands, background=0)
    scene["quality"].values[:] = 0
    found = made(scene, network("bands", family="same"))["denoised"]
    good = scene["good"].values
    np.testing.assert_allclose(found[good], scene["reflectance"].values[good], atol=2e-6)
    assert np.isnan(found[~good]).all()


def test_all_components_unchanged_are_the_scene(network, make_scene):
    scene = make_scene(height=100, width=130, bands=12, background=0)
    card = {"transform": "eigenimages", "bands": 31}
    found = made(scene, network(family="same", card=card, rank=11))["denoised"]
    good = scene["good"].values
    np.testing.assert_allclose(found[good], scene["reflectance"].values[good], atol=1e-4)


def test_strength_turns_the_network_up(network, make_scene):
    """From its input to its output, where it is told no noise level; it is told one here otherwise."""
    scene = make_scene(height=70, width=60, bands=12, background=0)
    good = scene["good"].values
    before = scene["reflectance"].values[good]
    change = {}
    for strength in (0, 0.5, 1):
        after = made(scene, network("bands", strength=strength))["denoised"][good]
        change[strength] = after - before
    np.testing.assert_allclose(change[0], 0, atol=1e-6)
    np.testing.assert_allclose(change[0.5], change[1] / 2, atol=1e-6)
    assert np.abs(change[1]).max() > 0.01
    with pytest.raises(ConfigError, match="strength 2; this network is told no noise level"):
        made(scene, network("bands", strength=2))
    whole = {"card": {**EIGEN, "bands": 31}, "settings": {"in_channels": 2}, "rank": 11}
    still = made(scene, network("eigenimages", strength=0, **whole))["denoised"][good]
    np.testing.assert_allclose(still, before, atol=1e-4)


def test_the_network_is_told_the_noise_of_what_it_gets(network, make_scene, monkeypatch):
    """Component images of variance 1, and beside them the share of noise in each: strength over the spread."""
    scene = make_scene(height=100, width=90, bands=12, background=0)
    scene["quality"].values[:] = 0
    stage = network("eigenimages", card={**EIGEN, "tile": 128}, strength=0.5)
    seen = []
    monkeypatch.setattr(
        inference, "predict", lambda handle, x, valid, threads: seen.append(x) or (x[:, :1], inference.How())
    )
    made(scene, stage)
    (x,) = seen
    images, sigma = x[0, :, :, :100, :90]
    np.testing.assert_allclose(images.std(axis=(1, 2)), 1, atol=0.02)
    assert (sigma == sigma[:, :1, :1]).all()
    assert (np.diff(sigma[:, 0, 0]) > 0).all(), "the weaker a component, the more of it is noise"
    assert 0 < sigma.min() < sigma.max() <= 0.55


def test_scaled_bands_lie_between_0_and_1(network, make_scene, monkeypatch):
    scene = make_scene(height=100, width=90, bands=12, background=0)
    scene["reflectance"].values[2, 0, 0] = 40.0
    seen = []
    monkeypatch.setattr(
        inference, "predict", lambda handle, x, valid, threads: seen.append(x) or (x[:, :1], inference.How())
    )
    made(scene, network("bands", card={"tile": 128}))
    (x,) = seen
    assert x.shape[:3] == (2, 1, 7), "eleven good bands in windows of seven that share three"
    values = x[:, 0, :, :100, :90]
    assert ((values > -0.02) & (values < 1.02)).mean() > 0.99
    assert values.max() > 10, "an outlier stays one"


def test_reflection_comes_in_at_the_scene_edge_alone(network, make_scene, monkeypatch):
    """The network sees the scene's own pixels in every tile; only a scene smaller than its tile is grown."""
    seen = []
    monkeypatch.setattr(
        inference, "predict", lambda handle, x, valid, threads: seen.append((x, valid)) or (x[:, :1], inference.How())
    )
    scene = make_scene(height=150, width=140, bands=8, background=0)
    scene["quality"].values[:] = 0
    found = made(scene, network("bands", family="same", card={"tile": 64, "halo": 12}))
    assert {x.shape[-2:] for x, _ in seen} == {(60, 56)}
    assert all(valid is None for _, valid in seen), "no pixel of a tile lies outside the scene"
    assert np.isfinite(found["denoised"][0]).all()
    seen.clear()
    made(scene.isel(y=slice(0, 30), x=slice(0, 21)), network("bands", family="same", card={"tile": 64, "halo": 12}))
    ((x, valid),) = seen
    assert x.shape[-2:] == (32, 24)
    assert valid[:, :30, :21].all()
    assert valid.sum() == len(valid) * 30 * 21, "what is reflected does not count in a tile's means"
    np.testing.assert_array_equal(x[..., 30, :21], x[..., 28, :21])


def test_uncertainty_is_the_scatter_over_turns_and_flips(network, make_scene):
    """One tile, compared with the eight versions made by hand."""
    scene = make_scene(height=40, width=40, bands=8, background=0)
    scene["quality"].values[:] = 0
    stage = network("bands", uncertainty=True)
    found = made(scene, stage)
    good = scene["good"].values
    values = scene["reflectance"].values[good]
    counts = value_histograms([(values.reshape(7, -1), np.ones((7, 1600), bool))])
    low, high = (quantiles(counts, share)[:, None, None] for share in (1e-3, 1 - 1e-3))
    scaled = torch.from_numpy(((values - low) / (high - low)).astype(np.float32))
    toy = create_model(stage.model, stage.weights)
    versions = []
    with torch.inference_mode():
        for turns in range(4):
            for flip in ([], [-1]):
                x = torch.flip(torch.rot90(scaled, turns, (-2, -1)), flip)
                y = torch.flip(toy(x[None, None])[0, 0], flip)
                versions.append(torch.rot90(y, -turns, (-2, -1)).numpy() * (high - low) + low)
    np.testing.assert_allclose(found["denoised"][good], np.mean(versions, axis=0), atol=1e-5)
    np.testing.assert_allclose(found["uncertainty"][good], np.std(versions, axis=0, ddof=1), atol=1e-5)
    assert found["uncertainty"][good].max() > 1e-3


def test_a_network_that_no_turn_changes_is_certain(network, make_scene):
    scene = make_scene(height=90, width=70, bands=12, background=0)
    for card in ({}, {"transform": "eigenimages"}):
        found = made(scene, network(family="same", card=card, settings={"factor": 0.7}, uncertainty=True))
        assert np.nanmax(found["uncertainty"]) < 1e-5


def test_uncertainty_is_stored_as_floats_beside_the_product(network, make_scene, tmp_path):
    scene = make_scene(height=90, width=70, bands=12)
    run_to_store(SceneSource(scene, spec_of(scene)), [Mask(), network(uncertainty=True)], tmp_path / "s.zarr")
    product = cubeloom.open_scene(tmp_path / "s.zarr")
    assert product.uncertainty.dtype == np.float32
    assert product.uncertainty.attrs["units"] == "1"
    assert product.attrs["subject"] == "denoised"
    again = cubeloom.open_scene(cubeloom.write_scene(product, tmp_path / "again.zarr"))
    np.testing.assert_array_equal(again.uncertainty, product.uncertainty)


REFUSED = {
    "units": ({"units": "W m-2 sr-1 nm-1"}, ModelError, "reflectance has units '1', the network was trained on 'W m-2"),
    "measurement": (
        {"variable": "radiance"},
        ModelError,
        "the scene is of reflectance, the network was trained on rad",
    ),
    "wavelengths": (
        {"wavelengths_nm": (420, 1000)},
        ModelError,
        r"good bands lie outside the 420-1000 nm .* the first is band 5 \(vnir, 1158.2 nm\); select_bands",
    ),
    "bands": ({"bands": 31}, InputError, "11 good bands of 12, the network takes 31 at once"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_scenes_that_do_not_fit_the_card_are_refused(why, network, make_scene):
    fields, kind, message = REFUSED[why]
    with pytest.raises(kind, match=message):
        network(card=fields).plan(spec_of(make_scene(height=20, width=20, bands=12)))


def test_parameters_that_do_not_go_together_are_refused(network, make_scene, save_toy):
    scene = make_scene(height=20, width=20, bands=12)
    with pytest.raises(ConfigError, match="model, uncertainty belong to method network"):
        cubeloom.denoise(scene, method="subspace", model="toy", uncertainty=True)
    with pytest.raises(ConfigError, match="rank 3 is for component images"):
        network(rank=3).plan(spec_of(scene))
    save_toy()
    with pytest.raises(ModelError, match="model 'toy' has no weights, so it would give noise"):
        cubeloom.denoise(scene, method="network", model="toy")
    with pytest.raises(ModelError, match="unknown model 'toi'; did you mean 'toy'"):
        cubeloom.denoise(scene, method="network", model="toi")


def test_what_makes_the_product_is_in_its_identity(network, make_scene, tmp_path):
    source = SceneSource(make_scene(height=20, width=20, bands=12), spec_of(make_scene(height=20, width=20, bands=12)))

    def identity(stage):
        return make_plan(source, [stage], content="same").identity

    one = network()
    moved = tmp_path / "moved"
    moved.mkdir()
    for suffix in (".safetensors", ".card.json"):
        path = Path(one.weights).with_suffix(suffix)
        (moved / path.name).write_bytes(path.read_bytes())
    there = Denoise(**{**one.model_dump(), "weights": str(moved / Path(one.weights).name)})
    assert identity(there) == identity(one), "where the weights lie is no part of it"
    others = [
        network(family="same"),
        network(card={"tile": 128}),
        network(card={"halo": 16}),
        network(precision="bfloat16"),
        network(uncertainty=True),
        network(strength=0.5),
        Denoise(method="subspace"),
    ]
    assert len({identity(stage) for stage in [one, *others]}) == len(others) + 1
    unknown = {"model", "weights", "precision", "uncertainty", "network"}
    unknown &= Denoise(method="subspace").fingerprint().keys()
    assert not unknown, "what a network needs is no part of a product without one"


def test_weights_trained_anew_are_taken_by_a_new_stage_and_refused_by_an_old_one(network, make_scene):
    """Under the same path: what an open run promised stays, and the next call of a session sees the new ones."""
    scene = make_scene(height=40, width=40, bands=9, background=0)
    first = network(family="same", settings={"factor": 1.0})
    before = made(scene, first)["denoised"]
    stale = Denoise(**first.model_dump())
    planned = stale.fingerprint()
    trained = Path(network(family="same", settings={"factor": 0.5}).weights)
    for suffix in (".safetensors", ".card.json"):
        trained.with_suffix(suffix).replace(Path(first.weights).with_suffix(suffix))
    anew = Denoise(**first.model_dump())
    assert anew.fingerprint() != planned
    after = made(scene, anew)["denoised"]
    assert np.nanmax(np.abs(after - before)) > 0.01
    inference._LOADED.clear()
    with pytest.raises(ModelError, match="changed while the run was using them"):
        made(scene, stale)


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


class KilledJournal(MemoryJournal):
    """A journal whose process dies after some groups of tiles."""

    survives = 2

    def add_tiles(self, step, records):
        if self.survives == 0:
            raise Killed
        super().add_tiles(step, records)
        self.survives -= 1


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_that_was_cut_off_computes_no_tile_again(stored, network, make_scene, tmp_path, monkeypatch):
    """From a store, whose measurement is published first, and from floats, where tiles are the first thing written."""
    scene = make_scene(height=150, width=140, bands=9)
    source = (
        open_source(cubeloom.write_scene(scene, tmp_path / "in.zarr")) if stored else SceneSource(scene, spec_of(scene))
    )
    stage = network("eigenimages")
    plan = make_plan(source, [Mask(), stage], workers=1)
    tiles = 9
    inferred = []
    original = Denoise.infer

    def noting(self, blocks, stats, threads):
        inferred.extend(block.window for block in blocks)
        return original(self, blocks, stats, threads)

    monkeypatch.setattr(Denoise, "infer", noting)
    monkeypatch.setattr("cubeloom.pipeline.stages.denoise_network.TOGETHER", 1)
    journal = KilledJournal()
    with pytest.raises(Killed), Threads(1) as executor:
        execute(plan, tmp_path / "cut.zarr", journal, executor, quiet)
    with Threads(1) as executor:
        standing = [record.number for record in journal.tiles().values()]
        assert standing == [0, 1]
        damaged = tmp_path / "cut.zarr" / SCRATCH / "1-1.npy"
        damaged.write_bytes(damaged.read_bytes()[:-100])
        journal.survives = 99
        inferred.clear()
        execute(plan, tmp_path / "cut.zarr", journal, executor, quiet)
        assert len(inferred) == tiles - 1, "all but the first: the second was torn"
        inferred.clear()
        execute(plan, tmp_path / "whole.zarr", MemoryJournal(), executor, quiet)
        assert len(inferred) == len(set(inferred)) == tiles, "each tile once"
    assert (tmp_path / "cut.zarr" / store.COMMIT).read_bytes() == (tmp_path / "whole.zarr" / store.COMMIT).read_bytes()
    assert not (tmp_path / "whole.zarr" / SCRATCH).exists()


def test_projected_memory_counts_the_network_and_not_the_scene(network, make_scene):
    stage = network()

    def plan(height, budget=2 * 2**30, **options):
        spec = spec_of(scene)
        spec = replace(spec, grid=GeoBox((height, 300), spec.grid.affine, spec.grid.crs))
        arrays = {name: da.zeros(spec.sizes(name), chunks=128) for name in spec.variables}
        return make_plan(SceneSource(scene_from(spec, arrays), spec), [stage], content="same", memory=budget, **options)

    scene = make_scene(height=600, width=300, bands=12)

    small, large = plan(2100, workers=2), plan(4200, workers=2)
    assert small.projected_bytes == large.projected_bytes
    one = stage.tile_bytes(spec_of(scene))
    inputs = 64 * 64 * 4 * 7
    assert 5 * inputs < one < 200 * inputs
    monster = memory.BASE_BYTES + memory.NETWORK_BYTES + int(1.5 * 2**30)

    class Heavy(Denoise):
        def tile_bytes(self, spec):
            return 2**30

    heavy = Heavy(**stage.model_dump())
    source = SceneSource(scene, spec_of(scene))
    assert make_plan(source, [heavy], content="same", memory=monster, workers=4).tile_workers == 1
    with pytest.raises(
        ConfigError, match=r"projected memory \d+ MiB = 600 MiB base \+ \d+ MiB for one tile of the net"
    ):
        make_plan(source, [heavy], content="same", memory=2**30, workers=4)


def test_quantiles_of_histograms_are_those_of_the_values():
    random = np.random.default_rng(0)
    values = np.stack([random.normal(0.3, 0.1, 20000), random.lognormal(3, 1, 20000), -random.uniform(0, 1, 20000)])
    counted = np.ones(values.shape, bool)
    counted[:, ::7] = False
    parts = np.array_split(np.arange(20000), 7)
    total = sum(value_histograms([(values[:, p].astype(np.float32), counted[:, p])]) for p in parts)
    whole = value_histograms([(values.astype(np.float32), counted)])
    np.testing.assert_array_equal(total, whole)
    for share in (0.01, 0.5, 0.99):
        expected = [np.quantile(row[mask], share) for row, mask in zip(values, counted, strict=True)]
        np.testing.assert_allclose(quantiles(whole, share), expected, rtol=0.04, atol=2e-3)
    assert np.isnan(quantiles(np.zeros_like(whole), 0.5)).all()
