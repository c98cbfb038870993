"""A prior by place learns what only the place tells, and a map asks it for the place of every tile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

import cubeloom
from cubeloom.errors import ConfigError, ModelError
from cubeloom.models.cards import read_card
from cubeloom.models.location import Located
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.pipeline.scene import scene_from, spec_of
from cubeloom.pipeline.stages import Classify
from cubeloom.pipeline.tiles import Lattice
from cubeloom.workflows.train import load_recipe, train
from cubeloom.workflows.train.tune import TuneModule, choose_learning

PX, BANDS, SIDE = 16, 80, 40
CLASSES = {1: {"name": "west"}, 2: {"name": "east"}}
ZONES = {"west": (32632, 1), "east": (32654, 2)}
"""UTM zone of a place, and the class that all of it has."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_scene) -> Path:
    """Two places with the same noise for spectra; what tells them apart is where they lie."""
    path = tmp_path_factory.mktemp("places")
    for seed, (name, (epsg, value)) in enumerate(ZONES.items()):
        scene = make_scene(height=SIDE, width=SIDE, bands=BANDS, background=4)
        grid = GeoBox((SIDE, SIDE), Affine(30, 0, 500_010, 0, -30, 5_000_010), f"EPSG:{epsg}")
        cube = np.random.default_rng(seed).normal(0.3, 0.05, (BANDS, SIDE, SIDE)).astype(np.float32)
        arrays = {"reflectance": cube, "quality": scene.quality.values}
        bands = replace(spec_of(scene).bands, good=np.ones(BANDS, bool))
        spec = replace(spec_of(scene), grid=grid, bands=bands, scene_id=name)
        cubeloom.write_scene(scene_from(spec, arrays), path / f"{name}.zarr")
        profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 1, "dtype": "uint8"}
        with rasterio.open(path / f"{name}.tif", "w", **profile, crs=f"EPSG:{epsg}", transform=grid.affine) as raster:
            raster.write(np.full((SIDE, SIDE), value, np.uint8), 1)
    return path


def recipe_of(folder: Path, tmp_path: Path, **changes) -> Path:
    sources = [{"scene": str(folder / f"{name}.zarr"), "labels": str(folder / f"{name}.tif")} for name in ZONES]
    square = {"block_px": 8, "test_fraction": 0.1, "buffer_px": 0}
    scenes = {"train": sources, "classes": CLASSES, "split": square, "validation_split": {**square, "seed": 1}}
    recipe = {
        "kind": "tune", "backbone": "spectral_vit_nano", "settings": {"image_size": 8}, "head": "linear",
        "tune": "frozen", "scenes": scenes, "location": True, "tile_px": 8, "batch": 8, "steps": 24,
        "learning_rate": 0.02, "validate_every": 24, "threads": 1, **changes,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_label_that_depends_on_the_place_alone_is_learnt_and_mapped(folder, tmp_path):
    out = tmp_path / "located.places.safetensors"
    train(recipe_of(folder, tmp_path), out)
    card = read_card(out.with_suffix(".card.json"))
    assert card.located
    assert (card.family, card.task, card.settings["network"]) == ("located", "segment", "spectral_segmenter")
    for name, (_, value) in ZONES.items():
        made = cubeloom.classify(cubeloom.open_scene(folder / f"{name}.zarr"), model=str(out))
        found = made.classes.values[made.classes.values > 0]
        assert (found == value).mean() > 0.95, name


@pytest.fixture(scope="module")
def by_place(tmp_path_factory) -> Path:
    """A network whose image says nothing, and whose place says much: it differs from tile to tile."""
    settings = {
        "network": "spectral_segmenter",
        "network_settings": {"backbone_settings": {"image_size": PX}, "head": "linear", "num_classes": 2},
    }
    torch.manual_seed(1)
    network = create_model("located", None, **settings)
    torch.nn.init.zeros_(network.network.head.weight)
    torch.nn.init.zeros_(network.network.head.bias)
    encoder = network.prior.encoder
    last = encoder.neural_network.last_layer
    torch.nn.init.normal_(last.weight, std=100)
    east = Transformer.from_crs("EPSG:32654", "EPSG:4326", always_xy=True).transform(500_600, 4_999_400)
    with torch.no_grad():
        last.bias -= encoder(torch.tensor([east], dtype=torch.float64))[0]  # even in the middle of the scene
    path = tmp_path_factory.mktemp("by_place") / "located.by_place.safetensors"
    bands = {"numbers": list(range(1, BANDS + 1)), "wavelengths_nm": np.linspace(420, 2450, BANDS).tolist(),
             "fwhm_nm": [26.0] * BANDS}  # fmt: skip
    classes = [{"value": value, "name": one["name"], "colour": "#123456"} for value, one in CLASSES.items()]
    fields = {
        **model_card("located", **settings).model_dump(), "name": "located.by_place", "tag": "by_place",
        "settings": settings, "input_bands": bands, "bands": BANDS, "classes": classes, "tile": PX, "halo": 2,
        "wavelengths_nm": (420, 2450), "sensor": "EnMAP", "variable": "reflectance", "units": "1",
        "mean": (), "std": (),
    }  # fmt: skip
    save_model(network, path, type(model_card("located")).model_validate(fields))
    return path


def expected(network: Located, grid: GeoBox, row: float, col: float) -> np.ndarray:
    """Probabilities of the classes at a position of the grid, by another library's projection."""
    east, north = grid.affine * (col, row)
    lonlat = Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True).transform(east, north)
    with torch.inference_mode():
        return network.prior.encoder(torch.tensor([lonlat], dtype=torch.float64)).softmax(1)[0].numpy()


