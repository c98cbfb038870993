"""Checks of a static catalog without a network: STAC core by pystac's own schemas, extension fields by value.

pystac carries the JSON schemas of the STAC core but not those of the extensions, which it would fetch. For the fields
that Cubeloom writes the rules of the extensions are held here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cubeloom.errors import InputError

from .documents import STAC_VERSION, Document, links, local_path, read_document
from .records import EXTENSIONS

Rule = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float) -> Rule:
    return (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
        f"a number from {low:g} to {high:g}",
    )


def _text(pattern: str, expected: str) -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, expected


def _numbers(*counts: int) -> Rule:
    return (
        lambda value: (
            isinstance(value, list) and len(value) in counts and all(isinstance(n, int | float) for n in value)
        ),
        f"a list of {' or '.join(map(str, counts))} numbers",
    )


def _texts(*allowed: str) -> Rule:
    return (
        lambda value: isinstance(value, list) and value != [] and all(one in allowed for one in value),
        f"a list of {' or '.join(allowed)}",
    )


_COMMON_NAMES = (
    *("pan", "coastal", "blue", "green", "green05", "yellow", "red", "rededge", "rededge071", "rededge075"),
    *("rededge078", "nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12"),
)

RULES: Mapping[str, Rule] = {
    "eo:cloud_cover": _number(0, 100),
    "eo:snow_cover": _number(0, 100),
    "eo:common_name": _text("|".join(_COMMON_NAMES), "a common name such as red"),
    "eo:center_wavelength": _number(0.1, 100),
    "eo:full_width_half_max": _number(1e-6, 100),
    "view:off_nadir": _number(0, 90),
    "view:incidence_angle": _number(0, 90),
    "view:azimuth": _number(0, 360),
    "view:sun_azimuth": _number(0, 360),
    "view:sun_elevation": _number(-90, 90),
    "proj:code": _text(r"[^:\s]+:[^:\s]+", "a code such as EPSG:32633"),
    "proj:shape": _numbers(2),
    "proj:transform": _numbers(6, 9),
    "proj:bbox": _numbers(4, 6),
    "processing:level": _text(r"\S.*", "a level such as L2A"),
    "processing:version": _text(r"\S.*", "a version"),
    "sat:orbit_state": _text("ascending|descending|geostationary", "ascending, descending or geostationary"),
    "sat:relative_orbit": _number(1, 100_000),
    "sat:absolute_orbit": _number(1, 10_000_000),
    "sar:instrument_mode": _text(r"\S+", "a mode such as IW"),
    "sar:frequency_band": _text("P|L|S|C|X|Ku|K|Ka", "a radar band such as C"),
    "sar:polarizations": _texts("HH", "VV", "HV", "VH"),
    "sar:product_type": _text(r"\S+", "a product type such as GRD"),
    "sar:center_frequency": _number(0.1, 100),
    "grid:code": _text(r"[A-Z0-9]+-[-_.A-Za-z0-9]+", "a code such as MGRS-33UUP"),
    "cubeloom:content": _text(r"1220[a-f0-9]{64}", "a sha256 as multihash"),
    "file:checksum": _text(r"[a-f0-9]{8,}", "a multihash in lower-case hexadecimal digits"),
    "file:size": _number(0, float("inf")),
    "color_hint": _text(r"[0-9A-Fa-f]{6}", "six hexadecimal digits"),
}
"""Rule of each field, from the JSON schemas of the extensions that `EXTENSIONS` names.

Wavelengths are bounded on both sides because their unit is micrometres: 418.4 is a slip for nanometres.
"""


def validate_catalog(path: str | Path) -> int:
    """Check a STAC document and all documents that its links lead to.

    The STAC core against its schemas, the extension fields that Cubeloom uses, and that every local file that an asset
    names is there.

    Args:
        path: a catalog.json, collection, item, or a folder with a catalog.json.

    Returns:
        How many documents were checked.

    Raises:
        InputError: lists every breach and the document it stands in.
    """
    start = Path(path) / "catalog.json" if Path(path).is_dir() else Path(path)
    start = start.resolve()
    problems: list[str] = []
    seen, pending = {start}, [start]
    while pending:
        document_path = pending.pop()
        try:
            document = read_document(document_path)
            found = [local_path(href, document_path) for href in links(document, "child", "item")]
        except InputError as error:
            problems.append(str(error))
            continue
        problems += [f"{document_path}: {problem}" for problem in document_problems(document, document_path)]
        fresh = set(found) - seen
        seen |= fresh
        pending += sorted(fresh, reverse=True)
    if problems:
        listed = "\n  - ".join(problems)
        raise InputError(f"{start}: what breaks STAC (documents read: {len(seen)}):\n  - {listed}")
    return len(seen)


def document_problems(document: Document, path: Path) -> Iterator[str]:
    """Breaches of one document, in words."""
    yield from _core_problems(document)
    yield from _extension_problems(document)
    assets = document.get("assets")
    for key, asset in (assets if isinstance(assets, Mapping) else {}).items():
        yield from _asset_problems(str(key), asset, path)


def _core_problems(document: Document) -> Iterator[str]:
    """Breaches of the STAC core; documents of an older STAC version are brought up to date first."""
    import pystac
    from pystac.serialization import identify_stac_object, migrate_to_latest
    from pystac.validation import JsonSchemaSTACValidator

    try:
        info = identify_stac_object(document)
        current = migrate_to_latest(document, info) if document.get("stac_version") != STAC_VERSION else document
        JsonSchemaSTACValidator().validate_core(current, info.object_type, STAC_VERSION)
    except pystac.STACValidationError as error:
        for breach in error.source or ():
            where = "/".join(map(str, breach.absolute_path)) or "document"
            yield f"{where}: {breach.message[:300]}"
    except (pystac.STACTypeError, pystac.STACError) as error:
        yield f"no STAC object ({error})"
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:  # a value of another type
        yield f"no STAC object ({error})"


def _extension_problems(document: Document) -> Iterator[str]:
    extensions = document.get("stac_extensions")
    declared = " ".join(map(str, extensions if isinstance(extensions, list) else ()))
    used = set()
    summaries = {"summaries", "item_assets"}
    for where, key, value in _fields({k: v for k, v in document.items() if k not in summaries}):
        used.add(key.partition(":")[0] if ":" in key else "")
        rule = RULES.get(key)
        if rule and value is not None and not rule[0](value):
            yield f"{where}: {repr(value)[:300]}; expected {rule[1]}"
    for prefix in sorted(used & set(EXTENSIONS)):
        family = EXTENSIONS[prefix].rsplit("/", 2)[0]
        if family not in declared:
            yield f"stac_extensions: fields {prefix}: are used but {family} is not declared"


def _fields(value: object, where: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key of a document with its place and value, depth first."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}/{key}" if where else str(key)
            yield place, str(key), inner
            yield from _fields(inner, place)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _fields(inner, f"{where}/{position}")


def _asset_problems(key: str, asset: object, path: Path) -> Iterator[str]:
    href = asset.get("href") if isinstance(asset, Mapping) else None
    if not isinstance(href, str):
        return  # the core schema has said so
    try:
        target = local_path(href, path)
        exists = target.exists()
    except InputError:
        return  # a remote file is not checked
    except OSError:  # no name that a file can have
        exists = False
    if not exists:
        yield f"assets/{key}: {href} is missing (expected at {target})"
