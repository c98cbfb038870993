"""Searches of a STAC API on loopback that answers in the providers' shapes."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeloom.catalogs import read_catalog, validate_catalog
from cubeloom.catalogs.download import download_item
from cubeloom.catalogs.found import made_safe
from cubeloom.catalogs.providers import PROVIDERS, Provider, find_provider
from cubeloom.catalogs.search import Query, search, write_search_catalog
from cubeloom.catalogs.stac_api import Api
from cubeloom.errors import ConfigError, CubeloomError, InputError, RetryableError
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.workflows.search import parse_query, search_command

SECRET = "S3CR3T"


@pytest.fixture
def server(stac_server, tmp_path):
    (tmp_path / "served").mkdir()
    with stac_server.StacServer(files=tmp_path / "served") as server:
        yield server


def name(number: int) -> str:
    return f"ENMAP01-____L2A-DT{number:010d}_20230629T110132Z_001_V010402_20240630T020748Z"


@pytest.fixture
def many(server, stac_items):
    """25 items; the higher the number the earlier the change, in pairs."""
    server.items = [
        stac_items.dlr_item(
            name(n),
            updated=f"2024-07-{25 - n // 2 * 2:02d}T00:00:00Z",
            cloud=n * 4,
            bbox=(n, 50.0, n + 0.5, 50.5),
        )
        for n in range(25)
    ]
    return server


def found(server, query=Query(), **options):  # noqa: B008 - frozen
    return [item["id"] for item in search(server.url, query, server.access(), **options)]


def at(server, provider, **changes):
    """A known provider, but at the server."""
    return replace(PROVIDERS[provider], api=server.url, **changes)


def ask(server, provider, query, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "local", at(server, provider))
    return [item["id"] for item in search("local", query, server.access())]


def in_order(server):
    return [i["id"] for i in sorted(server.items, key=lambda i: (i["properties"]["updated"], i["id"]))]


@pytest.mark.parametrize("paging", ["token", "href", "startIndex"])
@pytest.mark.parametrize("page", [4, 5, 100])
def test_all_pages_are_read_whatever_way_they_are_linked(many, paging, page):
    many.paging, many.page = paging, page
    assert found(many) == in_order(many)
    assert many.count("/search") == -(-25 // page)


def test_the_order_does_not_depend_on_the_server(many):
    for items in (many.items, many.items[::-1]):
        for sorts in (True, False):
            many.items, many.sorts = items, sorts
            assert found(many) == in_order(many)


def test_conditions_are_put_to_the_server_and_held_against_the_answer(many, monkeypatch):
    query = Query(updated_since=datetime(2024, 7, 11, tzinfo=UTC), max_cloud=60.0)
    expected = [
        i for i in in_order(many)
        if next(x for x in many.items if x["id"] == i)["properties"]["updated"] >= "2024-07-11"
        and next(x for x in many.items if x["id"] == i)["properties"]["eo:cloud_cover"] <= 60
    ]  # fmt: skip
    assert 0 < len(expected) < 25
    assert found(many, query) == expected
    sent = many.seen[-1].body
    assert sent["filter-lang"] == "cql2-json"
    assert sent["filter"]["args"][1] == {
        "op": ">=",
        "args": [{"property": "updated"}, {"timestamp": "2024-07-11T00:00:00Z"}],
    }
    many.conforms = [uri.replace("#filter", "#query").replace("cql2", "x") for uri in many.conforms]
    assert found(many, query) == expected
    assert many.seen[-1].body["query"]["eo:cloud_cover"] == {"lte": 60.0}
    many.conforms = many.conforms[:2]
    assert found(many, query) == expected
    assert "filter" not in many.seen[-1].body
    assert "query" not in many.seen[-1].body


def test_a_server_that_refuses_our_filter_is_asked_without_it(many):
    many.refuses_filters = True
    assert set(found(many, Query(max_cloud=8.0))) == {name(0), name(1), name(2)}


def test_a_server_that_refuses_to_sort_is_asked_without_it(many, stac_server):
    many.then("/search", stac_server.answer(400))
    since = datetime(2024, 1, 1, tzinfo=UTC)
    many.conforms = [uri for uri in many.conforms if "filter" not in uri and "cql2" not in uri]
    assert found(many, Query(limit=4, updated_since=since)) == in_order(many)[:4]
    assert ["sortby" in seen.body for seen in many.seen if seen.method == "POST"] == [True, False]


def test_a_filter_of_the_caller_is_never_dropped(many):
    many.refuses_filters = True
    with pytest.raises(InputError, match="400"):
        found(many, Query(filter={"op": "=", "args": [{"property": "enmap:overallQuality"}, 0]}))


def test_filters_in_cql2_go_together_with_our_own(many):
    condition = {"op": ">=", "args": [{"property": "eo:cloud_cover"}, 80]}
    assert set(found(many, Query(filter=condition))) == {name(n) for n in range(20, 25)}
    assert set(found(many, Query(filter=condition, max_cloud=88.0))) == {name(n) for n in range(20, 23)}
    many.then("/search", lambda handler: handler.send_json({"features": []}))
    found(many, Query(filter="enmap:overallQuality = 0", max_cloud=20.0))
    assert many.seen[-1].body["filter"] == '(enmap:overallQuality = 0) AND "eo:cloud_cover" <= 20'
    assert many.seen[-1].body["filter-lang"] == "cql2-text"
    many.conforms = many.conforms[:2]
    with pytest.raises(ConfigError, match="CQL2"):
        found(many, Query(filter="a = 1"))


def test_dlr_is_not_asked_for_clouds_without_a_box(many, monkeypatch):
    """Its archive of 238,000 items would be searched through, until the request times out."""
    ask(many, "dlr-enmap", Query(max_cloud=20.0), monkeypatch)
    assert "filter" not in many.seen[-1].body
    assert many.seen[-1].body["collections"] == ["ENMAP_HSI_L2A"]
    assert set(ask(many, "dlr-enmap", Query(max_cloud=20.0, bbox=(0, 0, 90, 90)), monkeypatch)) == {
        name(n) for n in range(6)
    }
    assert many.seen[-1].body["filter"]["op"] == "<="


def test_the_known_providers_are_asked_in_their_own_ways(server, stac_items, monkeypatch):
    since = Query(updated_since=datetime(2024, 6, 1, tzinfo=UTC))
    server.items = [stac_items.earth_search_item()]
    assert ask(server, "earth-search", since, monkeypatch) == [server.items[0]["id"]]
    assert server.seen[-1].body["query"] == {"updated": {"gte": "2024-06-01T00:00:00Z"}}
    server.items = [stac_items.planetary_item()]
    assert ask(server, "planetary-computer", since, monkeypatch) == [server.items[0]["id"]]
    assert "filter" not in server.seen[-1].body
    later = Query(updated_since=datetime(2024, 6, 2, tzinfo=UTC))
    assert ask(server, "planetary-computer", later, monkeypatch) == []
    server.items = [stac_items.cdse_item()]
    assert ask(server, "cdse", since, monkeypatch) == [server.items[0]["id"]]
    assert server.seen[-1].body["filter"]["op"] == ">="


def test_boxes_times_and_ids(many):
    assert set(found(many, Query(bbox=(3, 0, 4.2, 60)))) == {name(3), name(4)}
    assert set(found(many, Query(bbox=(23.5, -90, 1.2, 90)))) == {name(0), name(1), name(23), name(24)}
    assert found(many, Query(datetime="2023-06-28/..")) == in_order(many)
    assert found(many, Query(datetime="2023-07")) == []
    assert set(found(many, Query(ids=(name(7), name(3), "none")))) == {name(3), name(7)}
    with pytest.raises(ConfigError, match="search cannot be put"):
        found(many, Query(datetime="yesterday"))


def test_a_limit_gives_the_first_by_time_of_change(many):
    assert found(many, Query(limit=4)) == in_order(many)[:4]
    many.sorts = False
    since = datetime(2024, 1, 1, tzinfo=UTC)
    many.conforms = [uri for uri in many.conforms if "sort" not in uri]
    assert found(many, Query(limit=4, updated_since=since)) == in_order(many)[:4]
    across = Query(limit=4, updated_since=since, bbox=(20, 0, 3, 90))
    west_first = [item for item in in_order(many) if int(item[18:28]) >= 20 or int(item[18:28]) <= 3]
    assert found(many, across) == west_first[:4]
    many.page = 3
    many.seen.clear()
    assert len(found(many, Query(limit=4))) == 4
    assert many.count("/search") == 2, "no more pages than needed"


def test_times_without_a_zone_are_refused():
    with pytest.raises(ConfigError, match="zone"):
        Query(updated_since=datetime(2024, 7, 1))  # noqa: DTZ001
    assert parse_query(updated_since="2024-07-01").updated_since == datetime(2024, 7, 1, tzinfo=UTC)
    assert parse_query(updated_since="2024-07-01T02:00:00+02:00").updated_since == datetime(2024, 7, 1, tzinfo=UTC)
    with pytest.raises(ConfigError, match="no time"):
        parse_query(updated_since="yesterday")


def test_an_item_listed_twice_counts_once_in_its_latest_form(server, stac_items):
    old, new = (stac_items.dlr_item(updated=f"2024-07-0{n}T00:00:00Z") for n in (1, 2))
    for items in ([old, new], [new, old]):
        server.items = items
        (only,) = search(server.url, Query(), server.access())
        assert only["properties"]["updated"] == "2024-07-02T00:00:00Z"


def test_wavelengths_in_nanometres_become_micrometres_and_others_stay(server, stac_items, monkeypatch):
    server.items = [stac_items.dlr_item(), stac_items.earth_search_item()]
    dlr, sentinel = sorted(search(server.url, Query(), server.access()), key=lambda item: item["id"])
    assert dlr["assets"]["image"]["eo:bands"][0]["center_wavelength"] == pytest.approx(0.427416)
    assert dlr["assets"]["image"]["eo:bands"][0]["full_width_half_max"] == pytest.approx(0.00699)
    assert dlr["assets"]["image"]["eo:bands"][0]["enmap:gain_of_band"] == 1e-4
    assert [key for key, asset in dlr["assets"].items() if "eo:bands" in asset] == ["image"]
    assert sentinel["assets"]["red"]["eo:bands"][0]["center_wavelength"] == 0.665


def test_cdse_is_read_over_https_with_the_names_of_its_files(server, stac_items):
    server.items = [stac_items.cdse_item()]
    (item,) = search(server.url, Query(), server.access())
    blue = item["assets"]["B02_10m"]
    assert blue["href"].startswith("https://download.dataspace.copernicus.eu/")
    assert "alternate" not in blue
    parsed = parsed_item(item)
    assert parsed.assets["B02_10m"].file_name == "T32UQD_B02_10m.jp2"
    assert parsed.is_remote


def parsed_item(item):
    from pathlib import Path

    from cubeloom.catalogs.items import parse_item

    return parse_item(item, Path("x"))


def test_an_item_without_updated_gets_it_from_what_tells(server, stac_items):
    planetary = made_safe(stac_items.planetary_item(), PROVIDERS["planetary-computer"])
    assert planetary["properties"]["updated"] == "2024-06-01T18:18:18Z"
    assert parsed_item(planetary).content_key()


BAD = {
    "climbing": {"id": "../../x"},
    "slash": {"id": "a/b"},
    "nul": {"id": "a\0b"},
    "long": {"id": "x" * 300},
    "unicode": {"id": "é"},
    "no time": {"properties": {}},
    "properties": {"properties": []},
    "assets": {"assets": None},
    "bbox": {"bbox": ["west"]},
    "infinite": {"properties": {"datetime": "2024-06-01T00:00:00Z", "x": float("inf")}},
    "surrogate": {"properties": {"datetime": "2024-06-01T00:00:00Z", "x": "\ud800"}},
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_item_is_left_out_and_told(many, stac_items, kind):
    expected = in_order(many)
    many.items.insert(3, stac_items.dlr_item() | BAD[kind])
    many.conforms = [uri for uri in many.conforms if "sort" not in uri]
    rejected = []
    assert found(many, reject=rejected.append) == expected
    assert len(rejected) == 1


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("../x.tif", "@server@/collections/ENMAP_HSI_L2A/x.tif"),
        (f"https://example.org/x.tif?sig={SECRET}&se=1", "https://example.org/x.tif"),
        (f"https://me:{SECRET}@example.org/x.tif", "https://example.org/x.tif"),
        ("https://example.org/x.tif?version=2", "https://example.org/x.tif?version=2"),
        ("s3://bucket/x.tif", "s3://bucket/x.tif"),
        ("file:///etc/passwd", None),
        ("/vsicurl/https://example.org/x", "@server@/vsicurl/https://example.org/x"),
        ("ftp://example.org/x", None),
        ("javascript:alert(1)", None),
        ("https://[::1", None),
        ("https:///x", None),
        ("x\0y", None),
        (7, None),
    ],
)
def test_hrefs_become_absolute_addresses_without_secrets_or_go(server, stac_items, href, expected):
    document = stac_items.dlr_item()
    document["assets"]["quality_snow"]["href"] = href
    server.items = [document]
    (item,) = search(server.url, Query(), server.access())
    asset = item["assets"].get("quality_snow")
    assert (asset and asset["href"]) == (expected and expected.replace("@server@", server.url))
    assert SECRET not in json.dumps(item)


def test_pages_that_go_round_in_a_circle_come_to_an_end(many):
    page = {"features": many.items[:2], "links": [{"rel": "next", "href": "@server@/search?page=1"}]}
    many.routes["/search"] = lambda handler: handler.send_json(page)
    with pytest.raises(InputError, match="do not end"):
        found(many)


@pytest.mark.parametrize("target", ["http://169.254.169.254/next", "https://evil.example/search", "file:///etc/passwd"])
def test_a_next_page_somewhere_else_is_not_read(many, target):
    many.routes["/search"] = lambda handler: handler.send_json(
        {"features": many.items[:2], "links": [{"rel": "next", "href": target}]}
    )
    with pytest.raises(InputError):
        found(many)


def test_a_busy_api_is_asked_again_and_given_up_in_the_end(many, stac_server):
    many.then("/search", stac_server.answer(503), stac_server.answer(429, Retry_After="0"))
    assert len(found(many)) == 25
    many.then("/search", *[stac_server.answer(502)] * 9)
    with pytest.raises(RetryableError):
        found(many)


@pytest.mark.parametrize("body", [b"<html>maintenance</html>", b"[1]", b"[" * 100_000, b'{"links": 7}', b"{}", b"\xff"])
def test_what_is_no_stac_api_is_told(server, stac_server, body):
    server.routes["/"] = stac_server.answer(200, body)
    with pytest.raises(InputError):
        found(server)


def test_unknown_providers_are_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'earth-search'"):
        find_provider("earthsearch")
    assert find_provider("https://stac.example.org/v1/").api == "https://stac.example.org/v1"
    assert find_provider("https://stac.dataspace.copernicus.eu/v1/") is PROVIDERS["cdse"]


def test_nothing_secret_is_sent_in_a_search(many, monkeypatch):
    for key in ("CUBELOOM_DLR_USER", "CUBELOOM_DLR_PASSWORD", "CUBELOOM_CDSE_TOKEN"):
        monkeypatch.setenv(key, SECRET)
    list(search(many.url, Query(), many.access(logins=None)))
    assert SECRET not in str(many.seen)


def test_the_catalog_is_read_back_and_is_valid_and_the_same_every_time(many, stac_items, tmp_path):
    many.items += [
        stac_items.earth_search_item(),
        stac_items.planetary_item(),
        stac_items.cdse_item() | {"collection": "cdse"},
    ]
    ranged = stac_items.dlr_item(name(99))
    ranged["properties"] |= {
        "datetime": None,
        "start_datetime": "2024-06-01T00:00:00Z",
        "end_datetime": "2024-06-02T00:00:00Z",
    }
    ranged |= {"bbox": [1, 2, 0, 3, 4, 9], "collection": None}
    many.items.append(ranged)
    items = list(search(many.url, Query(), many.access()))
    assert len(items) == 29
    path = write_search_catalog(items, tmp_path / "a")
    write_search_catalog(reversed(items), tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.json"))
    assert [(tmp_path / "a" / p).read_bytes() for p in files] == [(tmp_path / "b" / p).read_bytes() for p in files]
    read = read_catalog(path)
    assert {item.id for item in read} == {item["id"] for item in items}
    assert all(item.is_remote for item in read)
    assert all(item.content_key() for item in read if "updated" in item.properties)
    assert validate_catalog(path) == 1 + 5 + 29


def test_two_items_of_one_id_cannot_be_in_one_catalog(server, stac_items, tmp_path):
    server.items = [stac_items.dlr_item(), stac_items.dlr_item() | {"collection": "other"}]
    one, two = search(server.url, Query(), server.access())
    with pytest.raises(InputError, match="one collection at a time"):
        write_search_catalog([one, two], tmp_path)
    assert not (tmp_path / "catalog.json").exists()


def test_an_empty_search_makes_an_empty_catalog(server, tmp_path):
    path = write_search_catalog(search(server.url, Query(), server.access()), tmp_path)
    assert read_catalog(path) == []
    assert validate_catalog(path) == 1


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    return [simulate_scene(folder, height=32, width=32, n_vnir=4, n_swir=4, seed=n).path for n in (1, 2)]


def test_the_command_fetches_what_it_finds(server, stac_items, stac_server, products, tmp_path):
    server.items = [stac_items.publish_product(path, tmp_path / "served") for path in products]
    told = []
    result = search_command(server.url, Query(), tmp_path / "cat", tmp_path / "files", server.access(), told.append)
    assert result.exit_code == 0
    assert set(result.downloaded) == {path.name for path in products}
    assert len(told) == 2
    for item in read_catalog(result.catalog, roots=[tmp_path / "files"]):
        assert not item.is_remote
        assert open_source(item.product_path).spec.scene_id == item.id
    validate_catalog(result.catalog)
    assert (
        '"../../../files/' in (tmp_path / "cat/ENMAP_HSI_L2A" / result.items[0] / f"{result.items[0]}.json").read_text()
    )


def test_one_product_that_fails_stops_nothing(server, stac_items, stac_server, products, tmp_path):
    server.items = [stac_items.publish_product(path, tmp_path / "served") for path in products]
    path = server.items[0]["assets"]["metadata"]["href"].removeprefix("@server@")
    server.then(path, stac_server.answer(404))
    result = search_command(server.url, Query(), tmp_path / "cat", tmp_path / "files", server.access())
    assert result.exit_code == 3
    assert [item for item, _ in result.failed] == [products[0].name]
    assert result.downloaded == (products[1].name,)
    assert {item.id: item.is_remote for item in read_catalog(result.catalog)} == {
        products[0].name: True,
        products[1].name: False,
    }
    server.then(path, *[stac_server.answer(503)] * 9)
    assert search_command(server.url, Query(), tmp_path / "cat", tmp_path / "new", server.access()).exit_code == 75


def test_the_command_line(server, stac_items, products, tmp_path, monkeypatch, cli):
    server.items = [stac_items.publish_product(path, tmp_path / "served", cloud=n) for n, path in enumerate(products)]
    out = ("--out", tmp_path / "cat")
    refused = cli("search", server.url, *out)
    assert refused.code == 3
    assert "CUBELOOM_PRIVATE" in refused.err
    monkeypatch.setenv("CUBELOOM_PRIVATE", "1")
    found = cli("search", server.url, *out, "--max-cloud", 0, "--bbox", "0,0,90,90", "--json")
    assert found.code == 0
    assert json.loads(found.out)["items"] == [products[0].name]
    fetching = (*out, "--download", tmp_path / "files", "--json")
    unlisted = cli("search", server.url, *fetching)
    assert unlisted.code == 3
    assert "plain http" in unlisted.err
    monkeypatch.setenv("CUBELOOM_HOSTS", "http://127.0.0.1")
    assert len(json.loads(cli("search", server.url, *fetching).out)["downloaded"]) == 2
    assert cli("search", "dlr", *out).code == 2
    assert cli("search", server.url, *out, "--updated-since", "soon").code == 2
    assert cli("search", server.url, *out, "--filter", "{").code == 2


def test_an_item_of_a_written_catalog_can_be_fetched_later(server, stac_items, products, tmp_path):
    server.items = [stac_items.publish_product(products[0], tmp_path / "served", checksums=True)]
    path = write_search_catalog(search(server.url, Query(), server.access()), tmp_path / "cat")
    (item,) = read_catalog(path)
    assert open_source(download_item(item, tmp_path / "here", server.access()).product_path).spec.scene_id == item.id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["href", "name", "id", "rel", "https"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_an_item_holds_it_is_made_safe_or_refused(data, stac_items, tmp_path_factory):
    item = copy.deepcopy(data.draw(st.sampled_from([stac_items.dlr_item(bands=1), stac_items.cdse_item()])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(["", "properties", "assets", "image", "links"]))
        target = (
            {"": item, "image": item["assets"].get("image", {})}.get(place, item.get(place))
            if isinstance(item.get("assets"), dict)
            else item
        )
        if isinstance(target, dict) and target:
            target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        safe = made_safe(item, Provider("local", "https://example.org"))
        out = tmp_path_factory.mktemp("fuzz")
        (read,) = read_catalog(write_search_catalog([safe], out))
    except CubeloomError:
        return
    assert read.id == safe["id"]
    assert all(asset["href"].startswith(("https://", "http://", "s3://")) for asset in safe["assets"].values())


def test_the_api_of_a_url_is_described_once(many):
    assert Api(find_provider(many.url), many.access()).provider.language == "cql2"
    assert many.count() == 1
