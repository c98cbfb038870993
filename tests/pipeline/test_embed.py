"""Embeddings lie on a grid of their own, coarser than the scene's, and neither blocks nor masked numbers show."""

import geopandas
import numpy as np
import pytest
import torch
from rasterio.transform import rowcol

import cubeloom
from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.cards import Card, InputBands
from cubeloom.models.registry import create_model, save_model
from cubeloom.pipeline import memory, store
from cubeloom.pipeline.embeddings import write_embeddings
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import QUALITY_FLAGS, spec_of, validate_scene
from cubeloom.pipeline.stages.embed import Embed
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.pipeline.stages.superres import Superres

BANDS = 81
"""One of them is bad; a spectral adapter takes 75 or more."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A nano backbone of random weights for tiles of 32 px, with a card for the scenes below."""
    torch.manual_seed(1)
    network = create_model("spectral_vit_nano", image_size=32)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "pos_embed" in name:
                value.normal_(0, 0.3)
    wavelengths = np.linspace(420, 2450, BANDS)
    good = np.flatnonzero(np.arange(BANDS) != BANDS - 2)
    bands = InputBands(
        numbers=tuple((good + 1).tolist()),
        wavelengths_nm=tuple(wavelengths[good]),
        fwhm_nm=(2030 / (BANDS - 1),) * good.size,
    )
    card = Card(
        name="spectral_vit_nano.x",
        family="spectral_vit_nano",
        tag="x",
        settings={"image_size": 32},
        task="embed",
        units="1",
        bands=good.size,
        input_bands=bands,
        mean=(0.2,) * good.size,
        std=(0.1,) * good.size,
        tile=32,
        halo=6,
        multiple=4,
    )
    path = tmp_path_factory.mktemp("backbone") / "x.safetensors"
    save_model(network, path, card)
    return str(path)


@pytest.fixture
def scene(make_scene):
    return make_scene(height=150, width=141, bands=BANDS)


def embedded(scene, backbone, **parameters):
    return lift(Embed(model=backbone, **parameters))(lift(Mask())(scene))


def test_one_tile_is_the_networks_feature_map(make_scene, backbone):
    scene = make_scene(height=32, width=32, bands=BANDS, background=0)
    scene["quality"].values[:] = 0
    lazy = embedded(scene, backbone)
    validate_scene(lazy)
    network = create_model("spectral_vit_nano", backbone, image_size=32)
    x = (scene.reflectance.values[scene.good.values] - np.float32(0.2)) / np.float32(0.1)
    with torch.inference_mode():
        expected = network.features(torch.from_numpy(x[None]), [7])[0][0].numpy()
    assert lazy.embedding.dims == ("feature", "y", "x")
    np.testing.assert_allclose(lazy.embedding.values, expected, atol=1e-4)
    spec = spec_of(lazy)
    assert (spec.group, float(spec.scale), spec.subject, spec.shape) == ("d4", 0.25, "embedding", (8, 8))


def test_blocks_do_not_show_and_the_store_holds_what_was_computed(scene, backbone, tmp_path, monkeypatch):
    expected = embedded(scene.chunk(y=70, x=90), backbone).compute()
    assert np.isfinite(expected.embedding.values).mean() > 0.8
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(
            SceneSource(scene, spec_of(scene)), [Mask(), Embed(model=backbone)], tmp_path / "s.zarr", overwrite=True
        )
        found = cubeloom.open_scene(tmp_path / "s.zarr", group="d4")
        np.testing.assert_array_equal(found.embedding.values, expected.embedding.values, f"blocks of {edge} px")
    root = cubeloom.open_scene(tmp_path / "s.zarr")
    assert set(root.data_vars) == {"reflectance", "quality", "valid"}
    assert store.verify(tmp_path / "s.zarr")["chunks"] == 3 * 4 + 4
    chunks = open_source(tmp_path / "s.zarr", group="d4")
    assert chunks.read("embedding", whole_of(chunks)).shape == (128, 38, 36)
    again = cubeloom.open_scene(cubeloom.write_scene(found, tmp_path / "again.zarr"))
    np.testing.assert_array_equal(again.embedding.values, expected.embedding.values)


def whole_of(source):
    from cubeloom.pipeline.grids import whole

    return whole(source.spec.shape)


def test_cells_lie_where_their_pixels_do(scene, backbone):
    lazy = embedded(scene, backbone)
    grid, fine = spec_of(lazy).grid, spec_of(scene).grid
    assert grid.affine * (0, 0) == fine.affine * (0, 0)
    assert grid.affine * (3, 5) == fine.affine * (12, 20)
    np.testing.assert_allclose(lazy.y.values[2], scene.y.values[8:12].mean())
    np.testing.assert_allclose(lazy.x.values[2], scene.x.values[8:12].mean())


