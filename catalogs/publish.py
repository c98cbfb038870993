"""STAC out, of products: the item that points at a published store, and the index of all items.

The item is the pointer: whoever reads `scenes/<item>/<workflow>.json` gets a finished product, and a new version
replaces it in one step. Collections and catalog.json list the items that stand, so they can be made again at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cubeloom.untrusted import safe_name

from .documents import Document, read_document, relative_href, write_json_atomic
from .items import ZARR, CatalogItem
from .records import SHA256_PREFIX, BandRecord, ClassRecord, SceneFacts, utc, with_extensions
from .scan import GEOJSON, JSON, catalog_document, collection_document, link

PNG = "image/png"


@dataclass(frozen=True)
class ProductRecord:
    """A published product.

    Attributes:
        item_id: id of the source item.
        workflow: name of the workflow.
        identity: digest (hex) of everything that makes the product what it is.
        store: the `.zarr` folder.
        commit: its commit record, and `commit_sha256`, the digest of that file.
        facts: the scene's facts on the product's grid.
        bands: bands of the product's cubes.
        history: one line a step.
        software: name to version.
        classes: classes of the map, if the product holds one.
        pictures: PNGs by asset key; `thumbnail` is the one to show first.
        source: the item that the product was made from, with its guides; its licence and the credits of all of them are
            carried over.
        created: when the product was made.
        properties: further item properties, such as model digests.
    """

    item_id: str
    workflow: str
    identity: str
    store: Path
    commit: Path
    commit_sha256: str
    facts: SceneFacts
    bands: Sequence[BandRecord]
    created: datetime
    history: Sequence[str] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[ClassRecord] = ()
    pictures: Mapping[str, Path] = field(default_factory=dict)
    source: CatalogItem | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)


def item_path(out: Path, item_id: str, workflow: str) -> Path:
    """Where the item of a product stands under `out`."""
    return out / "scenes" / safe_name(item_id, "item id") / f"{safe_name(workflow, 'workflow')}.json"


def product_item(product: ProductRecord, path: Path) -> Document:
    """The STAC item of a product, to stand at `path`."""
    item = product.facts.item(f"{product.item_id}_{product.workflow}", product.workflow)
    item["properties"] |= {
        "created": utc(product.created),
        "updated": utc(product.created),
        "processing:lineage": "\n".join(product.history) or f"workflow {product.workflow}",
        "processing:software": dict(product.software),
        "cubeloom:workflow": product.workflow,
        "cubeloom:identity": product.identity,
        **product.properties,
        **_inherited(product.source),
    }
    item["assets"] = _assets(product, path)
    item["links"] = _links(product, path)
    return with_extensions(item)


def publish_item(out: Path, product: ProductRecord) -> Path:
    """Write the item of a product whose store stands; from then on readers get this product.

    Returns:
        The path of the item.
    """
    path = item_path(out, product.item_id, product.workflow)
    write_json_atomic(path, product_item(product, path))
    return path


def write_index(out: Path) -> Path:
    """Write catalog.json and a collection for each workflow over the items that stand under `out`.

    Returns:
        The path of catalog.json.
    """
    by_workflow: dict[str, list[Path]] = {}
    for path in sorted((out / "scenes").glob("*/*.json")):
        by_workflow.setdefault(path.stem, []).append(path)
    for workflow, paths in sorted(by_workflow.items()):
        _write_collection(out, workflow, paths)
    catalog = catalog_document("cubeloom-products", "Products made by Cubeloom", ())
    catalog["links"] += [link("child", f"./collections/{name}.json", JSON, name) for name in sorted(by_workflow)]
    write_json_atomic(out / "catalog.json", catalog)
    return out / "catalog.json"


def _write_collection(out: Path, workflow: str, paths: Sequence[Path]) -> None:
    items = [read_document(path) for path in paths]
    target = out / "collections" / f"{workflow}.json"
    children = [
        link("item", relative_href(path, target), GEOJSON, item["id"]) for path, item in zip(paths, items, strict=True)
    ]
    up = [link("root", "../catalog.json", JSON), link("parent", "../catalog.json", JSON)]
    description = f"Products of the workflow {workflow}"
    write_json_atomic(target, collection_document(workflow, description, items, [*up, *children], title=workflow))


def _inherited(source: CatalogItem | None) -> Document:
    """Licence of the source, and credits of it and its guides, which hold for what is made of them."""
    if source is None:
        return {}
    kept = {key: source.properties[key] for key in ("license", "cubeloom:licence") if key in source.properties}
    credited = [item.properties.get("attribution") for item in (source, *source.guides.values())]
    told = "; ".join(dict.fromkeys(str(credit) for credit in credited if credit))
    return kept | ({"attribution": told} if told else {})


def _assets(product: ProductRecord, path: Path) -> Document:
    store: Document = {
        "href": relative_href(product.store, path),
        "type": f"{ZARR}; version=3",
        "roles": ["data"],
        "title": f"{product.workflow} product",
        "bands": [band.document() for band in product.bands],
    }
    if product.classes:
        store["classification:classes"] = [item.document() for item in product.classes]
    commit = {
        "href": relative_href(product.commit, path),
        "type": JSON,
        "roles": ["metadata"],
        "title": "commit record: the hash of every chunk",
        "file:checksum": SHA256_PREFIX + product.commit_sha256,
        "file:size": product.commit.stat().st_size,
    }
    return {"product": store, "commit": commit, **_pictures(product, path)}


def _pictures(product: ProductRecord, path: Path) -> Document:
    return {
        key: {
            "href": relative_href(picture, path),
            "type": PNG,
            "roles": ["thumbnail" if key == "thumbnail" else "overview"],
            "title": key.replace("_", " "),
        }
        for key, picture in product.pictures.items()
    }


def _links(product: ProductRecord, path: Path) -> list[Document]:
    collection = f"../../collections/{product.workflow}.json"
    found = [
        link("root", "../../catalog.json", JSON),
        link("parent", collection, JSON),
        link("collection", collection, JSON),
    ]
    sources = [product.source, *product.source.guides.values()] if product.source is not None else []
    found += [link("derived_from", relative_href(item.self_path, path), GEOJSON, item.id) for item in sources]
    return found
