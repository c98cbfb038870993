"""Simulated EnMAP products: layout, metadata, physics, and that they are the same however they are computed."""

import json
import re
import tarfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from defusedxml import ElementTree
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer
from scipy.stats import norm

from cubeloom.errors import ConfigError
from cubeloom.pipeline.degrade import sigma_of
from cubeloom.pipeline.simulate import BandTable, SimulatedProduct, cover, operational, simulate_catalog, simulate_scene
from cubeloom.pipeline.simulate.atmosphere import Sky, solar_irradiance, sun_position, transfer
from cubeloom.pipeline.simulate.landscape import Landscape
from cubeloom.pipeline.simulate.materials import FINE
from cubeloom.pipeline.simulate.sensor import noise_curve
from cubeloom.pipeline.simulate.surface import Surface, materials

NAME = re.compile(r"ENMAP\d{2}-____(L1B|L1C|L2A)-DT\d{10}_\d{8}T\d{6}Z_\d{3}_V\d{6}_\d{8}T\d{6}Z")
COMMON = ("QUALITY_CLASSES", "QUALITY_CLOUD", "QUALITY_CIRRUS", "QUALITY_HAZE", "QUALITY_SNOW", "QUALITY_CLOUDSHADOW",
          "VNIR", "SWIR")  # fmt: skip


@dataclass(frozen=True)
class Opened:
    product: SimulatedProduct

    def raster(self, part: str) -> Any:
        with rasterio.open(self.product.path / f"{self.product.scene_id}-{part}.TIF") as dataset:
            return dataset.read()

    def truth(self, part: str) -> Any:
        with rasterio.open(self.product.truth_folder / f"{part}.TIF") as dataset:
            return dataset.read()

    @property
    def xml(self) -> Any:
        return ElementTree.parse(self.product.path / f"{self.product.scene_id}-METADATA.XML").getroot()

    @property
    def inside(self) -> Any:
        return self.raster("QL_QUALITY_CLASSES")[0] != 3


def small(out: Path, **options: Any) -> Opened:
    return Opened(simulate_scene(out, **{"height": 96, "width": 80, "n_vnir": 14, "n_swir": 16} | options))


