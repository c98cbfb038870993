"""superres: the same ground on a finer grid, and nothing leaks out of missing pixels."""

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.regrid import refined
from cubeloom.pipeline.scene import spec_of, validate_scene
from cubeloom.pipeline.stages.superres import KERNELS, Superres, refine

SCALES = [2, 3, 4]


@pytest.mark.parametrize("scale", SCALES)
def test_it_is_cubic_convolution(scale):
    """PyTorch's antialiasing resampler has a = -1/2 too, and scales the weights to sum 1 at the edges."""
    cube = np.random.default_rng(scale).random((3, 21, 34), np.float32)
    peer = torch.nn.functional.interpolate(
        torch.from_numpy(cube)[None], scale_factor=scale, mode="bicubic", antialias=True, align_corners=False
    )
    made = refine(cube, np.ones((21, 34), bool), scale)
    np.testing.assert_allclose(made, peer[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_lanczos_has_three_lobes(scale):
    """Pillow's resampler takes the same kernel, and scales the weights to sum 1 at the edges too."""
    image = np.random.default_rng(scale).random((21, 34), np.float32)
    peer = Image.fromarray(image).resize((34 * scale, 21 * scale), Image.Resampling.LANCZOS)
    made = refine(image[None], np.ones((21, 34), bool), scale, KERNELS["lanczos"])
    np.testing.assert_allclose(made[0], np.asarray(peer), atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_a_ramp_stays_a_ramp(scale):
    y, x = np.mgrid[:30, :24].astype(np.float32)
    made = refine((y * 0.01 + x * 0.003)[None], np.ones((30, 24), bool), scale)[0]
    fine_y, fine_x = ((np.mgrid[: 30 * scale, : 24 * scale] + 0.5) / scale - 0.5).astype(np.float64)
    inner = (slice(2 * scale, -2 * scale),) * 2
    np.testing.assert_allclose(made[inner], (fine_y * 0.01 + fine_x * 0.003)[inner], rtol=3e-6)


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("scale", SCALES)
def test_missing_pixels_stay_missing_and_never_bleed(scale, method):
    kernel = KERNELS[method]
    random = np.random.default_rng(scale)
    cube = random.random((4, 25, 31), np.float32)
    valid = random.random((25, 31)) > 0.3
    cube[2, random.random((25, 31)) > 0.8] = np.nan
    cube[3] = np.nan
    known = np.isfinite(cube) & valid
    made = refine(cube, valid, scale, kernel)
    np.testing.assert_array_equal(np.isfinite(made), known.repeat(scale, 1).repeat(scale, 2))
    for junk in (np.nan, np.inf, -32768.0, 1e30):
        np.testing.assert_array_equal(
            refine(np.where(known, cube, np.float32(junk)), valid & known[2], scale, kernel)[2], made[2]
        )
    flat = refine(np.where(known, np.float32(0.25), np.float32(np.nan)), valid, scale, kernel)
    np.testing.assert_allclose(flat[np.isfinite(flat)], 0.25, rtol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_the_corner_stays_and_pixels_shrink(scale):
    grid = GeoBox((10, 20), Affine(30, 0, 500_010, 0, -30, 5_800_020), "EPSG:32633")
    fine = refined(grid, scale)
    assert tuple(fine.affine)[:6] == (30 / scale, 0, 500_010, 0, -30 / scale, 5_800_020)
    assert fine.shape == (10 * scale, 20 * scale)
    assert fine.boundingbox == grid.boundingbox
    assert tuple(refined(GeoBox((4, 5), Affine.identity(), None), scale).affine) == tuple(Affine.identity())


def test_the_finer_scene_is_a_scene(make_scene):
    scene = make_scene(height=50, width=40, bands=4, background=8)
    valid = scene.quality != 1
    made = lift(Superres(scale=3))(scene.assign(valid=valid.astype(bool))).compute()
    validate_scene(made)
    spec = spec_of(made)
    assert (spec.group, spec.scale, spec.measurement, spec.subject) == ("x3", 3, "superresolved", "superresolved")
    assert spec.grid == refined(spec_of(scene).grid, 3)
    np.testing.assert_array_equal(made.quality.values, np.kron(scene.quality.values, np.ones((3, 3), np.uint32)))
    np.testing.assert_array_equal(made.valid.values, np.kron(valid.values, np.ones((3, 3), bool)))
    np.testing.assert_array_equal(made.wavelength.values, scene.wavelength.values)
    assert made.superresolved.attrs["units"] == "1"


@pytest.mark.parametrize(("scale", "method"), [(2, "bicubic"), (3, "bicubic"), (4, "bicubic"), (3, "lanczos")])
def test_blocks_of_any_size_give_the_same(make_scene, run_in_blocks, scale, method):
    scene = make_scene(height=50, width=45, bands=5, background=12)
    holes = np.random.default_rng(0).random(scene.reflectance.shape) < 0.05
    scene = scene.assign(reflectance=scene.reflectance.where(~holes))
    stage = Superres(method=method, scale=scale)
    whole = run_in_blocks(scene, stage, 50)
    for edge in (9, 16):
        made = run_in_blocks(scene, stage, edge)
        np.testing.assert_array_equal(made["superresolved"], whole["superresolved"])
        np.testing.assert_array_equal(made["quality"], whole["quality"])
