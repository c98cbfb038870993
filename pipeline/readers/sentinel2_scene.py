"""What a Sentinel-2 product's metadata say of one of its grids, as a Scene without pixels."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from cubeloom.pipeline.scene import SceneSpec, Variable, cube_variable, defect_variable, quality_variable
from cubeloom.untrusted import safe_name

from .sentinel2_bands import Band, scene_bands
from .sentinel2_metadata import ProductMetadata
from .sentinel2_quality import QualityFiles
from .sentinel2_tile import TileMetadata

LONG_NAMES = {"L2A": "surface reflectance", "L1C": "top-of-atmosphere reflectance"}
_TILE = re.compile(r"\d{1,2}[A-Z]{3}")
LICENCE = "Copernicus Sentinel data: free, full and open access"


def credit(time: datetime) -> str:
    """The line that goes with every copy of what is made of Sentinel data (Copernicus legal notice, 2014)."""
    return f"contains modified Copernicus Sentinel data {time.year}"


def item_attrs(properties: Mapping[str, Any]) -> dict[str, Any]:
    """What the properties of a STAC item of Sentinel-2 tell of the scene, by the names of a Scene's attributes."""
    tile = str(properties.get("grid:code") or properties.get("s2:mgrs_tile") or "").removeprefix("MGRS-")
    orbit = properties.get("sat:relative_orbit")
    found = {
        "cloud_cover": properties.get("eo:cloud_cover"),
        "sun_elevation": properties.get("view:sun_elevation"),
        "sun_azimuth": properties.get("view:sun_azimuth"),
        "orbit_direction": str(properties.get("sat:orbit_state") or "").upper() or None,
        "relative_orbit": orbit if type(orbit) is int and 1 <= orbit <= 143 else None,
        "mgrs_tile": tile if _TILE.fullmatch(tile) else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def scene_spec(
    metadata: ProductMetadata, tile: TileMetadata, bands: Sequence[Band], resolution: int, quality: QualityFiles
) -> SceneSpec:
    """The Scene of one grid of a product.

    Args:
        metadata: of the product.
        tile: of its tile.
        bands: of the Scene, ascending.
        resolution: of the grid, m. The Scene of the 10 m grid has the product's name; the others add theirs.
        quality: the masks there are.

    Raises:
        InputError: the product's name cannot be used as one.
    """
    variables: dict[str, Variable] = {
        "reflectance": cube_variable("reflectance", long_name=LONG_NAMES[metadata.level]),
        "quality": quality_variable(),
    }
    if quality.by_band:
        variables["defect"] = defect_variable()
    suffix = "" if resolution == 10 else f"-{resolution}m"
    return SceneSpec(
        scene_id=safe_name(metadata.name + suffix, "scene id"),
        sensor=metadata.sensor,
        processing_level=metadata.level,
        time=tile.time,
        source=metadata.name,
        bands=scene_bands(bands),
        grid=tile.grids[resolution],
        variables=variables,
        measurement="reflectance",
        subject="reflectance",
        history=(_history(metadata, bands),),
        attrs=_attrs(metadata, tile, bands),
    )


def _history(metadata: ProductMetadata, bands: Sequence[Band]) -> str:
    offsets = sorted({metadata.offset[band.name] for band in bands})
    shown = " or ".join(f"{offset:g}" for offset in offsets)
    stated = "as the metadata state" if metadata.offset_stated else "since the metadata state none"
    return (
        f"reflectance = (DN + offset) / {metadata.quantification:g}, offset {shown} {stated} (processing baseline "
        f"{metadata.attrs.get('processing_version', 'unknown')})"
    )


def _attrs(metadata: ProductMetadata, tile: TileMetadata, bands: Sequence[Band]) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        **metadata.attrs,
        "start_datetime": metadata.start.isoformat(),
        "end_datetime": metadata.stop.isoformat(),
        "mgrs_tile": tile.tile.removeprefix("T"),
        "sun_elevation": round(90 - float(tile.mean_sun.zenith), 6),
        "sun_azimuth": float(tile.mean_sun.azimuth),
        "band_names": {str(band.number): band.name for band in bands},
        "license": LICENCE,
        "attribution": credit(tile.time),
    }
    views = [tile.mean_view[band.name] for band in bands if band.name in tile.mean_view]
    if views:
        attrs["view_off_nadir"] = round(float(np.mean([view.zenith for view in views])), 6)
        turn = np.radians([view.azimuth for view in views])
        attrs["view_azimuth"] = round(float(np.degrees(np.arctan2(np.sin(turn).sum(), np.cos(turn).sum())) % 360), 6)
    return attrs
