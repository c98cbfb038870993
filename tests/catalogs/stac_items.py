"""STAC items in the shapes that the providers' APIs answer with. Load it through the fixture `stac_items`.

Hrefs begin with `@server@`, which `StacServer` replaces by its URL.
"""

import hashlib
from pathlib import Path
from typing import Any

Item = dict[str, Any]

DLR_ASSETS = {
    "metadata": ("METADATA", "application/xml", ["metadata"]),
    "image": ("SPECTRAL_IMAGE", "image/tiff; application=geotiff; profile=cloud-optimized", ["data"]),
    "vnir": ("QL_VNIR", "image/tiff; application=geotiff; profile=cloud-optimized", ["overview"]),
    "swir": ("QL_SWIR", "image/tiff; application=geotiff; profile=cloud-optimized", ["overview"]),
    "thumbnail": ("THUMBNAIL", "image/jpeg", ["thumbnail"]),
    "quality_classes": ("QL_QUALITY_CLASSES", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_cloud": ("QL_QUALITY_CLOUD", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_cloud_shadow": ("QL_QUALITY_CLOUDSHADOW", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_haze": ("QL_QUALITY_HAZE", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_cirrus": ("QL_QUALITY_CIRRUS", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_snow": ("QL_QUALITY_SNOW", "image/tiff; application=geotiff", ["data-mask"]),
    "quality_testflags": ("QL_QUALITY_TESTFLAGS", "image/tiff; application=geotiff", ["data-mask"]),
    "defective_pixel_mask": ("QL_PIXELMASK", "image/tiff; application=geotiff", ["data-mask"]),
}
"""Role in the file name, media type and STAC roles of DLR's 13 assets."""


def dlr_item(
    name: str = "ENMAP01-____L2A-DT0000024647_20230629T110132Z_025_V010402_20240630T020748Z",
    *,
    updated: str = "2024-07-01T00:00:00Z",
    nested: bool = True,
    cog: bool = True,
    bbox: tuple[float, ...] = (10.0, 50.0, 10.5, 50.4),
    cloud: int = 4,
    bands: int = 6,
) -> Item:
    """An item of ENMAP_HSI_L2A; `nested`: the folder `<item>/` that hrefs have since 2026; wavelengths in nm."""
    datatake, start, tile = name.split("-")[-1].split("_")[:3]
    acquired = f"{start[:4]}-{start[4:6]}-{start[6:8]}T{start[9:11]}:{start[11:13]}:{start[13:15]}Z"
    folder = f"ENMAP/files/L2A/{start[:4]}/{start[4:6]}/{start[6:8]}/{datatake}/{int(tile):02d}"
    folder += f"/{name}" if nested else ""
    listed = [
        {
            "name": number,
            "center_wavelength": 418.416 + 9 * number,
            "full_width_half_max": 6.99,
            "enmap:gain_of_band": 1e-4,
            "enmap:offset_of_band": 0,
        }
        for number in range(1, bands + 1)
    ]
    assets = {
        key: {
            "href": f"@server@/files/{folder}/{name}-{role}{suffix(key, cog)}",
            "type": media_type,
            "roles": roles,
            "title": key.replace("_", " "),
            "eo:bands": listed,
            "raster:bands": [{"data_type": "int16", "nodata": "null"}] * bands,
        }
        for key, (role, media_type, roles) in DLR_ASSETS.items()
    }
    assets["image"] |= {"proj:epsg": 32632, "proj:shape": [1199, 1259]}
    west, south, east, north = bbox
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.0.0/schema.json",
            "https://stac-extensions.github.io/view/v1.0.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": name,
        "collection": "ENMAP_HSI_L2A",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "bbox": list(bbox),
        "properties": {
            "datetime": acquired,
            "updated": updated,
            "eo:cloud_cover": cloud,
            "eo:snow_cover": 0,
            "proj:epsg": None,
            "view:sun_elevation": 60.1,
            "view:sun_azimuth": 160.2,
            "processing:level": "L2A",
            "version": "01.04.02",
            "data_type": "int16",
            "enmap:nodata": -32768,
            "enmap:overallQuality": 0,
            "enmap:datatakeID": int(datatake.removeprefix("DT")),
            "enmap:SWIRAOrSWIRBSelected": "SWIR-A",
        },
        "links": [
            {"rel": "self", "href": f"@server@/collections/ENMAP_HSI_L2A/items/{name}", "type": "application/geo+json"},
            {"rel": "collection", "href": "@server@/collections/ENMAP_HSI_L2A", "type": "application/json"},
        ],
        "assets": assets,
    }


def suffix(key: str, cog: bool) -> str:
    """How the file of an asset ends."""
    if key == "metadata":
        return ".XML"
    return ".jpg" if key == "thumbnail" else f"{'_COG' if cog else ''}.TIF"


def publish_product(product: Path, folder: Path, *, checksums: bool = False, **changes: Any) -> Item:
    """Lay a product folder out below `folder` as DLR's download server has it, and give its item.

    Args:
        product: folder of an EnMAP product, such as `simulate_scene` writes.
        folder: what `StacServer` serves at `/files/`.
        checksums: also put `file:checksum` and `file:size` on the assets, which DLR does not.
        **changes: arguments of `dlr_item`.
    """
    item = dlr_item(product.name, **changes)
    for key, (role, _, _) in DLR_ASSETS.items():
        href = item["assets"][key]["href"]
        target = folder / href.removeprefix("@server@/files/")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = product / f"{product.name}-{role}{suffix(key, cog=False)}"
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        if checksums:
            data = source.read_bytes()
            item["assets"][key] |= {"file:checksum": "1220" + hashlib.sha256(data).hexdigest(), "file:size": len(data)}
    return item


def earth_search_item(name: str = "S2B_32UQD_20240601_0_L2A", updated: str = "2024-06-02T03:04:05.678Z") -> Item:
    """An item of `sentinel-2-c1-l2a` at Earth Search: named bands in µm, checksums, anonymous https hrefs."""
    bands = {"blue": 0.49, "green": 0.56, "red": 0.665, "nir": 0.842}
    assets = {
        key: {
            "href": f"@server@/files/s2/{name}/{key}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data", "reflectance"],
            "eo:bands": [{"name": key, "common_name": key, "center_wavelength": wavelength}],
            "file:checksum": "1220" + hashlib.sha256(key.encode()).hexdigest(),
        }
        for key, wavelength in bands.items()
    }
    assets["thumbnail"] = {
        "href": f"@server@/files/s2/{name}/L2A_PVI.jpg",
        "type": "image/jpeg",
        "roles": ["thumbnail"],
    }
    return sentinel(name, "sentinel-2-c1-l2a", assets, {"updated": updated, "earthsearch:boa_offset_applied": False})


def planetary_item(name: str = "S2A_MSIL2A_20240601T102021_R065_T32UQD_20240601T181818") -> Item:
    """An item of Planetary Computer's `sentinel-2-l2a`: blob storage that wants a token, and no `updated`."""
    href = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/32/U/QD"
    assets = {
        key: {"href": f"{href}/{key}_10m.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}
        for key in ("B02", "B03", "B04")
    }
    assets["rendered_preview"] = {"href": "https://planetarycomputer.microsoft.com/api/p", "roles": ["overview"]}
    return sentinel(name, "sentinel-2-l2a", assets, {"s2:generation_time": "2024-06-01T18:18:18.000000Z"})


def cdse_item(name: str = "S2B_MSIL2A_20240601T102021_N0510_R065_T32UQD_20240601T181818") -> Item:
    """An item of CDSE: s3:// hrefs with an https alternate, MD5 multihashes, paths inside the SAFE folder."""
    assets = {
        key: {
            "href": f"s3://eodata/Sentinel-2/MSI/L2A/2024/06/01/{name}.SAFE/GRANULE/G/IMG_DATA/R10m/T32UQD_{key}.jp2",
            "type": "image/jp2",
            "roles": ["data"],
            "file:size": 1000,
            "file:checksum": "d50110" + hashlib.md5(key.encode()).hexdigest(),
            "file:local_path": f"{name}.SAFE/GRANULE/G/IMG_DATA/R10m/T32UQD_{key}.jp2",
            "alternate": {
                "https": {
                    "href": "https://download.dataspace.copernicus.eu/odata/v1/Products(0f0e)/Nodes(T32UQD)/$value",
                    "auth:refs": ["oidc"],
                }
            },
        }
        for key in ("B02_10m", "B03_10m")
    }
    return sentinel(name, "sentinel-2-l2a", assets, {"updated": "2024-06-02T00:00:00Z"})


def sentinel(name: str, collection: str, assets: dict[str, Any], properties: dict[str, Any]) -> Item:
    """What the three Sentinel-2 APIs have in common."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [[[11, 51], [12, 51], [12, 52], [11, 52], [11, 51]]]},
        "bbox": [11.0, 51.0, 12.0, 52.0],
        "properties": {"datetime": "2024-06-01T10:20:21.024Z", "eo:cloud_cover": 12.5, **properties},
        "links": [{"rel": "self", "href": f"@server@/collections/{collection}/items/{name}"}],
        "assets": assets,
    }
