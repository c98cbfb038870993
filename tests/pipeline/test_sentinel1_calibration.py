"""Sentinel-1's tables and geolocation, with ESA's own documents where they are, against computations by hand."""

import re
import zipfile
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pytest
import rasterio
from distributed.protocol.pickle import dumps, loads
from rasterio.control import GroundControlPoint
from rasterio.warp import transform

from cubeloom.errors import InputError
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers import sentinel1_geolocation as geolocation
from cubeloom.pipeline.readers.sentinel1_border import border
from cubeloom.pipeline.readers.sentinel1_calibration import Radiometry, parse_calibration, parse_noise
from cubeloom.pipeline.readers.sentinel1_metadata import parse_annotation, parse_manifest
from cubeloom.pipeline.readers.sentinel1_sampling import Samples
from cubeloom.pipeline.readers.xml_tree import Node
from cubeloom.untrusted import Element, parse_xml


@pytest.fixture(scope="module")
def archive(shared_data) -> Path:
    found = sorted((shared_data / "sentinel1_grd").glob("S1A_IW_GRDH_*.zip"))
    if not found:
        pytest.skip(f"no S1A product in {shared_data / 'sentinel1_grd'}")
    return found[0]


def document(archive: Path, pattern: str) -> tuple[Node, Element]:
    """A document of the product: as the reader sees it, and as it is."""
    with zipfile.ZipFile(archive) as file:
        (name,) = (name for name in file.namelist() if re.search(pattern, name))
        data = file.read(name)
    return Node.parse(data, name), parse_xml(data, name)


def between(place: float, places: list[float], values: list[float]) -> float:
    """Linear interpolation in Python's floats."""
    at = min(max(bisect_right(places, place) - 1, 0), len(places) - 2)
    share = (place - places[at]) / (places[at + 1] - places[at])
    return values[at] + (values[at + 1] - values[at]) * min(max(share, 0.0), 1.0)


Vectors = list[tuple[float, list[float], list[float]]]


def vectors_of(root: Element, vector: str, table: str) -> Vectors:
    """Line, pixels and values of every vector of a table."""
    return [
        (
            float(node.findtext("line")),
            *([float(one) for one in node.findtext(name).split()] for name in ("pixel", table)),
        )
        for node in root.iter(vector)
    ]


def by_hand(vectors: Vectors, line: float, pixel: float) -> float:
    """Bilinear value of a table."""
    first = min(max(bisect_right([one[0] for one in vectors], line) - 1, 0), len(vectors) - 2)
    rows = vectors[first : first + 2]
    return between(line, [row[0] for row in rows], [between(pixel, row[1], row[2]) for row in rows])


def azimuth_by_hand(root: Element, line: int, pixel: int) -> float:
    for node in root.iter("noiseAzimuthVector"):
        low, high = (int(node.findtext(name)) for name in ("firstRangeSample", "lastRangeSample"))
        top, bottom = (int(node.findtext(name)) for name in ("firstAzimuthLine", "lastAzimuthLine"))
        if low <= pixel <= high and top <= line <= bottom:
            places, values = (
                [float(one) for one in node.findtext(name).split()] for name in ("line", "noiseAzimuthLut")
            )
            return between(line, places, values)
    return 1.0


