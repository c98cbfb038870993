"""Where the files of a Sentinel-1 GRD product lie: a folder or a ZIP, and what its manifest lists."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubeloom.errors import InputError
from cubeloom.untrusted import zip_members

from .sentinel2_safe import SafeFiles
from .xml_tree import Node

MANIFEST = "manifest.safe"
POLARISATIONS = ("VV", "VH", "HH", "HV")
"""In the order of a Scene's bands; a band's number is its place here."""
_PRODUCT = re.compile(r"S1[A-D]_(IW|EW|WV|S[1-6])_(GRD|SLC|RAW|OCN|ETA)")
_SCHEMAS = {
    "s1Level1ProductSchema": "annotation",
    "s1Level1CalibrationSchema": "calibration",
    "s1Level1NoiseSchema": "noise",
    "s1Level1MeasurementSchema": "measurement",
}
_NAMED_POLARISATION = re.compile(r"-(vv|vh|hh|hv)-")


@dataclass(frozen=True)
class ImageFiles:
    """Paths inside the product of what belongs to one polarisation; empty where the manifest lists none."""

    polarisation: str
    annotation: str = ""
    calibration: str = ""
    noise: str = ""
    measurement: str = ""


def recognises(path: Path) -> bool:
    """Whether `path` is a SAFE product of Sentinel-1: its folder, its ZIP, or its manifest.safe.

    Raises:
        InputError: a ZIP named like such a product is damaged or refused.
    """
    if path.is_dir():
        return _is_product(path)
    if path.suffix.lower() == ".zip":
        return path.is_file() and (bool(_PRODUCT.match(path.name)) or _holds_product(path))
    return path.name == MANIFEST and path.is_file() and _is_product(path.parent)


def find_products(folder: Path) -> Iterator[Path]:
    """Every GRD product at or below a folder, in the order of their paths; links are not followed."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if _is_product(here):
            folders.clear()
            if any((here / "annotation").glob("*-grd-*.xml")):
                yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        for name in sorted(names):
            found = _PRODUCT.match(name)
            if found and found[2] == "GRD" and name.lower().endswith(".zip"):
                yield here / name


def locate(path: Path) -> SafeFiles:
    """The files of the one product that `path` stands for.

    Args:
        path: the product's folder, its ZIP, or its manifest.safe.

    Raises:
        InputError: none is there, or several are.
    """
    if path.suffix.lower() != ".zip":
        return SafeFiles(path if path.is_dir() else path.parent, MANIFEST)
    sizes = {member.filename: member.file_size for member in zip_members(path)}
    found = _manifests(list(sizes))
    if len(found) != 1:
        raise InputError(f"{path}: expected one {MANIFEST} in this ZIP, found {', '.join(map(str, found)) or 'none'}")
    root = "" if len(found[0].parts) == 1 else f"{found[0].parent}/"
    return SafeFiles(path, MANIFEST, root, sizes)


def product_name(files: SafeFiles) -> str:
    """Name of the product: of its folder, on the disk or in the ZIP, without `.SAFE`."""
    inside = files.root.rstrip("/")
    name = inside or (files.path.stem if files.archive else files.path.resolve().name)
    return name[:-5] if name.upper().endswith(".SAFE") else name


def listed_images(manifest: Node) -> list[ImageFiles]:
    """What the manifest lists, by polarisation in the order of `POLARISATIONS`.

    Raises:
        InputError: no image is listed, or a polarisation several times.
    """
    found: dict[str, dict[str, str]] = {}
    for node in manifest.all(".//dataObjectSection/dataObject"):
        kind = _SCHEMAS.get(node.element.get("repID", ""))
        location = node.element.find(".//fileLocation")
        if kind is None or location is None:
            continue
        href = location.get("href", "").removeprefix("./")
        named = _NAMED_POLARISATION.search(PurePosixPath(href).name.lower())
        if named is None:
            raise InputError(f"{manifest.origin}: the name of the listed file {href[:120]!r} has no polarisation")
        parts = found.setdefault(named[1].upper(), {})
        if kind in parts:
            raise InputError(
                f"{manifest.origin}: lists {parts[kind]} and {href} as {kind} of {named[1].upper()}; "
                "expected a GRD product with one image a polarisation"
            )
        parts[kind] = href
    images = [ImageFiles(name, **found[name]) for name in POLARISATIONS if name in found]
    if not any(image.measurement for image in images):
        raise InputError(f"{manifest.origin}: lists no measurement; expected a GRD product of Sentinel-1")
    return images


def _is_product(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / "annotation").is_dir()


def _manifests(names: list[str]) -> list[PurePosixPath]:
    paths = [PurePosixPath(name) for name in names]
    return [path for path in paths if len(path.parts) <= 2 and path.name == MANIFEST]


def _holds_product(path: Path) -> bool:
    try:
        names = [member.filename for member in zip_members(path)]
    except InputError:
        return False
    return bool(_manifests(names)) and any(
        len(parts := PurePosixPath(name).parts) >= 2 and parts[-2] == "annotation" and parts[-1].startswith("s1")
        for name in names
    )
