"""EnMAP products of every level, container and layout, written here from scratch and read back."""

import io
import pickle  # noqa: TID251 - Sources travel to workers
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import Packed
from cubeloom.pipeline.grids import Window, tile, whole
from cubeloom.pipeline.readers import open_scene, open_source
from cubeloom.pipeline.readers.base import LazyVariable, values
from cubeloom.pipeline.readers.enmap import EnmapSource, find_products, recognises
from cubeloom.pipeline.readers.rasters import close_handles
from cubeloom.pipeline.scene import QUALITY_FLAGS, validate_scene

ROWS, COLS = 40, 32
VNIR = 418.0 + np.cumsum(np.linspace(5.6, 7.16, 91)) - 5.6
SWIR = 902.0 + np.cumsum(np.linspace(9.6, 13.6, 133)) - 9.6
DEAD = [130, 131, 135]
UTM = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(364095, 5809965, 30, 30)}
NAME = "ENMAP01-____{}-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z"
MASKS = ("CLASSES", "CLOUD", "CIRRUS", "HAZE", "SNOW", "CLOUDSHADOW", "TESTFLAGS")
DRIVERS = {".BSQ": "bsq", ".BIL": "bil", ".BIP": "bip"}


@dataclass
class Product:
    """What was written, to compare with what is read."""

    folder: Path
    stem: str
    wavelength: Any
    detector: Any
    gain: Any
    offset: Any
    cubes: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)

    def file(self, role: str) -> Path:
        return next(path for path in self.folder.iterdir() if path.stem.upper().endswith(role))


def metadata_xml(product: Product, level: str) -> str:
    """METADATA.XML with DLR's element paths, no more than a reader needs."""
    rank = np.argsort(np.argsort(product.wavelength)) + 1
    lists = {key: ",".join(map(str, sorted(rank[product.detector == key]))) for key in ("vnir", "swir")}
    bands = "".join(
        f'<bandID number="{n}"><wavelengthCenterOfBand>{w:.3f}</wavelengthCenterOfBand><FWHMOfBand>8.5</FWHMOfBand>'
        f"<GainOfBand>{g:.9g}</GainOfBand><OffsetOfBand>{o:.9g}</OffsetOfBand></bandID>"
        for n, (w, g, o) in enumerate(zip(product.wavelength, product.gain, product.offset, strict=True), 1)
    )
    statistics = "".join(
        f'<bandID number="{n}"><mean>{-1000000 if n in DEAD else 0.2}</mean>'
        f"<stdDeviation>{0 if n in DEAD else 0.1}</stdDeviation></bandID>"
        for n in range(1, 225)
    )
    corners = {"upper_left": (13.02, 52.42), "lower_left": (13.00, 52.37)}
    corners |= {"upper_right": (13.09, 52.41), "lower_right": (13.07, 52.36), "center": (13.04, 52.39)}
    points = "".join(
        f"<point><frame>{frame}</frame><latitude>{lat}</latitude><longitude>{lon}</longitude></point>"
        for frame, (lon, lat) in corners.items()
    )
    images = "".join(
        f"<{key}><dimension><columns>{COLS}</columns><rows>{ROWS}</rows></dimension></{key}>"
        for key in (("vnir", "swir") if level == "L1B" else ("merge",))
    )
    return (
        f"<level_X><metadata><name>{NAME.format(level)}-METADATA.XML</name><copyright>(c) DLR</copyright></metadata>"
        f"<base><level>{level}</level><revision>01.03.02</revision><temporalCoverage>"
        "<startTime>2022-07-24T10:45:26.5Z</startTime><stopTime>2022-07-24T10:45:30Z</stopTime></temporalCoverage>"
        f"<spatialCoverage><boundingPolygon>{points}</boundingPolygon></spatialCoverage></base><specific>"
        "<numberOfVNIRBands>91</numberOfVNIRBands><numberOfSWIRBands>133</numberOfSWIRBands>"
        "<sunElevationAngle><center>57.2</center></sunElevationAngle>"
        "<acrossOffNadirAngle><center>-11.5</center></acrossOffNadirAngle>"
        "<qualityFlag><cloudCover>12</cloudCover><hazeCover>-999</hazeCover></qualityFlag>"
        f"<vnirProductQuality><expectedChannelsList>{lists['vnir']}</expectedChannelsList></vnirProductQuality>"
        f"<swirProductQuality><expectedChannelsList>{lists['swir']}</expectedChannelsList></swirProductQuality>"
        f"<bandCharacterisation>{bands}</bandCharacterisation></specific><product><image>{images}</image>"
        f"<bandStatistics>{statistics}</bandStatistics></product></level_X>"
    )


