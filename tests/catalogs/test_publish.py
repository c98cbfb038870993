"""STAC out: scans and products give valid items that can be read again."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubeloom.catalogs import read_catalog, validate_catalog
from cubeloom.catalogs.documents import local_path, relative_href, write_json_atomic
from cubeloom.catalogs.publish import ProductRecord, item_path, product_item, publish_item, write_index
from cubeloom.catalogs.records import BandRecord, ClassRecord, FileRecord, GridRecord, SceneFacts, outline
from cubeloom.catalogs.scan import SceneRecord, write_scan_catalog
from cubeloom.errors import InputError

FACTS = SceneFacts(
    scene_id="SCENE_1",
    sensor="EnMAP",
    level="L2A",
    time=datetime(2022, 7, 24, 10, 45, 26, tzinfo=UTC),
    footprint=((13.0, 52.3), (13.1, 52.3), (13.1, 52.4), (13.0, 52.4)),
    grid=GridRecord("EPSG:32633", (192, 160), (30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)),
    processor="01.03.02",
    cloud_cover=3.0,
    sun_elevation=57.2,
    sun_azimuth=167.4,
    off_nadir=5.1,
    azimuth=-10.0,
    licence="EnMAP Data License",
    attribution="(c) DLR",
)
BANDS = (BandRecord("1", 418.416, 6.99), BandRecord("2", 2445.53, 7.5))


def scene(folder: Path, scene_id: str = "SCENE_1", content: str = "x") -> SceneRecord:
    metadata = folder / scene_id / "METADATA.XML"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(content)
    digest = f"{len(content):02x}" * 32
    file = FileRecord("metadata", metadata, "application/xml", ("metadata",), digest, len(content), BANDS)
    return SceneRecord(replace(FACTS, scene_id=scene_id), [file])


def product(out: Path, source=None, identity: str = "12345678" * 8) -> ProductRecord:
    store = out / "scenes" / "SCENE_1" / f"denoise-{identity[:8]}.zarr"
    store.mkdir(parents=True, exist_ok=True)
    (store / "_COMMIT.json").write_text("{}")
    return ProductRecord(
        item_id="SCENE_1",
        workflow="denoise",
        identity=identity,
        store=store,
        commit=store / "_COMMIT.json",
        commit_sha256=identity,
        facts=FACTS,
        bands=BANDS,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        history=("mask", "denoise"),
        software={"cubeloom": "0.1.0"},
        classes=(ClassRecord(1, "low_vegetation", "00ff00"),),
        source=source,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def test_a_scan_gives_a_valid_catalog_that_leads_to_the_files(tmp_path):
    records = [scene(tmp_path / "data", "B"), scene(tmp_path / "data", "A")]
    path = write_scan_catalog(records, tmp_path / "catalog")
    assert validate_catalog(path) == 4
    items = read_catalog(path)
    assert [item.id for item in items] == ["A", "B"]
    assert items[0].product_path == tmp_path / "data" / "A" / "METADATA.XML"
    assert items[0].bbox == (13.0, 52.3, 13.1, 52.4)
    collection = json.loads((tmp_path / "catalog" / "enmap-l2a" / "collection.json").read_text())
    assert collection["providers"][0]["name"].endswith("(DLR)")
    assert collection["extent"]["temporal"]["interval"] == [["2022-07-24T10:45:26Z"] * 2]


def test_scanning_again_gives_the_same_bytes_in_whatever_order_scenes_are_found(tmp_path):
    records = [scene(tmp_path / "data", name) for name in "BAC"]
    write_scan_catalog(records, tmp_path / "catalog")
    first = files(tmp_path / "catalog")
    write_scan_catalog(reversed(records), tmp_path / "catalog")
    assert files(tmp_path / "catalog") == first


def test_wavelengths_are_micrometres_and_the_grid_has_its_box(tmp_path):
    write_scan_catalog([scene(tmp_path / "data")], tmp_path / "catalog")
    document = json.loads((tmp_path / "catalog" / "enmap-l2a" / "SCENE_1" / "SCENE_1.json").read_text())
    band = document["assets"]["metadata"]["bands"][0]
    assert band == {"name": "1", "eo:center_wavelength": 0.418416, "eo:full_width_half_max": 0.00699}
    properties = document["properties"]
    assert properties["proj:bbox"] == [364095.0, 5809965.0 - 192 * 30, 364095.0 + 160 * 30, 5809965.0]
    assert properties["view:azimuth"] == 350.0
    assert properties["license"] == "other"
    declared = {uri.split("/")[3] for uri in document["stac_extensions"]}
    assert declared == {"eo", "projection", "view", "processing", "file"}


def test_what_is_not_known_is_left_out(tmp_path):
    bare = SceneFacts("S", "EnMAP", "L1B", FACTS.time)
    write_scan_catalog([SceneRecord(bare, [])], tmp_path)
    document = json.loads((tmp_path / "enmap-l1b" / "S" / "S.json").read_text())
    assert document["geometry"] is None
    assert "bbox" not in document
    assert not [key for key in document["properties"] if key.startswith(("view:", "eo:", "proj:"))]
    assert validate_catalog(tmp_path) == 3


def test_a_footprint_across_the_antimeridian_is_split():
    geometry, bbox = outline([(179.5, 0.0), (-179.5, 0.0), (-179.5, 1.0), (179.5, 1.0)])
    assert bbox == [179.5, 0.0, -179.5, 1.0]
    assert geometry["type"] == "MultiPolygon"
    from shapely.geometry import shape

    assert shape(geometry).area == pytest.approx(1.0)
    assert all(-180 <= lon <= 180 for ring in geometry["coordinates"] for lon, _ in ring[0])


@given(st.lists(st.tuples(st.floats(-170, 170), st.floats(-80, 80)), min_size=3, max_size=3, unique=True))
def test_rings_are_closed_and_counter_clockwise(corners):
    from shapely.geometry import shape

    geometry, bbox = outline([(lon / 2, lat) for lon, lat in corners])
    ring = shape(geometry).exterior
    assert ring.coords[0] == ring.coords[-1]
    if shape(geometry).area > 1e-6:
        assert ring.is_ccw
    assert shape(geometry).bounds == pytest.approx(tuple(bbox))


def test_a_product_is_published_as_a_valid_item_that_is_an_input_again(tmp_path):
    catalog = write_scan_catalog([scene(tmp_path / "data")], tmp_path / "catalog")
    (source,) = read_catalog(catalog)
    out = tmp_path / "out"
    made = product(out, source)
    path = publish_item(out, made)
    assert path == out / "scenes" / "SCENE_1" / "denoise.json"
    assert write_index(out) == out / "catalog.json"
    assert validate_catalog(out) == 3
    (again,) = read_catalog(out)
    assert again.product_path == made.store
    assert again.id == "SCENE_1_denoise"
    assert again.properties["attribution"] == "(c) DLR"
    document = json.loads(path.read_text())
    (derived,) = [link for link in document["links"] if link["rel"] == "derived_from"]
    assert local_path(derived["href"], path) == source.self_path
    assert document["assets"]["product"]["classification:classes"][0]["color_hint"] == "00ff00"


def test_a_new_version_replaces_the_pointer_and_changes_the_content_key(tmp_path):
    publish_item(tmp_path, product(tmp_path))
    write_index(tmp_path)
    (before,) = read_catalog(tmp_path)
    newer = product(tmp_path, identity="87654321" * 8)
    publish_item(tmp_path, newer)
    (after,) = read_catalog(tmp_path)
    assert after.product_path == newer.store
    assert after.content_key() != before.content_key()


def test_the_index_lists_the_items_that_stand_and_no_others(tmp_path):
    publish_item(tmp_path, product(tmp_path))
    publish_item(tmp_path, replace(product(tmp_path), workflow="classify"))
    write_index(tmp_path)
    assert sorted(item.id for item in read_catalog(tmp_path)) == ["SCENE_1_classify", "SCENE_1_denoise"]
    item_path(tmp_path, "SCENE_1", "denoise").unlink()
    write_index(tmp_path)
    assert [item.id for item in read_catalog(tmp_path)] == ["SCENE_1_classify"]


def test_a_broken_item_is_reported_with_every_breach(tmp_path):
    path = publish_item(tmp_path, product(tmp_path))
    write_index(tmp_path)
    document = json.loads(path.read_text())
    document["properties"] |= {"eo:cloud_cover": 130, "view:sun_elevation": "high"}
    document["assets"]["product"]["bands"][0]["eo:center_wavelength"] = 418.4
    document["assets"]["commit"]["href"] = "gone.json"
    document["stac_extensions"] = [uri for uri in document["stac_extensions"] if "/file/" not in uri]
    del document["geometry"]
    write_json_atomic(path, document)
    with pytest.raises(InputError) as caught:
        validate_catalog(tmp_path)
    for part in (
        "cloud_cover: 130",
        "sun_elevation: 'high'",
        "418.4",
        "gone.json is missing",
        "file: are used",
        "geometry",
    ):
        assert part in str(caught.value)


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_hrefs_lead_back_to_the_file_whatever_its_name(name):
    if name in (".", ".."):
        return
    target, document = Path("/a/b") / name, Path("/a/c/item.json")
    assert local_path(relative_href(target, document), document) == target


def test_ids_that_are_no_file_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="file name"):
        write_scan_catalog([SceneRecord(replace(FACTS, scene_id="../x"), [])], tmp_path)
    with pytest.raises(InputError, match="file name"):
        product_item(product(tmp_path), item_path(tmp_path, "a/b", "w"))
