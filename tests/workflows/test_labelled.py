"""Labelled images hold what their files say, standard scenes are known by size and counts, and splits keep apart."""

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.io import savemat
from shapely.geometry import Point

import cubeloom
from cubeloom.errors import ConfigError, InputError, ModelError
from cubeloom.pipeline.scene import spec_of
from cubeloom.workflows.train import standard_scenes
from cubeloom.workflows.train.labelled import card_classes, labelled_image, read_images
from cubeloom.workflows.train.labels_recipe import ClassOf, LabelledScene, PixelSplit, StandardScene
from cubeloom.workflows.train.split import split_pixels, tile_splits
from cubeloom.workflows.train.standard_scenes import STANDARD_SETS, StandardSet, read_standard_scene
from cubeloom.workflows.train.stratified import draw_split

CLASSES = {1: ClassOf(name="water"), 3: ClassOf(name="forest", colour="#00AA00"), 8: ClassOf(name="bare soil")}
HEIGHT, WIDTH = 60, 70


@pytest.fixture
def truth():
    """Squares of 6 px of three classes, with rows that have no label."""
    labels = np.kron(np.random.default_rng(4).choice([1, 3, 8], (10, 12)), np.ones((6, 6), np.uint8))[:, :WIDTH]
    labels[::7] = 0
    return labels.astype(np.uint8)


@pytest.fixture
def folder(make_scene, truth, tmp_path):
    """A store of 12 bands, one bad and one not preferred, and its label raster."""
    scene = make_scene(height=HEIGHT, width=WIDTH, bands=12, background=9)
    scene["preferred"] = ("band", np.arange(12) != 5)
    cubeloom.write_scene(scene, tmp_path / "scene.zarr")
    write_raster(tmp_path / "labels.tif", truth, spec_of(scene).grid)
    return tmp_path


def write_raster(path, labels, grid, **changes):
    profile = {"driver": "GTiff", "height": labels.shape[0], "width": labels.shape[1], "count": 1, "dtype": "uint8"}
    told = {"crs": str(grid.crs), "transform": grid.affine, **changes}
    with rasterio.open(path, "w", **profile, **told) as raster:
        raster.write(labels, 1)


def source(folder, scene="scene.zarr", labels="labels.tif", **fields):
    return LabelledScene(scene=folder / scene, labels=folder / labels, **fields)


def test_an_image_is_its_scene_with_labels_where_there_are_values(folder, truth):
    (image,) = read_images([source(folder)], CLASSES)
    stored = cubeloom.open_scene(folder / "scene.zarr")
    valid = stored.quality.values & 1 == 0
    assert image.bands.number.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 12]
    np.testing.assert_array_equal(image.cube, stored.reflectance.values[image.bands.number - 1])
    np.testing.assert_array_equal(image.labels, np.where(valid, truth, 0))
    np.testing.assert_array_equal(image.valid, valid)
    assert image.counts == {value: int((truth[valid] == value).sum()) for value in CLASSES}
    assert [(one.value, one.colour) for one in image.classes] == [(1, "#808080"), (3, "#00aa00"), (8, "#808080")]
    assert (image.units, image.variable, image.sensor) == ("1", "reflectance", "EnMAP")


def test_all_bands_are_kept_on_demand(folder):
    (image,) = read_images([source(folder)], CLASSES, usable=False)
    assert image.bands.number.tolist() == list(range(1, 13))
    assert np.isnan(image.cube[10]).all()
    assert np.isfinite(image.cube[:10, image.valid]).all()


def test_points_label_the_pixels_they_lie_in(folder):
    grid = spec_of(cubeloom.open_scene(folder / "scene.zarr")).grid
    places = {(50, 20): "forest", (30, 60): "water"}
    points = [Point(*(grid.affine * (col + 0.3, row + 0.7))) for row, col in places]
    table = geopandas.GeoDataFrame({"cover": list(places.values())}, geometry=points, crs=str(grid.crs))
    table.to_crs("EPSG:4326").to_file(folder / "points.gpkg")
    (image,) = read_images([source(folder, labels="points.gpkg", field="cover")], CLASSES)
    assert {place: image.labels[place] for place in places} == {(50, 20): 3, (30, 60): 1}
    assert np.count_nonzero(image.labels) == 2


