"""STAC out, of scenes as they were delivered: a static catalog with a collection for each sensor and level."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cubeloom.untrusted import safe_name

from .documents import STAC_VERSION, Document, write_json_atomic
from .records import FileRecord, SceneFacts, with_extensions

JSON, GEOJSON = "application/json", "application/geo+json"

_DLR = {
    "name": "German Aerospace Center (DLR)",
    "roles": ["licensor", "producer", "processor", "host"],
    "url": "https://www.enmap.org",
}

_ESA = {"name": "ESA", "roles": ["producer"], "url": "https://sentinels.copernicus.eu"}
_COPERNICUS = {
    "name": "European Union, Copernicus programme",
    "roles": ["licensor"],
    "url": "https://www.copernicus.eu",
}

KNOWN_SENSORS: Mapping[str, Document] = {
    "sentinel-1": {"title": "Sentinel-1", "providers": [_ESA, _COPERNICUS]},
    "sentinel-2": {"title": "Sentinel-2", "providers": [_ESA, _COPERNICUS]},
    "enmap": {
        "title": "EnMAP",
        "providers": [_DLR],
        "sci:publications": [
            {
                "doi": "10.3390/rs70708830",
                "citation": "Guanter, L. et al. (2015): The EnMAP Spaceborne Imaging Spectroscopy Mission for Earth "
                "Observation. Remote Sensing 7(7), 8830-8857.",
            }
        ],
    },
}
"""What a collection says of a sensor or a constellation, by its name in lower case."""


@dataclass(frozen=True)
class SceneRecord:
    """A delivered scene: its facts and its files."""

    facts: SceneFacts
    files: Sequence[FileRecord]

    @property
    def collection(self) -> str:
        """Id of the scene's collection, such as `enmap-l2a`; one for all satellites of a constellation."""
        return f"{self.mission}-{self.facts.level}".lower().replace(" ", "-")

    @property
    def mission(self) -> str:
        """The constellation, or the sensor where it is of none."""
        return self.facts.constellation or self.facts.sensor


def write_scan_catalog(records: Iterable[SceneRecord], out: Path) -> Path:
    """Write catalog.json, a collection.json for each sensor and level, and an item for each scene, under `out`.

    The documents depend on the scenes alone: equal scenes give equal bytes. catalog.json is written last.

    Returns:
        The path of catalog.json.

    Raises:
        InputError: a scene's id cannot be a file name.
    """
    ordered = sorted(records, key=lambda record: (record.collection, record.facts.scene_id))
    names = []
    for name, group in groupby(ordered, key=lambda record: record.collection):
        _write_collection(safe_name(name, "collection"), list(group), out)
        names.append(name)
    path = out / "catalog.json"
    write_json_atomic(path, catalog_document("cubeloom-scan", "Scenes found in a folder", names))
    return path


def catalog_document(catalog_id: str, description: str, collections: Sequence[str]) -> Document:
    """A catalog.json whose children are `<name>/collection.json`."""
    children = [link("child", f"./{name}/collection.json", JSON, name) for name in collections]
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": catalog_id,
        "description": description,
        "links": [link("root", "./catalog.json", JSON), *children],
    }


def collection_document(
    name: str, description: str, items: Sequence[Document], links: Sequence[Document], **fields: object
) -> Document:
    """A collection of items: their common extent, licence and instrument, and the links given."""
    licences = sorted({str(item["properties"].get("license", "other")) for item in items})
    document = {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": name,
        "description": description,
        "license": licences[0] if len(licences) == 1 else "other",
        **fields,
        "extent": {"spatial": {"bbox": _extent(items)}, "temporal": {"interval": [_interval(items)]}},
        "summaries": _summaries(items),
        "links": list(links),
    }
    return with_extensions(document)


def link(rel: str, href: str, media_type: str, title: str = "") -> Document:
    """A STAC link."""
    return {"rel": rel, "href": href, "type": media_type} | ({"title": title} if title else {})


def item_document(record: SceneRecord, path: Path) -> Document:
    """The STAC item of a delivered scene, to stand at `path`, two folders below the catalog."""
    item = record.facts.item(record.facts.scene_id, record.collection)
    item["assets"] = {file.key: file.document(path) for file in record.files}
    item["links"] = [
        link("root", "../../catalog.json", JSON),
        link("parent", "../collection.json", JSON),
        link("collection", "../collection.json", JSON),
    ]
    return with_extensions(item)


def _write_collection(name: str, records: Sequence[SceneRecord], out: Path) -> None:
    items, children = [], []
    for record in records:
        scene_id = safe_name(record.facts.scene_id, "scene id")
        path = out / name / scene_id / f"{scene_id}.json"
        items.append(item_document(record, path))
        write_json_atomic(path, items[-1])
        children.append(link("item", f"./{scene_id}/{scene_id}.json", GEOJSON, scene_id))
    known = KNOWN_SENSORS.get(records[0].mission.lower(), {})
    title = f"{known.get('title', records[0].mission)} {records[0].facts.level}"
    up = [link("root", "../catalog.json", JSON), link("parent", "../catalog.json", JSON)]
    fields = {key: value for key, value in known.items() if key != "title"}
    description = f"{title} scenes, as they were delivered"
    document = collection_document(name, description, items, [*up, *children], title=title, **fields)
    write_json_atomic(out / name / "collection.json", document)


def _extent(items: Sequence[Document]) -> list[list[float]]:
    """The box round all items; the whole globe where none has one or one crosses the antimeridian."""
    boxes = [item["bbox"] for item in items if item.get("bbox")]
    if not boxes or any(box[0] > box[2] for box in boxes):
        return [[-180.0, -90.0, 180.0, 90.0]]
    west, south, east, north = zip(*boxes, strict=True)
    return [[min(west), min(south), max(east), max(north)]]


def _interval(items: Sequence[Document]) -> list[str | None]:
    times = sorted(str(item["properties"]["datetime"]) for item in items)
    return [times[0], times[-1]] if times else [None, None]


def _summaries(items: Sequence[Document]) -> Document:
    """Values that the items share as lists, cloud cover as its range."""
    summaries: Document = {}
    for key in ("platform", "constellation", "processing:level", "processing:version", "proj:code"):
        found = sorted({item["properties"][key] for item in items if item["properties"].get(key)})
        if found:
            summaries[key] = found
    clouds = [item["properties"]["eo:cloud_cover"] for item in items if "eo:cloud_cover" in item["properties"]]
    if clouds:
        summaries["eo:cloud_cover"] = {"minimum": min(clouds), "maximum": max(clouds)}
    return summaries
