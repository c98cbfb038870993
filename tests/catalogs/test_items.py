"""STAC in: what a document leads to, what an item says, and what is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cubeloom.catalogs import parse_bbox, read_catalog, select_items
from cubeloom.errors import ConfigError, InputError


def item(item_id="a", **changes):
    document = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": item_id,
        "geometry": None,
        "bbox": [10, 50, 11, 51],
        "properties": {"datetime": "2024-06-01T10:30:00Z"},
        "links": [],
        "assets": {"metadata": {"href": f"{item_id}/METADATA.XML", "file:checksum": "1220" + "ab" * 32}},
    }
    return document | changes


def write(path: Path, document) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def catalog(folder: Path, links, kind="Catalog", name="catalog.json") -> Path:
    listed = [{"rel": rel, "href": href} for rel, href in links]
    return write(folder / name, {"type": kind, "stac_version": "1.1.0", "id": "c", "description": "d", "links": listed})


def test_a_catalog_is_walked_through_collections_in_the_order_of_its_links(tmp_path):
    write(tmp_path / "two" / "b.json", item("b"))
    write(tmp_path / "two" / "a.json", item("a"))
    write(tmp_path / "c.json", item("c"))
    catalog(tmp_path / "two", [("root", "../catalog.json"), ("item", "b.json"), ("item", "./a.json")], "Collection")
    top = catalog(tmp_path, [("self", "catalog.json"), ("child", "two/catalog.json"), ("item", "c.json")])
    assert [found.id for found in read_catalog(top)] == ["b", "a", "c"]
    assert [found.id for found in read_catalog(tmp_path)] == ["b", "a", "c"]
    assert [found.id for found in read_catalog(tmp_path / "two" / "catalog.json")] == ["b", "a"]


def test_links_in_a_circle_come_to_an_end(tmp_path):
    write(tmp_path / "a.json", item("a"))
    catalog(tmp_path, [("child", "other.json"), ("item", "a.json")])
    catalog(tmp_path, [("child", "catalog.json"), ("child", "other.json")], name="other.json")
    assert [found.id for found in read_catalog(tmp_path)] == ["a"]


def test_an_item_collection_and_a_single_item_are_catalogs_too(tmp_path):
    collection = write(tmp_path / "all.json", {"type": "FeatureCollection", "features": [item("a"), item("b")]})
    assert [found.id for found in read_catalog(collection)] == ["a", "b"]
    (single,) = read_catalog(write(tmp_path / "one.json", item("z")))
    assert single.product_path == tmp_path / "z" / "METADATA.XML"
    assert single.datetime == datetime(2024, 6, 1, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "Feature", "geometry": None, "properties": {}}, "no STAC item"),
        ({"hello": 1}, "keys hello"),
        ([1, 2], "JSON list"),
        (item("../../x"), "file name"),
        (item("a/b"), "file name"),
        (item(bbox=[1, 2, 3]), "bbox"),
        (item(properties={"datetime": "yesterday"}), "datetime is 'yesterday'"),
        (item(assets={"x": {}}), "no href"),
        (item(assets=[]), "JSON objects"),
    ],
)
def test_what_is_no_item_is_named_with_its_file(tmp_path, document, message):
    path = write(tmp_path / "bad.json", document)
    with pytest.raises(InputError, match=message) as caught:
        read_catalog(path)
    assert "bad.json" in str(caught.value)


def test_two_items_of_one_id_are_refused(tmp_path):
    write(tmp_path / "a" / "a.json", item("same"))
    write(tmp_path / "b" / "a.json", item("same"))
    with pytest.raises(InputError, match=r"two items are called 'same'"):
        read_catalog(catalog(tmp_path, [("item", "a/a.json"), ("item", "b/a.json")]))


def test_links_may_not_leave_the_folder_of_the_catalog(tmp_path):
    write(tmp_path / "secret.json", item("secret"))
    catalog(tmp_path / "in", [("item", "../secret.json")])
    with pytest.raises(InputError, match="outside the catalog"):
        read_catalog(tmp_path / "in")
    (tmp_path / "in" / "innocent.json").symlink_to(tmp_path / "secret.json")
    catalog(tmp_path / "in", [("item", "innocent.json")])
    with pytest.raises(InputError, match="outside the catalog"):
        read_catalog(tmp_path / "in")


@pytest.mark.parametrize("href", ["https://example.org/x.tif", "s3://bucket/x", "/vsicurl/http://x", "//host/share/x"])
def test_hrefs_that_are_not_local_files_are_refused_when_the_product_is_asked_for(tmp_path, href):
    (found,) = read_catalog(write(tmp_path / "a.json", item(assets={"image": {"href": href}})))
    with pytest.raises(InputError):
        _ = found.product_path


def test_file_urls_and_percent_signs_are_understood(tmp_path):
    target = tmp_path / "some folder" / "METADATA.XML"
    href = target.as_uri()
    assert "%20" in href
    (found,) = read_catalog(write(tmp_path / "a.json", item(assets={"metadata": {"href": href}})))
    assert found.product_path == target


def test_assets_must_lie_in_the_roots_where_roots_are_given(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    outside.mkdir()
    inside.mkdir()
    (outside / "METADATA.XML").touch()
    (inside / "METADATA.XML").symlink_to(outside / "METADATA.XML")
    path = write(tmp_path / "a.json", item(assets={"metadata": {"href": "data/METADATA.XML"}}))
    (free,) = read_catalog(path)
    assert free.product_path == outside / "METADATA.XML"
    (bound,) = read_catalog(path, roots=[inside])
    with pytest.raises(InputError, match="outside"):
        _ = bound.product_path


def key(tmp_path, **changes) -> str:
    (found,) = read_catalog(write(tmp_path / "a.json", item(**changes)))
    return found.content_key()


def test_the_content_key_follows_the_checksums_of_what_is_read_and_nothing_else(tmp_path):
    one = {"image": {"href": "i", "file:checksum": "1220aa"}, "metadata": {"href": "m", "file:checksum": "1220bb"}}
    first = key(tmp_path, assets=one)
    assert key(tmp_path, assets=dict(reversed(one.items())), bbox=[1, 2, 3, 4]) == first
    moved = {name: asset | {"href": "elsewhere/" + asset["href"]} for name, asset in one.items()}
    assert key(tmp_path, assets=moved) == first
    picture = {"thumbnail": {"href": "t", "roles": ["thumbnail"]}}
    assert key(tmp_path, assets=one | picture) == first
    swapped = {"image": one["metadata"], "metadata": one["image"]}
    assert key(tmp_path, assets=swapped) != first


def test_without_checksums_the_etag_and_then_the_update_time_stand_for_the_content(tmp_path):
    def etag(tag):
        return key(tmp_path, assets={"image": {"href": "i", "etag": tag}})

    assert etag("1") != etag("2")

    def updated(time):
        properties = {"datetime": "2024-06-01T10:30:00Z", "updated": time}
        return key(tmp_path, assets={"image": {"href": "i"}}, properties=properties)

    assert updated("2024-07-01T00:00:00Z") != updated("2024-08-01T00:00:00Z")
    with pytest.raises(InputError, match="cubeloom scan"):
        key(tmp_path, assets={"image": {"href": "i"}})


def test_items_are_chosen_by_pattern_box_and_number(tmp_path):
    boxes = {"west": [-10, 0, -5, 5], "east": [5, 0, 10, 5], "pacific": [179, 0, -179, 5], "nowhere": None}
    features = [item(name, bbox=box) for name, box in boxes.items()]
    items = read_catalog(write(tmp_path / "all.json", {"type": "FeatureCollection", "features": features}))

    def ids(**choice):
        return [found.id for found in select_items(items, **choice)]

    assert ids() == ["west", "east", "pacific", "nowhere"]
    assert ids(ids=["*st", "nowhere"]) == ["west", "east", "nowhere"]
    assert ids(limit=2) == ["west", "east"]
    assert ids(bbox=(-180, -90, 180, 90)) == ["west", "east", "pacific"]
    assert ids(bbox=(-180, 1, -178, 2)) == ["pacific"]
    assert ids(bbox=(178, 1, -178, 2)) == ["pacific"]
    assert ids(bbox=(-6, 6, 6, 7)) == []


def test_a_box_on_the_command_line_is_checked():
    assert parse_bbox("12.9, 52.3,13.2,52.5") == (12.9, 52.3, 13.2, 52.5)
    for text in ("1,2,3", "a,b,c,d", "0,60,1,50", "0,0,400,1"):
        with pytest.raises(ConfigError, match="bbox"):
            parse_bbox(text)
