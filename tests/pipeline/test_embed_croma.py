"""CROMA over scenes: of Sentinel-2, of Sentinel-1, and of both, where the radar scene is a guide."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import cubeloom
from cubeloom.errors import InputError, ModelError
from cubeloom.models import croma
from cubeloom.models.croma_layers import alibi
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline import inference, memory
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.guided import with_guides
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import regridded
from cubeloom.pipeline.scene import QUALITY_FLAGS, spec_of
from cubeloom.pipeline.stages.embed import Embed
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.pipeline.stages.to_db import ToDb

TILE = 48
HEIGHT, WIDTH = 150, 141


@dataclass(frozen=True)
class Small:
    """A network of random weights, small enough to run, and where it is saved with its card."""

    network: croma.Croma
    model: str


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Callable[..., Small]:
    """Makes one of a modality; those of the same settings are one."""
    folder = tmp_path_factory.mktemp("croma")
    made: dict[str, Small] = {}

    def make(modality: str, **settings) -> Small:
        name = "_".join([modality, *map(str, settings.values())])
        if name not in made:
            torch.manual_seed(3)
            network = create_model("croma_base", modality=modality, **settings)
            card = model_card("croma_base", modality=modality, **settings).model_copy(update={"tile": TILE})
            save_model(network, folder / f"{name}.safetensors", card)
            made[name] = Small(network, str(folder / f"{name}.safetensors"))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(croma.SIZES, "base", (32, 4))
        yield make


@pytest.fixture(scope="module")
def both(make_scene, sentinel_scenes) -> tuple[xr.Dataset, xr.Dataset]:
    """Thirteen bands of Sentinel-2, a corner of background; and VV and VH, where another corner is missing."""
    quality = make_scene(height=HEIGHT, width=WIDTH, background=20).quality.values
    draw = np.random.default_rng(1)
    reflectance = draw.uniform(0.02, 0.5, (13, HEIGHT, WIDTH))
    reflectance[:, (quality & QUALITY_FLAGS["background"]) > 0] = np.nan
    sigma0 = draw.gamma(4, 0.25, (2, HEIGHT, WIDTH)) * np.array([0.06, 0.01])[:, None, None]
    sigma0[:, -30:, :41] = np.nan
    return sentinel_scenes(reflectance, sigma0, quality)


@pytest.fixture(scope="module")
def optical(both) -> xr.Dataset:
    return both[0]


@pytest.fixture(scope="module")
def radar(both) -> xr.Dataset:
    return both[1]


@pytest.fixture(scope="module")
def squares(optical, radar) -> tuple[xr.Dataset, xr.Dataset]:
    """One tile of both without gaps."""
    place = {"y": slice(40, 40 + TILE), "x": slice(60, 60 + TILE)}
    return optical.isel(place), radar.isel(place)


def standardised(cube: np.ndarray, mean, std) -> np.ndarray:
    return (cube - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]


def channels(optical: xr.Dataset, radar: xr.Dataset) -> np.ndarray:
    """The joint network's input by hand."""
    bands = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]
    seen = standardised(optical.reflectance.values[bands], croma.S2_MEAN, croma.S2_STD)
    backscatter = standardised(10 * np.log10(radar.sigma0.values), croma.S1_MEAN, croma.S1_STD)
    return np.concatenate([seen, backscatter]).astype(np.float32)


