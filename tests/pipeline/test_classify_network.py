"""A class map by a network: neither blocks, nor what stands under the mask, nor seams show in it."""

import numpy as np
import pytest
import torch

import cubeloom
from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.models.registry import create_model
from cubeloom.pipeline import memory
from cubeloom.pipeline.band_input import BandInput
from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.export import export_store
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.plan import make_plan
from cubeloom.pipeline.quicklook import write_quicklooks
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource
from cubeloom.pipeline.scene import QUALITY_FLAGS, defect_variable, scene_from, spec_of, validate_scene
from cubeloom.pipeline.stages.classify import Classify
from cubeloom.pipeline.stages.denoise import Denoise
from cubeloom.pipeline.stages.embed import Embed
from cubeloom.pipeline.stages.mask import Mask
from cubeloom.workflows.describe import class_records

NAMES = ("classes", "probability", "confidence", "entropy")


@pytest.fixture
def save(save_labels):
    """The stage with a network whose card fits a scene."""

    def make(scene, family="labels", settings=None, parameters=None, **fields):
        return Classify(model=save_labels(scene, family, settings, **fields), **(parameters or {}))

    return make


def made(scene, *stages):
    for stage in stages:
        scene = lift(stage)(scene)
    return {name: variable.values for name, variable in scene.data_vars.items()}


def test_one_tile_is_the_networks_softmax(save, make_scene):
    scene = make_scene(height=50, width=45, bands=9, background=0)
    scene["quality"].values[:] = 0
    stage = save(scene)
    lazy = lift(stage)(scene)
    validate_scene(lazy)
    found = {name: lazy[name].values for name in NAMES}
    network = create_model("labels", stage.model)
    x = (scene.reflectance.values[scene.good.values] - np.float32(0.2)) / np.float32(0.1)
    x = np.pad(x, [(0, 0), (0, 2), (0, 3)], mode="reflect")
    valid = np.zeros((52, 48), bool)
    valid[:50, :45] = True
    with torch.inference_mode():
        scores = network(torch.from_numpy(x[None]), valid=torch.from_numpy(valid[None]))
        expected = scores.softmax(1)[0, :, :50, :45].double().numpy()
    np.testing.assert_allclose(found["probability"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["classes"], np.array([2, 5, 9])[found["probability"].argmax(axis=0)])
    ordered = np.sort(expected, axis=0)
    np.testing.assert_allclose(found["confidence"], ordered[-1] - ordered[-2], atol=1e-5)
    entropy = -(expected * np.log(expected)).sum(axis=0) / np.log(3)
    np.testing.assert_allclose(found["entropy"], entropy, atol=1e-5)
    assert len(np.unique(found["classes"])) == 3
    assert lazy.classes.attrs["flag_meanings"] == "low_vegetation water soil"
    assert lazy.classes.attrs["class_colours"] == ["#00aa00", "#0000aa", "#aa5500"]
    assert "3 classes, network labels.x, weights" in lazy.attrs["history"]


def test_blocks_do_not_show_in_a_single_bit(save, make_scene, tmp_path, monkeypatch):
    scene = make_scene(height=290, width=150, bands=10)
    scene["reflectance"].values[3, 100:110, 50:60] = np.nan
    stages = [Mask(), save(scene)]
    monkeypatch.setattr("cubeloom.pipeline.stages.class_images.PROBABILITY", FLOAT)
    lazily = made(scene.chunk(y=90, x=70), *stages)
    for edge in (128, 512):
        monkeypatch.setattr(memory, "LARGEST_BLOCK", edge)
        run_to_store(SceneSource(scene, spec_of(scene)), stages, tmp_path / "b.zarr", overwrite=True)
        batch = cubeloom.open_scene(tmp_path / "b.zarr")
        for name in NAMES:
            np.testing.assert_array_equal(batch[name].values, lazily[name], f"{name}, blocks of {edge} px")


@pytest.mark.parametrize("family", ["labels", "freenet"])
def test_masked_numbers_do_not_show(save, make_scene, family):
    """In a local network and in one that takes means over the tile; also where `defect` says that a value is none."""
    scene = make_scene(height=90, width=80, bands=12)
    scene["quality"].values[60:75, 30:70] = QUALITY_FLAGS["cloud"]
    settings, fields = ({}, {}) if family == "labels" else ({"width": 0.125}, {"multiple": 16})
    stages = [Mask(), save(scene, family, settings, **fields)]
    spec = spec_of(scene)
    defect = np.zeros(scene["reflectance"].shape, bool)
    defect[4, 50:55, 60:70] = True
    arrays = {"reflectance": scene["reflectance"].values, "quality": scene["quality"].values, "defect": defect}
    flawed = scene_from(spec.with_variables(defect=defect_variable()), arrays)
    expected = made(flawed, *stages)
    masked = ~expected["valid"]
    assert masked[60:75, 30:70].all()
    assert (expected["classes"][masked] == 0).all()
    assert (expected["classes"][~masked] > 0).all()
    for junk in (np.nan, np.inf, -32768.0, 1e30):
        arrays["reflectance"][:, masked] = junk
        arrays["reflectance"][defect] = junk
        found = made(flawed, *stages)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], expected[name], f"{name}: {junk} under the mask")


