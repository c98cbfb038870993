"""Which of a product's listed files hold which band, at which resolution."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from cubeloom.errors import InputError

from .sentinel2_bands import NAMES
from .sentinel2_metadata import ProductMetadata
from .sentinel2_polygons import parse_clouds
from .sentinel2_quality import CoarseFile, QualityFiles
from .sentinel2_safe import SafeFiles
from .sentinel2_tile import TileMetadata

_IMAGE = re.compile(r".*_(?P<what>B\d[0-9A]|SCL|AOT|WVP|TCI)(?:_(?P<resolution>10|20|60)m)?")
_CLASSI_RESOLUTION = 60


@dataclass(frozen=True)
class Image:
    """An image of the product: the band (or SCL, AOT, ...) it holds, its resolution in m, and its path."""

    band: str
    resolution: int
    path: str


def listed_images(metadata: ProductMetadata) -> list[Image]:
    """All images that the metadata list, by what their names say; L1C's images say no resolution: it is the native one.

    Raises:
        InputError: a band's name is none of Sentinel-2's.
    """
    images = []
    for path in metadata.images:
        found = _IMAGE.fullmatch(PurePosixPath(path).name.removesuffix(".jp2"))
        if found is None:
            continue
        band, stated = found["what"], found["resolution"]
        if band in NAMES:
            images.append(Image(band, int(stated or metadata.bands[band].resolution), path))
        elif stated:
            images.append(Image(band, int(stated), path))
    return images


def grid_images(metadata: ProductMetadata, resolution: int, *, native: bool) -> list[Image]:
    """The images of a grid's bands, ascending in wavelength; of native bands alone, or of all.

    Raises:
        InputError: a band is listed twice at this resolution.
    """
    found = [image for image in listed_images(metadata) if image.band in NAMES and image.resolution == resolution]
    if native:
        found = [image for image in found if metadata.bands[image.band].resolution == resolution]
    if len({image.band for image in found}) != len(found):
        raise InputError(f"{metadata.name}: lists a band twice at {resolution} m")
    return sorted(found, key=lambda image: NAMES.index(image.band))


def tile_folder(metadata: ProductMetadata) -> str:
    """The folder of the tile inside the product, which the images' paths begin with.

    Raises:
        InputError: the images lie in several tiles, or not under GRANULE.
    """
    folders = {"/".join(PurePosixPath(path).parts[:2]) for path in metadata.images}
    folder = folders.pop()
    if folders or not folder.startswith("GRANULE/"):
        raise InputError(f"{metadata.name}: the images lie in {len(folders) + 1} folders; expected one below GRANULE")
    return folder


def quality_files(
    files: SafeFiles,
    metadata: ProductMetadata,
    tile: TileMetadata,
    resolution: int,
    bands: Collection[str],
    by_band: bool,
) -> QualityFiles:
    """The masks of a grid: SCL of L2A; MSK_CLASSI of L1C, or its clouds as polygons before processing baseline 04.00.

    MSK_QUALIT of its native bands come with them where they are wanted.

    Raises:
        InputError: a listed mask is missing or wrong.
    """
    masks = {(mask.kind, mask.band): mask.path for mask in tile.masks if mask.path.endswith(".jp2")}
    polygons = next((mask.path for mask in tile.masks if mask.kind == "MSK_CLOUDS" and mask.path.endswith(".gml")), "")
    classes = {image.resolution: image.path for image in listed_images(metadata) if image.band == "SCL"}
    if by_band and not any(kind == "MSK_QUALIT" for kind, _ in masks):
        raise InputError(
            f"{files.path}: has no masks by band as images (they came with processing baseline 04.00); open it with "
            "masks='scene'"
        )
    own = {
        name: CoarseFile(files.file(masks["MSK_QUALIT", name]), 1)
        for name in bands
        if by_band and ("MSK_QUALIT", name) in masks and metadata.bands[name].resolution == resolution
    }
    if classes:
        step = max(resolution, min(classes))
        if step not in classes:
            step = min(classes)
        return QualityFiles(CoarseFile(files.image(classes[step]), max(1, step // resolution)), None, own)
    clouds = masks.get(("MSK_CLASSI", ""))
    if clouds:
        return QualityFiles(None, CoarseFile(files.file(clouds), _CLASSI_RESOLUTION // resolution), own)
    if polygons:
        document, origin = files.read(polygons), f"{files.path}/{polygons}"
        return QualityFiles(
            None, None, own, parse_clouds(document, origin, files.file(polygons), tile.grids[resolution])
        )
    return QualityFiles(None, None, own)