def write_raster(path: Path, pixels: Any, nodata: float | None, place: dict[str, Any] = UTM, **layout: Any) -> None:
    suffix = path.suffix.upper()
    profile = {"width": COLS, "height": ROWS, "count": len(pixels), "dtype": pixels.dtype, "nodata": nodata, **place}
    if suffix in DRIVERS:
        profile |= {"driver": "ENVI", "interleave": DRIVERS[suffix], "SUFFIX": "REPLACE"}
    elif suffix == ".JP2":
        profile |= {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "YCBCR420": "NO"}
    else:
        profile |= {"driver": "GTiff", "compress": "deflate", "interleave": "band", **layout}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


def write_product(
    folder: Path, level: str = "L2A", *, suffix: str = ".TIF", prefix: bool = True, cog: str = "", **layout: Any
) -> Product:
    """A whole product in `folder`, with noise in every band and every code in the masks."""
    rng = np.random.default_rng(7)
    wavelength, detector = np.r_[VNIR, SWIR], np.repeat(["vnir", "swir"], [91, 133])
    if level != "L1B":
        order = np.argsort(wavelength)
        wavelength, detector = wavelength[order], detector[order]
    radiance = level != "L2A"
    gain = rng.uniform(1e-6, 5e-6, 224).round(12) if radiance else np.full(224, 1e-4)
    offset = rng.uniform(-1e-4, 0.046, 224).round(9) if radiance else np.zeros(224)
    folder.mkdir(parents=True, exist_ok=True)
    stem = NAME.format(level)
    product = Product(folder, stem, wavelength.round(3), detector, gain, offset)
    background = np.add.outer(np.arange(ROWS), np.arange(COLS)) < 12
    low, dtype, nodata = (1, "uint16", 0) if radiance else (-200, "int16", -32768)
    cube = rng.integers(low, 9000, (224, ROWS, COLS)).astype(dtype)
    cube[:, background] = nodata
    cube[np.array(DEAD) - 1] = nodata
    defects = np.where(rng.random((224, ROWS, COLS)) < 0.01, 1, 0).astype("uint8")
    defects[:, background] = 255
    for name in MASKS:
        top = {"CLASSES": 3, "CIRRUS": 4, "TESTFLAGS": 256}.get(name, 2)
        product.masks[name] = rng.integers(0, top, (ROWS, COLS)).astype("uint8")
    product.masks["CLASSES"][background] = 3
    place = {} if level == "L1B" else UTM
    parts = {"": slice(None)} if level != "L1B" else {"_VNIR": slice(0, 91), "_SWIR": slice(91, 224)}
    start = f"{stem}-" if prefix else ""
    for part, bands in parts.items():
        product.cubes[part], product.masks[f"PIXELMASK{part}"] = cube[bands], defects[bands]
        write_raster(folder / f"{start}SPECTRAL_IMAGE{part}{cog}{suffix}", cube[bands], nodata, place, **layout)
        write_raster(folder / f"{start}QL_PIXELMASK{part}{cog}.TIF", defects[bands], None, place)
    for name in MASKS:
        part = "_VNIR" if level == "L1B" and name == "TESTFLAGS" else ""
        tag = 3 if name == "CLASSES" else None
        write_raster(folder / f"{start}QL_QUALITY_{name}{part}{cog}.TIF", product.masks[name][None], tag, place)
    (folder / f"{start}METADATA.XML").write_text(metadata_xml(product, level))
    return product