def assert_is_its_map(embedded: xr.Dataset, network: croma.Croma, x: np.ndarray) -> None:
    with torch.inference_mode():
        expected = network.features(torch.from_numpy(x[None]), [len(network.levels) - 1])[0][0].numpy()
    np.testing.assert_allclose(embedded.embedding.values, expected, atol=1e-4)
    assert (spec_of(embedded).group, embedded.embedding.shape) == ("d8", (32, TILE // 8, TILE // 8))


def test_one_tile_of_both_is_the_networks_map(small, squares):
    joint = small("joint")
    embedded = cubeloom.embed(*squares, model=joint.model)
    assert_is_its_map(embedded, joint.network, channels(*squares))
    decibels = cubeloom.pair(*squares, refine=1, coregister="off", steps=["to_db"])
    np.testing.assert_array_equal(cubeloom.embed(squares[0], decibels, model=joint.model).embedding, embedded.embedding)
    line = spec_of(embedded).history[-1]
    assert "embed: reflectance and radar S1, network croma_base, weights" in line
    assert "bands by number and VV, VH" in line


def test_the_command_takes_the_radar_scene_as_guide(small, squares, tmp_path, cli):
    """Here the two lie on one grid, so that the store is what the network gives."""
    both, paths = small("joint"), {name: tmp_path / f"{name}.zarr" for name in ("optical", "radar", "vectors")}
    for name, scene in zip(paths, squares, strict=False):
        cubeloom.write_scene(scene, paths[name])
    asked = ("embed", paths["optical"], paths["vectors"], "--model", both.model, "--workers", 1)
    lacking = cli(*asked)
    assert lacking.code == 3
    assert "embed: needs the guide 'radar'" in lacking.err
    done = cli(*asked, "--guide", paths["radar"])
    assert done.code == 0, done.err
    expected = cubeloom.embed(*(cubeloom.open_scene(paths[name]) for name in ("optical", "radar")), model=both.model)
    found = cubeloom.open_scene(paths["vectors"], group="d8")
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-5)
    assert found.attrs["scene_id"] == squares[0].attrs["scene_id"]


def test_one_tile_of_radar_in_power_or_decibels(small, squares):
    alone, radar = small("radar"), squares[1]
    embedded = cubeloom.embed(radar, model=alone.model)
    assert_is_its_map(embedded, alone.network, channels(*squares)[12:])
    decibels = lift(ToDb())(radar)
    np.testing.assert_array_equal(cubeloom.embed(decibels, model=alone.model).embedding, embedded.embedding)
    swapped = radar.isel(band=[1, 0])
    np.testing.assert_array_equal(cubeloom.embed(swapped, model=alone.model).embedding, embedded.embedding)


def test_one_tile_of_sentinel_2(small, squares):
    alone = small("optical")
    assert_is_its_map(cubeloom.embed(squares[0], model=alone.model), alone.network, channels(*squares)[:12])


def test_blocks_and_what_lies_under_the_mask_do_not_show(small, optical, radar, tmp_path, monkeypatch):
    stage = Embed(model=small("joint").model)
    lazy = lift(stage)(lift(Mask())(optical.chunk(y=70, x=90)), radar.chunk(y=64, x=70))
    expected = lazy.embedding.values
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        source = SceneSource(optical, spec_of(optical))
        guides = {"radar": regridded(SceneSource(radar, spec_of(radar)), source.spec)}
        run_to_store(with_guides(source, guides), [Mask(), stage], tmp_path / "s.zarr", overwrite=True)
        found = cubeloom.open_scene(tmp_path / "s.zarr", group="d8")
        np.testing.assert_array_equal(found.embedding.values, expected, f"blocks of {edge} px")
    valid = lift(Mask())(optical).valid.values & np.isfinite(radar.sigma0.values).all(axis=0)
    cells = np.pad(valid, [(0, -HEIGHT % 8), (0, -WIDTH % 8)]).reshape(19, 8, 18, 8).any(axis=(1, 3))
    assert 0 < (~cells).sum() < cells.sum() / 4
    np.testing.assert_array_equal(np.isfinite(expected), np.broadcast_to(cells, expected.shape))
    noisy = optical.copy(deep=True), radar.copy(deep=True)
    for scene, name in zip(noisy, ("reflectance", "sigma0"), strict=True):
        hidden = ~valid & np.isfinite(scene[name].values).all(axis=0)
        assert hidden.any()
        scene[name].values[:, hidden] = 7.0
    np.testing.assert_array_equal(lift(stage)(lift(Mask())(noisy[0]), noisy[1]).embedding.values, expected)


def test_a_patch_without_a_valid_pixel_is_as_if_it_were_not_there(small, squares):
    """Not filled and seen: the rest of the tile has the tokens of an image that ends before it."""
    alone, scene = small("optical"), squares[0].copy(deep=True)
    scene["quality"].values[:, 32:] = QUALITY_FLAGS["cloud"]
    embedded = lift(Embed(model=alone.model))(lift(Mask())(scene)).embedding.values
    with torch.inference_mode():
        x = torch.from_numpy(channels(*squares)[None, :12, :, :32])
        expected = alone.network.features(x, [3])[0][0].numpy()
    np.testing.assert_allclose(embedded[:, :, :4], expected, atol=1e-4)
    assert np.isnan(embedded[:, :, 4:]).all()


def test_by_batch_statistics_each_tile_is_a_batch(small, optical, monkeypatch):
    """However many tiles go in together."""
    model = small("optical", statistics="batch").model
    scene = optical.isel(y=slice(40, 40 + TILE), x=slice(40, 40 + 2 * TILE))
    parts = [scene.isel(x=slice(start, start + TILE)) for start in (0, TILE)]
    expected = np.concatenate([cubeloom.embed(part, model=model).embedding.values for part in parts], axis=2)
    monkeypatch.setitem(inference.LARGEST_BATCH, "cpu", 4)
    np.testing.assert_allclose(cubeloom.embed(scene, model=model).embedding.values, expected, atol=1e-5)


def test_memory_grows_with_the_square_of_a_tile(small, optical):
    """What a large tile takes is projected, its bias by distance included, and measured where it is largest."""
    network = small("optical").network
    for side in (160, 200):
        alibi.cache_clear()
        with torch.inference_mode(), inference._LiveBytes() as live:
            network.features(torch.zeros(1, 12, side, side), [3], torch.ones(1, side, side, dtype=torch.bool))
        assert network.pair_bytes(side, side) == pytest.approx(live.peak, rel=0.2)
    whole = Embed(model=small("optical").model, tile=0)
    assert whole.tile_bytes(spec_of(optical)) > network.pair_bytes(152, 144)


def without(scene: xr.Dataset, *bands: int) -> xr.Dataset:
    return scene.isel(band=[at for at in range(scene.sizes["band"]) if at not in bands])


def test_what_a_network_of_both_cannot_take_is_told(small, squares, tmp_path: Path):
    optical, radar = squares
    stage = Embed(model=small("joint").model)
    source = SceneSource(optical, spec_of(optical))
    with pytest.raises(InputError, match=r"needs the guide 'radar'.* put a step `pair: {guide: radar"):
        run_to_store(source, [stage], tmp_path / "s.zarr")
    fine = {"radar": regridded(SceneSource(radar, spec_of(radar)), source.spec, refine=2)}
    with pytest.raises(InputError, match="a grid 2 times finer than the scene's; give `pair` refine: 1"):
        run_to_store(with_guides(source, fine), [stage], tmp_path / "s.zarr")
    for scenes, message in (
        ((optical, without(radar, 1)), "sees VV, VH of a radar, of which VH is missing; the scene has VV"),
        ((without(optical, 0, 9), radar), r"S2, embed with .* 1 are out of range.* 945.1 nm"),
        ((radar, radar), "the scene is of sigma0, the network was trained on reflectance"),
        ((optical, optical), "VV, VH is missing; the scene has no polarisation"),
    ):
        with pytest.raises(ModelError, match=message):
            lift(stage)(*scenes)


def test_what_a_network_of_one_cannot_take_is_told(small, squares):
    optical, radar = squares
    with pytest.raises(ModelError, match="reflectance has units '1', the network was trained on 'dB'"):
        cubeloom.embed(optical, model=small("radar").model)
    with pytest.raises(ModelError, match="the scene is of sigma0, the network was trained on reflectance"):
        cubeloom.embed(radar, model=small("optical").model)
