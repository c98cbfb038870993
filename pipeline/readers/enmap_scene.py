"""What an EnMAP product's metadata and image header say, as a Scene without pixels."""

from collections.abc import Container
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.errors import InputError
from cubeloom.pipeline.scene import Bands, SceneSpec, Variable, cube_variable, defect_variable, quality_variable
from cubeloom.untrusted import safe_name

from .bands import preferred, usable
from .enmap_files import ProductFiles
from .enmap_metadata import CORNERS, BandTable, EnmapMetadata
from .enmap_quality import MASKS
from .rasters import RasterInfo


def scene_spec(
    files: ProductFiles,
    metadata: EnmapMetadata,
    table: BandTable,
    info: RasterInfo | None,
    masks: Container[str],
    detector: str | None,
) -> SceneSpec:
    """The Scene of a product, or of one detector of an L1B product.

    Args:
        files: the product's files.
        metadata: its METADATA.XML.
        table: the Scene's bands, ascending.
        info: the image's header; None where the image is empty.
        masks: short names of the masks there are.
        detector: for L1B.

    Raises:
        InputError: the product's name cannot be used as one, or nothing tells the size of the scene or, for a level in
            map geometry, where it lies.
    """
    measurement = "reflectance" if metadata.level == "L2A" else "radiance"
    long_name = "surface reflectance" if metadata.level == "L2A" else "at-sensor radiance"
    variables: dict[str, Variable] = {measurement: cube_variable(measurement, long_name=long_name)}
    variables["quality"] = quality_variable()
    if "PIXELMASK" in masks:
        variables["defect"] = defect_variable()
    stem = files.stem if files.stem.upper().startswith("ENMAP") or not metadata.name else metadata.name
    grid = _grid(files, metadata, info, detector)
    return SceneSpec(
        scene_id=safe_name(stem + (f"-{detector.upper()}" if detector else ""), f"{files.where}: scene id"),
        sensor="EnMAP",
        processing_level=metadata.level,
        time=metadata.start,
        source=stem,
        bands=_bands(table),
        grid=grid,
        variables=variables,
        measurement=measurement,
        subject=measurement,
        attrs=_attrs(metadata, table, grid, masks, detector),
    )


def _bands(table: BandTable) -> Bands:
    return Bands(
        number=table.number,
        wavelength=table.wavelength,
        fwhm=table.fwhm,
        detector=table.detector,
        good=usable(table.wavelength, table.empty),
        preferred=preferred(table.wavelength, table.detector),
    )


def _grid(files: ProductFiles, metadata: EnmapMetadata, info: RasterInfo | None, detector: str | None) -> GeoBox:
    """The image's own grid; no CRS for L1B (sensor geometry) and where the image is empty."""
    if info is not None and not detector:
        if info.grid.crs is None:
            raise InputError(
                f"{files.rasters['SPECTRAL_IMAGE']}: the image has no CRS, so nothing says where on Earth its pixels "
                f"lie; expected the UTM zone or the geographic grid in which {metadata.level} is delivered. A copy has "
                "lost it: fetch the product again, or write CRS and transform into the image (`gdal_edit.py -a_srs … "
                "-a_ullr …`)"
            )
        return info.grid
    shape = info.shape if info is not None else metadata.shapes.get(detector or "merge")
    if shape is None:
        raise InputError(
            f"{files.where}: the image is empty and {files.metadata} has no product/image/{detector or 'merge'}/"
            "dimension, so the size of the scene is unknown; fetch the product again"
        )
    return GeoBox(shape, Affine.identity(), None)


def _attrs(
    metadata: EnmapMetadata, table: BandTable, grid: GeoBox, masks: Container[str], detector: str | None
) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        **metadata.attrs,
        "start_datetime": metadata.start.isoformat(),
        "end_datetime": metadata.stop.isoformat(),
        "license": "EnMAP Data License",
    }
    if missing := [name for name in (*MASKS, "PIXELMASK") if name not in masks]:
        attrs["missing_masks"] = missing
    if metadata.corners:
        attrs["footprint"] = [list(metadata.corners[name]) for name in CORNERS]
    along = along_track_azimuth(metadata, grid, detector)
    if along is not None:
        attrs["along_track_azimuth"] = along
    return attrs | _rpc(metadata, table)


def along_track_azimuth(metadata: EnmapMetadata, grid: GeoBox, detector: str | None) -> float | None:
    """Direction of flight over the grid, degrees clockwise from its north (up); 180 is down the columns.

    In map geometry both long sides of the swath, upper to lower corner, are added up, so that their slight
    convergence cancels. None where the corners or the CRS are not known.
    """
    from rasterio.warp import transform

    if detector:
        return 180.0
    if grid.crs is None or not metadata.corners:
        return None
    ends = ("upper_left", "lower_left", "upper_right", "lower_right")
    lon, lat = zip(*(metadata.corners[name] for name in ends), strict=True)
    x, y = transform("EPSG:4326", grid.crs.to_wkt(), lon, lat)
    east, north = x[1] - x[0] + x[3] - x[2], y[1] - y[0] + y[3] - y[2]
    if not np.isfinite([east, north]).all() or np.hypot(east, north) == 0:
        return None
    return float(np.degrees(np.arctan2(east, north)) % 360)


def _rpc(metadata: EnmapMetadata, table: BandTable) -> dict[str, Any]:
    """The rational polynomial model of the detector's middle band, as arguments of `rasterio.rpc.RPC`."""
    middle = int(table.number[len(table.number) // 2])
    if middle not in metadata.rpc:
        return {}
    note = f"model of band {middle}, the middle one of the detector; each band has a slightly different one"
    return {"rpc": dict(metadata.rpc[middle]), "rpc_note": note}