@pytest.mark.parametrize(("quantity", "table"), [("sigma0", "sigmaNought"), ("gamma0", "gamma")])
@pytest.mark.parametrize("polarisation", ["vv", "vh"])
def test_backscatter_of_the_real_tables_is_that_by_hand(archive, polarisation, quantity, table):
    """At 100 random pixels, half of them on the borders between the swaths and at the image's edges."""
    calibration, calibration_xml = document(archive, f"/calibration-s1a-iw-grd-{polarisation}")
    noise, noise_xml = document(archive, f"/noise-s1a-iw-grd-{polarisation}")
    radiometry = Radiometry(parse_calibration(calibration, quantity), parse_noise(noise), clip=False)
    gains = vectors_of(calibration_xml, "calibrationVector", table)
    etas = vectors_of(noise_xml, "noiseRangeVector", "noiseRangeLut")
    random = np.random.default_rng(7)
    lines, pixels = random.integers(0, 16854, 100), random.integers(0, 25931, 100)
    pixels[:50] = np.resize([0, 1, 8742, 8743, 17561, 17562, 25929, 25930], 50)
    lines[40:60] = np.resize([0, 16850, 16853, 674, 673], 20)
    numbers = random.integers(20, 2000, (100, 3, 4)).astype(np.uint16)
    for line, pixel, dn in zip(lines.tolist(), pixels.tolist(), numbers, strict=True):
        down, right = min(line, 2), min(pixel, 3)  # the pixel lies anywhere in a window
        found = radiometry.calibrate(dn, Window(line - down, pixel - right, 3, 4))[down, right]
        eta = by_hand(etas, line, pixel) * azimuth_by_hand(noise_xml, line, pixel)
        expected = (float(dn[down, right]) ** 2 - eta) / by_hand(gains, line, pixel) ** 2
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert float(np.float32(found)) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def real_product(archive, tmp_path_factory) -> Path:
    """The real product of full size, with made-up numbers in 120 lines of its images, which are not there."""
    folder = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder, [name for name in file.namelist() if name.endswith((".xml", ".safe"))])
    (product,) = folder.glob("*.SAFE")
    (product / "measurement").mkdir()
    numbers = np.random.default_rng(1).integers(0, 900, (120, 25931)).astype(np.uint16)
    points = [GroundControlPoint(row=row, col=col, x=col, y=row) for row in (0, 1) for col in (0, 1)]
    for annotation in product.glob("annotation/s1a-*.xml"):
        shape = {"width": 25931, "height": 16854, "count": 1, "dtype": "uint16", "blockysize": 1}
        with rasterio.open(
            product / f"measurement/{annotation.stem}.tiff", "w", driver="GTiff", gcps=points, crs="EPSG:4326",
            SPARSE_OK="TRUE", **shape,
        ) as dataset:  # fmt: skip
            dataset.write(numbers, 1, window=((8000, 8120), (0, 25931)))
    return product


def test_a_real_product_of_full_size_reads_by_hand(archive, real_product):
    """Map pixels at 100 places, through file, tables and geocoding: sigma0 of the numbers in the file to 1e-6."""
    source = open_source(real_product, resampling="nearest", noise="signed")
    assert source.spec.grid.crs.to_epsg() == 32736
    gains = vectors_of(document(archive, "/calibration-s1a-iw-grd-vv")[1], "calibrationVector", "sigmaNought")
    noise_xml = document(archive, "/noise-s1a-iw-grd-vv")[1]
    etas = vectors_of(noise_xml, "noiseRangeVector", "noiseRangeLut")
    place, random = source.spec.grid.transform, np.random.default_rng(4)
    with rasterio.open(next(real_product.glob("measurement/*-vv-*"))) as dataset:
        numbers = dataset.read(1, window=((8000, 8120), (0, 25931)))
    checked = 0
    while checked < 100:
        x, y = source.geocoding.model.forward(random.uniform(8010, 8110, 1), random.uniform(20, 25900, 1))
        row, col = int((y[0] - place.f) / place.e), int((x[0] - place.c) / place.a)
        line, pixel = (float(part[0, 0]) for part in source.geocoding.positions(Window(row, col, 1, 1)))
        found = float(source.read("sigma0", Window(row, col, 1, 1), slice(0, 1))[0, 0, 0])
        line, pixel = int(np.floor(line + 0.5)), int(np.floor(pixel + 0.5))
        dn = int(numbers[line - 8000, pixel])
        eta = by_hand(etas, line, pixel) * azimuth_by_hand(noise_xml, line, pixel)
        expected = (dn**2 - eta) / by_hand(gains, line, pixel) ** 2 if dn else np.nan
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
        checked += dn > 0
    again = loads(dumps(source))
    np.testing.assert_array_equal(
        again.read("sigma0", Window(row, col, 1, 1)), source.read("sigma0", Window(row, col, 1, 1))
    )
    assert len(dumps(source)) < 500_000


