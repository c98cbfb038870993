"""A Scene's description in the words of its STAC item."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.publish import ProductRecord
from cubeloom.catalogs.records import BandRecord, ClassRecord, GridRecord, LonLat, SceneFacts, finite
from cubeloom.pipeline.quicklook import class_legend, hex_colour
from cubeloom.pipeline.scene import SceneSpec
from cubeloom.pipeline.stages.base import Fact


def scene_facts(spec: SceneSpec) -> SceneFacts:
    """What an item says of a scene, from the Scene's own attributes."""
    attrs = spec.attrs
    constellation = series(spec.sensor)
    return SceneFacts(
        scene_id=spec.scene_id,
        sensor=spec.sensor,
        level=spec.processing_level,
        time=spec.time,
        footprint=_footprint(spec),
        grid=grid_record(spec.grid),
        processor=str(attrs.get("processing_version", "")),
        cloud_cover=finite(attrs.get("cloud_cover")),
        sun_elevation=finite(attrs.get("sun_elevation")),
        sun_azimuth=finite(attrs.get("sun_azimuth")),
        off_nadir=finite(attrs.get("view_off_nadir")),
        azimuth=finite(attrs.get("view_azimuth")),
        licence=str(attrs.get("license", "")),
        attribution=str(attrs.get("attribution", "")),
        constellation=constellation,
        instruments=_INSTRUMENTS.get(constellation, ()),
        properties=_further(spec),
    )


_LIGHT = 299_792_458.0
"""Speed of light, m/s, which is GHz times nm."""
_INSTRUMENTS = {"sentinel-1": ("c-sar",), "sentinel-2": ("msi",)}
_COMMON_NAMES = {
    "sentinel-2": dict(
        zip(
            ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
            ("coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09",
             "cirrus", "swir16", "swir22"),
            strict=True,
        )
    )
}  # fmt: skip
"""Common names of the STAC extension `eo` by constellation and band."""


def series(sensor: str) -> str:
    """The constellation that a sensor is of, in STAC's words; empty for a satellite of its own."""
    low = sensor.lower()
    return next((name for name in _INSTRUMENTS if low.rstrip("abcd") == name), "")


def _further(spec: SceneSpec) -> dict[str, Any]:
    """Properties of the extensions `eo`, `sat`, `sar` and `grid`, and the times, that a Sentinel Scene tells."""
    attrs, constellation = spec.attrs, series(spec.sensor)
    if not constellation:
        return {}
    tile, state = str(attrs.get("mgrs_tile", "")), str(attrs.get("orbit_direction", "")).lower()
    found = {
        "eo:snow_cover": finite(attrs.get("snow_cover")),
        "sat:orbit_state": state if state in ("ascending", "descending") else None,
        "sat:relative_orbit": _whole(attrs.get("relative_orbit")),
        "sat:absolute_orbit": _whole(attrs.get("absolute_orbit")),
        "grid:code": f"MGRS-{tile}" if tile else None,
        "cubeloom:warning": attrs.get("offset_warning"),
        **(_radar(spec) if constellation == "sentinel-1" else {}),
    }
    return {key: value for key, value in found.items() if value is not None}


def _radar(spec: SceneSpec) -> dict[str, Any]:
    """The fields of the extension `sar`, all of which it wants; empty where the mode is not known, as for chips."""
    called, mode = spec.attrs.get("band_names", {}), spec.attrs.get("instrument_mode")
    names = [called[key] for key in map(str, spec.bands.number) if key in called]
    if not (mode and names):
        return {}
    return {
        "sar:instrument_mode": str(mode),
        "sar:frequency_band": "C",
        "sar:center_frequency": round(_LIGHT / float(spec.bands.wavelength[0]), 6),
        "sar:polarizations": names,
        "sar:product_type": spec.processing_level,
    }


def _whole(value: Any) -> int | None:  # noqa: ANN401 - whatever a provider's metadata hold
    number = finite(value)
    return int(number) if number is not None and number >= 1 else None


