"""Export: what rasterio and our own reader find in the files is what the store holds."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import rasterio

from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline.encoding import PROBABILITY, Packed
from cubeloom.pipeline.engine import write_scene
from cubeloom.pipeline.export import export_source, export_store
from cubeloom.pipeline.grids import whole
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.readers.base import SceneSource, values
from cubeloom.pipeline.scene import spec_of

FORMATS = [("a.tif", "cog"), ("a.bsq", "envi"), ("a.bil", "envi"), ("a.bip", "envi")]
CLASSES = {"flag_values": [1, 3], "flag_meanings": "water roof", "class_colours": ["#0000ff", "#ff0000"]}


@pytest.fixture
def store(make_scene, tmp_path):
    scene = make_scene(height=300, width=280)
    codes = np.zeros((300, 280), np.uint8)
    codes[100:200], codes[200:] = 1, 3
    probability = np.random.default_rng(0).uniform(0, 1, (2, 300, 280)).astype(np.float32)
    scene = scene.assign_coords({"class": ("class", np.array([1, 3], np.uint8))}).assign(
        classes=(("y", "x"), codes, CLASSES),
        uncertainty=(("band", "y", "x"), scene.reflectance.values * 1e-3, {"units": "reflectance"}),
        probability=(("class", "y", "x"), probability, {"class_values": [1, 3]}),
    )
    scene.probability.encoding.update(PROBABILITY.cf)
    return write_scene(scene, tmp_path / "scene.zarr")


@pytest.mark.parametrize(("name", "to"), FORMATS)
def test_our_reader_finds_the_same_scene(store, tmp_path, name, to):
    before = open_source(store)
    after = open_source(export_store(store, tmp_path / name, to))
    for key in ("number", "wavelength", "fwhm", "detector"):
        assert np.array_equal(getattr(after.spec.bands, key), getattr(before.spec.bands, key)), key
    assert not after.spec.bands.good[~before.spec.bands.good].any()
    assert after.spec.grid == before.spec.grid
    assert (after.spec.scene_id, after.spec.time) == (before.spec.scene_id, before.spec.time)
    assert (after.spec.sensor, after.spec.processing_level) == (before.spec.sensor, before.spec.processing_level)
    window = whole(before.spec.shape)
    found, wanted = (values(source.read("reflectance", window)) for source in (after, before))
    assert np.array_equal(found, wanted, equal_nan=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["scene.zarr", name] + (["a.hdr"] if to == "envi" else [])
    )


def test_a_geotiff_is_tiled_packed_and_has_overviews(store, tmp_path):
    path = export_store(store, tmp_path / "a.tif")
    packed = open_source(store).read("reflectance", whole((300, 280))).data
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), packed)
        assert dataset.profile["tiled"]
        assert dataset.profile["compress"] == "deflate"
        assert dataset.interleaving.name == "band"
        assert (dataset.nodata, dataset.scales[0], dataset.offsets[0]) == (-32768, 1e-4, 0)
        assert dataset.overviews(1) == [2]
        assert dataset.descriptions[0] == "band 1 (vnir, 420.0 nm)"
        assert float(dataset.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) == 0.42
        assert float(dataset.tags(2)["wavelength"]) == pytest.approx(420 + 2030 / 11)
        assert [dataset.tags(number)["bbl"] for number in (1, 11, 12)] == ["1", "0", "1"]
    with rasterio.open(path, overview_level=0) as half:
        mean = np.where(packed[0, 100:102, 100:102] == -32768, np.nan, packed[0, 100:102, 100:102]).mean()
        assert abs(half.read(1)[50, 50] - mean) <= 1


def test_the_headers_of_a_geotiff_stand_before_its_pixels(store, tmp_path):
    """What makes a GeoTIFF cloud-optimised: one read of its start tells where every tile lies."""
    path = export_store(store, tmp_path / "a.tif")
    ends, tiles = [], []
    for level in (None, 0):
        options = {} if level is None else {"overview_level": level}
        with rasterio.open(path, **options) as dataset:
            ends.append(int(dataset.get_tag_item("IFD_OFFSET", "TIFF", 1)))
            tiles.append(int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1)))
    assert max(ends) < min(tiles)
    assert tiles[1] < tiles[0]  # the coarser level comes first


def test_an_envi_header_holds_what_tools_for_spectra_look_for(store, tmp_path):
    export_store(store, tmp_path / "a.bil", "envi")
    header = (tmp_path / "a.hdr").read_text()
    assert header.startswith("ENVI\n")
    fields = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in header.splitlines()[1:]}
    assert fields["interleave"] == "bil"
    assert fields["data ignore value"] == "-32768"
    assert fields["reflectance scale factor"] == "10000"
    assert fields["wavelength units"] == "Nanometers"
    assert "UTM" in fields["map info"]
    assert "PROJCS" in fields["coordinate system string"]
    for name in ("wavelength", "fwhm", "bbl", "band names"):
        assert len(fields[name].strip("{}").split(",")) == 12, name
    assert str(tmp_path) not in header


@pytest.mark.parametrize(("name", "to"), FORMATS[:2])
def test_a_class_map_keeps_its_colours_and_names(store, tmp_path, name, to):
    path = export_store(store, tmp_path / name, to, variable="classes")
    with rasterio.open(path) as dataset:
        assert dataset.colormap(1)[1][:3] == (0, 0, 255)
        assert dataset.colormap(1)[3][:3] == (255, 0, 0)
        assert dataset.nodata == 0
        assert set(np.unique(dataset.read(1))) == {0, 1, 3}
        if to == "cog":
            assert dataset.tags(1)["class_3"] == "roof"
    if to == "envi":
        assert "class names = {unclassified, water, unclassified, roof}" in (tmp_path / "a.hdr").read_text()


@pytest.mark.parametrize(("name", "to"), FORMATS[:2])
@pytest.mark.parametrize("variable", ["uncertainty", "quality", "probability"])
def test_every_kind_of_variable_can_be_written(store, tmp_path, name, to, variable):
    source = open_source(store)
    path = export_store(store, tmp_path / name, to, variable=variable)
    read = source.read(variable, whole(source.spec.shape))
    wanted = read.data if isinstance(read, Packed) else read
    with rasterio.open(path) as dataset:
        found = dataset.read()
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted.reshape(found.shape), equal_nan=variable == "uncertainty")


@dataclass
class WatchedSource(SceneSource):
    """Remembers how many pixels were asked for at a time."""

    scene: object
    _spec: object
    largest: list = field(default_factory=list)

    def read(self, name, window, bands=None):
        self.largest.append(window.height * window.width)
        return super().read(name, window, bands)


@pytest.mark.parametrize(("name", "to"), FORMATS[:2])
def test_a_scene_is_never_read_as_a_whole(make_scene, tmp_path, name, to):
    scene = make_scene(height=1100, width=1030, bands=3)
    source = WatchedSource(scene, spec_of(scene))
    export_source(source, tmp_path / name, to)
    assert sum(source.largest) == 1100 * 1030
    assert max(source.largest) <= 1100 * 1030 / 8
    with rasterio.open(tmp_path / name) as dataset:
        assert np.array_equal(dataset.read(3) == -32768, np.isnan(scene.reflectance.values[2]))


def test_sensor_geometry_has_no_grid(make_scene, tmp_path):
    scene = make_scene(height=60, width=50).drop_vars("spatial_ref")
    source = SceneSource(scene, spec_of(scene))
    assert source.spec.grid.crs is None
    for name, to in FORMATS[:2]:
        assert open_source(export_source(source, tmp_path / name, to)).spec.grid.crs is None


@pytest.mark.parametrize(
    ("name", "to", "variable", "message"),
    [
        ("a.tif", "jpeg", None, "cog or envi"),
        ("a.bsq", "cog", None, "suffix .tif"),
        ("a.tif", "envi", None, "suffix such as .bsq"),
        ("a.hdr", "envi", None, "suffix such as .bsq"),
        ("a.tif", "cog", "denoized", "no variable 'denoized'"),
        ("no/such/a.tif", "cog", None, "no such folder"),
        ("there.tif", "cog", None, "exists"),
    ],
)
def test_a_wrong_call_says_what_is_right(store, tmp_path, name, to, variable, message):
    (tmp_path / "there.tif").touch()
    with pytest.raises(ConfigError, match=message):
        export_store(store, tmp_path / name, to, variable)


def test_a_failure_leaves_nothing_behind(make_scene, tmp_path):
    scene = make_scene(height=600, width=50, bands=3)

    class Failing(SceneSource):
        def read(self, name, window, bands=None):
            if window.row > 0:
                raise InputError("damaged")
            return super().read(name, window, bands)

    for name, to in FORMATS[:2]:
        with pytest.raises(InputError, match="damaged"):
            export_source(Failing(scene, spec_of(scene)), tmp_path / name, to)
    assert list(tmp_path.iterdir()) == []
