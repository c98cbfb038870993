"""An item of a STAC API made fit for a catalog of our own: checked, without secrets, wavelengths in micrometres."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from cubeloom.errors import InputError
from cubeloom.network import without_credentials

from .documents import STAC_VERSION, Document, listed
from .items import parse_item
from .providers import Provider
from .records import utc, with_extensions

_NANOMETRES = 100
"""A wavelength above this is in nanometres: no instrument here measures at 100 µm, and none at 100 nm."""

_TEXTS = ("platform", "license", "processing:level", "processing:version", "proj:code", "attribution")
_NUMBERS = ("eo:cloud_cover", "eo:snow_cover")
_KEPT = ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "properties", "assets", "collection")


def made_safe(feature: object, provider: Provider) -> Document:
    """An item that a catalog may hold.

    Hrefs are absolute https, http or s3 addresses without credentials, others are left out with their assets; where an
    asset has an https address beside its s3 one, that is taken. Band lists stay on the assets that hold data, and
    their wavelengths are in micrometres, as STAC wants them (DLR's are in nanometres). `updated` is there where
    anything tells when the item last changed. Links are replaced by one to the item's origin.

    Args:
        feature: as the API sent it.
        provider: whose it is.

    Raises:
        InputError: no item, or one that cannot be used.
    """
    if not isinstance(feature, Mapping):
        raise InputError(f"{provider.name}: a JSON {type(feature).__name__} instead of a STAC item")
    origin = _origin(feature, provider)
    item: Document = {key: feature[key] for key in _KEPT if key in feature}
    assets = item.get("assets")
    if isinstance(assets, Mapping):
        cleaned = {str(key): _asset(value, origin) for key, value in assets.items()}
        item["assets"] = {key: asset for key, asset in cleaned.items() if asset}
    parsed = parse_item(item, Path(provider.name))
    version = item["stac_version"] if isinstance(item["stac_version"], str) else STAC_VERSION
    item |= {"type": "Feature", "stac_version": version, "id": parsed.id, "geometry": parsed.geometry}
    item["collection"] = parsed.collection or None
    item["properties"] = _properties(parsed.properties, item, provider)
    if parsed.bbox:
        item["bbox"] = list(parsed.bbox)
    else:
        item.pop("bbox", None)
    item["stac_extensions"] = _extensions(item)
    item["links"] = [{"rel": "via", "href": origin, "type": "application/geo+json"}]
    _check_text(item, provider)
    return item


def changed(item: Mapping[str, Any], provider: Provider) -> datetime | None:
    """When an item last changed; None where nothing tells."""
    for name in provider.changed:
        try:
            found = datetime.fromisoformat(str(item["properties"].get(name)))
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
        except (ValueError, OverflowError):  # the latter near the years 1 and 9999
            continue
    return None


def _origin(feature: Mapping[str, Any], provider: Provider) -> str:
    """Where the item itself is; relative hrefs start there."""
    for link in listed(feature, "links"):
        if isinstance(link, Mapping) and link.get("rel") == "self":
            return _address(link.get("href"), provider.api) or provider.api
    return provider.api


def _address(href: object, base: str) -> str:
    """An href as an absolute address without credentials; empty where it may not be one."""
    if not isinstance(href, str) or "\0" in href:
        return ""
    try:
        joined = href if href.startswith("s3://") else urljoin(base, href)
        parts = urlsplit(joined)
        if parts.scheme not in ("https", "http", "s3") or not parts.hostname:
            return ""
        return without_credentials(joined)
    except ValueError:
        return ""


def _asset(value: object, origin: str) -> Document:
    """An asset, empty where it has no usable href."""
    if not isinstance(value, Mapping):
        return {}
    href = _address(value.get("href"), origin)
    asset: Document = {key: value[key] for key in value if key not in ("alternate", "auth:refs", "storage:refs")}
    alternate = value.get("alternate")
    secure = alternate.get("https") if isinstance(alternate, Mapping) else None
    if not href.startswith("http") and isinstance(secure, Mapping) and (better := _address(secure.get("href"), origin)):
        # what serves the file by number, such as OData's .../$value, does not tell its name
        asset.setdefault("file:local_path", unquote(urlsplit(href).path).lstrip("/"))
        href = better
    asset["roles"] = [role for role in listed(value, "roles") if isinstance(role, str)]
    if "data" not in asset["roles"]:
        asset = {key: inner for key, inner in asset.items() if key not in ("eo:bands", "raster:bands", "bands")}
    for key, prefix in (("eo:bands", ""), ("bands", "eo:")):
        if key in asset:
            asset[key] = [_band(band, prefix) for band in listed(asset, key)]
    return asset | {"href": href} if href else {}


def _band(band: object, prefix: str) -> object:
    """A band with its wavelengths in micrometres, told from nanometres by their magnitude."""
    if not isinstance(band, Mapping):
        return band
    centre, width = f"{prefix}center_wavelength", f"{prefix}full_width_half_max"
    if not _is_number(band.get(centre)) or band[centre] <= _NANOMETRES:
        return band
    return {**band, **{name: round(band[name] / 1000, 7) for name in (centre, width) if _is_number(band.get(name))}}


def _properties(properties: Mapping[str, Any], item: Document, provider: Provider) -> Document:
    """The properties, those that a collection sums up only in their right types."""
    found = {
        key: value
        for key, value in properties.items()
        if not (key in _TEXTS and not isinstance(value, str)) and not (key in _NUMBERS and not _is_number(value))
    }
    found.setdefault("datetime", None)
    when = changed(item, provider)
    if when is None:
        found.pop("updated", None)
    elif not isinstance(found.get("updated"), str):
        found["updated"] = utc(when)
    return found


def _extensions(item: Document) -> list[str]:
    """The extensions that an item declares, and those that it uses and does not declare."""
    declared = [uri for uri in listed(item, "stac_extensions") if isinstance(uri, str)]
    used = with_extensions(item)["stac_extensions"]
    return declared + [uri for uri in used if not any(known.startswith(uri.rsplit("/", 2)[0]) for known in declared)]


def _is_number(value: object) -> bool:
    """Whether a value is a number that a float can hold; JSON has integers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_text(item: Document, provider: Provider) -> None:
    """Refuse what JSON can say in memory and not on disk: NaN, half of a surrogate pair, too deep a nest."""
    try:
        json.dumps(item, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{provider.name}: item {item['id']}: cannot be written as JSON ({error})") from None