def test_tiles_are_blended_and_whole_images_need_none(save, make_scene):
    """A network without any context gives the same map in tiles of any size; one with context another one."""
    scene = make_scene(height=150, width=110, bands=9, background=0)
    scene["quality"].values[:] = 0
    without = [made(scene, save(scene, settings={"shared": 0.0}, parameters={"tile": tile})) for tile in (None, 40, 0)]
    inner = (slice(None), slice(2, -2), slice(2, -2))
    for other in without[1:]:
        np.testing.assert_allclose(other["probability"][inner], without[0]["probability"][inner], atol=0.15)
        assert (other["classes"] == without[0]["classes"]).mean() > 0.99
    stages = [save(scene, parameters={"tile": tile}) for tile in (None, 0)]
    in_tiles, whole = (made(scene, stage) for stage in stages)
    assert np.abs(in_tiles["probability"] - whole["probability"]).max() > 1e-3
    assert stages[0].fingerprint() != stages[1].fingerprint(), "the tiles are part of what the product is"
    assert stages[1].tiling(spec_of(scene)).edge == 152


def test_bands_that_the_scene_lacks_are_interpolated_and_named_or_refused(save, make_scene):
    scene = make_scene(height=40, width=40, bands=60, background=0)
    stage = save(scene)
    gone = scene.isel(band=np.delete(np.arange(60), 12))
    lazy = lift(stage)(gone)
    assert "by number, 1 interpolated" in lazy.attrs["history"]
    assert lazy.classes.attrs["interpolated_bands_nm"] == pytest.approx([scene.wavelength.values[12]], abs=0.01)
    assert (lazy.classes.values > 0).all()
    with pytest.raises(ModelError, match=r"scene-0, classify with .*: model labels\.x sees 59 bands, .* out of range"):
        lift(stage)(scene.isel(band=slice(0, 40)))


def test_what_does_not_fit_is_refused(save, make_scene):
    scene = make_scene(height=40, width=40, bands=12, background=0)
    radiance = scene.rename(reflectance="radiance").assign_attrs(measurement="radiance", subject="radiance")
    radiance.radiance.attrs["units"] = "W m-2 sr-1 nm-1"
    with pytest.raises(ModelError, match="radiance has units 'W m-2 sr-1 nm-1', the network was trained on '1'"):
        lift(save(scene))(radiance)
    with pytest.raises(InputError, match="no cube 'denoised'; the scene has reflectance"):
        lift(save(scene, parameters={"variable": "denoised"}))(scene)
    with pytest.raises(ModelError, match=r"the card of labels\.x names 0 classes, the network tells 3 apart"):
        lift(save(scene, classes=()))(scene)
    with pytest.raises(ConfigError, match="tile 50; the network takes multiples of 4 px, from 28: take 48"):
        lift(save(scene, parameters={"tile": 50}))(scene)
    with pytest.raises(ModelError, match="classify: model 'freenet' has no weights"):
        Classify(model="freenet").plan(spec_of(scene))
    with pytest.raises(ConfigError, match="tile belong to networks"):
        Classify(model="x.skops", tile=64).plan(spec_of(scene))


