"""The STAC APIs that are known by name: where they are, what they can do, and which hosts hold their files."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import urlsplit

from cubeloom.errors import ConfigError


@dataclass(frozen=True)
class Provider:
    """A STAC API.

    Attributes:
        name: as it is called on the command line.
        api: URL of the landing page, without a slash at its end.
        collections: searched where the query names none.
        hosts: where its files are, as `Guard.hosts` takes them.
        language: how it filters: `cql2` (the filter extension), `query` (the older query extension), `none`, or empty
            where its landing page tells.
        sorts: whether it sorts by what is asked for.
        changed: properties that tell when an item last changed, the first that an item has.
        filters_changed: whether it filters by the first of `changed`.
        cloud_needs_box: whether a filter by cloud cover without a box makes it search its whole archive.
    """

    name: str
    api: str
    collections: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    language: str = ""
    sorts: bool = False
    changed: tuple[str, ...] = ("updated", "published", "created")
    filters_changed: bool = True
    cloud_needs_box: bool = False


_ALL = (
    Provider(
        "dlr-enmap",
        "https://geoservice.dlr.de/eoc/ogc/stac/v1",
        collections=("ENMAP_HSI_L2A",),
        hosts=("download.geoservice.dlr.de", "geoservice.dlr.de", "sso.eoc.dlr.de"),
        language="cql2",
        cloud_needs_box=True,
    ),
    Provider(
        "earth-search",
        "https://earth-search.aws.element84.com/v1",
        collections=("sentinel-2-c1-l2a",),
        hosts=("*.s3.us-west-2.amazonaws.com",),
        language="query",
        sorts=True,
    ),
    Provider(
        "planetary-computer",
        "https://planetarycomputer.microsoft.com/api/stac/v1",
        collections=("sentinel-2-l2a",),
        hosts=("*.blob.core.windows.net", "planetarycomputer.microsoft.com"),
        language="cql2",
        sorts=True,
        changed=("updated", "s2:generation_time", "published", "created"),
        filters_changed=False,  # its Sentinel items have no `updated`
    ),
    Provider(
        "cdse",
        "https://stac.dataspace.copernicus.eu/v1",
        collections=("sentinel-2-l2a",),
        hosts=("*.dataspace.copernicus.eu",),
        language="cql2",
        sorts=True,
    ),
)

PROVIDERS: Mapping[str, Provider] = {provider.name: provider for provider in _ALL}
"""EnMAP at DLR; Sentinel-2 at Earth Search, Planetary Computer and the Copernicus Data Space Ecosystem."""

KNOWN_HOSTS = tuple(dict.fromkeys(host for provider in _ALL for host in provider.hosts))
"""Hosts that hold the files of all providers."""


def find_provider(name: str) -> Provider:
    """The provider of a name, or the API at a URL.

    Raises:
        ConfigError: no provider has the name.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    parts = urlsplit(name)
    if parts.scheme in ("http", "https") and parts.hostname:
        known = next((p for p in _ALL if p.api == name.rstrip("/")), None)
        return known or Provider(parts.hostname, name.rstrip("/"))
    near = get_close_matches(name, PROVIDERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no provider is called {name!r}{hint} (known: {', '.join(PROVIDERS)}; or the URL of a STAC API)")