def test_further_scenes_get_the_bands_of_the_first(folder, make_scene):
    other = make_scene(height=HEIGHT, width=WIDTH, bands=12, background=9, seed=2)
    cubeloom.write_scene(other.isel(band=np.arange(2, 12)), folder / "fewer.zarr")
    cubeloom.write_scene(other.assign_coords(wavelength=other.wavelength + 0.4), folder / "other.zarr")
    first, second = read_images([source(folder), source(folder, "other.zarr")], CLASSES)
    assert second.bands is first.bands
    expected = cubeloom.open_scene(folder / "other.zarr").reflectance.values[first.bands.number - 1]
    np.testing.assert_array_equal(second.cube, expected)
    with pytest.raises(ModelError, match=r"fewer\.zarr.*lie where the scene has no good band: 420\.0"):
        read_images([source(folder), source(folder, "fewer.zarr")], CLASSES)


def test_labels_that_do_not_fit_are_named(folder, truth):
    grid = spec_of(cubeloom.open_scene(folder / "scene.zarr")).grid
    write_raster(folder / "shifted.tif", truth, grid, transform=grid.affine * Affine.translation(0, 1))
    write_raster(folder / "zone.tif", truth, grid, crs="EPSG:32632")
    for name in ("shifted.tif", "zone.tif"):
        with pytest.raises(InputError, match=rf"{name}: not on the scene's grid.*expected"):
            read_images([source(folder, labels=name)], CLASSES)
    with pytest.raises(InputError, match=r"values \[8\] are not among the recipe's classes \[1, 3\]"):
        read_images([source(folder)], {value: CLASSES[value] for value in (1, 3)})
    nothing = np.zeros_like(truth)
    nothing[:9, :9] = 1
    write_raster(folder / "background.tif", nothing, grid)
    with pytest.raises(InputError, match="none of its 81 labelled pixels is valid"):
        read_images([source(folder, labels="background.tif")], CLASSES)


def test_arrays_that_make_no_image_are_refused():
    classes = card_classes(CLASSES)
    labels = np.ones((4, 5), np.uint8)
    with pytest.raises(InputError, match="a cube of 1 bands"):
        labelled_image("x", np.ones((1, 4, 5)), labels, classes)
    with pytest.raises(InputError, match=r"cube is \(3, 5, 4\), its labels \(4, 5\)"):
        labelled_image("x", np.ones((3, 5, 4)), labels, classes)
    with pytest.raises(InputError, match=r"labels hold \[2, 300\], expected 0 for none and the classes 1 water, 3"):
        labelled_image("x", np.ones((3, 4, 5)), np.arange(20).reshape(4, 5) % 2 * 298 + 2, classes)


def test_pairs_of_matlab_files(tmp_path, truth):
    cube = np.random.default_rng(0).random((HEIGHT, WIDTH, 7))
    cube[20, 30, 4] = np.nan
    savemat(tmp_path / "cube.mat", {"img": cube, "gt": truth[:, :5]})
    savemat(tmp_path / "map.mat", {"gt": truth, "other": truth})
    with pytest.raises(ConfigError, match=r"no map that alone has two axes; name one of its arrays: gt .*other"):
        read_images([source(tmp_path, "cube.mat", "map.mat")], CLASSES)
    (image,) = read_images([source(tmp_path, "cube.mat", "map.mat", field="gt")], CLASSES)
    expected = truth.copy()
    expected[20, 30] = 0
    np.testing.assert_array_equal(image.labels, expected)
    np.testing.assert_allclose(image.cube[:, 5, 6], cube[5, 6], rtol=1e-6)
    savemat(tmp_path / "shares.mat", {"gt": truth + 0.5})
    with pytest.raises(InputError, match="no whole numbers, so no classes"):
        read_images([source(tmp_path, "cube.mat", "shares.mat")], CLASSES)