@pytest.fixture(scope="module")
def l2a(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(simulate_scene(tmp_path_factory.mktemp("l2a"), seed=4, clouds=0.1))


@pytest.fixture(scope="module")
def l1b(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return small(tmp_path_factory.mktemp("l1b"), level="L1B", seed=2, height=120, width=100)


@pytest.fixture(scope="module")
def l1c(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return small(tmp_path_factory.mktemp("l1c"), level="L1C", seed=2)


def numbers(root: Any, path: str) -> np.ndarray:
    return np.array([float(element.text) for element in root.findall(path)])


class TestLayout:
    @pytest.mark.parametrize("level", ["l1b", "l1c", "l2a"])
    def test_files_of_each_level(self, level: str, request: pytest.FixtureRequest) -> None:
        product = request.getfixturevalue(level).product
        assert NAME.fullmatch(product.scene_id)
        assert product.path.name == product.scene_id
        detectors = ("_VNIR", "_SWIR") if level == "l1b" else ("",)
        parts = {f"QL_{part}.TIF" for part in COMMON}
        for detector in detectors:
            stems = ("SPECTRAL_IMAGE", "QL_PIXELMASK", "QL_QUALITY_TESTFLAGS")
            parts |= {f"{part}{detector}.TIF" for part in stems}
        parts |= {"METADATA.XML", "THUMBNAIL.jpg"}
        assert {file.name.removeprefix(product.scene_id + "-") for file in product.path.iterdir()} == parts
        expected = {f"CLEAN{detector}.TIF" for detector in detectors}
        expected |= {"CLASSES.TIF", "CLASSES.json", "PARAMETERS.json", "STRIPES.npz"}
        assert {file.name for file in product.truth_folder.iterdir()} == expected

    def test_listed_files_exist_with_their_sizes(self, l2a: Opened) -> None:
        for file in l2a.xml.findall("product/productFileInformation/file"):
            path = l2a.product.path / file.findtext("name")
            if path.suffix != ".XML":
                assert int(file.findtext("size")) == -(-path.stat().st_size // 1024)

    @pytest.mark.parametrize(("layout", "tiled"), [("tiled", True), ("strips", False)])
    def test_geotiff_as_delivered(self, layout: str, tiled: bool, tmp_path: Path) -> None:
        scene = small(tmp_path, layout=layout).product
        with rasterio.open(scene.path / f"{scene.scene_id}-SPECTRAL_IMAGE.TIF") as image:
            assert (image.dtypes[0], image.nodata, image.interleaving.value) == ("int16", -32768, "BAND")
            assert image.compression.value == "DEFLATE"
            assert image.profile["tiled"] is tiled
            assert image.tags(1) == {}
            assert image.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
            assert image.scales[0] == 1
            assert image.crs.is_projected
            assert (image.transform.c - 15) % 30 == 0
        with rasterio.open(scene.path / f"{scene.scene_id}-QL_VNIR.TIF") as quicklook:
            assert (quicklook.count, quicklook.dtypes[0]) == (4, "uint8")

    def test_zip_holds_one_folder(self, tmp_path: Path) -> None:
        scene = small(tmp_path, container="zip").product
        assert scene.path.name == f"{scene.scene_id}.ZIP"
        assert {Path(name).parts[0] for name in zipfile.ZipFile(scene.path).namelist()} == {scene.scene_id}
        with rasterio.open(f"/vsizip/{scene.path}/{scene.scene_id}/{scene.scene_id}-SPECTRAL_IMAGE.TIF") as image:
            assert image.count == 30
        assert not list(tmp_path.glob(".*"))

    def test_order_holds_the_zip(self, tmp_path: Path) -> None:
        scene = small(tmp_path, container="tar.gz", level="L1C").product
        assert re.fullmatch(r"dims_op_oc_oc-en_\d+_1\.tar\.gz", scene.path.name)
        with tarfile.open(scene.path) as order:
            names = order.getnames()
        order_folder = scene.path.name.removesuffix(".tar.gz")
        (product,) = [name for name in names if name.endswith(".ZIP")]
        assert re.fullmatch(rf"{order_folder}/ENMAP\.HSI\.L1C/ENMAP-HSI-L1CDT[^/]+/{scene.scene_id}\.ZIP", product)
        assert {name.split("/")[1] for name in names} == {"ENMAP.HSI.L1C", "iif", "readme.html", "tools"}


class TestMetadata:
    def test_statistics_are_those_of_the_raster(self, l2a: Opened) -> None:
        cube = l2a.raster("SPECTRAL_IMAGE")
        means = numbers(l2a.xml, "product/bandStatistics/bandID/mean")
        stds = numbers(l2a.xml, "product/bandStatistics/bandID/stdDeviation")
        for band, mean, std in zip(cube, means, stds, strict=True):
            valid = band[band != -32768] * 1e-4
            expected = (valid.mean(), valid.std()) if valid.size else (-1000000, 0)
            assert (mean, std) == pytest.approx(expected, rel=1e-6)

    def test_l1_statistics_are_radiance(self, l1c: Opened) -> None:
        gain, offset = (numbers(l1c.xml, f"specific/bandCharacterisation/bandID/{n}OfBand") for n in ("Gain", "Offset"))
        radiance = l1c.raster("SPECTRAL_IMAGE")[:, l1c.inside] * gain[:, None] + offset[:, None]
        means = numbers(l1c.xml, "product/bandStatistics/bandID/mean")
        np.testing.assert_allclose(means, radiance.mean(axis=1), rtol=1e-6)
        assert 0.02 < means[5] < 0.3
        assert offset[0] > 0.01

    @pytest.mark.parametrize(("version", "empty"), [("01.05.02", [*range(130, 136)]),
                                                    ("01.01.10", [*range(127, 142), *range(161, 168)])])  # fmt: skip
    def test_bands_without_data_follow_the_version(self, version: str, empty: list[int], tmp_path: Path) -> None:
        scene = small(tmp_path, version=version, n_vnir=91, n_swir=133, height=32, width=32)
        means = numbers(scene.xml, "product/bandStatistics/bandID/mean")
        assert (np.flatnonzero(means == -1000000) + 1).tolist() == empty
        assert (scene.raster("SPECTRAL_IMAGE")[np.array(empty) - 1] == -32768).all()
        assert scene.xml.findtext("base/revision") == version

    def test_channel_lists_are_positions_by_wavelength(self, l1b: Opened, l2a: Opened) -> None:
        for scene, ascending in ((l2a, True), (l1b, False)):
            wavelength = numbers(scene.xml, "specific/bandCharacterisation/bandID/wavelengthCenterOfBand")
            assert (np.diff(wavelength) > 0).all() == ascending
            lists = {
                detector: [int(number) for number in scene.xml.findtext(path).split(",")]
                for detector in ("vnir", "swir")
                for path in (f"specific/{detector}ProductQuality/expectedChannelsList",)
            }
            assert sorted(lists["vnir"] + lists["swir"]) == list(range(1, len(wavelength) + 1))
            merged = np.sort(wavelength)
            assert merged[np.array(lists["vnir"]) - 1].max() < 1000
            assert merged[np.array(lists["swir"]) - 1].min() > 900

    def test_percentages_and_footprint_follow_the_rasters(self, l2a: Opened) -> None:
        inside = l2a.inside
        quality = l2a.xml.find("specific/qualityFlag")
        for field, part in (("cloudCover", "CLOUD"), ("cloudShadow", "CLOUDSHADOW"), ("hazeCover", "HAZE")):
            mask = l2a.raster(f"QL_QUALITY_{part}")[0]
            assert int(quality.findtext(field)) == pytest.approx(100 * (mask > 0).sum() / inside.sum(), abs=0.51)
        assert 5 <= int(quality.findtext("cloudCover")) <= 15
        with rasterio.open(l2a.product.path / f"{l2a.product.scene_id}-SPECTRAL_IMAGE.TIF") as image:
            height, width = image.shape
            for point in l2a.xml.findall("base/spatialCoverage/boundingPolygon/point"):
                lon, lat = float(point.findtext("longitude")), float(point.findtext("latitude"))
                (x,), (y,) = rasterio.warp.transform("EPSG:4326", image.crs, [lon], [lat])
                col, row = ~image.transform * (x, y)
                assert -1 <= row <= height + 1
                assert -1 <= col <= width + 1
                if point.findtext("frame") == "upper_left":
                    assert row < 3, "the upper left corner of a clockwise swath touches the upper edge"

    def test_rpc_geolocates_the_corners(self, l1b: Opened) -> None:
        corners = {p.findtext("frame"): p for p in l1b.xml.findall("base/spatialCoverage/boundingPolygon/point")}
        expected = {"upper_left": (0, 0), "upper_right": (0, 100), "lower_right": (120, 100), "lower_left": (120, 0)}
        first, *_, last = l1b.xml.findall("product/navigation/RPC/bandID")
        for frame, (line, column) in expected.items():
            lon, lat = (float(corners[frame].findtext(name)) for name in ("longitude", "latitude"))
            row, col = _locate(first, lon, lat)
            assert (row, col) == pytest.approx((line, column), abs=0.1)
            row, col = _locate(last, lon, lat)
            assert row == pytest.approx(line - 20.3, abs=0.1), "the SWIR detector looks ahead"


def _locate(band: Any, lon: float, lat: float) -> tuple[float, float]:
    """Row and column that GDAL finds, from the upper left edge of the raster."""
    value = {element.tag: float(element.text) for element in band}
    lists = {
        f"{a.lower()}_{b.lower()}_coeff": [value[f"{a if a != 'LINE' else 'ROW'}_{b}_{n:02d}"] for n in range(1, 21)]
        for a in ("LINE",)
        for b in ("NUM", "DEN")
    } | {f"samp_{b.lower()}_coeff": [value[f"COL_{b}_{n:02d}"] for n in range(1, 21)] for b in ("NUM", "DEN")}
    offsets = {"height": "HEIGHT", "lat": "LAT", "long": "LONG", "line": "ROW", "samp": "COL"}
    scales = {f"{k}_off": value[f"{v}_OFF"] for k, v in offsets.items()}
    scales |= {f"{k}_scale": value[f"{v}_SCALE"] for k, v in offsets.items()}
    with RPCTransformer(RPC(**lists, **scales)) as transformer:
        row, col = transformer.rowcol([lon], [lat], zs=[value["HEIGHT_OFF"]], op=float)
    return float(row[0]), float(col[0])


class TestMasks:
    def test_background_is_the_same_everywhere(self, l2a: Opened) -> None:
        inside = l2a.inside
        assert 0.6 < inside.mean() < 0.85
        cube = l2a.raster("SPECTRAL_IMAGE")
        filled = (cube != -32768).any(axis=(1, 2))
        assert ((cube[filled] == -32768) == ~inside).all()
        assert ((l2a.raster("QL_PIXELMASK") == 255) == ~inside).all()
        assert ((l2a.truth("CLEAN") == -32768) == ~inside).all()
        assert ((l2a.truth("CLASSES")[0] == 0) == ~inside).all()

    def test_water_of_the_product_is_that_of_the_truth(self, l2a: Opened) -> None:
        names = json.loads((l2a.product.truth_folder / "CLASSES.json").read_text())
        (water,) = [int(code) for code, name in names.items() if name == "water"]
        assert ((l2a.raster("QL_QUALITY_CLASSES")[0] == 2) == (l2a.truth("CLASSES")[0] == water)).all()
        assert len(names) >= 8

    def test_clouds_are_bright_and_shadows_dark(self, l2a: Opened) -> None:
        blue, nir = (l2a.truth("CLEAN")[np.argmin(abs(operational().wavelength - w))] for w in (480, 860))
        cloud, shadow = (l2a.raster(f"QL_QUALITY_{part}")[0] > 0 for part in ("CLOUD", "CLOUDSHADOW"))
        clear = l2a.inside & ~cloud & ~shadow
        assert blue[cloud].mean() > 3 * blue[clear].mean()
        assert nir[shadow].mean() < 0.7 * nir[clear].mean()

    def test_defective_elements_stand_in_the_mask_and_no_other_differs(self, tmp_path: Path) -> None:
        scene = small(tmp_path, noise=0, stripes=0, dead_pixels=0.01, level="L1C")
        wrong = scene.raster("SPECTRAL_IMAGE") != scene.truth("CLEAN")
        mask = scene.raster("QL_PIXELMASK")
        assert wrong.any()
        assert (mask[wrong] == 1).all()
        flags = scene.raster("QL_QUALITY_TESTFLAGS")[0]
        assert ((flags > 0) == (mask == 1).any(axis=0)).all()

    def test_cirrus_has_levels(self, tmp_path: Path) -> None:
        scene = small(tmp_path, clouds=0.3, n_vnir=3, n_swir=2, height=200, width=200)
        assert set(np.unique(scene.raster("QL_QUALITY_CIRRUS"))) <= {0, 1, 2, 3}
        assert scene.raster("QL_QUALITY_CIRRUS").max() >= 2

    def test_a_clear_sky_has_no_masks(self, tmp_path: Path) -> None:
        scene = small(tmp_path, clouds=0)
        for part in ("CLOUD", "CLOUDSHADOW", "HAZE", "CIRRUS"):
            assert not scene.raster(f"QL_QUALITY_{part}").any()


class TestPixels:
    @pytest.mark.parametrize("level", ["L1B", "L2A"])
    def test_blocks_and_workers_do_not_matter(self, level: str, tmp_path: Path) -> None:
        options = {"level": level, "seed": 5, "dead_pixels": 0.01}
        one = small(tmp_path / "one", block_rows=16, workers=2, **options)
        two = small(tmp_path / "two", block_rows=7, workers=1, **options)
        for file in one.product.path.glob("*.TIF"):
            with rasterio.open(file) as a, rasterio.open(two.product.path / file.name) as b:
                np.testing.assert_array_equal(a.read(), b.read(), err_msg=file.name)
        assert (one.product.path / f"{one.product.scene_id}-METADATA.XML").read_bytes() == (
            two.product.path / f"{two.product.scene_id}-METADATA.XML"
        ).read_bytes()

    def test_seeds_differ(self, tmp_path: Path) -> None:
        one, two = (small(tmp_path, seed=seed) for seed in (1, 2))
        assert one.product.scene_id != two.product.scene_id
        both = one.inside & two.inside
        same = one.raster("SPECTRAL_IMAGE")[:, both] == two.raster("SPECTRAL_IMAGE")[:, both]
        assert same.mean() < 0.2

    def test_the_same_call_replaces_its_product(self, tmp_path: Path) -> None:
        one = small(tmp_path, seed=9)
        before = one.raster("SPECTRAL_IMAGE")
        again = small(tmp_path, seed=9)
        assert again.product == one.product
        np.testing.assert_array_equal(again.raster("SPECTRAL_IMAGE"), before)
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("landscape", ["temperate", "arid", "coastal", "alpine"])
    def test_a_clean_scene_has_many_components(self, landscape: str, tmp_path: Path, l2a: Opened) -> None:
        if landscape == "temperate":
            scene = l2a
        else:
            scene = Opened(simulate_scene(tmp_path, seed=4, landscape=landscape, height=160, width=160, clouds=0))
        spectra = scene.truth("CLEAN")[:, scene.inside].astype(float)
        energy = np.linalg.eigvalsh(spectra @ spectra.T)[::-1].cumsum()
        needed = int(np.searchsorted(energy / energy[-1], 0.9999)) + 1
        assert needed >= 15

    def test_vegetation_water_and_soil_look_like_themselves(self, l2a: Opened) -> None:
        names = {name: int(code) for code, name in _names(l2a).items()}
        clean, classes = l2a.truth("CLEAN") * 1e-4, l2a.truth("CLASSES")[0]
        veiled = sum(l2a.raster(f"QL_QUALITY_{part}")[0] for part in ("CLOUD", "CLOUDSHADOW", "CIRRUS", "HAZE")) > 0

        def at(name: str, wavelength: float) -> float:
            band = int(np.argmin(np.abs(operational().wavelength - wavelength)))
            return float(clean[band][(classes == names[name]) & ~veiled].mean())

        forest = {w: at("deciduous forest", w) for w in (450, 550, 670, 800, 970, 1070, 1650, 2200)}
        assert forest[550] > 1.3 * forest[670]
        assert forest[800] > 5 * forest[670]
        assert forest[970] < forest[1070]
        assert forest[2200] < forest[1650] < forest[800]
        assert at("water", 1650) < 0.05
        assert at("bare soil", 1650) > at("bare soil", 480) > 0.02

    def test_noise_follows_the_curve(self, tmp_path: Path) -> None:
        scene = small(tmp_path, stripes=0, dead_pixels=0, clouds=0, level="L1C", height=160, width=160)
        gain = numbers(scene.xml, "specific/bandCharacterisation/bandID/GainOfBand")[:, None]
        error = (scene.raster("SPECTRAL_IMAGE").astype(float) - scene.truth("CLEAN"))[:, scene.inside] * gain
        told = json.loads((scene.product.truth_folder / "PARAMETERS.json").read_text())["noise_std"]
        spread = error.std(axis=1)
        assert (spread > np.array(told["dark"]["all"])).all()
        assert (spread < 1.1 * np.array(told["reflectance_0.3"]["all"])).all()
        lag = (error[:, 1:] * error[:, :-1]).mean(axis=1) / spread**2
        assert np.abs(lag).max() < 0.05

    def test_stripes_run_along_the_swath(self, tmp_path: Path) -> None:
        scene = small(tmp_path, noise=0, stripes=1, dead_pixels=0, level="L1B", clouds=0)
        error = scene.raster("SPECTRAL_IMAGE_VNIR").astype(float) - scene.truth("CLEAN_VNIR")
        between, within = error.mean(axis=1).std(axis=1), error.std(axis=1).mean(axis=1)
        assert (between > within).all()

    def test_l1b_detectors_look_at_different_lines(self, tmp_path: Path) -> None:
        bands = BandTable(np.array([950.0, 950.5]), np.array([10.0, 10.0]), np.array(["vnir", "swir"]))
        scene = small(tmp_path, level="L1B", bands=bands, noise=0, stripes=0, dead_pixels=0, height=160, width=80)
        vnir, swir = (scene.truth(f"CLEAN_{d}")[0].astype(float) for d in ("VNIR", "SWIR"))
        match = [np.corrcoef(vnir[k:].ravel(), swir[: len(swir) - k].ravel())[0, 1] for k in range(30)]
        assert int(np.argmax(match)) == 20


def _names(scene: Opened) -> dict[str, str]:
    return dict(json.loads((scene.product.truth_folder / "CLASSES.json").read_text()))


class TestBands:
    def test_operational_grid(self) -> None:
        table = operational()
        assert (len(table), table.of("vnir").size, table.of("swir").size) == (224, 91, 133)
        assert (np.diff(table.wavelength) > 0).all()
        overlap = (table.wavelength > 900) & (table.wavelength < 994)
        assert [int((table.detector[overlap] == d).sum()) for d in ("vnir", "swir")] == [12, 10]
        gaps = np.flatnonzero(np.diff(table.wavelength) > 50)
        assert (gaps + 1).tolist() == [135, 163]

    def test_grid_is_near_a_real_product(self, shared_data: Path) -> None:
        (path,) = (shared_data / "enmap_potsdam_product").glob("*/*METADATA.XML")
        root = ElementTree.parse(path).getroot()
        real = numbers(root, "specific/bandCharacterisation/bandID/wavelengthCenterOfBand")
        fwhm = numbers(root, "specific/bandCharacterisation/bandID/FWHMOfBand")
        assert np.abs(operational().wavelength - real).max() < 1
        assert np.abs(operational().fwhm - fwhm).max() < 0.4

    def test_explicit_table_is_kept(self, tmp_path: Path) -> None:
        bands = BandTable(
            np.array([2200.0, 450.0, 550.0, 905.0, 904.0, 860.0]),
            np.array([8.0, 6.0, 6.5, 9.2, 10.1, 9.6]),
            np.array(["SWIR", "VNIR", "VNIR", "SWIR", "VNIR", "VNIR"]),
        )
        scene = small(tmp_path, bands=bands, height=40, width=52)
        wavelength = numbers(scene.xml, "specific/bandCharacterisation/bandID/wavelengthCenterOfBand")
        assert wavelength.tolist() == [450, 550, 860, 904, 905, 2200]
        assert scene.xml.findtext("specific/swirProductQuality/expectedChannelsList") == "5,6"
        assert scene.raster("SPECTRAL_IMAGE").shape == (6, 40, 52)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"level": "L2B"}, "level is 'L2B', expected one of L1B, L1C, L2A"),
            ({"n_swir": 134}, "n_swir is 134"),
            ({"clouds": 1.5}, "clouds is 1.5"),
            ({"version": "1.5.2"}, "two digits"),
            ({"landscape": "lunar"}, "landscape is 'lunar'"),
            ({"start": datetime(2024, 6, 1, 11)}, "no time zone"),  # noqa: DTZ001 - the mistake under test
            ({"start": datetime(2024, 6, 1, 23, tzinfo=UTC), "place": (50.0, 10.0)}, "too low"),
        ],
    )
    def test_wrong_calls_are_refused(self, options: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            simulate_scene(tmp_path, **options)
        assert not list(tmp_path.iterdir())


class TestPhysics:
    def test_solar_irradiance_integrates_to_the_solar_constant(self) -> None:
        total = solar_irradiance().sum() * (FINE[1] - FINE[0])
        assert total == pytest.approx(1361 * 0.87, rel=0.04), "a sun of 5772 K has 87 % of its power in 380-2620 nm"

    def test_sun_at_solstice_noon_stands_over_the_tropic(self) -> None:
        zenith, azimuth, distance = sun_position(datetime(2023, 6, 21, 12, 2, tzinfo=UTC), 50.0, 0.0)
        assert zenith == pytest.approx(50 - 23.44, abs=0.3)
        assert azimuth == pytest.approx(180, abs=1.5)
        assert distance == pytest.approx(1.016, abs=0.001)

    def test_gases_take_light_where_they_should(self) -> None:
        table = operational()
        light = transfer(Sky(35, 150, 0, 2.0, 0.1, 1.0), table)
        through = light.slope / light.continuum
        for inside, outside in ((762, 780), (940, 880), (1135, 1060), (1380, 1280), (2008, 2040)):
            assert through[table.nearest(inside)] < 0.8 * through[table.nearest(outside)]
        assert through[table.nearest(1390)] < 0.02
        assert through[table.nearest(2200)] > 0.9
        assert (np.diff(light.path[:40]) < 0).mean() > 0.8

    def test_signal_to_noise_at_the_reference(self) -> None:
        table = operational()
        light = transfer(Sky(30, 150, 0, 1.5, 0.1, 1.0), table)
        read, shot = noise_curve(table, light)
        reference = 0.3 * light.slope + light.path
        ratio = reference / np.sqrt(read + shot * reference)
        assert ratio[table.nearest(495)] > 400
        assert ratio[table.nearest(2200)] == pytest.approx(180, abs=15)
        assert ratio[-1] < 100 < ratio[table.nearest(1650)]


def test_finer_pixels_see_through_their_optics_and_between_textures() -> None:
    """Two bare soils with a straight edge, lit ever more: the share of one is a normal distribution's, light a ramp."""
    table = operational(4, 2)
    spectra, soils = materials(table), (0, 3)
    palette = np.zeros((2, cover.COLUMNS), np.float32)
    palette[(0, 1), soils] = 1
    code = np.zeros((8, 20), np.uint16)
    code[:, 9:] = 1
    light = np.tile(np.linspace(0.5, 1.4, 10, dtype=np.float32), (4, 1))
    still = np.zeros((1, cover.TEXTURED), np.float32)
    surface = Surface(Landscape(code, light, np.zeros((1, 4, 10), np.float16)), palette, still)
    x = np.linspace(2, 8, 181, dtype=np.float32)
    seen = surface.reflectance(np.full_like(x, 2.2), x, spectra, 1 / 3, 0.26)
    share = norm.cdf((x - 4.5) / (sigma_of(0.26, 1) / 3))
    first, second = spectra.grounds[list(soils)]
    expected = (first + share[:, None] * (second - first)) * (0.45 + 0.1 * x)[:, None]
    np.testing.assert_allclose(seen, expected, atol=0.004 * np.abs(second - first).max())
    at = np.arange(10, dtype=np.float32) + 0.5  # where centres of both lie, light is the same
    fine, whole = (surface.reflectance(np.full_like(at, 1.5), at, spectra, size) for size in (1 / 3, 1.0))
    np.testing.assert_allclose(np.delete(fine, 4, axis=0), np.delete(whole, 4, axis=0), rtol=1e-6)


def test_a_catalog_has_different_scenes(tmp_path: Path) -> None:
    scenes = simulate_catalog(tmp_path, 4, height=48, width=48, n_vnir=4, n_swir=4)
    assert len({scene.scene_id for scene in scenes}) == 4
    parameters = [json.loads((scene.truth_folder / "PARAMETERS.json").read_text()) for scene in scenes]
    assert len({p["landscape"] for p in parameters}) == 4
    for field in ("sun_zenith", "place"):
        assert len({str(p[field]) for p in parameters}) == 4
    zones = {rasterio.open(scene.path / f"{scene.scene_id}-SPECTRAL_IMAGE.TIF").crs.to_epsg() for scene in scenes}
    assert len(zones) > 1
