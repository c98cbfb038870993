"""The main job on a real scene: what is published is what was measured, and what was made of it stands beside."""

import shutil
from pathlib import Path

import numpy as np
import rasterio
import rioxarray  # noqa: F401 - registers the accessor

import cubeloom
from cubeloom.catalogs.items import read_catalog
from cubeloom.models.cards import card_path, write_card
from cubeloom.models.registry import SHIPPED, model_card
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.denoise import Denoise
from cubeloom.pipeline.tiles import Lattice
from cubeloom.workflows.run import run
from cubeloom.workflows.scan import scan
from cubeloom.workflows.schema import load_workflow


def test_the_real_scene_is_published_as_it_was_measured(shared_data, tmp_path):
    folder = shared_data / "enmap_potsdam_product"
    catalog = scan(folder, tmp_path / "catalog").catalog
    result = run(load_workflow("enmap_l2a"), read_catalog(catalog), tmp_path / "products")
    assert [scene.state for scene in result.scenes] == ["published"]
    product = cubeloom.open_scene(result.scenes[0].product)
    with rasterio.open(next(folder.glob("ENMAP*/*-SPECTRAL_IMAGE.TIF"))) as file:
        counts = file.read()
        assert product.rio.crs == file.crs
        assert product.rio.transform() == file.transform
    measured = counts != -32768
    reflectance, denoised = product.reflectance.values, product.denoised.values
    assert product.sizes["band"] == 224
    assert np.abs(reflectance[measured].astype(float) - counts[measured] * 1e-4).max() <= 5e-5
    assert np.isnan(reflectance[~measured]).all()
    background = ~measured.any(axis=0)
    assert background.mean() > 0.3
    assert np.isnan(denoised[:, background]).all()
    usable = product.good.values
    assert not usable[129:135].any(), "bands 130-135 hold nothing"
    assert np.isfinite(denoised[usable][:, ~background]).all()


def test_the_shipped_network_shows_no_seams_and_keeps_what_is_measured(shared_data, tmp_path):
    """On the real scene, in tiles small enough for several: blocks do not show, nor do tiles; what matters stays."""
    product = next((shared_data / "enmap_potsdam_product").glob("ENMAP*"))
    scene = cubeloom.mask(cubeloom.open_scene(product)).load()
    shipped = SHIPPED / "hsdt_s.enmap.safetensors"
    weights = shutil.copy(shipped, tmp_path)
    write_card(model_card("hsdt_s.enmap").model_copy(update={"tile": 96}), card_path(Path(weights)))
    network = Denoise(model="hsdt_s", weights=str(weights))
    cubes = [lift(network)(scene.chunk(y=edge, x=edge)).denoised.values for edge in (100, 400)]
    np.testing.assert_allclose(cubes[1], cubes[0], atol=1e-5)
    good = scene.good.values
    before, after = scene.reflectance.values[good], cubes[0][good]
    background = ~np.isfinite(before).any(axis=0)
    assert np.isnan(after[:, background]).all()

    lattice = Lattice.of(before.shape[1:], network.tiling(spec_of(scene)))
    assert len(lattice) > 1
    starts = {lattice.window(number).col for number in range(len(lattice))}
    stops = {lattice.window(number).stop[1] for number in range(len(lattice))}
    borders = np.array(sorted((starts | stops) - {0, before.shape[2]}))
    steps = np.nanmean(np.abs(np.diff(after, axis=2)), axis=(0, 1)) / np.nanmean(
        np.abs(np.diff(before, axis=2)), axis=(0, 1)
    )
    assert steps[borders - 1].mean() < 1.05 * steps.mean()

    lit = np.isfinite(before).all(axis=0) & (before.mean(axis=0) > 0.05)
    at = scene.wavelength.values[good]

    def band(cube, nm):
        return cube[np.argmin(np.abs(at - nm))][lit]

    def ndvi(cube):
        return (band(cube, 850) - band(cube, 660)) / (band(cube, 850) + band(cube, 660))

    def depth(cube):
        return 1 - 2 * band(cube, 2205) / (band(cube, 2135) + band(cube, 2250))

    assert np.abs(ndvi(after) - ndvi(before)).mean() < 0.005
    assert abs((band(after, 740) - band(after, 690)).mean() - (band(before, 740) - band(before, 690)).mean()) < 5e-4
    assert abs(np.median(depth(after)) - np.median(depth(before))) < 0.003