def band_records(spec: SceneSpec) -> tuple[BandRecord, ...]:
    """The band axis as an item lists it.

    A band is called as the provider calls it, else by its number, after its detector where there are several.
    """
    bands, called = spec.bands, spec.attrs.get("band_names", {})
    common = _COMMON_NAMES.get(series(spec.sensor), {})
    several = len(set(bands.detector.tolist())) > 1
    radar = series(spec.sensor) == "sentinel-1"  # `eo` is of light
    records = []
    for number, detector, wavelength, fwhm in zip(
        bands.number, bands.detector, bands.wavelength, bands.fwhm, strict=True
    ):
        name = called.get(str(number)) or (f"{detector}-{number}" if several else str(number))
        centre, width = (math.nan, math.nan) if radar else (float(wavelength), float(fwhm))
        records.append(BandRecord(name, centre, width, common.get(name, "")))
    return tuple(records)


def product_record(
    spec: SceneSpec,
    source: CatalogItem,
    store: Path,
    *,
    workflow: str,
    identity: str,
    commit_sha256: str,
    pictures: dict[str, Path] | None = None,
    facts: Mapping[str, Mapping[str, Fact]] | None = None,
    properties: dict[str, Any] | None = None,
) -> ProductRecord:
    """The record of a published store.

    Args:
        spec: the Scene in the store's root group.
        source: the item it was made from.
        store: the `.zarr` folder, published.
        workflow: name of the workflow.
        identity: digest (hex) of the product.
        commit_sha256: digest (hex) of the store's commit record.
        pictures: PNGs by asset key.
        facts: what the steps found out of the whole scene.
        properties: further item properties.
    """
    from importlib.metadata import version

    from cubeloom import __version__
    from cubeloom.pipeline.store import COMMIT

    software = {"cubeloom": __version__, "zarr": version("zarr"), "numpy": version("numpy")}
    return ProductRecord(
        item_id=source.id,
        workflow=workflow,
        identity=identity,
        store=store,
        commit=store / COMMIT,
        commit_sha256=commit_sha256,
        facts=scene_facts(spec),
        bands=band_records(spec),
        created=datetime.now(UTC).replace(microsecond=0),
        history=(*spec.history, *(_found(step, told) for step, told in (facts or {}).items())),
        software=software,
        classes=class_records(spec),
        pictures=pictures or {},
        source=source,
        properties={**(properties or {}), **{f"cubeloom:{step}": dict(told) for step, told in (facts or {}).items()}},
    )


def _found(step: str, facts: Mapping[str, Fact]) -> str:
    """What a step found out, as a line of the product's history."""
    return f"{step} found: {', '.join(f'{name} {value}' for name, value in facts.items())}"


def class_records(spec: SceneSpec) -> tuple[ClassRecord, ...]:
    """The classes of the Scene's map; empty where it has none."""
    if "classes" not in spec.variables:
        return ()
    legend = class_legend(spec.variables["classes"].attrs)
    return tuple(
        ClassRecord(entry.value, _plain_name(entry.name), hex_colour(entry.colour).removeprefix("#"), entry.name)
        for entry in legend
    )


def _plain_name(name: str) -> str:
    """A class name with the characters that the classification extension allows."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)


def grid_record(grid: GeoBox) -> GridRecord | None:
    """A grid as an item has it; None in sensor geometry."""
    crs = grid.crs
    if crs is None:
        return None
    a = grid.affine
    epsg = crs.to_epsg()
    code = f"EPSG:{epsg}" if epsg else ""
    height, width = grid.shape
    return GridRecord(code, (int(height), int(width)), (a.a, a.b, a.c, a.d, a.e, a.f), "" if code else crs.to_wkt())


def _footprint(spec: SceneSpec) -> Sequence[LonLat]:
    """Corners of the imaged area, lon/lat; those of the grid where the provider gives none."""
    given = spec.attrs.get("footprint")
    if given:
        ring = [(float(lon), float(lat)) for lon, lat in given]
        return ring[:-1] if ring[0] == ring[-1] else ring
    if spec.grid.crs is None:
        return ()
    ring = [(float(lon), float(lat)) for lon, lat in spec.grid.extent.to_crs("EPSG:4326").exterior.coords]
    return ring[:-1]
