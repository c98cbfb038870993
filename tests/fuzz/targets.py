"""The parsers that read what others wrote, each with valid documents and ways to break them.

A target's `parse` may raise a `CubeloomError` and nothing else, may take `SECONDS` of CPU time, and may write inside
the folder it is given alone.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import mutations as change
import numpy as np
import seeds
from watch import watched

from cubeloom.errors import ConfigError, CubeloomError
from cubeloom.pipeline.grids import Window

SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        documents: makes valid documents.
        mutate: breaks one.
        parse: reads one, which it may put into a folder first.
    """

    documents: Callable[[], Sequence[bytes]]
    mutate: change.Mutation
    parse: Callable[[bytes, Path], None]

    def warm(self, folder: Path) -> None:
        """Parse the valid documents unwatched, so that modules are imported; all must be accepted."""
        for document in self.documents():
            folder.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.parse(document, folder)
            shutil.rmtree(folder)

    def check(self, document: bytes, folder: Path) -> bool:
        """Parse a document in a new, empty `folder`; whether it was accepted.

        Raises:
            MisbehavedError: the parser wrote elsewhere, started something, or took too long.
            Exception: anything that is not a CubeloomError came out of the parser.
        """
        folder.mkdir()
        cache, os.environ["CUBELOOM_CACHE"] = os.environ.get("CUBELOOM_CACHE"), str(folder / "cache")
        beside = set(folder.parent.iterdir())
        try:
            with watched(folder, SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", RuntimeWarning)  # an overflow is a number that should have been refused
                self.parse(document, folder)
        except CubeloomError:
            return False
        finally:
            os.environ.pop("CUBELOOM_CACHE") if cache is None else os.environ.update(CUBELOOM_CACHE=cache)
            assert set(folder.parent.iterdir()) == beside, "something was written outside"
            shutil.rmtree(folder)
        return True

    def broken(self, random: Random) -> bytes:
        """A broken document."""
        return self.mutate(random, random.choice(self.documents()))


def _open(path: Path, **options: str) -> None:
    """Read a product as the engine does: its metadata, and a window of every variable."""
    from cubeloom.pipeline.readers import open_scene
    from cubeloom.pipeline.readers.open import open_source
    from cubeloom.pipeline.readers.rasters import close_handles

    try:
        source = open_source(path, **options)
        open_scene(path, **options)
        for name in source.spec.variables:
            source.read(name, Window(0, 0, min(4, source.spec.shape[0]), min(4, source.spec.shape[1])))
    finally:
        close_handles()


def _enmap(level: str, **options: str) -> Callable[[bytes, Path], None]:
    def parse(document: bytes, folder: Path) -> None:
        product = folder / seeds.product(level).name
        product.mkdir()
        for path in seeds.product(level).iterdir():
            if path.name.endswith("METADATA.XML"):
                (product / path.name).write_bytes(document)
            else:
                (product / path.name).symlink_to(path)
        _open(product, **options)

    return parse


def _copied(root: Path, replaced: Path, document: bytes, folder: Path) -> Path:
    """A product whose files are links to a valid one's, but for one, which is the document."""
    for path in root.rglob("*"):
        target = folder / root.name / path.relative_to(root)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path == replaced:
                target.write_bytes(document)
            else:
                target.hardlink_to(path)
    return folder / root.name


def _safe(sensor: str, place: str, **options: str) -> Callable[[bytes, Path], None]:
    """Read a SAFE product one of whose documents was replaced, and list it as `scan` does."""

    def parse(document: bytes, folder: Path) -> None:
        from cubeloom.workflows.scan import scan

        root = seeds.safe(sensor)
        product = _copied(root, next(root.glob(place)), document, folder)
        scan(folder, folder / "catalog")
        _open(product, **options)

    return parse


def _eopf(place: str) -> Callable[[bytes, Path], None]:
    def parse(document: bytes, folder: Path) -> None:
        from cubeloom.workflows.scan import scan

        root = seeds.eopf()
        product = _copied(root, root / place, document, folder)
        scan(folder, folder / "catalog")
        _open(product, bands="common")

    return parse


def _cogs(document: bytes, folder: Path) -> None:
    root = seeds.cogs()
    product = _copied(root, root / "item.json", document, folder)
    _open(product / "item.json", bands="common")


def _radar_cogs(document: bytes, folder: Path) -> None:
    from cubeloom.workflows.scan import scan

    root = seeds.radar_cogs()
    product = _copied(root, root / "item.json", document, folder)
    scan(folder, folder / "catalog")
    _open(product / "item.json", units="linear")


def _archive(name: str) -> Callable[[bytes, Path], None]:
    def parse(document: bytes, folder: Path) -> None:
        from cubeloom.pipeline.readers.enmap import find_products

        path = folder / name
        path.write_bytes(document)
        find_products(folder)
        _open(path)

    return parse


def _workflow(document: bytes, folder: Path) -> None:
    from cubeloom.workflows.schema import load_workflow

    path = folder / "w.yaml"
    path.write_bytes(document)
    load_workflow(str(path)).digest()
    with suppress(ConfigError):  # not every one has this step
        load_workflow(str(path), ["mask.dilate=3"])


def _recipe(document: bytes, folder: Path) -> None:
    from cubeloom.workflows.train import load_recipe

    path = folder / "r.yaml"
    path.write_bytes(document)
    load_recipe(path)


def _stac(place: str) -> Callable[[bytes, Path], None]:
    """Read a catalog, one of whose documents was replaced: from its top, and from that document on."""

    def parse(document: bytes, folder: Path) -> None:
        from cubeloom.catalogs import read_catalog, select_items, validate_catalog

        shutil.copytree(seeds.catalog(), folder / "catalog")
        (folder / "deliveries").symlink_to(seeds.deliveries())
        path = next((folder / "catalog").glob(place))
        path.write_bytes(document)
        for start in (folder / "catalog", path):
            for item in select_items(read_catalog(start), ids=["*"], bbox=(-180, -90, 180, 90)):
                item.content_key()
                _ = item.product_path
        if place != "features.json":  # an item collection is no document of the STAC core
            validate_catalog(path)

    return parse


def _api_item(document: bytes, folder: Path) -> None:
    """Make the item of an API fit for a catalog, put it into one, and read that."""
    from cubeloom.catalogs import read_catalog
    from cubeloom.catalogs.documents import write_json_atomic
    from cubeloom.catalogs.found import made_safe
    from cubeloom.catalogs.providers import PROVIDERS
    from cubeloom.untrusted import parse_json

    for provider in PROVIDERS.values():
        item = made_safe(parse_json(document, "an answer"), provider)
        path = folder / f"{item['id']}.json"
        write_json_atomic(path, item)
        (found,) = read_catalog(path)
        assert found.id == item["id"]


def _weights(suffix: str) -> Callable[[bytes, Path], None]:
    def parse(document: bytes, folder: Path) -> None:
        from cubeloom.models.checkpoints import read_weights, weights_digest

        path = folder / f"w{suffix}"
        path.write_bytes(document)
        read_weights(path, weights_digest(path))

    return parse


def _card(document: bytes, folder: Path) -> None:
    from cubeloom.models.registry import model_card

    path = folder / "w.card.json"
    path.write_bytes(document)
    model_card(path)


def _classifier(document: bytes, folder: Path) -> None:
    from cubeloom.models.classifiers import _load, load_classifier, read_card

    path = folder / "m.skops"
    path.write_bytes(document)
    read_card(path)
    classifier = load_classifier(path)
    _load.cache_clear()
    with np.errstate(over="ignore", invalid="ignore"):
        probabilities = classifier.predict(np.full((3, classifier.wavelengths.size), 0.4, np.float32))
    assert probabilities.shape == (3, len(classifier.classes))


def _raster(suffix: str) -> Callable[[bytes, Path], None]:
    def parse(document: bytes, folder: Path) -> None:
        path = folder / f"cube{suffix}"
        if suffix == ".tif":
            path.write_bytes(document)
        else:
            path.write_bytes(seeds.raster(suffix)[0])
            path.with_suffix(".hdr").write_bytes(document)
        _open(path)

    return parse


_XML = change.any_of(change.regrow_xml, change.regrow_xml, change.reword, change.flip)
_YAML = change.any_of(change.reword, change.reword, change.flip)
_JSON = change.any_of(change.regrow_json, change.regrow_json, change.reword, change.flip)
_METADATA = change.rewrite_zip(change.any_of(change.regrow_xml, change.flip), "METADATA")
_SKOPS = change.any_of(
    change.rewrite_zip(change.regrow_json, r"card\.json"),
    change.rewrite_zip(change.regrow_json, r"schema\.json"),
    change.rewrite_zip(change.flip, r"\.npy"),
    change.damage_zip,
)
_PICKLE = change.any_of(change.rewrite_zip(change.flip, r"data\.pkl"), change.rewrite_zip(change.flip), change.flip)


def _documents(sensor: str, place: str) -> list[bytes]:
    return [seeds.safe_document(sensor, place)]


TARGETS = {
    "enmap_l2a": Target(
        lambda: [seeds.skeleton("L2A"), seeds.skeleton("L2A"), seeds.metadata("L2A")], _XML, _enmap("L2A")
    ),
    "enmap_l1b": Target(
        lambda: [seeds.skeleton("L1B"), seeds.skeleton("L1B"), seeds.metadata("L1B")],
        _XML,
        _enmap("L1B", detector="vnir"),
    ),
    "zip": Target(
        lambda: [seeds.product_zip()],
        change.any_of(change.damage_zip, change.damage_zip, _METADATA, change.flip),
        _archive("ENMAP01-____L2A-DT0000000001_20240601T103000Z_001_V010502_20240601T120000Z.ZIP"),
    ),
    "tar": Target(
        lambda: [seeds.order(), seeds.plain_order()],
        change.any_of(change.damage_tar, change.damage_tar, change.flip),
        _archive("dims_op_oc_oc-en_700000001_1.tar.gz"),
    ),
    **{
        f"{sensor}_{name}": Target(partial(_documents, sensor, place), _XML, _safe(sensor, place, **options))
        for sensor, name, place, options in (
            ("sentinel2", "product", "MTD_MSIL2A.xml", {"bands": "common"}),
            ("sentinel2", "tile", "GRANULE/*/MTD_TL.xml", {"masks": "bands"}),
            ("sentinel1", "manifest", "manifest.safe", {}),
            ("sentinel1", "annotation", "annotation/s1a-iw-grd-vv-*.xml", {"angles": "incidence"}),
            ("sentinel1", "calibration", "annotation/calibration/calibration-s1a-iw-grd-vv-*.xml", {}),
            ("sentinel1", "noise", "annotation/calibration/noise-s1a-iw-grd-vv-*.xml", {"noise": "signed"}),
        )
    },
    "sentinel2_item": Target(lambda: [(seeds.cogs() / "item.json").read_bytes()], _JSON, _cogs),
    "sentinel1_item": Target(lambda: [(seeds.radar_cogs() / "item.json").read_bytes()], _JSON, _radar_cogs),
    "eopf_root": Target(lambda: [(seeds.eopf() / ".zattrs").read_bytes()], _JSON, _eopf(".zattrs")),
    "eopf_array": Target(
        lambda: [(seeds.eopf() / "measurements/reflectance/r10m/b04/.zarray").read_bytes()],
        _JSON,
        _eopf("measurements/reflectance/r10m/b04/.zarray"),
    ),
    "workflow": Target(seeds.workflows, change.any_of(_YAML, change.spliced(seeds.workflows())), _workflow),
    "recipe": Target(seeds.recipes, change.any_of(_YAML, change.spliced(seeds.recipes())), _recipe),
    **{
        f"stac_{name}": Target(partial(seeds.stac_document, place), _JSON, _stac(place))
        for name, place in {
            "catalog": "catalog.json",
            "collection": "*/collection.json",
            "item": "*/*/*.json",
            "product": "published.json",
            "features": "features.json",
        }.items()
    },
    "stac_search": Target(seeds.api_items, _JSON, _api_item),
    "safetensors": Target(
        lambda: [seeds.safetensors()], change.any_of(change.damage_safetensors, change.flip), _weights(".safetensors")
    ),
    "torch": Target(lambda: [seeds.torch_checkpoint(False)], _PICKLE, _weights(".pth")),
    "torch_legacy": Target(lambda: [seeds.torch_checkpoint(True)], change.flip, _weights(".pt")),
    "classifier": Target(seeds.classifiers, _SKOPS, _classifier),
    "card": Target(seeds.cards, _JSON, _card),
    "geotiff": Target(lambda: [seeds.raster(".tif")[0]], change.any_of(change.flip, change.reword), _raster(".tif")),
    "envi": Target(lambda: [seeds.raster(".bsq")[1]], _YAML, _raster(".bsq")),
}
"""All targets by name."""
