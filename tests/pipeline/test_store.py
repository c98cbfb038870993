"""A published store is whole, says where it lies to every reader, and comes back as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401 - registers the accessor
import pytest
import rioxarray  # noqa: F401 - registers the accessor
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox

import cubeloom
from cubeloom.errors import ConfigError, StoreError
from cubeloom.pipeline import chunks, memory, store
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.plan import make_plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.scene import Variable, cube_variable, spec_of
from cubeloom.pipeline.stages import Superres


@pytest.fixture
def published(make_scene, tmp_path) -> tuple[xr.Dataset, Path]:
    scene = make_scene()
    return scene, cubeloom.write_scene(scene, tmp_path / "scene.zarr")


def test_open_write_open_changes_nothing(published, tmp_path):
    _, path = published
    first = cubeloom.open_scene(path)
    again = cubeloom.open_scene(cubeloom.write_scene(first, tmp_path / "again.zarr"))
    xr.testing.assert_identical(first.load(), again.load())
    assert [v.encoding for v in spec_of(first).variables.values()] == [
        v.encoding for v in spec_of(again).variables.values()
    ]


def test_values_survive_to_half_a_count(published):
    scene, path = published
    difference = np.abs(cubeloom.open_scene(path).reflectance - scene.reflectance)
    assert np.array_equal(np.isnan(difference), np.isnan(scene.reflectance))
    assert float(difference.max()) <= 0.501e-4


@pytest.mark.parametrize("decode", ["all", True])
def test_every_reader_finds_the_grid_the_bands_and_the_nodata(published, decode):
    scene, path = published
    plain = xr.open_zarr(path, decode_coords=decode)
    cube = plain.reflectance
    assert cube.rio.crs.to_epsg() == 32633
    assert tuple(cube.rio.transform())[:6] == (30, 0, 500_010, 0, -30, 5_800_020)
    assert cube.rio.encoded_nodata == -32768
    assert cube.odc.geobox == spec_of(scene).grid
    assert np.array_equal(plain.wavelength, scene.wavelength)
    assert plain.wavelength.attrs["units"] == "nm"
    assert np.isnan(cube.isel(x=0, y=0)).all()
    assert plain.attrs["proj:code"] == cube.attrs["proj:code"] == "EPSG:32633"
    assert plain.attrs["spatial:transform"] == [30, 0, 500_010, 0, -30, 5_800_020]


def test_a_lazy_scene_is_written_as_its_values(make_scene, tmp_path):
    scene = make_scene()
    lazy = cubeloom.open_scene(cubeloom.write_scene(scene.chunk(y=70, x=90), tmp_path / "lazy.zarr"))
    eager = cubeloom.open_scene(cubeloom.write_scene(scene, tmp_path / "eager.zarr"))
    xr.testing.assert_identical(lazy.load(), eager.load())


def test_overviews_are_the_mean_of_the_values(make_scene, tmp_path):
    scene = make_scene(height=610, width=1030, bands=4, background=101)
    path = cubeloom.write_scene(scene, tmp_path / "wide.zarr")
    full = cubeloom.open_scene(path)
    for factor in (2, 4):
        coarse = cubeloom.open_scene(path, group=f"overviews/{factor}")
        padded = full.reflectance.pad(y=(0, -full.sizes["y"] % factor), x=(0, -full.sizes["x"] % factor), mode="edge")
        tiles = padded.values.reshape(4, coarse.sizes["y"], factor, coarse.sizes["x"], factor)
        whole = np.isfinite(tiles).all(axis=(2, 4))  # the mean of means differs where some values are missing
        whole[:, -1], whole[:, :, -1] = False, False  # or where the scene ends within a pixel
        assert np.abs(coarse.reflectance.values - tiles.mean(axis=(2, 4)))[whole].max() < 1.5e-4
        assert np.array_equal(np.isnan(coarse.reflectance.values), np.isnan(tiles).all(axis=(2, 4)))
        assert coarse.rio.transform().a == 30 * factor
        assert set(np.unique(coarse.quality)) <= set(np.unique(full.quality))


def test_a_block_that_splits_a_chunk_is_refused(make_scene, tmp_path):
    spec = spec_of(make_scene())
    window = Window(0, 64, 128, 128)
    with pytest.raises(StoreError, match="whole chunks"):
        chunks.write_block(tmp_path, Block(spec, window, window, {}))


def test_a_store_without_a_commit_record_is_no_product(published):
    _, path = published
    (path / store.COMMIT).unlink()
    with pytest.raises(StoreError, match="not a finished product"):
        cubeloom.open_scene(path)


@pytest.mark.parametrize("victim", ["reflectance/c/0/1/1", "reflectance/zarr.json", "wavelength/c/0", "quality/c/2/2"])
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_damage_is_found_and_named(published, victim, harm):
    _, path = published
    file = path / victim
    if harm == "remove":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(StoreError, match=victim):
        store.verify(path)


def test_a_foreign_file_is_found(published):
    _, path = published
    (path / "reflectance/c/0/0/0.partial").write_bytes(b"left over")
    with pytest.raises(StoreError, match="not part of the product"):
        store.verify(path)


def test_sealing_needs_every_chunk_as_it_was_written(make_scene, tmp_path):
    scene = make_scene(height=200, width=200, bands=2)
    spec = spec_of(scene)
    staged = tmp_path / "staged.zarr"
    store.create(staged, [spec])
    window = Window(0, 0, 128, 200)
    arrays = {name: scene[name].values[..., :128, :] for name in spec.variables}
    written = chunks.write_block(staged, Block(spec, window, window, arrays))
    with pytest.raises(StoreError, match="never written"):
        store.seal(staged, [spec], written.hashes, {}, map)
    with pytest.raises(StoreError, match="no commit record"):
        store.publish(staged, tmp_path / "out.zarr")
    rest = Window(128, 0, 72, 200)
    arrays = {name: scene[name].values[..., 128:, :] for name in spec.variables}
    hashes = written.hashes | chunks.write_block(staged, Block(spec, rest, rest, arrays)).hashes
    chunk = next(staged / key for key in hashes if key.startswith("reflectance"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StoreError, match="does not match its recorded sha256"):
        store.seal(staged, [spec], hashes, {}, map)


def test_clipped_values_are_counted(make_scene, tmp_path):
    scene = make_scene(height=130, width=130, bands=2, background=0)
    scene.reflectance.values[0, 5, 5:8] = 7.0
    path = cubeloom.write_scene(scene, tmp_path / "s.zarr")
    assert store.read_commit(path)["clipped"] == {"reflectance": 3}
    assert float(cubeloom.open_scene(path).reflectance[0, 5, 5]) == pytest.approx(3.2767)


def test_an_existing_store_is_replaced_only_when_asked(published, make_scene):
    _, path = published
    other = make_scene(seed=1)
    with pytest.raises(ConfigError, match="exists"):
        cubeloom.write_scene(other, path)
    cubeloom.write_scene(other, path, overwrite=True)
    assert cubeloom.open_scene(path).attrs["scene_id"] == "scene-1"
    assert [p.name for p in path.parent.iterdir()] == ["scene.zarr"]


def test_a_write_that_fails_leaves_nothing(make_scene, tmp_path):
    import dask.array as da

    def explode(block):
        raise RuntimeError("no more")

    scene = make_scene(height=150, width=150)
    broken = da.map_blocks(
        explode, da.from_array(scene.reflectance.values, chunks=-1), dtype=np.float32, meta=np.empty(0)
    )
    with pytest.raises(RuntimeError, match="no more"):
        cubeloom.write_scene(
            scene.assign(reflectance=(scene.reflectance.dims, broken, scene.reflectance.attrs)), tmp_path / "x.zarr"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_finer_group_is_a_scene_of_its_own(make_scene, tmp_path):
    """A block of the native grid owns whole chunks of a finer grid too."""
    scene = make_scene(height=200, width=150, bands=2, background=0)
    spec = spec_of(scene)
    grid = GeoBox((400, 300), spec.grid.affine * spec.grid.affine.scale(0.5), spec.grid.crs)
    fine = replace(spec, grid=grid, group="x2", scale=2, variables={"reflectance": cube_variable("reflectance")})
    staged = tmp_path / "s.zarr"
    store.create(staged, [spec, fine])
    hashes: dict[str, str] = {}
    for window in (Window(0, 0, 128, 150), Window(128, 0, 72, 150)):
        rows, cols = window.slices
        native = {name: scene[name].values[..., rows, cols] for name in spec.variables}
        double = {"reflectance": native["reflectance"].repeat(2, -1).repeat(2, -2)}
        finer = window.scaled(2)
        written = chunks.write_block(staged, Block(spec, window, window, native)).hashes
        written |= chunks.write_block(staged, Block(fine, finer, finer, double)).hashes
        assert set(chunks.block_keys([spec, fine], window)) == written.keys()
        hashes |= written
    store.seal(staged, [spec, fine], hashes, {}, map)
    opened = cubeloom.open_scene(staged, group="x2")
    assert opened.rio.transform().a == 15
    assert spec_of(opened).scale == 2
    assert opened.reflectance.shape == (2, 400, 300)


@pytest.mark.parametrize(
    ("bands", "side", "finest", "edge"),
    [
        (224, 1250, 1, 128),
        (224, 10980, 1, 128),
        (4, 10980, 1, 256),
        (4, 1250, 1, 128),
        (4, 10980, 2, 256),
        (4, 10980, 4, 128),
    ],
)
def test_scenes_of_few_bands_and_many_pixels_get_wider_chunks(make_scene, bands, side, finest, edge):
    """Not those of imaging spectrometers, small ones, or ones whose finest group would make a block too large."""
    spec = spec_of(make_scene(height=2, width=2, bands=bands))
    grids = {scale: GeoBox((side * scale, side * scale), spec.grid.affine, spec.grid.crs) for scale in (1, finest)}
    groups = [replace(spec, grid=grid, scale=scale) for scale, grid in grids.items()]
    assert [chunks.chunk_edge(laid) for laid in chunks.laid_out(groups)] == [edge] * len(groups)


def test_wider_chunks_hold_the_same_product_whatever_the_blocks(make_scene, tmp_path, monkeypatch):
    """Whole ones in every group; a store of narrow ones is read by its own metadata."""
    source = open_source(cubeloom.write_scene(make_scene(height=530, width=600, bands=3), tmp_path / "in.zarr"))
    steps = [Superres(scale=2)]
    run_to_store(source, steps, tmp_path / "narrow.zarr")
    narrow = make_plan(source, steps).identity
    monkeypatch.setattr(chunks, "FEWEST_WIDE", 4)  # else it takes a scene of 2000 px
    assert make_plan(source, steps).identity != narrow
    found = []
    for block in (256, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", block)
        out = tmp_path / "wide.zarr"
        run_to_store(source, steps, out, overwrite=True)
        found.append({file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert found[0] == found[1]
    store.verify(out)
    for group in ("", "x2", "overviews/2", "x2/overviews/2", "x2/overviews/4"):
        wide, before = (cubeloom.open_scene(tmp_path / name, group=group) for name in ("wide.zarr", "narrow.zarr"))
        xr.testing.assert_identical(wide.load(), before.load())
        assert {v.chunks[-2:] for _, v in zarr.open_group(out / group, mode="r").arrays() if v.ndim > 1} == {(256, 256)}


def test_class_layers_come_back(make_scene, tmp_path):
    from cubeloom.pipeline.encoding import CLASSES, PROBABILITY
    from cubeloom.pipeline.scene import scene_from

    scene = make_scene(height=140, width=140, bands=2)
    classes = {"class_values": [1, 4, 7], "flag_values": [1, 4, 7], "flag_meanings": "water forest soil"}
    spec = spec_of(scene).with_variables(
        classes=Variable(("y", "x"), CLASSES, {"flag_values": [1, 4, 7], "flag_meanings": "water forest soil"}),
        probability=Variable(("class", "y", "x"), PROBABILITY, classes),
    )
    labels = np.random.default_rng(0).choice([0, 1, 4, 7], (140, 140)).astype(np.uint8)
    shares = np.random.default_rng(1).random((3, 140, 140)).astype(np.float32)
    arrays = {"classes": labels, "probability": shares, **{n: scene[n].values for n in ("reflectance", "quality")}}
    opened = cubeloom.open_scene(cubeloom.write_scene(scene_from(spec, arrays), tmp_path / "c.zarr"))
    assert np.array_equal(opened.classes, labels)
    assert opened["class"].values.tolist() == [1, 4, 7]
    assert float(np.abs(opened.probability - shares).max()) <= 0.51 / 250