@pytest.mark.parametrize("tile", [PX, 0])
def test_a_map_asks_for_the_middle_of_every_tile_at_the_edge_too(folder, by_place, tile):
    scene = cubeloom.open_scene(folder / "east.zarr")
    scene["valid"] = (("y", "x"), np.ones((SIDE, SIDE), bool))
    made = cubeloom.classify(scene, model=str(by_place), tile=tile).probability.values
    spec, network = spec_of(scene), create_model("located", str(by_place))
    lattice = Lattice.of(spec.shape, Classify(model=str(by_place), tile=tile).tiling(spec))
    corners = {0: (0, 0), len(lattice) - 1: (SIDE - 1, SIDE - 1)}
    told = []
    for number, (row, col) in corners.items():
        window = lattice.window(number)
        middle = window.row + window.height / 2, window.col + window.width / 2
        told.append(expected(network, spec.grid, *middle))
        np.testing.assert_allclose(made[:, row, col], told[-1], atol=0.004)
    if tile:
        assert np.abs(told[0] - told[1]).max() > 0.02, "places that differ"


def test_without_a_place_the_network_answers_by_the_image_alone(by_place):
    network = create_model("located", str(by_place))
    x = torch.zeros(1, BANDS, PX, PX)
    torch.testing.assert_close(network(x), network.network(x))


def test_a_scene_without_a_map_projection_is_refused(folder, by_place):
    scene = cubeloom.open_scene(folder / "east.zarr")
    spec = replace(spec_of(scene), grid=GeoBox((SIDE, SIDE), Affine.identity(), None))
    flat = scene_from(spec, {name: scene[name].values for name in spec.variables})
    with pytest.raises(ModelError, match="no map projection"):
        cubeloom.classify(flat, model=str(by_place))


def test_the_prior_learns_whatever_of_the_backbone_does(folder, tmp_path):
    recipe = load_recipe(recipe_of(folder, tmp_path))
    settings = {"image_size": PX, "num_classes": 2}
    network = create_model("located", None, network="spectral_vit_nano", network_settings=settings)
    choose_learning(network, recipe)
    learning = {name.split(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == {"network", "prior"}
    inside = {name for name, weight in network.network.named_parameters() if weight.requires_grad}
    assert len(inside) == 2
    assert all(".head." in name for name in inside), inside
    assert len(TuneModule(network, recipe, lambda *_: None).learning()) == 1, "all of it at the head's rate"


def test_what_has_no_place_cannot_learn_from_it(folder, tmp_path):
    with pytest.raises(ConfigError, match="location is for classes of scenes"):
        load_recipe(recipe_of(folder, tmp_path, scenes=None, earth={"set": "corine", "root": "."}))