def test_a_real_manifest_and_annotation_are_read_as_they_stand(archive):
    manifest, _ = document(archive, "manifest.safe")
    product = parse_manifest(manifest)
    assert (product.sensor, product.version) == ("Sentinel-1A", 3.31)
    assert product.attrs["orbit_direction"] == "descending"
    assert product.attrs["relative_orbit"] == "79"
    assert product.attrs["footprint"][0] == [34.613232, -19.203491]
    node, _ = document(archive, "annotation/s1a-iw-grd-vh")
    image = parse_annotation(node)
    assert (image.polarisation, image.shape, image.spacing, image.looks) == ("VH", (16854, 25931), (10.0, 10.0), 5.0)
    assert (image.start.isoformat(), image.denoised) == ("2021-01-19T03:16:53.799379+00:00", False)


def test_a_product_without_its_images_names_the_first_that_is_missing(archive):
    with pytest.raises(
        InputError, match=r"s1a-iw-grd-vv-.*\.tiff is missing, though the product's own metadata list it"
    ):
        open_source(archive)


@pytest.fixture(scope="module", params=["S1A", "S1B"])
def points(request, shared_data, archive) -> geolocation.GeolocationGrid:
    """Geolocation grids of Mozambique and of the Alps."""
    if request.param == "S1A":
        return parse_annotation(document(archive, "annotation/s1a-iw-grd-vv")[0]).points
    (path,) = shared_data.glob("sentinel1_grd/S1B*/annotation/*-vv-*.xml")
    return parse_annotation(Node.parse(path.read_bytes(), path.name)).points


def test_real_points_are_met_and_the_inverse_leads_back(points):
    crs = geolocation.map_crs(points)
    model = geolocation.MapModel.fit(points, crs, "real")
    line, pixel = np.meshgrid(points.lines, points.pixels, indexing="ij")
    x, y = model.forward(line, pixel)
    expected = transform("EPSG:4326", crs, points.longitude.ravel().tolist(), points.latitude.ravel().tolist())
    np.testing.assert_allclose(x.ravel(), expected[0], atol=1e-3)
    np.testing.assert_allclose(y.ravel(), expected[1], atol=1e-3)
    random = np.random.default_rng(3)
    line, pixel = (random.uniform(0, size - 1, 2000) for size in points.shape)
    found = model.inverse(*model.forward(line, pixel))
    np.testing.assert_allclose(found[0], line, atol=0.01)
    np.testing.assert_allclose(found[1], pixel, atol=0.01)


def test_curvature_and_height_between_points_are_kept():
    """A bent track over rough ground, with known places between the points; bilinear alone cuts off the bend."""
    random, shape = np.random.default_rng(2), (16_000, 25_000)
    lines, pixels = np.linspace(0, shape[0] - 1, 10), np.linspace(0, shape[1] - 1, 21)
    line, pixel = np.meshgrid(lines, pixels, indexing="ij")
    height = random.uniform(0, 2500, line.shape)

    def place(line, pixel, height):
        down, right = line / shape[0], pixel / shape[1]
        x = 3e5 + 2.5e5 * right + 3e4 * down + 900 * down**2 - 700 * right**3 - height * (1.7 - 0.7 * right)
        return x, 6e6 - 1.6e5 * down + 5e4 * right + 1500 * right**2 + 400 * down * right + 0.2 * height

    longitude, latitude = transform("EPSG:32633", "EPSG:4326", *(part.ravel() for part in place(line, pixel, height)))
    table = [line.ravel(), pixel.ravel(), latitude, longitude, height.ravel(), np.full(line.size, 38.0)]
    points = geolocation.GeolocationGrid.from_points(np.stack(table, axis=1), shape, "here")
    model = geolocation.MapModel.fit(points, "EPSG:32633", "here")
    line, pixel = (random.uniform(0, size - 1, 500) for size in shape)
    expected = place(line, pixel, points.at(points.height, line, pixel))
    found = model.forward(line, pixel)
    layers = place(*np.meshgrid(lines, pixels, indexing="ij"), points.height)
    plain = [points.at(layer, line, pixel) for layer in layers]
    assert np.hypot(found[0] - expected[0], found[1] - expected[1]).max() < 0.5
    assert np.hypot(plain[0] - expected[0], plain[1] - expected[1]).max() > 10


