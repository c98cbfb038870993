"""Sentinel-2 in EOPF's Zarr layout: stores written by Zarr as the provider lays them out, against plain xarray.

Those behind a network, an S3 server and a web server on loopback, are held against the same product on disk.
"""

import http.server
import json
import pickle  # noqa: TID251 - as Dask sends a source to its workers
import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr
import zarr

from cubeloom import open_scene
from cubeloom.errors import ConfigError, InputError, RetryableError
from cubeloom.pipeline.engine import run_to_store
from cubeloom.pipeline.grids import Window
from cubeloom.pipeline.readers import open_source, zarr_remote
from cubeloom.pipeline.readers.sentinel2_bands import NATIVE, band_numbers
from cubeloom.pipeline.readers.sentinel2_guard import OffsetWarning
from cubeloom.pipeline.scene import QUALITY_FLAGS, validate_scene

NAME = "S2A_MSIL2A_20240601T101031_N0511_R022_T33UUP_20240601T150000"
LISTED = {
    10: ("b02", "b03", "b04", "b08"),
    20: ("b02", "b05", "b06", "b07", "b8a", "b11", "b12"),
    60: ("b01", "b04", "b09"),
}
ROOT = {
    "stac_discovery": {
        "id": NAME,
        "properties": {
            "datetime": "2024-06-01T10:10:31.024Z",
            "platform": "sentinel-2a",
            "processing:level": "L2A",
            "eo:cloud_cover": 3.5,
        },
    },
    "other_metadata": {
        "horizontal_CRS_code": "EPSG:32633",
        "band_description": {
            "04": {
                "central_wavelength": 664.5,
                "wavelength_min": 646,
                "spectral_response_step": "1",
                "spectral_response_values": " ".join(["0.1", *["1"] * 37, "0.1"]),
            }
        },
    },
}