@pytest.mark.parametrize(
    ("name", "gt", "pixels", "train"),
    [
        ("pavia_university", "PaviaU_gt.mat", 42_776, 1800),
        ("salinas", "Salinas_gt.mat", 54_129, 3200),
        ("indian_pines", "Indian_pines_gt.mat", 10_249, None),
    ],
)
def test_the_published_ground_truths_are_known(name, gt, pixels, train, shared_data, tmp_path):
    known = STANDARD_SETS[name]
    (tmp_path / gt.lower()).symlink_to(shared_data / "hsi_gt_only" / gt)
    savemat(tmp_path / known.cube, {known.key: np.broadcast_to(np.arange(known.shape[2], dtype=np.uint8), known.shape)})
    (image,) = read_images([StandardScene(set=name, folder=tmp_path)], {})
    assert image.cube.shape == (known.shape[2], *known.shape[:2])
    assert (image.cube == np.arange(known.shape[2])[:, None, None]).all()
    assert list(image.counts.values()) == list(known.classes.values())
    assert sum(image.counts.values()) == pixels
    if train:
        parts = split_pixels(image, PixelSplit(method="random"))
        assert (parts.train.sum(), parts.test.sum()) == (train, pixels - train)


def test_houston_counts_are_those_of_the_contest():
    known = STANDARD_SETS["houston_2013"]
    assert (sum(known.classes.values()), sum(known.test_counts)) == (2832, 12_197)
    assert len(known.test_counts) == len(known.classes) == 15


@pytest.fixture
def tiny_set(monkeypatch, tmp_path):
    """A set of two rasters of labels, as Houston's, small."""
    known = StandardSet(
        "Tiny", "CASI", (8, 9, 5), "Cube.tif", "", "train.tif", "", {"a": 3, "b": 2}, "test.tif", (1, 4)
    )
    monkeypatch.setitem(standard_scenes.STANDARD_SETS, "tiny", known)
    train, test = np.zeros((2, 8, 9), np.uint8)
    train[0, :3], train[3, 3:5], test[5, 0], test[6:, 2:4] = 1, 2, 1, 2
    told = {"driver": "GTiff", "height": 8, "width": 9, "dtype": "uint8", "crs": "EPSG:32615"}
    told["transform"] = Affine(2.5, 0, 0, 0, -2.5, 0)
    cube = np.random.default_rng(0).integers(0, 99, (5, 8, 9), dtype=np.uint8)
    for name, values in (("cube.TIF", cube), ("train.tif", train[None]), ("test.tif", test[None])):
        with rasterio.open(tmp_path / name, "w", count=len(values), **told) as raster:
            raster.write(values)
    return tmp_path, train, test


def rewrite(path, values):
    with rasterio.open(path, "r+") as raster:
        raster.write(values, 1)


def test_sets_with_pixels_kept_for_tests(tiny_set):
    folder, train, test = tiny_set
    image = read_standard_scene("tiny", folder)
    np.testing.assert_array_equal(image.labels, train + test)
    parts = split_pixels(image, PixelSplit(method="given"))
    np.testing.assert_array_equal(parts.train, train > 0)
    np.testing.assert_array_equal(parts.test, test > 0)


def test_files_that_are_not_those_of_the_set_are_refused(tiny_set, tmp_path):
    folder, train, test = tiny_set
    both = test.copy()
    both[5, 0], both[0, 0] = 0, 1
    rewrite(folder / "test.tif", both)
    with pytest.raises(InputError, match=r"test\.tif: some pixels are labelled in train\.tif too"):
        read_standard_scene("tiny", folder)
    rewrite(folder / "train.tif", np.where(train == 2, 1, train))
    with pytest.raises(InputError, match=r"train\.tif: 5 pixels of class 1, a; Tiny has 3 \(and 1 more"):
        read_standard_scene("tiny", folder)
    rewrite(folder / "train.tif", train + 2)
    with pytest.raises(InputError, match=r"values 2 to 4; expected \(8, 9\) px, the classes 1 to 2 of Tiny"):
        read_standard_scene("tiny", folder)
    (folder / "train.tif").unlink()
    with pytest.raises(InputError, match=r"Tiny needs the file train\.tif, which is not there \(found cube\.TIF"):
        read_standard_scene("tiny", folder)
    known = STANDARD_SETS["indian_pines"]
    savemat(tmp_path / known.cube, {"another": np.zeros((4, 5, 6))})
    with pytest.raises(ConfigError, match=r"no numeric array 'indian_pines_corrected'; the file has another"):
        read_standard_scene("indian_pines", tmp_path)
    savemat(tmp_path / known.cube, {known.key: np.zeros((145, 145, 20), np.uint8)})
    with pytest.raises(InputError, match="145 x 145 px, 20 bands; Indian Pines has 145 x 145 px, 200 bands"):
        read_standard_scene("indian_pines", tmp_path)