@pytest.mark.parametrize(
    ("stage", "task", "advice"),
    [
        (Classify, "embed", "is for the task embed, this stage takes segment; the stage embed runs"),
        (Classify, "classify", "such a network answers for a whole tile"),
        (Embed, "segment", "is for the task segment, this stage takes embed; the stage classify runs"),
        (Denoise, "segment", "is for the task segment, this stage takes denoise; the stage classify runs"),
    ],
)
def test_a_network_of_another_task_is_sent_to_its_stage(save, make_scene, stage, task, advice):
    scene = make_scene(height=40, width=40, bands=12, background=0)
    network = save(scene, task=task)
    other = stage(model="labels", weights=network.model)
    with pytest.raises(ModelError, match=advice):
        other.plan(spec_of(scene))


def test_where_memory_is_short_the_tile_that_fits_is_told(save, make_scene):
    """A whole image takes memory with the scene; the tile that is proposed is one that the plan takes."""
    scene = make_scene(height=600, width=500, bands=12).chunk(y=128)
    source = SceneSource(scene, spec_of(scene))
    stage = save(scene, "freenet", {"width": 0.5}, multiple=16, parameters={"tile": 0})
    budget = memory.BASE_BYTES + memory.NETWORK_BYTES + 120 * 2**20
    with pytest.raises(
        ConfigError, match=r"for one tile of the network; .* set tile: (\d+) of classify, which fits"
    ) as refused:
        make_plan(source, [stage], memory=budget, content="same")
    side = int(str(refused.value).rpartition("tile: ")[2].split()[0])
    fitting = Classify(model=stage.model, tile=side)
    assert make_plan(source, [fitting], memory=budget, content="same").projected_bytes <= budget


def test_identity_is_the_networks_content_not_its_path(save, make_scene, tmp_path):
    scene = make_scene(height=40, width=40, bands=12)
    stage = save(scene)
    other = Classify(model="labels", weights=stage.model)
    assert other.fingerprint() == stage.fingerprint()
    anew = save(scene, halo=8)
    assert anew.fingerprint() != stage.fingerprint()


def test_a_map_is_exported_with_its_legend(save, make_scene, tmp_path):
    import rasterio

    scene = make_scene(height=60, width=50, bands=9)
    run_to_store(SceneSource(scene, spec_of(scene)), [Mask(), save(scene)], tmp_path / "s.zarr")
    with rasterio.open(export_store(tmp_path / "s.zarr", tmp_path / "map.tif", variable="classes")) as file:
        codes, colours = file.read(1), file.colormap(1)
        assert file.tags(1)["class_5"] == "water"
    np.testing.assert_array_equal(codes, cubeloom.open_scene(tmp_path / "s.zarr").classes.values)
    assert colours[9] == (0xAA, 0x55, 0x00, 255)
    records = [record.document() for record in class_records(open_source(tmp_path / "s.zarr").spec)]
    told = {"value": 2, "name": "low_vegetation", "title": "low vegetation", "color_hint": "00aa00"}
    assert records[0] == told, "as the classification extension wants it"
    pictures = write_quicklooks(cubeloom.open_scene(tmp_path / "s.zarr"), tmp_path / "pictures")
    assert {"classes", "classes_legend", "classes_entropy"} <= pictures.keys()
    entropy = export_store(tmp_path / "s.zarr", tmp_path / "entropy.tif", variable="entropy")
    with rasterio.open(entropy) as file:
        assert file.scales[0] == pytest.approx(1 / 250)


def test_the_input_is_that_of_training(save, make_scene):
    """What the stage feeds is what `BandInput` gives a trainer."""
    scene = make_scene(height=40, width=40, bands=12, background=0)
    card = save(scene)._network.card
    x = BandInput.of(card, spec_of(scene).bands).apply(scene.reflectance.values, np.ones((40, 40), bool))
    network = create_model("labels", save(scene).model)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x[None])).argmax(1)[0].numpy()
    scene["quality"].values[:] = 0
    np.testing.assert_array_equal(made(scene, save(scene))["classes"], np.array([2, 5, 9])[expected])
