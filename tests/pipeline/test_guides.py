"""A stage with a guide: the same array in blocks of any size, lazily and in a batch, and only askers pay."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import rasterio.warp
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import uniform_filter

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline import memory
from cubeloom.pipeline.blocks import plan_stage
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.guided import GuidedSource, guides_of, with_guides
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.plan import make_plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.regrid import RegriddedSource, regridded
from cubeloom.pipeline.scene import Variable, cube_variable, scene_from, spec_of
from cubeloom.pipeline.stages import Mask, Superres
from cubeloom.pipeline.stages.base import Stage


class Sharpen(Stage):
    """Adds to the subject what the guide shows beyond its own mean: a halo, a pass, and a guide three times finer."""

    name: ClassVar[str] = "sharpen_toy"

    @property
    def guides(self):
        return ("fine",)

    @property
    def passes(self):
        return 1

    def plan(self, spec):
        return spec.with_variables(sharp=cube_variable("sharp"), subject="sharp")

    def halo(self, spec):
        return 2

    def measure(self, block, stats, number):
        guide = block.guides["fine"]
        inner = guide.inner(np.nan_to_num(guide.subject[0]))
        return {"sum": inner.sum(dtype=float), "count": np.array(inner.size)}

    def settle(self, sums, stats, number, spec):
        return {"mean": sums["sum"] / sums["count"]}

    def apply(self, block, stats):
        guide = block.guides["fine"]
        scale = guide.window.height // block.window.height
        mean = guide.subject[0].reshape(block.window.height, scale, block.window.width, scale).mean((1, 3))
        smooth = uniform_filter(np.nan_to_num(mean).astype(float), 5, mode="constant")
        return {"sharp": (block.subject + 0.1 * (smooth - stats["mean"])).astype(np.float32)}


@pytest.fixture(scope="module")
def scene(make_scene) -> xr.Dataset:
    return make_scene(height=270, width=150, bands=6)


@pytest.fixture(scope="module")
def guide(scene, make_scene) -> xr.Dataset:
    """A finer scene of the next zone over the same ground, whose corner leaves a part of it uncovered."""
    grid = spec_of(scene).grid
    east, north = (
        axis[0] for axis in rasterio.warp.transform("EPSG:32633", "EPSG:32634", [grid.affine.c], [grid.affine.f])
    )
    there = GeoBox((740, 500), Affine(10, 0, east + 500, 0, -10, north + 300), "EPSG:32634")
    other = make_scene(height=740, width=500, bands=3, seed=7)
    spec = replace(spec_of(other), grid=there, scene_id="guide", sensor="Sentinel-2A")
    return scene_from(spec, {name: other[name].values for name in spec.variables})


@dataclass(frozen=True, eq=False)
class Counted:
    """A Source that remembers what was read."""

    inner: SceneSource
    reads: list

    spec = property(lambda self: self.inner.spec)
    block_shape = property(lambda self: (256, 256))
    exact = property(lambda self: False)

    def read(self, name, window, bands=None, out=None):
        self.reads.append((name, window))
        return self.inner.read(name, window, bands)

    def fingerprint(self):
        return "same"


def paired(scene: xr.Dataset, guide: xr.Dataset, **how) -> GuidedSource:
    source, other = (Counted(SceneSource(one, spec_of(one)), []) for one in (scene, guide))
    return with_guides(source, {"fine": regridded(other, source.spec, **how)})


def test_blocks_of_any_size_and_a_lifted_stage_give_the_same(scene, guide, tmp_path, monkeypatch):
    source = paired(scene, guide)
    stages = [Mask(), Sharpen()]
    lazy = lift(Sharpen())(lift(Mask())(scene.chunk(y=100, x=90)), guide.chunk(y=333, x=200))
    by_hand = cubeloom.open_scene(cubeloom.write_scene(lazy, tmp_path / "lazy.zarr"))
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(source, stages, tmp_path / "batch.zarr", overwrite=True, workers=2)
        made = cubeloom.open_scene(tmp_path / "batch.zarr")
        np.testing.assert_array_equal(made.sharp.values, by_hand.sharp.values, f"blocks of {edge} px")
    assert np.isfinite(made.sharp).any()
    assert np.nanmax(np.abs(made.sharp - made.reflectance)) > 0.005


def test_steps_that_read_back_from_staging_keep_the_guides(scene, guide, tmp_path):
    stored = open_source(cubeloom.write_scene(scene, tmp_path / "scene.zarr"))
    source = with_guides(stored, guides_of(paired(scene, guide)))
    assert make_plan(source, [Sharpen()]).measured is not None
    run_to_store(source, [Sharpen()], tmp_path / "out.zarr")
    again = lift(Sharpen())(cubeloom.open_scene(tmp_path / "scene.zarr"), guide)
    direct = cubeloom.open_scene(cubeloom.write_scene(again, tmp_path / "lazy.zarr"))
    np.testing.assert_array_equal(cubeloom.open_scene(tmp_path / "out.zarr").sharp.values, direct.sharp.values)


def test_on_a_grid_that_a_step_has_refined(scene, guide, tmp_path):
    """The guide on the native grid three times refined, seen from a grid twice as fine: half as many pixels more."""
    source = paired(scene, guide, refine=4)
    run_to_store(source, [Superres(scale=2), Sharpen()], tmp_path / "batch.zarr")
    assert source.guides["fine"].scale == 4
    fine = lift(Superres(scale=2))(scene)
    lazy = lift(Sharpen())(fine, scene_from(*_read(source.guides["fine"])))
    by_hand = cubeloom.open_scene(cubeloom.write_scene(lazy, tmp_path / "lazy.zarr"))
    made = cubeloom.open_scene(tmp_path / "batch.zarr", group="x2")
    np.testing.assert_array_equal(made.sharp.values, by_hand.sharp.values)


def _read(source: RegriddedSource):
    everything = Window(0, 0, *source.spec.shape)
    return replace(source.spec, scale=1), {name: source.read(name, everything) for name in source.spec.variables}


def test_only_a_stage_that_looks_at_it_pays_for_a_guide(scene, guide, tmp_path):
    source = paired(scene, guide)
    run_to_store(source, [Mask()], tmp_path / "out.zarr")
    assert source.guides["fine"].source.reads == []


def test_memory_counts_the_guide(scene, guide):
    source, alone = paired(scene, guide), SceneSource(scene, spec_of(scene))
    with_it = make_plan(source, [Sharpen()], content="same").projected_bytes
    without = make_plan(alone, [Mask()], content="same").projected_bytes
    pixels = 9 * 260 * 150
    assert with_it - without > pixels * (2 * 4 + 4)  # bands, and flags


def test_the_content_of_a_pair_is_that_of_both(scene, guide):
    source = paired(scene, guide)
    other = GuidedSource(source.source, {"other": source.guides["fine"]})
    assert len({source.fingerprint(), other.fingerprint(), source.source.fingerprint()}) == 3


def test_a_stage_without_its_guide_says_what_to_do(scene, guide):
    spec = spec_of(scene)
    with pytest.raises(InputError, match=r"scene-0, sharpen_toy: needs the guide 'fine'.*pair"):
        plan_stage(Sharpen(), spec)
    with pytest.raises(ConfigError, match="takes a Scene and fine; found 0"):
        lift(Sharpen())(scene)


def test_a_guide_named_like_a_group_of_the_scene_is_refused(scene, guide):
    class Published(Sharpen):
        def plan(self, spec):
            return replace(super().plan(spec), guides={"fine": replace(spec.guides["fine"], group="x2")})

    with pytest.raises(ConfigError, match="group 'x2'"):
        make_plan(paired(scene, guide), [Published(), Superres()], content="same")


def test_variables_of_a_guide_are_described_on_the_new_grid(scene, guide):
    fine = paired(scene, guide).spec.guides["fine"]
    assert (fine.shape, fine.scale, fine.scene_id) == ((810, 450), 3, "guide")
    assert fine.grid.crs == spec_of(scene).grid.crs
    assert isinstance(fine.variables["quality"], Variable)
    assert "cubic" in fine.history[-1]