@pytest.fixture
def image(truth):
    """An image in memory."""
    cube = np.random.default_rng(0).random((3, HEIGHT, WIDTH), np.float32)
    return labelled_image("image", cube, truth, card_classes(CLASSES))


def test_the_random_split_is_the_authors_draw(image):
    parts = split_pixels(image, PixelSplit(method="random", per_class=40, seed=5))
    train, test = draw_split(image.labels, 40, 5)
    np.testing.assert_array_equal(parts.train, train)
    np.testing.assert_array_equal(parts.test, test)
    assert [(image.labels[parts.train] == value).sum() for value in CLASSES] == [40] * 3


def test_a_class_with_fewer_pixels_than_train_gives_all_or_a_share(image):
    labels = image.labels.copy()
    rare = np.argwhere(labels == 8)
    labels[tuple(rare[11:].T)] = 1
    few = labelled_image("few", image.cube, labels, image.classes)
    for share, kept in ((1.0, 11), (0.5, 5), (0.01, 1)):
        parts = split_pixels(few, PixelSplit(method="random", per_class=100, largest_share=share))
        assert (few.labels[parts.train] == 8).sum() == kept
        assert (few.labels[parts.test] == 8).sum() == 11 - kept


def test_listed_tiles_test_and_the_others_train_up_to_the_buffer(image):
    split = PixelSplit(method="listed", block_px=20, test_tiles=[(0, 1), (2, 3)], buffer_px=2)
    parts = split_pixels(image, split)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[:20, 20:40] = inside[40:, 60:] = True
    near = np.zeros_like(inside)
    near[:22, 18:42] = near[38:, 58:] = True
    np.testing.assert_array_equal(parts.test, inside & (image.labels > 0))
    np.testing.assert_array_equal(parts.train, ~near & (image.labels > 0))
    with pytest.raises(ConfigError, match=r"test tile \[9, 0\] of 20 px holds no label"):
        split_pixels(image, split.model_copy(update={"test_tiles": ((9, 0),)}))
    with pytest.raises(InputError, match=r"no training pixel of class \[1, 3, 8\] with split listed"):
        split_pixels(image, PixelSplit(method="listed", block_px=99, test_tiles=[(0, 0)]))
    with pytest.raises(ConfigError, match="comes without pixels kept for tests"):
        split_pixels(image, PixelSplit(method="given"))


@pytest.mark.parametrize("method", ["blocks", "tiles"])
def test_squares_keep_their_distance_and_classes_their_most(image, method):
    parts = split_pixels(image, PixelSplit(method=method, block_px=12, buffer_px=3, per_class=50, seed=1))
    train, test = (np.argwhere(mask) for mask in (parts.train, parts.test))
    assert min(np.abs(test - place).max(axis=1).min() for place in train) > 3
    assert max(np.bincount(image.labels[parts.train])) == 50
    assert set(image.labels[parts.train]) == set(image.labels[parts.test]) == set(CLASSES)


def test_the_listed_splits_of_the_potsdam_scene_are_read(request, tmp_path):
    splits = tile_splits(request.config.rootpath / "benchmarks/potsdam_splits.yaml")
    assert list(splits) == ["s1", "s2", "s3", "s4", "s5"]
    assert {(one.method, one.block_px, len(set(one.test_tiles))) for one in splits.values()} == {("listed", 32, 9)}
    (tmp_path / "list.yaml").write_text("splits: [{name: a}]")
    with pytest.raises(ConfigError, match="expected tile_px and splits"):
        tile_splits(tmp_path / "list.yaml")


def test_splits_that_contradict_themselves_are_refused():
    for fields in ({"method": "listed"}, {"method": "blocks", "test_tiles": [(0, 0)]}):
        with pytest.raises(ValueError, match="test_tiles and method listed go together"):
            PixelSplit(**fields)