@pytest.fixture(autouse=True)
def fresh_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBELOOM_CACHE", str(tmp_path / "cache"))
    yield
    close_handles()


@pytest.fixture(scope="module")
def l2a(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return write_product(tmp_path_factory.mktemp("l2a"), tiled=True, blockxsize=16, blockysize=16)


def physical(product: Product, part: str = "") -> Any:
    """Physical values in float64, straight from what was written."""
    numbers = product.cubes[part]
    bands = slice(None) if not part else product.detector == part[1:].lower()
    decoded = numbers * product.gain[bands, None, None] + product.offset[bands, None, None]
    return np.where(numbers == (-32768 if numbers.dtype == "int16" else 0), np.nan, decoded)


def expected_quality(masks: dict[str, Any], names: tuple[str, ...] = MASKS) -> Any:
    """Flags pixel by pixel, spelled out from the code table."""
    flags = np.zeros((ROWS, COLS), "uint32")
    for at in np.ndindex(ROWS, COLS):
        code = {name: int(masks[name][at]) for name in names}
        test = code.get("TESTFLAGS", 0)
        on = [
            {1: "land", 2: "water", 3: "background"}.get(code.get("CLASSES", 0)),
            {1: "cirrus_thin", 2: "cirrus_medium", 3: "cirrus_thick"}.get(code.get("CIRRUS", 0)),
            {1: "reduced_quality", 2: "low_quality", 3: "not_produced"}.get(test % 4),
            *(name.lower() for name in ("CLOUD", "HAZE", "SNOW") if code.get(name) == 1),
            *(["cloud_shadow"] if code.get("CLOUDSHADOW") == 1 else []),
            *(["interpolated"] if test // 4 % 4 else []),
            *(["saturated"] if test // 16 % 4 else []),
            *(["artefact"] if test // 64 else []),
        ]
        flags[at] = sum(QUALITY_FLAGS[flag] for flag in on if flag)
    return flags


def same(left: Any, right: Any) -> bool:
    return np.array_equal(left, right, equal_nan=True)


def test_l2a_comes_packed_and_decodes_to_the_written_reflectance(l2a: Product) -> None:
    source = open_source(l2a.folder)
    read = source.read("reflectance", whole(source.spec.shape))
    assert isinstance(read, Packed)
    assert same(read.data, l2a.cubes[""])
    np.testing.assert_allclose(read.values, physical(l2a), rtol=1e-6)
    assert (read.values < 0).any(), "negative reflectance is kept"


def test_scene_of_l2a(l2a: Product) -> None:
    scene = open_scene(l2a.folder)
    validate_scene(scene)
    assert scene.attrs["scene_id"] == l2a.stem
    assert (scene.attrs["sensor"], scene.attrs["processing_level"]) == ("EnMAP", "L2A")
    assert same(scene["wavelength"].values, np.sort(l2a.wavelength))
    assert scene["detector"].values.tolist() == l2a.detector.tolist()
    assert scene.attrs["cloud_cover"] == 12
    assert "haze_cover" not in scene.attrs
    assert scene.attrs["view_off_nadir"] == 11.5
    assert scene["time"].values == np.datetime64("2022-07-24T10:45:26.5")
    assert not scene["good"].values[np.array(DEAD) - 1].any()
    hidden = ~scene["preferred"].values
    assert set(scene["detector"].values[hidden]) == {"vnir"}
    assert scene["wavelength"].values[hidden].min() > SWIR.min()
    with rasterio.open(l2a.file("SPECTRAL_IMAGE")) as raster:
        assert raster.xy(0, 0) == (scene["x"].values[0], scene["y"].values[0])
        assert raster.xy(ROWS - 1, COLS - 1) == (scene["x"].values[-1], scene["y"].values[-1])


def test_along_track_azimuth_follows_the_swath(l2a: Product) -> None:
    """52.42 N 13.02 E to 52.37 N 13.00 E: some 1.36 km west over 5.56 km south."""
    azimuth = open_source(l2a.folder).spec.attrs["along_track_azimuth"]
    convergence = (13.045 - 15) * np.sin(np.radians(52.39))
    assert azimuth == pytest.approx(180 + np.degrees(np.arctan2(1.36, 5.56)) - convergence, abs=0.5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_window_and_band_slice_is_the_same_part_of_the_whole(l2a: Product, data: st.DataObject) -> None:
    source = open_source(l2a.folder)
    row, col = data.draw(st.integers(0, ROWS - 1)), data.draw(st.integers(0, COLS - 1))
    window = Window(row, col, data.draw(st.integers(1, ROWS - row)), data.draw(st.integers(1, COLS - col)))
    bands = slice(*sorted(data.draw(st.tuples(st.integers(0, 223), st.integers(0, 224)))))
    if bands.start == bands.stop:
        bands = slice(bands.start, bands.start + 1)
    rows, cols = window.slices
    read = source.read("reflectance", window, bands)
    assert isinstance(read, Packed)
    assert same(read.data, l2a.cubes[""][bands, rows, cols])
    assert same(source.read("defect", window, bands), l2a.masks["PIXELMASK"][bands, rows, cols] == 1)
    assert same(source.read("quality", window), expected_quality(l2a.masks)[rows, cols])


def test_l1c_masks_nodata_before_the_offset(tmp_path: Path) -> None:
    product = write_product(tmp_path, "L1C")
    source = open_source(tmp_path)
    radiance = values(source.read("radiance", whole(source.spec.shape)))
    assert radiance.dtype == np.float32
    np.testing.assert_allclose(radiance, physical(product), rtol=2e-6, atol=1e-9)
    assert np.isnan(radiance[:, 0, 0]).all(), "DN 0 plus the offset would look like a radiance"
    part = source.read("radiance", Window(20, 10, 5, 7), slice(100, 103))
    assert same(part, radiance[100:103, 20:25, 10:17])


def test_l2a_with_another_gain_is_decoded(tmp_path: Path) -> None:
    product = write_product(tmp_path)
    product.gain, product.offset = np.full(224, 5e-5), np.full(224, -0.1)
    product.file("METADATA").write_text(metadata_xml(product, "L2A"))
    source = open_source(tmp_path)
    read = source.read("reflectance", whole(source.spec.shape))
    assert not isinstance(read, Packed)
    np.testing.assert_allclose(read, physical(product), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("detector", ["vnir", "swir"])
def test_l1b_is_two_cubes(tmp_path: Path, detector: str) -> None:
    product = write_product(tmp_path, "L1B")
    part = f"_{detector.upper()}"
    source = open_source(tmp_path, detector=detector)
    spec = source.spec
    assert spec.scene_id == f"{product.stem}-{detector.upper()}"
    assert set(spec.bands.detector) == {detector}
    assert spec.bands.preferred.all()
    assert same(spec.bands.wavelength, product.wavelength[product.detector == detector])
    assert spec.grid.crs is None
    assert spec.attrs["along_track_azimuth"] == 180
    np.testing.assert_allclose(
        values(source.read("radiance", whole(spec.shape))), physical(product, part), rtol=2e-6, atol=1e-9
    )
    assert same(source.read("defect", whole(spec.shape)), product.masks[f"PIXELMASK{part}"] == 1)
    names = MASKS if detector == "vnir" else MASKS[:-1]
    assert same(source.read("quality", whole(spec.shape)), expected_quality(product.masks, names))
    assert spec.attrs.get("missing_masks") == (None if detector == "vnir" else ["TESTFLAGS"])
    validate_scene(open_scene(tmp_path, detector=detector))


def test_detector_option_is_asked_for_and_refused_where_it_means_nothing(tmp_path: Path, l2a: Product) -> None:
    write_product(tmp_path, "L1B")
    with pytest.raises(ConfigError, match="detector='vnir' or detector='swir'"):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match="not 'nir'"):
        open_source(tmp_path, detector="nir")
    with pytest.raises(ConfigError, match="L2A holds both"):
        open_source(l2a.folder, detector="vnir")
    with pytest.raises(ConfigError, match="no option 'group'"):
        open_source(l2a.folder, group="x2")


LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"blockysize": 3},
    "one strip": {"blockysize": ROWS},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "pixel interleaved": {"interleave": "pixel"},
    "uncompressed": {"compress": None},
    "predictor": {"predictor": 2},
    "no prefix": {"prefix": False},
    "COG name": {"cog": "_COG"},
    "lower case suffix": {"suffix": ".tiff", "cog": "_COG"},
    "GEOTIFF": {"suffix": ".GEOTIFF"},
    "BSQ": {"suffix": ".BSQ"},
    "BIL": {"suffix": ".BIL"},
    "BIP": {"suffix": ".BIP"},
    "JP2": {"suffix": ".JP2"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_name_gives_the_same_scene(layout: str, tmp_path: Path, l2a: Product) -> None:
    write_product(tmp_path, **LAYOUTS[layout])
    source, reference = open_source(tmp_path), open_source(l2a.folder)
    assert source.spec.scene_id == reference.spec.scene_id
    assert source.spec.grid == reference.spec.grid
    assert same(source.spec.bands.wavelength, reference.spec.bands.wavelength)
    for name in ("reflectance", "quality", "defect"):
        for window in tile(source.spec.shape, (25, 17)):
            assert same(values(source.read(name, window)), values(reference.read(name, window))), (name, window)


def zipped(product: Product, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in product.folder.iterdir():
            archive.write(file, f"{product.stem}/{file.name}")
    return path


def ordered(path: Path, *archives: Path) -> Path:
    """An order as DLR's portal packs it."""
    root = path.name.split(".")[0]
    with tarfile.open(path, "w:gz") as archive:
        for product in archives:
            archive.add(product, f"{root}/ENMAP.HSI.L2A/{product.stem}/{product.name}")
        readme = tarfile.TarInfo(f"{root}/readme.html")
        archive.addfile(readme, io.BytesIO())
    return path


CONTAINERS: dict[str, Callable[[Product, Path], Path]] = {
    "folder": lambda product, _: product.folder,
    "folder above": lambda product, _: product.folder.parent,
    "metadata": lambda product, _: product.file("METADATA"),
    "image": lambda product, _: product.file("SPECTRAL_IMAGE"),
    "zip": lambda product, out: zipped(product, out / f"{product.stem}.ZIP"),
    "stored zip with odd name": lambda product, out: zipped(product, out / "a {b} ö.zip", zipfile.ZIP_STORED),
    "order": lambda product, out: ordered(out / "order_1.tar.gz", zipped(product, out / f"{product.stem}.ZIP")),
}


@pytest.mark.parametrize("level", ["L1C", "L2A"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_scene(container: str, level: str, tmp_path: Path) -> None:
    product = write_product(tmp_path / "in" / "product", level)
    reference = open_source(product.folder)
    path = CONTAINERS[container](product, tmp_path)
    assert recognises(path)
    source = open_source(path)
    assert source.spec.scene_id == reference.spec.scene_id
    for name in reference.spec.variables:
        window = Window(3, 5, 30, 20)
        assert same(values(source.read(name, window)), values(reference.read(name, window))), name


def test_order_is_unpacked_once_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    product = write_product(tmp_path / "in")
    order = ordered(tmp_path / "order_1.tgz", zipped(product, tmp_path / f"{product.stem}.ZIP"))
    open_source(order)
    (unpacked,) = (tmp_path / "cache" / "products").iterdir()
    stamp = unpacked.stat().st_mtime_ns
    open_source(order)
    assert [unpacked] == list((tmp_path / "cache" / "products").iterdir())
    assert unpacked.stat().st_mtime_ns == stamp
    order.write_bytes(order.read_bytes()[:-5000])
    with pytest.raises(InputError, match="tar archive"):
        open_source(order)
    assert [unpacked] == list((tmp_path / "cache" / "products").iterdir())


def test_several_products_are_listed_and_each_opens(tmp_path: Path) -> None:
    one, two = write_product(tmp_path / "in" / "one"), write_product(tmp_path / "in" / "two", "L1C")
    archives = [zipped(product, tmp_path / f"{product.stem}.ZIP") for product in (one, two)]
    order = ordered(tmp_path / "out" / "order_1.tar.gz", *archives) if (tmp_path / "out").mkdir() is None else None
    assert order is not None
    assert find_products(tmp_path / "in") == [one.folder, two.folder]
    found = find_products(tmp_path / "out")
    assert len(found) == 2
    for place in (tmp_path / "in", order):
        with pytest.raises(InputError, match="holds 2 EnMAP products"):
            open_source(place)
    assert {open_source(path).spec.scene_id for path in found} == {one.stem, two.stem}
    with pytest.raises(InputError, match="no such product"):
        open_source(order / "nothing.ZIP")


def test_find_products_at_any_depth_and_past_other_files(tmp_path: Path, l2a: Product) -> None:
    shutil.copytree(l2a.folder, tmp_path / "a" / "deep" / "product")
    zipped(l2a, tmp_path / f"{l2a.stem}.ZIP")
    (tmp_path / "ENMAP01-____L2A-DT0000001867_cut.ZIP").write_bytes(b"PK")
    (tmp_path / "damaged.tar.gz").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "x")
    (tmp_path / "x.zarr").mkdir()
    found = find_products(tmp_path)
    assert [path.name for path in found] == [
        f"{l2a.stem}.ZIP",
        "ENMAP01-____L2A-DT0000001867_cut.ZIP",
        "product",
        "damaged.tar.gz",
    ]
    with pytest.raises(InputError, match="not a readable ZIP"):
        open_source(found[1])
    with pytest.raises(InputError, match="not a readable tar"):
        open_source(found[3])
    assert not recognises(tmp_path / "other.zip")
    assert not recognises(tmp_path / "x.zarr")
    assert find_products(tmp_path / "x.zarr") == []


@pytest.mark.parametrize("gone", [*MASKS, "PIXELMASK"])
def test_missing_masks_are_tolerated_and_named(gone: str, tmp_path: Path, l2a: Product) -> None:
    shutil.copytree(l2a.folder, tmp_path / "p")
    next(path for path in (tmp_path / "p").iterdir() if path.stem.endswith(f"_{gone}")).unlink()
    source = open_source(tmp_path / "p")
    assert source.spec.attrs["missing_masks"] == [gone]
    assert ("defect" in source.spec.variables) == (gone != "PIXELMASK")
    flags = expected_quality(l2a.masks, tuple(name for name in MASKS if name != gone))
    if gone == "CLASSES":
        flags[(l2a.cubes[""] == -32768).all(axis=0)] |= QUALITY_FLAGS["background"]
        assert (flags & QUALITY_FLAGS["background"]).any()
    assert same(source.read("quality", whole(source.spec.shape)), flags)


def test_background_without_classes_needs_nodata_in_every_good_band(tmp_path: Path) -> None:
    product = write_product(tmp_path)
    product.file("CLASSES").unlink()
    cube = product.cubes[""].copy()
    cube[:200, 30, 30] = -32768
    write_raster(product.file("SPECTRAL_IMAGE"), cube, -32768)
    source = open_source(tmp_path)
    flags = source.read("quality", Window(30, 30, 1, 1))
    assert not np.any(values(flags) & QUALITY_FLAGS["background"])


def test_threads_read_what_one_thread_reads(l2a: Product) -> None:
    source = pickle.loads(pickle.dumps(open_source(l2a.folder)))
    windows = list(tile(source.spec.shape, (9, 11)))

    def read(window: Window) -> tuple[Any, Any]:
        return values(source.read("reflectance", window)), source.read("quality", window)

    with ThreadPoolExecutor(4) as pool:
        for (cube, flags), window in zip(pool.map(read, windows * 3), windows * 3, strict=True):
            rows, cols = window.slices
            np.testing.assert_allclose(cube, physical(l2a)[:, rows, cols], rtol=1e-6)
            assert same(flags, expected_quality(l2a.masks)[rows, cols])


def test_a_file_that_changed_is_opened_again(tmp_path: Path) -> None:
    product = write_product(tmp_path)
    source = open_source(tmp_path)
    window = Window(20, 20, 1, 1)
    before = values(source.read("reflectance", window))
    write_raster(product.file("SPECTRAL_IMAGE"), product.cubes[""] + np.int16(1), -32768)
    assert not same(values(source.read("reflectance", window)), before)


def test_fingerprint_is_of_content_alone(tmp_path: Path, l2a: Product) -> None:
    shutil.copytree(l2a.folder, tmp_path / "copy")
    envi = write_product(tmp_path / "envi", suffix=".BSQ")
    before = open_source(envi.folder).fingerprint()
    with next(envi.folder.glob("*.hdr")).open("a") as header:
        header.write("; a comment\n")
    assert open_source(envi.folder).fingerprint() != before
    original, copy = open_source(l2a.folder), open_source(tmp_path / "copy")
    assert original.fingerprint() == copy.fingerprint() == open_source(tmp_path / "copy").fingerprint()
    for path in sorted((tmp_path / "copy").iterdir()):
        before = open_source(tmp_path / "copy").fingerprint()
        with path.open("ab") as file:
            file.write(b" ")
        after = open_source(tmp_path / "copy").fingerprint()
        assert after != before, path.name
    assert isinstance(original, EnmapSource)
    assert set(original.files()) == set(l2a.folder.iterdir())


def test_detectors_of_one_archive_differ(tmp_path: Path) -> None:
    archive = zipped(write_product(tmp_path / "in", "L1B"), tmp_path / "p.zip")
    vnir, swir = (open_source(archive, detector=detector) for detector in ("vnir", "swir"))
    assert vnir.fingerprint() != swir.fingerprint()


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"tiled": True, "blockxsize": 16, "blockysize": 16}, (ROWS, COLS)),
        ({"blockysize": 3}, (ROWS, COLS)),
    ],
)
def test_blocks_never_exceed_the_scene(layout: dict[str, Any], expected: tuple[int, int], tmp_path: Path) -> None:
    write_product(tmp_path, **layout)
    assert open_source(tmp_path).block_shape == expected


class Recorder:
    """A Source that notes which bands are asked of the one behind it."""

    def __init__(self, source: Any) -> None:
        self.source, self.spec, self.asked = source, source.spec, list[Any]()

    def read(self, name: str, window: Window, bands: slice | None = None) -> Any:
        self.asked.append((window, bands))
        return self.source.read(name, window, bands)


def test_one_band_of_a_lazy_scene_reads_one_band(l2a: Product) -> None:
    recorder = Recorder(open_source(l2a.folder))
    lazy = LazyVariable(recorder, "reflectance")  # type: ignore[arg-type]
    assert same(lazy[30, 2:5, 7], values(recorder.source.read("reflectance", Window(2, 7, 3, 1)))[30, :, 0])
    assert recorder.asked == [(Window(2, 7, 3, 1), slice(30, 31))]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_lazy_scene_indexes_like_an_array(l2a: Product, data: st.DataObject) -> None:
    scene = open_scene(l2a.folder)
    cube = scene["reflectance"]
    index = {}
    for dim, size in cube.sizes.items():
        number = st.integers(-size, size - 1)
        index[dim] = data.draw(st.slices(size) | number | st.lists(number, min_size=1, max_size=3))
    expected = cube.copy(data=open_source(l2a.folder).read("reflectance", whole((ROWS, COLS))).values)
    assert same(cube.isel(index).values, expected.isel(index).values)


def corrupt(change: Callable[[Product], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(write_product(folder))
        return folder

    return make


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def smaller(path: Path) -> None:
    with rasterio.open(path, "w", driver="GTiff", width=9, height=ROWS, count=1, dtype="uint8"):
        pass


BROKEN = {
    "no metadata": (corrupt(lambda p: p.file("METADATA").unlink()), "METADATA.XML is missing"),
    "no image": (corrupt(lambda p: p.file("SPECTRAL_IMAGE").unlink()), "SPECTRAL_IMAGE is missing"),
    "metadata cut": (corrupt(lambda p: cut(p.file("METADATA"), 0.5)), "METADATA.XML: not well-formed"),
    "entities": (corrupt(lambda p: p.file("METADATA").write_text("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>")), "DTD"),
    "image header cut": (corrupt(lambda p: cut(p.file("SPECTRAL_IMAGE"), 0.001)), "SPECTRAL_IMAGE.TIF"),
    "image cut": (corrupt(lambda p: cut(p.file("SPECTRAL_IMAGE"), 0.7)), "SPECTRAL_IMAGE.TIF"),
    "image empty": (corrupt(lambda p: p.file("SPECTRAL_IMAGE").write_bytes(b"")), "the file is empty"),
    "mask empty": (corrupt(lambda p: p.file("CIRRUS").write_bytes(b"")), "CIRRUS.TIF: the file is empty"),
    "mask of another size": (corrupt(lambda p: smaller(p.file("CLOUD"))), "do not belong together"),
    "bands disagree": (
        corrupt(lambda p: write_raster(p.file("SPECTRAL_IMAGE"), p.cubes[""][:218], -32768)),
        "218 bands, but .* describes 224",
    ),
    "no CRS": (
        corrupt(lambda p: write_raster(p.file("SPECTRAL_IMAGE"), p.cubes[""], -32768, place={})),
        r"SPECTRAL_IMAGE.TIF: the image has no CRS.*in which L2A is delivered",
    ),
    "nothing there": (lambda folder: folder, "not a product"),
}


def read_everything(path: Path) -> None:
    source = open_source(path)
    for name in source.spec.variables:
        source.read(name, whole(source.spec.shape))


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_product_names_the_file(fault: str, tmp_path: Path) -> None:
    make, message = BROKEN[fault]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message):
        read_everything(path)


def test_climbing_member_in_a_product_zip_is_refused(tmp_path: Path, l2a: Product) -> None:
    path = zipped(l2a, tmp_path / f"{l2a.stem}.ZIP")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(InputError, match="outside its folder"):
        open_source(path)


def test_real_product_equals_its_files(shared_data: Path) -> None:
    folder = next((shared_data / "enmap_potsdam_product").glob("ENMAP*"))
    scene = open_scene(folder.parent)
    validate_scene(scene)
    with rasterio.open(next(folder.glob("*SPECTRAL_IMAGE.TIF"))) as raster:
        numbers = raster.read(masked=True)
        assert scene.odc.geobox.transform == raster.transform
    expected = (numbers.astype("float64") * 1e-4).filled(np.nan)
    np.testing.assert_allclose(scene["reflectance"].values, expected, rtol=1e-6)
    with rasterio.open(next(folder.glob("*QL_QUALITY_CLASSES.TIF"))) as raster:
        classes = raster.read(1)
    background = (scene["quality"].values & QUALITY_FLAGS["background"]) != 0
    assert same(background, classes == 3)
    with rasterio.open(next(folder.glob("*QL_PIXELMASK.TIF"))) as raster:
        assert same(scene["defect"].values, raster.read() == 1)


@pytest.mark.parametrize("level", ["L1B", "L1C", "L2A"])
def test_real_metadata_with_empty_images(shared_data: Path, level: str) -> None:
    path = shared_data / "enmap_metadata_xml" / f"enmap_{level}_gtif_qualification.zip"
    source = open_source(path, **({"detector": "swir"} if level == "L1B" else {}))
    assert source.spec.shape == ((1024, 1000) if level == "L1B" else (1212, 1128))
    assert source.spec.grid.crs is None
    with pytest.raises(InputError, match="the file is empty"):
        source.read(source.spec.measurement, Window(0, 0, 2, 2))


def test_hyspecnet_patch_says_what_is_missing(shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"METADATA\.XML is missing"):
        open_scene(next((shared_data / "enmap_hyspecnet").glob("ENMAP*")))