def test_a_cell_has_a_vector_where_one_of_its_pixels_takes_part(make_scene, backbone):
    scene = make_scene(height=62, width=57, bands=BANDS, background=20)
    scene["quality"].values[31:45, 10:37] = QUALITY_FLAGS["cloud"]
    valid = lift(Mask())(scene).valid.values
    expected = embedded(scene, backbone).embedding.values
    some = np.pad(valid, [(0, 2), (0, 3)]).reshape(16, 4, 15, 4).any(axis=(1, 3))
    assert 0 < (~some).sum() < some.sum()
    np.testing.assert_array_equal(np.isfinite(expected), np.broadcast_to(some, expected.shape))
    for junk in (np.inf, -32768.0):
        scene["reflectance"].values[:, ~valid] = junk
        np.testing.assert_array_equal(embedded(scene, backbone).embedding.values, expected, f"{junk} under the mask")


def test_a_finer_grid_is_embedded_too(make_scene, backbone, tmp_path, monkeypatch):
    scene = make_scene(height=34, width=33, bands=BANDS, background=0)
    stages = [Mask(), Superres(scale=2), Embed(model=backbone)]
    lazy = scene
    for stage in stages:
        lazy = lift(stage)(lazy)
    run_to_store(SceneSource(scene, spec_of(scene)), stages, tmp_path / "s.zarr")
    found = cubeloom.open_scene(tmp_path / "s.zarr", group="x2_d4")
    assert (spec_of(found).scale, spec_of(found).shape) == (0.5, (17, 17))
    np.testing.assert_array_equal(found.embedding.values, lazy.embedding.values)


def test_nothing_can_follow_and_odd_tiles_are_refused(scene, backbone):
    with pytest.raises(InputError, match=r"mask: .* no cube .* put embed last"):
        lift(Mask())(embedded(scene, backbone))
    with pytest.raises(ConfigError, match="tile 30; the network takes multiples of 4 px, from 16: take 28"):
        embedded(scene, backbone, tile=30)
    with pytest.raises(ModelError, match="embed: no model given"):
        Embed().infer([], {})
    assert Embed().skipped == "no model given"


def test_a_table_has_the_mean_vector_of_every_square(scene, backbone, tmp_path):
    run_to_store(SceneSource(scene, spec_of(scene)), [Mask(), Embed(model=backbone)], tmp_path / "s.zarr")
    out = write_embeddings(tmp_path / "s.zarr", tmp_path / "e.parquet", tile=40)
    table = geopandas.read_parquet(out)
    assert table.crs.to_epsg() == 4326
    vectors = cubeloom.open_scene(tmp_path / "s.zarr", group="d4").embedding.values
    assert len(table) == 4 * 4 - 1, "the corner of the background has no vector"
    assert set(table.scene_id) == {"scene-0"}
    for row in table.itertuples():
        part = vectors[:, row.row // 4 : row.row // 4 + 10, row.col // 4 : row.col // 4 + 10]
        np.testing.assert_allclose(row.embedding, np.nanmean(part.astype(float), axis=(1, 2)), atol=1e-5)
        assert row.valid == pytest.approx(np.isfinite(part[0]).mean())
    outlines = table.to_crs(spec_of(scene).grid.crs.to_wkt())
    grid = spec_of(scene).grid
    for row in outlines.itertuples():
        west, _, _, north = row.geometry.bounds
        assert rowcol(grid.affine, west + 1, north - 1) == (row.row, row.col)
    with pytest.raises(ConfigError, match="multiple of 4"):
        write_embeddings(tmp_path / "s.zarr", tmp_path / "f.parquet", tile=50)
    with pytest.raises(ConfigError, match="exists"):
        write_embeddings(tmp_path / "s.zarr", out)


def test_the_command_writes_store_and_table(scene, backbone, tmp_path, cli):
    product = cubeloom.write_scene(scene.isel(y=slice(0, 60), x=slice(40, 100)), tmp_path / "in.zarr")
    out, table = tmp_path / "out.zarr", tmp_path / "e.parquet"
    done = cli("embed", product, out, "--model", backbone, "--parquet", table, "--workers", 1)
    assert done.code == 0, done.err
    assert cubeloom.open_scene(out, group="d4").embedding.shape == (128, 15, 15)
    assert len(geopandas.read_parquet(table)) == 1
    again = cli("embed", product, tmp_path / "other.zarr", "--model", backbone, "--parquet", table)
    assert again.code == 2
    assert "e.parquet exists" in again.err
    assert not (tmp_path / "other.zarr").exists(), "what cannot end is not begun"


def test_a_store_without_embeddings_is_refused(scene, tmp_path):
    cubeloom.write_scene(scene, tmp_path / "plain.zarr")
    with pytest.raises(InputError, match="holds no embedding"):
        write_embeddings(tmp_path / "plain.zarr", tmp_path / "e.parquet")
