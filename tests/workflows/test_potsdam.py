"""The main job on a real scene: what is published is what was measured, and what was made of it stands beside."""

import numpy as np
import rasterio
import rioxarray  # noqa: F401 - registers the accessor

import cubeloom
from cubeloom.catalogs.items import read_catalog
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
