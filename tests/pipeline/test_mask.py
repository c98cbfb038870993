"""Which pixels take part: flags, growth, pixels without values; the measurement stays."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import binary_dilation

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block, plan_chain, run_chain
from cubeloom.pipeline.grids import tile, whole
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import QUALITY_FLAGS, spec_of
from cubeloom.pipeline.stages.mask import Mask


def masked(scene, stage, size=None):
    """The `valid` layer of a scene, computed in blocks of `size` px."""
    source = SceneSource(scene, spec_of(scene))
    specs = plan_chain(source.spec, [stage])
    valid = np.zeros(source.spec.shape, bool)
    for window in tile(source.spec.shape, (size, size) if size else source.spec.shape):
        block = run_chain(source, [stage], specs, [{}], window)[-1]
        valid[window.slices] = block["valid"]
        for name in scene.data_vars:
            np.testing.assert_array_equal(block[name], scene[name].values[(..., *window.slices)])
    return valid


@pytest.fixture
def scene(make_scene):
    return make_scene(height=90, width=80, bands=6, background=20)


def test_default_flags_and_pixels_without_values(scene):
    quality = scene["quality"].values
    quality[30, 30] = QUALITY_FLAGS["water"] | QUALITY_FLAGS["cirrus_thin"]
    quality[31, 31] = QUALITY_FLAGS["water"] | QUALITY_FLAGS["cloud_shadow"]
    cube = scene["reflectance"].values
    cube[:, 40, 40] = np.nan
    cube[1:, 41, 41] = np.inf
    cube[:, 42, 42] = np.nan
    cube[~scene["good"].values, 42, 42] = 0.5
    expected = np.ones(quality.shape, bool)
    expected[:20, :20] = expected[-20:, -20:] = False
    expected[31, 31] = expected[40, 40] = expected[42, 42] = False
    np.testing.assert_array_equal(masked(scene, Mask()), expected)


def test_growth_is_a_disk_and_the_same_for_every_block_size(scene):
    quality = scene["quality"].values
    quality[50, [10, 31, 32]] = QUALITY_FLAGS["cloud"]
    stage = Mask(drop=("cloud",), dilate=5)
    y, x = np.mgrid[-5:6, -5:6]
    flagged = quality & QUALITY_FLAGS["cloud"] != 0
    expected = ~binary_dilation(flagged, y**2 + x**2 <= 25) & np.isfinite(scene["reflectance"].values[0])
    for size in (None, 32, 17):
        np.testing.assert_array_equal(masked(scene, stage, size), expected)


def test_an_earlier_mask_stays(scene):
    source = SceneSource(scene, spec_of(scene))
    stages = [Mask(drop=("cloud",)), Mask(drop=("background",))]
    specs = plan_chain(source.spec, stages)
    both = run_chain(source, stages, specs, [{}, {}], whole(source.spec.shape))[-1]["valid"]
    np.testing.assert_array_equal(both, masked(scene, Mask(drop=("cloud", "background"))))
    assert [line.split(":")[0] for line in specs[-1].history] == ["mask", "mask"]


def test_unknown_flags_name_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'cloud_shadow'"):
        Mask(drop=("cloud_shadows",))


def test_flags_asked_of_a_scene_without_quality(scene):
    bare = scene.drop_vars("quality")
    spec = spec_of(bare)
    with pytest.raises(InputError, match="no 'quality' layer"):
        Mask(drop=("snow",)).plan(spec)
    window = whole(spec.shape)
    made = Mask().apply(Block(spec, window, window, {"reflectance": bare["reflectance"].values}), {})
    np.testing.assert_array_equal(made["valid"], np.isfinite(bare["reflectance"].values[0]))