def write(path: Path, version: int = 2, **attrs: Any) -> Path:
    """A product of 240 m with numbers that tell the band, its first column without data."""
    attrs = {"scale_factor": 0.0001, "add_offset": -0.1, "_FillValue": 0, **attrs}
    attrs = {key: value for key, value in attrs.items() if value is not None}
    root = zarr.open_group(path, mode="w", zarr_format=version)
    root.attrs.update(ROOT)
    for step, names in LISTED.items():
        side = 1920 // step
        group = f"measurements/reflectance/r{step}m"
        for name in names:
            data = (1200 + 40 * int(name[1:], 16) + np.arange(side * side).reshape(side, side) % 90).astype(np.uint16)
            data[:, 0] = 0
            array(root, f"{group}/{name}", data, ("y", "x"), attrs)
        array(root, f"{group}/x", 300000 + step // 2 + step * np.arange(side), ("x",))
        array(root, f"{group}/y", 5000040 - step // 2 - step * np.arange(side), ("y",))
    classes = np.tile(np.arange(12, dtype=np.uint8), 96 * 8).reshape(96, 96)
    array(root, "conditions/mask/l2a_classification/r20m/scl", classes, ("y", "x"))
    return path


def array(root: zarr.Group, name: str, data: np.ndarray, dims: tuple[str, ...], attrs: dict[str, Any] | None = None):
    extra = {"dimension_names": dims} if root.metadata.zarr_format == 3 else {}
    made = root.create_array(
        name, shape=data.shape, chunks=tuple(min(64, n) for n in data.shape), dtype=data.dtype, **extra
    )
    made[:] = data
    made.attrs.update({"_ARRAY_DIMENSIONS": list(dims), **(attrs or {})})


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("eopf") / f"{NAME}.zarr")


@pytest.mark.parametrize("grid", ["10m", "20m", "60m"])
def test_values_are_those_of_plain_xarray(product, grid):
    scene = open_scene(product, grid=grid)
    validate_scene(scene)
    theirs = xr.open_zarr(product, group=f"measurements/reflectance/r{grid}", consolidated=False)
    native = [name for name in NATIVE[int(grid[:-1])] if name.lower() in theirs]
    assert scene["band"].values.tolist() == band_numbers(native)
    for layer, name in zip(scene["reflectance"].values, native, strict=True):
        np.testing.assert_allclose(layer, theirs[name.lower()].values, atol=1e-6)
        assert np.isnan(layer[:, 0]).all()
    np.testing.assert_array_equal(scene["x"], theirs["x"])
    np.testing.assert_array_equal(scene["y"], theirs["y"])
    assert scene.odc.geobox.crs.epsg == 32633
    assert (scene.attrs["sensor"], scene.attrs["processing_level"]) == ("Sentinel-2A", "L2A")
    assert scene.attrs["scene_id"].startswith(NAME)


def test_format_3_and_eopfs_own_attributes_read_the_same(product, tmp_path):
    newer = write(tmp_path / f"{NAME}.zarr", 3)
    xr.testing.assert_identical(open_scene(newer).load(), open_scene(product).load())
    own = {"scale_factor": 0.0001, "add_offset": -0.1}
    inner = write(tmp_path / "inner.zarr", scale_factor=None, add_offset=None, _eopf_attrs=own)
    xr.testing.assert_equal(open_scene(inner)["reflectance"].load(), open_scene(product)["reflectance"].load())


def test_all_bands_and_their_description(product):
    scene = open_scene(product, grid="60m", bands="all")
    assert list(scene.attrs["band_names"].values()) == ["B01", "B04", "B09"]
    red = scene.sel(band=4)
    assert float(red["wavelength"]) == 664.5
    assert float(red["fwhm"]) == pytest.approx(37, abs=1.2)  # 37 samples of 1, with half a step to each side


def test_windows_and_classes(product):
    source = open_source(product)
    window = Window(33, 50, 70, 61)
    scene = open_scene(product)
    np.testing.assert_array_equal(
        source.read("reflectance", window, slice(1, 3)).values, scene["reflectance"].values[1:3, 33:103, 50:111]
    )
    classes = np.tile(np.arange(12), 96 * 8).reshape(96, 96).repeat(2, 0).repeat(2, 1)
    quality = source.read("quality", window)
    assert (quality[classes[window.slices] == 9] == QUALITY_FLAGS["cloud"]).all()
    assert (quality[classes[window.slices] == 6] == QUALITY_FLAGS["water"]).all()


def test_an_offset_that_is_missing_or_twice_warns(tmp_path):
    with pytest.warns(OffsetWarning, match="forgotten"):
        open_scene(write(tmp_path / "forgotten.zarr", add_offset=0.0))
    with pytest.warns(OffsetWarning, match="applied twice"):
        open_scene(write(tmp_path / "twice.zarr", add_offset=-0.2))


def test_numbers_without_a_scale_are_refused(tmp_path):
    with pytest.raises(InputError, match="states no scale_factor"):
        open_scene(write(tmp_path / "x.zarr", scale_factor=None, add_offset=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": [{"id": "pickle"}]}, "is packed by 'pickle'"),
        ({"filters": 1e308}, "is packed by"),
        ({"compressor": {"id": []}}, "is packed by"),
        ({"compressor": {"id": "something"}}, "is packed by 'something'"),
        ({"shape": [10**6, 10**6]}, "decodes to more than"),
        ({"chunks": [10**6, 10**6]}, "decodes to more than"),
        ({"shape": "much"}, "is no shape"),
        ({"dtype": "|O"}, "expected real numbers"),
        ({"dtype": "<f4"}, "expected uint16"),
    ],
)
def test_hostile_metadata_are_refused_before_zarr_sees_them(product, tmp_path, change, message):
    path = Path(shutil.copytree(product, tmp_path / "x.zarr"))
    header = path / "measurements/reflectance/r10m/b03/.zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_scene(path)


@pytest.mark.parametrize("change", [{"scale_factor": 1e-300}, {"add_offset": 1e308}, {"scale_factor": 10**400}])
def test_scales_that_cannot_be_are_refused(product, tmp_path, change):
    path = Path(shutil.copytree(product, tmp_path / "x.zarr"))
    header = path / "measurements/reflectance/r10m/b03/.zattrs"
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    with pytest.raises(InputError, match="states no scale_factor"):
        open_scene(path)


def test_a_damaged_chunk_is_named(product, tmp_path):
    path = Path(shutil.copytree(product, tmp_path / "x.zarr"))
    chunk = next(iter(sorted((path / "measurements/reflectance/r10m/b04").glob("0.0"))))
    chunk.write_bytes(b"\x00" + chunk.read_bytes()[: chunk.stat().st_size // 2])
    with pytest.raises(InputError, match=r"b04: a chunk cannot be decoded"):
        open_scene(path)["reflectance"].load()


@pytest.mark.parametrize("options", [{"grid": "30m"}, {"bands": "some"}, {"offset": "0"}])
def test_wrong_options_are_refused(product, options):
    with pytest.raises(ConfigError):
        open_scene(product, **options)


def test_every_band_on_one_grid(product):
    """A coarser band is repeated, and a finer one averaged over the pixels that a coarser one holds."""
    common = open_scene(product, grid="20m", bands="common").load()
    native = {step: open_scene(product, grid=f"{step}m")["reflectance"].load() for step in (10, 20, 60)}
    assert common.sizes["band"] == sum(cube.sizes["band"] for cube in native.values())
    for step, cube in native.items():
        for band in cube["band"].values:
            fine = np.kron(cube.sel(band=band).values, np.ones((step // 10, step // 10)))
            height, width = (side // 2 for side in fine.shape)
            expected = fine.reshape(height, 2, width, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(common["reflectance"].sel(band=band), expected, atol=6e-5)


@pytest.fixture(scope="module", params=[2, 3])
def published(request, tmp_path_factory) -> Path:
    """A product with the consolidated metadata that the provider writes."""
    path = write(tmp_path_factory.mktemp(f"format{request.param}") / f"{NAME}.zarr", request.param)
    zarr.consolidate_metadata(path)
    return path


class Web:
    """A web server of a folder; `broken` are paths that fail so many times with a status, `asked` those asked for."""

    def __init__(self, folder: Path) -> None:
        self.broken: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        web = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body that follows its headers would wait 40 ms for their receipt

            def __init__(self, *args, **options):
                super().__init__(*args, directory=str(folder), **options)

            def do_GET(self):
                name = self.path.rpartition("/")[2]
                web.asked.append(self.path)
                if web.broken.get(name):
                    self.send_error(web.broken[name].pop())
                elif name in web.redirects:
                    self.send_response(302)
                    self.send_header("Location", web.redirects[name])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Web":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{NAME}.zarr"


@pytest.fixture
def web(published, monkeypatch):
    monkeypatch.setenv("CUBELOOM_HOSTS", "http://127.0.0.1")
    monkeypatch.setenv("CUBELOOM_PRIVATE", "1")
    monkeypatch.setattr(zarr_remote, "PAUSE", 0.01)
    with Web(published.parent) as web:
        yield web


@pytest.mark.parametrize("options", [{}, {"grid": "20m", "bands": "all"}, {"grid": "20m", "bands": "common"}])
def test_it_is_the_scene_on_disk(published, web, options):
    local, remote = open_scene(published, **options), open_scene(web.url, **options)
    assert remote.attrs == local.attrs
    for name in ("reflectance", "quality"):
        np.testing.assert_array_equal(remote[name].values, local[name].values)
    np.testing.assert_array_equal(remote["wavelength"], local["wavelength"])
    assert remote.odc.geobox == local.odc.geobox


def test_metadata_are_asked_for_once_and_chunks_as_they_are_needed(web):
    scene = open_scene(web.url)
    names = [path.rpartition("/")[2] for path in web.asked]
    assert names.count(".zmetadata") == 1
    assert not any(name in (".zarray", ".zattrs") for name in names)
    web.asked.clear()
    scene["reflectance"].isel(band=1, y=slice(0, 60), x=slice(0, 60)).compute()
    assert [path for path in web.asked if "/b02/" in path or "/b04/" in path] == []
    assert len([path for path in web.asked if "/b03/" in path]) <= 1  # none where it is kept from before


def test_it_runs_into_a_store_and_travels_to_workers(published, web, tmp_path):
    source = pickle.loads(pickle.dumps(open_source(web.url)))
    assert source.fingerprint() == open_source(web.url).fingerprint() != open_source(published).fingerprint()
    run_to_store(source, [], tmp_path / "out.zarr")
    stored = open_scene(tmp_path / "out.zarr")
    np.testing.assert_array_equal(stored["reflectance"].values, open_scene(published)["reflectance"].values)


def test_what_fails_in_passing_is_asked_for_again(published, web, tmp_path):
    copy = tmp_path / "other" / f"{NAME}.zarr"  # of another address, so that no chunk is kept
    shutil.copytree(published, copy)
    with Web(copy.parent) as other:
        other.broken = {".zmetadata": [503, 503], "zarr.json": [503]}
        scene = open_scene(other.url)
        chunk = "0.0" if (published / ".zgroup").exists() else "0"
        other.broken = {chunk: [500, 503]}
        np.testing.assert_array_equal(scene["reflectance"].values, open_scene(published)["reflectance"].values)
        other.broken = {".zmetadata": [503] * 9}
        with pytest.raises(RetryableError, match="503"):
            open_scene(other.url)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CUBELOOM_HOSTS": ""}, "plain http is refused"),
        ({"CUBELOOM_HOSTS": "https://127.0.0.1"}, "plain http is refused"),
        ({"CUBELOOM_PRIVATE": ""}, "no public address"),
    ],
)
def test_only_listed_hosts_are_asked(web, monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        open_scene(web.url)
    assert web.asked == []


def test_redirects_stay_on_listed_hosts(web):
    web.redirects = dict.fromkeys((".zmetadata", "zarr.json"), "http://169.254.169.254/latest/meta-data")
    with pytest.raises(InputError, match="plain http is refused"):
        open_scene(web.url)


@pytest.mark.parametrize(
    "url", ["https://example.org/x.zarr", "https://objects.eodc.eu/S2A_MSIL2A_x.zarr?token=secret"]
)
def test_other_urls_are_refused_without_being_asked(url):
    with pytest.raises((ConfigError, InputError)) as caught:
        open_scene(url)
    assert "secret" not in str(caught.value)


def test_a_product_without_consolidated_metadata_is_refused(published, web, tmp_path):
    copy = tmp_path / f"{NAME}.zarr"
    shutil.copytree(published, copy)
    for name in (".zmetadata", "zarr.json"):
        (copy / name).unlink(missing_ok=True)
    with Web(tmp_path) as bare, pytest.raises(InputError, match="consolidated"):
        open_scene(bare.url)


def test_hostile_metadata_are_refused_before_a_chunk_is_asked_for(published, web, tmp_path):
    copy = tmp_path / f"{NAME}.zarr"
    shutil.copytree(published, copy)
    for document in (copy / ".zmetadata", copy / "zarr.json"):
        if document.exists():
            document.write_text(document.read_text().replace('"zstd"', '"pickle"').replace('"blosc"', '"pickle"'))
    with Web(tmp_path) as hostile:
        with pytest.raises(InputError, match="packed by 'pickle'"):
            open_scene(hostile.url)
        assert all(urlsplit(path).path.endswith((".zmetadata", "zarr.json")) for path in hostile.asked)


def test_it_is_read_from_a_bucket(tmp_path, object_server, monkeypatch):
    pytest.importorskip("obstore")
    published = write(tmp_path / f"{NAME}.zarr", 3)
    zarr.consolidate_metadata(published)
    with object_server.ObjectServer() as server, object_server.Link(server.port) as link:
        for name, value in link.environment.items():
            monkeypatch.setenv(name, value)
        bucket = "eopf"
        server.client.create_bucket(Bucket=bucket)
        for file in sorted(path for path in published.rglob("*") if path.is_file()):
            key = f"products/{NAME}.zarr/{file.relative_to(published).as_posix()}"
            server.client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
        remote = open_scene(f"s3://{bucket}/products/{NAME}.zarr", grid="20m")
        local = open_scene(published, grid="20m")
        for name in ("reflectance", "quality"):
            np.testing.assert_array_equal(remote[name].values, local[name].values)
