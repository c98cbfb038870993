"""Scanning the real EnMAP deliveries."""

import shutil

import pytest

from cubeloom.catalogs import read_catalog, validate_catalog
from cubeloom.errors import InputError
from cubeloom.pipeline.readers import open_source
from cubeloom.workflows.scan import scan


@pytest.fixture
def potsdam(shared_data):
    return next((shared_data / "enmap_potsdam_product").glob("ENMAP*"))


@pytest.mark.shared
def test_an_unpacked_product_becomes_an_item_that_opens(potsdam, tmp_path):
    result = scan(potsdam.parent, tmp_path)
    assert result.items == (potsdam.name,)
    assert result.rejected == ()
    assert validate_catalog(result.catalog) == 3
    (item,) = read_catalog(result.catalog, roots=[potsdam])
    spec = open_source(item.product_path).spec
    assert spec.scene_id == item.id
    assert item.properties["proj:shape"] == list(spec.shape)
    assert len(item.assets) == 10


@pytest.mark.shared
def test_scanning_twice_gives_the_same_bytes_and_one_changed_file_another_content_key(potsdam, tmp_path):
    copy = tmp_path / "data" / potsdam.name
    shutil.copytree(potsdam, copy)
    copy.chmod(0o755)

    def documents():
        scan(tmp_path / "data", tmp_path / "out")
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}

    first, key = documents(), read_catalog(tmp_path / "out")[0].content_key()
    assert documents() == first
    assert len(first) == 3
    (cloud,) = copy.glob("*QL_QUALITY_CLOUD.TIF")
    cloud.chmod(0o644)
    with cloud.open("ab") as file:
        file.write(b"\0")
    documents()
    assert read_catalog(tmp_path / "out")[0].content_key() != key


@pytest.mark.shared
def test_archives_are_items_and_bad_products_are_left_out_with_their_cause(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBELOOM_CACHE", str(tmp_path / "cache"))
    result = scan(shared_data / "enmap_metadata_xml", tmp_path / "out")
    levels = {item.properties["processing:level"]: item for item in read_catalog(result.catalog)}
    assert set(levels) == {"L1B", "L1C", "L2A"}
    assert not levels["L1B"].id.endswith(("VNIR", "SWIR"))
    assert levels["L1B"].product_path.suffix == ".zip"
    causes = dict(result.rejected)
    assert len(causes) == 2
    assert all(str(shared_data) in path for path in causes)
    assert any("level_X" in cause for cause in causes.values())
    validate_catalog(result.catalog)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        scan(tmp_path / "gone", tmp_path / "out")
