"""Sentinel-1 GRD products: simulated ones read in every way, against their truth; damaged ones refused."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform
from scipy.spatial import cKDTree

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import Window, whole
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.sentinel1 import find_products
from cubeloom.pipeline.readers.sentinel1_geolocation import NODE
from cubeloom.pipeline.scene import validate_scene
from cubeloom.pipeline.simulate import SimulatedProduct, simulate_scene
from cubeloom.pipeline.simulate.sentinel1 import simulate_sentinel1
from cubeloom.pipeline.stages import stage_class

GROUND = {"seed": 4, "height": 96, "width": 80, "place": (52.4, 13.1)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimulatedProduct:
    return simulate_sentinel1(tmp_path_factory.mktemp("s1"), **GROUND, reflectors=True)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> SimulatedProduct:
    """With one noise vector list, border noise, and the image turned the other way."""
    return simulate_sentinel1(
        tmp_path_factory.mktemp("s1"), **GROUND, version="002.72", direction="descending", gain=300.0, noise_floor=-22.0
    )


@pytest.fixture
def copy(made: SimulatedProduct, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / made.path.name))


def read_all(path: Path, name: str = "sigma0", **options: str) -> np.ndarray:
    source = open_source(path, **options)
    return source.read(name, whole(source.spec.shape))


def nearest_in_image(product: SimulatedProduct, path: Path, **options: str) -> tuple[np.ndarray, np.ndarray]:
    """For every map pixel its place in the image (flat, -1 beyond it), from ESA's ground control points alone.

    Positions between the points are those of a second-order polynomial by least squares: no code of the reader.
    """
    grid = open_source(path, **options).spec.grid
    (tiff,) = product.path.glob("measurement/*-vv-*.tiff")
    with rasterio.open(tiff) as dataset:
        points, shape = dataset.gcps[0], dataset.shape
    x, y = transform("EPSG:4326", str(grid.crs), [point.x for point in points], [point.y for point in points])

    def design(line: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(line), line, pixel, line * pixel, line**2, pixel**2], axis=1) / 1.0

    at = np.array([[point.row / shape[0], point.col / shape[1]] for point in points])
    weights = np.linalg.lstsq(design(*at.T), np.array([x, y]).T - np.array([x, y]).T.mean(0), rcond=None)[0]
    line, pixel = (part.ravel().astype(float) for part in np.mgrid[: shape[0], : shape[1]])
    places = design(line / shape[0], pixel / shape[1]) @ weights + np.array([x, y]).T.mean(0)
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
    step = grid.transform
    wanted = np.stack([step.c + step.a * cols.ravel(), step.f + step.e * rows.ravel()], axis=1)
    distance, found = cKDTree(places).query(wanted)
    return np.where(distance < 7.1, found, -1), np.array(shape)


def truth_of(product: SimulatedProduct, name: str) -> np.ndarray:
    with rasterio.open(product.truth_folder / name) as dataset:
        return np.asarray(dataset.read())


@pytest.mark.parametrize("which", ["made", "old"])
def test_sigma0_is_the_truth_to_a_tenth_of_a_decibel(which, request):
    """By class and polarisation, wherever speckle and noise leave less than a third of that to chance."""
    product = request.getfixturevalue(which)
    options = {"resampling": "nearest", "noise": "signed", "border": "off"}
    found, _ = nearest_in_image(product, product.path, **options)
    sigma0, floor = (
        read_all(product.path, **options),
        json.loads((product.truth_folder / "PARAMETERS.json").read_text())["noise_floor_db"],
    )
    truth, classes = truth_of(product, "sigma0.tif"), truth_of(product, "classes.tif")[0].ravel()
    checked = 0
    for band in (0, 1):
        clean = np.where(truth[band] < 3, truth[band], np.nan).ravel()  # without the reflectors
        at = np.where(found >= 0, clean[found], np.nan)
        measured = sigma0[band].ravel()
        cover = np.where(np.isfinite(at) & np.isfinite(measured), classes[found], 0)
        for value in np.unique(cover[cover > 0]):
            here = cover == value
            power = at[here] + 1.4 * 10 ** (floor / 10)
            error = 4.34 * np.sqrt((power**2).sum() / 5) / at[here].sum()
            if error > 0.033:
                continue
            checked += 1
            assert abs(10 * np.log10(measured[here].mean() / at[here].mean())) < 0.1, (band, value)
    assert checked >= 6


def test_pixels_lie_where_the_ground_points_say(made, old):
    """Every value of the map is that of the nearest pixel of the image, up to ties on the way to the next one."""
    for product in (made, old):
        options = {"resampling": "nearest", "noise": "kept", "border": "off"}
        found, _ = nearest_in_image(product, product.path, **options)
        sigma0 = read_all(product.path, **options)[0].ravel()
        (tiff,) = product.path.glob("measurement/*-vv-*.tiff")
        with rasterio.open(tiff) as dataset:
            numbers = dataset.read(1).ravel().astype(float)
        dn = np.where(found >= 0, numbers[found], 0)
        inside = (dn > 0) & np.isfinite(sigma0)
        # A^2 changes by less than a percent over the image, numbers of neighbours by tens of percent
        ratio = dn[inside] ** 2 / sigma0[inside]
        assert np.mean(np.abs(ratio / np.median(ratio) - 1) < 0.02) > 0.97
        assert np.mean(np.isfinite(sigma0) == (dn > 0)) > 0.995


def test_corner_reflectors_stand_within_half_a_pixel_of_their_places(made):
    source = open_source(made.path)
    place = source.spec.grid.transform
    image = source.read("sigma0", whole(source.spec.shape))[0].astype(float)
    standing = json.loads((made.truth_folder / "PARAMETERS.json").read_text())["reflectors"]
    assert len(standing) == 4
    for one in standing:
        row, col = (one["y"] - place.f) / place.e, (one["x"] - place.c) / place.a
        rows, cols = np.mgrid[int(row) - 4 : int(row) + 5, int(col) - 4 : int(col) + 5]
        power = image[rows, cols] - np.median(image[rows, cols])
        power[power < 0] = 0
        assert power.max() > 100
        assert abs((power * (rows + 0.5)).sum() / power.sum() - row) < 0.5
        assert abs((power * (cols + 0.5)).sum() / power.sum() - col) < 0.5


def test_corners_of_the_image_map_within_half_a_pixel(made, old):
    for product in (made, old):
        source = open_source(product.path)
        model = source.geocoding.model
        (tiff,) = product.path.glob("measurement/*-vh-*.tiff")
        with rasterio.open(tiff) as dataset:
            points, (height, width) = dataset.gcps[0], dataset.shape
        ends = [one for one in points if one.row in (0, height - 1) and one.col in (0, width - 1)]
        assert len(ends) == 4
        x, y = (
            np.array(part)
            for part in transform(
                "EPSG:4326", str(source.spec.grid.crs), [one.x for one in ends], [one.y for one in ends]
            )
        )
        line, pixel = model.inverse(x, y)
        np.testing.assert_allclose(line, [one.row for one in ends], atol=0.01)
        np.testing.assert_allclose(pixel, [one.col for one in ends], atol=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": "30m", "angles": "incidence"},
        {"resampling": "nearest", "crs": "EPSG:3035"},
        {"crs": "EPSG:4326", "noise": "kept"},
    ],
)
def test_a_pixel_does_not_depend_on_the_window(old, options, monkeypatch):
    source = open_source(old.path, **options)
    height, width = source.spec.shape
    for name in source.spec.variables:
        everything = source.read(name, whole((height, width)))
        assert np.isfinite(everything).any()
        for window in (
            Window(0, 0, height, 1),
            Window(height // 3, 5, 7, width - 9),
            Window(NODE - 1, NODE + 1, height // 2, width // 2),
            Window(height - 1, width - 1, 1, 1),
        ):
            part = source.read(name, window)
            np.testing.assert_array_equal(part, everything[(..., *window.slices)])
        monkeypatch.setattr("cubeloom.pipeline.readers.sentinel1.BLOCK", 37)
        np.testing.assert_array_equal(source.read(name, whole((height, width))), everything)
        monkeypatch.undo()


def test_one_band_alone_is_that_of_the_cube(made):
    source = open_source(made.path)
    window = Window(100, 100, 40, 50)
    np.testing.assert_array_equal(source.read("sigma0", window, slice(1, 2)), source.read("sigma0", window)[1:])


def test_a_scene_says_what_it_is_and_survives_the_store(made, tmp_path):
    scene = cubeloom.open_scene(made.path)
    validate_scene(scene)
    assert scene.attrs["band_names"] == {"1": "VV", "2": "VH"}
    assert scene["detector"].values.tolist() == ["vv", "vh"]
    np.testing.assert_allclose(scene["wavelength"], 299_792_458 / 5.405000454334350e9 * 1e9)
    assert (scene.attrs["sensor"], scene.attrs["processing_level"]) == ("Sentinel-1A", "GRD")
    assert scene.attrs["looks"] == 5
    assert scene.attrs["orbit_direction"] == "ascending"
    assert "no terrain correction" in scene.attrs["history"]
    assert "ellipsoid" in scene.attrs["history"]
    assert scene.odc.geobox.crs.to_epsg() == 32633
    assert abs(scene.odc.geobox.resolution.x) == 10
    store = tmp_path / "s1.zarr"
    stages = [stage_class("despeckle")(), stage_class("to_db")()]
    run_to_store(open_source(made.path), stages, store)
    again = cubeloom.open_scene(store)
    np.testing.assert_array_equal(again["sigma0"].values, scene["sigma0"].values)
    lifted = cubeloom.to_db(cubeloom.despeckle(scene))
    np.testing.assert_array_equal(again["despeckled_db"].values, lifted["despeckled_db"].values)
    assert again["despeckled_db"].attrs["units"] == "dB"


def test_options_change_what_they_say(made):
    kept, signed, clipped = (read_all(made.path, noise=noise) for noise in ("kept", "signed", "clipped"))
    known = np.isfinite(kept)
    assert (signed[known] < kept[known]).all()
    assert (signed[known] < 0).any()
    assert clipped[known].min() == 0
    assert np.mean(clipped[known] >= signed[known] - 1e-7) == 1
    source = open_source(made.path, angles="incidence", calibration="gamma0", noise="kept")
    gamma0, angle = (source.read(name, whole(source.spec.shape)) for name in ("gamma0", "incidence_angle"))
    both = known[0] & np.isfinite(gamma0[0])
    assert 38 < angle[both].min() < angle[both].max() < 39
    np.testing.assert_allclose(gamma0[0][both], kept[0][both] / np.cos(np.radians(angle[both])), rtol=2e-5)
    assert source.spec.measurement == "gamma0"
    coarse = read_all(made.path, grid="30m", noise="kept")
    assert np.nanmean(coarse) == pytest.approx(np.nanmean(kept), rel=0.02)
    assert np.nanstd(coarse[1]) < np.nanstd(kept[1])


def test_border_noise_of_old_processors_is_no_value(old):
    """The border has numbers up to 9, less than the noise; nothing else that is far from it is taken."""
    masked, left = read_all(old.path, resampling="nearest"), read_all(old.path, resampling="nearest", border="off")
    found, _ = nearest_in_image(old, old.path)
    outside = (np.where(found >= 0, truth_of(old, "classes.tif")[0].ravel()[found], 255) == 0).reshape(masked.shape[1:])
    assert np.isfinite(left[0][outside]).mean() > 0.5
    assert np.isfinite(masked[0][outside]).mean() < 0.02
    inside = (np.where(found >= 0, truth_of(old, "classes.tif")[0].ravel()[found], 0) > 0).reshape(masked.shape[1:])
    assert np.isfinite(masked[0][inside]).mean() > 0.97
    history = open_source(old.path).spec.history
    assert "border noise masked" in history


def test_noise_that_the_processor_removed_is_not_removed_again(copy):
    kept = read_all(copy, noise="kept")
    for path in copy.glob("annotation/*.xml"):
        text = path.read_text()
        assert "Performed>false<" in text
        path.write_text(text.replace("Performed>false<", "Performed>true<"))
    np.testing.assert_array_equal(read_all(copy), kept)
    assert "removed by the processor" in open_source(copy).spec.history[0]


def test_a_zip_is_read_in_place(made, tmp_path):
    archive = tmp_path / f"{made.path.stem}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in made.path.rglob("*"):
            file.write(path, f"{made.path.name}/{path.relative_to(made.path)}")
    inside, folder = open_source(archive), open_source(made.path)
    assert inside.spec.scene_id == folder.spec.scene_id == made.scene_id
    assert inside.files() == [archive]
    window = Window(60, 70, 90, 80)
    np.testing.assert_array_equal(inside.read("sigma0", window), folder.read("sigma0", window))
    shutil.copytree(made.path, tmp_path / "deep" / made.path.name)
    assert list(find_products(tmp_path)) == [archive, tmp_path / "deep" / made.path.name]
    np.testing.assert_array_equal(
        open_source(made.path / "manifest.safe").read("sigma0", window), folder.read("sigma0", window)
    )


def test_the_fingerprint_follows_content_and_options(made, copy):
    first = open_source(made.path).fingerprint()
    assert open_source(copy).fingerprint() == first
    assert open_source(copy, noise="kept").fingerprint() != first
    path = next(copy.glob("annotation/calibration/calibration-*-vh-*.xml"))
    path.write_text(path.read_text().replace("<sigmaNought", "\n<sigmaNought"))
    assert open_source(copy).fingerprint() != first


def test_the_ground_is_that_of_the_enmap_scene(made, tmp_path):
    enmap = simulate_scene(tmp_path, **GROUND, n_vnir=2, n_swir=2)
    (path,) = enmap.truth_folder.glob("CLASSES.TIF")
    with rasterio.open(path) as dataset:
        cover, place, crs = dataset.read(1), dataset.transform, dataset.crs
    (tiff,) = made.path.glob("measurement/*-vv-*.tiff")
    with rasterio.open(tiff) as dataset:
        points = dataset.gcps[0]
    classes = truth_of(made, "classes.tif")[0]
    x, y = transform("EPSG:4326", crs, [one.x for one in points], [one.y for one in points])
    rows, cols = ((np.array(y) - place.f) / place.e).astype(int), ((np.array(x) - place.c) / place.a).astype(int)
    seen = np.array([classes[int(one.row), int(one.col)] for one in points])
    inside = (rows >= 0) & (rows < cover.shape[0]) & (cols >= 0) & (cols < cover.shape[1])
    inside[inside] &= cover[rows[inside], cols[inside]] > 0
    assert inside.sum() > 60
    assert np.mean(seen[inside] == cover[rows[inside], cols[inside]]) > 0.75  # cells of 15 m in pixels of 30 m


def test_a_shift_moves_the_image_on_the_map(made, tmp_path):
    """By five lines along an ascending track, 12 deg to the west of north."""
    heading = np.radians(-12)
    moved = simulate_sentinel1(tmp_path, **GROUND, shift=(50 * np.sin(heading), 50 * np.cos(heading)))
    plain, shifted = truth_of(made, "classes.tif")[0], truth_of(moved, "classes.tif")[0]
    np.testing.assert_array_equal(shifted[65:-60], plain[60:-65])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "beta0"}, "calibration='beta0'; expected 'sigma0' or 'gamma0'"),
        ({"noise": "no"}, "noise='no'"),
        ({"crs": "EPSG:0"}, "crs='EPSG:0' is not known"),
        ({"grid": "fine"}, "grid='fine'; expected native"),
        ({"grid": "-3"}, "grid='-3'"),
        ({"grid": "20m", "crs": "EPSG:4326"}, "more than 64 pixels"),
        ({"offset": "3"}, "take no option 'offset'"),
    ],
)
def test_wrong_options_are_told(made, options, message):
    with pytest.raises(ConfigError, match=message):
        open_source(made.path, **options)


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def replace(path: Path, old_text: str, new_text: str, count: int = 1) -> None:
    text = path.read_text()
    assert old_text in text
    path.write_text(text.replace(old_text, new_text, count))


CALIBRATION = "annotation/calibration/calibration-*-vv-*.xml"
NOISE = "annotation/calibration/noise-*-vv-*.xml"
ANNOTATION = "annotation/*-vv-*.xml"


def without_calibration(folder):
    one(folder, CALIBRATION).unlink()


def unlisted_calibration(folder):
    replace(folder / "manifest.safe", "s1Level1CalibrationSchema", "other", 2)


def with_entities(folder):
    path = one(folder, CALIBRATION)
    path.write_text('<!DOCTYPE x [<!ENTITY a "b">]>' + path.read_text().partition("?>\n")[2])


def short_table(folder):
    path = one(folder, CALIBRATION)
    start = path.read_text().index("<sigmaNought")
    text = path.read_text()
    end = text.index("</sigmaNought>", start)
    path.write_text(text[: end - 13] + text[end:])


def short_noise(folder):
    path = one(folder, NOISE)
    text = path.read_text()
    end = text.index("</noiseAzimuthLut>")
    path.write_text(text[: end - 13] + text[end:])


def cut_xml(folder):
    path = one(folder, NOISE)
    path.write_bytes(path.read_bytes()[:3000])


def negative_gain(folder):
    replace(one(folder, CALIBRATION), "e+02 ", "e+02 -", 1)


def falling_pixels(folder):
    replace(one(folder, NOISE), ">0 40 80", ">40 0 80")


def another_shape(folder):
    for path in folder.glob("annotation/*.xml"):
        replace(path, "<numberOfLines>", "<numberOfLines>1")


def missing_point(folder):
    for path in folder.glob("annotation/*.xml"):
        text = path.read_text()
        start = text.index("<geolocationGridPoint>")
        path.write_text(text[:start] + text[text.index("</geolocationGridPoint>") + 24 :])


def off_the_earth(folder):
    for path in folder.glob("annotation/*.xml"):
        replace(path, "<latitude>", "<latitude>9")


def single_look_complex(folder):
    replace(folder / "manifest.safe", "productType>GRD<", "productType>SLC<")


def climbing(folder):
    replace(folder / "manifest.safe", "./annotation/calibration/cal", "./../../annotation/calibration/cal")


def no_looks(folder):
    for path in folder.glob("annotation/*.xml"):
        replace(path, "numberOfLooks>5<", "numberOfLooks>0<", 3)


def empty_measurement(folder):
    one(folder, "measurement/*-vv-*").write_bytes(b"")


def vanished_measurement(folder):
    one(folder, "measurement/*-vh-*").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_calibration, "calibration-s1a.*is missing, though the product's own metadata list it"),
        (unlisted_calibration, "lists no calibration of VV"),
        (with_entities, "calibration-s1a.*DTD, entities or external references"),
        (short_table, r"vector at line 0 has \d+ values of sigmaNought at \d+ of pixel; expected as many"),
        (short_noise, "values of noiseAzimuthLut at .* of line; expected as many"),
        (cut_xml, "noise-s1a.*not well-formed XML"),
        (negative_gain, "sigmaNought holds negative numbers"),
        (falling_pixels, "its pixel do not ascend"),
        (another_shape, "the annotation expects one of 1"),
        (missing_point, "209 points of the geolocation grid"),
        (off_the_earth, "do not lie on the Earth"),
        (single_look_complex, "a product of type 'SLC'"),
        (climbing, "expected a path inside|path of a listed file"),
        (no_looks, "looks are not above zero"),
        (empty_measurement, "the file is empty"),
        (vanished_measurement, "is missing, though"),
    ],
)
def test_damage_is_one_clear_error(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        open_source(copy)


def test_a_truncated_image_is_an_error_and_never_no_value(copy):
    path = one(copy, "measurement/*-vv-*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"-vv-.*(damaged|cannot be)"):
        read_all(copy)


def test_a_measurement_alone_is_refused(made):
    with pytest.raises(InputError, match="open the product's folder or ZIP"):
        open_source(one(made.path, "measurement/*-vv-*"))


@pytest.mark.parametrize("place", [(52.0, 179.98), (-33.0, -179.98)])
def test_a_scene_across_the_antimeridian_is_in_one_piece(tmp_path, place):
    product = simulate_sentinel1(tmp_path, seed=1, height=24, width=150, place=place)
    source = open_source(product.path, crs="EPSG:4326")
    assert source.spec.shape[1] < 2000
    assert np.isfinite(source.read("sigma0", whole(source.spec.shape))).mean() > 0.2
    assert open_source(product.path).spec.shape[1] < 1000


def test_the_same_arguments_give_the_same_product(made, tmp_path):
    again = simulate_sentinel1(tmp_path, **GROUND, reflectors=True)
    assert again.scene_id == made.scene_id
    for path in made.path.rglob("*.*"):
        if path.is_file():
            assert (again.path / path.relative_to(made.path)).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="direction"):
        simulate_sentinel1(tmp_path, direction="up")
