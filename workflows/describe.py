"""A Scene's description in the words of its STAC item."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.publish import ProductRecord
from cubeloom.catalogs.records import BandRecord, ClassRecord, GridRecord, LonLat, SceneFacts, finite
from cubeloom.pipeline.quicklook import class_legend, hex_colour
from cubeloom.pipeline.scene import Bands, SceneSpec


def scene_facts(spec: SceneSpec) -> SceneFacts:
    """What an item says of a scene, from the Scene's own attributes."""
    attrs = spec.attrs
    return SceneFacts(
        scene_id=spec.scene_id,
        sensor=spec.sensor,
        level=spec.processing_level,
        time=spec.time,
        footprint=_footprint(spec),
        grid=_grid(spec),
        processor=str(attrs.get("processing_version", "")),
        cloud_cover=finite(attrs.get("cloud_cover")),
        sun_elevation=finite(attrs.get("sun_elevation")),
        sun_azimuth=finite(attrs.get("sun_azimuth")),
        off_nadir=finite(attrs.get("view_off_nadir")),
        azimuth=finite(attrs.get("view_azimuth")),
        licence=str(attrs.get("license", "")),
        attribution=str(attrs.get("attribution", "")),
    )


def band_records(bands: Bands) -> tuple[BandRecord, ...]:
    """The band axis as an item lists it; a band is named by its number, and its detector where there are several."""
    several = len(set(bands.detector.tolist())) > 1
    return tuple(
        BandRecord(f"{detector}-{number}" if several else str(number), float(wavelength), float(fwhm))
        for number, detector, wavelength, fwhm in zip(
            bands.number, bands.detector, bands.wavelength, bands.fwhm, strict=True
        )
    )


def product_record(
    spec: SceneSpec,
    source: CatalogItem,
    store: Path,
    *,
    workflow: str,
    identity: str,
    commit_sha256: str,
    pictures: dict[str, Path] | None = None,
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
        bands=band_records(spec.bands),
        created=datetime.now(UTC).replace(microsecond=0),
        history=spec.history,
        software=software,
        classes=class_records(spec),
        pictures=pictures or {},
        source=source,
        properties=properties or {},
    )


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


def _grid(spec: SceneSpec) -> GridRecord | None:
    crs = spec.grid.crs
    if crs is None:
        return None
    a = spec.grid.affine
    epsg = crs.to_epsg()
    code = f"EPSG:{epsg}" if epsg else ""
    return GridRecord(code, spec.shape, (a.a, a.b, a.c, a.d, a.e, a.f), "" if code else crs.to_wkt())


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