def test_positions_on_the_map_do_not_depend_on_the_window(points):
    model = geolocation.MapModel.fit(points, geolocation.map_crs(points), "real")
    grid = geolocation.map_grid(model, geolocation.map_crs(points), 10.0, "real")
    geocoding = geolocation.Geocoding(grid, model)
    whole = geocoding.positions(Window(9001, 9003, 150, 170))
    part = geocoding.positions(Window(9077, 9100, 33, 18))
    for every, some in zip(whole, part, strict=True):
        np.testing.assert_array_equal(every[76:109, 97:115], some)
    # and the nodes' bilinear cells stay near the inverse itself
    rows, cols = np.arange(9001, 9151) + 0.5, np.arange(9003, 9173) + 0.5
    x, y = np.meshgrid(grid.transform.c + 10 * cols, grid.transform.f - 10 * rows)
    for every, exact in zip(whole, model.inverse(x, y), strict=True):
        assert np.abs(every - exact).max() < 0.25


@pytest.mark.parametrize(
    ("latitude", "longitude", "code"),
    [(52.0, 13.0, 32633), (-33.0, 151.0, 32756), (0.0, 179.9, 32660), (-1.0, -179.0, 32701), (86.0, 0.0, 32661)],
)
def test_the_map_is_the_utm_zone_of_the_middle(latitude, longitude, code):
    line, pixel = np.meshgrid([0.0, 50, 99], [0.0, 50, 99], indexing="ij")
    places = np.stack([line, pixel, latitude + line / 1e4, longitude + pixel / 1e4 - 5e-3, 0 * line, 30 + 0 * line], -1)
    grid = geolocation.GeolocationGrid.from_points(places.reshape(-1, 6), (100, 100), "here")
    assert geolocation.map_crs(grid) == f"EPSG:{code}"


def test_border_is_what_leads_from_an_edge_over_low_numbers():
    random = np.random.default_rng(0)
    image = random.integers(50, 400, (700, 650)).astype(np.uint16)
    image[:, :30], image[-20:] = 0, 0
    image[100:140, :40] = 0
    image[300, 300] = 0  # no edge leads there
    image[:5, 600:] = 0
    expected = image == 0
    expected[300, 300] = False

    def read(window: Window) -> np.ndarray:
        return image[window.slices]

    found = border(read, None, Window(0, 0, 700, 650), (700, 650))
    np.testing.assert_array_equal(found, expected)
    for window in (Window(90, 10, 60, 50), Window(650, 500, 50, 150), Window(290, 290, 30, 30), Window(0, 590, 9, 60)):
        np.testing.assert_array_equal(border(read, None, window, (700, 650)), expected[window.slices])


def test_samples_between_pixels_are_means_of_those_that_there_are():
    image = np.array([[1.0, 2, 3], [4, 5, np.nan], [7, 8, 9]])
    line, pixel = np.array([[0.0, 0.5, 1.0, 1.0, 2.4, 2.6, -0.6]]), np.array([[0.25, 0.5, 1.25, 1.75, 2.4, 1.0, 1.0]])
    window = Window(0, 0, 3, 3)
    found = Samples.at(line, pixel, window, (3, 3), nearest=False).of(image)
    np.testing.assert_allclose(found, [[1.25, 3.0, 5.0, np.nan, 9.0, np.nan, np.nan]])
    nearest = Samples.at(line, pixel, window, (3, 3), nearest=True).of(image)
    np.testing.assert_allclose(nearest, [[1.0, 5.0, 5.0, np.nan, 9.0, np.nan, np.nan]])
